//! One connection's bytes: a non-blocking socket, with TLS or without, as hyper's `Read` and `Write`. It keeps no waker: the loop
//! polls the connection on every event of the socket.

use std::cell::{Cell, RefCell};
use std::io::{self, Read as _, Write as _};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use mio::net::TcpStream;
use openssl::ssl::{HandshakeError, MidHandshakeSslStream, SslStream};
use openssl::x509::X509VerifyResult;

/// What the kernel is given at once; more waits until it has taken that.
const OUT_MAX: usize = 256 << 10;

pub enum Socket {
    Plain(TcpStream),
    /// The connector and the host until the connection stands, then a handshake that goes on as bytes arrive.
    Greeting(Option<MidHandshakeSslStream<TcpStream>>),
    Tls(SslStream<TcpStream>),
}

/// Why a handshake failed; of a certificate that is not trusted, whose fault that is.
pub fn refused(error: &HandshakeError<TcpStream>) -> io::Error {
    let HandshakeError::Failure(handshake) = error else { return io::Error::other(error.to_string()) };
    match handshake.ssl().verify_result() {
        X509VerifyResult::OK => io::Error::other(error.to_string()),
        why => io::Error::other(format!(
            "the server's certificate is refused, {}: --http-ca names who signed it",
            why.error_string()
        )),
    }
}

/// What the loop and hyper's side of a connection know together.
pub struct Wire {
    pub socket: RefCell<Socket>,
    /// Edge-triggered: true until a read has shown that there is nothing more.
    pub readable: Cell<bool>,
    pub writable: Cell<bool>,
    pub peer_closed: Cell<bool>,
    /// What hyper has written and the kernel has not; one `write` after each poll.
    out: RefCell<Vec<u8>>,
    /// Bytes of the request that is under way have left.
    pub has_sent: Cell<bool>,
    scratch: Rc<RefCell<Box<[u8]>>>,
}

impl Wire {
    pub fn new(socket: Socket, scratch: Rc<RefCell<Box<[u8]>>>) -> Self {
        Self {
            socket: RefCell::new(socket),
            readable: Cell::new(false),
            writable: Cell::new(false),
            peer_closed: Cell::new(false),
            out: RefCell::new(Vec::new()),
            has_sent: Cell::new(false),
            scratch,
        }
    }

    /// Goes on with the handshake; true when there is none, or it is done.
    pub fn greet(&self) -> io::Result<bool> {
        let mut socket = self.socket.borrow_mut();
        let Socket::Greeting(waiting) = &mut *socket else { return Ok(true) };
        let Some(handshake) = waiting.take() else { return Err(io::ErrorKind::NotConnected.into()) };
        match handshake.handshake() {
            Ok(stream) => {
                *socket = Socket::Tls(stream);
                Ok(true)
            }
            Err(HandshakeError::WouldBlock(handshake)) => {
                *waiting = Some(handshake);
                Ok(false)
            }
            Err(error) => Err(refused(&error)),
        }
    }

    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let (got, plain) = match &mut *self.socket.borrow_mut() {
                Socket::Plain(stream) => (stream.read(buffer), true),
                Socket::Tls(stream) => (stream.read(buffer), false),
                Socket::Greeting(_) => (Err(io::ErrorKind::WouldBlock.into()), false),
            };
            match &got {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable.set(false),
                // A short read has emptied a plain socket. Not so once the peer has closed: that gives no second edge.
                Ok(n) if plain && *n > 0 => self.readable.set(*n == buffer.len() || self.peer_closed.get()),
                _ => {}
            }
            return got;
        }
    }

    /// Sends what the kernel takes; true if that was all.
    pub fn flush(&self) -> io::Result<bool> {
        let mut out = self.out.borrow_mut();
        let mut sent = 0;
        while sent < out.len() && self.writable.get() {
            let put = match &mut *self.socket.borrow_mut() {
                Socket::Plain(stream) => stream.write(&out[sent..]),
                Socket::Tls(stream) => stream.write(&out[sent..]),
                Socket::Greeting(_) => Err(io::ErrorKind::WouldBlock.into()),
            };
            match put {
                Ok(n) => {
                    sent += n;
                    self.has_sent.set(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable.set(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        out.drain(..sent);
        Ok(out.is_empty())
    }
}

/// hyper's end.
pub struct Io(pub Rc<Wire>);

impl Read for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &*self.0;
        if !wire.readable.get() {
            return Poll::Pending;
        }
        let scratch = &mut wire.scratch.borrow_mut()[..];
        let room = buffer.remaining().min(scratch.len());
        match wire.read(&mut scratch[..room]) {
            Ok(n) => {
                buffer.put_slice(&scratch[..n]);
                Poll::Ready(Ok(()))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }
}

impl Write for Io {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.0.out.borrow().len() >= OUT_MAX && !self.0.flush()? {
            // Polled again when the socket takes more.
            return Poll::Pending;
        }
        let mut out = self.0.out.borrow_mut();
        let n = bytes.len().min(OUT_MAX.saturating_sub(out.len()));
        out.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The loop sends after the poll.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The socket is closed with the connection.
        Poll::Ready(Ok(()))
    }
}
