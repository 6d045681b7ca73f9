//go:build linux

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// A cluster is some members of one server binary on loopback, with data under one temporary
// directory.
type cluster struct {
	dir       string
	endpoints []string
	commands  [][]string
	processes []*exec.Cmd
}

var (
	liveMutex sync.Mutex
	live      = map[*cluster]bool{}
)

func endAll() {
	liveMutex.Lock()
	all := make([]*cluster, 0, len(live))
	for c := range live {
		all = append(all, c)
	}
	liveMutex.Unlock()
	for _, c := range all {
		c.remove()
	}
}

func freePorts(n int) ([]string, error) {
	var ports []string
	for i := 0; i < n; i++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		ports = append(ports, l.Addr().String())
	}
	return ports, nil
}

func start(binary string, members int) (*cluster, error) {
	dir, err := os.MkdirTemp("", "rusd-bench-")
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir}
	liveMutex.Lock()
	live[c] = true
	liveMutex.Unlock()
	ports, err := freePorts(2 * members)
	if err != nil {
		c.remove()
		return nil, err
	}
	var initial []string
	for i := 0; i < members; i++ {
		initial = append(initial, fmt.Sprintf("m%d=http://%s", i, ports[2*i+1]))
	}
	for i := 0; i < members; i++ {
		client, peer := "http://"+ports[2*i], "http://"+ports[2*i+1]
		c.endpoints = append(c.endpoints, ports[2*i])
		c.commands = append(c.commands, []string{binary, "--name", fmt.Sprintf("m%d", i),
			"--data-dir", filepath.Join(dir, fmt.Sprintf("m%d", i)),
			"--listen-client-urls", client, "--advertise-client-urls", client,
			"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
			"--initial-cluster", strings.Join(initial, ","), "--log-level", "error",
			"--quota-backend-bytes", "8589934592"})
	}
	if err := c.run(); err != nil {
		c.remove()
		return nil, err
	}
	if err := c.firstRead(time.Minute); err != nil {
		c.remove()
		return nil, err
	}
	return c, nil
}

func (c *cluster) run() error {
	c.processes = make([]*exec.Cmd, len(c.commands))
	for i := range c.commands {
		if err := c.runOne(i); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) runOne(i int) error {
	log, err := os.OpenFile(filepath.Join(c.dir, fmt.Sprintf("m%d.log", i)), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(c.commands[i][0], c.commands[i][1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.processes[i] = cmd
	return nil
}

func (c *cluster) killOne(i int) {
	c.processes[i].Process.Kill()
	c.processes[i].Wait()
}

func (c *cluster) kill() {
	for _, p := range c.processes {
		if p != nil {
			p.Process.Kill()
		}
	}
	for _, p := range c.processes {
		if p != nil {
			p.Wait()
		}
	}
	c.processes = nil
}

func (c *cluster) remove() {
	liveMutex.Lock()
	delete(live, c)
	liveMutex.Unlock()
	c.kill()
	os.RemoveAll(c.dir)
}

func (c *cluster) client() (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: c.endpoints, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

// firstRead waits until each member answers a linearizable read.
func (c *cluster) firstRead(limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for i, endpoint := range c.endpoints {
		for {
			// A bare dial first: the client library's back-off would blur the time to the first read.
			err := func() error {
				conn, err := net.DialTimeout("tcp", endpoint, time.Second)
				if err != nil {
					return err
				}
				conn.Close()
				client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
				if err != nil {
					return err
				}
				defer client.Close()
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				defer cancel()
				_, err = client.Get(ctx, keyName(0))
				return err
			}()
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				log, _ := os.ReadFile(filepath.Join(c.dir, fmt.Sprintf("m%d.log", i)))
				return fmt.Errorf("member %d does not answer: %w: %s", i, err, tail(log))
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	return nil
}

// beside runs the tool until the function it returns is called, and waits for its first requests.
func (c *cluster) beside(tool string, args []string) (func(), error) {
	cmd := exec.Command(tool, args...)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	time.Sleep(time.Second)
	return func() {
		cmd.Process.Kill()
		cmd.Wait()
	}, nil
}

func keyName(i int) string { return fmt.Sprintf("k%08d", i) }

// load writes n keys, a hundred to a transaction.
func (c *cluster) load(n, size int) error {
	if n == 0 {
		return nil
	}
	client, err := c.client()
	if err != nil {
		return err
	}
	defer client.Close()
	value := strings.Repeat("v", size)
	starts := make(chan int)
	failed := make(chan error, 16)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	for w := 0; w < cap(failed); w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for from := range starts {
				var ops []clientv3.Op
				for i := from; i < min(from+100, n); i++ {
					ops = append(ops, clientv3.OpPut(keyName(i), value))
				}
				if _, err := client.Txn(ctx).Then(ops...).Commit(); err != nil {
					failed <- err
					cancel()
					return
				}
			}
		}()
	}
feed:
	for from := 0; from < n; from += 100 {
		select {
		case starts <- from:
		case <-ctx.Done():
			break feed
		}
	}
	close(starts)
	wg.Wait()
	select {
	case err := <-failed:
		return fmt.Errorf("loading %d keys: %w", n, err)
	default:
		return nil
	}
}

// restart is the time from SIGKILL to the first linearizable read with keys keys of 100 bytes.
func restart(binary string, keys int) (float64, error) {
	c, err := start(binary, 1)
	if err != nil {
		return 0, err
	}
	defer c.remove()
	if err := c.load(keys, 100); err != nil {
		return 0, err
	}
	begin := time.Now()
	c.kill()
	if err := c.run(); err != nil {
		return 0, err
	}
	if err := c.firstRead(10 * time.Minute); err != nil {
		return 0, err
	}
	return time.Since(begin).Seconds(), nil
}

// userHZ is what the kernel counts CPU time of /proc in, on every Linux Go runs on.
const userHZ = 100

// used sums CPU seconds and bytes written to the disk over the members.
func (c *cluster) used() (cpu, written float64) {
	for _, p := range c.processes {
		dir := filepath.Join("/proc", strconv.Itoa(p.Process.Pid))
		if stat, err := os.ReadFile(filepath.Join(dir, "stat")); err == nil {
			fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
			for _, i := range []int{11, 12} { // utime and stime, counted from behind the name
				ticks, _ := strconv.ParseFloat(fields[i], 64)
				cpu += ticks / userHZ
			}
		}
		written += field(filepath.Join(dir, "io"), "write_bytes:")
	}
	return cpu, written
}

// peakRSS sums VmHWM over the members, in MiB.
func (c *cluster) peakRSS() float64 {
	sum := 0.0
	for _, p := range c.processes {
		sum += field(filepath.Join("/proc", strconv.Itoa(p.Process.Pid), "status"), "VmHWM:") / 1024
	}
	return sum
}

func field(file, name string) float64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, name); ok {
			value, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return value
		}
	}
	return 0
}
