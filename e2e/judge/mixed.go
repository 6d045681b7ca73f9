package main

import (
	"errors"
	"flag"
	"fmt"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["mixed"] = struct {
		run  func([]string) error
		help string
	}{runMixed, "two etcd members and one rusd in one new cluster; the leader is killed until each has led"}
}

func runMixed(args []string) error {
	fs := flag.NewFlagSet("mixed", flag.ExitOnError)
	etcd := fs.String("etcd", "", "etcd 3.5.17")
	rusd := fs.String("rusd", "", "the server under judgement")
	nrusd := fs.Int("rusd-members", 1, "how many of the three are rusd")
	tlsMode := fs.String("tls", "", "self (own CA, client and peer, both verified) or peer-auto")
	plain := fs.Bool("plain", false, "no TLS (the default)")
	unix := fs.Bool("unix", false, "peers over unix sockets")
	cycles := fs.Int("cycles", 30, "kill the leader at most so often")
	min := fs.Int("min-cycles", 4, "and at least so often")
	down := fs.Int("down-writes", 50, "writes while the killed member is down")
	extra := fs.String("rusd-flags", "", "further flags of rusd, by space")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *etcd == "" || *rusd == "" {
		return errors.New("--etcd and --rusd are needed")
	}
	if *plain && *tlsMode != "" {
		return errors.New("--plain and --tls exclude each other")
	}
	if *unix && *tlsMode != "" {
		return errors.New("--unix and --tls exclude each other: etcd 3.5.17 itself serves no TLS on a unix peer socket")
	}
	if err := absolute(etcd, rusd); err != nil {
		return err
	}
	bins := []string{*etcd, *etcd, *etcd}
	for i := 0; i < *nrusd && i < 3; i++ {
		bins[2-i] = *rusd
	}
	nodes, err := harness.Cluster(harness.Opts{Bins: bins, PeerUnix: *unix, TLS: *tlsMode, Token: fmt.Sprintf("mixed-%d", time.Now().UnixNano()), Extra: []string{"--log-level", "warn"}})
	if err != nil {
		return err
	}
	for i := 3 - *nrusd; i < 3; i++ {
		nodes[i].Args = append(nodes[i].Args, strings.Fields(*extra)...)
	}
	defer harness.StopAll(nodes)
	if err := harness.StartAll(nodes, 30*time.Second); err != nil {
		return err
	}
	what := func(n *harness.Node) string {
		if n.Bin == *rusd && n.Bin != *etcd {
			return n.Name + " (rusd)"
		}
		return n.Name
	}
	m := &mixer{want: map[string]string{}}
	if err := m.put(nodes, 100); err != nil {
		return err
	}
	if err := m.same(nodes, "after the first writes"); err != nil {
		return err
	}
	if err := sameMembers(nodes); err != nil {
		return err
	}
	led := map[string]int{}
	for c := 1; c <= *cycles; c++ {
		l, err := leader(nodes)
		if err != nil {
			return err
		}
		led[l.Name]++
		// A lease and a delete too, so that more than puts goes through each leader.
		if err := m.put(nodes, 30); err != nil {
			return fmt.Errorf("cycle %d, leader %s: %w", c, what(l), err)
		}
		if err := m.other(nodes[c%3]); err != nil {
			return fmt.Errorf("cycle %d, leader %s, through %s: %w", c, what(l), what(nodes[c%3]), err)
		}
		l.Kill()
		var rest []*harness.Node
		for _, n := range nodes {
			if n != l {
				rest = append(rest, n)
			}
		}
		t := time.Now()
		for _, n := range rest {
			if err := n.WaitReady(20 * time.Second); err != nil {
				return fmt.Errorf("cycle %d, after the kill of %s: %w", c, what(l), err)
			}
		}
		gap := time.Since(t)
		if err := m.put(rest, *down); err != nil {
			return fmt.Errorf("cycle %d, %s down: %w", c, what(l), err)
		}
		if err := m.same(rest, fmt.Sprintf("cycle %d with %s down", c, what(l))); err != nil {
			return err
		}
		if err := l.Start(); err != nil {
			return err
		}
		if err := l.WaitReady(20 * time.Second); err != nil {
			return fmt.Errorf("cycle %d, restart of %s: %w", c, what(l), err)
		}
		if err := m.put(nodes, 30); err != nil {
			return fmt.Errorf("cycle %d, %s back: %w", c, what(l), err)
		}
		if err := m.same(nodes, fmt.Sprintf("cycle %d", c)); err != nil {
			return err
		}
		fmt.Printf("cycle %d: killed leader %s, %d writes so far, %v without a leader, HashKV equal at revision %d\n", c, what(l), len(m.want), gap.Round(time.Millisecond), m.rev)
		if len(led) == 3 && c >= *min {
			break
		}
	}
	for _, n := range nodes {
		fmt.Printf("%s led %d times\n", what(n), led[n.Name])
	}
	if err := m.all(nodes); err != nil {
		return err
	}
	if len(led) < 3 {
		return fmt.Errorf("not every member has been leader in %d cycles", *cycles)
	}
	fmt.Println("mixed cluster agrees")
	return nil
}

type mixer struct {
	seq  int
	want map[string]string
	rev  int64
}

// put writes n keys, dealt over the nodes, each of which must answer.
func (m *mixer) put(nodes []*harness.Node, n int) error {
	for i := 0; i < n; i++ {
		nd := nodes[i%len(nodes)]
		m.seq++
		k, v := fmt.Sprintf("mixed/%06d", m.seq), fmt.Sprintf("%s-%d", nd.Name, m.seq)
		var err error
		for try := 0; try < 20; try++ { // the leader may be changing
			ctx, c := harness.Ctx(5 * time.Second)
			_, err = nd.KV().Put(ctx, &pb.PutRequest{Key: []byte(k), Value: []byte(v)})
			c()
			if err == nil {
				m.want[k] = v
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err != nil {
			return fmt.Errorf("put through %s: %w", nd.Name, err)
		}
		// Read it at once through the next member: linearizable, so it must be there.
		if i%5 == 0 {
			o := nodes[(i+1)%len(nodes)]
			ctx, c := harness.Ctx(5 * time.Second)
			r, err := o.KV().Range(ctx, &pb.RangeRequest{Key: []byte(k)})
			c()
			if err == nil && (len(r.Kvs) != 1 || string(r.Kvs[0].Value) != v) {
				return fmt.Errorf("%s put through %s, read through %s right after: %v", k, nd.Name, o.Name, r.Kvs)
			}
		}
	}
	return nil
}

// other sends a lease, a put with it, a txn, a delete and sometimes a compaction.
func (m *mixer) other(n *harness.Node) error {
	ctx, c := harness.Ctx(20 * time.Second)
	defer c()
	m.seq++
	l, err := pb.NewLeaseClient(n.Conn()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(1000 + m.seq), TTL: 10_000})
	if err != nil {
		return err
	}
	k := []byte(fmt.Sprintf("leased/%d", m.seq))
	if _, err := n.KV().Put(ctx, &pb.PutRequest{Key: k, Value: k, Lease: l.ID}); err != nil {
		return err
	}
	if _, err := n.KV().Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: k, Target: pb.Compare_LEASE, Result: pb.Compare_EQUAL, TargetUnion: &pb.Compare_Lease{Lease: l.ID}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("txn"), Value: k}}}, rangeOp("txn")},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("wrong"), Value: k}}}},
	}); err != nil {
		return err
	}
	if m.seq%2 == 0 {
		if _, err := pb.NewLeaseClient(n.Conn()).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: l.ID}); err != nil {
			return err
		}
	}
	r, err := n.KV().DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("txn")})
	if err != nil {
		return err
	}
	if r.Deleted != 1 {
		return fmt.Errorf("the txn's key: %d deleted, 1 expected", r.Deleted)
	}
	if m.seq%3 == 0 {
		_, err = n.KV().Compact(ctx, &pb.CompactionRequest{Revision: r.Header.Revision - 20, Physical: true})
	}
	return err
}

func (m *mixer) same(nodes []*harness.Node, when string) error {
	rev, _, err := harness.SameHash(nodes)
	if err != nil {
		return fmt.Errorf("%s: %w", when, err)
	}
	if rev < m.rev {
		return fmt.Errorf("%s: revision went back from %d to %d", when, m.rev, rev)
	}
	m.rev = rev
	return nil
}

// all reads everything written from every member, from its own state.
func (m *mixer) all(nodes []*harness.Node) error {
	for _, n := range nodes {
		ctx, c := harness.Ctx(20 * time.Second)
		r, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte("mixed/"), RangeEnd: []byte("mixed0")})
		c()
		if err != nil {
			return err
		}
		got := map[string]bool{}
		for _, kv := range r.Kvs {
			k := string(kv.Key)
			got[k] = m.want[k] == string(kv.Value)
		}
		for k := range m.want {
			if !got[k] {
				return fmt.Errorf("%s has not (or not as written) %s", n.Name, k)
			}
		}
	}
	return nil
}

func leader(nodes []*harness.Node) (*harness.Node, error) {
	var last error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, n := range nodes {
			ctx, c := harness.Ctx(2 * time.Second)
			s, err := n.Maint().Status(ctx, &pb.StatusRequest{})
			c()
			if err != nil {
				last = err
				continue
			}
			if s.Leader != 0 && s.Leader == s.Header.MemberId {
				return n, nil
			}
		}
	}
	return nil, fmt.Errorf("no member says it leads (%v)", last)
}

// sameMembers compares what each member says the members are.
func sameMembers(nodes []*harness.Node) error {
	var first string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		var said []string
		for _, n := range nodes {
			ctx, c := harness.Ctx(5 * time.Second)
			r, err := pb.NewClusterClient(n.Conn()).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
			c()
			if err != nil {
				return err
			}
			s := fmt.Sprint(r.Header.ClusterId)
			for _, x := range r.Members {
				s += fmt.Sprintf(" %x %s %v %v;", x.ID, x.Name, x.PeerURLs, x.ClientURLs)
			}
			said = append(said, s)
		}
		first = said[0]
		if said[1] == first && said[2] == first {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("member lists differ:\n%s", strings.Join(said, "\n"))
		}
	}
}
