//go:build tools

// Package tools pins what the runner and the bench build from etcd's own modules: the server to
// compare with, the command line tools, the benchmark and the end-to-end suite.
package tools

import (
	_ "go.etcd.io/etcd/etcdctl/v3"
	_ "go.etcd.io/etcd/etcdutl/v3"
	_ "go.etcd.io/etcd/server/v3"
	_ "go.etcd.io/etcd/tests/v3/e2e"
	_ "go.etcd.io/etcd/v3/tools/benchmark"
)
