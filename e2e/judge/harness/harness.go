// Package harness starts, stops and talks to the servers being judged.
package harness

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

var (
	mu      sync.Mutex
	running = map[*Node]bool{}
	tempDir string
	// KeepLogs keeps the temporary directory (logs and data) at the end.
	KeepLogs bool
	portMu   sync.Mutex
	usedPort = map[int]bool{}
)

// TempDir is the one directory below which everything of this run lives.
func TempDir() string {
	mu.Lock()
	defer mu.Unlock()
	if tempDir == "" {
		d, err := os.MkdirTemp("", "judge-")
		if err != nil {
			panic(err)
		}
		tempDir = d
	}
	return tempDir
}

// Cleanup kills what still runs, by process id, and removes the directory.
func Cleanup() {
	mu.Lock()
	nodes := make([]*Node, 0, len(running))
	for n := range running {
		nodes = append(nodes, n)
	}
	dir := tempDir
	mu.Unlock()
	for _, n := range nodes {
		n.Kill()
	}
	if dir == "" {
		return
	}
	if KeepLogs {
		fmt.Println("logs and data kept in", dir)
		return
	}
	os.RemoveAll(dir)
}

// FreePort returns a loopback port nobody listens on and no other call was given lately: one of
// JUDGE_PORTS ("21000-21999"), below the ports that the kernel gives to outgoing connections, so that a server
// that is started again finds its port free.
func FreePort() int {
	portMu.Lock()
	defer portMu.Unlock()
	from, to := 22000, 32000
	if s := os.Getenv("JUDGE_PORTS"); s != "" {
		if n, _ := fmt.Sscanf(s, "%d-%d", &from, &to); n != 2 || from < 1 || to <= from || to > 65535 {
			panic("JUDGE_PORTS must be FROM-TO, not " + s)
		}
	}
	if len(usedPort) > (to-from)*3/4 {
		clear(usedPort) // those still listened on show themselves
	}
	for i := 0; i < 10_000; i++ {
		p := from + rand.Intn(to-from+1)
		if usedPort[p] {
			continue
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
		if err != nil {
			continue
		}
		l.Close()
		usedPort[p] = true
		return p
	}
	panic("no free port")
}

// Node is one server process.
type Node struct {
	Name string
	Bin  string
	Args []string
	Dir  string // data directory
	Cwd  string
	Log  string
	Addr string // client host:port
	Peer string // peer URL
	Adv  string // peer URL for the others, if that is another
	TLS  *tls.Config
	Env  []string // added to the environment

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{}
	err  error
	conn *grpc.ClientConn
}

// Start runs the process; it does not wait for it to serve.
func (n *Node) Start() error {
	f, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	cmd := exec.Command(n.Bin, n.Args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.Dir = n.Cwd
	cmd.Env = append(cleanEnv(), n.Env...)
	if err := startChild(cmd); err != nil {
		return fmt.Errorf("start %s: %w", n.Bin, err)
	}
	done := make(chan struct{})
	n.mu.Lock()
	n.cmd, n.done, n.err = cmd, done, nil
	n.mu.Unlock()
	mu.Lock()
	running[n] = true
	mu.Unlock()
	go func() {
		err := cmd.Wait()
		n.mu.Lock()
		n.err = err
		n.mu.Unlock()
		close(done)
	}()
	return nil
}

func cleanEnv() []string {
	var out []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "ETCD") {
			out = append(out, e)
		}
	}
	return out
}

// Pid of the running (or last) process.
func (n *Node) Pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

// Alive tells whether the process runs.
func (n *Node) Alive() bool {
	n.mu.Lock()
	d := n.done
	n.mu.Unlock()
	if d == nil {
		return false
	}
	select {
	case <-d:
		return false
	default:
		return true
	}
}

// WaitExit waits for the process to end by itself; code is -1 for a signal.
func (n *Node) WaitExit(d time.Duration) (code int, exited bool) {
	n.mu.Lock()
	done := n.done
	n.mu.Unlock()
	select {
	case <-done:
		mu.Lock()
		delete(running, n)
		mu.Unlock()
		return n.cmd.ProcessState.ExitCode(), true
	case <-time.After(d):
		return 0, false
	}
}

// Signal sends a signal to a process that runs, and waits for nothing.
func (n *Node) Signal(s syscall.Signal) {
	if n.Alive() {
		n.cmd.Process.Signal(s)
	}
}

// Kill sends SIGKILL and waits for the process to be gone.
func (n *Node) Kill() { n.signal(syscall.SIGKILL) }

// Term sends SIGTERM and waits up to 10 s, then SIGKILL.
func (n *Node) Term() { n.signal(syscall.SIGTERM) }

func (n *Node) signal(s syscall.Signal) {
	n.mu.Lock()
	cmd, done := n.cmd, n.done
	n.mu.Unlock()
	if cmd == nil {
		return
	}
	select {
	case <-done:
	default:
		cmd.Process.Signal(s)
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-done
		}
	}
	mu.Lock()
	delete(running, n)
	mu.Unlock()
}

// Dial opens a fresh connection to the node.
func (n *Node) Dial() *grpc.ClientConn { return Dial(n.Addr, n.TLS) }

// Conn is a shared connection that lives across restarts.
func (n *Node) Conn() *grpc.ClientConn {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn == nil {
		n.conn = Dial(n.Addr, n.TLS)
	}
	return n.conn
}

// Close closes the shared connection.
func (n *Node) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.conn != nil {
		n.conn.Close()
		n.conn = nil
	}
}

// KV client on the shared connection.
func (n *Node) KV() pb.KVClient { return pb.NewKVClient(n.Conn()) }

// Maint client on the shared connection.
func (n *Node) Maint() pb.MaintenanceClient { return pb.NewMaintenanceClient(n.Conn()) }

// Dial opens a connection with quick reconnects.
func Dial(addr string, t *tls.Config) *grpc.ClientConn {
	creds := insecure.NewCredentials()
	if t != nil {
		creds = credentials.NewTLS(t)
	}
	c, err := grpc.Dial("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30), grpc.MaxCallSendMsgSize(1<<30)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 100 * time.Millisecond},
			MinConnectTimeout: 2 * time.Second,
		}))
	if err != nil {
		panic(err)
	}
	return c
}

// Ctx is a context that ends after d.
func Ctx(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// WaitReady polls until a linearizable read answers.
func (n *Node) WaitReady(d time.Duration) error {
	end := time.Now().Add(d)
	var last error
	for time.Now().Before(end) {
		if !n.Alive() {
			return fmt.Errorf("%s exited before it was ready; its log ends:\n%s", n.Name, n.LogTail(12))
		}
		ctx, c := Ctx(time.Second)
		_, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte("ready?")})
		c()
		if err == nil {
			return nil
		}
		last = err
		time.Sleep(25 * time.Millisecond)
	}
	return fmt.Errorf("%s not ready after %v: %v; its log ends:\n%s", n.Name, d, last, n.LogTail(12))
}

// LogTail returns the last lines of the log.
func (n *Node) LogTail(lines int) string {
	b, err := os.ReadFile(n.Log)
	if err != nil {
		return err.Error()
	}
	s := strings.Split(strings.TrimSpace(string(b)), "\n")
	for i := range s {
		if strings.HasPrefix(s[i], "panic: ") {
			s = s[i:] // the beginning of a panic says more than its end
			if len(s) > lines {
				s = s[:lines]
			}
			break
		}
	}
	if len(s) > lines {
		s = s[len(s)-lines:]
	}
	for i := range s {
		if len(s[i]) > 500 {
			s[i] = s[i][:500] + "…"
		}
	}
	return strings.Join(s, "\n")
}

// RSS in bytes, from /proc.
func (n *Node) RSS() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.Pid()))
	if err != nil {
		return 0
	}
	for _, l := range strings.Split(string(b), "\n") {
		if strings.HasPrefix(l, "VmRSS:") {
			var kb int64
			fmt.Sscanf(strings.TrimPrefix(l, "VmRSS:"), "%d", &kb)
			return kb << 10
		}
	}
	return 0
}

// Opts of a cluster.
type Opts struct {
	Bins     []string // one per member
	Extra    []string // flags for every member
	PeerUnix bool
	TLS      string // "", "self" (own CA, both roles), "peer-auto"
	// Advertise, when set, replaces the advertised URLs, so that two separate
	// one-member clusters get the same IDs.
	AdvPeer, AdvClient string
	Token              string
	// Net, when set, stands between the members.
	Net *Net
}

var serial int

// Cluster makes, without starting, the nodes of one statically bootstrapped cluster.
func Cluster(o Opts) ([]*Node, error) {
	serial++
	base := filepath.Join(TempDir(), fmt.Sprintf("c%d", serial))
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	if o.Token == "" {
		o.Token = "judge"
	}
	var certs *Certs
	if o.TLS == "self" {
		var err error
		if certs, err = MakeCerts(base); err != nil {
			return nil, err
		}
	}
	cs, ps := "http", "http"
	if o.TLS == "self" {
		cs, ps = "https", "https"
	}
	if o.TLS == "peer-auto" {
		ps = "https"
	}
	if o.PeerUnix {
		ps = "unix"
		if o.TLS != "" {
			ps = "unixs"
		}
	}
	var nodes []*Node
	var ic []string
	for i, bin := range o.Bins {
		name := fmt.Sprintf("m%d", i+1)
		n := &Node{Name: name, Bin: bin, Cwd: base, Dir: filepath.Join(base, name+".data"), Log: filepath.Join(base, name+".log")}
		n.Addr = fmt.Sprintf("127.0.0.1:%d", FreePort())
		if o.PeerUnix {
			n.Peer = fmt.Sprintf("%s://localhost:%d", ps, FreePort())
		} else {
			n.Peer = fmt.Sprintf("%s://127.0.0.1:%d", ps, FreePort())
		}
		adv := n.Peer
		if o.AdvPeer != "" {
			adv = o.AdvPeer
		}
		if o.Net != nil {
			front, err := o.Net.Front(name, strings.TrimPrefix(n.Peer, "http://"))
			if err != nil {
				return nil, err
			}
			n.Adv = "http://" + front
			adv = n.Adv
		}
		ic = append(ic, name+"="+adv)
		nodes = append(nodes, n)
	}
	for _, n := range nodes {
		advP, advC := n.Peer, cs+"://"+n.Addr
		if o.AdvPeer != "" {
			advP = o.AdvPeer
		}
		if n.Adv != "" {
			advP = n.Adv
		}
		if o.AdvClient != "" {
			advC = o.AdvClient
		}
		n.Args = []string{
			"--name", n.Name, "--data-dir", n.Dir,
			"--listen-client-urls", cs + "://" + n.Addr, "--advertise-client-urls", advC,
			"--listen-peer-urls", n.Peer, "--initial-advertise-peer-urls", advP,
			"--initial-cluster", strings.Join(ic, ","),
			"--initial-cluster-token", o.Token, "--initial-cluster-state", "new",
		}
		if certs != nil {
			n.Args = append(n.Args, "--cert-file", certs.Cert, "--key-file", certs.Key, "--trusted-ca-file", certs.CA, "--client-cert-auth",
				"--peer-cert-file", certs.Cert, "--peer-key-file", certs.Key, "--peer-trusted-ca-file", certs.CA, "--peer-client-cert-auth")
			n.TLS = certs.Client
		}
		if o.TLS == "peer-auto" {
			n.Args = append(n.Args, "--peer-auto-tls")
		}
		n.Args = append(n.Args, o.Extra...)
	}
	return nodes, nil
}

// StartAll starts every node and waits until each serves.
func StartAll(nodes []*Node, d time.Duration) error {
	for _, n := range nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := n.WaitReady(d); err != nil {
			return err
		}
	}
	return nil
}

// StopAll kills every node and closes its connection.
func StopAll(nodes []*Node) {
	for _, n := range nodes {
		n.End()
	}
}

// End kills the node and closes its connection.
func (n *Node) End() {
	n.Kill()
	n.Close()
}

// singleReady is how long the member of Single may take to serve.
const singleReady = 30 * time.Second

// Single starts a cluster of one.
func Single(o Opts) (*Node, error) {
	nodes, err := Cluster(o)
	if err != nil {
		return nil, err
	}
	if err := StartAll(nodes, singleReady); err != nil {
		StopAll(nodes)
		return nil, err
	}
	return nodes[0], nil
}

// HashAt asks one node for its hash at a revision.
func (n *Node) HashAt(rev int64) (hash uint32, compact int64, err error) {
	ctx, c := Ctx(10 * time.Second)
	defer c()
	r, err := n.Maint().HashKV(ctx, &pb.HashKVRequest{Revision: rev})
	if err != nil {
		return 0, 0, err
	}
	return r.Hash, r.CompactRevision, nil
}

// Revision reads the current revision linearizably.
func (n *Node) Revision() (int64, error) {
	var last error
	for i := 0; i < 5; i++ { // an election may be under way
		ctx, c := Ctx(3 * time.Second)
		r, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte("ready?")})
		c()
		if err == nil {
			return r.Header.Revision, nil
		}
		last = err
		time.Sleep(50 * time.Millisecond)
	}
	return 0, last
}

// SameHash compares HashKV of all nodes at the smallest of their revisions.
// It asks again for up to two seconds, because a compaction may be under way.
func SameHash(nodes []*Node) (rev int64, hash uint32, err error) {
	for _, n := range nodes {
		r, e := n.Revision()
		if e != nil {
			return 0, 0, fmt.Errorf("%s: %w", n.Name, e)
		}
		if rev == 0 || r < rev {
			rev = r
		}
	}
	end := time.Now().Add(2 * time.Second)
	for {
		var hs []string
		same := true
		for i, n := range nodes {
			h, _, e := n.HashAt(rev)
			if e != nil {
				return rev, 0, fmt.Errorf("%s: HashKV(%d): %w", n.Name, rev, e)
			}
			if i == 0 {
				hash = h
			}
			same = same && h == hash
			hs = append(hs, fmt.Sprintf("%s=%08x", n.Name, h))
		}
		if same {
			return rev, hash, nil
		}
		if time.Now().After(end) {
			return rev, 0, errors.New("HashKV differs at revision " + fmt.Sprint(rev) + ": " + strings.Join(hs, " "))
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Healthy does one put and one get of it, within d.
func (n *Node) Healthy(d time.Duration) error {
	if !n.Alive() {
		return fmt.Errorf("%s is not running; its log ends:\n%s", n.Name, n.LogTail(12))
	}
	conn := n.Dial()
	defer conn.Close()
	ctx, c := Ctx(d)
	defer c()
	kv := pb.NewKVClient(conn)
	v := []byte(time.Now().String())
	if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("health/judge"), Value: v}, grpc.WaitForReady(true)); err != nil {
		return fmt.Errorf("health put: %w", err)
	}
	r, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("health/judge")}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("health get: %w", err)
	}
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != string(v) {
		return errors.New("health get did not return what was put")
	}
	return nil
}
