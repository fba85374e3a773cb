# shellcheck shell=bash
# The system on the servers of the environment, for the scripts beside this one: $bin has the programs, $out takes the logs.

: "${bin:?}" "${out:?}"
here=examples/timeseries

# ask FLAG...: what the database says.
ask() { "$PGBIN/psql" -XqAt -v ON_ERROR_STOP=1 "$DATABASE_URL" "$@"; }

# start VERB: runs it in the background; finish ends all of them.
declare -A pid
start() {
  "$bin/rowmill" "$1" --config "$here/rowmill.toml" 2>>"$out/$1.log" &
  pid[$1]=$!
}
finish() {
  local verb
  for verb in "${!pid[@]}"; do kill "${pid[$verb]}" 2>/dev/null || true; done
  wait 2>/dev/null || true
}

# answers URL: until it does, for a minute.
answers() {
  local try
  for ((try = 0; try < 600; try++)); do
    if curl -fs -o /dev/null "$1"; then return; fi
    sleep 0.1
  done
  printf 'nothing answers at %s; the logs are in %s\n' "$1" "$out" >&2
  return 1
}

# Everything, from an empty database on.
bring_up() {
  local verb port
  "$bin/rowmill" init
  ask -f "$here/sql/tables.sql"
  stack/kafka-topics --create --topic sample --partitions 6 >"$out/topic.log"
  for verb in run collect serve; do start "$verb"; done
  for port in 3000 8080 9753; do answers "http://127.0.0.1:$port/readyz"; done
}

# The tags that readers ask for have a measurement before anybody asks: a hundred of them in one request, whose answer says where
# they are in Kafka, and an answer that waits until the table has them.
first_measurements() {
  local number places
  for number in {0..99}; do
    printf '{"time":%s,"tag":"tag-%05d","values":[0,0,0,0,0,0,0,0,0,0]}\n' "$(date +%s%N)" "$number"
  done >"$out/first"
  places=$(curl -fsS -H 'Rowmill-Receipt: yes' --data-binary "@$out/first" http://127.0.0.1:3000/save | grep -o 'sample/[0-9]*/[0-9]*' |
    awk -F/ '{last[$2] = $0} END {for (partition in last) printf "%s%s", (n++ ? "," : ""), last[partition]}')
  curl -fsS --retry 10 --retry-all-errors -H "Rowmill-After: $places" 'http://127.0.0.1:8080/api/latest?tag=tag-00099' >/dev/null
}

# served PATH: the statement of an endpoint, as rowmill.toml has it.
served() {
  awk -v path="path = \"$1\"" '$0 == path {is_here = 1} is_here && /^sql = """/ {is_sql = 1; next}
    is_sql {end = sub(/"""$/, ""); print; if (end) exit}' "$here/rowmill.toml"
}
