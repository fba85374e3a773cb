//! Where requests go: the sockets' addresses behind a host's name, looked up once, and how TLS is spoken there.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use openssl::ssl::{SslConnector, SslMethod};

use crate::message::url::Url;

/// A server: scheme, host and port.
#[derive(Clone, Debug)]
pub struct Server {
    pub host: String,
    /// As the header `Host` has it.
    pub authority: String,
    pub addresses: Vec<SocketAddr>,
    pub tls: Option<Arc<SslConnector>>,
}

impl Server {
    /// Looks the host up. `ca` is an authority besides the system's.
    pub fn resolve(url: &Url, ca: Option<&Path>) -> Result<Self> {
        let with_port = match has_port(&url.authority) {
            true => url.authority.clone(),
            false => format!("{}:{}", url.authority, if url.tls { 443 } else { 80 }),
        };
        let addresses: Vec<SocketAddr> =
            with_port.to_socket_addrs().with_context(|| format!("look up {}", url.authority))?.collect();
        ensure!(!addresses.is_empty(), "{} has no address", url.authority);
        let host = with_port.rsplit_once(':').map_or(with_port.as_str(), |(host, _)| host);
        Ok(Self {
            host: host.trim_matches(['[', ']']).to_owned(),
            authority: url.authority.clone(),
            addresses,
            tls: if url.tls { Some(Arc::new(connector(ca)?)) } else { None },
        })
    }
}

fn has_port(authority: &str) -> bool {
    let behind = authority.rsplit_once(']').map_or(authority, |(_, behind)| behind);
    behind.contains(':')
}

fn connector(ca: Option<&Path>) -> Result<SslConnector> {
    let mut builder = SslConnector::builder(SslMethod::tls_client()).context("set up TLS")?;
    if let Some(ca) = ca {
        builder.set_ca_file(ca).with_context(|| format!("read the CA file {}", ca.display()))?;
    }
    Ok(builder.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_looked_up_with_their_port() {
        for (text, port, host) in [
            ("http://127.0.0.1:3000/", 3000, "127.0.0.1"),
            ("http://127.0.0.1/", 80, "127.0.0.1"),
            ("http://[::1]:81/", 81, "::1"),
        ] {
            let server = Server::resolve(&Url::parse(text).unwrap(), None).unwrap();
            assert_eq!((server.addresses[0].port(), server.host.as_str()), (port, host));
        }
    }
}
