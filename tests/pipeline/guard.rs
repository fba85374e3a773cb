//! Too many dead letters: a topic that turns bad stops before it is set aside, the others go on, and it goes on by itself after
//! the cause is mended, without a loss.

use crate::world::{Class, World, all_rows, record, wait_for};

const GUARD: &str = "[guard]\ndead_letter_share = 0.5\ndead_letter_window = 200\n";

/// Fits no `VARCHAR(20)`.
fn too_long(n: u64) -> String {
    format!("{{\"n\":{n},\"word\":\"{}\"}}", "w".repeat(30))
}

/// A deployment makes all words longer: the decoder refuses them. The table is mended while the topic is stopped.
#[test]
fn a_topic_that_turns_bad_stops_and_goes_on_when_mended() {
    let world = World::new("guard_decoder");
    for name in ["in", "other"] {
        world.create_topic(name, 3);
    }
    world.create_table("t", "");
    world.create_table("u", "");
    let config = format!("{GUARD}{}{}", world.model("in", "t", ""), world.model("other", "u", ""));
    let engine = world.engine(&config, &[]);
    for partition in 0..3 {
        world.produce("in", partition, (0..500).map(record));
    }
    // A few bad ones are set aside as ever.
    world.produce("in", 0, (0..20).map(too_long));
    world.wait_drained(&["in"], 30);
    for partition in 0..3 {
        world.produce("in", partition, (1000..3000).map(too_long));
    }
    wait_for("the stop", 20, || engine.log().contains("stopped:"));
    world.produce("other", 0, (0..100).map(record));
    world.wait_drained(&["other"], 20);
    let said = engine.log();
    let topic = world.topic("in");
    for part in [&*topic, "share of 0.5", "too_long, as at partition"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("wwwww"), "what records hold is not logged: {said}");
    assert_eq!(said.matches("stopped:").count(), 1, "said once: {said}");
    wait_for("the reason in the ledger", 5, || {
        world.count("SELECT count(*) FROM rowmill.ledger WHERE stopped LIKE '%dead_letter_share%'") == 3
    });
    let letters = world.count("SELECT count(*) FROM rowmill.dead_letter");
    assert!((20..=20 + 100).contains(&letters), "{letters} letters, and a window of 200 allows 100");

    // It is tried again by itself, with the table as it is then.
    world.sql().batch_execute("ALTER TABLE t ALTER COLUMN word TYPE VARCHAR(40)").expect("altered");
    world.wait_drained(&["in", "other"], 60);
    assert!(engine.log().contains("goes on"), "{}", engine.log());
    wait_for("no reason in the ledger", 10, || {
        world.count("SELECT count(*) FROM rowmill.ledger WHERE stopped IS NOT NULL") == 0
    });
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), letters);
    world.check("u", &["other"], all_rows);
    // The letters of the time before count as what they are; everything else is a row, once.
    let dead = world
        .sql()
        .query("SELECT value FROM rowmill.dead_letter", &[])
        .expect("the dead letters")
        .iter()
        .map(|row| row.get::<_, Vec<u8>>(0))
        .collect::<Vec<_>>();
    let rows = world.count("SELECT count(DISTINCT (_partition, _offset)) FROM t");
    assert_eq!(rows, 3 * 500 + 20 + 3 * 2000 - dead.len() as i64);
    assert_eq!(world.count("SELECT count(*) FROM t"), rows);
    assert_eq!(
        world.count("SELECT count(*) FROM rowmill.ledger WHERE next_offset - start_offset <> rows + dead"),
        0
    );
}

/// A migration adds a CHECK that nothing fulfills: only the server refuses, row by row, and the table is at fault.
#[test]
fn a_migration_that_refuses_every_row_is_waited_for() {
    let world = World::new("guard_server");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let config = format!("{GUARD}{}", world.model("in", "t", ""));
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..300).map(record));
    world.wait_drained(&["in"], 30);
    world
        .sql()
        .batch_execute("ALTER TABLE t ADD CONSTRAINT wrong CHECK (n < 300) NOT VALID")
        .expect("altered");
    world.produce("in", 0, (300..1000).map(record));
    world.produce("in", 1, (300..1000).map(record));
    wait_for("the word", 20, || engine.log().contains("waiting until it is mended"));
    assert!(engine.log().contains("SQLSTATE 23514"), "{}", engine.log());
    world.sql().batch_execute("ALTER TABLE t DROP CONSTRAINT wrong").expect("altered");
    world.wait_drained(&["in"], 30);
    // Each partition has a writer of its own, and each its own suspicion.
    let letters = world.count("SELECT count(*) FROM rowmill.dead_letter");
    assert!(letters < 100, "{letters} letters, and 50 in a row speak against the table");
    assert_eq!(world.count("SELECT count(*) FROM t"), 300 + 2 * 700 - letters);
    assert_eq!(world.count("SELECT count(DISTINCT (_partition, _offset)) FROM t"), 300 + 2 * 700 - letters);
}

/// Four bad ones of ten, for as long as it takes.
#[test]
fn below_the_share_nothing_happens() {
    let world = World::new("guard_below");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let value = |n: u64| if n % 10 < 4 { format!("broken {n}") } else { record(n) };
    for partition in 0..2 {
        world.produce("in", partition, (0..2000).map(value));
    }
    let engine = world.engine(&format!("{GUARD}{}", world.model("in", "t", "")), &[]);
    world.wait_drained(&["in"], 30);
    let is_bad = |v: Option<&[u8]>| v.is_some_and(|v| v.starts_with(b"broken"));
    world.check("t", &["in"], |v| if is_bad(v) { Class::Dead } else { Class::Row });
    assert!(!engine.log().contains("stopped"), "{}", engine.log());
}
