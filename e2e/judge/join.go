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
	commands["join"] = struct {
		run  func([]string) error
		help string
	}{runJoin, "members of one kind join a cluster that the other began, as voters and as learner, until the founder leaves"}
}

func runJoin(args []string) error {
	fs := flag.NewFlagSet("join", flag.ExitOnError)
	etcd := fs.String("etcd", "", "etcd 3.5.17")
	rusd := fs.String("rusd", "", "the server under judgement")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *etcd == "" || *rusd == "" {
		return errors.New("--etcd and --rusd are needed")
	}
	if err := absolute(etcd, rusd); err != nil {
		return err
	}
	kinds := map[string]string{"etcd": *etcd, "rusd": *rusd}
	for _, order := range [][]string{{"rusd", "etcd", "etcd"}, {"etcd", "rusd", "rusd"}, {"etcd", "rusd", "etcd"}, {"rusd", "etcd", "rusd"}} {
		bins := []string{kinds[order[0]], kinds[order[1]], kinds[order[2]]}
		if err := joinScene(bins); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(order, ", "), err)
		}
		fmt.Printf("%s founded, %s joined as voter, %s as learner and was promoted, %s was removed: all agree\n", order[0], order[1], order[2], order[0])
	}
	return nil
}

// joinScene grows a cluster from bins[0] to all three, and takes the founder out.
func joinScene(bins []string) error {
	nodes, err := harness.Cluster(harness.Opts{Bins: bins, Token: fmt.Sprintf("join-%d", time.Now().UnixNano()), Extra: []string{"--log-level", "warn"}})
	if err != nil {
		return err
	}
	defer harness.StopAll(nodes)
	for i, n := range nodes {
		var all []string
		for _, o := range nodes[:i+1] {
			all = append(all, o.Name+"="+o.Peer)
		}
		n.Args = append(n.Args, "--initial-cluster", strings.Join(all, ","))
		if i > 0 {
			n.Args = append(n.Args, "--initial-cluster-state", "existing")
		}
	}
	m := &mixer{want: map[string]string{}}
	founder := nodes[0]
	if err := harness.StartAll(nodes[:1], 30*time.Second); err != nil {
		return err
	}
	if err := m.put(nodes[:1], 200); err != nil {
		return err
	}
	if _, err := addMember(founder, nodes[1], false); err != nil {
		return err
	}
	if err := harness.StartAll(nodes[1:2], 30*time.Second); err != nil {
		return fmt.Errorf("the voter: %w", err)
	}
	if err := m.put(nodes[:2], 100); err != nil {
		return err
	}
	if err := m.same(nodes[:2], "two members"); err != nil {
		return err
	}
	// Asked of the one that need not lead, so that the promotion is forwarded in half the scenes.
	learner, err := addMember(nodes[1], nodes[2], true)
	if err != nil {
		return err
	}
	if err := nodes[2].Start(); err != nil {
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
	if err := nodes[2].WaitReady(30 * time.Second); err != nil {
		return fmt.Errorf("the promoted: %w", err)
	}
	if err := m.put(nodes, 100); err != nil {
		return err
	}
	if err := m.other(nodes[2]); err != nil {
		return err
	}
	if err := m.same(nodes, "three members"); err != nil {
		return err
	}
	if err := sameMembers(nodes); err != nil {
		return err
	}
	s, err := statusOf(founder)
	if err != nil {
		return err
	}
	err = eventually(40*time.Second, func() error {
		ctx, c := harness.Ctx(10 * time.Second)
		defer c()
		_, err := pb.NewClusterClient(founder.Conn()).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: s.Header.MemberId})
		if !founder.Alive() {
			return nil // it has applied its removal before the answer has left
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove the founder: %w", err)
	}
	if code, exited := founder.WaitExit(30 * time.Second); !exited || code != 0 {
		return fmt.Errorf("the removed founder: exited %v with %d", exited, code)
	}
	left := nodes[1:]
	for _, n := range left {
		if err := n.WaitReady(30 * time.Second); err != nil {
			return fmt.Errorf("without the founder: %w", err)
		}
	}
	if err := m.put(left, 100); err != nil {
		return err
	}
	// Who has the cluster from its own log only.
	for _, n := range left {
		n.Kill()
	}
	if err := harness.StartAll(left, 30*time.Second); err != nil {
		return fmt.Errorf("started again: %w", err)
	}
	if err := m.put(left, 20); err != nil {
		return err
	}
	if err := m.same(left, "two left"); err != nil {
		return err
	}
	return m.all(left)
}

func statusOf(n *harness.Node) (*pb.StatusResponse, error) {
	ctx, c := harness.Ctx(5 * time.Second)
	defer c()
	return n.Maint().Status(ctx, &pb.StatusRequest{})
}

// addMember asks until the cluster counts as healthy.
func addMember(at, n *harness.Node, learner bool) (id uint64, err error) {
	err = eventually(40*time.Second, func() error {
		ctx, c := harness.Ctx(10 * time.Second)
		defer c()
		r, err := pb.NewClusterClient(at.Conn()).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{n.Peer}, IsLearner: learner})
		if err == nil {
			id = r.Member.ID
		}
		return err
	})
	if err != nil {
		err = fmt.Errorf("add %s: %w", n.Name, err)
	}
	return id, err
}

func eventually(d time.Duration, f func() error) error {
	for end := time.Now().Add(d); ; time.Sleep(200 * time.Millisecond) {
		err := f()
		if err == nil || time.Now().After(end) {
			return err
		}
	}
}
