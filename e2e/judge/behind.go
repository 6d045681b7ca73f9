package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["behind"] = struct {
		run  func([]string) error
		help string
	}{runBehind, "members of one kind send snapshots to one of the other, which then goes on under either binary"}
}

func runBehind(args []string) error {
	fs := flag.NewFlagSet("behind", flag.ExitOnError)
	etcd := fs.String("etcd", "", "etcd 3.5.17")
	rusd := fs.String("rusd", "", "the server under judgement")
	rounds := fs.Int("rounds", 2, "how often the member falls behind")
	bytes := fs.Int("value-bytes", 20_000, "bytes of the values that make up the store")
	keys := fs.Int("values", 300, "and their number")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *etcd == "" || *rusd == "" {
		return errors.New("--etcd and --rusd are needed")
	}
	if err := absolute(etcd, rusd); err != nil {
		return err
	}
	for _, scene := range []struct{ senders, receiver, from, to string }{
		{*etcd, *rusd, "etcd", "rusd"},
		{*rusd, *etcd, "rusd", "etcd"},
		{*rusd, *rusd, "rusd", "rusd"},
	} {
		name := scene.from + " to " + scene.to
		if err := behindScene(scene.senders, scene.receiver, *rounds, *keys, *bytes); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		fmt.Printf("%s: %d snapshots, under kills, and a learner that joined by one: all agree\n", name, *rounds)
	}
	return nil
}

// behindScene has the last of three members fall behind again and again.
func behindScene(senders, receiver string, rounds, keys, bytes int) error {
	bins := []string{senders, senders, receiver, receiver}
	nodes, err := harness.Cluster(harness.Opts{Bins: bins, Token: fmt.Sprintf("behind-%d", time.Now().UnixNano()), Extra: []string{
		"--log-level", "info", "--snapshot-count", "50", "--experimental-snapshot-catchup-entries", "10"}})
	if err != nil {
		return err
	}
	defer harness.StopAll(nodes)
	var all []string
	for i, n := range nodes {
		all = append(all, n.Name+"="+n.Peer)
		if i < 3 {
			n.Args = append(n.Args, "--initial-cluster", strings.Join([]string{
				nodes[0].Name + "=" + nodes[0].Peer, nodes[1].Name + "=" + nodes[1].Peer, nodes[2].Name + "=" + nodes[2].Peer}, ","))
		}
	}
	late := nodes[3]
	late.Args = append(late.Args, "--initial-cluster", strings.Join(all, ","), "--initial-cluster-state", "existing")
	nodes = nodes[:3]
	if err := harness.StartAll(nodes, 30*time.Second); err != nil {
		return err
	}
	m := &mixer{want: map[string]string{}}
	if err := m.put(nodes, 50); err != nil {
		return err
	}
	value := strings.Repeat("v", bytes)
	for i := 0; i < keys; i++ {
		ctx, c := harness.Ctx(5 * time.Second)
		_, err := nodes[0].KV().Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("bulk/%d", i)), Value: []byte(value)})
		c()
		if err != nil {
			return err
		}
	}
	n, rest, applied := nodes[2], nodes[:2], 0
	for r := 1; r <= rounds; r++ {
		n.Kill()
		if err := m.released(rest); err != nil {
			return fmt.Errorf("round %d: %w", r, err)
		}
		for i := 0; i < 3; i++ {
			if err := m.other(rest[i%2]); err != nil {
				return err
			}
		}
		if err := n.Start(); err != nil {
			return err
		}
		// In the middle of it, and then in peace.
		time.Sleep(time.Duration(r*137%400) * time.Millisecond)
		n.Kill()
		if err := m.put(rest, 20); err != nil {
			return err
		}
		if err := n.Start(); err != nil {
			return err
		}
		if err := n.WaitReady(40 * time.Second); err != nil {
			return fmt.Errorf("round %d: %w", r, err)
		}
		if err := m.same(nodes, fmt.Sprintf("round %d", r)); err != nil {
			return err
		}
		log, err := os.ReadFile(n.Log)
		if err != nil {
			return err
		}
		if came := strings.Count(string(log), "received and saved database snapshot"); came <= applied {
			return fmt.Errorf("round %d: no snapshot came", r)
		} else {
			applied = came
		}
		if err := sameLeases(nodes); err != nil {
			return fmt.Errorf("round %d: %w", r, err)
		}
		if err := m.put(nodes, 30); err != nil {
			return err
		}
	}
	// The other binary finds in the directory what it needs, and falls behind in its turn.
	n.Kill()
	n.Bin = senders
	if err := n.Start(); err != nil {
		return err
	}
	if err := n.WaitReady(40 * time.Second); err != nil {
		return fmt.Errorf("under the senders' binary: %w", err)
	}
	if err := m.put(nodes, 30); err != nil {
		return err
	}
	if err := m.same(nodes, "under the senders' binary"); err != nil {
		return err
	}
	if err := sameMembers(nodes); err != nil {
		return err
	}
	if err := m.released(nodes); err != nil {
		return err
	}
	learner, err := addMember(nodes[0], late, true)
	if err != nil {
		return err
	}
	if err := late.Start(); err != nil {
		return err
	}
	err = eventually(40*time.Second, func() error {
		ctx, c := harness.Ctx(10 * time.Second)
		defer c()
		_, err := pb.NewClusterClient(nodes[1].Conn()).MemberPromote(ctx, &pb.MemberPromoteRequest{ID: learner})
		return err
	})
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if err := late.WaitReady(30 * time.Second); err != nil {
		return fmt.Errorf("the promoted: %w", err)
	}
	nodes = append(nodes, late)
	if err := m.put(nodes, 40); err != nil {
		return err
	}
	if err := m.same(nodes, "with the one that joined"); err != nil {
		return err
	}
	return m.all(nodes)
}

// released writes until the leader has let go of what a member that is down would need. It keeps its
// log for 30 s after it has sent a snapshot.
func (m *mixer) released(nodes []*harness.Node) error {
	l, err := leader(nodes)
	if err != nil {
		return err
	}
	count := func() int {
		log, _ := os.ReadFile(l.Log)
		return strings.Count(string(log), "compacted Raft logs")
	}
	before := count()
	return eventually(2*time.Minute, func() error {
		if err := m.put(nodes, 60); err != nil {
			return err
		}
		if count() < before+2 {
			return errors.New("the leader does not release its log")
		}
		return nil
	})
}

// sameLeases compares which leases each member has.
func sameLeases(nodes []*harness.Node) error {
	said := make([]string, len(nodes))
	for i, n := range nodes {
		ctx, c := harness.Ctx(5 * time.Second)
		r, err := pb.NewLeaseClient(n.Conn()).LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
		c()
		if err != nil {
			return err
		}
		ids := map[int64]bool{}
		for _, l := range r.Leases {
			ids[l.ID] = true
		}
		said[i] = fmt.Sprint(ids)
		if said[i] != said[0] {
			return fmt.Errorf("leases differ: %s has %s, %s has %s", nodes[0].Name, said[0], n.Name, said[i])
		}
	}
	return nil
}
