package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"rusd/judge/harness"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// follower watches everything on one member from the first revision on, through all of its servers, and
// makes the store's rows out of what it is told: HashKV at a revision follows from that alone.
type follower struct {
	node *harness.Node

	mu       sync.Mutex
	rev      int64            // all of it has come up to here
	crc      uint32           // of all rows up to there
	hashes   map[int64]uint32 // HashKV at each revision, while nothing is compacted
	written  map[int64]string // key and value of a revision's first event
	events   int
	resumes  int
	problems []string
}

// follow begins; the function ends it.
func follow(n *harness.Node) (*follower, func()) {
	f := &follower{node: n, rev: 1, crc: crc32.Update(0, castagnoli, []byte("key")), hashes: map[int64]uint32{}, written: map[int64]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			f.stream(ctx)
			f.mu.Lock()
			f.resumes++
			f.mu.Unlock()
			select {
			case <-ctx.Done():
			case <-time.After(30 * time.Millisecond):
			}
		}
	}()
	return f, func() { cancel(); <-done }
}

// stream watches from the next revision until the server goes away.
func (f *follower) stream(ctx context.Context) {
	conn := f.node.Dial()
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return
	}
	create := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: f.rev + 1}
	if w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}) != nil {
		return
	}
	for {
		r, err := w.Recv()
		if err != nil {
			return
		}
		if r.Canceled {
			f.problem("a watch from %d was cancelled: %s", f.rev+1, r.CancelReason)
			return
		}
		f.take(r.Events)
	}
}

func (f *follower) problem(format string, a ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problems = append(f.problems, f.node.Name+": "+fmt.Sprintf(format, a...))
}

// take adds events to the model. A response holds whole revisions, and they follow each other.
func (f *follower) take(events []*mvccpb.Event) {
	var sub int64
	for _, e := range events {
		rev := e.Kv.ModRevision
		f.mu.Lock()
		at := f.rev
		f.mu.Unlock()
		if rev == at && sub > 0 {
			// A further change of the same transaction.
		} else if rev == at+1 {
			sub = 0
		} else {
			f.problem("an event of revision %d came after revision %d", rev, at)
			return
		}
		key := binary.BigEndian.AppendUint64(nil, uint64(rev))
		key = binary.BigEndian.AppendUint64(append(key, '_'), uint64(sub))
		row := e.Kv
		if e.Type == mvccpb.DELETE {
			key, row = append(key, 't'), &mvccpb.KeyValue{Key: e.Kv.Key}
		}
		value, err := row.Marshal()
		if err != nil {
			f.problem("%v", err)
			return
		}
		f.mu.Lock()
		f.crc = crc32.Update(crc32.Update(f.crc, castagnoli, key), castagnoli, value)
		f.rev, f.hashes[rev] = rev, f.crc
		if sub == 0 {
			f.written[rev] = string(e.Kv.Key) + "=" + string(e.Kv.Value)
		}
		f.events++
		f.mu.Unlock()
		sub++
	}
}

// reaches waits until everything up to a revision has come.
func (f *follower) reaches(rev int64, d time.Duration) error {
	for end := time.Now().Add(d); ; time.Sleep(10 * time.Millisecond) {
		f.mu.Lock()
		at, problems := f.rev, f.problems
		f.mu.Unlock()
		if len(problems) > 0 {
			return fmt.Errorf("watch: %s", problems[0])
		}
		if at >= rev {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("watch: %s has told events up to revision %d of %d after %v", f.node.Name, at, rev, d)
		}
	}
}

// agrees compares HashKV with that of the model.
func (f *follower) agrees(rev int64, hash uint32) error {
	if err := f.reaches(rev, 20*time.Second); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if model := f.hashes[rev]; model != hash {
		return fmt.Errorf("HashKV at %d is %08x, that of the model %08x", rev, hash, model)
	}
	return nil
}

// lacks tells how many of the acknowledged writes were not told as events.
func (f *follower) lacks(acks []ack) (missing int, first string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range acks {
		if told := f.written[a.rev]; told != a.key+"="+a.val {
			if missing == 0 {
				first = fmt.Sprintf("%s=%.40q was acknowledged at revision %d, where the watch told %.60q", a.key, a.val, a.rev, told)
			}
			missing++
		}
	}
	return missing, first
}
