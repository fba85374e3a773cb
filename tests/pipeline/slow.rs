//! A server for which rows are dear, or which has few sessions: everything goes on, in its turn, and nothing is left behind.

use std::time::{Duration, Instant};

use crate::world::{World, all_rows, record, wait_for};

/// Makes each row of a table take so long.
fn make_dear(world: &World, table: &str, seconds: f64) {
    world
        .sql()
        .batch_execute(&format!(
            "CREATE OR REPLACE FUNCTION dear() RETURNS TRIGGER LANGUAGE plpgsql AS
                 $$ BEGIN PERFORM pg_catalog.pg_sleep({seconds}); RETURN NEW; END $$;
             CREATE TRIGGER dear BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION dear()"
        ))
        .expect("a trigger");
}

fn make_cheap(world: &World, table: &str) {
    world.sql().batch_execute(&format!("DROP TRIGGER dear ON {table}")).expect("no trigger");
}

/// Statements of engines that the server still works at.
fn left_at_work(world: &World) -> i64 {
    world.count(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND application_name LIKE 'rowmill %' AND state <> 'idle'",
    )
}

#[test]
fn a_table_with_dear_rows_goes_on_and_ends_in_time() {
    let world = World::new("dear");
    world.create_topic("in", 2);
    world.create_table("t", "");
    make_dear(&world, "t", 0.1);
    for partition in 0..2 {
        world.produce("in", partition, (0..50_000).map(record));
    }
    let config = world.model("in", "t", "");
    let engine = world.engine(&config, &[]);
    wait_for("the first row", 20, || world.count("SELECT count(*) FROM t") > 0);
    let (mut rows, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(12) {
        let now = world.count("SELECT count(*) FROM t");
        if now > rows {
            (longest, rows, since) = (longest.max(since.elapsed()), now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    longest = longest.max(since.elapsed());
    eprintln!("{rows} rows, at most {:.1} s between two transactions", longest.as_secs_f64());
    // It aims at one second; a busy machine may take another.
    assert!(longest < Duration::from_secs(3), "{longest:?}: {}", engine.log());
    let (status, took) = engine.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    wait_for("the server to have nothing left to do", 5, || left_at_work(&world) == 0);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL"), 0);
    make_cheap(&world, "t");
    let _next = world.engine(&config, &[]);
    world.wait_drained(&["in"], 60);
    world.check("t", &["in"], all_rows);
}

/// With large transactions under way, which would take minutes now.
#[test]
fn rows_that_become_dear_are_cut_off_and_sent_fewer_at_once() {
    let world = World::new("became_dear");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "") + "[postgres]\nlock_timeout = \"1s\"\n";
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..200_000).map(record));
    wait_for("rows", 30, || world.count("SELECT count(*) FROM t") > 50_000);
    world.wait_drained(&["in"], 60);
    make_dear(&world, "t", 0.05);
    world.produce("in", 0, (0..50_000).map(record));
    wait_for("a transaction to be cut off", 30, || engine.log().contains("rows within 6 s; sending"));
    let before = world.count("SELECT count(*) FROM t");
    wait_for("rows again", 8, || world.count("SELECT count(*) FROM t") > before);
    assert!(left_at_work(&world) <= 2, "the server goes on with nothing that nobody waits for");
    make_cheap(&world, "t");
    world.wait_drained(&["in"], 60);
    world.check("t", &["in"], all_rows);
    assert!(engine.stop().0.success());
}

#[test]
fn tables_take_turns_where_there_are_fewer_sessions() {
    let world = World::new("turns");
    let tables = ["a", "b", "c", "d", "e", "f"];
    let mut config = "[postgres]\nsessions = 2\n".to_owned();
    for table in tables {
        world.create_topic(table, 2);
        world.create_table(table, "");
        config += &world.model(table, table, "");
        (0..2).for_each(|partition| world.produce(table, partition, (0..20_000).map(record)));
    }
    let engine = world.engine(&config, &[]);
    // The lease has one of its own.
    let sessions = || {
        world.count("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'rowmill %-%'")
    };
    let mut most = 0;
    wait_for("all rows", 60, || {
        most = most.max(sessions());
        tables.iter().all(|table| world.count(&format!("SELECT count(*) FROM {table}")) == 40_000)
    });
    assert!(most <= 3, "{most} sessions");
    tables.iter().for_each(|table| world.check(table, &[table], all_rows));
    assert!(engine.stop().0.success());
}

#[test]
fn a_table_that_gets_no_session_is_told_of() {
    let world = World::new("starved");
    let mut config = "[postgres]\nsessions = 1\nlock_timeout = \"20s\"\n".to_owned();
    for table in ["stuck", "starved"] {
        world.create_topic(table, 1);
        world.create_table(table, "");
        config += &world.model(table, table, "");
    }
    let mut locker = world.sql();
    let mut transaction = locker.transaction().expect("begun");
    transaction.batch_execute("LOCK TABLE stuck IN ACCESS EXCLUSIVE MODE").expect("locked");
    world.produce("stuck", 0, (0..100).map(record));
    let engine = world.engine(&config, &[]);
    wait_for("the stuck table to have the session", 20, || {
        world.count("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0
    });
    world.produce("starved", 0, (0..100).map(record));
    let told = "SELECT count(*) FROM rowmill.ledger WHERE target = 'public.starved' AND stopped LIKE '%sessions were busy%'";
    wait_for("the ledger to say so", 15, || world.count(told) == 1);
    transaction.rollback().expect("unlocked");
    world.wait_drained(&["stuck", "starved"], 30);
    wait_for("the ledger to say no more of it", 5, || world.count(told) == 0);
    world.check("starved", &["starved"], all_rows);
    assert!(engine.stop().0.success());
}
