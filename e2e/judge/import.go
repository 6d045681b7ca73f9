package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["import"] = struct {
		run  func([]string) error
		help string
	}{runImport, "a directory of an etcd that has released parts of its log, taken over and given back"}
}

func runImport(args []string) error {
	fl := flag.NewFlagSet("import", flag.ExitOnError)
	server := fl.String("server", "", "the server that takes over")
	etcd := fl.String("etcd", "", "the etcd before and after it")
	mb := fl.Int("mb", 200, "MB written, so that segments of the log are released; 64 MB are one")
	seed := fl.Int64("seed", 1, "of the history")
	fl.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fl.Parse(args)
	if *server == "" || *etcd == "" {
		return errors.New("--server and --etcd are needed")
	}
	if err := absolute(server, etcd); err != nil {
		return err
	}
	// Flags that both servers know.
	extra := []string{"--snapshot-count", "500", "--max-wals", "1", "--max-snapshots", "1"}
	n, err := harness.Single(harness.Opts{Bins: []string{*etcd}, Extra: extra})
	if err != nil {
		return err
	}
	defer n.End()
	if err := randomHistory(n, rand.New(rand.NewSource(*seed)), 500); err != nil {
		return err
	}
	if err := changeMembers(n); err != nil {
		return err
	}
	if err := fill(n, *mb); err != nil {
		return err
	}
	if err := released(n); err != nil {
		return err
	}
	for round, bin := range []string{*server, *etcd, *server} {
		rev, err := n.Revision()
		if err != nil {
			return err
		}
		hash, _, err := n.HashAt(rev)
		if err != nil {
			return err
		}
		before, err := stateAt(n, rev)
		if err != nil {
			return err
		}
		members, err := memberList(n)
		if err != nil {
			return err
		}
		n.End()
		n.Bin = bin
		began := time.Now()
		if err := harness.StartAll([]*harness.Node{n}, time.Minute); err != nil {
			return err
		}
		took := time.Since(began)
		who := fmt.Sprintf("%s in round %d", filepath.Base(bin), round)
		if h, _, err := n.HashAt(rev); err != nil || h != hash {
			return fmt.Errorf("%s: HashKV at %d: %08x, before %08x (%v)", who, rev, h, hash, err)
		}
		if after, err := stateAt(n, rev); err != nil || after != before {
			return fmt.Errorf("%s: the state differs: %s (%v)", who, firstDifference(before, after), err)
		}
		if now, err := memberList(n); err != nil || now != members {
			return fmt.Errorf("%s: members %s, before %s (%v)", who, now, members, err)
		}
		fmt.Printf("import: %s took over at revision %d after %v: same HashKV, keys, leases and members\n", who, rev, took.Round(time.Millisecond))
		if err := fill(n, 2); err != nil {
			return err
		}
	}
	return nil
}

// changeMembers adds a learner that never starts and removes it, so that its id is known as removed.
func changeMembers(n *harness.Node) error {
	ctx, c := harness.Ctx(10 * time.Second)
	defer c()
	cc := pb.NewClusterClient(n.Conn())
	a, err := cc.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:1"}, IsLearner: true})
	if err != nil {
		return err
	}
	_, err = cc.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: a.Member.ID})
	return err
}

func memberList(n *harness.Node) (string, error) {
	ctx, c := harness.Ctx(10 * time.Second)
	defer c()
	r, err := pb.NewClusterClient(n.Conn()).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%x %v", r.Header.ClusterId, r.Members), nil
}

// fill writes values of 100 KB under a few keys.
func fill(n *harness.Node, mb int) error {
	value := bytes.Repeat([]byte{'v'}, 100<<10)
	var next, failed atomic.Int64
	var wg sync.WaitGroup
	for w := 0; w < 8; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := next.Add(1); i <= int64(mb)*10; i = next.Add(1) {
				ctx, c := harness.Ctx(20 * time.Second)
				if _, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("fill/%d", i%20)), Value: value}); err != nil {
					failed.Add(1)
				}
				c()
			}
		}()
	}
	wg.Wait()
	if f := failed.Load(); f > 0 {
		return fmt.Errorf("%d puts failed", f)
	}
	return nil
}

// released waits until the first segment of the log is gone; etcd looks every 30 s.
func released(n *harness.Node) error {
	for end := time.Now().Add(50 * time.Second); time.Now().Before(end); time.Sleep(500 * time.Millisecond) {
		first, err := filepath.Glob(filepath.Join(n.Dir, "member", "wal", "0000000000000000-*.wal"))
		if err != nil || len(first) == 0 {
			return err
		}
	}
	return errors.New("the server has released nothing of its log")
}
