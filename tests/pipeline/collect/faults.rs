//! What the door answers while it and its brokers are struck: true, each time.

use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rowmill_faults::proxy::Weather;

use super::crowd::{Crowd, judge, number};
use super::{Door, ask, configure, free_port, kafka, open, route};
use crate::http_client::Client;
use crate::world::{World, wait_for};

/// Requests under one fault.
const MANY: u64 = 1000;

#[test]
fn nothing_acknowledged_is_lost_when_the_door_is_killed() {
    let world = World::new("collect_kill");
    world.create_topic("in", 3);
    let port = free_port();
    let routes = route(&world, "/save", "in", "key = \"n\"");
    let mut door = open(&world, port, "", &routes);
    let crowd = Crowd::start(door.address, 16, Duration::ZERO);
    for _ in 0..number("COLLECT_KILLS", 10) {
        crowd.wait_stored(50);
        door.engine.kill();
        door = open(&world, port, "", &routes);
    }
    let told = crowd.stop();
    assert!(told.stored.len() > 500 && told.lost_connections > 0, "{told:?}");
    judge(&world, "in", &told);
    door.engine.kill();
}

#[test]
fn nothing_acknowledged_is_lost_when_leaders_are_killed() {
    let world = World::replicated("collect_leaders");
    world.create_topic("in", 6);
    let door = open(&world, free_port(), "threads = 1", &route(&world, "/save", "in", "key = \"n\""));
    let crowd = Crowd::start(door.address, 16, Duration::ZERO);
    for kill in 0..number("LEADER_KILLS", 1) {
        crowd.wait_stored(500);
        let leader = world.leader("in", kill as usize % 6);
        world.stack(&["kill", &leader]);
        let struck = Instant::now();
        crowd.wait_stored(100);
        let pause = struck.elapsed();
        println!("kill {}: {leader}, records are stored again after {pause:.1?}", kill + 1);
        world.stack(&["restart", &leader]);
    }
    let told = crowd.stop();
    println!("{} stored, {} unknown, {:?}", told.stored.len(), told.unknown.len(), told.statuses);
    judge(&world, "in", &told);
    door.engine.kill();
}

#[test]
fn an_outage_of_kafka_is_answered_truly() {
    let world = World::alone("collect_outage");
    world.create_topic("in", 3);
    let (proxy, brokers) = world.kafka_proxy();
    let routes = route(&world, "/save", "in", "key = \"n\"") + &format!("[kafka]\nbrokers = {brokers:?}\n");
    let door = open(&world, free_port(), "deliver_timeout = \"2s\"\nthreads = 1", &routes);
    let crowd = Crowd::start(door.address, 16, Duration::from_millis(2));
    let ready = || {
        let mut client = Client::new(door.address);
        client.send("GET /readyz HTTP/1.1\r\nHost: a\r\n\r\n");
        client.reply().map(|reply| (reply.status, String::from_utf8(reply.body).unwrap()))
    };
    for strike in ["silent", "refused", "killed"] {
        crowd.wait_stored(200);
        match strike {
            "silent" => proxy.set(Weather::Silent),
            "refused" => drop(proxy.refuse()),
            _ => drop(world.stack(&["kill", "kafka"])),
        }
        wait_for("it to be not ready", 60, || {
            ready().is_some_and(|(status, why)| status == 503 && why.contains("Kafka has taken no record"))
        });
        match strike {
            "killed" => drop(world.stack(&["restart", "kafka"])),
            _ => proxy.set(Weather::Fair),
        }
        wait_for("it to be ready again", 120, || ready().is_some_and(|(status, _)| status == 200));
    }
    let told = crowd.stop();
    let refused = told.statuses.get(&503).unwrap_or(&0) + told.statuses.get(&504).unwrap_or(&0);
    assert!(refused > 50 && told.stored.len() > 600, "{:?}", told.statuses);
    judge(&world, "in", &told);
    // Where nobody sends any more, because it is not ready, it becomes ready again all the same.
    proxy.set(Weather::Silent);
    wait_for("it to be not ready", 60, || {
        ask(door.address, "/save", "", b"{\"n\":0}");
        ready().is_some_and(|(status, _)| status == 503)
    });
    proxy.set(Weather::Fair);
    wait_for("it to be ready again", 120, || ready().is_some_and(|(status, _)| status == 200));
    door.engine.kill();
}

#[test]
fn a_restart_by_socket_activation_refuses_nobody() {
    let world = World::new("collect_activated");
    world.create_topic("in", 3);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let fd = listener.as_raw_fd();
    nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let config = world.file(
        "door.toml",
        &format!(
            "[metrics]\nlisten = \"off\"\n[collect]\nlisten = \"systemd\"\n{}",
            route(&world, "/save", "in", "key = \"n\"")
        ),
    );
    let start = || {
        let mut command: Command = world.command("bash");
        let script = format!(
            "LISTEN_PID=$$ LISTEN_FDS=1 exec {:?} collect --config {config:?} 3<&{fd}",
            env!("CARGO_BIN_EXE_rowmill")
        );
        command.args(["-c", &script]);
        command.spawn().unwrap()
    };
    let end = |mut child: std::process::Child| {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let began = Instant::now();
        let status = child.wait().unwrap();
        assert!(status.success(), "{status}");
        assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    };
    let mut child = start();
    let began = Instant::now();
    let crowd = Crowd::start(address, number("CLIENTS", 16) as usize, Duration::from_millis(1));
    for _ in 0..number("RESTARTS", 3) {
        crowd.wait_stored(number("BETWEEN", 300) as usize);
        end(child);
        child = start();
    }
    crowd.wait_stored(number("BETWEEN", 300) as usize);
    let told = crowd.stop();
    println!("{:.0} records/s", told.stored.len() as f64 / began.elapsed().as_secs_f64());
    assert!(told.not_stored.is_empty() && told.unknown.is_empty() && told.lost_connections == 0, "{told:?}");
    assert_eq!(told.statuses.keys().copied().collect::<Vec<_>>(), [200]);
    judge(&world, "in", &told);
    end(child);
}

#[test]
fn a_right_that_is_taken_away_is_answered_truly() {
    let world = World::new("collect_rights");
    world.create_topic("in", 3);
    let user = format!("door_{}", std::process::id());
    let change = "--alter --entity-type users --add-config SCRAM-SHA-512=[password=door-pw] --entity-name";
    kafka(&world, "configs", &format!("{change} {user}"));
    let rights = |how: &str| {
        let topic = world.topic("in");
        let what = "--operation Write --operation Describe --topic";
        kafka(&world, "acls", &format!("{how} --allow-principal User:{user} {what} {topic}"));
    };
    let kafka_section = format!(
        "[kafka]\nbrokers = {:?}\nsasl = {{ mechanism = \"SCRAM-SHA-512\", username = {user:?}, password = \"door-pw\" }}\ntls = {{ ca = {:?} }}\n",
        world.server("KAFKA_SASL_BROKERS"),
        world.server("KAFKA_SSL_CA")
    );
    let routes = route(&world, "/save", "in", "key = \"n\"") + &kafka_section;
    let more = "deliver_timeout = \"2s\"\nthreads = 1";
    let door = open(&world, free_port(), more, &routes);
    let crowd = Crowd::start(door.address, 16, Duration::from_millis(2));
    // The right comes after the door, whose client is told meanwhile that it may not even begin.
    crowd.wait_answered(200);
    wait_for("the refusal of the client itself", 60, || door.engine.log().contains("Fatal error"));
    rights("--add");
    let wait_stored = || {
        let before = crowd.stored();
        wait_for("records to be taken with the right to write", 60, || crowd.stored() >= before + 200);
    };
    wait_stored();
    rights("--remove --force");
    wait_for("the refusal of a record", 60, || {
        let (status, answer) = ask(door.address, "/save", "", b"{\"n\":-1}");
        status == 503 && answer["detail"].as_str().unwrap().contains("allow Write on it")
    });
    let before = crowd.stored();
    crowd.wait_answered(MANY);
    assert!(crowd.stored() <= before + 16, "records that were acknowledged without the right to write");
    rights("--add");
    wait_stored();
    let told = crowd.stop();
    println!("{:?}", told.statuses);
    judge(&world, "in", &told);
    door.engine.kill();
}

/// A door whose clients soon hear that Kafka does not answer.
fn impatient(world: &World) -> Door {
    let routes = route(world, "/save", "in", "key = \"n\"");
    open(world, free_port(), "deliver_timeout = \"2s\"\nthreads = 1", &routes)
}

#[test]
fn a_topic_that_is_deleted_is_answered_truly() {
    let world = World::new("collect_deleted");
    world.create_topic("in", 3);
    let door = impatient(&world);
    let crowd = Crowd::start(door.address, 16, Duration::from_millis(2));
    crowd.wait_stored(200);
    world.delete_topic("in");
    // The last batches may still have met it.
    std::thread::sleep(Duration::from_secs(1));
    let before = crowd.stored();
    crowd.wait_answered(MANY);
    assert_eq!(crowd.stored(), before, "records that were acknowledged without a topic");
    // What was acknowledged by a topic that is gone is gone with it; of the new one, everything counts.
    let gone = crowd.stop();
    println!("without the topic: {:?}", gone.statuses);
    world.create_topic("in", 3);
    let crowd = Crowd::start(door.address, 16, Duration::from_millis(2));
    crowd.wait_stored(200);
    judge(&world, "in", &crowd.stop());
    door.engine.kill();
}

#[test]
fn a_broker_that_cannot_write_is_answered_truly() {
    let world = World::alone("collect_disk");
    world.create_topic("in", 3);
    let door = impatient(&world);
    let crowd = Crowd::start(door.address, 16, Duration::from_millis(1));
    crowd.wait_stored(500);
    // From here on no file of the broker's grows, as on a disk that is full; it ends by itself when it notices.
    let pid = std::fs::read_to_string(world.server("KAFKA_PID_FILE")).unwrap();
    let limited = Command::new("prlimit").args(["--pid", pid.trim(), "--fsize=4096"]).status().unwrap();
    assert!(limited.success(), "prlimit: {limited}");
    wait_for("a refusal", 120, || crowd.answered() > crowd.stored() as u64 + 10);
    crowd.wait_answered(MANY);
    world.stack(&["restart", "kafka"]);
    crowd.wait_stored(200);
    let told = crowd.stop();
    println!("{} stored, {} unknown, {:?}", told.stored.len(), told.unknown.len(), told.statuses);
    judge(&world, "in", &told);
    door.engine.kill();
}

/// Where the distribution puts the library that shows a program another wall clock.
fn faketime() -> String {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let found = places.iter().map(|place| format!("{place}/faketime/libfaketime.so.1"));
    let mut there = found.filter(|path| Path::new(path).exists());
    there.next().expect("libfaketime is not here: `stack/install --checks` brings it")
}

#[test]
fn a_wall_clock_that_jumps_changes_no_answer() {
    let world = World::new("collect_clock");
    world.create_topic("in", 3);
    // Kafka refuses stamps that are too far in the future only where the topic says so.
    configure(&world, "in", "message.timestamp.after.max.ms=9223372036854775807");
    let clock = world.file("clock", "+0");
    let port = free_port();
    let environment = [
        ("LD_PRELOAD", faketime()),
        ("FAKETIME_TIMESTAMP_FILE", clock.clone()),
        ("FAKETIME_CACHE_DURATION", "1".into()),
        ("DONT_FAKE_MONOTONIC", "1".into()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".into()),
    ];
    let environment: Vec<(&str, &str)> =
        environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let config = super::settings(port, "threads = 1", &route(&world, "/save", "in", "key = \"n\""));
    let engine = world.verb("collect", &config, &environment);
    let address = ([127, 0, 0, 1], port).into();
    wait_for("the door to open", 60, || std::net::TcpStream::connect(address).is_ok());
    let crowd = Crowd::start(address, 16, Duration::from_millis(2));
    for step in ["+3600", "+0", "-3600", "+864000", "-864000", "+0"] {
        crowd.wait_stored(MANY as usize / 3);
        std::fs::write(&clock, step).unwrap();
        // It is read once a second.
        std::thread::sleep(Duration::from_millis(1500));
    }
    crowd.wait_stored(200);
    let told = crowd.stop();
    assert_eq!(told.statuses.keys().copied().collect::<Vec<_>>(), [200], "{:?}", told.statuses);
    assert_eq!(told.lost_connections, 0);
    judge(&world, "in", &told);
    engine.kill();
}
