//! `rowmill check` on ten planted mistakes, each named in a sentence with its remedy; and a proposal that holds.

use crate::metrics::free_port;
use crate::world::{World, record, rowmill, rowmill_as};

/// The newest records through the models, and nothing written: dead letters to be, and columns that take their default.
#[test]
fn a_sample_tells_what_would_become_of_it() {
    let world = World::new("check_sample");
    world.create_topic("in", 2);
    world.create_table("t", ", received_at TIMESTAMPTZ NOT NULL DEFAULT now(), kind TEXT DEFAULT 'k'");
    let value = |n: u64| match n % 10 {
        0 => format!("broken {n}"),
        1 => format!("{{\"n\":{n},\"kind\":\"x\"}}"),
        _ => record(n),
    };
    world.produce("in", 0, (0..100).map(value));
    world.produce("in", 1, (0..100).map(value));
    let path = world.file("check.toml", &world.model("in", "t", ""));
    let (text, fine) = rowmill(&world, &["check", "--sample", "200", "--config", &path]);
    assert!(fine && text.contains("20 of 200 records would be dead letters"), "{text}");
    assert!(text.contains("20 invalid_json, the first:"), "{text}");
    assert!(text.contains("column \"received_at\" of table public.t: no record has its field"), "{text}");
    assert!(!text.contains("column \"kind\" of table"), "{text}");
    assert_eq!(world.count("SELECT count(*) FROM t") + world.count("SELECT count(*) FROM rowmill.ledger"), 0);
}

#[test]
fn each_planted_mistake_is_named_with_its_remedy() {
    let world = World::new("check");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let good = world.model("in", "t", "");
    let check_as = |url: &str, config: &str, mistake: &str, remedy: &str| {
        let file = world.file("check.toml", config);
        let (text, ok) = rowmill_as(&world, url, &["check", "--config", &file]);
        let named = text.lines().any(|l| l.contains("PROBLEM") && l.contains(mistake) && l.contains(remedy));
        assert!(!ok && named, "expected {mistake:?} with {remedy:?}:\n{text}");
    };
    let check =
        |config: &str, mistake: &str, remedy: &str| check_as(&world.database_url, config, mistake, remedy);
    let file = world.file("good.toml", &good);
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    assert!(ok, "{text}");

    // 1. A misspelled setting.
    check(
        &format!("memory_mx = \"32MB\"\n{good}"),
        "unknown field `memory_mx`",
        "did you mean \"memory_max\"?",
    );
    // 2. Limits that do not fit each other.
    check(&format!("memory_max = \"10MB\"\n{good}"), "memory_max", "at least 5 times message_max");
    // 3. A table that is not there.
    check(&good.replace("\"t\"", "\"tt\""), "\"tt\"", "does not exist");
    // 4. A column that is not there.
    check(&format!("{good}\nwrod = {{ field = \"word\" }}\n"), "\"wrod\"", "did you mean \"word\"?");
    // 5. A lookup that nobody defined.
    check(&format!("{good}\nword = {{ lookup = \"user\" }}\n"), "lookup \"user\"", "[lookup.user]");
    // 6. A topic that is not there.
    check(&good.replace("-in\"", "-out\""), "-out", "create it");
    // 7. Brokers that are not there.
    check(
        &format!("[kafka]\nbrokers = \"127.0.0.1:{}\"\n{good}", free_port()),
        "Kafka at 127.0.0.1",
        "brokers and their ports",
    );
    // 8. A database without the schema.
    let mut admin = world.sql();
    let (base, _) = world.database_url.rsplit_once('/').expect("a database in the URL");
    check_as(&format!("{base}/postgres"), &good, "no rowmill schema", "run `rowmill init`");
    // 9. A role that may not write.
    let poor = format!("check_poor_{}", std::process::id());
    admin.batch_execute(&format!("CREATE ROLE {poor} LOGIN PASSWORD 'pw'")).expect("a role");
    admin.batch_execute(&format!("GRANT USAGE ON SCHEMA rowmill TO {poor}")).expect("granted");
    admin.batch_execute(&format!("GRANT SELECT ON ALL TABLES IN SCHEMA rowmill TO {poor}")).expect("granted");
    let (_, address) = world.database_url.rsplit_once('@').expect("a user in the URL");
    check_as(
        &format!("postgresql://{poor}:pw@{address}"),
        &good,
        "may not INSERT on \"public\".\"t\"",
        "GRANT INSERT ON \"public\".\"t\"",
    );
    // 10. A wrong password.
    check_as(
        &format!("postgresql://{poor}:no@{address}"),
        &good,
        "password authentication failed",
        "is the password right?",
    );
    admin.batch_execute(&format!("DROP OWNED BY {poor}; DROP ROLE {poor}")).expect("dropped");
    // 11. A Redis without users.
    let lookup = format!("[redis]\nurl = {:?}\n[lookup.user]\nkey = \"user:{{}}\"\n", world.redis_url);
    check(&format!("{lookup}{good}"), "Redis is empty", "is it the right database?");
    // 12. A table that another pipeline fills.
    let engine = world.engine(&good, &[]);
    world.produce("in", 0, [record(1)]);
    world.wait_drained(&["in"], 20);
    engine.stop();
    check(&format!("pipeline = \"other\"\n{good}"), "belongs to pipeline \"rowmill\"", "--take-over rowmill");
}

#[test]
fn a_proposal_takes_the_topic_that_it_was_made_from() {
    let world = World::new("propose");
    world.create_topic("in", 2);
    let record = |n: usize| {
        format!(
            "{{\"Id\":{n},\"sent\":{{\"ts\":{},\"by\":\"collector {n}\"}},\"ratio\":{},\"a.b\":[1],\"user\":\"x\",\
             \"when\":\"2026-01-31T10:00:00.25Z\"{}}}",
            1_769_817_600_000_i64 + n as i64,
            if n.is_multiple_of(2) { "1".to_owned() } else { "0.5".to_owned() },
            if n.is_multiple_of(3) { ",\"note\":\"say \\\"hi\\\"\"" } else { "" },
        )
    };
    world.produce("in", 0, (0..300).map(record));
    world.produce("in", 1, (300..400).map(record));
    let topic = world.topic("in");
    let file = world.file("propose.toml", "");
    let (text, ok) =
        rowmill(&world, &["propose", "--topic", &topic, "--table", "proposed", "--config", &file]);
    assert!(ok, "{text}");
    assert!(text.contains("-- in 400 of 400: 400 integer; 0 to 399\n    \"id\" BIGINT NOT NULL"), "{text}");
    assert!(text.contains("\"note\" TEXT,"), "{text}");
    assert!(text.contains("-- Tried: all 400 records would become rows."), "{text}");
    // All of it is SQL.
    world.sql().batch_execute(&text).expect("the proposed table");
    let model: String =
        text.lines().filter_map(|line| line.strip_prefix("--| ")).map(|line| format!("{line}\n")).collect();
    let (text, ok) = rowmill(&world, &["check", "--config", &world.file("proposed.toml", &model)]);
    assert!(ok, "{text}");
    let engine = world.engine(&model, &[]);
    world.wait_drained(&["in"], 30);
    engine.stop();
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    assert_eq!(world.count("SELECT count(DISTINCT id) FROM proposed"), 400);
    let sent =
        "SELECT extract(epoch FROM max(sent_ts))::BIGINT FROM proposed WHERE sent_by LIKE 'collector%'";
    assert_eq!(world.count(sent), 1_769_817_600);
    let (text, ok) = rowmill(&world, &["propose", "--topic", "no-such-topic", "--config", &file]);
    assert!(!ok && text.contains("no-such-topic"), "{text}");
}

#[test]
fn a_server_that_is_another_one_is_told_apart() {
    let world = World::new("check_servers");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let good = world.model("in", "t", "");
    let check = |config: &str, words: &str| {
        let file = world.file("servers.toml", &format!("{config}\n{good}"));
        let (text, ok) = rowmill(&world, &["check", "--config", &file]);
        let named = text.lines().any(|line| line.contains("PROBLEM") && line.contains(words));
        assert!(!ok && named, "expected {words:?}:\n{text}");
        text
    };
    let kafka = |name: &str| format!("[kafka]\nbrokers = {:?}\n", world.server(name));
    check(
        &kafka("KAFKA_TLS_BROKERS"),
        "the brokers speak TLS there, and this configuration has no [kafka.tls]",
    );
    let (_, address) = world.database_url.rsplit_once('@').expect("a user in the URL");
    let (postgres, database) = address.split_once('/').expect("the URL names a database");
    check(&format!("[kafka]\nbrokers = {postgres:?}\n"), "what answers there is no Kafka broker");
    let sasl = format!(
        "{}[kafka.tls]\nca = {:?}\n[kafka.sasl]\nmechanism = \"SCRAM-SHA-512\"\nusername = \"rowmill\"\npassword = \"wrong\"\n",
        kafka("KAFKA_SASL_BROKERS"),
        world.server("KAFKA_SSL_CA")
    );
    let text = check(&sasl, "are username, password and mechanism in [kafka.sasl] right?");
    assert!(!text.contains("ports right"), "{text}");
    check(
        &format!("[postgres]\nurl = \"postgresql://{postgres}/{database}\"\n"),
        "the URL names none (postgresql://USER@HOST/DATABASE)",
    );
    let port = free_port();
    let text = check(
        &format!("[redis]\nurl = \"redis://127.0.0.1:{port}\"\n[lookup.user]\nkey = \"user:{{}}\"\n"),
        &format!("cannot connect to Redis at 127.0.0.1:{port}: Connection refused"),
    );
    assert_eq!(text.matches("Connection refused").count(), 1, "{text}");
}
