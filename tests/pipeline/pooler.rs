//! Behind a pooler in transaction mode, where each transaction may run on another session of the server: every verb, several
//! times, and nothing left behind on those sessions.

use crate::world::{Class, World, all_rows, record, rowmill_as, wait_for};

/// More often than the pooler has sessions, so that each verb meets each of them.
const TIMES: usize = 6;

#[test]
fn every_verb_works_behind_a_pooler_that_gives_each_transaction_another_session() {
    let world = World::new("pooler");
    world.create_topic("in", 4);
    world.create_table("t", ", UNIQUE (n)");
    let pooled = world.pooled_url();
    let config = world.model("in", "t", "") + "[lease]\nsession_lock = false\n";
    let file = world.file("pooler.toml", &config);
    let each = |arguments: &[&str]| {
        for time in 0..TIMES {
            let (text, ok) = rowmill_as(&world, &pooled, arguments);
            assert!(ok, "{arguments:?}, time {time}: {text}");
        }
    };
    each(&["init"]);
    each(&["check", "--config", &file]);

    // Two members, and rows, letters of the decoder's and of the server's.
    let first = world.engine(&config, &[("DATABASE_URL", &pooled)]);
    let second = world.engine(&config, &[("DATABASE_URL", &pooled)]);
    for partition in 0..4 {
        let start = partition as u64 * 1000;
        world.produce(
            "in",
            partition,
            (start..start + 500).map(record).chain(["{".to_owned(), record(start)]),
        );
    }
    world.wait_drained(&["in"], 60);
    let letters = || world.count("SELECT count(*) FROM rowmill.dead_letter WHERE settled_at IS NULL");
    assert_eq!(letters(), 8, "{}{}", first.log(), second.log());
    each(&["status", "--config", &file]);
    each(&["verify", "--config", &file]);
    each(&["dead-letters", "--config", &file, "list"]);
    each(&["dead-letters", "--config", &file, "show", "1"]);
    each(&["dead-letters", "--config", &file, "retry", "--every", "--dry-run"]);

    // One ends without a word; the other takes over when the lease runs out, and goes on.
    first.kill();
    world.produce("in", 0, (500..600).map(record));
    world.produce("in", 3, (3500..3600).map(record));
    world.wait_drained(&["in"], 60);
    let refused = std::cell::RefCell::new(std::collections::BTreeSet::new());
    world.check("t", &["in"], |value| {
        let text = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        if text == "{" || !refused.borrow_mut().insert(text) { Class::Dead } else { Class::Row }
    });
    world.sql().batch_execute("ALTER TABLE t DROP CONSTRAINT t_n_key").expect("room");
    each(&["dead-letters", "--config", &file, "retry", "--every"]);
    assert_eq!(letters(), 4);
    each(&["dead-letters", "--config", &file, "discard", "--every"]);
    each(&["verify", "--config", &file]);
    let (status, _) = second.stop();
    assert!(status.success());
    each(&["check", "--config", &file]);
    nothing_is_left_behind(&pooled);
}

/// What the next client finds on each of the pooler's sessions.
fn nothing_is_left_behind(pooled: &str) {
    let mut client = postgres::Client::connect(pooled, postgres::NoTls).expect("the pooler answers");
    for _ in 0..TIMES {
        let sql = "SELECT current_setting('search_path') || (SELECT count(*) FROM pg_prepared_statements)
                          || current_setting('lock_timeout') || current_setting('statement_timeout')";
        let found = client.query_typed(sql, &[]).expect("an answer");
        assert_eq!(found[0].get::<_, String>(0), "\"$user\", public000");
    }
}

#[test]
fn a_change_of_the_table_is_met_behind_a_pooler() {
    let world = World::new("pooler_change");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "") + "[lease]\nsession_lock = false\n";
    let pooled = world.pooled_url();
    let engine = world.engine(&config, &[("DATABASE_URL", &pooled)]);
    world.produce("in", 0, (0..10).map(record));
    world.wait_drained(&["in"], 30);
    world.sql().batch_execute("ALTER TABLE t SET UNLOGGED").expect("altered");
    world.produce("in", 0, (10..20).map(record));
    wait_for("the change to be met", 20, || engine.log().contains("table public.t is UNLOGGED"));
    assert_eq!(world.count("SELECT count(*) FROM t"), 10);
    world.sql().batch_execute("ALTER TABLE t SET LOGGED").expect("altered");
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
}
