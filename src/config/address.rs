//! Hosts and ports as the settings write them.

use std::net::SocketAddr;

/// Where a service listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Address(SocketAddr),
    /// Every TCP socket that systemd passes on.
    Systemd,
}

impl Listen {
    /// As written: an IP address with a port, or `systemd`.
    pub(super) fn parse(text: &str) -> Option<Listen> {
        match text {
            "systemd" => Some(Listen::Systemd),
            address => address.parse().ok().map(Listen::Address),
        }
    }
}

/// Host and port of a broker; without one, Kafka's usual port.
pub fn address_of(broker: &str) -> (&str, u16) {
    const KAFKA_PORT: u16 = 9092;
    let port = broker.trim().rsplit(':').next().and_then(|port| port.parse().ok());
    (host_of(broker), port.unwrap_or(KAFKA_PORT))
}

/// The host of `host:port`, where the port may be missing and an IPv6 address stands in brackets.
pub(super) fn host_of(address: &str) -> &str {
    let address = address.trim().rsplit("://").next().unwrap_or_default();
    match address.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => address.split(':').next().unwrap_or_default(),
    }
}

/// True for a name or address of this machine, for which TLS protects nothing.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// True of `*`, and of what a browser calls an origin.
pub(super) fn is_origin(text: &str) -> bool {
    text == "*"
        || text.split_once("://").is_some_and(|(scheme, host)| {
            !scheme.is_empty() && !host.is_empty() && !host.contains(['/', ' ', '*'])
        })
}
