//! What is there arrives, whatever the shape of the pipeline.

use crate::world::{Class, World, all_rows, record};

#[test]
fn every_record_becomes_one_row() {
    let world = World::new("delivery");
    world.create_topic("in", 3);
    world.create_table("t", "");
    for partition in 0..3 {
        world.produce("in", partition, (0..5000).map(record));
    }
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    let (status, _) = engine.stop();
    assert!(status.success());
    world.check("t", &["in"], all_rows);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL"), 0, "released");
}

#[test]
fn every_codec_is_read() {
    let world = World::new("codecs");
    world.create_topic("in", 5);
    world.create_table("t", "");
    for (partition, codec) in ["none", "gzip", "snappy", "lz4", "zstd"].iter().enumerate() {
        world.produce_with(codec, "in", partition as i32, (0..2000).map(record));
    }
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
    assert!(engine.stop().0.success());
}

#[test]
fn many_topics_fill_one_table() {
    let world = World::new("many_to_one");
    world.create_table("t", "");
    let mut config = String::new();
    for topic in ["a", "b", "c"] {
        world.create_topic(topic, 2);
        world.produce(topic, 0, (0..500).map(record));
        world.produce(topic, 1, (0..500).map(record));
        config += &world.model(topic, "t", "");
    }
    let _engine = world.engine(&config, &[]);
    world.wait_drained(&["a", "b", "c"], 30);
    world.check("t", &["a", "b", "c"], all_rows);
}

#[test]
fn one_topic_fills_many_tables_by_a_field() {
    let world = World::new("one_to_many");
    world.create_topic("in", 2);
    let kinds = ["red", "green", "blue"];
    let mut config = String::new();
    for kind in &kinds[..2] {
        world.create_table(kind, "");
        config += &world.model("in", kind, &format!("when = {{ kind = {kind:?} }}"));
    }
    let value = |n: u64| format!("{{\"n\":{n},\"kind\":{:?}}}", kinds[n as usize % 3]);
    world.produce("in", 0, (0..900).map(value));
    world.produce("in", 1, (0..900).map(value));
    let _engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    let is =
        |value: Option<&[u8]>, kind: &str| String::from_utf8_lossy(value.unwrap_or_default()).contains(kind);
    // What nobody takes is set aside once, by the first table.
    world.check("red", &["in"], |v| match () {
        () if is(v, "red") => Class::Row,
        () if is(v, "blue") => Class::Dead,
        () => Class::Skipped,
    });
    world.check("green", &["in"], |v| if is(v, "green") { Class::Row } else { Class::Skipped });
    assert_eq!(
        world.count("SELECT sum(other)::BIGINT FROM rowmill.ledger WHERE target = 'public.green'"),
        1200
    );
}

#[test]
fn aborted_transactions_and_tombstones_leave_no_rows() {
    let world = World::new("transactions");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.produce_transactions("in", 0, 30);
    world.produce_tombstone("in", 0);
    world.produce("in", 0, (1000..1010).map(record));
    let _engine = world.engine(&world.model("in", "t", "tombstones = \"skip\""), &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], |value| if value.is_some() { Class::Row } else { Class::Skipped });
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word = 'aborted'"), 0);
    assert_eq!(world.count("SELECT skipped FROM rowmill.ledger"), 1);
    assert!(world.count("SELECT holes FROM rowmill.ledger") >= 80, "markers and aborted records are holes");
}

#[test]
fn partitions_that_come_later_are_read_from_their_start() {
    let world = World::new("partitions");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.produce("in", 0, (0..100).map(record));
    // `latest` is for topics that the ledger does not know, and never for partitions that come later.
    let config = format!("[kafka]\nstart = \"latest\"\n{}", world.model("in", "t", ""));
    let _engine = world.engine(&config, &[]);
    crate::world::wait_for("the topic to be known", 20, || {
        world.count("SELECT count(*) FROM rowmill.ledger") == 1
    });
    assert_eq!(world.count("SELECT start_offset FROM rowmill.ledger"), 100);
    world.stack(&["kafka-topics", "--alter", "--topic", &world.topic("in"), "--partitions", "3"]);
    world.produce("in", 2, (0..100).map(record));
    world.produce("in", 0, (100..200).map(record));
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE _partition = 2"), 100);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE _partition = 0"), 100);
}

#[test]
fn a_new_table_needs_sql_and_configuration_only() {
    let world = World::new("new_table");
    world.create_topic("weather", 1);
    world
        .sql()
        .batch_execute(
            "CREATE TYPE sky AS ENUM ('clear', 'cloudy');
             CREATE TABLE weather (
                 station UUID NOT NULL, at TIMESTAMPTZ NOT NULL, sky sky, wind NUMERIC(6, 2), gusts REAL[], source INET,
                 raw JSONB NOT NULL, place TEXT, key BYTEA, headers JSONB, stored TIMESTAMPTZ NOT NULL, serial BIGSERIAL)",
        )
        .expect("a table");
    let config = format!(
        "[[model]]\ntopic = {:?}\ntable = \"weather\"\n[model.columns]\nat = {{ field = \"t\", unit = \"ms\" }}\n\
         place = {{ field = \"where.name\" }}\nraw = {{ message = true }}\nkey = {{ kafka = \"key\" }}\n\
         headers = {{ kafka = \"headers\" }}\nstored = {{ clock = \"write\" }}\n",
        world.topic("weather")
    );
    let message = r#"{"station":"6f1c0a52-3b1e-4d7c-9a51-0c9b8f3f6a11","t":1767225600123,"sky":"cloudy","wind":12.345,
                      "gusts":[1.5,null,2],"source":"10.0.0.1/8","where":{"name":"tower \u00e9"}}"#;
    world.produce("weather", 0, [message.to_owned()]);
    let _engine = world.engine(&config, &[]);
    world.wait_drained(&["weather"], 30);
    let row = world
        .sql()
        .query_one(
            "SELECT station::TEXT, at = '2026-01-01 00:00:00.123+00', sky::TEXT, wind::TEXT, gusts::TEXT, source::TEXT, raw ->> 'sky',
                    place, key IS NULL, headers::TEXT, abs(extract(epoch FROM now() - stored)) < 60 FROM weather",
            &[],
        )
        .unwrap_or_else(|e| panic!("{e}: {:?}", world.sql().query("SELECT message FROM rowmill.dead_letter", &[])));
    let text = |i: usize| row.get::<_, String>(i);
    assert_eq!(text(0), "6f1c0a52-3b1e-4d7c-9a51-0c9b8f3f6a11");
    assert!(row.get::<_, bool>(1), "the time is in milliseconds");
    assert_eq!(
        [text(2), text(3), text(4), text(5), text(6), text(7)],
        ["cloudy", "12.35", "{1.5,NULL,2}", "10.0.0.1/8", "cloudy", "tower é"]
    );
    assert!(row.get::<_, bool>(8) && row.get::<_, bool>(10));
    assert_eq!(text(9), "[]");
}

/// Kafka with a client certificate, PostgreSQL with its name verified, Redis with its own CA.
#[test]
fn tls_everywhere() {
    let world = World::new("tls");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.produce("in", 0, (0..1000).map(record));
    redis::cmd("SET").arg("word:w1").arg("word-1").query::<()>(&mut world.redis()).expect("Redis answers");
    world.produce("in", 0, ["{\"n\":1,\"word\":\"w1\"}".to_owned()]);
    let (postgres, redis) = world.tls_urls();
    let config = format!(
        "[kafka]\nbrokers = {:?}\n[kafka.tls]\nca = {:?}\ncert = {:?}\nkey = {:?}\n[postgres]\nurl = {postgres:?}\n[redis]\n\
         url = {redis:?}\nca = {:?}\n[lookup.word]\nkey = \"word:{{}}\"\n{}word = {{ lookup = \"word\", unknown = \"null\" }}\n",
        world.server("KAFKA_TLS_BROKERS"),
        world.server("KAFKA_SSL_CA"),
        world.server("KAFKA_SSL_CERT"),
        world.server("KAFKA_SSL_KEY"),
        world.server("REDIS_SSL_CA"),
        world.model("in", "t", "")
    );
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
    // The unknown are NULL here, by configuration.
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word = 'word-1'"), 2);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word IS NULL"), 999);
    assert!(engine.stop().0.success());
}

/// 60 MB of good records that a codec makes a few kilobytes of: what a producer may send can be read.
#[test]
fn a_small_batch_may_unpack_to_much() {
    let world = World::new("dense");
    world.create_topic("in", 4);
    world.create_table("t", "");
    let padding = "x".repeat(500_000);
    let value = |n: u64| format!("{{\"n\":{n},\"padding\":\"{padding}\"}}");
    for (partition, codec) in ["zstd", "gzip", "lz4", "snappy"].iter().enumerate() {
        world.produce_dense(codec, "in", partition as i32, (0..120).map(value));
    }
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 60);
    world.check("t", &["in"], all_rows);
    println!("peak {} MB", engine.peak_memory() >> 20);
    assert!(engine.stop().0.success());
}

/// A record that is larger than any model takes: a dead letter with all of its bytes, held no more than a few times.
#[test]
fn a_huge_record_is_held_a_few_times_at_most() {
    let world = World::new("huge");
    world.create_topic("in", 1);
    world.create_table("t", "");
    const HUGE: usize = 100 << 20;
    world.produce_dense(
        "gzip",
        "in",
        0,
        [record(1), format!("{{\"n\":2,\"padding\":\"{}\"}}", "x".repeat(HUGE)), record(3)],
    );
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 60);
    assert_eq!(world.count("SELECT count(*) FROM t"), 2);
    assert!(
        world.count("SELECT whole_bytes FROM rowmill.dead_letter WHERE reason = 'too_large'") > HUGE as i64
    );
    let peak = engine.peak_memory() as usize;
    println!("peak {} MB for {} MB", peak >> 20, HUGE >> 20);
    assert!(peak < 4 * HUGE, "{} MB", peak >> 20);
}

#[test]
fn a_topic_that_does_not_exist_holds_up_no_other() {
    let world = World::new("missing_topic");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.produce("in", 0, (0..100).map(record));
    let engine = world.engine(&(world.model("in", "t", "") + &world.model("late", "t", "")), &[]);
    world.wait_drained(&["in"], 20);
    assert!(engine.log().contains("does it exist?"), "{}", engine.log());
    world.create_topic("late", 1);
    world.produce("late", 0, (0..100).map(record));
    world.wait_drained(&["in", "late"], 20);
    world.check("t", &["in", "late"], all_rows);
}
