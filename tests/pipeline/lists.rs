//! Records with many messages: each record has all of its rows in a table or one dead letter, whatever happens on the way.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::world::{World, rowmill};

/// The model of a table for the elements of lists.
fn model(world: &World, topic: &str, table: &str, more: &str) -> String {
    world.model(topic, table, &format!("records = \"items\"\n{more}"))
        + "_element = { kafka = \"element\" }\n"
}

fn create_table(world: &World, name: &str, constraint: &str) {
    world.create_table(name, &format!(", _element INTEGER{constraint}"));
}

/// A record of so many elements, numbered from `n`.
fn list(elements: impl IntoIterator<Item = String>) -> String {
    format!("{{\"items\":[{}]}}", elements.into_iter().collect::<Vec<_>>().join(","))
}

fn element(n: u64) -> String {
    format!("{{\"n\":{n},\"word\":\"w{n}\"}}")
}

/// What becomes of the `number`-th record.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Rows(usize),
    Dead,
    Skipped,
}

/// Lists of none to six elements; in some, one is bad for the decoder or for the server alone.
fn record(number: u64) -> (String, Kind) {
    let count = number % 7;
    let good = (0..count).map(|n| element(number * 10 + n));
    let with = |bad: &str| list((0..3).map(element).chain([bad.to_owned()]).chain((4..6).map(element)));
    match number % 23 {
        3 => (with("{\"n\":\"x\"}"), Kind::Dead),
        5 => (with("{\"n\":-1}"), Kind::Dead),
        7 => (with("7"), Kind::Dead),
        11 => ("{\"items\":null}".to_owned(), Kind::Dead),
        13 => ("broken".to_owned(), Kind::Dead),
        _ if count == 0 => (list([]), Kind::Skipped),
        _ => (list(good), Kind::Rows(count as usize)),
    }
}

/// Compares the table, the letters and the ledger with the topic: `kind` says what each value becomes.
#[track_caller]
fn check(world: &World, table: &str, kind: impl Fn(&str) -> Kind) {
    let mut client = world.sql();
    let mut rows: BTreeMap<(i32, i64), Vec<i32>> = BTreeMap::new();
    let sql = format!("SELECT _partition, _offset, _element FROM {table} ORDER BY 3");
    for row in client.query(&sql, &[]).expect("the table") {
        rows.entry((row.get(0), row.get(1))).or_default().push(row.get(2));
    }
    let mut dead: BTreeMap<(i32, i64), Vec<Option<Vec<u8>>>> = BTreeMap::new();
    let sql = "SELECT partition, \"offset\", value FROM rowmill.dead_letter WHERE target = 'public.' || $1 AND settled_at IS NULL";
    for row in client.query(sql, &[&table]).expect("the dead letters") {
        dead.entry((row.get(0), row.get(1))).or_default().push(row.get(2));
    }
    let mut counts = [0; 3];
    for (partition, offset, value) in world.read_topic("in") {
        let place = (partition, offset);
        let text = std::str::from_utf8(value.as_deref().expect("a value")).expect("text");
        let (stored, letters) =
            (rows.remove(&place).unwrap_or_default(), dead.remove(&place).unwrap_or_default());
        let (expected, letter) = match kind(text) {
            Kind::Rows(count) => {
                counts[0] += 1;
                (count, false)
            }
            Kind::Dead => {
                counts[1] += 1;
                (0, true)
            }
            Kind::Skipped => {
                counts[2] += 1;
                (0, false)
            }
        };
        assert_eq!(stored, (0..expected as i32).collect::<Vec<_>>(), "{place:?}: {text}");
        assert_eq!(letters.len(), usize::from(letter), "{place:?}: {text}");
        assert!(letters.iter().all(|bytes| *bytes == value), "{place:?}: the letter has the whole record");
    }
    assert!(rows.is_empty() && dead.is_empty(), "rows or letters of no record");
    let ledger = ["rows", "dead", "skipped"].map(|column| {
        world.count(&format!(
            "SELECT sum({column})::BIGINT FROM rowmill.ledger WHERE target = 'public.{table}'"
        ))
    });
    assert_eq!(ledger, counts, "the ledger counts records");
}

#[track_caller]
fn verified(world: &World, config: &str) {
    let path = world.file("verify.toml", config);
    let (text, fine) = rowmill(world, &["verify", "--config", &path]);
    assert!(fine && text.contains("\nPASS: "), "{text}");
}

#[test]
fn a_list_has_all_of_its_rows_or_one_letter() {
    let world = World::new("lists");
    world.create_topic("in", 2);
    create_table(&world, "t", ", CONSTRAINT positive CHECK (n >= 0)");
    let kinds: BTreeMap<String, Kind> = (0..2000).map(record).collect();
    for partition in 0..2 {
        world.produce("in", partition, (0..1000).map(|n| record(n * 2 + partition as u64).0));
    }
    let config = model(&world, "in", "t", "");
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    let kind = |text: &str| match &kinds[text] {
        Kind::Rows(count) => Kind::Rows(*count),
        Kind::Dead => Kind::Dead,
        Kind::Skipped => Kind::Skipped,
    };
    check(&world, "t", kind);
    // What only the server sees says which element it was.
    let unnamed = world.count(
        "SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'sqlstate_23514' AND message NOT LIKE '%, in element 3 of the list'",
    );
    assert_eq!(unnamed, 0);
    verified(&world, &config);
    // One row more, and one record less, are found.
    let again =
        "INSERT INTO t SELECT * FROM t WHERE _element = 1 AND _partition = 0 ORDER BY _offset LIMIT 1";
    world.sql().batch_execute(again).expect("a row");
    let path = world.file("damaged.toml", &config);
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(!fine && text.contains("DUPLICATED"), "{text}");
}

#[test]
fn a_letter_of_a_list_becomes_all_of_its_rows() {
    let world = World::new("lists_retry");
    world.create_topic("in", 1);
    create_table(&world, "t", ", CONSTRAINT positive CHECK (n >= 0)");
    world.produce("in", 0, (0..300).map(|n| record(n).0));
    let config = model(&world, "in", "t", "");
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    world.sql().batch_execute("ALTER TABLE t DROP CONSTRAINT positive").expect("without the constraint");
    let before = world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'sqlstate_23514'");
    assert!(before > 5, "{before}");
    let rows = world.count("SELECT count(*) FROM t");
    let path = world.file("retry.toml", &config);
    let (text, fine) = rowmill(&world, &["dead-letters", "retry", "--every", "--config", &path]);
    assert!(fine && text.contains(&format!("{before} letters stored")), "{text}");
    assert_eq!(world.count("SELECT count(*) FROM t"), rows + before * 6);
    verified(&world, &config);
}

#[test]
fn elements_go_to_the_tables_that_take_them() {
    let world = World::new("lists_when");
    world.create_topic("in", 1);
    create_table(&world, "t", "");
    create_table(&world, "u", "");
    let of = |kind: &str, n: u64| format!("{{\"kind\":\"{kind}\",\"n\":{n}}}");
    world.produce(
        "in",
        0,
        [
            list([of("t", 1), of("u", 2), of("t", 3)]),
            list([of("u", 4)]),
            list([of("t", 5), of("v", 6), of("u", 7)]), // nobody's
            list([of("t", 8), "{\"kind\":\"u\",\"n\":\"x\"}".to_owned()]), // bad for one of them
            list([]),
        ],
    );
    let config = model(&world, "in", "t", "when = { kind = \"t\" }")
        + &model(&world, "in", "u", "when = { kind = \"u\" }");
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    let numbers = |sql: &str| -> Vec<i64> {
        world.sql().query(sql, &[]).expect("an answer").iter().map(|row| row.get(0)).collect()
    };
    assert_eq!(numbers("SELECT n FROM t ORDER BY n"), [1, 3, 8]);
    assert_eq!(numbers("SELECT n FROM u ORDER BY n"), [2, 4]);
    assert_eq!(numbers("SELECT _element::BIGINT FROM t ORDER BY n"), [0, 2, 0]);
    let letters = "SELECT \"offset\" FROM rowmill.dead_letter WHERE target = 'public.";
    assert_eq!(numbers(&format!("{letters}t' AND reason = 'unroutable'")), [2]);
    assert_eq!(numbers(&format!("{letters}u' AND reason = 'wrong_type'")), [3]);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 2);
    for (table, expected) in [("t", [2, 1, 1, 1]), ("u", [2, 1, 1, 1])] {
        let counts = ["rows", "dead", "skipped", "other"].map(|column| {
            world.count(&format!(
                "SELECT sum({column})::BIGINT FROM rowmill.ledger WHERE target = 'public.{table}'"
            ))
        });
        assert_eq!(counts, expected, "{table}");
    }
    verified(&world, &config);
}

#[test]
fn kills_in_the_middle_leave_whole_lists() {
    let world = World::new("lists_kills");
    world.create_topic("in", 2);
    create_table(&world, "t", ", CHECK (n >= 0)");
    let config = model(&world, "in", "t", "");
    let kinds: BTreeMap<String, Kind> = (0..8000).map(record).collect();
    let mut next = 0;
    for round in 0..8 {
        // Some die within a COPY, and some whenever it happens.
        let point = if round % 2 == 0 { vec![("FAILPOINTS", "mid-copy=2*off->return")] } else { Vec::new() };
        let mut engine = world.engine(&config, &point);
        for batch in 0..10 {
            world.produce("in", batch % 2, (next..next + 100).map(|n| record(n).0));
            next += 100;
            std::thread::sleep(Duration::from_millis(8));
        }
        if point.is_empty() {
            engine.kill();
        } else {
            assert!(!engine.wait(30).success());
        }
    }
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    let kind = |text: &str| match &kinds[text] {
        Kind::Rows(count) => Kind::Rows(*count),
        Kind::Dead => Kind::Dead,
        Kind::Skipped => Kind::Skipped,
    };
    check(&world, "t", kind);
    verified(&world, &config);
}
