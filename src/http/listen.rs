//! Where connections come from: addresses that are bound here, or sockets that systemd holds (`sd_listen_fds(3)`), which
//! outlive the process, so that a restart refuses nobody.

use std::net::TcpListener;

use anyhow::{Context, Result, bail};
use listenfd::ListenFd;

use crate::config::Listen;

/// The sockets, which are not accepted from yet.
///
/// # Errors
/// Where an address cannot be had, or nobody passed a socket on. `setting` is what the reader has to change.
pub fn open(listen: &Listen, setting: &str) -> Result<Vec<TcpListener>> {
    let sockets = match listen {
        Listen::Address(address) => vec![TcpListener::bind(address).with_context(|| {
            format!("cannot listen on {address}: is another program there? set {setting} to a free address")
        })?],
        Listen::Systemd => passed_on(setting)?,
    };
    for socket in &sockets {
        socket.set_nonblocking(true).context("cannot make a socket non-blocking")?;
    }
    Ok(sockets)
}

fn passed_on(setting: &str) -> Result<Vec<TcpListener>> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for index in 0..passed.len() {
        let socket = passed
            .take_tcp_listener(index)
            .with_context(|| format!("socket {index} of systemd's is no TCP socket that listens"))?;
        sockets.extend(socket);
    }
    if sockets.is_empty() {
        bail!(
            "{setting} is \"systemd\", and systemd passed no socket on: is the .socket unit there and started? \
             LISTEN_FDS and LISTEN_PID say what it passed"
        );
    }
    Ok(sockets)
}
