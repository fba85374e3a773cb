//! What Redis may hold for a token, and which Redis it may be.

use std::process::{Child, Command, Stdio};

use crate::metrics::free_port;
use crate::world::{Class, World, rowmill, wait_for};

const LOOKUP: &str = "[lookup.user]\ngrace = \"0s\"\n";

fn world(name: &str) -> World {
    let world = World::new(name);
    world.create_topic("in", 1);
    world.create_table("t", "");
    world
}

/// The word is what the lookup finds.
fn config(world: &World, lookup: &str) -> String {
    world.model("in", "t", "") + "word = { lookup = \"user\", field = \"token\" }\n" + LOOKUP + lookup
}

fn message(n: u64, token: &str) -> String {
    format!("{{\"n\":{n},\"token\":{token:?}}}")
}

fn set(world: &World, command: &[&[u8]]) {
    let mut redis = redis::cmd(std::str::from_utf8(command[0]).expect("a command"));
    command[1..].iter().for_each(|argument| {
        redis.arg(argument);
    });
    redis.query::<redis::Value>(&mut world.redis()).expect("Redis takes it");
}

#[test]
fn a_key_that_cannot_be_read_is_the_setups_fault_and_said() {
    for (command, lookup, words) in [
        (
            &[&b"HSET"[..], b"user:a", b"id", b"5"][..],
            "key = \"user:{}\"",
            "\"user:a\" is a hash, and lookup.user reads strings",
        ),
        (&[b"SADD", b"user:a", b"5"], "key = \"user:{}\"", "\"user:a\" is a set"),
        (&[b"SET", b"user:a", b"\xff\xfe"], "key = \"user:{}\"", "is not UTF-8"),
        (&[b"SET", b"user:a", b"5"], "hash = \"user:{}\"\nfield = \"id\"", "\"user:a\" is no hash"),
        (&[b"HSET", b"user:a", b"id", b"\xff"], "hash = \"user:{}\"\nfield = \"id\"", "is not UTF-8"),
    ] {
        let world = world("lookups");
        set(&world, command);
        let engine = world.engine(&config(&world, lookup), &[]);
        world.produce("in", 0, [message(1, "a")]);
        wait_for(words, 20, || engine.log().replace("\\\"", "\"").contains(words));
        assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0, "{words}");
        // Once it is mended, the record goes in.
        set(&world, &[b"DEL", b"user:a"]);
        if lookup.starts_with("key") {
            set(&world, &[b"SET", b"user:a", b"7"]);
        } else {
            set(&world, &[b"HSET", b"user:a", b"id", b"7"]);
        }
        world.wait_drained(&["in"], 20);
        assert_eq!(world.count("SELECT count(*) FROM t WHERE word = '7'"), 1, "{}", engine.log());
    }
}

#[test]
fn hashes_are_read_by_their_field() {
    let world = world("lookups_hash");
    set(&world, &[b"HSET", b"user:a:x", b"id", b"5", b"other", b"6"]);
    set(&world, &[b"HSET", b"user:b:x", b"other", b"6"]);
    set(&world, &[b"SET", b"user:c:x", b"7"]);
    let config = config(&world, "hash = \"user:{}:x\"\nfield = \"id\"\n");
    let file = world.file("hash.toml", &config);
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    assert!(ok && !text.contains("WARNING"), "{text}");
    let _engine = world.engine(&config, &[]);
    world.produce(
        "in",
        0,
        [message(1, "a"), message(2, "b"), message(3, "c"), message(4, "d"), message(5, "a")],
    );
    world.wait_drained(&["in"], 20);
    world.check("t", &["in"], |value| {
        let text = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        if text.contains("\"a\"") { Class::Row } else { Class::Dead }
    });
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word = '5'"), 2);
}

#[test]
fn a_pattern_that_no_key_matches_is_warned_of() {
    let world = world("lookups_pattern");
    for n in 0..2000 {
        set(&world, &[b"SET", format!("users:{n}").as_bytes(), b"1"]);
    }
    let check = |lookup: &str| {
        let file = world.file("pattern.toml", &config(&world, lookup));
        let (text, ok) = rowmill(&world, &["check", "--config", &file]);
        assert!(ok, "{text}");
        text
    };
    let text = check("key = \"user:{}\"");
    assert!(text.contains("WARNING  lookup.user: no key of Redis looks like \"user:{}\""), "{text}");
    assert!(check("key = \"user[s]:{}\"").contains("WARNING"), "a bracket means itself");
    assert!(!check("key = \"users:{}\"").contains("WARNING"));
}

/// A cluster of one node, which has all slots.
struct Cluster {
    server: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Cluster {
    fn start() -> Cluster {
        let (dir, port) = (tempfile::tempdir().expect("a directory"), free_port());
        let server = Command::new("redis-server")
            .args([
                "--bind",
                "127.0.0.1",
                "--port",
                &port.to_string(),
                "--save",
                "",
                "--cluster-enabled",
                "yes",
            ])
            .args(["--cluster-port", &free_port().to_string(), "--dir"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let cluster = Cluster { server, port, _dir: dir };
        wait_for("the cluster", 20, || cluster.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).is_some());
        wait_for("its slots", 20, || cluster.ask(&["SET", "user:a", "7"]).is_some());
        cluster
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    fn ask(&self, command: &[&str]) -> Option<redis::Value> {
        let mut connection = redis::Client::open(self.url()).ok()?.get_connection().ok()?;
        redis::cmd(command[0]).arg(&command[1..]).query(&mut connection).ok()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.server.kill().expect("it runs");
        self.server.wait().expect("it ended");
    }
}

#[test]
fn a_redis_cluster_is_refused_by_check_and_at_the_start() {
    let world = world("lookups_cluster");
    let cluster = Cluster::start();
    let config = format!("[redis]\nurl = {:?}\n", cluster.url()) + &config(&world, "key = \"user:{}\"");
    let file = world.file("cluster.toml", &config);
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    let words = "Redis is a cluster, which rowmill does not read";
    assert!(!ok && text.contains(words), "{text}");
    let mut engine = world.engine(&config, &[]);
    assert!(!engine.wait(20).success() && engine.log().contains(words), "{}", engine.log());
}
