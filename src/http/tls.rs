//! TLS on a socket that never blocks: a link is plain or not, and reads and writes alike.

use std::io::{self, Read, Write};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use mio::net::TcpStream;
use openssl::ssl::{
    ErrorCode, HandshakeError, MidHandshakeSslStream, Ssl, SslAcceptor, SslFiletype, SslMethod, SslMode,
    SslStream, SslVersion,
};

use crate::base::lock::Live;

/// What the server shows of itself, for all loops.
#[derive(Clone)]
pub struct Identity {
    chain: String,
    key: String,
    acceptor: Arc<Live<SslAcceptor>>,
}

impl Identity {
    /// From a chain and a key in PEM.
    ///
    /// # Errors
    /// Where one cannot be read, or they do not belong together.
    pub fn read(chain: &str, key: &str) -> Result<Identity> {
        let acceptor = Arc::new(Live::new(Identity::acceptor(chain, key)?));
        Ok(Identity { chain: chain.to_owned(), key: key.to_owned(), acceptor })
    }

    /// Reads both files again, for the connections to come.
    ///
    /// # Errors
    /// As above; then it stays as it is.
    pub fn read_again(&self) -> Result<()> {
        self.acceptor.set(Identity::acceptor(&self.chain, &self.key)?);
        Ok(())
    }

    fn acceptor(chain: &str, key: &str) -> Result<SslAcceptor> {
        // Mozilla's intermediate profile: TLS 1.2 with forward secrecy, and 1.3.
        let mut acceptor =
            SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).context("OpenSSL has no TLS")?;
        acceptor
            .set_certificate_chain_file(chain)
            .with_context(|| format!("cannot read the certificate chain {chain:?}"))?;
        acceptor
            .set_private_key_file(key, SslFiletype::PEM)
            .with_context(|| format!("cannot read the private key {key:?}"))?;
        acceptor
            .check_private_key()
            .with_context(|| format!("the key {key:?} does not belong to the certificate {chain:?}"))?;
        acceptor.set_min_proto_version(Some(SslVersion::TLS1_2)).context("OpenSSL has no TLS 1.2")?;
        // An idle connection keeps no buffers: 34 kB each otherwise.
        acceptor.set_mode(SslMode::RELEASE_BUFFERS);
        Ok(acceptor.build())
    }
}

/// A connection's way to its client.
pub enum Link {
    Plain(TcpStream),
    /// Boxed, since most connections are either plain or behind a proxy.
    Greeting(Option<Box<Greeting>>),
    Tls(Box<SslStream<TcpStream>>),
}

/// A handshake under way.
pub enum Greeting {
    New(TcpStream, Ssl),
    Middle(MidHandshakeSslStream<TcpStream>),
}

impl Link {
    pub fn new(socket: TcpStream, identity: Option<&Identity>) -> io::Result<Link> {
        Ok(match identity {
            None => Link::Plain(socket),
            Some(identity) => {
                let ssl = Ssl::new(identity.acceptor.get().context())?;
                Link::Greeting(Some(Box::new(Greeting::New(socket, ssl))))
            }
        })
    }

    /// True once bytes may flow; false while the client has to say more.
    ///
    /// # Errors
    /// What ended the handshake.
    pub fn greet(&mut self) -> io::Result<bool> {
        let Link::Greeting(greeting) = self else { return Ok(true) };
        let result = match greeting.take().map(|greeting| *greeting) {
            None => return Err(io::ErrorKind::NotConnected.into()),
            Some(Greeting::New(socket, ssl)) => ssl.accept(socket),
            Some(Greeting::Middle(middle)) => middle.handshake(),
        };
        match result {
            Ok(stream) => {
                *self = Link::Tls(Box::new(stream));
                Ok(true)
            }
            Err(HandshakeError::WouldBlock(middle)) => {
                *greeting = Some(Box::new(Greeting::Middle(middle)));
                Ok(false)
            }
            Err(HandshakeError::Failure(middle)) => Err(io::Error::other(middle.into_error().to_string())),
            Err(HandshakeError::SetupFailure(error)) => Err(error.into()),
        }
    }

    /// A short read has emptied a plain socket; of TLS a record may be left.
    pub fn is_plain(&self) -> bool {
        matches!(self, Link::Plain(_))
    }

    pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::Plain(socket) => socket.read(buffer),
            Link::Tls(stream) => match stream.ssl_read(buffer) {
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
                other => other.map_err(as_io),
            },
            Link::Greeting(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Link::Plain(socket) => socket.write(bytes),
            Link::Tls(stream) => stream.ssl_write(bytes).map_err(as_io),
            Link::Greeting(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// The close will be a reset, which no client takes for the end of a body.
    pub fn reset_at_close(&self) {
        let socket = match self {
            Link::Plain(socket) => socket,
            Link::Tls(stream) => stream.get_ref(),
            Link::Greeting(_) => return,
        };
        let now = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        // A socket that is gone already needs none.
        nix::sys::socket::setsockopt(socket, nix::sys::socket::sockopt::Linger, &now).ok();
    }

    /// Nothing more will be written.
    pub fn hang_up(&mut self) {
        let socket = match self {
            Link::Plain(socket) => socket,
            Link::Tls(stream) => {
                // The client may be gone already.
                drop(stream.shutdown());
                stream.get_ref()
            }
            Link::Greeting(_) => return,
        };
        drop(socket.shutdown(std::net::Shutdown::Write));
    }
}

/// `WANT_READ` and `WANT_WRITE` are what a socket that never blocks calls the same: not now.
fn as_io(error: openssl::ssl::Error) -> io::Error {
    match error.code() {
        ErrorCode::WANT_READ | ErrorCode::WANT_WRITE => io::ErrorKind::WouldBlock.into(),
        _ => error.into_io_error().unwrap_or_else(|error| io::Error::other(error.to_string())),
    }
}
