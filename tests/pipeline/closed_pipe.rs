//! Every verb whose reader has seen enough: it ends quietly, and what it was asked to do is done.

use crate::world::{World, record, wait_for};

/// Runs a verb into `head`; how it ended, and what it said on standard error.
fn into_head(world: &World, arguments: &str) -> (bool, String) {
    let rowmill = env!("CARGO_BIN_EXE_rowmill");
    let output = world
        .command("bash")
        // A pipe takes 64 kB before anybody reads: this reader is gone before the first line comes.
        .args(["-c", &format!("set -o pipefail; {rowmill} {arguments} | head -c 0")])
        .env("DATABASE_URL", &world.database_url)
        .env("REDIS_URL", &world.redis_url)
        .output()
        .expect("bash starts");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn every_verb_ends_quietly_and_has_done_its_work_when_nobody_reads() {
    const LETTERS: i64 = 3000;
    let world = World::new("closed_pipe");
    world.create_topic("in", 1);
    world.create_table("t", ", CHECK (n >= 0)");
    let config = world.model("in", "t", "") + "[guard]\ndead_letter_share = 1.0\n";
    let file = world.file("pipe.toml", &config);
    let engine = world.engine(&config, &[]);
    // One in two is a row, so that the table is not taken for the one at fault.
    let values = (0..LETTERS as u64).flat_map(|n| [record(n), format!("{{\"n\":-{}}}", n + 1)]);
    world.produce("in", 0, values);
    world.wait_drained(&["in"], 60);
    let letters = "SELECT count(*) FROM rowmill.dead_letter WHERE settled_at IS NULL";
    assert_eq!(world.count(letters), LETTERS);
    assert!(engine.stop().0.success());
    world.sql().batch_execute("ALTER TABLE t DROP CONSTRAINT t_n_check").expect("room");

    let quiet = |arguments: &str| {
        let (ok, told) = into_head(&world, &arguments.replace("FILE", &file));
        assert!(ok && !told.contains("panicked") && !told.contains("Broken pipe"), "{arguments}: {told}");
    };
    quiet("status --config FILE");
    quiet("check --config FILE");
    quiet("verify --config FILE");
    quiet("init --config FILE");
    quiet(&format!("propose --config FILE --topic {}", world.topic("in")));
    quiet("dead-letters --config FILE list --limit 3000");
    quiet("dead-letters --config FILE show 1 2 3");
    quiet("dead-letters --config FILE retry --every");
    wait_for("all letters to be stored", 1, || world.count(letters) == 0);
    quiet("dead-letters --config FILE discard --every");
}

#[test]
fn a_full_disk_is_no_reader_who_left() {
    let world = World::new("full_output");
    let file = world.file("full.toml", &world.model("in", "t", ""));
    let rowmill = env!("CARGO_BIN_EXE_rowmill");
    let output = world
        .command("bash")
        .args(["-c", &format!("{rowmill} status --config {file} > /dev/full")])
        .env("DATABASE_URL", &world.database_url)
        .output()
        .expect("bash starts");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("cannot write to standard output"), "{told}");
}
