//! Bad records: each becomes one dead letter, and every good neighbor a row.

use crate::world::{Class, World, record};

/// The kinds of badness: the decoder sees the first, only the server sees the others.
const BAD: [(&str, &str); 3] = [
    ("not JSON", "broken {n}"),
    ("a CHECK", "{\"n\":-{n},\"word\":\"w\"}"),
    ("a UNIQUE", "{\"n\":1000000000,\"word\":\"w{n}\"}"),
];

/// Fills one partition with 300 records, bad where `is_bad` says so, for each kind of badness.
fn poisoned(name: &str, is_bad: impl Fn(u64) -> bool) {
    for (kind, (what, form)) in BAD.iter().enumerate() {
        let world = World::new(&format!("poison_{name}_{kind}"));
        world.create_topic("in", 1);
        world.create_table("t", ", CHECK (n >= 0), UNIQUE (n)");
        // The first of its number is a good row, so that all that follow are not.
        world
            .sql()
            .batch_execute("INSERT INTO t (n, _topic, _partition, _offset) VALUES (1000000000, 'x', -1, -1)")
            .expect("a row");
        let value = |n: u64| if is_bad(n) { form.replace("{n}", &(n + 1).to_string()) } else { record(n) };
        world.produce("in", 0, (0..300).map(value));
        let config = format!("[guard]\ndead_letter_share = 1\n{}", world.model("in", "t", ""));
        let _engine = world.engine(&config, &[]);
        world.wait_drained(&["in"], 30);
        world.sql().batch_execute("DELETE FROM t WHERE _partition = -1").expect("deleted");
        let bad: Vec<Vec<u8>> = (0..300).filter(|n| is_bad(*n)).map(|n| value(n).into_bytes()).collect();
        world.check(
            "t",
            &["in"],
            |v| if bad.iter().any(|b| Some(&**b) == v) { Class::Dead } else { Class::Row },
        );
        let reasons = world.count("SELECT count(DISTINCT reason) FROM rowmill.dead_letter");
        assert_eq!(reasons, 1, "{what}");
    }
}

#[test]
fn first() {
    poisoned("first", |n| n == 0);
}

#[test]
fn middle() {
    poisoned("middle", |n| n == 150);
}

#[test]
fn last() {
    poisoned("last", |n| n == 299);
}

/// One that goes in shows that the table is not at fault.
#[test]
fn all_but_the_last() {
    poisoned("nearly_all", |n| n != 299);
}

#[test]
fn every_second() {
    poisoned("half", |n| n % 2 == 1);
}

/// A foreign key names no row, and a deferred one fails at COMMIT only.
#[test]
fn refusals_that_name_no_row() {
    let world = World::new("poison_unnamed");
    world.create_topic("in", 1);
    world
        .sql()
        .batch_execute(
            "CREATE TABLE known (n BIGINT PRIMARY KEY); INSERT INTO known SELECT generate_series(0, 499)",
        )
        .expect("a table");
    world.create_table("t", ", FOREIGN KEY (n) REFERENCES known DEFERRABLE INITIALLY DEFERRED");
    let value = |n: u64| record(if n % 100 == 50 { n + 1000 } else { n });
    world.produce("in", 0, (0..500).map(value));
    let _engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    let bad: Vec<Vec<u8>> = (0..5).map(|i| value(i * 100 + 50).into_bytes()).collect();
    world.check("t", &["in"], |v| if bad.iter().any(|b| Some(&**b) == v) { Class::Dead } else { Class::Row });
}

/// A trigger drops a row without a word. The row is refused like any other: the ledger must never count it as stored.
#[test]
fn a_trigger_that_drops_rows_is_seen() {
    let world = World::new("poison_trigger");
    world.create_topic("in", 1);
    world.create_table("t", "");
    world
        .sql()
        .batch_execute(
            "CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN IF NEW.n = 5 THEN RETURN NULL; END IF; RETURN NEW; END';
             CREATE TRIGGER swallow BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION swallow()",
        )
        .expect("a trigger");
    world.produce("in", 0, (0..10).map(record));
    let _engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], |v| if v == Some(record(5).as_bytes()) { Class::Dead } else { Class::Row });
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'not_stored'"), 1);
}

/// Longer than its column, trailing spaces included: PostgreSQL itself would cut these silently.
#[test]
fn nothing_is_cut() {
    let world = World::new("poison_long");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let spaces = format!("{{\"n\":1,\"word\":\"{}\"}}", "x".repeat(20) + "   ");
    world.produce("in", 0, [spaces.clone(), record(2)]);
    let _engine = world.engine(&world.model("in", "t", ""), &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], |v| if v == Some(spaces.as_bytes()) { Class::Dead } else { Class::Row });
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'too_long'"), 1);
}
