//! What a service sees of one request: its head, its body up to a bound, and what it waits for.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use hyper::body::{Body as _, Incoming};
use hyper::http::request::Parts;

use super::desk::{Desk, Stage};

/// Which request of which connection of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(super) slot: u32,
    pub(super) number: u32,
}

/// One request.
pub struct Exchange<V> {
    pub head: Parts,
    pub peer: SocketAddr,
    pub(super) body: Option<Incoming>,
    pub(super) desk: Rc<Desk<V>>,
}

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoBody {
    /// Larger than the bound; the rest was not read.
    TooLarge,
    /// It ended early, or is framed in no way; the sentence says which.
    Broken(&'static str),
    /// It did not come in time.
    Late,
}

impl<V> Exchange<V> {
    /// What the head says of the body's size, in bytes; `None` for chunks.
    pub fn length(&self) -> Option<u64> {
        self.body.as_ref().and_then(|body| body.size_hint().exact())
    }

    /// The whole body as it was sent. A client that waits for `100 Continue` is told to go on here, and not before.
    ///
    /// # Errors
    /// See [`NoBody`].
    pub async fn read(&mut self, bytes_max: usize) -> Result<Bytes, NoBody> {
        if self.length().is_some_and(|length| length > bytes_max as u64) {
            return Err(NoBody::TooLarge);
        }
        let Some(mut body) = self.body.take() else { return Ok(Bytes::new()) };
        let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
        loop {
            let frame = poll_fn(|context| {
                if self.desk.is_late.get() {
                    return Poll::Ready(Err(NoBody::Late));
                }
                Pin::new(&mut body).poll_frame(context).map(Ok)
            });
            let data = match frame.await? {
                None if rest.is_empty() => return Ok(first),
                None => return Ok(rest.freeze()),
                Some(Err(_)) => {
                    let refusal = self.desk.refusal.take();
                    return Err(NoBody::Broken(
                        refusal.map_or("the body ended before its length", |refusal| refusal.reason),
                    ));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => data,
                    // Trailers mean nothing here.
                    Err(_) => continue,
                },
            };
            if first.len().max(rest.len()) + data.len() > bytes_max {
                return Err(NoBody::TooLarge);
            }
            if first.is_empty() && rest.is_empty() {
                first = data;
                continue;
            }
            if rest.is_empty() {
                rest.reserve(2 * (first.len() + data.len()));
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }

    /// For whoever will know the verdict. The request waits from now on.
    pub fn ticket(&self) -> Ticket {
        let number = self.desk.hall.requests.get().wrapping_add(1);
        self.desk.hall.requests.set(number);
        self.desk.number.set(number);
        self.desk.enter(Stage::Waiting);
        Ticket { slot: self.desk.slot, number }
    }

    /// What the loop was told for the ticket.
    pub async fn verdict(&self) -> V {
        // No waker is kept: whoever sets the verdict polls this connection.
        poll_fn(|_| self.desk.verdict.take().map_or(Poll::Pending, Poll::Ready)).await
    }
}
