//! An event: what a message says of its account, its time and its data, and how that is written in a line. Pure.

use std::fmt::{self, Display, Write as _};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::order::Place;
use crate::base::printable::{self, printable};
use crate::config::{AccountType, FieldNames};

/// Whose event it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Account {
    Number(u64),
    Text(String),
}

impl Account {
    /// As a person writes it; `None` for what is none.
    pub fn parse(text: &str, ty: AccountType) -> Option<Account> {
        match ty {
            AccountType::Number => {
                let is_plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
                let number = is_plain.then(|| text.parse::<u64>().ok()).flatten();
                number.filter(|number| *number > 0).map(Account::Number)
            }
            AccountType::Text => {
                Some(text).filter(|text| !text.is_empty()).map(|text| Account::Text(text.to_owned()))
            }
        }
    }

    fn json(&self) -> Value {
        match self {
            Account::Number(number) => json!(number),
            Account::Text(text) => json!(text),
        }
    }
}

impl Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Account::Number(number) => write!(f, "{number}"),
            Account::Text(text) => f.write_str(text),
        }
    }
}

/// A message that is an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub account: Account,
    pub at: Timestamp,
    pub data: String,
    /// `None` where the data has it.
    pub host: Option<String>,
    pub id: Option<String>,
}

/// A message, whatever it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `None` where nobody numbered it.
    pub place: Option<Place>,
    /// Or its text, which is none.
    pub event: Result<Event, String>,
}

/// Reads messages of one configuration.
pub struct Reader {
    pub names: FieldNames,
    pub account_type: AccountType,
}

impl Reader {
    /// A message as its bytes. `place` and `at` are what the source itself knows of it, and come first and last.
    pub fn read(&self, bytes: &[u8], place: Option<Place>, at: Option<Timestamp>) -> Message {
        match serde_json::from_slice::<Value>(bytes) {
            Ok(Value::Object(fields)) => self.fields(&fields, place, at, || shown(bytes)),
            _ => Message { place, event: Err(shown(bytes)) },
        }
    }

    /// A message as fields.
    pub fn fields(
        &self,
        fields: &Map<String, Value>,
        place: Option<Place>,
        at: Option<Timestamp>,
        text: impl FnOnce() -> String,
    ) -> Message {
        let find = |names: &[String]| {
            names.iter().find_map(|name| fields.get(name)).filter(|value| !value.is_null())
        };
        let word = |names: &[String]| find(names).map(plain);
        let place = place.or_else(|| Place::parse(&word(&self.names.at)?));
        let account = word(&self.names.account).and_then(|text| Account::parse(&text, self.account_type));
        let written = word(&self.names.time).and_then(|text| text.parse::<Timestamp>().ok());
        let event = match (account, written.or(at), word(&self.names.data)) {
            (Some(account), Some(at), Some(data)) => {
                Ok(Event { account, at, data, host: word(&self.names.host), id: word(&self.names.id) })
            }
            _ => Err(text()),
        };
        Message { place, event }
    }
}

/// A value as text.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// Bytes as text, where what is no text is written as in a string of C.
pub fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // A String takes all.
            write!(text, "\\x{byte:02x}").ok();
        }
    }
    text
}

/// `2021-02-06 17:35:30:000`, in UTC.
fn stamp(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S:%3f").to_string()
}

/// Data in quotes, which the sender may have put there, and the host behind it.
fn quoted(data: &str, host: Option<&str>) -> String {
    let (data, host) = match host {
        Some(host) => (data, Some(host)),
        // What was put together for a channel ends in the host.
        None => match data.strip_suffix(']').and_then(|rest| rest.rsplit_once(" [")) {
            Some((data, host)) => (data, Some(host)),
            None => (data, None),
        },
    };
    let has_quotes = data.len() >= 2 && data.starts_with('"') && data.ends_with('"');
    let data = if has_quotes { data.to_owned() } else { format!("\"{data}\"") };
    match host {
        Some(host) => format!("{data} [{host}]"),
        None => data,
    }
}

/// An event as a line for people, without an end, in which no character acts.
pub fn text(event: &Event) -> String {
    let data = quoted(&event.data, event.host.as_deref());
    printable(&format!("<{}>: [{}]: {data}", stamp(event.at), event.account))
}

/// The same of what is no event.
pub fn error_text(text: &str, at: Timestamp) -> String {
    printable(&format!("<{}>: [error] {text}", stamp(at)))
}

/// An event as a line for programs.
pub fn json(event: &Event, place: Option<Place>) -> String {
    let mut object = json!({
        "type": "event",
        "account": event.account.json(),
        "time": event.at.to_string(),
        "data": event.data,
    });
    let optional = [
        ("host", event.host.as_ref().map(|host| json!(host))),
        ("id", event.id.as_ref().map(|id| json!(id))),
        ("partition", place.map(|place| json!(place.partition))),
        ("offset", place.map(|place| json!(place.offset))),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            object[name] = value;
        }
    }
    printable::json(&object.to_string())
}

pub fn error_json(text: &str, at: Timestamp) -> String {
    printable::json(&json!({"type": "error", "time": at.to_string(), "text": text}).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reader() -> Reader {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Reader {
            names: FieldNames {
                account: names(&["ID", "account"]),
                time: names(&["Timestamp", "time"]),
                data: names(&["Data", "data"]),
                host: names(&["host"]),
                at: names(&["At"]),
                id: names(&["Id", "id"]),
            },
            account_type: AccountType::Number,
        }
    }

    fn line(message: &[u8]) -> String {
        let at = "2000-01-01T00:00:00Z".parse().unwrap();
        match reader().read(message, None, None).event {
            Ok(event) => text(&event),
            Err(words) => error_text(&words, at),
        }
    }

    #[test]
    fn an_account_has_one_spelling_and_is_positive() {
        for text in ["", "0", "-1", "+1", "1.0", "1e3", " 1", "x", "18446744073709551616"] {
            assert_eq!(Account::parse(text, AccountType::Number), None, "{text}");
        }
        assert_eq!(Account::parse("7", AccountType::Number), Some(Account::Number(7)));
        assert_eq!(Account::parse("x", AccountType::Text), Some(Account::Text("x".into())));
    }

    #[test]
    fn a_line_is_as_it_always_was() {
        let check =
            |message: &str, expected: &str| assert_eq!(line(message.as_bytes()), expected, "{message}");
        let time = "\"Timestamp\":\"2021-02-06T17:35:30Z\"";
        check(
            &format!("{{\"ID\":1,{time},\"Data\":\"\\\"test data\\\" [290ad619a440]\"}}"),
            "<2021-02-06 17:35:30:000>: [1]: \"test data\" [290ad619a440]",
        );
        // Quotes only where the sender put none.
        check(
            &format!("{{\"ID\":1,{time},\"Data\":\"test data [290ad619a440]\"}}"),
            "<2021-02-06 17:35:30:000>: [1]: \"test data\" [290ad619a440]",
        );
        check(&format!("{{\"ID\":1,{time},\"Data\":\"\\\"\"}}"), "<2021-02-06 17:35:30:000>: [1]: \"\"\"");
        // A record as the door writes it, with milliseconds and in another zone.
        check(
            r#"{"account":"2","time":"2021-02-06T18:35:30.127+01:00","data":"x","host":"h","id":"i"}"#,
            "<2021-02-06 17:35:30:127>: [2]: \"x\" [h]",
        );
    }

    #[test]
    fn what_is_no_event_is_shown_as_an_error() {
        for message in [
            "",
            "7",
            "[]",
            "{",
            "{\"ID\":0,\"Timestamp\":\"2021-02-06T17:35:30Z\",\"Data\":\"\"}",
            "{\"ID\":1,\"Data\":\"x\"}",
            "{\"ID\":1,\"Timestamp\":\"yesterday\",\"Data\":\"x\"}",
            "{\"ID\":1,\"Timestamp\":\"2021-02-06T17:35:30Z\"}",
        ] {
            assert_eq!(line(message.as_bytes()), format!("<2000-01-01 00:00:00:000>: [error] {message}"));
        }
        assert!(line(b"\xff\xfeA").ends_with("[error] \\xff\\xfeA"));
    }

    #[test]
    fn nothing_of_it_acts_on_a_terminal() {
        let message =
            json!({"ID": 1, "Timestamp": "2021-02-06T17:35:30Z", "Data": "\u{1b}[2J\n\u{202e}x [\u{7}]"});
        let line = line(message.to_string().as_bytes());
        assert!(line.chars().all(printable::is_plain), "{line}");
        assert!(line.ends_with("\"\\u{1b}[2J\\n\\u{202e}x\" [\\u{7}]"), "{line}");
    }

    #[test]
    fn json_says_everything() {
        let message = r#"{"ID":1,"Timestamp":"2021-02-06T17:35:30.5Z","Data":"x [h]","At":"3/7","Id":"i"}"#;
        let message = reader().read(message.as_bytes(), None, None);
        let found: Value = serde_json::from_str(&json(&message.event.unwrap(), message.place)).unwrap();
        let expected = json!({"type": "event", "account": 1, "time": "2021-02-06T17:35:30.5Z", "data": "x [h]", "id": "i",
                              "partition": 3, "offset": 7});
        assert_eq!(found, expected);
    }

    #[test]
    fn what_the_source_knows_stands_in() {
        let at: Timestamp = "2021-02-06T17:35:30Z".parse().unwrap();
        let place = Place { partition: 1, offset: 2 };
        let message = reader().read(br#"{"ID":1,"Data":"x","At":"9/9"}"#, Some(place), Some(at));
        assert_eq!(message.place, Some(place));
        assert_eq!(message.event.unwrap().at, at);
    }
}
