//! From a client that tries again until it knows, to the table: each record once, whatever is killed on the way.

use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::crowd::number;
use super::{free_port, open, read, request, route};
use crate::http_client::Client;
use crate::world::{World, wait_for};

/// Sends one record again and again until it is acknowledged; how often it was sent.
fn until_stored(address: SocketAddr, kept: &mut Option<Client>, number: u64) -> u64 {
    let body = format!("{{\"n\":{number},\"word\":\"w\"}}");
    for sent in 1.. {
        let mut client = match kept.take() {
            Some(client) => client,
            None => match TcpStream::connect(address) {
                Ok(socket) => {
                    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                    Client::on(socket)
                }
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(20));
                    continue;
                }
            },
        };
        client.send(request("/save", "", body.as_bytes()));
        // No answer: the connection broke, and nobody knows. It is sent again all the same.
        let Some(reply) = client.reply() else { continue };
        if !reply.head.contains("connection: close") {
            *kept = Some(client);
        }
        if reply.status == 200 {
            return sent;
        }
        assert!([503, 504].contains(&reply.status), "{reply:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    unreachable!("it is sent for ever")
}

#[test]
fn with_ids_and_retries_each_record_is_one_row_through_kills_of_everything() {
    let world = World::alone("collect_retries");
    world.create_topic("in", 3);
    world.create_table("t", ", PRIMARY KEY (n)");
    let config =
        route(&world, "/save", "in", "key = \"n\"\nid = \"n\"") + &world.model("in", "t", "mode = \"first\"");
    let port = free_port();
    let more = "threads = 1\ndeliver_timeout = \"2s\"";
    let mut door = Some(open(&world, port, more, &config));
    let mut engine = Some(world.engine(&config, &[]));
    let (stop, next, acknowledged, sent) =
        (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let client = || {
        let mut kept = None;
        while !stop.load(SeqCst) {
            let times = until_stored(address, &mut kept, next.fetch_add(1, SeqCst));
            sent.fetch_add(times, SeqCst);
            acknowledged.fetch_add(1, SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(client);
        }
        for strike in 0..number("RETRY_KILLS", 8) {
            let before = acknowledged.load(SeqCst);
            wait_for("some to be stored", 300, || acknowledged.load(SeqCst) > before + 200);
            match strike % 4 {
                0 | 2 => {
                    door.take().unwrap().engine.kill();
                    door = Some(open(&world, port, more, &config));
                }
                1 => {
                    engine.take().unwrap().kill();
                    engine = Some(world.engine(&config, &[]));
                }
                _ => {
                    let server = if strike % 8 == 3 { "kafka" } else { "postgres" };
                    world.stack(&["kill", server]);
                    world.stack(&["restart", server]);
                }
            }
        }
        stop.store(true, SeqCst);
    });
    world.wait_drained(&["in"], 120);
    let (acknowledged, sent) = (acknowledged.into_inner(), sent.into_inner());
    let in_kafka = read(&world, "in").len() as u64;
    println!("{acknowledged} records, sent {sent} times, {in_kafka} times in Kafka");
    let began = Instant::now();
    let rows = world.count("SELECT count(*) FROM t") as u64;
    assert_eq!(rows, acknowledged, "rows, counted in {:?}", began.elapsed());
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    assert_eq!(world.count("SELECT max(n) + 1 FROM t") as u64, acknowledged);
    assert!(in_kafka >= acknowledged);
    assert!(engine.unwrap().stop().0.success());
    door.unwrap().engine.kill();
}
