package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/gogo/protobuf/proto"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"rusd/judge/harness"
)

func init() {
	commands["diff"] = struct {
		run  func([]string) error
		help string
	}{runDiff, "one random history to two servers, compared answer by answer"}
}

const maxRequest = 100_000

type diffOpts struct {
	ops         int
	rusd, etcd  string
	ids         bool
	fsync       bool
	grpcLimit   bool
	exactLimit  bool
	exactTies   bool
	hash        bool
	more        bool
	trace       io.Writer
	clients     int
	skip        map[string]bool
	keepGoing   int
	kindCounter map[string]int
	okCounter   map[string]int
}

func runDiff(args []string) error {
	fs := flag.NewFlagSet("diff", flag.ExitOnError)
	var o diffOpts
	seed := fs.Int64("seed", 1, "first seed")
	seeds := fs.Int("seeds", 1, "how many seeds, from --seed up")
	skip := fs.String("skip", "", "request kinds to leave out, by comma (the kinds a run prints)")
	trace := fs.String("trace", "", "write every request and both answers to this file")
	fs.IntVar(&o.ops, "ops", 2000, "requests per seed")
	fs.StringVar(&o.rusd, "rusd", "", "the server under judgement")
	fs.StringVar(&o.etcd, "etcd", "", "etcd 3.5.17, the reference")
	fs.IntVar(&o.clients, "clients", 4, "client connections the requests are dealt over")
	fs.BoolVar(&o.ids, "ids", false, "compare cluster_id, member_id and raft_term in headers too")
	fs.BoolVar(&o.fsync, "fsync", false, "run both servers without --unsafe-no-fsync")
	fs.BoolVar(&o.grpcLimit, "grpc-limit", true, "now and then send a message above the gRPC receive limit")
	fs.BoolVar(&o.exactTies, "exact-ties", false, "hold the order of rows with equal sort keys against each other too")
	fs.BoolVar(&o.exactLimit, "exact-limit", false, "also try the request sizes within 16 bytes of --max-request-bytes")
	fs.BoolVar(&o.more, "more", true, "also users, roles, auth, alarms, locks, elections and maintenance; without, the history of a seed is one of keys and leases")
	fs.BoolVar(&o.hash, "hash", true, "compare Hash (whole backend) at the end too, unless there are users, whose passwords each server salts")
	fs.IntVar(&o.keepGoing, "max-differences", 1, "stop a seed after so many differences (answers only; a diverged state makes more)")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if o.rusd == "" || o.etcd == "" {
		return errors.New("--rusd and --etcd are needed")
	}
	o.skip = map[string]bool{}
	for _, k := range strings.Split(*skip, ",") {
		o.skip[k] = true
	}
	if *trace != "" {
		f, err := os.Create(*trace)
		if err != nil {
			return err
		}
		defer f.Close()
		o.trace = f
	}
	o.kindCounter, o.okCounter = map[string]int{}, map[string]int{}
	bad := 0
	start := time.Now()
	for i := 0; i < *seeds; i++ {
		s := *seed + int64(i)
		t := time.Now()
		n, err := diffSeed(s, &o)
		if err != nil {
			return fmt.Errorf("seed %d: %w", s, err)
		}
		state := "agree"
		if n > 0 {
			bad++
			state = fmt.Sprintf("%d DIFFERENCES", n)
		}
		left := time.Since(start) / time.Duration(i+1) * time.Duration(*seeds-i-1)
		fmt.Printf("seed %d: %d ops, %s, %.1fs (%d/%d, %d red, about %v left)\n", s, o.ops, state, time.Since(t).Seconds(), i+1, *seeds, bad, left.Round(time.Second))
	}
	var kinds []string
	for k := range o.kindCounter {
		kinds = append(kinds, fmt.Sprintf("%s %d (%d ok)", k, o.kindCounter[k], o.okCounter[k]))
	}
	sort.Strings(kinds)
	fmt.Println("requests:", strings.Join(kinds, ", "))
	if bad > 0 {
		return fmt.Errorf("%d of %d seeds differ", bad, *seeds)
	}
	fmt.Printf("%d seeds of %d operations agree\n", *seeds, o.ops)
	return nil
}

// side is one server with its client connections.
type side struct {
	node   *harness.Node
	conns  []*grpc.ClientConn
	tokens map[string]string // of users that have logged in
}

// gen draws requests; what it knows of the state comes from the reference's answers.
type gen struct {
	r       *rand.Rand
	o       *diffOpts
	keys    [][]byte
	rev     int64
	compact int64
}

func newGen(seed int64, o *diffOpts) *gen {
	g := &gen{r: rand.New(rand.NewSource(seed)), o: o}
	for _, k := range []string{"a", "ab", "abc", "abd", "ac", "b", "b/1", "b/2", "b/10", "b0", "c", "dir/", "dir/x", "dir/y", "dir/z/1", "dir0",
		"\x00", "\x00\x00", "\x00\x01", "\xff", "\xff\xff", "\xff\xfe", "k\x00", "k\x00\x00", "k", "é", "with space", "\x80bin\xc3\x28", "zz"} {
		g.keys = append(g.keys, []byte(k))
	}
	g.keys = append(g.keys, bytes.Repeat([]byte("L"), 3000), bytes.Repeat([]byte("M"), 70_000))
	return g
}

func (g *gen) n(n int) int       { return g.r.Intn(n) }
func (g *gen) p(pc float64) bool { return g.r.Float64() < pc }

func (g *gen) key() []byte {
	if g.p(0.02) {
		return nil
	}
	for {
		i := g.n(len(g.keys))
		if i == len(g.keys)-1 && !g.p(0.15) {
			continue
		}
		return g.keys[i]
	}
}

func (g *gen) end(key []byte) []byte {
	switch g.n(12) {
	case 0, 1, 2, 3, 4:
		return nil
	case 5, 6:
		return []byte{0}
	case 7, 8:
		return prefixEnd(key)
	case 9:
		return key
	default:
		return g.key()
	}
}

func prefixEnd(k []byte) []byte {
	e := append([]byte(nil), k...)
	for i := len(e) - 1; i >= 0; i-- {
		if e[i] < 0xff {
			e[i]++
			return e[:i+1]
		}
	}
	return []byte{0}
}

func (g *gen) value() []byte {
	switch x := g.n(200); {
	case x < 20:
		return nil
	case x < 150:
		return []byte(fmt.Sprintf("v%d", g.n(12)))
	case x < 180:
		b := make([]byte, g.n(40))
		g.r.Read(b)
		return b
	case x < 196:
		return bytes.Repeat([]byte{byte(g.n(256))}, g.n(5000))
	case x < 198:
		return make([]byte, maxRequest-500+g.n(400)) // near the limit, mostly accepted
	case x < 199:
		return make([]byte, maxRequest+1+g.n(100)) // above
	default:
		if g.o.exactLimit {
			return make([]byte, maxRequest-40+g.n(40))
		}
		return make([]byte, maxRequest+g.n(300_000))
	}
}

func (g *gen) someRev() int64 {
	switch g.n(12) {
	case 0, 1, 2:
		return 0
	case 3:
		return g.compact
	case 4:
		return g.compact - 1
	case 5:
		return g.compact + 1
	case 6:
		return g.rev + 1
	case 7:
		return -int64(g.n(4))
	case 8:
		return g.rev
	case 9:
		return g.rev + int64(g.n(1000))
	default:
		return 1 + g.r.Int63n(g.rev+1)
	}
}

func (g *gen) lease(none float64) int64 {
	if g.p(none) {
		return 0
	}
	switch g.n(30) {
	case 0:
		return -5
	case 1:
		return 1 << 62
	default:
		return int64(1 + g.n(10))
	}
}

func (g *gen) rangeReq() *pb.RangeRequest {
	q := &pb.RangeRequest{Key: g.key()}
	q.RangeEnd = g.end(q.Key)
	if g.p(0.4) {
		q.Limit = int64(g.n(9)) - 1
		if g.p(0.1) {
			q.Limit = []int64{-1 << 63, 1<<63 - 1, -7}[g.n(3)]
		}
	}
	if g.p(0.4) {
		q.Revision = g.someRev()
	}
	if g.p(0.4) {
		q.SortOrder = pb.RangeRequest_SortOrder(g.n(3))
		q.SortTarget = pb.RangeRequest_SortTarget(g.n(5))
		if g.p(0.06) {
			q.SortOrder = pb.RangeRequest_SortOrder([]int32{3, -1, 99}[g.n(3)])
		}
		if g.p(0.06) {
			// etcd 3.5.17 ends with a nil dereference when it gets to sort by an
			// unknown target, so only requests refused before that carry one.
			// (badinput sends it to the server under judgement.)
			q.SortTarget = pb.RangeRequest_SortTarget([]int32{5, -1, 99}[g.n(3)])
			if g.p(0.5) {
				q.Key = nil
			} else {
				q.SortOrder = 3
			}
		}
	}
	q.Serializable = g.p(0.3)
	q.KeysOnly = g.p(0.15)
	q.CountOnly = g.p(0.15)
	if g.p(0.12) {
		q.MinModRevision = g.someRev()
	}
	if g.p(0.12) {
		q.MaxModRevision = g.someRev()
	}
	if g.p(0.12) {
		q.MinCreateRevision = g.someRev()
	}
	if g.p(0.12) {
		q.MaxCreateRevision = g.someRev()
	}
	return q
}

func (g *gen) putReq() *pb.PutRequest {
	q := &pb.PutRequest{Key: g.key(), Value: g.value(), Lease: g.lease(0.7), PrevKv: g.p(0.3)}
	if g.p(0.1) {
		q.IgnoreValue = true
		if g.p(0.7) {
			q.Value = nil
		}
	}
	if g.p(0.1) {
		q.IgnoreLease = true
		if g.p(0.7) {
			q.Lease = 0
		}
	}
	return q
}

func (g *gen) delReq() *pb.DeleteRangeRequest {
	q := &pb.DeleteRangeRequest{Key: g.key(), PrevKv: g.p(0.4)}
	if g.p(0.35) {
		q.RangeEnd = g.end(q.Key)
	}
	return q
}

func (g *gen) cmp() *pb.Compare {
	c := &pb.Compare{Key: g.key(), Result: pb.Compare_CompareResult(g.n(4)), Target: pb.Compare_CompareTarget(g.n(5))}
	if g.p(0.3) {
		c.RangeEnd = g.end(c.Key)
	}
	t := int(c.Target)
	if g.p(0.05) {
		t = g.n(6) // a value of another kind, or none
	}
	if g.p(0.03) {
		c.Result = pb.Compare_CompareResult([]int32{4, -1, 77}[g.n(3)])
	}
	if g.p(0.03) {
		c.Target = pb.Compare_CompareTarget([]int32{5, -1, 77}[g.n(3)])
	}
	switch t {
	case 0:
		c.TargetUnion = &pb.Compare_Version{Version: int64(g.n(4))}
	case 1:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: g.someRev()}
	case 2:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: g.someRev()}
	case 3:
		c.TargetUnion = &pb.Compare_Value{Value: []byte(fmt.Sprintf("v%d", g.n(12)))}
	case 4:
		c.TargetUnion = &pb.Compare_Lease{Lease: g.lease(0.5)}
	}
	return c
}

func (g *gen) ops(depth int) []*pb.RequestOp {
	n := g.n(4)
	if g.p(0.01) {
		n = 126 + g.n(5)
	}
	var out []*pb.RequestOp
	for i := 0; i < n; i++ {
		x := g.n(100)
		if n > 20 {
			x %= 70 // exactly n, near the limit of 128
		}
		switch {
		case x < 35:
			q := g.rangeReq()
			if n > 20 {
				q = &pb.RangeRequest{Key: []byte(fmt.Sprintf("many%d", i))}
			}
			if g.p(0.8) { // a bad revision fails the whole txn: not too often
				q.Revision = 0
			}
			out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: q}})
		case x < 70:
			q := g.putReq()
			if n > 20 {
				q = &pb.PutRequest{Key: []byte(fmt.Sprintf("many%d", i)), PrevKv: g.p(0.1)}
			}
			if g.p(0.6) {
				q.Lease, q.IgnoreLease, q.IgnoreValue = 0, false, false
			}
			out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: q}})
		case x < 85:
			out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.delReq()}})
		case x < 86:
			out = append(out, &pb.RequestOp{})
		default:
			if depth > 0 {
				out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth - 1)}})
			}
		}
	}
	return out
}

func (g *gen) txn(depth int) *pb.TxnRequest {
	q := &pb.TxnRequest{}
	n := g.n(3)
	if g.p(0.01) {
		n = 127 + g.n(4)
	}
	for i := 0; i < n; i++ {
		q.Compare = append(q.Compare, g.cmp())
	}
	q.Success, q.Failure = g.ops(depth), g.ops(depth)
	return q
}

// keepsOld tells whether a put with ignore_value or ignore_lease is inside.
func keepsOld(q *pb.TxnRequest) bool {
	for _, o := range append(append([]*pb.RequestOp(nil), q.Success...), q.Failure...) {
		if p := o.GetRequestPut(); p != nil && (p.IgnoreLease || p.IgnoreValue) {
			return true
		}
		if t := o.GetRequestTxn(); t != nil && keepsOld(t) {
			return true
		}
	}
	return false
}

// noOpenDeletes makes from-key deletes single-key ones: etcd 3.5.17's duplicate
// check does not see them overlap a later put, and it panics when that put finds
// nothing to keep.
func noOpenDeletes(q *pb.TxnRequest) {
	for _, o := range append(append([]*pb.RequestOp(nil), q.Success...), q.Failure...) {
		if d := o.GetRequestDeleteRange(); d != nil && bytes.Equal(d.RangeEnd, []byte{0}) {
			d.RangeEnd = nil
		}
		if t := o.GetRequestTxn(); t != nil {
			noOpenDeletes(t)
		}
	}
}

// action is one drawn request: call sends it through a connection.
type action struct {
	kind string
	req  proto.Message
	call func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error)
}

var ttls = []int64{20_000, 40_000, 60_000, 80_000, 1_000_000, 9_000_000_000, 9_000_000_001, 1<<63 - 1}

func (g *gen) next() action {
	for {
		a := g.draw()
		if !g.o.skip[a.kind] {
			return a
		}
	}
}

func (g *gen) draw() action {
	switch x := g.n(1000); {
	case x < 260:
		q := g.rangeReq()
		return action{"range", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewKVClient(c).Range(ctx, q))
		}}
	case x < 540:
		q := g.putReq()
		return action{"put", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewKVClient(c).Put(ctx, q))
		}}
	case x < 620:
		q := g.delReq()
		return action{"delete", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewKVClient(c).DeleteRange(ctx, q))
		}}
	case x < 830:
		q := g.txn(2)
		if keepsOld(q) {
			noOpenDeletes(q)
		}
		return action{"txn", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewKVClient(c).Txn(ctx, q))
		}}
	case x < 850:
		q := &pb.CompactionRequest{Revision: g.someRev(), Physical: g.p(0.5)}
		if q.Revision == g.rev && g.p(0.7) {
			q.Revision -= int64(g.n(30))
		}
		return action{"compact", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewKVClient(c).Compact(ctx, q))
		}}
	case x < 890:
		q := &pb.LeaseGrantRequest{ID: g.lease(0), TTL: ttls[g.n(len(ttls))]}
		return action{"grant", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewLeaseClient(c).LeaseGrant(ctx, q))
		}}
	case x < 900:
		// A short lease (or one whose ID the server draws) is revoked at once:
		// when it would expire is not the history's business.
		q := &pb.LeaseGrantRequest{ID: int64(100 + g.n(3)), TTL: int64(g.n(3)) - 1}
		if g.p(0.3) {
			q.ID, q.TTL = 0, 20_000
		}
		if g.p(0.1) {
			q.TTL = -1 << 63
		}
		return action{"grant+revoke", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			r, err := pb.NewLeaseClient(c).LeaseGrant(ctx, q)
			if err != nil {
				return nil, err
			}
			if _, err := pb.NewLeaseClient(c).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: r.ID}); err != nil {
				return nil, err
			}
			if q.ID == 0 {
				if r.ID <= 0 {
					return nil, fmt.Errorf("drawn lease ID %d is not positive", r.ID)
				}
				r.ID = 0
			}
			return r, nil
		}}
	case x < 920:
		q := &pb.LeaseRevokeRequest{ID: g.lease(0.05)}
		return action{"revoke", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewLeaseClient(c).LeaseRevoke(ctx, q))
		}}
	case x < 945:
		q := &pb.LeaseTimeToLiveRequest{ID: g.lease(0.05), Keys: g.p(0.6)}
		return action{"timetolive", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewLeaseClient(c).LeaseTimeToLive(ctx, q))
		}}
	case x < 955:
		q := &pb.LeaseLeasesRequest{}
		return action{"leases", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewLeaseClient(c).LeaseLeases(ctx, q))
		}}
	case x < 965:
		q := &pb.LeaseKeepAliveRequest{ID: g.lease(0.05)}
		return action{"keepalive", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := pb.NewLeaseClient(c).LeaseKeepAlive(ctx)
			if err != nil {
				return nil, err
			}
			if err := s.Send(q); err != nil {
				return nil, err
			}
			return msg(s.Recv())
		}}
	case x < 972:
		q := &pb.StatusRequest{}
		return action{"status", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).Status(ctx, q))
		}}
	case x < 979:
		q := &pb.MemberListRequest{Linearizable: g.p(0.5)}
		return action{"memberlist", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewClusterClient(c).MemberList(ctx, q))
		}}
	case x < 984:
		q := &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: pb.AlarmType(g.n(3))}
		return action{"alarm", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).Alarm(ctx, q))
		}}
	case x < 998 || !g.o.grpcLimit:
		q := &pb.HashKVRequest{Revision: g.someRev()}
		return action{"hashkv", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).HashKV(ctx, q))
		}}
	default:
		q := &pb.PutRequest{Key: []byte("huge"), Value: make([]byte, maxRequest+600_000)}
		return action{"huge", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewKVClient(c).Put(ctx, q))
		}}
	}
}

func msg[T proto.Message](m T, err error) (proto.Message, error) {
	if err != nil {
		return nil, err
	}
	return m, nil
}

// normal makes an answer comparable: IDs and terms out of headers, sets sorted,
// what depends on time or on the node left out.
func normal(m proto.Message, ids bool) {
	if !ids {
		clearHeaders(reflect.ValueOf(m))
	}
	normalMore(m)
	switch r := m.(type) {
	case *pb.LeaseTimeToLiveResponse:
		sort.Slice(r.Keys, func(i, j int) bool { return bytes.Compare(r.Keys[i], r.Keys[j]) < 0 })
	case *pb.StatusResponse:
		r.DbSize, r.DbSizeInUse, r.RaftIndex, r.RaftAppliedIndex = 0, 0, 0, 0
		if !ids {
			r.Leader, r.RaftTerm = 0, 0
		}
	case *pb.MemberListResponse:
		if !ids {
			for _, x := range r.Members {
				x.ID = 0
			}
		}
	}
}

// settleTies puts rows with equal sort keys in key order: etcd leaves their order to its sort
// algorithm. Where a limit cuts through such rows, only their sort key is kept.
func settleTies(req, answer proto.Message) {
	switch r := req.(type) {
	case *pb.RangeRequest:
		if m, ok := answer.(*pb.RangeResponse); ok {
			settleRange(r, m)
		}
	case *pb.TxnRequest:
		m, ok := answer.(*pb.TxnResponse)
		if !ok {
			return
		}
		ops := r.Failure
		if m.Succeeded {
			ops = r.Success
		}
		for i, op := range ops {
			if i >= len(m.Responses) {
				return
			}
			if nested := op.GetRequestRange(); nested != nil {
				if got := m.Responses[i].GetResponseRange(); got != nil {
					settleRange(nested, got)
				}
			}
			if nested := op.GetRequestTxn(); nested != nil {
				if got := m.Responses[i].GetResponseTxn(); got != nil {
					settleTies(nested, got)
				}
			}
		}
	}
}

func settleRange(req *pb.RangeRequest, m *pb.RangeResponse) {
	// Only the sort key of a row, as a string that compares equal when the keys are equal.
	key := func(kv *mvccpb.KeyValue) string {
		switch req.SortTarget {
		case pb.RangeRequest_VERSION:
			return strconv.FormatInt(kv.Version, 10)
		case pb.RangeRequest_CREATE:
			return strconv.FormatInt(kv.CreateRevision, 10)
		case pb.RangeRequest_MOD:
			return strconv.FormatInt(kv.ModRevision, 10)
		case pb.RangeRequest_VALUE:
			return string(kv.Value)
		}
		return string(kv.Key)
	}
	if req.SortTarget == pb.RangeRequest_VALUE && req.KeysOnly {
		// The sort key is gone from the answer; what is left is a set.
		sort.Slice(m.Kvs, func(i, j int) bool { return bytes.Compare(m.Kvs[i].Key, m.Kvs[j].Key) < 0 })
		if m.More {
			m.Kvs = m.Kvs[:0]
		}
		return
	}
	for from := 0; from < len(m.Kvs); {
		to := from + 1
		for to < len(m.Kvs) && key(m.Kvs[to]) == key(m.Kvs[from]) {
			to++
		}
		tied := m.Kvs[from:to]
		sort.Slice(tied, func(i, j int) bool { return bytes.Compare(tied[i].Key, tied[j].Key) < 0 })
		if m.More && to == len(m.Kvs) && req.SortTarget != pb.RangeRequest_KEY {
			for i, kv := range tied {
				tied[i] = &mvccpb.KeyValue{Value: []byte(key(kv))}
			}
		}
		from = to
	}
}

var headerType = reflect.TypeOf(&pb.ResponseHeader{})

func clearHeaders(v reflect.Value) {
	switch v.Kind() {
	case reflect.Ptr, reflect.Interface:
		if v.IsNil() {
			return
		}
		if v.Type() == headerType {
			h := v.Interface().(*pb.ResponseHeader)
			h.ClusterId, h.MemberId, h.RaftTerm = 0, 0, 0
			return
		}
		clearHeaders(v.Elem())
	case reflect.Struct:
		for i := 0; i < v.NumField(); i++ {
			if v.Type().Field(i).IsExported() {
				clearHeaders(v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return
		}
		for i := 0; i < v.Len(); i++ {
			clearHeaders(v.Index(i))
		}
	}
}

type answer struct {
	m   proto.Message
	err error
}

func (a answer) String() string {
	if a.err != nil {
		s, ok := status.FromError(a.err)
		if !ok {
			return "error " + a.err.Error()
		}
		return fmt.Sprintf("%s %q", s.Code(), s.Message())
	}
	return text(a.m)
}

func text(m proto.Message) string {
	s := fmt.Sprintf("%T{%s}", m, shorten(proto.CompactTextString(m)))
	if len(s) > 3000 {
		s = s[:3000] + fmt.Sprintf("… (%d characters)", len(s))
	}
	return s
}

// shorten writes a long run of one unit (a byte, or an octal escape) as unit*count.
func shorten(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		u := 1
		if s[i] == '\\' && i+4 <= len(s) && s[i+1] >= '0' && s[i+1] <= '3' {
			u = 4
		}
		j := i + u
		for j+u <= len(s) && s[j:j+u] == s[i:i+u] {
			j += u
		}
		if c := (j - i) / u; c > 24 {
			fmt.Fprintf(&b, "«%s*%d»", s[i:i+u], c)
		} else {
			b.WriteString(s[i:j])
		}
		i = j
	}
	return b.String()
}

func same(a, b answer) bool {
	if (a.err == nil) != (b.err == nil) {
		return false
	}
	if a.err != nil {
		return a.String() == b.String()
	}
	if x, ok := a.m.(*pb.LeaseTimeToLiveResponse); ok {
		if y, ok := b.m.(*pb.LeaseTimeToLiveResponse); ok {
			if d := x.TTL - y.TTL; d < -5 || d > 5 {
				return false
			}
			c := *y
			c.TTL = x.TTL
			return bytes.Equal(marshal(x), marshal(&c))
		}
	}
	return reflect.TypeOf(a.m) == reflect.TypeOf(b.m) && bytes.Equal(marshal(a.m), marshal(b.m))
}

func marshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return b
}

func header(m proto.Message) *pb.ResponseHeader {
	if h, ok := m.(interface{ GetHeader() *pb.ResponseHeader }); ok {
		return h.GetHeader()
	}
	return nil
}

func diffSeed(seed int64, o *diffOpts) (int, error) {
	// Both advertise the same URLs, so both have the same member and cluster IDs.
	extra := []string{"--max-request-bytes", fmt.Sprint(maxRequest), "--log-level", "error"}
	if !o.fsync {
		extra = append(extra, "--unsafe-no-fsync")
	}
	if o.more {
		extra = append(extra, "--bcrypt-cost", "4")
	}
	advP := fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort())
	advC := fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort())
	var sides []*side
	defer func() {
		for _, s := range sides {
			for _, c := range s.conns {
				c.Close()
			}
			s.node.Kill()
			s.node.Close()
			if !harness.KeepLogs {
				os.RemoveAll(s.node.Dir)
			}
		}
	}()
	for _, bin := range []string{o.etcd, o.rusd} {
		abs, err := filepath.Abs(bin)
		if err != nil {
			return 0, err
		}
		ns, err := harness.Cluster(harness.Opts{Bins: []string{abs}, Extra: extra, AdvPeer: advP, AdvClient: advC})
		if err != nil {
			return 0, err
		}
		s := &side{node: ns[0]}
		if err := s.node.Start(); err != nil {
			return 0, err
		}
		sides = append(sides, s)
	}
	for _, s := range sides {
		if err := s.node.WaitReady(20 * time.Second); err != nil {
			return 0, err
		}
		for i := 0; i < o.clients; i++ {
			s.conns = append(s.conns, s.node.Dial())
		}
	}
	waitClusterVersion(sides)
	g := newGen(seed, o)
	g.rev = 1
	extraCalls := newMore(seed, g)
	{
		ctx, c := harness.Ctx(5 * time.Second)
		st, err := pb.NewMaintenanceClient(sides[0].conns[0]).Status(ctx, &pb.StatusRequest{})
		c()
		if err != nil {
			return 0, err
		}
		extraCalls.member = st.Header.MemberId
	}
	known := newMeant()
	found := 0
	report := func(op int, a moreStep, client int, etcd, rusd answer) {
		found++
		as := ""
		if a.as != "" {
			as = " as " + a.as
		}
		fmt.Printf("\nDIFFERENCE seed %d, operation %d (%s%s, client %d)\n  request: %s\n  etcd:    %s\n  judged:  %s\n", seed, op, a.kind, as, client, text(a.req), etcd, rusd)
		cmd := fmt.Sprintf("  replay:  judge diff --seed %d --ops %d --etcd %s --rusd %s", seed, op+1, o.etcd, o.rusd)
		if o.exactLimit {
			cmd += " --exact-limit"
		}
		if !o.more {
			cmd += " --more=false"
		}
		if !o.grpcLimit {
			cmd += " --grpc-limit=false"
		}
		if o.ids {
			cmd += " --ids"
		}
		if sk := joinKeys(o.skip); sk != "" {
			cmd += " --skip " + sk
		}
		fmt.Println(cmd)
	}
	ask := func(a moreStep, client int) [2]answer {
		var out [2]answer
		if looksAtToken(a.kind) {
			for _, s := range sides {
				delete(s.tokens, a.as)
			}
		}
		done := make(chan int, 2)
		for i := range sides {
			go func(i int) {
				ctx, c := harness.Ctx(10 * time.Second)
				defer c()
				conn := sides[i].conns[client]
				token, err := "", error(nil)
				if extraCalls.authOn && a.as != "" {
					token, err = sides[i].token(ctx, conn, a.as, extraCalls.pw[a.as])
				} else if a.as != "" {
					token = sides[i].tokens[a.as]
				}
				if token != "" {
					ctx = metadata.AppendToOutgoingContext(ctx, "token", token)
				}
				var m proto.Message
				if err == nil {
					m, err = a.call(ctx, conn)
				}
				if err == nil {
					normal(m, o.ids)
					if !o.exactTies {
						settleTies(a.req, m)
						known.settleRole(a.req, m)
					}
				}
				out[i] = answer{m, err}
				done <- i
			}(i)
		}
		<-done
		<-done
		if status.Code(out[0].err) == codes.Unauthenticated {
			for _, s := range sides {
				delete(s.tokens, a.as)
			}
		}
		return out
	}
	// settled asks again for a while: a hash may meet a compaction under way, and etcd hashes what it
	// has committed, which is up to 100 ms old. So is what it tells about a user who is gone.
	settled := func(a moreStep, client int) [2]answer {
		r := ask(a, client)
		user := a.as
		if q, ok := a.req.(*pb.AuthenticateRequest); ok {
			user = q.Name
		}
		for i := 0; i < 20 && !same(r[0], r[1]) && (strings.HasPrefix(a.kind, "hash") || known.staleLogin(user, r)); i++ {
			time.Sleep(100 * time.Millisecond)
			r = ask(a, client)
		}
		return r
	}
	// asRoot is a context with root's token for one of the servers, from a login of its own: a token
	// that is kept may be void since root's password was changed.
	asRoot := func(i int) (context.Context, context.CancelFunc, error) {
		ctx, c := harness.Ctx(10 * time.Second)
		login, err := pb.NewAuthClient(sides[i].conns[0]).Authenticate(ctx, &pb.AuthenticateRequest{Name: "root", Password: extraCalls.pw["root"]})
		if err != nil {
			return ctx, c, fmt.Errorf("root's login: %w", err)
		}
		return metadata.AppendToOutgoingContext(ctx, "token", login.Token), c, nil
	}
	// withoutForeignLease has root make the request that rusd refuses its caller, once rusd has.
	withoutForeignLease := func(a *moreStep, client int) error {
		lease := putsOn(a.req)
		if lease == 0 || !extraCalls.authOn || a.as == "" || a.as == "?" || a.as == "root" {
			return nil
		}
		root, c, err := asRoot(0)
		defer c()
		if err != nil {
			return err
		}
		foreign, err := foreignLease(root, sides[0].conns[0], lease, a.as)
		if err != nil || !foreign {
			return err
		}
		ctx, c2 := harness.Ctx(10 * time.Second)
		defer c2()
		// A login of its own: the tokens that are kept must stay of one age on both sides.
		login, err := pb.NewAuthClient(sides[1].conns[client]).Authenticate(ctx, &pb.AuthenticateRequest{Name: a.as, Password: extraCalls.pw[a.as]})
		if err != nil {
			return nil // both refuse the login
		}
		err = deniedLease(metadata.AppendToOutgoingContext(ctx, "token", login.Token), sides[1].conns[client], *a)
		o.kindCounter["foreign lease"]++
		a.as = "root"
		return err
	}
	var first []moreStep
	if o.more {
		first = extraCalls.setup()
	}
	for op := 0; op < o.ops; op++ {
		var a moreStep
		client := op % o.clients
		switch {
		case len(first) > 0:
			a, first = first[0], first[1:]
		case o.more && extraCalls.p(0.25):
			a = extraCalls.draw()
		default:
			base := g.next()
			client = g.n(o.clients)
			if a = (moreStep{action: base}); o.more {
				var ok bool
				if a, ok = extraCalls.base(base); !ok {
					continue
				}
			}
		}
		if o.skip[a.kind] {
			continue
		}
		if err := withoutForeignLease(&a, client); err != nil {
			return found + 1, fmt.Errorf("operation %d (%s): %w", op, text(a.req), err)
		}
		r := settled(a, client)
		if a.done != nil {
			a.done(r[0])
		}
		if r[0].err == nil {
			known.saw(a.req)
		}
		o.kindCounter[a.kind]++
		if r[0].err == nil {
			o.okCounter[a.kind]++
		}
		if o.trace != nil {
			fmt.Fprintf(o.trace, "%d/%d %s %s\n  etcd:   %s\n  judged: %s\n", seed, op, a.kind, text(a.req), r[0], r[1])
		}
		if !same(r[0], r[1]) {
			report(op, a, client, r[0], r[1])
			for i, s := range sides {
				if !s.node.Alive() {
					return found, fmt.Errorf("server %d (%s) died at operation %d; its log ends:\n%s", i, s.node.Bin, op, s.node.LogTail(15))
				}
			}
			if found >= o.keepGoing {
				return found, nil
			}
		}
		if r[0].err == nil {
			if h := header(r[0].m); h != nil && h.Revision > g.rev {
				g.rev = h.Revision
			}
			if q, ok := a.action.req.(*pb.CompactionRequest); ok {
				g.compact = q.Revision
			}
		} else if !sides[0].node.Alive() || !sides[1].node.Alive() {
			return found, fmt.Errorf("a server died at operation %d on %s; etcd's log ends:\n%s\njudged's log ends:\n%s", op, text(a.req), sides[0].node.LogTail(15), sides[1].node.LogTail(15))
		}
	}
	// The end: everything there is, and the hash at every kind of revision.
	end := []action{{"range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}, nil}}
	for _, rev := range []int64{0, g.rev, g.compact, g.compact + 1, (g.compact + g.rev) / 2, g.compact - 1, g.rev + 1, g.rev - 1, -1} {
		end = append(end, action{"hashkv", &pb.HashKVRequest{Revision: rev}, nil})
	}
	if o.hash && len(extraCalls.pw) == 0 {
		end = append(end, action{"hash", &pb.HashRequest{}, nil})
	}
	for i := range end {
		a := end[i]
		switch q := a.req.(type) {
		case *pb.RangeRequest:
			a.call = func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
				return msg(pb.NewKVClient(c).Range(ctx, q))
			}
		case *pb.HashKVRequest:
			a.call = func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
				return msg(pb.NewMaintenanceClient(c).HashKV(ctx, q))
			}
		case *pb.HashRequest:
			a.call = func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
				return msg(pb.NewMaintenanceClient(c).Hash(ctx, q))
			}
		}
		last := moreStep{action: a}
		if extraCalls.authOn {
			last.as = "root"
		}
		if r := settled(last, 0); !same(r[0], r[1]) {
			report(o.ops-1, last, 0, r[0], r[1])
			break
		}
	}
	return found, nil
}

// waitClusterVersion gives both servers time to agree on the cluster's version,
// which etcd proposes right after it starts and some answers depend on.
func waitClusterVersion(sides []*side) {
	for _, s := range sides {
		for i := 0; i < 40; i++ {
			if strings.Contains(httpGet("http://"+s.node.Addr+"/version"), `"etcdcluster":"3.5`) {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func joinKeys(m map[string]bool) string {
	var out []string
	for k := range m {
		if k != "" {
			out = append(out, k)
		}
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}
