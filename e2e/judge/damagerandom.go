package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

// patient is a stopped member's directory, whole, with what it must serve, and the same directory as it
// was some time before.
type patient struct {
	name        string
	good, older string
	h           *history
	files       []string // relative, sorted
}

// randomDamage damages a directory in one random way at a time. Each time the server must serve exactly
// what was acknowledged, or end by itself with a message that names a file and says what is wrong.
func randomDamage(bin string, count int, seed int64, ready time.Duration, extra []string) error {
	var patients []patient
	for i, clean := range []bool{false, true, false} {
		p, err := makePatient(bin, seed+int64(i), clean, i == 2, extra)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %d keys up to revision %d, %d files\n", p.name, len(p.h.want), p.h.rev, len(p.files))
		patients = append(patients, p)
	}
	const workers = 3
	var mu sync.Mutex
	var wg sync.WaitGroup
	next, failed, served, refusals := 0, 0, 0, map[string]int{}
	began := time.Now()
	for w := 0; w < workers; w++ {
		ns, err := harness.Cluster(harness.Opts{Bins: []string{bin}, Extra: append([]string{"--log-level", "warn"}, extra...)})
		if err != nil {
			return err
		}
		n := ns[0]
		defer harness.StopAll(ns)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for {
				mu.Lock()
				i := next
				next++
				mu.Unlock()
				if i >= count {
					return
				}
				r := rand.New(rand.NewSource(seed*1_000_003 + int64(i)))
				// The large one is slow to copy.
				p := patients[r.Intn(2)]
				if r.Intn(8) == 0 {
					p = patients[2]
				}
				what, reason, err := p.treat(n, r, ready)
				mu.Lock()
				switch {
				case err != nil:
					failed++
					fmt.Printf("FAIL case %d, %s: %s: %s\n", i, p.name, what, strings.ReplaceAll(fmt.Sprintf("%.1500s", err), "\n", "\n     "))
				case reason == "":
					served++
				default:
					refusals[reason]++
				}
				if n := served + failed + total(refusals); n%100 == 0 {
					fmt.Printf("%d of %d damages: %d served in full, %d refused with file and reason, %d failed (%v)\n",
						n, count, served, total(refusals), failed, time.Since(began).Round(time.Second))
				}
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
	fmt.Printf("damage: seed %d, %d random damages: %d served in full, %d refused with file and reason, %d failed\n",
		seed, count, served, total(refusals), failed)
	var kinds []string
	for reason := range refusals {
		kinds = append(kinds, reason)
	}
	sort.Slice(kinds, func(i, j int) bool { return refusals[kinds[i]] > refusals[kinds[j]] })
	for _, k := range kinds[:min(len(kinds), 12)] {
		fmt.Printf("  %4d %s\n", refusals[k], k)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d damages", failed, count)
	}
	return nil
}

func total(m map[string]int) (n int) {
	for _, c := range m {
		n += c
	}
	return n
}

// makePatient makes a directory with snapshots, a checkpoint and, if large, released segments of the log.
func makePatient(bin string, seed int64, clean, large bool, extra []string) (p patient, err error) {
	flags := []string{"--snapshot-count", "400", "--experimental-snapshot-catchup-entries", "10", "--max-snapshots", "3", "--log-level", "warn"}
	if large {
		flags = append(flags, "--max-wals", "2")
	}
	ns, err := harness.Cluster(harness.Opts{Bins: []string{bin}, Extra: append(flags, extra...)})
	if err != nil {
		return p, err
	}
	n := ns[0]
	defer harness.StopAll(ns)
	if err := harness.StartAll(ns, 30*time.Second); err != nil {
		return p, err
	}
	r := rand.New(rand.NewSource(seed))
	half, err := makeHistory(n, 700, r)
	if err != nil {
		return p, err
	}
	p = patient{name: "killed", good: n.Dir + ".good", older: n.Dir + ".older"}
	time.Sleep(700 * time.Millisecond)
	n.Kill()
	if err := copyDir(n.Dir, p.older); err != nil {
		return p, err
	}
	if err := n.Start(); err != nil {
		return p, err
	}
	if err := n.WaitReady(30 * time.Second); err != nil {
		return p, err
	}
	if large {
		p.name = "large"
		if err := fill(n, 150); err != nil {
			return p, err
		}
		// So that the store is small again, and with it what has to be copied.
		rev, err := n.Revision()
		if err != nil {
			return p, err
		}
		ctx, c := harness.Ctx(30 * time.Second)
		defer c()
		if _, err := n.KV().DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("fill/"), RangeEnd: []byte("fill0")}); err != nil {
			return p, err
		}
		if _, err := n.KV().Compact(ctx, &pb.CompactionRequest{Revision: rev + 1, Physical: true}); err != nil {
			return p, err
		}
		if err := released(n); err != nil {
			return p, err
		}
		half.rev = rev + 1
	}
	if p.h, err = moreHistory(n, half, 500, r); err != nil {
		return p, err
	}
	time.Sleep(700 * time.Millisecond)
	if clean {
		p.name = "stopped"
		n.Term()
	} else {
		n.Kill()
	}
	if err := os.Rename(n.Dir, p.good); err != nil {
		return p, err
	}
	err = filepath.WalkDir(filepath.Join(p.good, "member"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && !strings.HasSuffix(path, "rusd.lock") {
			rel, _ := filepath.Rel(p.good, path)
			p.files = append(p.files, rel)
		}
		return err
	})
	sort.Strings(p.files)
	return p, err
}

// moreHistory overwrites and deletes some keys of a history.
func moreHistory(n *harness.Node, h *history, puts int, r *rand.Rand) (*history, error) {
	ctx, c := harness.Ctx(time.Minute)
	defer c()
	for i := 0; i < puts; i++ {
		k := fmt.Sprintf("d/%05d", r.Intn(700))
		if i%9 == 0 {
			if err := h.remove(ctx, n, k); err != nil {
				return nil, err
			}
			continue
		}
		v := fmt.Sprintf("more %d %s", i, strings.Repeat("z", r.Intn(500)))
		if err := h.put(ctx, n, k, v, 0); err != nil {
			return nil, err
		}
	}
	var err error
	h.hash, _, err = n.HashAt(h.rev)
	return h, err
}

// pick chooses a kind of file first, so that many small ones do not hide the others.
func (p patient) pick(r *rand.Rand) string {
	kinds := []string{"member/wal/", "member/snap/", "member/snap/db", "member/fjall/"}
	for {
		kind := kinds[r.Intn(len(kinds))]
		var of []string
		for _, f := range p.files {
			if strings.HasPrefix(f, kind) {
				of = append(of, f)
			}
		}
		if len(of) > 0 {
			return of[r.Intn(len(of))]
		}
	}
}

// place is an offset within what a file holds, and that length.
func (p patient) place(r *rand.Rand, f string) (at, used int64) {
	used = max(dataEnd(filepath.Join(p.good, f)), 1)
	return r.Int63n(used), used
}

// damage changes the directory; what it did.
func (p patient) damage(dir string, r *rand.Rand) (string, error) {
	f := p.pick(r)
	for st, err := os.Stat(filepath.Join(p.good, f)); err == nil && st.Size() == 0; st, err = os.Stat(filepath.Join(p.good, f)) {
		f = p.pick(r) // nothing in it to be damaged
	}
	path := filepath.Join(dir, f)
	at, used := p.place(r, f)
	switch r.Intn(10) {
	case 0, 1:
		return fmt.Sprintf("%s: a byte flipped at %d of %d", f, at, used), flip(path, at)
	case 2:
		count := 2 + r.Intn(6)
		for i := 0; i < count; i++ {
			at, _ := p.place(r, f)
			if err := flip(path, at); err != nil {
				return f, err
			}
		}
		return fmt.Sprintf("%s: %d bytes flipped", f, count), nil
	case 3:
		n := int64(512) << r.Intn(4)
		at &^= 511
		b := make([]byte, n)
		what := "zeroed"
		if r.Intn(2) == 0 {
			r.Read(b)
			what = "overwritten with noise"
		}
		return fmt.Sprintf("%s: %d bytes %s at %d of %d", f, n, what, at, used), writeAt(path, b, at)
	case 4, 5:
		return fmt.Sprintf("%s: cut at %d of %d", f, at, used), os.Truncate(path, at)
	case 6:
		return f + ": deleted", os.Remove(path)
	case 7:
		other := p.pick(r)
		for i := 0; i < 20 && other == f; i++ {
			other = p.pick(r)
		}
		if other == f {
			return f + ": deleted", os.Remove(path)
		}
		tmp, b := path+".swap", filepath.Join(dir, other)
		err := os.Rename(path, tmp)
		if err == nil {
			err = os.Rename(b, path)
		}
		if err == nil {
			err = os.Rename(tmp, b)
		}
		return f + " and " + other + ": swapped", err
	case 8:
		// As a backup that was put back in part.
		old, err := os.ReadFile(filepath.Join(p.older, f))
		if err != nil {
			return f + ": deleted", os.Remove(path)
		}
		return f + ": as it was before", os.WriteFile(path, old, 0o600)
	default:
		kinds := []string{"fjall", "snap", "wal"}
		kind := filepath.Join("member", kinds[r.Intn(len(kinds))])
		if r.Intn(2) == 0 {
			return kind + ": deleted", os.RemoveAll(filepath.Join(dir, kind))
		}
		if err := os.RemoveAll(filepath.Join(dir, kind)); err != nil {
			return kind, err
		}
		return kind + ": as it was before", copyDir(filepath.Join(p.older, kind), filepath.Join(dir, kind))
	}
}

// treat damages a copy of the directory and starts the server on it; the reason of a refusal.
func (p patient) treat(n *harness.Node, r *rand.Rand, ready time.Duration) (what, reason string, err error) {
	if err := os.RemoveAll(n.Dir); err != nil {
		return "", "", err
	}
	if err := copyDir(p.good, n.Dir); err != nil {
		return "", "", err
	}
	if what, err = p.damage(n.Dir, r); err != nil {
		return what, "", fmt.Errorf("cannot damage: %w", err)
	}
	os.Remove(n.Log)
	defer n.Close()
	defer n.Kill()
	if err := n.Start(); err != nil {
		return what, "", err
	}
	if err := n.WaitReady(ready); err != nil {
		reason, err := refusal(n)
		return what, reason, err
	}
	if err := p.h.check(n); err != nil {
		return what, "", err
	}
	if err := n.Healthy(3 * time.Second); err != nil {
		return what, "", err
	}
	n.Kill()
	if err := n.Start(); err != nil {
		return what, "", err
	}
	if err := n.WaitReady(ready); err != nil {
		return what, "", fmt.Errorf("second start: %w", err)
	}
	if err := p.h.check(n); err != nil {
		return what, "", fmt.Errorf("second start: %w", err)
	}
	return what, "", panicked(n)
}

func panicked(n *harness.Node) error {
	b, err := os.ReadFile(n.Log)
	if err != nil {
		return err
	}
	// The engine's library may panic on what it reads; that is caught and said.
	for _, line := range bytes.Split(b, []byte("\n")) {
		if bytes.HasPrefix(line, []byte("thread '")) && bytes.Contains(line, []byte("panicked")) && !bytes.Contains(line, []byte("lsm-tree")) && !bytes.Contains(line, []byte("fjall")) && bytes.Contains(line, []byte("src/")) && !bytes.Contains(line, []byte(".cargo")) {
			return fmt.Errorf("it panicked: %s", line)
		}
	}
	return nil
}

// refusal wants the process to have ended by itself, and its last error to name a file.
func refusal(n *harness.Node) (string, error) {
	code, exited := n.WaitExit(10 * time.Second)
	if !exited {
		return "", errors.New("it neither serves nor ends; its log ends:\n" + n.LogTail(8))
	}
	if code <= 0 {
		return "", fmt.Errorf("it ended with %d (-1: a signal); its log ends:\n%s", code, n.LogTail(8))
	}
	if err := panicked(n); err != nil {
		return "", err
	}
	b, err := os.ReadFile(n.Log)
	if err != nil {
		return "", err
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	last := string(lines[len(lines)-1])
	at := strings.Index(last, `"error":"`)
	if at < 0 || !strings.Contains(last, n.Dir) {
		return "", fmt.Errorf("it ended with %d, and its last line names no file:\n%s", code, n.LogTail(4))
	}
	reason := last[at+len(`"error":"`):]
	// Its kind, without names and numbers.
	reason = strings.ReplaceAll(reason, n.Dir, "")
	kind := strings.Map(func(c rune) rune {
		if c >= '0' && c <= '9' {
			return '#'
		}
		return c
	}, reason)
	for strings.Contains(kind, "##") {
		kind = strings.ReplaceAll(kind, "##", "#")
	}
	return fmt.Sprintf("%.130s", kind), nil
}
