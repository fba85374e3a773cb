//! Text that somebody else wrote, made fit for a person's terminal: no character of it moves a cursor, colors a terminal, begins a
//! line or turns the reading direction. Everything that the program prints or logs passes through here, at its very end.

use std::fmt::{self, Display, Write};

/// A text that prints only so.
#[derive(Clone, Copy, Debug)]
pub struct Printable<'a>(pub &'a str);

impl Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| {
            if is_plain(c) { f.write_char(c) } else { c.escape_default().try_for_each(|c| f.write_char(c)) }
        })
    }
}

/// The whole text so.
pub fn printable(text: &str) -> String {
    Printable(text).to_string()
}

/// `escape_debug` leaves alone what is printable. Quotes and backslashes are printable, too: JSON is full of them, and
/// its own `\u001b` cannot be mistaken for our `\u{1b}`.
pub fn is_plain(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// The same text in HTML and XML, within elements and quoted attributes.
pub fn markup(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // XML has no way to write them.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => safe.push(' '),
            c => safe.push(c),
        }
    }
    safe
}

/// JSON that means the same and prints safely: such characters stand in JSON's own strings only, which have an escape for each.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // A String takes all.
                write!(out, "\\u{unit:04x}").ok();
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_it_acts_on_a_terminal() {
        assert_eq!(printable("\u{1b}]8;;http://x\u{7}"), "\\u{1b}]8;;http://x\\u{7}");
        assert_eq!(printable("a\nb\t\r\u{85}\u{9b}"), "a\\nb\\t\\r\\u{85}\\u{9b}");
        assert_eq!(printable("\u{202e}\u{2066}\u{2028}\u{feff}\u{200b}\0\u{7f}").matches('\\').count(), 7);
        assert_eq!(printable(r#"{"a":'\n'} naïve 日本 🚀"#), r#"{"a":'\n'} naïve 日本 🚀"#);
        assert_eq!(printable(&printable("\n\u{1b}")), printable("\n\u{1b}"), "once is enough");
    }

    #[test]
    fn json_keeps_its_meaning() {
        for text in ["\u{1b}[2J", "\u{9b}m\u{202e}x", "\u{e0001}", "a\u{7f}\u{85}\u{2028}\n\"\\", "日本 🚀"]
        {
            let value = serde_json::json!({ text: [text] });
            let printed = json(&value.to_string());
            assert_eq!(printed, printable(&printed), "{text:?}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&printed).unwrap(), value);
        }
    }
}
