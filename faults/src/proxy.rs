//! A TCP proxy in front of a server that makes rare weather certain: connections that break, slow down or fall silent, and
//! the COMMIT whose reply never comes, committed or not.
//!
//! In front of PostgreSQL it reads as much of the protocol as that takes: a message's type and length, and the text of a
//! simple query. TLS would hide both, so it is for connections without. In front of any other server it reads nothing.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// What the network does. Those about a COMMIT strike once and then it is fair again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Each piece waits this long, in both directions.
    Slow(Duration),
    /// So many bytes a second pass, in each direction of each connection.
    Narrow(u64),
    /// Nothing arrives and nothing breaks: the peers see an open connection.
    Silent,
    /// Connections break as they are made.
    Refusing,
    /// The connection breaks before the COMMIT reaches the server: not committed.
    CommitLost,
    /// The COMMIT is executed, then the connection breaks: committed, without a reply.
    ReplyLost,
    /// The COMMIT is executed, the reply never comes, and the connection stays open.
    ReplySwallowed,
    /// The client sees the connection break; the server gets the COMMIT this much later.
    CommitLate(Duration),
}

impl Weather {
    /// Only in front of PostgreSQL.
    fn is_about_commit(self) -> bool {
        matches!(
            self,
            Weather::CommitLost | Weather::ReplyLost | Weather::ReplySwallowed | Weather::CommitLate(_)
        )
    }
}

/// What the proxy reads of what it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// PostgreSQL's messages, as far as they tell a COMMIT.
    Postgres,
    /// Nothing: bytes are bytes.
    Nothing,
    /// Nothing, and each byte arrives so much later, however many are on their way: a server that is far away.
    FromAfar(Duration),
}

/// A listening proxy. Dropping it breaks its connections and frees its port.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    reading: Reading,
    upstream: Mutex<SocketAddr>,
    weather: Mutex<Weather>,
    /// How many COMMITs were struck.
    strikes: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
    is_closing: AtomicBool,
}

impl Proxy {
    /// Before PostgreSQL, on a free port of the loopback.
    ///
    /// # Errors
    /// If there is none.
    pub fn before_postgres(upstream: SocketAddr) -> std::io::Result<Proxy> {
        Proxy::start(0, upstream, Reading::Postgres)
    }

    /// Before any server, on this port of the loopback, or on a free one for 0. There are no COMMITs for it.
    ///
    /// # Errors
    /// If somebody else listens there.
    pub fn before_any(port: u16, upstream: SocketAddr) -> std::io::Result<Proxy> {
        Proxy::start(port, upstream, Reading::Nothing)
    }

    /// Before any server, as if it were so far away: `way` is what each direction takes, half of a round trip. The weather is
    /// always fair.
    ///
    /// # Errors
    /// If somebody else listens there.
    pub fn from_afar(port: u16, upstream: SocketAddr, way: Duration) -> std::io::Result<Proxy> {
        Proxy::start(port, upstream, Reading::FromAfar(way))
    }

    fn start(port: u16, upstream: SocketAddr, reading: Reading) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            reading,
            upstream: Mutex::new(upstream),
            weather: Mutex::new(Weather::Fair),
            strikes: AtomicU64::new(0),
            connections: Mutex::default(),
            is_closing: AtomicBool::new(false),
        });
        let sharing = shared.clone();
        let accepting = spawn(move || {
            for client in listener.incoming().flatten() {
                if sharing.is_closing.load(SeqCst) {
                    return;
                }
                let shared = sharing.clone();
                // A server that is down shows as a connection that breaks.
                spawn(move || drop(connect(&shared, client)));
            }
        });
        Ok(Proxy { port, shared, accepting: Some(accepting) })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// # Panics
    /// If the weather is about a COMMIT and the server is not PostgreSQL.
    pub fn set(&self, weather: Weather) {
        let is_readable = self.shared.reading == Reading::Postgres || !weather.is_about_commit();
        assert!(is_readable, "{weather:?} strikes COMMITs, and this proxy does not read them");
        *lock(&self.shared.weather) = weather;
    }

    /// New connections lead to another server, as a name does after a failover.
    pub fn lead_to(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// How many COMMITs were lost, late, or robbed of their reply so far.
    pub fn strikes(&self) -> u64 {
        self.shared.strikes.load(SeqCst)
    }

    /// Breaks all connections; returns how many.
    pub fn cut(&self) -> usize {
        let connections = std::mem::take(&mut *lock(&self.shared.connections));
        connections.iter().filter(|c| c.shutdown(Shutdown::Both).is_ok()).count()
    }

    /// From now on it is refused, and what there was breaks; returns how many connections that were.
    pub fn refuse(&self) -> usize {
        self.set(Weather::Refusing);
        self.cut()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, SeqCst);
        // Who waits for a client gets one, and sees that it was the last.
        let is_woken = TcpStream::connect(("127.0.0.1", self.port)).is_ok();
        if let Some(accepting) = self.accepting.take().filter(|_| is_woken) {
            // Its panic would be its own matter: the port is free then, too.
            accepting.join().ok();
        }
        self.set(Weather::Fair);
        self.cut();
    }
}

impl Shared {
    fn weather(&self) -> Weather {
        *lock(&self.weather)
    }

    /// The weather for a COMMIT; it is used up.
    fn strike(&self) -> Option<Weather> {
        let mut weather = lock(&self.weather);
        let struck = weather.is_about_commit().then(|| std::mem::replace(&mut *weather, Weather::Fair));
        self.strikes.fetch_add(u64::from(struck.is_some()), SeqCst);
        struck
    }

    /// Waits with so many bytes as long as the weather wants; false if the connection is gone meanwhile.
    fn hold_up(&self, stream: &TcpStream, bytes: usize) -> bool {
        loop {
            match self.weather() {
                Weather::Slow(pause) => sleep(pause),
                Weather::Narrow(rate) => sleep(Duration::from_secs_f64(bytes as f64 / rate as f64)),
                Weather::Silent => {
                    sleep(Duration::from_millis(50));
                    if stream.take_error().is_err() {
                        return false;
                    }
                    continue;
                }
                _ => {}
            }
            return true;
        }
    }
}

/// Both directions of one connection, until either side ends it.
fn connect(shared: &Arc<Shared>, client: TcpStream) -> std::io::Result<()> {
    if shared.weather() == Weather::Refusing {
        return client.shutdown(Shutdown::Both);
    }
    let server = TcpStream::connect(*lock(&shared.upstream))?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    {
        let mut connections = lock(&shared.connections);
        connections.retain(|c| c.peer_addr().is_ok());
        connections.push(client.try_clone()?);
        connections.push(server.try_clone()?);
    }
    let mute = Arc::new(Mute::default());
    let (back_client, back_server) = (client.try_clone()?, server.try_clone()?);
    let (back_shared, back_mute) = (shared.clone(), mute.clone());
    spawn(move || {
        drop(match back_shared.reading {
            Reading::Postgres => replies(&back_shared, &back_mute, &back_server, &back_client),
            Reading::Nothing => pass(&back_shared, &back_server, &back_client),
            Reading::FromAfar(way) => carry(way, &back_server, &back_client),
        });
        close(&back_client, &back_server);
    });
    let ended = match shared.reading {
        Reading::Postgres => requests(shared, &mute, &client, &server),
        Reading::Nothing => pass(shared, &client, &server),
        Reading::FromAfar(way) => carry(way, &client, &server),
    };
    if !mute.keep_open.load(SeqCst) {
        close(&client, &server);
    }
    ended
}

fn close(client: &TcpStream, server: &TcpStream) {
    // Already closed is fine.
    client.shutdown(Shutdown::Both).ok();
    server.shutdown(Shutdown::Both).ok();
}

/// One direction, whatever the bytes mean.
fn pass(shared: &Shared, from: &TcpStream, to: &TcpStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = (from, to);
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = reader.read(&mut piece)?;
        if count == 0 || !shared.hold_up(from, count) {
            return Ok(());
        }
        writer.write_all(&piece[..count])?;
    }
}

/// Pieces that are on their way in one direction: a long and fast line holds many.
const ON_THE_WAY_MAX: usize = 1024;

/// One direction, where each byte takes so long.
fn carry(way: Duration, from: &TcpStream, to: &TcpStream) -> std::io::Result<()> {
    let (sender, pieces) = sync_channel::<(Instant, Vec<u8>)>(ON_THE_WAY_MAX);
    let arriving = to.try_clone()?;
    let arrival = spawn(move || {
        for (due, piece) in pieces {
            sleep(due.saturating_duration_since(Instant::now()));
            if (&arriving).write_all(&piece).is_err() {
                return;
            }
        }
    });
    let mut reader = from;
    let mut piece = vec![0; 64 << 10];
    loop {
        // A connection that breaks ends like one that was closed.
        let count = reader.read(&mut piece).unwrap_or(0);
        if count == 0 || sender.send((Instant::now() + way, piece[..count].to_vec())).is_err() {
            break;
        }
    }
    drop(sender);
    // What is on its way arrives before the end does.
    arrival.join().ok();
    Ok(())
}

/// What became of a connection whose COMMIT was struck.
#[derive(Default)]
struct Mute {
    /// Nothing that the server says from now on reaches the client.
    is_on: AtomicBool,
    keep_open: AtomicBool,
}

/// Client to server, message by message, because a COMMIT has to be seen.
fn requests(shared: &Shared, mute: &Mute, client: &TcpStream, server: &TcpStream) -> std::io::Result<()> {
    let (mut from, mut to) = (client, server);
    let mut buffer = Vec::new();
    let mut piece = vec![0; 64 << 10];
    let mut is_started = false;
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 || !shared.hold_up(client, count) {
            return Ok(());
        }
        buffer.extend_from_slice(&piece[..count]);
        let mut done = 0;
        while let Some(length) = message_length(&buffer[done..], is_started) {
            let message = &buffer[done..done + length];
            if is_started && is_commit(message) {
                match shared.strike() {
                    Some(Weather::CommitLost) => return Ok(()),
                    Some(Weather::CommitLate(late)) => {
                        mute.is_on.store(true, SeqCst);
                        client.shutdown(Shutdown::Both)?;
                        sleep(late);
                        to.write_all(message)?;
                        // The server answers when it is done.
                        sleep(late);
                        return Ok(());
                    }
                    Some(struck) => {
                        mute.keep_open.store(struck == Weather::ReplySwallowed, SeqCst);
                        mute.is_on.store(true, SeqCst);
                    }
                    None => {}
                }
            }
            to.write_all(message)?;
            is_started = true;
            done += length;
        }
        buffer.drain(..done);
    }
}

/// Server to client.
fn replies(shared: &Shared, mute: &Mute, server: &TcpStream, client: &TcpStream) -> std::io::Result<()> {
    let (mut from, mut to) = (server, client);
    let mut piece = vec![0; 64 << 10];
    loop {
        let count = from.read(&mut piece)?;
        if count == 0 || !shared.hold_up(server, count) {
            return Ok(());
        }
        if mute.is_on.load(SeqCst) {
            // The server answers a query in one go, at its end: it has been executed.
            if mute.keep_open.load(SeqCst) {
                continue;
            }
            return Ok(());
        }
        to.write_all(&piece[..count])?;
    }
}

/// The whole length of the message at the front, if all of it is there. The first one of a connection has no type.
fn message_length(bytes: &[u8], has_type: bool) -> Option<usize> {
    let type_bytes = usize::from(has_type);
    let length = bytes.get(type_bytes..type_bytes + 4)?;
    let length = type_bytes + u32::from_be_bytes(length.try_into().expect("four bytes")) as usize;
    (bytes.len() >= length).then_some(length)
}

/// The engine's last message of a transaction moves the ledger and commits.
fn is_commit(message: &[u8]) -> bool {
    message[0] == b'Q' && message.windows(16).any(|w| w == b"rowmill.advance(")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_where_they_end() {
        #[track_caller]
        fn check(bytes: &[u8], has_type: bool, expected: Option<usize>) {
            assert_eq!(message_length(bytes, has_type), expected);
        }
        check(b"", true, None);
        check(b"Q\0\0\0\x08abc", true, None);
        check(b"Q\0\0\0\x08abcd", true, Some(9));
        check(b"Q\0\0\0\x08abcdX", true, Some(9));
        check(b"\0\0\0\x08abcd", false, Some(8));
    }

    #[test]
    fn only_the_message_that_moves_the_ledger_is_a_commit() {
        assert!(is_commit(b"Q\0\0\0\0SELECT rowmill.advance('me'); COMMIT\0"));
        assert!(!is_commit(b"Q\0\0\0\0BEGIN\0"));
        assert!(!is_commit(b"d\0\0\0\0rowmill.advance(\0"));
    }

    /// A server that sends back what it gets, as long as it lives.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        spawn(move || {
            for stream in listener.incoming().flatten() {
                spawn(move || std::io::copy(&mut &stream, &mut &stream).ok());
            }
        });
        address
    }

    /// What comes back within a moment; `None` for silence.
    fn say(stream: &TcpStream, words: &[u8]) -> Option<Vec<u8>> {
        let (mut to, mut from) = (stream, stream);
        to.write_all(words).ok()?;
        from.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
        let mut answer = vec![0; words.len()];
        from.read_exact(&mut answer).ok()?;
        Some(answer)
    }

    #[test]
    fn bytes_that_are_no_messages_pass_and_fall_silent_and_are_refused() {
        let proxy = Proxy::before_any(0, echo()).expect("a free port");
        let connect = || TcpStream::connect(("127.0.0.1", proxy.port())).expect("it listens");
        // As a message of PostgreSQL's, it would be one of four gigabytes.
        let words = [0xff; 64];
        let stream = connect();
        assert_eq!(say(&stream, &words).as_deref(), Some(&words[..]));
        proxy.set(Weather::Silent);
        assert_eq!(say(&stream, &words), None);
        assert_eq!(say(&connect(), &words), None);
        proxy.refuse();
        assert_eq!((&stream).read(&mut [0; 64]).ok(), Some(0), "the connection is broken");
        assert_eq!(say(&connect(), &words), None);
        proxy.set(Weather::Fair);
        assert_eq!(say(&connect(), &words).as_deref(), Some(&words[..]));
    }

    #[test]
    fn what_comes_from_afar_comes_later_and_not_slower() {
        let way = Duration::from_millis(50);
        let proxy = Proxy::from_afar(0, echo(), way).expect("a free port");
        let stream = TcpStream::connect(("127.0.0.1", proxy.port())).expect("it listens");
        // Many pieces are on their way at once.
        for size in [1, 1 << 20] {
            let began = Instant::now();
            let writer = stream.try_clone().expect("a stream");
            let writing = spawn(move || (&writer).write_all(&vec![7; size]));
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            (&stream).read_exact(&mut vec![0; size]).expect("an answer");
            writing.join().expect("a thread").expect("sent");
            let took = began.elapsed();
            assert!((way * 2..way * 20).contains(&took), "{took:?}");
        }
    }

    #[test]
    fn a_dropped_proxy_frees_its_port() {
        let proxy = Proxy::before_any(0, echo()).expect("a free port");
        let port = proxy.port();
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        assert!(say(&stream, b"x").is_some());
        drop(proxy);
        assert_eq!(say(&stream, b"x"), None);
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        Proxy::before_any(port, echo()).expect("the port is free");
    }

    #[test]
    #[should_panic(expected = "does not read them")]
    fn a_commit_can_be_lost_only_where_it_is_read() {
        Proxy::before_any(0, echo()).expect("a free port").set(Weather::CommitLost);
    }
}
