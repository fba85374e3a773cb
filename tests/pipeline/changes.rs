//! The world changes under a running engine: logs lose records, topics are created again, tables are altered. Where the
//! promise cannot be kept it stops and says why.

use std::time::Duration;

use crate::world::{Class, World, all_rows, record, rowmill, wait_for};

#[test]
fn retention_past_the_position_stops_until_the_gap_is_accepted() {
    let world = World::new("retention");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    world.produce("in", 0, (0..100).map(record));
    world.produce("in", 1, (0..100).map(record));
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    engine.stop();
    world.produce("in", 0, (100..300).map(record));
    world.produce("in", 1, (100..300).map(record));
    let topic = world.topic("in");
    let request = world.file(
        "delete.json",
        &format!(
            "{{\"partitions\":[{{\"topic\":\"{topic}\",\"partition\":0,\"offset\":250}}],\"version\":1}}"
        ),
    );
    world.stack(&["kafka", "delete-records", "--offset-json-file", &request]);

    let path = world.file("check.toml", &config);
    let (text, fine) = rowmill(&world, &["check", "--config", &path]);
    assert!(!fine && text.contains("[100, 250)"), "{text}");
    let engine = world.engine(&config, &[]);
    wait_for("the stop", 20, || engine.log().contains("no longer has offsets [100, 250)"));
    wait_for("the other partition", 20, || world.count("SELECT count(*) FROM t WHERE _partition = 1") == 300);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE _partition = 0"), 100);
    wait_for("the reason in the ledger", 5, || {
        world.count("SELECT count(*) FROM rowmill.ledger WHERE stopped IS NOT NULL") == 1
    });
    let (text, _) = rowmill(&world, &["status", "--config", &path]);
    assert!(text.contains("STOPPED: Kafka no longer has offsets"), "{text}");

    let (text, fine) = rowmill(&world, &["init", "--accept-gap", &format!("{topic}/0:100-250")]);
    assert!(fine, "{text}");
    wait_for("the rest", 20, || world.count("SELECT count(*) FROM t WHERE _partition = 0") == 150);
    assert_eq!(world.count("SELECT to_offset - from_offset FROM rowmill.gap"), 150);
    assert!(engine.stop().0.success());
}

/// The engine cannot write, its position falls behind, and retention overtakes it.
#[test]
fn records_deleted_in_front_of_a_running_engine_stop_the_partition() {
    let world = World::new("overtaken");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let config = format!("memory_max = \"1MB\"\nmessage_max = \"100KB\"\n{}", world.model("in", "t", ""));
    world.produce("in", 0, (0..100).map(record));
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    let mut blocker = world.sql();
    blocker.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").expect("locked");
    // Much more than the engine and its client can hold.
    let filler = "x".repeat(2000);
    let big = |n: u64| format!("{{\"n\":{n},\"filler\":\"{filler}\"}}");
    world.produce("in", 0, (100..30_000).map(big));
    std::thread::sleep(Duration::from_secs(2));
    let request = world.file(
        "delete.json",
        &format!(
            "{{\"partitions\":[{{\"topic\":\"{}\",\"partition\":0,\"offset\":29000}}],\"version\":1}}",
            world.topic("in")
        ),
    );
    world.stack(&["kafka", "delete-records", "--offset-json-file", &request]);
    blocker.batch_execute("COMMIT").expect("unlocked");
    wait_for("the stop", 40, || engine.log().contains("no longer has offsets ["));
    world.produce("in", 1, (0..100).map(record));
    wait_for("the other partition", 20, || world.count("SELECT count(*) FROM t WHERE _partition = 1") == 100);
    let (next, rows) = (
        world.count("SELECT next_offset FROM rowmill.ledger WHERE partition = 0"),
        world.count("SELECT count(*) FROM t WHERE _partition = 0"),
    );
    assert!(next < 29_000 && rows == next, "{rows} rows up to offset {next}: it went past the gap");
    assert!(engine.stop().0.success());
}

/// Bytes that rot on the broker's disk: Kafka serves them, and only the reader's check of the CRC sees it.
#[test]
fn a_corrupt_batch_stops_its_partition() {
    let world = World::new("corrupt");
    world.create_topic("in", 2);
    world.create_table("t", "");
    for start in [0, 100, 200] {
        world.produce("in", 0, (start..start + 100).map(record));
        world.produce("in", 1, (start..start + 100).map(record));
    }
    // One byte of a value, on the disk, in the middle batch.
    let log =
        format!("{}/kafka/data/{}-0/00000000000000000000.log", world.server("STACK_DIR"), world.topic("in"));
    let bytes = std::fs::read(&log).expect("the broker's file");
    let needle = br#"{"n":150,"#;
    let at = bytes.windows(needle.len()).position(|w| w == needle).expect("the record is on disk");
    let file = std::fs::OpenOptions::new().write(true).open(&log).expect("the broker's file");
    std::os::unix::fs::FileExt::write_at(&file, b"7", at as u64 + 5).expect("written");

    let engine = world.engine(&world.model("in", "t", ""), &[]);
    wait_for("the stop", 30, || engine.log().contains("cannot be read"));
    wait_for("the other partition", 20, || world.count("SELECT count(*) FROM t WHERE _partition = 1") == 300);
    std::thread::sleep(Duration::from_secs(2));
    let next = world.count("SELECT next_offset FROM rowmill.ledger WHERE partition = 0");
    assert!(next <= 150, "it went past the damage to {next}");
    assert_eq!(world.count("SELECT count(*) FROM t WHERE _partition = 0"), next);
    assert!(engine.stop().0.success());
}

/// The trap: nothing in Kafka's protocol tells a reader, and the offsets look right.
#[test]
fn a_topic_that_is_created_again_and_longer_stops() {
    let world = World::new("recreated");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    world.produce("in", 0, (0..100).map(record));
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.delete_topic("in");
    world.create_topic("in", 1);
    world.produce("in", 0, (1000..1500).map(record));
    wait_for("the running engine to notice", 12, || engine.log().contains("created again"));
    engine.stop();
    let rows = world.count("SELECT count(*) FROM t");
    let again = world.engine(&config, &[]);
    wait_for("the next one to refuse", 20, || again.log().contains("created again"));
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(world.count("SELECT count(*) FROM t"), rows);
}

#[test]
fn a_topic_that_is_created_again_and_shorter_stops() {
    let world = World::new("recreated_shorter");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    world.produce("in", 0, (0..100).map(record));
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    world.delete_topic("in");
    world.create_topic("in", 1);
    world.produce("in", 0, (1000..1020).map(record));
    let again = world.engine(&config, &[]);
    wait_for("the refusal", 20, || again.log().contains("created again"));
    assert_eq!(world.count("SELECT count(*) FROM t"), 100);
}

/// Somebody put a constraint on the dead letters: a record that is no row has no place left, and may not vanish.
#[test]
fn a_dead_letter_table_that_refuses_ends_the_process() {
    let world = World::new("letters_refused");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world
        .sql()
        .batch_execute("ALTER TABLE rowmill.dead_letter ADD CONSTRAINT none CHECK (false) NOT VALID")
        .expect("a constraint");
    world.produce("in", 0, [record(1), "{".to_owned(), record(2)]);
    let mut engine = world.engine(&world.model("in", "t", ""), &[]);
    assert!(!engine.wait(20).success());
    assert!(engine.log().contains("the dead-letter table refused"), "{}", engine.log());
    assert_eq!(world.count("SELECT count(*) FROM t"), 0);
    assert_eq!(world.count("SELECT next_offset FROM rowmill.ledger"), 0);
    world.sql().batch_execute("ALTER TABLE rowmill.dead_letter DROP CONSTRAINT none").expect("dropped");
    let _next = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 20);
    assert_eq!(world.count("SELECT count(*) FROM t"), 2);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 1);
}

/// The bytes of a float would go into a bigint column without a word.
#[test]
fn an_altered_column_takes_what_is_sent() {
    let world = World::new("altered");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.sql().batch_execute("ALTER TABLE t ADD COLUMN value DOUBLE PRECISION").expect("altered");
    let config = world.model("in", "t", "");
    let value = |n: u64| format!("{{\"n\":{n},\"value\":{n}}}");
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..100).map(value));
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") == 100);
    world.sql().batch_execute("ALTER TABLE t ALTER COLUMN value TYPE BIGINT").expect("altered");
    world.produce("in", 0, (100..200).map(value));
    world.wait_drained(&["in"], 30);
    assert!(engine.log().contains("value is bigint now, and was double precision"), "{}", engine.log());
    world.check("t", &["in"], all_rows);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE value <> n"), 0);
}

/// Fields with and without a value, mixed, into columns with defaults; a bad row among them is found in its own COPY.
#[test]
fn absent_fields_take_the_defaults_of_their_columns() {
    let world = World::new("defaults");
    world.create_topic("in", 2);
    let columns = ", kind TEXT NOT NULL DEFAULT 'none', part INT DEFAULT 7, CHECK (part <> -1)";
    world.create_table("t", columns);
    let value = |n: u64| match n % 4 {
        _ if n == 501 => format!("{{\"n\":{n},\"part\":-1}}"),
        0 => format!("{{\"n\":{n}}}"),
        1 => format!("{{\"n\":{n},\"part\":{n}}}"),
        2 => format!("{{\"n\":{n},\"kind\":\"k\"}}"),
        _ => format!("{{\"n\":{n},\"kind\":\"k\",\"part\":null}}"),
    };
    world.produce("in", 0, (0..1000).map(value));
    world.produce("in", 1, (0..1000).map(value));
    let _engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    let wrong = "SELECT count(*) FROM t WHERE kind <> CASE WHEN n % 4 < 2 THEN 'none' ELSE 'k' END
                 OR part IS DISTINCT FROM CASE n % 4 WHEN 1 THEN n WHEN 3 THEN NULL ELSE 7 END";
    assert_eq!(world.count(wrong), 0);
    assert_eq!(world.count("SELECT count(DISTINCT (_partition, n)) FROM t"), 2 * 999);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'sqlstate_23514'"), 2);
}

#[test]
fn a_table_that_is_swapped_for_one_like_it_goes_on_there() {
    let world = World::new("rotated");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..100).map(record));
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") == 100);
    // The ledger is looked at every second: what nobody has seen is not another one than before.
    std::thread::sleep(Duration::from_secs(4));
    let swap = "BEGIN; ALTER TABLE t RENAME TO t_old; CREATE TABLE t (LIKE t_old); COMMIT";
    world.sql().batch_execute(swap).expect("swapped");
    world.produce("in", 0, (100..200).map(record));
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM t_old WHERE n < 100"), 100);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE n >= 100"), 100);
    wait_for("the word", 10, || engine.log().contains("table public.t is another one than before"));
    let (text, _) = rowmill(&world, &["status", "--config", &world.file("status.toml", &config)]);
    assert!(text.contains("belongs to another table than before since"), "{text}");
}

#[test]
fn a_missing_privilege_ends_the_process_and_check_names_it() {
    let world = World::new("privilege");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.produce("in", 0, (0..10).map(record));
    let path = world.file("check.toml", &world.model("in", "nowhere", ""));
    let (text, fine) = rowmill(&world, &["check", "--config", &path]);
    assert!(!fine && text.contains("\"nowhere\" does not exist"), "{text}");
    let path = world.file("check.toml", &world.model("in", "t", ""));
    let (text, fine) = rowmill(&world, &["check", "--config", &path]);
    assert!(fine && text.contains("`rowmill run` would work"), "{text}");
}

/// A new table is filled with what was before it while records flow, some of them bad, and through a SIGKILL; what Kafka has is
/// then in it exactly once. Doing it again does nothing.
#[test]
fn a_new_table_is_filled_from_the_beginning_while_records_flow() {
    let world = World::new("backfill");
    world.create_topic("in", 3);
    world.create_table("t", "");
    world.create_table("u", ", CHECK (n <> 777)");
    let value = |n: u64| if n % 500 == 7 { format!("broken {n}") } else { record(n) };
    for partition in 0..3 {
        world.produce("in", partition, (0..12_000).map(value));
    }
    let guard = "[guard]\ndead_letter_share = 1\n";
    let engine = world.engine(&format!("{guard}{}", world.model("in", "t", "")), &[]);
    world.wait_drained(&["in"], 60);
    engine.stop();
    let both = format!("{guard}{}{}", world.model("in", "t", ""), world.model("in", "u", ""));
    let engine = world.engine(&both, &[]);
    wait_for("the word", 20, || engine.log().contains("table public.u begins where the other tables"));
    let load = world.load("in", 3, 1_000);
    let path = world.file("backfill.toml", &both);
    let backfill = || {
        let mut command = world.command(env!("CARGO_BIN_EXE_rowmill"));
        command
            .args(["backfill", "--config", &path, "--table", "u"])
            .env("DATABASE_URL", &world.database_url);
        command
    };
    let mut killed = backfill().spawn().expect("it starts");
    wait_for("a part of it", 20, || {
        world.count("SELECT count(*) FROM rowmill.ledger WHERE target = 'public.u' AND start_offset < 12000")
            > 0
    });
    killed.kill().expect("killed");
    killed.wait().expect("ended");
    for _ in 0..2 {
        let output = backfill().output().expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    load.stop();
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT max(start_offset) FROM rowmill.ledger"), 0);
    // What no JSON is belongs to the topic's first table.
    let is_broken = |v: Option<&[u8]>| v.is_some_and(|v| v.starts_with(b"broken"));
    let is_refused = |v: Option<&[u8]>| v == Some(record(777).as_bytes());
    world.check("t", &["in"], |v| if is_broken(v) { Class::Dead } else { Class::Row });
    world.check("u", &["in"], |v| match () {
        () if is_broken(v) => Class::Skipped,
        () if is_refused(v) => Class::Dead,
        () => Class::Row,
    });
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(fine, "{text}");
    assert!(engine.stop().0.success());
}

/// Another pipeline on a topic that the ledger knows begins where its own configuration says.
#[test]
fn a_second_pipeline_begins_where_it_says() {
    let world = World::new("second");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world.create_table("u", "");
    world.produce("in", 0, (0..100).map(record));
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    let second = format!("pipeline = \"second\"\n{}", world.model("in", "u", ""));
    let other = world.engine(&second, &[]);
    wait_for("all from the beginning", 20, || world.count("SELECT count(*) FROM u") == 100);
    assert!(other.log().contains("where kafka.start says"), "{}", other.log());
    world.check("u", &["in"], all_rows);
    assert!(engine.stop().0.success() && other.stop().0.success());
}

/// A new table on a topic that is already read begins where its siblings are; the change is adopted because they are level.
#[test]
fn a_table_is_added_to_a_topic() {
    let world = World::new("added");
    world.create_topic("in", 2);
    world.create_table("t", "");
    world.create_table("u", "");
    world.produce("in", 0, (0..100).map(record));
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    engine.stop();
    let both = world.model("in", "t", "") + &world.model("in", "u", "");
    let _engine = world.engine(&both, &[]);
    wait_for("the new table in the ledger", 20, || world.count("SELECT count(*) FROM rowmill.ledger") == 4);
    world.produce("in", 0, (100..200).map(record));
    world.produce("in", 1, (100..200).map(record));
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM t"), 300);
    assert_eq!(world.count("SELECT count(*) FROM u"), 200);
}
