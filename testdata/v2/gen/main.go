// Command gen writes histories.txt: random histories of etcd's v2 store, with what etcd's own code
// answers to each step and the JSON in which it saves the tree. Lines, by their first word:
//
//	history NAME            a new store begins
//	now NANOS               what the clock says from here on
//	request HEX             a marshalled etcdserverpb.Request is applied
//	change HEX              a marshalled raftpb.ConfChange, a valid one, is applied
//	event JSON | error CODE INDEX TEXT | nothing
//	                        the answer to the request before
//	save CRC                checksum (CRC-32C) of the JSON at this point
//	json JSON               the JSON at this point
//	recover                 the store is made anew from that JSON
//
//	go run . > ../histories.txt
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log"
	"math/rand"
	"os"
	"reflect"
	"time"
	"unsafe"

	"github.com/coreos/go-semver/semver"
	"github.com/jonboulle/clockwork"
	"go.uber.org/zap"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/raft/v3/raftpb"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2error"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
)

var out = bufio.NewWriter(os.Stdout)

// start is when the histories begin.
var start = time.Unix(1_700_000_000, 123_456_789)

type world struct {
	rand    *rand.Rand
	store   v2store.Store
	clock   clockwork.FakeClock
	cluster *membership.RaftCluster
	applier etcdserver.ApplierV2
}

func newWorld(name string, seed int64) *world {
	fmt.Fprintln(out, "history", name)
	w := &world{rand: rand.New(rand.NewSource(seed)), clock: clockwork.NewFakeClockAt(start)}
	w.use(v2store.New(etcdserver.StoreClusterPrefix, etcdserver.StoreKeysPrefix))
	w.tick(0)
	return w
}

// use takes a store, which is made to look at the world's clock.
func (w *world) use(store v2store.Store) {
	w.setClock(store)
	w.store = store
	w.cluster = membership.NewCluster(zap.NewNop())
	w.cluster.SetStore(store)
	w.applier = etcdserver.NewApplierV2(zap.NewNop(), store, w.cluster)
}

func (w *world) setClock(store v2store.Store) {
	field := reflect.ValueOf(store).Elem().FieldByName("clock")
	*(*clockwork.Clock)(unsafe.Pointer(field.UnsafeAddr())) = w.clock
}

func (w *world) tick(d time.Duration) {
	w.clock.Advance(d)
	fmt.Fprintln(out, "now", w.clock.Now().UnixNano())
}

func (w *world) request(r pb.Request) {
	r.Sorted = true
	data, err := r.Marshal()
	check(err)
	fmt.Fprintln(out, "request", hex.EncodeToString(data))
	v2 := (*etcdserver.RequestV2)(&r)
	var response etcdserver.Response
	switch r.Method {
	case "POST":
		response = w.applier.Post(v2)
	case "PUT":
		response = w.applier.Put(v2, membership.ApplyBoth)
	case "DELETE":
		response = w.applier.Delete(v2)
	case "QGET":
		response = w.applier.QGet(v2)
	case "SYNC":
		response = w.applier.Sync(v2)
	}
	var coded *v2error.Error
	switch {
	case errors.As(response.Err, &coded):
		fmt.Fprintln(out, "error", coded.ErrorCode, coded.Index, quoted(coded.Error()))
	case response.Err != nil:
		fmt.Fprintln(out, "error", 0, 0, quoted(response.Err.Error()))
	case response.Event != nil:
		event, err := json.Marshal(response.Event)
		check(err)
		fmt.Fprintf(out, "event %s\n", event)
	default:
		fmt.Fprintln(out, "nothing")
	}
}

func (w *world) change(kind raftpb.ConfChangeType, id uint64, context interface{}) {
	cc := raftpb.ConfChange{Type: kind, NodeID: id}
	if context != nil {
		data, err := json.Marshal(context)
		check(err)
		cc.Context = data
	}
	data, err := cc.Marshal()
	check(err)
	fmt.Fprintln(out, "change", hex.EncodeToString(data))
	switch c := context.(type) {
	case *membership.ConfigChangeContext:
		if c.IsPromote {
			w.cluster.PromoteMember(types.ID(id), membership.ApplyBoth)
		} else {
			member := c.Member
			w.cluster.AddMember(&member, membership.ApplyBoth)
		}
	case *membership.Member:
		w.cluster.UpdateRaftAttributes(types.ID(id), c.RaftAttributes, membership.ApplyBoth)
	default:
		w.cluster.RemoveMember(types.ID(id), membership.ApplyBoth)
	}
}

func (w *world) json() []byte {
	data, err := w.store.Clone().SaveNoCopy()
	check(err)
	again, err := w.store.SaveNoCopy()
	check(err)
	if string(again) != string(data) {
		log.Fatal("a clone is saved differently")
	}
	return data
}

func (w *world) save() {
	sum := crc32.Checksum(w.json(), crc32.MakeTable(crc32.Castagnoli))
	fmt.Fprintf(out, "save %08x\n", sum)
}

func (w *world) dump() {
	fmt.Fprintf(out, "json %s\n", w.json())
}

func (w *world) recover() {
	data := w.json()
	fmt.Fprintln(out, "recover")
	store := v2store.New(etcdserver.StoreClusterPrefix, etcdserver.StoreKeysPrefix)
	check(store.Recovery(data))
	w.use(store)
	// From a clone, so that the looking is not counted.
	clone := store.Clone()
	w.setClock(clone)
	w.cluster.SetStore(clone)
	w.cluster.Recover(func(*zap.Logger, *semver.Version) {})
	w.cluster.SetStore(store)
}

func (w *world) pick(words ...string) string { return words[w.rand.Intn(len(words))] }

func (w *world) one(in int) bool { return w.rand.Intn(in) == 0 }

// paths lists what is there, hidden nodes and what is below them left out.
func (w *world) paths() []string {
	// A clone, so that the looking is not counted.
	clone := w.store.Clone()
	w.setClock(clone)
	root, err := clone.Get("/", true, true)
	check(err)
	var paths []string
	var walk func(v2store.NodeExterns)
	walk = func(nodes v2store.NodeExterns) {
		for _, node := range nodes {
			paths = append(paths, node.Key)
			walk(node.Nodes)
		}
	}
	walk(root.Node.Nodes)
	return paths
}

func (w *world) path() string {
	if w.one(2) {
		return w.pick(w.paths()...)
	}
	path := w.pick("/1", "/1", "/1", "/1", "/1", "", "/0", "/2")
	for depth := w.rand.Intn(3); depth >= 0; depth-- {
		path += "/" + w.pick("a", "a", "b", "_h", "a-b", "ü<&>")
	}
	if w.one(12) {
		path += w.pick("/", "//", "/.", "/..", "/../a")
	}
	if w.one(40) {
		path = w.pick("", "/", "/1", "/0", "1/a", "/1/ ", "/1/\xff\xfe/x", "/1/\u2028")
	}
	return path
}

func (w *world) value() string {
	return w.pick("", "x", "y", "z", "<a href=\"b\">&'\\", "line\nline\r\t\b\f\x00\x1f\x7f", "\xffü\xc3",
		"\u2028\u2029", "𝄞")
}

// expiration is nothing mostly, and never the same moment twice: what ends at once, etcd removes in
// any order.
func (w *world) expiration() int64 {
	switch w.rand.Intn(8) {
	case 0:
		return w.clock.Now().Add(time.Duration(w.rand.Int63n(int64(20 * time.Second)))).UnixNano()
	case 1:
		if w.one(4) {
			return 1 + w.rand.Int63n(1_000_000_000)
		}
		return w.clock.Now().UnixNano() - w.rand.Int63n(int64(5*time.Second))
	}
	return 0
}

func (w *world) step() {
	r := pb.Request{ID: w.rand.Uint64(), Path: w.path()}
	yes, no := true, false
	if w.one(8) {
		r.Refresh = &yes
	}
	r.Dir = w.one(6)
	switch w.rand.Intn(16) {
	case 0, 1, 2, 3, 4, 5, 6:
		r.Method = "PUT"
		r.Val = w.value()
		r.Expiration = w.expiration()
		switch w.rand.Intn(8) {
		case 0:
			r.PrevExist = &yes
		case 1:
			r.PrevExist = &no
		}
		w.previous(&r)
	case 7:
		r.Method = "POST"
		r.Val = w.value()
		r.Expiration = w.expiration()
	case 8, 9:
		r.Method = "DELETE"
		r.Recursive = w.one(4)
		w.previous(&r)
	case 11, 12:
		r.Method = "QGET"
		r.Recursive = w.one(2)
	case 13:
		r = pb.Request{Method: "SYNC", Time: w.clock.Now().UnixNano() + w.rand.Int63n(2e9) - 1e9}
	default:
		w.tick(time.Duration(w.rand.Int63n(int64(3 * time.Second))))
		return
	}
	w.request(r)
}

// previous asks for what may be there.
func (w *world) previous(r *pb.Request) {
	if !w.one(3) {
		return
	}
	clone := w.store.Clone()
	w.setClock(clone)
	value, index := w.value(), 1+uint64(w.rand.Intn(40))
	if e, err := clone.Get(r.Path, false, false); err == nil {
		if e.Node.Value != nil && w.one(2) {
			value = *e.Node.Value
		}
		if w.one(2) {
			index = e.Node.ModifiedIndex
		}
	}
	switch w.rand.Intn(3) {
	case 0:
		r.PrevValue = value
	case 1:
		r.PrevIndex = index
	default:
		r.PrevValue, r.PrevIndex = value, index
	}
}

func quoted(text string) string {
	data, err := json.Marshal(text)
	check(err)
	return string(data)
}

func member(id uint64, learner bool, names ...string) membership.Member {
	m := membership.Member{ID: types.ID(id)}
	m.PeerURLs = []string{fmt.Sprintf("http://127.0.0.1:%d", id%10_000), fmt.Sprintf("http://h/?a=<b>&c=%x", id)}
	m.IsLearner = learner
	if len(names) > 0 {
		m.Name = names[0]
		m.ClientURLs = names[1:]
	}
	return m
}

func (w *world) add(m membership.Member) {
	kind := raftpb.ConfChangeAddNode
	if m.IsLearner {
		kind = raftpb.ConfChangeAddLearnerNode
	}
	w.change(kind, uint64(m.ID), &membership.ConfigChangeContext{Member: m})
}

func (w *world) publish(id uint64, name string, urls ...string) {
	val, err := json.Marshal(membership.Attributes{Name: name, ClientURLs: urls})
	check(err)
	path := membership.MemberAttributesStorePath(types.ID(id))
	w.request(pb.Request{Method: "PUT", Path: path, Val: string(val)})
}

func (w *world) version(version string) {
	w.request(pb.Request{Method: "PUT", Path: membership.StoreClusterVersionKey(), Val: version})
}

func random(seed int64, steps int) {
	w := newWorld(fmt.Sprintf("random-%d", seed), seed)
	for step := 0; step < steps; step++ {
		w.step()
		w.save()
		if w.one(60) {
			w.recover()
			w.save()
		}
	}
	w.dump()
}

func cluster() {
	const first, second, third = 0x8e9e05c52164694d, 0x2a, 0xfedc_ba98_7654_3210
	w := newWorld("cluster", 1)
	w.add(member(first, false, "m<1>"))
	w.add(member(second, false, "m2"))
	w.publish(first, "m<1>", "http://a:1", "http://b:2")
	w.publish(second, "m2")
	w.version("3.0.0")
	w.save()
	w.add(member(third, true))
	w.publish(third, "learner", "http://c:3")
	promoted := member(third, false)
	w.change(raftpb.ConfChangeAddNode, third,
		&membership.ConfigChangeContext{Member: promoted, IsPromote: true})
	w.dump()
	w.recover()
	w.save()
	moved := member(second, false)
	moved.PeerURLs = []string{"http://moved:1"}
	w.change(raftpb.ConfChangeUpdateNode, second, &moved)
	w.version("3.5.0")
	w.request(pb.Request{Method: "PUT", Path: "/1/k", Val: "v"})
	w.change(raftpb.ConfChangeRemoveNode, second, nil)
	w.publish(second, "gone")
	w.publish(first, "")
	w.request(pb.Request{Method: "PUT", Path: "/1/0/members/2a/attributes", Val: "{}"})
	w.save()
	w.recover()
	w.dump()
}

// ring goes round the history of events.
func ring() {
	w := newWorld("ring", 2)
	for step := 0; step < 1100; step++ {
		w.request(pb.Request{Method: "PUT", Path: fmt.Sprintf("/1/%d", step%7), Val: "v"})
		if step%100 == 99 {
			w.save()
		}
	}
	w.recover()
	w.save()
}

func main() {
	time.Local = time.UTC
	defer out.Flush()
	cluster()
	ring()
	for seed := int64(1); seed <= 6; seed++ {
		random(seed, 200)
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
