//! More than the door or its brokers can take.

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rowmill_faults::proxy::Weather;

use super::{ask, free_port, open, request, route};
use crate::http_client::Client;
use crate::world::{World, wait_for};

#[test]
fn too_much_is_refused_at_once_and_the_rest_goes_on() {
    let world = World::new("collect_overload");
    world.create_topic("in", 1);
    let (proxy, brokers) = world.kafka_proxy();
    let routes = route(&world, "/save", "in", "") + &format!("[kafka]\nbrokers = {brokers:?}\n");
    let door = open(
        &world,
        free_port(),
        "inflight_max = \"400kB\"\nbody_max = \"100kB\"\ndeliver_timeout = \"5s\"\nthreads = 1",
        &routes,
    );
    let body = format!("{{\"n\":1,\"word\":{:?}}}", "x".repeat(50_000));
    assert_eq!(ask(door.address, "/save", "", body.as_bytes()).0, 200);
    proxy.set(Weather::Silent);
    let mut waiting: Vec<Client> = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        let mut client = Client::new(door.address);
        client.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        client.send(request("/save", "", body.as_bytes()));
        let began = Instant::now();
        match client.reply() {
            None => waiting.push(client),
            Some(reply) => {
                assert_eq!(reply.status, 503, "{reply:?}");
                assert!(reply.head.contains("retry-after: "), "{}", reply.head);
                assert!(began.elapsed() < Duration::from_millis(300));
                refused += 1;
            }
        }
    }
    assert!((4..=8).contains(&waiting.len()) && refused >= 32, "{} wait, {refused} refused", waiting.len());
    // Those that wait hear the truth, and room is there again.
    proxy.set(Weather::Fair);
    for client in &mut waiting {
        client.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert!([200, 503, 504].contains(&client.reply().unwrap().status));
    }
    wait_for("room", 60, || ask(door.address, "/save", "", body.as_bytes()).0 == 200);
    door.engine.kill();
}

/// What clients saw that sent as much as they were let.
#[derive(Debug, Default)]
struct Seen {
    stored: u64,
    /// How long each refusal took.
    refused: Vec<Duration>,
    other: u64,
}

/// So many clients for so long, the first part of it not counted.
fn press(address: SocketAddr, clients: usize, warm_up: Duration, counted: Duration) -> Seen {
    let (over, counts) = (AtomicBool::new(false), AtomicBool::new(false));
    let seen = Mutex::new(Seen::default());
    let body = format!("{{\"n\":1,\"word\":{:?}}}", super::noise(20_000));
    std::thread::scope(|scope| {
        for _ in 0..clients {
            let worker = || {
                let mut client = None;
                while !over.load(SeqCst) {
                    let open = client.get_or_insert_with(|| Client::new(address));
                    open.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                    let began = Instant::now();
                    open.send(request("/save", "", body.as_bytes()));
                    let reply = open.reply();
                    let took = began.elapsed();
                    if reply.as_ref().is_none_or(|reply| reply.head.contains("connection: close")) {
                        client = None;
                    }
                    let status = reply.map_or(0, |reply| reply.status);
                    if counts.load(SeqCst) {
                        let mut seen = seen.lock().unwrap();
                        match status {
                            200 => seen.stored += 1,
                            503 => seen.refused.push(took),
                            _ => seen.other += 1,
                        }
                    }
                    if status != 200 {
                        std::thread::sleep(Duration::from_millis(300));
                    }
                }
            };
            std::thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, worker).unwrap();
        }
        std::thread::sleep(warm_up);
        counts.store(true, SeqCst);
        std::thread::sleep(counted);
        counts.store(false, SeqCst);
        over.store(true, SeqCst);
    });
    seen.into_inner().unwrap()
}

/// Bytes that reach the brokers in a second.
const NARROW: u64 = 2_000_000;

#[test]
fn three_times_what_the_brokers_take_costs_none_of_it() {
    let world = World::new("collect_overload");
    world.create_topic("in", 3);
    let (proxy, brokers) = world.kafka_proxy();
    // All bodies are alike, and would become nothing.
    let routes = route(&world, "/save", "in", "")
        + &format!(
            "[kafka]\nbrokers = {brokers:?}\n[collect.properties]\n\"compression.codec\" = \"none\"\n"
        );
    let door = open(&world, free_port(), "deliver_timeout = \"8s\"\nthreads = 1", &routes);
    proxy.set(Weather::Narrow(NARROW));
    let (warm_up, counted) = (Duration::from_secs(8), Duration::from_secs(10));
    // About as many as wait anyway: all that the brokers take.
    let most = press(door.address, 64, warm_up, counted);
    let before = door.engine.peak_memory();
    let mut pressed = press(door.address, 600, warm_up, counted);
    pressed.refused.sort();
    let offered = pressed.stored + pressed.refused.len() as u64 + pressed.other;
    let goodput = pressed.stored as f64 / most.stored as f64;
    let p99 = pressed.refused.get(pressed.refused.len() * 99 / 100).copied().unwrap_or_default();
    println!(
        "most {} in {counted:?}; offered {offered}, stored {}, goodput {goodput:.2}, {} refused, p99 of a refusal {p99:?}, {} other; \
         peak {} MiB, {} MiB before",
        most.stored,
        pressed.stored,
        pressed.refused.len(),
        pressed.other,
        door.engine.peak_memory() >> 20,
        before >> 20
    );
    assert!(offered > 3 * most.stored, "{offered} offered");
    assert!(goodput > 0.8, "{goodput}");
    // Nobody waits for a verdict that comes too late.
    assert_eq!(pressed.other, 0);
    assert!(p99 < Duration::from_millis(500), "{p99:?}");
    // Its budget is 64 MB.
    assert!(door.engine.peak_memory() < before + (96 << 20));
    door.engine.kill();
}
