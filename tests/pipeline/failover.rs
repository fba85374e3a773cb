//! An asynchronous failover: the standby that takes over lacks the last commits, so rows and positions go back together,
//! and what is missing is read again.

use std::time::Duration;

use crate::world::{World, all_rows, wait_for};

#[test]
fn a_standby_without_the_last_commits_takes_over() {
    let mut world = World::alone("failover");
    world.create_topic("in", 3);
    world.create_table("t", "");
    let primary_url = world.database_url.clone();
    let port = world.stack(&["standby", "start"]);
    let port = port.trim();
    let (proxy, url) = world.proxy();
    let load = world.load("in", 3, 3000);
    let config = format!("[postgres]\nurl = {url:?}\n{}", world.model("in", "t", ""));
    let first = world.engine(&config, &[]);
    let second = world.engine(&config, &[]);
    wait_for("both to own something", 20, || {
        world.count("SELECT count(DISTINCT owner) FROM rowmill.ledger") == 2
    });
    std::thread::sleep(Duration::from_secs(1));

    world.stack(&["standby", "detach"]);
    let reached = world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger");
    wait_for("commits that the standby will not have", 20, || {
        world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger") > reached + 3000
    });
    let lost_with_the_primary = world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger");
    proxy.lead_to(format!("127.0.0.1:{port}").parse().expect("an address"));
    proxy.cut();
    // For a moment the new server is still read-only.
    std::thread::sleep(Duration::from_secs(1));
    world.stack(&["standby", "promote"]);
    let (login, _) = primary_url.rsplit_once('@').expect("the URL has a login");
    let (_, database) = primary_url.rsplit_once('/').expect("the URL names a database");
    world.database_url = format!("{login}@127.0.0.1:{port}/{database}");
    assert!(
        world.count("SELECT sum(next_offset)::BIGINT FROM rowmill.ledger") < lost_with_the_primary,
        "the standby had everything: nothing was tested"
    );
    load.stop();
    world.wait_drained(&["in"], 40);
    world.check("t", &["in"], all_rows);
    assert!(first.stop().0.success());
    assert!(second.stop().0.success());
    world.database_url = primary_url;
    world.stack(&["standby", "stop"]);
}
