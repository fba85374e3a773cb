//! A table's definition changes under a running writer: the process goes on with the new one, and no record is lost, doubled
//! or stored as another value than was sent. And whose fault it is when a table refuses: a record's or its own.

use std::time::{Duration, Instant};

use crate::world::{Class, World, all_rows, record, wait_for};

/// Another table under the same name, whose columns are as wide: only the definition of what COPY writes to tells.
#[test]
fn a_table_that_is_swapped_for_another_never_takes_its_rows_for_its_own() {
    let world = World::new("swapped");
    world.create_topic("in", 1);
    let table = "CREATE TABLE t (n BIGINT NOT NULL, at BIGINT, v DOUBLE PRECISION)";
    world.sql().batch_execute(table).expect("a table");
    let config = format!("[[model]]\ntopic = {:?}\ntable = \"t\"\n", world.topic("in"));
    let value = |n: u64| format!("{{\"n\":{n},\"at\":1700000000000,\"v\":3.5}}");
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..100).map(value));
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") == 100);
    let swap = "BEGIN; ALTER TABLE t RENAME TO t_old;
                CREATE TABLE t (n BIGINT NOT NULL, at TIMESTAMPTZ, v BIGINT); COMMIT";
    world.sql().batch_execute(swap).expect("swapped");
    world.produce("in", 0, (100..150).map(value));
    world.produce(
        "in",
        0,
        (150..200).map(|n| format!("{{\"n\":{n},\"at\":\"2024-05-01T12:30:00Z\",\"v\":3}}")),
    );
    world.wait_drained(&["in"], 20);
    assert_eq!(world.count("SELECT count(*) FROM t_old"), 100);
    assert_eq!(
        world.count("SELECT count(*) FROM t WHERE n >= 150 AND v = 3 AND at = '2024-05-01 12:30Z'"),
        50
    );
    assert_eq!(world.count("SELECT count(*) FROM t"), 50, "nothing that was sent for the old table");
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'wrong_type'"), 50);
    for said in ["the name belongs to another table now", "at is timestamptz now, and was bigint"] {
        assert!(engine.log().contains(said), "{said}: {}", engine.log());
    }
    assert!(engine.stop().0.success());
}

/// Twenty changes in a minute under load: add, drop, rename, type, swap, each four times. The pauses are printed.
#[test]
fn a_table_that_changes_again_and_again_loses_nothing() {
    let world = World::new("definitions");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let mut engine = world.engine(&world.model("in", "t", ""), &[]);
    let load = world.load("in", 3, 5_000);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 1_000);
    let mut pauses = Vec::new();
    for round in 0..4 {
        let new = if round % 2 == 0 { "TEXT" } else { "VARCHAR(20)" };
        for change in [
            "ALTER TABLE t ADD COLUMN received_at TIMESTAMPTZ NOT NULL DEFAULT now()".to_owned(),
            "ALTER TABLE t DROP COLUMN received_at".to_owned(),
            format!("ALTER TABLE t RENAME COLUMN {}", ["word TO wort", "wort TO word"][round % 2]),
            format!("ALTER TABLE t ALTER COLUMN {} TYPE {new}", ["wort", "word"][round % 2]),
            format!("BEGIN; ALTER TABLE t RENAME TO t_{round}; CREATE TABLE t (LIKE t_{round}); COMMIT"),
        ] {
            pauses.push((pause(&world, &change), change));
        }
    }
    load.stop();
    world.wait_drained(&["in"], 30);
    assert!(engine.is_running(), "{}", engine.log());
    println!("pauses: {pauses:#?}");
    for round in 0..4 {
        let back = format!(
            "INSERT INTO t (n, _topic, _partition, _offset) SELECT n, _topic, _partition, _offset FROM t_{round}"
        );
        world.sql().batch_execute(&back).expect("put back");
    }
    world.check("t", &["in"], all_rows);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    assert!(engine.log().contains("received_at is no longer a column: a field of that name is ignored"));
    let longest = pauses.iter().map(|(pause, _)| *pause).max().expect("there were changes");
    assert!(longest < Duration::from_secs(10), "it goes on: {pauses:#?}");
}

/// Makes a change, and says for how long nothing was stored around it, within three seconds.
fn pause(world: &World, change: &str) -> Duration {
    world.sql().batch_execute(change).expect(change);
    let began = Instant::now();
    let committed = || world.count("SELECT sum(next_offset)::bigint FROM rowmill.ledger");
    let (mut longest, mut at, mut last) = (Duration::ZERO, began, committed());
    while began.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(10));
        let now = committed();
        if now > last {
            longest = longest.max(at.elapsed());
            (at, last) = (Instant::now(), now);
        }
    }
    longest.max(at.elapsed())
}

/// The model names a column that is gone: its topic waits, others go on, and it goes on by itself when the column is back.
#[test]
fn a_definition_that_fits_no_model_is_waited_for() {
    let world = World::new("unfit");
    for name in ["in", "other"] {
        world.create_topic(name, 2);
    }
    world.create_table("t", "");
    world.create_table("u", "");
    let config = format!("{}{}", world.model("in", "t", ""), world.model("other", "u", ""));
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..100).map(record));
    world.wait_drained(&["in"], 30);
    world.sql().batch_execute("ALTER TABLE t RENAME COLUMN _offset TO kafka_offset").expect("renamed");
    world.produce("in", 0, (100..200).map(record));
    wait_for("the word", 20, || engine.log().contains("the table has no column"));
    // Another table may change meanwhile.
    world.sql().batch_execute("ALTER TABLE u ADD COLUMN more TEXT").expect("added");
    world.produce("other", 0, (0..100).map(record));
    world.wait_drained(&["other"], 20);
    wait_for("the reason in the ledger", 10, || {
        world.count("SELECT count(*) FROM rowmill.ledger WHERE stopped LIKE '%has no column%'") > 0
    });
    world.sql().batch_execute("ALTER TABLE t RENAME COLUMN kafka_offset TO _offset").expect("renamed");
    world.wait_drained(&["in"], 20);
    world.check("t", &["in"], all_rows);
    wait_for("no reason in the ledger", 10, || {
        world.count("SELECT count(*) FROM rowmill.ledger WHERE stopped IS NOT NULL") == 0
    });
    assert!(engine.stop().0.success());
}

/// Errors of every kind that triggers, constraints, generated columns and extensions raise at one record: one dead letter each,
/// whatever the code, and its neighbors are rows.
#[test]
fn whatever_a_single_record_raises_costs_one_dead_letter() {
    let world = World::new("evidence");
    world.create_topic("in", 2);
    world.create_table("t", ", CHECK (to_tsquery('simple', word) IS NOT NULL)");
    world
        .sql()
        .batch_execute(
            "CREATE FUNCTION judge() RETURNS TRIGGER LANGUAGE plpgsql AS $$
             BEGIN
                 CASE NEW.word
                     WHEN 'none' THEN RETURN NULL;
                     WHEN 'gone' THEN EXECUTE 'SELECT * FROM nowhere_at_all';
                     WHEN 'two' THEN PERFORM (SELECT g FROM generate_series(1, 2) AS g);
                     WHEN 'state' THEN RAISE EXCEPTION 'not now' USING ERRCODE = '55000';
                     WHEN 'own' THEN RAISE EXCEPTION 'ours' USING ERRCODE = 'APP01';
                     WHEN 'inner' THEN RAISE EXCEPTION 'inside' USING ERRCODE = 'XX000';
                     WHEN 'rights' THEN RAISE EXCEPTION 'not you' USING ERRCODE = '42501';
                     WHEN 'data' THEN RAISE NO_DATA_FOUND;
                     WHEN 'many' THEN RAISE TOO_MANY_ROWS;
                     WHEN 'assert' THEN ASSERT false;
                     WHEN 'feature' THEN RAISE FEATURE_NOT_SUPPORTED;
                     ELSE
                         -- A CASE without ELSE raises 20000.
                         CASE left(NEW.word, 1) WHEN 'w' THEN NULL; WHEN 'a' THEN NULL; WHEN 'b' THEN NULL; END CASE;
                 END CASE;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER judge BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION judge()",
        )
        .expect("a trigger");
    let bad = [
        "none", "gone", "two", "state", "own", "inner", "rights", "data", "many", "assert", "feature", "zzz",
        "a b",
    ];
    let word = |n: u64, word: &str| format!("{{\"n\":{n},\"word\":{word:?}}}");
    for (n, name) in bad.iter().enumerate() {
        world.produce("in", 0, (0..40).map(|i| record(100 * n as u64 + i)));
        world.produce("in", 0, [word(100 * n as u64 + 50, name)]);
        // Alone, and at the end of what there is.
        world.produce("in", 1, [word(n as u64, name)]);
    }
    let engine =
        world.engine(&format!("[guard]\ndead_letter_share = 1\n{}", world.model("in", "t", "")), &[]);
    world.wait_drained(&["in"], 60);
    let is_bad = |v: Option<&[u8]>| {
        let value: serde_json::Value = serde_json::from_slice(v.expect("a value")).expect("JSON");
        bad.iter().any(|name| value["word"] == *name)
    };
    world.check("t", &["in"], |v| if is_bad(v) { Class::Dead } else { Class::Row });
    let reasons = world.count("SELECT count(DISTINCT reason) FROM rowmill.dead_letter");
    assert_eq!(reasons, bad.len() as i64);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'not_stored'"), 2);
    assert!(engine.stop().0.success());
}

/// The table's own trouble refuses every record for one reason: nothing is set aside, it is said, and it goes on by itself.
#[test]
fn a_table_that_refuses_everything_is_waited_for() {
    for (name, trouble, mend) in [
        (
            "sequence",
            "CREATE SEQUENCE few MAXVALUE 101; ALTER TABLE t ADD COLUMN id SMALLINT DEFAULT nextval('few')",
            "ALTER SEQUENCE few MAXVALUE 30000",
        ),
        (
            "check",
            "ALTER TABLE t ADD CONSTRAINT never CHECK (n < 100) NOT VALID",
            "ALTER TABLE t DROP CONSTRAINT never",
        ),
        ("constant", "CREATE UNIQUE INDEX constant ON t ((1)) WHERE n >= 99", "DROP INDEX constant"),
    ] {
        let world = World::new(&format!("refuses_{name}"));
        world.create_topic("in", 1);
        world.create_table("t", "");
        let engine = world.engine(&world.model("in", "t", ""), &[]);
        world.produce("in", 0, (0..100).map(record));
        world.wait_drained(&["in"], 30);
        world.sql().batch_execute(trouble).expect("a trouble");
        world.produce("in", 0, (100..300).map(record));
        wait_for("the word", 20, || engine.log().contains("waiting until it is mended"));
        wait_for("the reason in the ledger", 10, || {
            world.count("SELECT count(*) FROM rowmill.ledger WHERE stopped LIKE '%records in a row%'") == 1
        });
        assert!(world.count("SELECT count(*) FROM rowmill.dead_letter") <= 49, "{name}");
        world.sql().batch_execute(mend).expect("mended");
        world.wait_drained(&["in"], 20);
        let rows = world.count("SELECT count(*) FROM t");
        assert_eq!(rows + world.count("SELECT count(*) FROM rowmill.dead_letter"), 300, "{name}");
        assert_eq!(world.count("SELECT count(DISTINCT _offset) FROM t"), rows, "{name}");
        assert!(engine.log().contains("takes rows again"), "{name}: {}", engine.log());
        assert!(engine.stop().0.success());
    }
}

/// A producer's own burst, longer than what speaks against a table: one good record ends the suspicion.
#[test]
fn one_good_record_shows_that_the_others_are_bad() {
    let world = World::new("burst");
    world.create_topic("in", 1);
    world.create_table("t", ", CHECK (n >= 0)");
    let engine =
        world.engine(&format!("[guard]\ndead_letter_share = 1\n{}", world.model("in", "t", "")), &[]);
    let bad = |n: u64| format!("{{\"n\":-{},\"word\":\"w\"}}", n + 1);
    world.produce("in", 0, (0..200).map(bad));
    wait_for("the suspicion", 20, || engine.log().contains("waiting until it is mended"));
    world.produce("in", 0, [record(1)]);
    world.wait_drained(&["in"], 20);
    world.check("t", &["in"], |v| {
        if v.is_some_and(|v| v.starts_with(b"{\"n\":-")) { Class::Dead } else { Class::Row }
    });
    assert!(engine.stop().0.success());
}
