package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["offline"] = struct {
		run  func([]string) error
		help string
	}{runOffline, "--force-new-cluster, backups and defragmenting with etcd's tools, on directories of both servers"}
}

func runOffline(args []string) error {
	fl := flag.NewFlagSet("offline", flag.ExitOnError)
	var t snapTools
	fl.StringVar(&t.server, "server", "", "the server")
	fl.StringVar(&t.etcd, "etcd", "", "etcd")
	fl.StringVar(&t.etcdctl, "etcdctl", "", "etcdctl")
	fl.StringVar(&t.etcdutl, "etcdutl", "", "etcdutl")
	only := fl.String("only", "", "only cases whose name contains this")
	seed := fl.Int64("seed", 1, "of the histories")
	fl.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fl.Parse(args)
	if err := absolute(&t.server, &t.etcd, &t.etcdctl, &t.etcdutl); err != nil {
		return err
	}
	if t.server == "" || t.etcd == "" || t.etcdctl == "" || t.etcdutl == "" {
		return errors.New("--server, --etcd, --etcdctl and --etcdutl are needed")
	}
	o := offline{t, rand.New(rand.NewSource(*seed))}
	type kase struct {
		name string
		run  func() error
	}
	var cases []kase
	for _, from := range []string{t.etcd, t.server} {
		for _, to := range []string{t.etcd, t.server} {
			f, g := filepath.Base(from), filepath.Base(to)
			if from == t.etcd && to == t.etcd {
				// The control: what etcd itself does.
				f = "control: " + f
			}
			cases = append(cases,
				kase{fmt.Sprintf("%s's member of three forced alone by %s", f, g), func() error { return o.forced(from, to, 3, 100) }},
				kase{fmt.Sprintf("%s's member of three without a snapshot forced alone by %s", f, g), func() error { return o.forced(from, to, 3, 100_000) }},
				kase{fmt.Sprintf("%s's only member forced by %s", f, g), func() error { return o.forced(from, to, 1, 100) }},
				kase{fmt.Sprintf("%s's directory defragmented, started by %s", f, g), func() error { return o.defragmented(from, to) }})
			for _, tool := range []string{t.etcdctl, t.etcdutl} {
				for _, v3 := range []bool{true, false} {
					if !v3 && tool == t.etcdutl {
						continue // it always takes the store along
					}
					name := fmt.Sprintf("%s's directory backed up by %s with-v3=%v, started by %s", f, filepath.Base(tool), v3, g)
					cases = append(cases, kase{name, func() error { return o.backedUp(from, to, tool, v3) }})
				}
			}
		}
	}
	failed, ran := 0, 0
	for _, c := range cases {
		if !strings.Contains(c.name, *only) {
			continue
		}
		ran++
		began := time.Now()
		if err := c.run(); err != nil {
			failed++
			fmt.Printf("FAIL %s: %v\n", c.name, err)
			continue
		}
		fmt.Printf("ok   %s (%v)\n", c.name, time.Since(began).Round(time.Millisecond))
	}
	fmt.Printf("%d cases, %d failed\n", ran, failed)
	if failed > 0 || ran == 0 {
		return fmt.Errorf("%d of %d cases failed", failed, ran)
	}
	return nil
}

type offline struct {
	snapTools
	r *rand.Rand
}

// told is what a member answers, all of it at one revision.
type told struct {
	rev     int64
	hash    uint32
	state   string
	members string
}

func tell(n *harness.Node) (t told, err error) {
	if t.rev, err = n.Revision(); err != nil {
		return t, err
	}
	if t.hash, _, err = n.HashAt(t.rev); err != nil {
		return t, err
	}
	if t.state, err = stateAt(n, t.rev); err != nil {
		return t, err
	}
	t.members, err = memberList(n)
	return t, err
}

// sameAs compares what is told with what was told before, but for the members.
func (t told) sameAs(n *harness.Node) error {
	hash, _, err := n.HashAt(t.rev)
	if err != nil || hash != t.hash {
		return fmt.Errorf("HashKV at %d is %08x, was %08x (%v)", t.rev, hash, t.hash, err)
	}
	state, err := stateAt(n, t.rev)
	if err != nil || state != t.state {
		return fmt.Errorf("the state differs: %s (%v)", firstDifference(t.state, state), err)
	}
	return nil
}

func (o offline) cluster(bin string, members, snapshotCount int) ([]*harness.Node, error) {
	opts := harness.Opts{Extra: []string{"--snapshot-count", fmt.Sprint(snapshotCount), "--log-level", "warn"}}
	for i := 0; i < members; i++ {
		opts.Bins = append(opts.Bins, bin)
	}
	ns, err := harness.Cluster(opts)
	if err != nil {
		return nil, err
	}
	err = harness.StartAll(ns, 30*time.Second)
	if err == nil {
		err = randomHistory(ns[0], o.r, 400)
	}
	if err == nil {
		err = furnish(ns[0])
	}
	if err != nil {
		harness.StopAll(ns)
		return nil, err
	}
	return ns, nil
}

// only waits until a member serves as the only one of its cluster.
func only(n *harness.Node) error {
	if err := n.WaitReady(30 * time.Second); err != nil {
		return err
	}
	ctx, c := harness.Ctx(10 * time.Second)
	defer c()
	r, err := pb.NewClusterClient(n.Conn()).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		return err
	}
	if len(r.Members) != 1 || r.Members[0].ID != r.Header.MemberId || r.Members[0].IsLearner || len(r.Members[0].PeerURLs) == 0 {
		return fmt.Errorf("the members are %v, of which it is %x", r.Members, r.Header.MemberId)
	}
	return n.Healthy(5 * time.Second)
}

// forced ends a cluster and goes on with one of its members, which others then join again.
func (o offline) forced(from, to string, members, snapshotCount int) error {
	ns, err := o.cluster(from, members, snapshotCount)
	if err != nil {
		return err
	}
	defer harness.StopAll(ns)
	n := ns[members-1]
	before, err := tell(n)
	if err != nil {
		return err
	}
	for _, n := range ns {
		n.Kill()
	}
	plain := n.Args
	n.Bin, n.Args = to, append(append([]string{}, plain...), "--force-new-cluster")
	if err := n.Start(); err != nil {
		return err
	}
	if err := only(n); err != nil {
		return fmt.Errorf("forced: %w", err)
	}
	if err := before.sameAs(n); err != nil {
		return fmt.Errorf("forced: %w", err)
	}
	if err := randomHistory(n, o.r, 200); err != nil {
		return err
	}
	// Forced again, as by a start script, and then both servers without the flag.
	for i, bin := range []string{to, from, to} {
		if before, err = tell(n); err != nil {
			return err
		}
		n.Kill()
		n.Bin = bin
		if i > 0 {
			n.Args = plain
		}
		if err := n.Start(); err != nil {
			return err
		}
		who := fmt.Sprintf("start %d after it, %s", i+1, filepath.Base(bin))
		if err := only(n); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		if err := before.sameAs(n); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		if now, err := memberList(n); err != nil || now != before.members {
			return fmt.Errorf("%s: members %s, before %s (%v)", who, now, before.members, err)
		}
	}
	return nil
}

// start runs a server on a directory that is not its own.
func (o offline) start(bin, dir string, flags ...string) (*harness.Node, error) {
	ns, err := harness.Cluster(harness.Opts{Bins: []string{bin}, Extra: append([]string{"--data-dir", dir}, flags...)})
	if err != nil {
		return nil, err
	}
	ns[0].Dir = dir
	return ns[0], ns[0].Start()
}

// stopped makes a single member's directory whose server was killed.
func (o offline) stopped(bin string) (dir string, t told, err error) {
	ns, err := o.cluster(bin, 1, 100)
	if err != nil {
		return "", t, err
	}
	defer harness.StopAll(ns)
	if t, err = tell(ns[0]); err != nil {
		return "", t, err
	}
	if o.r.Intn(2) == 0 {
		ns[0].Term()
	} else {
		time.Sleep(300 * time.Millisecond) // etcd writes to its database every 100 ms
		ns[0].Kill()
	}
	return ns[0].Dir, t, nil
}

func (o offline) defragmented(from, to string) error {
	dir, before, err := o.stopped(from)
	if err != nil {
		return err
	}
	if out, err := run(o.etcdutl, "defrag", "--data-dir", dir); err != nil || strings.Contains(string(out), "Failed") {
		return fmt.Errorf("%v: %s", err, out)
	}
	if err := wholeDatabase(dir); err != nil {
		return err
	}
	n, err := o.start(to, dir)
	if err != nil {
		return err
	}
	defer harness.StopAll([]*harness.Node{n})
	if err := only(n); err != nil {
		return err
	}
	return before.sameAs(n)
}

// backedUp makes a backup as of old, which is another member of another cluster.
func (o offline) backedUp(from, to, tool string, v3 bool) error {
	dir, before, err := o.stopped(from)
	if err != nil {
		return err
	}
	backup := dir + ".backup"
	defer os.RemoveAll(backup)
	args := []string{"backup", "--data-dir", dir, "--backup-dir", backup}
	if v3 {
		args = append(args, "--with-v3")
	}
	if filepath.Base(tool) == "etcdctl" {
		args = append([]string{"ETCDCTL_API=2", tool}, args...)
		if _, err = run("env", args...); err != nil {
			return err
		}
	} else if _, err = run(tool, args...); err != nil {
		return err
	}
	n, err := o.start(to, backup, "--force-new-cluster")
	if err != nil {
		return err
	}
	defer harness.StopAll([]*harness.Node{n})
	if err := only(n); err != nil {
		return err
	}
	if v3 {
		if err := before.sameAs(n); err != nil {
			return err
		}
	} else if rev, err := n.Revision(); err != nil || rev > 10 {
		return fmt.Errorf("a backup without the store is at revision %d (%v)", rev, err)
	}
	now, err := tell(n)
	if err != nil {
		return err
	}
	for _, bin := range []string{to, from} {
		n.Kill()
		n.Bin = bin
		if err := n.Start(); err != nil {
			return err
		}
		if err := only(n); err != nil {
			return fmt.Errorf("%s once more: %w", filepath.Base(bin), err)
		}
		if err := now.sameAs(n); err != nil {
			return fmt.Errorf("%s once more: %w", filepath.Base(bin), err)
		}
	}
	return nil
}
