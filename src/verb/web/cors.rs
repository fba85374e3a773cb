//! What a browser needs to show an answer to a page of another origin.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, VARY,
};
use hyper::http::request::Parts;
use hyper::{Method, StatusCode};

use crate::http::reply::Answer;

/// Who may see answers, and what of them.
#[derive(Clone, Debug)]
pub struct Cors {
    /// None: no page of another origin may.
    pub origins: Vec<String>,
    pub methods: &'static str,
    /// Headers that a page may send.
    pub sent: &'static str,
    /// Headers of the answer that a page may read.
    pub seen: &'static str,
}

impl Cors {
    /// Refusals are let through as well: a page could not tell them from a network that is down.
    pub fn let_browsers_see(&self, origin: Option<HeaderValue>, answer: &mut Answer) {
        if self.origins.is_empty() {
            return;
        }
        let headers = answer.headers_mut();
        headers.append(VARY, HeaderValue::from_static("Origin"));
        let Some(origin) = origin else { return };
        if !self.origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes()) {
            return;
        }
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(self.seen));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(self.methods));
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(self.sent));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// The answer to a browser that asks first. It needs no token, since a browser sends none with this question.
pub fn preflight(head: &Parts) -> Option<Answer> {
    if head.method != Method::OPTIONS || !head.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut answer = Answer::default();
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Some(answer)
}
