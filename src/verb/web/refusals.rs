//! Refusals that are the same whatever was asked for. `more` has members of the verb's own, such as whether anything was stored.

use hyper::header::{ALLOW, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::http::reply::{Answer, problem};

pub fn unauthorized(more: Value) -> Answer {
    let mut refusal = problem(
        StatusCode::UNAUTHORIZED,
        "this route wants Authorization: Bearer TOKEN, with a token that is known here",
        more,
    );
    refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    refusal
}

pub fn wrong_method(methods: &[Method], more: Value) -> Answer {
    let allowed: Vec<&str> = methods.iter().map(Method::as_str).collect();
    let allowed = allowed.join(", ");
    let mut refusal = problem(StatusCode::METHOD_NOT_ALLOWED, &format!("this path takes {allowed}"), more);
    if let Ok(value) = HeaderValue::try_from(allowed) {
        refusal.headers_mut().insert(ALLOW, value);
    }
    refusal
}

/// Not now; in so many seconds.
pub fn later(status: StatusCode, detail: &str, seconds: u64, more: Value) -> Answer {
    let mut refusal = problem(status, detail, more);
    refusal.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    refusal
}

/// A header's text; `None` where it is absent or no text.
pub fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
