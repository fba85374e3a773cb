//! Text that servers, files or names brought along, on its way to a person: as they wrote it, but for what acts on a terminal, ends a
//! line, hides, or turns the reading direction, which is shown by its number.

/// The text on one line.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_quiet(c) {
            shown.push(c);
        } else {
            shown.extend(c.escape_default());
        }
    }
    shown
}

/// The same where a text may have several lines: all but the first are set in, so that none of them looks like another message.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n    ")
}

/// What Unicode calls printable, quotes and backslashes included: `escape_debug` leaves it alone, or puts one character before it.
fn is_quiet(c: char) -> bool {
    c == '"' || c == '\'' || c == '\\' || c.escape_debug().eq([c])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_and_everything_is_there() {
        let rows = [
            ("plain 'and' \"quoted\" \\n", "plain 'and' \"quoted\" \\n"),
            ("\u{1b}[2J\u{7}", "\\u{1b}[2J\\u{7}"),
            ("a\r\nPassed", "a\\r\\nPassed"),
            ("\u{9b}31m\u{202e}\u{feff}\u{2028}", "\\u{9b}31m\\u{202e}\\u{feff}\\u{2028}"),
            ("naïve 日本 🚀", "naïve 日本 🚀"),
        ];
        for (text, shown) in rows {
            assert_eq!(printable(text), shown);
        }
        assert_eq!(printable_lines("one\ntwo\u{1b}"), "one\n    two\\u{1b}");
    }
}
