//! Every input of the corpus, decoded alone for each of the five tables, without a server. tests/pipeline/corpus.rs sends
//! the same ones through the whole engine.

use rowmill::decode::column::Encoded;
use rowmill::decode::record::RecordDecoder;
use rowmill::decode::reject::Reject;
use rowmill::promise::batch::Shape;

#[path = "corpus/load.rs"]
mod load;

/// Why the decoder refuses a record, if it does. Whatever it says must be safe to print.
fn decode(decoder: &mut RecordDecoder, value: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), Reject> {
    let record = load::record(value);
    let message = decoder.parse(&record)?.message().expect("the models do not skip tombstones");
    let model = decoder.models().next().expect("the models take every record");
    assert_eq!(decoder.encode(model, message, &load::Users, out)?, Encoded::Row(Shape::WHOLE));
    Ok(())
}

#[test]
fn every_input_alone() {
    let cases = load::cases();
    let mut wrong = Vec::new();
    for (number, topic) in load::TOPICS.iter().enumerate() {
        let mut decoder = load::decoder(number);
        for case in &cases {
            let mut out = Vec::new();
            let found = decode(&mut decoder, case.value.as_deref(), &mut out);
            let reason = found.as_ref().err().map(|reject| reject.reason.code());
            // What only the server refuses is a row until then.
            let expected = case.reason(topic).filter(|reason| !reason.starts_with("sqlstate_"));
            if reason != expected {
                let (found, expected) = (reason.unwrap_or("row"), expected.unwrap_or("row"));
                wrong.push(format!("{} in {topic}: expected {expected}, found {found}", case.name));
            }
            assert_eq!(out.is_empty(), found.is_err(), "{} in {topic}", case.name);
            if let Err(reject) = found {
                let words = &reject.message;
                assert!(!words.contains(char::is_control) && words.len() < 500, "{}: {words:?}", case.name);
            }
        }
    }
    assert!(wrong.is_empty(), "{} of the corpus are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn the_good_neighbor_is_good() {
    for (number, topic) in load::TOPICS.iter().enumerate() {
        let found = decode(&mut load::decoder(number), Some(load::good(number).as_bytes()), &mut Vec::new());
        assert_eq!(found, Ok(()), "{topic}");
    }
}
