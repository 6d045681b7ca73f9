package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/gogo/protobuf/proto"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"rusd/judge/harness"
)

func init() {
	commands["authtable"] = struct {
		run  func([]string) error
		help string
	}{runAuthTable, "every call as every kind of caller, with auth enabled, to two servers; code, message and content compared"}
}

// tableCall is one line of the table: a call, and what puts the server right again after it.
type tableCall struct {
	name string
	call func(ctx context.Context, c *grpc.ClientConn) (proto.Message, error)
	// after is called as root; its errors do not matter.
	after func(ctx context.Context, c *grpc.ClientConn)
}

// fewForms of a call are tried with tokens of the second and third kind.
const fewForms = 9

// tableUsers are the users with passwords; nil is the whole of their roles.
var tableUsers = []struct {
	name  string
	roles []string
}{
	{"root", []string{"root"}},
	{"adm", []string{"root"}},
	{"alice", []string{"plain"}},
	{"bob", []string{"one"}},
	{"carol", nil},
	{"dave", []string{"reader"}},
}

func grantKey(t authpb.Permission_Type, key, end string) *authpb.Permission {
	p := &authpb.Permission{PermType: t, Key: []byte(key)}
	if end != "" {
		p.RangeEnd = []byte(end)
	}
	return p
}

var tableRoles = map[string][]*authpb.Permission{
	"plain": {
		grantKey(authpb.READWRITE, "one", ""), grantKey(authpb.READ, "ro", ""), grantKey(authpb.WRITE, "wo", ""),
		grantKey(authpb.READWRITE, "w/", "w0"), grantKey(authpb.READ, "r1", "r5"), grantKey(authpb.WRITE, "r3", "r7"),
		grantKey(authpb.READWRITE, "z", "\x00"),
	},
	"one":    {grantKey(authpb.READWRITE, "one", "")},
	"reader": {grantKey(authpb.READ, "\x00", "\x00")},
	"root":   nil,
	"spare":  nil,
}

// tableKeys and the lease each of them is on. 103 is a lease without keys, 105 holds one key
// that alice may write and one that she may not.
var tableKeys = []struct {
	key   string
	lease int64
}{
	{"one", 101}, {"ro", 104}, {"wo", 0}, {"secret", 102}, {"secret2", 105}, {"w/a", 105}, {"w/b", 0},
	{"r1", 0}, {"r2", 0}, {"r3", 0}, {"r4", 0}, {"r5", 0}, {"r6", 0}, {"r8", 0}, {"z1", 0}, {"w/elect2/67", 103},
}

// caller is who calls: how it gets its token (or certificate).
type caller struct {
	name, user string
	// token gives what stands in the metadata; nil: nothing.
	token func(s *tableSide) (string, error)
	field string // of the metadata, "token" when empty
	cert  string // common name of the client certificate, where the run has those
}

type tableSide struct {
	*side
	root    string // root's token
	saved   map[string]string
	byName  map[string]*grpc.ClientConn // by common name
	opts    *tableOpts
	machine *jwtMaker
}

type tableOpts struct {
	rusd, etcd, only, mode string
	list, verbose          bool
}

func runAuthTable(args []string) error {
	fs := flag.NewFlagSet("authtable", flag.ExitOnError)
	var o tableOpts
	fs.StringVar(&o.rusd, "rusd", "", "the server under judgement")
	fs.StringVar(&o.etcd, "etcd", "", "etcd 3.5.17, the reference")
	fs.StringVar(&o.only, "only", "", "only lines whose name contains this")
	fs.StringVar(&o.mode, "mode", "", "simple, jwt or cert: how callers say who they are (default: all three in turn)")
	fs.BoolVar(&o.list, "list", false, "print the whole table with the reference's answers")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if o.rusd == "" || o.etcd == "" {
		return errors.New("--rusd and --etcd are needed")
	}
	modes := []string{"simple", "jwt", "cert"}
	if o.mode != "" {
		modes = strings.Split(o.mode, ",")
	}
	total, rows, used := 0, 0, map[int]bool{}
	for _, m := range modes {
		o.mode = m
		n, r, err := tableRun(&o, used)
		if err != nil {
			return fmt.Errorf("%s: %w", m, err)
		}
		total, rows = total+n, rows+r
	}
	if o.rusd != o.etcd && o.only == "" && len(modes) == 3 {
		for i, k := range allowedDifferences {
			if !used[i] {
				fmt.Printf("STALE: rusd answers as etcd does where a difference is listed: %s as %s (%s)\n", k.row, k.callers, k.why)
				total++
			}
		}
	}
	if total > 0 {
		return fmt.Errorf("%d differences", total)
	}
	fmt.Printf("%d calls agree but for the %d listed differences\n", rows, len(used))
	return nil
}

func tableRun(o *tableOpts, used map[int]bool) (differences, compared int, err error) {
	sides, callers, err := tableSetup(o)
	defer func() {
		for _, s := range sides {
			for _, c := range s.byName {
				c.Close()
			}
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
	if err != nil {
		return 0, 0, err
	}
	start := time.Now()
	lines, perMethod, judged := tableCalls(), map[string]int{}, answers{}
	for i, line := range lines {
		if !strings.Contains(line.name, o.only) {
			continue
		}
		// All forms of a call with one kind of token; with the others, enough of each call.
		method, _, _ := strings.Cut(line.name, " ")
		if perMethod[method]++; o.mode != "simple" && perMethod[method] > fewForms {
			continue
		}
		for _, who := range callers {
			var out [2]answer
			var errs [2]error
			var wg sync.WaitGroup
			for i := range sides {
				wg.Add(1)
				go func(i int) {
					defer wg.Done()
					out[i], errs[i] = sides[i].ask(line, who)
				}(i)
			}
			wg.Wait()
			for i, e := range errs {
				if e != nil {
					return differences, compared, fmt.Errorf("%s as %s, %s: %w; its log ends:\n%s", line.name, who.name, sides[i].node.Bin, e, sides[i].node.LogTail(8))
				}
			}
			compared++
			judged[line.name+" as "+who.name] = out[1].String()
			if o.list {
				fmt.Printf("%-8s %-52s %-10s %.160s\n", o.mode, line.name, who.name, out[0])
			}
			if same(out[0], out[1]) {
				continue
			}
			if at := judged.meant(line.name, who.name, out[1]); at >= 0 {
				used[at] = true
				continue
			}
			differences++
			fmt.Printf("DIFFERENCE (%s) %s as %s\n  etcd:   %.600s\n  judged: %.600s\n", o.mode, line.name, who.name, out[0], out[1])
		}
		if i%40 == 39 {
			fmt.Printf("%s: %d of %d lines, %d differences, %v\n", o.mode, i+1, len(lines), differences, time.Since(start).Round(time.Second))
		}
	}
	fmt.Printf("%s: %d calls of %d lines as %d callers, %d differences, %v\n", o.mode, compared, len(lines), len(callers), differences, time.Since(start).Round(time.Second))
	return differences, compared, nil
}

// ask puts the state right, makes the call as who, and puts right what the call may have broken.
func (s *tableSide) ask(line tableCall, who caller) (answer, error) {
	if err := s.reset(); err != nil {
		return answer{}, fmt.Errorf("reset: %w", err)
	}
	conn, ctx := s.conns[1], context.Background()
	if who.cert != "" {
		conn = s.byName[who.cert]
	}
	if who.token != nil {
		t, err := who.token(s)
		if err != nil {
			return answer{}, fmt.Errorf("a token: %w", err)
		}
		field := who.field
		if field == "" {
			field = "token"
		}
		ctx = metadata.AppendToOutgoingContext(ctx, field, t)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	m, err := line.call(ctx, conn)
	if err == nil {
		blank(reflect.ValueOf(m))
		contentOnly(m)
	}
	if line.after != nil {
		actx, acancel := s.asRoot()
		line.after(actx, s.conns[0])
		acancel()
	}
	return answer{m, err}, nil
}

func (s *tableSide) asRoot() (context.Context, context.CancelFunc) {
	ctx := metadata.AppendToOutgoingContext(context.Background(), "token", s.root)
	return context.WithTimeout(ctx, 5*time.Second)
}

func (s *tableSide) login(user string) (string, error) {
	ctx, c := harness.Ctx(5 * time.Second)
	defer c()
	r, err := pb.NewAuthClient(s.conns[0]).Authenticate(ctx, &pb.AuthenticateRequest{Name: user, Password: user + "-pw"})
	if err != nil {
		return "", fmt.Errorf("login of %s: %w", user, err)
	}
	return r.Token, nil
}

// reset brings back keys, leases, users, roles and the alarm state.
func (s *tableSide) reset() error {
	var err error
	if s.root, err = s.login("root"); err != nil {
		return err
	}
	ctx, c := s.asRoot()
	defer c()
	lc := pb.NewLeaseClient(s.conns[0])
	for id := int64(101); id <= 105; id++ {
		lc.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 50_000}) // or it exists
	}
	q := &pb.TxnRequest{}
	for _, k := range tableKeys {
		q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k.key), Value: []byte("v-" + k.key), Lease: k.lease}}})
	}
	for _, k := range []string{"w/new", "w/lock", "w/elect/", "secret/lock", "secret/elect/", "/"} {
		q.Success = append(q.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(k), RangeEnd: prefixEnd([]byte(k))}}})
	}
	_, err = pb.NewKVClient(s.conns[0]).Txn(ctx, q)
	return err
}

// restoreAuth puts users, roles and permissions back after a line of the auth service.
func restoreAuth(ctx context.Context, c *grpc.ClientConn) {
	a := pb.NewAuthClient(c)
	for _, u := range []string{"tmp", "", "nopw"} {
		a.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: u})
	}
	for _, r := range []string{"tmp", ""} {
		a.RoleDelete(ctx, &pb.AuthRoleDeleteRequest{Role: r})
	}
	for r, perms := range tableRoles {
		a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: r})
		if r == "spare" { // whatever it was given
			for _, p := range [][2]string{{"k", ""}, {"k", "\x00"}, {"k", "l"}, {"\x00", "\x00"}} {
				a.RoleRevokePermission(ctx, &pb.AuthRoleRevokePermissionRequest{Role: r, Key: []byte(p[0]), RangeEnd: []byte(p[1])})
			}
		}
		for _, p := range perms {
			a.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: r, Perm: p})
		}
	}
	for _, u := range tableUsers {
		a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: u.name, Password: u.name + "-pw"})
		a.UserRevokeRole(ctx, &pb.AuthUserRevokeRoleRequest{Name: u.name, Role: "spare"})
		for _, r := range u.roles {
			a.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: u.name, Role: r})
		}
	}
	a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "nopw", Options: &authpb.UserAddOptions{NoPassword: true}})
	a.AuthEnable(ctx, &pb.AuthEnableRequest{})
}

// blank clears what depends on the order of calls or on the node: headers and revisions of rows.
func blank(v reflect.Value) {
	switch v.Kind() {
	case reflect.Ptr, reflect.Interface:
		if v.IsNil() {
			return
		}
		if v.Type() == headerType {
			*v.Interface().(*pb.ResponseHeader) = pb.ResponseHeader{}
			return
		}
		blank(v.Elem())
	case reflect.Struct:
		for i := 0; i < v.NumField(); i++ {
			f := v.Type().Field(i)
			if !f.IsExported() {
				continue
			}
			switch f.Name {
			case "CreateRevision", "ModRevision", "Version", "CompactRevision", "Rev", "AuthRevision":
				if v.Field(i).CanInt() {
					v.Field(i).SetInt(0)
					continue
				}
				if v.Field(i).CanUint() {
					v.Field(i).SetUint(0)
					continue
				}
			}
			blank(v.Field(i))
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() != reflect.Uint8 {
			for i := 0; i < v.Len(); i++ {
				blank(v.Index(i))
			}
		}
	}
}

// contentOnly leaves of an answer what both servers must say in the same way.
func contentOnly(m proto.Message) {
	switch r := m.(type) {
	case *pb.AuthenticateResponse:
		if r.Token != "" {
			r.Token = "some"
		}
	case *pb.StatusResponse:
		*r = pb.StatusResponse{Version: r.Version, IsLearner: r.IsLearner}
	case *pb.HashResponse:
		*r = pb.HashResponse{}
	case *pb.HashKVResponse:
		*r = pb.HashKVResponse{}
	case *pb.SnapshotResponse:
		*r = pb.SnapshotResponse{}
	case *pb.LeaseTimeToLiveResponse:
		sort.Slice(r.Keys, func(i, j int) bool { return string(r.Keys[i]) < string(r.Keys[j]) })
	case *pb.MemberListResponse:
		for _, x := range r.Members {
			x.ID = 0
		}
	case *pb.MemberAddResponse:
		r.Member.ID = 0
		for _, x := range r.Members {
			x.ID = 0
			if x.IsLearner {
				x.PeerURLs = nil
			}
		}
		r.Member.PeerURLs = nil
		sort.Slice(r.Members, func(i, j int) bool { return r.Members[i].Name > r.Members[j].Name })
	case *pb.AlarmResponse:
		for _, x := range r.Alarms {
			x.MemberID = 0
		}
	case *pb.LeaseGrantResponse:
		if r.ID > 1_000_000 {
			r.ID = 0 // drawn by the server
		}
	case *lockResponse:
		r.Key = r.Key[:strings.LastIndexByte(string(r.Key), '/')+1]
	case *campaignResponse:
		if r.Leader.Lease > 1_000_000 {
			r.Leader.Lease = 0 // drawn by the server
		}
		r.Leader.Key = r.Leader.Key[:strings.LastIndexByte(string(r.Leader.Key), '/')+1]
	}
}

func tableSetup(o *tableOpts) ([]*tableSide, []caller, error) {
	extra := []string{"--log-level", "error", "--unsafe-no-fsync", "--bcrypt-cost", "4"}
	dir := filepath.Join(harness.TempDir(), "auth-"+o.mode)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, err
	}
	var machine *jwtMaker
	tls := ""
	switch o.mode {
	case "simple":
		extra = append(extra, "--auth-token-ttl", "2")
	case "jwt":
		var err error
		if machine, err = newJWTMaker(dir); err != nil {
			return nil, nil, err
		}
		extra = append(extra, "--auth-token", machine.flag())
	case "cert":
		tls = "self"
	default:
		return nil, nil, fmt.Errorf("unknown mode %q", o.mode)
	}
	advP := fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort())
	advC := fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort())
	if tls != "" {
		advP, advC = strings.Replace(advP, "http", "https", 1), strings.Replace(advC, "http", "https", 1)
	}
	var sides []*tableSide
	for _, bin := range []string{o.etcd, o.rusd} {
		abs, err := filepath.Abs(bin)
		if err != nil {
			return sides, nil, err
		}
		ns, err := harness.Cluster(harness.Opts{Bins: []string{abs}, Extra: extra, AdvPeer: advP, AdvClient: advC, TLS: tls})
		if err != nil {
			return sides, nil, err
		}
		if err := ns[0].Start(); err != nil {
			return sides, nil, err
		}
		sides = append(sides, &tableSide{side: &side{node: ns[0]}, saved: map[string]string{}, byName: map[string]*grpc.ClientConn{}, opts: o, machine: machine})
	}
	var plain []*side
	for _, s := range sides {
		if err := s.node.WaitReady(20 * time.Second); err != nil {
			return sides, nil, err
		}
		for i := 0; i < 2; i++ {
			s.conns = append(s.conns, s.node.Dial())
		}
		plain = append(plain, s.side)
	}
	waitClusterVersion(plain)
	callers, err := tableCallers(o, sides)
	if err != nil {
		return sides, nil, err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(sides))
	for i, s := range sides {
		wg.Add(1)
		go func(i int, s *tableSide) { defer wg.Done(); errs[i] = s.fill() }(i, s)
	}
	wg.Wait()
	for i, e := range errs {
		if e != nil {
			return sides, nil, fmt.Errorf("%s: %w; its log ends:\n%s", sides[i].node.Bin, e, sides[i].node.LogTail(8))
		}
	}
	if o.mode == "simple" {
		time.Sleep(3500 * time.Millisecond) // the token saved as "expired" is, then
	}
	return sides, callers, nil
}

// fill makes users, roles and the first keys, enables auth and keeps tokens that will be no good.
func (s *tableSide) fill() error {
	ctx, c := harness.Ctx(20 * time.Second)
	defer c()
	a := pb.NewAuthClient(s.conns[0])
	kv := pb.NewKVClient(s.conns[0])
	for i := 0; i < 5; i++ {
		if _, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("one"), Value: []byte("first")}); err != nil {
			return err
		}
	}
	if _, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: 4, Physical: true}); err != nil {
		return err
	}
	restoreAuth(ctx, s.conns[0])
	if err := s.reset(); err != nil {
		return err
	}
	ctx, c2 := s.asRoot()
	defer c2()
	var err error
	if s.saved["expired"], err = s.login("alice"); err != nil {
		return err
	}
	if _, err := a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "tmp", Password: "tmp-pw"}); err != nil {
		return err
	}
	if s.saved["deleted"], err = s.login("tmp"); err != nil {
		return err
	}
	if _, err := a.UserDelete(ctx, &pb.AuthUserDeleteRequest{Name: "tmp"}); err != nil {
		return err
	}
	return nil
}
