package main

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gogo/protobuf/proto"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

type connCall = func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error)

// tableCalls lists the calls: every RPC of every service, and those forms of it in which what is
// asked and what is allowed meet in another way.
func tableCalls() []tableCall {
	var t []tableCall
	add := func(name string, call connCall) { t = append(t, tableCall{name: name, call: call}) }
	addAfter := func(name string, call connCall, after func(context.Context, *grpc.ClientConn)) {
		t = append(t, tableCall{name, call, after})
	}
	// First, since other lines are compared with what it answers.
	add("Auth/UserList first", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewAuthClient(c).UserList(ctx, &pb.AuthUserListRequest{}))
	})
	add("KV/Range all, first", rangeCall(&pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}))
	kvCalls(add)
	txnCalls(add)
	watchCalls(add)
	leaseCalls(addAfter)
	clusterCalls(addAfter)
	authCalls(addAfter)
	lockCalls(addAfter)
	return t
}

func rangeCall(q *pb.RangeRequest) connCall {
	return func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewKVClient(c).Range(ctx, q))
	}
}

func putCall(q *pb.PutRequest) connCall {
	return func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewKVClient(c).Put(ctx, q))
	}
}

func deleteCall(q *pb.DeleteRangeRequest) connCall {
	return func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewKVClient(c).DeleteRange(ctx, q))
	}
}

func txnCall(q *pb.TxnRequest) connCall {
	return func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewKVClient(c).Txn(ctx, q))
	}
}

// span writes a key, or key..end; the end "\x00" is said as "up".
type span struct{ key, end string }

func (s span) String() string {
	switch {
	case s.end == "":
		return fmt.Sprintf("%q", s.key)
	case s.end == "\x00":
		return fmt.Sprintf("%q up", s.key)
	}
	return fmt.Sprintf("%q to %q", s.key, s.end)
}

func (s span) rangeEnd() []byte {
	if s.end == "" {
		return nil
	}
	return []byte(s.end)
}

// spans are the ways a request's range can lie to a permission's.
var spans = []span{
	{"one", ""}, {"ro", ""}, {"wo", ""}, {"secret", ""}, {"", ""}, {"w/a", ""}, {"w0", ""}, {"r1", ""}, {"r4", ""}, {"r5", ""}, {"r6", ""}, {"r7", ""}, {"z", ""}, {"zz", ""}, {"y", ""},
	{"w/", "w0"}, {"w/a", "w/b"}, {"w", "w0"}, {"w/", "x"}, {"r1", "r5"}, {"r2", "r4"}, {"r1", "r6"}, {"r3", "r7"}, {"r3", "r5"}, {"r0", "r5"},
	{"one", "\x00"}, {"one", "onf"}, {"one", "one\x00"}, {"ro", "\x00"}, {"z", "\x00"}, {"zz", "\x00"}, {"y", "\x00"}, {"z", "zz"}, {"\x00", "\x00"}, {"", "\x00"}, {"", "a"},
	{"w/z", "w/a"}, {"secret", "a"}, {"one", "one"}, {"secret", "\x00"},
}

func kvCalls(add func(string, connCall)) {
	for _, s := range spans {
		add("KV/Range "+s.String(), rangeCall(&pb.RangeRequest{Key: []byte(s.key), RangeEnd: s.rangeEnd()}))
	}
	for _, k := range []string{"one", "wo", "secret"} {
		b := []byte(k)
		add("KV/Range serializable "+k, rangeCall(&pb.RangeRequest{Key: b, Serializable: true}))
		add("KV/Range count "+k, rangeCall(&pb.RangeRequest{Key: b, CountOnly: true}))
		add("KV/Range keys "+k, rangeCall(&pb.RangeRequest{Key: b, KeysOnly: true}))
		add("KV/Range compacted "+k, rangeCall(&pb.RangeRequest{Key: b, Revision: 2}))
		add("KV/Range future "+k, rangeCall(&pb.RangeRequest{Key: b, Revision: 1 << 40}))
		add("KV/Range bad sort "+k, rangeCall(&pb.RangeRequest{Key: b, SortOrder: 7}))
		add("KV/Range future serializable "+k, rangeCall(&pb.RangeRequest{Key: b, Revision: 1 << 40, Serializable: true}))
	}
	for _, s := range spans {
		if s.end != "" {
			continue
		}
		b := []byte(s.key)
		add("KV/Put "+s.String(), putCall(&pb.PutRequest{Key: b, Value: []byte("x")}))
		add("KV/Put prev "+s.String(), putCall(&pb.PutRequest{Key: b, Value: []byte("x"), PrevKv: true}))
	}
	for _, k := range []string{"one", "w/a", "w/new", "wo", "secret"} {
		b := []byte(k)
		for _, id := range []int64{101, 102, 103, 104, 105, 999} {
			add(fmt.Sprintf("KV/Put %s lease %d", k, id), putCall(&pb.PutRequest{Key: b, Value: []byte("x"), Lease: id}))
		}
		add("KV/Put ignore value "+k, putCall(&pb.PutRequest{Key: b, IgnoreValue: true}))
		add("KV/Put ignore lease "+k, putCall(&pb.PutRequest{Key: b, Value: []byte("x"), IgnoreLease: true}))
		add("KV/Put ignore value, value given "+k, putCall(&pb.PutRequest{Key: b, Value: []byte("x"), IgnoreValue: true}))
		add("KV/Put too large "+k, putCall(&pb.PutRequest{Key: b, Value: make([]byte, 1_600_000)}))
	}
	for _, s := range spans {
		add("KV/DeleteRange "+s.String(), deleteCall(&pb.DeleteRangeRequest{Key: []byte(s.key), RangeEnd: s.rangeEnd()}))
		add("KV/DeleteRange prev "+s.String(), deleteCall(&pb.DeleteRangeRequest{Key: []byte(s.key), RangeEnd: s.rangeEnd(), PrevKv: true}))
	}
	for _, rev := range []int64{-1, 0, 1, 1 << 40} {
		add(fmt.Sprintf("KV/Compact %d", rev), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewKVClient(c).Compact(ctx, &pb.CompactionRequest{Revision: rev}))
		})
	}
}

func opRange(s span) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(s.key), RangeEnd: s.rangeEnd()}}}
}

func opPut(q *pb.PutRequest) *pb.RequestOp {
	if q.Value == nil && !q.IgnoreValue {
		q.Value = []byte("x")
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: q}}
}

func opDelete(s span, prev bool) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(s.key), RangeEnd: s.rangeEnd(), PrevKv: prev}}}
}

func opTxn(q *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: q}}
}

func compareOf(s span) *pb.Compare {
	return &pb.Compare{Key: []byte(s.key), RangeEnd: s.rangeEnd(), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER, TargetUnion: &pb.Compare_Version{Version: 0}}
}

func txnCalls(add func(string, connCall)) {
	add("KV/Txn empty", txnCall(&pb.TxnRequest{}))
	for _, s := range []span{{"one", ""}, {"wo", ""}, {"ro", ""}, {"secret", ""}, {"absent", ""}, {"w/", "w0"}, {"r1", "r6"}, {"one", "\x00"}, {"z", "\x00"}, {"\x00", "\x00"}, {"w/z", "w/a"}} {
		add("KV/Txn compare "+s.String(), txnCall(&pb.TxnRequest{Compare: []*pb.Compare{compareOf(s)}}))
		add("KV/Txn nested compare "+s.String(), txnCall(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Compare: []*pb.Compare{compareOf(s)}})}}))
	}
	ops := []struct {
		name string
		op   func() *pb.RequestOp
	}{
		{"range one", func() *pb.RequestOp { return opRange(span{"one", ""}) }},
		{"range wo", func() *pb.RequestOp { return opRange(span{"wo", ""}) }},
		{"range secret", func() *pb.RequestOp { return opRange(span{"secret", ""}) }},
		{"range w/ prefix", func() *pb.RequestOp { return opRange(span{"w/", "w0"}) }},
		{"range one up", func() *pb.RequestOp { return opRange(span{"one", "\x00"}) }},
		{"range r1 to r6", func() *pb.RequestOp { return opRange(span{"r1", "r6"}) }},
		{"range no key", func() *pb.RequestOp { return opRange(span{"", ""}) }},
		{"put one", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("one")}) }},
		{"put ro", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("ro")}) }},
		{"put wo", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("wo")}) }},
		{"put secret", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("secret")}) }},
		{"put prev wo", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("wo"), PrevKv: true}) }},
		{"put prev one", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("one"), PrevKv: true}) }},
		{"put one lease 101", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("one"), Lease: 101}) }},
		{"put one lease 102", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("one"), Lease: 102}) }},
		{"put w/a lease 103", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("w/a"), Lease: 103}) }},
		{"put w/a lease 104", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("w/a"), Lease: 104}) }},
		{"put w/a lease 105", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("w/a"), Lease: 105}) }},
		{"put w/a lease 999", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("w/a"), Lease: 999}) }},
		{"put ignore value wo", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("wo"), IgnoreValue: true}) }},
		{"put ignore lease secret", func() *pb.RequestOp { return opPut(&pb.PutRequest{Key: []byte("secret"), IgnoreLease: true}) }},
		{"delete one", func() *pb.RequestOp { return opDelete(span{"one", ""}, false) }},
		{"delete wo", func() *pb.RequestOp { return opDelete(span{"wo", ""}, false) }},
		{"delete prev wo", func() *pb.RequestOp { return opDelete(span{"wo", ""}, true) }},
		{"delete secret", func() *pb.RequestOp { return opDelete(span{"secret", ""}, false) }},
		{"delete r3 to r7", func() *pb.RequestOp { return opDelete(span{"r3", "r7"}, false) }},
		{"delete prev r3 to r7", func() *pb.RequestOp { return opDelete(span{"r3", "r7"}, true) }},
		{"delete prev r3 to r5", func() *pb.RequestOp { return opDelete(span{"r3", "r5"}, true) }},
		{"delete one up", func() *pb.RequestOp { return opDelete(span{"one", "\x00"}, false) }},
		{"nothing", func() *pb.RequestOp { return &pb.RequestOp{} }},
	}
	for _, o := range ops {
		one := func() []*pb.RequestOp { return []*pb.RequestOp{o.op()} }
		never := []*pb.Compare{compareOf(span{"one", ""})}
		never[0].Result = pb.Compare_LESS
		add("KV/Txn taken: "+o.name, txnCall(&pb.TxnRequest{Success: one()}))
		add("KV/Txn not taken: "+o.name, txnCall(&pb.TxnRequest{Failure: one()}))
		add("KV/Txn nested: "+o.name, txnCall(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Success: one()})}}))
		add("KV/Txn nested, not taken: "+o.name, txnCall(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Failure: one()})}}))
		add("KV/Txn nested in failure: "+o.name, txnCall(&pb.TxnRequest{Failure: []*pb.RequestOp{opTxn(&pb.TxnRequest{Success: one()})}}))
		add("KV/Txn nested twice: "+o.name, txnCall(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Success: one()})}})}}))
		add("KV/Txn nested, compare fails: "+o.name, txnCall(&pb.TxnRequest{Success: []*pb.RequestOp{opTxn(&pb.TxnRequest{Compare: never, Success: one()})}}))
	}
	many := &pb.TxnRequest{}
	for i := 0; i < 129; i++ {
		many.Success = append(many.Success, opRange(span{"secret", ""}))
	}
	add("KV/Txn 129 operations", txnCall(many))
	add("KV/Txn duplicate key", txnCall(&pb.TxnRequest{Success: []*pb.RequestOp{opPut(&pb.PutRequest{Key: []byte("secret")}), opPut(&pb.PutRequest{Key: []byte("secret")})}}))
	wide := func(inner int) *pb.TxnRequest {
		q := &pb.TxnRequest{}
		for i := 0; i < 3; i++ {
			n := &pb.TxnRequest{}
			for j := 0; j < inner; j++ {
				n.Success = append(n.Success, opRange(span{"one", ""}))
			}
			q.Success = append(q.Success, opTxn(n))
		}
		return q
	}
	add("KV/Txn 3 nested of 40", txnCall(wide(40)))
	add("KV/Txn 3 nested of 60", txnCall(wide(60)))
	add("KV/Txn 3 nested of 129", txnCall(wide(129)))
}

// watchFirst gives the first response to a request on a new watch stream.
func watchFirst(q *pb.WatchRequest) connCall {
	return func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := pb.NewWatchClient(c).Watch(ctx)
		if err != nil {
			return nil, err
		}
		if err := s.Send(q); err != nil {
			return nil, err
		}
		return msg(s.Recv())
	}
}

func watchCalls(add func(string, connCall)) {
	for _, s := range spans {
		add("Watch/create "+s.String(), watchFirst(createReq(&pb.WatchCreateRequest{Key: []byte(s.key), RangeEnd: s.rangeEnd()})))
	}
	for _, k := range []string{"one", "secret"} {
		add("Watch/create from compacted "+k, watchFirst(createReq(&pb.WatchCreateRequest{Key: []byte(k), StartRevision: 1})))
		add("Watch/create prev "+k, watchFirst(createReq(&pb.WatchCreateRequest{Key: []byte(k), PrevKv: true})))
		add("Watch/create with id "+k, watchFirst(createReq(&pb.WatchCreateRequest{Key: []byte(k), WatchId: 77})))
	}
	add("Watch/progress", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		return watchFirst(progressReq())(ctx, c)
	})
}

func leaseCalls(add func(string, connCall, func(context.Context, *grpc.ClientConn))) {
	grant := func(id, ttl int64) connCall {
		return func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewLeaseClient(c).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl}))
		}
	}
	gone := func(ctx context.Context, c *grpc.ClientConn) {
		pb.NewLeaseClient(c).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 200})
	}
	add("Lease/LeaseGrant 200", grant(200, 1000), gone)
	add("Lease/LeaseGrant 101, which exists", grant(101, 1000), nil)
	add("Lease/LeaseGrant 200 TTL 0", grant(200, 0), gone)
	add("Lease/LeaseGrant 200 huge TTL", grant(200, 9_000_000_001), gone)
	for _, id := range []int64{101, 102, 103, 104, 105, 999, 0} {
		add(fmt.Sprintf("Lease/LeaseRevoke %d", id), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewLeaseClient(c).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id}))
		}, nil)
		for _, keys := range []bool{false, true} {
			add(fmt.Sprintf("Lease/LeaseTimeToLive %d keys %v", id, keys), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
				r, err := pb.NewLeaseClient(c).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: keys})
				if err == nil && r.TTL > 0 {
					r.TTL = 1
				}
				return msg(r, err)
			}, nil)
		}
		add(fmt.Sprintf("Lease/LeaseKeepAlive %d", id), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := pb.NewLeaseClient(c).LeaseKeepAlive(ctx)
			if err != nil {
				return nil, err
			}
			if err := s.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
				return nil, err
			}
			return msg(s.Recv())
		}, nil)
	}
	add("Lease/LeaseLeases", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewLeaseClient(c).LeaseLeases(ctx, &pb.LeaseLeasesRequest{}))
	}, nil)
}

var learners atomic.Int64

func clusterCalls(add func(string, connCall, func(context.Context, *grpc.ClientConn))) {
	plain := func(name string, call connCall) { add(name, call, nil) }
	for _, lin := range []bool{true, false} {
		plain(fmt.Sprintf("Cluster/MemberList linearizable %v", lin), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewClusterClient(c).MemberList(ctx, &pb.MemberListRequest{Linearizable: lin}))
		})
	}
	add("Cluster/MemberAdd learner", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		// Another URL each time: the ID follows from it and from the second.
		url := fmt.Sprintf("http://127.0.0.1:%d", 1+learners.Add(1)%60_000)
		return msg(pb.NewClusterClient(c).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{url}, IsLearner: true}))
	}, func(ctx context.Context, c *grpc.ClientConn) {
		l, err := pb.NewClusterClient(c).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
		for i := 0; err == nil && i < len(l.Members); i++ {
			if l.Members[i].IsLearner {
				pb.NewClusterClient(c).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: l.Members[i].ID})
			}
		}
	})
	plain("Cluster/MemberAdd bad URL", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewClusterClient(c).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"nonsense"}}))
	})
	plain("Cluster/MemberRemove unknown", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewClusterClient(c).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 12}))
	})
	plain("Cluster/MemberUpdate unknown", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewClusterClient(c).MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 12, PeerURLs: []string{"http://127.0.0.1:2"}}))
	})
	plain("Cluster/MemberPromote unknown", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewClusterClient(c).MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 12}))
	})
	disarm := func(ctx context.Context, c *grpc.ClientConn) {
		for _, a := range []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT} {
			pb.NewMaintenanceClient(c).Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: a, MemberID: 77})
		}
	}
	for _, a := range []*pb.AlarmRequest{
		{Action: pb.AlarmRequest_GET}, {Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 77},
		{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: 77},
		{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE, MemberID: 77},
	} {
		name := strings.TrimSpace("Maintenance/Alarm " + a.Action.String() + " " + a.Alarm.String())
		add(name, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).Alarm(ctx, a))
		}, disarm)
	}
	plain("Maintenance/Status", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewMaintenanceClient(c).Status(ctx, &pb.StatusRequest{}))
	})
	plain("Maintenance/Defragment", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewMaintenanceClient(c).Defragment(ctx, &pb.DefragmentRequest{}))
	})
	plain("Maintenance/Hash", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewMaintenanceClient(c).Hash(ctx, &pb.HashRequest{}))
	})
	for _, rev := range []int64{0, 1 << 40} {
		plain(fmt.Sprintf("Maintenance/HashKV %d", rev), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).HashKV(ctx, &pb.HashKVRequest{Revision: rev}))
		})
	}
	plain("Maintenance/Snapshot", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s, err := pb.NewMaintenanceClient(c).Snapshot(ctx, &pb.SnapshotRequest{})
		if err != nil {
			return nil, err
		}
		return msg(s.Recv())
	})
	plain("Maintenance/MoveLeader unknown", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewMaintenanceClient(c).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 12}))
	})
	plain("Maintenance/Downgrade validate", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewMaintenanceClient(c).Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: "3.2.0"}))
	})
	plain("Maintenance/Downgrade cancel", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewMaintenanceClient(c).Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL}))
	})
	plain("health/Check", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		r, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{})
		if err != nil {
			return nil, err
		}
		return &pb.AuthenticateResponse{Token: r.Status.String()}, nil
	})
}

func authCalls(add func(string, connCall, func(context.Context, *grpc.ClientConn))) {
	a := func(name string, call func(ctx context.Context, c pb.AuthClient) (proto.Message, error)) {
		add("Auth/"+name, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return call(ctx, pb.NewAuthClient(c))
		}, restoreAuth)
	}
	a("AuthStatus", func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
		return msg(c.AuthStatus(ctx, &pb.AuthStatusRequest{}))
	})
	a("AuthEnable", func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
		return msg(c.AuthEnable(ctx, &pb.AuthEnableRequest{}))
	})
	a("AuthDisable", func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
		return msg(c.AuthDisable(ctx, &pb.AuthDisableRequest{}))
	})
	for _, q := range []pb.AuthenticateRequest{
		{Name: "alice", Password: "alice-pw"}, {Name: "alice", Password: "wrong"}, {Name: "alice"}, {Name: "stranger", Password: "x"},
		{Password: "x"}, {}, {Name: "nopw"}, {Name: "nopw", Password: "x"}, {Name: strings.Repeat("u", 2000), Password: strings.Repeat("p", 2000)},
	} {
		a(fmt.Sprintf("Authenticate %.20q %.20q", q.Name, q.Password), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.Authenticate(ctx, &q))
		})
	}
	for _, q := range []pb.AuthUserAddRequest{
		{Name: "tmp", Password: "p"}, {Name: "tmp"}, {Name: "tmp", Options: &authpb.UserAddOptions{NoPassword: true}},
		{Name: "tmp", Password: "p", Options: &authpb.UserAddOptions{NoPassword: true}}, {Name: "", Password: "p"}, {Name: "alice", Password: "p"},
		{Name: "tmp", Password: strings.Repeat("p", 73)}, {Name: "tmp", HashedPassword: "bm90IGEgaGFzaA=="}, {Name: "tmp", HashedPassword: "%%%"},
	} {
		o := ""
		if q.Options != nil {
			o = " without password"
		}
		if q.HashedPassword != "" {
			o += " hashed " + q.HashedPassword
		}
		a(fmt.Sprintf("UserAdd %q %.10q%s", q.Name, q.Password, o), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.UserAdd(ctx, &q))
		})
	}
	// etcd itself ends with a name that is too long for a key of bbolt (32,768 bytes).
	long := strings.Repeat("n", 30_000)
	add("Auth/UserAdd with a name of 30 kB", func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewAuthClient(c).UserAdd(ctx, &pb.AuthUserAddRequest{Name: long, Password: "p"}))
	}, func(ctx context.Context, c *grpc.ClientConn) {
		pb.NewAuthClient(c).UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: long})
	})
	a("Authenticate with a name of 1 MB", func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
		name := strings.Repeat("n", 1_000_000)
		return msg(c.Authenticate(ctx, &pb.AuthenticateRequest{Name: name, Password: name}))
	})
	for _, n := range []string{"root", "alice", "carol", "nopw", "stranger", ""} {
		a(fmt.Sprintf("UserGet %q", n), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.UserGet(ctx, &pb.AuthUserGetRequest{Name: n}))
		})
		if n != "alice" { // a token of hers is used by the callers that are no good
			a(fmt.Sprintf("UserDelete %q", n), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
				return msg(c.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: n}))
			})
		}
		if n != "root" {
			a(fmt.Sprintf("UserChangePassword %q", n), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
				return msg(c.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: n, Password: n + "-pw"}))
			})
		}
		for _, r := range []string{"spare", "root", "plain", "none", ""} {
			a(fmt.Sprintf("UserGrantRole %q %q", n, r), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
				return msg(c.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: n, Role: r}))
			})
			a(fmt.Sprintf("UserRevokeRole %q %q", n, r), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
				return msg(c.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: n, Role: r}))
			})
		}
	}
	a("UserList", func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
		return msg(c.UserList(ctx, &pb.AuthUserListRequest{}))
	})
	for _, r := range []string{"tmp", "", "plain", "root"} {
		a(fmt.Sprintf("RoleAdd %q", r), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: r}))
		})
	}
	for _, r := range []string{"plain", "one", "root", "spare", "none", ""} {
		a(fmt.Sprintf("RoleGet %q", r), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: r}))
		})
		a(fmt.Sprintf("RoleDelete %q", r), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: r}))
		})
	}
	a("RoleList", func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
		return msg(c.RoleList(ctx, &pb.AuthRoleListRequest{}))
	})
	for _, g := range []struct {
		role string
		perm *authpb.Permission
	}{
		{"spare", grantKey(authpb.READ, "k", "")}, {"spare", grantKey(authpb.READWRITE, "k", "l")}, {"spare", grantKey(authpb.WRITE, "k", "\x00")},
		{"spare", grantKey(authpb.READ, "k", "a")}, {"spare", grantKey(authpb.READ, "k", "k")}, {"spare", grantKey(authpb.READ, "", "")},
		{"spare", grantKey(authpb.READ, "", "\x00")}, {"spare", grantKey(authpb.READ, "\x00", "\x00")}, {"spare", nil}, {"spare", &authpb.Permission{}},
		{"spare", grantKey(authpb.Permission_Type(9), "k", "")}, {"none", grantKey(authpb.READ, "k", "")}, {"", grantKey(authpb.READ, "k", "")},
		{"root", grantKey(authpb.READ, "k", "")}, {"plain", grantKey(authpb.READWRITE, "one", "")},
	} {
		a(fmt.Sprintf("RoleGrantPermission %q %v", g.role, g.perm), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: g.role, Perm: g.perm}))
		})
	}
	for _, g := range []struct{ role, key, end string }{
		{"plain", "one", ""}, {"plain", "w/", "w0"}, {"plain", "w/", ""}, {"plain", "z", "\x00"}, {"plain", "absent", ""}, {"none", "k", ""}, {"", "k", ""}, {"root", "k", ""},
	} {
		a(fmt.Sprintf("RoleRevokePermission %q %q %q", g.role, g.key, g.end), func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: g.role, Key: []byte(g.key), RangeEnd: []byte(g.end)}))
		})
	}
}

func lockCalls(add func(string, connCall, func(context.Context, *grpc.ClientConn))) {
	plain := func(name string, call connCall) { add(name, call, nil) }
	for _, name := range []string{"secret/lock", "w/lock", ""} {
		for _, lease := range []int64{0, 103, 102, 999} {
			plain(fmt.Sprintf("Lock/Lock %q lease %d", name, lease), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
				return invoke[lockResponse](ctx, c, methodLock, &lockRequest{Name: []byte(name), Lease: lease})
			})
		}
	}
	for _, key := range []string{"w/a", "secret", "absent", ""} {
		plain(fmt.Sprintf("Lock/Unlock %q", key), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[headerResponse](ctx, c, methodUnlock, &unlockRequest{Key: []byte(key)})
		})
	}
	for _, name := range []string{"w/elect", "secret/elect", ""} {
		for _, lease := range []int64{0, 103, 999} {
			plain(fmt.Sprintf("Election/Campaign %q lease %d", name, lease), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
				return invoke[campaignResponse](ctx, c, methodCampaign, &campaignRequest{Name: []byte(name), Lease: lease, Value: []byte("me")})
			})
		}
	}
	for _, name := range []string{"w/elect2", "w/nobody", "secret"} {
		plain(fmt.Sprintf("Election/Leader %q", name), func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[leaderResponse](ctx, c, methodLeader, &leaderRequest{Name: []byte(name)})
		})
	}
	plain(`Election/Observe "w/elect2"`, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return observeOnce(ctx, c, &leaderRequest{Name: []byte("w/elect2")})
	})
	for _, k := range []*leaderMsg{nil, {}, {Name: []byte("w/elect2"), Key: []byte("w/elect2/67"), Rev: 1, Lease: 103}, {Name: []byte("secret"), Key: []byte("secret"), Rev: 1, Lease: 102}} {
		name := "none"
		if k != nil {
			name = fmt.Sprintf("%q", k.Key)
		}
		plain("Election/Proclaim "+name, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[headerResponse](ctx, c, methodProclaim, &proclaimRequest{Leader: k, Value: []byte("now")})
		})
		plain("Election/Resign "+name, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[headerResponse](ctx, c, methodResign, &resignRequest{Leader: k})
		})
	}
}
