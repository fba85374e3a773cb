//! `rowmill verify` finds what is damaged behind its back, and nothing else.

use crate::world::{Engine, World, record, rowmill};

/// Good records, bad ones, tombstones, and aborted transactions.
fn filled(world: &World) {
    world.create_topic("in", 2);
    let value = |n: u64| if n % 50 == 7 { format!("broken {n}") } else { record(n) };
    world.produce("in", 0, (0..200).map(value));
    world.produce_tombstone("in", 0);
    world.produce("in", 1, (0..100).map(value));
    world.produce_transactions("in", 1, 4);
    // The last offset must be a record's: nobody waits for markers behind it.
    world.produce("in", 1, [record(1000)]);
}

/// Lets an engine take everything in, and ends it.
fn run(world: &World, config: &str, topics: &[&str]) {
    let engine: Engine = world.engine(config, &[]);
    world.wait_drained(topics, 30);
    assert!(engine.stop().0.success());
}

/// A table that says which record a row is, filled.
fn traced(name: &str) -> (World, String) {
    let world = World::new(name);
    filled(&world);
    world.create_table("t", "");
    let config = world.model("in", "t", "tombstones = \"skip\"");
    run(&world, &config, &["in"]);
    let path = world.file("verify.toml", &config);
    (world, path)
}

/// A table that does not.
fn counted(name: &str) -> (World, String) {
    let world = World::new(name);
    filled(&world);
    world.sql().batch_execute("CREATE TABLE t (n BIGINT NOT NULL, word TEXT)").expect("a table");
    let topic = world.topic("in");
    let config = format!("[[model]]\ntopic = {topic:?}\ntable = \"t\"\ntombstones = \"skip\"\n");
    run(&world, &config, &["in"]);
    let path = world.file("verify.toml", &config);
    (world, path)
}

#[track_caller]
fn passes(world: &World, path: &str) {
    let (text, fine) = rowmill(world, &["verify", "--config", path]);
    assert!(fine && text.contains("\nPASS: "), "{text}");
}

/// Does the damage, and expects these words.
#[track_caller]
fn fails(world: &World, path: &str, damage: &str, expected: &[&str]) {
    world.sql().batch_execute(damage).expect(damage);
    let (text, fine) = rowmill(world, &["verify", "--config", path]);
    assert!(!fine, "{damage}: {text}");
    for words in expected {
        assert!(text.contains(words), "{damage}: expected {words:?} in\n{text}");
    }
}

#[test]
fn a_healthy_run_passes() {
    let (world, path) = traced("verify_healthy");
    passes(&world, &path);
    let (text, _) = rowmill(&world, &["verify", "--config", &path]);
    assert!(text.contains("record by record") && !text.contains("by number"), "{text}");
}

#[test]
fn a_healthy_run_without_places_passes() {
    let (world, path) = counted("verify_healthy_counted");
    passes(&world, &path);
    let (text, _) = rowmill(&world, &["verify", "--config", &path]);
    assert!(!text.contains("record by record") && text.contains("by number"), "{text}");
}

#[test]
fn damage_is_named_where_rows_have_places() {
    let (world, path) = traced("verify_damage");
    let mend = "TRUNCATE t; INSERT INTO t SELECT * FROM kept; TRUNCATE rowmill.dead_letter;
                INSERT INTO rowmill.dead_letter OVERRIDING SYSTEM VALUE SELECT * FROM kept_letter;";
    world
        .sql()
        .batch_execute("CREATE TABLE kept AS TABLE t; CREATE TABLE kept_letter AS TABLE rowmill.dead_letter")
        .expect("copies");
    let check = |damage: &str, expected: &[&str]| {
        fails(&world, &path, &format!("{mend}{damage}"), expected);
    };
    check(
        "DELETE FROM t WHERE _partition = 0 AND _offset = 11",
        &["FAIL: 1 lost, 0 duplicated, 0 phantom\n", "LOST 1: partition/offset 0/11\n"],
    );
    check(
        "INSERT INTO t SELECT * FROM t WHERE _partition = 1 AND _offset = 12",
        &["FAIL: 0 lost, 1 duplicated, 0 phantom\n", "DUPLICATED 1: partition/offset 1/12\n"],
    );
    // Beyond next_offset, at a bad record, at a tombstone, and where a transaction was aborted.
    for (partition, offset) in [(0, 5000), (0, 200), (1, 107)] {
        check(
            &format!(
                "INSERT INTO t SELECT n, word, _topic, {partition}, {offset} FROM t WHERE _partition = 0 AND _offset = 3"
            ),
            &[
                "FAIL: 0 lost, 0 duplicated, 1 phantom\n",
                &format!("PHANTOM 1: partition/offset {partition}/{offset}\n"),
            ],
        );
    }
    check(
        "INSERT INTO t SELECT n, word, _topic, 0, 7 FROM t WHERE _partition = 0 AND _offset = 3",
        &["FAIL: 0 lost, 1 duplicated, 0 phantom\n", "DUPLICATED 1: partition/offset 0/7\n"],
    );
    check(
        "INSERT INTO t SELECT n, word, _topic, 9, 7 FROM t WHERE _partition = 0 AND _offset = 3",
        &["FAIL: 0 lost, 0 duplicated, 0 phantom, 1 contradictions\n", "/9, which the ledger does not know"],
    );
    check(
        "DELETE FROM rowmill.dead_letter WHERE partition = 0 AND \"offset\" = 7",
        &["FAIL: 1 lost, 0 duplicated, 0 phantom\n", "LOST 1: partition/offset 0/7\n"],
    );
    check(
        "UPDATE rowmill.dead_letter SET value = value || 'x' WHERE partition = 0 AND \"offset\" = 7",
        &["1 dead letters with other bytes\n", "DEAD LETTERS WITH OTHER BYTES 1: partition/offset 0/7\n"],
    );
    check(
        "UPDATE rowmill.dead_letter SET \"offset\" = 5000 WHERE partition = 0 AND \"offset\" = 7",
        &[
            "FAIL: 1 lost, 0 duplicated, 1 phantom\n",
            "LOST 1: partition/offset 0/7\n",
            "PHANTOM 1: partition/offset 0/5000\n",
        ],
    );
    // The numbers are right, and the records are not.
    check(
        "UPDATE t SET _offset = 12 WHERE _partition = 0 AND _offset = 11",
        &["FAIL: 1 lost, 1 duplicated, 0 phantom\n"],
    );
    check(
        "DELETE FROM t WHERE _partition = 0",
        &["FAIL: 196 lost, 0 duplicated, 0 phantom\n", "0/9, 0/10, ...\n"],
    );
    world.sql().batch_execute(mend).expect("mended");
    passes(&world, &path);
}

#[test]
fn damage_is_counted_where_rows_have_none() {
    let (world, path) = counted("verify_counted");
    let row = "DELETE FROM t WHERE ctid = (SELECT min(ctid) FROM t)";
    fails(&world, &path, row, &["FAIL: 1 lost, 0 duplicated, 0 phantom\n", "table public.t: LOST 1: "]);
    world.sql().batch_execute("INSERT INTO t VALUES (0, 'w0')").expect("mended");
    passes(&world, &path);
    fails(
        &world,
        &path,
        "INSERT INTO t VALUES (1, 'twice')",
        &[
            "1 duplicated or phantom, which a count cannot tell\n",
            "table public.t: DUPLICATED OR PHANTOM 1: ",
        ],
    );
    world.sql().batch_execute("DELETE FROM t WHERE word = 'twice'").expect("mended");
    let letter = "DELETE FROM rowmill.dead_letter WHERE partition = 1 AND \"offset\" = 7";
    fails(&world, &path, letter, &["FAIL: 1 lost, 0 duplicated, 0 phantom\n"]);
}

/// What one table does not take counts as another's there, and has its outcome in one of them.
#[test]
fn a_topic_that_fills_several_tables() {
    let world = World::new("verify_several");
    world.create_topic("in", 1);
    let kinds = ["red", "green", "blue"];
    let mut config = "[guard]\ndead_letter_share = 1\n".to_owned();
    for kind in &kinds[..2] {
        world.create_table(kind, "");
        config += &world.model("in", kind, &format!("when = {{ kind = {kind:?} }}"));
    }
    let value = |n: u64| format!("{{\"n\":{n},\"kind\":{:?}}}", kinds[n as usize % 3]);
    world.produce("in", 0, (0..300).map(value));
    world.produce_tombstone("in", 0);
    run(&world, &config, &["in"]);
    let path = world.file("verify.toml", &config);
    passes(&world, &path);
    fails(
        &world,
        &path,
        "DELETE FROM green WHERE _offset = 31",
        &[
            "FAIL: 1 lost, 0 duplicated, 0 phantom\n",
            "LOST, in none of its tables 1: partition/offset 0/31\n",
        ],
    );
    // In the wrong one of them: the record has an outcome, but the counters know better.
    fails(
        &world,
        &path,
        "INSERT INTO red SELECT * FROM green WHERE _offset = 34; DELETE FROM green WHERE _offset = 34",
        &["FAIL: 2 lost", "1 contradictions\n"],
    );
}

/// A live system stands still in the snapshot, and what Kafka no longer has is said.
#[test]
fn a_running_engine_and_an_expired_log() {
    let world = World::new("verify_live");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let path = world.file("verify.toml", &config);
    let load = world.load("in", 2, 2000);
    let engine = world.engine(&config, &[]);
    crate::world::wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 1000);
    for _ in 0..3 {
        passes(&world, &path);
    }
    load.stop();
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    let topic = world.topic("in");
    let request = world.file(
        "delete.json",
        &format!(
            "{{\"partitions\":[{{\"topic\":\"{topic}\",\"partition\":0,\"offset\":250}}],\"version\":1}}"
        ),
    );
    world.stack(&["kafka", "delete-records", "--offset-json-file", &request]);
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(fine && text.contains("/0 offsets [0, 250) against Kafka, which no longer has them"), "{text}");
    fails(
        &world,
        &path,
        "DELETE FROM t WHERE _partition = 0 AND _offset = 100",
        &["FAIL: 1 lost, 0 duplicated, 0 phantom\n", "LOST 1: the counters do not say which\n"],
    );
    fails(&world, &path, "DELETE FROM t WHERE _partition = 0 AND _offset = 300", &["FAIL: 2 lost", "0/300"]);
}
