package main

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"
)

// madeUp is a history of some clients on a store that is right, with operations that overlap, and some
// without an answer: half of those have happened nevertheless.
func madeUp(seed int64) ([]operation, []event) {
	r := rand.New(rand.NewSource(seed))
	store, rev := map[string]register{}, int64(10)
	var events []event
	var ops []operation
	free := make([]int64, 5) // by client: when it may call again
	now := int64(0)
	for i := 0; i < 600; i++ {
		client := r.Intn(len(free))
		now += 1 + r.Int63n(5)
		at := max(now, free[client]+1)
		now = at
		o := operation{client: client, key: fmt.Sprintf("k%d", r.Intn(3)), known: true,
			call: at - r.Int63n(3) - 1, ret: at + r.Int63n(20)}
		o.call = max(o.call, free[client]+1)
		free[client] = o.ret
		s := store[o.key]
		lost := r.Intn(12) == 0
		happens := !lost || r.Intn(2) == 0
		write := func(value string) {
			if !happens {
				return
			}
			rev++
			o.rev = rev
			next := register{value: value, mod: rev, last: rev}
			if value == "" {
				next.mod = 0
			}
			store[o.key] = next
			events = append(events, event{rev: rev, key: o.key, value: value, delete: value == ""})
		}
		switch r.Intn(6) {
		case 0, 1:
			o.kind, o.value = put, fmt.Sprintf("v%d", i)
			write(o.value)
		case 2:
			o.kind, o.value, o.expect = cas, fmt.Sprintf("v%d", i), s.mod
			if r.Intn(3) == 0 {
				o.expect = 7 // of no revision
				o.found, o.foundMod, o.rev = s.value, s.mod, rev
			} else {
				o.ok = true
				write(o.value)
			}
		case 3:
			o.kind, o.rev = del, rev
			if s.value != "" {
				o.ok = true
				write("")
			}
		default:
			o.kind, o.found, o.foundMod, o.rev = get, s.value, s.mod, rev
		}
		if lost {
			o.known, o.ok, o.rev, o.found, o.foundMod = false, false, 0, "", 0
		}
		ops = append(ops, o)
	}
	return ops, events
}

func TestARightHistoryPasses(t *testing.T) {
	for seed := int64(1); seed <= 30; seed++ {
		ops, events := madeUp(seed)
		if c := checkHistory(ops, events, 10*time.Second); len(c.violations) > 0 || c.undecided > 0 {
			t.Fatalf("seed %d: %d undecided, %v", seed, c.undecided, c.violations)
		}
	}
}

// find gives the place of an operation in the middle that fits.
func find(t *testing.T, ops []operation, fits func(operation) bool) int {
	t.Helper()
	for i := len(ops) / 2; i < len(ops); i++ {
		if fits(ops[i]) {
			return i
		}
	}
	t.Fatal("no operation to change")
	return 0
}

// Each change makes a lie of a right history, and each must be seen.
func TestAChangedHistoryIsCaught(t *testing.T) {
	isRead := func(o operation) bool { return o.known && o.kind == get && o.found != "" }
	isPut := func(o operation) bool { return o.known && o.kind == put }
	isCas := func(o operation) bool { return o.known && o.kind == cas && o.ok }
	without := func(events []event, rev int64) []event {
		var left []event
		for _, e := range events {
			if e.rev != rev {
				left = append(left, e)
			}
		}
		return left
	}
	changes := map[string]func(t *testing.T, ops []operation, events []event) []event{
		"a stale read": func(t *testing.T, ops []operation, events []event) []event {
			i := find(t, ops, func(o operation) bool { return isRead(o) && o.rev > 60 })
			ops[i].rev -= 40
			ops[i].found, ops[i].foundMod = pastOf(events).at(ops[i].key, ops[i].rev)
			return events
		},
		"a read of something that nobody wrote": func(t *testing.T, ops []operation, events []event) []event {
			ops[find(t, ops, isRead)].found = "x"
			return events
		},
		"an acknowledged write that is lost": func(t *testing.T, ops []operation, events []event) []event {
			return without(events, ops[find(t, ops, isPut)].rev)
		},
		"a write that happened and was refused": func(t *testing.T, ops []operation, events []event) []event {
			i := find(t, ops, isPut)
			ops[i].known, ops[i].refused = false, true
			return events
		},
		"a cas that should have failed": func(t *testing.T, ops []operation, events []event) []event {
			ops[find(t, ops, isCas)].expect = 7
			return events
		},
		"a cas that should have written": func(t *testing.T, ops []operation, events []event) []event {
			i := find(t, ops, func(o operation) bool { return o.known && o.kind == cas && !o.ok })
			ops[i].expect = ops[i].foundMod
			return events
		},
		"an answer with another revision": func(t *testing.T, ops []operation, events []event) []event {
			ops[find(t, ops, isPut)].rev++
			return events
		},
		"a deletion that nobody asked for": func(t *testing.T, ops []operation, events []event) []event {
			last := events[len(events)-1].rev
			return append(events, event{rev: last + 1, key: "k9", delete: true})
		},
		"a value that appears twice": func(t *testing.T, ops []operation, events []event) []event {
			again := events[len(events)/2]
			again.rev = events[len(events)-1].rev + 1
			again.key, again.value, again.delete = "k1", "v1", false
			return append(events, again, event{rev: again.rev + 1, key: "k1", value: "v1"})
		},
		"a history out of order": func(t *testing.T, ops []operation, events []event) []event {
			events[5], events[6] = events[6], events[5]
			return events
		},
		"a write that comes before one that had returned": func(t *testing.T, ops []operation, events []event) []event {
			// The second of two writes of a key, far apart, was made before the first.
			i := find(t, ops, isPut)
			ops[i].call, ops[i].ret = ops[len(ops)-1].ret+10, ops[len(ops)-1].ret+20
			return events
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			for seed := int64(1); seed <= 10; seed++ {
				ops, events := madeUp(seed)
				events = change(t, ops, events)
				if c := checkHistory(ops, events, 10*time.Second); len(c.violations) == 0 {
					t.Errorf("seed %d: not seen", seed)
				}
			}
		})
	}
}

// The part that porcupine has alone: without it a read between two that saw the newer value would pass.
func TestPorcupineFindsWhatTheOtherChecksDoNot(t *testing.T) {
	events := []event{{rev: 11, key: "k", value: "a"}, {rev: 12, key: "k", value: "b"}}
	ops := []operation{
		{kind: put, key: "k", value: "a", known: true, call: 1, ret: 2, rev: 11},
		{kind: put, key: "k", value: "b", known: true, call: 3, ret: 4, rev: 12},
		{kind: get, key: "k", found: "a", foundMod: 11, known: true, call: 5, ret: 6, rev: 11},
	}
	var c checked
	c.linearizable(c.claim(ops, events), time.Second)
	if len(c.violations) != 1 || !strings.Contains(c.violations[0], "not linearizable") {
		t.Fatal(c.violations)
	}
}

func TestAWatchersLieIsCaught(t *testing.T) {
	_, history := madeUp(1)
	clone := func() []event { return append([]event(nil), history...) }
	if err := checkWatcher("w", clone(), history); err != nil {
		t.Fatal(err)
	}
	missing := append(clone()[:9], clone()[10:]...)
	twice := append(clone()[:9], clone()[8:]...)
	swapped := clone()
	swapped[8], swapped[9] = swapped[9], swapped[8]
	changed := clone()
	changed[9].value += "x"
	for name, got := range map[string][]event{
		"missing": missing, "twice": twice, "out of order": swapped, "changed": changed,
		"too few": clone()[:len(history)-1], "too many": append(clone(), event{rev: 1 << 40}),
	} {
		if checkWatcher("w", got, history) == nil {
			t.Errorf("%s: not seen", name)
		}
	}
}
