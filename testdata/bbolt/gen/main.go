// Command gen writes files with bbolt itself, each of another kind, and rows.txt: every row of every
// bucket in them, one a line, as `<file> <bucket in hex, levels by slashes> <key in hex> <bytes of
// the value> <CRC-32C of the value>`, in key order.
//
//	go run . ..
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"log"
	"os"
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

type file struct {
	name    string
	options bolt.Options
	fill    func(db *bolt.DB)
}

func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func update(db *bolt.DB, f func(tx *bolt.Tx)) {
	must(db.Update(func(tx *bolt.Tx) error { f(tx); return nil }))
}

func bucket(tx *bolt.Tx, name string) *bolt.Bucket {
	b, err := tx.CreateBucketIfNotExists([]byte(name))
	must(err)
	return b
}

func number(n int) []byte { return binary.BigEndian.AppendUint64(nil, uint64(n)) }

func value(n, size int) []byte {
	v := make([]byte, size)
	for i := range v {
		v[i] = byte(n*31 + i*7)
	}
	return v
}

// As etcd's: ten buckets, most of them inline, no free list on disk.
func likeEtcd(db *bolt.DB) {
	update(db, func(tx *bolt.Tx) {
		for _, name := range []string{"alarm", "auth", "authRoles", "authUsers", "cluster", "key", "lease", "members", "members_removed", "meta"} {
			bucket(tx, name)
		}
	})
	update(db, func(tx *bolt.Tx) {
		keys := bucket(tx, "key")
		keys.FillPercent = 0.9
		for n := 2; n < 20; n++ {
			must(keys.Put(append(append(number(n), '_'), number(0)...), value(n, 120)))
		}
		must(bucket(tx, "meta").Put([]byte("consistent_index"), number(44)))
		must(bucket(tx, "meta").Put([]byte("term"), number(2)))
		for n := 1; n < 4; n++ {
			must(bucket(tx, "lease").Put(number(n), value(n, 20)))
		}
	})
}

// Small pages: three levels, values over several pages, buckets in buckets, pages set free.
func deep(db *bolt.DB) {
	update(db, func(tx *bolt.Tx) {
		b := bucket(tx, "deep")
		for n := 0; n < 90; n++ {
			must(b.Put(append([]byte("key/"), number(n*3)...), value(n, 8+n%5)))
		}
		must(b.Put([]byte("large"), value(1, 1500)))
		long := bucket(tx, "long")
		for n := 0; n < 5; n++ {
			must(long.Put(bytes.Repeat(number(n), 60), value(n, 30)))
		}
	})
	update(db, func(tx *bolt.Tx) {
		b := bucket(tx, "deep")
		for n := 20; n < 50; n++ {
			must(b.Delete(append([]byte("key/"), number(n*3)...)))
		}
		inner, err := bucket(tx, "nested").CreateBucketIfNotExists([]byte("inner"))
		must(err)
		for n := 0; n < 20; n++ {
			must(inner.Put(number(n), value(n, 30)))
		}
		small, err := inner.CreateBucketIfNotExists([]byte("small"))
		must(err)
		must(small.Put([]byte("a"), []byte{}))
		must(small.Put([]byte("b"), []byte("1")))
		bucket(tx, "empty")
	})
	update(db, func(tx *bolt.Tx) { must(bucket(tx, "deep").Put([]byte("last"), []byte("x"))) })
}

func nothing(*bolt.DB) {}

func rows(out *bufio.Writer, name, path string, b *bolt.Bucket) {
	must(b.ForEach(func(k, v []byte) error {
		if v == nil {
			rows(out, name, path+"/"+hex.EncodeToString(k), b.Bucket(k))
			return nil
		}
		sum := crc32.Checksum(v, crc32.MakeTable(crc32.Castagnoli))
		fmt.Fprintf(out, "%s %s %x %d %08x\n", name, path, k, len(v), sum)
		return nil
	}))
}

func main() {
	dir := os.Args[1]
	list, err := os.Create(filepath.Join(dir, "rows.txt"))
	must(err)
	out := bufio.NewWriter(list)
	for _, f := range []file{
		{"etcd.db", bolt.Options{PageSize: 4096, NoFreelistSync: true, FreelistType: bolt.FreelistMapType}, likeEtcd},
		{"array.db", bolt.Options{PageSize: 512, FreelistType: bolt.FreelistArrayType}, deep},
		{"hashmap.db", bolt.Options{PageSize: 512, FreelistType: bolt.FreelistMapType}, deep},
		{"empty.db", bolt.Options{PageSize: 1024}, nothing},
	} {
		scratch := filepath.Join(os.TempDir(), fmt.Sprintf("gen-%d-%s", os.Getpid(), f.name))
		options := f.options
		db, err := bolt.Open(scratch, 0o600, &options)
		must(err)
		f.fill(db)
		must(db.View(func(tx *bolt.Tx) error {
			for err := range tx.Check() {
				must(err)
			}
			must(tx.ForEach(func(name []byte, b *bolt.Bucket) error {
				rows(out, f.name, hex.EncodeToString(name), b)
				return nil
			}))
			return tx.CopyFile(filepath.Join(dir, f.name), 0o644)
		}))
		must(db.Close())
		must(os.Remove(scratch))
	}
	must(out.Flush())
	must(list.Close())
}
