//! Stopping in good order, and starting where it stopped.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::world::{World, all_rows, wait_for};

#[test]
fn sigterm_under_load_ends_with_0_and_releases_everything() {
    let world = World::new("shutdown");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let load = world.load("in", 3, 10_000);
    for _ in 0..3 {
        let engine = world.engine(&config, &[]);
        wait_for("rows", 20, || {
            world.count("SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL") == 3
        });
        std::thread::sleep(Duration::from_millis(700));
        let (status, took) = engine.stop();
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!(world.count("SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL"), 0);
        assert_eq!(world.count("SELECT count(*) FROM rowmill.member"), 0);
    }
    load.stop();
    let _last = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
}

#[test]
fn sigterm_while_a_table_is_locked_ends_in_time() {
    let world = World::new("shutdown_locked");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let mut locker = world.sql();
    let mut transaction = locker.transaction().expect("begun");
    transaction.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE").expect("locked");
    world.produce("in", 0, (0..100).map(crate::world::record));
    let engine = world.engine(&config, &[]);
    wait_for("a claim", 20, || {
        world.count("SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL") == 1
    });
    std::thread::sleep(Duration::from_secs(1));
    let (status, took) = engine.stop();
    assert_eq!(status.code(), Some(0));
    assert!(took < Duration::from_secs(10), "{took:?}");
    transaction.rollback().expect("unlocked");
    let _next = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
}

#[test]
fn a_second_signal_ends_at_once_and_is_safe() {
    let world = World::new("shutdown_twice");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let load = world.load("in", 2, 10_000);
    let mut engine = world.engine(&config, &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    engine.signal(Signal::SIGTERM);
    engine.signal(Signal::SIGINT);
    engine.wait(5);
    load.stop();
    let _next = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
}

/// A disk that is full must cost the log, not the pipeline.
#[test]
fn a_full_log_stops_nothing() {
    let world = World::new("full_log");
    world.create_topic("in", 2);
    world.create_table("t", "");
    world.produce("in", 0, (0..500).map(crate::world::record));
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let config = world.model("in", "t", "");
    let engine = world.engine_logging_to(Some(full), &config, &[("RUST_LOG", "debug")]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], crate::world::all_rows);
    assert!(engine.stop().0.success());
}
