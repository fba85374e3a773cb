//! The rate that all instances of a door tell together.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{ask, free_port, open, route};
use crate::http_client::Client;
use crate::world::{World, wait_for};

/// The rate, and whether it is this instance's own.
fn rate(address: SocketAddr) -> (u64, bool) {
    let mut client = Client::new(address);
    client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    let reply = client.reply().unwrap();
    let body: Value = serde_json::from_slice(&reply.body).unwrap();
    assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
    (body["Rate"].as_u64().unwrap(), reply.head.contains("rowmill-rate: instance"))
}

#[test]
fn every_instance_tells_the_rate_of_all() {
    let world = World::alone("collect_rate");
    world.create_topic("in", 1);
    let config =
        route(&world, "/save", "in", "") + &format!("[collect.rate]\nname = {:?}\n", world.topic("rate"));
    let doors = [1, 2].map(|_| open(&world, free_port(), "threads = 1", &config));
    let post = |door: usize| assert_eq!(ask(doors[door].address, "/save", "", b"{}{}").0, 200);
    (0..2).for_each(post);
    wait_for("Redis to count", 9, || !rate(doors[0].address).1 && !rate(doors[1].address).1);
    // Two records every 10 ms at each door.
    let (began, mut seen) = (Instant::now(), [0, 0]);
    for number in 0..300 {
        (0..2).for_each(post);
        if number == 250 {
            seen = doors.each_ref().map(|door| rate(door.address).0);
        }
        let due = began + Duration::from_millis(10 * (number + 1));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let expected = 1200.0 / began.elapsed().as_secs_f64();
    for seen in seen {
        assert!((seen as f64 / expected - 1.0).abs() < 0.4, "{seen}, and it was about {expected:.0}");
    }
    wait_for("nobody to store any more", 9, || rate(doors[0].address).0 == 0);
    world.stack(&["kill", "redis"]);
    wait_for("the own rate", 9, || rate(doors[0].address).1);
    // Its seconds begin at another time than Redis' do, so its last full one may still be one with records.
    wait_for("seconds without records", 9, || doors.iter().all(|door| rate(door.address) == (0, true)));
    post(0);
    wait_for("the own records", 9, || rate(doors[0].address) == (2, true));
    assert_eq!(rate(doors[1].address), (0, true));
    world.stack(&["restart", "redis"]);
    wait_for("Redis to count again", 9, || !rate(doors[0].address).1);
    for door in doors {
        assert!(door.engine.stop().0.success());
    }
}
