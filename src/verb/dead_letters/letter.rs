//! One dead letter as it stands in its table, and how it is shown.

use anyhow::{Context, Result};
use postgres::Row;
use serde_json::{Value, json};

use crate::client::pg::{Client, Parameters};
use crate::decode::reject::{excerpt_bytes, printable};
use crate::decode::value::base64;
use crate::promise::batch::{Headers, Record};

/// How much of a letter is read.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// What is said of it.
    Head,
    /// The record too.
    Whole,
}

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
                    settled_tables, octet_length(value)";

const WHOLE: &str =
    "(extract(epoch FROM kafka_timestamp) * 1000)::BIGINT, key, value, header_names, header_values";

/// Reads up to `limit` letters.
pub(super) fn read(
    client: &mut Client,
    condition: &str,
    order: &str,
    parameters: Parameters<'_>,
    limit: i64,
    part: Part,
) -> Result<Vec<Letter>> {
    let columns = if part == Part::Whole { format!("{HEAD}, {WHOLE}") } else { HEAD.to_owned() };
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
        record: (part == Part::Whole).then(|| bytes(row)),
    }
}

fn bytes(row: &Row) -> Bytes {
    let (names, values): (Vec<Vec<u8>>, Vec<Option<Vec<u8>>>) = (row.get(15), row.get(16));
    let mut headers = Vec::new();
    for (name, value) in names.iter().zip(&values) {
        Headers::append(&mut headers, name, value.as_deref());
    }
    Bytes { timestamp_ms: row.get(12), key: row.get(13), value: row.get(14), headers }
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
            printable(&self.message)
        )
    }

    /// What `show` prints: values as text where they are text, else the beginning of their bytes.
    pub(super) fn page(&self) -> String {
        let mut page = format!(
            "letter {}\n  record   {}\n  table    {}\n  reason   {}: {}\n  set aside {}\n",
            self.id,
            self.place(),
            self.target,
            self.reason,
            printable(&self.message),
            self.created_at
        );
        if let (Some(at), Some(how)) = (&self.settled_at, &self.settled_as) {
            page.push_str(&format!("  {how} {at} {}\n", self.settled_tables.join(", ")));
        }
        let record = self.record();
        if let Some(ms) = record.timestamp_ms {
            let at =
                jiff::Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |at| at.to_string());
            page.push_str(&format!("  stamped  {at}\n"));
        }
        page.push_str(&format!("  key      {}\n", shown(record.key)));
        for (name, value) in record.headers.iter() {
            page.push_str(&format!("  header   {} = {}\n", shown(Some(name)), shown(value)));
        }
        page.push_str(&format!("  value    {}", shown(record.value)));
        page
    }

    pub(super) fn json(&self) -> Value {
        let mut json = json!({
            "id": self.id, "topic": self.topic, "partition": self.partition, "offset": self.offset,
            "table": self.target, "reason": self.reason, "message": self.message, "created_at": self.created_at,
            "value_bytes": self.value_bytes, "settled_at": self.settled_at, "settled_as": self.settled_as,
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
