package main

import (
	"fmt"
	"math"
	"sort"
	"time"

	"github.com/anishathalye/porcupine"
)

// kind of an operation of a history.
type kind string

const (
	get        kind = "get"
	put        kind = "put"
	cas        kind = "cas" // put if the key's mod revision is as expected
	del        kind = "del"
	serialized kind = "serializable get"
)

// operation is what a client did to one key, and what came of it. A transaction or list over several
// keys is one operation for each of them, at the same time.
type operation struct {
	client    int
	member    string
	kind      kind
	key       string
	value     string // to be written; unlike that of any other operation
	expect    int64  // of a cas: 0 if the key must not be there
	call, ret int64  // nanoseconds
	known     bool   // whether it was answered
	refused   bool   // it never left
	ok        bool   // the cas wrote, the del deleted, the get found
	found     string // by a get or a cas that did not write
	foundMod  int64
	rev       int64 // of the answer
	mayDelete bool  // a del without an answer, of a key with a deletion that nobody claims
	effective bool  // a write that the history has
}

func (o operation) String() string {
	return fmt.Sprintf("%s of %s through %s by client %d (value %q, expected %d; known %v, ok %v, found %q at %d, revision %d, %.3f s to %.3f s)",
		o.kind, o.key, o.member, o.client, o.value, o.expect, o.known, o.ok, o.found, o.foundMod, o.rev, float64(o.call)/1e9, float64(o.ret)/1e9)
}

// event is one change, as watchers get it.
type event struct {
	rev    int64
	key    string
	value  string
	delete bool
}

// register is what one key is; no value: it is not there.
type register struct {
	value     string
	mod, last int64 // last: revision of its newest change, a deletion included
}

var registerModel = porcupine.Model{
	Init: func() any { return register{} },
	Step: func(state, input, _ any) (bool, any) {
		now, next := input.(operation).step(state.(register))
		return now, next
	},
	DescribeOperation: func(input, _ any) string { return input.(operation).String() },
}

// step tells whether the operation can have given its answer on r, and what it leaves.
func (o operation) step(r register) (bool, register) {
	written := register{value: o.value, mod: o.rev, last: o.rev}
	switch {
	case o.mayDelete:
		return true, register{last: r.last}
	case o.kind == put:
		return o.rev > r.last, written
	case o.kind == cas && o.effective:
		return r.mod == o.expect && o.rev > r.last, written
	case o.kind == cas:
		return r.mod != o.expect && o.sees(r), r
	case o.kind == del && o.ok:
		return r.value != "" && o.rev > r.last, register{last: o.rev}
	case o.kind == del:
		return r.value == "" && o.rev >= r.last, r
	default:
		return o.sees(r), r
	}
}

func (o operation) sees(r register) bool {
	return o.found == r.value && o.foundMod == r.mod && o.rev >= r.last
}

// past is the history of each key, for looking up what it was at a revision.
type past map[string][]event

func pastOf(events []event) past {
	p := past{}
	for _, e := range events {
		p[e.key] = append(p[e.key], e)
	}
	return p
}

func (p past) at(key string, rev int64) (value string, mod int64) {
	es := p[key]
	i := sort.Search(len(es), func(i int) bool { return es[i].rev > rev })
	if i == 0 || es[i-1].delete {
		return "", 0
	}
	return es[i-1].value, es[i-1].rev
}

// checked is what a round's history came to.
type checked struct {
	violations []string
	undecided  int // keys whose order was not found in time
}

func (c *checked) violate(f string, a ...any) {
	c.violations = append(c.violations, fmt.Sprintf(f, a...))
}

// checkHistory looks whether the operations can have happened, given the history that all members have:
// every acknowledged write is in it and nothing that nobody wrote, reads see what it says at their
// revision, no answer is older than one that came before its call, and each key is linearizable.
func checkHistory(ops []operation, events []event, limit time.Duration) checked {
	var c checked
	c.ordered(events)
	resolved := c.claim(ops, events)
	c.reads(resolved, pastOf(events))
	c.monotonic(resolved)
	c.linearizable(resolved, limit)
	return c
}

func (c *checked) ordered(events []event) {
	type place struct {
		rev int64
		key string
	}
	seen := map[place]bool{}
	for i, e := range events {
		if i > 0 && e.rev < events[i-1].rev {
			c.violate("the history goes back from revision %d to %d", events[i-1].rev, e.rev)
		}
		if seen[place{e.rev, e.key}] {
			c.violate("the history has %s twice at revision %d", e.key, e.rev)
		}
		seen[place{e.rev, e.key}] = true
	}
}

// claim finds the operation of each event, and the outcome of those without an answer. What had no
// effect is left out.
func (c *checked) claim(ops []operation, events []event) []operation {
	type write struct{ key, value string }
	puts := map[write]int64{}
	deletions := map[string]map[int64]bool{} // that nobody claims yet
	for _, e := range events {
		if e.delete {
			if deletions[e.key] == nil {
				deletions[e.key] = map[int64]bool{}
			}
			deletions[e.key][e.rev] = true
			continue
		}
		w := write{e.key, e.value}
		if at, ok := puts[w]; ok {
			c.violate("%s=%s is in the history twice, at %d and %d", e.key, e.value, at, e.rev)
		}
		puts[w] = e.rev
	}
	unclaimed := map[write]int64{}
	for w, rev := range puts {
		unclaimed[w] = rev
	}
	unknown := map[string]int{}
	var left []operation
	for _, o := range ops {
		w := write{o.key, o.value}
		at, there := puts[w]
		if o.value != "" {
			delete(unclaimed, w)
		}
		switch {
		case o.refused && there && o.value != "":
			c.violate("it never left, and is in the history at %d: %v", at, o)
		case o.refused:
		case o.kind == get || o.kind == serialized:
			if o.known {
				left = append(left, o)
			}
		case o.kind == del && !o.known:
			unknown[o.key]++
			left = append(left, o)
		case o.kind == del:
			if o.ok {
				if !deletions[o.key][o.rev] {
					c.violate("acknowledged, but not in the history: %v", o)
				}
				delete(deletions[o.key], o.rev)
			}
			left = append(left, o)
		case !o.known: // a put or cas
			if there {
				o.rev, o.effective = at, true
				left = append(left, o)
			}
		case o.kind == cas && !o.ok:
			if there {
				c.violate("the cas failed, and is in the history at %d: %v", at, o)
			}
			left = append(left, o)
		default:
			if !there || at != o.rev {
				c.violate("acknowledged at %d, the history has it at %d: %v", o.rev, at, o)
			}
			o.effective = true
			left = append(left, o)
		}
	}
	for w, rev := range unclaimed {
		c.violate("nobody wrote %s=%s, which the history has at %d", w.key, w.value, rev)
	}
	for key, revs := range deletions {
		if len(revs) > unknown[key] {
			c.violate("%s was deleted %d times by nobody; %d deletions have no answer", key, len(revs), unknown[key])
		}
	}
	resolved := left[:0]
	for _, o := range left {
		if o.kind == del && !o.known {
			if len(deletions[o.key]) == 0 {
				continue
			}
			o.mayDelete = true
		}
		if !o.known {
			o.ret = math.MaxInt64
		}
		resolved = append(resolved, o)
	}
	return resolved
}

func (c *checked) reads(ops []operation, p past) {
	for _, o := range ops {
		if !o.known || o.kind == put || o.kind == del || o.kind == cas && o.ok {
			continue
		}
		if value, mod := p.at(o.key, o.rev); value != o.found || mod != o.foundMod {
			c.violate("the history has %q of %d: %v", value, mod, o)
		}
	}
}

// monotonic: an answer's revision is not below that of an answer that came before its call.
func (c *checked) monotonic(ops []operation) {
	var known []operation
	for _, o := range ops {
		if o.known && o.kind != serialized {
			known = append(known, o)
		}
	}
	byReturn := append([]operation(nil), known...)
	sort.Slice(known, func(i, j int) bool { return known[i].call < known[j].call })
	sort.Slice(byReturn, func(i, j int) bool { return byReturn[i].ret < byReturn[j].ret })
	var newest operation
	for i, o := range known {
		for ; len(byReturn) > 0 && byReturn[0].ret < o.call; byReturn = byReturn[1:] {
			if byReturn[0].rev > newest.rev {
				newest = byReturn[0]
			}
		}
		if o.rev < newest.rev {
			c.violate("stale: %v\n  after %v", known[i], newest)
		}
	}
}

func (c *checked) linearizable(ops []operation, limit time.Duration) {
	byKey := map[string][]porcupine.Operation{}
	for _, o := range ops {
		if o.kind != serialized {
			byKey[o.key] = append(byKey[o.key], porcupine.Operation{ClientId: o.client, Input: o, Call: o.call, Return: o.ret})
		}
	}
	for key, history := range byKey {
		switch porcupine.CheckOperationsTimeout(registerModel, history, limit) {
		case porcupine.Illegal:
			c.violate("%s: its %d operations are not linearizable", key, len(history))
		case porcupine.Unknown:
			c.undecided++
		}
	}
}

// checkWatcher compares what a watcher got with the history.
func checkWatcher(name string, got, history []event) error {
	for i, e := range got {
		if i >= len(history) {
			return fmt.Errorf("%s got %+v, behind the end of the history", name, e)
		}
		if e != history[i] {
			return fmt.Errorf("%s got %+v as event %d, the history has %+v", name, e, i, history[i])
		}
	}
	if len(got) < len(history) {
		return fmt.Errorf("%s got %d events of %d; the next is %+v", name, len(got), len(history), history[len(got)])
	}
	return nil
}
