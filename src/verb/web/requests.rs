//! What is counted of requests, whatever they ask for: answers by route and code, and connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use hyper::StatusCode;

use crate::figures::family::Family;
use crate::http::event_loop::Shared;

/// Every status that is given; others count as 500.
const CODES: [u16; 24] = [
    200, 202, 204, 207, 304, 400, 401, 403, 404, 405, 406, 408, 409, 413, 414, 415, 425, 429, 431, 500, 501,
    503, 504, 505,
];

/// Those of a route that are shown from the start, so that their first increase is seen.
const USUAL: [u16; 4] = [200, 400, 503, 504];

#[derive(Debug)]
pub struct Requests {
    /// Names of the routes; requests of none are counted behind them.
    routes: Vec<String>,
    /// By route and code.
    answers: Vec<[AtomicU64; CODES.len()]>,
    loops: Vec<Arc<Shared>>,
}

impl Requests {
    pub fn new(routes: &[String], loops: Vec<Arc<Shared>>) -> Requests {
        let answers = (0..=routes.len()).map(|_| Default::default()).collect();
        Requests { routes: routes.to_vec(), answers, loops }
    }

    /// An answer went out; `route` is `None` where the request had none.
    pub fn answered(&self, route: Option<usize>, status: StatusCode) {
        let place = |code: u16| CODES.iter().position(|known| *known == code);
        let code = place(status.as_u16()).or_else(|| place(500)).unwrap_or(0);
        self.answers[route.unwrap_or(self.routes.len())][code].fetch_add(1, Relaxed);
    }

    /// Answers with such a code.
    pub fn sum(&self, wanted: impl Fn(u16) -> bool) -> u64 {
        let of = |codes: &[AtomicU64; CODES.len()]| {
            codes
                .iter()
                .zip(CODES)
                .filter(|(_, code)| wanted(*code))
                .map(|(n, _)| n.load(Relaxed))
                .sum::<u64>()
        };
        self.answers.iter().map(of).sum()
    }

    pub fn connections(&self) -> usize {
        self.loops.iter().map(|l| l.connections.load(Relaxed)).sum()
    }

    pub fn families(&self) -> Vec<Family> {
        let mut requests =
            Family::counter("rowmill_http_requests_total", "Requests that were answered, by route and code.");
        let names = self.routes.iter().map(String::as_str).chain(["other"]);
        for (name, answers) in names.zip(&self.answers) {
            for (count, code) in answers.iter().zip(CODES) {
                let count = count.load(Relaxed);
                if count > 0 || USUAL.contains(&code) {
                    requests.add(&[("route", name), ("code", &code.to_string())], count as f64);
                }
            }
        }
        let sum = |of: fn(&Shared) -> &AtomicUsize| {
            self.loops.iter().map(|l| of(l).load(Relaxed)).sum::<usize>() as f64
        };
        vec![
            requests,
            Family::gauge("rowmill_http_connections", "Connections that are open.")
                .with(sum(|l| &l.connections)),
            Family::gauge("rowmill_http_busy_connections", "Those of them with a request in work.")
                .with(sum(|l| &l.busy)),
            Family::counter("rowmill_http_accepted_total", "Connections that were accepted.")
                .with(sum(|l| &l.accepted)),
            Family::counter("rowmill_http_turned_away_total", "Connections that found no place.")
                .with(sum(|l| &l.turned_away)),
        ]
    }
}
