package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"rusd/judge/harness"
)

func init() {
	commands["snapshot"] = struct {
		run  func([]string) error
		help string
	}{runSnapshot, "snapshots taken under writers: status, bbolt's check, restored into etcd, the same state; memory"}
}

type snapTools struct{ server, etcd, etcdctl, etcdutl string }

func runSnapshot(args []string) error {
	fl := flag.NewFlagSet("snapshot", flag.ExitOnError)
	var t snapTools
	fl.StringVar(&t.server, "server", "", "the server that makes snapshots")
	fl.StringVar(&t.etcd, "etcd", "", "the etcd that they are restored into")
	fl.StringVar(&t.etcdctl, "etcdctl", "", "etcdctl")
	fl.StringVar(&t.etcdutl, "etcdutl", "", "etcdutl")
	seeds := fl.Int("seeds", 3, "histories")
	first := fl.Int64("seed", 1, "the first seed")
	ops := fl.Int("ops", 1500, "requests of a history")
	big := fl.Int("big", 200, "MB of the store whose snapshot is measured; 0 for none")
	size := fl.Int("value", 8192, "bytes of a value in it")
	fl.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fl.Parse(args)
	for _, p := range []*string{&t.server, &t.etcd, &t.etcdctl, &t.etcdutl} {
		if *p == "" {
			return errors.New("--server, --etcd, --etcdctl and --etcdutl are needed")
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	for s := *first; s < *first+int64(*seeds); s++ {
		if err := snapHistory(t, s, *ops); err != nil {
			return fmt.Errorf("seed %d: %w", s, err)
		}
	}
	if *big > 0 {
		return snapBig(t, *big, *size)
	}
	return nil
}

// randomHistory puts, deletes, leases and compacts; the leases are left for the caller to compare.
func randomHistory(n *harness.Node, r *rand.Rand, ops int) error {
	kv, lease := n.KV(), pb.NewLeaseClient(n.Conn())
	key := func() []byte { return []byte(fmt.Sprintf("key/%03d", r.Intn(200))) }
	var leases []int64
	size := func() int {
		switch r.Intn(20) {
		case 0:
			return 3000 + r.Intn(60000)
		case 1, 2, 3:
			return 300 + r.Intn(2000)
		}
		return r.Intn(80)
	}
	for i := 0; i < ops; i++ {
		ctx, c := harness.Ctx(10 * time.Second)
		var err error
		switch p := r.Intn(100); {
		case p < 65:
			put := &pb.PutRequest{Key: key(), Value: bytes.Repeat([]byte{byte(i)}, size())}
			if len(leases) > 0 && r.Intn(4) == 0 {
				put.Lease = leases[r.Intn(len(leases))]
			}
			_, err = kv.Put(ctx, put)
		case p < 80:
			_, err = kv.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key()})
		case p < 88:
			op := func() *pb.RequestOp {
				return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key(), Value: []byte("txn")}}}
			}
			a, b := op(), op()
			if !bytes.Equal(a.GetRequestPut().Key, b.GetRequestPut().Key) {
				_, err = kv.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{a, b}})
			}
		case p < 92 && len(leases) < 40:
			var g *pb.LeaseGrantResponse
			if g, err = lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 3600 + int64(r.Intn(1000))}); err == nil {
				leases = append(leases, g.ID)
			}
		case p < 94 && len(leases) > 3:
			at := r.Intn(len(leases))
			_, err = lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: leases[at]})
			leases = append(leases[:at], leases[at+1:]...)
		case p < 95:
			var rev int64
			if rev, err = n.Revision(); err == nil && rev > 20 {
				_, err = kv.Compact(ctx, &pb.CompactionRequest{Revision: rev - int64(r.Intn(20)), Physical: r.Intn(2) == 0})
				if err != nil && grpc.ErrorDesc(err) == "etcdserver: mvcc: required revision has been compacted" {
					err = nil
				}
			}
		}
		c()
		if err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
	}
	return nil
}

// writers write until stop is closed.
func writers(n *harness.Node, count, size int, stop <-chan struct{}) (wait func() int64) {
	var done atomic.Int64
	return countedWriters(n, count, size, stop, &done)
}

func countedWriters(n *harness.Node, count, size int, stop <-chan struct{}, done *atomic.Int64) (wait func() int64) {
	var wg sync.WaitGroup
	for w := 0; w < count; w++ {
		wg.Add(1)
		go func(w int) {
			defer wg.Done()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				ctx, c := harness.Ctx(10 * time.Second)
				if _, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("writer/%d/%d", w, i%50)), Value: make([]byte, size)}); err == nil {
					done.Add(1)
				}
				c()
			}
		}(w)
	}
	return func() int64 { wg.Wait(); return done.Load() }
}

func run(bin string, args ...string) ([]byte, error) {
	ctx, c := context.WithTimeout(context.Background(), 2*time.Minute)
	defer c()
	cmd := exec.CommandContext(ctx, bin, args...)
	cmd.Env = append(os.Environ(), "ETCDCTL_API=3", "ETCD_VERIFY=all")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("%s %v: %w\n%s", filepath.Base(bin), args, err, out)
	}
	return out, nil
}

type snapStatus struct {
	Hash      uint32 `json:"hash"`
	Revision  int64  `json:"revision"`
	TotalKey  int    `json:"totalKey"`
	TotalSize int64  `json:"totalSize"`
}

func (t snapTools) status(file string) (st snapStatus, err error) {
	out, err := run(t.etcdutl, "snapshot", "status", "-w", "json", file)
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(out[bytes.IndexByte(out, '{'):], &st)
}

// restored makes members of the snapshot.
func (t snapTools) restored(file string, bins ...string) ([]*harness.Node, error) {
	ns, err := harness.Cluster(harness.Opts{Bins: bins, Token: "restored"})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, n := range ns {
		all = append(all, n.Name+"="+n.Peer)
	}
	for _, n := range ns {
		if _, err := run(t.etcdutl, "snapshot", "restore", file, "--name", n.Name, "--data-dir", n.Dir,
			"--initial-cluster", strings.Join(all, ","), "--initial-advertise-peer-urls", n.Peer, "--initial-cluster-token", "restored"); err != nil {
			return nil, err
		}
	}
	return ns, nil
}

// stateAt prints all keys at a revision and all leases with their keys.
func stateAt(n *harness.Node, rev int64) (string, error) {
	ctx, c := harness.Ctx(20 * time.Second)
	defer c()
	r, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	for _, kv := range r.Kvs {
		fmt.Fprintf(&out, "%s create %d mod %d version %d lease %x value %d %x\n", kv.Key, kv.CreateRevision, kv.ModRevision, kv.Version, kv.Lease, len(kv.Value), kv.Value[:min(8, len(kv.Value))])
	}
	lc := pb.NewLeaseClient(n.Conn())
	ls, err := lc.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return "", err
	}
	var lines []string
	for _, l := range ls.Leases {
		ttl, err := lc.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: l.ID, Keys: true})
		if err != nil {
			return "", err
		}
		keys := make([]string, 0, len(ttl.Keys))
		for _, k := range ttl.Keys {
			keys = append(keys, string(k))
		}
		sort.Strings(keys)
		lines = append(lines, fmt.Sprintf("lease %x of %d: %v\n", l.ID, ttl.GrantedTTL, keys))
	}
	sort.Strings(lines)
	for _, l := range lines {
		out.WriteString(l)
	}
	return out.String(), nil
}

func firstDifference(a, b string) string {
	al, bl := bytes.Split([]byte(a), []byte("\n")), bytes.Split([]byte(b), []byte("\n"))
	for i := 0; i < max(len(al), len(bl)); i++ {
		var x, y []byte
		if i < len(al) {
			x = al[i]
		}
		if i < len(bl) {
			y = bl[i]
		}
		if !bytes.Equal(x, y) {
			return fmt.Sprintf("%q against %q", x, y)
		}
	}
	return ""
}

func snapHistory(t snapTools, seed int64, ops int) error {
	r := rand.New(rand.NewSource(seed))
	n, err := harness.Single(harness.Opts{Bins: []string{t.server}, Extra: []string{"--experimental-compaction-batch-limit", "50"}})
	if err != nil {
		return err
	}
	defer n.End()
	if err := randomHistory(n, r, ops); err != nil {
		return err
	}
	if err := leaveEarly(n, r); err != nil {
		return err
	}
	stop := make(chan struct{})
	wait := writers(n, 4, 1+r.Intn(3000), stop)
	file := filepath.Join(harness.TempDir(), fmt.Sprintf("snapshot-%d.db", seed))
	_, err = run(t.etcdctl, "--endpoints", n.Addr, "snapshot", "save", file)
	close(stop)
	writes := wait()
	if err != nil {
		return err
	}
	st, err := t.status(file)
	if err != nil {
		return err
	}
	if err := exercise(file, r); err != nil {
		return fmt.Errorf("bbolt on the snapshot: %w", err)
	}
	hash, _, err := n.HashAt(st.Revision)
	if err != nil {
		return err
	}
	state, err := stateAt(n, st.Revision)
	if err != nil {
		return err
	}
	for _, bin := range []string{t.etcd, t.server} {
		if err := t.same(bin, file, st.Revision, hash, state); err != nil {
			return fmt.Errorf("restored into %s: %w", filepath.Base(bin), err)
		}
	}
	if err := t.together(file, st.Revision, hash); err != nil {
		return fmt.Errorf("restored into a cluster of three: %w", err)
	}
	fmt.Printf("snapshot: seed %d: revision %d, %d rows, %d bytes, %d writes meanwhile; restored into both, taken over 4 times each, and into three together, with the same HashKV %08x, keys and leases\n",
		seed, st.Revision, st.TotalKey, st.TotalSize, writes, hash)
	return nil
}

// same restores the snapshot, wants the same state, and lets the two servers take the directory over
// from each other, each after it wrote and was killed.
func (t snapTools) same(bin, file string, rev int64, hash uint32, state string) error {
	ns, err := t.restored(file, bin)
	if err != nil {
		return err
	}
	n := ns[0]
	defer harness.StopAll(ns)
	if err := harness.StartAll(ns, 30*time.Second); err != nil {
		return err
	}
	at, err := n.Revision()
	if err != nil {
		return err
	}
	if at != rev {
		return fmt.Errorf("it is at revision %d, status said %d", at, rev)
	}
	if h, _, err := n.HashAt(rev); err != nil || h != hash {
		return fmt.Errorf("HashKV at %d: %08x, restored %08x (%v)", rev, hash, h, err)
	}
	restored, err := stateAt(n, rev)
	if err != nil {
		return err
	}
	if state != restored {
		return fmt.Errorf("the state differs: %s", firstDifference(state, restored))
	}
	for round := 0; round < 4; round++ {
		if err := n.Healthy(5 * time.Second); err != nil {
			return err
		}
		for i := 0; i < 200; i++ {
			ctx, c := harness.Ctx(5 * time.Second)
			_, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("round/%d/%d", round, i%60)), Value: make([]byte, i)})
			c()
			if err != nil {
				return err
			}
		}
		if at, err = n.Revision(); err != nil {
			return err
		}
		if hash, _, err = n.HashAt(at); err != nil {
			return err
		}
		if state, err = stateAt(n, at); err != nil {
			return err
		}
		n.Kill()
		n.Close()
		n.Bin = t.etcd
		if round%2 == 0 {
			n.Bin = t.server
		}
		if err := n.Start(); err != nil {
			return err
		}
		if err := n.WaitReady(30 * time.Second); err != nil {
			return err
		}
		who := filepath.Base(n.Bin)
		if h, _, err := n.HashAt(at); err != nil || h != hash {
			return fmt.Errorf("%s took it over in round %d: HashKV at %d: %08x, before %08x (%v)", who, round, at, h, hash, err)
		}
		if now, err := stateAt(n, at); err != nil || now != state {
			return fmt.Errorf("%s took it over in round %d: the state differs: %s (%v)", who, round, firstDifference(state, now), err)
		}
	}
	return nil
}

// together restores the snapshot into an etcd and two of the server, which go on as one cluster, each
// killed and started again in turn while the others write.
func (t snapTools) together(file string, rev int64, hash uint32) error {
	ns, err := t.restored(file, t.etcd, t.server, t.server)
	if err != nil {
		return err
	}
	defer harness.StopAll(ns)
	if err := harness.StartAll(ns, 30*time.Second); err != nil {
		return err
	}
	for _, n := range ns {
		if h, _, err := n.HashAt(rev); err != nil || h != hash {
			return fmt.Errorf("%s: HashKV at %d: %08x, before %08x (%v)", n.Name, rev, h, hash, err)
		}
	}
	for i, n := range ns {
		n.Kill()
		stop := make(chan struct{})
		var done atomic.Int64
		wait := countedWriters(ns[(i+1)%3], 4, 300, stop, &done)
		// With its leader gone the cluster elects another first.
		for end := time.Now().Add(15 * time.Second); done.Load() < 100 && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
		wrote := done.Load()
		err := n.Start()
		if err == nil {
			err = n.WaitReady(30 * time.Second)
		}
		close(stop)
		wait()
		if wrote < 100 && err == nil {
			err = fmt.Errorf("without %s (%s), two of three took %d writes in 15 s", n.Name, filepath.Base(n.Bin), wrote)
		}
		if err != nil {
			return err
		}
		if _, _, err := harness.SameHash(ns); err != nil {
			return err
		}
	}
	return nil
}

// leaveEarly begins snapshots and goes away.
func leaveEarly(n *harness.Node, r *rand.Rand) error {
	for i := 0; i < 20; i++ {
		ctx, c := harness.Ctx(5 * time.Second)
		s, err := n.Maint().Snapshot(ctx, &pb.SnapshotRequest{})
		for k := r.Intn(3); k > 0 && err == nil; k-- {
			_, err = s.Recv()
		}
		c()
		if err != nil && err != io.EOF {
			return fmt.Errorf("a snapshot that is left early: %w", err)
		}
	}
	return n.Healthy(5 * time.Second)
}

// exercise lets bbolt check the file, change it in many ways, and check it again.
func exercise(file string, r *rand.Rand) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if len(b)%512 != 32 {
		return fmt.Errorf("%d bytes are not pages and a digest", len(b))
	}
	copied := file + ".changed"
	if err := os.WriteFile(copied, b[:len(b)-32], 0o600); err != nil {
		return err
	}
	defer os.Remove(copied)
	db, err := bolt.Open(copied, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		return err
	}
	defer db.Close()
	if err := checkBolt(db); err != nil {
		return err
	}
	for round := 0; round < 6; round++ {
		err := db.Update(func(tx *bolt.Tx) error {
			return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
				var keys [][]byte
				b.ForEach(func(k, _ []byte) error { keys = append(keys, append([]byte(nil), k...)); return nil })
				for i, k := range keys {
					// Ends of the tree first, then more and more of all of it.
					last := len(keys)-i < 40
					if (round < 2 && last && r.Intn(2) == 0) || (round >= 2 && r.Intn(8) < round) {
						if err := b.Delete(k); err != nil {
							return err
						}
					}
				}
				for i := 0; i < r.Intn(30); i++ {
					k := []byte(fmt.Sprintf("\xff%d/%d", round, r.Intn(1000)))
					if err := b.Put(k, make([]byte, r.Intn(6000))); err != nil {
						return err
					}
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
		if err := checkBolt(db); err != nil {
			return fmt.Errorf("after round %d: %w", round, err)
		}
	}
	return nil
}

// snapBig measures a snapshot of a large store, taken by a fast client and beside one that stands still.
func snapBig(t snapTools, mb, size int) error {
	n, err := harness.Single(harness.Opts{Bins: []string{t.server}})
	if err != nil {
		return err
	}
	defer n.End()
	value := make([]byte, size)
	count := int64(mb) << 20 / int64(size)
	rand.New(rand.NewSource(1)).Read(value)
	var wg sync.WaitGroup
	var next, failed atomic.Int64
	for w := 0; w < 16; w++ {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				i := next.Add(1)
				if i > count {
					return
				}
				ctx, c := harness.Ctx(10 * time.Second)
				if _, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(fmt.Sprintf("big/%d", i)), Value: value}); err != nil {
					failed.Add(1)
				}
				c()
			}
		}()
	}
	wg.Wait()
	if failed.Load() > 0 {
		return fmt.Errorf("%d puts failed", failed.Load())
	}
	time.Sleep(2 * time.Second)
	before := n.RSS()
	var peak atomic.Int64
	stop := make(chan struct{})
	var sampler sync.WaitGroup
	sampler.Add(1)
	go func() {
		defer sampler.Done()
		for {
			peak.Store(max(peak.Load(), n.RSS()))
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	ctx, cancel := harness.Ctx(2 * time.Minute)
	defer cancel()
	// A client that takes one message and then stands still.
	still := n.Dial()
	defer still.Close()
	s, err := pb.NewMaintenanceClient(still).Snapshot(ctx, &pb.SnapshotRequest{})
	if err == nil {
		_, err = s.Recv()
	}
	if err != nil {
		return err
	}
	file, err := os.Create(filepath.Join(harness.TempDir(), "snapshot-big.db"))
	if err != nil {
		return err
	}
	defer file.Close()
	begin := time.Now()
	s, err = n.Maint().Snapshot(ctx, &pb.SnapshotRequest{})
	if err != nil {
		return err
	}
	var first time.Duration
	var got int64
	var last *pb.SnapshotResponse
	for {
		m, err := s.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if got == 0 {
			first = time.Since(begin)
			if want := m.RemainingBytes + uint64(len(m.Blob)); want%4096 != 0 {
				return fmt.Errorf("%d bytes announced are no pages", want)
			}
		}
		got += int64(len(m.Blob))
		if _, err := file.Write(m.Blob); err != nil {
			return err
		}
		last = m
	}
	took := time.Since(begin)
	if last == nil || last.RemainingBytes != 0 || len(last.Blob) != 32 {
		return errors.New("the stream does not end with a digest")
	}
	close(stop)
	sampler.Wait()
	fmt.Printf("snapshot: %d MB of values: %d bytes in %v (first message after %v); resident %d MB before, %d MB at most, with one client standing still\n",
		mb, got, took.Round(time.Millisecond), first.Round(time.Millisecond), before>>20, peak.Load()>>20)
	if grown := peak.Load() - before; grown > 64<<20 {
		return fmt.Errorf("the server grew by %d MB", grown>>20)
	}
	n.End()
	for _, bin := range []string{t.etcd, t.server} {
		began := time.Now()
		ms, err := t.restored(file.Name(), bin)
		if err != nil {
			return err
		}
		made := time.Since(began)
		if err := harness.StartAll(ms, time.Minute); err != nil {
			return err
		}
		fmt.Printf("snapshot: %s serves %v after it was started on the restored %d values; resident %d MB\n",
			filepath.Base(bin), (time.Since(began) - made).Round(time.Millisecond), count, ms[0].RSS()>>20)
		harness.StopAll(ms)
	}
	return nil
}
