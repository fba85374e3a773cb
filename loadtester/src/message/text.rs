//! Bytes of messages: digits, hexadecimal, JSON strings, parts of addresses, times. Everything appends to a buffer, because a
//! message is written without an allocation.

/// The lower `width` hexadecimal digits.
pub fn hex(out: &mut Vec<u8>, n: u64, width: u32) {
    for place in (0..width).rev() {
        out.push(b"0123456789abcdef"[(n >> (place * 4) & 15) as usize]);
    }
}

/// Decimal digits, with leading zeros up to `width`.
pub fn digits(out: &mut Vec<u8>, mut n: u64, width: usize) {
    let mut buffer = [b'0'; 20];
    let mut at = buffer.len();
    while n > 0 || buffer.len() - at < width {
        at -= 1;
        buffer[at] = b'0' + (n % 10) as u8;
        n /= 10;
    }
    out.extend_from_slice(&buffer[at..]);
}

pub fn integer(out: &mut Vec<u8>, n: i64) {
    if n < 0 {
        out.push(b'-');
    }
    digits(out, n.unsigned_abs(), 1);
}

/// A number of 10 to the minus `places`, with as many digits after the point.
pub fn decimal(out: &mut Vec<u8>, n: i64, places: u8) {
    if places == 0 {
        return integer(out, n);
    }
    if n < 0 {
        out.push(b'-');
    }
    let unit = 10u64.pow(u32::from(places));
    digits(out, n.unsigned_abs() / unit, 1);
    out.push(b'.');
    digits(out, n.unsigned_abs() % unit, usize::from(places));
}

pub fn json_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for &byte in text {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            0..0x20 => {
                out.extend_from_slice(b"\\u00");
                hex(out, u64::from(byte), 2);
            }
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

/// As a part of a path or a query: what RFC 3986 calls unreserved stays as it is.
pub fn address(out: &mut Vec<u8>, text: &[u8]) {
    for &byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte);
        } else {
            out.push(b'%');
            out.extend_from_slice(&[
                b"0123456789ABCDEF"[usize::from(byte >> 4)],
                b"0123456789ABCDEF"[usize::from(byte & 15)],
            ]);
        }
    }
}

/// RFC 3339 in UTC with microseconds; the text of the last second is kept.
#[derive(Default)]
pub struct Rfc3339 {
    second: Option<i64>,
    text: Vec<u8>,
}

impl Rfc3339 {
    pub fn write(&mut self, out: &mut Vec<u8>, time_us: i64) {
        let second = time_us.div_euclid(1_000_000);
        if self.second != Some(second) {
            let time = jiff::Timestamp::from_second(second).unwrap_or_default();
            self.text.clear();
            self.text.extend_from_slice(time.strftime("%Y-%m-%dT%H:%M:%S.").to_string().as_bytes());
            self.second = Some(second);
        }
        out.extend_from_slice(&self.text);
        digits(out, time_us.rem_euclid(1_000_000) as u64, 6);
        out.push(b'Z');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers() {
        let rows = [(0, 0, "0"), (-5, 0, "-5"), (5, 2, "0.05"), (-1234, 2, "-12.34"), (1, 9, "0.000000001")];
        for (n, places, text) in rows {
            assert_eq!(written(|out| decimal(out, n, places)), text);
        }
        assert_eq!(written(|out| hex(out, 0xabc, 8)), "00000abc");
    }

    #[test]
    fn texts() {
        let all = "a\"b\\c\n\u{1}é";
        assert_eq!(
            serde_json::from_str::<String>(&written(|out| json_string(out, all.as_bytes()))).unwrap(),
            all
        );
        assert_eq!(written(|out| address(out, "a b/é~".as_bytes())), "a%20b%2F%C3%A9~");
    }
}
