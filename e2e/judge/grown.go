package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"time"

	bolt "go.etcd.io/bbolt"
)

func init() {
	commands["grown"] = struct {
		run  func([]string) error
		help string
	}{runGrown, "a bbolt file that rusd's grower and bbolt change in turns: bbolt's check, etcdutl, the same rows"}
}

// image is what a file must hold: bucket, key, value.
type image map[string]map[string]string

func (m image) copy() image {
	c := image{}
	for b, rows := range m {
		c[b] = map[string]string{}
		for k, v := range rows {
			c[b][k] = v
		}
	}
	return c
}

func (m image) equal(o image) bool {
	if len(m) != len(o) {
		return false
	}
	for b, rows := range m {
		other, ok := o[b]
		if !ok || len(rows) != len(other) {
			return false
		}
		for k, v := range rows {
			if w, ok := other[k]; !ok || v != w {
				return false
			}
		}
	}
	return true
}

// etcdBuckets but for the one of keys.
var etcdBuckets = []string{"alarm", "auth", "authRoles", "authUsers", "cluster", "lease", "members", "members_removed", "meta"}

func runGrown(args []string) error {
	fl := flag.NewFlagSet("grown", flag.ExitOnError)
	grow := fl.String("grow", "", "the program of examples/grow.rs")
	etcdutl := fl.String("etcdutl", "", "etcdutl")
	seeds := fl.Int("seeds", 10, "files")
	first := fl.Int64("seed", 1, "the first seed")
	rounds := fl.Int("rounds", 12, "turns of each of the two")
	fl.Parse(args)
	if *grow == "" || *etcdutl == "" {
		return errors.New("--grow and --etcdutl are needed")
	}
	dir, err := os.MkdirTemp("", "grown")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for s := *first; s < *first+int64(*seeds); s++ {
		g := &grown{r: rand.New(rand.NewSource(s)), file: filepath.Join(dir, fmt.Sprint(s)), grow: *grow, etcdutl: *etcdutl, model: image{}}
		if err := g.run(*rounds); err != nil {
			return fmt.Errorf("seed %d: %w", s, err)
		}
		fmt.Printf("seed %d: %d growths, %d of them cut short, %d changes by bbolt, %d rows, %d pages (%d dead): ok\n",
			s, g.growths, g.cut, g.changes, len(g.model["key"]), g.pages, g.dead)
		os.Remove(g.file)
	}
	return nil
}

type grown struct {
	r                     *rand.Rand
	file, grow, etcdutl   string
	model                 image
	rev                   uint64
	growths, cut, changes int
	dead, pages           int
}

func (g *grown) run(rounds int) error {
	for i := 0; i < rounds; i++ {
		if err := g.grows(); err != nil {
			return fmt.Errorf("round %d, grower: %w", i, err)
		}
		// With and without a free list on disk, and both ways to hold it in memory.
		opts := &bolt.Options{Timeout: time.Second, NoFreelistSync: g.r.Intn(2) == 0, FreelistType: bolt.FreelistArrayType}
		if g.r.Intn(2) == 0 {
			opts.FreelistType = bolt.FreelistMapType
		}
		if err := g.bbolt(opts, g.r.Intn(3)); err != nil {
			return fmt.Errorf("round %d, bbolt: %w", i, err)
		}
		out, err := exec.Command(g.etcdutl, "snapshot", "status", "-w", "json", g.file).Output()
		if err != nil {
			return fmt.Errorf("round %d, etcdutl: %v: %s", i, err, out)
		}
		var status struct{ Revision, TotalKey int }
		if err := json.Unmarshal(out, &status); err != nil {
			return err
		}
		rows := 0
		for _, b := range g.model {
			rows += len(b)
		}
		if status.TotalKey != rows || (len(g.model["key"]) > 0 && uint64(status.Revision) != g.rev) {
			return fmt.Errorf("round %d: etcdutl counts %+v, not %d rows up to revision %d", i, status, rows, g.rev)
		}
	}
	return nil
}

func (g *grown) value() []byte {
	n := g.r.Intn(200)
	switch g.r.Intn(30) {
	case 0:
		n = 3000 + g.r.Intn(40000)
	case 1, 2, 3:
		n = 200 + g.r.Intn(3000)
	}
	v := make([]byte, n)
	g.r.Read(v)
	return v
}

// revision is a key as etcd's store has them, some being tombstones.
func (g *grown) revision() []byte {
	g.rev++
	k := binary.BigEndian.AppendUint64(nil, g.rev)
	k = binary.BigEndian.AppendUint64(append(k, '_'), 0)
	if g.r.Intn(8) == 0 {
		k = append(k, 't')
	}
	return k
}

// grows lets the grower change the file; sometimes it is killed meanwhile.
func (g *grown) grows() error {
	var script bytes.Buffer
	states := []image{g.model}
	revs := []uint64{g.rev}
	row := func(m map[string]string, k, v []byte) {
		m[string(k)] = string(v)
		value := hex.EncodeToString(v)
		if len(v) == 0 {
			value = "-"
		}
		fmt.Fprintf(&script, "r %x %s\n", k, value)
	}
	for n := 1 + g.r.Intn(8); n > 0; n-- {
		m := states[len(states)-1].copy()
		if g.r.Intn(5) > 0 {
			fmt.Fprintf(&script, "b %x\n", "key")
			if m["key"] == nil {
				m["key"] = map[string]string{}
			}
			count := g.r.Intn(20)
			if g.r.Intn(6) == 0 {
				count = g.r.Intn(3000)
			}
			for ; count > 0; count-- {
				row(m["key"], g.revision(), g.value())
			}
		}
		for _, i := range g.r.Perm(len(etcdBuckets))[:g.r.Intn(4)] {
			name := etcdBuckets[i]
			fmt.Fprintf(&script, "b %x\n", name)
			m[name] = map[string]string{}
			count := g.r.Intn(4)
			if g.r.Intn(4) == 0 {
				count = g.r.Intn(400)
			}
			for k := 0; k < count; k++ {
				v := make([]byte, g.r.Intn(60))
				g.r.Read(v)
				row(m[name], []byte(fmt.Sprintf("row/%06d", k*3+g.r.Intn(3))), v)
			}
		}
		script.WriteString("c\n")
		states = append(states, m)
		revs = append(revs, g.rev)
	}
	cmd := exec.Command(g.grow, g.file)
	cmd.Stdin = &script
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	kill := g.growths > 0 && g.r.Intn(2) == 0
	if kill {
		timer := time.AfterFunc(time.Duration(1+g.r.Intn(20))*time.Millisecond, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}
	told := 0
	for lines := bufio.NewScanner(out); lines.Scan(); told++ {
		if _, err := fmt.Sscan(lines.Text(), &g.dead, &g.pages); err != nil {
			return err
		}
	}
	err = cmd.Wait()
	if told < len(states)-1 && !kill {
		return fmt.Errorf("ended after %d of %d growths: %v", told, len(states)-1, err)
	}
	g.growths += told
	if told == len(states)-1 {
		g.model, g.rev = states[told], revs[told]
		return nil
	}
	// What was told is there; what was not may be.
	g.cut++
	found, err := g.read()
	if err != nil {
		return err
	}
	for i := told; i < len(states); i++ {
		if states[i].equal(found) {
			g.model, g.rev = states[i], revs[i]
			return nil
		}
	}
	return fmt.Errorf("killed after %d growths, and the file is none of their states", told)
}

func (g *grown) read() (image, error) {
	db, err := bolt.Open(g.file, 0o600, &bolt.Options{Timeout: time.Second, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	found := image{}
	return found, db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			rows := map[string]string{}
			found[string(name)] = rows
			return b.ForEach(func(k, v []byte) error { rows[string(k)] = string(v); return nil })
		})
	})
}

// bbolt checks and reads the file, changes it so many times as etcd would, and checks it again.
func (g *grown) bbolt(opts *bolt.Options, changes int) error {
	db, err := bolt.Open(g.file, 0o600, opts)
	if err != nil {
		return err
	}
	if err := checkBolt(db); err != nil {
		db.Close()
		return fmt.Errorf("the grown file: %w", err)
	}
	for ; changes > 0; changes-- {
		g.changes++
		if err := db.Update(g.change); err != nil {
			db.Close()
			return err
		}
		if err := checkBolt(db); err != nil {
			db.Close()
			return fmt.Errorf("after a change by bbolt: %w", err)
		}
	}
	if err := db.Close(); err != nil {
		return err
	}
	found, err := g.read()
	if err == nil && !g.model.equal(found) {
		err = errors.New("the rows are not those that were written")
	}
	return err
}

// change compacts some revisions, appends others and writes small rows.
func (g *grown) change(tx *bolt.Tx) error {
	for _, name := range append([]string{"key"}, etcdBuckets[g.r.Intn(len(etcdBuckets))]) {
		b, err := tx.CreateBucketIfNotExists([]byte(name))
		if err != nil {
			return err
		}
		if g.model[name] == nil {
			g.model[name] = map[string]string{}
		}
		b.FillPercent = 0.9
		rows := g.model[name]
		keys := make([]string, 0, len(rows))
		for k := range rows {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		upto := 0
		if len(keys) > 0 && g.r.Intn(2) == 0 {
			upto = g.r.Intn(len(keys))
		}
		for _, k := range keys[:upto] {
			if g.r.Intn(3) > 0 {
				delete(rows, k)
				if err := b.Delete([]byte(k)); err != nil {
					return err
				}
			}
		}
		for n := g.r.Intn(40); n > 0; n-- {
			k, v := []byte(fmt.Sprintf("row/%06d", g.r.Intn(1000))), g.value()
			if name == "key" {
				k = g.revision()
			}
			rows[string(k)] = string(v)
			if err := b.Put(k, v); err != nil {
				return err
			}
		}
	}
	return nil
}
