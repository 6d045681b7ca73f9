package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"rusd/judge/harness"
)

func init() {
	commands["watch"] = struct {
		run  func([]string) error
		help string
	}{runWatch, "one random script of watches to two servers, compared revision by revision"}
}

const (
	watchStreams    = 3
	watchWait       = 20 * time.Second
	progressEvery   = 300 * time.Millisecond
	watchMaxRequest = 100_000
)

func runWatch(args []string) error {
	fs := flag.NewFlagSet("watch", flag.ExitOnError)
	seed := fs.Int64("seed", 1, "first seed")
	seeds := fs.Int("seeds", 1, "how many seeds, from --seed up")
	rounds := fs.Int("rounds", 8, "rounds of creating, canceling and writing per seed")
	rusd := fs.String("rusd", "", "the server under judgement")
	etcd := fs.String("etcd", "", "etcd 3.5.17, the reference")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *rusd == "" || *etcd == "" {
		return errors.New("--rusd and --etcd are needed")
	}
	for i := 0; i < *seeds; i++ {
		t := time.Now()
		w := &watchRun{r: rand.New(rand.NewSource(*seed + int64(i)))}
		if err := w.run(*etcd, *rusd, *rounds, i == 0); err != nil {
			return fmt.Errorf("seed %d: %w", *seed+int64(i), err)
		}
		fmt.Printf("seed %d: %d watchers, %d responses, %d events agree, %.1fs\n",
			*seed+int64(i), w.created, w.responses, w.events, time.Since(t).Seconds())
	}
	return nil
}

// watchConn is one client stream; everything received is kept in order.
type watchConn struct {
	s      pb.Watch_WatchClient
	cancel context.CancelFunc
	mu     sync.Mutex
	got    []*pb.WatchResponse
	err    error
	more   chan struct{}
}

func openWatch(c pb.WatchClient) (*watchConn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	s, err := c.Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchConn{s: s, cancel: cancel, more: make(chan struct{}, 1)}
	go func() {
		for {
			r, err := s.Recv()
			w.mu.Lock()
			if err != nil {
				w.err = err
			} else {
				w.got = append(w.got, r)
			}
			w.mu.Unlock()
			select {
			case w.more <- struct{}{}:
			default:
			}
			if err != nil {
				return
			}
		}
	}()
	return w, nil
}

// waitFor waits until a response from index `from` on matches, and gives its index.
func (w *watchConn) waitFor(from int, d time.Duration, what string, match func(*pb.WatchResponse) bool) (int, error) {
	end := time.Now().Add(d)
	for {
		w.mu.Lock()
		for ; from < len(w.got); from++ {
			if match(w.got[from]) {
				w.mu.Unlock()
				return from, nil
			}
		}
		err := w.err
		w.mu.Unlock()
		if err != nil {
			return 0, fmt.Errorf("waiting for %s: stream ended: %w", what, err)
		}
		left := time.Until(end)
		if left <= 0 {
			return 0, fmt.Errorf("waiting for %s: nothing within %v", what, d)
		}
		select {
		case <-w.more:
		case <-time.After(left):
		}
	}
}

func (w *watchConn) len() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.got)
}

func isProgress(r *pb.WatchResponse) bool {
	return len(r.Events) == 0 && !r.Created && !r.Canceled && r.CompactRevision == 0
}

func createReq(c *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: c}}
}

func cancelReq(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func progressReq() *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
}

type watchSide struct {
	node    *harness.Node
	kv      pb.KVClient
	lease   pb.LeaseClient
	streams []*watchConn
	// done says how much of each stream is compared already.
	done []int
}

// watchRun is one seed: rounds of control (create, cancel), a sync point, writes, a sync point.
type watchRun struct {
	r       *rand.Rand
	sides   [2]*watchSide
	live    [watchStreams]map[int64]bool // watchers by stream; false when compacted
	rev     int64
	compact int64

	lags bool // a watcher was made that starts in the past

	created, responses, events int
}

func watchPair(etcd, rusd string) (sides [2]*watchSide, err error) {
	extra := []string{"--max-request-bytes", fmt.Sprint(watchMaxRequest), "--log-level", "error", "--unsafe-no-fsync",
		"--experimental-watch-progress-notify-interval", progressEvery.String()}
	advP := fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort())
	advC := fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort())
	for i, bin := range []string{etcd, rusd} {
		abs, err := filepath.Abs(bin)
		if err != nil {
			return sides, err
		}
		ns, err := harness.Cluster(harness.Opts{Bins: []string{abs}, Extra: extra, AdvPeer: advP, AdvClient: advC})
		if err != nil {
			return sides, err
		}
		n := ns[0]
		if err := n.Start(); err != nil {
			return sides, err
		}
		sides[i] = &watchSide{node: n, kv: n.KV(), lease: pb.NewLeaseClient(n.Conn())}
		if err := n.WaitReady(20 * time.Second); err != nil {
			return sides, err
		}
		if err := sides[i].open(); err != nil {
			return sides, err
		}
	}
	return sides, nil
}

func (s *watchSide) open() error {
	for i := 0; i < watchStreams; i++ {
		w, err := openWatch(pb.NewWatchClient(s.node.Conn()))
		if err != nil {
			return err
		}
		s.streams, s.done = append(s.streams, w), append(s.done, 0)
	}
	return nil
}

func (w *watchRun) run(etcd, rusd string, rounds int, scenarios bool) error {
	var err error
	defer func() {
		for _, s := range w.sides {
			if s == nil {
				continue
			}
			for _, c := range s.streams {
				c.cancel()
			}
			s.node.Kill()
			s.node.Close()
			if !harness.KeepLogs {
				os.RemoveAll(s.node.Dir)
			}
		}
	}()
	if w.sides, err = watchPair(etcd, rusd); err != nil {
		return err
	}
	for i := range w.live {
		w.live[i] = map[int64]bool{}
	}
	w.rev, w.compact = 1, -1
	for round := 0; round < rounds; round++ {
		for _, step := range []func() error{w.control, w.sync, w.write, w.sync} {
			if err := step(); err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
		}
	}
	if !scenarios {
		return nil
	}
	for i, s := range w.sides {
		for _, sc := range watchScenarios {
			if err := sc.run(s); err != nil {
				return fmt.Errorf("%s, against %s: %w", sc.name, []string{"etcd", "rusd"}[i], err)
			}
		}
	}
	return nil
}

var watchKeys = []string{"a", "ab", "b", "b/1", "b/2", "c", "\x00", "zz", "\xff"}

func (w *watchRun) key() []byte { return []byte(watchKeys[w.r.Intn(len(watchKeys))]) }

// both sends the same requests on the same stream of both sides.
func (w *watchRun) both(stream int, q *pb.WatchRequest) error {
	for _, s := range w.sides {
		if err := s.streams[stream].s.Send(q); err != nil {
			return err
		}
	}
	return nil
}

// await waits on both sides for a response on a stream and gives etcd's.
func (w *watchRun) await(stream int, from [2]int, what string, match func(*pb.WatchResponse) bool) (*pb.WatchResponse, error) {
	var first *pb.WatchResponse
	for i, s := range w.sides {
		at, err := s.streams[stream].waitFor(from[i], watchWait, what, match)
		if err != nil {
			return nil, fmt.Errorf("stream %d of %s: %w", stream, s.node.Bin, err)
		}
		if i == 0 {
			first = s.streams[stream].got[at]
		}
	}
	return first, nil
}

func (w *watchRun) marks(stream int) (m [2]int) {
	for i, s := range w.sides {
		m[i] = s.streams[stream].len()
	}
	return m
}

func (w *watchRun) drawCreate() *pb.WatchCreateRequest {
	q := &pb.WatchCreateRequest{Key: w.key(), PrevKv: w.r.Intn(3) == 0, Fragment: w.r.Intn(3) == 0}
	switch w.r.Intn(8) {
	case 0, 1:
		q.RangeEnd = []byte{0}
	case 2, 3:
		q.RangeEnd = prefixEnd(q.Key)
	case 4:
		q.RangeEnd = w.key()
	case 5:
		q.Key, q.RangeEnd = nil, []byte{0}
	}
	if w.r.Intn(20) == 0 {
		q.Key, q.RangeEnd = nil, nil
	}
	switch w.r.Intn(8) {
	case 0, 1, 2:
		q.StartRevision = 1 + w.r.Int63n(w.rev)
	case 3:
		q.StartRevision = w.compact + w.r.Int63n(3) - 1
	case 4:
		q.StartRevision = w.rev + w.r.Int63n(12)
	case 5:
		q.StartRevision = -w.r.Int63n(3)
	}
	if w.r.Intn(3) == 0 {
		q.WatchId = int64(w.r.Intn(9)) - 1
	}
	for i := w.r.Intn(5); i > 2; i-- {
		q.Filters = append(q.Filters, pb.WatchCreateRequest_FilterType(w.r.Intn(3)))
	}
	return q
}

func (w *watchRun) control() error {
	for i := 0; i < 8; i++ {
		stream := w.r.Intn(watchStreams)
		from := w.marks(stream)
		switch x := w.r.Intn(10); {
		case x < 6:
			q := w.drawCreate()
			if q.StartRevision < 0 {
				// It makes etcd 3.5.17 read nothing for all watchers that lag together with it.
				if err := w.sync(); err != nil {
					return err
				}
				from = w.marks(stream)
			}
			if err := w.both(stream, createReq(q)); err != nil {
				return err
			}
			r, err := w.await(stream, from, fmt.Sprint("the answer to ", q), func(r *pb.WatchResponse) bool { return r.Created })
			if err != nil {
				return err
			}
			if r.Canceled {
				continue
			}
			w.created++
			start := q.StartRevision
			compacted := start != 0 && start < w.compact && start <= w.rev
			w.live[stream][r.WatchId] = !compacted
			w.lags = w.lags || start != 0 && start <= w.rev
			if compacted {
				id := r.WatchId
				ended := func(r *pb.WatchResponse) bool { return r.WatchId == id && r.CompactRevision != 0 }
				if _, err := w.await(stream, from, "the end of a compacted watch", ended); err != nil {
					return err
				}
			}
			if q.StartRevision < 0 {
				if err := w.sync(); err != nil {
					return err
				}
			}
		case x < 8:
			id := int64(w.r.Intn(9)) - 1
			if err := w.cancel(stream, id); err != nil {
				return err
			}
		default:
			if err := w.both(stream, &pb.WatchRequest{}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *watchRun) cancel(stream int, id int64) error {
	// What is on its way to a watcher when it is canceled may arrive or not.
	if err := w.sync(); err != nil {
		return err
	}
	from := w.marks(stream)
	if err := w.both(stream, cancelReq(id)); err != nil {
		return err
	}
	if _, there := w.live[stream][id]; !there {
		return nil
	}
	delete(w.live[stream], id)
	gone := func(r *pb.WatchResponse) bool { return r.WatchId == id && r.Canceled }
	_, err := w.await(stream, from, "a cancel", gone)
	return err
}

// sync waits until every stream has everything, which a progress notice says, and compares.
func (w *watchRun) sync() error {
	if w.lags {
		// etcd looks at lagging watchers every 100 ms.
		time.Sleep(150 * time.Millisecond)
		w.lags = false
	}
	for stream, live := range w.live {
		for id, alive := range live {
			if !alive {
				// A compacted watcher keeps its stream from progress: cancel it.
				delete(live, id)
				from := w.marks(stream)
				if err := w.both(stream, cancelReq(id)); err != nil {
					return err
				}
				gone := func(r *pb.WatchResponse) bool { return r.WatchId == id && r.Canceled }
				if _, err := w.await(stream, from, "the cancel of a compacted watch", gone); err != nil {
					return err
				}
			}
		}
		if len(live) == 0 {
			continue
		}
		for _, s := range w.sides {
			if err := s.streams[stream].progressed(w.rev); err != nil {
				return fmt.Errorf("stream %d of %s: %w", stream, s.node.Bin, err)
			}
		}
	}
	return w.compare()
}

// progressed asks for progress until it is there at rev; etcd does not answer while a watcher lags.
func (c *watchConn) progressed(rev int64) error {
	from, end := c.len(), time.Now().Add(watchWait)
	for {
		if err := c.s.Send(progressReq()); err != nil {
			return err
		}
		// Long enough that an answer is none to an earlier question.
		at, err := c.waitFor(from, time.Second, "progress", func(r *pb.WatchResponse) bool {
			return isProgress(r) && r.WatchId == -1
		})
		if err == nil {
			if got := c.got[at].Header.Revision; got != rev {
				return fmt.Errorf("progress at revision %d, written up to %d", got, rev)
			}
			return nil
		}
		if time.Now().After(end) {
			return err
		}
	}
}

// compare holds against each other what each watcher got since the last time, and the answers that
// are for no watcher. The order among watchers is free.
func (w *watchRun) compare() error {
	for stream := 0; stream < watchStreams; stream++ {
		var by [2]map[int64][]*pb.WatchResponse
		for i, s := range w.sides {
			by[i] = map[int64][]*pb.WatchResponse{}
			c := s.streams[stream]
			c.mu.Lock()
			for _, r := range c.got[s.done[stream]:] {
				if !isProgress(r) {
					by[i][r.WatchId] = append(by[i][r.WatchId], r)
				}
			}
			s.done[stream] = len(c.got)
			c.mu.Unlock()
		}
		for id := range by[1] {
			if _, ok := by[0][id]; !ok {
				return fmt.Errorf("stream %d: only the judged server answers for watcher %d: %v", stream, id, by[1][id])
			}
		}
		for id, want := range by[0] {
			want, err := byRevision(want)
			if err != nil {
				return fmt.Errorf("etcd: %w", err)
			}
			got, err := byRevision(by[1][id])
			if err != nil {
				return fmt.Errorf("judged: %w", err)
			}
			for k := 0; k < len(want) || k < len(got); k++ {
				if k >= len(want) || k >= len(got) || !same(answer{m: want[k]}, answer{m: got[k]}) {
					return fmt.Errorf("stream %d, watcher %d, response %d of %d (judged: %d):\n  etcd:   %s\n  judged: %s",
						stream, id, k, len(want), len(got), responseAt(want, k), responseAt(got, k))
				}
				w.responses++
				w.events += len(want[k].Events)
			}
		}
	}
	return nil
}

// byRevision takes responses apart so that each piece holds one revision: which revisions share a
// response, and where a large one is cut into fragments, is a matter of timing. What is not: a
// revision is never spread over responses, and a header is as new as the events below it.
func byRevision(rs []*pb.WatchResponse) ([]*pb.WatchResponse, error) {
	var out []*pb.WatchResponse
	var last int64
	whole := true // the last response was not a fragment that goes on
	for _, r := range rs {
		if len(r.Events) == 0 {
			out = append(out, r)
			continue
		}
		for k, e := range r.Events {
			rev := e.Kv.ModRevision
			switch {
			case rev > r.Header.Revision:
				return nil, fmt.Errorf("revision %d under a header of %d", rev, r.Header.Revision)
			case rev == last && k == 0 && whole:
				return nil, fmt.Errorf("watcher %d: revision %d is spread over responses", r.WatchId, rev)
			case rev == last:
				piece := out[len(out)-1]
				piece.Events = append(piece.Events, e)
				continue
			}
			header := *r.Header
			header.Revision = rev
			out = append(out, &pb.WatchResponse{Header: &header, WatchId: r.WatchId, Events: []*mvccpb.Event{e}})
			last = rev
		}
		whole = !r.Fragment
	}
	return out, nil
}

func responseAt(rs []*pb.WatchResponse, k int) string {
	if k >= len(rs) {
		return "nothing"
	}
	return text(rs[k])
}

func (w *watchRun) value() []byte {
	if w.r.Intn(12) == 0 {
		return bytes.Repeat([]byte{'L'}, 90_000)
	}
	return []byte(fmt.Sprint("v", w.r.Intn(100)))
}

// write changes both stores alike, one request after the other.
func (w *watchRun) write() error {
	for i := 10 + w.r.Intn(30); i > 0; i-- {
		var call func(context.Context, *watchSide) (*pb.ResponseHeader, error)
		switch x := w.r.Intn(20); {
		case x < 10:
			q := &pb.PutRequest{Key: w.key(), Value: w.value()}
			call = func(ctx context.Context, s *watchSide) (*pb.ResponseHeader, error) {
				r, err := s.kv.Put(ctx, q)
				return r.GetHeader(), err
			}
		case x < 14:
			q := &pb.DeleteRangeRequest{Key: w.key()}
			if w.r.Intn(4) == 0 {
				q.RangeEnd = []byte{0}
			}
			call = func(ctx context.Context, s *watchSide) (*pb.ResponseHeader, error) {
				r, err := s.kv.DeleteRange(ctx, q)
				return r.GetHeader(), err
			}
		case x < 18:
			q := &pb.TxnRequest{}
			for n, k := range w.r.Perm(len(watchKeys))[:1+w.r.Intn(5)] {
				key := []byte(watchKeys[k])
				if n%3 == 2 {
					q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}})
				} else {
					q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: []byte("t")}}})
				}
			}
			call = func(ctx context.Context, s *watchSide) (*pb.ResponseHeader, error) {
				r, err := s.kv.Txn(ctx, q)
				return r.GetHeader(), err
			}
		case x < 19:
			id, n := int64(w.r.Intn(1000)+1), 1+w.r.Intn(3)
			keys := [][]byte{w.key(), w.key(), w.key()}
			call = func(ctx context.Context, s *watchSide) (*pb.ResponseHeader, error) {
				if _, err := s.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 1000}); err != nil {
					return nil, err
				}
				for _, k := range keys[:n] {
					if _, err := s.kv.Put(ctx, &pb.PutRequest{Key: k, Lease: id}); err != nil {
						return nil, err
					}
				}
				r, err := s.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
				return r.GetHeader(), err
			}
		default:
			if w.rev-w.compact < 5 {
				continue
			}
			// Before the watchers that are synced, never above what they have.
			if err := w.sync(); err != nil {
				return err
			}
			w.compact = w.rev - w.r.Int63n(5)
			q := &pb.CompactionRequest{Revision: w.compact, Physical: true}
			call = func(ctx context.Context, s *watchSide) (*pb.ResponseHeader, error) {
				r, err := s.kv.Compact(ctx, q)
				return r.GetHeader(), err
			}
		}
		for _, s := range w.sides {
			ctx, c := harness.Ctx(10 * time.Second)
			h, err := call(ctx, s)
			c()
			if err != nil {
				return err
			}
			w.rev = h.Revision
		}
	}
	return nil
}
