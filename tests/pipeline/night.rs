//! What somebody meets who is called at night: a server that stands still, a password that was exchanged, a file that is wrong.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::metrics::{free_port, get, scrape, sum};
use crate::own_redis::Redis;
use crate::world::{World, record, wait_for};

/// Readiness as its status and its sentence.
fn readiness(port: u16) -> (u16, String) {
    get(port, "/readyz", "*/*").expect("it answers")
}

#[test]
fn a_frozen_redis_is_named_and_the_logs_are_seen_to_grow() {
    let world = World::new("night_redis");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let (redis, port) = (Redis::start(), free_port());
    let mut users = redis::pipe();
    // The first ones are asked for before the freeze, the others in it: many in one batch.
    for n in 0..6000 {
        users.cmd("SET").arg(format!("user:{n}")).arg(n).ignore();
    }
    users.query::<()>(&mut redis.connection().expect("it runs")).expect("users");
    let config = format!(
        "[metrics]\nlisten = \"127.0.0.1:{port}\"\n[redis]\nurl = {:?}\n{}word = {{ lookup = \"user\", field = \"token\" }}\n\
         [lookup.user]\nkey = \"user:{{}}\"\n",
        redis.url("0"),
        world.model("in", "t", "")
    );
    let engine = world.engine(&config, &[]);
    let message = |n: u64| format!("{{\"n\":{n},\"token\":\"{n}\"}}");
    world.produce("in", 0, (0..1000).map(message));
    world.wait_drained(&["in"], 30);
    let lag = || sum(&scrape(port), "rowmill_lag_records", "topic");
    wait_for("a lag of nothing", 20, || lag() == 0.0);

    redis.signal(Signal::SIGSTOP);
    world.produce("in", 0, (1000..3000).map(message));
    let named = wait_for("the reason", 20, || {
        let (status, why) = readiness(port);
        status == 503 && why.contains("lookup.user") && why.contains("Redis")
    });
    println!("named after {named:?}");
    assert!(engine.log().contains("waiting for Redis"), "{}", engine.log());
    // What comes now is not read, and seen all the same.
    wait_for("the lag", 15, || lag() == 2000.0);
    world.produce("in", 0, (3000..6000).map(message));
    wait_for("the larger lag", 15, || lag() == 5000.0);
    wait_for("the cause in the report", 15, || {
        let log = engine.log();
        let report = log.lines().rfind(|line| line.contains("rows/s")).unwrap_or_default();
        report.contains("NOT READY for ") && report.contains("Redis")
    });

    redis.signal(Signal::SIGCONT);
    let well = wait_for("readiness", 20, || readiness(port).0 == 200);
    world.wait_drained(&["in"], 20);
    println!("well after {well:?}");
    assert_eq!(world.count("SELECT count(*) FROM t"), 6000);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    assert!(engine.stop().0.success());
}

#[test]
fn a_password_is_exchanged_while_rows_are_written() {
    let world = World::new("night_password");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let (role, port) = (format!("night_{}", std::process::id()), free_port());
    let mut admin = world.sql();
    admin.batch_execute(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD 'pw-alpha'")).expect("a role");
    let secret = world.file("password", "pw-alpha\n");
    let (_, address) = world.database_url.rsplit_once('@').expect("a user in the URL");
    let config = format!(
        "[metrics]\nlisten = \"127.0.0.1:{port}\"\n[postgres]\nurl = \"postgresql://{role}@{address}\"\npassword = \"file:{secret}\"\n{}",
        world.model("in", "t", "")
    );
    let mut engine = world.engine(&config, &[]);
    let load = world.load("in", 2, 500);
    wait_for("rows", 30, || world.count("SELECT count(*) FROM t") > 500);

    // First in the database, and every session has to log in anew; the file comes later.
    admin
        .batch_execute(&format!(
            "ALTER ROLE {role} PASSWORD 'pw-beta'; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'"
        ))
        .expect("exchanged");
    let named = wait_for("the reason", 20, || {
        let (status, why) = readiness(port);
        status == 503 && why.contains("password authentication failed")
    });
    std::thread::sleep(Duration::from_secs(10));
    assert!(engine.is_running(), "{}", engine.log());
    world.file("password", "pw-beta\n");
    let well = wait_for("readiness", 20, || readiness(port).0 == 200);
    println!("named after {named:?}, well after {well:?}");
    let sent = load.stop();
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM t"), sent as i64);
    let log = engine.log();
    assert!(!log.contains("pw-alpha") && !log.contains("pw-beta"), "{log}");
    assert!(engine.stop().0.success());
    admin.batch_execute(&format!("DROP ROLE {role}")).expect("dropped");
}

#[test]
fn what_a_person_must_mend_ends_otherwise_than_what_may_come_by_itself() {
    let world = World::new("night_files");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let model = world.model("in", "t", "");
    let end = |config: &str| {
        let mut engine = world.engine(config, &[]);
        let status = engine.wait(30);
        (status.code(), engine.log())
    };
    // Our units do not start this again.
    let (code, log) = end(&format!("pipelin = \"x\"\n{model}"));
    assert!(code == Some(78) && log.contains("unknown field"), "{code:?} {log}");
    // A secret that is late: the next start may find it.
    let late = world.path("late").display().to_string();
    let config = format!("[postgres]\npassword = \"file:{late}\"\n{model}");
    let (code, log) = end(&config);
    assert!(code == Some(1) && log.contains("cannot read postgres.password"), "{code:?} {log}");
    world.file("late", "");
    let (code, log) = end(&config);
    assert!(code == Some(1) && log.contains("postgres.password is empty"), "{code:?} {log}");
}

#[test]
fn what_may_change_while_it_runs_needs_no_restart() {
    let world = World::new("night_reload");
    world.create_topic("in", 1);
    let (port, address) = (free_port(), free_port());
    // SHA-256 of foo, and of bar.
    let tokens = |hash: &str| format!("[[token]]\nname = \"a\"\nsha256 = {hash:?}\n");
    let foo = tokens("2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae");
    let bar = tokens("fcde2b2edba56bf408601fb721fe9b5c338d10ee429ea04fae5511b68fbf8fb9");
    let file = world.file("tokens.toml", &foo);
    let config = world.file(
        "door.toml",
        &format!(
            "[metrics]\nlisten = \"127.0.0.1:{port}\"\n[kafka]\nbrokers = {:?}\n[collect]\nlisten = \"127.0.0.1:{address}\"\n\
             tokens = {file:?}\n[[route]]\npath = \"/save\"\ntopic = {:?}\n",
            world.server("KAFKA_BROKERS"),
            world.topic("in")
        ),
    );
    let text = std::fs::read_to_string(&config).expect("it was just written");
    let log = world.path("door.log");
    let mut door = world
        .command(env!("CARGO_BIN_EXE_rowmill"))
        .args(["collect", "--config", &config])
        .stderr(std::fs::File::create(&log).expect("a log"))
        .spawn()
        .expect("it runs");
    let said = || std::fs::read_to_string(&log).expect("a log");
    let status = |token: &str| {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", address)).ok()?;
        let body = "{\"n\":1}";
        write!(
            stream,
            "POST /save HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.split_whitespace().nth(1)?.parse::<u16>().ok()
    };
    wait_for("the door", 30, || status("foo") == Some(200));
    let reload = |word: &str| {
        let before = said().matches(word).count();
        kill(Pid::from_raw(door.id() as i32), Signal::SIGHUP).expect("it runs");
        wait_for(word, 10, || said().matches(word).count() > before);
    };

    world.file("tokens.toml", &bar);
    assert_eq!(status("bar"), Some(401), "nobody asked for it yet");
    reload("the tokens were read again");
    assert_eq!((status("foo"), status("bar")), (Some(401), Some(200)));
    // Files that are no use change nothing.
    world.file("tokens.toml", "[[token]]\nname = 1\n");
    reload("the tokens stay as they are");
    world.file("door.toml", &text.replace("path =", "paht ="));
    reload("so nothing changes");
    assert_eq!(status("bar"), Some(200));
    world.file("tokens.toml", &bar);
    // The level counts at once, the rest is named.
    world.file("door.toml", &format!("{}[log]\nlevel = \"error\"\n", text.replace("/save", "/other")));
    reload("what changed in [[route]] counts from the next start");
    let before = said();
    kill(Pid::from_raw(door.id() as i32), Signal::SIGTERM).expect("it runs");
    assert!(door.wait().expect("it ended").success());
    assert_eq!(said(), before, "only errors are written now");
}

#[test]
fn a_status_is_one_line_of_json_for_programs() {
    let world = World::new("night_status");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, (0..10).map(record).chain(["{".to_owned()]));
    world.wait_drained(&["in"], 30);
    let file = world.file("status.toml", &config);
    let output = world
        .command(env!("CARGO_BIN_EXE_rowmill"))
        .args(["status", "--json", "--config", &file])
        .env("DATABASE_URL", &world.database_url)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    assert_eq!(text.lines().count(), 1, "{text}");
    let status: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(status["members"].as_array().expect("a list").len(), 1, "{text}");
    let part = &status["partitions"][0];
    let figures = ["next_offset", "lag", "rows", "dead_letters"].map(|name| part[name].as_i64());
    assert_eq!(figures, [Some(11), Some(0), Some(10), Some(1)], "{text}");
    assert_eq!(status["dead_letters"][0]["reason"], "invalid_json", "{text}");
    assert!(engine.stop().0.success());
}
