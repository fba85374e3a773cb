//! Any bytes as a compressed batch of Kafka's: no panic, and little memory, whatever they unpack to. What librdkafka is given has a
//! bound; what it is not given is taken apart piece by piece.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rowmill::kafka::unpack::{Codec, HEADER_BYTES, Step, Unpacker, open};

/// No part of a record that is held has more bytes.
const PART_MAX: usize = 2000;

/// Steps that a batch may take: the fuzzer's own patience.
const STEPS_MAX: usize = 10_000;

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (codec, count, payload) = input;
    let codec = Codec::ALL[usize::from(codec) % Codec::ALL.len()];
    let mut header = [0; HEADER_BYTES];
    header[8..12].copy_from_slice(&((HEADER_BYTES - 12 + payload.len()) as i32).to_be_bytes());
    header[16] = 2;
    header[21..23].copy_from_slice(&(codec as i16).to_be_bytes());
    header[23..27].copy_from_slice(&i32::from(count).to_be_bytes());
    header[57..61].copy_from_slice(&i32::from(count).to_be_bytes());
    let Ok(given) = open(&header, payload, codec) else { return };
    assert!(given.len() <= 32 * payload.len() + 200);
    // A sealed batch is one record; its value stands behind a few numbers.
    for at in 0..given.len().min(40) {
        let Some(Ok(mut unpacker)) = Unpacker::of(given.get(at..given.len() - 1), PART_MAX) else { continue };
        for _ in 0..STEPS_MAX {
            match unpacker.step() {
                Ok(Step::Record(record)) => {
                    let held = [record.key, record.value].into_iter().flatten().map(<[u8]>::len).max();
                    assert!(held.unwrap_or(0) <= PART_MAX);
                }
                Ok(Step::Working) => {}
                Ok(Step::End) | Err(_) => return,
            }
        }
    }
});
