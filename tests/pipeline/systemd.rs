//! What systemd hears, on a real datagram socket.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::world::{World, record, wait_for};

struct Listener {
    socket: UnixDatagram,
    heard: String,
}

impl Listener {
    fn new(world: &World) -> (Listener, String) {
        let path = world.path("notify");
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        (Listener { socket, heard: String::new() }, path.to_str().expect("text").to_owned())
    }

    fn hear(&mut self, words: &str) -> bool {
        let mut buffer = [0; 4096];
        while let Ok(length) = self.socket.recv(&mut buffer) {
            self.heard.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        self.heard.contains(words)
    }
}

#[test]
fn systemd_hears_readiness_progress_and_the_end() {
    let world = World::new("systemd");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let (mut listener, path) = Listener::new(&world);
    let (base, _) = world.database_url.rsplit_once(':').expect("the URL has a port");
    let nowhere = format!("{base}:1/x");
    let config = world.model("in", "t", "");
    let waiting = world.engine(&config, &[("NOTIFY_SOCKET", &path), ("DATABASE_URL", &nowhere)]);
    wait_for("a status before the database", 10, || listener.hear("STATUS=waiting for PostgreSQL"));
    wait_for("three signs of life", 10, || {
        listener.hear("") && listener.heard.matches("WATCHDOG=1").count() >= 3
    });
    assert!(!listener.heard.contains("READY=1"), "it is not ready without a database");
    drop(waiting);

    listener.heard.clear();
    let engine = world.engine(&config, &[("NOTIFY_SOCKET", &path)]);
    wait_for("readiness", 10, || listener.hear("READY=1"));
    world.produce("in", 0, (0..100).map(record));
    wait_for("a status with rows", 20, || listener.hear("100 rows and 0 dead letters"));
    assert_eq!(listener.heard.matches("READY=1").count(), 1);
    engine.signal(Signal::SIGTERM);
    wait_for("the end", 5, || listener.hear("STOPPING=1"));
}

#[test]
fn a_writer_that_hangs_is_no_sign_of_life() {
    let world = World::new("systemd_hang");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let (mut listener, path) = Listener::new(&world);
    let config = world.model("in", "t", "")
        + "[postgres]\nlock_timeout = \"1s\"\n[threads]\nwatchdog = \"3s\"\n[metrics]\nlisten = \"off\"\n";
    // It hangs outside of any call to a server: only its queue tells.
    let mut engine =
        world.engine(&config, &[("NOTIFY_SOCKET", &path), ("FAILPOINTS", "before-copy=sleep(60000)")]);
    wait_for("readiness", 10, || listener.hear("READY=1"));
    let start = Instant::now();
    world.produce("in", 0, (0..100).map(record));
    let status = engine.wait(15);
    assert!(status.code().is_none(), "it is ended by a signal: {status:?}");
    assert!(start.elapsed() > Duration::from_secs(3));
    assert!(engine.log().contains("has had work and not moved for 3 s"), "{}", engine.log());
    // And the next process goes on.
    let _next = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    world.check("t", &["in"], crate::world::all_rows);
}
