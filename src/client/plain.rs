//! A connection to PostgreSQL without TLS, on which no password is handed over in clear text: whoever listens on the port while the
//! server is down would only have to ask for it. With SCRAM such a listener learns nothing.
//!
//! The client library asks no one before it answers, but it takes what we give it for a TLS connection. So this stands where TLS
//! would, reads along until the login is over, and breaks off where the password is asked for.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready as waited};

use postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is said instead; `pg` says what to do.
pub const ASKED_FOR_PASSWORD: &str = "the server asks for the password in clear text";

/// In the place of a TLS connector. It remembers what the servers asked for.
#[derive(Clone, Debug, Default)]
pub struct Plain {
    asked_for_md5: Arc<AtomicBool>,
}

impl Plain {
    /// True once a server asked for a digest by MD5, from which a password can be guessed.
    pub fn asked_for_md5(&self) -> bool {
        self.asked_for_md5.load(Relaxed)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> MakeTlsConnect<S> for Plain {
    type Stream = Watched<S>;
    type TlsConnect = Plain;
    type Error = Infallible;

    fn make_tls_connect(&mut self, _: &str) -> Result<Plain, Infallible> {
        Ok(self.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsConnect<S> for Plain {
    type Stream = Watched<S>;
    type Error = Infallible;
    type Future = Ready<Result<Watched<S>, Infallible>>;

    fn connect(self, stream: S) -> Self::Future {
        ready(Ok(Watched { stream, login: Login::default(), asked_for_md5: self.asked_for_md5 }))
    }
}

/// A stream whose login is watched.
#[derive(Debug)]
pub struct Watched<S> {
    stream: S,
    login: Login,
    asked_for_md5: Arc<AtomicBool>,
}

/// How far a login is, by the server's messages: a letter, the length with itself, and what they say.
#[derive(Debug, Default)]
struct Login {
    /// The beginning of the message in work: as much as decides.
    head: Vec<u8>,
    /// Bytes of it that come after that.
    rest: usize,
    asked_for_md5: bool,
    is_over: bool,
}

/// Letter and length; and for a request to authenticate, which one.
const HEADER_BYTES: usize = 5;
const REQUEST_BYTES: usize = 9;

/// Numbers of the protocol: <https://www.postgresql.org/docs/current/protocol-message-formats.html>.
const OK: u32 = 0;
const CLEAR_TEXT_PASSWORD: u32 = 3;
const MD5_PASSWORD: u32 = 5;

impl Login {
    /// False if the server asks for the password as it is.
    fn allows(&mut self, mut bytes: &[u8]) -> bool {
        while !self.is_over && !bytes.is_empty() {
            let passed = self.rest.min(bytes.len());
            (self.rest, bytes) = (self.rest - passed, &bytes[passed..]);
            let Some((byte, after)) = bytes.split_first().filter(|_| self.rest == 0) else { return true };
            self.head.push(*byte);
            bytes = after;
            let number = |at: usize| self.head[at..].first_chunk().map(|four| u32::from_be_bytes(*four));
            let is_request = self.head[0] == b'R';
            match self.head.len() {
                HEADER_BYTES if !is_request => {
                    self.rest = (number(1).unwrap_or(0) as usize).saturating_sub(HEADER_BYTES - 1);
                    self.head.clear();
                }
                REQUEST_BYTES => {
                    let request = number(HEADER_BYTES);
                    if request == Some(CLEAR_TEXT_PASSWORD) {
                        return false;
                    }
                    self.asked_for_md5 |= request == Some(MD5_PASSWORD);
                    self.is_over = request == Some(OK);
                    self.rest = (number(1).unwrap_or(0) as usize).saturating_sub(REQUEST_BYTES - 1);
                    self.head.clear();
                }
                _ => {}
            }
        }
        true
    }
}

impl<S> TlsStream for Watched<S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        waited!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.login.is_over {
            return Poll::Ready(Ok(()));
        }
        if !self.login.allows(&buffer.filled()[before..]) {
            return Poll::Ready(Err(io::Error::other(ASKED_FOR_PASSWORD)));
        }
        if self.login.asked_for_md5 {
            self.asked_for_md5.store(true, Relaxed);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(letter: u8, body: &[u8]) -> Vec<u8> {
        [&[letter][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    /// In pieces of each size: the server decides how its messages arrive.
    #[track_caller]
    fn check(messages: &[Vec<u8>], allowed: bool, is_over: bool) {
        let bytes = messages.concat();
        for size in 1..=bytes.len() {
            let mut login = Login::default();
            let all = bytes.chunks(size).all(|piece| login.allows(piece));
            assert_eq!((all, login.is_over), (allowed, is_over), "in pieces of {size}");
            assert_eq!(login.asked_for_md5, messages[0].starts_with(&[b'R', 0, 0, 0, 12, 0, 0, 0, 5]));
        }
    }

    #[test]
    fn a_login_goes_on_unless_the_password_is_asked_for_as_it_is() {
        let request = |number: u32, more: &[u8]| message(b'R', &[&number.to_be_bytes()[..], more].concat());
        let scram = || {
            vec![request(10, b"SCRAM-SHA-256\0\0"), request(11, b"r=x"), request(12, b"v=x"), request(0, b"")]
        };
        check(&scram(), true, true);
        check(&[request(5, b"salt"), request(0, b"")], true, true);
        check(&[request(0, b"")], true, true);
        check(&[request(3, b"")], false, false);
        // However it is led up to.
        check(
            &[message(b'v', b"\0\0\0\0\0\0\0\0"), message(b'N', b"a notice"), request(3, b"")],
            false,
            false,
        );
        check(&[request(10, b"SCRAM-SHA-256\0\0"), request(3, b"")], false, false);
        check(&[message(b'E', b"R\0\0\0\x08\0\0\0\x03")], true, false);
        // What comes later is no login any more: a row may hold anything.
        let rows = [scram(), vec![message(b'D', &request(3, b"")), request(3, b"")]].concat();
        check(&rows, true, true);
    }
}
