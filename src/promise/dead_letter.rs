//! The dead-letter table's only SQL: records that are no rows, written in the same transaction as their neighbors.

use std::io::Write as _;

use anyhow::{Context, bail};
use postgres::Client;

use crate::base::failure::Failure;
use crate::base::fault::{Point, fault};
use crate::client::binary::{HEADER, TRAILER, begin, field, finish, micros_of_millis, optional};
use crate::client::pg;
use crate::promise::batch::{Record, TableBatch};

/// The COPY that [`append`] writes tuples for.
const COPY_SQL: &str = "COPY rowmill.dead_letter (pipeline, topic, partition, \"offset\", target, reason, message, key, \
                            value, header_names, header_values, kafka_timestamp, whole_bytes) FROM STDIN (FORMAT binary)";

/// Refuses a table that cannot say how much of a record a dead letter holds, or what became of it afterwards.
pub fn check_columns(client: &mut pg::Client) -> anyhow::Result<()> {
    let found = client
        .query_typed(
            "SELECT count(*) FROM pg_catalog.pg_attribute WHERE attrelid = to_regclass('rowmill.dead_letter')
                AND attname IN ('settled_tables', 'whole_bytes') AND NOT attisdropped",
            &[],
        )
        .context("cannot look for the columns of rowmill.dead_letter")?;
    if found[0].get::<_, i64>(0) != 2 {
        bail!(
            "rowmill.dead_letter lacks columns that this program needs: run `rowmill init`, which adds them"
        );
    }
    Ok(())
}

/// Bytes handed to the connection at once.
const WRITE_BYTES: usize = 64 << 10;

/// Fields of [`COPY_SQL`].
const FIELDS: i16 = 13;

/// Type oid of bytea, which a binary array names: pg_type.dat.
const BYTEA_OID: i32 = 17;

/// What is said of a record beside its bytes.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    pub pipeline: &'a str,
    pub target: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
}

/// The letters of some batches of one table.
pub fn of<'a>(
    load: &'a [TableBatch],
    pipeline: &'a str,
    target: &'a str,
) -> impl Iterator<Item = (About<'a>, Record<'a>)> {
    load.iter().flat_map(|batch| batch.dead.iter().map(move |dead| (batch, dead))).map(
        move |(batch, dead)| {
            let segment = &batch.segments[dead.segment];
            let raw = segment.raw.as_ref().expect("a segment with dead letters keeps its records");
            let about = About { pipeline, target, reason: &dead.reason, message: &dead.message };
            (about, raw.record(&segment.span.claim, dead.record as usize))
        },
    )
}

/// Writes letters within the transaction of the session; how many the server says it stored.
///
/// # Errors
/// The server's, none of which is a record's fault: nothing that a record holds can be wrong for this table.
pub fn copy<'a>(
    client: &mut Client,
    letters: impl Iterator<Item = (About<'a>, Record<'a>)>,
) -> Result<u64, Failure> {
    let mut copy = client.copy_in(COPY_SQL)?;
    let mut send = |bytes: &[u8]| {
        // The connection copies what it is given: in pieces, a letter of any size is held once, where its record is.
        bytes.chunks(WRITE_BYTES).try_for_each(|piece| copy.write_all(piece)).map_err(pg::copy_failed)
    };
    send(&HEADER)?;
    let mut bytes = Vec::new();
    for (about, record) in letters {
        bytes.clear();
        let value = begin_tuple(&about, &record, &mut bytes);
        send(&bytes)?;
        send(value)?;
        bytes.clear();
        end_tuple(&record, &mut bytes);
        send(&bytes)?;
    }
    send(&TRAILER)?;
    fault(Point::DeadLetterCopy);
    Ok(copy.finish()?)
}

/// Appends what comes before the record's value in its COPY BINARY tuple, and gives the value's bytes, which come next.
fn begin_tuple<'r>(about: &About<'_>, record: &Record<'r>, out: &mut Vec<u8>) -> &'r [u8] {
    out.extend_from_slice(&FIELDS.to_be_bytes());
    text(about.pipeline, out);
    text(record.topic, out);
    field(&record.partition.to_be_bytes(), out);
    field(&record.offset.to_be_bytes(), out);
    text(about.target, out);
    text(about.reason, out);
    text(about.message, out);
    optional(record.key, out);
    out.extend_from_slice(&record.value.map_or(-1, |value| value.len() as i32).to_be_bytes());
    record.value.unwrap_or_default()
}

/// Appends what comes behind it.
fn end_tuple(record: &Record<'_>, out: &mut Vec<u8>) {
    bytea_array(record.headers.iter().map(|(name, _)| Some(name)), out);
    bytea_array(record.headers.iter().map(|(_, value)| value), out);
    // A producer may write any timestamp; one that PostgreSQL has not is none.
    let micros = record.timestamp_ms.and_then(micros_of_millis);
    optional(micros.map(i64::to_be_bytes).as_ref().map(|bytes| bytes.as_slice()), out);
    let whole = record.headers.cut().map(|cut| cut.bytes.to_be_bytes());
    optional(whole.as_ref().map(|bytes| bytes.as_slice()), out);
}

/// A text field of our own words: NUL is the one character that PostgreSQL cannot store.
fn text(words: &str, out: &mut Vec<u8>) {
    if words.contains('\0') {
        field(words.replace('\0', "\u{FFFD}").as_bytes(), out);
    } else {
        field(words.as_bytes(), out);
    }
}

/// A one-dimensional bytea[]: dimensions, has-null flag, element type, length, lower bound, elements.
fn bytea_array<'a>(elements: impl Iterator<Item = Option<&'a [u8]>> + Clone, out: &mut Vec<u8>) {
    let count = elements.clone().count() as i32;
    let start = begin(out);
    out.extend_from_slice(&i32::from(count > 0).to_be_bytes());
    out.extend_from_slice(&i32::from(elements.clone().any(|e| e.is_none())).to_be_bytes());
    out.extend_from_slice(&BYTEA_OID.to_be_bytes());
    if count > 0 {
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(&1i32.to_be_bytes());
        elements.for_each(|element| optional(element, out));
    }
    finish(start, out);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::promise::batch::{Cut, Headers};

    fn tuple(about: &About<'_>, record: &Record<'_>) -> Vec<Option<Vec<u8>>> {
        let mut out = Vec::new();
        let value = begin_tuple(about, record, &mut out);
        out.extend_from_slice(value);
        end_tuple(record, &mut out);
        let (count, mut rest) = out.split_at(2);
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let (length, tail) = rest.split_at(4);
            let length = i32::from_be_bytes(length.try_into().expect("four bytes"));
            let (bytes, tail) = tail.split_at(length.max(0) as usize);
            fields.push((length >= 0).then(|| bytes.to_vec()));
            rest = tail;
        }
        assert_eq!(count, (fields.len() as i16).to_be_bytes(), "the count of fields is theirs");
        fields
    }

    #[test]
    fn each_field_of_a_letter_lies_in_its_column() {
        let mut headers = Vec::new();
        Headers::append(&mut headers, b"h", Some(b"v"));
        Headers::append(&mut headers, b"n", None);
        let record = Record {
            topic: "t",
            partition: 1,
            offset: 2,
            timestamp_ms: Some(946_684_800_001),
            key: Some(b"k"),
            value: Some(b"\0{"),
            headers: Headers(&headers),
        };
        let about = About { pipeline: "p", target: "x", reason: "r", message: "a\0b" };
        // Dimensions, has nulls, element type; size and lower bound; the elements.
        let names = *b"\0\0\0\x01\0\0\0\0\0\0\0\x11\0\0\0\x02\0\0\0\x01\0\0\0\x01h\0\0\0\x01n";
        let values = *b"\0\0\0\x01\0\0\0\x01\0\0\0\x11\0\0\0\x02\0\0\0\x01\0\0\0\x01v\xff\xff\xff\xff";
        let expected: [&[u8]; FIELDS as usize - 1] = [
            b"p",
            b"t",
            &1i32.to_be_bytes(),
            &2i64.to_be_bytes(),
            b"x",
            b"r",
            "a\u{FFFD}b".as_bytes(),
            b"k",
            b"\0{",
            &names,
            &values,
            &1000i64.to_be_bytes(),
        ];
        let mut expected: Vec<Option<Vec<u8>>> = expected.map(|field| Some(field.to_vec())).into();
        expected.push(None);
        assert_eq!(tuple(&about, &record), expected);
        let cut = Headers::of_cut(Cut { bytes: 5_000_000_000, value_bytes: 4_999_999_999, hash: 1 });
        let fields = tuple(&about, &Record { headers: Headers(&cut), ..record });
        assert_eq!(fields[12].as_deref(), Some(&5_000_000_000i64.to_be_bytes()[..]));
        assert_eq!(fields[9].as_deref(), Some(&b"\0\0\0\0\0\0\0\0\0\0\0\x11"[..]), "no header");
    }

    #[test]
    fn what_a_record_has_not_is_null() {
        let empty = Record {
            topic: "t",
            partition: 1,
            offset: 2,
            // Beyond what PostgreSQL can say.
            timestamp_ms: Some(i64::MAX),
            key: None,
            value: None,
            headers: Headers::default(),
        };
        let fields = tuple(&About { pipeline: "", target: "", reason: "", message: "" }, &empty);
        let nulls: Vec<bool> = fields.iter().map(Option::is_none).collect();
        assert_eq!(nulls[7..], [true, true, false, false, true, true]);
        let no_elements = *b"\0\0\0\0\0\0\0\0\0\0\0\x11";
        assert_eq!(fields[9].as_deref(), Some(&no_elements[..]));
    }
}
