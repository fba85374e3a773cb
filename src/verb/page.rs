//! `/metrics`, `/healthz` and `/readyz`: read-only, without secrets or payloads, on loopback unless configured otherwise.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper::header::{ACCEPT, ALLOW, HeaderValue};
use hyper::{Method, StatusCode};

use crate::base::thread::{Kind, Threads};
use crate::config::Listen;
use crate::figures::board::Board;
use crate::figures::family::{Format, page};
use crate::http::event_loop::loops;
use crate::http::exchange::Exchange;
use crate::http::limits::Limits;
use crate::http::listen;
use crate::http::reply::{Answer, PLAIN, answer, uncached};
use crate::http::service::Service;

/// A scraper, a load balancer and a few people, each on any machine; one that takes places for nothing leaves some to others.
const LIMITS: Limits = Limits {
    connections: 256,
    per_address: Some(64),
    handshakes: 1,
    handshake: Duration::from_secs(5),
    // Above the minute between two scrapes.
    idle: Duration::from_secs(75),
    head: Duration::from_secs(5),
    body: Duration::from_secs(5),
    stall: Duration::from_secs(20),
    age: Duration::from_secs(3600),
};

/// Listens in the background until the process ends.
///
/// # Errors
/// Where the address cannot be had.
pub fn serve(address: SocketAddr, board: Arc<Board>, threads: &Threads) -> Result<()> {
    let listeners = listen::open(&Listen::Address(address), "metrics.listen")?;
    for event_loop in loops(1, listeners, None, &LIMITS)? {
        let board = board.clone();
        threads.spawn(
            Kind::Page.only(),
            None,
            || Ok(()),
            move |()| event_loop.run(|| Ok(Rc::new(Page { board }))),
        )?;
    }
    log::info!("metrics on http://{address}/metrics, beside /healthz and /readyz");
    Ok(())
}

struct Page {
    board: Arc<Board>,
}

impl Service for Page {
    type Verdict = ();

    async fn answer(self: Rc<Self>, exchange: Exchange<()>) -> Answer {
        let head = &exchange.head;
        if head.method != Method::GET && head.method != Method::HEAD {
            let mut refusal = answer(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD\n");
            refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refusal;
        }
        let accept = head.headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        look(head.uri.path(), accept, &self.board)
            .unwrap_or_else(|| answer(StatusCode::NOT_FOUND, PLAIN, "/metrics, /healthz or /readyz\n"))
    }
}

/// The answer of one of the pages that every service has; `None` for any other path.
pub fn look(path: &str, accept: &str, board: &Board) -> Option<Answer> {
    let answer = match path {
        "/metrics" => {
            let format = Format::accepted(accept);
            answer(StatusCode::OK, format.content_type(), page(&board.families(), format))
        }
        "/healthz" => verdict(board.healthy()),
        "/readyz" => verdict(board.ready()),
        _ => return None,
    };
    Some(uncached(answer))
}

fn verdict(result: Result<(), String>) -> Answer {
    match result {
        Ok(()) => answer(StatusCode::OK, PLAIN, "ok\n"),
        Err(reason) => answer(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{reason}\n")),
    }
}
