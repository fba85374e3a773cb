//! What a client is told when there is no answer: pure functions from what happened to a status and a sentence. No text of the
//! server's and no SQL goes to a client, with one exception: the words that a statement raises for it (P0001).

use std::time::Duration;

use hyper::StatusCode;
use serde_json::{Value as Json, json};

use super::render::Unfit;
use crate::client::wire::Complaint;
use crate::http::reply::{Answer, problem};
use crate::verb::web::refusals::later;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// More wait already than may.
    QueueFull,
    /// It waited for a session for so long.
    QueueTime(Duration),
    /// No session can be had, for this reason, which is for the log.
    NoServer,
    /// The statement took longer than it may.
    Time(Duration),
    /// The session was lost with the statement in work. What is written may be there, or not.
    Lost {
        write: bool,
    },
    /// The server's own word.
    Server(Complaint),
    Unfit(Unfit),
    /// One row is larger than one may be.
    RowTooLarge(usize),
    /// What it wrote is committed, and the rows that it gave are more than are held for an answer.
    WrittenTooLarge(usize),
    /// The tables did not reach the place that Rowmill-After names in this time.
    NotReached(Duration),
    /// No table of the statement is fed by this topic.
    NeverReached(String),
}

/// Seconds after which a refused client may come again. Most troubles of a server are over in one.
const AGAIN: u64 = 1;

/// What a failure means for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    /// The values are at fault.
    Values,
    Conflict,
    /// Raised for the client.
    Raised,
    /// Not now.
    Later,
    /// The statement does not fit its tables any more.
    Unfitting,
    /// The operator's fault, or ours.
    Fault,
}

/// What an SQLSTATE means. Of class 22 there are those that no value can be at fault for, where there is none.
fn meaning(code: &str, has_values: bool, write: bool) -> Means {
    match code {
        "P0001" => Means::Raised,
        "23505" | "23503" | "23P01" => Means::Conflict,
        "23502" | "23514" if write => Means::Values,
        // A server that was the primary a moment ago.
        "25006" if write => Means::Later,
        // A statement that was prepared elsewhere, or for other tables.
        "26000" | "0A000" => Means::Unfitting,
        _ => match code.get(..2).unwrap_or_default() {
            "22" | "54" if has_values => Means::Values,
            "42" | "3F" => Means::Unfitting,
            "08" | "40" | "53" | "55" | "57" | "58" => Means::Later,
            _ => Means::Fault,
        },
    }
}

impl Failure {
    /// True for what somebody has to see in the log: with the id that the client was given.
    pub fn is_fault(&self, has_values: bool, write: bool) -> bool {
        match self {
            Failure::Server(complaint) => {
                matches!(meaning(&complaint.code, has_values, write), Means::Fault | Means::Unfitting)
            }
            Failure::Unfit(unfit) => matches!(unfit, Unfit::Several | Unfit::NoChart(_)),
            Failure::RowTooLarge(_) | Failure::WrittenTooLarge(_) => true,
            _ => false,
        }
    }

    /// For the log.
    pub fn words(&self) -> String {
        match self {
            Failure::Server(complaint) => format!("{} (SQLSTATE {})", complaint.message, complaint.code),
            Failure::Unfit(Unfit::Several) => {
                "the statement gave several rows, and its shape has one".to_owned()
            }
            Failure::Unfit(Unfit::NoChart(why)) => why.clone(),
            Failure::RowTooLarge(bytes) => format!("one row has {bytes} bytes, more than one may have"),
            Failure::WrittenTooLarge(bytes) => {
                format!(
                    "the rows of a statement that writes have more than {bytes} bytes; it is done all the same"
                )
            }
            other => format!("{other:?}"),
        }
    }

    /// The answer; `id` finds it in the log.
    pub fn answer(&self, id: &str, has_values: bool, write: bool) -> Answer {
        let done = |done: &str| if write { json!({ "done": done }) } else { Json::Null };
        let not_now = |detail: &str| later(StatusCode::SERVICE_UNAVAILABLE, detail, AGAIN, done("no"));
        match self {
            Failure::QueueFull => not_now("as many wait already as may"),
            Failure::QueueTime(waited) => not_now(&format!(
                "it waited {} for a place at the database, and none came free",
                span(*waited)
            )),
            Failure::NoServer => not_now("the database cannot be reached"),
            Failure::Time(most) => {
                let detail = format!("the statement took longer than {}", span(*most));
                problem(StatusCode::GATEWAY_TIMEOUT, &detail, done("no"))
            }
            Failure::Lost { write: false } => not_now("the connection to the database broke"),
            Failure::Lost { write: true } => problem(
                StatusCode::GATEWAY_TIMEOUT,
                "the connection to the database broke, and it is not known whether the change was made",
                done("unknown"),
            ),
            Failure::Server(complaint) => self.server(complaint, id, has_values, write),
            Failure::Unfit(Unfit::TooMany(most)) => {
                let detail = format!("the answer has more than {most} rows; ask for fewer");
                problem(StatusCode::PAYLOAD_TOO_LARGE, &detail, done("yes"))
            }
            Failure::Unfit(Unfit::None) => {
                problem(StatusCode::NOT_FOUND, "there is nothing with these values", done("yes"))
            }
            Failure::Unfit(Unfit::Several | Unfit::NoChart(_)) => fault(id, done("yes")),
            Failure::RowTooLarge(_) => fault(id, done("unknown")),
            Failure::WrittenTooLarge(_) => fault(id, done("yes")),
            Failure::NotReached(waited) => later(
                StatusCode::TOO_EARLY,
                &format!("what Rowmill-After names was not in the tables within {}", span(*waited)),
                AGAIN,
                Json::Null,
            ),
            Failure::NeverReached(topic) => problem(
                StatusCode::BAD_REQUEST,
                &format!(
                    "Rowmill-After: no table that this endpoint reads is filled from the topic {topic:?}"
                ),
                Json::Null,
            ),
        }
    }

    fn server(&self, complaint: &Complaint, id: &str, has_values: bool, write: bool) -> Answer {
        let mut more = json!({ "sqlstate": complaint.code });
        if write {
            more["done"] = "no".into();
        }
        match meaning(&complaint.code, has_values, write) {
            Means::Values => {
                problem(StatusCode::BAD_REQUEST, "the database does not take these values", more)
            }
            Means::Raised => problem(StatusCode::BAD_REQUEST, &complaint.message, more),
            Means::Conflict => problem(
                StatusCode::CONFLICT,
                "what is there already does not go together with these values",
                more,
            ),
            Means::Later => {
                later(StatusCode::SERVICE_UNAVAILABLE, "the database cannot answer now", AGAIN, more)
            }
            Means::Unfitting => {
                more["id"] = id.into();
                later(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "this endpoint's statement does not fit its tables at the moment; the others are not concerned",
                    AGAIN,
                    more,
                )
            }
            Means::Fault => fault(id, if write { json!({"done": "no"}) } else { Json::Null }),
        }
    }
}

fn fault(id: &str, mut more: Json) -> Answer {
    if !more.is_object() {
        more = json!({});
    }
    more["id"] = id.into();
    problem(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the answer cannot be made; the log has why, under this id",
        more,
    )
}

fn span(time: Duration) -> String {
    match time.as_millis() {
        ms if ms % 1000 == 0 => format!("{} s", ms / 1000),
        ms => format!("{ms} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_decides_what_the_client_is_told() {
        #[track_caller]
        fn check(code: &str, has_values: bool, write: bool, status: u16) {
            let complaint = Complaint { code: code.into(), message: "secret text".into(), is_fatal: false };
            let failure = Failure::Server(complaint);
            let answer = failure.answer("1f", has_values, write);
            assert_eq!(answer.status().as_u16(), status, "{code}");
            let body = format!("{:?}", answer.body());
            assert_eq!(body.contains("secret text"), code == "P0001", "{code}: {body}");
            assert_eq!(body.contains("1f"), failure.is_fault(has_values, write), "{code}: {body}");
        }
        check("22P02", true, false, 400);
        check("22003", true, false, 400);
        check("22012", true, false, 400);
        check("22012", false, false, 500);
        check("54000", true, false, 400);
        check("P0001", false, false, 400);
        check("23505", true, true, 409);
        check("23514", true, true, 400);
        check("23514", true, false, 500);
        check("25006", true, true, 503);
        check("25006", true, false, 500);
        check("42P01", true, false, 503);
        check("42501", true, false, 503);
        check("0A000", true, false, 503);
        check("40001", true, false, 503);
        check("53300", true, false, 503);
        check("57P01", true, false, 503);
        check("57014", true, false, 503);
        check("XX000", true, false, 500);
        check("", true, false, 500);
    }

    #[test]
    fn a_write_is_told_whether_it_was_done() {
        let body = |failure: Failure| format!("{:?}", failure.answer("1", true, true).body());
        assert!(body(Failure::QueueFull).contains("\\\"done\\\":\\\"no\\\""));
        assert!(body(Failure::Lost { write: true }).contains("\\\"done\\\":\\\"unknown\\\""));
        assert_eq!(Failure::Lost { write: true }.answer("1", true, true).status(), 504);
        assert_eq!(Failure::Lost { write: false }.answer("1", true, false).status(), 503);
    }
}
