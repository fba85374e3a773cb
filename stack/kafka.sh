# shellcheck shell=bash
# The private Kafka: Apache Kafka in KRaft mode, each node broker and controller. One node, called kafka; with BROKERS=3 also
# kafka2 and kafka3, and everything is kept three times, of which two must have it.
# Sourced by lib.sh, whose names it uses.
# shellcheck disable=SC2154

# Who starts a server shows the end of NAME_log.
# shellcheck disable=SC2034
kafka_log=$STACK_DIR/kafka.log

# The functions below are about the node of this number.
kafka_node=1
kafka_name() { printf 'kafka%s' "${kafka_node#1}"; }
kafka_port() {
  local name=KAFKA${kafka_node#1}_$1
  printf '%s' "${!name}"
}

# A client asks the broker for its address and goes there, past any proxy that stands before the one it was given. So there are
# listeners that name another port than their own, where nobody listens: who wants to cut one client off starts a proxy there,
# which leads to the listener, and gives the client that port. Each line of the properties gets its part of these.
kafka_member_listeners() {
  local member
  for member in $kafka_members; do
    printf ',MEMBER%s://127.0.0.1:%s' "$member" "$(kafka_port "MEMBER${member}_$1")"
  done
}

kafka_member_protocols() {
  local member
  for member in $kafka_members; do
    printf ',MEMBER%s:PLAINTEXT' "$member"
  done
}

# For the environment: the port for the client and the one behind it, ADVERTISED:REAL, a pair for each node, with commas between, and
# those for each client.
kafka_member_ports() {
  local member kafka_node
  for member in $kafka_members; do
    for ((kafka_node = 1; kafka_node <= BROKERS; kafka_node++)); do
      printf '%s:%s,' "$(kafka_port "MEMBER${member}_ADVERTISED_PORT")" "$(kafka_port "MEMBER${member}_PORT")"
    done | sed 's/,$/ /'
  done | sed 's/ $//'
}

# Something of each node, with commas between: its number and one of its ports, as the format says.
kafka_each() {
  local kafka_node
  # shellcheck disable=SC2059
  for ((kafka_node = 1; kafka_node <= BROKERS; kafka_node++)); do
    printf "$1," "$kafka_node" "$(kafka_port "$2")"
  done | sed 's/,$//'
}
# The addresses of all nodes at one of their listeners.
kafka_addresses() { kafka_each '%s@127.0.0.1:%s' "$1" | sed 's/[0-9]*@//g'; }

# Java 17 or later: JAVA_HOME's, the PATH's, or the newest that the distribution has installed beside an older default.
find_java() {
  local java version
  for java in "${JAVA_HOME:-/nonexistent}/bin/java" "$(command -v java || true)" \
    $(printf '%s\n' /usr/lib/jvm/*/bin/java | sort -rV); do
    [ -x "$java" ] || continue
    version=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p')
    if [ "${version:-0}" -ge 17 ]; then
      printf '%s' "$java"
      return
    fi
  done
  return 1
}

# Named after the pom's content, so that a changed version is fetched anew and an interrupted download is never used.
kafka_jars() { printf '%s/kafka-%s' "$stack_cache" "$(sha256sum <"$stack_bin/pom.xml" | cut -c 1-12)"; }

kafka_version() { sed -n '/kafka_2.13/,/version/s/.*<version>\(.*\)<.*/\1/p' "$stack_bin/pom.xml"; }

kafka_fetch() {
  local jars began log=$stack_cache/maven.log
  jars=$(kafka_jars)
  mkdir -p "$stack_cache"
  (
    # Two stacks of one checkout may come up at the same time.
    flock 8
    [ ! -d "$jars" ] || exit 0
    say "kafka: fetching the jars with Maven (45 MB, once)"
    began=$(now_ms)
    rm -rf "$jars.part"
    mvn --batch-mode --quiet --strict-checksums -Dstyle.color=never --file "$stack_bin/pom.xml" \
      dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$jars.part" >"$log" 2>&1 </dev/null ||
      fail "fetch Kafka with Maven" "$(tail_of "$log")" \
        "check that Maven reaches its repository (proxies and mirrors go into ~/.m2/settings.xml), then try again"
    mv "$jars.part" "$jars"
    say "kafka: fetched in $(seconds_since "$began")"
  ) 8>"$stack_cache/lock"
}

# fill_template reads the local names.
# shellcheck disable=SC2034
kafka_prepare() {
  local java member_listeners member_advertised member_protocols port tls_port sasl_port controller_port
  local voters replicas insync kafka_dir log
  kafka_dir=$STACK_DIR/$(kafka_name)
  log=$kafka_dir.log
  kafka_fetch
  java=$(find_java) || fail "start Kafka" "there is no Java 17 or later" "run stack/install"
  mkdir -p "$kafka_dir"
  # Kafka takes key and certificates from one file.
  cat "$tls/server.key" "$tls/server.crt" "$tls/ca.crt" >"$kafka_dir/keystore.pem"
  chmod 600 "$kafka_dir/keystore.pem"
  cat "$tls/client.key" "$tls/client.crt" "$tls/ca.crt" >"$kafka_dir/client.pem"
  chmod 600 "$kafka_dir/client.pem"
  # For the command line tools, when they are to use the TLS listener: --command-config "$STACK_DIR/kafka/tls.properties"
  {
    printf 'security.protocol=SSL\nssl.keystore.type=PEM\nssl.truststore.type=PEM\n'
    printf 'ssl.keystore.location=%s\nssl.truststore.location=%s\n' "$kafka_dir/client.pem" "$tls/ca.crt"
  } >"$kafka_dir/tls.properties"
  member_listeners=$(kafka_member_listeners PORT)
  member_advertised=$(kafka_member_listeners ADVERTISED_PORT)
  member_protocols=$(kafka_member_protocols)
  port=$(kafka_port PORT)
  tls_port=$(kafka_port TLS_PORT)
  sasl_port=$(kafka_port SASL_PORT)
  controller_port=$(kafka_port CONTROLLER_PORT)
  voters=$(kafka_each '%s@127.0.0.1:%s' CONTROLLER_PORT)
  replicas=$BROKERS
  insync=$((BROKERS / 2 + 1))
  fill_template "$stack_bin/server.properties" kafka_node port tls_port sasl_port controller_port voters replicas insync \
    PG_PASSWORD kafka_dir tls member_listeners member_advertised member_protocols >"$kafka_dir/server.properties"
  if [ ! -f "$kafka_dir/data/meta.properties" ]; then
    "$java" -cp "$(kafka_jars)/*" kafka.tools.StorageTool format --cluster-id "$KAFKA_CLUSTER_ID" \
      --add-scram "SCRAM-SHA-512=[name=rowmill,password=$PG_PASSWORD]" \
      --add-scram "SCRAM-SHA-256=[name=rowmill,password=$PG_PASSWORD]" --config "$kafka_dir/server.properties" >"$log" 2>&1 ||
      fail "format Kafka's storage" "$(tail_of "$log")" "remove $kafka_dir and try again"
  fi
}

# Kafka's form of a UUID: sixteen bytes, base64 for URLs, without padding. Its reader refuses a leading dash.
kafka_cluster_id() { printf 'A%s' "$(openssl rand -base64 16 | tr '+/' 'AB' | cut -c 2-22)"; }

kafka_start() {
  local java server log
  java=$(find_java)
  server=$(kafka_name)
  log=$STACK_DIR/$server.log
  [ ! -f "$log" ] || mv "$log" "$log.before"
  # setsid: a Ctrl-C at the terminal is for the test, not for its servers.
  setsid "$java" -Xms256m -Xmx512m -XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
    -Dorg.slf4j.simpleLogger.showDateTime=true "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS" \
    -cp "$(kafka_jars)/*" kafka.Kafka "$STACK_DIR/$server/server.properties" >"$log" 2>&1 </dev/null 8>&- 9>&- &
  remember_process "$server" $! || true
}

# The port opens before the broker is registered and may lead partitions; this line comes after both.
kafka_answers() { grep -qs 'Kafka Server started' "$STACK_DIR/$(kafka_name).log"; }
kafka_settle() { :; }

kafka_where() { printf '127.0.0.1:%s, TLS %s' "$(kafka_port PORT)" "$(kafka_port TLS_PORT)"; }
kafka_stop() { end_process "$(kafka_name)" TERM; }
kafka_kill() { end_process "$(kafka_name)" KILL; }

# The further nodes are servers of their own for whoever kills and restarts them.
# shellcheck disable=SC2034
for kafka_further in 2 3; do
  eval "kafka${kafka_further}_log=\$STACK_DIR/kafka$kafka_further.log"
  for kafka_what in prepare start answers settle where stop kill; do
    eval "kafka${kafka_further}_$kafka_what() { local kafka_node=$kafka_further; kafka_$kafka_what; }"
  done
done
