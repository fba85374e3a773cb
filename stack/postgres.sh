# shellcheck shell=bash
# The private PostgreSQL server, of whichever version is installed.
# Sourced by lib.sh, whose names it uses.
# shellcheck disable=SC2154

# PostgreSQL refuses to run as root: root runs it through this user, anybody else runs it directly.
pg_user=postgres
pg_version_min=13

# The directory of the newest installed server's programs.
find_pg_bin() {
  local bin version
  for bin in $(printf '%s\n' /usr/lib/postgresql/*/bin /usr/pgsql-*/bin | sort -rV) \
    "$(dirname "$(command -v initdb || printf /nonexistent/initdb)")"; do
    if [ ! -x "$bin/initdb" ] || [ ! -x "$bin/postgres" ]; then
      continue
    fi
    version=$("$bin/postgres" --version | sed 's/.*) \([0-9]*\).*/\1/')
    if [ "$version" -ge "$pg_version_min" ]; then
      printf '%s' "$bin"
      return
    fi
  done
  return 1
}

# The working directory may be closed to the other user, hence the cd.
as_pg_user() {
  if [ "$(id -u)" = 0 ]; then
    (cd / && exec runuser -u "$pg_user" -- "$@")
  else
    (cd / && exec "$@")
  fi
}

# A file that belongs to PostgreSQL's user and that nobody else may read, from its first byte on.
# shellcheck disable=SC2016
write_private() { as_pg_user sh -c 'umask 077 && cat >"$1"' sh "$1"; }

# Chosen once. The other user must be able to reach its data, and a checkout under /root is closed to it.
postgres_choose_home() {
  if [ "$(id -u)" = 0 ]; then
    id -u "$pg_user" >/dev/null 2>&1 || useradd --system --no-create-home --shell /usr/sbin/nologin "$pg_user"
  fi
  if as_pg_user test -x "$STACK_DIR"; then
    PG_HOME=$STACK_DIR/postgres
  else
    PG_HOME=$(mktemp -d /var/tmp/rowmill-stack.XXXXXX)
  fi
  # The kernel allows 107 bytes for a socket's whole path.
  PG_SOCKET_DIR=$PG_HOME/socket
  [ ${#PG_SOCKET_DIR} -le 80 ] || PG_SOCKET_DIR=$(mktemp -d /var/tmp/rowmill-stack.XXXXXX)
  PG_PASSWORD=$(openssl rand -hex 12)
}

# The library that shows a program another wall clock: installed where STACK_PG_CLOCK asks for it, and for the tests.
find_faketime() {
  local library
  for library in /usr/lib/*/faketime/libfaketime.so.1 /usr/lib64/faketime/libfaketime.so.1; do
    if [ -f "$library" ]; then
      printf '%s' "$library"
      return
    fi
  done
  return 1
}

# Where things are, once the settings are loaded.
postgres_paths() {
  PGBIN=$(find_pg_bin) ||
    fail "use PostgreSQL" "no server of version $pg_version_min or later is installed" "run stack/install"
  PGDATA=$PG_HOME/data
  postgres_log=$PG_HOME/postgres.log
  # Seconds by which the server's wall clock is ahead, for as long as the file is there; read once a second.
  postgres_clock=$PG_HOME/clock
  pgbouncer_paths
}

postgres_prepare() {
  local log=$STACK_DIR/initdb.log socket_dir
  mkdir -p "$PG_HOME" "$PG_SOCKET_DIR"
  [ "$PG_HOME" = "$STACK_DIR/postgres" ] || ln -sfn "$PG_HOME" "$STACK_DIR/postgres"
  [ "$(id -u)" != 0 ] || chown "$pg_user:" "$PG_HOME" "$PG_SOCKET_DIR"
  if [ -f "$PGDATA/PG_VERSION" ]; then
    "$PGBIN/postgres" --version | grep -q ") $(cat "$PGDATA/PG_VERSION")[^0-9]" ||
      fail "start PostgreSQL" "$PGDATA was made by version $(cat "$PGDATA/PG_VERSION"), installed is another" \
        "run stack/down --wipe, then stack/up"
  else
    # Interrupted before: PG_VERSION is among the first files, but the settings are among the last.
    rm -rf "$PGDATA"
    write_private "$PG_HOME/password" <<<"$PG_PASSWORD"
    # The role is not called rowmill: it would find the schema of its own name first, where a test means its own tables.
    # Not synced: if the machine dies now, the cluster is made again.
    as_pg_user "$PGBIN/initdb" --pgdata="$PGDATA" --username=admin --pwfile="$PG_HOME/password" \
      --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync >"$log" 2>&1 </dev/null ||
      { rm -rf "$PGDATA"; fail "create a PostgreSQL cluster in $PGDATA" "$(tail_of "$log")" "see $log"; }
    rm -f "$PG_HOME/password"
    as_pg_user tee -a "$PGDATA/postgresql.conf" >/dev/null <<<"include 'stack.conf'"
  fi
  # An apostrophe in a path is doubled, as in SQL. The name is used by fill_template.
  # shellcheck disable=SC2034
  socket_dir=${PG_SOCKET_DIR//\'/\'\'}
  fill_template "$stack_bin/postgresql.conf" PG_PORT socket_dir | write_private "$PGDATA/stack.conf"
  [ -z "${STACK_PG_CLOCK:-}" ] || [ -f "$postgres_clock" ] || write_private "$postgres_clock" <<<+0
  write_private "$PGDATA/pg_hba.conf" <"$stack_bin/pg_hba.conf"
  write_private "$PGDATA/ca.crt" <"$tls/ca.crt"
  write_private "$PGDATA/server.crt" <"$tls/server.crt"
  write_private "$PGDATA/server.key" <"$tls/server.key"
}

# shellcheck disable=SC2016
postgres_start() {
  local clock=()
  [ ! -f "$postgres_clock" ] ||
    clock=("LD_PRELOAD=$(find_faketime)" "FAKETIME_TIMESTAMP_FILE=$postgres_clock" FAKETIME_CACHE_DURATION=1
      FAKETIME_DONT_FAKE_MONOTONIC=1)
  as_pg_user env "${clock[@]}" sh -c 'exec setsid "$1/postgres" -D "$2" >>"$3" 2>&1 </dev/null' sh \
    "$PGBIN" "$PGDATA" "$postgres_log" >/dev/null 2>&1 8>&- 9>&- &
  wait_until "PostgreSQL's pid file" "$start_limit_s" postgres_has_pid has_left $! || true
}

has_left() { ! kill -0 "$1" 2>/dev/null; }

# The server's own pid file: ours would hold runuser's pid.
postgres_has_pid() {
  local pid
  pid=$(as_pg_user head -n 1 "$PGDATA/postmaster.pid" 2>/dev/null) && [ -n "$pid" ] &&
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$PGDATA" && remember_process postgres "$pid"
}

psql_stack() {
  PGPASSWORD=$PG_PASSWORD "$PGBIN/psql" --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 \
    --host=127.0.0.1 --port="$PG_PORT" --username=admin "$@"
}

# A server that is frozen takes the connection and says nothing.
postgres_answers() { PGCONNECT_TIMEOUT=10 psql_stack --dbname=postgres --command='SELECT 1' >/dev/null 2>&1; }

postgres_settle() {
  if [ -z "$(psql_stack --dbname=postgres --command="SELECT 1 FROM pg_database WHERE datname = 'rowmill'")" ]; then
    psql_stack --dbname=postgres --command='CREATE DATABASE rowmill'
  fi
}

postgres_where() { printf '127.0.0.1:%s, TLS on the same port' "$PG_PORT"; }
# INT is PostgreSQL's "fast": sessions are ended, the data is written out.
postgres_stop() { end_process postgres INT; }
# QUIT is "immediate": no checkpoint, so the next start recovers from WAL, as after a crash. Unlike SIGKILL it takes
# every backend along, so that the port and the shared memory are free at once.
postgres_kill() { end_process postgres QUIT; }
