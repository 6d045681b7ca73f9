# shellcheck shell=bash
# Sourced by the scripts: collects what is missing and says how to get it, all at once.

missing=()

need() {
  command -v "$1" >/dev/null || missing+=("$1: Debian and Ubuntu: apt-get install $2")
}

need_go() {
  local have=""
  if command -v go >/dev/null; then
    have=$(go env GOVERSION 2>/dev/null | sed 's/^go//')
    local major minor
    IFS=. read -r major minor _ <<<"$have"
    minor=${minor%%[!0-9]*}
    if ((${major:-0} > 1 || (${major:-0} == 1 && ${minor:-0} >= 22))); then return; fi
  fi
  missing+=("Go 1.22 or newer${have:+ (found $have)}: https://go.dev/dl, or apt-get install golang-go where new enough")
}

need_cargo() {
  command -v cargo >/dev/null || missing+=("cargo: https://rustup.rs")
}

all_there() {
  if ((${#missing[@]})); then
    printf 'missing: %s\n' "${missing[@]}" >&2
    exit 2
  fi
}
