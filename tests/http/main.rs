//! The HTTP module alone, on real sockets and without any server: a toy that echoes, answers later, or never, and clients that
//! speak in bytes.

#![allow(clippy::disallowed_methods, reason = "a test's threads need no core plan")]
#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

mod client;
mod hostile;
mod polite;

use std::cell::RefCell;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::StatusCode;
use rowmill::http::event_loop::{Shared, loops};
use rowmill::http::exchange::{Exchange, NoBody, Ticket};
use rowmill::http::limits::Limits;
use rowmill::http::reply::{Answer, PLAIN, answer};
use rowmill::http::service::Service;

/// Bytes of a body that the toy takes.
const BODY_MAX: usize = 1 << 20;

/// A server that ends with its test.
pub(crate) struct Toy {
    pub(crate) address: SocketAddr,
    pub(crate) shared: Arc<Shared>,
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
    }
}

/// Deadlines that a test can wait for.
pub(crate) fn short() -> Limits {
    Limits {
        idle: Duration::from_secs(2),
        head: Duration::from_secs(1),
        body: Duration::from_secs(1),
        stall: Duration::from_secs(2),
        ..Limits::default()
    }
}

pub(crate) fn toy(limits: Limits) -> Toy {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let event_loop = loops(1, vec![listener], None, &limits).unwrap().remove(0);
    let shared = event_loop.shared.clone();
    let waker = event_loop.waker();
    std::thread::spawn(move || {
        event_loop.run(|| Ok(Rc::new(Echo { late: RefCell::default(), waker }))).unwrap();
    });
    Toy { address, shared }
}

struct Echo {
    /// Those that are answered when the loop is woken.
    late: RefCell<Vec<Ticket>>,
    waker: Arc<mio::Waker>,
}

impl Service for Echo {
    type Verdict = &'static str;

    async fn answer(self: Rc<Self>, mut exchange: Exchange<&'static str>) -> Answer {
        match exchange.head.uri.path() {
            "/echo" => match exchange.read(BODY_MAX).await {
                Ok(body) => answer(StatusCode::OK, PLAIN, body),
                Err(NoBody::TooLarge) => answer(StatusCode::PAYLOAD_TOO_LARGE, PLAIN, "too large"),
                Err(NoBody::Broken(why)) => answer(StatusCode::BAD_REQUEST, PLAIN, why),
                Err(NoBody::Late) => answer(StatusCode::REQUEST_TIMEOUT, PLAIN, "late"),
            },
            "/later" => {
                self.late.borrow_mut().push(exchange.ticket());
                let waker = self.waker.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(50));
                    waker.wake().unwrap();
                });
                answer(StatusCode::OK, PLAIN, exchange.verdict().await)
            }
            "/large" => answer(StatusCode::OK, PLAIN, vec![b'x'; 4 << 20]),
            _ => answer(StatusCode::NOT_FOUND, PLAIN, "nothing here"),
        }
    }

    fn woken(&self, verdicts: &mut Vec<(Ticket, &'static str)>) {
        verdicts.extend(self.late.borrow_mut().drain(..).map(|ticket| (ticket, "at last")));
    }
}
