//! Too much at once: what the pipe holds is bounded, in batches and in bytes, and a table that is stuck holds up nobody else.

use std::time::{Duration, Instant};

use crate::metrics::{free_port, scrape};
use crate::world::{World, all_rows, record, wait_for};

fn listening_on(port: u16) -> String {
    format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n")
}

/// How many batches wait for this thread.
fn waiting_for(port: u16, thread: &str) -> Option<f64> {
    scrape(port).get(&format!("rowmill_queue_batches{{thread={thread:?},pipeline=\"rowmill\"}}")).copied()
}

#[test]
fn a_stuck_table_leaves_the_others_alone() {
    let world = World::new("stuck");
    for name in ["stuck", "free"] {
        world.create_topic(name, 2);
        world.create_table(name, "");
    }
    let port = free_port();
    let config = format!(
        "memory_max = \"8MB\"\nmessage_max = \"1MB\"\n{}{}{}",
        listening_on(port),
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
    wait_for("batches for the stuck table", 20, || waiting_for(port, "write-stuck-0") >= Some(1.0));
    world.produce("free", 1, (0..1000).map(record));
    let took = wait_for("the free table to go on", 10, || world.count("SELECT count(*) FROM free") == 1010);
    eprintln!("the free table waited {:.1} s", took.as_secs_f64());
    wait_for("the stuck topic to be set aside", 10, || {
        engine.log().contains("is stuck: its tables took too little")
    });
    world.produce("free", 1, (1000..2000).map(record));
    let took = wait_for("the free table to flow", 2, || world.count("SELECT count(*) FROM free") == 2010);
    eprintln!("and then {:.1} s", took.as_secs_f64());
    transaction.rollback().expect("unlocked");

    world.wait_drained(&["stuck", "free"], 60);
    assert!(engine.log().contains("flows again"), "{}", engine.log());
    world.check("stuck", &["stuck"], all_rows);
    world.check("free", &["free"], all_rows);
    assert!(engine.stop().0.success());
}

/// One locked table that two topics fill, and a free one: neither of the two may use up the room of the third.
#[test]
fn two_stuck_topics_leave_room_for_a_third() {
    let world = World::new("two_stuck");
    let mut config = "memory_max = \"8MB\"\nmessage_max = \"1MB\"\n".to_owned();
    for (topic, table) in [("p", "stuck"), ("q", "stuck"), ("z", "free")] {
        world.create_topic(topic, 1);
        config += &world.model(topic, table, "");
    }
    world.create_table("stuck", "");
    world.create_table("free", "");
    let mut locker = world.sql();
    let mut transaction = locker.transaction().expect("begun");
    transaction.batch_execute("LOCK TABLE stuck IN ACCESS EXCLUSIVE MODE").expect("locked");
    for topic in ["p", "q"] {
        world.produce(topic, 0, (0..150_000).map(record));
    }
    let engine = world.engine(&config, &[]);
    wait_for("both topics to be set aside", 20, || engine.log().matches("is stuck").count() == 2);
    world.produce("z", 0, (0..1000).map(record));
    wait_for("the free table to go on", 5, || world.count("SELECT count(*) FROM free") == 1000);
    transaction.rollback().expect("unlocked");
    world.wait_drained(&["p", "q", "z"], 60);
    world.check("stuck", &["p", "q"], all_rows);
    assert!(engine.stop().0.success());
}

/// The writer has in hand what it gathered, four batches wait for it, and what comes then makes one more larger, until the bytes
/// are used up. There are enough of them for that however the polls cut the records: gathering ends at 2 MB of rows.
#[test]
fn memory_is_bounded_while_nothing_can_be_written() {
    const TABLE_BATCHES: f64 = 4.0;
    const MEMORY_MAX: f64 = (48 << 20) as f64;
    /// The last poll takes what librdkafka holds, at most its queue of 8 MB, and charges twice its bytes for the rows to come.
    const LAST_POLL_MAX: f64 = (16 << 20) as f64;
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
    let port = free_port();
    let config = format!(
        "memory_max = \"48MB\"\n[threads]\nwriters = 1\n{}{}",
        listening_on(port),
        world.model("in", "t", "")
    );
    let engine = world.engine(&config, &[]);
    let held = || {
        let page = scrape(port);
        [
            "rowmill_queue_batches{thread=\"write-t-0\",pipeline=\"rowmill\"}",
            "rowmill_queue_batches{thread=\"decode-0\",pipeline=\"rowmill\"}",
            "rowmill_polled_records_total{thread=\"poll-0\",pipeline=\"rowmill\"}",
            "rowmill_memory_in_hand_bytes{pipeline=\"rowmill\"}",
        ]
        .map(|figure| page.get(figure).copied().unwrap_or_default())
    };
    let (mut last, mut since) = (held(), Instant::now());
    wait_for("two seconds in which nothing more is taken", 30, || {
        let now = held();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        last[2] > 0.0 && since.elapsed() > Duration::from_secs(2)
    });
    let [for_writer, for_decoder, _, bytes] = last;
    assert_eq!((for_writer, for_decoder), (TABLE_BATCHES, 0.0), "{last:?}");
    assert!((MEMORY_MAX..MEMORY_MAX + LAST_POLL_MAX).contains(&bytes), "{last:?}");
    let peak = engine.peak_memory();
    // 170 MB wait in Kafka; the engine holds its budget, librdkafka's queue of 8 MB, and itself.
    assert!(peak < 128 << 20, "{} MB", peak >> 20);
    eprintln!("peak {} MB", peak >> 20);
    transaction.rollback().expect("unlocked");
    world.wait_drained(&["in"], 60);
    world.check("t", &["in"], all_rows);
    assert!(engine.peak_memory() < 128 << 20, "{} MB", engine.peak_memory() >> 20);
}
