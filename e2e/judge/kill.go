package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["kill"] = struct {
		run  func([]string) error
		help string
	}{runKill, "SIGKILL at random instants under concurrent writers; nothing acknowledged may be lost"}
}

type ack struct {
	key, val string
	rev      int64
}

type drill struct {
	nodes   []*harness.Node
	stop    chan struct{}
	wg      sync.WaitGroup
	maxRev  atomic.Int64 // highest revision any answer has shown
	counter atomic.Int64 // highest acknowledged counter value
	ops     atomic.Int64
	reads   atomic.Int64
	unknown atomic.Int64
	unkInc  atomic.Int64
	refused atomic.Int64 // never left: the connection was down

	mu         sync.Mutex
	acks       []ack
	incs       []ack
	violations []string
}

func (d *drill) violate(f string, a ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.violations) < 50 {
		fmt.Println("VIOLATION:", fmt.Sprintf(f, a...))
	}
	d.violations = append(d.violations, fmt.Sprintf(f, a...))
}

func raise(v *atomic.Int64, to int64) {
	for {
		o := v.Load()
		if o >= to || v.CompareAndSwap(o, to) {
			return
		}
	}
}

func (d *drill) stopped() bool {
	select {
	case <-d.stop:
		return true
	default:
		return false
	}
}

const opTimeout = 3 * time.Second

// writer puts unique keys, reads some back through any member, and counts.
func (d *drill) writer(id int, seed int64, pause time.Duration) {
	defer d.wg.Done()
	r := rand.New(rand.NewSource(seed))
	for seq := 0; !d.stopped(); seq++ {
		n := d.nodes[r.Intn(len(d.nodes))]
		if pause > 0 {
			time.Sleep(time.Duration(r.Int63n(int64(2 * pause))))
		}
		if r.Intn(5) == 0 {
			d.increment(n)
			continue
		}
		k, v := fmt.Sprintf("u/%02d/%08d", id, seq), fmt.Sprintf("%d.%d.%s", id, seq, strings.Repeat("x", r.Intn(200)))
		before := d.maxRev.Load()
		ctx, c := harness.Ctx(opTimeout)
		resp, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(k), Value: []byte(v)})
		c()
		d.ops.Add(1)
		if err != nil {
			d.failed(err)
			continue
		}
		rev := resp.Header.Revision
		if rev <= before {
			d.violate("put of %s acknowledged with revision %d, although %d had been seen before it was sent", k, rev, before)
		}
		raise(&d.maxRev, rev)
		d.mu.Lock()
		d.acks = append(d.acks, ack{k, v, rev})
		d.mu.Unlock()
		if r.Intn(3) == 0 {
			d.readBack(d.nodes[r.Intn(len(d.nodes))], ack{k, v, rev})
		}
	}
}

// failed counts a write without an answer; true when its outcome is unknown.
func (d *drill) failed(err error) bool {
	time.Sleep(20 * time.Millisecond)
	if strings.Contains(err.Error(), "connection error: desc = \"transport: Error while dialing") {
		d.refused.Add(1)
		return false
	}
	d.unknown.Add(1)
	return true
}

// readBack is a linearizable read that starts after the acknowledgement.
func (d *drill) readBack(n *harness.Node, a ack) {
	before, cnt := d.maxRev.Load(), d.counter.Load()
	ctx, c := harness.Ctx(opTimeout)
	defer c()
	resp, err := n.KV().Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{rangeOp(a.key), rangeOp("counter")}})
	if err != nil {
		return
	}
	d.reads.Add(1)
	if resp.Header.Revision < before {
		d.violate("%s: linearizable read at revision %d after %d had been seen", n.Name, resp.Header.Revision, before)
	}
	raise(&d.maxRev, resp.Header.Revision)
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) != 1 || string(kvs[0].Value) != a.val || kvs[0].ModRevision != a.rev {
		d.violate("%s: read after acknowledgement of %s at %d returned %v", n.Name, a.key, a.rev, kvs)
	}
	if kvs = resp.Responses[1].GetResponseRange().Kvs; len(kvs) == 1 {
		if got, _ := strconv.ParseInt(string(kvs[0].Value), 10, 64); got < cnt {
			d.violate("%s: counter reads %d after %d was acknowledged", n.Name, got, cnt)
		}
	} else if cnt > 0 {
		d.violate("%s: counter is gone after %d was acknowledged", n.Name, cnt)
	}
}

func rangeOp(k string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(k)}}}
}

// increment reads the counter and writes one more if nobody did in between.
func (d *drill) increment(n *harness.Node) {
	before, cnt := d.maxRev.Load(), d.counter.Load()
	ctx, c := harness.Ctx(opTimeout)
	defer c()
	g, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte("counter")})
	if err != nil {
		time.Sleep(20 * time.Millisecond)
		return
	}
	d.reads.Add(1)
	if g.Header.Revision < before {
		d.violate("%s: linearizable read at revision %d after %d had been seen", n.Name, g.Header.Revision, before)
	}
	raise(&d.maxRev, g.Header.Revision)
	var val, mod int64
	if len(g.Kvs) == 1 {
		val, _ = strconv.ParseInt(string(g.Kvs[0].Value), 10, 64)
		mod = g.Kvs[0].ModRevision
	}
	if val < cnt {
		d.violate("%s: counter reads %d after %d was acknowledged", n.Name, val, cnt)
	}
	next := strconv.FormatInt(val+1, 10)
	t, err := n.KV().Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("counter"), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: mod}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("counter"), Value: []byte(next)}}}},
	})
	d.ops.Add(1)
	if err != nil {
		if d.failed(err) {
			d.unkInc.Add(1)
		}
		return
	}
	if t.Succeeded {
		raise(&d.maxRev, t.Header.Revision)
		raise(&d.counter, val+1)
		d.mu.Lock()
		d.incs = append(d.incs, ack{"counter", next, t.Header.Revision})
		d.mu.Unlock()
	}
}

// check reads everything acknowledged (from the given positions on) through n.
// It returns how many are lost or changed.
func (d *drill) check(n *harness.Node, full bool, fromAck, fromInc int) (lost int, err error) {
	d.mu.Lock()
	acks := d.acks[fromAck:len(d.acks):len(d.acks)]
	incs := d.incs[fromInc:len(d.incs):len(d.incs)]
	d.mu.Unlock()
	get := func(q *pb.RangeRequest) (*pb.RangeResponse, error) {
		var last error
		for i := 0; i < 10; i++ {
			ctx, c := harness.Ctx(5 * time.Second)
			r, err := n.KV().Range(ctx, q)
			c()
			if err == nil {
				return r, nil
			}
			last = err
			time.Sleep(100 * time.Millisecond)
		}
		return nil, fmt.Errorf("check on %s: %w", n.Name, last)
	}
	bad := func(a ack, got any) {
		lost++
		d.violate("%s: acknowledged %s=%.40q at revision %d: found %.200v", n.Name, a.key, a.val, a.rev, got)
	}
	if full {
		have := map[string]struct {
			v   string
			rev int64
		}{}
		for key := []byte("u/"); ; {
			r, err := get(&pb.RangeRequest{Key: key, RangeEnd: []byte("u0"), Limit: 5000})
			if err != nil {
				return lost, err
			}
			for _, kv := range r.Kvs {
				have[string(kv.Key)] = struct {
					v   string
					rev int64
				}{string(kv.Value), kv.ModRevision}
			}
			if !r.More || len(r.Kvs) == 0 {
				break
			}
			key = append(append([]byte(nil), r.Kvs[len(r.Kvs)-1].Key...), 0)
		}
		for _, a := range acks {
			if h, ok := have[a.key]; !ok || h.v != a.val || h.rev != a.rev {
				bad(a, h)
			}
		}
	} else {
		for _, a := range acks {
			r, err := get(&pb.RangeRequest{Key: []byte(a.key)})
			if err != nil {
				return lost, err
			}
			if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != a.val || r.Kvs[0].ModRevision != a.rev {
				bad(a, r.Kvs)
			}
		}
	}
	if len(incs) > 300 && !full {
		incs = incs[len(incs)-300:]
	}
	for _, a := range incs {
		r, err := get(&pb.RangeRequest{Key: []byte("counter"), Revision: a.rev})
		if err != nil {
			return lost, err
		}
		if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != a.val || r.Kvs[0].ModRevision != a.rev {
			bad(a, r.Kvs)
		}
	}
	return lost, nil
}

func runKill(args []string) error {
	fs := flag.NewFlagSet("kill", flag.ExitOnError)
	members := fs.Int("members", 1, "1 or 3")
	rounds := fs.Int("rounds", 100, "kill rounds")
	server := fs.String("server", "", "the server")
	seed := fs.Int64("seed", time.Now().UnixNano()%1_000_000, "of instants and choices")
	writers := fs.Int("writers", 8, "concurrent writers")
	pause := fs.Duration("pause", 2*time.Millisecond, "mean pause of a writer between writes")
	up := fs.Duration("up", 300*time.Millisecond, "longest time between readiness and the kill")
	ready := fs.Duration("ready", 30*time.Second, "longest time to readiness after a restart")
	extra := fs.String("flags", "", "further flags of the server, by space")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *server == "" || (*members != 1 && *members != 3) {
		return errors.New("--server and --members 1 or 3 are needed")
	}
	bin, err := filepath.Abs(*server)
	if err != nil {
		return err
	}
	o := harness.Opts{Extra: append([]string{"--log-level", "warn"}, strings.Fields(*extra)...)}
	for i := 0; i < *members; i++ {
		o.Bins = append(o.Bins, bin)
	}
	nodes, err := harness.Cluster(o)
	if err != nil {
		return err
	}
	defer harness.StopAll(nodes)
	if err := harness.StartAll(nodes, *ready); err != nil {
		return err
	}
	d := &drill{nodes: nodes, stop: make(chan struct{})}
	r := rand.New(rand.NewSource(*seed))
	fmt.Printf("seed %d, %d member(s), %d writers, %d rounds\n", *seed, *members, *writers, *rounds)
	for i := 0; i < *writers; i++ {
		d.wg.Add(1)
		go d.writer(i, *seed*1000+int64(i), *pause)
	}
	halt := sync.OnceFunc(func() { close(d.stop); d.wg.Wait() })
	defer halt()
	start, lost, hashes, all, overtook := time.Now(), 0, 0, 0, 0
	var slowest time.Duration
	ackPos, incPos := 0, 0
	for round := 1; round <= *rounds; round++ {
		time.Sleep(time.Duration(r.Int63n(int64(*up))))
		victims := []*harness.Node{nodes[round%len(nodes)]}
		if len(nodes) > 1 && round%5 == 0 {
			victims = nodes
			all++
		}
		// A hash from before the kill must come out the same after it.
		var rev0 int64
		var h0 uint32
		if round%2 == 0 {
			if rev, err := victims[0].Revision(); err == nil {
				if h, _, err := victims[0].HashAt(rev); err == nil {
					rev0, h0 = rev, h
				}
			}
		}
		time.Sleep(time.Duration(r.Int63n(int64(20 * time.Millisecond))))
		var wg sync.WaitGroup
		for _, v := range victims {
			wg.Add(1)
			go func(v *harness.Node) { defer wg.Done(); v.Kill() }(v)
		}
		wg.Wait()
		seen := d.maxRev.Load()
		if r.Intn(2) == 0 {
			time.Sleep(time.Duration(r.Int63n(int64(200 * time.Millisecond))))
		}
		t := time.Now()
		for _, v := range victims {
			if err := v.Start(); err != nil {
				return err
			}
		}
		if r.Intn(8) == 0 { // again while it is starting
			time.Sleep(time.Duration(r.Int63n(int64(300 * time.Millisecond))))
			overtook++
			for _, v := range victims {
				v.Kill()
				if err := v.Start(); err != nil {
					return err
				}
			}
		}
		for _, v := range victims {
			if err := v.WaitReady(*ready); err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
		}
		if e := time.Since(t); e > slowest {
			slowest = e
		}
		now, err := victims[0].Revision()
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if now < seen {
			d.violate("round %d: revision went back from %d to %d", round, seen, now)
		}
		if h0 != 0 {
			h, _, err := victims[0].HashAt(rev0)
			if err != nil {
				d.violate("round %d: HashKV(%d) after the restart: %v", round, rev0, err)
			} else if h != h0 {
				d.violate("round %d: HashKV(%d) was %08x and is %08x after the restart", round, rev0, h0, h)
			}
			hashes++
		}
		full := round%10 == 0 || round == *rounds
		a0, i0 := ackPos, incPos
		if full {
			a0, i0 = 0, max(0, len(d.snapshotIncs())-1500)
		}
		d.mu.Lock()
		ackPos, incPos = len(d.acks), len(d.incs)
		d.mu.Unlock()
		if !full && ackPos-a0 > 400 {
			a0 = ackPos - 400 // the last before the kill are those at risk; full rounds read all
		}
		l, err := d.check(victims[0], full, a0, i0)
		lost += l
		if err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if len(nodes) > 1 {
			if _, _, err := harness.SameHash(nodes); err != nil {
				d.violate("round %d: %v", round, err)
			}
			hashes++
		}
		if round%10 == 0 || round == *rounds {
			left := time.Since(start) / time.Duration(round) * time.Duration(*rounds-round)
			d.mu.Lock()
			fmt.Printf("round %d/%d: %d acknowledged writes, %d reads, %d unknown outcomes, %d lost, %d violations, about %v left\n",
				round, *rounds, len(d.acks)+len(d.incs), d.reads.Load(), d.unknown.Load(), lost, len(d.violations), left.Round(time.Second))
			d.mu.Unlock()
		}
		if lost > 0 {
			break
		}
	}
	halt()
	// With nobody writing: everything, on every member, and the counter's bounds.
	for _, n := range nodes {
		if err := n.WaitReady(*ready); err != nil {
			return err
		}
		l, err := d.check(n, true, 0, 0)
		lost += l
		if err != nil {
			return err
		}
	}
	if _, _, err := harness.SameHash(nodes); err != nil {
		d.violate("at the end: %v", err)
	}
	ctx, c := harness.Ctx(5 * time.Second)
	defer c()
	g, err := nodes[0].KV().Range(ctx, &pb.RangeRequest{Key: []byte("counter")})
	if err != nil {
		return err
	}
	var val int64
	if len(g.Kvs) == 1 {
		val, _ = strconv.ParseInt(string(g.Kvs[0].Value), 10, 64)
		if g.Kvs[0].Version != val {
			d.violate("counter is %d in version %d", val, g.Kvs[0].Version)
		}
	}
	if a := int64(len(d.incs)); val < a || val > a+d.unkInc.Load() {
		d.violate("counter is %d with %d acknowledged increments and %d unknown", val, a, d.unkInc.Load())
	}
	fmt.Printf("members %d, rounds %d (%d of all members at once, %d killed again while starting), writes sent %d, acknowledged %d, refused %d, unknown outcomes %d, reads checked %d, hashes compared %d, slowest restart %v, lost %d, violations %d, %v\n",
		*members, *rounds, all, overtook, d.ops.Load(), len(d.acks)+len(d.incs), d.refused.Load(), d.unknown.Load(), d.reads.Load(), hashes, slowest.Round(time.Millisecond), lost, len(d.violations), time.Since(start).Round(time.Second))
	if lost > 0 || len(d.violations) > 0 {
		return fmt.Errorf("%d lost, %d violations (seed %d)", lost, len(d.violations), *seed)
	}
	return nil
}

func (d *drill) snapshotIncs() []ack {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.incs
}
