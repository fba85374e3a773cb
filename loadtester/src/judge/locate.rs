//! Where the bad messages that are shown lie in Kafka, to the offset. The producers note the offset of every thousandth
//! message of a stream, so each is looked for in a short range: from the one noted before it to the one after.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::judge::verify::{Example, Sent};
use crate::server::kafka::{Kafka, Record, Reread};

/// For all examples together: a few dozen ranges of some thousand records take a second or two.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Records read for one example; a partition that many streams share has no more than this between two noted offsets.
const RECORDS_MAX: u32 = 200_000;

/// What is looked for, and between which offsets of its partition.
#[derive(Debug, PartialEq)]
struct Wanted {
    example: usize,
    from: i64,
    /// `None` where nothing was noted after it: then to the partition's end.
    before: Option<i64>,
}

/// Fills in the offsets of the examples and returns how many it could not find. `on_progress` gets how many were found, of
/// how many.
pub fn locate(
    kafka: &Kafka,
    sent: &Sent,
    examples: &mut [Example],
    mut on_progress: impl FnMut(usize, usize),
) -> Result<usize> {
    let wanted = wanted(sent, examples);
    let reread = Reread::new(kafka).context("read bad messages again to name their offsets")?;
    let until = Instant::now() + TIME_MAX;
    let mut found = 0;
    for range in &wanted {
        on_progress(found, wanted.len());
        let example = &mut examples[range.example];
        example.offset = find(&reread, range, sent, example, until)?;
        found += usize::from(example.offset.is_some());
        if Instant::now() > until {
            break;
        }
    }
    on_progress(found, wanted.len());
    Ok(wanted.len() - found)
}

fn wanted(sent: &Sent, examples: &[Example]) -> Vec<Wanted> {
    let range = |(at, example): (usize, &Example)| {
        let (seq, offsets) = (example.seq?, sent.offsets.get(example.place?)?);
        let after = offsets.partition_point(|(noted, _)| *noted <= seq);
        let from = offsets.get(after.checked_sub(1)?)?.1;
        Some(Wanted { example: at, from, before: offsets.get(after).map(|(_, offset)| *offset) })
    };
    examples.iter().enumerate().filter_map(range).collect()
}

fn find(
    reread: &Reread,
    range: &Wanted,
    sent: &Sent,
    example: &Example,
    until: Instant,
) -> Result<Option<i64>> {
    let (topic, partition) = (&example.topic, example.partition);
    let mut offset = None;
    let mut left = RECORDS_MAX;
    reread
        .range(topic, partition, range.from, range.before, until, |record| {
            left -= 1;
            if is(&record, sent, example) {
                offset = Some(record.offset);
            }
            offset.is_none() && left > 0
        })
        .with_context(|| format!("read {topic} partition {partition} again from offset {}", range.from))?;
    Ok(offset)
}

fn is(record: &Record<'_>, sent: &Sent, example: &Example) -> bool {
    let (Some(place), Some(seq)) = (example.place, example.seq) else { return false };
    let Ok(json) = serde_json::from_slice(record.value.unwrap_or_default()) else { return false };
    let model = sent.streams[place].model;
    sent.known.of_json(model, &json, &sent.index).contains(&(place, seq))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::draw::People;
    use crate::message::index::Index;
    use crate::message::keys::{KeySpread, Keys};
    use crate::message::known::Known;
    use crate::message::model::Scenario;
    use crate::message::stream::Stream;

    fn example(seq: Option<u64>) -> Example {
        Example {
            class: "lost",
            stream: "lt-00000007-000".to_owned(),
            place: Some(0),
            seq,
            topic: "metric".to_owned(),
            partition: 2,
            offset_at_least: None,
            offset: None,
            detail: String::new(),
        }
    }

    fn sent() -> Sent {
        let models = Scenario::collectors().mix(Some(&"metric".parse().unwrap())).unwrap().models();
        let streams = vec![Stream { id: 0, model: 0, partition: 2 }];
        let names = Arc::new(Vec::new());
        Sent {
            run: 7,
            seed: 1,
            topics: vec!["metric".into()],
            people: Arc::new(People {
                keys: Keys::new(3, KeySpread::Uniform),
                tokens: names.clone(),
                ids: names,
            }),
            known: Known::new(7, models.clone(), &streams, 1),
            conditions: vec!["true".into()],
            index: Index::default(),
            models,
            streams,
            accounts: Vec::new(),
            offsets: vec![vec![(1000, 2100), (2000, 4500)]],
        }
    }

    #[test]
    fn a_message_lies_between_two_noted_offsets() {
        let rows = [
            (Some(999), None),
            (Some(1000), Some((2100, Some(4500)))),
            (Some(1999), Some((2100, Some(4500)))),
            (Some(2000), Some((4500, None))),
            (None, None),
        ];
        for (seq, expected) in rows {
            let found = wanted(&sent(), &[example(seq)]);
            let found = found.first().map(|w| (w.from, w.before));
            assert_eq!(found, expected, "{seq:?}");
        }
        let elsewhere = Example { place: None, ..example(Some(1)) };
        assert_eq!(wanted(&sent(), &[elsewhere]), []);
    }

    #[test]
    fn a_message_is_known_by_its_identity() {
        let value = br#"{"source":"lt-00000007-000","path":"/ams1/rack1/42"}"#;
        let rows: [(&[u8], u64, bool); 4] =
            [(value, 42, true), (value, 4, false), (b"{}", 42, false), (b"no json", 42, false)];
        for (value, seq, expected) in rows {
            let record = Record { value: Some(value), offset: 1 };
            assert_eq!(is(&record, &sent(), &example(Some(seq))), expected);
        }
    }
}
