//! Why a record cannot become a row: a closed set of reasons with stable codes, and a sentence for people.
//! A reject is data, not an error (it becomes a dead letter); this file never decides what happens to it.

use std::fmt;

use crate::base::printable::is_plain;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal,)*) => {
        /// Why a record was refused. The codes stand in the dead-letter table and in metric labels: they never change.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
        }

        impl Reason {
            /// Every reason, for metrics that must exist before the first reject.
            pub const ALL: &[Reason] = &[$(Reason::$variant,)*];

            /// The stable name of the reason.
            pub fn code(self) -> &'static str {
                match self {
                    $(Reason::$variant => $code,)*
                }
            }
        }
    };
}

reasons! {
    /// The value is not one JSON text: empty, cut off, followed by something else, or not JSON at all.
    InvalidJson = "invalid_json",
    /// The bytes that the model's framing promises are not there.
    NotFramed = "not_framed",
    /// The bytes are not UTF-8.
    InvalidUtf8 = "invalid_utf8",
    /// A `\u` escape that stands for half a character, which no PostgreSQL text can hold.
    InvalidUnicode = "invalid_unicode",
    /// The value is JSON, but not an object.
    NotAnObject = "not_an_object",
    /// No list of records is where the model has one.
    NoRecords = "no_records",
    /// The record is larger than the configured bound, or one of its columns than PostgreSQL's.
    TooLarge = "too_large",
    /// A captured value is nested deeper than the configured bound.
    TooDeep = "too_deep",
    /// The record has no value, and the model does not skip such records.
    Tombstone = "tombstone",
    /// No model of the topic takes the record.
    Unroutable = "unroutable",
    /// No field that the model looks for is in the message.
    NothingTaken = "nothing_taken",
    /// The field of a NOT NULL column is absent.
    MissingField = "missing_field",
    /// The field of a NOT NULL column is null.
    NullNotAllowed = "null_not_allowed",
    /// The value is of a kind that the column does not take.
    WrongType = "wrong_type",
    /// A number or time beyond what the column's type can hold.
    OutOfRange = "out_of_range",
    /// More characters than varchar(n) or char(n) can hold.
    TooLong = "too_long",
    /// The character U+0000, which no PostgreSQL text can hold.
    NulCharacter = "nul_character",
    /// A date or time that is not in the one accepted form, or that no calendar has.
    InvalidTime = "invalid_time",
    /// A time that its column could hold, in a year that its model takes for a mistake.
    ImplausibleTime = "implausible_time",
    /// A value that is not one of the enum's labels.
    UnknownEnumLabel = "unknown_enum_label",
    /// The lookup does not know the token.
    UnknownToken = "unknown_token",
}

impl Reason {
    /// The reason with this code; `None` for a server's own.
    pub fn of(code: &str) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    /// A letter with this reason and sentence was written before anybody could say whose record it is: all tables of its topic
    /// missed it. A column or table can have some of the reasons, too; it is named first in the sentence then.
    pub fn is_of_no_table(self, message: &str) -> bool {
        use Reason::{
            InvalidJson, InvalidUtf8, NoRecords, NotAnObject, NotFramed, Tombstone, TooLarge, Unroutable,
        };
        let unread = matches!(
            self,
            TooLarge | NotFramed | InvalidUtf8 | InvalidJson | NotAnObject | NoRecords | Tombstone
        );
        (unread || self == Unroutable) && ![COLUMN, TABLE].iter().any(|own| message.starts_with(own))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// One refused record: the reason for machines, the sentence for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    pub reason: Reason,
    /// Names column and field, and shows an [`excerpt`] of what was found. Safe to print on a terminal.
    pub message: String,
}

impl Reject {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

/// How the sentence about one column of a record begins.
pub const COLUMN: &str = "column ";

/// And the one about what a record would be in one table.
pub const TABLE: &str = "table ";

const EXCERPT_CHARACTERS_MAX: usize = 80;

/// At most 80 characters of a value that someone else wrote, escaped so that it cannot move a cursor, color a terminal,
/// start a new line in a log or reverse the reading direction.
pub fn excerpt(text: &str) -> String {
    let mut shown = String::new();
    let mut count = 0;
    for c in text.chars() {
        let escaped = !is_plain(c);
        let width = if escaped { c.escape_default().count() } else { 1 };
        if count + width >= EXCERPT_CHARACTERS_MAX {
            shown.push('…');
            break;
        }
        if escaped {
            shown.extend(c.escape_default())
        } else {
            shown.push(c)
        }
        count += width;
    }
    shown
}

/// The same for bytes that need not be UTF-8.
pub fn excerpt_bytes(bytes: &[u8]) -> String {
    // Four bytes a character at most, so the cut never shortens what would have been shown.
    excerpt(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * EXCERPT_CHARACTERS_MAX)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_cannot_act_on_a_terminal() {
        fn check(input: &str, expected: &str) {
            assert_eq!(excerpt(input), expected, "{input:?}");
        }
        check("\u{1b}]8;;http://x\u{7}", "\\u{1b}]8;;http://x\\u{7}");
        check("a\nb\tc\r", "a\\nb\\tc\\r");
        check("\u{202e}abc", "\\u{202e}abc");
        check("\u{2028}", "\\u{2028}");
        check("\0", "\\u{0}");
        check(r"a\b \u001b", r"a\b \u001b");
        check("", "");
        check(r#"{"a":'b'}"#, r#"{"a":'b'}"#);
        check("naïve 日本 🚀", "naïve 日本 🚀");
    }

    #[test]
    fn an_excerpt_is_short() {
        for text in ["x".repeat(1000), "\u{1}".repeat(1000), "🚀".repeat(1000)] {
            let shown = excerpt(&text);
            assert!(shown.chars().count() <= EXCERPT_CHARACTERS_MAX && shown.ends_with('…'), "{shown}");
        }
        assert!(excerpt_bytes(&[0xff; 1000]).chars().count() <= EXCERPT_CHARACTERS_MAX);
        assert_eq!(excerpt(&"x".repeat(79)), "x".repeat(79));
    }

    #[test]
    fn every_code_is_documented() {
        let document = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/message-format.md"));
        for reason in Reason::ALL {
            assert!(document.contains(&format!("\n| `{reason}` | ")), "{reason}");
        }
    }

    #[test]
    fn codes_are_distinct_and_snake_case() {
        let mut codes: Vec<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        assert!(
            codes
                .iter()
                .all(|c| c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        );
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len());
    }
}
