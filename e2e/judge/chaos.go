package main

import (
	"errors"
	"flag"
	"fmt"
	"math/rand"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

func init() {
	commands["chaos"] = struct {
		run  func([]string) error
		help string
	}{runChaos, "kills, pauses, broken links, slow disks and replaced members under clients whose history must be linearizable"}
}

const (
	chaosOpTimeout = 2 * time.Second
	// Time in which everybody must serve once nothing goes wrong any more.
	chaosHealed = 40 * time.Second
	// Time for a key's order to be found.
	chaosOrderLimit = time.Minute
)

// chaos is one cluster and what happens to it.
type chaos struct {
	r          *rand.Rand
	net        *harness.Net
	etcd, rusd string
	flags      map[string][]string // by binary
	failpoints bool
	start      time.Time

	mu         sync.Mutex
	nodes      []*harness.Node // the members, as they are now
	violations []string
	down       map[*harness.Node]bool // killed or taken out by us
	names      int

	counts  map[string]int // faults by kind
	slowest time.Duration  // from the end of the faults until everybody served
}

func (c *chaos) violate(f string, a ...any) {
	text := fmt.Sprintf(f, a...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.violations) < 20 {
		fmt.Printf("%v VIOLATION: %s\n", time.Since(c.start).Round(time.Millisecond), text)
	}
	c.violations = append(c.violations, text)
}

// members as they are now.
func (c *chaos) members() []*harness.Node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*harness.Node(nil), c.nodes...)
}

func runChaos(args []string) error {
	fs := flag.NewFlagSet("chaos", flag.ExitOnError)
	etcd := fs.String("etcd", "", "etcd 3.5.17; needed with --etcd-members")
	rusd := fs.String("server", "", "the server under judgement")
	members := fs.Int("members", 3, "3 or 5")
	nEtcd := fs.Int("etcd-members", 0, "so many of them are etcd")
	minutes := fs.Float64("minutes", 10, "how long, about; at least one round")
	seed := fs.Int64("seed", time.Now().UnixNano()%1_000_000, "of the faults and the clients' choices")
	length := fs.Duration("round", 25*time.Second, "time with faults in a round")
	clients := fs.Int("clients", 10, "concurrent clients")
	watchers := fs.Int("watchers", 6, "concurrent watchers")
	pause := fs.Duration("pause", 4*time.Millisecond, "mean pause of a client between operations")
	only := fs.String("faults", "", "only these, by comma: "+strings.Join(faultNames(), ", "))
	flags := fs.String("flags", "", "further flags of rusd, by space")
	etcdFlags := fs.String("etcd-flags", "--snapshot-count 100000000", "further flags of etcd, by space")
	failpoints := fs.Bool("failpoints", false, "the server has failpoints (a build for tests): slow and full disks too")
	fs.BoolVar(&harness.KeepLogs, "keep-logs", false, "keep logs and data")
	fs.Parse(args)
	if *rusd == "" || (*members != 3 && *members != 5) || *nEtcd > *members || *nEtcd > 0 && *etcd == "" {
		return errors.New("--server, --members 3 or 5, and --etcd for --etcd-members are needed")
	}
	for _, p := range []*string{etcd, rusd} {
		if *p != "" {
			abs, err := filepath.Abs(*p)
			if err != nil {
				return err
			}
			*p = abs
		}
	}
	kinds, err := faultsOf(*only, *failpoints)
	if err != nil {
		return err
	}
	c := &chaos{
		r: rand.New(rand.NewSource(*seed)), net: harness.NewNet(), etcd: *etcd, rusd: *rusd, failpoints: *failpoints,
		flags: map[string][]string{*rusd: strings.Fields(*flags), *etcd: strings.Fields(*etcdFlags)},
		start: time.Now(), down: map[*harness.Node]bool{}, counts: map[string]int{}, names: *members,
	}
	defer c.net.Close()
	var bins []string
	for i := 0; i < *members; i++ {
		if i < *nEtcd {
			bins = append(bins, *etcd)
		} else {
			bins = append(bins, *rusd)
		}
	}
	c.nodes, err = harness.Cluster(harness.Opts{Bins: bins, Net: c.net, Token: fmt.Sprintf("chaos-%d", *seed), Extra: []string{"--log-level", "warn"}})
	if err != nil {
		return err
	}
	for _, n := range c.nodes {
		n.Args = append(n.Args, c.flags[n.Bin]...)
	}
	defer func() { harness.StopAll(c.members()) }()
	if err := harness.StartAll(c.nodes, 30*time.Second); err != nil {
		return err
	}
	if err := c.learnIDs(); err != nil {
		return err
	}
	fmt.Printf("seed %d: %d members, %d of them etcd, %d clients, %d watchers\n", *seed, *members, *nEtcd, *clients, *watchers)
	var total roundResult
	rounds := 0
	for end := c.start.Add(time.Duration(*minutes * float64(time.Minute))); rounds == 0 || time.Now().Before(end); {
		rounds++
		res, err := c.round(rounds, *seed, *clients, *watchers, *pause, *length, kinds)
		total.add(res)
		fmt.Printf("round %d at %v: %s; %d violations\n", rounds, time.Since(c.start).Round(time.Second), res, len(c.violations))
		if err != nil {
			return fmt.Errorf("round %d (seed %d): %w", rounds, *seed, err)
		}
		if len(c.violations) > 0 {
			break
		}
	}
	var faults []string
	for name, n := range c.counts {
		faults = append(faults, fmt.Sprintf("%s %d", name, n))
	}
	sort.Strings(faults)
	fmt.Printf("members %d (%d etcd), seed %d, rounds %d in %v, faults: %s; %s; slowest recovery %v; violations %d\n",
		*members, *nEtcd, *seed, rounds, time.Since(c.start).Round(time.Second), strings.Join(faults, ", "), total, c.slowest.Round(time.Millisecond), len(c.violations))
	if len(c.violations) > 0 {
		return fmt.Errorf("%d violations (seed %d)", len(c.violations), *seed)
	}
	return nil
}

// roundResult is what a round came to.
type roundResult struct{ operations, unknown, refused, events, undecided int }

func (r *roundResult) add(o roundResult) {
	r.operations += o.operations
	r.unknown += o.unknown
	r.refused += o.refused
	r.events += o.events
	r.undecided += o.undecided
}

func (r roundResult) String() string {
	return fmt.Sprintf("%d operations, %d unknown outcomes, %d refused, %d events watched, %d keys undecided", r.operations, r.unknown, r.refused, r.events, r.undecided)
}

func (c *chaos) learnIDs() error {
	for _, n := range c.members() {
		if err := c.learnID(n); err != nil {
			return err
		}
	}
	return nil
}

func (c *chaos) learnID(n *harness.Node) error {
	return eventually(10*time.Second, func() error {
		s, err := statusOf(n)
		if err == nil {
			c.net.Know(fmt.Sprintf("%x", s.Header.MemberId), n.Name)
		}
		return err
	})
}

// round lets clients and watchers work under faults, heals everything, and looks at what they saw.
func (c *chaos) round(number int, seed int64, clients, watchers int, pause, length time.Duration, kinds []fault) (roundResult, error) {
	prefix := fmt.Sprintf("r%04d/", number)
	first, err := c.members()[0].Revision()
	if err != nil {
		return roundResult{}, err
	}
	load := &load{c: c, prefix: prefix, stop: make(chan struct{})}
	for i := 0; i < clients; i++ {
		load.wg.Add(1)
		go load.client(i, rand.New(rand.NewSource(seed+int64(1000*number+i))), pause)
	}
	var ws []*watcher
	for i := 0; i < watchers; i++ {
		w := &watcher{c: c, name: fmt.Sprintf("watcher %d", i), prefix: prefix, next: first + 1, fragment: i%2 == 0, stop: make(chan struct{}), done: make(chan struct{})}
		go w.run(rand.New(rand.NewSource(seed + int64(1000*number+500+i))))
		ws = append(ws, w)
	}
	ended := func() {
		load.end()
		for _, w := range ws {
			w.end()
		}
	}
	// A compaction of what earlier rounds wrote goes on meanwhile.
	if number > 1 {
		c.compact(first)
	}
	for end := time.Now().Add(length); time.Now().Before(end) && len(c.violations) == 0; {
		if err := c.fault(kinds); err != nil {
			ended()
			return roundResult{}, err
		}
		c.noneEnded()
	}
	c.heal()
	t := time.Now()
	for _, n := range c.members() {
		if err := n.WaitReady(chaosHealed); err != nil {
			ended()
			return roundResult{}, fmt.Errorf("after the faults: %w", err)
		}
	}
	c.slowest = max(c.slowest, time.Since(t))
	time.Sleep(time.Second) // some operations of a cluster that is well
	load.end()
	// What the history ends with.
	var last int64
	err = eventually(chaosHealed, func() error {
		ctx, cancel := harness.Ctx(5 * time.Second)
		defer cancel()
		r, err := c.members()[0].KV().Put(ctx, &pb.PutRequest{Key: []byte(prefix + "end"), Value: []byte("end")})
		if err == nil {
			last = r.Header.Revision
		}
		return err
	})
	if err != nil {
		ended()
		return roundResult{}, fmt.Errorf("the last put: %w", err)
	}
	res, err := c.look(load, ws, prefix, first, last)
	ended()
	return res, err
}

// look compares what everybody saw.
func (c *chaos) look(load *load, ws []*watcher, prefix string, first, last int64) (roundResult, error) {
	var history []event
	for i, n := range c.members() {
		got, err := readHistory(n, prefix, first+1, last)
		if err != nil {
			return roundResult{}, fmt.Errorf("history of %s: %w", n.Name, err)
		}
		if i == 0 {
			history = got
		} else if err := checkWatcher(n.Name, got, history); err != nil {
			c.violate("histories differ: %v", err)
		}
	}
	res := roundResult{operations: len(load.ops)}
	for _, o := range load.ops {
		switch {
		case o.refused:
			res.refused++
		case !o.known:
			res.unknown++
		}
	}
	for _, w := range ws {
		if err := w.waitFor(last, 20*time.Second); err != nil {
			c.violate("%s: %v", w.name, err)
		}
		w.end()
		res.events += len(w.got)
		if err := checkWatcher(w.name, upTo(w.got, last), history); err != nil {
			c.violate("%v (it was at %s)", err, strings.Join(w.stations, ", "))
		}
	}
	if k := len(history); k == 0 || history[k-1].key != prefix+"end" {
		return res, errors.New("the history does not end with the end")
	}
	found := checkHistory(load.ops, history[:len(history)-1], chaosOrderLimit)
	res.undecided = found.undecided
	for _, v := range found.violations {
		c.violate("%s", v)
	}
	if _, _, err := harness.SameHash(c.members()); err != nil {
		c.violate("%v", err)
	}
	return res, nil
}

func upTo(events []event, rev int64) []event {
	i := sort.Search(len(events), func(i int) bool { return events[i].rev > rev })
	return events[:i]
}

func (c *chaos) compact(rev int64) {
	n := c.members()[0]
	ctx, cancel := harness.Ctx(5 * time.Second)
	defer cancel()
	n.KV().Compact(ctx, &pb.CompactionRequest{Revision: rev})
}

// noneEnded: nobody ends without having been told to.
func (c *chaos) noneEnded() {
	for _, n := range c.members() {
		if !c.down[n] && !n.Alive() {
			c.violate("%s ended by itself; its log ends:\n%s", n.Name, n.LogTail(12))
		}
	}
}
