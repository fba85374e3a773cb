//! The front door on real brokers: what it answers is true, whatever happens to it and to them.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

mod crowd;
mod faults;
mod nginx;
mod overload;
mod rate;
mod retries;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use rdkafka::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Headers as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;

use crate::http_client::{Client, Reply};
use crate::world::{Engine, World, wait_for};

/// A door on a port of its own.
pub(super) struct Door {
    engine: Engine,
    address: SocketAddr,
}

pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub(super) fn settings(port: u16, more: &str, routes: &str) -> String {
    format!("[metrics]\nlisten = \"off\"\n[collect]\nlisten = \"127.0.0.1:{port}\"\n{more}\n{routes}")
}

pub(super) fn open(world: &World, port: u16, more: &str, routes: &str) -> Door {
    let engine = world.verb("collect", &settings(port, more, routes), &[]);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for("the door to open", 60, || std::net::TcpStream::connect(address).is_ok());
    Door { engine, address }
}

pub(super) fn route(world: &World, path: &str, topic: &str, more: &str) -> String {
    format!("[[route]]\npath = {path:?}\ntopic = {:?}\n{more}\n", world.topic(topic))
}

pub(super) fn request(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut request =
        format!("POST {path} HTTP/1.1\r\nHost: a\r\n{headers}Content-Length: {}\r\n\r\n", body.len())
            .into_bytes();
    request.extend_from_slice(body);
    request
}

pub(super) fn ask(address: SocketAddr, path: &str, headers: &str, body: &[u8]) -> (u16, Value) {
    let mut client = Client::new(address);
    client.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client.send(request(path, headers, body));
    let Reply { status, body, .. } = client.reply().expect("an answer");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[test]
fn what_is_answered_with_200_stands_in_the_topic() {
    let world = World::new("collect");
    world.create_topic("in", 3);
    let routes = route(&world, "/save", "in", "key = \"tag\"\nid = [\"tag\", \"n\"]")
        + &route(&world, "/each", "in", "batch = \"each\"\nrequire = { n = \"int\" }")
        + &route(&world, "/retry", "in", "id = \"Idempotency-Key\"")
        + &route(&world, "/beacon", "in", "ack = \"queued\"\nvalidate = \"none\"")
        + &format!(
            "[[route]]\nmethod = \"PUT\"\npath = \"/account/{{id}}\"\ntopic = {:?}\nkey = \"{{path.id:int}}\"\n\
             record = {{ account = \"{{path.id:int}}\", data = \"{{query.data}}\", at = \"{{now:ms}}\" }}\n",
            world.topic("in")
        );
    let door = open(&world, free_port(), "", &routes);
    let post = |path: &str, headers: &str, body: &[u8]| ask(door.address, path, headers, body);
    // A topic's first record waits until the client knows its brokers.
    let (status, answer) = post("/save", "Rowmill-Receipt: yes\r\n", br#"{"tag":"a","n":1}"#);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["delivered"], 1);
    let (status, answer) =
        post("/save", "Rowmill-Receipt: yes\r\n", br#"[{"tag":"key-1","n":2}, {"tag":"key-2","n":3}]"#);
    assert_eq!((status, &answer["delivered"]), (200, &Value::from(2)), "{answer}");
    let receipts: Vec<String> =
        answer["at"].as_array().unwrap().iter().map(|at| at.as_str().unwrap().to_owned()).collect();
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(b"{\"tag\":\"a\",\"n\":4}\n{\"tag\":\"a\",\"n\":5}\n").unwrap();
    let (status, answer) = post("/save", "Content-Encoding: gzip\r\n", &packed.finish().unwrap());
    assert_eq!((status, &answer["delivered"]), (200, &Value::from(2)), "{answer}");
    // Nothing of these is sent.
    for (path, headers, body, expected) in [
        ("/save", "", &br#"{"tag":"a","n":90}{"n":91}"#[..], 400),
        ("/save", "", b"{\"tag\":\"a\",\"n\":92}\n{\"tag\":", 400),
        ("/save", "", b"", 400),
        ("/save", "", b"[]", 400),
        ("/save", "Content-Encoding: br\r\n", b"x", 415),
        ("/save", "Content-Encoding: gzip\r\n", b"no gzip at all", 400),
        ("/retry", "", br#"{"n":93}"#, 400),
        ("/nowhere", "", br#"{"n":94}"#, 404),
        ("/each", "", br#"{"n":"95"}"#, 400),
    ] {
        let (status, answer) = post(path, headers, body);
        assert_eq!(status, expected, "{path} {answer}");
        assert_eq!(answer["stored"], "no", "{path} {answer}");
        assert!(answer["detail"].as_str().is_some_and(|detail| !detail.is_empty()), "{answer}");
    }
    let (status, answer) = post("/each", "", b"{\"n\":6}\n{\"n\":\"x\"}\n{\"n\":7}");
    assert_eq!((status, &answer["delivered"]), (207, &Value::from(2)), "{answer}");
    assert_eq!((&answer["failed"][0]["index"], &answer["failed"][0]["status"]), (&1.into(), &400.into()));
    let (status, _) = post("/retry", "Idempotency-Key: abc\r\n", br#"{"n":8}{"n":9}"#);
    assert_eq!(status, 200);
    let (status, answer) = post("/beacon", "", b"any bytes");
    assert_eq!((status, &answer["queued"]), (202, &Value::from(1)));
    let mut client = Client::new(door.address);
    client.send("PUT /account/17?data=a%20b+c HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.reply().unwrap().status, 200);
    client.send("PUT /account/017?data=x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.reply().unwrap().status, 400);
    // The last one is not waited for.
    let found = loop {
        let found = read(&world, "in");
        if found.len() >= 11 {
            break found;
        }
    };
    let n =
        |record: &Found| serde_json::from_slice::<Value>(&record.value).ok().and_then(|v| v["n"].as_i64());
    let numbers: BTreeSet<i64> = found.iter().filter_map(n).collect();
    assert_eq!(numbers, (1..=9).collect(), "{found:?}");
    assert_eq!(found.len(), 11, "{found:?}");
    let with = |number: i64| found.iter().find(|record| n(record) == Some(number)).unwrap();
    let places: Vec<String> = [2, 3]
        .map(|number| format!("{}/{}/{}", world.topic("in"), with(number).partition, with(number).offset))
        .into();
    assert_eq!(receipts, places);
    assert_eq!(with(2).key.as_deref(), Some(&b"key-1"[..]));
    // As Java's producers place them: computed by org.apache.kafka.common.utils.Utils.murmur2 for three partitions.
    for (number, key) in [(2, "key-1"), (3, "key-2")] {
        assert_eq!(with(number).partition, murmur2_partition(key.as_bytes(), 3), "{key}");
    }
    assert_eq!(with(2).id.as_deref(), Some(&br#"["key-1",2]"#[..]));
    assert_eq!(with(9).id.as_deref(), Some(&b"abc/1"[..]));
    assert_eq!(with(6).id, None);
    let put = found.iter().find(|record| record.key.as_deref() == Some(b"17")).unwrap();
    let put: Value = serde_json::from_slice(&put.value).unwrap();
    assert_eq!((&put["account"], &put["data"]), (&17.into(), &"a b c".into()), "{put}");
    assert!(put["at"].as_i64().unwrap() > 1_700_000_000_000);
    let (status, took) = door.engine.stop();
    assert!(status.success() && took < Duration::from_secs(5), "{status} {took:?}");
}

/// What a topic holds, with key and id.
#[derive(Debug)]
pub(super) struct Found {
    partition: i32,
    offset: i64,
    key: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    value: Vec<u8>,
}

pub(super) fn read(world: &World, short: &str) -> Vec<Found> {
    let topic = world.topic(short);
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", world.server("KAFKA_BROKERS"))
        .set("group.id", "truth")
        .set("enable.auto.commit", "false")
        .create()
        .unwrap();
    let mut list = TopicPartitionList::new();
    let mut left = BTreeMap::new();
    let metadata = consumer.fetch_metadata(Some(&topic), Duration::from_secs(60)).unwrap();
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = consumer.fetch_watermarks(&topic, partition.id(), Duration::from_secs(60)).unwrap();
        if low < high {
            list.add_partition_offset(&topic, partition.id(), Offset::Offset(low)).unwrap();
            left.insert(partition.id(), high);
        }
    }
    consumer.assign(&list).unwrap();
    let mut found = Vec::new();
    while !left.is_empty() {
        let Some(message) = consumer.poll(Duration::from_secs(60)) else { panic!("{topic} cannot be read") };
        let message = message.unwrap();
        let headers = message.headers();
        let id = headers.and_then(|h| h.iter().find(|h| h.key == "rowmill-id")?.value.map(<[u8]>::to_vec));
        found.push(Found {
            partition: message.partition(),
            offset: message.offset(),
            key: message.key().map(<[u8]>::to_vec),
            id,
            value: message.payload().unwrap_or_default().to_vec(),
        });
        if left.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
            left.remove(&message.partition());
        }
    }
    found
}

/// Kafka's default partitioner for records with a key, written from its description: the hash of the key, its sign bit taken
/// off, by the number of partitions.
fn murmur2_partition(key: &[u8], partitions: i32) -> i32 {
    let (m, mut h) = (0x5bd1_e995u32, 0x9747_b28cu32 ^ key.len() as u32);
    let mut chunks = key.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes(chunk.try_into().unwrap()).wrapping_mul(m);
        k ^= k >> 24;
        h = h.wrapping_mul(m) ^ k.wrapping_mul(m);
    }
    let rest = chunks.remainder();
    for (place, byte) in rest.iter().enumerate().rev() {
        h ^= u32::from(*byte) << (8 * place);
    }
    if !rest.is_empty() {
        h = h.wrapping_mul(m);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(m);
    h ^= h >> 15;
    (h & 0x7fff_ffff) as i32 % partitions
}

#[test]
fn who_may_send_is_asked_for_a_token() {
    let world = World::new("collect_tokens");
    world.create_topic("in", 1);
    let tokens = world.file(
        "tokens.toml",
        "[[token]]\nname = \"a\"\nsha256 = \"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\"\nrate = 5.0\nroutes = [\"/save\"]\n",
    );
    let routes = route(&world, "/save", "in", "") + &route(&world, "/other", "in", "");
    let door = open(
        &world,
        free_port(),
        &format!("tokens = {tokens:?}\ncors_origins = [\"https://app.example.com\"]"),
        &routes,
    );
    let good = "Authorization: Bearer foo\r\n";
    assert_eq!(ask(door.address, "/save", "", b"{}").0, 401);
    assert_eq!(ask(door.address, "/save", "Authorization: Bearer bar\r\n", b"{}").0, 401);
    assert_eq!(ask(door.address, "/other", good, b"{}").0, 403);
    assert_eq!(ask(door.address, "/save", good, b"{}").0, 200);
    let statuses: Vec<u16> = (0..10).map(|_| ask(door.address, "/save", good, b"{}").0).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    // A browser sees refusals as well.
    let mut client = Client::new(door.address);
    client.send(request("/save", "Origin: https://app.example.com\r\n", b"{}"));
    let reply = client.reply().unwrap();
    assert!(
        reply.status == 401 && reply.head.contains("access-control-allow-origin: https://app.example.com")
    );
    assert!(reply.head.contains("vary: origin"), "{}", reply.head);
    client.send("OPTIONS /save HTTP/1.1\r\nHost: a\r\nOrigin: https://app.example.com\r\nAccess-Control-Request-Method: POST\r\n\r\n");
    assert_eq!(client.reply().unwrap().status, 204);
    assert!(!door.engine.log().contains("foo"), "no token in the log");
    door.engine.kill();
}

/// Changes settings of a topic.
pub(super) fn configure(world: &World, topic: &str, settings: &str) {
    let name = world.topic(topic);
    kafka(
        world,
        "configs",
        &format!("--alter --entity-type topics --entity-name {name} --add-config {settings}"),
    );
}

/// One of Kafka's own tools, with its arguments as one would type them.
pub(super) fn kafka(world: &World, tool: &str, arguments: &str) {
    world.stack(&[&["kafka", tool], arguments.split(' ').collect::<Vec<_>>().as_slice()].concat());
}

#[test]
fn what_the_client_says_before_anybody_listens_holds_nothing_up() {
    let world = World::new("collect_early_words");
    world.create_topic("in", 3);
    // Its debug log begins with the client, before its queue can ring for the door.
    let more = "threads = 1\nproperties = { debug = \"eos,topic\" }";
    let door = open(&world, free_port(), more, &route(&world, "/save", "in", ""));
    assert_eq!(ask(door.address, "/save", "", b"{\"n\":1}").0, 200);
    door.engine.kill();
}

#[test]
fn what_could_not_even_be_queued_is_not_called_queued_and_holds_no_room() {
    let world = World::new("collect_unqueued");
    let door =
        open(&world, free_port(), "threads = 1", &route(&world, "/beacon", "nowhere", "ack = \"queued\""));
    // Until the brokers have said that there is no such topic, records wait in memory.
    wait_for("a refusal", 60, || {
        let (status, answer) = ask(door.address, "/beacon", "", b"{\"n\":1}{\"n\":2}");
        assert!(status == 503 || (status, &answer["queued"]) == (202, &2.into()), "{status} {answer}");
        status == 503 && answer["stored"] == "no"
    });
    wait_for("its room to be free again", 60, || {
        let mut client = Client::new(door.address);
        client.send("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        let page = String::from_utf8(client.reply().unwrap().body).unwrap();
        page.lines().any(|line| line == "rowmill_collect_in_flight_bytes 0")
    });
    door.engine.kill();
}

#[test]
fn check_says_what_would_go_wrong_at_the_door() {
    let world = World::new("collect_check");
    world.create_topic("in", 1);
    world.create_topic("compacted", 1);
    configure(&world, "compacted", "cleanup.policy=compact,max.message.bytes=2000");
    let check =
        |config: &str| crate::world::rowmill(&world, &["check", "--config", &world.file("c.toml", config)]);
    let (text, good) = check(&route(&world, "/save", "in", "key = \"tag\""));
    assert!(good && text.contains("min.insync.replicas is 1"), "{text}");
    assert!(text.contains("`rowmill collect` would work"), "{text}");
    let (text, good) = check(&(route(&world, "/a", "compacted", "") + &route(&world, "/b", "nowhere", "")));
    assert!(!good, "{text}");
    for words in ["is compacted and takes no record without a key", "max.message.bytes is 2000", "nowhere"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    world.create_table("t", "");
    let both = route(&world, "/save", "in", "key = \"nn\"") + &world.model("in", "t", "");
    let (text, good) = check(&both);
    assert!(good && text.contains("has the field \"nn\", which no model"), "{text}");
    assert!(text.contains("`rowmill run` would work"), "{text}");
}

#[test]
fn what_the_models_would_set_aside_is_refused_with_the_same_words() {
    let world = World::new("collect_models");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let routes = route(&world, "/raw", "in", "")
        + &route(&world, "/save", "in", "validate = \"model\"")
        + &route(&world, "/each", "in", "validate = \"model\"\nbatch = \"each\"")
        + &world.model("in", "t", "");
    let door = open(&world, free_port(), "threads = 1", &routes);
    let bad = r#"{"n":"x","word":"a"}"#;
    wait_for("the tables to be known", 60, || ask(door.address, "/save", "", bad.as_bytes()).0 == 400);
    let (_, answer) = ask(door.address, "/save", "", bad.as_bytes());
    let reason = answer["failed"][0]["reason"].as_str().unwrap().to_owned();
    let lines = format!("{{\"n\":1,\"word\":\"a\"}}\n{bad}\n{{\"n\":2,\"word\":\"{}\"}}", "w".repeat(21));
    let (status, answer) = ask(door.address, "/each", "", lines.as_bytes());
    assert_eq!((status, &answer["delivered"]), (207, &1.into()), "{answer}");
    assert_eq!((&answer["failed"][0]["index"], &answer["failed"][1]["index"]), (&1.into(), &2.into()));
    assert_eq!(ask(door.address, "/raw", "", bad.as_bytes()).0, 200);
    let engine = world.engine(&routes, &[]);
    world.wait_drained(&["in"], 60);
    assert_eq!(world.count("SELECT count(*) FROM t"), 1);
    let letter: String =
        world.sql().query_one("SELECT DISTINCT message FROM rowmill.dead_letter", &[]).unwrap().get(0);
    assert_eq!(letter, reason);
    // Another definition is known a moment later.
    world
        .sql()
        .batch_execute("ALTER TABLE t ADD must TEXT NOT NULL DEFAULT 'x', ALTER word TYPE TEXT")
        .unwrap();
    let long = format!("{{\"n\":3,\"word\":{:?}}}", "w".repeat(21));
    wait_for("the new definition", 60, || ask(door.address, "/save", "", long.as_bytes()).0 == 200);
    assert!(engine.stop().0.success());
    door.engine.kill();
}

#[test]
fn a_record_larger_than_its_topic_takes_harms_no_other() {
    let world = World::new("collect_large");
    world.create_topic("in", 1);
    let limit = |bytes: &str| configure(&world, "in", &format!("max.message.bytes={bytes}"));
    limit("3000");
    let routes = route(&world, "/save", "in", "") + &route(&world, "/each", "in", "batch = \"each\"");
    let door = open(&world, free_port(), "threads = 1", &routes);
    let large = format!("{{\"n\":1,\"word\":{:?}}}", noise(5000));
    wait_for("the topic's limit to be known", 60, || {
        let (status, answer) = ask(door.address, "/save", "", large.as_bytes());
        status == 413 && answer["detail"].as_str().is_some_and(|detail| detail.contains("takes 2800"))
    });
    let (status, answer) =
        ask(door.address, "/each", "", format!("{{\"n\":2}}\n{large}\n{{\"n\":3}}").as_bytes());
    assert_eq!((status, &answer["delivered"], &answer["failed"][0]["status"]), (207, &2.into(), &413.into()));
    // Lowered while it runs: the batch of both is refused by the broker, and the small one is stored all the same.
    limit("1000");
    let middle = format!("{{\"n\":4,\"word\":{:?}}}", noise(2000));
    for n in 0..20 {
        let (status, answer) =
            ask(door.address, "/each", "", format!("{{\"n\":{n}}}\n{middle}\n{{\"n\":{n}}}").as_bytes());
        assert_eq!((status, &answer["delivered"]), (207, &2.into()), "{answer}");
        assert_eq!((&answer["failed"][0]["index"], &answer["failed"][0]["status"]), (&1.into(), &413.into()));
    }
    door.engine.kill();
}

/// Text that does not compress.
fn noise(bytes: u64) -> String {
    let mut state = 1u64;
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            char::from(b'a' + (state >> 40) as u8 % 26)
        })
        .collect()
}
