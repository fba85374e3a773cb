//! What a verb has to be, to answer requests.

use std::rc::Rc;
use std::time::Instant;

use super::exchange::{Exchange, Ticket};
use super::reply::Answer;
use super::wire::Refusal;

/// What answers the requests of one loop. It lives on the loop's thread, so it may use `Rc` and `RefCell`.
pub trait Service: 'static {
    /// What the answer to a request may have to wait for.
    type Verdict: 'static;

    /// Answers one request. It may wait for the body and for its verdict, and for nothing else: nobody would wake it.
    fn answer(self: Rc<Self>, exchange: Exchange<Self::Verdict>) -> impl Future<Output = Answer> + 'static;

    /// The loop was woken, by [`mio::Waker`] or by a descriptor that stands for the same: collects verdicts.
    fn woken(&self, verdicts: &mut Vec<(Ticket, Self::Verdict)>) {
        let _: &mut Vec<_> = verdicts;
    }

    /// A socket of the service's own, by the key it was watched under, can be read or written.
    fn source(&self, key: usize, readable: bool, writable: bool) {
        let _: (usize, bool, bool) = (key, readable, writable);
    }

    /// After each turn's sockets: what else has to be done, and verdicts that follow. A verdict for an answer that flows
    /// only says that there is more of it.
    fn turn(&self, now: Instant, verdicts: &mut Vec<(Ticket, Self::Verdict)>) {
        let _: (Instant, &mut Vec<_>) = (now, verdicts);
    }

    /// When [`Service::turn`] has to be called at the latest.
    fn due(&self) -> Option<Instant> {
        None
    }

    /// True where a client that closes its half of the connection has left, and what is done for it is to end. Others may close it
    /// behind their last request and wait for the answer.
    fn leaves_with_its_half(&self) -> bool {
        false
    }

    /// A verdict came, and its client is gone.
    fn nobody_waits(&self, verdict: Self::Verdict) {
        drop(verdict);
    }

    /// Once a second.
    fn tick(&self) {}

    /// Bytes broke the rules before there was a request; the answer is given for it.
    fn refused(&self, refusal: Refusal) {
        let _: Refusal = refusal;
    }
}
