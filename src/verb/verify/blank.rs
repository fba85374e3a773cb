//! Which values have no message in them, where a model says that the message is not the value itself: an empty list, or an
//! envelope around null. The engine counts them as skipped, and no table has anything of them.

use std::collections::HashMap;
use std::sync::Arc;

use super::judge::Served;
use crate::decode::record::{Limits, Parsed, RecordDecoder};
use crate::model::plan::Plan;
use crate::promise::batch::{Headers, Record};

/// For each topic whose values are not simply messages, who knows how to read them.
pub(super) struct Blanks(HashMap<String, RecordDecoder>);

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
        Blanks((0..plan.topics.len()).filter(|topic| is_around(*topic)).map(decoder).collect())
    }

    pub(super) fn served<'v>(&mut self, topic: &str, value: Option<&'v [u8]>) -> Served<'v> {
        let Some(bytes) = value else { return Served::Null };
        let is_empty = self.0.get_mut(topic).is_some_and(|decoder| is_blank(decoder, bytes));
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
