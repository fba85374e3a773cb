//! The reply to a COMMIT is lost: the engine asks the ledger what became of it, and neither loses nor doubles a row. A
//! proxy between engine and PostgreSQL makes each case certain.

use std::time::Duration;

use nix::sys::signal::Signal;
use rowmill_faults::proxy::{Proxy, Weather};

use crate::world::{Engine, World, all_rows, wait_for};

/// A world under load whose engine reaches PostgreSQL only through the proxy.
fn behind_a_proxy(name: &str, settings: &str) -> (World, Proxy, Engine, crate::world::Load) {
    let world = World::new(name);
    world.create_topic("in", 3);
    world.create_table("t", "");
    let (proxy, url) = world.proxy();
    let load = world.load("in", 3, 3000);
    let config = format!(
        "[postgres]\nurl = {url:?}\nlock_timeout = \"1s\"\n{settings}\n{}",
        world.model("in", "t", "")
    );
    let engine = world.engine(&config, &[]);
    wait_for("rows", 20, || world.count("SELECT count(*) FROM t") > 0);
    (world, proxy, engine, load)
}

/// Strikes COMMITs one after another, each under load, and compares everything at the end.
fn strikes(name: &str, weather: Weather) {
    let (world, proxy, engine, load) = behind_a_proxy(name, "");
    for round in 1..=5 {
        let before = world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger");
        proxy.set(weather);
        wait_for("a COMMIT to be struck", 20, || proxy.strikes() == round);
        wait_for("the engine to go on", 20, || {
            world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger") > before
        });
    }
    load.stop();
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
    let log = engine.log();
    assert!(!log.contains("fenced"), "nobody else is there to fence it:\n{log}");
    assert!(engine.stop().0.success());
}

#[test]
fn committed_and_the_reply_is_lost() {
    strikes("reply_lost", Weather::ReplyLost);
}

#[test]
fn not_committed_because_the_commit_is_lost() {
    strikes("commit_lost", Weather::CommitLost);
}

/// The old COMMIT reaches the server when the engine has asked already and sent the same rows again.
#[test]
fn a_commit_that_arrives_late_is_fenced() {
    strikes("commit_late", Weather::CommitLate(Duration::from_millis(500)));
}

/// No library call can time this out: the watchdog ends the process, and the next one goes on.
#[test]
fn a_reply_that_never_comes_ends_the_process() {
    let (world, proxy, mut engine, load) = behind_a_proxy("reply_swallowed", "[threads]\nwatchdog = \"4s\"");
    proxy.set(Weather::ReplySwallowed);
    assert!(!engine.wait(20).success());
    assert!(engine.log().contains("longer than any legal wait"), "{}", engine.log());
    let _next = world.engine(&world.model("in", "t", ""), &[]);
    load.stop();
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
}

/// Frozen in the middle of a COPY for longer than its lease: it holds locks on the table, but none on the ledger.
#[test]
fn a_process_frozen_in_mid_copy_is_replaced_and_comes_back() {
    let world = World::new("frozen_mid_copy");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let load = world.load("in", 3, 3000);
    let frozen = world.engine(&config, &[("FAILPOINTS", "mid-copy=20*off->1*return(freeze)->off")]);
    wait_for("the freeze", 20, || frozen.log().contains("fault point mid-copy: freezing"));
    let other = world.engine(&config, &[]);
    let frozen_members = "SELECT count(*) FROM rowmill.ledger WHERE NOT rowmill.alive(pipeline, owner)";
    wait_for("the other to own all", 15, || world.count(frozen_members) == 0);
    std::thread::sleep(Duration::from_secs(1));
    frozen.signal(Signal::SIGCONT);
    wait_for("both to own some", 20, || world.count("SELECT count(DISTINCT owner) FROM rowmill.ledger") == 2);
    load.stop();
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
    assert!(frozen.stop().0.success());
    assert!(other.stop().0.success());
}
