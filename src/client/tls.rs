//! Whom we trust, and what a failed handshake means, in a sentence: OpenSSL's words reach us through three client
//! libraries, and say what failed but not what to do.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use openssl::ssl::{HandshakeError, SslConnector, SslConnectorBuilder, SslFiletype, SslMethod, SslVersion};
use openssl::x509::store::X509StoreBuilder;

/// PEM files of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files<'a> {
    /// `None` for the authorities that the system trusts; otherwise only this one.
    pub ca: Option<&'a str>,
    /// Certificate and key, where the server asks for them.
    pub client: Option<(&'a str, &'a str)>,
}

/// A client side that verifies the server's certificate and name.
pub fn builder(files: Files<'_>) -> Result<SslConnectorBuilder> {
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    if let Some(path) = files.ca {
        // Only this authority, not also those that the system trusts.
        builder.set_cert_store(X509StoreBuilder::new()?.build());
        builder
            .set_ca_file(path)
            .with_context(|| format!("cannot read the certificate authority {path:?}"))?;
    }
    if let Some((cert, key)) = files.client {
        builder
            .set_certificate_chain_file(cert)
            .with_context(|| format!("cannot read the certificate {cert:?}"))?;
        builder
            .set_private_key_file(key, SslFiletype::PEM)
            .with_context(|| format!("cannot read the key {key:?}"))?;
    }
    Ok(builder)
}

/// One handshake with a server, and nothing else. For client libraries that put no bound on theirs, and that trust the
/// system's authorities beside the configured one.
pub fn probe(host: &str, port: u16, files: Files<'_>, timeout: Duration) -> Result<()> {
    let stream = reach((host, port).to_socket_addrs()?, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    match builder(files)?.build().connect(host, stream) {
        Ok(_) => Ok(()),
        Err(HandshakeError::WouldBlock(_)) => {
            Err(anyhow!("it does not answer a TLS handshake").context(NO_TLS))
        }
        Err(error) => {
            let words = error.to_string();
            let sentence = explain(&words);
            let error = anyhow!(words);
            Err(match sentence {
                Some(sentence) => error.context(sentence),
                None => error,
            })
        }
    }
}

/// True if the server of a probe speaks TLS, whatever it thought of us or we of it.
pub fn speaks(probed: &Result<()>) -> bool {
    match probed {
        Ok(()) => true,
        // Certificates come after the server's own greeting.
        Err(error) => format!("{error:#}").contains("certificate"),
    }
}

/// A connection to the first address that takes one: a name often has one of each family, and the server listens on one of
/// them. `timeout` is for each address.
fn reach(addresses: impl Iterator<Item = SocketAddr>, timeout: Duration) -> io::Result<TcpStream> {
    let mut refused = io::Error::other("the name has no address");
    for address in addresses {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

const NO_TLS: &str = "the server does not speak TLS there: use its TLS port, or switch TLS on; there is no fallback to plaintext";

/// The sentence for an error's words, if they are of TLS.
pub fn explain(words: &str) -> Option<&'static str> {
    let words = words.to_lowercase();
    let has = |part: &str| words.contains(part);
    if has("certificate has expired") || has("certificate expired") {
        Some("the server's certificate has expired: give the server a new one")
    } else if has("certificate is not yet valid") {
        Some("the server's certificate is not valid yet: is a clock wrong?")
    } else if has("hostname mismatch") || has("ip address mismatch") {
        Some(
            "the server's certificate is for another name: connect by a name that it carries, or give the server one for this \
             name",
        )
    } else if has("issuer certificate") || has("self-signed certificate") || has("self signed certificate") {
        Some(
            "the server's certificate is not signed by the configured authority: name the CA that signed it, or ask who else \
             answers there",
        )
    } else if has("certificate verify failed") || has("certificate could not be verified") {
        Some(
            "the server's certificate is refused: another authority, another name, or expired; `rowmill check` says which",
        )
    } else if has("does not support tls")
        || has("wrong version number")
        || has("packet length too long")
        || has("unexpected eof")
        || has("ssl_handshake") && has("disconnected")
    {
        Some(NO_TLS)
    } else if has("certificate required")
        || has("bad certificate")
        || has("peer did not return a certificate")
    {
        Some("the server asks for a client certificate that it trusts: set cert and key")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_name_is_reached_by_the_address_on_which_the_server_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let timeout = Duration::from_secs(1);
        assert_eq!(reach([closed, open].into_iter(), timeout).unwrap().peer_addr().unwrap(), open);
        let refused = reach([closed].into_iter(), timeout).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(reach([].into_iter(), timeout).is_err());
    }

    #[test]
    fn each_cause_has_its_sentence() {
        #[track_caller]
        fn check(words: &str, expected: Option<&str>) {
            let found = explain(words);
            assert_eq!(found.is_some(), expected.is_some(), "{words}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{words}: {found:?}");
        }
        check("connection refused", None);
        check("certificate verify failed: certificate has expired", Some("expired"));
        check("certificate verify failed: Hostname mismatch", Some("another name"));
        check("certificate verify failed: unable to get local issuer certificate", Some("authority"));
        check("SSL routines::certificate verify failed (after 9ms)", Some("says which"));
        check("error performing TLS handshake: server does not support TLS", Some("no fallback"));
        check("sslv3 alert certificate required", Some("client certificate"));
    }
}
