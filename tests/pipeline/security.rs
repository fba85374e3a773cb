//! Who is spoken to, and what becomes of secrets: each server with the wrong certificate, and a password that is searched for
//! in everything that leaves the process.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::rsa::Rsa;
use openssl::x509::extension::SubjectAlternativeName;
use openssl::x509::{X509, X509Builder, X509NameBuilder};

use crate::metrics::{free_port, get};
use crate::world::{World, all_rows, record, rowmill, rowmill_as, wait_for};

/// Where this configuration's servers are, and whom it trusts.
struct Servers {
    kafka: String,
    postgres: String,
    redis: String,
    ca: String,
}

impl Servers {
    fn new(world: &World) -> Servers {
        let (postgres, redis) = world.tls_urls();
        let (postgres, _) = postgres.split_once('?').expect("the URL says how to verify");
        Servers {
            kafka: world.server("KAFKA_SASL_BROKERS"),
            postgres: postgres.to_owned(),
            redis,
            ca: world.server("KAFKA_SSL_CA"),
        }
    }

    fn config(&self, world: &World, more: &str) -> String {
        let Servers { kafka, postgres, redis, ca } = self;
        let between = if postgres.contains('?') { '&' } else { '?' };
        format!(
            "[kafka]\nbrokers = {kafka:?}\n[kafka.tls]\nca = {ca:?}\n[kafka.sasl]\nmechanism = \"SCRAM-SHA-512\"\n\
             username = \"rowmill\"\npassword = \"env:KAFKA_SASL_PASSWORD\"\n\
             [postgres]\nurl = \"{postgres}{between}sslmode=verify-full&sslrootcert={ca}\"\n\
             [redis]\nurl = {redis:?}\nca = {ca:?}\n[lookup.user]\nkey = \"user:{{}}\"\n{more}{}",
            world.model("in", "t", "")
        )
    }

    /// What `check` says of these.
    fn check(&self, world: &World) -> String {
        let config = world.file("tls.toml", &self.config(world, ""));
        let (text, ok) = rowmill(world, &["check", "--config", &config]);
        assert_eq!(ok, !text.contains("PROBLEM"), "{text}");
        text
    }
}

fn world() -> World {
    filled(World::new("security"))
}

fn filled(world: World) -> World {
    world.create_topic("in", 1);
    world.create_table("t", "");
    redis::cmd("SET").arg("user:a").arg("7").query::<()>(&mut world.redis()).expect("set");
    world
}

/// Each server's problem line, in the order of `check`.
#[track_caller]
fn refused_by_all(text: &str, sentence: &str) {
    let problems: Vec<&str> = text.lines().filter(|line| line.contains("PROBLEM")).collect();
    assert_eq!(problems.len(), 3, "{text}");
    for (problem, server) in problems.iter().zip(["PostgreSQL", "Redis", "Kafka"]) {
        assert!(problem.contains(server) && problem.contains(sentence), "{server}: {problem}");
    }
}

#[test]
fn the_right_certificates_are_accepted() {
    let world = world();
    let text = Servers::new(&world).check(&world);
    assert!(text.contains("would work"), "{text}");
}

#[test]
fn another_authority_is_refused() {
    let world = world();
    let key = PKey::from_rsa(Rsa::generate(2048).expect("a key")).expect("a key");
    let other = certificate("another CA", &key, None, (-1, 1));
    let ca = world.file("other.crt", &String::from_utf8(other.to_pem().expect("PEM")).expect("text"));
    refused_by_all(
        &Servers { ca, ..Servers::new(&world) }.check(&world),
        "not signed by the configured authority",
    );
}

#[test]
fn a_certificate_for_another_name_is_refused() {
    let world = world();
    let servers = Servers::new(&world);
    // The same servers by an address that their certificate does not carry.
    let moved = Servers {
        kafka: servers.kafka.replace("127.0.0.1", "0.0.0.0"),
        postgres: servers.postgres.replace("localhost", "db.example") + "?hostaddr=127.0.0.1",
        redis: servers.redis.replace("localhost", "127.1"),
        ca: servers.ca,
    };
    refused_by_all(&moved.check(&world), "for another name");
}

#[test]
fn a_server_that_speaks_plaintext_is_refused() {
    let world = filled(World::alone("security"));
    let servers = Servers::new(&world);
    let mut postgres = world.sql();
    postgres.batch_execute("ALTER SYSTEM SET ssl = off").expect("set");
    postgres.batch_execute("SELECT pg_reload_conf()").expect("reloaded");
    let plain = Servers {
        kafka: world.server("KAFKA_BROKERS"),
        redis: world.redis_url.replace("redis://", "rediss://"),
        postgres: servers.postgres,
        ca: servers.ca,
    };
    let text = plain.check(&world);
    postgres.batch_execute("ALTER SYSTEM RESET ssl").expect("reset");
    postgres.batch_execute("SELECT pg_reload_conf()").expect("reloaded");
    refused_by_all(&text, "no fallback to plaintext");
}

#[test]
fn an_expired_certificate_is_refused() {
    let world = filled(World::alone("security"));
    let expired = Expired::install(&world);
    let text = Servers::new(&world).check(&world);
    drop(expired);
    refused_by_all(&text, "has expired");
}

/// A certificate of the stack's own authority for the servers' own key, which ended yesterday, in use by all of them.
struct Expired<'a> {
    world: &'a World,
    /// Where the TLS files of the stack are.
    tls: PathBuf,
    mine: Vec<PathBuf>,
    own: Vec<u8>,
    expired: Vec<u8>,
}

impl Expired<'_> {
    fn install(world: &World) -> Expired<'_> {
        let tls = PathBuf::from(world.server("KAFKA_SSL_CA")).parent().expect("a directory").to_owned();
        let read = |name: &str| std::fs::read(tls.join(name)).expect("the stack's file");
        let key = PKey::private_key_from_pem(&read("server.key")).expect("a key");
        let authority = X509::from_pem(&read("ca.crt")).expect("a certificate");
        let authority_key = PKey::private_key_from_pem(&read("ca.key")).expect("a key");
        let expired = certificate("localhost", &key, Some((&authority, &authority_key)), (-3, -1));
        let pem = expired.to_pem().expect("PEM");
        let postgres = PathBuf::from(world.server("PGDATA")).join("expired.crt");
        let redis = world.path("expired.crt");
        std::fs::write(&postgres, &pem).expect("a file");
        std::fs::write(&redis, &pem).expect("a file");
        let own = read("server.crt");
        let expired = Expired { world, tls, mine: vec![postgres, redis], own, expired: pem };
        let mut permissions = std::fs::metadata(&expired.mine[0]).expect("written").permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
        std::fs::set_permissions(&expired.mine[0], permissions).expect("readable");
        expired.use_certificates(true);
        expired
    }

    fn use_certificates(&self, expired: bool) {
        let mut postgres = self.world.sql();
        let sql = if expired { "SET ssl_cert_file = 'expired.crt'" } else { "RESET ssl_cert_file" };
        postgres.batch_execute(&format!("ALTER SYSTEM {sql}")).expect("set");
        postgres.batch_execute("SELECT pg_reload_conf()").expect("reloaded");
        // Kafka refuses such a change while it runs; what it starts with is copied from here.
        let own = self.tls.join("server.crt");
        std::fs::write(&own, if expired { &self.expired } else { &self.own }).expect("written");
        let file = if expired { &self.mine[1] } else { &own };
        redis::cmd("CONFIG")
            .arg("SET")
            .arg("tls-cert-file")
            .arg(file.to_str().expect("text"))
            .query::<()>(&mut self.world.redis())
            .expect("Redis takes it");
        self.world.stack(&["restart", "kafka"]);
    }
}

impl Drop for Expired<'_> {
    fn drop(&mut self) {
        self.use_certificates(false);
        std::fs::remove_file(&self.mine[0]).expect("it was written");
    }
}

/// A certificate for localhost, valid between two days from today, signed by itself or by an authority.
fn certificate(
    name: &str,
    key: &PKey<openssl::pkey::Private>,
    authority: Option<(&X509, &PKey<openssl::pkey::Private>)>,
    days: (i64, i64),
) -> X509 {
    let mut subject = X509NameBuilder::new().expect("a name");
    subject.append_entry_by_text("CN", name).expect("a name");
    let subject = subject.build();
    let mut builder = X509Builder::new().expect("a builder");
    builder.set_version(2).expect("version 3");
    let serial = BigNum::from_u32(4242).and_then(|n| n.to_asn1_integer()).expect("a number");
    builder.set_serial_number(&serial).expect("set");
    builder.set_subject_name(&subject).expect("set");
    builder.set_issuer_name(authority.map_or(&subject, |(ca, _)| ca.subject_name())).expect("set");
    builder.set_pubkey(key).expect("set");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let day = |days: i64| Asn1Time::from_unix(now as i64 + days * 86_400).expect("a time");
    builder.set_not_before(&day(days.0)).expect("set");
    builder.set_not_after(&day(days.1)).expect("set");
    let names = SubjectAlternativeName::new()
        .dns("localhost")
        .ip("127.0.0.1")
        .build(&builder.x509v3_context(authority.map(|(ca, _)| &**ca), None));
    builder.append_extension(names.expect("names")).expect("set");
    builder.sign(authority.map_or(key, |(_, key)| key), MessageDigest::sha256()).expect("signed");
    builder.build()
}

#[test]
fn records_flow_over_tls_with_users_and_passwords_from_credentials() {
    let world = world();
    let mut redis = world.redis();
    // What the engine does there, and nothing else.
    redis::cmd("ACL")
        .arg(&[
            "SETUSER",
            "rowmill-lookup",
            "reset",
            "on",
            ">acl-pw",
            "~user:*",
            "+strlen",
            "+mget",
            "+dbsize",
            "+select",
            "+ping",
        ])
        .query::<()>(&mut redis)
        .expect("a user");
    let secrets = world.path("credentials");
    std::fs::create_dir(&secrets).expect("a directory");
    std::fs::write(secrets.join("redis-password"), "acl-pw\n").expect("a file");
    std::fs::write(secrets.join("kafka-password"), world.server("KAFKA_SASL_PASSWORD")).expect("a file");
    let servers = Servers::new(&world);
    let login = "username = \"rowmill-lookup\"\npassword = \"credential:redis-password\"\n";
    for mechanism in ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] {
        let config = servers
            .config(&world, "")
            .replace("SCRAM-SHA-512", mechanism)
            .replace("env:KAFKA_SASL_PASSWORD", "credential:kafka-password")
            .replace("[redis]\n", &format!("[redis]\n{login}"))
            + "n = { field = \"n\" }\nword = { lookup = \"user\", field = \"token\" }\n";
        let engine = world.engine(&config, &[("CREDENTIALS_DIRECTORY", secrets.to_str().expect("text"))]);
        world.produce("in", 0, ["{\"n\":1,\"token\":\"a\"}".to_owned()]);
        wait_for(&format!("a row over {mechanism}: {}", engine.log()), 20, || {
            world.count("SELECT count(*) FROM t WHERE word = '7'") > 0
        });
        world.wait_drained(&["in"], 20);
        world.sql().batch_execute("UPDATE t SET word = 'seen'").expect("updated");
    }
    redis::cmd("ACL").arg("DELUSER").arg("rowmill-lookup").query::<()>(&mut redis).expect("removed");
    world.check("t", &["in"], all_rows);
}

/// Runs the lines of docs/deployment.md that begin with this command, with other words in them.
#[track_caller]
fn as_documented(world: &World, command: &str, changes: &[(&str, &str)]) {
    let lines: String = include_str!("../../docs/deployment.md")
        .lines()
        .filter(|line| line.starts_with(command))
        .map(|line| changes.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to)) + "\n")
        .collect();
    let script = format!(
        "set -euo pipefail\nkafka-acls.sh() {{ \"$STACK_BIN/kafka\" acls \"$@\"; }}\n\
         kafka-configs.sh() {{ \"$STACK_BIN/kafka\" configs \"$@\"; }}\n{lines}"
    );
    let output = world.command("bash").args(["-c", &script]).output().expect("bash starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!lines.is_empty() && output.status.success(), "{lines}{told}");
}

#[test]
fn a_kafka_user_needs_what_the_documents_grant_and_check_names_what_is_missing() {
    let world = world();
    let (user, topic) = (format!("least-{}", std::process::id()), world.topic("in"));
    let tools = world.server("STACK_DIR") + "/kafka/tls.properties";
    let broker = world.server("KAFKA_TLS_BROKERS");
    let mut changes =
        vec![("kafka-1.example:9093", broker.as_str()), ("admin.properties", &tools), ("...", "user-pw")];
    let name = format!("--entity-name {user}");
    changes.push(("--entity-name rowmill", &name));
    as_documented(&world, "kafka-configs.sh", &changes);
    let config = Servers::new(&world)
        .config(&world, "")
        .replace("\"rowmill\"", &format!("{user:?}"))
        .replace("env:KAFKA_SASL_PASSWORD", "user-pw");
    let file = world.file("least.toml", &config);
    let problem = |words: &str| {
        let (text, ok) = rowmill(&world, &["check", "--config", &file]);
        let named = text.lines().any(|line| line.contains("PROBLEM") && line.contains(words));
        assert!(!ok && named, "expected {words:?}:\n{text}");
    };

    problem("Topic authorization failed; create it, mend its name, or let this user describe it");
    let principal = format!("User:{user}");
    world.stack(&[
        "kafka",
        "acls",
        "--add",
        "--allow-principal",
        &principal,
        "--operation",
        "Describe",
        "--topic",
        &topic,
    ]);
    let missing = "this user may describe it and not read it; allow Read on it";
    problem(missing);
    let engine = world.engine(&config, &[]);
    wait_for("the engine's word for that", 20, || engine.log().contains(missing));
    changes.extend([
        ("User:CN=rowmill", principal.as_str()),
        ("my_topic", &topic),
        ("my_pipeline", "rowmill"),
    ]);
    as_documented(&world, "kafka-acls.sh", &changes);
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    assert!(ok && !text.contains("without DescribeConfigs"), "{text}");

    // It goes on by itself.
    world.produce("in", 0, (0..10).map(record));
    world.wait_drained(&["in"], 20);
    wait_for("an offset for the lag tools", 20, || world.group_offset("rowmill", "in", 0) == Some(10));
    assert!(engine.stop().0.success());
    world.check("t", &["in"], all_rows);
}

#[test]
fn a_secret_is_nowhere_but_where_it_belongs() {
    const CANARY: &str = "canary-7f3a";
    let world = world();
    let servers = Servers::new(&world);
    let role = format!("canary_{}", std::process::id());
    let mut sql = world.sql();
    sql.batch_execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{CANARY}'")).expect("a role");
    let mut redis = world.redis();
    redis::cmd("ACL")
        .arg(&["SETUSER", &role, "reset", "on", &format!(">{CANARY}"), "~*", "+@all"])
        .query::<()>(&mut redis)
        .expect("a user");
    let (_, address) = servers.postgres.rsplit_once('@').expect("a user in the URL");
    let right = servers
        .config(&world, &format!("[metrics]\nlisten = \"127.0.0.1:{}\"\n", free_port()))
        .replace(&servers.postgres, &format!("postgresql://{role}:{CANARY}@{address}"))
        .replace("[redis]\n", &format!("[redis]\nusername = {role:?}\npassword = {CANARY:?}\n"));
    let port =
        right.split("127.0.0.1:").last().and_then(|t| t.split('"').next()).and_then(|t| t.parse().ok());
    let port: u16 = port.expect("the port above");
    let engine = world.engine(&right, &[("RUST_LOG", "trace")]);
    world.produce("in", 0, (0..10).map(record).chain(["{".to_owned()]));
    world.wait_drained(&["in"], 30);
    let mut told = vec![engine.log(), get(port, "/metrics", "*/*").expect("it answers").1];
    told.push(get(port, "/readyz", "*/*").expect("it answers").1);
    let file = world.file("right.toml", &right);
    for verb in ["check", "status", "verify"] {
        told.push(rowmill(&world, &[verb, "--config", &file]).0);
    }
    engine.stop();
    // The same secrets where they are wrong: errors quote what they were given.
    let wrong = right.replace(&format!("{role}:{CANARY}@"), &format!("{role}:not-{CANARY}@"));
    let wrong = wrong.replace(&format!("password = {CANARY:?}"), &format!("password = \"not-{CANARY}\""));
    let wrong = wrong.replace("env:KAFKA_SASL_PASSWORD", &format!("not-{CANARY}"));
    let file = world.file("wrong.toml", &wrong);
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    assert!(!ok && text.matches("PROBLEM").count() >= 3, "{text}");
    told.push(text);
    for broken in
        [format!("{wrong}\npassword = {CANARY}"), wrong.replace("sslmode=verify-full", "sslmode=maybe")]
    {
        let file = world.file("broken.toml", &broken);
        told.push(rowmill(&world, &["run", "--config", &file]).0);
    }
    let letters = sql.query("SELECT d::TEXT FROM rowmill.dead_letter d", &[]).expect("the dead letters");
    assert_eq!(letters.len(), 1);
    told.extend(letters.iter().map(|row| row.get::<_, String>(0)));
    let ledger = sql.query("SELECT l::TEXT FROM rowmill.ledger l", &[]).expect("the ledger");
    told.extend(ledger.iter().map(|row| row.get::<_, String>(0)));
    for text in &told {
        assert!(!text.is_empty());
        if let Some(line) = text.lines().find(|line| line.contains(CANARY)) {
            panic!("a secret was told: {line}");
        }
    }
    redis::cmd("ACL").arg("DELUSER").arg(&role).query::<()>(&mut redis).expect("removed");
    sql.batch_execute(&format!("DROP ROLE {role}")).expect("removed");
}

#[test]
fn neither_ps_nor_a_core_dump_shows_a_secret_that_came_from_a_file() {
    const CANARY: &str = "canary-91d2";
    let world = world();
    let role = format!("canary_file_{}", std::process::id());
    let mut sql = world.sql();
    sql.batch_execute(&format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD '{CANARY}'")).expect("a role");
    let file = world.file("database-password", CANARY);
    let (_, address) = world.database_url.rsplit_once('@').expect("a user in the URL");
    let config = world.model("in", "t", "")
        + &format!("[postgres]\nurl = \"postgresql://{role}@{address}\"\npassword = \"file:{file}\"\n");
    // What an operator may have set in the shell; the engine takes it back.
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).expect("a limit");
    setrlimit(Resource::RLIMIT_CORE, hard, hard).expect("raised");
    let mut engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..10).map(record));
    world.wait_drained(&["in"], 20);
    let of_process = |name: &str| std::fs::read(format!("/proc/{}/{name}", engine.pid())).expect("it runs");
    for shown in ["cmdline", "environ"] {
        let text = String::from_utf8_lossy(&of_process(shown)).replace('\0', "\n");
        assert!(text.contains("rowmill") && !text.contains(CANARY), "{shown}: {text}");
    }
    let limits = String::from_utf8_lossy(&of_process("limits")).into_owned();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("Linux tells");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    engine.signal(Signal::SIGABRT);
    let status = engine.wait(10);
    // A handler behind a pipe gets its dump whatever the limit says.
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("Linux tells");
    assert!(!status.core_dumped() || pattern.starts_with('|'), "{status:?}");
    sql.batch_execute(&format!("DROP ROLE {role}")).expect("removed");
}

#[test]
fn a_password_on_the_command_line_is_refused() {
    let world = world();
    let (text, ok) = rowmill(&world, &["init", "--url", "postgresql://u:canary@127.0.0.1/d"]);
    assert!(!ok && text.contains("everybody on this machine can see") && !text.contains("canary"), "{text}");
}

#[test]
fn a_log_line_is_one_event_without_payloads() {
    let world = world();
    let config = world.model("in", "t", "") + "[log]\nformat = \"json\"\nlevel = \"debug\"\n";
    world.sql().batch_execute("ALTER TABLE t ADD CHECK (n < 5), ADD UNIQUE (n)").expect("constraints");
    let engine = world.engine(&config, &[]);
    // Refused by the decoder, by a constraint, by an index; each with a word that must not be in the log.
    let words =
        ["{\"n\":\"payload-1\"}", "{\"n\":9,\"word\":\"payload-2\"}", "{\"n\":1,\"word\":\"payload-3\"}"];
    world.produce("in", 0, [words[2], words[2], words[1], words[0]].map(str::to_owned));
    world.wait_drained(&["in"], 20);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 3);
    let log = engine.log();
    for line in log.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(event["message"].is_string() && event["time"].is_string(), "{line}");
    }
    assert!(log.contains("refuses a row") && !log.contains("payload-"), "{log}");
}

/// Who listens where PostgreSQL should, and asks for the password as it is, is not given it.
#[test]
fn a_password_is_not_handed_to_whoever_listens_while_the_server_is_down() {
    use std::io::{Read as _, Write as _};

    let world = World::new("security_listener");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("somebody connects");
        let mut length = [0; 4];
        stream.read_exact(&mut length).expect("a startup message");
        let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
        stream.read_exact(&mut startup).expect("all of it");
        // AuthenticationCleartextPassword, in two pieces.
        stream.write_all(b"R\0\0\0").expect("sent");
        stream.flush().expect("sent");
        std::thread::sleep(std::time::Duration::from_millis(50));
        stream.write_all(&[8, 0, 0, 0, 3]).expect("sent");
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("set");
        let mut answer = Vec::new();
        // A connection that is closed, or reset, is right.
        stream.read_to_end(&mut answer).ok();
        answer
    });
    let url = format!("postgresql://rowmill_writer:s3cret@127.0.0.1:{port}/d");
    let (text, ok) = rowmill_as(&world, &url, &["init"]);
    assert!(!ok && text.contains("is not given it without TLS") && !text.contains("s3cret"), "{text}");
    let answer = heard.join().expect("the listener ends");
    assert!(!answer.windows(6).any(|six| six == b"s3cret"), "{answer:?}");
}
