//! Several processes share the partitions; a dead one's are taken over.

use std::time::Duration;

use nix::sys::signal::Signal;

use crate::world::{World, all_rows, record, wait_for};

/// How many members own something, and how many partitions are owned in all.
fn owners(world: &World) -> (i64, i64) {
    (
        world.count("SELECT count(DISTINCT owner) FROM rowmill.ledger"),
        world.count("SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL"),
    )
}

#[test]
fn a_killed_process_is_replaced_by_its_neighbor() {
    let world = World::new("takeover");
    world.create_topic("in", 4);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let load = world.load("in", 4, 4000);
    let first = world.engine(&config, &[]);
    let second = world.engine(&config, &[]);
    wait_for("both to own two partitions", 20, || owners(&world) == (2, 4));
    let stuck = || {
        world.count(
            "SELECT count(*) FROM rowmill.ledger WHERE progress_at < clock_timestamp() - interval '1 s'",
        )
    };
    wait_for("all partitions to move", 10, || stuck() == 0);

    let mark = world.count("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT");
    first.kill();
    let moved = format!(
        "SELECT count(*) FROM rowmill.ledger WHERE extract(epoch FROM progress_at) * 1000 > {mark} + 200 AND owner IS NOT NULL"
    );
    let took = wait_for("the survivor to write all partitions", 7, || {
        owners(&world) == (1, 4) && world.count(&moved) == 4
    });
    eprintln!("taken over in {:.1} s", took.as_secs_f64());
    load.stop();
    world.wait_drained(&["in"], 30);
    assert!(second.stop().0.success());
    world.check("t", &["in"], all_rows);
}

#[test]
fn a_restarted_process_does_not_wait_for_its_own_lease() {
    let world = World::new("restart");
    world.create_topic("in", 4);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let load = world.load("in", 4, 4000);
    let engine = world.engine(&config, &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    std::thread::sleep(Duration::from_secs(1));
    engine.kill();
    let before = world.count("SELECT count(*) FROM t");
    let _next = world.engine(&config, &[]);
    let took = wait_for("new rows after the restart", 3, || world.count("SELECT count(*) FROM t") > before);
    eprintln!("writes again after {:.1} s", took.as_secs_f64());
    load.stop();
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
}

/// Longer than the lease, under load: whatever it was doing, somebody else goes on, and it comes back as one of many.
#[test]
fn a_frozen_process_is_fenced_and_comes_back() {
    let world = World::new("frozen");
    world.create_topic("in", 4);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let load = world.load("in", 4, 6000);
    let frozen = world.engine(&config, &[]);
    let other = world.engine(&config, &[]);
    wait_for("both to own two partitions", 20, || owners(&world) == (2, 4));
    std::thread::sleep(Duration::from_secs(1));
    frozen.signal(Signal::SIGSTOP);
    wait_for("the other to own all", 8, || owners(&world) == (1, 4));
    std::thread::sleep(Duration::from_secs(1));
    frozen.signal(Signal::SIGCONT);
    wait_for("both to own two again", 15, || owners(&world) == (2, 4));
    load.stop();
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
    assert!(frozen.stop().0.success());
    assert!(other.stop().0.success());
}

#[test]
fn a_second_pipeline_is_refused() {
    let world = World::new("refused");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let model = world.model("in", "t", "");
    let first = world.engine(&format!("pipeline = \"one\"\n{model}"), &[]);
    wait_for("the first to register", 20, || owners(&world) == (1, 1));
    let mut second = world.engine(&format!("pipeline = \"two\"\n{model}"), &[]);
    assert!(!second.wait(20).success());
    assert!(second.log().contains("\\\"one\\\""), "{}", second.log());
    assert!(first.stop().0.success());
}

/// What a lost reply or a failed release leaves behind: a row that names a living member which does not know of it.
#[test]
fn a_row_that_its_owner_does_not_read_is_given_up() {
    let world = World::new("forgotten");
    world.create_topic("in", 4);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let _first = world.engine(&config, &[]);
    let _second = world.engine(&config, &[]);
    wait_for("both to own two partitions", 20, || owners(&world) == (2, 4));
    world
        .sql()
        .batch_execute(
            "UPDATE rowmill.ledger SET epoch = epoch + 1, owner = (SELECT max(owner) FROM rowmill.ledger)
             WHERE partition = (SELECT min(partition) FROM rowmill.ledger
                                WHERE owner <> (SELECT max(owner) FROM rowmill.ledger))",
        )
        .expect("moved");
    for partition in 0..4 {
        world.produce("in", partition, (0..100).map(crate::world::record));
    }
    world.wait_drained(&["in"], 15);
    world.check("t", &["in"], all_rows);
}

/// With a statement for each of them, a process so far from its database would lose its own lease over it.
#[test]
fn many_partitions_change_hands_however_far_the_database_is() {
    const PARTITIONS: i64 = 500;
    let world = World::new("many_far");
    world.create_topic("in", PARTITIONS as i32);
    world.create_table("t", "");
    let (_proxy, url) = world.distant_postgres(Duration::from_millis(5));
    let config = world.model("in", "t", "");
    let first = world.engine(&config, &[("DATABASE_URL", &url)]);
    wait_for("the first to own all", 30, || owners(&world) == (1, PARTITIONS));
    let second = world.engine(&config, &[("DATABASE_URL", &url)]);
    let fair = format!(
        "SELECT count(*) FROM (SELECT FROM rowmill.ledger WHERE owner IS NOT NULL GROUP BY owner HAVING count(*) = {}) AS fair",
        PARTITIONS / 2
    );
    let took = wait_for("each to own half", 20, || world.count(&fair) == 2);
    eprintln!("{PARTITIONS} partitions shared out in {:.1} s", took.as_secs_f64());
    for engine in [&first, &second] {
        assert!(!engine.log().contains("was lost"), "{}", engine.log());
    }
    (0..10).for_each(|partition| world.produce("in", partition * 50, (0..100).map(record)));
    wait_for("all rows", 30, || world.count("SELECT count(*) FROM t") == 1000);
    assert!(first.stop().0.success() && second.stop().0.success());
    world.check("t", &["in"], all_rows);
}
