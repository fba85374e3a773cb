//! One dead letter as it stands in its table, and how it is shown.

use anyhow::{Context, Result};
use postgres::Row;
use serde_json::{Value, json};

use crate::base::printable::printable;
use crate::client::pg::{Client, Parameters};
use crate::decode::reject::excerpt_bytes;
use crate::decode::value::base64;
use crate::promise::batch::{Headers, Record};

/// How much of a letter is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What is said of it.
    Head,
    /// As much of the record as a person reads, see [`SHOWN_BYTES`].
    Shown,
    /// The record too.
    Whole,
}

/// Of the key and of the value. A letter may hold as much as `message_max` allows, and may have been written before that had a bound.
const SHOWN_BYTES: usize = 64 << 10;

pub(super) struct Letter {
    pub(super) id: i64,
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) offset: i64,
    /// `schema.table`.
    pub(super) target: String,
    pub(super) reason: String,
    pub(super) message: String,
    created_at: String,
    settled_at: Option<String>,
    settled_as: Option<String>,
    settled_tables: Vec<String>,
    value_bytes: Option<i32>,
    whole_bytes: Option<i64>,
    record: Option<Bytes>,
}

/// What the record held.
struct Bytes {
    timestamp_ms: Option<i64>,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    /// In the arena's form.
    headers: Vec<u8>,
}

const HEAD: &str = "id, topic, partition, \"offset\", target, reason, message, created_at::TEXT, settled_at::TEXT, settled_as, \
                    settled_tables, octet_length(value), whole_bytes";

const WHOLE: &str =
    "(extract(epoch FROM kafka_timestamp) * 1000)::BIGINT, key, value, header_names, header_values";

/// The columns that are read.
fn columns(part: Part) -> String {
    match part {
        Part::Head => HEAD.to_owned(),
        Part::Whole => format!("{HEAD}, {WHOLE}"),
        // One byte more shows that there is more.
        Part::Shown => {
            let beginning = |column: &str| format!("substr({column}, 1, {})", SHOWN_BYTES + 1);
            let whole = WHOLE.replace("key, value", &format!("{}, {}", beginning("key"), beginning("value")));
            format!("{HEAD}, {whole}")
        }
    }
}

/// Reads up to `limit` letters.
pub(super) fn read(
    client: &mut Client,
    condition: &str,
    order: &str,
    parameters: Parameters<'_>,
    limit: i64,
    part: Part,
) -> Result<Vec<Letter>> {
    let columns = columns(part);
    let sql =
        format!("SELECT {columns} FROM rowmill.dead_letter WHERE {condition} ORDER BY {order} LIMIT {limit}");
    let rows = client.query_typed(&sql, parameters).context("cannot read the dead letters")?;
    Ok(rows.iter().map(|row| letter(row, part)).collect())
}

fn letter(row: &Row, part: Part) -> Letter {
    Letter {
        id: row.get(0),
        topic: row.get(1),
        partition: row.get(2),
        offset: row.get(3),
        target: row.get(4),
        reason: row.get(5),
        message: row.get(6),
        created_at: row.get(7),
        settled_at: row.get(8),
        settled_as: row.get(9),
        settled_tables: row.get(10),
        value_bytes: row.get(11),
        whole_bytes: row.get(12),
        record: (part != Part::Head).then(|| bytes(row)),
    }
}

fn bytes(row: &Row) -> Bytes {
    let (names, values): (Vec<Vec<u8>>, Vec<Option<Vec<u8>>>) = (row.get(16), row.get(17));
    let mut headers = Vec::new();
    for (name, value) in names.iter().zip(&values) {
        Headers::append(&mut headers, name, value.as_deref());
    }
    Bytes { timestamp_ms: row.get(13), key: row.get(14), value: row.get(15), headers }
}

impl Letter {
    /// The record as it was polled; only of a letter that was read whole.
    pub(super) fn record(&self) -> Record<'_> {
        let bytes = self.record.as_ref().expect("read whole");
        Record {
            topic: &self.topic,
            partition: self.partition,
            offset: self.offset,
            timestamp_ms: bytes.timestamp_ms,
            key: bytes.key.as_deref(),
            value: bytes.value.as_deref(),
            headers: Headers(&bytes.headers),
        }
    }

    /// How many bytes the record has, where only a beginning of it is kept.
    pub(super) fn whole_bytes(&self) -> Option<i64> {
        self.whole_bytes
    }

    /// `topic/partition@offset`.
    pub(super) fn place(&self) -> String {
        format!("{}/{}@{}", self.topic, self.partition, self.offset)
    }

    /// What `list` prints.
    pub(super) fn line(&self) -> String {
        let settled = self.settled_as.as_ref().map(|how| format!("  [{how}]")).unwrap_or_default();
        format!(
            "{:>8}  {:.19}  {} -> {}  {}: {}{settled}",
            self.id,
            self.created_at,
            self.place(),
            self.target,
            self.reason,
            self.message
        )
    }

    /// What `show` prints, line by line: values as text where they are text, else the beginning of their bytes.
    pub(super) fn page(&self) -> Vec<String> {
        let mut page = vec![
            format!("letter {}", self.id),
            format!("  record   {}", self.place()),
            format!("  table    {}", self.target),
            format!("  reason   {}: {}", self.reason, self.message),
            format!("  set aside {}", self.created_at),
        ];
        if let (Some(at), Some(how)) = (&self.settled_at, &self.settled_as) {
            page.push(format!("  {how} {at} {}", self.settled_tables.join(", ")));
        }
        let record = self.record();
        if let Some(ms) = record.timestamp_ms {
            let at =
                jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| at.to_string());
            page.push(format!("  stamped  {at}"));
        }
        page.push(format!("  key      {}", shown(record.key)));
        let header = |(name, value)| format!("  header   {} = {}", shown(Some(name)), shown(value));
        page.extend(record.headers.iter().map(header));
        page.push(format!("  value    {}", shown(record.value)));
        page
    }

    pub(super) fn json(&self) -> Value {
        let mut json = json!({
            "id": self.id, "topic": self.topic, "partition": self.partition, "offset": self.offset,
            "table": self.target, "reason": self.reason, "message": self.message, "created_at": self.created_at,
            "value_bytes": self.value_bytes, "whole_bytes": self.whole_bytes, "settled_at": self.settled_at, "settled_as": self.settled_as,
            "settled_tables": self.settled_tables,
        });
        if self.record.is_some() {
            let record = self.record();
            json["timestamp_ms"] = record.timestamp_ms.into();
            json["key"] = in_json(record.key);
            json["headers"] = record
                .headers
                .iter()
                .map(|(name, value)| json!([in_json(Some(name)), in_json(value)]))
                .collect();
            json["value"] = in_json(record.value);
        }
        json
    }
}

/// Bytes for a person: as they are where they are text, escaped where they are not safe on a terminal.
fn shown(bytes: Option<&[u8]>) -> String {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => "none".to_owned(),
        Some((bytes, _)) if bytes.len() > SHOWN_BYTES => {
            let beginning = String::from_utf8_lossy(&bytes[..SHOWN_BYTES]);
            format!("{}… (the first {SHOWN_BYTES} bytes; --json has all of it)", printable(&beginning))
        }
        Some((_, Ok(text))) => printable(text),
        Some((bytes, Err(_))) => {
            format!("{} bytes that are not UTF-8: {}", bytes.len(), excerpt_bytes(bytes))
        }
    }
}

/// Bytes for a program, whole: `{"text": ..}` where they are UTF-8, else `{"base64": ..}`.
fn in_json(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (bytes, std::str::from_utf8(bytes))) {
        None => Value::Null,
        Some((_, Ok(text))) => json!({ "text": text }),
        Some((bytes, Err(_))) => json!({ "base64": base64::text(bytes) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_without_harm_and_told_without_loss() {
        assert_eq!(shown(None), "none");
        assert_eq!(shown(Some(b"a\x1b[2Jb\n")), "a\\u{1b}[2Jb\\n");
        assert!(shown(Some(b"\xff\x00")).starts_with("2 bytes that are not UTF-8"));
        assert_eq!(in_json(None), Value::Null);
        assert_eq!(in_json(Some(b"a\n")), json!({ "text": "a\n" }));
        assert_eq!(in_json(Some(b"\xff\x00")), json!({ "base64": "/wA=" }));
    }
}
