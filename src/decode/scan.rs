//! One pass over a JSON object: which member stands where. What it accepts is JSON, all of it and nothing else (a test
//! holds it against serde_json); what it refuses, serde_json is asked to describe.
//!
//! It is here, and not serde_json alone, because a record's values are needed as text and not as values: serde_json's way
//! to that reads every member twice, and that was a third of the decoder's time.

use serde::Deserialize as _;
use serde_json::value::RawValue;
use wide::u8x16;

/// The text is not JSON, or not an object where one must stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotJson;

/// Reads forward over a text; stands before the first byte that it has not read.
pub(super) struct Scan<'t> {
    text: &'t str,
    pub(super) at: usize,
}

impl<'t> Scan<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// What was read since `start`.
    pub(super) fn since(&self, start: usize) -> &'t str {
        &self.text[start..self.at]
    }

    /// Passes white space, and says what comes next; 0, which is never JSON, at the end.
    pub(super) fn next(&mut self) -> u8 {
        loop {
            match self.peek() {
                b' ' | b'\n' | b'\t' | b'\r' => self.at += 1,
                c => return c,
            }
        }
    }

    /// Passes exactly this byte, and white space before it.
    pub(super) fn expect(&mut self, wanted: u8) -> Result<(), NotJson> {
        if self.next() != wanted {
            return Err(NotJson);
        }
        self.at += 1;
        Ok(())
    }

    /// Passes these bytes if they stand right here.
    pub(super) fn skip(&mut self, wanted: &[u8]) -> bool {
        let found = self.rest().starts_with(wanted);
        self.at += if found { wanted.len() } else { 0 };
        found
    }

    /// Moves to the next member of an object whose brace was read: its key stands here then. `false` after the last one.
    pub(super) fn member(&mut self, first: bool) -> Result<bool, NotJson> {
        match self.next() {
            b'}' => {
                self.at += 1;
                return Ok(false);
            }
            b',' if !first => {
                self.at += 1;
                self.next();
            }
            _ if first => {}
            _ => return Err(NotJson),
        }
        if self.peek() == b'"' { Ok(true) } else { Err(NotJson) }
    }

    /// Passes one value; white space before it was passed. True if it may have escapes in it: where not, a string's
    /// content is what stands between its quotes.
    #[inline]
    pub(super) fn value(&mut self) -> Result<bool, NotJson> {
        match self.peek() {
            b'"' => return self.string(),
            b'-' | b'0'..=b'9' => self.number()?,
            b'{' | b'[' => {
                self.compound()?;
                return Ok(true);
            }
            _ if self.skip(b"null") || self.skip(b"true") || self.skip(b"false") => {}
            _ => return Err(NotJson),
        }
        Ok(false)
    }

    /// Passes a string, from quote to quote; true if it has escapes. Half a surrogate pair is accepted here, as JSON's
    /// grammar does.
    pub(super) fn string(&mut self) -> Result<bool, NotJson> {
        self.at += 1;
        let mut escapes = false;
        loop {
            self.at += plain_length(self.rest());
            match self.peek() {
                b'"' => {
                    self.at += 1;
                    return Ok(escapes);
                }
                b'\\' => self.escape()?,
                _ => return Err(NotJson),
            }
            escapes = true;
        }
    }

    fn escape(&mut self) -> Result<(), NotJson> {
        self.at += match self.rest() {
            [_, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => 2,
            [_, b'u', digits @ ..] if digits.len() >= 4 && digits[..4].iter().all(u8::is_ascii_hexdigit) => 6,
            _ => return Err(NotJson),
        };
        Ok(())
    }

    fn number(&mut self) -> Result<(), NotJson> {
        self.skip(b"-");
        if !self.skip(b"0") {
            self.digits()?;
        }
        if self.skip(b".") {
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            let _sign = self.skip(b"+") || self.skip(b"-");
            self.digits()?;
        }
        Ok(())
    }

    /// One digit or more.
    fn digits(&mut self) -> Result<(), NotJson> {
        let count = self.rest().iter().take_while(|c| c.is_ascii_digit()).count();
        self.at += count;
        if count > 0 { Ok(()) } else { Err(NotJson) }
    }

    /// Passes an array or object that nobody looks into, without recursion: one bit tells for each level which of the two
    /// it is.
    fn compound(&mut self) -> Result<(), NotJson> {
        let start = self.at;
        let (mut depth, mut objects) = (0, 0u64);
        loop {
            let open = self.next();
            if matches!(open, b'{' | b'[') {
                if depth == u64::BITS {
                    self.at = start;
                    return self.deep();
                }
                self.at += 1;
                depth += 1;
                objects = objects << 1 | u64::from(open == b'{');
                if !matches!(self.next(), b'}' | b']') {
                    self.key_of(objects)?;
                    continue;
                }
            } else {
                self.value()?;
            }
            loop {
                match (self.next(), objects & 1) {
                    (b',', _) => {
                        self.at += 1;
                        self.next();
                        self.key_of(objects)?;
                        break;
                    }
                    (b'}', 1) | (b']', 0) => {
                        self.at += 1;
                        depth -= 1;
                        objects >>= 1;
                    }
                    _ => return Err(NotJson),
                }
                if depth == 0 {
                    return Ok(());
                }
            }
        }
    }

    /// In an object, passes what comes before a member's value.
    fn key_of(&mut self, objects: u64) -> Result<(), NotJson> {
        if objects & 1 == 0 {
            return Ok(());
        }
        if self.peek() != b'"' {
            return Err(NotJson);
        }
        self.string()?;
        self.expect(b':')
    }

    /// More levels than there are bits: serde_json has no bound here.
    fn deep(&mut self) -> Result<(), NotJson> {
        let mut reader = serde_json::Deserializer::from_str(&self.text[self.at..]);
        let raw = <&RawValue>::deserialize(&mut reader).map_err(|_| NotJson)?;
        self.at += raw.get().len();
        Ok(())
    }

    fn peek(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    /// What was not read yet.
    pub(super) fn rest(&self) -> &'t [u8] {
        &self.text.as_bytes()[self.at..]
    }
}

/// How many bytes come before the first quote, backslash or control character.
#[inline]
fn plain_length(bytes: &[u8]) -> usize {
    let (chunks, tail) = bytes.as_chunks::<16>();
    for (index, chunk) in chunks.iter().enumerate() {
        let ends = ends(*chunk);
        if ends != 0 {
            return index * 16 + ends.trailing_zeros() as usize;
        }
    }
    // Where the text ends, the string does.
    let mut last = [b'"'; 16];
    last[..tail.len()].copy_from_slice(tail);
    chunks.len() * 16 + ends(last).trailing_zeros() as usize
}

/// One bit, the lowest for the first byte, for each quote, backslash and control character.
#[inline]
fn ends(bytes: [u8; 16]) -> i32 {
    let bytes = u8x16::from(bytes);
    let quotes = bytes.cmp_eq(u8x16::splat(b'"'));
    let backslashes = bytes.cmp_eq(u8x16::splat(b'\\'));
    let controls = bytes.min(u8x16::splat(0x1f)).cmp_eq(bytes);
    (quotes | backslashes | controls).move_mask()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(text: &str) -> bool {
        let mut scan = Scan::new(text);
        scan.next();
        scan.value().is_ok() && scan.next() == 0 && scan.at == text.len()
    }

    fn serde_json_accepts(text: &str) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
    }

    #[test]
    fn numbers_follow_the_grammar() {
        for text in ["0", "-0", "10", "1.5", "-0.0e+10", "1E5", "1e-5", "123456789012345678901234567890"] {
            assert!(accepts(text), "{text}");
        }
        for text in ["", "-", "01", "+1", "1.", ".5", "1e", "1e+", "--1", "1.5.5", "0x1", "1_0", "NaN", "1\0"]
        {
            assert!(!accepts(text), "{text}");
        }
    }

    #[test]
    fn strings_end_where_they_end() {
        let long = "x".repeat(100);
        for text in
            [r#""""#, r#""a""#, r#""\"""#, r#""\\""#, r#""\u00e9\ud800""#, r#""日本語🚀""#, "\"\u{7f}\""]
        {
            assert!(accepts(text), "{text}");
        }
        for text in
            ["\"", r#""a"#, r#""\""#, r#""\x""#, r#""\u12"#, r#""\u12g4""#, "\"\n\"", "\"\0\"", r#"""""#]
        {
            assert!(!accepts(text), "{text}");
        }
        for length in 0..40 {
            let text = format!("\"{}\"", &long[..length]);
            assert!(accepts(&text), "{text}");
            assert!(!accepts(&text[..=length]), "{text}");
        }
    }

    #[test]
    fn words_and_bytes_find_the_same() {
        for special in [b'"', b'\\', 0, 0x1f] {
            for at in 0..24 {
                for around in [b'a', 0x20, 0x21, 0x23, 0x5b, 0x5d, 0x7f, 0x80, 0xa2, 0xdc, 0xff] {
                    let mut bytes = vec![around; 24];
                    bytes[at] = special;
                    assert_eq!(plain_length(&bytes), at, "{special} among {around}");
                }
            }
        }
    }

    #[test]
    fn levels_have_no_bound() {
        for depth in [1, 63, 64, 65, 10_000] {
            let text = format!("{}1{}", "[{\"a\":".repeat(depth), "}]".repeat(depth));
            assert!(accepts(&text), "{depth}");
            assert!(!accepts(&text.replacen("}]", "]}", 1)), "{depth}");
            assert!(!accepts(&text[..text.len() - 1]), "{depth}");
        }
    }

    fn nested() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just(String::new()),
            Just("1".to_owned()),
            Just(r#""}]""#.to_owned()),
            Just(" ".to_owned())
        ];
        leaf.prop_recursive(5, 30, 4, |inner| {
            let list = prop::collection::vec(inner, 0..4);
            (list, "[\\[{]", "[\\]}]", prop::bool::ANY).prop_map(|(items, open, close, keys)| {
                let keyed =
                    items.iter().map(|item| if keys { format!("\"k\" : {item}") } else { item.clone() });
                format!("{open}{}{close}", keyed.collect::<Vec<_>>().join(","))
            })
        })
    }

    proptest! {
        #[test]
        fn nests_are_judged_as_serde_json_judges_them(text in nested()) {
            prop_assert_eq!(accepts(&text), serde_json_accepts(&text));
        }

        #[test]
        fn strings_are_judged_as_serde_json_judges_them(content in "[\\x00-\\x7fé日🚀\"\\\\u0-9a-f]{0,20}") {
            let text = format!("\"{content}\"");
            prop_assert_eq!(accepts(&text), serde_json_accepts(&text));
        }

        #[test]
        fn numbers_are_judged_as_serde_json_judges_them(text in "[-+.eE0-9]{1,6}") {
            prop_assert_eq!(accepts(&text), serde_json_accepts(&text));
        }

        #[test]
        fn texts_are_judged_as_serde_json_judges_them(text in "[\\[\\]{}:, \"1a]{0,12}|[ \\t\\n]?(null|true|false|nul|truE)[ \\r,]?") {
            prop_assert_eq!(accepts(&text), serde_json_accepts(&text));
        }
    }
}
