//! Servers go away and come back; nothing is dropped, nothing is set aside, and nobody has to help.

use std::time::Duration;

use crate::world::{World, all_rows, record, rowmill, wait_for};
use rdkafka::producer::Producer as _;

/// A model whose `word` comes from Redis.
fn with_lookup(world: &World) -> String {
    format!(
        "[lookup.word]\nkey = \"word:{{}}\"\nttl = \"1s\"\n{}word = {{ lookup = \"word\" }}\n",
        world.model("in", "t", "")
    )
}

fn give_words(world: &World) {
    let mut redis = world.redis();
    let mut pipe = redis::pipe();
    for i in 0..1000 {
        pipe.cmd("SET").arg(format!("word:w{i}")).arg(format!("word-{i}")).ignore();
    }
    pipe.query::<()>(&mut redis).expect("Redis takes all");
}

#[test]
fn postgres_restarts() {
    let world = World::alone("outage_postgres");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let load = world.load("in", 3, 5000);
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    for _ in 0..3 {
        world.stack(&["kill", "postgres"]);
        std::thread::sleep(Duration::from_millis(500));
        world.stack(&["restart", "postgres"]);
        std::thread::sleep(Duration::from_millis(1500));
    }
    load.stop();
    world.wait_drained(&["in"], 40);
    world.check("t", &["in"], all_rows);
    assert!(engine.stop().0.success());
}

/// What was committed may be gone after a crash; rows and positions go together, and are read again.
#[test]
fn commits_that_were_not_synchronous_are_read_again() {
    let world = World::alone("outage_asynchronous");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let database = world.database_url.rsplit_once('/').expect("the URL names a database").1.to_owned();
    let settings = "SET synchronous_commit = off";
    world.sql().batch_execute(&format!("ALTER DATABASE {database} {settings}")).expect("set");
    let load = world.load("in", 3, 5000);
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_secs(1));
        world.stack(&["kill", "postgres"]);
        world.stack(&["restart", "postgres"]);
    }
    load.stop();
    world.wait_drained(&["in"], 40);
    world.check("t", &["in"], all_rows);
    assert!(engine.stop().0.success());
}

/// Timeouts that suit a web application, set for the whole database.
#[test]
fn low_timeouts_of_the_database_do_no_harm() {
    let world = World::new("outage_timeouts");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let database = world.database_url.rsplit_once('/').expect("the URL names a database").1.to_owned();
    for setting in ["statement_timeout", "idle_in_transaction_session_timeout", "lock_timeout"] {
        let sql = format!("ALTER DATABASE {database} SET {setting} = '100ms'");
        world.sql().batch_execute(&sql).expect("set");
    }
    let load = world.load("in", 2, 5000);
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    std::thread::sleep(Duration::from_secs(3));
    load.stop();
    world.wait_drained(&["in"], 40);
    world.check("t", &["in"], all_rows);
    assert!(engine.stop().0.success());
}

#[test]
fn kafka_restarts() {
    let world = World::alone("outage_kafka");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let load = world.load("in", 3, 2000);
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    world.stack(&["kill", "kafka"]);
    std::thread::sleep(Duration::from_secs(1));
    world.stack(&["restart", "kafka"]);
    std::thread::sleep(Duration::from_secs(3));
    load.stop();
    world.wait_drained(&["in"], 60);
    world.check("t", &["in"], all_rows);
    assert!(engine.stop().0.success());
}

#[test]
fn redis_is_down_for_a_while() {
    let world = World::alone("outage_redis");
    world.create_topic("in", 2);
    world.create_table("t", "");
    give_words(&world);
    let load = world.load("in", 2, 2000);
    let engine = world.engine(&with_lookup(&world), &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    world.stack(&["kill", "redis"]);
    wait_for("the engine to say so", 20, || engine.log().contains("waiting for Redis"));
    world.stack(&["restart", "redis"]);
    // It comes back empty: still no reason to set anything aside.
    wait_for("the engine to notice an empty Redis", 20, || engine.log().contains("nothing is set aside"));
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    give_words(&world);
    load.stop();
    world.wait_drained(&["in"], 40);
    world.check("t", &["in"], all_rows);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word NOT LIKE 'word-%'"), 0);
}

#[test]
fn redis_is_emptied_while_running() {
    let world = World::new("outage_emptied");
    world.create_topic("in", 2);
    world.create_table("t", "");
    give_words(&world);
    let load = world.load("in", 2, 2000);
    let engine = world.engine(&with_lookup(&world), &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    // Not quite empty, so that only what was known before tells.
    let mut redis = world.redis();
    redis::cmd("FLUSHDB").query::<()>(&mut redis).expect("Redis answers");
    redis::cmd("SET").arg("other").arg("1").query::<()>(&mut redis).expect("Redis answers");
    wait_for("the engine to notice", 20, || engine.log().contains("nothing is set aside"));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    give_words(&world);
    load.stop();
    world.wait_drained(&["in"], 40);
    world.check("t", &["in"], all_rows);
}

#[test]
fn an_unknown_token_is_set_aside_and_a_late_one_is_not() {
    let world = World::new("outage_token");
    world.create_topic("in", 1);
    world.create_table("t", "");
    give_words(&world);
    // Late is what comes within the grace, however slow this test is.
    let config = with_lookup(&world).replace("ttl = \"1s\"", "ttl = \"1s\"\ngrace = \"5s\"");
    let engine = world.engine(&config, &[]);
    let value = |n: u64, word: &str| format!("{{\"n\":{n},\"word\":\"{word}\"}}");
    world.produce("in", 0, [value(1, "w1")]);
    wait_for("a row", 20, || world.count("SELECT count(*) FROM t") == 1);
    world.produce("in", 0, [value(2, "nobody"), value(3, "late"), value(4, "w4")]);
    redis::cmd("SET")
        .arg("word:late")
        .arg("word-late")
        .query::<()>(&mut world.redis())
        .expect("Redis answers");
    world.wait_drained(&["in"], 20);
    let bad = value(2, "nobody");
    world.check("t", &["in"], |v| {
        if v == Some(bad.as_bytes()) { crate::world::Class::Dead } else { crate::world::Class::Row }
    });
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'unknown_token'"), 1);
    assert!(engine.stop().0.success());
}

/// One user is removed, others stay: its records are set aside, and everybody else's go on.
#[test]
fn a_removed_token_stops_nobody() {
    let world = World::new("outage_removed");
    world.create_topic("in", 1);
    world.create_table("t", "");
    give_words(&world);
    let _engine = world.engine(&with_lookup(&world), &[]);
    let value = |n: u64, word: &str| format!("{{\"n\":{n},\"word\":\"{word}\"}}");
    world.produce("in", 0, [value(1, "w1")]);
    wait_for("a row", 20, || world.count("SELECT count(*) FROM t") == 1);
    redis::cmd("DEL").arg("word:w1").query::<()>(&mut world.redis()).expect("Redis answers");
    std::thread::sleep(Duration::from_millis(1500));
    world.produce("in", 0, [value(2, "w1"), value(3, "w3")]);
    world.wait_drained(&["in"], 15);
    let bad = value(2, "w1");
    world.check("t", &["in"], |v| {
        if v == Some(bad.as_bytes()) { crate::world::Class::Dead } else { crate::world::Class::Row }
    });
}

/// The decoder waits for Redis, the queues are full; the end must not wait with them.
#[test]
fn sigterm_while_redis_is_down_ends_at_once() {
    let world = World::new("outage_sigterm");
    world.create_topic("in", 2);
    world.create_table("t", "");
    // Another key, so that Redis is not empty; no words, so that the decoder waits.
    let config = with_lookup(&world).replace("ttl = \"1s\"", "ttl = \"1s\"\ngrace = \"1h\"");
    redis::cmd("SET").arg("other").arg("1").query::<()>(&mut world.redis()).expect("Redis answers");
    for partition in 0..2 {
        world.produce("in", partition, (0..60_000).map(crate::world::record));
    }
    let engine = world.engine(&config, &[]);
    std::thread::sleep(Duration::from_secs(3));
    let (status, took) = engine.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(4), "{took:?}");
}

/// A producer's transaction that stays open hides the records behind it: they count, and status says why nothing moves. Once it
/// ends, the log ends in a marker, which is no record.
#[test]
fn an_open_transaction_is_no_lag_of_zero() {
    let world = World::new("open_transaction");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.produce("in", 0, (0..10).map(record));
    let config = world.model("in", "t", "");
    let path = world.file("status.toml", &config);
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    let open = world.open_transaction("in", 0, 10);
    let status = || rowmill(&world, &["status", "--json", "--config", &path]).0;
    let text = status();
    assert!(text.contains("waits for a producer's transaction that is open since"), "{text}");
    let lag = |text: &str| {
        let line = text.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
        let status: serde_json::Value = serde_json::from_str(line).expect("JSON");
        status["partitions"][0]["lag"].as_i64().expect("the lag")
    };
    assert_eq!(lag(&text), 10, "{text}");
    open.commit_transaction(Duration::from_secs(30)).expect("committed");
    wait_for("its records", 20, || world.count("SELECT count(*) FROM t") == 20);
    let text = status();
    assert_eq!(lag(&text), 0, "the marker is no record: {text}");
    assert!(engine.stop().0.success());
}

/// One of two topics is deleted: it is said once, status shows the lag of the other, and verify judges what is configured.
#[test]
fn a_topic_that_is_gone_is_said_once() {
    let world = World::new("gone");
    for name in ["in", "other"] {
        world.create_topic(name, 1);
        world.produce(name, 0, (0..10).map(record));
    }
    world.create_table("t", "");
    world.create_table("u", "");
    let other = world.model("other", "u", "");
    let config = format!("{}{other}", world.model("in", "t", ""));
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in", "other"], 30);
    world.delete_topic("in");
    wait_for("the word", 20, || engine.log().contains("cannot be described"));
    std::thread::sleep(Duration::from_secs(7));
    let log = engine.log();
    assert_eq!(log.matches("cannot be described").count(), 1, "{log}");
    assert!(!log.contains("Kafka answers again"), "{log}");
    let (text, _) = rowmill(&world, &["status", "--json", "--config", &world.file("status.toml", &config)]);
    assert!(text.contains("the topic is gone"), "{text}");
    let line = text.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
    let status: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let parts = status["partitions"].as_array().expect("a list");
    let of_other = parts.iter().find(|part| part["table"] == "public.u").expect("the other table");
    assert_eq!(of_other["lag"], 0, "{text}");
    assert!(engine.stop().0.success());
    let (text, fine) = rowmill(&world, &["verify", "--config", &world.file("other.toml", &other)]);
    assert!(fine && text.contains("no model reads it any more"), "{text}");
}
