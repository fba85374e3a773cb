//! The process dies, at every phase and at any moment; what it left behind is finished by the next one.

use std::time::Duration;

use crate::world::{Class, World, all_rows, record, wait_for};

/// Good records, and one in a hundred that is none.
fn mixed(n: u64) -> String {
    if n % 100 == 7 { format!("broken {n}") } else { record(n) }
}

fn classify(value: Option<&[u8]>) -> Class {
    if value.is_some_and(|v| v.starts_with(b"broken")) { Class::Dead } else { Class::Row }
}

/// Dies at `point`, at the fourth passing, then finishes without fault points.
fn dies_at(point: &str) {
    let world = World::new(&format!("crash_{}", point.replace('-', "_")));
    world.create_topic("in", 2);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let mut engine = world.engine(&config, &[("FAILPOINTS", &format!("{point}=3*off->return"))]);
    for round in 0..40 {
        world.produce("in", (round % 2) as i32, (round * 100..(round + 1) * 100).map(mixed));
        std::thread::sleep(Duration::from_millis(10));
    }
    let status = engine.wait(30);
    assert!(!status.success() && engine.log().contains(&format!("fault point {point}")), "{}", engine.log());
    let _next = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], classify);
}

#[test]
fn after_poll() {
    dies_at("after-poll");
}

#[test]
fn before_copy() {
    dies_at("before-copy");
}

#[test]
fn mid_copy() {
    dies_at("mid-copy");
}

#[test]
fn after_copy() {
    dies_at("after-copy");
}

#[test]
fn dead_letter_copy() {
    dies_at("dead-letter-copy");
}

#[test]
fn before_commit() {
    dies_at("before-commit");
}

#[test]
fn after_commit() {
    dies_at("after-commit");
}

/// In a claim and in a release there is no fourth time.
#[test]
fn in_claim_and_in_release() {
    let world = World::new("crash_claim");
    world.create_topic("in", 2);
    world.create_table("t", "");
    world.produce("in", 0, (0..500).map(mixed));
    world.produce("in", 1, (0..500).map(mixed));
    let config = world.model("in", "t", "");
    let mut engine = world.engine(&config, &[("FAILPOINTS", "in-claim=1*off->return")]);
    assert!(!engine.wait(30).success());
    let mut engine = world.engine(&config, &[("FAILPOINTS", "in-release=return")]);
    world.wait_drained(&["in"], 30);
    engine.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(!engine.wait(30).success());
    world.produce("in", 0, (500..600).map(mixed));
    let _next = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], classify);
}

#[test]
fn twenty_kills_at_random_under_load() {
    let world = World::new("kills");
    world.create_topic("in", 4);
    world.create_topic("other", 2);
    world.create_table("t", "");
    world.create_table("u", "");
    let config = world.model("in", "t", "") + &world.model("other", "u", "");
    let (load, other) = (world.load("in", 4, 8000), world.load("other", 2, 2000));
    // A seed that is printed makes a failure repeatable as far as a real clock allows.
    let mut seed = std::process::id() as u64 | 1;
    eprintln!("seed {seed}");
    for _ in 0..20 {
        let engine = world.engine(&config, &[]);
        let before = world.count("SELECT coalesce(sum(next_offset), 0)::BIGINT FROM rowmill.ledger");
        wait_for("progress between two kills", 15, || {
            world.count("SELECT coalesce(sum(next_offset), 0)::BIGINT FROM rowmill.ledger") > before
        });
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((seed >> 33) % 600));
        engine.kill();
    }
    let produced = load.stop() + other.stop();
    assert!(produced > 50_000, "{produced} records are no load");
    let _last = world.engine(&config, &[]);
    world.wait_drained(&["in", "other"], 60);
    world.check("t", &["in"], all_rows);
    world.check("u", &["other"], all_rows);
}
