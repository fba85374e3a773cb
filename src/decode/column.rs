//! One column's value: taken from a slot, a lookup or the record around the message, and written as its type wants it.

use serde_json::value::RawValue;

use super::fields::Slot;
use crate::client::binary;
use crate::decode::reject::Reason;
use crate::decode::value::read::{Json, PLAIN, Reading, Value};
use crate::decode::value::wrong::Wrong;
use crate::decode::value::{base64, take};
use crate::model::plan::{Path, PlanColumn, Source};
use crate::model::retention::{Age, Retention};
use crate::model::types::Type;
use crate::model::{Kafka, OnUnknown};
use crate::promise::batch::{Headers, Record, Shape};

/// What [`encode`](super::record::RecordDecoder::encode) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    Row(Shape),
    /// Nothing: the table does not keep rows that old.
    Expired,
    /// A tuple of the key alone, all else NULL: the row that has it is to be deleted.
    Deletion,
    /// A token is not in the cache; nothing was written. Ask for the record's tokens, and encode again.
    NeedsLookup,
}

/// What a step did for its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    Value,
    /// Nothing was written: the server gives the default to the optional column of this number.
    LeftOut(u8),
    /// See [`Encoded::NeedsLookup`].
    NeedsLookup,
    /// See [`Encoded::Expired`].
    Expired,
}

/// What is known about tokens without asking anyone.
pub trait Lookups {
    fn find(&self, lookup: usize, token: &str) -> Found<'_>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Value(&'a str),
    /// Asked for, and it does not exist.
    Unknown,
    NotCached,
}

/// See [`Step::after`].
struct After {
    /// The length of the bucket that a time is floored to, in microseconds.
    floor: Option<i64>,
    /// The value decides whether the row has a partition.
    retention: Option<Retention>,
}

/// How one column of the tuple is written.
pub(super) struct Step {
    ty: Type,
    not_null: bool,
    /// See [`PlanColumn::optional`].
    optional: Option<u8>,
    /// What is done with a value that was written. Boxed, since hardly any column has it.
    after: Option<Box<After>>,
    pub(super) fill: Fill,
}

pub(super) enum Fill {
    /// Boxed, so that a step is small: nearly every column reads as its type alone says.
    Field {
        slot: usize,
        reading: Box<Reading>,
    },
    Lookup {
        slot: usize,
        lookup: usize,
        unknown: OnUnknown,
    },
    Clock,
    Message {
        depth_max: usize,
    },
    Kafka(Kafka),
    Header(Box<str>),
    One,
    Null,
}

/// What a step may read.
pub(super) struct Input<'a, 'r> {
    /// What the slots cut.
    pub(super) text: &'a str,
    /// The message, all or part of it.
    pub(super) body: &'a str,
    /// Its number in the record's list.
    pub(super) element: Option<u16>,
    pub(super) record: &'a Record<'r>,
    pub(super) slots: &'a [Slot],
    /// Microseconds since 1970, by which rows are too old.
    pub(super) now: i64,
}

impl Step {
    /// `slot` knows where the field of a path is found.
    pub(super) fn new(
        column: &PlanColumn,
        source: &Source,
        floor: Option<i64>,
        retention: Option<&Retention>,
        depth_max: usize,
        slot: impl Fn(&Path) -> usize,
    ) -> Self {
        Self {
            ty: column.ty.clone(),
            not_null: column.not_null,
            optional: column.optional,
            after: After::new(source, floor, retention),
            fill: match source {
                Source::Field { path, notation } => Fill::Field {
                    slot: slot(path),
                    reading: Box::new(Reading::new(notation.clone(), depth_max)),
                },
                Source::Lookup { path, lookup, unknown, .. } => {
                    Fill::Lookup { slot: slot(path), lookup: *lookup, unknown: *unknown }
                }
                Source::Clock => Fill::Clock,
                Source::Message => Fill::Message { depth_max },
                Source::Kafka(part) => Fill::Kafka(*part),
                Source::Header(name) => Fill::Header(name.as_str().into()),
                Source::One => Fill::One,
                Source::Null => Fill::Null,
            },
        }
    }

    /// A part of the loop over the columns: by itself it costs a record 14 ns of 240 (`cargo bench --bench decode`).
    #[inline(always)]
    pub(super) fn write(
        &self,
        input: &Input<'_, '_>,
        lookups: &impl Lookups,
        scratch: &mut String,
        out: &mut Vec<u8>,
    ) -> Result<Written, Wrong> {
        let start = out.len();
        let written = self.write_exactly(input, lookups, scratch, out)?;
        match &self.after {
            Some(after) if written == Written::Value => after.apply(&mut out[start..], input.now),
            _ => Ok(written),
        }
    }

    #[inline(always)]
    fn write_exactly(
        &self,
        input: &Input<'_, '_>,
        lookups: &impl Lookups,
        scratch: &mut String,
        out: &mut Vec<u8>,
    ) -> Result<Written, Wrong> {
        match self.fill {
            Fill::Field { slot, ref reading } => match input.slots[slot].of(input.text) {
                None => return self.absent(out),
                Some(json) if json.is_null() => self.null("the field is null", out)?,
                Some(json) if reading.notation.empty_is_null && json.is_empty_text() => {
                    self.null("the field is an empty text, which stands for null", out)?;
                }
                Some(json) => take::from_json(&self.ty, reading, json, scratch, out)?,
            },
            Fill::Lookup { slot, lookup, unknown } => {
                let token = match input.slots[slot].of(input.text) {
                    None => return self.absent(out),
                    Some(json) if json.is_null() => {
                        return self.null("the field is null", out).map(|()| Written::Value);
                    }
                    Some(json) => token(json, scratch)?,
                };
                match lookups.find(lookup, token) {
                    Found::Value(text) => self.outside_text(text, out)?,
                    Found::NotCached => return Ok(Written::NeedsLookup),
                    Found::Unknown if unknown == OnUnknown::Null => binary::null(out),
                    Found::Unknown => {
                        return Err(Wrong::new(Reason::UnknownToken, "the lookup does not know the token"));
                    }
                }
            }
            Fill::Clock => take::micros(0, out),
            Fill::Message { depth_max } => match &self.ty {
                Type::Json => take::json(input.body, depth_max, out)?,
                Type::Jsonb => take::jsonb(input.body, depth_max, out)?,
                ty => take::from_value(ty, &PLAIN, Value::String(input.body), out)?,
            },
            Fill::Kafka(part) => self.kafka(part, input, out)?,
            Fill::Header(ref name) => match header(input.record, name) {
                None => return self.without("the record has no such header", out),
                Some(None) => self.null("the header has no value", out)?,
                Some(Some(value)) => self.outside_bytes(value, "header", out)?,
            },
            Fill::One => take::int(&self.ty, 1, out),
            Fill::Null => {
                return Ok(self.left_out().unwrap_or_else(|| {
                    binary::null(out);
                    Written::Value
                }));
            }
        }
        Ok(Written::Value)
    }

    fn kafka(&self, part: Kafka, input: &Input<'_, '_>, out: &mut Vec<u8>) -> Result<(), Wrong> {
        let record = input.record;
        match part {
            Kafka::Element => {
                let number = input.element.expect("compiling a model sees to it that there is a list");
                take::int(&self.ty, number.into(), out);
            }
            Kafka::Key => match record.key {
                None => self.null("the record has no key", out)?,
                Some(key) => self.outside_bytes(key, "key", out)?,
            },
            Kafka::Offset => take::int(&self.ty, record.offset, out),
            Kafka::Partition => take::int(&self.ty, record.partition.into(), out),
            Kafka::Timestamp => match (record.timestamp_ms, &self.ty) {
                (None, _) => self.null("the record has no timestamp", out)?,
                (Some(ms), Type::Int8) => take::int(&self.ty, ms, out),
                (Some(ms), _) => {
                    let micros = binary::micros_of_millis(ms)
                        .ok_or_else(|| Wrong::new(Reason::OutOfRange, "PostgreSQL has no such time"))?;
                    take::micros(micros, out);
                }
            },
            Kafka::Headers => {
                let json = headers_json(record.headers);
                take::from_json(&self.ty, &PLAIN, Json::of(&json), &mut String::new(), out)?;
            }
            Kafka::Topic => self.outside_text(record.topic, out)?,
        }
        Ok(())
    }

    /// What stands beside the message, a `what`.
    fn outside_bytes(&self, bytes: &[u8], what: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        if self.ty == Type::Bytea {
            return take::bytes(bytes, out);
        }
        let text = std::str::from_utf8(bytes)
            .map_err(|_| Wrong::new(Reason::InvalidUtf8, format!("the {what} is not UTF-8")))?;
        if !matches!(self.ty, Type::Json | Type::Jsonb) {
            return self.outside_text(text, out);
        }
        let raw: &RawValue = serde_json::from_str(text)
            .map_err(|error| Wrong::new(Reason::InvalidJson, format!("the {what} is not JSON: {error}")))?;
        take::from_json(&self.ty, &PLAIN, Json::of(raw.get()), &mut String::new(), out)
    }

    fn outside_text(&self, text: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        take::from_value(&self.ty, &PLAIN, Value::of_text(text, &self.ty)?, out)
    }

    fn left_out(&self) -> Option<Written> {
        self.optional.map(Written::LeftOut)
    }

    fn absent(&self, out: &mut Vec<u8>) -> Result<Written, Wrong> {
        self.without("the field is absent", out)
    }

    fn without(&self, what: &str, out: &mut Vec<u8>) -> Result<Written, Wrong> {
        match self.left_out() {
            Some(left_out) => Ok(left_out),
            None => self.nothing(Reason::MissingField, what, out).map(|()| Written::Value),
        }
    }

    fn null(&self, what: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        self.nothing(Reason::NullNotAllowed, what, out)
    }

    fn nothing(&self, reason: Reason, what: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        if self.not_null {
            return Err(Wrong::new(reason, format!("{what}, and the column is NOT NULL")));
        }
        binary::null(out);
        Ok(())
    }
}

impl After {
    fn new(source: &Source, floor: Option<i64>, retention: Option<&Retention>) -> Option<Box<After>> {
        // The writer's clock is always now.
        let retention = retention.filter(|_| *source != Source::Clock).cloned();
        (floor.is_some() || retention.is_some()).then(|| Box::new(After { floor, retention }))
    }

    fn apply(&self, field: &mut [u8], now: i64) -> Result<Written, Wrong> {
        if let Some(bucket) = self.floor {
            floor_field(field, bucket)?;
        }
        let Some(retention) = &self.retention else { return Ok(Written::Value) };
        let time =
            field.get(4..).filter(|value| !value.is_empty()).and_then(|value| retention.time_of(value));
        let Some(time) = time else {
            return Err(Wrong::new(
                Reason::NullNotAllowed,
                "a row without a time is in none of the table's partitions",
            ));
        };
        match retention.age(time, now) {
            Age::Kept => Ok(Written::Value),
            Age::Expired => Ok(Written::Expired),
            Age::Ahead(end) => Err(Wrong::new(
                Reason::OutOfRange,
                format!("it lies in the future, and partitions are made until {} only", shown(end)),
            )),
        }
    }
}

fn shown(micros: i64) -> String {
    jiff::Timestamp::from_microsecond(micros).map(|time| time.to_string()).unwrap_or_default()
}

/// Sets a time, a field of eight bytes or none, to the begin of its bucket. Buckets divide a day, so it does not matter that
/// PostgreSQL counts from a midnight of 2000.
fn floor_field(field: &mut [u8], bucket: i64) -> Result<(), Wrong> {
    let Some((_, time)) = field.split_first_chunk_mut::<4>() else { return Ok(()) };
    let Ok(bytes) = <[u8; 8]>::try_from(&*time) else { return Ok(()) };
    let micros = i64::from_be_bytes(bytes);
    // Infinity is in no bucket.
    if !binary::MICROS.contains(&micros) {
        return Ok(());
    }
    let floored = micros.div_euclid(bucket) * bucket;
    if !binary::MICROS.contains(&floored) {
        return Err(Wrong::new(Reason::OutOfRange, "its bucket begins before PostgreSQL's calendar"));
    }
    time.copy_from_slice(&floored.to_be_bytes());
    Ok(())
}

/// Tokens are kept in a cache that counts entries, so each must have a bound.
const TOKEN_BYTES_MAX: usize = 1024;

/// A string, or a number by its text; anything else is no token.
pub(super) fn token<'a>(json: Json<'a>, scratch: &'a mut String) -> Result<&'a str, Wrong> {
    match Value::of_json(json, scratch)? {
        Value::String(text) | Value::Number(text) if text.len() <= TOKEN_BYTES_MAX => Ok(text),
        Value::String(_) | Value::Number(_) => {
            Err(Wrong::new(Reason::TooLong, format!("a token has at most {TOKEN_BYTES_MAX} bytes")))
        }
        _ => Err(Wrong::new(Reason::WrongType, "a token is a string or a number")),
    }
}

/// The last header of that name, as Kafka's own clients find one; it may have no value.
pub(super) fn header<'r>(record: &Record<'r>, name: &str) -> Option<Option<&'r [u8]>> {
    record.headers.iter().filter(|(found, _)| *found == name.as_bytes()).last().map(|(_, value)| value)
}

/// `[{"key": .., "value": ..}, ..]`. What is not text without U+0000, which jsonb could not hold, is given as base64
/// under another name: a tracing header must not make a dead letter.
fn headers_json(headers: Headers<'_>) -> String {
    let mut json = String::from("[");
    for (name, value) in headers.iter() {
        json.push_str(if json.len() > 1 { ",{" } else { "{" });
        member("key", Some(name), &mut json);
        json.push(',');
        member("value", value, &mut json);
        json.push('}');
    }
    json.push(']');
    json
}

fn member(name: &str, value: Option<&[u8]>, json: &mut String) {
    let (suffix, value) = match value.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => ("", serde_json::Value::Null),
        Some((Ok(text), _)) if !text.contains('\0') => ("", text.into()),
        Some((_, bytes)) => ("_base64", base64::text(bytes).into()),
    };
    json.push_str(&format!("\"{name}{suffix}\":{value}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::record::tests::{NULL, field, one, record};

    #[test]
    fn times_are_floored_to_their_bucket() {
        #[track_caller]
        fn check(micros: i64, bucket: i64, expected: i64) {
            let mut out = Vec::new();
            binary::field(&micros.to_be_bytes(), &mut out);
            floor_field(&mut out, bucket).expect("a bucket");
            assert_eq!(out[4..], expected.to_be_bytes(), "{micros}");
        }
        let minute = 60_000_000;
        check(0, minute, 0);
        check(1, minute, 0);
        check(minute - 1, minute, 0);
        check(minute, minute, minute);
        check(-1, minute, -minute);
        check(-minute, minute, -minute);
        check(i64::MAX, minute, i64::MAX);
        check(i64::MIN, minute, i64::MIN);
        let mut null = NULL.to_vec();
        floor_field(&mut null, minute).expect("NULL has no bucket");
        floor_field(&mut [], minute).expect("nor has what is left out");
        assert_eq!(null, NULL);
        let mut first = Vec::new();
        binary::field(&binary::MICROS.start.to_be_bytes(), &mut first);
        assert!(floor_field(&mut first, 86_400_000_000).is_ok());
        let columns = r#"columns.c = { floor = "1h" }"#;
        let message = record(br#"{"c":"2000-01-01T01:59:59.999999Z"}"#);
        let hour = field(&3_600_000_000i64.to_be_bytes());
        assert_eq!(one(Type::Timestamptz, true, columns, &message), Ok(hour));
    }

    #[test]
    fn an_unknown_token_may_be_null() {
        let columns = r#"columns.c = { lookup = "user", unknown = "null" }"#;
        assert_eq!(one(Type::Text, false, columns, &record(br#"{"c":"nobody"}"#)), Ok(NULL.to_vec()));
        assert_eq!(one(Type::Text, false, columns, &record(br#"{"c":null}"#)), Ok(NULL.to_vec()));
        assert_eq!(one(Type::Text, false, columns, &record(b"{}")), Err(Reason::NothingTaken));
        assert_eq!(one(Type::Text, false, columns, &record(br#"{"c":"tok-1"}"#)), Ok(field(b"user-1")));
        assert_eq!(one(Type::Int4, false, columns, &record(br#"{"c":"tok-1"}"#)), Err(Reason::WrongType));
    }

    #[test]
    fn an_empty_text_may_be_null() {
        let check =
            |ty: Type, not_null: bool, settings: &str, value: &str, expected: Result<Vec<u8>, Reason>| {
                let message = format!("{{\"c\":{value}}}");
                let found = one(
                    ty.clone(),
                    not_null,
                    &format!("columns.c = {{ {settings} }}"),
                    &record(message.as_bytes()),
                );
                assert_eq!(found, expected, "{value} into {ty}, {settings}");
            };
        let null = "empty = \"null\"";
        let number = "from = \"text\", empty = \"null\"";
        check(Type::Text, false, null, r#""""#, Ok(NULL.to_vec()));
        check(Type::Text, false, null, r#"" ""#, Ok(field(b" ")));
        check(Type::Text, true, null, r#""""#, Err(Reason::NullNotAllowed));
        check(Type::Text, true, "", r#""""#, Ok(field(b"")));
        check(Type::Timestamptz, false, null, r#""""#, Ok(NULL.to_vec()));
        check(Type::Timestamptz, false, "", r#""""#, Err(Reason::InvalidTime));
        check(Type::Int4, false, null, r#""""#, Ok(NULL.to_vec()));
        check(Type::Int4, false, null, r#""7""#, Err(Reason::WrongType));
        check(Type::Int4, false, number, r#""""#, Ok(NULL.to_vec()));
        check(Type::Int4, false, number, r#""7""#, Ok(field(&7i32.to_be_bytes())));
        check(Type::Int4, false, number, "null", Ok(NULL.to_vec()));
        check(Type::Json, false, number, r#""""#, Ok(NULL.to_vec()));
        let texts = Type::Array { element: Box::new(Type::Text), element_oid: 25 };
        check(texts.clone(), false, null, r#""""#, Ok(NULL.to_vec()));
        check(texts, false, null, "[]", Ok(field(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 25])));
    }

    #[test]
    fn the_record_around_the_message() {
        let mut headers = Vec::new();
        Headers::append(&mut headers, b"trace", Some(b"a\"b"));
        Headers::append(&mut headers, b"trace", None);
        Headers::append(&mut headers, b"bin", Some(&[0xff, 0]));
        let full = Record { key: Some(b"7"), headers: Headers(&headers), ..record(b"{}") };
        let bare = Record { timestamp_ms: None, ..record(b"{}") };
        let check = |ty: Type, part: &str, record: &Record<'_>, expected: Result<Vec<u8>, Reason>| {
            let columns = format!("columns.c = {{ kafka = \"{part}\" }}");
            assert_eq!(one(ty.clone(), false, &columns, record), expected, "{part} into {ty}");
        };
        check(Type::Text, "key", &full, Ok(field(b"7")));
        check(Type::Bytea, "key", &full, Ok(field(b"7")));
        check(Type::Int4, "key", &full, Ok(field(&7i32.to_be_bytes())));
        check(Type::Jsonb, "key", &full, Ok(field(b"\x017")));
        check(Type::Text, "key", &bare, Ok(NULL.to_vec()));
        check(Type::Json, "key", &Record { key: Some(b"{"), ..full }, Err(Reason::InvalidJson));
        check(Type::Text, "key", &Record { key: Some(b"\xff"), ..full }, Err(Reason::InvalidUtf8));
        check(Type::Bytea, "key", &Record { key: Some(b"\xff\0"), ..full }, Ok(field(b"\xff\0")));
        check(Type::Text, "key", &Record { key: Some(b"a\0"), ..full }, Err(Reason::NulCharacter));
        check(Type::Varchar(Some(1)), "key", &Record { key: Some(b"ab"), ..full }, Err(Reason::TooLong));
        check(Type::Int8, "offset", &full, Ok(field(&42i64.to_be_bytes())));
        check(Type::Int8, "partition", &full, Ok(field(&3i64.to_be_bytes())));
        check(Type::Int4, "partition", &full, Ok(field(&3i32.to_be_bytes())));
        check(Type::Int8, "timestamp", &full, Ok(field(&1_700_000_000_123i64.to_be_bytes())));
        check(Type::Timestamptz, "timestamp", &full, Ok(field(&753_315_200_123_000i64.to_be_bytes())));
        check(Type::Timestamptz, "timestamp", &bare, Ok(NULL.to_vec()));
        let far = Record { timestamp_ms: Some(i64::MAX), ..full };
        check(Type::Timestamptz, "timestamp", &far, Err(Reason::OutOfRange));
        check(Type::Text, "topic", &full, Ok(field(b"t")));
        check(Type::Json, "headers", &bare, Ok(field(b"[]")));
        let json = br#"[{"key":"trace","value":"a\"b"},{"key":"trace","value":null},{"key":"bin","value_base64":"/wA="}]"#;
        check(Type::Json, "headers", &full, Ok(field(json)));
        let by_name = |ty: Type, not_null: bool, name: &str, record: &Record<'_>| {
            one(ty, not_null, &format!("columns.c = {{ header = \"{name}\" }}"), record)
        };
        let mut headers = Vec::new();
        Headers::append(&mut headers, b"id", Some(b"first"));
        Headers::append(&mut headers, b"id", Some(b"7"));
        Headers::append(&mut headers, b"empty", None);
        Headers::append(&mut headers, b"bin", Some(&[0xff, 0]));
        let named = Record { headers: Headers(&headers), ..bare };
        assert_eq!(by_name(Type::Text, true, "id", &named), Ok(field(b"7")), "the last of that name");
        assert_eq!(by_name(Type::Int8, true, "id", &named), Ok(field(&7i64.to_be_bytes())));
        assert_eq!(by_name(Type::Bytea, true, "bin", &named), Ok(field(&[0xff, 0])));
        assert_eq!(by_name(Type::Text, true, "bin", &named), Err(Reason::InvalidUtf8));
        assert_eq!(by_name(Type::Text, false, "empty", &named), Ok(NULL.to_vec()));
        assert_eq!(by_name(Type::Text, true, "empty", &named), Err(Reason::NullNotAllowed));
        assert_eq!(
            by_name(Type::Text, false, "ID", &named),
            Ok(NULL.to_vec()),
            "names are compared by bytes"
        );
        assert_eq!(by_name(Type::Text, true, "id", &bare), Err(Reason::MissingField));
        let not_null = one(Type::Text, true, r#"columns.c = { kafka = "key" }"#, &bare);
        assert_eq!(not_null, Err(Reason::NullNotAllowed));
    }

    #[test]
    fn the_whole_message() {
        let check = |ty: Type, message: &str, expected: Result<Vec<u8>, Reason>| {
            let found = one(ty.clone(), true, "columns.c = { message = true }", &record(message.as_bytes()));
            assert_eq!(found, expected, "{message} into {ty}");
        };
        check(Type::Jsonb, r#"{"a":"\u0000"}"#, Err(Reason::NulCharacter));
        check(Type::Jsonb, r#"{"a":"\ud800"}"#, Err(Reason::InvalidUnicode));
        check(Type::Varchar(Some(5)), r#"{"a":1}"#, Err(Reason::TooLong));
        check(
            Type::Json,
            &format!("{{\"a\":{}1{}}}", "[".repeat(128), "]".repeat(128)),
            Err(Reason::TooDeep),
        );
        check(Type::Json, r#"{"a":"\u0000"}"#, Ok(field(br#"{"a":"\u0000"}"#)));
        check(Type::Text, r#" {"a":"\u0000"} "#, Ok(field(br#" {"a":"\u0000"} "#)));
    }
}
