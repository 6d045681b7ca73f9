package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

// fullDisk gives a server a small file system of its own and writes until that is full. The server
// must end by itself and say why; on a larger disk everything acknowledged must be there again.
// apart puts the WAL on the large disk, so that only the store's is full. Skipped is said where this
// user may not mount.
func fullDisk(bin string, apart bool, ready time.Duration) (skipped bool, err error) {
	ns, err := harness.Cluster(harness.Opts{Bins: []string{bin}, Extra: []string{"--log-level", "warn"}})
	if err != nil {
		return false, err
	}
	n := ns[0]
	defer harness.StopAll(ns)
	if err := os.MkdirAll(n.Dir, 0o700); err != nil {
		return false, err
	}
	size := "size=150m" // two segments of the WAL and a little
	if apart {
		size = "size=20m"
		wal := n.Dir + ".wal"
		if err := os.MkdirAll(wal, 0o700); err != nil {
			return false, err
		}
		n.Args = append(n.Args, "--wal-dir", wal)
	}
	if err := mountSmall(n.Dir, size, false); err != nil {
		if errors.Is(err, os.ErrPermission) {
			return true, nil
		}
		return false, fmt.Errorf("mount: %w", err)
	}
	defer func() { n.Kill(); unmountSmall(n.Dir) }()
	if err := harness.StartAll(ns, ready); err != nil {
		return false, err
	}
	var mu sync.Mutex
	acks := map[string]int64{}
	var wg sync.WaitGroup
	for w := 0; w < 4; w++ {
		wg.Add(1)
		go func(w int) {
			defer wg.Done()
			for i := 0; i < 5000; i++ { // far more than there is room for
				ctx, c := harness.Ctx(5 * time.Second)
				k := fmt.Sprintf("full/%d/%05d", w, i)
				r, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(k), Value: []byte(strings.Repeat(k, 4000))})
				c()
				if err != nil {
					return
				}
				mu.Lock()
				acks[k] = r.Header.Revision
				mu.Unlock()
			}
		}(w)
	}
	wg.Wait()
	code, exited := n.WaitExit(20 * time.Second)
	switch {
	case !exited:
		return false, fmt.Errorf("it runs on a full disk after %d writes; its log ends:\n%s", len(acks), n.LogTail(8))
	case code <= 0:
		return false, fmt.Errorf("it ended with %d; its log ends:\n%s", code, n.LogTail(8))
	}
	b, err := os.ReadFile(n.Log)
	if err != nil {
		return false, err
	}
	if !strings.Contains(strings.ToLower(string(b)), "no space left on device") {
		return false, fmt.Errorf("no line of its log says that the disk is full; it ends:\n%s", n.LogTail(8))
	}
	if len(acks) == 0 {
		return false, errors.New("nothing was acknowledged before the disk was full")
	}
	if err := mountSmall(n.Dir, "size=1g", true); err != nil {
		return false, err
	}
	if err := n.Start(); err != nil {
		return false, err
	}
	if err := n.WaitReady(ready); err != nil {
		return false, err
	}
	for w := 0; w < 4; w++ {
		ctx, c := harness.Ctx(20 * time.Second)
		p := fmt.Sprintf("full/%d/", w)
		r, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte(p), RangeEnd: prefixEnd([]byte(p)), KeysOnly: true})
		c()
		if err != nil {
			return false, err
		}
		for _, kv := range r.Kvs {
			if rev, ok := acks[string(kv.Key)]; ok && rev == kv.ModRevision {
				delete(acks, string(kv.Key))
			}
		}
	}
	if len(acks) > 0 {
		return false, fmt.Errorf("%d acknowledged writes are lost", len(acks))
	}
	return false, n.Healthy(2 * time.Second)
}

// diskCases runs both, and says how many failed.
func diskCases(bin, only string, ready time.Duration) (ran, failed int) {
	for _, apart := range []bool{false, true} {
		name := "disk: full, WAL and store"
		if apart {
			name = "disk: full, the store's only"
		}
		if !strings.Contains(name, only) {
			continue
		}
		t := time.Now()
		skipped, err := fullDisk(bin, apart, ready)
		switch {
		case err != nil:
			failed++
			fmt.Printf("FAIL %s\n     %s\n", name, strings.ReplaceAll(err.Error(), "\n", "\n     "))
		case skipped:
			fmt.Printf("left out: %s (this user may not mount a file system)\n", name)
			continue
		default:
			fmt.Printf("ok   %s (%v)\n", name, time.Since(t).Round(time.Second))
		}
		ran++
	}
	return ran, failed
}
