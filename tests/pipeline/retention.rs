//! Tables that keep their rows for a time: partitions come and go while rows do, nobody waits for that, and what has no partition
//! has an outcome all the same.

use std::time::{Duration, Instant};

use crate::world::{World, rowmill, wait_for};

/// A table that is partitioned by the record's time, without a partition.
const TABLE: &str =
    "CREATE TABLE t (n BIGINT NOT NULL, word VARCHAR(20), _topic TEXT, _partition INTEGER, _offset BIGINT,
    at TIMESTAMPTZ NOT NULL, PRIMARY KEY (at, _partition, _offset)) PARTITION BY RANGE (at)";

const PARTITIONS: &str = "SELECT count(*) FROM pg_inherits WHERE inhparent = 't'::regclass";

/// Three instances, records of now, and a reader who holds what is to be dropped.
#[test]
fn partitions_come_and_go_while_nobody_waits() {
    let world = World::new("retention");
    world.create_topic("in", 3);
    world.sql().batch_execute(TABLE).expect("a table");
    let settings = "retention = \"8s\"\npartitions = \"2s\"";
    let config = world.model("in", "t", settings) + "at = { kafka = \"timestamp\" }\n";
    let engines: Vec<_> = (0..3).map(|_| world.engine(&config, &[])).collect();
    let load = world.load("in", 3, 300);
    wait_for("rows", 30, || world.count("SELECT count(*) FROM t") > 0);
    wait_for("a partition that is dropped", 60, || engines.iter().any(|e| e.log().contains("dropped")));

    let mut reader = world.sql();
    reader
        .batch_execute("SET application_name = 'a long export'; BEGIN; SELECT count(*) FROM t")
        .expect("a reader");
    let seen = "SELECT coalesce(max(n), 0) FROM t";
    let (mut last, mut since, mut longest) = (world.count(seen), Instant::now(), Duration::ZERO);
    let began = Instant::now();
    let mut asker = world.sql();
    while began.elapsed() < Duration::from_secs(12) {
        let newest: i64 = asker.query_one(seen, &[]).expect("an answer").get(0);
        if newest > last {
            longest = longest.max(since.elapsed());
            (last, since) = (newest, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("while a reader held the table, rows stood still for {longest:?} at most");
    assert!(longest < Duration::from_secs(5), "rows waited behind a drop: {longest:?}");
    let during = world.count(PARTITIONS);
    let told = |what: &str| engines.iter().any(|engine| engine.log().contains(what));
    assert!(told("in the way: a long export"), "{}", engines[0].log());
    let file = world.file("status.toml", &config);
    let (text, ok) = rowmill(&world, &["status", "--config", &file]);
    assert!(ok && text.contains("should be gone; in the way: a long export (process "), "{text}");
    assert!(text.contains("partitions; rows are kept for 8 s"), "{text}");
    reader.batch_execute("COMMIT").expect("the reader ends");
    wait_for("old partitions to go", 30, || world.count(PARTITIONS) < during - 2);
    assert!((8..=13).contains(&world.count(PARTITIONS)), "{} partitions", world.count(PARTITIONS));

    let sent = load.stop();
    world.wait_drained(&["in"], 30);
    let sum = |column: &str| world.count(&format!("SELECT sum({column})::BIGINT FROM rowmill.ledger"));
    assert_eq!((sum("rows"), sum("dead"), sum("skipped")), (sent as i64, 0, 0));
    let oldest = world.count("SELECT extract(epoch FROM now() - min(at))::BIGINT FROM t");
    assert!(oldest <= 60, "a row of {oldest} s ago is still there");
    for engine in engines {
        let said = engine.log();
        assert!(engine.stop().0.success() && !said.contains("level=error"), "{said}");
    }
}

/// Records from before what is kept are skipped, those from the future and without a time become dead letters, however many.
#[test]
fn a_record_without_a_partition_has_an_outcome() {
    let world = World::new("retention_ages");
    world.create_topic("in", 1);
    world
        .sql()
        .batch_execute("CREATE TABLE t (n BIGINT, time BIGINT, word TEXT) PARTITION BY RANGE (time)")
        .expect("a table");
    let config = format!(
        "[[model]]\ntopic = {:?}\ntable = \"t\"\nretention = \"7d\"\npartition_unit = \"ns\"\n[guard]\ndead_letter_share = 1.0\n",
        world.topic("in")
    );
    let _engine = world.engine(&config, &[]);
    let now = jiff::Timestamp::now().as_second();
    let day = 86_400;
    let record = |n: i64, age: i64| format!("{{\"n\":{n},\"time\":{}000000000}}", now - age);
    let mut values: Vec<String> = (0..5000).map(|n| record(n, 9 * day + n)).collect();
    values.extend((0..7).map(|age| record(age, age * day)));
    values.extend([record(10, -4 * day), record(11, -1000 * day), "{\"n\":12,\"time\":null}".into()]);
    values.extend((0..100).map(|n| record(n, n)));
    world.produce("in", 0, values);
    world.wait_drained(&["in"], 60);
    let row =
        world.sql().query_one("SELECT rows, dead, skipped FROM rowmill.ledger", &[]).expect("the ledger");
    let counts: [i64; 3] = [row.get(0), row.get(1), row.get(2)];
    assert_eq!(counts, [107, 3, 5000]);
    assert_eq!(world.count("SELECT count(*) FROM t"), 107);
    let mut sql = world.sql();
    let letters =
        sql.query("SELECT message FROM rowmill.dead_letter ORDER BY \"offset\"", &[]).expect("letters");
    let said: Vec<String> = letters.iter().map(|row| row.get(0)).collect();
    assert!(said[0].contains("lies in the future, and partitions are made until"), "{said:?}");
    assert!(said[2].contains("without a time"), "{said:?}");
    let file = world.file("again.toml", &config);
    let (text, ok) = rowmill(&world, &["verify", "--config", &file]);
    assert!(ok && text.contains("keeps its rows for a time only"), "{text}");
}

/// Whoever comes before the partitions does not go to the dead letters.
#[test]
fn rows_wait_for_a_partition_that_cannot_be_made_yet() {
    let world = World::new("retention_wait");
    world.create_topic("in", 1);
    world.sql().batch_execute(TABLE).expect("a table");
    let config = world.model("in", "t", "retention = \"2h\"\npartitions = \"1h\"")
        + "at = { kafka = \"timestamp\" }\n";
    // As if another instance were at it.
    let mut other = world.sql();
    other
        .batch_execute(
            "BEGIN; SELECT pg_advisory_xact_lock('rowmill.ledger'::regclass::oid::integer, 't'::regclass::oid::integer)",
        )
        .expect("the lock that makers of partitions take");
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..500).map(|n| format!("{{\"n\":{n},\"word\":\"w\"}}")).collect::<Vec<_>>());
    wait_for("somebody to say what rows wait for", 60, || engine.log().contains("rows of that time wait"));
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    other.batch_execute("COMMIT").expect("the other one is done");
    world.wait_drained(&["in"], 60);
    assert_eq!(world.count("SELECT count(*) FROM t"), 500);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    engine.kill();
}

/// What would not work is said by `check` and refused by `run`.
#[test]
fn what_retention_needs_is_said_before_it_is_missed() {
    let world = World::new("retention_check");
    world.create_topic("in", 1);
    let config = |more: &str| format!("[[model]]\ntopic = {:?}\ntable = \"t\"\n{more}\n", world.topic("in"));
    let check = |sql: &str, more: &str| {
        world.sql().batch_execute(&format!("DROP TABLE IF EXISTS t; {sql}")).expect("a table");
        let file = world.file("check.toml", &config(more));
        rowmill(&world, &["check", "--config", &file])
    };
    let ranged = "CREATE TABLE t (n BIGINT, at TIMESTAMPTZ NOT NULL) PARTITION BY RANGE (at)";
    let (text, ok) = check(ranged, "retention = \"30d\"");
    assert!(ok && text.contains("rows are kept for 30 days by \"at\", in partitions of 1 day"), "{text}");
    let refusals = [
        ("CREATE TABLE t (n BIGINT, at TIMESTAMPTZ)", "retention = \"30d\"", "PARTITION BY RANGE"),
        (ranged, "partitions = \"1d\"", "go with retention"),
        (ranged, "retention = \"30 days\"", "is no duration"),
        (
            "CREATE TABLE t (n BIGINT, at BIGINT) PARTITION BY RANGE (at)",
            "retention = \"30d\"",
            "partition_unit",
        ),
    ];
    for (sql, more, words) in refusals {
        let (text, ok) = check(sql, more);
        assert!(!ok && text.contains(words), "{sql} {more}: {text}");
    }
    let (text, ok) =
        check(&format!("{ranged}; CREATE TABLE rest PARTITION OF t DEFAULT"), "retention = \"30d\"");
    assert!(!ok && text.contains("DETACH PARTITION"), "{text}");
}
