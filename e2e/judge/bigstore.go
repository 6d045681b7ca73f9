package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["bigstore"] = struct {
		run  func([]string) error
		help string
	}{runBigstore, "a large store: puts, bytes written for them, restart, snapshot, restore; numbers for docs/benchmarks.md"}
}

func runBigstore(args []string) error {
	fl := flag.NewFlagSet("bigstore", flag.ExitOnError)
	server := fl.String("server", "", "the server")
	etcdutl := fl.String("etcdutl", "", "etcdutl, to restore the snapshot; empty: not restored")
	keys := fl.Int("keys", 1_000_000, "keys of the store")
	size := fl.Int("value", 1024, "bytes of a value")
	clients := fl.Int("clients", 64, "writers that are measured")
	span := fl.Duration("for", 10*time.Second, "how long they write")
	snapshot := fl.Bool("snapshot", true, "save a snapshot, restore it and start on it")
	fl.Parse(args)
	if *server == "" {
		return errors.New("--server is needed")
	}
	if err := absolute(server, etcdutl); err != nil {
		return err
	}
	n, err := harness.Single(harness.Opts{Bins: []string{*server}, Extra: []string{"--quota-backend-bytes", "8589934592", "--log-level", "error"}})
	if err != nil {
		return err
	}
	defer n.End()
	who := filepath.Base(*server)
	value := make([]byte, *size)
	rand.New(rand.NewSource(1)).Read(value)
	began := time.Now()
	if err := fillKeys(n, *keys, value); err != nil {
		return err
	}
	fmt.Printf("%s: %d keys of %d bytes in %v\n", who, *keys, *size, time.Since(began).Round(100*time.Millisecond))
	time.Sleep(3 * time.Second)
	before := account(n)
	lat, took := measurePuts(n, *keys, value, *clients, *span)
	time.Sleep(time.Second)
	after := account(n)
	count := float64(len(lat))
	sort.Slice(lat, func(i, j int) bool { return lat[i] < lat[j] })
	per := func(a, b float64) float64 { return (b - a) / count * 1000 / (1 << 20) }
	all, wal, db := per(before.written, after.written), per(before.wal, after.wal), per(before.checkpoint, after.checkpoint)
	fmt.Printf("%s: %d clients: %.0f puts/s, p50 %.2f ms, p99 %.2f ms; MiB written per 1,000 puts: %.2f, of it log %.2f, database file %.2f, the rest %.2f\n",
		who, *clients, count/took.Seconds(), ms(lat[len(lat)/2]), ms(lat[len(lat)*99/100]), all, wal, db, all-wal-db)
	n.Kill()
	began = time.Now()
	if err := n.Start(); err != nil {
		return err
	}
	if err := n.WaitReady(time.Minute); err != nil {
		return err
	}
	fmt.Printf("%s: SIGKILL to first read %v\n", who, time.Since(began).Round(10*time.Millisecond))
	if !*snapshot {
		return nil
	}
	file := filepath.Join(harness.TempDir(), "big.db")
	resident := n.RSS()
	peak, bytes, took, err := takeSnapshot(n, file)
	if err != nil {
		return err
	}
	fmt.Printf("%s: snapshot save: %d MB in %v; resident %d MB before, %d MB at most\n", who, bytes>>20, took.Round(10*time.Millisecond), resident>>20, peak>>20)
	if *etcdutl == "" {
		return nil
	}
	n.End()
	if err := os.RemoveAll(n.Dir); err != nil {
		return err
	}
	t := snapTools{server: *server, etcdutl: *etcdutl}
	ms, err := t.restored(file, *server)
	if err != nil {
		return err
	}
	os.Remove(file)
	m := ms[0]
	defer harness.StopAll(ms)
	began = time.Now()
	stop := make(chan struct{})
	top := watchRSS(m, stop)
	if err := harness.StartAll(ms, time.Minute); err != nil {
		return err
	}
	took = time.Since(began)
	close(stop)
	fmt.Printf("%s: first read after a start on the restored directory %v; resident %d MB at most\n", who, took.Round(10*time.Millisecond), top()>>20)
	return nil
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

type written struct{ written, wal, checkpoint float64 }

// account reads what a process has written, and what it says it was for.
func account(n *harness.Node) (w written) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/io", n.Pid()))
	for _, l := range strings.Split(string(b), "\n") {
		fmt.Sscanf(l, "write_bytes: %f", &w.written)
	}
	for _, l := range strings.Split(httpGet("http://"+n.Addr+"/metrics"), "\n") {
		fmt.Sscanf(l, "etcd_disk_wal_write_bytes_total %f", &w.wal)
		fmt.Sscanf(l, "rusd_checkpoint_bytes_total %f", &w.checkpoint)
	}
	if !strings.Contains(filepath.Base(n.Bin), "rusd") {
		w.wal /= 2 // etcd counts each byte twice
	}
	return w
}

func fillKeys(n *harness.Node, count int, value []byte) error {
	const batch = 100
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for w := 0; w < 32; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				from := next.Add(batch) - batch
				if from >= int64(count) {
					return
				}
				t := &pb.TxnRequest{}
				for i := from; i < min(from+batch, int64(count)); i++ {
					put := &pb.PutRequest{Key: []byte(fmt.Sprintf("key/%09d", i)), Value: value}
					t.Success = append(t.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
				}
				ctx, c := harness.Ctx(30 * time.Second)
				if _, err := n.KV().Txn(ctx, t); err != nil {
					failed.Add(1)
				}
				c()
			}
		}()
	}
	wg.Wait()
	if f := failed.Load(); f > 0 {
		return fmt.Errorf("%d transactions failed", f)
	}
	return nil
}

func measurePuts(n *harness.Node, keys int, value []byte, clients int, span time.Duration) ([]time.Duration, time.Duration) {
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	began := time.Now()
	for w := 0; w < clients; w++ {
		wg.Add(1)
		go func(w int) {
			defer wg.Done()
			r := rand.New(rand.NewSource(int64(w)))
			var own []time.Duration
			for time.Since(began) < span {
				ctx, c := harness.Ctx(20 * time.Second)
				start := time.Now()
				_, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("key/%09d", r.Intn(keys))), Value: value[:256]})
				c()
				if err == nil {
					own = append(own, time.Since(start))
				}
			}
			mu.Lock()
			all = append(all, own...)
			mu.Unlock()
		}(w)
	}
	wg.Wait()
	return all, time.Since(began)
}

// watchRSS looks at a process's memory until stop is closed; the function gives the most it saw.
func watchRSS(n *harness.Node, stop <-chan struct{}) func() int64 {
	var peak atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			peak.Store(max(peak.Load(), n.RSS()))
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return func() int64 { <-done; return peak.Load() }
}

func takeSnapshot(n *harness.Node, file string) (peak, bytes int64, took time.Duration, err error) {
	f, err := os.Create(file)
	if err != nil {
		return 0, 0, 0, err
	}
	defer f.Close()
	stop := make(chan struct{})
	top := watchRSS(n, stop)
	ctx, c := harness.Ctx(2 * time.Minute)
	defer c()
	began := time.Now()
	s, err := n.Maint().Snapshot(ctx, &pb.SnapshotRequest{})
	for err == nil {
		var m *pb.SnapshotResponse
		if m, err = s.Recv(); err == nil {
			bytes += int64(len(m.Blob))
			_, err = f.Write(m.Blob)
		}
	}
	took = time.Since(began)
	close(stop)
	if err != io.EOF {
		return 0, 0, 0, err
	}
	return top(), bytes, took, nil
}
