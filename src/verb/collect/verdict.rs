//! What a client is told of its records: pure functions from what became of each to a status and a body.
//!
//! Two words are a contract: `"stored":"no"` means that nothing of this request is in Kafka and a retry cannot double;
//! `"stored":"unknown"` means that some of it may be. No status below 300 is given while a record is not acknowledged by all
//! in-sync replicas, 202 and 207 apart, which say so.

use hyper::StatusCode;
use serde_json::json;

use crate::config::{Batch, Form};
use crate::http::reply::{Answer, JSON, answer, problem};
use crate::kafka::native::send::Place;
use crate::kafka::send::Fate;

/// Failed records that an answer lists; more are counted.
pub const LISTED_MAX: usize = 100;

/// A record that is not stored, or may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Its number in the request.
    pub index: u32,
    /// Where it begins in the body, in bytes; of what was refused at the door.
    pub at: Option<usize>,
    pub kind: Kind,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The record is at fault; it was not sent.
    Bad,
    /// It is larger than the topic takes.
    TooLarge,
    /// It is not in Kafka, for no fault of its own.
    NotStored,
    /// It was sent, and nobody knows.
    Unknown,
}

impl From<Fate> for Kind {
    fn from(fate: Fate) -> Kind {
        match fate {
            Fate::TooLarge => Kind::TooLarge,
            Fate::NotStored => Kind::NotStored,
            Fate::Unknown => Kind::Unknown,
        }
    }
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Kind::Bad => StatusCode::BAD_REQUEST,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::NotStored => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Unknown => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    pub fn stored(self) -> &'static str {
        if self == Kind::Unknown { "unknown" } else { "no" }
    }
}

/// What became of all records of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub delivered: u32,
    /// In the order of their numbers.
    pub failed: Vec<Failure>,
    /// Where each record is, where the client asked for it.
    pub places: Option<Vec<Option<Place>>>,
}

/// The status of a whole answer.
fn status(outcome: &Outcome, batch: Batch) -> StatusCode {
    let Some(first) = outcome.failed.first() else { return StatusCode::OK };
    let is_unknown = outcome.failed.iter().any(|failure| failure.kind == Kind::Unknown);
    let are_alike = outcome.failed.iter().all(|failure| failure.kind == first.kind);
    match batch {
        // All of one kind: the kind's own status says it for all of them.
        _ if outcome.delivered == 0 && are_alike => first.kind.status(),
        Batch::Each => StatusCode::MULTI_STATUS,
        // Some are there: for who takes it as one, that is not known to be stored.
        Batch::Whole if is_unknown || outcome.delivered > 0 => StatusCode::GATEWAY_TIMEOUT,
        Batch::Whole => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// The answer to a request whose records were all decided.
pub fn told(outcome: &Outcome, batch: Batch, form: Form, topic: &str) -> Answer {
    let status = status(outcome, batch);
    if status == StatusCode::OK {
        return delivered(outcome, form, topic);
    }
    let listed: Vec<_> = outcome.failed.iter().take(LISTED_MAX).map(entry).collect();
    let mut more = json!({ "delivered": outcome.delivered, "failed": listed });
    if outcome.failed.len() > LISTED_MAX {
        more["failed_total"] = outcome.failed.len().into();
    }
    if let Some(places) = &outcome.places {
        more["at"] = places.iter().map(|place| place.map(|place| at(topic, place))).collect();
    }
    if status == StatusCode::MULTI_STATUS {
        return answer(status, JSON, more.to_string());
    }
    let is_unknown = status == StatusCode::GATEWAY_TIMEOUT;
    more["stored"] = if is_unknown { "unknown" } else { "no" }.into();
    let first = &outcome.failed[0];
    let detail = match outcome.failed.len() {
        1 if outcome.delivered == 0 => first.reason.clone(),
        n => format!(
            "{n} of {} records failed, the first one: {}",
            n + outcome.delivered as usize,
            first.reason
        ),
    };
    problem(status, &detail, more)
}

fn delivered(outcome: &Outcome, form: Form, topic: &str) -> Answer {
    if let Some(places) = &outcome.places {
        let at: Vec<_> = places.iter().flatten().map(|place| at(topic, *place)).collect();
        return answer(StatusCode::OK, JSON, json!({ "delivered": outcome.delivered, "at": at }).to_string());
    }
    match form {
        Form::Count => answer(StatusCode::OK, JSON, format!("{{\"delivered\":{}}}", outcome.delivered)),
        Form::Empty => answer(StatusCode::OK, JSON, ""),
        Form::None => {
            let mut empty = Answer::default();
            *empty.status_mut() = StatusCode::NO_CONTENT;
            empty
        }
    }
}

fn at(topic: &str, Place { partition, offset }: Place) -> String {
    format!("{topic}/{partition}/{offset}")
}

fn entry(failure: &Failure) -> serde_json::Value {
    let mut entry = json!({
        "index": failure.index,
        "status": failure.kind.status().as_u16(),
        "stored": failure.kind.stored(),
        "reason": failure.reason,
    });
    if let Some(at) = failure.at {
        entry["byte"] = at.into();
    }
    entry
}

/// Seconds after which a retry is worth while: what is in flight at the rate of the last seconds, 1 to 30, a fifth more or
/// less, so that those who were refused together do not come again together. `dice` is any number.
pub fn retry_after(bytes_in_flight: usize, bytes_per_second: f64, dice: u32) -> u64 {
    let wait = if bytes_per_second > 0.0 { bytes_in_flight as f64 / bytes_per_second } else { 30.0 };
    let spread = 0.8 + f64::from(dice % 1000) / 1000.0 * 0.4;
    (wait.clamp(1.0, 30.0) * spread).round().clamp(1.0, 36.0) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(index: u32, kind: Kind) -> Failure {
        Failure { index, at: None, kind, reason: "because".into() }
    }

    #[test]
    fn the_status_is_true_for_every_record() {
        use Kind::*;
        let check = |delivered: u32, kinds: &[Kind], whole: u16, each: u16| {
            let failed = kinds.iter().zip(0..).map(|(kind, index)| failure(index, *kind)).collect();
            let outcome = Outcome { delivered, failed, places: None };
            for (batch, expected) in [(Batch::Whole, whole), (Batch::Each, each)] {
                assert_eq!(status(&outcome, batch).as_u16(), expected, "{delivered} {kinds:?} {batch:?}");
            }
        };
        check(3, &[], 200, 200);
        check(0, &[], 200, 200);
        check(0, &[Bad], 400, 400);
        check(0, &[TooLarge], 413, 413);
        check(0, &[NotStored, NotStored], 503, 503);
        check(0, &[Unknown], 504, 504);
        check(0, &[NotStored, Unknown], 504, 207);
        check(0, &[TooLarge, NotStored], 503, 207);
        check(2, &[Unknown], 504, 207);
        // Not "stored":"no" where something is: a retry would double it.
        check(2, &[NotStored], 504, 207);
        check(2, &[Bad], 504, 207);
    }

    #[test]
    fn an_answer_says_which_records_and_whether_a_retry_can_double() {
        use hyper::body::Body as _;
        let body = |outcome: &Outcome, batch| {
            let mut answer = told(outcome, batch, Form::Count, "t");
            let waker = std::task::Waker::noop();
            let body = std::pin::Pin::new(answer.body_mut());
            match body.poll_frame(&mut std::task::Context::from_waker(waker)) {
                std::task::Poll::Ready(Some(Ok(frame))) => {
                    serde_json::from_slice::<serde_json::Value>(&frame.into_data().unwrap()).unwrap()
                }
                other => panic!("{other:?}"),
            }
        };
        let ok = Outcome { delivered: 3, ..Outcome::default() };
        assert_eq!(body(&ok, Batch::Whole), json!({"delivered": 3}));
        let place = Place { partition: 3, offset: 129 };
        let receipts = Outcome { delivered: 1, places: Some(vec![Some(place)]), ..Outcome::default() };
        assert_eq!(body(&receipts, Batch::Whole), json!({"delivered": 1, "at": ["t/3/129"]}));
        let none = Outcome { failed: vec![failure(0, Kind::NotStored)], ..Outcome::default() };
        assert_eq!(body(&none, Batch::Whole)["stored"], "no");
        let some = Outcome { delivered: 1, failed: vec![failure(1, Kind::NotStored)], places: None };
        assert_eq!(body(&some, Batch::Whole)["stored"], "unknown");
        let each = body(&some, Batch::Each);
        assert_eq!(each["failed"], json!([{"index": 1, "status": 503, "stored": "no", "reason": "because"}]));
        let many =
            Outcome { failed: (0..500).map(|i| failure(i, Kind::Bad)).collect(), ..Outcome::default() };
        let many = body(&many, Batch::Each);
        assert_eq!(
            (many["failed"].as_array().unwrap().len(), &many["failed_total"]),
            (LISTED_MAX, &json!(500))
        );
    }

    #[test]
    fn who_is_refused_comes_back_when_there_is_room() {
        for dice in [0, 500, 999] {
            assert!((1..=2).contains(&retry_after(1_000_000, 1e6, dice)));
            assert!((8..=12).contains(&retry_after(10_000_000, 1e6, dice)));
            assert!((24..=36).contains(&retry_after(1 << 30, 1e6, dice)));
            assert!((24..=36).contains(&retry_after(1, 0.0, dice)));
        }
    }
}
