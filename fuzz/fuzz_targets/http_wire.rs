//! Bytes at an open port: what is taken for a request is one for the HTTP library as well, and ends at the same byte; where the
//! bytes are cut makes no difference; and the records of a body are found without a panic, each where it says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rowmill::decode::stream::{Cursor, Stream};
use rowmill::http::coding::Coding;
use rowmill::http::wire::{self, Chunks, Framing};

fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    let whole = wire::head(bytes, 0);
    if let Ok(Some(head)) = whole {
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        // The library may refuse what is taken here: then it answers. It may not read it otherwise.
        if let Ok(httparse::Status::Complete(length)) = request.parse(&bytes[..head.length]) {
            assert_eq!(length, head.length);
            let lengths = request.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("content-length"));
            let coded = request.headers.iter().any(|h| h.name.eq_ignore_ascii_case("transfer-encoding"));
            match head.body {
                Framing::Length(length) => {
                    let said: Vec<u64> =
                        lengths.map(|h| std::str::from_utf8(h.value).unwrap().trim().parse().unwrap()).collect();
                    assert!(!coded && said.len() <= 1 && said.first().copied().unwrap_or(0) == length);
                }
                Framing::Chunks(_) => assert!(coded && lengths.count() == 0),
            }
        }
    }
    let cut = usize::from(cut).min(bytes.len());
    if let Ok(None) = wire::head(&bytes[..cut], 0) {
        assert_eq!(wire::head(bytes, cut).is_ok(), whole.is_ok());
    }
    let mut chunks = Chunks::default();
    let at_once = chunks.pass(bytes).map(|n| (n, chunks.is_done()));
    let mut chunks = Chunks::default();
    let in_two = chunks.pass(&bytes[..cut]).and_then(|first| {
        if chunks.is_done() { Ok(first) } else { chunks.pass(&bytes[cut..]).map(|second| first + second) }
    });
    assert_eq!(at_once, in_two.map(|n| (n, chunks.is_done())));
    if let Ok(text) = std::str::from_utf8(bytes) {
        let mut stream = Stream::new(&[rowmill::model::plan::Path(vec!["a".to_owned()])]);
        let mut cursor = Cursor::new(text);
        while let Some(record) = stream.next(text, &mut cursor) {
            match record {
                Ok(record) => assert!(serde_json::from_str::<serde::de::IgnoredAny>(record).is_ok()),
                Err(bad) => assert!(bad.at <= text.len()),
            }
        }
    }
    for coding in [Coding::Gzip, Coding::Deflate, Coding::Zstd] {
        if let Ok(unpacked) = coding.unpack(bytes.to_vec().into(), 1 << 16) {
            assert!(unpacked.len() <= 1 << 16);
        }
    }
});
