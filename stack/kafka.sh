# shellcheck shell=bash
# The private Kafka broker: Apache Kafka in KRaft mode, one node that is broker and controller.
# Sourced by lib.sh, whose names it uses.
# shellcheck disable=SC2154

kafka_log=$STACK_DIR/kafka.log
kafka_dir=$STACK_DIR/kafka

# A client asks the broker for its address and goes there, past any proxy that stands before the one it was given. So there are
# listeners that name another port than their own, where nobody listens: who wants to cut one client off starts a proxy there,
# which leads to the listener, and gives the client that port. Each line of the properties gets its part of these.
kafka_member_listeners() {
  local member port
  for member in $kafka_members; do
    port=KAFKA_MEMBER${member}_$1
    printf ',MEMBER%s://127.0.0.1:%s' "$member" "${!port}"
  done
}

kafka_member_protocols() {
  local member
  for member in $kafka_members; do
    printf ',MEMBER%s:PLAINTEXT' "$member"
  done
}

# For the environment: the port for the client and the one behind it, ADVERTISED:REAL, a pair for each.
kafka_member_ports() {
  local member real advertised
  for member in $kafka_members; do
    real=KAFKA_MEMBER${member}_PORT
    advertised=KAFKA_MEMBER${member}_ADVERTISED_PORT
    printf '%s:%s ' "${!advertised}" "${!real}"
  done | sed 's/ $//'
}

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
  local java member_listeners member_advertised member_protocols
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
  fill_template "$stack_bin/server.properties" KAFKA_PORT KAFKA_TLS_PORT KAFKA_SASL_PORT \
    KAFKA_CONTROLLER_PORT PG_PASSWORD kafka_dir tls member_listeners member_advertised member_protocols \
    >"$kafka_dir/server.properties"
  if [ ! -f "$kafka_dir/data/meta.properties" ]; then
    "$java" -cp "$(kafka_jars)/*" kafka.tools.StorageTool format --cluster-id "$(kafka_cluster_id)" \
      --add-scram "SCRAM-SHA-512=[name=rowmill,password=$PG_PASSWORD]" \
      --add-scram "SCRAM-SHA-256=[name=rowmill,password=$PG_PASSWORD]" --config "$kafka_dir/server.properties" >"$kafka_log" 2>&1 ||
      fail "format Kafka's storage" "$(tail_of "$kafka_log")" "remove $kafka_dir and try again"
  fi
}

# Kafka's form of a UUID: sixteen bytes, base64 for URLs, without padding. Its reader refuses a leading dash.
kafka_cluster_id() { printf 'A%s' "$(openssl rand -base64 16 | tr '+/' 'AB' | cut -c 2-22)"; }

kafka_start() {
  local java
  java=$(find_java)
  [ ! -f "$kafka_log" ] || mv "$kafka_log" "$kafka_log.before"
  # setsid: a Ctrl-C at the terminal is for the test, not for its servers.
  setsid "$java" -Xms256m -Xmx512m -XX:+UseSerialGC -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true \
    -Dorg.slf4j.simpleLogger.showDateTime=true "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS" \
    -cp "$(kafka_jars)/*" kafka.Kafka "$kafka_dir/server.properties" >"$kafka_log" 2>&1 </dev/null 8>&- 9>&- &
  remember_process kafka $! || true
}

# The port opens before the broker is registered and may lead partitions; this line comes after both.
kafka_answers() { grep -qs 'Kafka Server started' "$kafka_log"; }
kafka_settle() { :; }

kafka_where() { printf '127.0.0.1:%s, TLS %s' "$KAFKA_PORT" "$KAFKA_TLS_PORT"; }
kafka_stop() { end_process kafka TERM; }
kafka_kill() { end_process kafka KILL; }
