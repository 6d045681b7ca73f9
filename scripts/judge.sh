#!/usr/bin/env bash
# Builds and runs the programs that judge rusd from outside.
#
#   scripts/judge.sh diff --seeds 20        one random history to rusd and etcd
#   scripts/judge.sh watch --seeds 20       one random script of watches to both
#   scripts/judge.sh authtable              every call as every kind of caller, auth enabled
#   scripts/judge.sh watchload              200 watchers over compactions and kills
#   scripts/judge.sh soak --minutes 10      a steady load; memory must not grow
#   scripts/judge.sh locks --seeds 20       one random script of locks and elections to both
#   scripts/judge.sh leases --members 3     100,000 leases that expire in the same second
#   scripts/judge.sh kill --members 3       SIGKILL rounds under writers
#   scripts/judge.sh mixed --tls self       two etcd members and one rusd
#   scripts/judge.sh chaos --members 5      every fault at once; histories checked by porcupine
#   scripts/judge.sh join                   etcd and rusd join clusters that the other began
#   scripts/judge.sh behind                 snapshots between etcd and rusd, both ways
#   scripts/judge.sh badinput               hostile bytes on every port
#   scripts/judge.sh damage                 torn, flipped, cut and deleted files
#   scripts/judge.sh damage --random 1000   random damages to every kind of file
#   scripts/judge.sh snapshot               snapshots under writers, restored into etcd
#   scripts/judge.sh compaction             put latency beside a long compaction
#   scripts/judge.sh grown                  a bbolt file that rusd's grower and bbolt change in turns
#   scripts/judge.sh import                 an etcd's directory taken over and given back
#   scripts/judge.sh offline                --force-new-cluster, backups, offline defragmenting
#   scripts/judge.sh bigstore               numbers of a large store, rusd and then etcd
#   scripts/judge.sh door --members 3       etcd and rusd in turns on one directory, by SIGKILL
#
# RUSD_BIN (default: a release build of this tree) is the server under judgement,
# ETCD_BIN (default: e2e/bin/etcd, built when absent) the reference. JUDGE_PORTS=FROM-TO bounds the
# ports that servers get (default 22000-32000).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
need() { command -v "$1" >/dev/null || { echo "judge.sh: $1 is needed: $2" >&2; exit 2; }; }
need go "install Go 1.22 or later, https://go.dev/dl/"
mkdir -p "$root/e2e/bin"
(cd "$root/e2e/judge" && go build -o ../bin/judge .)
judge=$root/e2e/bin/judge
name=${1:-}
[ $# -gt 0 ] && shift
for a in "$@"; do
	case $a in -h | -help | --help) exec "$judge" "$name" -h ;; esac
done

etcd() {
	if [ -z "${ETCD_BIN:-}" ]; then
		ETCD_BIN=$root/e2e/bin/etcd
		if [ ! -x "$ETCD_BIN" ]; then
			[ -f "$root/e2e/go.mod" ] || { echo "judge.sh: no e2e/go.mod to build etcd from; set ETCD_BIN" >&2; exit 2; }
			echo "building etcd 3.5.17" >&2
			(cd "$root/e2e" && go build -o bin/etcd go.etcd.io/etcd/server/v3)
		fi
	fi
}
rusd() {
	if [ -z "${RUSD_BIN:-}" ]; then
		need cargo "install Rust, https://rustup.rs"
		(cd "$root" && cargo build --release --locked)
		RUSD_BIN=${CARGO_TARGET_DIR:-$root/target}/release/rusd
	fi
}
tools() {
	for tool; do
		[ -x "$root/e2e/bin/$tool" ] || (cd "$root/e2e" && go build -o "bin/$tool" "go.etcd.io/etcd/$tool/v3")
	done
}

case $name in
diff) etcd; rusd; exec "$judge" diff --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
watch) etcd; rusd; exec "$judge" watch --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
authtable) etcd; rusd; exec "$judge" authtable --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
watchload) rusd; exec "$judge" watchload --server "$RUSD_BIN" "$@" ;;
soak) rusd; exec "$judge" soak --server "$RUSD_BIN" "$@" ;;
locks) etcd; rusd; exec "$judge" locks --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
leases) rusd; exec "$judge" leases --server "$RUSD_BIN" "$@" ;;
kill) rusd; exec "$judge" kill --server "$RUSD_BIN" "$@" ;;
mixed) etcd; rusd; exec "$judge" mixed --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
chaos) etcd; rusd; exec "$judge" chaos --etcd "$ETCD_BIN" --server "$RUSD_BIN" "$@" ;;
join) etcd; rusd; exec "$judge" join --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
behind) etcd; rusd; exec "$judge" behind --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
badinput) etcd; rusd; exec "$judge" badinput --etcd "$ETCD_BIN" --server "$RUSD_BIN" "$@" ;;
snapshot | offline)
	etcd
	rusd
	tools etcdctl etcdutl
	exec "$judge" "$name" --etcd "$ETCD_BIN" --server "$RUSD_BIN" \
		--etcdctl "$root/e2e/bin/etcdctl" --etcdutl "$root/e2e/bin/etcdutl" "$@" ;;
grown)
	need cargo "install Rust, https://rustup.rs"
	tools etcdutl
	(cd "$root" && cargo build --release --locked --example grow)
	exec "$judge" grown --grow "${CARGO_TARGET_DIR:-$root/target}/release/examples/grow" \
		--etcdutl "$root/e2e/bin/etcdutl" "$@" ;;
door)
	etcd
	rusd
	[ -x "$root/e2e/bin/etcdutl" ] || (cd "$root/e2e" && go build -o bin/etcdutl go.etcd.io/etcd/etcdutl/v3)
	exec "$judge" door --etcd "$ETCD_BIN" --server "$RUSD_BIN" --etcdutl "$root/e2e/bin/etcdutl" "$@" ;;
bigstore)
	etcd
	rusd
	tools etcdutl
	"$judge" bigstore --server "$RUSD_BIN" --etcdutl "$root/e2e/bin/etcdutl" "$@"
	exec "$judge" bigstore --server "$ETCD_BIN" --etcdutl "$root/e2e/bin/etcdutl" "$@" ;;
import) etcd; rusd; exec "$judge" import --etcd "$ETCD_BIN" --server "$RUSD_BIN" "$@" ;;
damage) rusd; exec "$judge" damage --server "$RUSD_BIN" "$@" ;;
compaction) etcd; rusd; exec "$judge" compaction --etcd "$ETCD_BIN" --rusd "$RUSD_BIN" "$@" ;;
*) exec "$judge" ;;
esac
