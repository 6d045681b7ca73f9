package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"rusd/judge/harness"
)

// fault is something that goes wrong for a while.
type fault struct {
	name   string
	weight int
	do     func(c *chaos) error
}

func faults() []fault {
	return []fault{
		{"kill", 5, (*chaos).killSome},
		{"kill-all", 1, (*chaos).killAll},
		{"pause", 4, (*chaos).pauseSome},
		{"partition", 6, (*chaos).partition},
		{"delay", 3, (*chaos).delay},
		{"flaky", 2, (*chaos).flaky},
		{"transfer", 3, (*chaos).transfer},
		{"kill-apart", 3, (*chaos).killApart},
		{"pause-apart", 2, (*chaos).pauseApart},
		{"replace", 2, (*chaos).replace},
		{"slow-disk", 3, (*chaos).slowDisk},
		{"full-disk", 2, (*chaos).fullDisk},
	}
}

func faultNames() (names []string) {
	for _, f := range faults() {
		names = append(names, f.name)
	}
	return names
}

// faultsOf are those that are asked for, or all that this server can have.
func faultsOf(only string, failpoints bool) ([]fault, error) {
	var some []fault
	for _, f := range faults() {
		if only == "" && (failpoints || !strings.HasSuffix(f.name, "disk")) || strings.Contains(","+only+",", ","+f.name+",") {
			some = append(some, f)
		}
	}
	if len(some) == 0 || only != "" && len(some) != len(strings.Split(only, ",")) {
		return nil, fmt.Errorf("--faults %s: there are %s", only, strings.Join(faultNames(), ", "))
	}
	return some, nil
}

// fault has one of them happen, and lets the cluster be well for a moment.
func (c *chaos) fault(kinds []fault) error {
	sum := 0
	for _, f := range kinds {
		sum += f.weight
	}
	at := c.r.Intn(sum)
	for _, f := range kinds {
		if at -= f.weight; at < 0 {
			c.counts[f.name]++
			if err := f.do(c); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			break
		}
	}
	c.sleep(0, 1500*time.Millisecond)
	return nil
}

func (c *chaos) sleep(from, to time.Duration) {
	time.Sleep(from + time.Duration(c.r.Int63n(int64(to-from))))
}

// some members, at most a minority; the leader among them half of the time.
func (c *chaos) some() []*harness.Node {
	nodes := c.members()
	c.r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	if c.r.Intn(2) == 0 {
		if l := c.leader(); l != nil {
			for i, n := range nodes {
				if n == l {
					nodes[0], nodes[i] = nodes[i], nodes[0]
				}
			}
		}
	}
	return nodes[:1+c.r.Intn(len(nodes)/2)]
}

// leader is who says so at once, if anybody does.
func (c *chaos) leader() *harness.Node {
	for _, n := range c.members() {
		ctx, cancel := harness.Ctx(300 * time.Millisecond)
		s, err := n.Maint().Status(ctx, &pb.StatusRequest{})
		cancel()
		if err == nil && s.Leader == s.Header.MemberId {
			return n
		}
	}
	return nil
}

func (c *chaos) kill(n *harness.Node) {
	c.down[n] = true
	n.Kill()
}

func (c *chaos) revive(n *harness.Node) error {
	delete(c.down, n)
	return n.Start()
}

func (c *chaos) killSome() error { return c.killThese(c.some()) }

func (c *chaos) killAll() error { return c.killThese(c.members()) }

func (c *chaos) killThese(victims []*harness.Node) error {
	for _, n := range victims {
		c.kill(n)
	}
	if c.r.Intn(2) == 0 {
		c.sleep(0, 3*time.Second)
	}
	for _, n := range victims {
		if err := c.revive(n); err != nil {
			return err
		}
	}
	if c.r.Intn(4) == 0 { // again while they are starting
		c.sleep(0, 300*time.Millisecond)
		for _, n := range victims {
			c.kill(n)
			if err := c.revive(n); err != nil {
				return err
			}
		}
	}
	c.sleep(0, 2*time.Second)
	return nil
}

func (c *chaos) pauseSome() error {
	victims := c.some()
	for _, n := range victims {
		n.Signal(syscall.SIGSTOP)
	}
	c.sleep(100*time.Millisecond, 5*time.Second)
	for _, n := range victims {
		n.Signal(syscall.SIGCONT)
	}
	return nil
}

// broken gives each direction of each link that apart says a rule that carries nothing.
func (c *chaos) broken(apart func(from, to string) bool) {
	rule := harness.Rule{Block: true}
	if c.r.Intn(3) == 0 {
		rule = harness.Rule{Cut: true}
	}
	for _, a := range c.members() {
		for _, b := range c.members() {
			if a != b && apart(a.Name, b.Name) {
				c.net.Set(a.Name, b.Name, rule)
			}
		}
	}
}

func (c *chaos) breakLinks() {
	victims := map[string]bool{}
	for _, n := range c.some() {
		victims[n.Name] = true
	}
	switch c.r.Intn(6) {
	case 0: // they hear nothing
		c.broken(func(from, to string) bool { return victims[to] && !victims[from] })
	case 1: // they are not heard
		c.broken(func(from, to string) bool { return victims[from] && !victims[to] })
	case 2: // some links, one way
		c.broken(func(from, to string) bool { return c.r.Intn(3) == 0 })
	case 3: // some links, both ways
		cut := map[string]bool{}
		c.broken(func(from, to string) bool {
			pair := min(from, to) + " " + max(from, to)
			if _, known := cut[pair]; !known {
				cut[pair] = c.r.Intn(3) == 0
			}
			return cut[pair]
		})
	default:
		c.broken(func(from, to string) bool { return victims[from] != victims[to] })
	}
}

// mended: held-back bytes arrive, or their connections have ended meanwhile.
func (c *chaos) mend() {
	if c.r.Intn(2) == 0 {
		c.net.Reset(1)
	}
	c.net.Heal()
}

func (c *chaos) partition() error {
	c.breakLinks()
	c.sleep(200*time.Millisecond, 6*time.Second)
	c.mend()
	return nil
}

func (c *chaos) delay() error {
	victims := map[string]bool{}
	for _, n := range c.some() {
		victims[n.Name] = true
	}
	everybody := c.r.Intn(3) == 0
	longest := []time.Duration{20 * time.Millisecond, 100 * time.Millisecond, 600 * time.Millisecond, 1500 * time.Millisecond}[c.r.Intn(4)]
	for _, a := range c.members() {
		for _, b := range c.members() {
			if everybody || victims[a.Name] || victims[b.Name] && c.r.Intn(2) == 0 {
				c.net.Set(a.Name, b.Name, harness.Rule{Delay: time.Duration(c.r.Int63n(int64(longest))), Jitter: longest / 2})
			}
		}
	}
	c.sleep(500*time.Millisecond, 5*time.Second)
	c.mend()
	return nil
}

func (c *chaos) flaky() error {
	for i := 5 + c.r.Intn(30); i > 0; i-- {
		c.net.Reset(0.3)
		c.sleep(10*time.Millisecond, 150*time.Millisecond)
	}
	return nil
}

func (c *chaos) transfer() error {
	for i := 1 + c.r.Intn(4); i > 0; i-- {
		c.transferOnce()
		c.sleep(10*time.Millisecond, 500*time.Millisecond)
	}
	return nil
}

func (c *chaos) transferOnce() {
	l := c.leader()
	if l == nil {
		return
	}
	nodes := c.members()
	s, err := statusOf(nodes[c.r.Intn(len(nodes))])
	if err != nil {
		return
	}
	ctx, cancel := harness.Ctx(5 * time.Second)
	defer cancel()
	l.Maint().MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: s.Header.MemberId})
}

func (c *chaos) killApart() error {
	c.breakLinks()
	c.sleep(0, 3*time.Second)
	err := c.killThese(c.some())
	c.mend()
	return err
}

func (c *chaos) pauseApart() error {
	c.breakLinks()
	err := c.pauseSome()
	c.mend()
	return err
}

// slowDisk has some members sync slowly for a while.
func (c *chaos) slowDisk() error {
	what := []string{"wal-sync=20%sleep(300)", "wal-sync=sleep(30)", "wal-sync=3%sleep(3000)", "wal-write=5%sleep(200)"}[c.r.Intn(4)]
	return c.withFailpoints(what)
}

// fullDisk has some members' log writes fail: they must end.
func (c *chaos) fullDisk() error {
	what := []string{"wal-write=200*off->return(ENOSPC)", "wal-sync=300*off->return(EIO)", "wal-written=200*off->panic"}[c.r.Intn(3)]
	return c.withFailpoints(what)
}

func (c *chaos) withFailpoints(what string) error {
	for _, n := range c.some() {
		if n.Bin != c.rusd {
			continue
		}
		c.kill(n)
		n.Env = []string{"FAILPOINTS=" + what}
		if err := n.Start(); err != nil {
			return err
		}
	}
	c.sleep(time.Second, 5*time.Second)
	for _, n := range c.members() {
		if n.Env == nil {
			continue
		}
		n.Env = nil
		c.kill(n)
		if err := c.revive(n); err != nil {
			return err
		}
	}
	return nil
}

// replace takes a member out, dead or alive, and puts a new one in, on its address or another, as voter
// or as learner that is promoted.
func (c *chaos) replace() error {
	c.net.Heal()
	if err := c.allReady(); err != nil {
		return err
	}
	nodes := c.members()
	victim := c.some()[0]
	at := nodes[c.r.Intn(len(nodes))]
	for at == victim {
		at = nodes[c.r.Intn(len(nodes))]
	}
	s, err := statusOf(victim)
	if err != nil {
		return err
	}
	dead := c.r.Intn(2) == 0
	if dead {
		c.kill(victim)
	}
	err = eventually(40*time.Second, func() error {
		ctx, cancel := harness.Ctx(5 * time.Second)
		defer cancel()
		_, err := pb.NewClusterClient(at.Conn()).MemberRemove(ctx, &pb.MemberRemoveRequest{ID: s.Header.MemberId})
		if err != nil && strings.Contains(err.Error(), "member not found") {
			err = nil // an earlier try had gone through
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove %s: %w", victim.Name, err)
	}
	c.down[victim] = true
	if !dead {
		if code, exited := victim.WaitExit(20 * time.Second); !exited || code != 0 {
			c.violate("%s was removed; exited %v with %d", victim.Name, exited, code)
			victim.Kill()
		}
	}
	left := make([]*harness.Node, 0, len(nodes))
	for _, n := range nodes {
		if n != victim {
			left = append(left, n)
		}
	}
	fresh, err := c.fresh(victim, left)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.nodes = left
	c.mu.Unlock()
	victim.Close()
	os.RemoveAll(victim.Dir)
	return c.join(fresh, at, c.r.Intn(2) == 0)
}

// fresh is a member without data, in the place of another.
func (c *chaos) fresh(old *harness.Node, left []*harness.Node) (*harness.Node, error) {
	c.names++
	n := &harness.Node{Name: fmt.Sprintf("m%d", c.names), Bin: old.Bin, Cwd: old.Cwd, Addr: old.Addr, Peer: old.Peer}
	if c.r.Intn(2) == 0 {
		n.Addr = fmt.Sprintf("127.0.0.1:%d", harness.FreePort())
		n.Peer = fmt.Sprintf("http://127.0.0.1:%d", harness.FreePort())
	}
	n.Dir, n.Log = filepath.Join(n.Cwd, n.Name+".data"), filepath.Join(n.Cwd, n.Name+".log")
	target := strings.TrimPrefix(n.Peer, "http://")
	if c.r.Intn(2) == 0 {
		c.net.HandOver(old.Name, n.Name, target)
		n.Adv = old.Adv
	} else {
		c.net.Drop(old.Name)
		front, err := c.net.Front(n.Name, target)
		if err != nil {
			return nil, err
		}
		n.Adv = "http://" + front
	}
	var all []string
	for _, o := range append(append([]*harness.Node(nil), left...), n) {
		all = append(all, o.Name+"="+o.Adv)
	}
	n.Args = append([]string{
		"--name", n.Name, "--data-dir", n.Dir, "--listen-client-urls", "http://" + n.Addr, "--advertise-client-urls", "http://" + n.Addr,
		"--listen-peer-urls", n.Peer, "--initial-advertise-peer-urls", n.Adv, "--initial-cluster", strings.Join(all, ","),
		"--initial-cluster-state", "existing", "--log-level", "warn",
	}, c.flags[n.Bin]...)
	return n, nil
}

func (c *chaos) join(n, at *harness.Node, learner bool) error {
	var id uint64
	err := eventually(40*time.Second, func() error {
		ctx, cancel := harness.Ctx(5 * time.Second)
		defer cancel()
		r, err := pb.NewClusterClient(at.Conn()).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{n.Adv}, IsLearner: learner})
		if err == nil {
			id = r.Member.ID
		} else if strings.Contains(err.Error(), "Peer URLs already exists") { // an earlier try had gone through
			id, err = c.idOf(at, n.Adv)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("add %s: %w", n.Name, err)
	}
	c.net.Know(fmt.Sprintf("%x", id), n.Name)
	if err := n.Start(); err != nil {
		return err
	}
	if learner {
		err = eventually(40*time.Second, func() error {
			ctx, cancel := harness.Ctx(5 * time.Second)
			defer cancel()
			_, err := pb.NewClusterClient(at.Conn()).MemberPromote(ctx, &pb.MemberPromoteRequest{ID: id})
			if err != nil && strings.HasSuffix(err.Error(), "can only promote a learner member") {
				err = nil
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("promote %s: %w; its log ends:\n%s", n.Name, err, n.LogTail(8))
		}
	}
	if err := n.WaitReady(chaosHealed); err != nil {
		return err
	}
	c.mu.Lock()
	c.nodes = append(c.nodes, n)
	c.mu.Unlock()
	return nil
}

func (c *chaos) idOf(at *harness.Node, peer string) (uint64, error) {
	ctx, cancel := harness.Ctx(5 * time.Second)
	defer cancel()
	r, err := pb.NewClusterClient(at.Conn()).MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	if err != nil {
		return 0, err
	}
	for _, m := range r.Members {
		if len(m.PeerURLs) == 1 && m.PeerURLs[0] == peer {
			return m.ID, nil
		}
	}
	return 0, errors.New("no member has " + peer)
}

func (c *chaos) allReady() error {
	for _, n := range c.members() {
		if err := n.WaitReady(chaosHealed); err != nil {
			return err
		}
	}
	return nil
}

// heal takes everything back.
func (c *chaos) heal() {
	c.net.Heal()
	for _, n := range c.members() {
		n.Signal(syscall.SIGCONT)
	}
}
