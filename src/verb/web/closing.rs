//! The orderly end of event loops: nobody new, everybody here is answered and told of the end, then the rest hear it from the socket.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use crate::http::event_loop::{Shared, Waker};

/// For connections that are idle to send one more request, and hear of the end with its answer.
const FAREWELL: Duration = Duration::from_secs(2);

/// For sockets that were told of the end to be gone.
const PARTING: Duration = Duration::from_secs(2);

const LOOK: Duration = Duration::from_millis(20);

/// `is_idle` says whether nobody waits for an answer any more; after `last` even they are not waited for. False if somebody was
/// left without an answer.
pub fn end(
    shared: &[Arc<Shared>],
    wakers: &[Arc<Waker>],
    last: Duration,
    is_idle: impl Fn() -> bool,
) -> bool {
    let ring = || wakers.iter().for_each(|waker| drop(waker.wake()));
    let connections = || shared.iter().map(|l| l.connections.load(Relaxed)).sum::<usize>();
    shared.iter().for_each(|l| l.draining.store(true, Relaxed));
    ring();
    let began = Instant::now();
    let was_idle = loop {
        let passed = began.elapsed();
        if connections() == 0 || (is_idle() && passed > FAREWELL) || passed > last {
            break is_idle();
        }
        std::thread::sleep(LOOK);
    };
    shared.iter().for_each(|l| l.closing.store(true, Relaxed));
    ring();
    let closed = Instant::now();
    while connections() > 0 && closed.elapsed() < PARTING {
        std::thread::sleep(LOOK);
    }
    shared.iter().for_each(|l| l.ended.store(true, Relaxed));
    ring();
    was_idle
}
