package harness

import (
	"bytes"
	"fmt"
	"math/rand"
	"net"
	"strings"
	"sync"
	"time"
)

const (
	// Bytes that a link holds back at most, per connection and direction: that many chunks of that size.
	linkChunks    = 64
	linkChunkSize = 32 << 10
	// How often a link that carries nothing is looked at again.
	linkPoll = 2 * time.Millisecond
)

// Rule is what one direction between two members suffers from.
type Rule struct {
	Block  bool          // what is sent waits; nobody is told
	Cut    bool          // connections end, and new ones too
	Delay  time.Duration // everything comes so much later
	Jitter time.Duration // and up to so much more
}

// Net stands between the members of a cluster: each has a front, a port that it advertises to the
// others. Who dials a front shows in the first request on a connection, since a member names itself in
// each request of raft's ("X-Server-From"), so that each direction of each link has a rule of its own.
type Net struct {
	mu     sync.Mutex
	rules  map[[2]string]Rule // (from, to), by member name
	names  map[string]string  // by member id, hex
	fronts map[string]*front  // by member name
	conns  map[*linkConn]bool
}

// NewNet is a network without faults.
func NewNet() *Net {
	return &Net{rules: map[[2]string]Rule{}, names: map[string]string{}, fronts: map[string]*front{}, conns: map[*linkConn]bool{}}
}

type front struct {
	l            net.Listener
	name, target string // whose it is now, guarded by Net.mu
}

type linkConn struct {
	n      *Net
	to     string // member dialled
	mu     sync.Mutex
	fromID string // member that dialled, hex; "" until it has said so
	a, b   net.Conn
	once   sync.Once
	done   chan struct{}
}

// Front opens a port in front of a member's own, host:port, and returns its address.
func (n *Net) Front(name, target string) (string, error) {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", FreePort()))
	if err != nil {
		return "", err
	}
	f := &front{l: l, name: name, target: target}
	n.mu.Lock()
	n.fronts[name] = f
	n.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.mu.Lock()
			name, target := f.name, f.target
			n.mu.Unlock()
			go n.serve(c, name, target)
		}
	}()
	return l.Addr().String(), nil
}

// HandOver gives the front of a member that is gone to another one.
func (n *Net) HandOver(old, name, target string) {
	n.mu.Lock()
	f := n.fronts[old]
	delete(n.fronts, old)
	f.name, f.target = name, target
	n.fronts[name] = f
	n.mu.Unlock()
}

// Know tells which member an id belongs to.
func (n *Net) Know(id, name string) {
	n.mu.Lock()
	n.names[id] = name
	n.mu.Unlock()
}

// Drop closes the front of a member that is gone.
func (n *Net) Drop(name string) {
	n.mu.Lock()
	f := n.fronts[name]
	delete(n.fronts, name)
	n.mu.Unlock()
	if f != nil {
		f.l.Close()
	}
}

// Close closes everything.
func (n *Net) Close() {
	n.mu.Lock()
	for _, f := range n.fronts {
		f.l.Close()
	}
	n.mu.Unlock()
	n.Reset(1)
}

// Set gives a direction its rule.
func (n *Net) Set(from, to string, r Rule) {
	n.mu.Lock()
	n.rules[[2]string{from, to}] = r
	n.mu.Unlock()
}

// Heal takes all rules back.
func (n *Net) Heal() {
	n.mu.Lock()
	n.rules = map[[2]string]Rule{}
	n.mu.Unlock()
}

// Reset ends each connection with this probability.
func (n *Net) Reset(p float64) {
	n.mu.Lock()
	var end []*linkConn
	for c := range n.conns {
		if rand.Float64() < p {
			end = append(end, c)
		}
	}
	n.mu.Unlock()
	for _, c := range end {
		c.close()
	}
}

// rule of a direction. Who has not said who it is suffers where everybody does.
func (n *Net) rule(from, to string) Rule {
	n.mu.Lock()
	defer n.mu.Unlock()
	if from != "" && to != "" {
		return n.rules[[2]string{from, to}]
	}
	others := 0
	for name := range n.fronts {
		if name == from || name == to {
			continue
		}
		others++
		pair := [2]string{name, to}
		if to == "" {
			pair = [2]string{from, name}
		}
		if r := n.rules[pair]; !r.Block && !r.Cut {
			return Rule{}
		}
	}
	return Rule{Block: others > 0}
}

func (c *linkConn) dialler() string {
	c.mu.Lock()
	id := c.fromID
	c.mu.Unlock()
	c.n.mu.Lock()
	defer c.n.mu.Unlock()
	return c.n.names[id]
}

func (c *linkConn) direction(up bool) Rule {
	if up {
		return c.n.rule(c.dialler(), c.to)
	}
	return c.n.rule(c.to, c.dialler())
}

func (c *linkConn) close() {
	c.once.Do(func() {
		close(c.done)
		c.a.Close()
		c.b.Close()
		c.n.mu.Lock()
		delete(c.n.conns, c)
		c.n.mu.Unlock()
	})
}

func (n *Net) serve(a net.Conn, to, target string) {
	b, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		a.Close()
		return
	}
	c := &linkConn{n: n, to: to, a: a, b: b, done: make(chan struct{})}
	n.mu.Lock()
	n.conns[c] = true
	n.mu.Unlock()
	go c.pump(a, b, true)
	c.pump(b, a, false)
}

type chunk struct {
	data []byte // none: the end
	due  time.Time
}

// pump carries one direction. What comes while it is blocked, the end included, waits.
func (c *linkConn) pump(from, to net.Conn, up bool) {
	queue := make(chan chunk, linkChunks)
	go func() {
		defer close(queue)
		for {
			data := make([]byte, linkChunkSize)
			k, err := from.Read(data)
			data = data[:k]
			if up {
				c.identify(data)
			}
			r := c.direction(up)
			due := time.Now().Add(r.Delay)
			if r.Jitter > 0 {
				due = due.Add(time.Duration(rand.Int63n(int64(r.Jitter))))
			}
			if k > 0 {
				select {
				case queue <- chunk{data, due}:
				case <-c.done:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	defer c.close()
	for {
		var next chunk
		select {
		case next = <-queue:
		case <-c.done:
			return
		}
		for {
			r := c.direction(up)
			if r.Cut {
				return
			}
			if !r.Block && !time.Now().Before(next.due) {
				break
			}
			select {
			case <-time.After(linkPoll):
			case <-c.done:
				return
			}
		}
		if next.data == nil {
			return
		}
		if _, err := to.Write(next.data); err != nil {
			return
		}
	}
}

// identify looks for who sends a request.
func (c *linkConn) identify(data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fromID != "" {
		return
	}
	const header = "x-server-from:"
	at := bytes.Index(bytes.ToLower(data), []byte(header))
	if at < 0 {
		return
	}
	rest := string(data[at+len(header):])
	if end := strings.IndexByte(rest, '\r'); end >= 0 {
		c.fromID = strings.TrimSpace(rest[:end])
	}
}
