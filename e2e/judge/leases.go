package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"rusd/judge/harness"
)

func init() {
	commands["leases"] = struct {
		run  func([]string) error
		help string
	}{runLeases, "many leases that expire in the same second, and what others notice of it"}
}

// waveWriters put all the time; their latencies tell what others notice.
type waveWriters struct {
	mu    sync.Mutex
	puts  []time.Duration
	stop  chan struct{}
	ended sync.WaitGroup
	err   atomic.Value
}

func startWriters(nodes []*harness.Node, clients int, pause time.Duration) *waveWriters {
	w := &waveWriters{stop: make(chan struct{})}
	for i := 0; i < clients; i++ {
		w.ended.Add(1)
		go func(i int) {
			defer w.ended.Done()
			conn := nodes[i%len(nodes)].Dial()
			defer conn.Close()
			kv := pb.NewKVClient(conn)
			for n := 0; ; n++ {
				select {
				case <-w.stop:
					return
				case <-time.After(pause):
				}
				ctx, c := harness.Ctx(10 * time.Second)
				began := time.Now()
				_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("beside/%d", i)), Value: make([]byte, 256)}, grpc.WaitForReady(true))
				c()
				if err != nil {
					w.err.Store(err)
					return
				}
				w.mu.Lock()
				w.puts = append(w.puts, time.Since(began))
				w.mu.Unlock()
			}
		}(i)
	}
	return w
}

// take gives the latencies since the last call.
func (w *waveWriters) take() []time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	puts := w.puts
	w.puts = nil
	return puts
}

func (w *waveWriters) end() error {
	close(w.stop)
	w.ended.Wait()
	if err, ok := w.err.Load().(error); ok {
		return fmt.Errorf("a put beside the wave: %w", err)
	}
	return nil
}

func latencies(what string, all []time.Duration) string {
	if len(all) == 0 {
		return what + ": no puts"
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	at := func(p int) time.Duration { return all[min(len(all)-1, len(all)*p/100)].Round(10 * time.Microsecond) }
	return fmt.Sprintf("%s: %d puts, p50 %v, p99 %v, max %v", what, len(all), at(50), at(99), all[len(all)-1].Round(10*time.Microsecond))
}

// grantWave grants leases that all end in the second before `end`; every tenth has keys.
func grantWave(nodes []*harness.Node, count, keys int, end time.Time) error {
	const workers = 256
	var next atomic.Int64
	errs := make(chan error, workers)
	conns := make([]*grpc.ClientConn, 16)
	for i := range conns {
		conns[i] = nodes[i%len(nodes)].Dial()
		defer conns[i].Close()
	}
	for i := 0; i < workers; i++ {
		go func(conn *grpc.ClientConn) {
			lease, kv := pb.NewLeaseClient(conn), pb.NewKVClient(conn)
			for {
				id := next.Add(1)
				if id > int64(count) {
					errs <- nil
					return
				}
				ctx, c := harness.Ctx(30 * time.Second)
				ttl := int64(time.Until(end) / time.Second)
				_, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
				for k := 0; err == nil && id%10 == 0 && k < keys; k++ {
					_, err = kv.Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("leased/%08d/%d", id, k)), Lease: id})
				}
				c()
				if err != nil {
					errs <- fmt.Errorf("lease %d: %w", id, err)
					return
				}
			}
		}(conns[i%len(conns)])
	}
	for i := 0; i < workers; i++ {
		if err := <-errs; err != nil {
			return err
		}
	}
	return nil
}

func leaseCount(n *harness.Node) (int, error) {
	ctx, c := harness.Ctx(10 * time.Second)
	defer c()
	r, err := pb.NewLeaseClient(n.Conn()).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return 0, err
	}
	return len(r.Leases), nil
}

// revokedTotal is how many revokes a member has applied, 0 if it does not say.
func revokedTotal(n *harness.Node) int {
	for _, l := range strings.Split(httpGet("http://"+n.Addr+"/metrics"), "\n") {
		var total float64
		if _, err := fmt.Sscanf(l, "etcd_debugging_lease_revoked_total %g", &total); err == nil {
			return int(total)
		}
	}
	return 0
}

// deletions counts the deleted keys that a watch sees.
func deletions(n *harness.Node) (*atomic.Int64, context.CancelFunc, error) {
	w, err := openWatch(pb.NewWatchClient(n.Conn()))
	if err != nil {
		return nil, nil, err
	}
	q := &pb.WatchCreateRequest{Key: []byte("leased/"), RangeEnd: []byte("leased0"), Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}}
	if err := w.s.Send(createReq(q)); err != nil {
		return nil, nil, err
	}
	if _, err := w.waitFor(0, 10*time.Second, "created", func(r *pb.WatchResponse) bool { return r.Created }); err != nil {
		return nil, nil, err
	}
	var seen atomic.Int64
	go func() {
		for from := 0; ; from++ {
			at, err := w.waitFor(from, time.Hour, "events", hasEvents)
			if err != nil {
				return
			}
			w.mu.Lock()
			seen.Add(int64(len(w.got[at].Events)))
			w.mu.Unlock()
			from = at
		}
	}()
	return &seen, w.cancel, nil
}

func runLeases(args []string) error {
	fs := flag.NewFlagSet("leases", flag.ExitOnError)
	server := fs.String("server", "", "the server under judgement")
	members := fs.Int("members", 1, "members")
	count := fs.Int("count", 100_000, "leases")
	keys := fs.Int("keys", 1, "keys of every tenth lease")
	live := fs.Duration("live", 40*time.Second, "from the first grant to the expiry")
	within := fs.Duration("within", 5*time.Second, "all must be gone so long after the last has expired")
	clients := fs.Int("clients", 8, "writers beside the wave")
	pause := fs.Duration("pause", 2*time.Millisecond, "pause of a writer between two puts")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *server == "" {
		return errors.New("--server is needed")
	}
	nodes, err := harness.Cluster(harness.Opts{Bins: strings.Split(strings.Repeat(","+*server, *members)[1:], ",")})
	if err != nil {
		return err
	}
	defer harness.StopAll(nodes)
	if err := harness.StartAll(nodes, 20*time.Second); err != nil {
		return err
	}
	last := nodes[len(nodes)-1]
	seen, cancel, err := deletions(last)
	if err != nil {
		return err
	}
	defer cancel()
	began := time.Now()
	end := began.Add(*live)
	if err := grantWave(nodes, *count, *keys, end); err != nil {
		return err
	}
	fmt.Printf("%d leases granted in %v\n", *count, time.Since(began).Round(time.Millisecond))
	if left := time.Until(end); left < 8*time.Second {
		return fmt.Errorf("granting took too long: %v are left of --live", left)
	}
	writers := startWriters(nodes, *clients, *pause)
	time.Sleep(time.Until(end.Add(-6 * time.Second)))
	writers.take()
	time.Sleep(time.Until(end.Add(-1200 * time.Millisecond)))
	quiet := writers.take()
	if n, err := leaseCount(last); err != nil || n != *count {
		return fmt.Errorf("before the first expiry there are %d leases: %v", n, err)
	}
	time.Sleep(time.Until(end.Add(-time.Second)))
	writers.take()
	// The whole list is heavy: it is looked at when the counter says that it is empty.
	var gone time.Duration
	for gone == 0 {
		time.Sleep(100 * time.Millisecond)
		if since := time.Since(end); revokedTotal(last) >= *count {
			gone = since
		} else if since > 3*time.Minute {
			return fmt.Errorf("only %d leases are revoked %v after their end", revokedTotal(last), since)
		}
	}
	wave := writers.take()
	if err := writers.end(); err != nil {
		return err
	}
	fmt.Println(latencies("before", quiet))
	fmt.Println(latencies("in the wave", wave))
	if n, err := leaseCount(last); err != nil || n != 0 {
		return fmt.Errorf("after the wave there are %d leases: %v", n, err)
	}
	want := int64(*count / 10 * *keys)
	for until := time.Now().Add(10 * time.Second); seen.Load() != want && time.Now().Before(until); {
		time.Sleep(20 * time.Millisecond)
	}
	if seen.Load() != want {
		return fmt.Errorf("a watch saw %d deletions, not %d", seen.Load(), want)
	}
	if rev, hash, err := harness.SameHash(nodes); err != nil {
		return err
	} else {
		fmt.Printf("all gone %v after the last has expired; hash %08x at revision %d\n", gone.Round(time.Millisecond), hash, rev)
	}
	if gone > *within {
		return fmt.Errorf("not gone within %v", *within)
	}
	return nil
}
