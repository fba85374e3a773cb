//! What well-meant clients do.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::client::{Client, End, post};
use crate::{short, toy};
use rowmill::http::limits::Limits;

#[test]
fn one_connection_serves_many_requests() {
    let toy = toy(Limits::default());
    let mut client = Client::new(toy.address);
    for body in ["", "a", &"b".repeat(200_000)] {
        client.send(post("/echo", body));
        let reply = client.reply().unwrap();
        assert_eq!((reply.status, reply.body.len()), (200, body.len()));
        assert!(reply.head.contains("keep-alive: timeout=75"), "{}", reply.head);
    }
    client.send("GET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(client.reply().unwrap().status, 404);
    client.send("HEAD /large HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n");
    // A HEAD's answer has a length and no body.
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(client.end(Duration::from_millis(300)).0, End::Open);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let toy = toy(Limits::default());
    let mut client = Client::new(toy.address);
    let all: String =
        (0..50).map(|n| post(if n % 7 == 3 { "/later" } else { "/echo" }, &format!("n{n}"))).collect();
    // In two pieces, cut within a head.
    let (first, rest) = all.split_at(all.len() / 2 + 11);
    client.send(first);
    std::thread::sleep(Duration::from_millis(100));
    client.send(rest);
    for n in 0..50 {
        let expected = if n % 7 == 3 { "at last".to_owned() } else { format!("n{n}") };
        assert_eq!(String::from_utf8(client.reply().unwrap().body).unwrap(), expected);
    }
}

#[test]
fn chunks_come_in_any_pieces_and_the_next_request_after_them() {
    let toy = toy(Limits::default());
    let request = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n5;x=y\r\ndefgh\r\n0\r\nA: b\r\n\r\n";
    let two = request.to_owned() + &post("/echo", "next");
    for piece in [1, 2, 7, two.len()] {
        let mut client = Client::new(toy.address);
        client.socket.set_nodelay(true).unwrap();
        for bytes in two.as_bytes().chunks(piece) {
            client.send(bytes);
            if piece < 3 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        assert_eq!(client.reply().unwrap().body, b"abcdefgh");
        assert_eq!(client.reply().unwrap().body, b"next");
    }
}

#[test]
fn an_empty_header_and_an_empty_line_before_a_request_do_no_harm() {
    let toy = toy(Limits::default());
    let mut client = Client::new(toy.address);
    for _ in 0..2 {
        client.send("POST /echo HTTP/1.1\r\nHost: a\r\nX-Empty:\r\nContent-Length: 2\r\n\r\nab\r\n");
        assert_eq!(client.reply().unwrap().body, b"ab");
    }
}

#[test]
fn who_waits_for_100_is_told_to_go_on() {
    let toy = toy(Limits::default());
    let mut client = Client::new(toy.address);
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n");
    assert_eq!(client.reply().unwrap().status, 100);
    client.send("ab");
    assert_eq!(client.reply().unwrap().body, b"ab");
    // And is not, where the answer is known.
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n");
    assert_eq!(client.reply().unwrap().status, 413);
    assert_eq!(client.end(Duration::from_secs(5)), (End::Closed, 0));
}

#[test]
fn a_client_may_close_its_half_and_wait() {
    let toy = toy(Limits::default());
    let mut client = Client::new(toy.address);
    client.send(post("/later", ""));
    client.close_half();
    assert_eq!(client.reply().unwrap().body, b"at last");
    assert_eq!(client.end(Duration::from_secs(5)), (End::Closed, 0));
}

#[test]
fn http_1_0_is_answered_and_closed() {
    let toy = toy(Limits::default());
    let mut client = Client::new(toy.address);
    client.send("POST /echo HTTP/1.0\r\nContent-Length: 2\r\n\r\nab");
    assert_eq!(client.reply().unwrap().body, b"ab");
    assert_eq!(client.end(Duration::from_secs(5)), (End::Closed, 0));
}

#[test]
fn the_end_is_announced_with_an_answer() {
    let limits = Limits { age: Duration::from_millis(300), ..short() };
    let young = toy(limits);
    let mut client = Client::new(young.address);
    client.send(post("/echo", "a"));
    assert!(client.reply().unwrap().head.contains("keep-alive"));
    std::thread::sleep(Duration::from_millis(500));
    client.send(post("/echo", "b"));
    assert!(client.reply().unwrap().head.contains("connection: close"));
    assert_eq!(client.end(Duration::from_secs(5)).0, End::Closed);
    // At an orderly end likewise: those that are here get an answer, and nobody new comes in.
    let toy = toy(Limits::default());
    let mut old = Client::new(toy.address);
    old.send(post("/echo", "a"));
    assert_eq!(old.reply().unwrap().body, b"a");
    toy.shared.draining.store(true, Relaxed);
    std::thread::sleep(Duration::from_millis(1500));
    old.send(post("/echo", "b"));
    let last = old.reply().unwrap();
    assert!(last.body == b"b" && last.head.contains("connection: close"), "{last:?}");
    assert!(std::net::TcpStream::connect(toy.address).is_err());
}

#[test]
fn an_idle_connection_ends_after_its_time_and_not_before() {
    let toy = toy(short());
    let mut client = Client::new(toy.address);
    client.send(post("/echo", "a"));
    assert!(client.reply().unwrap().head.contains("keep-alive: timeout=2"));
    let began = Instant::now();
    assert_eq!(client.end(Duration::from_secs(10)), (End::Closed, 0));
    assert!(began.elapsed() > Duration::from_secs(2), "{:?}", began.elapsed());
}

#[test]
fn a_large_answer_reaches_a_slow_reader() {
    let toy = toy(Limits::default());
    let mut client = Client::new(toy.address);
    client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(client.reply().unwrap().body.len(), 4 << 20);
    client.send(post("/echo", "next"));
    assert_eq!(client.reply().unwrap().body, b"next");
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// In a process of its own: the memory of this one is that of all tests.
#[test]
fn an_idle_connection_holds_next_to_nothing() {
    let alone = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "polite::memory_of_idle_connections", "--nocapture"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&alone.stdout).into_owned() + &String::from_utf8_lossy(&alone.stderr);
    assert!(alone.status.success() && said.contains("1 passed"), "{said}");
}

#[test]
#[ignore = "an_idle_connection_holds_next_to_nothing runs it"]
fn memory_of_idle_connections() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let many = 4000.min(most as usize / 3);
    let toy = toy(Limits::default());
    let open = |count: usize| -> Vec<Client> {
        (0..count)
            .map(|_| {
                let mut client = Client::new(toy.address);
                client.send(post("/echo", "a"));
                assert_eq!(client.reply().unwrap().body, b"a");
                client
            })
            .collect()
    };
    // What is made once is made before.
    drop(open(many));
    let before = resident();
    let kept = open(many);
    let bytes = resident().saturating_sub(before) / many as u64;
    // A client of this test's has a buffer of its own in this process.
    assert!(bytes < 2_000, "{bytes} bytes for each of {many} idle connections");
    drop(kept);
}
