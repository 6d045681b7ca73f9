package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"sort"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"rusd/judge/harness"
)

func init() {
	commands["locks"] = struct {
		run  func([]string) error
		help string
	}{runLocks, "one random script of locks and elections to two servers, compared answer by answer"}
}

// The messages of both services, which etcd keeps beside its server.
type plain struct{}

func (plain) Reset()         {}
func (plain) String() string { return "" }
func (plain) ProtoMessage()  {}

type nameReq struct {
	plain
	Name  []byte `protobuf:"bytes,1,opt,name=name,proto3"`
	Lease int64  `protobuf:"varint,2,opt,name=lease,proto3"`
	Value []byte `protobuf:"bytes,3,opt,name=value,proto3"`
}

type keyReq struct {
	plain
	Key []byte `protobuf:"bytes,1,opt,name=key,proto3"`
}

type leaderKey struct {
	plain
	Name  []byte `protobuf:"bytes,1,opt,name=name,proto3"`
	Key   []byte `protobuf:"bytes,2,opt,name=key,proto3"`
	Rev   int64  `protobuf:"varint,3,opt,name=rev,proto3"`
	Lease int64  `protobuf:"varint,4,opt,name=lease,proto3"`
}

type leaderReq struct {
	plain
	Leader *leaderKey `protobuf:"bytes,1,opt,name=leader,proto3"`
	Value  []byte     `protobuf:"bytes,2,opt,name=value,proto3"`
}

type lockResp struct {
	plain
	Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3"`
	Key    []byte             `protobuf:"bytes,2,opt,name=key,proto3"`
}

type campaignResp struct {
	plain
	Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3"`
	Leader *leaderKey         `protobuf:"bytes,2,opt,name=leader,proto3"`
}

type leaderResp struct {
	plain
	Header *pb.ResponseHeader `protobuf:"bytes,1,opt,name=header,proto3"`
	Kv     *mvccpb.KeyValue   `protobuf:"bytes,2,opt,name=kv,proto3"`
}

const (
	locksQuiet = 60 * time.Millisecond // nothing more happens after a step that was quiet for so long
	locksWait  = 20 * time.Second
	lockSvc    = "/v3lockpb.Lock/"
	electSvc   = "/v3electionpb.Election/"
)

var (
	lockNames  = []string{"", "a", "a/b", "\xff", "é", "n"}
	lockLeases = []int64{1, 0x1f, -5, 1<<63 - 1, 0xabcdef}
)

// lockSide is one server and what it has answered; both have calls of the same numbers.
type lockSide struct {
	node    *harness.Node
	mu      sync.Mutex
	texts   map[int][]string // of each call, what came back, in order
	ends    map[int]bool     // calls that have returned
	keys    map[int]*leaderKey
	cancels map[int]context.CancelFunc
}

func (s *lockSide) say(call int, text string, end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.texts[call] = append(s.texts[call], text)
	s.ends[call] = s.ends[call] || end
}

func (s *lockSide) all() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for n := 0; n <= len(s.texts)+len(s.cancels); n++ {
		if len(s.texts[n]) > 0 {
			fmt.Fprintf(&b, "%d: %s\n", n, strings.Join(s.texts[n], "; "))
		}
	}
	return b.String()
}

// drawn names a lease, a server's own choice by a word.
func drawn(lease int64) string {
	for _, l := range append([]int64{0, 99}, lockLeases...) {
		if l == lease {
			return fmt.Sprint(lease)
		}
	}
	return "<drawn>"
}

// keyText leaves out the part of a key that is a lease of a server's own choice.
func keyText(key []byte) string {
	k := string(key)
	at := strings.LastIndex(k, "/") + 1
	for _, l := range append([]int64{99}, lockLeases...) {
		if k[at:] == fmt.Sprintf("%x", l) {
			return fmt.Sprintf("%q", k)
		}
	}
	if at > 0 && k[at:] != "x" {
		k = k[:at] + "<drawn>"
	}
	return fmt.Sprintf("%q", k)
}

func kvText(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return "none"
	}
	return fmt.Sprintf("%s=%q create %d mod %d version %d lease %s", keyText(kv.Key), kv.Value, kv.CreateRevision, kv.ModRevision, kv.Version, drawn(kv.Lease))
}

func errText(err error) string {
	s, _ := status.FromError(err)
	return fmt.Sprintf("%v %q", s.Code(), s.Message())
}

// call invokes a method; what it gives is told under its number when it is there.
func (s *lockSide) call(n int, method string, in, out interface{}, text func() string) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.cancels[n] = cancel
	s.mu.Unlock()
	go func() {
		if err := s.node.Conn().Invoke(ctx, method, in, out); err != nil {
			s.say(n, errText(err), true)
			return
		}
		s.say(n, text(), true)
	}()
}

func (s *lockSide) observe(n int, name string) {
	ctx, cancel := context.WithCancel(context.Background())
	s.mu.Lock()
	s.cancels[n] = cancel
	s.mu.Unlock()
	go func() {
		stream, err := s.node.Conn().NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, electSvc+"Observe")
		if err == nil {
			err = stream.SendMsg(&nameReq{Name: []byte(name)})
		}
		if err == nil {
			err = stream.CloseSend()
		}
		for err == nil {
			r := &leaderResp{}
			if err = stream.RecvMsg(r); err == nil {
				s.say(n, fmt.Sprintf("%v %s", r.Header, kvText(r.Kv)), false)
			}
		}
		s.say(n, errText(err), true)
	}()
}

// keep remembers what a later call may name, and makes its text.
func (s *lockSide) keep(n int, name string, key []byte, rev, lease int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys[n] = &leaderKey{Name: []byte(name), Key: key, Rev: rev, Lease: lease}
}

func (s *lockSide) key(n int) *leaderKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	if k := s.keys[n]; k != nil {
		return &leaderKey{Name: k.Name, Key: k.Key, Rev: k.Rev, Lease: k.Lease}
	}
	return nil
}

// step sends one request of the script; draws are made before, so that both sides get the same.
type step struct {
	kind, name, value string
	lease             int64
	of                int // an earlier call
	mangle            int
}

func (s *lockSide) do(n int, st step) {
	switch st.kind {
	case "grant":
		r := &pb.LeaseGrantResponse{}
		s.call(n, "/etcdserverpb.Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: st.lease, TTL: 1000}, r, func() string { return fmt.Sprint(r) })
	case "revoke":
		r := &pb.LeaseRevokeResponse{}
		s.call(n, "/etcdserverpb.Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: st.lease}, r, func() string { return fmt.Sprint(r) })
	case "lock":
		r := &lockResp{}
		s.call(n, lockSvc+"Lock", &nameReq{Name: []byte(st.name), Lease: st.lease}, r, func() string {
			s.keep(n, st.name, r.Key, r.Header.Revision, st.lease)
			return fmt.Sprintf("%v %s", r.Header, keyText(r.Key))
		})
	case "unlock":
		key := []byte(st.name)
		if k := s.key(st.of); k != nil {
			key = k.Key
		}
		r := &lockResp{}
		s.call(n, lockSvc+"Unlock", &keyReq{Key: key}, r, func() string { return fmt.Sprint(r.Header) })
	case "campaign":
		r := &campaignResp{}
		s.call(n, electSvc+"Campaign", &nameReq{Name: []byte(st.name), Lease: st.lease, Value: []byte(st.value)}, r, func() string {
			l := r.Leader
			s.keep(n, string(l.Name), l.Key, l.Rev, l.Lease)
			return fmt.Sprintf("%v %q %s %d %s", r.Header, l.Name, keyText(l.Key), l.Rev, drawn(l.Lease))
		})
	case "proclaim", "resign":
		k := s.key(st.of)
		if k != nil {
			switch st.mangle {
			case 0:
				k.Rev++
			case 1:
				k.Lease = 0
			case 2:
				k.Key = nil
			case 3:
				k.Lease = 99
			}
		}
		r := &lockResp{}
		method := electSvc + "Proclaim"
		if st.kind == "resign" {
			method = electSvc + "Resign"
		}
		s.call(n, method, &leaderReq{Leader: k, Value: []byte(st.value)}, r, func() string { return fmt.Sprint(r.Header) })
	case "leader":
		r := &leaderResp{}
		s.call(n, electSvc+"Leader", &nameReq{Name: []byte(st.name)}, r, func() string { return fmt.Sprintf("%v %s", r.Header, kvText(r.Kv)) })
	case "observe":
		s.observe(n, st.name)
	case "cancel":
		s.mu.Lock()
		cancel := s.cancels[st.of]
		s.mu.Unlock()
		if cancel != nil {
			cancel()
		}
		s.say(n, "", true)
	case "put":
		r := &pb.PutResponse{}
		s.call(n, "/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte(st.name + "/x"), Value: []byte(st.value)}, r, func() string { return fmt.Sprint(r) })
	case "delete":
		r := &pb.DeleteRangeResponse{}
		s.call(n, "/etcdserverpb.KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(st.name + "/x")}, r, func() string { return fmt.Sprint(r) })
	case "compact":
		rev, err := s.node.Revision()
		if err != nil {
			s.say(n, errText(err), true)
			return
		}
		r := &pb.CompactionResponse{}
		s.call(n, "/etcdserverpb.KV/Compact", &pb.CompactionRequest{Revision: rev}, r, func() string { return fmt.Sprint(r) })
	}
}

// state is what is left at the end: every row and every lease.
func (s *lockSide) state() (string, error) {
	ctx, cancel := harness.Ctx(locksWait)
	defer cancel()
	rows, err := s.node.KV().Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		return "", err
	}
	leases, err := pb.NewLeaseClient(s.node.Conn()).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return "", err
	}
	var out []string
	for _, kv := range rows.Kvs {
		out = append(out, kvText(kv))
	}
	for _, l := range leases.Leases {
		out = append(out, "lease "+drawn(l.ID))
	}
	sort.Strings(out)
	return strings.Join(out, "\n"), nil
}

func drawStep(r *rand.Rand, n int) step {
	st := step{name: lockNames[r.Intn(len(lockNames))], value: fmt.Sprintf("v%d", r.Intn(4)), of: r.Intn(n + 1), mangle: r.Intn(12)}
	st.lease = lockLeases[r.Intn(len(lockLeases))]
	switch x := r.Intn(100); {
	case n < len(lockLeases):
		st.kind, st.lease = "grant", lockLeases[n]
	case x < 25:
		st.kind = "lock"
	case x < 45:
		st.kind = "campaign"
	case x < 53:
		st.kind = "unlock"
	case x < 61:
		st.kind = "proclaim"
	case x < 68:
		st.kind = "resign"
	case x < 75:
		st.kind = "leader"
	case x < 80:
		st.kind = "observe"
	case x < 87:
		st.kind = "cancel"
	case x < 91:
		st.kind = "revoke"
	case x < 95:
		st.kind = "grant"
	case x < 97:
		st.kind = "put"
	case x < 99:
		st.kind = "delete"
	default:
		st.kind = "compact"
	}
	if st.kind == "lock" || st.kind == "campaign" {
		switch r.Intn(8) {
		case 0:
			st.lease = 0
		case 1:
			st.lease = 99 // granted by nobody
		}
	}
	return st
}

func locksSeed(seed int64, bins [2]string, steps int, trace bool) (map[string]int, error) {
	kinds := map[string]int{}
	var sides [2]*lockSide
	for i, bin := range bins {
		o := harness.Opts{Bins: []string{bin}, AdvPeer: "http://127.0.0.1:65001", AdvClient: "http://127.0.0.1:65002", Extra: []string{"--unsafe-no-fsync"}}
		nodes, err := harness.Cluster(o)
		if err != nil {
			return nil, err
		}
		defer harness.StopAll(nodes)
		if err := harness.StartAll(nodes, locksWait); err != nil {
			return nil, err
		}
		sides[i] = &lockSide{node: nodes[0], texts: map[int][]string{}, ends: map[int]bool{}, keys: map[int]*leaderKey{}, cancels: map[int]context.CancelFunc{}}
	}
	r := rand.New(rand.NewSource(seed))
	for n := 0; n < steps; n++ {
		st := drawStep(r, n)
		kinds[st.kind]++
		for _, s := range sides {
			s.do(n, st)
		}
		end := time.Now().Add(locksWait)
		for last := ""; ; {
			a := sides[0].all()
			time.Sleep(locksQuiet)
			b, again := sides[1].all(), sides[0].all()
			if a == b && a == again {
				last = a
			}
			if last != "" {
				break
			}
			if time.Now().After(end) {
				return nil, fmt.Errorf("step %d, %+v:\n%s", n, st, firstLineApart(again, b))
			}
		}
		if trace {
			fmt.Printf("%d %+v\n%s", n, st, lastOf(sides[0].all(), n))
		}
	}
	a, err := sides[0].state()
	if err != nil {
		return nil, err
	}
	b, err := sides[1].state()
	if err == nil && a != b {
		err = fmt.Errorf("at the end:\n%s", firstLineApart(a, b))
	}
	return kinds, err
}

func lastOf(all string, n int) string {
	for _, l := range strings.Split(all, "\n") {
		if strings.HasPrefix(l, fmt.Sprintf("%d: ", n)) {
			return "    " + l + "\n"
		}
	}
	return ""
}

func firstLineApart(a, b string) string {
	x, y := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := 0; i < len(x) || i < len(y); i++ {
		l, r := "", ""
		if i < len(x) {
			l = x[i]
		}
		if i < len(y) {
			r = y[i]
		}
		if l != r {
			return fmt.Sprintf("  etcd %s\n  rusd %s", l, r)
		}
	}
	return ""
}

func runLocks(args []string) error {
	fs := flag.NewFlagSet("locks", flag.ExitOnError)
	seed := fs.Int64("seed", 1, "first seed")
	seeds := fs.Int("seeds", 1, "how many seeds, from --seed up")
	steps := fs.Int("steps", 150, "calls per seed")
	rusd := fs.String("rusd", "", "the server under judgement")
	etcd := fs.String("etcd", "", "etcd 3.5.17, the reference")
	trace := fs.Bool("trace", false, "print every step and its answer")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *rusd == "" || *etcd == "" {
		return errors.New("--rusd and --etcd are needed")
	}
	for i := int64(0); i < int64(*seeds); i++ {
		t := time.Now()
		kinds, err := locksSeed(*seed+i, [2]string{*etcd, *rusd}, *steps, *trace)
		if err != nil {
			return fmt.Errorf("seed %d: %w", *seed+i, err)
		}
		fmt.Printf("seed %d: %d calls agree (%v), %.1fs\n", *seed+i, *steps, kinds, time.Since(t).Seconds())
	}
	return nil
}
