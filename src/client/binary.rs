//! PostgreSQL's binary COPY: the frame around the rows, fields, and times as it counts them. Source: the documentation of
//! COPY, "Binary Format".

/// Signature, no flags, no header extension.
pub const HEADER: [u8; 19] = *b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// A field count of -1 ends the data.
pub const TRAILER: [u8; 2] = [0xff, 0xff];

/// The length of a field that is NULL.
const NULL: i32 = -1;

/// Appends a field: its length, and its bytes.
#[inline]
pub fn field(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(4 + bytes.len());
    out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
    out.extend_from_slice(bytes);
}

#[inline]
pub fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(&NULL.to_be_bytes());
}

/// A field, or NULL.
pub fn optional(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
    match bytes {
        Some(bytes) => field(bytes, out),
        None => null(out),
    }
}

/// Leaves room for a field's length; the field's bytes begin at what this returns.
pub fn begin(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; 4]);
    out.len()
}

/// Fills in the length of the field that began at `start`; the length.
pub fn finish(start: usize, out: &mut [u8]) -> usize {
    let length = out.len() - start;
    out[start - 4..start].copy_from_slice(&(length as i32).to_be_bytes());
    length
}

const MICROS_PER_SECOND: i64 = 1_000_000;

pub const MICROS_PER_DAY: i64 = 86_400 * MICROS_PER_SECOND;

/// From 1970-01-01, where the world counts from, to 2000-01-01, where PostgreSQL does.
pub const SECONDS_1970_TO_2000: i64 = 946_684_800;

/// PostgreSQL's own range, in microseconds since 2000: 4713 BC (its day zero is in November of 4714 BC) up to, not
/// including, the year 294277.
pub const MICROS: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// Microseconds since 1970 to microseconds since 2000; `None` beyond PostgreSQL's range, the last thirty years of which fit
/// 64 bits only when counted from 2000.
pub fn micros_since_2000(micros_since_1970: i128) -> Option<i64> {
    let micros = micros_since_1970 - i128::from(SECONDS_1970_TO_2000 * MICROS_PER_SECOND);
    i64::try_from(micros).ok().filter(|micros| MICROS.contains(micros))
}

/// A Kafka timestamp, in milliseconds since 1970, to microseconds since 2000; `None` beyond PostgreSQL's range.
pub fn micros_of_millis(millis: i64) -> Option<i64> {
    micros_since_2000(i128::from(millis) * 1000)
}

/// This moment by this machine's clock, in microseconds since 2000.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_microsecond() - SECONDS_1970_TO_2000 * MICROS_PER_SECOND
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_their_lengths() {
        let mut out = Vec::new();
        optional(Some(b"ab"), &mut out);
        optional(None, &mut out);
        let start = begin(&mut out);
        out.push(7);
        assert_eq!(finish(start, &mut out), 1);
        assert_eq!(out, [0, 0, 0, 2, b'a', b'b', 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 7]);
    }

    #[test]
    fn times_are_counted_from_2000_within_the_range_there_is() {
        assert_eq!(micros_of_millis(i64::MAX), None);
        assert_eq!(micros_of_millis(i64::MIN), None);
        assert_eq!(micros_of_millis(0), Some(-SECONDS_1970_TO_2000 * MICROS_PER_SECOND));
    }
}
