#!/usr/bin/env bash
# Starts N local members on loopback and ends them, by pid, on Ctrl-C.
# usage: scripts/cluster.sh [N] [flags for every member]; BINARY=path for another server
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
n=${1:-3}
shift || true
binary=${BINARY:-$root/target/release/rusd}
if ! [[ $n =~ ^[1-9]$ ]]; then
  echo "cluster.sh: N must be 1 to 9, not $n" >&2
  exit 2
fi

data=$(mktemp -d)
pids=()
finish() {
  trap - EXIT INT TERM
  ((${#pids[@]})) && kill "${pids[@]}" 2>/dev/null
  wait || true
  rm -rf "$data"
}
trap finish EXIT
trap 'exit 130' INT TERM

# Member i: client port i2379, peer port i2380, the first one 2379 and 2380 as usual.
port() { if (($1 == 0)); then echo "$2"; else echo $((10000 * ($1 > 5 ? 5 : $1) + $2 + ($1 > 5 ? ($1 - 5) * 10 : 0))); fi; }
peers=() endpoints=()
for ((i = 0; i < n; i++)); do
  peers+=("m$i=http://127.0.0.1:$(port "$i" 2380)")
  endpoints+=("127.0.0.1:$(port "$i" 2379)")
done
initial=$(IFS=,; echo "${peers[*]}")
for ((i = 0; i < n; i++)); do
  client="http://127.0.0.1:$(port "$i" 2379)" peer="http://127.0.0.1:$(port "$i" 2380)"
  "$binary" --name "m$i" --data-dir "$data/m$i" --listen-client-urls "$client" --advertise-client-urls "$client" \
    --listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "$initial" "$@" &
  pids+=($!)
done
echo "endpoints: $(IFS=,; echo "${endpoints[*]}")"
wait
