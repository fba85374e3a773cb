//! Which values have no message in them, where a model says that the message is not the value itself: an empty list, or an
//! envelope around null. The engine counts them as skipped, and no table has anything of them.

use std::collections::HashMap;
use std::sync::Arc;

use super::judge::Served;
use crate::decode::record::{Limits, Parsed, RecordDecoder};
use crate::model::plan::Plan;
use crate::promise::batch::{Headers, Record};

/// For each topic whose values are not simply messages, who knows how to read them.
pub(super) struct Blanks {
    decoders: HashMap<String, RecordDecoder>,
    /// No part of a record is held that has more bytes.
    pub(super) part_max: usize,
}

impl Blanks {
    pub(super) fn of(plan: &Plan, value_bytes_max: usize) -> Blanks {
        let limits = Limits { value_bytes_max, ..Limits::default() };
        let plan = Arc::new(plan.clone());
        let is_around = |topic: usize| {
            let envelope = &plan.topics[topic].envelope;
            envelope.payload.is_some() || envelope.records.is_some()
        };
        let decoder =
            |topic: usize| (plan.topics[topic].name.clone(), RecordDecoder::new(plan.clone(), topic, limits));
        let decoders = (0..plan.topics.len()).filter(|topic| is_around(*topic)).map(decoder).collect();
        Blanks { decoders, part_max: value_bytes_max }
    }

    pub(super) fn served<'v>(&mut self, topic: &str, record: &Record<'v>) -> Served<'v> {
        if let Some(cut) = record.headers.cut() {
            return Served::Cut { value: record.value, bytes: cut.bytes };
        }
        let Some(bytes) = record.value else { return Served::Null };
        let is_empty = self.decoders.get_mut(topic).is_some_and(|decoder| is_blank(decoder, bytes));
        if is_empty { Served::Empty(bytes) } else { Served::Value(bytes) }
    }
}

fn is_blank(decoder: &mut RecordDecoder, value: &[u8]) -> bool {
    let record = Record {
        topic: "",
        partition: 0,
        offset: 0,
        timestamp_ms: None,
        key: None,
        value: Some(value),
        headers: Headers::default(),
    };
    match decoder.parse(&record) {
        Ok(Parsed::Tombstone) => true,
        Ok(Parsed::List(mut list)) => matches!(decoder.next(&mut list), Ok(None)),
        _ => false,
    }
}
