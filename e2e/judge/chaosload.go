package main

import (
	"context"
	"fmt"
	"math/rand"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

const chaosKeys = 8

// load is the clients of a round and what they did.
type load struct {
	c      *chaos
	prefix string
	stop   chan struct{}
	once   sync.Once
	wg     sync.WaitGroup
	mu     sync.Mutex
	ops    []operation
}

func (l *load) end() {
	l.once.Do(func() { close(l.stop) })
	l.wg.Wait()
}

func (l *load) key(r *rand.Rand) string { return fmt.Sprintf("%sk%d", l.prefix, r.Intn(chaosKeys)) }

func (l *load) client(id int, r *rand.Rand, pause time.Duration) {
	defer l.wg.Done()
	mods := map[string]int64{} // what this client knows of the keys
	for seq := 0; ; seq++ {
		select {
		case <-l.stop:
			return
		case <-time.After(time.Duration(r.Int63n(int64(2*pause) + 1))):
		}
		members := l.c.members()
		n := members[r.Intn(len(members))]
		o := operation{client: id, member: n.Name, key: l.key(r)}
		value := fmt.Sprintf("%d.%d", id, seq)
		var ops []operation
		var err error
		switch d := r.Intn(100); {
		case d < 28:
			ops, err = l.put(n, o, value)
		case d < 34:
			ops, err = l.putTwo(n, o, l.key(r), value)
		case d < 54:
			ops, err = l.cas(n, o, value, mods[o.key])
		case d < 62:
			ops, err = l.del(n, o)
		case d < 70:
			ops, err = l.list(n, o)
		default:
			ops, err = l.get(n, o, d >= 95)
		}
		if err != nil {
			for i := range ops {
				ops[i].refused = strings.Contains(err.Error(), "connection error: desc = \"transport: Error while dialing")
			}
			time.Sleep(20 * time.Millisecond)
		}
		for _, o := range ops {
			if o.known && o.kind != serialized {
				switch {
				case o.kind == put || o.kind == cas && o.ok:
					mods[o.key] = o.rev
				case o.kind == del:
					mods[o.key] = 0
				default:
					mods[o.key] = o.foundMod
				}
			}
		}
		l.mu.Lock()
		l.ops = append(l.ops, ops...)
		l.mu.Unlock()
	}
}

// timed runs a call and writes its times into each operation, and whether it was answered.
func (l *load) timed(ops []operation, call func(ctx context.Context) error) ([]operation, error) {
	ctx, cancel := harness.Ctx(chaosOpTimeout)
	defer cancel()
	from := int64(time.Since(l.c.start))
	err := call(ctx)
	to := int64(time.Since(l.c.start))
	for i := range ops {
		ops[i].call, ops[i].ret, ops[i].known = from, to, err == nil
	}
	return ops, err
}

func putOp(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func (l *load) put(n *harness.Node, o operation, value string) ([]operation, error) {
	o.kind, o.value = put, value
	ops := []operation{o}
	return l.timed(ops, func(ctx context.Context) error {
		r, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(o.key), Value: []byte(value)})
		if err == nil {
			ops[0].rev = r.Header.Revision
		}
		return err
	})
}

// putTwo writes two keys at once, which the history must show at one revision.
func (l *load) putTwo(n *harness.Node, o operation, other, value string) ([]operation, error) {
	if other == o.key {
		return l.put(n, o, value)
	}
	o.kind, o.value = put, value
	second := o
	second.key = other
	ops := []operation{o, second}
	return l.timed(ops, func(ctx context.Context) error {
		r, err := n.KV().Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{putOp(o.key, value), putOp(other, value)}})
		if err == nil {
			ops[0].rev, ops[1].rev = r.Header.Revision, r.Header.Revision
		}
		return err
	})
}

func (l *load) cas(n *harness.Node, o operation, value string, expect int64) ([]operation, error) {
	o.kind, o.value, o.expect = cas, value, expect
	ops := []operation{o}
	return l.timed(ops, func(ctx context.Context) error {
		r, err := n.KV().Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: []byte(o.key), Target: pb.Compare_MOD, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_ModRevision{ModRevision: expect}}},
			Success: []*pb.RequestOp{putOp(o.key, value)},
			Failure: []*pb.RequestOp{rangeOp(o.key)},
		})
		if err != nil {
			return err
		}
		ops[0].rev, ops[0].ok = r.Header.Revision, r.Succeeded
		if !r.Succeeded {
			ops[0].see(r.Responses[0].GetResponseRange().Kvs)
		}
		return nil
	})
}

func (o *operation) see(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		if string(kv.Key) == o.key {
			o.found, o.foundMod = string(kv.Value), kv.ModRevision
		}
	}
}

func (l *load) del(n *harness.Node, o operation) ([]operation, error) {
	o.kind = del
	ops := []operation{o}
	return l.timed(ops, func(ctx context.Context) error {
		r, err := n.KV().DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(o.key)})
		if err == nil {
			ops[0].rev, ops[0].ok = r.Header.Revision, r.Deleted == 1
		}
		return err
	})
}

func (l *load) get(n *harness.Node, o operation, serializable bool) ([]operation, error) {
	o.kind = get
	if serializable {
		o.kind = serialized
	}
	ops := []operation{o}
	return l.timed(ops, func(ctx context.Context) error {
		r, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte(o.key), Serializable: serializable})
		if err == nil {
			ops[0].rev = r.Header.Revision
			ops[0].see(r.Kvs)
		}
		return err
	})
}

// list reads all keys at once.
func (l *load) list(n *harness.Node, o operation) ([]operation, error) {
	o.kind = get
	ops := make([]operation, chaosKeys)
	for i := range ops {
		ops[i] = o
		ops[i].key = fmt.Sprintf("%sk%d", l.prefix, i)
	}
	return l.timed(ops, func(ctx context.Context) error {
		r, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte(l.prefix), RangeEnd: prefixEnd([]byte(l.prefix))})
		if err != nil {
			return err
		}
		for i := range ops {
			ops[i].rev = r.Header.Revision
			ops[i].see(r.Kvs)
		}
		return nil
	})
}

// watcher follows a prefix over one member after the other.
type watcher struct {
	c        *chaos
	name     string
	prefix   string
	fragment bool
	stop     chan struct{}
	once     sync.Once
	done     chan struct{}
	mu       sync.Mutex
	next     int64
	got      []event
	stations []string // where it was, and from which revision on
}

func (w *watcher) end() {
	w.once.Do(func() { close(w.stop) })
	<-w.done
}

func (w *watcher) waitFor(rev int64, limit time.Duration) error {
	return eventually(limit, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.next <= rev {
			return fmt.Errorf("it waits for revision %d, although there are events up to %d", w.next, rev)
		}
		return nil
	})
}

func (w *watcher) run(r *rand.Rand) {
	defer close(w.done)
	for {
		select {
		case <-w.stop:
			return
		default:
		}
		members := w.c.members()
		n := members[r.Intn(len(members))]
		// Not for ever: the member may be paused or alone.
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(500+r.Intn(6000))*time.Millisecond)
		go func() {
			select {
			case <-w.stop:
				cancel()
			case <-ctx.Done():
			}
		}()
		w.at(ctx, n)
		cancel()
		time.Sleep(time.Duration(r.Intn(100)) * time.Millisecond)
	}
}

// at follows through one member until the stream ends.
func (w *watcher) at(ctx context.Context, n *harness.Node) {
	w.mu.Lock()
	next := w.next
	w.stations = append(w.stations, fmt.Sprintf("%s from %d", n.Name, next))
	w.mu.Unlock()
	s, err := watchPrefix(ctx, n, w.prefix, next, w.fragment)
	if err != nil {
		return
	}
	var part []event
	for {
		r, err := s.Recv()
		if err != nil || r.Canceled {
			return
		}
		part = append(part, eventsOf(r)...)
		if r.Fragment || len(part) == 0 {
			continue
		}
		w.mu.Lock()
		w.got = append(w.got, part...)
		w.next = part[len(part)-1].rev + 1
		w.mu.Unlock()
		part = nil
	}
}

func watchPrefix(ctx context.Context, n *harness.Node, prefix string, from int64, fragment bool) (pb.Watch_WatchClient, error) {
	s, err := pb.NewWatchClient(n.Conn()).Watch(ctx)
	if err != nil {
		return nil, err
	}
	return s, s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
		Key: []byte(prefix), RangeEnd: prefixEnd([]byte(prefix)), StartRevision: from, Fragment: fragment,
	}}})
}

func eventsOf(r *pb.WatchResponse) []event {
	var events []event
	for _, e := range r.Events {
		events = append(events, event{rev: e.Kv.ModRevision, key: string(e.Kv.Key), value: string(e.Kv.Value), delete: e.Type == mvccpb.DELETE})
	}
	return events
}

// readHistory has a member tell everything that happened to a prefix, up to a revision.
func readHistory(n *harness.Node, prefix string, from, to int64) ([]event, error) {
	ctx, cancel := harness.Ctx(30 * time.Second)
	defer cancel()
	s, err := watchPrefix(ctx, n, prefix, from, false)
	if err != nil {
		return nil, err
	}
	var events []event
	for len(events) == 0 || events[len(events)-1].rev < to {
		r, err := s.Recv()
		if err != nil {
			return nil, err
		}
		if r.Canceled {
			return nil, fmt.Errorf("canceled: %s", r.CancelReason)
		}
		events = append(events, eventsOf(r)...)
	}
	return upTo(events, to), nil
}
