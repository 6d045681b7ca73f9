package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"google.golang.org/grpc/status"

	"rusd/judge/harness"
)

func init() {
	commands["badinput"] = struct {
		run  func([]string) error
		help string
	}{runBad, "hostile bytes and impossible messages on every port, each followed by a health check"}
}

// badRun is the suite against one server; answers are kept for the comparison.
type badRun struct {
	bin     string
	o       *badOpts
	nodes   []*harness.Node // m1 (and m2); in a cluster m3 is the judge itself
	fake    *fakePeer
	names   []string
	answers map[string]string
	failed  map[string]string
	rss     int64
}

type badOpts struct {
	idle   int
	rss    int64
	health time.Duration
	poison bool
	only   string
}

func runBad(args []string) error {
	fs := flag.NewFlagSet("badinput", flag.ExitOnError)
	var o badOpts
	server := fs.String("server", "", "the server under judgement")
	etcd := fs.String("etcd", "", "etcd 3.5.17 for the comparison (optional)")
	fs.IntVar(&o.idle, "idle", 10_000, "idle connections")
	rss := fs.Int64("rss-mib", 1024, "the server's RSS must stay below")
	fs.DurationVar(&o.health, "health", 2*time.Second, "a put and a get after each case must answer within")
	fs.BoolVar(&o.poison, "poison", false, "at the end also propose an undecodable entry as a peer (real etcd never recovers from it)")
	fs.StringVar(&o.only, "only", "", "only cases whose name contains this")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *server == "" {
		return errors.New("--server is needed")
	}
	o.rss = *rss << 20
	// Said explicitly, so that the servers inherit it.
	var lim syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &lim); err == nil {
		lim.Cur = lim.Max
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lim); err != nil {
			fmt.Println("cannot raise the limit of open files:", err)
		}
		if uint64(o.idle)+500 > uint64(lim.Cur) {
			o.idle = int(lim.Cur) - 500
			fmt.Printf("only %d idle connections: the limit of open files is %d\n", o.idle, lim.Cur)
		}
	}
	run := func(bin string) (*badRun, error) {
		abs, err := filepath.Abs(bin)
		if err != nil {
			return nil, err
		}
		b := &badRun{bin: abs, o: &o, answers: map[string]string{}, failed: map[string]string{}}
		defer b.stop()
		fmt.Println("==", bin)
		if err := b.single(); err != nil {
			return nil, err
		}
		return b, b.cluster()
	}
	j, err := run(*server)
	if err != nil {
		return err
	}
	differ := 0
	if *etcd != "" {
		e, err := run(*etcd)
		if err != nil {
			return fmt.Errorf("reference: %w", err)
		}
		fmt.Println("== compared")
		for _, n := range j.names {
			if j.answers[n] == "" || e.failed[n] != "" || e.answers[n] == j.answers[n] {
				continue
			}
			differ++
			fmt.Printf("DIFFERENCE %s\n  etcd:   %.300s\n  judged: %.300s\n", n, e.answers[n], j.answers[n])
		}
		for _, n := range e.names {
			if e.failed[n] != "" {
				fmt.Printf("(etcd itself does not survive: %s)\n", n)
			}
		}
		fmt.Printf("RSS: etcd at most %d MiB, judged at most %d MiB\n", e.rss>>20, j.rss>>20)
	}
	fmt.Printf("%d cases, %d failed, %d answers differ, RSS at most %d MiB\n", len(j.names), len(j.failed), differ, j.rss>>20)
	if len(j.failed) > 0 || differ > 0 {
		return errors.New("bad input was not met as it should be")
	}
	return nil
}

func (b *badRun) stop() {
	harness.StopAll(b.nodes)
	b.nodes = nil
	if b.fake != nil {
		b.fake.close()
		b.fake = nil
	}
}

// one runs a case and then asks for a put and a get on every node. What the
// case returns is compared with etcd's when it is not empty.
func (b *badRun) one(name string, fresh func() error, f func() (string, error)) error {
	if b.o.only != "" && !strings.Contains(name, b.o.only) {
		return nil
	}
	if b.nodes == nil {
		if err := fresh(); err != nil {
			return fmt.Errorf("fresh servers for %s: %w", name, err)
		}
	}
	t := time.Now()
	b.names = append(b.names, name)
	ans, err := f()
	took := time.Since(t)
	b.answers[name] = ans
	for _, n := range b.nodes {
		if r := n.RSS(); r > b.rss {
			b.rss = r
		}
		if r := n.RSS(); err == nil && r > b.o.rss {
			err = fmt.Errorf("%s uses %d MiB", n.Name, r>>20)
		}
		if err == nil {
			err = n.Healthy(b.o.health)
		}
	}
	if err != nil {
		for _, n := range b.nodes {
			if _, gone := n.WaitExit(100 * time.Millisecond); gone {
				err = fmt.Errorf("%s ended; its log ends:\n%s", n.Name, n.LogTail(6))
			}
		}
	} else { // still there a moment later, too
		time.Sleep(50 * time.Millisecond)
		for _, n := range b.nodes {
			if !n.Alive() {
				err = fmt.Errorf("%s ended; its log ends:\n%s", n.Name, n.LogTail(6))
			}
		}
	}
	mark := "ok  "
	if err != nil {
		mark = "FAIL"
		b.failed[name] = err.Error()
	}
	fmt.Printf("%s %-58s %5dms  %.120s\n", mark, name, took.Milliseconds(), ans)
	if err != nil {
		fmt.Println("    ", strings.ReplaceAll(fmt.Sprintf("%.1500s", err), "\n", "\n     "))
		b.stop()
	}
	return nil
}

func (b *badRun) freshSingle(tls string) error {
	ns, err := harness.Cluster(harness.Opts{Bins: []string{b.bin}, TLS: tls, Extra: []string{"--log-level", "error"}})
	if err != nil {
		return err
	}
	b.nodes = ns
	return harness.StartAll(ns, 20*time.Second)
}

// raw connects, sends, and reads what comes within a moment.
func raw(addr string, send []byte, wait time.Duration) (string, error) {
	c, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(wait))
	c.Write(send)
	got, _ := io.ReadAll(io.LimitReader(c, 1<<16))
	return string(got), nil
}

func hostport(peerURL string) string { return peerURL[strings.Index(peerURL, "://")+3:] }

var h2preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

func frame(kind, flags byte, stream uint32, body []byte) []byte {
	h := []byte{byte(len(body) >> 16), byte(len(body) >> 8), byte(len(body)), kind, flags, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(h[5:], stream)
	return append(h, body...)
}

func cat(p ...[]byte) []byte { return bytes.Join(p, nil) }

func (b *badRun) single() error {
	plain := func() error { return b.freshSingle("") }
	r := rand.New(rand.NewSource(7))
	junk := make([]byte, 64<<10)
	r.Read(junk)
	ports := map[string]func() string{
		"client": func() string { return b.nodes[0].Addr },
		"peer":   func() string { return hostport(b.nodes[0].Peer) },
	}
	inputs := []struct {
		name string
		data []byte
	}{
		{"random bytes", junk},
		{"zeros", make([]byte, 64<<10)},
		{"an HTTP/1 request line of 64 KiB", append([]byte("GET /"), bytes.Repeat([]byte("a"), 64<<10)...)},
		{"HTTP/1 headers without end", append([]byte("GET / HTTP/1.1\r\nHost: x\r\n"), bytes.Repeat([]byte("a: b\r\n"), 20<<10)...)},
		{"a chunked body with a bad size", []byte("POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n")},
		{"a body that never comes", []byte("POST /v3/kv/put HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n{")},
		{"HTTP/2 preface, then garbage", cat(h2preface, junk)},
		{"HTTP/2 preface, unfinished headers", cat(h2preface, frame(4, 0, 0, nil), frame(1, 0, 1, []byte{0x82}))},
		{"HTTP/2 preface, endless continuations", cat(h2preface, frame(4, 0, 0, nil), frame(1, 0, 1, []byte{0x82}), bytes.Repeat(frame(9, 0, 1, bytes.Repeat([]byte{0x82}, 1000)), 400))},
		{"HTTP/2 half a preface", h2preface[:10]},
		{"HTTP/2 settings flood", cat(h2preface, bytes.Repeat(frame(4, 0, 0, nil), 20_000))},
		{"HTTP/2 a frame of 16 MiB announced", cat(h2preface, []byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1})},
		{"a TLS hello on a plain port", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")},
	}
	for _, port := range []string{"client", "peer"} {
		for _, in := range inputs {
			if err := b.one(port+" port: "+in.name, plain, func() (string, error) {
				_, err := raw(ports[port](), in.data, 300*time.Millisecond)
				return "", err
			}); err != nil {
				return err
			}
		}
		if err := b.one(port+" port: 200 never finished header blocks held", plain, func() (string, error) {
			return b.hold(ports[port](), 200, inputs[7].data)
		}); err != nil {
			return err
		}
		if err := b.one(fmt.Sprintf("%s port: %d idle connections", port, b.o.idle), plain, func() (string, error) {
			return b.hold(ports[port](), b.o.idle, nil)
		}); err != nil {
			return err
		}
	}
	kv := func() pb.KVClient { return b.nodes[0].KV() }
	put := func(k, v int) (string, error) {
		ctx, c := harness.Ctx(10 * time.Second)
		defer c()
		_, err := kv().Put(ctx, &pb.PutRequest{Key: bytes.Repeat([]byte("k"), k), Value: make([]byte, v)})
		return grpcText(err), nil
	}
	limit := 1_572_864 // the default of --max-request-bytes
	for _, c := range []struct {
		name string
		f    func() (string, error)
	}{
		{"key of 70,000 bytes", func() (string, error) { return put(70_000, 1) }},
		{"empty key", func() (string, error) { return put(0, 1) }},
		{"value just under --max-request-bytes", func() (string, error) { return put(1, limit-100) }},
		{"value just over --max-request-bytes", func() (string, error) { return put(1, limit+1) }},
		{"message just over the gRPC limit", func() (string, error) { return put(1, limit+600_000) }},
		{"message of 64 MiB", func() (string, error) { return put(1, 64<<20) }},
		{"129 operations in a txn", func() (string, error) {
			q := &pb.TxnRequest{}
			for i := 0; i < 129; i++ {
				q.Success = append(q.Success, rangeOp(strconv.Itoa(i)))
			}
			ctx, c := harness.Ctx(10 * time.Second)
			defer c()
			_, err := kv().Txn(ctx, q)
			return grpcText(err), nil
		}},
		{"txn nested 5,000 deep", func() (string, error) {
			q := &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("x")}}
			for i := 0; i < 5000; i++ {
				q = &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: q}}}}
			}
			ctx, c := harness.Ctx(10 * time.Second)
			defer c()
			kv().Txn(ctx, q) // any answer will do
			return "", nil
		}},
		{"unknown sort target", func() (string, error) {
			ctx, c := harness.Ctx(5 * time.Second)
			defer c()
			kv().Range(ctx, &pb.RangeRequest{Key: []byte("k"), SortOrder: 1, SortTarget: 99})
			return "", nil
		}},
		{"open delete beside ignore_lease in a txn", func() (string, error) {
			ctx, c := harness.Ctx(5 * time.Second)
			defer c()
			kv().Put(ctx, &pb.PutRequest{Key: []byte("zz"), Value: []byte("v")})
			kv().Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("z"), RangeEnd: []byte{0}}}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("zz"), Value: []byte("w"), IgnoreLease: true}}}}})
			return "", nil
		}},
		{"500 requests whose client goes away", func() (string, error) {
			var wg sync.WaitGroup
			for i := 0; i < 500; i++ {
				wg.Add(1)
				go func(i int) {
					defer wg.Done()
					ctx, c := context.WithTimeout(context.Background(), time.Duration(i%10)*time.Millisecond)
					defer c()
					kv().Put(ctx, &pb.PutRequest{Key: []byte("gone"), Value: make([]byte, 10_000)})
				}(i)
				if i%50 == 49 {
					wg.Wait()
				}
			}
			return "", nil
		}},
		{"100 connections cut in the middle of a request", func() (string, error) {
			for i := 0; i < 100; i++ {
				c := b.nodes[0].Dial()
				ctx, cancel := harness.Ctx(time.Second)
				done := make(chan bool)
				go func() {
					pb.NewKVClient(c).Put(ctx, &pb.PutRequest{Key: []byte("cut"), Value: make([]byte, 1_000_000)})
					close(done)
				}()
				time.Sleep(time.Duration(r.Intn(3)) * time.Millisecond)
				c.Close()
				<-done
				cancel()
			}
			return "", nil
		}},
		{"200 watches and streams left behind", func() (string, error) {
			c := b.nodes[0].Dial()
			defer c.Close()
			ctx, cancel := harness.Ctx(5 * time.Second)
			defer cancel()
			for i := 0; i < 200; i++ {
				if w, err := pb.NewWatchClient(c).Watch(ctx); err == nil {
					w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}})
				}
				if l, err := pb.NewLeaseClient(c).LeaseKeepAlive(ctx); err == nil {
					l.Send(&pb.LeaseKeepAliveRequest{ID: 1})
				}
			}
			return "", nil
		}},
	} {
		if err := b.one("request: "+c.name, plain, c.f); err != nil {
			return err
		}
	}
	b.stop()
	tls := func() error { return b.freshSingle("self") }
	for _, port := range []string{"client", "peer"} {
		for _, in := range []struct {
			name string
			data []byte
		}{
			{"a stalled handshake", nil},
			{"half a hello", []byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")},
			{"garbage", junk[:5000]},
			{"plain HTTP", []byte("GET /health HTTP/1.1\r\nHost: x\r\n\r\n")},
			{"a record of length 0xffff", []byte("\x16\x03\x03\xff\xff\x01")},
		} {
			if err := b.one("TLS "+port+" port: 200 times "+in.name, tls, func() (string, error) {
				return b.hold(ports[port](), 200, in.data)
			}); err != nil {
				return err
			}
		}
	}
	b.stop()
	return nil
}

func grpcText(err error) string {
	if err == nil {
		return "OK"
	}
	s := status.Convert(err)
	return s.Code().String() + " " + s.Message()
}

// hold opens n connections, sends data on each, and checks health while they
// are open. It returns an error if the server refuses the connections.
func (b *badRun) hold(addr string, n int, data []byte) (string, error) {
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for i := 0; i < n; i++ {
		c, err := net.DialTimeout("tcp", addr, 3*time.Second)
		if err != nil {
			return "", fmt.Errorf("connection %d: %w", i, err)
		}
		conns = append(conns, c)
		if data != nil {
			c.SetWriteDeadline(time.Now().Add(time.Second))
			c.Write(data)
		}
	}
	time.Sleep(200 * time.Millisecond)
	if rss := b.nodes[0].RSS(); rss > b.rss {
		b.rss = rss
	}
	if err := b.nodes[0].Healthy(b.o.health); err != nil {
		return "", fmt.Errorf("while %d connections are open: %w", n, err)
	}
	return "", nil
}

// fakePeer stands in for the third member: it answers the streams its peers
// open with whatever the current case wants them to read.
type fakePeer struct {
	srv     *http.Server
	mu      sync.Mutex
	message []byte
	msgapp  []byte
	hits    atomic.Int64
	gen     chan struct{}
}

func newFakePeer(addr string) (*fakePeer, error) {
	f := &fakePeer{gen: make(chan struct{})}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	f.srv = &http.Server{Handler: f}
	go f.srv.Serve(l)
	return f, nil
}

func (f *fakePeer) close() {
	f.set(nil, nil)
	f.srv.Close()
}

// set changes what streams carry and ends those that are open.
func (f *fakePeer) set(message, msgapp []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.message, f.msgapp = message, msgapp
	close(f.gen)
	f.gen = make(chan struct{})
	f.hits.Store(0)
}

func (f *fakePeer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Server-Version", "3.5.17")
	h.Set("X-Min-Cluster-Version", "3.0.0")
	h.Set("X-Etcd-Cluster-ID", r.Header.Get("X-Etcd-Cluster-ID"))
	switch {
	case strings.HasPrefix(r.URL.Path, "/raft/stream/"):
		f.mu.Lock()
		data, gen := f.message, f.gen
		if strings.Contains(r.URL.Path, "msgapp") {
			data = f.msgapp
		}
		f.mu.Unlock()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		if data == nil { // quiet
			select {
			case <-gen:
			case <-r.Context().Done():
			case <-time.After(30 * time.Second):
			}
			return
		}
		w.Write(data)
		f.hits.Add(1)
		w.(http.Flusher).Flush()
		select {
		case <-gen:
		case <-r.Context().Done():
		case <-time.After(200 * time.Millisecond): // and then the end, mid-frame
		}
	case r.URL.Path == "/version":
		io.WriteString(w, `{"etcdserver":"3.5.17","etcdcluster":"3.5.0"}`)
	case r.URL.Path == "/raft":
		io.Copy(io.Discard, io.LimitReader(r.Body, 1<<24))
		w.WriteHeader(204)
	default:
		io.Copy(io.Discard, io.LimitReader(r.Body, 1<<24))
		w.WriteHeader(200)
	}
}

type ids struct {
	cluster, m1, m2, m3 uint64
	term, last          uint64
	leader              uint64
}

func (b *badRun) freshCluster() error {
	ns, err := harness.Cluster(harness.Opts{Bins: []string{b.bin, b.bin, b.bin}, Extra: []string{"--log-level", "error"}})
	if err != nil {
		return err
	}
	if b.fake, err = newFakePeer(hostport(ns[2].Peer)); err != nil {
		return err
	}
	b.nodes = ns[:2]
	return harness.StartAll(b.nodes, 20*time.Second)
}

func (b *badRun) ids() (ids, error) {
	var v ids
	for i := 0; i < 50; i++ {
		ctx, c := harness.Ctx(5 * time.Second)
		s, err := b.nodes[0].Maint().Status(ctx, &pb.StatusRequest{})
		if err == nil && s.Leader != 0 {
			var l *pb.MemberListResponse
			l, err = pb.NewClusterClient(b.nodes[0].Conn()).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			if err == nil {
				c()
				v.cluster, v.term, v.last, v.leader = s.Header.ClusterId, s.RaftTerm, s.RaftIndex, s.Leader
				v.m1 = s.Header.MemberId
				for _, m := range l.Members {
					switch {
					case m.ID == v.m1:
					case m.Name == "m3" || (len(m.PeerURLs) > 0 && m.PeerURLs[0] != b.nodes[1].Peer):
						v.m3 = m.ID
					default:
						v.m2 = m.ID
					}
				}
				return v, nil
			}
		}
		c()
		time.Sleep(100 * time.Millisecond)
	}
	return v, errors.New("no leader")
}

func postRaft(n *harness.Node, cluster string, from uint64, body []byte, path string) (string, error) {
	q, err := http.NewRequest("POST", n.Peer+path, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	q.Header.Set("Content-Type", "application/protobuf")
	q.Header.Set("X-Etcd-Cluster-ID", cluster)
	q.Header.Set("X-Server-From", strconv.FormatUint(from, 16))
	q.Header.Set("X-Server-Version", "3.5.17")
	q.Header.Set("X-Min-Cluster-Version", "3.0.0")
	q.Header.Set("X-PeerURLs", "http://127.0.0.1:1")
	return do(q)
}

func do(q *http.Request) (string, error) {
	c := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Do(q)
	if err != nil {
		return "", nil // cut off: fine, health decides
	}
	defer r.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(r.Body, 2000))
	return fmt.Sprintf("%d %q", r.StatusCode, b), nil
}

func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

func (b *badRun) cluster() error {
	junk := make([]byte, 4096)
	rand.New(rand.NewSource(9)).Read(junk)
	type mk func(v ids, to *harness.Node, toID uint64) (string, error)
	add := func(name string, f mk) error {
		for i := 0; i < 2; i++ {
			role := []string{"leader", "follower"}[i]
			if err := b.one("peer to "+role+": "+name, b.freshCluster, func() (string, error) {
				v, err := b.ids()
				if err != nil {
					return "", err
				}
				to, id := b.nodes[0], v.m1
				if (v.leader == v.m1) != (role == "leader") {
					to, id = b.nodes[1], v.m2
				}
				return f(v, to, id)
			}); err != nil {
				return err
			}
		}
		return nil
	}
	hexID := func(v uint64) string { return strconv.FormatUint(v, 16) }
	heartbeat := func(v ids, to uint64) []byte {
		m := raftpb.Message{Type: raftpb.MsgHeartbeatResp, From: v.m3, To: to, Term: v.term}
		return must(m.Marshal())
	}
	steps := []struct {
		name string
		f    mk
	}{
		{"POST /raft of another cluster", func(v ids, to *harness.Node, id uint64) (string, error) {
			return postRaft(to, "deadbeef", v.m3, heartbeat(v, id), "/raft")
		}},
		{"POST /raft without a cluster", func(v ids, to *harness.Node, id uint64) (string, error) {
			return postRaft(to, "", v.m3, heartbeat(v, id), "/raft")
		}},
		{"POST /raft, garbage", func(v ids, to *harness.Node, id uint64) (string, error) {
			s, err := postRaft(to, hexID(v.cluster), v.m3, junk, "/raft")
			return strings.SplitN(s, " ", 2)[0], err // the text is the decoder's
		}},
		{"POST /raft, truncated message", func(v ids, to *harness.Node, id uint64) (string, error) {
			h := heartbeat(v, id)
			s, err := postRaft(to, hexID(v.cluster), v.m3, h[:len(h)-1], "/raft")
			return strings.SplitN(s, " ", 2)[0], err
		}},
		{"POST /raft/snapshot, garbage", func(v ids, to *harness.Node, id uint64) (string, error) {
			_, err := postRaft(to, hexID(v.cluster), v.m3, junk, "/raft/snapshot")
			return "", err
		}},
		{"POST /raft/snapshot announcing 2^60 bytes", func(v ids, to *harness.Node, id uint64) (string, error) {
			_, err := postRaft(to, hexID(v.cluster), v.m3, cat(u64(1<<60), junk), "/raft/snapshot")
			return "", err
		}},
		{"POST /raft/snapshot, not a snapshot", func(v ids, to *harness.Node, id uint64) (string, error) {
			h := heartbeat(v, id)
			_, err := postRaft(to, hexID(v.cluster), v.m3, cat(u64(uint64(len(h))), h, junk), "/raft/snapshot")
			return "", err
		}},
		{"GET /raft/stream of another cluster", func(v ids, to *harness.Node, id uint64) (string, error) {
			return getStream(to, "message", "deadbeef", hexID(v.m3), hexID(id))
		}},
		{"GET /raft/stream from nobody", func(v ids, to *harness.Node, id uint64) (string, error) {
			return getStream(to, "msgapp", hexID(v.cluster), "123", hexID(id))
		}},
		{"GET /raft/stream from no ID", func(v ids, to *harness.Node, id uint64) (string, error) {
			return getStream(to, "message", hexID(v.cluster), "xyz", hexID(id))
		}},
		{"GET /raft/stream to another", func(v ids, to *harness.Node, id uint64) (string, error) {
			return getStream(to, "message", hexID(v.cluster), hexID(v.m3), hexID(v.m3))
		}},
		{"GET /raft/stream of another kind", func(v ids, to *harness.Node, id uint64) (string, error) {
			return getStream(to, "wrong", hexID(v.cluster), hexID(v.m3), hexID(id))
		}},
	}
	type msgOf func(v ids, to uint64) raftpb.Message
	msgs := []struct {
		name string
		m    msgOf
	}{
		{"unknown type 19", func(v ids, to uint64) raftpb.Message { return raftpb.Message{Type: 19} }},
		{"unknown type -1", func(v ids, to uint64) raftpb.Message { return raftpb.Message{Type: -1} }},
		{"local type MsgHup", func(v ids, to uint64) raftpb.Message { return raftpb.Message{Type: raftpb.MsgHup, Term: 0} }},
		{"local type MsgBeat", func(v ids, to uint64) raftpb.Message { return raftpb.Message{Type: raftpb.MsgBeat, Term: 0} }},
		{"local type MsgCheckQuorum", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgCheckQuorum, Term: 0}
		}},
		{"MsgReadIndex with 0 entries", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgReadIndex, Term: 0}
		}},
		{"MsgReadIndex with 2 entries", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgReadIndex, Entries: []raftpb.Entry{{Data: []byte("12345678")}, {Data: []byte("x")}}}
		}},
		{"MsgReadIndexResp with 0 entries", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgReadIndexResp, Term: v.term, Index: 1}
		}},
		{"MsgReadIndexResp with 2 entries", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgReadIndexResp, Term: v.term, Index: 1 << 40, Entries: []raftpb.Entry{{Data: []byte("1")}, {Data: []byte("2")}}}
		}},
		{"MsgApp, entries not contiguous", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgApp, Term: v.term, Index: 1 << 30, LogTerm: v.term,
				Entries: []raftpb.Entry{{Index: 1<<30 + 1, Term: v.term}, {Index: 1<<30 + 7, Term: v.term}}}
		}},
		{"MsgApp, first entry before its index", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgApp, Term: v.term, Index: 1 << 30, Entries: []raftpb.Entry{{Index: 0, Term: 0}}}
		}},
		{"MsgApp, entry of a later term than the message", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgApp, Term: v.term, Index: 1 << 30, LogTerm: v.term, Entries: []raftpb.Entry{{Index: 1<<30 + 1, Term: v.term + 9}}}
		}},
		{"MsgApp, commit beyond the last entry, nothing sent", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgApp, Term: v.term, Index: 1 << 40, LogTerm: v.term, Commit: 1 << 50}
		}},
		{"MsgHeartbeat, commit beyond last", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgHeartbeat, Term: v.term, Commit: 1 << 40}
		}},
		{"MsgAppResp, index beyond last", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgAppResp, Term: v.term, Index: 1 << 40}
		}},
		{"MsgAppResp, reject with a hint beyond last", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgAppResp, Term: v.term, Index: 1 << 40, Reject: true, RejectHint: 1 << 41, LogTerm: 1 << 40}
		}},
		{"MsgHeartbeatResp with a foreign context", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgHeartbeatResp, Term: v.term, Context: junk[:100]}
		}},
		{"MsgSnap over /raft without a snapshot", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgSnap, Term: v.term}
		}},
		{"MsgSnap over /raft of index 2^40", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgSnap, Term: v.term, Snapshot: raftpb.Snapshot{Data: junk[:50],
				Metadata: raftpb.SnapshotMetadata{Index: 1 << 40, Term: v.term, ConfState: raftpb.ConfState{Voters: []uint64{v.m1, v.m2, v.m3}}}}}
		}},
		{"MsgProp with no entry", func(v ids, to uint64) raftpb.Message { return raftpb.Message{Type: raftpb.MsgProp} }},
		{"MsgProp, conf change of garbage", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgProp, Entries: []raftpb.Entry{{Type: raftpb.EntryConfChange, Data: junk[:30]}}}
		}},
		{"MsgProp, conf change V2 of garbage", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgProp, Entries: []raftpb.Entry{{Type: raftpb.EntryConfChangeV2, Data: junk[:30]}}}
		}},
		{"MsgProp, entry of an unknown type", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgProp, Entries: []raftpb.Entry{{Type: 9, Data: junk[:30]}}}
		}},
		{"MsgVote of the current term from an empty log", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgVote, Term: v.term}
		}},
		{"MsgTransferLeader to nobody", func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgTransferLeader, From: 0x999, Term: v.term}
		}},
		{"MsgUnreachable", func(v ids, to uint64) raftpb.Message { return raftpb.Message{Type: raftpb.MsgUnreachable} }},
	}
	// The same messages as a peer, then as strangers, then on the streams.
	send := func(from func(v ids, to uint64) uint64, m msgOf, wrongTo bool) mk {
		return func(v ids, to *harness.Node, id uint64) (string, error) {
			x := m(v, id)
			if x.From == 0 {
				x.From = from(v, id)
			}
			x.To = id
			if wrongTo {
				x.To = 0x777
			}
			_, err := postRaft(to, hexID(v.cluster), x.From, must(x.Marshal()), "/raft")
			return "", err
		}
	}
	for _, m := range msgs {
		steps = append(steps, struct {
			name string
			f    mk
		}{"as m3: " + m.name, send(func(v ids, _ uint64) uint64 { return v.m3 }, m.m, false)})
	}
	for _, m := range msgs {
		if strings.HasPrefix(m.name, "MsgApp,") || strings.HasPrefix(m.name, "MsgHeartbeat,") || strings.HasPrefix(m.name, "MsgSnap") {
			steps = append(steps, struct {
				name string
				f    mk
			}{"as the leader: " + m.name, send(func(v ids, _ uint64) uint64 { return v.leader }, m.m, false)})
		}
	}
	plain := func(v ids, to uint64) raftpb.Message {
		return raftpb.Message{Type: raftpb.MsgAppResp, Term: v.term, Index: 3}
	}
	for _, w := range []struct {
		name string
		from func(v ids, to uint64) uint64
		to   bool
	}{
		{"from an unknown member", func(ids, uint64) uint64 { return 0x12345 }, false},
		{"from 0", func(ids, uint64) uint64 { return 0 }, false},
		{"from itself", func(_ ids, to uint64) uint64 { return to }, false},
		{"to somebody else", func(v ids, _ uint64) uint64 { return v.m3 }, true},
	} {
		steps = append(steps, struct {
			name string
			f    mk
		}{"MsgAppResp " + w.name, send(w.from, plain, w.to)})
	}
	for _, s := range steps {
		if err := add(s.name, s.f); err != nil {
			return err
		}
	}
	// What our peers read from the streams they opened to us.
	entry := must((&raftpb.Entry{Index: 5, Term: 2, Data: []byte("x")}).Marshal())
	streams := []struct {
		name            string
		message, msgapp func(v ids) []byte
	}{
		{"ends at once", func(ids) []byte { return []byte{} }, func(ids) []byte { return []byte{} }},
		{"half a length", func(ids) []byte { return []byte{0, 0, 0} }, func(ids) []byte { return []byte{0, 0, 0} }},
		{"a length and half a message", func(ids) []byte { return cat(u64(100), junk[:50]) }, func(ids) []byte { return cat(u64(2), u64(100), junk[:50]) }},
		{"a message of garbage", func(ids) []byte { return cat(u64(100), junk[:100]) }, func(ids) []byte { return cat(u64(2), u64(100), junk[:100]) }},
		{"a length of 2^62", func(ids) []byte { return cat(u64(1<<62), junk) }, func(ids) []byte { return cat(u64(2), u64(1<<62), junk) }},
		{"a length of 600 MiB", func(ids) []byte { return cat(u64(600<<20), junk) }, func(ids) []byte { return cat(u64(2), u64(600<<20), junk) }},
		{"an unknown frame type", func(ids) []byte { return junk }, func(ids) []byte { return cat(u64(77), junk) }},
		{"app entries without a message before", func(ids) []byte { return []byte{} }, func(ids) []byte { return cat(u64(1), u64(1), u64(uint64(len(entry))), entry, u64(3)) }},
		{"2^60 app entries", func(ids) []byte { return []byte{} }, func(ids) []byte { return cat(u64(1), u64(1<<60), u64(8), junk) }},
		{"an app entry of 2^60 bytes", func(ids) []byte { return []byte{} }, func(ids) []byte { return cat(u64(1), u64(1), u64(1<<60), junk) }},
		{"cut in the entry count", func(ids) []byte { return u64(20) }, func(ids) []byte { return cat(u64(1), []byte{0, 0}) }},
	}
	for _, m := range msgs {
		// On a stream it comes from m3, and then a transfer to m3 is a fair request.
		if !strings.HasPrefix(m.name, "MsgTransferLeader") {
			enc := func(v ids) []byte {
				x := m.m(v, 0)
				x.From, x.To = v.m3, v.m1
				return must(x.Marshal())
			}
			streams = append(streams, struct {
				name            string
				message, msgapp func(v ids) []byte
			}{m.name, func(v ids) []byte { e := enc(v); return cat(u64(uint64(len(e))), e) },
				func(v ids) []byte { e := enc(v); return cat(u64(2), u64(uint64(len(e))), e) }})
		}
	}
	for _, s := range streams {
		if err := b.one("stream from m3: "+s.name, b.freshCluster, func() (string, error) {
			v, err := b.ids()
			if err != nil {
				return "", err
			}
			b.fake.set(s.message(v), s.msgapp(v))
			end := time.Now().Add(4 * time.Second)
			for b.fake.hits.Load() < 6 && time.Now().Before(end) {
				time.Sleep(20 * time.Millisecond)
			}
			hits := b.fake.hits.Load()
			b.fake.set(nil, nil)
			if hits == 0 {
				return "", errors.New("nobody opened a stream to the third member within 4 s")
			}
			return "", nil
		}); err != nil {
			return err
		}
	}
	if b.o.poison {
		if err := add("MsgProp, entry that is no request", send(func(v ids, _ uint64) uint64 { return v.m3 }, func(v ids, to uint64) raftpb.Message {
			return raftpb.Message{Type: raftpb.MsgProp, Entries: []raftpb.Entry{{Data: junk[:30]}}}
		}, false)); err != nil {
			return err
		}
	}
	b.stop()
	return nil
}

func getStream(n *harness.Node, kind, cluster, from, to string) (string, error) {
	q, err := http.NewRequest("GET", n.Peer+"/raft/stream/"+kind+"/"+from, nil)
	if err != nil {
		return "", err
	}
	q.Header.Set("X-Etcd-Cluster-ID", cluster)
	q.Header.Set("X-Server-From", from)
	q.Header.Set("X-Server-Version", "3.5.17")
	q.Header.Set("X-Min-Cluster-Version", "3.0.0")
	q.Header.Set("X-Raft-To", to)
	s, err := do(q)
	return s, err
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}
