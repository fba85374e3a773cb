//! Too much at once: memory stays bounded, and a table that is stuck holds up nobody else.

use std::time::Duration;

use crate::world::{World, all_rows, record, wait_for};

#[test]
fn a_stuck_table_leaves_the_others_alone() {
    let world = World::new("stuck");
    for name in ["stuck", "free"] {
        world.create_topic(name, 2);
        world.create_table(name, "");
    }
    let config = format!(
        "memory_max = \"8MB\"\nmessage_max = \"1MB\"\n{}{}",
        world.model("stuck", "stuck", ""),
        world.model("free", "free", "")
    );
    let engine = world.engine(&config, &[]);
    world.produce("free", 0, (0..10).map(record));
    wait_for("rows", 20, || world.count("SELECT count(*) FROM free") == 10);

    let mut locker = world.sql();
    let mut transaction = locker.transaction().expect("begun");
    transaction.batch_execute("LOCK TABLE stuck IN ACCESS EXCLUSIVE MODE").expect("locked");
    // Several times the budget for the stuck one, then a little for the free one.
    for partition in 0..2 {
        world.produce("stuck", partition, (0..100_000).map(record));
    }
    std::thread::sleep(Duration::from_secs(1));
    world.produce("free", 1, (0..1000).map(record));
    let took = wait_for("the free table to go on", 10, || world.count("SELECT count(*) FROM free") == 1010);
    eprintln!("the free table waited {:.1} s", took.as_secs_f64());
    world.produce("free", 1, (1000..2000).map(record));
    let took = wait_for("the free table to flow", 2, || world.count("SELECT count(*) FROM free") == 2010);
    eprintln!("and then {:.1} s", took.as_secs_f64());
    transaction.rollback().expect("unlocked");

    world.wait_drained(&["stuck", "free"], 60);
    world.check("stuck", &["stuck"], all_rows);
    world.check("free", &["free"], all_rows);
    assert!(engine.stop().0.success());
}

#[test]
fn memory_is_bounded_while_nothing_can_be_written() {
    let world = World::new("memory");
    world.create_topic("in", 4);
    world.create_table("t", "");
    let word = "x".repeat(400);
    // 400 bytes that no column takes: raw bytes weigh, rows do not.
    for partition in 0..4 {
        world.produce("in", partition, (0..100_000u64).map(|n| format!("{{\"n\":{n},\"pad\":\"{word}\"}}")));
    }
    let mut locker = world.sql();
    let mut transaction = locker.transaction().expect("begun");
    transaction.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE").expect("locked");
    let engine = world.engine(&format!("memory_max = \"24MB\"\n{}", world.model("in", "t", "")), &[]);
    std::thread::sleep(Duration::from_secs(6));
    let peak = engine.peak_memory();
    // 170 MB wait in Kafka; the engine holds its budget, librdkafka's queue of 8 MB, and itself.
    assert!(peak < 128 << 20, "{} MB", peak >> 20);
    eprintln!("peak {} MB", peak >> 20);
    transaction.rollback().expect("unlocked");
    world.wait_drained(&["in"], 60);
    world.check("t", &["in"], all_rows);
    assert!(engine.peak_memory() < 128 << 20, "{} MB", engine.peak_memory() >> 20);
}
