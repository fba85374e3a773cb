//! A TCP proxy in front of PostgreSQL that makes rare weather certain: connections that break, slow down or fall silent,
//! and the COMMIT whose reply never comes, committed or not.
//!
//! It reads as much of the protocol as that takes: a message's type and length, and the text of a simple query. TLS
//! would hide both, so it is for connections without.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{sleep, spawn};
use std::time::Duration;

/// What the network does. Those about a COMMIT strike once and then it is fair again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weather {
    Fair,
    /// Each piece waits this long, in both directions.
    Slow(Duration),
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
    fn is_about_commit(self) -> bool {
        matches!(
            self,
            Weather::CommitLost | Weather::ReplyLost | Weather::ReplySwallowed | Weather::CommitLate(_)
        )
    }
}

/// A listening proxy; it ends with the process.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Mutex<SocketAddr>,
    weather: Mutex<Weather>,
    /// How many COMMITs were struck.
    strikes: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// Listens on a free port of the loopback.
    ///
    /// # Errors
    /// If there is none.
    pub fn start(upstream: SocketAddr) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            weather: Mutex::new(Weather::Fair),
            strikes: AtomicU64::new(0),
            connections: Mutex::default(),
        });
        let accepting = shared.clone();
        spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = accepting.clone();
                // A server that is down shows as a connection that breaks.
                spawn(move || drop(connect(&shared, client)));
            }
        });
        Ok(Proxy { port, shared })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn set(&self, weather: Weather) {
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

    /// Waits as long as the weather wants; false if the connection is gone meanwhile.
    fn hold_up(&self, stream: &TcpStream) -> bool {
        loop {
            match self.weather() {
                Weather::Slow(pause) => sleep(pause),
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
        drop(replies(&back_shared, &back_mute, &back_server, &back_client));
        close(&back_client, &back_server);
    });
    let ended = requests(shared, &mute, &client, &server);
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
        if count == 0 || !shared.hold_up(client) {
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
        if count == 0 || !shared.hold_up(server) {
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
}
