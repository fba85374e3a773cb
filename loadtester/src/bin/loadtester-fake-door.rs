//! A front door of HTTP that can be told to do wrong: the measure for the load tester's sending and reading. It shares no code
//! with the tester.
//!
//! `POST` and `PUT` to any path bring one JSON object, a list of them, or a line each. With `--table` they are stored by PostgreSQL's
//! own `jsonb_populate_recordset`, so any table whose columns are named as the members will do; they are answered when they are
//! committed. Without it they are only answered. `GET /latest?key=K` answers with the newest `time` that came with that key.
//! Told so, it makes exactly N mistakes of a kind, spread over the run. It prints `ready PORT` when it listens.

use std::collections::{BinaryHeap, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use postgres::{Client, NoTls};
use serde_json::Value;

/// Answers HTTP, with exactly as many mistakes as it is told to make.
#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Store records in this table of --database.
    #[arg(long, requires = "database")]
    table: Option<String>,
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database: Option<String>,
    /// Remember the newest `time` of each key, for `GET /latest`.
    #[arg(long)]
    remember: bool,
    /// The member that is the key of `GET /latest`.
    #[arg(long, default_value = "tag")]
    key: String,
    /// Milliseconds that every answer is late.
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Requests that are stored and never answered; the connection stays open.
    #[arg(long, default_value_t = 0)]
    swallow: u64,
    /// Requests that are answered with 200 and not stored.
    #[arg(long, default_value_t = 0)]
    forget: u64,
    /// Requests whose records are stored twice.
    #[arg(long, default_value_t = 0)]
    double: u64,
    /// Requests that are refused with 503 and `"stored":"no"`.
    #[arg(long, default_value_t = 0)]
    refuse: u64,
    /// Requests that are stored and whose connection is closed instead of an answer.
    #[arg(long, default_value_t = 0)]
    hang_up: u64,
    /// Requests that are answered 300 ms late.
    #[arg(long, default_value_t = 0)]
    slow: u64,
    /// Answers of `GET` that are no JSON object with the asked key.
    #[arg(long, default_value_t = 0)]
    wrong: u64,
    /// Answers of `GET` with status 500.
    #[arg(long, default_value_t = 0)]
    fail: u64,
    /// Milliseconds by which every `GET` is behind.
    #[arg(long, default_value_t = 0)]
    behind: u64,
    /// Refuse this percentage of requests with 503, at once.
    #[arg(long, default_value_t = 0)]
    refuse_percent: u64,
    /// Close each connection after its answer.
    #[arg(long)]
    close: bool,
    /// One in so many requests is chosen for a mistake until all are made.
    #[arg(long, default_value_t = 97)]
    every: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Swallow,
    Forget,
    Double,
    Refuse,
    HangUp,
    Slow,
}

/// What is left to do wrong.
struct Faults {
    left: Vec<(Fault, u64)>,
    every: u64,
    seen: u64,
}

impl Faults {
    fn next(&mut self) -> Option<Fault> {
        self.seen += 1;
        if !self.seen.is_multiple_of(self.every) {
            return None;
        }
        let count = self.left.len();
        let turn = (self.seen / self.every) as usize;
        let at = (0..count).map(|n| (turn + n) % count).find(|at| self.left[*at].1 > 0)?;
        self.left[at].1 -= 1;
        Some(self.left[at].0)
    }
}

struct Connection {
    socket: TcpStream,
    inward: Vec<u8>,
    outward: Vec<u8>,
    /// Told apart from another that has its place later.
    generation: u64,
    closing: bool,
}

/// An answer that is due later: (when, connection, generation, bytes).
type Later = std::cmp::Reverse<(Instant, usize, u64, Vec<u8>)>;

/// Records to store, and who is answered then.
struct Job {
    body: Vec<u8>,
    times: u32,
    answer: Option<(usize, u64, Instant, Vec<u8>)>,
}

struct Door {
    args: Args,
    poll: Poll,
    listener: TcpListener,
    connections: HashMap<usize, Connection>,
    next: usize,
    generation: u64,
    faults: Faults,
    gets: u64,
    wrong_left: u64,
    fail_left: u64,
    refused: u64,
    later: BinaryHeap<Later>,
    store: Option<Sender<Job>>,
    stored: Receiver<(usize, u64, Instant, Vec<u8>)>,
    latest: HashMap<String, Vec<(Instant, i64)>>,
}

const LISTENER: Token = Token(usize::MAX);
const STORED: Token = Token(usize::MAX - 1);

fn main() -> Result<()> {
    let args = Args::parse();
    let mut listener =
        TcpListener::bind(([127, 0, 0, 1], args.port).into()).context("listen on 127.0.0.1")?;
    let poll = Poll::new()?;
    poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
    let waker = Arc::new(Waker::new(poll.registry(), STORED)?);
    let (answers, stored) = channel();
    let store = match (&args.table, &args.database) {
        (Some(table), Some(database)) => {
            let (jobs, inlet) = channel();
            let client = Client::connect(database, NoTls).context("connect to PostgreSQL")?;
            let table = table.clone();
            std::thread::Builder::new().name("store".to_owned()).spawn(move || {
                if let Err(error) = keep_storing(client, &table, &inlet, &answers, &waker) {
                    eprintln!("store: {error:#}");
                    std::process::exit(1);
                }
            })?;
            Some(jobs)
        }
        _ => None,
    };
    println!("ready {}", listener.local_addr()?.port());
    std::io::stdout().flush()?;
    let left = vec![
        (Fault::Swallow, args.swallow),
        (Fault::Forget, args.forget),
        (Fault::Double, args.double),
        (Fault::Refuse, args.refuse),
        (Fault::HangUp, args.hang_up),
        (Fault::Slow, args.slow),
    ];
    let door = Door {
        faults: Faults { left, every: args.every, seen: 0 },
        wrong_left: args.wrong,
        fail_left: args.fail,
        args,
        poll,
        listener,
        connections: HashMap::new(),
        next: 0,
        generation: 0,
        gets: 0,
        refused: 0,
        later: BinaryHeap::new(),
        store,
        stored,
        latest: HashMap::new(),
    };
    door.run()
}

/// Takes what has come meanwhile together into one transaction.
fn keep_storing(
    mut client: Client,
    table: &str,
    jobs: &Receiver<Job>,
    answers: &Sender<(usize, u64, Instant, Vec<u8>)>,
    waker: &Waker,
) -> Result<()> {
    let insert = format!("INSERT INTO {table} SELECT * FROM jsonb_populate_recordset(NULL::{table}, $1)");
    let statement = client.prepare(&insert).context("prepare the insert")?;
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        batch.extend(jobs.try_iter().take(2000));
        let mut records = Vec::new();
        for job in &batch {
            for _ in 0..job.times {
                records.extend(records_of(&job.body));
            }
        }
        client.execute(&statement, &[&Json(Value::Array(records))]).context("insert records")?;
        for answer in batch.into_iter().filter_map(|job| job.answer) {
            answers.send(answer).ok();
        }
        waker.wake()?;
    }
    Ok(())
}

/// jsonb as the wire has it: a version byte, then the text.
#[derive(Debug)]
struct Json(Value);

impl postgres::types::ToSql for Json {
    fn to_sql(
        &self,
        _: &postgres::types::Type,
        out: &mut bytes::BytesMut,
    ) -> std::result::Result<postgres::types::IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&[1]);
        out.extend_from_slice(self.0.to_string().as_bytes());
        Ok(postgres::types::IsNull::No)
    }

    fn accepts(kind: &postgres::types::Type) -> bool {
        *kind == postgres::types::Type::JSONB
    }

    postgres::types::to_sql_checked!();
}

fn records_of(body: &[u8]) -> Vec<Value> {
    match serde_json::from_slice(body) {
        Ok(Value::Array(records)) => records,
        Ok(record) => vec![record],
        Err(_) => serde_json::Deserializer::from_slice(body).into_iter().filter_map(Result::ok).collect(),
    }
}

impl Door {
    fn run(mut self) -> Result<()> {
        let mut events = Events::with_capacity(512);
        loop {
            let wait = self.later.peek().map(|later| later.0.0.saturating_duration_since(Instant::now()));
            self.wait(wait);
            match self.poll.poll(&mut events, Some(Duration::ZERO)) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                other => other?,
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept()?,
                    STORED => {}
                    Token(at) => self.serve(at),
                }
            }
            while let Ok((at, generation, when, bytes)) = self.stored.try_recv() {
                self.answer_at(at, generation, when, bytes);
            }
            while self.later.peek().is_some_and(|later| later.0.0 <= Instant::now()) {
                let std::cmp::Reverse((_, at, generation, bytes)) = self.later.pop().expect("one was seen");
                self.answer(at, generation, bytes);
            }
        }
    }

    /// To the microsecond: epoll itself counts milliseconds. Looking at the clock instead of sleeping would use up this process' share
    /// of a core, and whoever has none left waits for milliseconds when others want to run.
    fn wait(&self, wait: Option<Duration>) {
        // SAFETY: the descriptor is the epoll's, which outlives the call.
        let epoll = unsafe { BorrowedFd::borrow_raw(self.poll.as_raw_fd()) };
        let mut descriptors = [PollFd::new(epoll, PollFlags::POLLIN)];
        // Interrupted or not: whoever called looks at the clock.
        ppoll(&mut descriptors, wait.map(TimeSpec::from_duration), None).ok();
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            match self.listener.accept() {
                Ok((mut socket, _)) => {
                    let at = self.next;
                    self.next += 1;
                    self.generation += 1;
                    socket.set_nodelay(true)?;
                    self.poll.registry().register(
                        &mut socket,
                        Token(at),
                        Interest::READABLE | Interest::WRITABLE,
                    )?;
                    let connection = Connection {
                        socket,
                        inward: Vec::new(),
                        outward: Vec::new(),
                        generation: self.generation,
                        closing: false,
                    };
                    self.connections.insert(at, connection);
                    self.serve(at);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // A client that left again, or no descriptor for it.
                Err(_) => return Ok(()),
            }
        }
    }

    /// Reads what has come and answers what is whole.
    fn serve(&mut self, at: usize) {
        let Some(connection) = self.connections.get_mut(&at) else { return };
        let mut buffer = [0; 16384];
        loop {
            match connection.socket.read(&mut buffer) {
                Ok(0) => {
                    self.connections.remove(&at);
                    return;
                }
                Ok(n) => {
                    connection.inward.extend_from_slice(&buffer[..n]);
                    if n < buffer.len() {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.connections.remove(&at);
                    return;
                }
            }
        }
        self.flush(at);
        loop {
            let Some(connection) = self.connections.get_mut(&at) else { return };
            let Some((head, length)) = whole(&connection.inward) else { return };
            let request: Vec<u8> = connection.inward.drain(..head + length).collect();
            let generation = connection.generation;
            self.request(at, generation, &request[..head], &request[head..]);
        }
    }

    fn request(&mut self, at: usize, generation: u64, head: &[u8], body: &[u8]) {
        let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line).into_owned();
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let now = Instant::now();
        let due = now + Duration::from_millis(self.args.delay);
        if method == "GET" {
            let answer = self.get(path);
            return self.answer_at(at, generation, due, answer);
        }
        if self.args.refuse_percent > 0 {
            self.refused += self.args.refuse_percent;
            if self.refused >= 100 {
                self.refused -= 100;
                return self.answer_at(at, generation, now, reply(503, "{\"stored\":\"no\"}"));
            }
        }
        let fault = self.faults.next();
        if self.args.remember {
            self.note_latest(body);
        }
        let due = if fault == Some(Fault::Slow) { now + Duration::from_millis(300) } else { due };
        let mut answer = Some((at, generation, due, reply(200, "{\"delivered\":1}")));
        let mut times = 1;
        match fault {
            Some(Fault::Swallow) => answer = None,
            Some(Fault::Forget) => times = 0,
            Some(Fault::Double) => times = 2,
            Some(Fault::Refuse) => {
                times = 0;
                answer = Some((at, generation, now, reply(503, "{\"stored\":\"no\"}")));
            }
            Some(Fault::HangUp) => {
                self.connections.remove(&at);
                answer = None;
            }
            Some(Fault::Slow) | None => {}
        }
        match (&self.store, times) {
            (Some(store), 1..) => {
                store.send(Job { body: body.to_vec(), times, answer }).ok();
            }
            _ => {
                if let Some((at, generation, when, bytes)) = answer {
                    self.answer_at(at, generation, when, bytes);
                }
            }
        }
    }

    fn note_latest(&mut self, body: &[u8]) {
        for record in records_of(body) {
            let key = &record[&self.args.key];
            let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            if let Some(time) = record["time"].as_i64() {
                let times = self.latest.entry(key).or_default();
                times.push((Instant::now(), time));
                // More than any `--behind` looks back.
                if times.len() > 10_000 {
                    times.drain(..5000);
                }
            }
        }
    }

    fn get(&mut self, path: &str) -> Vec<u8> {
        self.gets += 1;
        let key = path.split_once("key=").map_or("", |(_, key)| key.split('&').next().unwrap_or_default());
        if self.gets.is_multiple_of(7) && self.wrong_left > 0 {
            self.wrong_left -= 1;
            return reply(200, "{\"key\":\"somebody else's\"}");
        }
        if self.gets.is_multiple_of(11) && self.fail_left > 0 {
            self.fail_left -= 1;
            return reply(500, "{}");
        }
        let known_at = Instant::now().checked_sub(Duration::from_millis(self.args.behind));
        let newest = self.latest.get(key).and_then(|times| {
            let known = |(at, _): &&(Instant, i64)| known_at.is_some_and(|known_at| *at <= known_at);
            times.iter().filter(known).map(|(_, time)| *time).max()
        });
        let time = newest.map_or("null".to_owned(), |time| time.to_string());
        reply(200, &format!("{{\"key\":\"{key}\",\"samples\":[{{\"time\":{time}}}]}}"))
    }

    fn answer_at(&mut self, at: usize, generation: u64, when: Instant, bytes: Vec<u8>) {
        if when <= Instant::now() {
            self.answer(at, generation, bytes);
        } else {
            self.later.push(std::cmp::Reverse((when, at, generation, bytes)));
        }
    }

    fn answer(&mut self, at: usize, generation: u64, bytes: Vec<u8>) {
        let close = self.args.close;
        let Some(connection) = self.connections.get_mut(&at).filter(|c| c.generation == generation) else {
            return;
        };
        connection.outward.extend_from_slice(&bytes);
        connection.closing |= close;
        self.flush(at);
    }

    fn flush(&mut self, at: usize) {
        let Some(connection) = self.connections.get_mut(&at) else { return };
        while !connection.outward.is_empty() {
            match connection.socket.write(&connection.outward) {
                Ok(n) => {
                    connection.outward.drain(..n);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(_) => break,
            }
        }
        if connection.closing {
            self.connections.remove(&at);
        }
    }
}

/// Lengths of head and body of a request that is whole.
fn whole(bytes: &[u8]) -> Option<(usize, usize)> {
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = bytes[..head].to_ascii_lowercase();
    let name = b"content-length:";
    let length = text.windows(name.len()).position(|window| window == name).map_or(0, |at| {
        let digits = text[at + name.len()..].iter().skip_while(|byte| **byte == b' ');
        digits.take_while(|byte| byte.is_ascii_digit()).fold(0, |n, digit| n * 10 + usize::from(digit - b'0'))
    });
    (bytes.len() >= head + length).then_some((head, length))
}

fn reply(status: u16, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}
