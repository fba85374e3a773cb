//! What an answer says of the records of its request: stored, certainly not stored, or nobody knows. The rules are those of the
//! front door that answers them; what another server answers falls under the same statuses.

use serde::Deserialize;

use crate::message::account::Outcome;

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub status: u16,
    /// Seconds.
    pub retry_after_s: Option<u32>,
    pub body: Vec<u8>,
}

/// What became of one record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Verdict {
    pub outcome: Outcome,
    /// The status that speaks of this record.
    pub status: u16,
    /// Whether a later try can do better: the server was busy, or its answer is not known.
    pub passing: bool,
}

/// The members of an answer's body that count here.
#[derive(Default, Deserialize)]
struct Body {
    stored: Option<String>,
    delivered: Option<u64>,
    #[serde(default)]
    failed: Vec<Failed>,
}

#[derive(Deserialize)]
struct Failed {
    index: usize,
    #[serde(default)]
    status: Option<u16>,
    stored: Option<String>,
}

/// The verdict on each of `records` records.
pub fn verdicts(answer: &Answer, records: usize) -> Vec<Verdict> {
    match answer.status {
        207 => each(answer, records),
        200..=299 => {
            vec![Verdict { outcome: Outcome::Acked, status: answer.status, passing: false }; records]
        }
        status => {
            let body: Body = serde_json::from_slice(&answer.body).unwrap_or_default();
            vec![refused(status, body.stored.as_deref()); records]
        }
    }
}

/// A whole request was refused, or one record in it.
fn refused(status: u16, stored: Option<&str>) -> Verdict {
    let outcome = match (stored, status) {
        (Some("no"), _) => Outcome::Failed,
        (Some("unknown"), _) => Outcome::Indeterminate,
        // Whoever refuses for the request's sake, or for too many of them, has not stored it.
        (_, 300..=499) => Outcome::Failed,
        // 501 and 505 are as much as "not here"; 503 without a word may come from a proxy that lost its server.
        (_, 501 | 505) => Outcome::Failed,
        _ => Outcome::Indeterminate,
    };
    let passing = matches!(status, 408 | 425 | 429 | 500 | 502..=504);
    Verdict { outcome, status, passing }
}

/// 207 names the records that failed, up to a number; of what it counts and does not name nothing is known.
fn each(answer: &Answer, records: usize) -> Vec<Verdict> {
    let unknown = Verdict { outcome: Outcome::Indeterminate, status: 207, passing: true };
    let Ok(body) = serde_json::from_slice::<Body>(&answer.body) else { return vec![unknown; records] };
    let named = body.failed.iter().filter(|failed| failed.index < records).count();
    let all_named = body.delivered.is_some_and(|delivered| delivered as usize + named == records);
    let rest = Verdict { outcome: Outcome::Acked, status: 200, passing: false };
    let mut verdicts = vec![if all_named { rest } else { unknown }; records];
    for failed in body.failed.iter().filter(|failed| failed.index < records) {
        verdicts[failed.index] = refused(failed.status.unwrap_or(400), failed.stored.as_deref());
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(status: u16, body: &str, expected: &[(Outcome, bool)]) {
        let answer = Answer { status, retry_after_s: None, body: body.as_bytes().to_vec() };
        let found: Vec<_> =
            verdicts(&answer, expected.len()).iter().map(|v| (v.outcome, v.passing)).collect();
        assert_eq!(found, expected, "{status} {body}");
    }

    #[test]
    fn answers_are_judged_by_their_rules() {
        use Outcome::{Acked, Failed, Indeterminate};
        check(200, "{\"delivered\":1}", &[(Acked, false)]);
        check(204, "", &[(Acked, false)]);
        check(202, "{\"queued\":2}", &[(Acked, false), (Acked, false)]);
        for status in [301, 400, 401, 403, 404, 405, 413, 415, 431] {
            check(status, "no json", &[(Failed, false)]);
        }
        check(429, "", &[(Failed, true)]);
        check(503, "{\"stored\":\"no\"}", &[(Failed, true)]);
        check(503, "<html>", &[(Indeterminate, true)]);
        check(504, "{\"stored\":\"unknown\",\"index\":[0]}", &[(Indeterminate, true); 2]);
        check(500, "", &[(Indeterminate, true)]);
        check(501, "", &[(Failed, false)]);
    }

    #[test]
    fn records_of_a_batch_are_judged_one_by_one() {
        use Outcome::{Acked, Failed, Indeterminate};
        let named = "{\"delivered\":2,\"failed\":[{\"index\":1,\"status\":400,\"reason\":\"x\"}]}";
        check(207, named, &[(Acked, false), (Failed, false), (Acked, false)]);
        let unknown = "{\"delivered\":1,\"failed\":[{\"index\":0,\"status\":504}]}";
        check(207, unknown, &[(Indeterminate, true), (Acked, false)]);
        // More failed than are named.
        let cut = "{\"delivered\":1,\"failed\":[{\"index\":0,\"status\":400}]}";
        check(207, cut, &[(Failed, false), (Indeterminate, true), (Indeterminate, true)]);
        check(207, "?", &[(Indeterminate, true)]);
        check(207, "{\"failed\":[{\"index\":7}]}", &[(Indeterminate, true)]);
    }
}
