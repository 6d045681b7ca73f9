// Command gen writes wire.txt: every message of etcd's API, log and snapshot packages, with every
// field set, as etcd's own Go types marshal it. One line is `<message> <hex>`; a message with a
// oneof has one line for each of its arms.
//
//	go run . > ../wire.txt
package main

import (
	"bufio"
	"fmt"
	"log"
	"os"
	"reflect"
	"sort"
	"strings"

	"github.com/golang/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	_ "go.etcd.io/etcd/api/v3/authpb"
	_ "go.etcd.io/etcd/api/v3/etcdserverpb"
	_ "go.etcd.io/etcd/api/v3/membershippb"
	_ "go.etcd.io/etcd/api/v3/mvccpb"
	_ "go.etcd.io/etcd/raft/v3/raftpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/snap/snappb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	_ "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	_ "go.etcd.io/etcd/server/v3/lease/leasepb"
	_ "go.etcd.io/etcd/server/v3/wal/walpb"
)

// depthMax bounds messages that contain themselves (a transaction in a transaction).
const depthMax = 5

var packages = map[string]bool{
	"authpb": true, "etcdserverpb": true, "leasepb": true, "membershippb": true, "mvccpb": true,
	"raftpb": true, "snappb": true, "v3electionpb": true, "v3lockpb": true, "walpb": true,
}

type marshaler interface{ Marshal() ([]byte, error) }

type oneofs interface{ XXX_OneofWrappers() []interface{} }

func main() {
	var names []string
	protoregistry.GlobalTypes.RangeMessages(func(t protoreflect.MessageType) bool {
		d := t.Descriptor()
		if packages[string(d.ParentFile().Package())] && !d.IsMapEntry() {
			names = append(names, string(d.FullName()))
		}
		return true
	})
	sort.Strings(names)
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	for _, name := range names {
		t := proto.MessageType(name).Elem()
		for arm := 0; arm < max(1, arms(t)); arm++ {
			f := filler{}
			m := reflect.New(t)
			f.message(m.Elem(), arm, 0)
			data, err := m.Interface().(marshaler).Marshal()
			if err != nil {
				log.Fatalf("%s: %v", name, err)
			}
			fmt.Fprintf(out, "%s %x\n", name, data)
		}
	}
}

func arms(t reflect.Type) int {
	if w, ok := reflect.New(t).Interface().(oneofs); ok {
		return len(w.XXX_OneofWrappers())
	}
	return 0
}

// filler hands out distinct values.
type filler struct{ n int64 }

func (f *filler) next() int64 {
	f.n++
	return f.n
}

func (f *filler) message(v reflect.Value, arm, depth int) {
	t := v.Type()
	for i := 0; i < t.NumField(); i++ {
		field := t.Field(i)
		switch {
		case strings.HasPrefix(field.Name, "XXX_"):
		case field.Tag.Get("protobuf_oneof") != "":
			f.oneof(v.Field(i), reflect.New(t).Interface().(oneofs), arm, depth)
		case field.Tag.Get("protobuf") == "":
			log.Fatalf("%s.%s is no field", t, field.Name)
		default:
			f.value(v.Field(i), depth)
		}
	}
}

func (f *filler) oneof(v reflect.Value, of oneofs, arm, depth int) {
	wrappers := of.XXX_OneofWrappers()
	wrapper := reflect.New(reflect.TypeOf(wrappers[arm%len(wrappers)]).Elem())
	inner := wrapper.Elem().Field(0)
	// Where recursion ends, an arm whose message stays empty.
	if inner.Kind() == reflect.Ptr && depth >= depthMax {
		inner.Set(reflect.New(inner.Type().Elem()))
	} else {
		f.value(inner, depth)
	}
	v.Set(wrapper)
}

func (f *filler) value(v reflect.Value, depth int) {
	_, enum := v.Interface().(fmt.Stringer)
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int32, reflect.Int64:
		switch n := f.next(); {
		case enum:
			v.SetInt(1 + n%2)
		case n%3 == 0:
			v.SetInt(-n * 1000003)
		default:
			v.SetInt(n * 1000003)
		}
	case reflect.Uint32:
		v.SetUint(uint64(f.next() * 1000003))
	case reflect.Uint64:
		v.SetUint(uint64(f.next()) * 0x0102030405060709)
	case reflect.String:
		v.SetString(fmt.Sprintf("text-%d-é", f.next()))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes([]byte(fmt.Sprintf("bytes-%d-\x00\xff", f.next())))
			return
		}
		if isMessage(v.Type().Elem()) && depth >= depthMax {
			return
		}
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := 0; i < 2; i++ {
			f.element(v.Index(i), i, depth)
		}
	case reflect.Ptr:
		if isMessage(v.Type()) && depth >= depthMax {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		f.element(v, 0, depth)
	case reflect.Struct:
		f.message(v, 0, depth+1)
	default:
		log.Fatalf("no value for %s", v.Type())
	}
}

// element fills one of a list; each has another arm of a oneof.
func (f *filler) element(v reflect.Value, arm, depth int) {
	if v.Kind() == reflect.Ptr {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	if v.Kind() == reflect.Struct {
		f.message(v, arm, depth+1)
		return
	}
	f.value(v, depth)
}

func isMessage(t reflect.Type) bool {
	if t.Kind() == reflect.Ptr {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct
}
