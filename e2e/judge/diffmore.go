package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"sort"

	"github.com/gogo/protobuf/proto"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// more draws what a history holds beside keys and leases: users, roles, permissions and auth on and
// off, alarms, locks, elections and maintenance, and says as whom each request is sent. It has random
// numbers of its own: with --more=false a seed is the history of keys and leases alone that it was
// before there was more.
type more struct {
	r *rand.Rand
	g *gen
	// What the reference has answered so far.
	authOn  bool
	pw      map[string]string
	alarm   *pb.AlarmRequest
	leaders []*leaderMsg
	locks   [][]byte
	granted []*pb.AuthRoleRevokePermissionRequest
	serial  int
	member  uint64 // the only one, of both servers
}

var (
	moreUsers = []string{"u1", "u2", "u3"}
	moreRoles = []string{"r1", "r2", "r3"}
	morePws   = []string{"p1", "p2", "p3"}
)

func newMore(seed int64, g *gen) *more {
	return &more{r: rand.New(rand.NewSource(seed ^ 0x6d6f7265)), g: g, pw: map[string]string{}}
}

func (m *more) n(n int) int             { return m.r.Intn(n) }
func (m *more) p(pc float64) bool       { return m.r.Float64() < pc }
func (m *more) of(list []string) string { return list[m.n(len(list))] }

// user is mostly one of three; root and names that no one has come, too.
func (m *more) user() string {
	switch m.n(20) {
	case 0:
		return ""
	case 1:
		return "stranger"
	case 2, 3:
		if m.authOn { // nobody can take root's rights while auth is on
			return "root"
		}
	}
	return m.of(moreUsers)
}

func (m *more) role() string {
	switch m.n(24) {
	case 0:
		return ""
	case 1:
		return "none"
	case 2:
		if m.authOn {
			return "root"
		}
	}
	return m.of(moreRoles)
}

func (m *more) key() []byte { return m.g.keys[m.n(len(m.g.keys)-2)] }

func (m *more) end(key []byte) []byte {
	switch m.n(6) {
	case 0:
		return []byte{0}
	case 1, 2:
		return prefixEnd(key)
	case 3:
		return m.key()
	}
	return nil
}

// caller draws as whom a request is sent: "" is nobody.
func (m *more) caller() string {
	if !m.authOn {
		if m.p(0.03) { // a token that is left over
			return m.of(moreUsers)
		}
		return ""
	}
	switch x := m.n(100); {
	case x < 60:
		return "root"
	case x < 94:
		return m.of(moreUsers)
	case x < 97:
		return "?" // a token that nobody was given
	}
	return ""
}

// tame takes out of a request of the key history what rusd checks and etcd 3.5.17 does not
// (allowedDifferences lists it): the two would not be in the same state any more. False: leave the
// request out.
func (m *more) tame(a action, as string) bool {
	if q, ok := a.req.(*pb.TxnRequest); ok && m.alarm != nil { // nested puts go past etcd's quota
		withoutNested(q)
	}
	if !m.authOn || as == "root" {
		return true
	}
	if m.alarm != nil { // under an alarm etcd asks nobody for permission
		return false
	}
	forward := func(key, end []byte) bool {
		return len(end) == 0 || bytes.Equal(end, []byte{0}) || bytes.Compare(key, end) < 0
	}
	switch q := a.req.(type) {
	case *pb.TxnRequest:
		for _, c := range q.Compare {
			if !forward(c.Key, c.RangeEnd) {
				c.RangeEnd = nil
			}
		}
		for _, ops := range [][]*pb.RequestOp{q.Success, q.Failure} {
			for _, o := range ops {
				if p := o.GetRequestPut(); p != nil {
					p.Lease, p.PrevKv = 0, false
				}
				if r := o.GetRequestRange(); r != nil && !forward(r.Key, r.RangeEnd) {
					r.RangeEnd = nil
				}
				if d := o.GetRequestDeleteRange(); d != nil && !forward(d.Key, d.RangeEnd) {
					d.RangeEnd = nil
				}
			}
		}
		withoutNested(q)
		return true
	case *pb.RangeRequest:
		return forward(q.Key, q.RangeEnd)
	case *pb.DeleteRangeRequest:
		return forward(q.Key, q.RangeEnd)
	case *pb.PutRequest, *pb.StatusRequest, *pb.HashKVRequest:
		return true
	}
	return false
}

// looksAtToken tells the calls that refuse a bad token in rusd and do not look at it in etcd: they
// are sent with a good one, as root.
func looksAtToken(kind string) bool {
	switch kind {
	case "timetolive", "leases", "keepalive", "keepalives", "memberlist", "moveleader":
		return true
	}
	return false
}

// withoutNested puts a range in the place of each nested transaction.
func withoutNested(q *pb.TxnRequest) {
	for _, ops := range [][]*pb.RequestOp{q.Success, q.Failure} {
		for i, o := range ops {
			if o.GetRequestTxn() != nil {
				ops[i] = opRange(span{"a", ""})
			}
		}
	}
}

// moreStep is one drawn request, how it is sent, and what the reference's answer changes here.
type moreStep struct {
	action
	as   string
	done func(reference answer)
}

func authCall(kind string, q proto.Message, call func(context.Context, pb.AuthClient) (proto.Message, error)) action {
	return action{kind, q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return call(ctx, pb.NewAuthClient(c))
	}}
}

// base sends a request of the key history.
func (m *more) base(a action) (moreStep, bool) {
	s := moreStep{action: a, as: m.caller()}
	return s, m.tame(a, s.as)
}

// setup makes root, without whom auth cannot be enabled; half of the seeds have it from the start.
func (m *more) setup() []moreStep {
	if m.p(0.4) {
		return nil
	}
	var steps []moreStep
	add := func(a action) { steps = append(steps, moreStep{action: a}) }
	user := &pb.AuthUserAddRequest{Name: "root", Password: "p1"}
	m.pw["root"] = "p1"
	add(authCall("useradd", user, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.UserAdd(ctx, user)) }))
	role := &pb.AuthRoleAddRequest{Name: "root"}
	add(authCall("roleadd", role, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.RoleAdd(ctx, role)) }))
	grant := &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}
	add(authCall("usergrant", grant, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
		return msg(c.UserGrantRole(ctx, grant))
	}))
	for i := 0; i < 12; i++ {
		steps = append(steps, m.auth(i%4))
	}
	return steps
}

func (m *more) draw() moreStep {
	if m.alarm != nil && m.p(0.3) {
		return m.alarms()
	}
	switch x := m.n(100); {
	case x < 55:
		return m.auth(m.n(17))
	case x < 63:
		return m.alarms()
	case x < 85:
		return m.sessions()
	}
	return m.maintenance()
}

// admin is root, mostly, for calls that others are denied anyway.
func (m *more) admin() string {
	if m.authOn && (m.alarm != nil || m.p(0.8)) {
		return "root"
	}
	return m.caller()
}

func (m *more) auth(kind int) moreStep {
	s := moreStep{as: m.admin()}
	switch kind {
	case 0:
		q := &pb.AuthUserAddRequest{Name: m.user(), Password: m.of(morePws)}
		if m.p(0.1) {
			q.Options = &authpb.UserAddOptions{NoPassword: true}
		}
		if m.p(0.05) {
			q.Password = ""
		}
		s.action = authCall("useradd", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.UserAdd(ctx, q)) })
		s.done = func(r answer) {
			if r.err == nil {
				m.pw[q.Name] = q.Password
			}
		}
	case 1:
		q := &pb.AuthRoleAddRequest{Name: m.role()}
		s.action = authCall("roleadd", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.RoleAdd(ctx, q)) })
	case 2, 3, 4:
		q := &pb.AuthRoleGrantPermissionRequest{Name: m.role(), Perm: &authpb.Permission{PermType: authpb.Permission_Type(m.n(3)), Key: m.key()}}
		q.Perm.RangeEnd = m.end(q.Perm.Key)
		if m.p(0.03) {
			q.Perm.Key = nil
		}
		if m.p(0.03) {
			q.Perm = nil
		}
		s.action = authCall("rolegrant", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.RoleGrantPermission(ctx, q))
		})
		s.done = func(r answer) {
			if r.err == nil {
				m.granted = append(m.granted, &pb.AuthRoleRevokePermissionRequest{Role: q.Name, Key: q.Perm.Key, RangeEnd: q.Perm.RangeEnd})
			}
		}
	case 5, 6:
		q := &pb.AuthUserGrantRoleRequest{User: m.user(), Role: m.role()}
		s.action = authCall("usergrant", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.UserGrantRole(ctx, q)) })
	case 7:
		q := &pb.AuthUserRevokeRoleRequest{Name: m.user(), Role: m.role()}
		s.action = authCall("userrevoke", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.UserRevokeRole(ctx, q))
		})
	case 8:
		q := &pb.AuthRoleRevokePermissionRequest{Role: m.role(), Key: m.key()}
		q.RangeEnd = m.end(q.Key)
		if len(m.granted) > 0 && m.p(0.7) {
			q = m.granted[m.n(len(m.granted))]
		}
		s.action = authCall("rolerevoke", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.RoleRevokePermission(ctx, q))
		})
	case 9:
		q := &pb.AuthUserGetRequest{Name: m.user()}
		s.action = authCall("userget", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.UserGet(ctx, q)) })
	case 10:
		q := &pb.AuthRoleGetRequest{Role: m.role()}
		s.action = authCall("roleget", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.RoleGet(ctx, q)) })
	case 11:
		if m.p(0.5) {
			q := &pb.AuthUserListRequest{}
			s.action = authCall("userlist", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.UserList(ctx, q)) })
		} else {
			q := &pb.AuthRoleListRequest{}
			s.action = authCall("rolelist", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.RoleList(ctx, q)) })
		}
	case 12:
		q := &pb.AuthStatusRequest{}
		s.action = authCall("authstatus", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.AuthStatus(ctx, q)) })
	case 13:
		if m.authOn && m.p(0.4) {
			q := &pb.AuthDisableRequest{}
			s.action = authCall("authdisable", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.AuthDisable(ctx, q)) })
			s.done = func(r answer) { m.authOn = m.authOn && r.err != nil }
		} else {
			q := &pb.AuthEnableRequest{}
			s.action = authCall("authenable", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.AuthEnable(ctx, q)) })
			s.done = func(r answer) { m.authOn = m.authOn || r.err == nil }
		}
	case 14:
		q := &pb.AuthenticateRequest{Name: m.user(), Password: m.of(morePws)}
		if m.p(0.5) {
			q.Password = m.pw[q.Name]
		}
		s.action = authCall("authenticate", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.Authenticate(ctx, q)) })
	case 15:
		q := &pb.AuthUserChangePasswordRequest{Name: m.user(), Password: m.of(morePws)}
		s.action = authCall("userpassword", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) {
			return msg(c.UserChangePassword(ctx, q))
		})
		s.done = func(r answer) {
			if r.err == nil {
				m.pw[q.Name] = q.Password
			}
		}
	default:
		if m.p(0.5) {
			q := &pb.AuthUserDeleteRequest{Name: m.user()}
			s.action = authCall("userdelete", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.UserDelete(ctx, q)) })
		} else {
			q := &pb.AuthRoleDeleteRequest{Role: m.role()}
			s.action = authCall("roledelete", q, func(ctx context.Context, c pb.AuthClient) (proto.Message, error) { return msg(c.RoleDelete(ctx, q)) })
		}
	}
	return s
}

// alarms raises one kind at a time: which of two wins is not settled in etcd.
func (m *more) alarms() moreStep {
	q := &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: pb.AlarmType(m.n(3)), MemberID: []uint64{0, 77, 1 << 63}[m.n(3)]}
	switch {
	case m.alarm == nil && m.p(0.3):
		q.Action, q.Alarm = pb.AlarmRequest_ACTIVATE, pb.AlarmType(1+m.n(2))
	case m.alarm != nil && m.p(0.6):
		*q = *m.alarm
		q.Action = pb.AlarmRequest_DEACTIVATE
	case m.p(0.3):
		q.Action = pb.AlarmRequest_DEACTIVATE
	}
	as := ""
	if m.authOn {
		as = "root"
	}
	a := action{"alarm", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
		return msg(pb.NewMaintenanceClient(c).Alarm(ctx, q))
	}}
	return moreStep{a, as, func(r answer) {
		switch {
		case r.err != nil:
		case q.Action == pb.AlarmRequest_ACTIVATE:
			m.alarm = q
		case q.Action == pb.AlarmRequest_DEACTIVATE && m.alarm != nil && q.Alarm == m.alarm.Alarm && q.MemberID == m.alarm.MemberID:
			m.alarm = nil
		}
	}}
}

// sessions draws locks and elections. Nobody waits: each name is used by one holder only.
func (m *more) sessions() moreStep {
	s := moreStep{as: m.admin()}
	m.serial++
	lease := int64(1 + m.n(10))
	switch m.n(10) {
	case 0, 1:
		q := &lockRequest{Name: []byte(fmt.Sprintf("lk/%d", m.serial)), Lease: lease}
		s.action = action{"lock", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[lockResponse](ctx, c, methodLock, q)
		}}
		s.done = func(r answer) {
			if l, ok := r.m.(*lockResponse); ok && r.err == nil {
				m.locks = append(m.locks, l.Key)
			}
		}
	case 2:
		q := &unlockRequest{Key: m.key()}
		if len(m.locks) > 0 && m.p(0.8) {
			q.Key = m.locks[m.n(len(m.locks))]
		}
		if m.p(0.05) {
			q.Key = nil
		}
		s.action = action{"unlock", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[headerResponse](ctx, c, methodUnlock, q)
		}}
	case 3:
		q := &lockRequest{Name: []byte(fmt.Sprintf("lk/%d", m.serial)), Lease: lease}
		s.action = action{"lock+unlock", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			r, err := invoke[lockResponse](ctx, c, methodLock, q)
			if err != nil {
				return nil, err
			}
			return invoke[headerResponse](ctx, c, methodUnlock, &unlockRequest{Key: r.(*lockResponse).Key})
		}}
	case 4, 5:
		q := &campaignRequest{Name: []byte(fmt.Sprintf("el/%d", m.serial)), Lease: lease, Value: []byte(fmt.Sprint("v", m.n(5)))}
		observe := m.p(0.5)
		s.action = action{"campaign", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			r, err := invoke[campaignResponse](ctx, c, methodCampaign, q)
			if err != nil || !observe {
				return r, err
			}
			return observeOnce(ctx, c, &leaderRequest{Name: q.Name})
		}}
		s.done = func(r answer) {
			switch l := r.m.(type) {
			case *campaignResponse:
				m.leaders = append(m.leaders, l.Leader)
			case *leaderResponse:
				m.leaders = append(m.leaders, &leaderMsg{Name: q.Name, Key: l.Kv.Key, Rev: l.Kv.CreateRevision, Lease: lease})
			}
		}
	case 6:
		q := &leaderRequest{Name: m.leader().Name}
		s.action = action{"leader", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[leaderResponse](ctx, c, methodLeader, q)
		}}
	case 7, 8:
		q := &proclaimRequest{Leader: m.leader(), Value: []byte(fmt.Sprint("w", m.n(5)))}
		if m.p(0.05) {
			q.Leader = nil
		}
		s.action = action{"proclaim", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[headerResponse](ctx, c, methodProclaim, q)
		}}
	default:
		q := &resignRequest{Leader: m.leader()}
		s.action = action{"resign", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return invoke[headerResponse](ctx, c, methodResign, q)
		}}
	}
	return s
}

// leader is one that has campaigned, mostly as it was answered.
func (m *more) leader() *leaderMsg {
	if len(m.leaders) == 0 || m.p(0.05) {
		return &leaderMsg{Name: []byte("el/nobody"), Key: []byte("el/nobody/1"), Rev: 2, Lease: 1}
	}
	l := *m.leaders[m.n(len(m.leaders))]
	if m.p(0.1) {
		l.Rev += int64(m.n(3)) - 1
	}
	return &l
}

func (m *more) maintenance() moreStep {
	s := moreStep{as: m.admin()}
	switch m.n(6) {
	case 0:
		q := &pb.DefragmentRequest{}
		s.action = action{"defragment", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).Defragment(ctx, q))
		}}
	case 1:
		if m.authOn { // others are refused in rusd
			s.as = "root"
		}
		q := &pb.MoveLeaderRequest{TargetID: []uint64{0, 12, m.member}[m.n(3)]}
		s.action = action{"moveleader", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).MoveLeader(ctx, q))
		}}
	case 2:
		q := &pb.MemberListRequest{Linearizable: m.p(0.5)}
		if m.authOn {
			s.as = "root"
		}
		s.action = action{"memberlist", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewClusterClient(c).MemberList(ctx, q))
		}}
	case 3:
		q := &pb.StatusRequest{}
		s.action = action{"status", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).Status(ctx, q))
		}}
	case 4:
		q := &pb.HashKVRequest{Revision: m.g.rev - int64(m.n(50))}
		s.action = action{"hashkv", q, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			return msg(pb.NewMaintenanceClient(c).HashKV(ctx, q))
		}}
	default: // several renewals on one stream
		var ids []int64
		for i := 0; i < 3; i++ {
			ids = append(ids, int64(m.n(12)))
		}
		if m.authOn {
			s.as = "root"
		}
		s.action = action{"keepalives", &pb.LeaseKeepAliveRequest{ID: ids[0]}, func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error) {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := pb.NewLeaseClient(c).LeaseKeepAlive(ctx)
			if err != nil {
				return nil, err
			}
			all := &pb.LeaseLeasesResponse{} // each answer as a lease, the TTL beside the ID
			for _, id := range ids {
				if err := s.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
					return nil, err
				}
				r, err := s.Recv()
				if err != nil {
					return nil, err
				}
				all.Leases = append(all.Leases, &pb.LeaseStatus{ID: r.ID}, &pb.LeaseStatus{ID: r.TTL})
			}
			return all, nil
		}}
	}
	return s
}

// token gives what a request is sent with: a token kept from an earlier login, or a new one. A login
// that fails is the request's answer.
func (s *side) token(ctx context.Context, conn *grpc.ClientConn, user, password string) (string, error) {
	if user == "?" {
		return "nobodys.1", nil
	}
	if t, ok := s.tokens[user]; ok {
		return t, nil
	}
	r, err := pb.NewAuthClient(conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: password})
	if err != nil {
		return "", err
	}
	if s.tokens == nil {
		s.tokens = map[string]string{}
	}
	s.tokens[user] = r.Token
	return r.Token, nil
}

// normalMore makes the answers of these calls comparable.
func normalMore(m proto.Message) {
	switch r := m.(type) {
	case *pb.AuthenticateResponse:
		if r.Token != "" {
			r.Token = "some"
		}
	case *pb.AlarmResponse:
		sort.Slice(r.Alarms, func(i, j int) bool {
			a, b := r.Alarms[i], r.Alarms[j]
			return a.MemberID < b.MemberID || a.MemberID == b.MemberID && a.Alarm < b.Alarm
		})
	}
}
