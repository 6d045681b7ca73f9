package main

import (
	"path/filepath"

	bolt "go.etcd.io/bbolt"
)

// absolute makes paths that are given independent of the directory; empty ones stay empty.
func absolute(paths ...*string) error {
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

// checkBolt has bbolt check a whole file; the first of the errors.
func checkBolt(db *bolt.DB) error {
	return db.View(func(tx *bolt.Tx) error {
		var first error
		// Read to the end: the check goes on until somebody has taken all it says.
		for err := range tx.Check() {
			if first == nil {
				first = err
			}
		}
		return first
	})
}
