//! What systemd is told: ready, status, alive, stopping. The protocol is a datagram of `NAME=value` lines to the socket that
//! `NOTIFY_SOCKET` names; without that variable nobody is told anything.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::figures::board::{Board, Teller};

/// Between two status lines; `systemctl status` is for people.
const STATUS: Duration = Duration::from_secs(5);

/// The service manager's end.
pub struct Manager {
    socket: UnixDatagram,
    is_ready: bool,
    teller: Option<Teller>,
    status_at: Option<Instant>,
}

impl Manager {
    /// `None` where nobody wants to be told.
    ///
    /// # Errors
    /// A socket that is named and cannot be used: systemd would wait in vain, and end the process without saying why.
    pub fn from_environment() -> Result<Option<Manager>> {
        let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(None) };
        let name = name.into_string().ok().context("NOTIFY_SOCKET is no text")?;
        Manager::connect(&name).map(Some).with_context(|| {
            format!("cannot reach systemd at NOTIFY_SOCKET={name:?}; is NotifyAccess=main set?")
        })
    }

    fn connect(name: &str) -> Result<Manager> {
        // An at-sign stands for a socket that is no file.
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that reads nothing must not hold the watchdog up.
        socket.set_nonblocking(true)?;
        Ok(Manager { socket, is_ready: false, teller: None, status_at: None })
    }

    /// Called about once a second, while the process is healthy: that is what the manager's watchdog waits for.
    pub fn alive(&mut self, board: &Board) {
        let mut words = String::from("WATCHDOG=1\n");
        if !self.is_ready && board.ready().is_ok() {
            self.is_ready = true;
            words.push_str("READY=1\n");
        }
        let since = self.status_at.map(|at| at.elapsed());
        if since.is_none_or(|since| since >= STATUS) {
            let status = self.status(board, since.unwrap_or(STATUS));
            words.push_str(&format!("STATUS={}\n", one_line(&status)));
            self.status_at = Some(Instant::now());
        }
        self.tell(&words);
    }

    /// What happened lately, or why nothing can. The line is asked for even where it is not shown: each tells of the time
    /// since the last.
    fn status(&mut self, board: &Board, since: Duration) -> String {
        if let (None, Some(service)) = (&self.teller, board.service()) {
            self.teller = Some(service.clone().teller());
        }
        let line = self.teller.as_mut().map(|tell| tell(since)).unwrap_or_default();
        board.ready().err().unwrap_or(line)
    }

    /// The orderly end has begun; `doing` says what is done in it.
    pub fn stopping(&self, doing: &str) {
        self.tell(&format!("STOPPING=1\nSTATUS=stopping: {doing}\n"));
    }

    fn tell(&self, words: &str) {
        // A full socket: the manager is busy, and hears the next one.
        if let Err(error) = self.socket.send(words.as_bytes()) {
            log::debug!("systemd was not told {words:?}: {error}");
        }
    }
}

/// A line break would begin another variable.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_sockets_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let file = UnixDatagram::bind(&path).unwrap();
        let name = format!("rowmill-test-{}", std::process::id());
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, name) in [(file, path.to_str().unwrap().to_owned()), (hidden, format!("@{name}"))] {
            Manager::connect(&name).unwrap().stopping("going");
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            assert!(buffer[..length].starts_with(b"STOPPING=1\n"));
        }
        assert!(Manager::connect("/nowhere/notify").is_err());
        assert_eq!(one_line("a\nREADY=1"), "a READY=1");
    }
}
