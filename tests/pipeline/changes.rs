//! The world changes under a running engine: logs lose records, topics are created again, tables are altered. Where the
//! promise cannot be kept it stops and says why.

use std::time::Duration;

use crate::world::{World, all_rows, record, rowmill, wait_for};

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
