//! The network between members and Kafka is cut, and PostgreSQL answers all the while: who does not reach Kafka says so, and
//! hands its partitions to those who do. Where nobody reaches it, nobody gives anything away.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rowmill_faults::proxy::Weather;

use crate::metrics::{free_port, get, scrape};
use crate::world::{Engine, World, all_rows, wait_for};

const PARTITIONS: i32 = 6;
const MEMBERS: usize = 3;

/// Records a second: enough for every partition to move all the time.
const RATE: u64 = 3000;

#[test]
fn a_member_whose_kafka_falls_silent_is_replaced_and_comes_back_slowly() {
    let world = prepared("cut_silent");
    let (proxy, brokers) = world.kafka_proxy();
    let load = world.load("in", PARTITIONS, RATE);
    let (mut cut, port) = member(&world, Some(&brokers));
    let others = [member(&world, None).0, member(&world, None).0];
    all_move(&world);

    proxy.set(Weather::Silent);
    watch_replacement(&world, &cut, port);
    std::thread::sleep(Duration::from_secs(seconds("CUT_SECONDS", 0)));
    proxy.set(Weather::Fair);

    wait_for("readiness after the return", 20, || is_ready(port));
    // A network that comes and goes must not take partitions along: for a minute, of which this sees a part.
    let returned = Instant::now();
    while returned.elapsed() < Duration::from_secs(seconds("BACK_SECONDS", 20)) {
        assert_eq!(owned(&world, &cut), 0, "{:?} after its return", returned.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
    assert!(cut.is_running(), "{}", cut.log());
    load.stop();
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
    for engine in others.into_iter().chain([cut]) {
        assert!(engine.stop().0.success());
    }
}

#[test]
fn a_member_that_kafka_refuses_is_replaced() {
    let world = prepared("cut_refused");
    let (proxy, brokers) = world.kafka_proxy();
    let load = world.load("in", PARTITIONS, RATE);
    let (cut, port) = member(&world, Some(&brokers));
    let _others = [member(&world, None).0, member(&world, None).0];
    all_move(&world);

    proxy.refuse();
    watch_replacement(&world, &cut, port);
    proxy.set(Weather::Fair);

    wait_for("readiness after the return", 20, || is_ready(port));
    load.stop();
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], all_rows);
}

/// The brokers are away and not the network of one: partitions that went from hand to hand would only be late.
#[test]
fn where_all_are_cut_nobody_gives_anything_away() {
    let world = prepared("cut_all");
    let (proxy, brokers) = world.kafka_proxy();
    let load = world.load("in", PARTITIONS, RATE);
    let members: Vec<(Engine, u16)> = (0..MEMBERS).map(|_| member(&world, Some(&brokers))).collect();
    all_move(&world);
    let before = owners(&world);

    proxy.set(Weather::Silent);
    let cut = Instant::now();
    let mut said = [false; MEMBERS];
    while cut.elapsed() < Duration::from_secs(15) {
        assert_eq!(owners(&world), before, "{:?} after the cut", cut.elapsed());
        for (said, (_, port)) in said.iter_mut().zip(&members) {
            *said |= names_kafka(*port);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(said, [true; MEMBERS], "each says that it does not reach Kafka");
    proxy.set(Weather::Fair);

    let mark = now_ms(&world);
    wait_for("all partitions to move again", 30, || moved_since(&world, mark) == i64::from(PARTITIONS));
    assert_eq!(owners(&world), before);
    load.stop();
    world.wait_drained(&["in"], 30);
    assert_eq!(owners(&world), before);
    world.check("t", &["in"], all_rows);
}

/// For longer looks than a test set has time for: CUT_SECONDS=60 BACK_SECONDS=55.
fn seconds(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn prepared(name: &str) -> World {
    let world = World::new(name);
    world.create_topic("in", PARTITIONS);
    world.create_table("t", "");
    world
}

/// A member and the port of its figures. `brokers`: another way to Kafka than the usual one.
fn member(world: &World, brokers: Option<&str>) -> (Engine, u16) {
    let port = free_port();
    let config = world.model("in", "t", "") + &format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    let environment: Vec<_> = brokers.map(|brokers| ("KAFKA_BROKERS", brokers)).into_iter().collect();
    (world.engine(&config, &environment), port)
}

/// Waits until each member has its share, for good, and each partition moves.
fn all_move(world: &World) {
    let (mut since, mut before) = (Instant::now(), BTreeMap::new());
    wait_for("each to own two partitions and keep them", 60, || {
        let now = owners(world);
        if now != before || !is_fair(&now) {
            (since, before) = (Instant::now(), now);
        }
        since.elapsed() > Duration::from_secs(3)
    });
    let mark = now_ms(world);
    wait_for("all partitions to move", 20, || moved_since(world, mark) == i64::from(PARTITIONS));
}

/// Watches what follows from a cut that was made just now: within 10 s the member is not ready and its lag is unknown, and
/// within 20 s others have written all of its partitions.
#[track_caller]
fn watch_replacement(world: &World, cut: &Engine, port: u16) {
    let (cut_at, mark) = (Instant::now(), now_ms(world));
    let its = owners(world).into_values().filter(|owner| is_of(owner, cut)).count();
    assert_eq!(its, PARTITIONS as usize / MEMBERS);
    // What it had read before the cut it may still write, but not for so long.
    let by_others = format!(
        "SELECT count(*) FROM rowmill.ledger WHERE owner NOT LIKE '%-{}-%'
         AND extract(epoch FROM progress_at) * 1000 > {mark} + 2000",
        cut.pid()
    );
    let (mut unready, mut taken_over) = (None, None);
    while unready.is_none() || taken_over.is_none() {
        let elapsed = cut_at.elapsed();
        assert!(elapsed < Duration::from_secs(20), "unready {unready:?}, taken over {taken_over:?}");
        if unready.is_some() {
            assert!(!shows_lag(port), "{elapsed:?} after the cut nobody knows how long the logs are");
        } else if names_kafka(port) {
            unready = Some(elapsed);
        }
        if taken_over.is_none() && world.count(&by_others) == i64::from(PARTITIONS) {
            taken_over = Some(elapsed);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    eprintln!("not ready after {unready:?}, taken over after {taken_over:?}");
    assert!(unready < Some(Duration::from_secs(10)), "not ready after {unready:?}");
}

fn is_ready(port: u16) -> bool {
    get(port, "/readyz", "*/*").is_some_and(|(status, _)| status == 200)
}

/// Not ready, and for this reason.
fn names_kafka(port: u16) -> bool {
    get(port, "/readyz", "*/*").is_some_and(|(status, text)| status == 503 && text.contains("Kafka"))
}

fn shows_lag(port: u16) -> bool {
    scrape(port).keys().any(|name| name.starts_with("rowmill_lag_records"))
}

/// The owner of each partition; "" for none.
fn owners(world: &World) -> BTreeMap<i32, String> {
    let rows = world.sql().query("SELECT partition, coalesce(owner, '') FROM rowmill.ledger", &[]);
    rows.expect("the ledger").iter().map(|row| (row.get(0), row.get(1))).collect()
}

fn is_fair(owners: &BTreeMap<i32, String>) -> bool {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    owners.values().for_each(|owner| *counts.entry(owner).or_default() += 1);
    counts.len() == MEMBERS && counts.values().all(|count| count * MEMBERS == owners.len())
}

fn owned(world: &World, engine: &Engine) -> usize {
    owners(world).values().filter(|owner| is_of(owner, engine)).count()
}

/// A member's name is host, PID and chance.
fn is_of(owner: &str, engine: &Engine) -> bool {
    owner.contains(&format!("-{}-", engine.pid()))
}

fn now_ms(world: &World) -> i64 {
    world.count("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::BIGINT")
}

/// How many partitions were written after that.
fn moved_since(world: &World, mark: i64) -> i64 {
    world.count(&format!(
        "SELECT count(*) FROM rowmill.ledger WHERE extract(epoch FROM progress_at) * 1000 > {mark}"
    ))
}
