# shellcheck shell=bash
# What the peers' scripts share: where things are installed, and what is said when that fails. Sourced, never run.
# shellcheck disable=SC2034

set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)
root=$(cd "$here/../../.." && pwd -P)
peers=$root/target/peers
mkdir -p "$peers/bin" "$peers/log"

# fail WHAT WHY REMEDY
fail() {
  printf 'peers: %s\n  why: %s\n  do:  %s\n' "$1" "$2" "$3" >&2
  exit 1
}

# need PROGRAM FOR
need() {
  command -v "$1" >/dev/null || fail "install $2" "$1 is not here" "install $1, or leave this peer out with --peers"
}

# logged NAME COMMAND...: the command's words go into a log, whose end is shown if it fails.
logged() {
  local log=$peers/log/$1.log
  shift
  "$@" >"$log" 2>&1 </dev/null || fail "run $1 $2" "$(tail -n 5 "$log")" "see $log"
}
