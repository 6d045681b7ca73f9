package main

import (
	"path"
	"strings"
)

// allowed is a difference that is meant: which lines and callers it is about, what rusd answers
// there instead of etcd 3.5.17, and why. COMPAT.md says the same to people.
type allowed struct {
	// row is a path.Match pattern in which "|" stands for the "/" of the name.
	row string
	// callers are names, by comma; empty: all.
	callers string
	// answer is rusd's, or like names another line: what rusd answers that, it answers this.
	answer string
	like   func(row string) string
	why    string
}

const (
	denied      = `PermissionDenied "etcdserver: permission denied"`
	nobody      = `InvalidArgument "etcdserver: user name is empty"`
	badToken    = `Unauthenticated "etcdserver: invalid auth token"`
	deniedWatch = `*etcdserverpb.WatchResponse{header:<> watch_id:-1 created:true canceled:true cancel_reason:"rpc error: code = PermissionDenied desc = etcdserver: permission denied" }`

	anonymous = "anonymous"
	admins    = "root,adm,root-carol"
	tokenless = "empty,garbage,foreign,expired,deleted,unsigned,hmac,otherkey,noname,norev,bad-root"
)

const (
	whyNested = "nested transactions are checked as others are (CVE-2026-44283, closed in etcd 3.5.30)"
	whyPuts   = "a put in a transaction needs what it needs alone, for the previous value and for the lease (closed in etcd 3.5.30)"
	whyWatch  = "watching from a key on needs the permission for all keys from there on, not for one (closed in etcd 3.5.28)"
	whyUser   = "leases, members and alarms are told to users only (closed in etcd 3.5.33)"
	whyRenew  = "who may not write a lease's keys may not renew it (closed in etcd 3.5.33)"
	whyAdmin  = "compaction, alarms, moving the leader and downgrades are root's (closed in etcd 3.5.33)"
)

func to(row string) func(string) string { return func(string) string { return row } }

// sameBehind takes what stands behind the first ": " to the line with another beginning.
func sameBehind(beginning string) func(string) string {
	return func(row string) string {
		_, what, _ := strings.Cut(row, ": ")
		return beginning + what
	}
}

var allowedDifferences = []allowed{
	{row: "KV|Txn nested*: *", like: sameBehind("KV/Txn taken: "), why: whyNested},
	{row: "KV|Txn nested compare *", like: func(row string) string { return strings.Replace(row, "nested ", "", 1) }, why: whyNested},
	{row: "KV|Txn 3 nested of *", like: to("KV/Txn taken: range one"), why: whyNested},
	{row: "KV|Txn *taken: put prev *", like: func(row string) string {
		_, key, _ := strings.Cut(row, "put prev ")
		return `KV/Put prev "` + key + `"`
	}, why: whyPuts},
	{row: "KV|Txn *taken: put * lease *", like: func(row string) string {
		_, what, _ := strings.Cut(row, ": put ")
		return "KV/Put " + what
	}, why: whyPuts},
	{row: `Lock|Lock "w|lock" lease 102`, like: to(`Lock/Lock "secret/lock" lease 102`), why: whyPuts},
	{row: "Watch|create * up", answer: deniedWatch, why: whyWatch},

	{row: "Lease|LeaseGrant *", callers: anonymous, answer: nobody, why: whyUser},
	{row: "Lease|LeaseRevoke *", callers: anonymous, answer: nobody, why: whyUser},
	{row: "Lease|LeaseTimeToLive *", callers: anonymous, answer: nobody, why: whyUser},
	{row: "Lease|LeaseTimeToLive *", callers: tokenless, answer: badToken, why: whyUser},
	{row: "Lease|LeaseKeepAlive *", callers: "oldrev", answer: denied, why: whyRenew + "; the stream knows its user, whatever the revision in the token"},
	{row: "Lease|LeaseKeepAlive *", like: func(row string) string { return strings.Replace(row, "KeepAlive", "Revoke", 1) }, why: whyRenew},
	// Without a lease in the request its caller is granted one first.
	{row: `Election|Proclaim ""`, callers: anonymous, answer: `Unknown "etcdserver: user name is empty"`, why: whyUser},
	{row: `Election|Resign ""`, callers: anonymous, answer: `Unknown "etcdserver: user name is empty"`, why: whyUser},
	{row: "Lease|LeaseLeases", like: to("KV/Range all, first"), why: whyUser},
	{row: "Cluster|MemberList *", callers: anonymous, answer: nobody, why: whyUser},
	{row: "Cluster|MemberList *", callers: tokenless, answer: badToken, why: whyUser},
	{row: "Maintenance|Alarm GET *", callers: anonymous, answer: nobody, why: whyUser},
	{row: "KV|Compact *", like: to("Auth/UserList first"), why: whyAdmin},
	{row: "Maintenance|Alarm *ACTIVATE *", like: to("Auth/UserList first"), why: whyAdmin},
	{row: "Maintenance|MoveLeader *", like: to("Auth/UserList first"), why: whyAdmin},
	{row: "Maintenance|Downgrade *", like: to("Auth/UserList first"), why: whyAdmin},
	{row: "Cluster|MemberAdd bad URL", like: to("Auth/UserList first"), why: whyAdmin},
}

// answers are the judged server's, by line and caller.
type answers map[string]string

// meant gives the index of the listed difference that an answer is, or -1.
func (a answers) meant(row, who string, got answer) int {
	for i, k := range allowedDifferences {
		if ok, _ := path.Match(k.row, strings.ReplaceAll(row, "/", "|")); !ok {
			continue
		}
		if k.callers != "" && !strings.Contains(","+k.callers+",", ","+who+",") {
			continue
		}
		want := k.answer
		if k.like != nil {
			want = a[k.like(row)+" as "+who]
		}
		if want == got.String() {
			return i
		}
	}
	return -1
}
