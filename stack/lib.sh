# shellcheck shell=bash
# What every script of the stack shares: paths, messages, processes, ports, and the settings that a stack keeps.
# Sourced, never run. It starts and ends nothing by itself.

stack_bin=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
root=$(dirname "$stack_bin")
STACK_DIR=${STACK_DIR:-$root/target/stack}
case $STACK_DIR in
  /*) ;;
  *) STACK_DIR=$PWD/$STACK_DIR ;;
esac
# Downloads are shared by all stacks of one checkout.
stack_cache=$root/target/stack-cache
tls=$STACK_DIR/tls

# --- messages -------------------------------------------------------------------------------------------------------

say() { printf '%s\n' "$*"; }

# fail WHAT WHY REMEDY: one sentence each, on standard error, and out.
fail() {
  printf 'stack: %s\n  why: %s\n  do:  %s\n' "$1" "$2" "$3" >&2
  exit 1
}

# The last lines of a log, or that there is none; for the "why" of a server that did not start.
tail_of() {
  if [ -s "$1" ]; then
    printf 'the log ends with\n'
    tail -n "${2:-15}" "$1" | sed 's/^/    | /'
  else
    printf 'it left no log in %s' "$1"
  fi
}

now_ms() { date +%s%3N; }

seconds_since() {
  local ms=$(($(now_ms) - $1))
  printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# --- waiting --------------------------------------------------------------------------------------------------------

# How long a server may take until it answers. Alone on a machine it takes seconds; beside three builds on two cores, or on
# a slow disk, more than a minute. Who waits for nothing sees so from the lines below, and a server that has ended is not
# waited for; so the limit is only there for one that hangs.
start_limit_s=300
# How long a server may take to end in good order, before it is killed: a busy disk has to take what it holds.
end_limit_s=60
# An idle machine shows none of these lines.
first_line_after_s=10
next_line_after_s=30

# wait_until WHAT SECONDS CONDITION [HOPELESS...]: true as soon as CONDITION is, a command in one word ('is_stopped kafka');
# false after that time, or when the command HOPELESS says that it will never be. Tells on standard error that it waits.
wait_until() {
  local what=$1 limit_s=$2 condition=$3 began waited_s next_line_s=$first_line_after_s
  shift 3
  began=$(now_ms)
  until $condition; do
    # Asked once more: it may have come true before the end.
    if [ $# != 0 ] && "$@"; then
      $condition && return
      return 1
    fi
    waited_s=$((($(now_ms) - began) / 1000))
    [ "$waited_s" -lt "$limit_s" ] || return 1
    if [ "$waited_s" -ge "$next_line_s" ]; then
      printf 'stack: waiting for %s since %d s, for at most %d s\n' "$what" "$waited_s" "$limit_s" >&2
      next_line_s=$((waited_s + next_line_after_s))
    fi
    sleep 0.1
  done
}

# --- processes ------------------------------------------------------------------------------------------------------
# A process is known by its pid together with its start time (field 22 of /proc/PID/stat, ticks since boot): a pid alone
# may belong to somebody else by the time we want to end it. $name.pid holds the pid, $name.start the start time.

start_time() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  # The second field is the program's name in parentheses and may contain anything: count after the last one.
  # shellcheck disable=SC2086
  set -- ${stat##*) }
  # A zombie has ended already; only its parent has not noticed.
  [ "$1" != Z ] && printf '%s' "${20}"
}

remember_process() {
  local ticks
  ticks=$(start_time "$2") || return 1
  printf '%s\n' "$ticks" >"$STACK_DIR/$1.start"
  printf '%s\n' "$2" >"$STACK_DIR/$1.pid"
}

forget_process() { rm -f "$STACK_DIR/$1.pid" "$STACK_DIR/$1.start"; }

# Prints the pid of a server that we started and that still runs.
running_pid() {
  local pid ticks
  { pid=$(cat "$STACK_DIR/$1.pid") && ticks=$(cat "$STACK_DIR/$1.start"); } 2>/dev/null || return 1
  [ "$(start_time "$pid")" = "$ticks" ] && printf '%s' "$pid"
}

is_running() { running_pid "$1" >/dev/null; }
is_stopped() { ! is_running "$1"; }

# end_process NAME SIGNAL: signal, wait, and SIGKILL if that was not enough.
end_process() {
  local pid
  pid=$(running_pid "$1") || return 0
  kill -s "$2" "$pid"
  wait_until "$1 to end" "$end_limit_s" "is_stopped $1" && return
  if [ "$2" != KILL ]; then
    say "stack: $1 did not end within $end_limit_s s of SIG$2; killing it"
    kill -s KILL "$pid"
    wait_until "$1 to end" "$end_limit_s" "is_stopped $1" && return
  fi
  fail "end $1, process $pid" "it is still there $end_limit_s s after SIGKILL, so the kernel waits for its disk or its memory" \
    "wait until it is gone, then try again"
}

# --- ports and other choices that a stack keeps ---------------------------------------------------------------------

# Read from the kernel's tables, state 0A being LISTEN: connecting would miss a server that listens but does not answer.
port_in_use() {
  local hex
  hex=$(printf ':%04X' "$1")
  cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | awk -v port="$hex" '
    $4 == "0A" && substr($2, length($2) - 4) == port { found = 1 }
    END { exit !found }'
}

# Below the range from which the kernel takes ports for outgoing connections (32768 and up).
free_port() {
  local port
  while :; do
    port=$((10000 + RANDOM % 20000))
    case " $* " in *" $port "*) continue ;; esac
    port_in_use "$port" || break
  done
  printf '%s' "$port"
}

port_names="KAFKA_PORT KAFKA_TLS_PORT KAFKA_SASL_PORT KAFKA_CONTROLLER_PORT"
port_names="$port_names KAFKA2_PORT KAFKA2_TLS_PORT KAFKA2_SASL_PORT KAFKA2_CONTROLLER_PORT"
port_names="$port_names KAFKA3_PORT KAFKA3_TLS_PORT KAFKA3_SASL_PORT KAFKA3_CONTROLLER_PORT"
port_names="$port_names PG_PORT PGBOUNCER_PORT REDIS_PORT REDIS_TLS_PORT"
# Kafka's listeners for clients that somebody wants to cut off, as kafka.sh explains: where each listens, and where it says so.
kafka_members="1 2 3 4"
for member in $kafka_members; do
  for node in "" 2 3; do
    port_names="$port_names KAFKA${node}_MEMBER${member}_PORT KAFKA${node}_MEMBER${member}_ADVERTISED_PORT"
  done
done

# 'text' for a shell to read back, whatever the text contains.
# shellcheck disable=SC2001
quoted() { printf "'%s'" "$(sed "s/'/'\\\\''/g" <<<"$1")"; }

save_settings() {
  local name
  for name in $port_names BROKERS KAFKA_CLUSTER_ID PG_HOME PG_SOCKET_DIR PG_PASSWORD; do
    printf '%s=%s\n' "$name" "$(quoted "${!name}")"
  done >"$STACK_DIR/settings.new"
  mv "$STACK_DIR/settings.new" "$STACK_DIR/settings"
}

load_settings() {
  # shellcheck disable=SC1091
  [ -f "$STACK_DIR/settings" ] && . "$STACK_DIR/settings"
}

# The lock also marks a directory as ours: what is in it may be wiped.
is_stack() { [ -e "$STACK_DIR/lock" ]; }

# Only one script at a time may change a stack. The descriptor must not reach the servers: they would hold the lock.
lock_stack() {
  exec 9>"$STACK_DIR/lock"
  # The other one may be ending a server and starting it again.
  wait_until "another stack/up, down or restart in $STACK_DIR" $((end_limit_s + start_limit_s)) 'flock -n 9' ||
    fail "lock $STACK_DIR" "another stack/up, down or restart has been at work there for $((end_limit_s + start_limit_s)) s" \
      "wait for it, or end it, then try again"
}

require_stack() {
  load_settings ||
    fail "use the stack in $STACK_DIR" "there is none" "run stack/up first (STACK_DIR chooses the directory)"
}

# How many Kafka nodes a new stack gets: 1, or 3. One that stands keeps what it has.
BROKERS=${BROKERS:-1}
load_settings || true
case $BROKERS in
  1) kafka_nodes=kafka ;;
  3) kafka_nodes="kafka kafka2 kafka3" ;;
  *) fail "make a stack with BROKERS=$BROKERS" "Kafka's controllers vote, and two or four survive no more than one or three" \
    "set BROKERS to 1 or 3" ;;
esac

# --- servers --------------------------------------------------------------------------------------------------------
# kafka.sh, postgres.sh, pgbouncer.sh and redis.sh define the same functions for each: NAME_prepare (files), NAME_start, NAME_answers,
# NAME_settle (what is done once it answers), NAME_where, NAME_stop and NAME_kill; and NAME_log, the log's path.

servers="$kafka_nodes postgres pgbouncer redis"

require_server() {
  case " $servers " in
    *" ${1:-} "*) ;;
    *) fail "$(basename "$0") '${1:-}'" "the servers are: $servers" "name one of them" ;;
  esac
}

server_up() {
  local began
  began=$(now_ms)
  if is_running "$1"; then
    server_wait "$1"
    printf '%-9s running on %s\n' "$1" "$("$1_where")"
    return
  fi
  "$1_prepare"
  "$1_start"
  server_wait "$1"
  "$1_settle"
  printf '%-9s ready in %s on %s\n' "$1" "$(seconds_since "$began")" "$("$1_where")"
}

# Until the server answers, or it is clear that it will not.
server_wait() {
  local log=$1_log why="it did not answer within $start_limit_s s"
  wait_until "$1 to answer at $("$1_where")" "$start_limit_s" "$1_answers" is_stopped "$1" && return
  is_running "$1" || why="it ended"
  fail "start $1 at $("$1_where")" "$why; $(tail_of "${!log}")" \
    "see ${!log}; 'stack/restart $1' tries again, 'stack/down --wipe' and 'stack/up' start from nothing"
}

# fill_template FILE NAME...: prints the file with each @NAME@ replaced by that variable's value.
fill_template() {
  local text name
  text=$(cat "$1")
  shift
  for name in "$@"; do
    text=${text//@$name@/${!name}}
  done
  printf '%s\n' "$text"
}

. "$stack_bin/kafka.sh"
. "$stack_bin/postgres.sh"
. "$stack_bin/pgbouncer.sh"
. "$stack_bin/redis.sh"
