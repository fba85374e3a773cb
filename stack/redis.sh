# shellcheck shell=bash
# The private Redis server: in memory only, plain and TLS.
# Sourced by lib.sh, whose names it uses.
# shellcheck disable=SC2154

redis_log=$STACK_DIR/redis.log

redis_prepare() {
  mkdir -p "$STACK_DIR/redis"
  fill_template "$stack_bin/redis.conf" REDIS_PORT REDIS_TLS_PORT STACK_DIR tls >"$STACK_DIR/redis/redis.conf"
}

redis_start() {
  [ ! -f "$redis_log" ] || mv "$redis_log" "$redis_log.before"
  setsid redis-server "$STACK_DIR/redis/redis.conf" >"$redis_log" 2>&1 </dev/null 8>&- 9>&- &
  remember_process redis $! || true
}

# A server that is frozen takes the connection and says nothing.
redis_answers() { [ "$(timeout 10 redis-cli -p "$REDIS_PORT" ping 2>/dev/null)" = PONG ]; }
redis_settle() { :; }

redis_where() { printf '127.0.0.1:%s, TLS %s' "$REDIS_PORT" "$REDIS_TLS_PORT"; }
redis_stop() { end_process redis TERM; }
redis_kill() { end_process redis KILL; }
