package main

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["damage"] = struct {
		run  func([]string) error
		help string
	}{runDamage, "stop, damage the files, restart: repaired, refused with a reason, or rebuilt - never served short"}
}

// history is what a damaged server must still serve: all of it.
type history struct {
	want map[string]ack
	rev  int64
	hash uint32
}

func runDamage(args []string) error {
	fl := flag.NewFlagSet("damage", flag.ExitOnError)
	server := fl.String("server", "", "the server")
	store := fl.String("store", "fjall", "directory below member/ that holds the rebuildable store")
	only := fl.String("only", "", "only cases whose name contains this")
	puts := fl.Int("puts", 3000, "acknowledged writes before the damage")
	perFile := fl.Int("flips", 3, "places flipped in each file of the store")
	seed := fl.Int64("seed", 1, "of places and bytes")
	ready := fl.Duration("ready", 30*time.Second, "longest time to readiness")
	extra := fl.String("flags", "", "further flags of the server, by space (small store buffers make more files)")
	random := fl.Int("random", 0, "so many random damages to every kind of file, instead of the cases")
	fl.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fl.Parse(args)
	if *server == "" {
		return errors.New("--server is needed")
	}
	bin, err := filepath.Abs(*server)
	if err != nil {
		return err
	}
	if *random > 0 {
		return randomDamage(bin, *random, *seed, *ready, strings.Fields(*extra))
	}
	ns, err := harness.Cluster(harness.Opts{Bins: []string{bin}, Extra: append([]string{"--log-level", "warn"}, strings.Fields(*extra)...)})
	if err != nil {
		return err
	}
	n := ns[0]
	defer harness.StopAll(ns)
	if err := harness.StartAll(ns, *ready); err != nil {
		return err
	}
	r := rand.New(rand.NewSource(*seed))
	h, err := makeHistory(n, *puts, r)
	if err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond) // the store commits behind the log
	n.Kill()
	good := n.Dir + ".good"
	if err := copyDir(n.Dir, good); err != nil {
		return err
	}
	wals, err := filepath.Glob(filepath.Join(good, "member", "wal", "*.wal"))
	if err != nil || len(wals) == 0 {
		return fmt.Errorf("no WAL segment in %s/member/wal", good)
	}
	sort.Strings(wals)
	last := filepath.Base(wals[len(wals)-1])
	records, tail, err := scanWAL(wals[len(wals)-1])
	if err != nil {
		return err
	}
	fmt.Printf("%d keys up to revision %d, WAL segment %s with %d records ending at %d\n", len(h.want), h.rev, last, len(records), tail)

	type kase struct {
		name   string
		damage func(dir string) error
		fatal  string // when not empty: must end, naming this file and an offset
	}
	wal := func(dir string) string { return filepath.Join(dir, "member", "wal", last) }
	var cases []kase
	// 1. A tail of something that was never acknowledged is cut off.
	// The frame of a record in the middle, as a crash leaves it: its beginning only.
	model := records[len(records)/2]
	frame := make([]byte, model.n+8)
	if f, err := os.Open(wals[len(wals)-1]); err != nil {
		return err
	} else {
		_, err = f.ReadAt(frame, model.off)
		f.Close()
		if err != nil {
			return err
		}
	}
	half := frame[8 : len(frame)/2]
	partial := frame[:len(frame)/2]
	cases = append(cases,
		kase{"none (the control)", func(string) error { return nil }, ""},
		kase{"WAL tail: a record announced, half written, then the end of the file", func(d string) error {
			if err := os.Truncate(wal(d), tail); err != nil {
				return err
			}
			return writeAt(wal(d), partial, tail)
		}, ""},
		kase{"WAL tail: a torn record with a sector of zeros", func(d string) error {
			// The first bytes of a record that reaches over a sector boundary; the
			// rest of it never reached the disk.
			n := 512 - tail%512
			if n < 8 || n >= int64(len(frame)) {
				n = 8
			}
			return writeAt(wal(d), frame[:n], tail)
		}, ""},
		kase{"WAL tail: half a length", func(d string) error {
			if err := os.Truncate(wal(d), tail); err != nil {
				return err
			}
			return writeAt(wal(d), []byte{7, 0, 0}, tail)
		}, ""},
		kase{"WAL tail: the preallocated zeros cut away", func(d string) error { return os.Truncate(wal(d), tail) }, ""},
		kase{"WAL: a half-made next segment (.tmp)", func(d string) error {
			return os.WriteFile(filepath.Join(d, "member", "wal", "1.tmp"), half, 0o600)
		}, ""},
	)
	// 2. A flipped byte with good records behind it is fatal.
	for i, part := range []float64{0.2, 0.5, 0.8} {
		rec := records[int(float64(len(records))*part)]
		off := rec.off + 8 + rec.n/2
		cases = append(cases, kase{fmt.Sprintf("WAL middle %d: a byte flipped in the record at %d", i+1, rec.off), func(d string) error {
			return flip(wal(d), off)
		}, last})
	}
	rec := records[len(records)/3]
	cases = append(cases,
		kase{fmt.Sprintf("WAL middle: the length at %d flipped", rec.off), func(d string) error { return flip(wal(d), rec.off) }, last},
		kase{fmt.Sprintf("WAL middle: the record at %d zeroed", rec.off), func(d string) error {
			return writeAt(wal(d), make([]byte, 8+rec.n), rec.off)
		}, last},
	)
	// 3. Any damage to the store is noticed, and it is rebuilt from the log.
	sdir := filepath.Join("member", *store)
	var files []string
	filepath.WalkDir(filepath.Join(good, sdir), func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			rel, _ := filepath.Rel(good, p)
			files = append(files, rel)
		}
		return nil
	})
	if len(files) == 0 {
		fmt.Printf("no files in %s: its cases are left out\n", sdir)
	} else {
		cases = append(cases, kase{"store: directory deleted", func(d string) error { return os.RemoveAll(filepath.Join(d, sdir)) }, ""},
			kase{"store: directory emptied", func(d string) error {
				if err := os.RemoveAll(filepath.Join(d, sdir)); err != nil {
					return err
				}
				return os.Mkdir(filepath.Join(d, sdir), 0o700)
			}, ""},
			kase{"store: a file where the directory was", func(d string) error {
				if err := os.RemoveAll(filepath.Join(d, sdir)); err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(d, sdir), half, 0o600)
			}, ""},
			kase{"store: every file cut to half", func(d string) error {
				for _, f := range files {
					st, err := os.Stat(filepath.Join(d, f))
					if err != nil {
						return err
					}
					if err := os.Truncate(filepath.Join(d, f), st.Size()/2); err != nil {
						return err
					}
				}
				return nil
			}, ""})
	}
	for _, f := range files {
		f := f
		st, err := os.Stat(filepath.Join(good, f))
		if err != nil {
			return err
		}
		size := st.Size()
		name, _ := filepath.Rel(sdir, f)
		cases = append(cases, kase{"store: " + name + " deleted", func(d string) error { return os.Remove(filepath.Join(d, f)) }, ""})
		if size == 0 {
			continue
		}
		for _, to := range []int64{0, size / 2, size - 1} {
			cases = append(cases, kase{fmt.Sprintf("store: %s cut from %d to %d", name, size, to), func(d string) error { return os.Truncate(filepath.Join(d, f), to) }, ""})
		}
		used := dataEnd(filepath.Join(good, f))
		for i := 0; i < *perFile; i++ {
			off := r.Int63n(max(used, 1))
			cases = append(cases, kase{fmt.Sprintf("store: %s flipped at %d of %d", name, off, used), func(d string) error { return flip(filepath.Join(d, f), off) }, ""})
		}
		if used > 8192 {
			hole := used / 2 &^ 4095
			cases = append(cases, kase{fmt.Sprintf("store: %s with 4 KiB of zeros at %d", name, hole), func(d string) error {
				return writeAt(filepath.Join(d, f), make([]byte, 4096), hole)
			}, ""})
		}
	}
	failed := 0
	start := time.Now()
	ran := 0
	for i, c := range cases {
		if *only != "" && !strings.Contains(c.name, *only) {
			continue
		}
		ran++
		err := func() error {
			if err := os.RemoveAll(n.Dir); err != nil {
				return err
			}
			if err := copyDir(good, n.Dir); err != nil {
				return err
			}
			if err := c.damage(n.Dir); err != nil {
				return fmt.Errorf("cannot damage: %w", err)
			}
			os.Remove(n.Log)
			defer n.Close()
			defer n.Kill()
			if err := n.Start(); err != nil {
				return err
			}
			if c.fatal != "" {
				return refused(n, c.fatal, *ready)
			}
			if err := n.WaitReady(*ready); err != nil {
				return err
			}
			if err := h.check(n); err != nil {
				return err
			}
			if err := n.Healthy(2 * time.Second); err != nil {
				return err
			}
			// And once more from what the repair left behind.
			n.Kill()
			if err := n.Start(); err != nil {
				return err
			}
			if err := n.WaitReady(*ready); err != nil {
				return fmt.Errorf("second restart: %w", err)
			}
			if err := h.check(n); err != nil {
				return fmt.Errorf("second restart: %w", err)
			}
			return nil
		}()
		mark := "ok  "
		if err != nil {
			mark = "FAIL"
			failed++
		}
		fmt.Printf("%s %s (%d/%d, %v)\n", mark, c.name, i+1, len(cases), time.Since(start).Round(time.Second))
		if err != nil {
			fmt.Println("    ", strings.ReplaceAll(fmt.Sprintf("%.2000s", err), "\n", "\n     "))
		}
	}
	r2, f2 := diskCases(bin, *only, *ready)
	ran, failed = ran+r2, failed+f2
	fmt.Printf("%d cases, %d failed\n", ran, failed)
	if failed > 0 {
		return fmt.Errorf("%d cases failed", failed)
	}
	if ran == 0 {
		return errors.New("no case ran")
	}
	return nil
}

// put writes a key, and notes it.
func (h *history) put(ctx context.Context, n *harness.Node, k, v string, lease int64) error {
	p, err := n.KV().Put(ctx, &pb.PutRequest{Key: []byte(k), Value: []byte(v), Lease: lease})
	if err != nil {
		return err
	}
	h.rev = p.Header.Revision
	h.want[k] = ack{k, v, h.rev}
	return nil
}

// remove deletes a key, and notes it.
func (h *history) remove(ctx context.Context, n *harness.Node, k string) error {
	d, err := n.KV().DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte(k)})
	if err != nil {
		return err
	}
	delete(h.want, k)
	h.rev = d.Header.Revision
	return nil
}

// makeHistory writes overwrites, deletes, leases and a compaction too, so that
// a rebuilt store has more to get right than a set of puts.
func makeHistory(n *harness.Node, puts int, r *rand.Rand) (*history, error) {
	h := &history{want: map[string]ack{}}
	ctx, c := harness.Ctx(5 * time.Minute)
	defer c()
	if _, err := pb.NewLeaseClient(n.Conn()).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 7, TTL: 100_000}); err != nil {
		return nil, err
	}
	for i := 0; i < puts; i++ {
		k := fmt.Sprintf("d/%05d", r.Intn(puts))
		if i%17 == 0 {
			if err := h.remove(ctx, n, k); err != nil {
				return nil, err
			}
			continue
		}
		v := fmt.Sprintf("%d-%s", i, strings.Repeat("y", r.Intn(300)))
		var lease int64
		if i%11 == 0 {
			lease = 7
		}
		if err := h.put(ctx, n, k, v, lease); err != nil {
			return nil, err
		}
		if i == puts/2 {
			if _, err := n.KV().Compact(ctx, &pb.CompactionRequest{Revision: h.rev - int64(puts/4), Physical: true}); err != nil {
				return nil, err
			}
		}
	}
	var err error
	h.hash, _, err = n.HashAt(h.rev)
	return h, err
}

func (h *history) check(n *harness.Node) error {
	ctx, c := harness.Ctx(20 * time.Second)
	defer c()
	r, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte("d/"), RangeEnd: []byte("d0")})
	if err != nil {
		return err
	}
	if r.Header.Revision < h.rev {
		return fmt.Errorf("revision went back from %d to %d", h.rev, r.Header.Revision)
	}
	if len(r.Kvs) != len(h.want) {
		return fmt.Errorf("%d keys, %d acknowledged", len(r.Kvs), len(h.want))
	}
	leased := 0
	for _, kv := range r.Kvs {
		a, ok := h.want[string(kv.Key)]
		if !ok || a.val != string(kv.Value) || a.rev != kv.ModRevision {
			return fmt.Errorf("%s: acknowledged %.40q at %d, found %.40q at %d", kv.Key, a.val, a.rev, kv.Value, kv.ModRevision)
		}
		if kv.Lease == 7 {
			leased++
		}
	}
	t, err := pb.NewLeaseClient(n.Conn()).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 7, Keys: true})
	if err != nil {
		return err
	}
	if t.GrantedTTL != 100_000 || len(t.Keys) != leased {
		return fmt.Errorf("the lease: TTL %d granted, %d keys, %d of the keys carry it", t.GrantedTTL, len(t.Keys), leased)
	}
	hash, _, err := n.HashAt(h.rev)
	if err != nil {
		return err
	}
	if hash != h.hash {
		return fmt.Errorf("HashKV(%d) was %08x and is %08x", h.rev, h.hash, hash)
	}
	return nil
}

var offsetWord = regexp.MustCompile(`(?i)offset\D{0,12}\d+`)

// refused wants the process to end by itself, not by a signal, with a message
// that names the file and an offset.
func refused(n *harness.Node, file string, d time.Duration) error {
	code, exited := 0, false
	for end := time.Now().Add(d); !exited && time.Now().Before(end); {
		if code, exited = n.WaitExit(200 * time.Millisecond); exited {
			break
		}
		ctx, c := harness.Ctx(200 * time.Millisecond)
		_, err := n.KV().Range(ctx, &pb.RangeRequest{Key: []byte("d/")})
		c()
		if err == nil {
			break
		}
	}
	if !exited {
		return errors.New("it runs although a record in the middle of the WAL is damaged")
	}
	if code == 0 {
		return errors.New("it ended with exit code 0")
	}
	if code < 0 {
		return errors.New("it was ended by a signal; its log ends:\n" + n.LogTail(8))
	}
	b, err := os.ReadFile(n.Log)
	if err != nil {
		return err
	}
	for _, l := range strings.Split(string(b), "\n") {
		if strings.Contains(l, file) && offsetWord.MatchString(l) {
			return nil
		}
	}
	return fmt.Errorf("it ended with %d, but no line of its log names %s and an offset; the log ends:\n%s", code, file, n.LogTail(8))
}

type record struct{ off, n int64 }

// scanWAL finds the records of a segment: each is a little-endian length (its
// low 56 bits; the top byte, when its high bit is set, counts the padding) and
// that many bytes. A length of zero ends it.
func scanWAL(path string) (recs []record, end int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	var b [8]byte
	for end+8 <= st.Size() {
		if _, err := f.ReadAt(b[:], end); err != nil {
			return nil, 0, err
		}
		v := binary.LittleEndian.Uint64(b[:])
		if v == 0 {
			break
		}
		n := int64(v & (1<<56 - 1))
		if v>>63 != 0 {
			n += int64(v >> 56 & 7)
		}
		if end+8+n > st.Size() {
			break // torn by the kill
		}
		recs = append(recs, record{end, n})
		end += 8 + n
	}
	if len(recs) < 20 {
		return nil, 0, fmt.Errorf("%s: only %d records found", path, len(recs))
	}
	return recs, end, nil
}

func leU64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// dataEnd is the offset behind the last byte that is not zero.
func dataEnd(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return int64(len(b))
}

func writeAt(path string, b []byte, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(b, off)
	return err
}

func flip(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return err
	}
	b[0] ^= 0x41
	_, err = f.WriteAt(b[:], off)
	return err
}

// copyDir copies files sparsely, so that preallocated segments stay cheap.
func copyDir(from, to string) error {
	return filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if e.IsDir() {
			return os.MkdirAll(dst, 0o700)
		}
		if !e.Type().IsRegular() {
			return nil
		}
		in, err := os.Open(p)
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(dst, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer out.Close()
		buf := make([]byte, 1<<16)
		zero := make([]byte, 1<<16)
		var off int64
		for {
			n, err := io.ReadFull(in, buf)
			if n > 0 && string(buf[:n]) != string(zero[:n]) {
				if _, err := out.WriteAt(buf[:n], off); err != nil {
					return err
				}
			}
			off += int64(n)
			if err == io.EOF || err == io.ErrUnexpectedEOF {
				break
			}
			if err != nil {
				return err
			}
		}
		return out.Truncate(off)
	})
}
