package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"rusd/judge/harness"
)

func init() {
	commands["watchload"] = struct {
		run  func([]string) error
		help string
	}{runWatchLoad, "many watchers, stalled and reconnecting, over compactions and kills: each revision once, in order"}
}

const (
	loadWriters    = 8
	loadKeys       = 64
	loadPerStream  = 5
	loadCompactLag = 3_000 // revisions that a compaction leaves
	loadCatchUp    = 2 * time.Minute
)

// change is one event as the model knows it.
type change struct {
	key    string
	delete bool
}

// watchLoad is one run. The truth is what was acknowledged, and of writes without an answer
// what any watcher was shown: then all have to be shown it.
type watchLoad struct {
	node    *harness.Node
	stop    chan struct{}
	target  int64
	maxRev  atomic.Int64
	events  atomic.Int64
	unknown atomic.Int64

	mu         sync.Mutex
	truth      map[int64][]change
	violations []string
}

func (l *watchLoad) violate(f string, a ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.violations) < 20 {
		fmt.Println("VIOLATION:", fmt.Sprintf(f, a...))
	}
	l.violations = append(l.violations, fmt.Sprintf(f, a...))
}

func loadKey(i int) string { return fmt.Sprintf("w/%03d", i) }

// write sends transactions of one to three changes, each of another key.
func (l *watchLoad) write(id int, seed int64, wg *sync.WaitGroup) {
	defer wg.Done()
	r := rand.New(rand.NewSource(seed))
	for seq := 0; l.maxRev.Load() < l.target; seq++ {
		var ops []*pb.RequestOp
		var changes []change
		for _, k := range r.Perm(loadKeys)[:1+r.Intn(3)] {
			key := loadKey(k)
			put := &pb.PutRequest{Key: []byte(key), Value: []byte(fmt.Sprintf("%d.%d", id, seq))}
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}})
			changes = append(changes, change{key, false})
		}
		ctx, cancel := harness.Ctx(opTimeout)
		resp, err := l.node.KV().Txn(ctx, &pb.TxnRequest{Success: ops})
		cancel()
		if err != nil {
			l.unknown.Add(1)
			time.Sleep(20 * time.Millisecond)
			continue
		}
		raise(&l.maxRev, resp.Header.Revision)
		l.mu.Lock()
		l.truth[resp.Header.Revision] = changes
		l.mu.Unlock()
		if r.Intn(20) == 0 {
			key := loadKey(r.Intn(loadKeys))
			ctx, cancel := harness.Ctx(opTimeout)
			resp, err := l.node.KV().DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(key)})
			cancel()
			switch {
			case err != nil:
				l.unknown.Add(1)
			case resp.Deleted == 1:
				raise(&l.maxRev, resp.Header.Revision)
				l.mu.Lock()
				l.truth[resp.Header.Revision] = []change{{key, true}}
				l.mu.Unlock()
			}
		}
	}
}

// A loadWatcher goes on from `next` on whichever stream it is created.
type loadWatcher struct {
	from, to string // keys from, below to
	start    int64
	next     int64
	seen     map[int64][]change
	gaps     [][2]int64 // revisions lost to compactions, which it was told
}

func (w *loadWatcher) has(key string) bool { return w.from <= key && key < w.to }

// A loadStream carries some watchers and opens anew when it breaks, or when it wants to.
type loadStream struct {
	l          *watchLoad
	r          *rand.Rand
	watchers   []*loadWatcher
	stalls     bool
	reconnects bool
	opened     int
	ended      int // watchers that a compaction ended
}

func (s *loadStream) done() bool {
	select {
	case <-s.l.stop:
	default:
		return false
	}
	for _, w := range s.watchers {
		if w.next <= s.l.target {
			return false
		}
	}
	return true
}

func (s *loadStream) run(deadline func() bool) {
	for !s.done() && !deadline() {
		if err := s.session(deadline); err != nil && err != io.EOF && !isConnectionLoss(err) {
			s.l.violate("a stream ended with %v", err)
		}
		time.Sleep(time.Duration(s.r.Intn(30)) * time.Millisecond)
	}
}

func isConnectionLoss(err error) bool {
	text := err.Error()
	for _, part := range []string{"Unavailable", "Canceled", "EOF", "connection", "etcdserver: server stopped", "no leader"} {
		if strings.Contains(text, part) {
			return true
		}
	}
	return false
}

// session is one life of a stream.
func (s *loadStream) session(deadline func() bool) error {
	conn := s.l.node.Dial()
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return err
	}
	s.opened++
	for i, w := range s.watchers {
		create := &pb.WatchCreateRequest{Key: []byte(w.from), RangeEnd: []byte(w.to), StartRevision: w.next, WatchId: int64(i + 1)}
		if err := stream.Send(createReq(create)); err != nil {
			return err
		}
	}
	left := 1 << 60
	if s.reconnects {
		left = 20 + s.r.Intn(400)
	}
	// A look at the clock now and then, for streams that get nothing.
	go func() {
		for ctx.Err() == nil {
			time.Sleep(200 * time.Millisecond)
			if s.done() || deadline() {
				cancel()
			}
		}
	}()
	for ; left > 0; left-- {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := s.take(resp); err != nil {
			return err
		}
		if s.stalls && s.r.Intn(200) == 0 {
			time.Sleep(time.Duration(s.r.Intn(2000)) * time.Millisecond)
		}
	}
	return nil
}

func (s *loadStream) take(resp *pb.WatchResponse) error {
	if resp.WatchId < 1 || int(resp.WatchId) > len(s.watchers) {
		return fmt.Errorf("a response for watcher %d", resp.WatchId)
	}
	w := s.watchers[resp.WatchId-1]
	if resp.Canceled {
		if resp.CompactRevision == 0 {
			return fmt.Errorf("watcher canceled: %q", resp.CancelReason)
		}
		if resp.CompactRevision <= w.next {
			s.l.violate("ended for a compaction at %d, although it goes on from %d", resp.CompactRevision, w.next)
		}
		w.gaps = append(w.gaps, [2]int64{w.next, resp.CompactRevision - 1})
		w.next = resp.CompactRevision
		s.ended++
		return io.EOF // the stream opens anew and goes on from there
	}
	last := int64(0)
	for _, e := range resp.Events {
		rev := e.Kv.ModRevision
		if rev < w.next {
			s.l.violate("watcher of %s..%s got revision %d again or out of order, it goes on from %d", w.from, w.to, rev, w.next)
		}
		if rev < last {
			s.l.violate("revision %d comes after %d in one response", rev, last)
		}
		if !w.has(string(e.Kv.Key)) {
			s.l.violate("watcher of %s..%s got key %s", w.from, w.to, e.Kv.Key)
		}
		if rev > resp.Header.Revision {
			s.l.violate("revision %d in a response of revision %d", rev, resp.Header.Revision)
		}
		last = rev
		w.seen[rev] = append(w.seen[rev], change{string(e.Kv.Key), e.Type == mvccpb.DELETE})
	}
	if last > 0 {
		w.next = last + 1
		s.l.events.Add(int64(len(resp.Events)))
	}
	return nil
}

func (l *watchLoad) compact() {
	for l.maxRev.Load() < l.target {
		time.Sleep(700 * time.Millisecond)
		if at := l.maxRev.Load() - loadCompactLag; at > 1 {
			ctx, cancel := harness.Ctx(opTimeout)
			l.node.KV().Compact(ctx, &pb.CompactionRequest{Revision: at})
			cancel()
		}
	}
}

// check holds what each watcher saw against the truth.
func (l *watchLoad) check(streams []*loadStream) (shown int) {
	unanswered := map[int64]map[change]bool{}
	for _, s := range streams {
		for _, w := range s.watchers {
			for rev, changes := range w.seen {
				shown += len(changes)
				if _, known := l.truth[rev]; known {
					continue
				}
				if unanswered[rev] == nil {
					unanswered[rev] = map[change]bool{}
				}
				for _, c := range changes {
					unanswered[rev][c] = true
				}
			}
		}
	}
	for rev, changes := range unanswered {
		for c := range changes {
			l.truth[rev] = append(l.truth[rev], c)
		}
	}
	revs := make([]int64, 0, len(l.truth))
	for rev := range l.truth {
		revs = append(revs, rev)
	}
	sort.Slice(revs, func(i, j int) bool { return revs[i] < revs[j] })
	for _, s := range streams {
		for _, w := range s.watchers {
			l.checkOne(w, revs)
		}
	}
	return shown
}

func (l *watchLoad) checkOne(w *loadWatcher, revs []int64) {
	inGap := func(rev int64) bool {
		for _, gap := range w.gaps {
			if gap[0] <= rev && rev <= gap[1] {
				return true
			}
		}
		return false
	}
	for _, rev := range revs {
		if rev < w.start || rev > l.target || inGap(rev) {
			continue
		}
		want := map[change]int{}
		for _, c := range l.truth[rev] {
			if w.has(c.key) {
				want[c]++
			}
		}
		for _, c := range w.seen[rev] {
			want[c]--
		}
		for c, n := range want {
			if n != 0 {
				l.violate("watcher of %s..%s from %d: %v at revision %d seen %d times too few", w.from, w.to, w.start, c, rev, n)
			}
		}
	}
}

func runWatchLoad(args []string) error {
	fs := flag.NewFlagSet("watchload", flag.ExitOnError)
	server := fs.String("server", "", "the server under judgement")
	seed := fs.Int64("seed", 1, "seed")
	watchers := fs.Int("watchers", 200, "watchers, five to a stream; a fifth of the streams stalls, a fifth reconnects")
	revisions := fs.Int64("revisions", 100_000, "revisions to write")
	kills := fs.Int("kills", 4, "SIGKILLs on the way")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *server == "" {
		return errors.New("--server is needed")
	}
	nodes, err := harness.Cluster(harness.Opts{Bins: []string{*server}})
	if err != nil {
		return err
	}
	if err := harness.StartAll(nodes, 30*time.Second); err != nil {
		return err
	}
	r := rand.New(rand.NewSource(*seed))
	l := &watchLoad{node: nodes[0], stop: make(chan struct{}), target: *revisions, truth: map[int64][]change{}}
	var overtime atomic.Bool
	var streams []*loadStream
	var reading, writing sync.WaitGroup
	for i := 0; i < (*watchers+loadPerStream-1)/loadPerStream; i++ {
		s := &loadStream{l: l, r: rand.New(rand.NewSource(r.Int63())), stalls: i%5 == 3, reconnects: i%5 == 4}
		for n := 0; n < loadPerStream; n++ {
			from := r.Intn(loadKeys)
			to := from + 1 + r.Intn(loadKeys-from)
			s.watchers = append(s.watchers, &loadWatcher{from: loadKey(from), to: loadKey(to), start: 2, next: 2, seen: map[int64][]change{}})
		}
		streams = append(streams, s)
		reading.Add(1)
		go func() {
			defer reading.Done()
			s.run(overtime.Load)
		}()
	}
	for id := 0; id < loadWriters; id++ {
		writing.Add(1)
		go l.write(id, r.Int63(), &writing)
	}
	go l.compact()
	begun := time.Now()
	go func() {
		for l.maxRev.Load() < l.target {
			time.Sleep(2 * time.Second)
			fmt.Printf("%d of %d revisions, %d events, %d writes without answer\n", l.maxRev.Load(), l.target, l.events.Load(), l.unknown.Load())
		}
	}()
	for k := 1; k <= *kills; k++ {
		for l.maxRev.Load() < l.target*int64(k)/int64(*kills+1) {
			time.Sleep(10 * time.Millisecond)
		}
		l.node.Kill()
		if err := l.node.Start(); err != nil {
			return err
		}
		if err := l.node.WaitReady(time.Minute); err != nil {
			return fmt.Errorf("after kill %d: %w: %s", k, err, l.node.LogTail(5))
		}
	}
	writing.Wait()
	// Something for everyone behind the target, so that each watcher learns that it is there.
	for k := 0; k < loadKeys; k++ {
		ctx, cancel := harness.Ctx(opTimeout)
		_, err := l.node.KV().Put(ctx, &pb.PutRequest{Key: []byte(loadKey(k)), Value: []byte("end")})
		cancel()
		if err != nil {
			return err
		}
	}
	close(l.stop)
	timer := time.AfterFunc(loadCatchUp, func() { overtime.Store(true) })
	reading.Wait()
	timer.Stop()
	opened, ended := 0, 0
	for _, s := range streams {
		opened, ended = opened+s.opened, ended+s.ended
		for _, w := range s.watchers {
			if w.next <= l.target {
				l.violate("watcher of %s..%s is at %d of %d %s after the last write", w.from, w.to, w.next, l.target, loadCatchUp)
			}
		}
	}
	shown := l.check(streams)
	fmt.Printf("%d watchers on %d streams opened %d times, %d revisions, %d kills, %d events, %d ended by compactions and resumed, %d violations, RSS %d MiB, %.0fs\n",
		*watchers, len(streams), opened, l.target, *kills, shown, ended, len(l.violations), l.node.RSS()>>20, time.Since(begun).Seconds())
	if len(l.violations) > 0 {
		return fmt.Errorf("%d violations, seed %d", len(l.violations), *seed)
	}
	return nil
}
