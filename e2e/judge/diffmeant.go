package main

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"rusd/judge/harness"
)

// What COMPAT.md names and random histories run into. Each of these holds for one situation, which is
// found out from what the reference has answered; anything else that differs is red.
//
//   - gone: for a moment after a user without a password was deleted, etcd's read buffer still has the
//     user (its search reads one entry past the end), so that a login is refused for another reason.
//   - crowded: roles that have had more than 12 permissions, where Go's sort leaves the order of those
//     of one key open.
//   - foreignLease: a lock, campaign or proclamation puts a key on a lease, and rusd asks for the
//     permission to write all that hangs on it.
type meant struct {
	passwordless map[string]bool            // users that are there
	gone         map[string]bool            // passwordless ones that were deleted
	perms        map[string]map[string]bool // of each role, by key and end
	crowded      map[string]bool
}

func newMeant() meant {
	return meant{map[string]bool{}, map[string]bool{}, map[string]map[string]bool{}, map[string]bool{}}
}

// saw takes note of a request that the reference has granted.
func (m *meant) saw(req any) {
	switch q := req.(type) {
	case *pb.AuthUserAddRequest:
		delete(m.gone, q.Name)
		m.passwordless[q.Name] = q.Options != nil && q.Options.NoPassword
	case *pb.AuthUserDeleteRequest:
		m.gone[q.Name] = m.passwordless[q.Name]
		delete(m.passwordless, q.Name)
	case *pb.AuthRoleGrantPermissionRequest:
		if m.perms[q.Name] == nil {
			m.perms[q.Name] = map[string]bool{}
		}
		m.perms[q.Name][fmt.Sprintf("%q %q", q.Perm.Key, q.Perm.RangeEnd)] = true
		if len(m.perms[q.Name]) > 12 {
			m.crowded[q.Name] = true
		}
	case *pb.AuthRoleRevokePermissionRequest:
		delete(m.perms[q.Role], fmt.Sprintf("%q %q", q.Key, q.RangeEnd))
	case *pb.AuthRoleDeleteRequest:
		delete(m.perms, q.Role)
		delete(m.crowded, q.Role)
	}
}

const (
	refusedPasswordless = `Unknown "auth: authentication failed, password was given for no password user"`
	refusedLogin        = `InvalidArgument "etcdserver: authentication failed, invalid user ID or password"`
)

// staleLogin: the two logins differ in just the way that etcd's read buffer makes them. It does so
// until etcd commits, within 100 ms: who asks again must then see both agree.
func (m *meant) staleLogin(user string, r [2]answer) bool {
	return m.gone[user] && r[0].String() == refusedPasswordless && r[1].String() == refusedLogin
}

// settleRole puts the permissions of one key in order, in the answer about a crowded role.
func (m *meant) settleRole(req, reply any) {
	q, ok := req.(*pb.AuthRoleGetRequest)
	if !ok || !m.crowded[q.Role] {
		return
	}
	if r, ok := reply.(*pb.AuthRoleGetResponse); ok {
		for from := 0; from < len(r.Perm); {
			to := from + 1
			for to < len(r.Perm) && bytes.Equal(r.Perm[to].Key, r.Perm[from].Key) {
				to++
			}
			tied := r.Perm[from:to]
			sort.Slice(tied, func(i, j int) bool { return bytes.Compare(tied[i].RangeEnd, tied[j].RangeEnd) < 0 })
			from = to
		}
	}
}

// putsOn gives the lease that a lock or an election puts a key on, 0 for any other request.
func putsOn(req any) int64 {
	switch q := req.(type) {
	case *lockRequest:
		return q.Lease
	case *campaignRequest:
		return q.Lease
	case *proclaimRequest:
		if q.Leader != nil {
			return q.Leader.Lease
		}
	}
	return 0
}

// foreignLease tells whether a key hangs on the lease that this user may not write: root's view of the
// reference, through a context that has root's token.
func foreignLease(root context.Context, c *grpc.ClientConn, lease int64, user string) (bool, error) {
	l, err := pb.NewLeaseClient(c).LeaseTimeToLive(root, &pb.LeaseTimeToLiveRequest{ID: lease, Keys: true})
	if err != nil || len(l.Keys) == 0 {
		return false, err
	}
	auth := pb.NewAuthClient(c)
	u, err := auth.UserGet(root, &pb.AuthUserGetRequest{Name: user})
	if err != nil {
		return false, nil // no such user: both refuse the login
	}
	var perms []*authpb.Permission
	for _, name := range u.Roles {
		if name == "root" {
			return false, nil
		}
		r, err := auth.RoleGet(root, &pb.AuthRoleGetRequest{Role: name})
		if err != nil {
			return false, fmt.Errorf("role %s of %s: %w", name, user, err)
		}
		perms = append(perms, r.Perm...)
	}
	for _, key := range l.Keys {
		mayWrite := false
		for _, p := range perms {
			mayWrite = mayWrite || p.PermType != authpb.READ && covers(p, key)
		}
		if !mayWrite {
			return true, nil
		}
	}
	return false, nil
}

func covers(p *authpb.Permission, key []byte) bool {
	if len(p.RangeEnd) == 0 {
		return bytes.Equal(p.Key, key)
	}
	return bytes.Compare(p.Key, key) <= 0 && (bytes.Equal(p.RangeEnd, []byte{0}) || bytes.Compare(key, p.RangeEnd) < 0)
}

// deniedLease sends to rusd alone what it must refuse for the foreign lease, before it is proposed.
func deniedLease(ctx context.Context, conn *grpc.ClientConn, a moreStep) error {
	revision := func() (int64, error) {
		c, cancel := harness.Ctx(5 * time.Second)
		defer cancel()
		r, err := pb.NewMaintenanceClient(conn).Status(c, &pb.StatusRequest{})
		if err != nil {
			return 0, err
		}
		return r.Header.Revision, nil
	}
	before, err := revision()
	if err != nil {
		return err
	}
	m, err := a.call(ctx, conn)
	if got := (answer{m, err}).String(); got != `Unknown "etcdserver: permission denied"` {
		return fmt.Errorf("a lease with foreign keys: %s", got)
	}
	after, err := revision()
	if err == nil && after != before {
		err = fmt.Errorf("a refused request moved the revision from %d to %d", before, after)
	}
	return err
}
