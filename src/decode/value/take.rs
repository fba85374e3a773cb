//! What each type accepts, one function a type: what docs/message-format.md promises. Fields are appended to a buffer that
//! the caller keeps.

use std::net::IpAddr;

use serde_json::value::RawValue;

use super::bounds::{checked_field, finish};
use super::decimal::{self, Decimal};
use super::read::{Json, Reading, Value, wrong_type};
use super::wrong::{Written, Wrong, out_of_range};
use super::{array, base64, formatted, json, time};
use crate::client::binary::{begin, field};
use crate::decode::reject::Reason;
use crate::model::notation::TimeForm;
use crate::model::types::{Encoding, NumericLimit, Type, Unit};

/// A jsonb string or container has 28 bits for its size.
const JSONB_BYTES_MAX: usize = 0x0fff_ffff;

/// Appends the field of any type from the text of a JSON value that is not null.
#[inline]
pub fn from_json(
    ty: &Type,
    reading: &Reading,
    json: Json<'_>,
    scratch: &mut String,
    out: &mut Vec<u8>,
) -> Written {
    match ty {
        Type::Json | Type::Jsonb if reading.notation.from_text && json.text.starts_with('"') => {
            json_in_text(ty, reading, json, scratch, out)
        }
        Type::Json => self::json(json.text, reading.depth_max, out),
        Type::Jsonb => jsonb(json.text, reading.depth_max, out),
        Type::Array { element, element_oid } => {
            if !json.text.starts_with('[') {
                return Err(wrong_type("an array", Value::of_json(json, scratch)?));
            }
            // What is inside belongs to the element.
            let is_flat = matches!(**element, Type::Json | Type::Jsonb);
            array::array(json.text, is_flat, *element_oid, out, &mut |raw, out| {
                from_json(element, reading, Json::of(raw), scratch, out)
            })
        }
        scalar if reading.notation.from_text => {
            from_value(scalar, reading, Value::of_json(json, scratch)?.out_of_text(scalar)?, out)
        }
        scalar => from_value(scalar, reading, Value::of_json(json, scratch)?, out),
    }
}

/// A string whose content is JSON by itself.
fn json_in_text(
    ty: &Type,
    reading: &Reading,
    json: Json<'_>,
    scratch: &mut String,
    out: &mut Vec<u8>,
) -> Written {
    let Value::String(text) = Value::of_json(json, scratch)? else { unreachable!("it begins with a quote") };
    let inner: &RawValue = serde_json::from_str(text)
        .map_err(|error| Wrong::new(Reason::WrongType, format!("takes text that is JSON: {error}")))?;
    match ty {
        Type::Json => self::json(inner.get(), reading.depth_max, out),
        _ => jsonb(inner.get(), reading.depth_max, out),
    }
}

/// Appends the field of a type that is neither json, jsonb nor an array.
pub fn from_value(ty: &Type, reading: &Reading, value: Value<'_>, out: &mut Vec<u8>) -> Written {
    match ty {
        Type::Text => text(value, None, out),
        Type::Varchar(length) | Type::Char(length) => text(value, *length, out),
        Type::Float8 => float8(value, out),
        Type::Timestamptz => timestamptz(value, reading, out),
        Type::Int4 => int4(value, out),
        Type::Int8 => int8(value, out),
        Type::Int2 => int2(value, out),
        Type::Bool => bool(value, out),
        Type::Float4 => float4(value, out),
        Type::Numeric(limit) => numeric(value, *limit, out),
        Type::Timestamp => timestamp(value, reading, out),
        Type::Date => date(value, reading, out),
        Type::Time => time_of_day(value, reading, out),
        Type::Uuid => uuid(value, out),
        Type::Bytea => bytea(value, reading.notation.encoding, out),
        Type::Inet => inet(value, out),
        Type::Enum { labels, .. } => enum_label(value, labels, out),
        Type::Json | Type::Jsonb | Type::Array { .. } | Type::Unsupported(_) => {
            Err(Wrong::new(Reason::WrongType, format!("{ty} takes no single value")))
        }
    }
}

/// `true` and `false` only: 0, 1, "yes" and "t" mean something else elsewhere.
pub fn bool(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    let Value::Bool(value) = value else { return Err(wrong_type("true or false", value)) };
    field(&[u8::from(value)], out);
    Ok(())
}

/// A JSON number with an integral value: `1.0` and `1e3` are integers (JSON knows one kind of number, and some
/// producers print every number as a double), `1.5` is not.
pub fn int2(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    let n = integer(value, false)?;
    let n = i16::try_from(n).map_err(|_| out_of_range("smallint holds -32768 to 32767"))?;
    field(&n.to_be_bytes(), out);
    Ok(())
}

/// As [`int2`].
pub fn int4(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    let n = integer(value, false)?;
    let n = i32::try_from(n).map_err(|_| out_of_range("integer holds -2147483648 to 2147483647"))?;
    field(&n.to_be_bytes(), out);
    Ok(())
}

/// As [`int2`], and also a string that holds an integer: a producer whose numbers are doubles (JavaScript) has no other
/// way to send 64 bits, and protobuf's JSON form prescribes it.
pub fn int8(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    field(&integer(value, true)?.to_be_bytes(), out);
    Ok(())
}

/// A JSON number, or one of the strings "NaN", "Infinity", "-Infinity", for which JSON has no number. A number too large
/// is refused, and so is one so small that nothing would be left of it.
#[inline]
pub fn float8(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    let n: f64 = match value {
        Value::Number(text) => {
            let n: f64 = text.parse().map_err(|_| wrong_type("a number", value))?;
            if n.is_infinite() || (n == 0.0 && has_nonzero_digit(text)) {
                return Err(out_of_range("double precision cannot hold this number"));
            }
            n
        }
        _ => special_float(value)?,
    };
    field(&n.to_be_bytes(), out);
    Ok(())
}

/// As [`float8`], with the range of real.
pub fn float4(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    let n: f32 = match value {
        // Straight from the text: by way of a double it would be rounded twice.
        Value::Number(text) => {
            let n: f32 = text.parse().map_err(|_| wrong_type("a number", value))?;
            if n.is_infinite() || (n == 0.0 && has_nonzero_digit(text)) {
                return Err(out_of_range("real cannot hold this number"));
            }
            n
        }
        _ => special_float(value)? as f32,
    };
    field(&n.to_be_bytes(), out);
    Ok(())
}

/// Strings as they are; numbers and booleans by their exact JSON text, because a field that is sometimes a number and
/// sometimes a word is common. Arrays and objects are refused: a text column is seldom meant to hold them. `length` is
/// varchar(n)'s or char(n)'s, in characters; spaces at the end count, where the server would cut them silently.
#[inline]
pub fn text(value: Value<'_>, length: Option<u32>, out: &mut Vec<u8>) -> Written {
    let text = match value {
        Value::String(text) | Value::Number(text) => text,
        Value::Bool(true) => "true",
        Value::Bool(false) => "false",
        Value::Compound(_) => return Err(wrong_type("a string, number or boolean", value)),
    };
    checked_text(text, length, out)
}

/// A string in ISO 8601 or in the column's own format, its offset required unless the column names a zone; or, with a
/// unit, a number since 1970.
#[inline]
pub fn timestamptz(value: Value<'_>, reading: &Reading, out: &mut Vec<u8>) -> Written {
    let zone = reading.notation.zone.as_ref();
    let micros = match (value, &reading.notation.time) {
        (Value::String(text), TimeForm::Iso8601) => time::parse_timestamptz(text, zone)?,
        (_, TimeForm::Number(unit)) => epoch(value, *unit)?,
        (Value::String(text), TimeForm::Format(format)) => formatted::timestamptz(text, format, zone)?,
        _ => return Err(wrong_type("a string with a time", value)),
    };
    time::check_micros(micros, reading)?;
    field(&micros.to_be_bytes(), out);
    Ok(())
}

/// As [`timestamptz`], and the offset may be missing or be UTC's. Any other offset is refused: the server would drop it
/// without a word and store an hour that never was. Numbers become UTC.
pub fn timestamp(value: Value<'_>, reading: &Reading, out: &mut Vec<u8>) -> Written {
    let micros = match (value, &reading.notation.time) {
        (Value::String(text), TimeForm::Iso8601) => time::parse_timestamp(text)?,
        (_, TimeForm::Number(unit)) => epoch(value, *unit)?,
        (Value::String(text), TimeForm::Format(format)) => formatted::timestamp(text, format)?,
        _ => return Err(wrong_type("a string with a time", value)),
    };
    time::check_micros(micros, reading)?;
    field(&micros.to_be_bytes(), out);
    Ok(())
}

/// An integer that is known to fit: an offset or timestamp into a bigint, a partition into either.
pub fn int(ty: &Type, n: i64, out: &mut Vec<u8>) {
    match i32::try_from(n) {
        Ok(n) if *ty == Type::Int4 => field(&n.to_be_bytes(), out),
        _ => field(&n.to_be_bytes(), out),
    }
}

/// A timestamptz or timestamp that is known already, in microseconds since 2000.
#[inline]
pub fn micros(micros_since_2000: i64, out: &mut Vec<u8>) {
    field(&micros_since_2000.to_be_bytes(), out);
}

/// `YYYY-MM-DD`, or as the column's notation says. A whole timestamp is refused: storing its date only would lose the rest.
pub fn date(value: Value<'_>, reading: &Reading, out: &mut Vec<u8>) -> Written {
    let days = match (value, &reading.notation.time) {
        (Value::String(text), TimeForm::Iso8601) => time::parse_date(text)?,
        (_, TimeForm::Number(_)) => time::days_from_epoch(decimal(value)?)?,
        (Value::String(text), TimeForm::Format(format)) => formatted::date_of(text, format)?,
        _ => return Err(wrong_type("a string like 2024-05-01", value)),
    };
    time::check_day(days.into(), reading)?;
    field(&days.to_be_bytes(), out);
    Ok(())
}

/// `HH:MM:SS` with an optional fraction, no offset; or as the column's notation says.
pub fn time_of_day(value: Value<'_>, reading: &Reading, out: &mut Vec<u8>) -> Written {
    let micros = match (value, &reading.notation.time) {
        (Value::String(text), TimeForm::Iso8601) => time::parse_time(text)?,
        (_, TimeForm::Number(unit)) => time::from_midnight(decimal(value)?, *unit)?,
        (Value::String(text), TimeForm::Format(format)) => formatted::time_of_day(text, format)?,
        _ => return Err(wrong_type("a string like 12:30:00", value)),
    };
    field(&micros.to_be_bytes(), out);
    Ok(())
}

/// 32 hexadecimal digits in either case, with the four usual hyphens or with none.
pub fn uuid(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    let Value::String(text) = value else { return Err(wrong_type("a string with a UUID", value)) };
    let wrong = || {
        Wrong::new(Reason::WrongType, "takes 32 hexadecimal digits, hyphens after 8, 12, 16 and 20 or none")
    };
    let digits = text.as_bytes();
    let hyphens: &[usize] = match digits.len() {
        32 => &[],
        36 => &[8, 13, 18, 23],
        _ => return Err(wrong()),
    };
    let mut bytes = [0u8; 16];
    let mut count = 0;
    for (index, &c) in digits.iter().enumerate() {
        if hyphens.contains(&index) {
            if c != b'-' {
                return Err(wrong());
            }
            continue;
        }
        let nibble = hex_digit(c).ok_or_else(wrong)?;
        bytes[count / 2] = bytes[count / 2] << 4 | nibble;
        count += 1;
    }
    field(&bytes, out);
    Ok(())
}

/// The value's own text, as the type stores it.
pub fn json(raw: &str, depth_max: usize, out: &mut Vec<u8>) -> Written {
    json::check_depth(raw, depth_max)?;
    checked_field(raw.as_bytes(), out)
}

/// Refuses what jsonb cannot hold although JSON can: U+0000, half surrogate pairs, numbers beyond numeric.
pub fn jsonb(raw: &str, depth_max: usize, out: &mut Vec<u8>) -> Written {
    if raw.len() > JSONB_BYTES_MAX {
        return Err(Wrong::new(Reason::TooLarge, "jsonb holds at most 256 MB"));
    }
    json::check_jsonb(raw, depth_max)?;
    out.extend_from_slice(&(raw.len() as i32 + 1).to_be_bytes());
    out.push(1);
    out.extend_from_slice(raw.as_bytes());
    Ok(())
}

/// A string; see [`Encoding`] for how it stands for bytes.
pub fn bytea(value: Value<'_>, encoding: Encoding, out: &mut Vec<u8>) -> Written {
    let Value::String(text) = value else { return Err(wrong_type("a string", value)) };
    let start = begin(out);
    match encoding {
        Encoding::Utf8 => out.extend_from_slice(text.as_bytes()),
        Encoding::Base64 => base64::decode(text, out)
            .ok_or_else(|| Wrong::new(Reason::WrongType, "takes base64 with the standard alphabet"))?,
        Encoding::Postgres | Encoding::Hex => {
            let wrong = || Wrong::new(Reason::WrongType, "takes \\x and pairs of hexadecimal digits");
            let digits = match (text.strip_prefix("\\x"), encoding) {
                (Some(digits), _) => digits.as_bytes(),
                (None, Encoding::Hex) => text.as_bytes(),
                (None, _) => return Err(wrong()),
            };
            let (pairs, odd) = digits.as_chunks::<2>();
            if !odd.is_empty() {
                return Err(wrong());
            }
            for &[high, low] in pairs {
                out.push(hex_digit(high).ok_or_else(wrong)? << 4 | hex_digit(low).ok_or_else(wrong)?);
            }
        }
    }
    finish(start, out)
}

/// A bytea that is bytes already.
pub fn bytes(bytes: &[u8], out: &mut Vec<u8>) -> Written {
    checked_field(bytes, out)
}

/// An IPv4 or IPv6 address, with or without a prefix length; no names, no zones, no octal.
pub fn inet(value: Value<'_>, out: &mut Vec<u8>) -> Written {
    const AF_INET: u8 = 2;
    const AF_INET6: u8 = 3; // PostgreSQL's own number, not the system's
    let Value::String(text) = value else { return Err(wrong_type("a string with an IP address", value)) };
    let wrong = || Wrong::new(Reason::WrongType, "takes an IPv4 or IPv6 address with an optional /prefix");
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let bits_max = if address.is_ipv4() { 32 } else { 128 };
    let bits = match prefix {
        None => bits_max,
        Some(digits) if small_integer(digits.as_bytes()).is_some() => {
            digits.parse().ok().filter(|bits| *bits <= bits_max).ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let start = begin(out);
    match address {
        IpAddr::V4(v4) => {
            out.extend_from_slice(&[AF_INET, bits, 0, 4]);
            out.extend_from_slice(&v4.octets());
        }
        IpAddr::V6(v6) => {
            out.extend_from_slice(&[AF_INET6, bits, 0, 16]);
            out.extend_from_slice(&v6.octets());
        }
    }
    finish(start, out)
}

/// A JSON number, or a string that holds one: decimals are often sent as strings so that no double can touch them.
pub fn numeric(value: Value<'_>, limit: Option<NumericLimit>, out: &mut Vec<u8>) -> Written {
    decimal::write(&decimal(value)?, limit, out)
}

/// A string that is one of the labels, letter for letter.
pub fn enum_label(value: Value<'_>, labels: &[String], out: &mut Vec<u8>) -> Written {
    let Value::String(text) = value else { return Err(wrong_type("a string", value)) };
    if !labels.iter().any(|label| label == text) {
        return Err(Wrong::new(Reason::UnknownEnumLabel, "the type has no such label"));
    }
    checked_field(text.as_bytes(), out)
}

#[inline]
pub(crate) fn checked_text(text: &str, length: Option<u32>, out: &mut Vec<u8>) -> Written {
    if let Some(length) = length {
        // A character is at least a byte: most values need no count.
        if text.len() > length as usize {
            let count = text.chars().count();
            if count > length as usize {
                let why = format!("takes at most {length} characters, not {count}");
                return Err(Wrong::new(Reason::TooLong, why));
            }
        }
    }
    checked_field(text.as_bytes(), out)
}

fn hex_digit(c: u8) -> Option<u8> {
    (c as char).to_digit(16).map(|digit| digit as u8)
}

fn integer(value: Value<'_>, from_string: bool) -> Result<i64, Wrong> {
    const RANGE: &str = "bigint holds -9223372036854775808 to 9223372036854775807";
    let text = match value {
        Value::Number(text) => text,
        Value::String(text) if from_string => text,
        _ => {
            return Err(wrong_type(
                if from_string { "an integer, or a string with one" } else { "an integer" },
                value,
            ));
        }
    };
    if let Some(n) = small_integer(text.as_bytes()) {
        return Ok(n);
    }
    let number = Decimal::parse(text).ok_or_else(|| wrong_type("an integer", value))?;
    match number.shifted(0) {
        Some(n) if n.is_exact() => i64::try_from(n.whole()).map_err(|_| out_of_range(RANGE)),
        Some(_) => Err(Wrong::new(Reason::WrongType, "takes an integer, not a fraction")),
        None => Err(out_of_range(RANGE)),
    }
}

/// Up to 18 plain digits, which cannot overflow: nearly every integer there is.
fn small_integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 18 || (digits.len() > 1 && digits[0] == b'0') {
        return None;
    }
    let mut n = 0i64;
    for &c in digits {
        if !c.is_ascii_digit() {
            return None;
        }
        n = n * 10 + i64::from(c - b'0');
    }
    Some(if negative { -n } else { n })
}

/// A number of `unit`s since 1970, or a string that holds one, to microseconds since 2000.
fn epoch(value: Value<'_>, unit: Unit) -> Result<i64, Wrong> {
    time::from_epoch(decimal(value)?, unit)
}

fn decimal(value: Value<'_>) -> Result<Decimal<'_>, Wrong> {
    const TAKES: &str = "a number, or a string with one";
    let (Value::Number(text) | Value::String(text)) = value else { return Err(wrong_type(TAKES, value)) };
    Decimal::parse(text).ok_or_else(|| wrong_type(TAKES, value))
}

fn special_float(value: Value<'_>) -> Result<f64, Wrong> {
    match value {
        Value::String("NaN") => Ok(f64::NAN),
        Value::String("Infinity") => Ok(f64::INFINITY),
        Value::String("-Infinity") => Ok(f64::NEG_INFINITY),
        _ => Err(wrong_type("a number (or \"NaN\", \"Infinity\", \"-Infinity\")", value)),
    }
}

fn has_nonzero_digit(number: &str) -> bool {
    number.bytes().take_while(|c| !matches!(c, b'e' | b'E')).any(|c| matches!(c, b'1'..=b'9'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::notation::Notation;

    /// Numbers, in any year.
    fn counted(unit: Unit) -> Reading {
        Reading::new(Notation { time: TimeForm::Number(unit), ..Notation::default() }, 128)
    }

    fn read(ty: &Type, reading: &Reading, raw: &str) -> Result<Vec<u8>, Reason> {
        let mut out = vec![0xee];
        from_json(ty, reading, Json::of(raw), &mut String::new(), &mut out).map_err(|wrong| wrong.reason)?;
        let (length, bytes) = out[1..].split_at(4);
        assert_eq!(bytes.len(), i32::from_be_bytes(length.try_into().unwrap()) as usize, "{ty} {raw}");
        Ok(bytes.to_vec())
    }

    fn refused(ty: &Type, reason: Reason, raws: &[&str]) {
        for raw in raws {
            assert_eq!(read(ty, &Reading::default(), raw), Err(reason), "{raw} into {ty}");
        }
    }

    fn check(ty: &Type, raw: &str, expected: &[u8]) {
        assert_eq!(read(ty, &Reading::default(), raw).as_deref(), Ok(expected), "{raw} into {ty}");
    }

    #[test]
    fn booleans() {
        refused(&Type::Bool, Reason::WrongType, &["0", "1", r#""true""#, r#""t""#, r#""yes""#, "[]", "{}"]);
        check(&Type::Bool, "true", &[1]);
        check(&Type::Bool, "false", &[0]);
    }

    #[test]
    fn integers() {
        for ty in [Type::Int2, Type::Int4, Type::Int8] {
            refused(
                &ty,
                Reason::WrongType,
                &["1.5", "1e-1", "true", "[1]", "{}", r#""""#, r#"" 1""#, r#""0x1""#, r#""a""#],
            );
            refused(
                &ty,
                Reason::OutOfRange,
                &["9223372036854775808", "18446744073709551616", "1e19", "1e999", "-1e400"],
            );
        }
        refused(&Type::Int2, Reason::WrongType, &[r#""1""#]);
        refused(&Type::Int4, Reason::WrongType, &[r#""1""#]);
        refused(&Type::Int2, Reason::OutOfRange, &["32768", "-32769"]);
        refused(&Type::Int4, Reason::OutOfRange, &["2147483648", "-2147483649"]);
        refused(&Type::Int8, Reason::OutOfRange, &[r#""9223372036854775808""#, "-9223372036854775809"]);
        refused(&Type::Int8, Reason::WrongType, &[r#""1.5""#, r#""+1""#, r#""01""#]);
        check(&Type::Int2, "-32768", &i16::MIN.to_be_bytes());
        check(&Type::Int4, "2147483647", &i32::MAX.to_be_bytes());
        check(&Type::Int4, "-0", &0i32.to_be_bytes());
        check(&Type::Int4, "1.0", &1i32.to_be_bytes());
        check(&Type::Int4, "1e3", &1000i32.to_be_bytes());
        check(&Type::Int4, "25000e-3", &25i32.to_be_bytes());
        check(&Type::Int8, "9007199254740993", &9_007_199_254_740_993i64.to_be_bytes());
        check(&Type::Int8, "9223372036854775807", &i64::MAX.to_be_bytes());
        check(&Type::Int8, r#""-9223372036854775808""#, &i64::MIN.to_be_bytes());
    }

    #[test]
    fn floats() {
        for ty in [Type::Float4, Type::Float8] {
            refused(
                &ty,
                Reason::WrongType,
                &["true", r#""1""#, r#""inf""#, r#""nan""#, r#""1e5""#, "[]", "{}"],
            );
            refused(&ty, Reason::OutOfRange, &["1e999", "-1e999", "1e-999", "-1e-999"]);
        }
        refused(&Type::Float4, Reason::OutOfRange, &["1e39", "1e-46"]);
        check(&Type::Float8, "0e999", &0f64.to_be_bytes());
        check(&Type::Float8, "-0", &(-0f64).to_be_bytes());
        check(&Type::Float8, "0.1", &0.1f64.to_be_bytes());
        check(&Type::Float8, "1e-320", &1e-320f64.to_be_bytes());
        check(&Type::Float8, "1.7976931348623157e308", &f64::MAX.to_be_bytes());
        check(&Type::Float8, r#""NaN""#, &f64::NAN.to_be_bytes());
        check(&Type::Float8, r#""-Infinity""#, &f64::NEG_INFINITY.to_be_bytes());
        check(&Type::Float4, r#""Infinity""#, &f32::INFINITY.to_be_bytes());
        // Halfway between two reals for a double, above it in truth.
        check(&Type::Float4, "1.00000005960464477539063", &1.000_000_1f32.to_be_bytes());
    }

    #[test]
    fn texts() {
        let (any, five) = (Type::Text, Type::Varchar(Some(5)));
        for ty in [&any, &five, &Type::Char(Some(5))] {
            refused(ty, Reason::WrongType, &["[]", "{}", r#"["a"]"#]);
            refused(ty, Reason::NulCharacter, &[r#""\u0000""#]);
            refused(ty, Reason::InvalidUnicode, &[r#""\ud800""#]);
        }
        refused(
            &five,
            Reason::TooLong,
            &[r#""abcdef""#, r#""abcde ""#, r#""🚀🚀🚀🚀🚀🚀""#, "123456", "1.0000"],
        );
        refused(&Type::Char(Some(5)), Reason::TooLong, &[r#""abcde ""#]);
        check(&five, r#""abcde""#, b"abcde");
        check(&five, r#""🚀🚀🚀🚀🚀""#, "🚀🚀🚀🚀🚀".as_bytes());
        check(&five, r#""\ud83d\ude80abcd""#, "🚀abcd".as_bytes());
        check(&five, "false", b"false");
        check(&Type::Char(Some(5)), r#""a""#, b"a");
        check(&any, "1.50e3", b"1.50e3");
        check(&any, "true", b"true");
        check(&any, r#""""#, b"");
        check(&any, r#""\\N \\. \t\n\r""#, b"\\N \\. \t\n\r");
    }

    #[test]
    fn times() {
        fn with(ty: &Type, unit: Unit, raw: &str) -> Result<Vec<u8>, Reason> {
            read(ty, &counted(unit), raw)
        }
        for ty in [Type::Timestamptz, Type::Timestamp] {
            refused(&ty, Reason::WrongType, &["1700000000", "true", "[]"]);
            refused(&ty, Reason::InvalidTime, &[r#""now""#, r#""1700000000""#, r#""""#]);
            assert_eq!(with(&ty, Unit::Seconds, r#""2024-05-01T12:30:00Z""#), Err(Reason::WrongType));
            assert_eq!(with(&ty, Unit::Seconds, "true"), Err(Reason::WrongType));
            assert_eq!(with(&ty, Unit::Seconds, "1e99"), Err(Reason::OutOfRange));
            assert_eq!(with(&ty, Unit::Seconds, "946684801"), Ok(1_000_000i64.to_be_bytes().to_vec()));
            assert_eq!(with(&ty, Unit::Nanos, r#""946684800000001000""#), Ok(1i64.to_be_bytes().to_vec()));
            check(&ty, r#""2000-01-01T00:00:01Z""#, &1_000_000i64.to_be_bytes());
        }
        refused(&Type::Date, Reason::WrongType, &["20240501"]);
        refused(&Type::Date, Reason::InvalidTime, &[r#""2024-05-01T00:00:00Z""#]);
        refused(&Type::Time, Reason::WrongType, &["1230"]);
        check(&Type::Date, r#""2000-01-02""#, &1i32.to_be_bytes());
        check(&Type::Time, r#""00:00:00.000001""#, &1i64.to_be_bytes());
    }

    #[test]
    fn values_in_text() {
        let reading = Reading::new(Notation { from_text: true, ..Notation::default() }, 3);
        let with = |ty: &Type, raw: &str| read(ty, &reading, raw);
        for ty in
            [Type::Bool, Type::Int2, Type::Int4, Type::Int8, Type::Float4, Type::Float8, Type::Numeric(None)]
        {
            for wrong in [
                r#""""#,
                r#"" 7""#,
                r#""7 ""#,
                r#""+7""#,
                r#""07""#,
                r#""1,5""#,
                r#""x""#,
                r#""0x7""#,
                r#""True""#,
                r#""null""#,
                "[]",
            ] {
                assert_eq!(with(&ty, wrong), Err(Reason::WrongType), "{wrong} into {ty}");
            }
        }
        assert_eq!(with(&Type::Bool, r#""true""#), Ok(vec![1]));
        assert_eq!(with(&Type::Bool, r#""false""#), Ok(vec![0]));
        assert_eq!(with(&Type::Bool, "true"), Ok(vec![1]));
        assert_eq!(with(&Type::Bool, r#""1""#), Err(Reason::WrongType));
        assert_eq!(with(&Type::Int2, r#""-7""#), Ok((-7i16).to_be_bytes().to_vec()));
        assert_eq!(with(&Type::Int4, r#""7""#), Ok(7i32.to_be_bytes().to_vec()));
        assert_eq!(with(&Type::Int4, r#""7.0""#), Ok(7i32.to_be_bytes().to_vec()));
        assert_eq!(with(&Type::Int4, r#""\u0037""#), Ok(7i32.to_be_bytes().to_vec()));
        assert_eq!(with(&Type::Int4, "7"), Ok(7i32.to_be_bytes().to_vec()));
        assert_eq!(with(&Type::Int4, r#""7.5""#), Err(Reason::WrongType));
        assert_eq!(with(&Type::Int4, r#""2147483648""#), Err(Reason::OutOfRange));
        assert_eq!(
            with(&Type::Int8, r#""9007199254740993""#),
            Ok(9_007_199_254_740_993i64.to_be_bytes().to_vec())
        );
        assert_eq!(with(&Type::Float8, r#""-1.5e3""#), Ok((-1500f64).to_be_bytes().to_vec()));
        assert_eq!(with(&Type::Float8, r#""NaN""#), Ok(f64::NAN.to_be_bytes().to_vec()));
        assert_eq!(with(&Type::Float8, r#""1e999""#), Err(Reason::OutOfRange));
        assert_eq!(with(&Type::Json, r#""{\"a\" : [1]}""#), Ok(br#"{"a" : [1]}"#.to_vec()));
        assert_eq!(with(&Type::Jsonb, r#"" 1.50 ""#), Ok(b"\x011.50".to_vec()));
        assert_eq!(with(&Type::Jsonb, r#"{"a":1}"#), Ok(b"\x01{\"a\":1}".to_vec()));
        assert_eq!(with(&Type::Jsonb, r#""\"\\u0000\"""#), Err(Reason::NulCharacter));
        assert_eq!(with(&Type::Json, r#""[[[[1]]]]""#), Err(Reason::TooDeep));
        for no_json in [r#""""#, r#""x""#, r#""{""#, r#""1 2""#] {
            assert_eq!(with(&Type::Json, no_json), Err(Reason::WrongType), "{no_json}");
        }
        let ints = Type::Array { element: Box::new(Type::Int4), element_oid: 23 };
        assert_eq!(with(&ints, r#"["1",2]"#), read(&ints, &Reading::default(), "[1,2]"));
        assert_eq!(with(&ints, r#""[1,2]""#), Err(Reason::WrongType));
    }

    #[test]
    fn uuids() {
        let bytes = 0x0123_4567_89ab_cdef_0123_4567_89ab_cdefu128.to_be_bytes();
        refused(
            &Type::Uuid,
            Reason::WrongType,
            &[
                "1",
                r#""""#,
                r#""0123456789abcdef0123456789abcde""#,
                r#""0123456789abcdef0123456789abcdeg""#,
                r#""{01234567-89ab-cdef-0123-456789abcdef}""#,
                r#""0123456-789ab-cdef-0123-456789abcdef0""#,
                r#""0123-4567-89ab-cdef-0123-456789abcde""#,
                r#""01234567-89ab-cdef-0123-456789abcdeé""#,
            ],
        );
        check(&Type::Uuid, r#""01234567-89ab-cdef-0123-456789abcdef""#, &bytes);
        check(&Type::Uuid, r#""0123456789ABCDEF0123456789abcdef""#, &bytes);
    }

    #[test]
    fn json_and_jsonb() {
        check(&Type::Json, r#"{"a" : 1.50, "a":"\u0000"}"#, br#"{"a" : 1.50, "a":"\u0000"}"#);
        check(&Type::Jsonb, r#""x""#, b"\x01\"x\"");
        check(&Type::Jsonb, "1.50", b"\x011.50");
        refused(&Type::Jsonb, Reason::NulCharacter, &[r#"{"a":"\u0000"}"#]);
        refused(&Type::Jsonb, Reason::InvalidUnicode, &[r#""\ud800""#]);
        refused(&Type::Jsonb, Reason::OutOfRange, &["1e999999"]);
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for ty in [Type::Json, Type::Jsonb] {
            assert!(read(&ty, &Reading::default(), &nested(128)).is_ok());
            for levels in [129, 1000, 100_000] {
                assert_eq!(read(&ty, &Reading::default(), &nested(levels)), Err(Reason::TooDeep));
            }
        }
    }

    #[test]
    fn byteas() {
        fn with(encoding: Encoding, raw: &str) -> Result<Vec<u8>, Reason> {
            read(&Type::Bytea, &Reading::new(Notation { encoding, ..Notation::default() }, 128), raw)
        }
        refused(
            &Type::Bytea,
            Reason::WrongType,
            &["1", "[1]", r#""cafe""#, r#""\\xcaf""#, r#""\\xcg""#, r#""""#],
        );
        refused(&Type::Bytea, Reason::NulCharacter, &[r#""\u0000""#]);
        check(&Type::Bytea, r#""\\xCAfe00""#, &[0xca, 0xfe, 0]);
        check(&Type::Bytea, r#""\\x""#, &[]);
        assert_eq!(with(Encoding::Hex, r#""cafe""#), Ok(vec![0xca, 0xfe]));
        assert_eq!(with(Encoding::Hex, r#""\\xcafe""#), Ok(vec![0xca, 0xfe]));
        assert_eq!(with(Encoding::Hex, r#""caf""#), Err(Reason::WrongType));
        assert_eq!(with(Encoding::Base64, r#""yv4=""#), Ok(vec![0xca, 0xfe]));
        assert_eq!(with(Encoding::Base64, r#""yv4""#), Ok(vec![0xca, 0xfe]));
        assert_eq!(with(Encoding::Base64, r#""yv 4""#), Err(Reason::WrongType));
        assert_eq!(with(Encoding::Base64, r#""-_==""#), Err(Reason::WrongType));
        assert_eq!(with(Encoding::Utf8, r#""é\n""#), Ok("é\n".into()));
    }

    #[test]
    fn inets() {
        refused(
            &Type::Inet,
            Reason::WrongType,
            &[
                "1",
                r#""""#,
                r#""localhost""#,
                r#""10.1""#,
                r#""10.0.0.256""#,
                r#""010.0.0.1""#,
                r#""10.0.0.1/33""#,
                r#""10.0.0.1/""#,
                r#""10.0.0.1/+8""#,
                r#""10.0.0.1/08""#,
                r#""10.0.0.1/-8""#,
                r#""10.0.0.1/8/8""#,
                r#""fe80::1%eth0""#,
                r#""::1/129""#,
                r#"" ::1""#,
                r#""[::1]""#,
            ],
        );
        check(&Type::Inet, r#""10.0.0.1""#, &[2, 32, 0, 4, 10, 0, 0, 1]);
        check(&Type::Inet, r#""10.0.0.1/8""#, &[2, 8, 0, 4, 10, 0, 0, 1]);
        check(&Type::Inet, r#""::1/64""#, &[3, 64, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn enums() {
        let ty = Type::Enum { name: "mood".into(), labels: vec!["ok".into(), "sad".into()] };
        refused(&ty, Reason::WrongType, &["1", "[]"]);
        refused(&ty, Reason::UnknownEnumLabel, &[r#""""#, r#""OK""#, r#""ok ""#, r#""happy""#]);
        check(&ty, r#""\u006fk""#, b"ok");
    }

    #[test]
    fn arrays() {
        fn of(element: Type, element_oid: u32) -> Type {
            Type::Array { element: Box::new(element), element_oid }
        }
        fn words(words: &[i32]) -> Vec<u8> {
            words.iter().flat_map(|word| word.to_be_bytes()).collect()
        }
        let ints = of(Type::Int4, 23);
        refused(
            &ints,
            Reason::WrongType,
            &[
                "1",
                "{}",
                r#""{1,2}""#,
                r#"["1"]"#,
                "[1.5]",
                "[{}]",
                "[1,[2]]",
                "[[1],2]",
                "[[1],null]",
                "[[1],[2,3]]",
                "[[]]",
                "[[],[]]",
                "[[1],[]]",
                "[[],[1]]",
                "[[[1]],[[1],[2]]]",
            ],
        );
        refused(&ints, Reason::OutOfRange, &["[1,2147483648]"]);
        refused(&ints, Reason::TooDeep, &["[[[[[[[1]]]]]]]"]);
        check(&ints, "[]", &words(&[0, 0, 23]));
        check(&ints, "[ 1 , null ]", &words(&[1, 1, 23, 2, 1, 4, 1, -1]));
        check(&ints, "[null]", &words(&[1, 1, 23, 1, 1, -1]));
        check(
            &ints,
            " [[1,2,3],[4,5,6]]".trim(),
            &words(&[2, 0, 23, 2, 1, 3, 1, 4, 1, 4, 2, 4, 3, 4, 4, 4, 5, 4, 6]),
        );
        check(&ints, "[\n[\t[7]]]", &words(&[3, 0, 23, 1, 1, 1, 1, 1, 1, 4, 7]));
        refused(&of(Type::Varchar(Some(1)), 1043), Reason::TooLong, &[r#"["ab"]"#, r#"["a "]"#]);
        refused(&of(Type::Text, 25), Reason::NulCharacter, &[r#"["a","\u0000"]"#]);
        check(
            &of(Type::Varchar(Some(1)), 1043),
            r#"["["]"#,
            &[&words(&[1, 0, 1043, 1, 1, 1])[..], b"["].concat(),
        );
        check(
            &of(Type::Json, 114),
            "[[1],null]",
            &[&words(&[1, 1, 114, 2, 1, 3])[..], b"[1]", &words(&[-1])].concat(),
        );
        refused(
            &of(Type::Jsonb, 3802),
            Reason::TooDeep,
            &[&format!("[{}{}]", "[".repeat(129), "]".repeat(129))],
        );
        let reading = counted(Unit::Seconds);
        let times = read(&of(Type::Timestamptz, 1184), &reading, "[946684800]").unwrap();
        assert_eq!(times, [words(&[1, 0, 1184, 1, 1, 8]), vec![0; 8]].concat());
    }

    #[test]
    fn text_from_outside_becomes_the_columns_type() {
        fn of(ty: Type, text: &str) -> Result<Vec<u8>, Reason> {
            let mut out = Vec::new();
            Value::of_text(text, &ty)
                .and_then(|value| from_value(&ty, &Reading::default(), value, &mut out))
                .map(|()| out.split_off(4))
                .map_err(|wrong| wrong.reason)
        }
        assert_eq!(of(Type::Int4, "x"), Err(Reason::WrongType));
        assert_eq!(of(Type::Int4, "1.5"), Err(Reason::WrongType));
        assert_eq!(of(Type::Text, "a\0"), Err(Reason::NulCharacter));
        assert_eq!(of(Type::Varchar(Some(2)), "abc"), Err(Reason::TooLong));
        assert_eq!(of(Type::Bool, "t"), Err(Reason::WrongType));
        assert_eq!(of(Type::Int4, "17"), Ok(17i32.to_be_bytes().to_vec()));
        assert_eq!(of(Type::Float8, "17"), Ok(17f64.to_be_bytes().to_vec()));
        assert_eq!(of(Type::Bool, "true"), Ok(vec![1]));
        assert_eq!(of(Type::Text, "true"), Ok(b"true".to_vec()));
        assert_eq!(of(Type::Text, "17"), Ok(b"17".to_vec()));
    }
}
