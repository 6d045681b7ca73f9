package main

import (
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"rusd/judge/harness"
)

// watchScenarios are watched from one side at a time: each holds for etcd and must for rusd.
var watchScenarios = []struct {
	name string
	run  func(*watchSide) error
}{
	{"progress comes by itself", sceneProgress},
	{"a watch from now never shows what was put before", sceneFromNow},
	{"a closed request side keeps its watchers", sceneHalfClosed},
	{"10,000 watchers on one stream", sceneMany},
	{"a client that does not read", sceneStalled},
	{"a deletion and a put at the compaction boundary", sceneBoundary},
}

func (s *watchSide) put(key, value string) (int64, error) {
	ctx, c := harness.Ctx(10 * time.Second)
	defer c()
	r, err := s.kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if err != nil {
		return 0, err
	}
	return r.Header.Revision, nil
}

func (s *watchSide) stream() (*watchConn, error) {
	return openWatch(pb.NewWatchClient(s.node.Conn()))
}

// one opens a stream with one watcher.
func (s *watchSide) one(q *pb.WatchCreateRequest) (*watchConn, *pb.WatchResponse, error) {
	c, err := s.stream()
	if err != nil {
		return nil, nil, err
	}
	if err := c.s.Send(createReq(q)); err != nil {
		return nil, nil, err
	}
	at, err := c.waitFor(0, watchWait, "created", func(r *pb.WatchResponse) bool { return r.Created })
	if err != nil {
		return nil, nil, err
	}
	return c, c.got[at], nil
}

func hasEvents(r *pb.WatchResponse) bool { return len(r.Events) > 0 }

func sceneProgress(s *watchSide) error {
	rev, err := s.put("progress", "1")
	if err != nil {
		return err
	}
	c, created, err := s.one(&pb.WatchCreateRequest{Key: []byte("progress"), ProgressNotify: true, WatchId: 5})
	if err != nil {
		return err
	}
	defer c.cancel()
	for i := 0; i < 3; i++ {
		at, err := c.waitFor(c.len(), 10*progressEvery, "progress", isProgress)
		if err != nil {
			return err
		}
		if r := c.got[at]; r.WatchId != created.WatchId || r.Header.Revision != rev {
			return fmt.Errorf("progress %v, want watcher %d at revision %d", r, created.WatchId, rev)
		}
	}
	return nil
}

func sceneFromNow(s *watchSide) error {
	c, err := s.stream()
	if err != nil {
		return err
	}
	defer c.cancel()
	for i := 0; i < 200; i++ {
		rev, err := s.put("now", fmt.Sprint(i))
		if err != nil {
			return err
		}
		from := c.len()
		if err := c.s.Send(createReq(&pb.WatchCreateRequest{Key: []byte("now")})); err != nil {
			return err
		}
		at, err := c.waitFor(from, watchWait, "created", func(r *pb.WatchResponse) bool { return r.Created })
		if err != nil {
			return err
		}
		id := c.got[at].WatchId
		if c.got[at].Header.Revision < rev {
			return fmt.Errorf("created at revision %d after a put at %d", c.got[at].Header.Revision, rev)
		}
		next, err := s.put("now", "next")
		if err != nil {
			return err
		}
		at, err = c.waitFor(from, watchWait, "an event", func(r *pb.WatchResponse) bool { return r.WatchId == id && hasEvents(r) })
		if err != nil {
			return err
		}
		if e := c.got[at].Events; len(e) != 1 || e[0].Kv.ModRevision != next {
			return fmt.Errorf("round %d: the first events are %v, want the put at %d", i, e, next)
		}
		if err := c.s.Send(cancelReq(id)); err != nil {
			return err
		}
	}
	return nil
}

func sceneHalfClosed(s *watchSide) error {
	c, _, err := s.one(&pb.WatchCreateRequest{Key: []byte("half")})
	if err != nil {
		return err
	}
	defer c.cancel()
	if err := c.s.CloseSend(); err != nil {
		return err
	}
	time.Sleep(100 * time.Millisecond)
	if _, err := s.put("half", "1"); err != nil {
		return err
	}
	_, err = c.waitFor(0, watchWait, "an event after the requests ended", hasEvents)
	return err
}

func sceneMany(s *watchSide) error {
	const watchers = 10_000
	c, err := s.stream()
	if err != nil {
		return err
	}
	defer c.cancel()
	for i := 0; i < watchers; i++ {
		q := &pb.WatchCreateRequest{Key: []byte("many/"), RangeEnd: []byte("many0")}
		if i%2 == 1 {
			q = &pb.WatchCreateRequest{Key: []byte("many/key")}
		}
		if err := c.s.Send(createReq(q)); err != nil {
			return err
		}
	}
	last := func(r *pb.WatchResponse) bool { return r.Created && r.WatchId == watchers-1 }
	if _, err := c.waitFor(0, 2*watchWait, "the last of many", last); err != nil {
		return err
	}
	from := c.len()
	const puts = 3
	for i := 0; i < puts; i++ {
		if _, err := s.put("many/key", fmt.Sprint(i)); err != nil {
			return err
		}
	}
	seen := map[int64]string{}
	n := 0
	all := func(r *pb.WatchResponse) bool {
		for _, e := range r.Events {
			seen[r.WatchId] += string(e.Kv.Value)
			n++
		}
		return n == watchers*puts
	}
	if _, err := c.waitFor(from, 3*watchWait, "every event of many watchers", all); err != nil {
		return fmt.Errorf("%w (%d of %d)", err, n, watchers*puts)
	}
	for id, got := range seen {
		if got != "012" {
			return fmt.Errorf("watcher %d got %q", id, got)
		}
	}
	return nil
}

func sceneStalled(s *watchSide) error {
	const puts = 3000
	value := strings.Repeat("x", 8_000)
	// A connection of its own, whose stream nobody reads: its window fills up.
	conn := s.node.Dial()
	defer conn.Close()
	ctx, cancel := harness.Ctx(5 * time.Minute)
	defer cancel()
	stalled, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return err
	}
	if err := stalled.Send(createReq(&pb.WatchCreateRequest{Key: []byte("stall")})); err != nil {
		return err
	}
	if r, err := stalled.Recv(); err != nil || !r.Created {
		return fmt.Errorf("created: %v, %v", r, err)
	}
	quick, _, err := s.one(&pb.WatchCreateRequest{Key: []byte("stall")})
	if err != nil {
		return err
	}
	defer quick.cancel()
	first := int64(0)
	for i := 0; i < puts; i++ {
		rev, err := s.put("stall", value)
		if err != nil {
			return err
		}
		if i == 0 {
			first = rev
		}
		if i%500 == 499 {
			here := func(r *pb.WatchResponse) bool {
				return hasEvents(r) && r.Events[len(r.Events)-1].Kv.ModRevision >= rev
			}
			if _, err := quick.waitFor(0, 5*time.Second, "the reader beside a stalled one", here); err != nil {
				return err
			}
		}
	}
	check := func(events []*mvccpb.Event, next int64) (int64, error) {
		for _, e := range events {
			if e.Kv.ModRevision != next {
				return 0, fmt.Errorf("revision %d, want %d", e.Kv.ModRevision, next)
			}
			next++
		}
		return next, nil
	}
	for next := first; next < first+puts; {
		r, err := stalled.Recv()
		if err != nil {
			return err
		}
		if next, err = check(r.Events, next); err != nil {
			return fmt.Errorf("the stalled client: %w", err)
		}
	}
	next := first
	for _, r := range quick.got {
		if next, err = check(r.Events, next); err != nil {
			return fmt.Errorf("the quick client: %w", err)
		}
	}
	return nil
}

func sceneBoundary(s *watchSide) error {
	if _, err := s.put("edge", "1"); err != nil {
		return err
	}
	ctx, c := harness.Ctx(10 * time.Second)
	defer c()
	d, err := s.kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("edge")})
	if err != nil {
		return err
	}
	if _, err := s.put("edge", "2"); err != nil {
		return err
	}
	if _, err := s.kv.Compact(ctx, &pb.CompactionRequest{Revision: d.Header.Revision, Physical: true}); err != nil {
		return err
	}
	w, _, err := s.one(&pb.WatchCreateRequest{Key: []byte("edge"), StartRevision: d.Header.Revision, PrevKv: true})
	if err != nil {
		return err
	}
	defer w.cancel()
	at, err := w.waitFor(0, watchWait, "events", hasEvents)
	if err != nil {
		return err
	}
	e := w.got[at].Events
	if len(e) != 2 || e[0].Type != mvccpb.DELETE || e[1].Type != mvccpb.PUT || e[0].PrevKv != nil || e[1].PrevKv != nil {
		return fmt.Errorf("got %v, want a deletion and a put in one response", e)
	}
	return nil
}
