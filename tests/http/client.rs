//! A client that sends bytes and reads what comes, and says how the connection ended.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

pub(crate) struct Client {
    pub(crate) socket: TcpStream,
    seen: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

/// How a connection was when the client stopped reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A whole close, after all bytes.
    Closed,
    Reset,
    /// Nothing for the whole time.
    Open,
}

impl Client {
    pub(crate) fn new(address: SocketAddr) -> Client {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Client::on(socket)
    }

    pub(crate) fn on(socket: TcpStream) -> Client {
        Client { socket, seen: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The server may have ended it meanwhile.
        self.socket.write_all(bytes.as_ref()).ok();
    }

    pub(crate) fn close_half(&mut self) {
        self.socket.shutdown(Shutdown::Write).ok();
    }

    /// The next answer; `None` where the connection ended before one.
    pub(crate) fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(reply) = self.whole() {
                return Some(reply);
            }
            let mut buffer = [0; 64 << 10];
            match self.socket.read(&mut buffer) {
                Ok(0) => return None,
                Ok(n) => self.seen.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
    }

    fn whole(&mut self) -> Option<Reply> {
        let end = self.seen.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let head = String::from_utf8(self.seen[..end].to_vec()).unwrap().to_ascii_lowercase();
        let length: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .map_or(0, |length| length.trim().parse().unwrap());
        let status = head[9..12].parse().unwrap();
        let length = if status == 100 { 0 } else { length };
        if self.seen.len() < end + length {
            return None;
        }
        let body = self.seen[end..end + length].to_vec();
        self.seen.drain(..end + length);
        Some(Reply { status, head, body })
    }

    /// How the connection ends within this time, and what else comes before.
    pub(crate) fn end(&mut self, within: Duration) -> (End, usize) {
        let until = Instant::now() + within;
        let mut more = self.seen.len();
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left)).unwrap();
            let mut buffer = [0; 64 << 10];
            match self.socket.read(&mut buffer) {
                Ok(0) => return (End::Closed, more),
                Ok(n) => more += n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return (End::Open, more);
                }
                Err(_) => return (End::Reset, more),
            }
        }
    }
}

pub(crate) fn post(path: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
