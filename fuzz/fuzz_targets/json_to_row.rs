//! Any bytes, for each of the five tables: no panic; what is refused leaves nothing behind, and what is not is whole. What
//! serde_json takes for an object is never refused as no object.

#![no_main]

#[path = "../../tests/corpus/load.rs"]
#[allow(dead_code)]
mod load;

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;

use rowmill::decode::column::Encoded;
use rowmill::decode::record::RecordDecoder;

thread_local! {
    static DECODERS: RefCell<Vec<RecordDecoder>> =
        RefCell::new((0..load::TOPICS.len()).map(load::decoder).collect());
}

fuzz_target!(|value: &[u8]| {
    let is_object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(value).is_ok();
    DECODERS
        .with_borrow_mut(|decoders| decoders.iter_mut().for_each(|decoder| check(decoder, value, is_object)));
});

fn check(decoder: &mut RecordDecoder, value: &[u8], is_object: bool) {
    let record = load::record(Some(value));
    let parsed = match decoder.parse(&record) {
        Ok(parsed) => parsed,
        Err(reject) => return assert!(!is_object || value.len() > load::MESSAGE_MAX, "{reject}"),
    };
    let message = parsed.message().expect("a value is no tombstone");
    let model = decoder.models().next().expect("the models take every record");
    let mut out = Vec::new();
    match decoder.encode(model, message, &load::Users, &mut out) {
        Ok(encoded) => {
            assert!(matches!(encoded, Encoded::Row(_)));
            assert_whole(&out);
        }
        Err(reject) => {
            assert!(out.is_empty());
            assert!(!reject.message.contains(char::is_control), "{reject}");
        }
    }
}

/// A COPY BINARY tuple: the number of fields, then each with its length.
fn assert_whole(tuple: &[u8]) {
    let (count, mut rest) = tuple.split_first_chunk().expect("a count");
    for _ in 0..i16::from_be_bytes(*count) {
        let (length, after) = rest.split_first_chunk().expect("a length");
        rest = &after[usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0)..];
    }
    assert!(rest.is_empty());
}
