//! Tables with keys where others have a say in it: Kafka's compaction, sequences, a second unique index, another process, and a
//! great many keys.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::producer::{BaseRecord, Producer as _};

use crate::collect::configure;
use crate::modes::{FOLDS, LETTERS, model, texts};
use crate::world::{World, all_rows, record, rowmill, wait_for};

/// For longer looks than a test set has time for: KEYED_RECORDS=1000000, KEYED_KEYS=10000000.
fn size(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// How long a drain of so many records may take, in seconds.
fn patience(records: u64) -> u64 {
    120 + records / 2000
}

/// `verify` finds nothing to complain of; what it said.
#[track_caller]
fn verified(world: &World, config: &str) -> String {
    let path = world.file("verify.toml", config);
    let (text, fine) = rowmill(world, &["verify", "--config", &path]);
    assert!(fine && text.contains("\nPASS: "), "{text}");
    text
}

/// Kafka takes old values away, and deletions, and the record at which the reader stood. The table stays the topic's mirror, and one
/// that is filled from what is left is equal. Who was away while a deletion was there for all to read has its row for ever, and
/// `verify` says so.
#[test]
fn compaction_takes_nothing_from_a_mirror() {
    let world = World::new("keyed_compacted");
    world.create_topic("in", 2);
    configure(
        &world,
        "in",
        "cleanup.policy=compact,segment.ms=100,min.cleanable.dirty.ratio=0.01,delete.retention.ms=100",
    );
    for table in ["live", "late", "later"] {
        let sql = format!("CREATE TABLE {table} (k TEXT PRIMARY KEY, n BIGINT NOT NULL)");
        world.sql().batch_execute(&sql).expect("a table");
    }
    // A pipeline for each, so that each begins at the log's begin.
    let mirror = |table: &str| {
        let more = "mode = \"upsert\"\ntombstones = \"delete\"\n[model.columns]\nk = { kafka = \"key\" }";
        format!("pipeline = {table:?}\n{}", model(&world, table, more))
    };
    let (producer, topic) = (world.producer("none"), world.topic("in"));
    let mut there: BTreeMap<String, i64> = BTreeMap::new();
    let send = |there: &mut BTreeMap<String, i64>, key: u64, n: Option<i64>| {
        let (name, value) = (format!("k{key:02}"), n.map(|n| format!("{{\"n\":{n}}}")));
        let mut record: BaseRecord<'_, str, str> =
            BaseRecord::to(&topic).partition((key % 2) as i32).key(name.as_str());
        record.payload = value.as_deref();
        producer.send(record).map_err(|(error, _)| error).expect("sent");
        producer.flush(Duration::from_secs(60)).expect("Kafka takes it");
        match n {
            Some(n) => there.insert(name, n),
            None => there.remove(&name),
        };
    };
    let wait_equal = |table: &str, there: &BTreeMap<String, i64>| {
        let rows: Vec<String> = there.iter().map(|(k, n)| format!("{k} {n}")).collect();
        wait_for(&format!("table {table} to be what the topic is"), 60, || {
            texts(&world, &format!("SELECT k || ' ' || n FROM {table} ORDER BY k")) == rows
        });
    };
    let (live, late) = (world.engine(&mirror("live"), &[]), world.engine(&mirror("late"), &[]));
    (0..100).for_each(|n| send(&mut there, n % 20, (n % 7 != 0).then_some(n as i64)));
    wait_equal("late", &there);
    assert!(late.stop().0.success());
    let before = there.clone();
    // Each of the first ones has a newer value now, or none.
    (0..40).for_each(|n| send(&mut there, n % 20, (n % 3 != 0).then_some(1000 + n as i64)));
    wait_equal("live", &there);
    assert!(live.stop().0.success());

    // Segments are closed by what comes later, and only what is closed is compacted.
    let mut ticks = 10_000;
    wait_for("compaction to take the old values, and then the deletions", 180, || {
        ticks += 1;
        (20..22).for_each(|key| send(&mut there, key, Some(ticks)));
        std::thread::sleep(Duration::from_millis(300));
        let number = |value: &[u8]| {
            let value: serde_json::Value = serde_json::from_slice(value).expect("JSON");
            value["n"].as_i64().expect("a number")
        };
        let left = world.read_topic("in");
        left.iter().all(|(_, _, value)| value.as_deref().is_some_and(|value| number(value) >= 1000))
    });
    for table in ["live", "later"] {
        let engine = world.engine(&mirror(table), &[]);
        wait_equal(table, &there);
        assert!(engine.stop().0.success());
        let text = verified(&world, &mirror(table));
        assert!(text.contains("key by key"), "{text}");
    }
    let gone = before.into_iter().filter(|(k, _)| !there.contains_key(k));
    let missed: BTreeMap<String, i64> = gone.collect();
    assert_eq!(missed.len(), 6);
    there.extend(missed);
    let engine = world.engine(&mirror("late"), &[]);
    wait_equal("late", &there);
    assert!(engine.stop().0.success());
    let path = world.file("late.toml", &mirror("late"));
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(!fine && text.contains("table public.late: 6 PHANTOM"), "{text}");
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
}

/// What Kafka took away cannot be folded again, and nobody says that it was.
#[test]
fn sums_of_an_expired_log_are_not_compared() {
    let world = World::new("keyed_expired");
    world.create_topic("in", 1);
    let table = "CREATE TABLE sums (word TEXT PRIMARY KEY, count BIGINT NOT NULL, total BIGINT NOT NULL, low BIGINT, high BIGINT)";
    world.sql().batch_execute(table).expect("a table");
    let config = model(&world, "sums", &format!("mode = \"add\"\n{FOLDS}"));
    world.produce("in", 0, (0..500).map(record));
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 60);
    assert!(engine.stop().0.success());
    assert!(verified(&world, &config).contains("key by key"));
    let (request, topic) = ("delete.json", world.topic("in"));
    let request = world.file(
        request,
        &format!(
            "{{\"partitions\":[{{\"topic\":\"{topic}\",\"partition\":0,\"offset\":250}}],\"version\":1}}"
        ),
    );
    world.stack(&["kafka", "delete-records", "--offset-json-file", &request]);
    let path = world.file("expired.toml", &config);
    let (text, _) = rowmill(&world, &["verify", "--config", &path]);
    assert!(
        text.contains("Kafka no longer has the offsets [0, 250)") && !text.contains("key by key"),
        "{text}"
    );
}

/// Each key of a transaction takes a value of a sequence, also where its row is there already. When they are used up, the table takes
/// nothing, and no record is to blame.
#[test]
fn a_sequence_that_is_used_up_is_its_tables_fault() {
    let ways = [
        ("add", "[model.columns]\nn = { fold = \"sum\" }", "a50 10"),
        ("upsert", "", "a50 1"),
        ("first", "", "a50 1"),
    ];
    let ends = [
        ("ALTER SEQUENCE k_id_seq MAXVALUE 150", "ALTER SEQUENCE k_id_seq MAXVALUE 2147483647"),
        (
            "ALTER SEQUENCE k_id_seq AS BIGINT MAXVALUE 9223372036854775807 RESTART 2147483498",
            "ALTER TABLE k ALTER COLUMN id TYPE BIGINT",
        ),
    ];
    for (mode, columns, a50) in ways {
        for (end, mend) in ends {
            let world = World::new("keyed_sequence");
            world.create_topic("in", 1);
            world
                .sql()
                .batch_execute(&format!(
                    "CREATE TABLE k (id SERIAL, k TEXT PRIMARY KEY, n BIGINT NOT NULL); {end}"
                ))
                .expect("a table");
            let config = model(&world, "k", &format!("mode = {mode:?}\n{columns}"));
            let records = |times: u64| {
                (0..times * 100).map(|i| format!("{{\"k\":\"a{}\",\"n\":1}}", i % 100)).collect::<Vec<_>>()
            };
            world.produce("in", 0, records(1));
            let engine = world.engine(&config, &[]);
            world.wait_drained(&["in"], 60);
            assert!(engine.stop().0.success());
            let used = world.count("SELECT max(id)::BIGINT - min(id) + 1 FROM k");
            assert_eq!(used, 100, "{mode}: one for each key");
            // The same keys again: no row is new, and yet fifty values are all that is left.
            world.produce("in", 0, records(9));
            let engine = world.engine(&config, &[]);
            wait_for("the table to be at fault", 60, || {
                engine.log().contains("table public.k takes no rows")
            });
            assert!(engine.log().contains("nothing is set aside"), "{}", engine.log());
            std::thread::sleep(Duration::from_secs(1));
            assert_eq!(texts(&world, LETTERS), Vec::<String>::new(), "{mode}, {end}");
            world.sql().batch_execute(mend).expect(mend);
            world.wait_drained(&["in"], 60);
            assert!(engine.stop().0.success());
            assert_eq!(texts(&world, LETTERS), Vec::<String>::new(), "{mode}, {end}");
            assert_eq!(texts(&world, "SELECT k || ' ' || n FROM k WHERE k = 'a50'"), [a50], "{mode}, {end}");
            assert_eq!(world.count("SELECT count(*) FROM k"), 100);
            let used = world.count("SELECT last_value FROM k_id_seq");
            let first = world.count("SELECT min(id)::BIGINT FROM k");
            assert!(used - first >= 199, "{mode}: rows that were there took values too, up to {used}");
            verified(&world, &config);
        }
    }
}

/// Rows go in the order of their keys, so a value that one key gives to another may come too early for a second unique index: such a
/// table is not begun with, and where the index comes later, the search for bad records goes by offsets and finds none.
#[test]
fn a_value_that_moves_from_key_to_key() {
    let world = World::new("keyed_moves");
    world.create_topic("in", 1);
    world
        .sql()
        .batch_execute("CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL UNIQUE)")
        .expect("a table");
    let config = model(&world, "k", "mode = \"upsert\"");
    let mut engine = world.engine(&config, &[]);
    assert!(!engine.wait(60).success(), "it must not begin");
    assert!(engine.log().contains("is unique on other columns than the key"), "{}", engine.log());

    world.sql().batch_execute("ALTER TABLE k DROP CONSTRAINT k_n_key").expect("dropped");
    let engine = world.engine(&config, &[]);
    let put = |k: &str, n: i64| format!("{{\"k\":{k:?},\"n\":{n}}}");
    world.produce("in", 0, [put("a", 1), put("b", 2), put("c", 3)]);
    world.wait_drained(&["in"], 60);
    let mut holder = world.sql();
    holder.batch_execute("CREATE UNIQUE INDEX later ON k (n)").expect("an index");
    holder.batch_execute("BEGIN; LOCK TABLE k IN SHARE MODE").expect("a lock");
    world.produce("in", 0, [put("c", 4)]);
    wait_for("a writer that waits", 30, || {
        world.count("SELECT count(*) FROM pg_locks WHERE relation = 'k'::REGCLASS AND NOT granted") > 0
    });
    // All of these are in hand when the lock is gone: b gives its number away before a takes it.
    world.produce("in", 0, [put("b", 5), put("a", 2), put("b", 1), put("d", 5)]);
    std::thread::sleep(Duration::from_secs(1));
    holder.batch_execute("COMMIT").expect("given back");
    world.wait_drained(&["in"], 60);
    assert_eq!(texts(&world, "SELECT k || n FROM k ORDER BY k"), ["a2", "b1", "c4", "d5"]);
    assert_eq!(texts(&world, LETTERS), Vec::<String>::new());
    assert!(engine.stop().0.success());
}

/// Deletions, upserts and bad records of the same keys, while the process dies at each phase of a transaction.
#[test]
fn a_death_at_any_phase_leaves_deletions_in_their_place() {
    let world = World::new("keyed_deletions");
    world.create_topic("in", 2);
    world
        .sql()
        .batch_execute("CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL CHECK (n % 37 > 0))")
        .expect("a table");
    let more = "mode = \"upsert\"\ndelete_when = { op = \"d\" }";
    let config = format!("[guard]\ndead_letter_share = 1\n{}", model(&world, "k", more));
    let mut n = 0;
    for point in ["before-copy", "mid-copy", "after-copy", "before-commit", "after-commit"] {
        for partition in 0..2 {
            let records = (n..n + 400).map(|n| {
                let op = if n % 5 == 1 { "d" } else { "c" };
                format!("{{\"k\":\"k{partition}{}\",\"n\":{n},\"op\":{op:?}}}", n * 7 % 23)
            });
            world.produce("in", partition, records);
            n += 400;
        }
        let mut engine = world.engine(&config, &[("FAILPOINTS", &format!("{point}=2*off->return"))]);
        assert!(!engine.wait(180).success() && engine.log().contains(&format!("fault point {point}")));
    }
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 180);
    let (mut expected, mut refused) = (BTreeMap::new(), 0);
    for (_, _, value) in world.read_topic("in") {
        let value: serde_json::Value = serde_json::from_slice(&value.expect("no tombstone")).expect("JSON");
        let (k, n) = (value["k"].as_str().expect("a key").to_owned(), value["n"].as_i64().expect("a number"));
        match (value["op"] == "d", n % 37 > 0) {
            (true, _) => drop(expected.remove(&k)),
            (false, true) => drop(expected.insert(k, n)),
            (false, false) => refused += 1,
        }
    }
    let expected: Vec<String> = expected.into_iter().map(|(k, n)| format!("{k} {n}")).collect();
    assert_eq!(texts(&world, "SELECT k || ' ' || n FROM k ORDER BY k COLLATE \"C\""), expected);
    // One that is refused and replaced by its next in the same transaction is asked by nobody.
    let letters = world.count("SELECT count(*) FROM rowmill.dead_letter");
    assert!((1..=refused).contains(&letters), "{letters} of {refused}");
    assert!(engine.stop().0.success());
}

/// Two processes with two writers each, all of which write to all keys of five tables: sums are exact, and nobody waits for another
/// one in a circle. KEYED_RECORDS=1000000 for a longer look.
#[test]
fn writers_of_two_processes_wait_for_each_other_in_no_circle() {
    const KEYS: [u64; 3] = [100, 1000, 10_000];
    let records = size("KEYED_RECORDS", 40_000);
    let world = World::new("keyed_circle");
    world.create_topic("in", 8);
    let mut config = "[threads]\nwriters = 2\n".to_owned();
    let mut sql = String::new();
    for keys in KEYS {
        sql += &format!(
            "CREATE TABLE sums_{keys} (k BIGINT PRIMARY KEY, count BIGINT NOT NULL, total BIGINT NOT NULL) WITH (fillfactor = 70);"
        );
        config += &model(
            &world,
            &format!("sums_{keys}"),
            &format!(
                "mode = \"add\"\n[model.columns]\nk = {{ field = \"k{keys}\" }}\ncount = {{ fold = \"count\" }}\n\
                 total = {{ fold = \"sum\", field = \"n\" }}"
            ),
        );
    }
    for (table, mode) in
        [("latest", "mode = \"upsert\"\nnewest = \"n\""), ("earliest", "mode = \"first\"\noldest = \"n\"")]
    {
        sql += &format!("CREATE TABLE {table} (k BIGINT PRIMARY KEY, n BIGINT NOT NULL);");
        config += &model(&world, table, &format!("{mode}\n[model.columns]\nk = {{ field = \"k1000\" }}"));
    }
    world.sql().batch_execute(&sql).expect("tables");
    // Numbers that look random: each partition has all keys, in an order of its own.
    let key = |n: u64, keys: u64| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % keys;
    let value = |n: u64| {
        let [a, b, c] = KEYS.map(|keys| key(n, keys));
        format!("{{\"n\":{n},\"k100\":{a},\"k1000\":{b},\"k10000\":{c}}}")
    };
    // Nobody writes before both processes have partitions and records.
    let mut holder = world.sql();
    holder
        .batch_execute("BEGIN; LOCK TABLE sums_100, sums_1000, sums_10000, latest, earliest IN SHARE MODE")
        .expect("a lock");
    let engines = [world.engine(&config, &[]), world.engine(&config, &[])];
    let owners = "SELECT count(DISTINCT owner) FROM rowmill.ledger WHERE owner IS NOT NULL";
    wait_for("both to have partitions", 60, || world.count(owners) == 2);
    for partition in 0..8u64 {
        world.produce("in", partition as i32, (partition..records).step_by(8).map(value));
    }
    holder.batch_execute("COMMIT").expect("given back");
    let took = world.wait_drained(&["in"], patience(records));
    assert_eq!(world.count(owners), 2, "both of them wrote to the end");

    for keys in KEYS {
        let mut expected: BTreeMap<i64, [i64; 2]> = BTreeMap::new();
        for n in 0..records {
            let sum = expected.entry(key(n, keys) as i64).or_default();
            *sum = [sum[0] + 1, sum[1] + n as i64];
        }
        let rows = world.sql().query(&format!("SELECT k, count, total FROM sums_{keys}"), &[]).expect("rows");
        let found: BTreeMap<i64, [i64; 2]> =
            rows.iter().map(|row| (row.get(0), [row.get(1), row.get(2)])).collect();
        assert_eq!(found, expected, "{keys} keys");
    }
    for (table, is_first) in [("latest", false), ("earliest", true)] {
        let mut expected: BTreeMap<i64, i64> = BTreeMap::new();
        for n in 0..records {
            let stays = expected.entry(key(n, 1000) as i64).or_insert(n as i64);
            *stays = if is_first { *stays } else { n as i64 };
        }
        let rows = world.sql().query(&format!("SELECT k, n FROM {table}"), &[]).expect("rows");
        assert_eq!(rows.iter().map(|row| (row.get(0), row.get(1))).collect::<BTreeMap<_, _>>(), expected);
    }
    for engine in engines {
        assert!(!engine.log().contains("40P01"), "{}", engine.log());
        assert!(engine.stop().0.success());
    }
    // Sessions report what they did when they end, at the latest.
    let ended = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rowmill%'";
    wait_for("their sessions to be gone", 30, || world.count(ended) == 0);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    let commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    eprintln!(
        "{records} records into five tables in {:.0} s; {} transactions, {} deadlocks",
        took.as_secs_f64(),
        world.count(commits),
        world.count(deadlocks)
    );
    assert_eq!(world.count(deadlocks), 0);
}

/// As many keys as records, small ones, and tables that take none for a while, so that all that may be in hand is: what folding them
/// needs has a bound that knows nothing of how many keys there are. KEYED_KEYS=10000000 for a longer look.
#[test]
fn memory_does_not_grow_with_the_keys() {
    let keys = size("KEYED_KEYS", 400_000);
    let world = World::new("keyed_memory");
    world.create_topic("in", 4);
    world
        .sql()
        .batch_execute(
            "CREATE TABLE sums (n BIGINT PRIMARY KEY, count BIGINT NOT NULL, total BIGINT NOT NULL, low BIGINT, high BIGINT);
             CREATE TABLE latest (n BIGINT PRIMARY KEY)",
        )
        .expect("tables");
    let config = model(&world, "sums", &format!("mode = \"add\"\n{FOLDS}"))
        + &model(&world, "latest", "mode = \"upsert\"");
    let mut holder = world.sql();
    holder.batch_execute("BEGIN; LOCK TABLE sums, latest IN SHARE MODE").expect("a lock");
    let engine = world.engine(&config, &[]);
    for partition in 0..4u64 {
        let numbers = (partition..keys).step_by(4).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1);
        world.produce("in", partition as i32, numbers.map(|n| format!("{{\"n\":{n}}}")));
    }
    std::thread::sleep(Duration::from_secs(5));
    let held = engine.peak_memory();
    holder.batch_execute("COMMIT").expect("given back");
    let took = world.wait_drained(&["in"], patience(keys));
    let peak = engine.peak_memory();
    eprintln!(
        "{keys} keys in {:.0} s: {} MB at most, {} MB of it before the first was written",
        took.as_secs_f64(),
        peak >> 20,
        held >> 20
    );
    for table in ["sums", "latest"] {
        assert_eq!(world.count(&format!("SELECT count(*) FROM {table}")), keys as i64);
    }
    // The budget of 24 MB, librdkafka's queue of 8 MB, what each of two writers folds at once, and itself: 149 MB with 400,000 keys,
    // 165 with three million, 167 with ten.
    assert!(peak < 180 << 20, "{} MB", peak >> 20);
    assert!(engine.stop().0.success());
}

/// Floating-point numbers, as PostgreSQL's own min and max of the same records see them, however they come.
#[test]
fn least_and_greatest_are_postgresqls() {
    let world = World::new("keyed_ranges");
    world.create_topic("in", 1);
    world
        .sql()
        .batch_execute(
            "CREATE TABLE raw (k TEXT NOT NULL, v DOUBLE PRECISION, f REAL);
             CREATE TABLE ranges (k TEXT PRIMARY KEY, low DOUBLE PRECISION, high DOUBLE PRECISION, least REAL, most REAL)",
        )
        .expect("tables");
    let fold = |fold: &str, field: &str| format!("{{ fold = {fold:?}, field = {field:?} }}");
    let columns = format!(
        "[model.columns]\nlow = {}\nhigh = {}\nleast = {}\nmost = {}",
        fold("min", "v"),
        fold("max", "v"),
        fold("min", "f"),
        fold("max", "f")
    );
    let config = model(&world, "raw", "") + &model(&world, "ranges", &format!("mode = \"add\"\n{columns}"));
    let values =
        ["0.1", "1e16", "-1e16", "\"NaN\"", "0.0", "-0.0", "\"Infinity\"", "\"-Infinity\"", "null", "1"];
    let records: Vec<String> = (0..600usize)
        .map(|i| {
            let (v, f) = (values[i * 7 % 10], values[i * i % 10]);
            // Some keys have few of them, and some but one.
            let key = if i % 3 == 0 { i % 10 } else { i % 211 };
            format!("{{\"k\":\"k{key}\",\"v\":{v},\"f\":{f}}}")
        })
        .collect();
    for part in [&records[..1], &records[1..10], &records[10..300], &records[300..]] {
        world.produce("in", 0, part.iter().cloned());
        let engine = world.engine(&config, &[]);
        world.wait_drained(&["in"], 60);
        assert!(engine.stop().0.success());
    }
    let differing = "SELECT count(*) FROM (SELECT k, min(v) AS a, max(v) AS b, min(f) AS c, max(f) AS d FROM raw GROUP BY k) AS r
                     FULL JOIN ranges AS s USING (k)
                     WHERE (r.a, r.b, r.c, r.d) IS DISTINCT FROM (s.low, s.high, s.least, s.most)";
    assert_eq!(world.count(differing), 0);
    assert_eq!(world.count("SELECT count(*) FROM raw"), 600);
    assert!(world.count("SELECT count(*) FROM ranges WHERE high = 'NaN' AND low <> 'NaN'") > 0);
    verified(&world, &config);
}

/// Tables that come later: what their topic held before is added where order does not matter, while newer records go on coming.
#[test]
fn a_backfill_adds_what_was_before() {
    let world = World::new("keyed_backfill");
    world.create_topic("in", 2);
    world.create_table("t", "");
    world
        .sql()
        .batch_execute(
            "CREATE TABLE sums (word TEXT PRIMARY KEY, count BIGINT NOT NULL, total BIGINT NOT NULL, low BIGINT, high BIGINT);
             CREATE TABLE latest (word TEXT PRIMARY KEY, n BIGINT NOT NULL);
             CREATE TABLE earliest (word TEXT PRIMARY KEY, n BIGINT NOT NULL)",
        )
        .expect("tables");
    let produce = |range: std::ops::Range<u64>| {
        (0..2).for_each(|p| world.produce("in", p as i32, range.clone().map(|n| record(n * 2 + p))));
    };
    produce(0..3000);
    let raw = world.model("in", "t", "");
    let engine = world.engine(&raw, &[]);
    world.wait_drained(&["in"], 60);
    assert!(engine.stop().0.success());

    let config = raw
        + &model(&world, "sums", &format!("mode = \"add\"\n{FOLDS}"))
        + &model(&world, "latest", "mode = \"upsert\"\nnewest = \"n\"")
        + &model(&world, "earliest", "mode = \"first\"\noldest = \"n\"");
    let engine = world.engine(&config, &[]);
    produce(3000..3500);
    world.wait_drained(&["in"], 60);
    let path = world.file("backfill.toml", &config);
    for table in ["sums", "latest", "earliest"] {
        for rows in ["6000 rows", "0 rows"] {
            let (text, fine) = rowmill(&world, &["backfill", "--config", &path, "--table", table]);
            assert!(fine && text.contains(&format!("table public.{table}: {rows}")), "{text}");
        }
    }
    produce(3500..4000);
    world.wait_drained(&["in"], 60);
    world.check("t", &["in"], all_rows);
    let differing = "SELECT count(*)
        FROM (SELECT word, count(*) AS c, sum(n) AS s, min(n) AS l, max(n) AS h FROM t GROUP BY word) AS r
        FULL JOIN sums AS s USING (word) FULL JOIN latest AS l USING (word) FULL JOIN earliest AS e USING (word)
        WHERE (r.c, r.s, r.l, r.h, r.h, r.l) IS DISTINCT FROM (s.count, s.total, s.low, s.high, l.n, e.n)";
    assert_eq!(world.count(differing), 0);
    assert!(engine.stop().0.success());
    verified(&world, &config);
}

/// What `propose --mode` prints is a table and a model that take the topic.
#[test]
fn a_proposal_with_a_key_takes_its_topic() {
    let world = World::new("keyed_propose");
    world.create_topic("in", 1);
    let value = |n: u64| {
        format!(
            "{{\"user\":\"u{}\",\"metric\":\"m{}\",\"count\":{n},\"time\":\"2026-01-31T10:{:02}:00Z\"}}",
            n % 7,
            n % 3,
            n % 4
        )
    };
    world.produce("in", 0, (0..400).map(value));
    let (topic, file) = (world.topic("in"), world.file("propose.toml", ""));
    for (mode, key, keys) in
        [("upsert", "user,metric", 21), ("first", "user", 7), ("add", "user,metric,time", 84)]
    {
        let table = format!("proposed_{mode}");
        let (text, fine) = rowmill(
            &world,
            &[
                "propose", "--topic", &topic, "--table", &table, "--mode", mode, "--key", key, "--config",
                &file,
            ],
        );
        assert!(fine && text.contains("-- Tried: all 400 records would become rows."), "{text}");
        world.sql().batch_execute(&text).expect("the proposed table");
        let lines = text.lines().filter_map(|line| line.strip_prefix("--| "));
        let config = format!("pipeline = {mode:?}\n{}\n", lines.collect::<Vec<_>>().join("\n"));
        let (text, fine) = rowmill(&world, &["check", "--config", &world.file("proposed.toml", &config)]);
        assert!(fine, "{text}");
        let engine = world.engine(&config, &[]);
        world.wait_drained(&["in"], 60);
        let stored = format!(
            "SELECT coalesce(sum(rows), 0)::BIGINT FROM rowmill.ledger WHERE target = 'public.{table}'"
        );
        wait_for("all records", 60, || world.count(&stored) == 400);
        assert!(engine.stop().0.success());
        assert_eq!(world.count(&format!("SELECT count(*) FROM {table}")), keys, "{mode}: {config}");
        verified(&world, &config);
    }
    assert_eq!(texts(&world, LETTERS), Vec::<String>::new());
}
