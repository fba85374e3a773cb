//! Answers on a real PostgreSQL: what is whole looks whole, what is not does not, and nobody is given what another one asked for.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::contract;
use crate::world::{Engine, World, record, rowmill, wait_for};

/// A process on a port of its own.
pub(crate) struct Open {
    pub(crate) engine: Engine,
    pub(crate) address: SocketAddr,
}

impl Open {
    /// A figure of /metrics, all its samples with these words summed.
    pub(crate) fn figure(&self, name: &str, words: &str) -> f64 {
        figure(self.address, name, words)
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn settings(port: u16, more: &str, endpoints: &str) -> String {
    format!("[metrics]\nlisten = \"off\"\n[serve]\nlisten = \"127.0.0.1:{port}\"\n{more}\n{endpoints}")
}

fn open_with(world: &World, more: &str, endpoints: &str, environment: &[(&str, &str)]) -> Open {
    let port = free_port();
    let engine = world.verb("serve", &settings(port, more, endpoints), environment);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    wait_for("the port to open", 60, || TcpStream::connect(address).is_ok());
    wait_for("all sessions to be open", 60, || {
        figure(address, "rowmill_serve_sessions", "state=\"missing\"") == 0.0
            && figure(address, "rowmill_serve_sessions", "state=\"idle\"") > 0.0
    });
    Open { engine, address }
}

pub(crate) fn open(world: &World, more: &str, endpoints: &str) -> Open {
    open_with(world, more, endpoints, &[])
}

/// An answer, read to the end of its connection.
#[derive(Debug)]
struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    body: Vec<u8>,
    /// All that was announced came, and nobody reset the connection.
    is_whole: bool,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

/// A request on its way.
struct Asked {
    socket: TcpStream,
    address: SocketAddr,
    line: String,
}

fn send(address: SocketAddr, request: &[u8]) -> Asked {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    // Who is refused by its head may find the way closed before its body is sent; the answer is there all the same.
    drop(socket.write_all(request));
    let line = String::from_utf8_lossy(request).lines().next().unwrap_or_default().to_owned();
    Asked { socket, address, line }
}

/// The answer, which is what the document says of it.
#[track_caller]
fn read(asked: Asked) -> Answer {
    let Asked { socket, address, line } = asked;
    let answer = read_all(socket);
    if answer.status != 0 {
        let body = Some(&answer.body[..]).filter(|_| answer.is_whole);
        contract::hold(
            address,
            contract::Seen { line: &line, status: answer.status, head: &answer.head, body },
        );
    }
    answer
}

fn read_all(mut socket: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let was_closed = socket.read_to_end(&mut bytes).is_ok();
    let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4) else {
        return Answer { status: 0, head: String::new(), body: bytes, is_whole: false };
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_lowercase();
    let rest = &bytes[end..];
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map(|l| l.parse::<usize>().unwrap());
    let (body, is_whole) = if head.contains("transfer-encoding: chunked") {
        dechunked(rest)
    } else {
        (rest.to_vec(), length.is_none_or(|length| rest.len() == length || head.starts_with("http/1.1 304")))
    };
    Answer { status: head[9..12].parse().unwrap(), head, body, is_whole: is_whole && was_closed }
}

fn dechunked(mut rest: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(at) = rest.windows(2).position(|w| w == b"\r\n") else { return (body, false) };
        let Ok(length) = usize::from_str_radix(std::str::from_utf8(&rest[..at]).unwrap(), 16) else {
            return (body, false);
        };
        if length == 0 {
            return (body, true);
        }
        let Some(chunk) = rest.get(at + 2..at + 2 + length) else {
            body.extend_from_slice(&rest[at + 2..]);
            return (body, false);
        };
        body.extend_from_slice(chunk);
        rest = rest.get(at + 4 + length..).unwrap_or_default();
    }
}

fn get_with(address: SocketAddr, path: &str, headers: &str) -> Answer {
    read(send(
        address,
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n").as_bytes(),
    ))
}

fn get(address: SocketAddr, path: &str) -> Answer {
    get_with(address, path, "")
}

fn post(address: SocketAddr, path: &str, body: &str) -> Answer {
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    read(send(address, request.as_bytes()))
}

/// A figure of /metrics, all its samples with these words summed.
fn figure(address: SocketAddr, name: &str, words: &str) -> f64 {
    let page = get(address, "/metrics").text();
    let samples = page.lines().filter(|line| line.starts_with(name) && line.contains(words));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

const SHAPES: &str = r#"
[[endpoint]]
path = "/rows"
sql = "SELECT n, word, x FROM t ORDER BY n"
[[endpoint]]
path = "/arrays"
sql = "SELECT n, word FROM t ORDER BY n -- as lists"
shape = "arrays"
[[endpoint]]
path = "/object/{n}"
params.n = { type = "int8" }
sql = "SELECT n, word FROM t WHERE n = :n"
shape = "object"
[[endpoint]]
path = "/value"
sql = "SELECT max(n) AS most FROM t"
shape = "value"
[[endpoint]]
path = "/columns"
sql = "SELECT n, word FROM t ORDER BY n"
shape = "columns"
[[endpoint]]
path = "/api"
params.tag = { type = "text", length_max = 20 }
params.start = { type = "int8", unit = "ns" }
params.end = { type = "int8", unit = "ns", after = "start", span_min = "10m", span_max = "31d" }
sql = "SELECT n AS time, word FROM t WHERE word <> :tag AND n > :start - 1 ORDER BY n"
response = { tagName = ":tag", start = ":start", end = ":end", samples = "rows" }
[[endpoint]]
path = "/echo"
params.a = { type = "text" }
params.l = { type = "text[]", optional = true }
sql = "SELECT :a::text AS a, :l::text[] AS l"
[[endpoint]]
path = "/plot/{n}"
params.n = { type = "int8" }
sql = "SELECT i AS step, i * i AS value FROM generate_series(1, :n) AS i"
formats = ["svg", "csv", "json", "ndjson"]
chart = { x = "step", y = "value", y_scale = "log" }
[[endpoint]]
path = "/many/{n}"
params.n = { type = "int8" }
sql = "SELECT i FROM generate_series(1, :n) AS i"
rows_max = 1000
[[endpoint]]
path = "/fault"
sql = "SELECT 1 / (n - n) AS x FROM t"
[[endpoint]]
path = "/times"
sql = "SELECT 'infinity'::timestamptz AS a, '2026-03-01 07:08:04+07'::timestamptz AS b, 'NaN'::float8 AS c, '-Infinity'::numeric AS d"
"#;

#[test]
fn answers_have_their_shapes_and_forms() {
    let world = World::new("serve");
    world
        .sql()
        .batch_execute(
            "CREATE TABLE t (n BIGINT, word TEXT, x DOUBLE PRECISION);
             INSERT INTO t VALUES (1, 'a', 1.5), (2, NULL, 'NaN'), (3, 'say \"x\", y', '-Infinity')",
        )
        .unwrap();
    let open = open(&world, "title = \"A <title>\"", SHAPES);
    let at = open.address;
    let rows = get(at, "/rows");
    assert_eq!((rows.status, rows.header("content-type")), (200, Some("application/json")), "{rows:?}");
    let expected = json!([
        {"n": 1, "word": "a", "x": 1.5}, {"n": 2, "word": null, "x": "NaN"}, {"n": 3, "word": "say \"x\", y", "x": "-Infinity"}
    ]);
    assert_eq!(rows.json(), expected);
    assert_eq!(get(at, "/arrays").json(), json!([[1, "a"], [2, null], [3, "say \"x\", y"]]));
    assert_eq!(get(at, "/object/2").json(), json!({"n": 2, "word": null}));
    assert_eq!(get(at, "/object/9").status, 404);
    assert_eq!(get(at, "/value").text(), "3");
    assert_eq!(get(at, "/columns").json(), json!({"n": [1, 2, 3], "word": ["a", null, "say \"x\", y"]}));
    let api = get(at, "/api?tag=x&start=1&end=600000000001");
    assert_eq!(
        api.json(),
        json!({"tagName": "x", "start": 1, "end": 600_000_000_001i64,
               "samples": [{"time": 1, "word": "a"}, {"time": 3, "word": "say \"x\", y"}]}),
    );
    assert_eq!(
        get(at, "/times").json(),
        json!([{"a": "infinity", "b": "2026-03-01T00:08:04+00:00", "c": "NaN", "d": "-Infinity"}])
    );
    // Forms.
    let csv = get_with(at, "/rows", "Accept: text/csv\r\n");
    assert_eq!(csv.text(), "n,word,x\n1,a,1.5\n2,,NaN\n3,\"say \"\"x\"\", y\",-Infinity\n");
    let lines = get_with(at, "/rows", "Accept: application/x-ndjson\r\n");
    assert_eq!(lines.text().lines().count(), 3);
    assert_eq!(serde_json::from_str::<Value>(lines.text().lines().nth(1).unwrap()).unwrap(), expected[1]);
    assert_eq!(get(at, "/plot/3.csv").text(), "step,value\n1,1\n2,4\n3,9\n");
    assert_eq!(get(at, "/plot/2.json").json(), json!([{"step": 1, "value": 1}, {"step": 2, "value": 4}]));
    let chart = get(at, "/plot/100000");
    assert_eq!(chart.header("content-type"), Some("image/svg+xml"));
    assert!(
        chart.is_whole && chart.text().starts_with("<svg") && chart.text().ends_with("</svg>\n"),
        "{chart:?}"
    );
    assert!(chart.body.len() < 100_000, "{} bytes", chart.body.len());
    let none = get_with(at, "/rows", "Accept: application/xml\r\n");
    assert_eq!((none.status, none.json()["formats"][0].as_str()), (406, Some("application/json")));
    let packed = get_with(at, "/plot/5000.csv", "Accept-Encoding: gzip\r\n");
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    let mut unpacked = String::new();
    flate2::read::MultiGzDecoder::new(&packed.body[..]).read_to_string(&mut unpacked).unwrap();
    assert_eq!(unpacked, get(at, "/plot/5000.csv").text());
    let head = read(send(at, b"HEAD /rows HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    assert_eq!((head.status, head.body.len()), (200, 0));
    // What a value says is never SQL.
    for text in ["'; DROP TABLE t; --", "$1", ":a", "\\", "\"", "ü\u{1F600}", "", "%27 OR 1=1", "{\"a\",b}"]
    {
        let encoded: String = text.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let echoed = get(at, &format!("/echo?a={encoded}&l={encoded}"));
        let list: Vec<&str> = text.split(',').collect();
        assert_eq!(echoed.json()[0]["a"], text, "{echoed:?}");
        assert_eq!(echoed.json()[0]["l"], json!(list), "{echoed:?}");
    }
    // Refusals.
    let wrong = get(at, "/api?tag=012345678901234567890&start=x&end=5&other=1");
    let names: Vec<&str> = wrong.json()["parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["name"].as_str().unwrap().to_owned())
        .map(String::leak)
        .map(|s| &*s)
        .collect();
    assert_eq!((wrong.status, names), (400, vec!["other", "start", "tag"]), "{wrong:?}");
    assert_eq!(wrong.header("content-type"), Some("application/problem+json"));
    let soon = get(at, "/api?tag=x&start=1&end=2");
    assert!(soon.status == 400 && soon.text().contains("less than 10 min after"), "{soon:?}");
    assert_eq!(get(at, "/nothing").status, 404);
    let method = post(at, "/rows", "{}");
    assert_eq!((method.status, method.header("allow")), (405, Some("get")));
    assert_eq!(get(at, "/many/1000").json().as_array().unwrap().len(), 1000);
    let many = get(at, "/many/1001");
    assert!(many.status == 413 && many.text().contains("more than 1000 rows"), "{many:?}");
    let fault = get(at, "/fault");
    assert_eq!(fault.status, 500);
    let id = fault.json()["id"].as_str().unwrap().to_owned();
    assert!(open.engine.log().contains(&id) && open.engine.log().contains("22012"), "{}", open.engine.log());
    assert!(!fault.text().contains("SELECT") && !fault.text().contains("division"), "{fault:?}");
    // The pages.
    let openapi = get(at, "/openapi.json").json();
    assert_eq!(openapi["openapi"], "3.1.0");
    let schema =
        &openapi["paths"]["/rows"]["get"]["responses"]["200"]["content"]["application/json"]["schema"];
    assert_eq!(schema["items"]["properties"]["n"]["type"][0], "integer", "{schema}");
    let docs = get(at, "/docs");
    assert!(
        docs.text().contains("A &lt;title&gt;") && docs.head.contains("content-security-policy"),
        "{docs:?}"
    );
    assert_eq!(get(at, "/readyz").status, 200);
    assert!(figure(at, "rowmill_http_requests_total", "route=\"GET /rows\",code=\"200\"") >= 3.0);
    let (status, took) = open.engine.stop();
    assert!(status.success() && took < Duration::from_secs(5), "{status} {took:?}");
}

#[test]
fn what_breaks_off_never_looks_whole() {
    let world = World::new("serve_broken");
    let endpoints = "[[endpoint]]\npath = \"/breaks/{at}\"\nparams.at = { type = \"int8\" }\n\
                     sql = \"SELECT i, 1 / (:at - i) AS x FROM generate_series(1::bigint, 200000) AS i\"\nstream = true\n\
                     formats = [\"json\", \"csv\", \"ndjson\"]\ntimeout = \"60s\"\n\
                     [[endpoint]]\npath = \"/over/{n}\"\nparams.n = { type = \"int8\" }\nrows_max = 50000\n\
                     sql = \"SELECT i FROM generate_series(1, :n) AS i\"\n";
    let open = open(&world, "", endpoints);
    for form in ["json", "csv", "ndjson"] {
        let whole = get(open.address, &format!("/breaks/0.{form}"));
        assert!(whole.status == 200 && whole.is_whole, "{form}");
        let old = read(send(open.address, format!("GET /breaks/0.{form} HTTP/1.0\r\n\r\n").as_bytes()));
        assert!(old.status == 200 && old.is_whole && old.body == whole.body, "{form}");
        let late = get(open.address, &format!("/breaks/100000.{form}"));
        assert!(
            late.status == 200 && !late.is_whole && late.body.len() > 64 << 10,
            "{form} {}",
            late.body.len()
        );
        assert!(!late.body.ends_with(b"]"), "{form}");
        // Without chunks the end of the connection is the end of the body: so it must not be an end.
        let old = read(send(open.address, format!("GET /breaks/100000.{form} HTTP/1.0\r\n\r\n").as_bytes()));
        assert!(old.status == 200 && !old.is_whole, "{form}: a plain close");
        // Among the first rows the status is still open.
        let early = get(open.address, &format!("/breaks/100.{form}"));
        assert!(early.status == 400 && early.is_whole && early.json()["sqlstate"] == "22012", "{early:?}");
    }
    let over = get(open.address, "/over/50001");
    assert!(over.status == 200 && !over.is_whole, "{} {}", over.status, over.body.len());
    assert!(open.engine.log().contains("was broken off in its middle"), "{}", open.engine.log());
    // Nobody's session is left behind.
    wait_for("all sessions to be idle", 30, || {
        figure(open.address, "rowmill_serve_sessions", "state=\"idle\"") == 8.0
    });
}

/// Clients that ask again and again, and what they were told that they should not be.
fn steady(
    address: SocketAddr,
    path: &'static str,
    expected: &'static str,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<(u64, Vec<String>)> {
    std::thread::spawn(move || {
        let (mut count, mut wrong) = (0, Vec::new());
        while !stop.load(SeqCst) {
            let answer = get(address, path);
            count += 1;
            if answer.status != 200 || answer.text() != expected {
                wrong.push(format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body)));
            }
        }
        (count, wrong)
    })
}

fn leavers() -> u64 {
    from_environment("SERVE_LEAVERS", 600)
}

#[test]
fn who_leaves_takes_only_its_own_statement_along() {
    let world = World::new("serve_leave");
    let endpoints = "[[endpoint]]\npath = \"/slow/{who}\"\nparams.who = { type = \"int8\" }\ntimeout = \"30s\"\n\
                     sql = \"SELECT pg_sleep(20)::text AS a, :who AS b\"\n\
                     [[endpoint]]\npath = \"/quick\"\nsql = \"SELECT 7 AS n FROM pg_sleep(0.001)\"\nshape = \"value\"\nshare = false\n";
    let open = open(&world, "connections = 2\nqueue_max = 1000\nqueue_wait = \"30s\"", endpoints);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..3).map(|_| steady(open.address, "/quick", "7", stop.clone())).collect();
    for number in 0..leavers() {
        let request = format!("GET /slow/{number} HTTP/1.1\r\nHost: a\r\n\r\n");
        let socket = send(open.address, request.as_bytes());
        std::thread::sleep(Duration::from_millis(number % 21));
        // Some go with a reset, most with a plain close.
        if number % 3 == 0 {
            socket.socket.shutdown(Shutdown::Both).ok();
        }
    }
    stop.store(true, SeqCst);
    let told: Vec<(u64, Vec<String>)> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let count: u64 = told.iter().map(|(count, _)| count).sum();
    let wrong: Vec<&String> = told.iter().flat_map(|(_, wrong)| wrong).collect();
    assert!(
        wrong.is_empty() && count > 100,
        "{count} answers, of which wrong: {:?}",
        &wrong[..wrong.len().min(5)]
    );
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query \
                    LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()";
    wait_for("the statements of those who left to end", 10, || world.count(sleeping) == 0);
    let cancels = figure(open.address, "rowmill_serve_cancels_total", "");
    assert!(cancels > 20.0, "{cancels}");
    wait_for("all sessions to be idle", 30, || {
        figure(open.address, "rowmill_serve_sessions", "state=\"idle\"") == 2.0
    });
    assert_eq!(figure(open.address, "rowmill_serve_waiting", ""), 0.0);
}

#[test]
fn equal_questions_are_one_and_the_first_may_leave() {
    let world = World::new("serve_shared");
    let endpoints = "[[endpoint]]\npath = \"/when/{n}\"\nparams.n = { type = \"int8\" }\n\
                     sql = \"SELECT clock_timestamp()::text AS at, repeat('x', :n::int) AS fill FROM pg_sleep(1)\"\n\
                     [[endpoint]]\npath = \"/large/{n}\"\nparams.n = { type = \"int8\" }\nstream = true\ntimeout = \"30s\"\n\
                     sql = \"SELECT i, repeat('x', 100) AS fill FROM pg_sleep(0.5), generate_series(1, :n) AS i\"\n\
                     [[endpoint]]\nmethod = \"POST\"\npath = \"/write\"\nwrite = true\nsql = \"INSERT INTO w VALUES (1) RETURNING n\"\n";
    world.sql().batch_execute("CREATE TABLE w (n INT)").unwrap();
    let open = open(&world, "", endpoints);
    let ask = |path: &str| {
        send(open.address, format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes())
    };
    let first = ask("/when/5");
    let others: Vec<Asked> = (0..20).map(|_| ask("/when/5")).collect();
    let other_value = ask("/when/6");
    std::thread::sleep(Duration::from_millis(300));
    drop(first);
    let told: Vec<String> = others.into_iter().map(|socket| read(socket).text()).collect();
    assert!(told.iter().all(|text| *text == told[0] && text.contains("xxxxx")), "{told:?}");
    assert_ne!(read(other_value).text(), told[0]);
    assert_eq!(figure(open.address, "rowmill_serve_joined_total", "route=\"GET /when/{n}\""), 20.0);
    // Nobody joins a flight from before a write.
    let before = ask("/when/7");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(post(open.address, "/write", "").status, 200);
    let after = ask("/when/7");
    assert_ne!(read(before).text(), read(after).text());
    // Too large to be kept for others: each has it whole all the same, whether the one who led stays or not.
    for leaves in [false, true] {
        let leader = ask("/large/50000");
        let others: Vec<Asked> = (0..3).map(|_| ask("/large/50000")).collect();
        if leaves {
            std::thread::sleep(Duration::from_millis(200));
            drop(leader);
        } else {
            let answer = read(leader);
            assert!(answer.is_whole && answer.json().as_array().unwrap().len() == 50_000);
        }
        for socket in others {
            let answer = read(socket);
            assert!(answer.status == 200 && answer.is_whole, "{} {}", answer.status, answer.is_whole);
            assert_eq!(answer.json().as_array().unwrap().len(), 50_000);
        }
    }
}

#[test]
fn who_cannot_be_served_is_told_so_in_time() {
    let world = World::new("serve_queue");
    let endpoints = "[[endpoint]]\npath = \"/sleep/{ms}\"\nparams.ms = { type = \"int8\" }\nshare = false\n\
                     sql = \"SELECT 1 AS n FROM pg_sleep(:ms / 1000.0)\"\n";
    let open = open(
        &world,
        "connections = 1\nqueue_max = 2\nqueue_wait = \"300ms\"\nstatement_timeout = \"700ms\"",
        endpoints,
    );
    let ask = |ms: u32| {
        send(
            open.address,
            format!("GET /sleep/{ms} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes(),
        )
    };
    let long = ask(5000);
    std::thread::sleep(Duration::from_millis(100));
    let began = Instant::now();
    let waiting = [ask(1), ask(1)];
    std::thread::sleep(Duration::from_millis(50));
    let refused = read(ask(1));
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{refused:?}");
    assert!(refused.text().contains("as many wait"), "{refused:?}");
    for socket in waiting {
        let answer = read(socket);
        assert!(answer.status == 503 && answer.text().contains("waited 300 ms"), "{answer:?}");
    }
    assert!(began.elapsed() < Duration::from_millis(1500), "{:?}", began.elapsed());
    let late = read(long);
    assert!(late.status == 504 && late.text().contains("longer than 700 ms"), "{late:?}");
    assert_eq!(get(open.address, "/sleep/1").status, 200);
}

#[test]
fn a_table_may_change_and_only_its_endpoint_is_concerned() {
    let world = World::new("serve_change");
    let mut sql = world.sql();
    sql.batch_execute(
        "CREATE TABLE t (n INT); INSERT INTO t VALUES (1); CREATE TABLE u (n INT); INSERT INTO u VALUES (5)",
    )
    .unwrap();
    let endpoints = "[[endpoint]]\npath = \"/t/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT n FROM t WHERE n = :n\"\n\
                     formats = [\"json\", \"csv\"]\n\
                     [[endpoint]]\npath = \"/u\"\nsql = \"SELECT n FROM u\"\n";
    let open = open(&world, "connections = 2", endpoints);
    let both = |expected: u16| {
        for path in ["/t/1", "/t/1.csv", "/t/1", "/t/1.csv"] {
            let answer = get(open.address, path);
            assert_eq!(answer.status, expected, "{path}: {answer:?}");
        }
        assert_eq!(get(open.address, "/u").json(), json!([{"n": 5}]));
    };
    both(200);
    sql.batch_execute("ALTER TABLE t ALTER n TYPE BIGINT").unwrap();
    both(200);
    sql.batch_execute("ALTER TABLE t ALTER n TYPE NUMERIC").unwrap();
    both(200);
    sql.batch_execute("DROP TABLE t").unwrap();
    both(503);
    assert!(get(open.address, "/t/1").text().contains("does not fit its tables"));
    // Of another type: a whole number is no UUID.
    sql.batch_execute("CREATE TABLE t (n UUID)").unwrap();
    both(503);
    sql.batch_execute("DROP TABLE t; CREATE TABLE t (n SMALLINT, other TEXT); INSERT INTO t VALUES (1)")
        .unwrap();
    wait_for("it to fit again", 30, || get(open.address, "/t/1").status == 200);
    both(200);
    assert!(open.engine.log().contains("(SQLSTATE 42P01)"), "{}", open.engine.log());
    // A process that starts meanwhile serves the others.
    sql.batch_execute("DROP TABLE t").unwrap();
    let second = self::open(&world, "", endpoints);
    assert_eq!((get(second.address, "/t/1").status, get(second.address, "/u").status), (503, 200));
    sql.batch_execute("CREATE TABLE t (n BIGINT); INSERT INTO t VALUES (1)").unwrap();
    wait_for("it to fit", 30, || get(second.address, "/t/1").status == 200);
}

#[test]
fn what_writes_has_to_say_so_and_is_told_what_became_of_it() {
    let world = World::new("serve_write");
    world
        .sql()
        .batch_execute(
            "CREATE TABLE account (id INT GENERATED ALWAYS AS IDENTITY, name TEXT UNIQUE, active BOOL, CHECK (name <> ''));
             CREATE TABLE deferred (n INT UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO deferred VALUES (1);
             CREATE FUNCTION sly() RETURNS INT LANGUAGE plpgsql AS $$ BEGIN INSERT INTO account (name) VALUES ('sly'); RETURN 1; END $$;
             CREATE FUNCTION raising(n BIGINT) RETURNS INT LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not with %', n; END $$",
        )
        .unwrap();
    let endpoints = "[[endpoint]]\nmethod = \"POST\"\npath = \"/\"\nwrite = true\nshape = \"object\"\n\
                     params.Name = { type = \"text\", in = \"body\", length_max = 100 }\nparams.IsActive = { type = \"bool\", in = \"body\" }\n\
                     sql = \"INSERT INTO account (name, active) VALUES (:Name, :IsActive) RETURNING id AS \\\"ID\\\", name AS \\\"Name\\\", active AS \\\"IsActive\\\"\"\n\
                     [[endpoint]]\nmethod = \"POST\"\npath = \"/deferred\"\nwrite = true\nsql = \"INSERT INTO deferred VALUES (1) RETURNING n\"\n\
                     [[endpoint]]\npath = \"/sly\"\nsql = \"SELECT sly() AS n\"\n\
                     [[endpoint]]\npath = \"/raising/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT raising(:n) AS n\"\n";
    let open = open(&world, "", endpoints);
    let made = post(open.address, "/", "{\"Name\":\"a'b\",\"IsActive\":true}");
    assert_eq!((made.status, made.json()), (200, json!({"ID": 1, "Name": "a'b", "IsActive": true})));
    let twice = post(open.address, "/", "{\"Name\":\"a'b\",\"IsActive\":true}");
    assert_eq!((twice.status, &twice.json()["done"]), (409, &json!("no")), "{twice:?}");
    assert_eq!(post(open.address, "/", "{\"Name\":\"\",\"IsActive\":true}").status, 400);
    assert_eq!(post(open.address, "/", "{\"Name\":7}").json()["parameters"].as_array().unwrap().len(), 2);
    assert_eq!(post(open.address, "/", "[]").status, 400);
    assert_eq!(post(open.address, "/", &format!("{{\"Name\":\"{}\"}}", "x".repeat(2 << 20))).status, 413);
    // Refused by the server only when the transaction ends: not before that is an answer given.
    let deferred = post(open.address, "/deferred", "");
    assert_eq!((deferred.status, &deferred.json()["done"]), (409, &json!("no")), "{deferred:?}");
    assert_eq!(world.count("SELECT count(*) FROM deferred"), 1);
    // A GET that writes is stopped by the server.
    assert_eq!(get(open.address, "/sly").status, 500);
    assert_eq!(world.count("SELECT count(*) FROM account WHERE name = 'sly'"), 0);
    let raised = get(open.address, "/raising/7");
    assert_eq!((raised.status, raised.json()["detail"].as_str()), (400, Some("not with 7")));
}

#[test]
fn the_ledger_spares_statements_and_shows_ones_own_writes() {
    let world = World::new("serve_ledger");
    world.create_topic("in", 2);
    world.create_table("t", "");
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    let topic = world.topic("in");
    let endpoints = "[[endpoint]]\npath = \"/count\"\nsql = \"SELECT count(*) AS n FROM t\"\nshape = \"value\"\netag = \"ledger\"\n\
                     [[endpoint]]\npath = \"/has/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT count(*) AS n FROM t WHERE n = :n\"\nshape = \"value\"\n\
                     [[endpoint]]\npath = \"/clock\"\nsql = \"SELECT count(*) AS n, now() AS at FROM t\"\netag = \"ledger\"\n\
                     [[endpoint]]\npath = \"/body\"\nsql = \"SELECT count(*) AS n FROM t\"\netag = \"body\"\nmax_age = \"2s\"\n";
    world.produce("in", 0, (0..100).map(record));
    world.wait_drained(&["in"], 60);
    let open = open(&world, "after_wait = \"10s\"", endpoints);
    let first = get(open.address, "/count");
    // Heads are read in lower case here, and a tag's W is not.
    let tag = first.header("etag").unwrap().to_owned();
    assert_eq!(
        (first.text(), first.header("cache-control")),
        ("100".to_owned(), Some("no-cache")),
        "{first:?}"
    );
    let ask = |tag: &str| {
        get_with(open.address, "/count", &format!("If-None-Match: {}\r\n", tag.replace("w/", "W/")))
    };
    let scans = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 't'";
    for _ in 0..50 {
        let answer = ask(&tag);
        assert_eq!((answer.status, answer.header("etag")), (304, Some(tag.as_str())), "{answer:?}");
    }
    // A session that has nothing to do tells of its scans after ten seconds. One was for the first answer.
    std::thread::sleep(Duration::from_millis(12_000));
    assert_eq!(world.count(scans), 1, "a statement ran for a 304");
    assert_eq!(figure(open.address, "rowmill_serve_spared_total", "GET /count"), 50.0);
    // A row, a dead letter, and one that is written again: each changes it.
    world.produce("in", 1, [record(1000)]);
    world.wait_drained(&["in"], 60);
    let second = ask(&tag);
    assert_eq!((second.status, second.text()), (200, "101".to_owned()), "{second:?}");
    assert_ne!(second.header("etag"), Some(tag.as_str()));
    let changed = get(open.address, "/clock");
    assert!(changed.status == 200 && changed.header("etag").is_none(), "{changed:?}");
    assert!(
        open.engine.log().contains("gives no ETag: now changes without any record"),
        "{}",
        open.engine.log()
    );
    let body = get(open.address, "/body");
    assert_eq!(body.header("cache-control"), Some("max-age=2"));
    let header = format!("If-None-Match: {}\r\n", body.header("etag").unwrap().replace("w/", "W/"));
    assert_eq!(get_with(open.address, "/body", &header).status, 304);
    // One's own writes, through Kafka: each is seen, however soon it is asked for.
    for n in 0..own_writes() {
        let (partition, offset) = ((n % 2) as i32, if n % 2 == 0 { 100 + n / 2 } else { 1 + n / 2 });
        world.produce("in", partition, [record(5000 + n)]);
        let after = format!("Rowmill-After: {topic}/{partition}/{offset}\r\n");
        let answer = get_with(open.address, &format!("/has/{}", 5000 + n), &after);
        assert_eq!((answer.status, answer.text()), (200, "1".to_owned()), "{n}: {answer:?}");
    }
    for (after, status) in [
        (format!("{topic}/0/999999"), 425),
        ("nothing/0/1".to_owned(), 400),
        ("a/b".to_owned(), 400),
        (format!("{topic}/7/0"), 425),
    ] {
        let short = if status == 425 {
            self::open(&world, "after_wait = \"300ms\"", endpoints)
        } else {
            self::open(&world, "", endpoints)
        };
        let answer = get_with(short.address, "/has/1", &format!("Rowmill-After: {after}\r\n"));
        assert_eq!(answer.status, status, "{after}: {answer:?}");
    }
    engine.kill();
}

fn own_writes() -> u64 {
    from_environment("SERVE_OWN_WRITES", 100)
}

#[test]
fn a_slow_reader_and_a_long_stream_take_little_memory() {
    let world = World::new("serve_stream");
    let endpoints = "[[endpoint]]\npath = \"/rows/{n}\"\nparams.n = { type = \"int8\" }\nstream = true\ntimeout = \"10m\"\n\
                     sql = \"SELECT i, i * 2 AS b, 'some text of a row' AS c, now() AS d FROM generate_series(1, :n) AS i\"\n\
                     formats = [\"csv\", \"json\", \"ndjson\"]\n";
    let open = open(&world, "", endpoints);
    // Several that hardly read, beside one that reads all.
    let slow: Vec<Asked> = (0..6)
        .map(|n| {
            let request = format!("GET /rows/{} HTTP/1.1\r\nHost: a\r\n\r\n", 5_000_000 + n);
            send(open.address, request.as_bytes())
        })
        .collect();
    let rows = 1_000_000;
    let began = Instant::now();
    let answer = get(open.address, &format!("/rows/{rows}.csv"));
    let took = began.elapsed();
    assert!(answer.is_whole);
    assert_eq!(answer.text().lines().count(), rows + 1);
    let packed = get_with(open.address, &format!("/rows/{rows}.ndjson"), "Accept-Encoding: gzip\r\n");
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(&packed.body[..]).read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), rows);
    let peak = open.engine.peak_memory();
    assert!(peak < 64 << 20, "{} MB", peak >> 20);
    log(&format!("{rows} rows as CSV in {took:?}, peak {} MB", peak >> 20));
    // Killing the clients ends their statements.
    drop(slow);
    let at_work = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND pid <> pg_backend_pid()";
    wait_for("the statements to end", 20, || world.count(at_work) == 0);
}

fn log(text: &str) {
    eprintln!("{text}");
}

#[test]
fn values_are_hostile_and_the_server_sees_the_configured_statements_only() {
    let world = World::alone("serve_hostile");
    world.sql().batch_execute("CREATE TABLE t (n BIGINT, word TEXT); INSERT INTO t VALUES (1, 'a')").unwrap();
    world.sql().batch_execute("ALTER SYSTEM SET log_statement = 'all'").unwrap();
    world.sql().batch_execute("SELECT pg_reload_conf()").unwrap();
    let types = [
        "text",
        "int2",
        "int4",
        "int8",
        "float4",
        "float8",
        "numeric",
        "uuid",
        "date",
        "timestamp",
        "timestamptz",
        "bool",
        "jsonb",
        "text[]",
        "int8[]",
    ];
    let mut endpoints = String::new();
    for ty in types {
        let name = ty.replace("[]", "s");
        endpoints.push_str(&format!(
            "[[endpoint]]\npath = \"/{name}\"\nparams.v = {{ type = {ty:?} }}\nsql = \"SELECT 'configured' AS c, :v AS v FROM t\"\n\
             [[endpoint]]\npath = \"/{name}/{{v}}\"\nparams.v = {{ type = {ty:?} }}\nsql = \"SELECT 'configured' AS c, :v AS v FROM t\"\n"
        ));
    }
    let open = open(&world, "", &endpoints);
    let mut seed = 88172645463325252u64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let bits = [
        "'",
        "\"",
        "\\",
        ";",
        "--",
        "/*",
        "$1",
        "$$",
        ":v",
        "%00",
        "%ff",
        "%",
        "&v=",
        "+",
        "=",
        "NaN",
        "1e999",
        "-0",
        "99999999999999999999",
        "{",
        "}",
        "[",
        ",",
        "null",
        "2026-01-01T00:00:00Z",
        "infinity",
        "ü",
        "DROP TABLE t",
        "0x10",
        "%0a",
        "%20",
        "true",
        "1",
        "e",
        "-",
        "00000000-0000-0000-0000-000000000000",
    ];
    let hostile = from_environment("SERVE_HOSTILE", 5000) as usize;
    let mut kept: Option<TcpStream> = None;
    let mut statuses = std::collections::BTreeMap::new();
    for number in 0..hostile {
        let mut value: String = (0..random(6)).map(|_| bits[random(bits.len())]).collect();
        if number % 1000 == 7 {
            value = "a".repeat(6000);
        }
        let name = types[random(types.len())].replace("[]", "s");
        // A path is a part of its own.
        let target = if random(3) == 0 {
            format!("/{name}/{}", value.replace(['+', '='], ""))
        } else {
            format!("/{name}?v={value}")
        };
        let target: String = target
            .chars()
            .map(|c| if c.is_ascii_graphic() { c.to_string() } else { format!("%{:02x}", c as u32 & 0xff) })
            .collect();
        let mut socket = kept.take().unwrap_or_else(|| TcpStream::connect(open.address).unwrap());
        socket.write_all(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
        let mut client = crate::http_client::Client::on(socket);
        let reply = client.reply().unwrap_or_else(|| panic!("no answer to {target}"));
        assert!(reply.status < 500, "{target}: {} {}", reply.status, String::from_utf8_lossy(&reply.body));
        let (line, body) = (format!("GET {target} HTTP/1.1"), Some(&reply.body[..]));
        let seen = contract::Seen { line: &line, status: reply.status, head: &reply.head, body };
        contract::hold(open.address, seen);
        *statuses.entry(reply.status).or_insert(0u64) += 1;
        if !reply.head.contains("connection: close") {
            kept = Some(client.socket);
        }
    }
    assert!(statuses[&200] > hostile as u64 / 20 && statuses[&400] > hostile as u64 / 20, "{statuses:?}");
    // What PostgreSQL was asked, in its own log.
    let data = world.server("PGDATA");
    let logs = std::process::Command::new("grep")
        .args(["-rhE", "(statement|execute [^:]*): "])
        .arg(format!("{data}/../"))
        .output()
        .unwrap();
    let logs = String::from_utf8_lossy(&logs.stdout).into_owned();
    let asked: Vec<&str> = logs.lines().filter(|line| line.contains("execute ")).collect();
    assert!(!asked.is_empty(), "the server's log has no statement");
    let known = ["'configured' AS c", "rowmill", "pg_catalog", "pg_", "SELECT count(*)", "to_regclass"];
    let strange: Vec<&&str> =
        asked.iter().filter(|line| !known.iter().any(|words| line.contains(words))).collect();
    assert!(strange.is_empty(), "{strange:?}");
    assert_eq!(world.count("SELECT count(*) FROM t"), 1);
    world.sql().batch_execute("ALTER SYSTEM RESET log_statement").unwrap();
    world.sql().batch_execute("SELECT pg_reload_conf()").unwrap();
}

#[test]
fn behind_a_pooler_nothing_depends_on_a_session() {
    let world = World::new("serve_pooler");
    world
        .sql()
        .batch_execute(
            "CREATE TABLE t (n INT UNIQUE DEFERRABLE INITIALLY DEFERRED); INSERT INTO t VALUES (1)",
        )
        .unwrap();
    let endpoints = "[[endpoint]]\npath = \"/n/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT n, current_setting('timezone') AS zone, \
                     current_setting('transaction_read_only') AS read_only FROM t WHERE n = :n\"\n\
                     [[endpoint]]\nmethod = \"POST\"\npath = \"/n\"\nwrite = true\nparams.n = { type = \"int8\", in = \"body\" }\n\
                     sql = \"INSERT INTO t VALUES (:n) RETURNING n\"\n\
                     [[endpoint]]\npath = \"/slow/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT :n AS n FROM pg_sleep(10)\"\ntimeout = \"20s\"\n";
    let pooled = world.pooled_url();
    let open =
        open_with(&world, "prepare = false\nqueue_wait = \"20s\"", endpoints, &[("DATABASE_URL", &pooled)]);
    for _ in 0..30 {
        let answer = get(open.address, "/n/1");
        assert_eq!(answer.json(), json!([{"n": 1, "zone": "UTC", "read_only": "on"}]), "{answer:?}");
    }
    assert_eq!(post(open.address, "/n", "{\"n\":2}").status, 200);
    assert_eq!(post(open.address, "/n", "{\"n\":2}").status, 409);
    assert_eq!(world.count("SELECT count(*) FROM t"), 2);
    for n in 0..20 {
        let socket = send(open.address, format!("GET /slow/{n} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        std::thread::sleep(Duration::from_millis(n % 7 * 5));
        drop(socket);
        assert_eq!(get(open.address, "/n/1").status, 200);
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn terminations() -> u64 {
    from_environment("SERVE_TERMINATIONS", 5)
}

/// Asks until the answer is good. A machine that is busy takes its time for a session, which is no failure.
#[track_caller]
fn good_answer(address: SocketAddr, path: &str, when: &str) {
    let began = Instant::now();
    loop {
        let answer = get(address, path);
        if answer.status == 200 {
            return;
        }
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "{when}, after {:?}: {answer:?}",
            began.elapsed()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_server_in_trouble_has_its_answers_and_it_goes_on_by_itself() {
    let world = World::alone("serve_trouble");
    world.sql().batch_execute("CREATE TABLE t (n INT); INSERT INTO t VALUES (1)").unwrap();
    let (proxy, url) = world.proxy();
    let endpoints = "[[endpoint]]\npath = \"/n\"\nsql = \"SELECT n FROM t WHERE n = 1\"\nshape = \"value\"\n\
                     [[endpoint]]\nmethod = \"POST\"\npath = \"/n\"\nwrite = true\nsql = \"INSERT INTO t VALUES (2) RETURNING n\"\n";
    let open = open_with(&world, "statement_timeout = \"500ms\"", endpoints, &[("DATABASE_URL", &url)]);
    let answered = |when: &str| good_answer(open.address, "/n", when);
    let ready = |status: u16| get(open.address, "/readyz").status == status;
    answered("at first");
    // Restarted.
    world.stack(&["kill", "postgres"]);
    let answer = get(open.address, "/n");
    assert!(answer.status == 503 && answer.header("retry-after").is_some(), "{answer:?}");
    wait_for("it to be not ready", 30, || ready(503));
    world.stack(&["restart", "postgres"]);
    answered("once the server is there again");
    wait_for("it to be ready", 60, || ready(200));
    // Frozen: neither an answer nor an end.
    proxy.set(rowmill_faults::proxy::Weather::Silent);
    let began = Instant::now();
    let answer = get(open.address, "/n");
    assert!(
        [503, 504].contains(&answer.status) && began.elapsed() < Duration::from_secs(8),
        "{answer:?} {:?}",
        began.elapsed()
    );
    let write = post(open.address, "/n", "");
    assert!([503, 504].contains(&write.status), "{write:?}");
    proxy.set(rowmill_faults::proxy::Weather::Fair);
    answered("once the server is heard again");
    // Every session ended from outside, with what is asked of the server beside them.
    for _ in 0..terminations() {
        world.sql().batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'rowmill serve'").unwrap();
        answered("after all sessions were ended");
    }
    let words = open.engine.log();
    assert!(
        words.contains("no session with the database") && words.contains("gives sessions again"),
        "{words}"
    );
}

/// Passes bytes on as proxies do, but keeps a connection open when the server has closed it.
fn keeping_open(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(upstream) = TcpStream::connect(server) else { continue };
            let (from_client, to_client) = (client.try_clone().unwrap(), client);
            let (to_server, from_server) = (upstream.try_clone().unwrap(), upstream);
            std::thread::spawn(move || {
                // To its end, or until the other side does not listen.
                std::io::copy(&mut &from_client, &mut &to_server).ok();
                to_server.shutdown(Shutdown::Both).ok();
            });
            std::thread::spawn(move || std::io::copy(&mut &from_server, &mut &to_client).ok());
        }
    });
    address
}

#[test]
fn a_session_that_says_its_last_words_is_not_used_again() {
    let world = World::new("serve_fatal");
    world.sql().batch_execute("CREATE TABLE t (n INT); INSERT INTO t VALUES (1)").unwrap();
    let (rest, database) = world.database_url.rsplit_once('/').unwrap();
    let (login, server) = rest.rsplit_once('@').unwrap();
    let url = format!("{login}@{}/{database}", keeping_open(server.parse().unwrap()));
    let endpoints = "[[endpoint]]\npath = \"/n\"\nsql = \"SELECT n FROM t\"\nshape = \"value\"\n";
    let open = open_with(&world, "", endpoints, &[("DATABASE_URL", &url)]);
    assert_eq!(get(open.address, "/n").status, 200);
    let sessions =
        "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rowmill serve'";
    let ending =
        format!("CREATE TABLE ended AS SELECT clock_timestamp() AS at, pg_terminate_backend(pid) {sessions}");
    world.sql().batch_execute(&ending).unwrap();
    let fresh = format!("SELECT count(*) {sessions} AND backend_start > (SELECT min(at) FROM ended)");
    wait_for("new sessions in their places", 60, || world.count(&fresh) == 8);
    for _ in 0..20 {
        let answer = get(open.address, "/n");
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[test]
fn who_has_no_token_is_not_answered() {
    let world = World::new("serve_tokens");
    // The hash of "foo".
    let tokens = world.file(
        "tokens.toml",
        "[[token]]\nname = \"a\"\nsha256 = \"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\"\nrate = 3.0\nroutes = [\"/a/{n}\"]\n",
    );
    let endpoints = "[[endpoint]]\npath = \"/a/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT :n AS n\"\n\
                     [[endpoint]]\npath = \"/b\"\nsql = \"SELECT 1 AS n\"\n";
    let open =
        open(&world, &format!("tokens = {tokens:?}\ncors_origins = [\"https://a.example\"]"), endpoints);
    let ask = |path: &str, headers: &str| get_with(open.address, path, headers);
    let foo = "Authorization: Bearer foo\r\nOrigin: https://a.example\r\n";
    let none = ask("/a/1", "Origin: https://a.example\r\n");
    assert_eq!(
        (none.status, none.header("access-control-allow-origin")),
        (401, Some("https://a.example")),
        "{none:?}"
    );
    assert_eq!(ask("/a/1", "Authorization: Bearer bar\r\n").status, 401);
    assert_eq!(ask("/b", foo).status, 403);
    let good = ask("/a/1", foo);
    assert_eq!((good.status, good.header("access-control-allow-origin")), (200, Some("https://a.example")));
    let statuses: Vec<u16> = (0..10).map(|_| ask("/a/1", foo).status).collect();
    assert!(statuses.contains(&429), "{statuses:?}");
    let preflight = read(send(
        open.address,
        b"OPTIONS /a/1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nOrigin: https://a.example\r\nAccess-Control-Request-Method: GET\r\n\r\n",
    ));
    assert_eq!(preflight.status, 204, "{preflight:?}");
}

#[test]
fn check_names_endpoint_and_place_of_what_does_not_fit() {
    let world = World::new("serve_check");
    world.sql().batch_execute("CREATE TABLE t (n INT, word TEXT) PARTITION BY RANGE (n)").unwrap();
    let check = |endpoints: &str| {
        let file = world.file("check.toml", &settings(1, "", endpoints));
        rowmill(&world, &["check", "--config", &file])
    };
    let (text, ok) = check(
        "[[endpoint]]\npath = \"/a\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT word FROM t WHERE n = :n\"\n",
    );
    assert!(
        ok && text.contains("endpoint \"GET /a\" -> word text")
            && text.contains("`rowmill serve` would work"),
        "{text}"
    );
    for (endpoint, words) in [
        (
            "path = \"/a\"\nsql = \"\"\"SELECT\nwrod FROM t\"\"\"",
            "in the endpoint \"GET /a\": sql: line 2: column \"wrod\" does not exist",
        ),
        (
            "path = \"/a\"\nparams.n = { type = \"uuid\" }\nsql = \"SELECT n FROM t WHERE n = :n\"",
            "operator does not exist",
        ),
        ("path = \"/a\"\nsql = \"SELECT n, n FROM t\"", "two columns named \"n\""),
        ("path = \"/a\"\nsql = \"SELECT n FROM t WHERE n = :m\"", ":m is no parameter"),
        (
            "path = \"/a\"\nsql = \"SELECT n, now() AS w FROM t\"\netag = \"ledger\"",
            "now changes without any record",
        ),
        (
            "path = \"/a\"\nsql = \"SELECT n, word FROM t\"\nchart = { x = \"n\", y = \"words\" }",
            "no column \"words\"; did you mean \"word\"?",
        ),
    ] {
        let (text, ok) = check(&format!("[[endpoint]]\n{endpoint}\n"));
        assert!(!ok && text.contains(words), "{endpoint}: {text}");
    }
    // A table with parts is planned for each call's values.
    let endpoint = "[[endpoint]]\npath = \"/mode\"\nsql = \"SELECT current_setting('plan_cache_mode') AS mode FROM (SELECT count(*) FROM t) AS x\"\nshape = \"value\"\n";
    let open = open(&world, "", endpoint);
    assert_eq!(get(open.address, "/mode").text(), "\"force_custom_plan\"");
}

/// What a process has open, and how much memory it takes.
#[derive(Debug)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    memory: u64,
}

fn holdings(open: &Open) -> Holdings {
    let pid = open.engine.pid();
    let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let pages = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    Holdings { descriptors: count("fd"), threads: count("task"), memory: pages * 4096 }
}

/// `SERVE_REQUESTS` says how many: of every kind, on connections that are kept, closed, and left.
#[test]
fn nothing_is_left_behind_by_any_number_of_requests() {
    let world = World::new("serve_leaks");
    world
        .sql()
        .batch_execute("CREATE TABLE t (n BIGINT UNIQUE, word TEXT); INSERT INTO t VALUES (1, 'a')")
        .unwrap();
    let endpoints = "[[endpoint]]\npath = \"/n/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT n, word FROM t WHERE n = :n\"\netag = \"body\"\n\
                     [[endpoint]]\npath = \"/rows/{n}\"\nparams.n = { type = \"int8\" }\nsql = \"SELECT i, repeat('x', 100) AS word FROM generate_series(1, :n) AS i\"\n\
                     [[endpoint]]\npath = \"/fault\"\nsql = \"SELECT 1 / (n - n) AS x FROM t\"\n\
                     [[endpoint]]\npath = \"/slow\"\nsql = \"SELECT 1 AS n FROM pg_sleep(5)\"\ntimeout = \"20s\"\n\
                     [[endpoint]]\nmethod = \"POST\"\npath = \"/n\"\nwrite = true\nparams.n = { type = \"int8\", in = \"body\" }\n\
                     sql = \"INSERT INTO t VALUES (:n, 'b') RETURNING n\"\n";
    let open = open(&world, "queue_max = 1000\nqueue_wait = \"30s\"", endpoints);
    let at = open.address;
    let lap = |requests: u64| {
        let mut kept = contract::client(at);
        for number in 0..requests {
            let (line, expected) = match number % 50 {
                // In pieces, which the client of the kept connection does not read.
                0 => {
                    assert_eq!(get(at, "/rows/5000").status, 200);
                    continue;
                }
                1 => ("GET /fault".to_owned(), 500),
                2 => ("GET /n/x".to_owned(), 400),
                3 => ("GET /nothing".to_owned(), 404),
                4 => ("GET /metrics".to_owned(), 200),
                // The first was made, and every other one is refused.
                5 => {
                    let made = post(at, "/n", "{\"n\":1}");
                    assert_eq!(made.status, 409, "{made:?}");
                    continue;
                }
                // Somebody leaves: early, in the middle of the rows, or after a whole answer on a connection of its own.
                6 => {
                    drop(send(at, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n"));
                    continue;
                }
                7 => {
                    let mut asked = send(at, b"GET /rows/50000 HTTP/1.1\r\nHost: a\r\n\r\n");
                    asked.socket.read_exact(&mut [0; 1000]).unwrap();
                    continue;
                }
                8 => {
                    assert_eq!(get(at, "/n/1").status, 200);
                    continue;
                }
                other => (format!("GET /n/{}", other % 3), 200),
            };
            kept.send(format!("{line} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let reply = kept.reply().unwrap_or_else(|| panic!("no answer to {line}"));
            assert_eq!(reply.status, expected, "{line}: {}", String::from_utf8_lossy(&reply.body));
            if reply.head.contains("connection: close") {
                kept = contract::client(at);
            }
        }
    };
    let settled = || {
        wait_for("all sessions to be idle", 60, || {
            open.figure("rowmill_serve_sessions", "state=\"idle\"") == 8.0
                && open.figure("rowmill_serve_waiting", "") == 0.0
        });
        holdings(&open)
    };
    // What is kept for good is there after a while.
    lap(1000);
    let before = settled();
    let requests = from_environment("SERVE_REQUESTS", 3000);
    lap(requests);
    let after = settled();
    log(&format!("{requests} requests: {before:?}, then {after:?}"));
    assert!(after.descriptors <= before.descriptors + 2, "{before:?} {after:?}");
    assert_eq!(after.threads, before.threads);
    assert!(after.memory < before.memory + (8 << 20), "{before:?} {after:?}");
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rowmill serve'";
    wait_for("as many sessions as are configured", 30, || world.count(sessions) == 8);
}

#[test]
fn over_tls_all_is_the_same() {
    let world = World::new("serve_tls");
    world.sql().batch_execute("CREATE TABLE t (n BIGINT); INSERT INTO t VALUES (1)").unwrap();
    let endpoints = "[[endpoint]]\npath = \"/rows/{n}\"\nparams.n = { type = \"int8\" }\nstream = true\ntimeout = \"10m\"\n\
                     sql = \"SELECT i, i * 2 AS b, 'some text of a row' AS c FROM generate_series(1, :n) AS i\"\n\
                     [[endpoint]]\npath = \"/slow/{who}\"\nparams.who = { type = \"int8\" }\ntimeout = \"30s\"\n\
                     sql = \"SELECT pg_sleep(20)::text AS a, :who AS b\"\n\
                     [[endpoint]]\nmethod = \"POST\"\npath = \"/n\"\nwrite = true\nsql = \"INSERT INTO t VALUES (2) RETURNING n\"\n";
    // Ties the login to the certificate, so nobody stands in between who has another one.
    let url = format!("{}&channel_binding=require", world.tls_urls().0);
    let open = open_with(&world, "connections = 3", endpoints, &[("DATABASE_URL", &url)]);
    let sessions = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                    WHERE datname = current_database() AND application_name = 'rowmill serve' AND ssl";
    wait_for("three sessions over TLS", 30, || world.count(sessions) == 3);
    let all = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'rowmill serve'";
    assert_eq!(world.count(all), 3, "one without TLS");
    assert_eq!(post(open.address, "/n", "").status, 200);
    // Long answers, beside one that hardly anybody reads.
    let slow = send(open.address, b"GET /rows/3000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    let rows = get_with(open.address, "/rows/200000", "Accept: text/csv\r\n");
    assert!(rows.is_whole);
    assert_eq!(rows.text().lines().count(), 200_001);
    drop(slow);
    // Cancel requests go the same way.
    for number in 0..20 {
        let asked = send(open.address, format!("GET /slow/{number} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes());
        std::thread::sleep(Duration::from_millis(number * 3));
        drop(asked);
        assert_eq!(get(open.address, "/rows/3").json().as_array().unwrap().len(), 3);
    }
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' AND query \
                    LIKE '%pg_sleep(20)%' AND pid <> pg_backend_pid()";
    wait_for("the statements of those who left to end", 20, || world.count(sleeping) == 0);
    wait_for("all sessions to be idle", 30, || {
        open.figure("rowmill_serve_sessions", "state=\"idle\"") == 3.0
    });
    assert!(open.figure("rowmill_serve_cancels_total", "") > 5.0);
    // A certificate that nobody signed whom we trust: nothing is sent there, and why is said.
    let ca = world.server("KAFKA_SSL_CA");
    let other = world.path("other.pem");
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/CN=other",
            "-keyout",
        ])
        .arg(world.path("other.key"))
        .arg("-out")
        .arg(&other)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let wrong = world.tls_urls().0.replace(&ca, other.to_str().unwrap());
    assert_ne!(wrong, world.tls_urls().0, "{ca}");
    let file = world.file("wrong.toml", &settings(1, "", endpoints));
    let (text, ok) = crate::world::rowmill_as(&world, &wrong, &["check", "--config", &file]);
    assert!(!ok && text.contains("certificate"), "{text}");
}

/// Records that a standby has not heard of, and a standby that is gone: reads are answered for what they are, and writes go on.
#[test]
fn a_replica_that_is_behind_or_away_has_its_answers() {
    let world = World::alone("serve_replica");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let engine = world.engine(&world.model("in", "t", ""), &[]);
    world.produce("in", 0, (0..10).map(record));
    world.wait_drained(&["in"], 60);
    let port = world.stack(&["standby", "start"]);
    let (rest, database) = world.database_url.rsplit_once('/').unwrap();
    let (login, _) = rest.rsplit_once('@').unwrap();
    let standby: SocketAddr = format!("127.0.0.1:{}", port.trim()).parse().unwrap();
    let proxy = rowmill_faults::proxy::Proxy::before_postgres(standby).unwrap();
    let replica = format!("{login}@127.0.0.1:{}/{database}", proxy.port());
    let endpoints = "[[endpoint]]\npath = \"/n/{n}\"\nparams.n = { type = \"int8\" }\nshape = \"value\"\n\
                     sql = \"SELECT count(*) AS n FROM t WHERE n = :n AND pg_is_in_recovery()\"\n\
                     [[endpoint]]\nmethod = \"POST\"\npath = \"/w\"\nwrite = true\nsql = \"INSERT INTO t (n) VALUES (777) RETURNING n\"\n";
    let more = format!("url = {replica:?}\nafter_wait = \"500ms\"");
    let open = open(&world, &more, endpoints);
    let after = |offset: u64| format!("Rowmill-After: {}/0/{offset}\r\n", world.topic("in"));
    let reaches = |n: u64| {
        wait_for("the standby to have it", 60, || {
            let answer = get_with(open.address, &format!("/n/{n}"), &after(n));
            assert!([200, 425].contains(&answer.status), "{answer:?}");
            answer.status == 200 && answer.text() == "1"
        });
    };
    reaches(9);
    // Behind: the primary has it, and it is the standby that is asked.
    world.stack(&["standby", "detach"]);
    std::thread::sleep(Duration::from_secs(2));
    world.produce("in", 0, [record(10)]);
    world.wait_drained(&["in"], 60);
    let behind = get_with(open.address, "/n/10", &after(10));
    assert_eq!((behind.status, behind.header("retry-after")), (425, Some("1")), "{behind:?}");
    assert!(behind.text().contains("was not in the tables within 500 ms"), "{behind:?}");
    assert_eq!(get(open.address, "/n/10").text(), "0");
    assert_eq!(post(open.address, "/w", "").status, 200);
    // Away: what is read says so, what is written goes on.
    proxy.refuse();
    wait_for("the sessions to be missed", 30, || {
        open.figure("rowmill_serve_sessions", "state=\"missing\"") == 8.0
    });
    let away = get(open.address, "/n/1");
    assert_eq!((away.status, away.header("retry-after")), (503, Some("1")), "{away:?}");
    assert!(away.text().contains("the database cannot be reached"), "{away:?}");
    assert_eq!(post(open.address, "/w", "").status, 200);
    wait_for("it to be not ready", 60, || get(open.address, "/readyz").status == 503);
    assert!(
        get(open.address, "/readyz").text().contains("database that is read"),
        "{}",
        get(open.address, "/readyz").text()
    );
    // Another standby in its place, with all of it.
    world.stack(&["standby", "stop"]);
    let port = world.stack(&["standby", "start"]);
    proxy.lead_to(format!("127.0.0.1:{}", port.trim()).parse().unwrap());
    proxy.set(rowmill_faults::proxy::Weather::Fair);
    good_answer(open.address, "/n/1", "once there is a standby again");
    reaches(10);
    wait_for("it to be ready", 60, || get(open.address, "/readyz").status == 200);
    let words = open.engine.log();
    assert!(
        words.contains("no session with the database that is read") && words.contains("gives sessions again"),
        "{words}"
    );
    engine.kill();
    world.stack(&["standby", "stop"]);
}
