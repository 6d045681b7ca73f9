#!/usr/bin/env bash
# Runs etcd 3.5.17's own end-to-end suite against rusd (or, with --against etcd, against etcd).
# The work is done by e2e/cmd/compat; this script checks for its prerequisites. See --help.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/prerequisites.sh
source "$root/scripts/prerequisites.sh"

builds_rusd=true
args=("$@")
for ((i = 0; i < ${#args[@]}; i++)); do
  case "${args[i]}" in
    -h | --help | -help) builds_rusd=false ;;
    --binary | -binary | --binary=* | -binary=* | --build-only | -build-only) builds_rusd=false ;;
    --against=etcd | -against=etcd) builds_rusd=false ;;
    --against | -against) [[ "${args[i + 1]:-}" == etcd ]] && builds_rusd=false ;;
  esac
done

need_go
need curl curl
need awk gawk
if $builds_rusd; then need_cargo; fi
all_there

mkdir -p "$root/e2e/bin"
(cd "$root/e2e" && go build -o bin/compat ./cmd/compat)
exec "$root/e2e/bin/compat" --root "$root" "$@"
