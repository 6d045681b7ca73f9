package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["door"] = struct {
		run  func([]string) error
		help string
	}{runDoor, "under writers, SIGKILL whichever server runs and start the other one on the same directory"}
}

func runDoor(args []string) error {
	fl := flag.NewFlagSet("door", flag.ExitOnError)
	server := fl.String("server", "", "one server")
	etcd := fl.String("etcd", "", "the other")
	etcdutl := fl.String("etcdutl", "", "a tool that must wait while a server runs")
	members := fl.Int("members", 1, "1, or 3: each member in turn")
	swaps := fl.Int("swaps", 50, "swaps")
	count := fl.Int("snapshot-count", 300, "--snapshot-count of both servers")
	clean := fl.Int("clean", 5, "each so many swaps SIGTERM instead; 0: never")
	seed := fl.Int64("seed", time.Now().UnixNano()%1_000_000, "of instants and choices")
	writers := fl.Int("writers", 8, "concurrent writers")
	up := fl.Duration("up", 1200*time.Millisecond, "longest time between readiness and the kill")
	fl.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fl.Parse(args)
	if *server == "" || *etcd == "" || (*members != 1 && *members != 3) {
		return errors.New("--server, --etcd and --members 1 or 3 are needed")
	}
	if err := absolute(server, etcd, etcdutl); err != nil {
		return err
	}
	o := harness.Opts{Extra: []string{"--snapshot-count", fmt.Sprint(*count), "--max-snapshots", "2", "--max-wals", "2", "--log-level", "warn"}}
	for i := 0; i < *members; i++ {
		o.Bins = append(o.Bins, *etcd)
	}
	ns, err := harness.Cluster(o)
	if err != nil {
		return err
	}
	defer harness.StopAll(ns)
	if err := harness.StartAll(ns, 30*time.Second); err != nil {
		return err
	}
	if err := furnish(ns[0]); err != nil {
		return err
	}
	d := &drill{nodes: ns, stop: make(chan struct{})}
	r := rand.New(rand.NewSource(*seed))
	var followers []*follower
	for _, n := range ns {
		f, end := follow(n)
		defer end()
		followers = append(followers, f)
	}
	fmt.Printf("seed %d, %d member(s), %d writers, %d swaps\n", *seed, *members, *writers, *swaps)
	for i := 0; i < *writers; i++ {
		d.wg.Add(1)
		go d.writer(i, *seed*1000+int64(i), 2*time.Millisecond)
	}
	d.wg.Add(1)
	go d.mixer(*seed*1000 + 999)
	halted := false
	halt := func() {
		if !halted {
			halted = true
			close(d.stop)
			d.wg.Wait()
		}
	}
	defer halt()
	start, lost := time.Now(), 0
	ackPos, incPos := 0, 0
	for swap := 1; swap <= *swaps; swap++ {
		n := ns[swap%len(ns)]
		time.Sleep(time.Duration(r.Int63n(int64(*up))))
		if *etcdutl != "" && swap%10 == 1 {
			if err := mustWait(*etcdutl, n.Dir); err != nil {
				return fmt.Errorf("swap %d: %w", swap, err)
			}
		}
		rev, err := n.Revision()
		if err != nil {
			return err
		}
		hash, compact, err := n.HashAt(rev)
		if err != nil {
			return err
		}
		if err := followers[swap%len(ns)].agrees(rev, hash); err != nil {
			return fmt.Errorf("swap %d, before it: %w", swap, err)
		}
		before, err := furniture(n)
		if err != nil {
			return err
		}
		if *clean > 0 && swap%*clean == 0 {
			n.Term()
		} else {
			n.Kill()
		}
		if err := wholeDatabase(n.Dir); err != nil {
			return fmt.Errorf("swap %d, after %s: %w", swap, filepath.Base(n.Bin), err)
		}
		d.mu.Lock()
		a0, i0 := ackPos, incPos
		ackPos, incPos = len(d.acks), len(d.incs)
		d.mu.Unlock()
		if n.Bin == *etcd {
			n.Bin = *server
		} else {
			n.Bin = *etcd
		}
		who := fmt.Sprintf("swap %d, %s", swap, filepath.Base(n.Bin))
		began := time.Now()
		if err := n.Start(); err != nil {
			return err
		}
		if err := n.WaitReady(time.Minute); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		took := time.Since(began)
		h, c, err := n.HashAt(rev)
		if err != nil || h != hash || c != compact {
			return fmt.Errorf("%s: HashKV at %d is %08x (compacted %d), was %08x (%d): %v", who, rev, h, c, hash, compact, err)
		}
		if now, err := n.Revision(); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		} else if h, _, err = n.HashAt(now); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		} else if err := followers[swap%len(ns)].agrees(now, h); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		after, err := furniture(n)
		if err != nil || after != before {
			return fmt.Errorf("%s: leases or users differ: %s (%v)", who, firstDifference(before, after), err)
		}
		full := swap%10 == 0 || swap == *swaps
		if full {
			a0, i0 = 0, 0
		} else {
			a0 = max(a0, ackPos-300)
		}
		l, err := d.check(n, full, a0, i0)
		lost += l
		if err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		if full || len(d.violations) > 0 {
			fmt.Printf("%d of %d swaps: acknowledged %d, lost %d, violations %d, the last start took %v\n", swap, *swaps, ackPos+incPos, lost, len(d.violations), took.Round(time.Millisecond))
		}
		if len(d.violations) > 0 {
			return fmt.Errorf("%s: %s", who, d.violations[0])
		}
	}
	halt()
	rev, err := ns[0].Revision()
	if err != nil {
		return err
	}
	events, resumes := 0, 0
	for i, f := range followers {
		hash, _, err := ns[i].HashAt(rev)
		if err == nil {
			err = f.agrees(rev, hash)
		}
		if err != nil {
			return fmt.Errorf("at the end: %s: %w", ns[i].Name, err)
		}
		if missing, first := f.lacks(append(d.acks, d.incs...)); missing > 0 {
			return fmt.Errorf("%s: %d acknowledged writes were not told: %s", ns[i].Name, missing, first)
		}
		events, resumes = events+f.events, resumes+f.resumes
	}
	fmt.Printf("door: %d swaps, %d member(s), acknowledged %d, lost %d; HashKV each time that of a model made of the watched events; %d events, each once and in order, through %d resumed watches; same leases and users, %v\n",
		*swaps, *members, len(d.acks)+len(d.incs), lost, events, resumes, time.Since(start).Round(time.Second))
	if lost > 0 {
		return errors.New("acknowledged writes are lost")
	}
	return nil
}

// mixer deletes ranges, and writes transactions of several changes and keys with leases.
func (d *drill) mixer(seed int64) {
	defer d.wg.Done()
	r := rand.New(rand.NewSource(seed))
	key := func() []byte { return []byte(fmt.Sprintf("mixed/%02d", r.Intn(60))) }
	for !d.stopped() {
		time.Sleep(time.Duration(r.Int63n(int64(20 * time.Millisecond))))
		kv := d.nodes[r.Intn(len(d.nodes))].KV()
		ctx, c := harness.Ctx(opTimeout)
		var err error
		switch r.Intn(3) {
		case 0:
			from, to := key(), key()
			_, err = kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: from, RangeEnd: to})
		case 1:
			t, used := &pb.TxnRequest{}, map[string]bool{}
			for i := 0; i < 5; i++ {
				if k := key(); !used[string(k)] {
					used[string(k)] = true
					op := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: k, Value: []byte(fmt.Sprint(i))}}}
					if r.Intn(3) == 0 {
						op = &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: k}}}
					}
					t.Success = append(t.Success, op)
				}
			}
			_, err = kv.Txn(ctx, t)
		case 2:
			_, err = kv.Put(ctx, &pb.PutRequest{Key: key(), Value: make([]byte, r.Intn(2000)), Lease: leaseMixed})
		}
		c()
		if err != nil {
			d.failed(err)
		}
	}
}

// leaseMixed is the lease of keys that come and go.
const leaseMixed = 1000

// furnish makes what must stay as it is: leases with keys, users and roles.
func furnish(n *harness.Node) error {
	ctx, c := harness.Ctx(20 * time.Second)
	defer c()
	lc, ac := pb.NewLeaseClient(n.Conn()), pb.NewAuthClient(n.Conn())
	if _, err := lc.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: leaseMixed, TTL: 3600}); err != nil {
		return err
	}
	for i := int64(1); i <= 20; i++ {
		if _, err := lc.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: i, TTL: 3600 + i}); err != nil {
			return err
		}
		for k := int64(0); k < i%4; k++ {
			put := &pb.PutRequest{Key: []byte(fmt.Sprintf("leased/%d/%d", i, k)), Value: []byte("v"), Lease: i}
			if _, err := n.KV().Put(ctx, put); err != nil {
				return err
			}
		}
	}
	for i := 0; i < 4; i++ {
		name := fmt.Sprintf("u%d", i)
		if _, err := ac.UserAdd(ctx, &pb.AuthUserAddRequest{Name: name, Password: "p"}); err != nil {
			return err
		}
		if _, err := ac.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: name}); err != nil {
			return err
		}
		if _, err := ac.UserGrantRole(ctx, &pb.AuthUserGrantRoleRequest{User: name, Role: name}); err != nil {
			return err
		}
	}
	return nil
}

// furniture tells leases with their keys, and users with their roles.
func furniture(n *harness.Node) (string, error) {
	ctx, c := harness.Ctx(20 * time.Second)
	defer c()
	lc, ac := pb.NewLeaseClient(n.Conn()), pb.NewAuthClient(n.Conn())
	var lines []string
	for i := int64(1); i <= 20; i++ {
		t, err := leaseTold(ctx, lc, i)
		if err != nil {
			return "", err
		}
		keys := make([]string, 0, len(t.Keys))
		for _, k := range t.Keys {
			keys = append(keys, string(k))
		}
		sort.Strings(keys)
		lines = append(lines, fmt.Sprintf("lease %d of %d, lives %v: %v", i, t.GrantedTTL, t.TTL > 0, keys))
	}
	users, err := ac.UserList(ctx, &pb.AuthUserListRequest{})
	if err != nil {
		return "", err
	}
	for _, u := range users.Users {
		g, err := ac.UserGet(ctx, &pb.AuthUserGetRequest{Name: u})
		if err != nil {
			return "", err
		}
		lines = append(lines, fmt.Sprintf("user %s: %v", u, g.Roles))
	}
	members, err := memberList(n)
	if err != nil {
		return "", err
	}
	return strings.Join(append(lines, members), "\n"), nil
}

// leaseTold asks again while an election is under way.
func leaseTold(ctx context.Context, lc pb.LeaseClient, id int64) (*pb.LeaseTimeToLiveResponse, error) {
	for i := 0; ; i++ {
		t, err := lc.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
		if err == nil || i == 10 {
			return t, err
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// wholeDatabase has bbolt check a stopped member's file.
func wholeDatabase(dir string) error {
	db, err := bolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second, PreLoadFreelist: true})
	if err != nil {
		return err
	}
	defer db.Close()
	return checkBolt(db)
}

// mustWait sees that the tool does nothing to a directory in use.
func mustWait(etcdutl, dir string) error {
	ctx, c := context.WithTimeout(context.Background(), 1500*time.Millisecond)
	defer c()
	out, err := exec.CommandContext(ctx, etcdutl, "defrag", "--data-dir", dir).CombinedOutput()
	if ctx.Err() == nil {
		return fmt.Errorf("etcdutl defrag did not wait while the server ran: %v: %s", err, out)
	}
	return nil
}
