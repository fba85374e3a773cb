//! What Redis may hold for a token, and which Redis it may be.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseRecord, Producer as _};

use crate::metrics::free_port;
use crate::own_redis::Redis;
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
fn cluster() -> Redis {
    let port = free_port().to_string();
    let cluster = Redis::start_with(&["--cluster-enabled", "yes", "--cluster-port", &port]);
    wait_for("the cluster", 20, || cluster.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).is_some());
    wait_for("its slots", 20, || cluster.ask(&["SET", "user:a", "7"]).is_some());
    cluster
}

#[test]
fn a_redis_cluster_is_refused_by_check_and_at_the_start() {
    let world = world("lookups_cluster");
    let cluster = cluster();
    let config = format!("[redis]\nurl = {:?}\n", cluster.url("0")) + &config(&world, "key = \"user:{}\"");
    let file = world.file("cluster.toml", &config);
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    let words = "Redis is a cluster, which rowmill does not read";
    assert!(!ok && text.contains(words), "{text}");
    let mut engine = world.engine(&config, &[]);
    assert!(!engine.wait(20).success() && engine.log().contains(words), "{}", engine.log());
}

/// The longest time between two moments at which the other topic's table grew, while `strike` does what it does.
fn longest_stall(world: &World, strike: impl FnOnce()) -> Duration {
    let (over, longest) = (AtomicBool::new(false), Mutex::new(Duration::ZERO));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut rows, mut grew_at) = (0, Instant::now());
            while !over.load(SeqCst) {
                let now = world.count("SELECT count(*) FROM u");
                let stall = grew_at.elapsed();
                if now > rows {
                    (rows, grew_at) = (now, Instant::now());
                }
                let mut longest = longest.lock().expect("nobody panics with it");
                *longest = stall.max(*longest);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        strike();
        over.store(true, SeqCst);
    });
    longest.into_inner().expect("nobody panics with it")
}

#[test]
fn tokens_that_nobody_knows_stall_their_own_topic_and_no_other() {
    // A neighbour that keeps Redis busy for seconds would be counted as a stall.
    let world = World::alone("lookups_stall");
    world.create_topic("in", 16);
    world.create_topic("other", 1);
    world.create_table("t", "");
    world.create_table("u", "");
    set(&world, &[b"SET", b"user:known", b"7"]);
    let config = format!(
        "[guard]\ndead_letter_share = 1.0\n{}{}word = {{ lookup = \"user\", field = \"token\" }}\n[lookup.user]\nkey = \"user:{{}}\"\n",
        world.model("other", "u", ""),
        world.model("in", "t", "")
    );
    let engine = world.engine(&config, &[]);
    let load = world.load("other", 1, 200);
    world.produce("in", 0, [message(0, "known")]);
    wait_for("both topics to flow", 30, || {
        world.count("SELECT (SELECT count(*) FROM t) * (SELECT count(*) FROM u)") > 50
    });
    let producer = world.producer("none");
    let topic = world.topic("in");
    let now_ms = || jiff::Timestamp::now().as_millisecond();
    // Half an hour ahead, not stamped at all, now, and long ago; each token once, or the same again and again.
    let stamps = [Some(30 * 60 * 1000), None, Some(0), Some(-3_600_000)];
    let stall = longest_stall(&world, || {
        let began = Instant::now();
        let mut n = 1;
        while began.elapsed() < Duration::from_secs(8) {
            for partition in 0..16 {
                let value =
                    message(n, &if n.is_multiple_of(3) { "again".to_owned() } else { format!("x{n}") });
                let mut record: BaseRecord<'_, [u8], [u8]> =
                    BaseRecord::to(&topic).partition(partition).payload(value.as_bytes());
                record.timestamp = stamps[n as usize % 4].map(|ahead| now_ms() + ahead);
                producer.send(record).map_err(|(error, _)| error).expect("sent");
                n += 1;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        producer.flush(Duration::from_secs(10)).expect("sent");
    });
    println!("longest stall of the other topic: {stall:?}");
    assert!(stall < Duration::from_secs(1), "the other topic stood still for {stall:?}");
    let sent = load.stop() as i64;
    world.wait_drained(&["in", "other"], 30);
    assert_eq!(world.count("SELECT count(*) FROM u"), sent);
    assert_eq!(world.count("SELECT count(*) FROM t"), 1, "each token that nobody knows is a letter");
    assert!(engine.stop().0.success());
}

#[test]
fn a_value_of_a_third_of_a_gigabyte_is_not_read() {
    // Redis answers nobody else while it makes and frees values of this size.
    let world = World::alone("lookups_large");
    world.create_topic("in", 1);
    world.create_table("t", "");
    // Redis makes it by itself, from one byte at its end.
    set(&world, &[b"SETRANGE", b"user:large", b"300000000", b"x"]);
    set(&world, &[b"SET", b"user:a", b"5"]);
    let config = config(&world, "key = \"user:{}\"");
    let engine = world.engine(&config, &[]);
    let long = "t".repeat(100_000);
    world.produce("in", 0, [message(1, "large"), message(2, "a"), message(3, &long), message(4, "large")]);
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word = '5'"), 1, "{}", engine.log());
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 3);
    assert!(engine.log().contains("a value of 300000001 bytes"), "{}", engine.log());
    assert!(engine.peak_memory() < 200 << 20, "{} MiB", engine.peak_memory() >> 20);
    assert!(engine.stop().0.success());
    set(&world, &[b"DEL", b"user:large"]);
    // The same of a hash's field.
    redis::cmd("EVAL")
        .arg("redis.call('HSET', 'user:h', 'id', string.rep('x', 100000000))")
        .arg(0)
        .query::<redis::Value>(&mut world.redis())
        .expect("Redis makes it");
    set(&world, &[b"HSET", b"user:i", b"id", b"6"]);
    let config = config.replace("key = \"user:{}\"", "hash = \"user:{}\"\nfield = \"id\"");
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, [message(5, "h"), message(6, "i")]);
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE word = '6'"), 1, "{}", engine.log());
    assert!(engine.peak_memory() < 150 << 20, "{} MiB", engine.peak_memory() >> 20);
}
