//! `rowmill dead-letters`: what was set aside is looked at, written once, or let be.

use crate::world::{World, record, rowmill};

/// Runs `rowmill dead-letters`; what it printed, and whether it went well.
fn letters(world: &World, config: &str, arguments: &[&str]) -> (String, bool) {
    rowmill(world, &[&["dead-letters", "--config", config], arguments].concat())
}

#[track_caller]
fn says(world: &World, config: &str, arguments: &[&str], expected: &str) {
    let (text, fine) = letters(world, config, arguments);
    assert!(fine && text.contains(expected), "{arguments:?}: expected {expected:?} in\n{text}");
}

#[test]
fn a_letter_that_fits_now_is_stored_once() {
    let world = World::new("letters_retry");
    world.create_topic("in", 1);
    world.create_table("t", ", CONSTRAINT small CHECK (n < 1000)");
    let long = format!("{{\"n\":6,\"word\":\"{}\"}}", "x".repeat(30));
    world.produce("in", 0, [record(1), long, record(5000), "broken\u{1}".to_owned(), record(2)]);
    let config = world.model("in", "t", "");
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    let path = world.file("letters.toml", &config);

    says(&world, &path, &["list", "--reason", "too_long"], "takes at most 20 characters, not 30");
    says(&world, &path, &["show", "1", "2", "3"], "value    broken\\u{1}");
    says(&world, &path, &["retry", "--every"], "0 letters stored, 3 still refused");
    let (text, fine) = letters(&world, &path, &["retry"]);
    assert!(!fine && text.contains("which letters?"), "{text}");

    world
        .sql()
        .batch_execute("ALTER TABLE t DROP CONSTRAINT small, ALTER COLUMN word TYPE VARCHAR(50)")
        .expect("a wider table");
    says(
        &world,
        &path,
        &["retry", "--every", "--dry-run"],
        "2 letters stored (and rolled back), 1 still refused",
    );
    assert_eq!(world.count("SELECT count(*) FROM t"), 2);
    says(&world, &path, &["retry", "--table", "t", "--since", "1h"], "2 letters stored, 1 still refused");
    says(&world, &path, &["retry", "--every"], "0 letters stored, 1 still refused");
    assert_eq!(world.count("SELECT count(*) FROM t"), 4);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE _offset IN (1, 2) AND n IN (6, 5000)"), 2);

    says(&world, &path, &["discard", "--reason", "invalid_json"], "1 letter discarded");
    says(&world, &path, &["list"], "no dead letters match");
    says(&world, &path, &["list", "--settled", "--json"], "\"settled_tables\":[\"public.t\"]");
    says(&world, &path, &["list", "--topic", "other", "--settled"], "no dead letters match");
    let (text, fine) = rowmill(&world, &["verify", "--config", &path]);
    assert!(fine && text.contains("\nPASS: "), "{text}");
}

/// Every command of docs/dead-letters.md as it stands there, with the ids of letters that are there.
#[test]
fn the_documented_commands_work() {
    let world = World::new("letters_documented");
    world.create_topic("in", 1);
    world.create_table("metric", "");
    world.produce("in", 0, ["{", "["].map(str::to_owned));
    let config = world.model("in", "metric", "");
    let engine = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    let path = world.file("letters.toml", &config);
    let document = include_str!("../../docs/dead-letters.md").replace("17 18", "1 2");
    let commands = document.lines().filter_map(|line| line.strip_prefix("rowmill dead-letters "));
    let mut count = 0;
    for command in commands {
        let words = command.split(" #").next().expect("a command").split_whitespace();
        says(&world, &path, &words.collect::<Vec<_>>(), "");
        count += 1;
    }
    assert_eq!(count, 6, "the document has six");
    let (_, sql) = document.split_once("```sql\n").expect("the document has a statement");
    let sql = sql.split("```").next().expect("its end");
    assert_eq!(world.sql().execute(sql, &[]).expect("deleted"), 0);
}

/// The user came after the record; the pipeline need not stop for it.
#[test]
fn a_token_that_is_known_now_is_stored_while_the_pipeline_runs() {
    let world = World::new("letters_token");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let columns = "word = { lookup = \"user\", field = \"token\" }\n";
    let config = format!("{}{columns}\n[lookup.user]\nkey = \"user:{{}}\"\n", world.model("in", "t", ""));
    // An empty Redis would be waited for.
    redis::cmd("SET").arg("user:early").arg("user-1").query::<()>(&mut world.redis()).expect("Redis answers");
    let _engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..3).map(|n| format!("{{\"n\":{n},\"token\":\"late\"}}")));
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'unknown_token'"), 3);
    let path = world.file("letters.toml", &config);
    says(&world, &path, &["retry", "--every"], "0 letters stored, 3 still refused");
    redis::cmd("SET").arg("user:late").arg("user-9").query::<()>(&mut world.redis()).expect("Redis answers");
    says(&world, &path, &["retry", "2"], "1 letter stored, 0 still refused");
    says(&world, &path, &["retry", "--every", "--json"], "\"outcome\":\"retried\"");
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word = 'user-9' AND _offset = n"), 3);
}

/// A record that no model took missed every table; one that a single table refused missed that one only.
#[test]
fn each_table_gets_what_it_missed() {
    let world = World::new("letters_tables");
    world.create_topic("in", 1);
    world.create_table("a", "");
    world.create_table("b", ", CHECK (n <> 2)");
    let config = |kinds: &str| {
        let model = |table, when| world.model("in", table, when);
        format!("{}{}", model("a", "when = { kind = \"x\" }"), model("b", kinds))
    };
    world.produce(
        "in",
        0,
        ["x", "y", "x"].iter().zip(1..).map(|(k, n)| format!("{{\"n\":{n},\"kind\":\"{k}\"}}")),
    );
    let engine = world.engine(&config("when = { kind = \"y\" }"), &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    world.produce("in", 0, ["{\"n\":4,\"kind\":\"z\"}".to_owned()]);
    let engine = world.engine(&config("when = { kind = \"y\" }"), &[]);
    world.wait_drained(&["in"], 30);
    assert!(engine.stop().0.success());
    assert_eq!(world.count("SELECT count(*) FROM a") + world.count("SELECT count(*) FROM b"), 2);

    world.sql().batch_execute("ALTER TABLE b DROP CONSTRAINT b_n_check").expect("a wider table");
    let path = world.file("letters.toml", &config(""));
    says(&world, &path, &["retry", "--every"], "2 letters stored, 0 still refused");
    assert_eq!(world.count("SELECT count(*) FROM a"), 2);
    assert_eq!(world.count("SELECT count(*) FROM b WHERE n IN (2, 4)"), 2);
    assert_eq!(world.count("SELECT count(*) FROM b"), 2);
}
