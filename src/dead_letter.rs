//! The dead-letter table's only SQL: records that are no rows, written in the same transaction as their neighbors.

use anyhow::{Context, Result, bail};
use postgres::Client;

use crate::batch::Record;

/// The COPY that [`append`] writes tuples for.
pub const COPY_SQL: &str = "COPY rowmill.dead_letter (pipeline, topic, partition, \"offset\", target, reason, message, key, \
                            value, header_names, header_values, kafka_timestamp) FROM STDIN (FORMAT binary)";

/// Refuses a table that cannot say what became of a dead letter afterwards.
pub fn check_columns(client: &mut Client) -> Result<()> {
    let found = client
        .query_typed(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('rowmill.dead_letter')
                            AND attname = 'settled_tables' AND NOT attisdropped)",
            &[],
        )
        .context("cannot look for the columns of rowmill.dead_letter")?;
    if !found[0].get::<_, bool>(0) {
        bail!(
            "rowmill.dead_letter lacks the columns that say what became of a letter: run `rowmill init`, which adds them"
        );
    }
    Ok(())
}

/// Fields of [`COPY_SQL`].
const FIELDS: i16 = 12;

/// Type oid of bytea, which a binary array names: pg_type.dat.
const BYTEA_OID: i32 = 17;

/// Milliseconds from 1970 to 2000, where PostgreSQL's timestamps begin.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;

/// The range of `timestamptz` in milliseconds since 1970, 4713 BC to 294276 AD; a producer may write anything.
const TIMESTAMP_MS: std::ops::Range<i64> = -210_866_803_200_000..9_224_318_016_000_000;

/// What is said of a record beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    pub pipeline: &'a str,
    pub target: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
}

/// Appends one COPY BINARY tuple.
pub fn append(out: &mut Vec<u8>, about: &About<'_>, record: &Record<'_>) {
    out.extend_from_slice(&FIELDS.to_be_bytes());
    text(out, about.pipeline);
    text(out, record.topic);
    field(out, &record.partition.to_be_bytes());
    field(out, &record.offset.to_be_bytes());
    text(out, about.target);
    text(out, about.reason);
    text(out, about.message);
    optional(out, record.key);
    optional(out, record.value);
    bytea_array(out, record.headers.iter().map(|(name, _)| Some(name)));
    bytea_array(out, record.headers.iter().map(|(_, value)| value));
    match record.timestamp_ms.filter(|ms| TIMESTAMP_MS.contains(ms)) {
        Some(ms) => field(out, &((ms - POSTGRES_EPOCH_MS) * 1000).to_be_bytes()),
        None => optional(out, None),
    }
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
    out.extend_from_slice(bytes);
}

fn optional(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        Some(bytes) => field(out, bytes),
        None => out.extend_from_slice(&(-1i32).to_be_bytes()),
    }
}

/// A text field of our own words: NUL is the one character that PostgreSQL cannot store.
fn text(out: &mut Vec<u8>, words: &str) {
    if words.contains('\0') {
        field(out, words.replace('\0', "\u{FFFD}").as_bytes());
    } else {
        field(out, words.as_bytes());
    }
}

/// A one-dimensional bytea[]: dimensions, has-null flag, element type, length, lower bound, elements.
fn bytea_array<'a>(out: &mut Vec<u8>, elements: impl Iterator<Item = Option<&'a [u8]>> + Clone) {
    let count = elements.clone().count() as i32;
    let place = out.len();
    out.extend_from_slice(&0i32.to_be_bytes());
    out.extend_from_slice(&i32::from(count > 0).to_be_bytes());
    out.extend_from_slice(&i32::from(elements.clone().any(|e| e.is_none())).to_be_bytes());
    out.extend_from_slice(&BYTEA_OID.to_be_bytes());
    if count > 0 {
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&1i32.to_be_bytes());
        elements.for_each(|element| optional(out, element));
    }
    let length = (out.len() - place - 4) as i32;
    out[place..place + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Headers;

    #[test]
    fn an_empty_record_is_all_nulls() {
        let record = Record {
            topic: "t",
            partition: 1,
            offset: 2,
            timestamp_ms: None,
            key: None,
            value: None,
            headers: Headers::default(),
        };
        let mut out = Vec::new();
        append(&mut out, &About { pipeline: "p", target: "x", reason: "r", message: "a\0b" }, &record);
        assert_eq!(&out[..2], &FIELDS.to_be_bytes());
        assert!(out.ends_with(&(-1i32).to_be_bytes()), "no timestamp");
        assert!(out.windows(5).any(|w| w == "a\u{FFFD}b".as_bytes()));
    }
}
