//! Where a request ends, and which heads nobody may disagree about: pure functions over the bytes as they came.
//!
//! hyper gets whole heads only, and of the bytes behind a head only those of its own body. So what it frames is what is framed
//! here, by construction; and what two programs could frame in two ways (RFC 9112, 11.2: request smuggling) is refused before
//! it: a line that ends without CR, a length that is there twice, a length beside chunks, a continued line. hyper would take
//! some of these, as the RFC allows; a proxy before us may have read them otherwise.

use std::ops::Range;

use hyper::StatusCode;
use memchr::memchr;

/// The largest head. Node's and Apache's bounds are 16 and 8 KB; nothing that is meant well is larger.
pub const HEAD_MAX: usize = 16 << 10;

/// The longest request line, for which HTTP has a status of its own.
const LINE_MAX: usize = 8 << 10;

/// Headers of one head: one fixed array of hyper's is for a hundred.
const HEADERS_MAX: usize = 64;

/// A line with the size of a chunk, which may have extensions that nobody uses.
const CHUNK_LINE_MAX: usize = 256;

/// Trailers behind the last chunk, which nobody reads.
const TRAILERS_MAX: usize = 4 << 10;

/// Why a request is answered without being looked at any further; the connection ends with the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    /// A sentence for whoever wrote the client.
    pub reason: &'static str,
}

/// A head that is whole and clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes, with the empty line behind it.
    pub length: usize,
    pub body: Framing,
}

/// How far a body reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunks(Chunks),
}

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason }
}

/// Looks for a whole head at the start of `bytes`; those before `searched` were looked at before, in vain. `None`: more bytes
/// are needed.
///
/// # Errors
/// What makes it no request, as soon as that is known.
pub fn head(bytes: &[u8], searched: usize) -> Result<Option<Head>, Refusal> {
    let Some(first) = bytes.first() else { return Ok(None) };
    if !first.is_ascii_uppercase() {
        return Err(bad("this is no HTTP request: it does not begin with a method in capitals"));
    }
    // The end may stand across the border.
    let from = searched.saturating_sub(3);
    let Some(length) = end_of_head(&bytes[from..]).map(|end| from + end) else {
        if bytes.len() >= HEAD_MAX {
            return Err(too_large(bytes));
        }
        return Ok(None);
    };
    if length > HEAD_MAX {
        return Err(too_large(bytes));
    }
    Ok(Some(Head { length, body: framing(&bytes[..length])? }))
}

fn too_large(bytes: &[u8]) -> Refusal {
    let line = bytes.iter().take(LINE_MAX).position(|b| *b == b'\n');
    match line {
        None => {
            Refusal { status: StatusCode::URI_TOO_LONG, reason: "the request line is longer than 8192 bytes" }
        }
        Some(_) => Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            reason: "the head is larger than 16384 bytes",
        },
    }
}

/// Behind the empty line. One whose lines end without CR ends a head as well, which is refused then.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(place) = memchr(b'\n', &bytes[at..]) {
        at += place + 1;
        match bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// What the lines of a whole head say of its body.
fn framing(head: &[u8]) -> Result<Framing, Refusal> {
    let mut lines = head.split_inclusive(|b| *b == b'\n').map(|line| match line {
        [line @ .., b'\r', b'\n'] if !line.contains(&b'\r') => Ok(line),
        [_, .., b'\r', b'\n'] => Err(bad("a line of the head has a bare CR in it")),
        [b'\r', b'\n'] => Ok(&line[..0]),
        _ => Err(bad("a line of the head ends without CR")),
    });
    let request = lines.next().unwrap_or(Ok(b""))?;
    let is_old = match request {
        [.., b' ', b'H', b'T', b'T', b'P', b'/', b'1', b'.', minor @ (b'0' | b'1')] => *minor == b'0',
        _ => {
            return Err(Refusal {
                status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
                reason: "only HTTP/1.1 and HTTP/1.0 are spoken here",
            });
        }
    };
    if request.len() > LINE_MAX {
        return Err(Refusal {
            status: StatusCode::URI_TOO_LONG,
            reason: "the request line is longer than 8192 bytes",
        });
    }
    let (mut length, mut chunks, mut hosts, mut count) = (None, false, 0, 0);
    for line in lines {
        let line = line?;
        if line.is_empty() {
            break;
        }
        count += 1;
        let Some(colon) = memchr(b':', line) else { return Err(bad("a line of the head has no colon")) };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        match name {
            [] | [b' ' | b'\t', ..] => return Err(bad("a line of the head begins with a blank")),
            [.., b' ' | b'\t'] => return Err(bad("a header's name ends with a blank")),
            _ if name.eq_ignore_ascii_case(b"content-length") => {
                let before = length.replace(content_length(value)?);
                before.map_or(Ok(()), |_| Err(bad("Content-Length is there twice")))?;
            }
            _ if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunks || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(bad("Transfer-Encoding may only be chunked, once"));
                }
                chunks = true;
            }
            _ if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            _ => {}
        }
    }
    if count > HEADERS_MAX {
        return Err(Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            reason: "the head has more than 64 headers",
        });
    }
    if hosts > 1 || (hosts == 0 && !is_old) {
        return Err(bad("HTTP/1.1 wants exactly one Host"));
    }
    match (length, chunks) {
        (Some(_), true) => Err(bad("Content-Length beside Transfer-Encoding")),
        (None, true) if is_old => Err(bad("HTTP/1.0 has no chunks")),
        (None, true) => Ok(Framing::Chunks(Chunks::default())),
        (length, false) => Ok(Framing::Length(length.unwrap_or(0))),
    }
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    // 18 digits always fit.
    let is_number = (1..=18).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
    if !is_number {
        return Err(bad("Content-Length is no number"));
    }
    Ok(value.iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0')))
}

/// Where a chunked body ends. It passes over the chunks; hyper takes them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    state: State,
    /// Bytes of the line, or of the trailers, that is being read.
    line: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// The size, or behind it, in an extension.
    #[default]
    Size,
    Counting(u64),
    Extension(u64),
    /// The line feed behind a size.
    SizeEnd(u64),
    Data(u64),
    DataCr,
    DataLf,
    /// At the begin of a line of the trailers.
    Trailer,
    InTrailer,
    TrailerLf,
    LastLf,
    End,
}

impl Chunks {
    pub fn is_done(self) -> bool {
        self.state == State::End
    }

    /// How many of these bytes belong to the body; fewer than there are once it is done.
    ///
    /// # Errors
    /// What is no chunk.
    pub fn pass(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        while at < bytes.len() && !self.is_done() {
            if let State::Data(left) = self.state {
                let step = left.min((bytes.len() - at) as u64);
                at += step as usize;
                self.state = if step == left { State::DataCr } else { State::Data(left - step) };
                continue;
            }
            self.state = self.step(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> Result<State, Refusal> {
        use State::*;
        self.line += 1;
        let next = match (self.state, byte) {
            (Size, b) => Counting(digit(b).ok_or(bad("a chunk has no size"))?),
            (Counting(size), b'\r') | (Extension(size), b'\r') => SizeEnd(size),
            (Counting(size), b';' | b' ' | b'\t') => Extension(size),
            (Counting(size), b) => {
                let digit = digit(b).ok_or(bad("a chunk's size is no number"))?;
                if size >> 56 > 0 {
                    return Err(bad("a chunk's size is beyond all bounds"));
                }
                Counting(size << 4 | digit)
            }
            (Extension(_), b'\n') => return Err(bad("a chunk's line ends without CR")),
            (Extension(size), _) => Extension(size),
            (SizeEnd(0), b'\n') => {
                self.line = 0;
                Trailer
            }
            (SizeEnd(size), b'\n') => {
                self.line = 0;
                Data(size)
            }
            (DataCr, b'\r') => DataLf,
            (DataLf, b'\n') => {
                self.line = 0;
                Size
            }
            (Trailer, b'\r') => LastLf,
            (Trailer | InTrailer, b'\n') => return Err(bad("a trailer ends without CR")),
            (Trailer, _) => InTrailer,
            (InTrailer, b'\r') => TrailerLf,
            (InTrailer, _) => InTrailer,
            (TrailerLf, b'\n') => Trailer,
            (LastLf, b'\n') => End,
            (SizeEnd(_) | DataCr | DataLf | TrailerLf | LastLf, _) => {
                return Err(bad("a chunk does not end where it says"));
            }
            (Data(_) | End, _) => unreachable!("passed without steps"),
        };
        let is_trailer = matches!(next, Trailer | InTrailer | TrailerLf | LastLf);
        if self.line > if is_trailer { TRAILERS_MAX } else { CHUNK_LINE_MAX } {
            return Err(bad("a chunk's line or the trailers are too long"));
        }
        Ok(next)
    }
}

fn digit(byte: u8) -> Option<u64> {
    char::from(byte).to_digit(16).map(u64::from)
}

/// The part of a body that stands at the start of `bytes`, in a buffer of whoever reads on.
pub fn within(framing: &mut Framing, bytes: &[u8]) -> Result<Range<usize>, Refusal> {
    match framing {
        Framing::Length(left) => {
            let part = (*left).min(bytes.len() as u64);
            *left -= part;
            Ok(0..part as usize)
        }
        Framing::Chunks(chunks) => chunks.pass(bytes).map(|end| 0..end),
    }
}

impl Framing {
    /// Nothing of the body is left to be read.
    pub fn is_done(self) -> bool {
        match self {
            Framing::Length(left) => left == 0,
            Framing::Chunks(chunks) => chunks.is_done(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn heads_that_are_clear() {
        #[track_caller]
        fn check(text: &str, length: usize, body: Framing) {
            assert_eq!(head(text.as_bytes(), 0), Ok(Some(Head { length, body })));
        }
        check("GET / HTTP/1.1\r\nHost: a\r\n\r\n", 27, Framing::Length(0));
        check("GET / HTTP/1.0\r\n\r\nrest", 18, Framing::Length(0));
        check("POST / HTTP/1.1\r\nhost:a\r\ncontent-LENGTH:  7 \r\n\r\nbody", 48, Framing::Length(7));
        check(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n",
            56,
            Framing::Chunks(Chunks::default()),
        );
        check("POST / HTTP/1.1\r\nHost: a\r\nX-Empty:\r\n\r\n", 38, Framing::Length(0));
    }

    #[test]
    fn heads_that_two_programs_could_read_in_two_ways() {
        #[track_caller]
        fn check(text: &str, status: u16, words: &str) {
            match head(text.as_bytes(), 0) {
                Err(Refusal { status: found, reason }) => {
                    assert!(found == status && reason.contains(words), "{text:?}: {found} {reason}");
                }
                other => panic!("{text:?}: {other:?}"),
            }
        }
        let with = |lines: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n");
        check("POST / HTTP/1.1\nHost: a\n\n", 400, "without CR");
        check("POST / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400, "without CR");
        check(&with("A: b\rContent-Length: 5"), 400, "bare CR");
        check(&with("Content-Length: 1\r\nContent-Length: 1"), 400, "twice");
        check(&with("Content-Length: 1\r\nTransfer-Encoding: chunked"), 400, "beside");
        for length in ["+1", "-1", "1, 1", "0x1", "", "1 1", "99999999999999999999"] {
            check(&with(&format!("Content-Length: {length}")), 400, "no number");
        }
        for coding in [
            "identity",
            "gzip, chunked",
            "chunked, gzip",
            "xchunked",
            "",
            "chunked\r\nTransfer-Encoding: chunked",
        ] {
            check(&with(&format!("Transfer-Encoding: {coding}")), 400, "only be chunked");
        }
        check(&with("A: b\r\n c: d"), 400, "begins with a blank");
        check(&with("Content-Length : 1"), 400, "ends with a blank");
        check(&with("nothing"), 400, "no colon");
        check(&with("Host: b"), 400, "one Host");
        check("GET / HTTP/1.1\r\n\r\n", 400, "one Host");
        check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "HTTP/1.0");
        check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1");
        check("GET /\r\n\r\n", 505, "HTTP/1.1");
        check("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505, "HTTP/1.1");
        check("\x16\x03\x01", 400, "no HTTP");
        check("\r\n", 400, "no HTTP");
        check(&with(&"A: b\r\n".repeat(64)), 431, "64 headers");
        check(&with(&format!("A: {}", "x".repeat(HEAD_MAX))), 431, "larger");
        check(&format!("GET /{}", "x".repeat(HEAD_MAX)), 414, "longer");
        check(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(9000)), 414, "longer");
    }

    #[test]
    fn a_body_ends_where_its_chunks_say() {
        #[track_caller]
        fn check(text: &str, expected: Result<(usize, bool), &str>) {
            // In one piece, and byte by byte.
            for piece in [text.len().max(1), 1] {
                let mut chunks = Chunks::default();
                let mut passed = Ok(0);
                for bytes in text.as_bytes().chunks(piece) {
                    let Ok(so_far) = passed else { break };
                    passed = chunks.pass(bytes).map(|n| so_far + n);
                }
                match expected {
                    Ok(expected) => {
                        assert_eq!(passed.map(|n| (n, chunks.is_done())), Ok(expected), "{text:?}")
                    }
                    Err(words) => assert!(passed.unwrap_err().reason.contains(words), "{text:?}"),
                }
            }
        }
        check("3\r\nabc\r\n0\r\n\r\n", Ok((13, true)));
        check("3\r\nabc\r\n0\r\n\r\nGET /", Ok((13, true)));
        check("a;name=value\r\n0123456789\r\n00\r\nX: y\r\nZ: w\r\n\r\n", Ok((44, true)));
        check("3\r\nab", Ok((5, false)));
        check("", Ok((0, false)));
        check("\r\n", Err("no size"));
        check("g\r\n", Err("no size"));
        check("0x3\r\nabc", Err("no number"));
        check("3\nabc", Err("no number"));
        check("3;a\nabc", Err("without CR"));
        check("3\r\nabcd\r\n", Err("where it says"));
        check("3\r\nabc\n", Err("where it says"));
        check("fffffffffffffffff\r\n", Err("beyond"));
        check("0\r\nX: y\n\r\n", Err("without CR"));
        check("0\r\n\n", Err("without CR"));
        check(&format!("3;{}", "x".repeat(300)), Err("too long"));
        check(&format!("0\r\nX: {}", "x".repeat(5000)), Err("too long"));
    }

    proptest! {
        /// Whatever comes, it is looked at once and never panics, and where it came in does not matter.
        #[test]
        fn pieces_make_no_difference(bytes in "(GET|POST|x)? ?/? ?(HTTP/1.1)?[\r\n:a ]{0,40}", cut in 0usize..60) {
            let bytes = bytes.as_bytes();
            let cut = cut.min(bytes.len());
            let whole = head(bytes, 0);
            match head(&bytes[..cut], 0) {
                Ok(None) => prop_assert_eq!(head(bytes, cut), whole),
                early => prop_assert_eq!(early.is_ok(), whole.is_ok()),
            }
        }
    }
}
