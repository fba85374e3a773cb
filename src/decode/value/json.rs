//! What a valid JSON text may still hold that PostgreSQL does not: found in one walk over its bytes.
//! Everything here is given text that serde_json has already accepted as JSON.

use super::decimal::Decimal;
use super::wrong::{Wrong, nul, out_of_range};
use crate::decode::reject::Reason;

/// The content of a JSON string (quotes included in `raw`); without escapes it is borrowed as it stands.
pub(crate) fn unescape<'a>(raw: &'a str, scratch: &'a mut String) -> Result<&'a str, Wrong> {
    let inner = raw.get(1..raw.len() - 1).unwrap_or_default();
    if !inner.as_bytes().contains(&b'\\') {
        return Ok(inner);
    }
    scratch.clear();
    let mut rest = inner;
    while let Some(at) = rest.find('\\') {
        scratch.push_str(&rest[..at]);
        let (c, after) = escape(&rest[at + 1..])?;
        if c == '\0' {
            return Err(nul());
        }
        scratch.push(c);
        rest = after;
    }
    scratch.push_str(rest);
    Ok(scratch)
}

/// What follows a backslash, as one character, and what comes after it.
fn escape(text: &str) -> Result<(char, &str), Wrong> {
    let c = match text.as_bytes().first() {
        Some(b'n') => '\n',
        Some(b't') => '\t',
        Some(b'r') => '\r',
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'u') => return unicode_escape(&text[1..]),
        Some(c @ (b'"' | b'\\' | b'/')) => *c as char,
        _ => return Err(broken_escape()),
    };
    Ok((c, &text[1..]))
}

fn unicode_escape(text: &str) -> Result<(char, &str), Wrong> {
    let (high, after) = four_digits(text)?;
    if let Some(c) = char::from_u32(high) {
        return Ok((c, after));
    }
    // Half a character: the other half must follow, and in the right order.
    if let Some(rest) = after.strip_prefix("\\u").filter(|_| high < 0xdc00) {
        let (low, after) = four_digits(rest)?;
        if (0xdc00..0xe000).contains(&low) {
            let c = char::from_u32(0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00));
            return c.map(|c| (c, after)).ok_or_else(broken_escape);
        }
    }
    Err(broken_escape())
}

fn four_digits(text: &str) -> Result<(u32, &str), Wrong> {
    let digits = text.get(..4).ok_or_else(broken_escape)?;
    let value = u32::from_str_radix(digits, 16).map_err(|_| broken_escape())?;
    Ok((value, &text[4..]))
}

fn broken_escape() -> Wrong {
    Wrong::new(Reason::InvalidUnicode, "the text has a \\u escape that is only half of a character")
}

/// Refuses values nested deeper than `depth_max`; the server's own bound is its stack.
pub(super) fn check_depth(raw: &str, depth_max: usize) -> Result<(), Wrong> {
    walk(raw, depth_max, false)
}

/// The same, and what jsonb refuses although it is JSON.
pub(super) fn check_jsonb(raw: &str, depth_max: usize) -> Result<(), Wrong> {
    walk(raw, depth_max, true)
}

fn walk(raw: &str, depth_max: usize, jsonb: bool) -> Result<(), Wrong> {
    let bytes = raw.as_bytes();
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&c) = bytes.get(at) {
        at += 1;
        match c {
            b'{' | b'[' => {
                depth += 1;
                if depth > depth_max {
                    let why = format!("the value is nested deeper than {depth_max} levels");
                    return Err(Wrong::new(Reason::TooDeep, why));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b'"' => at = skip_string(raw, at, jsonb)?,
            b'-' | b'0'..=b'9' => {
                let end = at + number_length(&bytes[at..]);
                if jsonb {
                    check_number(&raw[at - 1..end])?;
                }
                at = end;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Returns where the string that begins at `at` (after its quote) has ended.
fn skip_string(raw: &str, mut at: usize, jsonb: bool) -> Result<usize, Wrong> {
    let bytes = raw.as_bytes();
    while let Some(&c) = bytes.get(at) {
        at += 1;
        match c {
            b'"' => return Ok(at),
            b'\\' if jsonb => {
                let (c, after) = escape(&raw[at..])?;
                if c == '\0' {
                    return Err(nul());
                }
                at = raw.len() - after.len();
            }
            b'\\' => at += 1,
            _ => {}
        }
    }
    Ok(at)
}

fn number_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|c| matches!(c, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-')).count()
}

/// Short numbers without an exponent always fit.
fn check_number(text: &str) -> Result<(), Wrong> {
    if text.len() < 1000 && !text.bytes().any(|c| matches!(c, b'e' | b'E')) {
        return Ok(());
    }
    match Decimal::parse(text) {
        Some(number) if number.fits_numeric() => Ok(()),
        _ => Err(out_of_range("a number in it is beyond what jsonb can hold")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn strings_lose_their_escapes() {
        fn check(raw: &str, expected: Result<&str, Reason>) {
            let mut scratch = String::new();
            assert_eq!(unescape(raw, &mut scratch).map_err(|wrong| wrong.reason), expected, "{raw}");
        }
        check(r#""\u0000""#, Err(Reason::NulCharacter));
        check(r#""a\u0000b""#, Err(Reason::NulCharacter));
        check(r#""\ud800""#, Err(Reason::InvalidUnicode));
        check(r#""\udc00""#, Err(Reason::InvalidUnicode));
        check(r#""\ud800x""#, Err(Reason::InvalidUnicode));
        check(r#""\ud800\n""#, Err(Reason::InvalidUnicode));
        check(r#""\ud800\ud800\udc00""#, Err(Reason::InvalidUnicode));
        check(r#""\udc00\ud800""#, Err(Reason::InvalidUnicode));
        check(r#""""#, Ok(""));
        check(r#""plain""#, Ok("plain"));
        check(r#""\"\\\/\b\f\n\r\t""#, Ok("\"\\/\u{8}\u{c}\n\r\t"));
        check(r#""\u00e9 \u00E9 \ud83d\ude80""#, Ok("é é 🚀"));
        check(r#""\\u0000""#, Ok("\\u0000"));
        check(r#""ends in \\""#, Ok("ends in \\"));
        check(r#""日\n本""#, Ok("日\n本"));
        check(r#""\ufffe\u2028""#, Ok("\u{fffe}\u{2028}"));
    }

    #[test]
    fn jsonb_is_more_particular_than_json() {
        fn check(raw: &str, expected: Result<(), Reason>) {
            assert_eq!(check_jsonb(raw, 3).map_err(|wrong| wrong.reason), expected, "{raw:.60}");
        }
        check(r#"{"a":"\u0000"}"#, Err(Reason::NulCharacter));
        check(r#"{"\u0000":1}"#, Err(Reason::NulCharacter));
        check(r#"["\ud83d"]"#, Err(Reason::InvalidUnicode));
        check(r#"["\ud83dx"]"#, Err(Reason::InvalidUnicode));
        check("[1e131072]", Err(Reason::OutOfRange));
        check("-1e-20000", Err(Reason::OutOfRange));
        check(&"9".repeat(131_073), Err(Reason::OutOfRange));
        check("[[[[]]]]", Err(Reason::TooDeep));
        check(r#"{"a":[{"b":[]}]}"#, Err(Reason::TooDeep));
        check(r#"{"a":[{"b":1}]}"#, Ok(()));
        check(r#"["[[[[{{{{","\"[[[[","\\","🚀\ud83d\ude80"]"#, Ok(()));
        check("[1e400,-0,1E-300]", Ok(()));
        check("null", Ok(()));
        assert_eq!(check_depth(r#"["\u0000\ud800",1e999999]"#, 1), Ok(()));
        assert!(check_depth("[[]]", 1).is_err());
    }

    proptest! {
        #[test]
        fn every_string_comes_back(text: String) {
            let raw = serde_json::to_string(&text).unwrap();
            let mut scratch = String::new();
            match unescape(&raw, &mut scratch) {
                Ok(found) => prop_assert_eq!(found, &text),
                Err(wrong) => prop_assert!(wrong.reason == Reason::NulCharacter && text.contains('\0')),
            }
            prop_assert_eq!(check_jsonb(&raw, 0).is_ok(), !text.contains('\0'));
        }

        #[test]
        fn escaped_units_join_as_serde_json_joins_them(units: Vec<u16>) {
            let escapes: String = units.iter().map(|unit| format!("\\u{unit:04x}")).collect();
            let raw = format!("\"{escapes}\"");
            let expected = serde_json::from_str::<String>(&raw).ok().filter(|text| !text.contains('\0'));
            let mut scratch = String::new();
            prop_assert_eq!(unescape(&raw, &mut scratch).ok().map(str::to_owned), expected.clone());
            prop_assert_eq!(check_jsonb(&raw, 0).is_ok(), expected.is_some());
        }
    }
}
