//! Doors behind a real nginx, which sends a PUT a second time where the first instance dies with it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use serde_json::Value;

use super::crowd::number;
use super::{Door, free_port, open, read};
use crate::http_client::Client;
use crate::world::{World, wait_for};

/// As docs/collect.md has it: one id for a request, however often it is sent, and set by the proxy, so that no client chooses it.
fn proxy(port: u16, doors: &[u16]) -> String {
    let servers: String =
        doors.iter().map(|door| format!("    server 127.0.0.1:{door} max_fails=0;\n")).collect();
    format!(
        "upstream doors {{\n{servers}    keepalive 16;\n}}\nserver {{\n  listen 127.0.0.1:{port};\n  location / {{\n    proxy_pass http://doors;\n    \
         proxy_http_version 1.1;\n    proxy_set_header Connection \"\";\n    proxy_set_header X-Request-Id $request_id;\n  }}\n}}\n"
    )
}

fn routes(world: &World) -> String {
    format!(
        "[[route]]\nmethod = \"PUT\"\npath = \"/{{n}}\"\ntopic = {:?}\nkey = \"{{path.n:int}}\"\nid = \"header.x-request-id\"\n\
         record = {{ n = \"{{path.n:int}}\", word = \"{{query.data}}\", id = \"{{header.x-request-id}}\" }}\n",
        world.topic("in")
    )
}

/// The answer's status; `None` where there is none.
fn put(address: SocketAddr, n: u64) -> Option<u16> {
    let socket = std::net::TcpStream::connect(address).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut client = Client::on(socket);
    // An id of the client's own counts for nothing.
    client.send(format!(
        "PUT /{n}?data=x HTTP/1.1\r\nHost: a\r\nX-Request-Id: mine\r\nContent-Length: 0\r\n\r\n"
    ));
    client.reply().map(|reply| reply.status)
}

/// The id in each record, with the record's number.
fn ids(world: &World) -> Vec<(String, i64)> {
    let value = |found: super::Found| {
        let value: Value = serde_json::from_slice(&found.value).unwrap();
        let id = value["id"].as_str().unwrap().to_owned();
        assert_eq!(found.id, Some(format!("{id}/0").into_bytes()));
        (id, value["n"].as_i64().unwrap())
    };
    read(world, "in").into_iter().map(value).collect()
}

/// An instance that passes requests on, and dies as soon as they are answered: its own answer never leaves.
fn dies_behind_the_work(door: SocketAddr) -> (u16, &'static AtomicBool) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let died: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(false)));
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            let (mut piece, mut request) = ([0; 4096], Vec::new());
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                match socket.read(&mut piece) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => request.extend_from_slice(&piece[..count]),
                }
            }
            if request.is_empty() {
                continue;
            }
            let mut behind = std::net::TcpStream::connect(door).unwrap();
            behind.write_all(&request).unwrap();
            let answered = behind.read(&mut piece).unwrap();
            assert!(
                piece[..answered].starts_with(b"HTTP/1.1 200"),
                "{}",
                String::from_utf8_lossy(&piece[..answered])
            );
            died.store(true, SeqCst);
        }
    });
    (port, died)
}

#[test]
fn a_put_that_nginx_sends_twice_has_one_id_and_is_one_row() {
    let world = World::alone("collect_nginx");
    world.create_topic("in", 1);
    world.create_table("t", ", id TEXT PRIMARY KEY");
    let door = open(&world, free_port(), "", &routes(&world));
    let (dying, died) = dies_behind_the_work(door.address);
    let port = free_port();
    let file = world.file("nginx.conf", &proxy(port, &[dying, door.address.port()]));
    world.stack(&["nginx", "start", &file]);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for("a first record", 60, || put(address, 0) == Some(200));
    for n in 1..4 {
        assert_eq!(put(address, n), Some(200), "the client sees one good answer");
    }
    assert!(died.load(SeqCst));
    let ids = ids(&world);
    let mut once: Vec<_> = ids.iter().map(|(id, _)| id).collect();
    once.sort();
    once.dedup();
    assert!(ids.len() > once.len(), "nothing came twice: {ids:?}");
    assert!(once.iter().all(|id| id.len() == 32 && *id != "mine"), "{ids:?}");
    let engine = world.engine(&world.model("in", "t", "mode = \"first\""), &[]);
    world.wait_drained(&["in"], 60);
    assert_eq!(world.count("SELECT count(*) FROM t"), once.len() as i64);
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 0);
    assert!(engine.stop().0.success());
    world.stack(&["nginx", "stop"]);
}

#[test]
fn instances_die_behind_nginx_and_every_accepted_put_is_one_row() {
    let world = World::alone("collect_behind");
    world.create_topic("in", 3);
    world.create_table("t", ", id TEXT PRIMARY KEY");
    let config = routes(&world) + &world.model("in", "t", "mode = \"first\"");
    let ports = [free_port(), free_port(), free_port()];
    let start = |port: u16| open(&world, port, "threads = 1\ndeliver_timeout = \"2s\"", &config);
    let mut doors: Vec<Option<Door>> = ports.iter().map(|port| Some(start(*port))).collect();
    let engine = world.engine(&config, &[]);
    let port = free_port();
    // The third one comes later, and is taken up by a reload.
    let file = world.file("nginx.conf", &proxy(port, &ports[..2]));
    world.stack(&["nginx", "start", &file]);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for("a first record", 60, || put(address, 0) == Some(200));
    let (stop, next, accepted, refused) =
        (AtomicBool::new(false), AtomicU64::new(1), AtomicU64::new(1), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !stop.load(SeqCst) {
                    let n = next.fetch_add(1, SeqCst);
                    match put(address, n) {
                        Some(200) => accepted.fetch_add(1, SeqCst),
                        _ => refused.fetch_add(1, SeqCst),
                    };
                }
            });
        }
        world.file("nginx.conf", &proxy(port, &ports));
        world.stack(&["nginx", "reload"]);
        for strike in 0..number("NGINX_KILLS", 6) as usize {
            let before = accepted.load(SeqCst);
            wait_for("some to be accepted", 300, || accepted.load(SeqCst) > before + 300);
            doors[strike % 3].take().unwrap().engine.kill();
            doors[strike % 3] = Some(start(ports[strike % 3]));
        }
        stop.store(true, SeqCst);
    });
    world.wait_drained(&["in"], 120);
    let ids = ids(&world);
    let mut once: Vec<_> = ids.iter().map(|(id, _)| id).collect();
    once.sort();
    once.dedup();
    let accepted = accepted.into_inner();
    println!(
        "{accepted} accepted, {} not, {} records, {} of them sent twice by nginx",
        refused.into_inner(),
        ids.len(),
        ids.len() - once.len()
    );
    // A request that was not answered may be stored as well; none is stored twice.
    assert_eq!(world.count("SELECT count(*) FROM t"), once.len() as i64);
    assert_eq!(world.count("SELECT count(*) - count(DISTINCT n) FROM t WHERE n > 0"), 0);
    assert!(world.count("SELECT count(*) FROM t WHERE n > 0") as u64 + 1 >= accepted);
    assert!(engine.stop().0.success());
    // Each instance had its share.
    world.stack(&["nginx", "kill"]);
    drop(doors);
}
