//! What others do: each is answered once at most, and the connection is closed; nothing leaks.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::client::{Client, End, post};
use crate::{short, toy};
use rowmill::http::limits::Limits;

/// One answer with this status, then the end, whatever else was sent.
#[track_caller]
fn refused(address: std::net::SocketAddr, bytes: &[u8], status: u16) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    let mut client = Client::new(address);
    client.send(bytes);
    let reply = client.reply();
    assert_eq!(reply.as_ref().map(|reply| reply.status), Some(status), "{shown:?}: {reply:?}");
    assert!(reply.unwrap().head.contains("connection: close"), "{shown:?}");
    let (end, more) = client.end(Duration::from_secs(5));
    assert_eq!((end, more), (End::Closed, 0), "{shown:?}");
}

#[test]
fn malformed_requests_are_answered_once_and_closed() {
    let toy = toy(short());
    let mut tried = 0;
    let mut check = |bytes: &str, status: u16| {
        refused(toy.address, bytes.as_bytes(), status);
        // What follows is never a request of its own.
        refused(toy.address, format!("{bytes}GET /echo HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes(), status);
        tried += 2;
    };
    let with = |lines: &str| format!("POST /echo HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
    for lines in [
        "Content-Length: +1",
        "Content-Length: -1",
        "Content-Length: 1, 1",
        "Content-Length: 0x1",
        "Content-Length: 1e3",
        "Content-Length:",
        "Content-Length: 1 1",
        "Content-Length: 99999999999999999999999",
        "Content-Length: 1\r\nContent-Length: 1",
        "Content-Length: 1\r\nContent-Length: 2",
        "Content-Length: 1\r\ncontent-length: 1",
        "Content-Length : 1",
        " Content-Length: 1",
        "\tContent-Length: 1",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, gzip",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 1",
        "Content-Length: 1\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding : chunked",
        "A: b\r\n folded: c",
        "A: b\rc: d",
        "A: b\nc: d",
        "A",
        ": b",
        "Host: b",
        "A\0: b",
        "A: \0",
        "A(b): c",
    ] {
        check(&with(lines), 400);
    }
    for line in
        ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\n\n", "get / HTTP/1.1\r\nHost: a\r\n\r\n", "\0\0\0\0"]
    {
        check(line, 400);
    }
    for line in [
        "GET /\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
    ] {
        check(line, 505);
    }
    check("\x16\x03\x01\x02\0", 400);
    check(&with(&format!("A: {}", "x".repeat(20_000))), 431);
    check(&with(&"A: b\r\n".repeat(80)), 431);
    check(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(10_000)), 414);
    assert!(tried >= 80, "{tried}");
    let chunked = |body: &str| {
        format!("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}").into_bytes()
    };
    for body in
        ["x\r\n", "\r\n", "0x3\r\nabc\r\n", "3\nabc\r\n", "3\r\nabcd\r\n", "ffffffffffffffffff\r\n", "-1\r\n"]
    {
        refused(toy.address, &chunked(body), 400);
    }
    refused(toy.address, &chunked(&format!("3;{}\r\n", "x".repeat(1000))), 400);
    refused(toy.address, &chunked(&format!("0\r\nX: {}\r\n\r\n", "x".repeat(9000))), 400);
    refused(toy.address, &chunked(&format!("{:x}\r\n{}", 2_000_000, "x".repeat(2_000_000))), 413);
    refused(toy.address, post("/echo", &"x".repeat(2_000_000)).as_bytes(), 413);
}

#[test]
fn who_is_slow_does_not_stay() {
    let toy = toy(short());
    let began = Instant::now();
    // A byte now and then: the deadline is absolute.
    let slow = |request: &'static str, status: u16| {
        let mut client = Client::new(toy.address);
        std::thread::spawn(move || {
            for byte in request.as_bytes() {
                client.send([*byte]);
                std::thread::sleep(Duration::from_millis(40));
            }
            assert_eq!(client.reply().map(|reply| reply.status), Some(status), "{request:?}");
            assert_eq!(client.end(Duration::from_secs(5)), (End::Closed, 0));
        })
    };
    let head =
        slow("POST /echo HTTP/1.1\r\nHost: a\r\nX: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 408);
    let body = slow(
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60\r\n\r\naaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        408,
    );
    head.join().unwrap();
    body.join().unwrap();
    assert!(began.elapsed() < Duration::from_secs(10));
    // Who asks and does not read.
    let mut client = Client::new(toy.address);
    for _ in 0..20 {
        client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    let gone = Instant::now();
    while toy.shared.connections.load(Relaxed) > 0 && gone.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(toy.shared.connections.load(Relaxed), 0, "the one that does not read is gone");
}

#[test]
fn who_leaves_takes_nothing_along() {
    let toy = toy(Limits::default());
    for n in 0..2000 {
        let mut client = Client::new(toy.address);
        match n % 5 {
            0 => {}
            1 => client.send("POST /echo HT"),
            2 => client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc"),
            3 => client.send(post("/later", "")),
            _ => client.send("GET /large HTTP/1.1\r\nHost: a\r\n\r\n"),
        }
    }
    let began = Instant::now();
    while toy.shared.connections.load(Relaxed) > 0 && began.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(toy.shared.connections.load(Relaxed), 0);
    let mut client = Client::new(toy.address);
    client.send(post("/echo", "still here"));
    assert_eq!(client.reply().unwrap().body, b"still here");
}

#[test]
fn one_address_does_not_take_every_place() {
    let toy = toy(Limits { connections: 20, per_address: Some(5), ..Limits::default() });
    let mut taken: Vec<Client> = (0..5).map(|_| Client::new(toy.address)).collect();
    std::thread::sleep(Duration::from_millis(100));
    let mut more = Client::new(toy.address);
    more.send(post("/echo", "a"));
    assert!(more.reply().is_none());
    taken.pop();
    std::thread::sleep(Duration::from_millis(200));
    let mut more = Client::new(toy.address);
    more.send(post("/echo", "a"));
    assert_eq!(more.reply().unwrap().body, b"a");
}
