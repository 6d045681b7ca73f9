#!/usr/bin/env bash
# Measures rusd beside etcd 3.5.17 with etcd's own benchmark tool; writes docs/benchmarks.md.
# The work is done by e2e/cmd/bench. See --help.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/prerequisites.sh
source "$root/scripts/prerequisites.sh"
need_go
all_there

"$root/scripts/etcd-e2e-compat.sh" --build-only
(cd "$root/e2e" && go build -o bin/bench ./cmd/bench)
exec "$root/e2e/bin/bench" --root "$root" "$@"
