//! Tables with keys: sums, last and first rows, deletions, exact through kills of everything, and by one way for each record.

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::producer::{BaseRecord, Producer as _};
use rowmill_faults::proxy::Weather;

use crate::world::{World, all_rows, record, rowmill, rowmill_as, wait_for};

/// What a word's records come to: how many, their sum, the least, the greatest, the first and the last by offset.
type Sums = BTreeMap<String, [i64; 6]>;

/// A table for each mode, and one for the records themselves, all of one topic.
fn tables(world: &World) {
    world.create_table("t", "");
    world
        .sql()
        .batch_execute(
            "CREATE TABLE sums (word TEXT PRIMARY KEY, count BIGINT NOT NULL, total BIGINT NOT NULL, low BIGINT, high BIGINT)
                 WITH (fillfactor = 70);
             CREATE TABLE latest (word TEXT PRIMARY KEY, n BIGINT NOT NULL);
             CREATE TABLE earliest (word TEXT PRIMARY KEY, n BIGINT NOT NULL)",
        )
        .expect("tables");
}

pub(crate) const FOLDS: &str = "[model.columns]\ncount = { fold = \"count\" }\ntotal = { fold = \"sum\", field = \"n\" }\n\
                     low = { fold = \"min\", field = \"n\" }\nhigh = { fold = \"max\", field = \"n\" }\n";

/// A model of the topic `in`; `more` may end with columns.
pub(crate) fn model(world: &World, table: &str, more: &str) -> String {
    format!("[[model]]\ntopic = {:?}\ntable = {table:?}\n{more}\n", world.topic("in"))
}

/// The models of [`tables`].
fn models(world: &World) -> String {
    [
        world.model("in", "t", ""),
        model(world, "sums", &format!("mode = \"add\"\n{FOLDS}")),
        model(world, "latest", "mode = \"upsert\""),
        model(world, "earliest", "mode = \"first\""),
    ]
    .concat()
}

/// From Kafka, read again. A word's records are all in one partition.
fn truth(world: &World) -> Sums {
    let mut sums = Sums::new();
    for (_, _, value) in world.read_topic("in") {
        let value: serde_json::Value = serde_json::from_slice(&value.expect("a value")).expect("JSON");
        let n = value["n"].as_i64().expect("a number");
        let word = value["word"].as_str().expect("a word").to_owned();
        let sum = sums.entry(word).or_insert([0, 0, n, n, n, n]);
        *sum = [sum[0] + 1, sum[1] + n, sum[2].min(n), sum[3].max(n), sum[4], n];
    }
    sums
}

/// As the tables have them.
fn found(world: &World) -> Sums {
    let sql = "SELECT word, count, total, low, high, e.n, l.n FROM sums FULL JOIN earliest e USING (word) FULL JOIN latest l USING (word)";
    let rows = world.sql().query(sql, &[]).expect("the tables");
    let numbers = |row: &postgres::Row| std::array::from_fn(|at| row.get(at + 1));
    rows.iter().map(|row| (row.get(0), numbers(row))).collect()
}

#[track_caller]
fn check(world: &World) {
    world.check("t", &["in"], all_rows);
    assert_eq!(found(world), truth(world));
    // The promise, as a query: every record that the ledger counts is in the sum.
    let differing = "SELECT count(*) FROM (SELECT (SELECT sum(count) FROM sums) IS DISTINCT FROM
                     (SELECT sum(rows) FROM rowmill.ledger WHERE target = 'public.sums') AS differs) q WHERE differs";
    assert_eq!(world.count(differing), 0);
}

#[test]
fn every_mode_is_exact_through_kills_at_random() {
    let world = World::new("modes_kills");
    world.create_topic("in", 4);
    tables(&world);
    let config = models(&world);
    let load = world.load("in", 4, 4000);
    let mut seed = u64::from(std::process::id()) | 1;
    eprintln!("seed {seed}");
    let other = world.engine(&config, &[]);
    for _ in 0..10 {
        let engine = world.engine(&config, &[]);
        let before = world.count("SELECT coalesce(sum(next_offset), 0)::BIGINT FROM rowmill.ledger");
        wait_for("progress between two kills", 30, || {
            world.count("SELECT coalesce(sum(next_offset), 0)::BIGINT FROM rowmill.ledger") > before
        });
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((seed >> 33) % 1500));
        engine.kill();
    }
    other.kill();
    assert!(load.stop() > 10_000, "that is no load");
    let _last = world.engine(&config, &[]);
    world.wait_drained(&["in"], 120);
    check(&world);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
}

/// The process dies at each phase of a transaction, one after another.
#[test]
fn a_death_at_any_phase_adds_nothing_twice() {
    let world = World::new("modes_deaths");
    world.create_topic("in", 4);
    tables(&world);
    let config = models(&world);
    for point in ["before-copy", "mid-copy", "after-copy", "before-commit", "after-commit"] {
        let load = world.load("in", 4, 1000);
        let mut engine = world.engine(&config, &[("FAILPOINTS", &format!("{point}=20*off->return"))]);
        assert!(!engine.wait(60).success() && engine.log().contains(&format!("fault point {point}")));
        load.stop();
    }
    let _last = world.engine(&config, &[]);
    world.wait_drained(&["in"], 60);
    check(&world);
}

/// Replies and COMMITs are lost, and one arrives late: what is sent again is not added again.
#[test]
fn a_lost_reply_adds_nothing_twice() {
    let world = World::new("modes_replies");
    world.create_topic("in", 4);
    tables(&world);
    let (proxy, url) = world.proxy();
    let config = format!("[postgres]\nurl = {url:?}\nlock_timeout = \"1s\"\n{}", models(&world));
    let load = world.load("in", 4, 2000);
    let engine = world.engine(&config, &[]);
    wait_for("rows", 60, || world.count("SELECT count(*) FROM sums") > 0);
    let late = Weather::CommitLate(Duration::from_millis(500));
    for (round, weather) in
        [Weather::ReplyLost, Weather::CommitLost, late, Weather::ReplyLost, late].into_iter().enumerate()
    {
        let before = world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger");
        proxy.set(weather);
        wait_for("a COMMIT to be struck", 60, || proxy.strikes() == round as u64 + 1);
        wait_for("the engine to go on", 60, || {
            world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger") > before
        });
    }
    load.stop();
    world.wait_drained(&["in"], 60);
    check(&world);
    drop(engine);
}

/// Sessions are ended under way, so that whole transactions are tried again.
#[test]
fn what_is_tried_again_is_whole() {
    let world = World::new("modes_again");
    world.create_topic("in", 4);
    tables(&world);
    let _engine = world.engine(&format!("[postgres]\nlock_timeout = \"300ms\"\n{}", models(&world)), &[]);
    for round in 0..3 {
        // Nobody may write while it is held, so the transaction fails and is tried again.
        let mut holder = world.sql();
        holder.batch_execute("BEGIN; LOCK TABLE sums IN SHARE MODE").expect("a lock");
        let start = round * 1000;
        (0..4).for_each(|p| world.produce("in", p as i32, (0..250).map(|i| record(start + i * 4 + p))));
        std::thread::sleep(Duration::from_millis(1500));
        holder.batch_execute("COMMIT").expect("given back");
        world.wait_drained(&["in"], 60);
    }
    check(&world);
}

/// Our own writers take turns at a table with keys; whoever holds the turn holds up the others.
#[test]
fn writers_of_one_table_take_turns() {
    let world = World::new("modes_turns");
    world.create_topic("in", 4);
    tables(&world);
    let name = "\"public\".\"sums\"";
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    name.bytes().for_each(|byte| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let mut holder = world.sql();
    holder.batch_execute(&format!("SELECT pg_advisory_lock(1919907694, {})", hash as i32)).expect("a lock");
    world.produce("in", 0, (0..100).map(|i| record(i * 4)));
    let _engine = world.engine(&models(&world), &[]);
    wait_for("the other tables", 60, || world.count("SELECT count(*) FROM latest") > 0);
    wait_for("a writer that waits", 30, || {
        world.count("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = 1919907694 AND NOT granted") > 0
    });
    assert_eq!(world.count("SELECT count(*) FROM sums"), 0);
    drop(holder);
    world.wait_drained(&["in"], 60);
    check(&world);
}

/// One topic, one table, this model, these values; then the rows of this query as text.
#[track_caller]
fn rows_of(
    name: &str,
    table: &str,
    more: &str,
    batches: &[&[&str]],
    query: &str,
    expected: &[&str],
) -> (World, String) {
    let world = World::new(name);
    world.create_topic("in", 1);
    world.sql().batch_execute(table).expect("a table");
    let config = format!("[guard]\ndead_letter_share = 1\n{}", model(&world, "k", more));
    for batch in batches {
        world.produce("in", 0, batch.iter().map(|value| (*value).to_owned()));
        let engine = world.engine(&config, &[]);
        world.wait_drained(&["in"], 60);
        assert!(engine.stop().0.success());
    }
    assert_eq!(texts(&world, query), expected, "{more}");
    (world, config)
}

/// The first column of each row.
pub(crate) fn texts(world: &World, query: &str) -> Vec<String> {
    world.sql().query(query, &[]).expect(query).iter().map(|row| row.get(0)).collect()
}

pub(crate) const LETTERS: &str =
    "SELECT convert_from(value, 'UTF8') || ' ' || reason FROM rowmill.dead_letter ORDER BY id";

/// The record that tips a sum over is set aside alone; its fellows of the same key are added.
#[test]
fn a_record_that_tips_a_sum_over_is_set_aside_alone() {
    let values = [
        "{\"k\":\"b\",\"n\":1}",
        "{\"k\":\"a\",\"n\":2147483000}",
        "{\"k\":\"a\",\"n\":1000}",
        "{\"k\":\"a\",\"n\":5}",
        "{\"k\":\"b\",\"n\":2}",
    ];
    let (world, config) = rows_of(
        "modes_tip",
        "CREATE TABLE k (k TEXT PRIMARY KEY, n INTEGER NOT NULL, count BIGINT NOT NULL)",
        "mode = \"add\"\n[model.columns]\nn = { fold = \"sum\" }\ncount = { fold = \"count\" }",
        &[&values],
        "SELECT k || ' ' || n || ' ' || count FROM k ORDER BY k",
        &["a 2147483005 2", "b 3 2"],
    );
    assert_eq!(texts(&world, LETTERS), ["{\"k\":\"a\",\"n\":1000} sqlstate_22003"]);
    // What is in the table counts as well.
    world.produce("in", 0, ["{\"k\":\"a\",\"n\":2000}".to_owned(), "{\"k\":\"b\",\"n\":3}".to_owned()]);
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 60);
    assert!(engine.stop().0.success());
    let query = "SELECT k || ' ' || n || ' ' || count FROM k ORDER BY k";
    assert_eq!(texts(&world, query), ["a 2147483005 2", "b 6 3"]);
    // With room for it, the letters go the same way, once.
    world.sql().batch_execute("ALTER TABLE k ALTER COLUMN n TYPE BIGINT").expect("room");
    let path = world.file("modes.toml", &config);
    for stored in ["2 letters stored", "0 letters stored"] {
        let (text, fine) = rowmill(&world, &["dead-letters", "--config", &path, "retry", "--every"]);
        assert!(fine && text.contains(stored), "{text}");
    }
    assert_eq!(texts(&world, query), ["a 2147486005 4", "b 6 3"]);
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(fine && text.contains("\nPASS: "), "{text}");
}

/// A CHECK may hold for the sum and not for the part: only what the sum becomes counts.
#[test]
fn a_check_is_asked_of_the_sum() {
    let values = [
        "{\"k\":\"a\",\"n\":-5}",
        "{\"k\":\"a\",\"n\":8}",
        "{\"k\":\"b\",\"n\":-1}",
        "{\"k\":\"c\",\"n\":2}",
    ];
    let (world, _) = rows_of(
        "modes_check",
        "CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL CHECK (n >= 0))",
        "mode = \"add\"\n[model.columns]\nn = { fold = \"sum\" }",
        &[&["{\"k\":\"a\",\"n\":7}"], &values],
        "SELECT k || ' ' || n FROM k ORDER BY k",
        &["a 10", "c 2"],
    );
    assert_eq!(texts(&world, LETTERS), ["{\"k\":\"b\",\"n\":-1} sqlstate_23514"]);
}

/// A trigger that drops rows without a word is seen in every mode.
#[test]
fn a_trigger_that_drops_rows_with_keys_is_seen() {
    for (mode, columns) in [("add", "[model.columns]\nn = { fold = \"sum\" }"), ("upsert", ""), ("first", "")]
    {
        let (world, _) = rows_of(
            &format!("modes_swallow_{mode}"),
            "CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL);
             CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
                 'BEGIN IF NEW.k = ''b'' THEN RETURN NULL; END IF; RETURN NEW; END';
             CREATE TRIGGER swallow BEFORE INSERT ON k FOR EACH ROW EXECUTE FUNCTION swallow()",
            &format!("mode = {mode:?}\n{columns}"),
            &[&["{\"k\":\"a\",\"n\":1}", "{\"k\":\"b\",\"n\":2}", "{\"k\":\"c\",\"n\":3}"]],
            "SELECT k || ' ' || n FROM k ORDER BY k",
            &["a 1", "c 3"],
        );
        assert_eq!(texts(&world, LETTERS), ["{\"k\":\"b\",\"n\":2} not_stored"], "{mode}");
    }
}

/// Time decides, whatever comes last, and from whichever partition.
#[test]
fn the_newest_by_time_stays() {
    let at = |k: &str, n: i64, minute: i64| {
        format!("{{\"k\":{k:?},\"n\":{n},\"at\":\"2024-05-01T12:{minute:02}:00Z\"}}")
    };
    let (late, early) = (at("a", 1, 30), at("a", 2, 10));
    let batches: [&[&str]; 2] = [&[&late, &early], &[&early]];
    let table = "CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL, at TIMESTAMPTZ NOT NULL)";
    let query = "SELECT k || ' ' || n FROM k";
    rows_of("modes_newest", table, "mode = \"upsert\"\nnewest = \"at\"", &batches, query, &["a 1"]);
    rows_of("modes_oldest", table, "mode = \"first\"\noldest = \"at\"", &batches, query, &["a 2"]);
    let last = "mode = \"add\"\nnewest = \"at\"\n[model.columns]\nn = { fold = \"last\" }";
    rows_of("modes_last", table, last, &batches, query, &["a 1"]);
    let bucket = "CREATE TABLE k (at TIMESTAMPTZ PRIMARY KEY, n BIGINT NOT NULL)";
    let floor = "mode = \"add\"\n[model.columns]\nat = { floor = \"15m\" }\nn = { fold = \"sum\" }";
    let query = "SELECT to_char(at AT TIME ZONE 'UTC', 'HH24:MI') || ' ' || n FROM k ORDER BY at";
    rows_of("modes_bucket", bucket, floor, &batches, query, &["12:00 4", "12:30 1"]);
}

/// A deletion stands where it stands among the records of its key, with a bad record beside it as well.
#[test]
fn deletions_keep_their_place() {
    let table = "CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL CHECK (n < 100))";
    let more = "mode = \"upsert\"\ndelete_when = { op = \"d\" }";
    let put = |k: &str, n: i64| format!("{{\"k\":{k:?},\"n\":{n},\"op\":\"c\"}}");
    let del = |k: &str| format!("{{\"k\":{k:?},\"op\":\"d\"}}");
    let query = "SELECT k || ' ' || n FROM k ORDER BY k";
    let mixed = [put("a", 1), del("a"), put("a", 2), put("b", 1), del("b"), del("none"), put("c", 3)];
    let refused = [put("a", 1), del("a"), put("x", 500), put("a", 2), put("b", 1), put("y", 500), del("b")];
    for (number, values) in [mixed, refused].iter().enumerate() {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        let whole: Vec<&[&str]> = vec![&values];
        let single: Vec<&[&str]> = values.chunks(3).collect();
        for (way, batches) in [whole, single].iter().enumerate() {
            let expected: &[&str] = if number == 0 { &["a 2", "c 3"] } else { &["a 2"] };
            let name = format!("modes_delete_{number}_{way}");
            let (world, _) = rows_of(&name, table, more, batches, query, expected);
            assert_eq!(texts(&world, LETTERS).len(), number * 2);
        }
    }
}

/// A topic that compaction keeps short, keys and tombstones: a table that is its mirror.
#[test]
fn tombstones_delete() {
    let world = World::new("modes_tombstones");
    world.create_topic("in", 1);
    world.sql().batch_execute("CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL)").expect("a table");
    world.create_table("t", "");
    let columns = "[model.columns]\nk = { kafka = \"key\" }";
    let config = model(&world, "k", &format!("mode = \"upsert\"\ntombstones = \"delete\"\n{columns}"))
        + &world.model("in", "t", "tombstones = \"skip\"");
    let producer = world.producer("none");
    let topic = world.topic("in");
    let send = |key: &str, value: Option<String>| {
        let mut record: BaseRecord<'_, str, str> = BaseRecord::to(&topic).partition(0).key(key);
        record.payload = value.as_deref();
        producer.send(record).map_err(|(error, _)| error).expect("sent");
    };
    for n in 0..100 {
        send(&format!("k{}", n % 10), Some(record(n)));
        if n % 3 == 0 {
            send(&format!("k{}", n % 7), None);
        }
    }
    send("k3", Some(record(1000)));
    producer.flush(Duration::from_secs(60)).expect("Kafka takes all");
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 60);
    let mut expected = BTreeMap::new();
    for n in 0..100u64 {
        expected.insert(format!("k{}", n % 10), n);
        if n % 3 == 0 {
            expected.remove(&format!("k{}", n % 7));
        }
    }
    expected.insert("k3".to_owned(), 1000);
    let expected: Vec<String> = expected.into_iter().map(|(k, n)| format!("{k} {n}")).collect();
    assert_eq!(texts(&world, "SELECT k || ' ' || n FROM k ORDER BY k"), expected);
    // For the table of records they are skipped, and for the mirror they are outcomes like others.
    assert_eq!(world.count("SELECT sum(skipped)::BIGINT FROM rowmill.ledger WHERE target = 'public.t'"), 34);
    assert_eq!(world.count("SELECT sum(rows)::BIGINT FROM rowmill.ledger WHERE target = 'public.k'"), 135);
    assert!(engine.stop().0.success());
    let path = world.file("modes.toml", &config);
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(fine && text.contains("\nPASS: "), "{text}");
}

/// An absent field and null are the same, however the records come: all of a row is the last one's.
#[test]
fn a_row_is_replaced_whole() {
    let table =
        "CREATE TABLE k (k TEXT PRIMARY KEY, a BIGINT, b BIGINT DEFAULT 7, seen BIGINT NOT NULL DEFAULT 1)";
    let more = "mode = \"upsert\"\n[model.columns]\nseen = { default = true }";
    let values = ["{\"k\":\"x\",\"a\":5,\"b\":6}", "{\"k\":\"x\",\"b\":null}", "{\"k\":\"y\",\"a\":1}"];
    let whole: &[&[&str]] = &[&values];
    let parts: &[&[&str]] = &[&values[..1], &values[1..]];
    for (number, batches) in [whole, parts].into_iter().enumerate() {
        let query =
            "SELECT k || ' ' || coalesce(a::TEXT, '-') || coalesce(b::TEXT, '-') || seen FROM k ORDER BY k";
        rows_of(&format!("modes_whole_{number}"), table, more, batches, query, &["x --1", "y 1-1"]);
    }
}

/// Behind a pooler, where each transaction may run on another session, and leaves nothing on it.
#[test]
fn keys_work_behind_a_pooler() {
    let world = World::new("modes_pooler");
    world.create_topic("in", 4);
    tables(&world);
    let pooled = world.pooled_url();
    let config = models(&world) + "[lease]\nsession_lock = false\n";
    let engine = world.engine(&config, &[("DATABASE_URL", &pooled)]);
    for round in 0..5 {
        let start = round * 400;
        (0..4).for_each(|p| world.produce("in", p as i32, (0..100).map(|i| record(start + i * 4 + p))));
        world.wait_drained(&["in"], 60);
    }
    check(&world);
    assert!(engine.stop().0.success());
    assert_eq!(world.count("SELECT count(*) FROM pg_class WHERE relname LIKE 'rowmill%stage%'"), 0);
    let path = world.file("modes.toml", &config);
    let (text, fine) = rowmill_as(&world, &pooled, &["verify", "--config", &path]);
    assert!(fine && text.contains("\nPASS: "), "{text}");
}

/// What `check` says of a table whose keys SQL and we would tell apart in different ways, or that cannot take rows by key.
#[test]
fn each_trap_is_named_with_its_remedy() {
    let world = World::new("modes_traps");
    world.create_topic("in", 1);
    let says = |table: &str, more: &str, expected: &[&str], is_fine: bool| {
        world.sql().batch_execute(&format!("DROP TABLE IF EXISTS k CASCADE; {table}")).expect(table);
        let path = world.file("traps.toml", &model(&world, "k", more));
        let (text, fine) = rowmill(&world, &["check", "--config", &path]);
        for words in expected {
            assert!(text.contains(words), "{table}: expected {words:?} in\n{text}");
        }
        assert_eq!(fine, is_fine, "{table}\n{text}");
    };
    let refused = |table: &str, expected: &[&str]| says(table, "mode = \"upsert\"", expected, false);
    let key = "mode = \"upsert\"\nkey = [\"k\"]";
    refused("CREATE TABLE k (k TEXT, n INT)", &["needs a key", "no primary key"]);
    refused("CREATE TABLE k (k NUMERIC PRIMARY KEY, n INT)", &["1.0 and 1.00", "bigint or text"]);
    refused(
        "DROP DOMAIN IF EXISTS price; CREATE DOMAIN price AS NUMERIC; CREATE TABLE k (k price PRIMARY KEY, n INT)",
        &["1.0 and 1.00"],
    );
    refused("CREATE TABLE k (k FLOAT8 PRIMARY KEY, n INT)", &["0 and -0"]);
    refused("CREATE TABLE k (k INTERVAL PRIMARY KEY, n INT)", &["only columns of a single plain value"]);
    refused(
        "CREATE EXTENSION IF NOT EXISTS citext; CREATE TABLE k (k CITEXT PRIMARY KEY, n INT)",
        &["only columns of a single plain value"],
    );
    refused("CREATE TABLE k (k CHAR(4) PRIMARY KEY, n INT)", &["spaces at the end"]);
    refused("CREATE TABLE k (k TIMESTAMPTZ(0) PRIMARY KEY, n INT)", &["rounds its times", "floor = \"1s\""]);
    refused(
        "CREATE COLLATION IF NOT EXISTS blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE k (k TEXT COLLATE blind PRIMARY KEY, n INT)",
        &["has the collation \"blind\"", "COLLATE \"C\""],
    );
    refused(
        "CREATE TABLE k (k TEXT PRIMARY KEY DEFERRABLE, n INT)",
        &["k_pkey is deferrable", "no unique index"],
    );
    says("CREATE TABLE k (k TEXT UNIQUE, n INT)", key, &["may be NULL", "SET NOT NULL"], false);
    says(
        "CREATE TABLE k (k TEXT NOT NULL, n INT)",
        key,
        &["no unique index on exactly its key", "CREATE UNIQUE INDEX"],
        false,
    );
    says(
        "CREATE TABLE k (k TEXT NOT NULL, n INT); CREATE UNIQUE INDEX half ON k (k) WHERE n > 0",
        key,
        &["half is partial"],
        false,
    );
    refused(
        "CREATE TABLE k (k TEXT PRIMARY KEY, n INT UNIQUE)",
        &["k_n_key of table", "is unique on other columns than the key"],
    );
    refused(
        "CREATE TABLE k (k TEXT PRIMARY KEY, n INT); CREATE RULE r AS ON UPDATE TO k DO ALSO NOTHING",
        &["rule \"r\"", "ON CONFLICT"],
    );
    says(
        "CREATE TABLE k (k TEXT NOT NULL, n INT, at DATE) PARTITION BY RANGE (at)",
        key,
        &["no unique index", "the columns by which it is partitioned"],
        false,
    );
    says(
        "CREATE TABLE k (id SERIAL PRIMARY KEY, k TEXT NOT NULL UNIQUE, n INT);
         CREATE FUNCTION count_it() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER counts BEFORE INSERT ON k FOR EACH ROW EXECUTE FUNCTION count_it()",
        key,
        &["sequence public.k_id_seq", "ALTER SEQUENCE", "trigger \"counts\"", "AFTER INSERT OR UPDATE"],
        true,
    );
    says(
        "CREATE TABLE k (id SERIAL, k TEXT PRIMARY KEY, n INT); ALTER SEQUENCE k_id_seq AS BIGINT MAXVALUE 9223372036854775807",
        key,
        &["its 2147483647 are used up after 24 days"],
        true,
    );
    says(
        "CREATE TABLE k (k TEXT PRIMARY KEY, n FLOAT8)",
        "mode = \"add\"\n[model.columns]\nn = { fold = \"sum\" }",
        &["depends on the order in which they come"],
        false,
    );
    says(
        "CREATE TABLE k (k TEXT PRIMARY KEY, n INT NOT NULL)",
        "mode = \"add\"\n[model.columns]\nn = { fold = \"sum\" }",
        &[
            "mode add: of rows with the same (\"k\"), they are added up",
            "fillfactor = 70",
            "\"n\" integer: field \"n\"; must be there; added up",
        ],
        true,
    );
}

/// A writer needs no more than what its mode asks for, and `check` says what is missing.
#[test]
fn rights_are_asked_for_by_mode() {
    let world = World::new("modes_rights");
    world.create_topic("in", 1);
    let role = format!("modes_writer_{}", std::process::id());
    let mut admin = world.sql();
    admin
        .batch_execute(&format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'pw'; CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL);
             REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC;
             GRANT USAGE ON SCHEMA rowmill, public TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA rowmill TO {role};
             GRANT USAGE ON SEQUENCE rowmill.session TO {role}; GRANT INSERT ON k TO {role}",
            world.database_url.rsplit_once('/').expect("a database").1
        ))
        .expect("a role");
    let url = crate::roles::url_of(&world, &role);
    let config = model(&world, "k", "mode = \"upsert\"\ndelete_when = { op = \"d\" }");
    let path = world.file("rights.toml", &config);
    let (text, fine) = rowmill_as(&world, &url, &["check", "--config", &path]);
    for right in [
        "TEMPORARY ON DATABASE",
        "SELECT ON \"public\".\"k\"",
        "UPDATE ON \"public\".\"k\"",
        "DELETE ON \"public\".\"k\"",
    ] {
        assert!(!fine && text.contains(&format!("GRANT {right}")), "{right}: {text}");
    }
    let database = world.database_url.rsplit_once('/').expect("a database").1.to_owned();
    admin
        .batch_execute(&format!(
            "GRANT TEMPORARY ON DATABASE {database} TO {role}; GRANT SELECT, UPDATE, DELETE ON k TO {role}"
        ))
        .expect("granted");
    let (text, fine) = rowmill_as(&world, &url, &["check", "--config", &path]);
    assert!(fine, "{text}");
    world.produce(
        "in",
        0,
        ["{\"k\":\"a\",\"n\":1}", "{\"k\":\"b\",\"n\":1}", "{\"k\":\"a\",\"op\":\"d\"}"].map(str::to_owned),
    );
    let engine = world.engine(&config, &[("DATABASE_URL", &url)]);
    world.wait_drained(&["in"], 60);
    assert_eq!(texts(&world, "SELECT k FROM k"), ["b"]);
    assert!(engine.stop().0.success());
    admin.batch_execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).expect("gone");
}

/// Where the order of offsets decides, an old record does not come again after newer ones.
#[test]
fn what_comes_out_of_order_is_refused() {
    let (world, config) = rows_of(
        "modes_order",
        "CREATE TABLE k (k TEXT PRIMARY KEY, n BIGINT NOT NULL CHECK (n < 100))",
        "mode = \"upsert\"",
        &[&["{\"k\":\"a\",\"n\":500}"], &["{\"k\":\"a\",\"n\":1}"]],
        "SELECT k || ' ' || n FROM k",
        &["a 1"],
    );
    world.sql().batch_execute("ALTER TABLE k DROP CONSTRAINT k_n_check").expect("room");
    let path = world.file("order.toml", &config);
    let (text, fine) = rowmill(&world, &["dead-letters", "--config", &path, "retry", "--every"]);
    assert!(fine && text.contains("newer ones may be there by now"), "{text}");
    let (text, fine) = rowmill(&world, &["backfill", "--config", &path, "--table", "k"]);
    assert!(!fine && text.contains("a backfill comes with older records"), "{text}");
    assert_eq!(texts(&world, "SELECT k || ' ' || n FROM k"), ["a 1"]);
}

/// `verify` folds Kafka again, and finds each key that differs.
#[test]
fn verify_compares_key_by_key() {
    let world = World::new("modes_verify");
    world.create_topic("in", 4);
    tables(&world);
    let config = models(&world);
    (0..4).for_each(|p| world.produce("in", p as i32, (0..500).map(|i| record(i * 4 + p))));
    world.produce("in", 0, ["broken".to_owned()]);
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 60);
    assert!(engine.stop().0.success());
    let path = world.file("verify.toml", &config);
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(fine && text.contains("\nPASS: ") && text.contains("key by key"), "{text}");
    for (damage, expected) in [
        ("UPDATE sums SET total = total + 1 WHERE word = 'w3'", "table public.sums: 1 DIFFERENT"),
        ("DELETE FROM latest WHERE word IN ('w5', 'w6')", "table public.latest: 2 LOST"),
        ("INSERT INTO earliest VALUES ('strange', 1)", "table public.earliest: 1 PHANTOM"),
    ] {
        world.sql().batch_execute(damage).expect(damage);
        let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
        assert!(!fine && text.contains(expected) && text.contains("\nFAIL: "), "{damage}: {text}");
    }
}
