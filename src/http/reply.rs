//! What is answered: a status, headers of our own, and a body that is whole or flows. Errors are problem+json (RFC 9457).

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

pub type Answer = Response<Body>;

pub const JSON: &str = "application/json";
pub const PROBLEM: &str = "application/problem+json";
pub const PLAIN: &str = "text/plain; charset=utf-8";

/// The answer cannot be finished. Its connection is reset, so that what was sent never looks whole, not even to a client of
/// HTTP/1.0, for which a plain close is the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the answer cannot be finished")
    }
}

impl std::error::Error for Broken {}

/// Where the bytes of an answer come from that is not whole when it begins. It is asked when the client has taken what was there;
/// after `Pending`, when the service names the connection's ticket. Dropped before its end, the client has left.
pub trait Flow {
    /// `None` at the end of the whole.
    fn next(&mut self) -> Poll<Option<Result<Bytes, Broken>>>;
}

/// The body of an answer.
#[derive(Default)]
pub struct Body {
    whole: Option<Bytes>,
    flow: Option<Box<dyn Flow>>,
    /// Set once the last byte was handed over.
    pub(super) given: Option<Rc<Cell<bool>>>,
    /// Set where it broke off.
    pub(super) broken: Option<Rc<Cell<bool>>>,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body").field("whole", &self.whole).finish_non_exhaustive()
    }
}

impl Body {
    pub fn whole(bytes: impl Into<Bytes>) -> Body {
        Body { whole: Some(bytes.into()).filter(|bytes| !bytes.is_empty()), ..Body::default() }
    }

    /// Of an unknown length: in chunks, or up to the end of the connection.
    pub fn flowing(flow: impl Flow + 'static) -> Body {
        Body { flow: Some(Box::new(flow)), ..Body::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.whole.is_none() && self.flow.is_none()
    }

    pub(super) fn flows(&self) -> bool {
        self.flow.is_some()
    }
}

fn set(flag: Option<&Rc<Cell<bool>>>) {
    if let Some(flag) = flag {
        flag.set(true);
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let Some(flow) = &mut self.flow else {
            let bytes = self.whole.take();
            set(self.given.as_ref());
            return Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))));
        };
        let next = flow.next();
        match &next {
            Poll::Ready(None) => set(self.given.as_ref()),
            Poll::Ready(Some(Err(Broken))) => set(self.broken.as_ref()),
            _ => {}
        }
        next.map(|next| next.map(|result| result.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.flow {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.whole.as_ref().map_or(0, |bytes| bytes.len() as u64)),
        }
    }
}

/// An answer with a body of this type.
pub fn answer(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Body::whole(body));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// For what is true at this moment only.
pub fn uncached(mut answer: Answer) -> Answer {
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Why a request was not done: `title` is the status's own, `detail` a sentence, and `more` has members of its own.
pub fn problem(status: StatusCode, detail: &str, more: Value) -> Answer {
    let mut body = json!({
        "status": status.as_u16(),
        "title": status.canonical_reason().unwrap_or("Error"),
        "detail": detail,
    });
    if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
        body.extend(more);
    }
    answer(status, PROBLEM, body.to_string())
}

/// The same as bytes, for a connection on which nobody speaks HTTP any more: the end follows.
pub(super) fn last_words(status: StatusCode, detail: &str) -> Vec<u8> {
    let reason = status.canonical_reason().unwrap_or("Error");
    let body = json!({"status": status.as_u16(), "title": reason, "detail": detail}).to_string();
    format!(
        "HTTP/1.1 {} {reason}\r\ncontent-type: {PROBLEM}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        status.as_u16(),
        body.len()
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_say_what_and_why() {
        let Response { .. } = problem(StatusCode::BAD_REQUEST, "no", Value::Null);
        let words = String::from_utf8(last_words(StatusCode::BAD_REQUEST, "a \"b\"")).unwrap();
        let (head, body) = words.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["detail"], "a \"b\"");
    }
}
