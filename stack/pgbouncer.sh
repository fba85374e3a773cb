# shellcheck shell=bash
# The private pooler before PostgreSQL, in transaction mode: each transaction of a client may run on another session of the
# server. Sourced by lib.sh, whose names it uses, and postgres.sh's.
# shellcheck disable=SC2154

# Once the settings are loaded: it runs as PostgreSQL's user and has its files where that user can reach them.
pgbouncer_paths() {
  PGBOUNCER_HOME=$PG_HOME/pgbouncer
  pgbouncer_log=$PG_HOME/pgbouncer.log
}

pgbouncer_prepare() {
  mkdir -p "$PG_HOME" "$PGBOUNCER_HOME"
  [ "$(id -u)" != 0 ] || chown "$pg_user:" "$PG_HOME" "$PGBOUNCER_HOME"
  write_private "$PGBOUNCER_HOME/users" <<<"\"admin\" \"$PG_PASSWORD\""
  fill_template "$stack_bin/pgbouncer.ini" PGBOUNCER_PORT PG_PORT PGBOUNCER_HOME | write_private "$PGBOUNCER_HOME/pgbouncer.ini"
}

# shellcheck disable=SC2016
pgbouncer_start() {
  as_pg_user sh -c 'exec setsid "$1" "$2" >>"$3" 2>&1 </dev/null' sh \
    "$(find_pgbouncer)" "$PGBOUNCER_HOME/pgbouncer.ini" "$pgbouncer_log" >/dev/null 2>&1 8>&- 9>&- &
  wait_until "pgbouncer's pid file" "$start_limit_s" pgbouncer_has_pid has_left $! || true
}

# Debian puts it where only root's PATH leads.
find_pgbouncer() { PATH=$PATH:/usr/sbin command -v pgbouncer; }

# Its own pid file: ours would hold runuser's pid.
pgbouncer_has_pid() {
  local pid
  pid=$(as_pg_user head -n 1 "$PGBOUNCER_HOME/pid" 2>/dev/null) && [ -n "$pid" ] &&
    tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "$PGBOUNCER_HOME" && remember_process pgbouncer "$pid"
}

# Its own console, which needs no server behind it.
pgbouncer_answers() {
  PGPASSWORD=$PG_PASSWORD PGCONNECT_TIMEOUT=10 "$PGBIN/psql" --no-psqlrc --quiet --host=127.0.0.1 --port="$PGBOUNCER_PORT" \
    --username=admin --dbname=pgbouncer --command='SHOW VERSION' >/dev/null 2>&1
}
pgbouncer_settle() { :; }

pgbouncer_where() { printf '127.0.0.1:%s' "$PGBOUNCER_PORT"; }
# INT waits for the clients to go, which a test's may not.
pgbouncer_stop() { end_process pgbouncer TERM; }
pgbouncer_kill() { end_process pgbouncer KILL; }
