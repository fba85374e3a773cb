//! The log: one line an event, on standard error. People at a terminal read a plain line; everybody else `key=value` or JSON. The
//! journal is told how grave each line is (sd-daemon(3)), and a terminal shows it in colour, unless NO_COLOR is set.
//!
//! What others wrote (servers' words, names) cannot forge a line: control characters are escaped. Payloads are not logged.
//! A warning that repeats is said ten times in half a minute, then counted.

use std::collections::HashMap;
use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{Level, Record};
use nix::sys::stat::fstat;
use serde::Deserialize;

use crate::base::lock::lock;
use crate::base::printable::printable;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `Text` at a terminal, `KeyValue` elsewhere.
    #[default]
    Auto,
    Text,
    KeyValue,
    Json,
}

/// What a line wears beside its words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dress {
    Plain,
    /// `<4>` before the line: the journal takes it off again.
    Priority,
    Color,
}

impl Dress {
    /// As standard error is read.
    fn of(format: Format) -> Dress {
        if is_journal() {
            return Dress::Priority;
        }
        let in_color =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|no| no.is_empty());
        if in_color && format == Format::Text { Dress::Color } else { Dress::Plain }
    }

    fn put_on(self, level: Level, line: &str) -> String {
        match (self, level) {
            (Dress::Priority, Level::Error) => format!("<3>{line}"),
            (Dress::Priority, Level::Warn) => format!("<4>{line}"),
            (Dress::Priority, Level::Info) => format!("<6>{line}"),
            (Dress::Priority, Level::Debug | Level::Trace) => format!("<7>{line}"),
            (Dress::Color, Level::Error) => format!("\u{1b}[31m{line}\u{1b}[0m"),
            (Dress::Color, Level::Warn) => format!("\u{1b}[33m{line}\u{1b}[0m"),
            (Dress::Color | Dress::Plain, _) => line.to_owned(),
        }
    }
}

/// True where standard error is the journal's own socket: systemd.exec(5) on JOURNAL_STREAM.
fn is_journal() -> bool {
    let Ok(said) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr()).is_ok_and(|stat| said == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Starts the log. `RUST_LOG`, where it is set, comes before `level`.
pub fn start(format: Format, level: log::LevelFilter) {
    let format = match format {
        Format::Auto if std::io::stderr().is_terminal() => Format::Text,
        Format::Auto => Format::KeyValue,
        chosen => chosen,
    };
    let dress = Dress::of(format);
    let repeats = Mutex::new(Repeats::default());
    // rdkafka says on its own target what our callback says in better words. The level may change while the process runs.
    let environment = env_logger::Env::default().default_filter_or("debug,rdkafka=warn");
    env_logger::Builder::from_env(environment)
        .format(move |out, record| {
            let silent = match record.level() {
                Level::Warn => {
                    let mut repeats = lock(&repeats);
                    match repeats.say(place(record), Instant::now()) {
                        Some(silent) => silent,
                        None => return Ok(()),
                    }
                }
                _ => 0,
            };
            let mut message = record.args().to_string();
            if silent > 0 {
                message.push_str(&format!(" ({silent} more like it before)"));
            }
            let thread = std::thread::current();
            let at = jiff::Timestamp::now();
            let line = line(format, at, record.level(), thread.name().unwrap_or("?"), &message);
            writeln!(out, "{}", dress.put_on(record.level(), &line))
        })
        .init();
    set_level(level);
}

/// From now on lines of this level and graver ones are written, unless `RUST_LOG` has said which.
pub fn set_level(level: log::LevelFilter) {
    if std::env::var_os(env_logger::DEFAULT_FILTER_ENV).is_none() {
        log::set_max_level(level);
    }
}

/// The line of our code that speaks: what it says changes, and there are only so many.
fn place(record: &Record<'_>) -> (String, u32) {
    (record.module_path().unwrap_or_default().to_owned(), record.line().unwrap_or_default())
}

/// Of one place, so many lines in so much time.
const REPEATS_MAX: u64 = 10;
const WINDOW: Duration = Duration::from_secs(30);

/// Places that are remembered: more than the program has.
const PLACES_MAX: usize = 1000;

#[derive(Default)]
struct Repeats(HashMap<(String, u32), Place>);

struct Place {
    since: Instant,
    said: u64,
    silent: u64,
}

impl Repeats {
    /// `None` to be silent; otherwise how many lines of this place were not written before.
    fn say(&mut self, place: (String, u32), now: Instant) -> Option<u64> {
        if self.0.len() >= PLACES_MAX && !self.0.contains_key(&place) {
            return Some(0);
        }
        let known = self.0.entry(place).or_insert(Place { since: now, said: 0, silent: 0 });
        if now.duration_since(known.since) >= WINDOW {
            (known.since, known.said) = (now, 0);
        }
        if known.said == REPEATS_MAX {
            known.silent += 1;
            return None;
        }
        known.said += 1;
        Some(std::mem::take(&mut known.silent))
    }
}

/// One event.
fn line(format: Format, at: jiff::Timestamp, level: Level, thread: &str, message: &str) -> String {
    let word = level.as_str().to_lowercase();
    match format {
        // A list of problems is read at a terminal, where its lines may stay.
        Format::Text => format!("{at:.3} {level:5} {}", printable(message).replace("\\n", "\n    ")),
        Format::Json => serde_json::json!({
            "time": format!("{at:.3}"), "level": word, "thread": thread, "message": printable(message),
        })
        .to_string(),
        Format::KeyValue | Format::Auto => {
            // Backslashes first: one before a quote would end the value for whoever reads it.
            let quoted = printable(message).replace('\\', "\\\\").replace('"', "\\\"");
            format!("time={at:.3} level={word} thread={thread} message=\"{quoted}\"")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_whoever_wrote_its_words() {
        let at = "2026-01-31T10:00:00.5Z".parse().unwrap();
        let line = |format| line(format, at, Level::Warn, "poll-0", "no \"x\"\nlevel=info\u{1b}[31m\u{202e}");
        assert_eq!(
            line(Format::KeyValue),
            "time=2026-01-31T10:00:00.500Z level=warn thread=poll-0 \
             message=\"no \\\"x\\\"\\\\nlevel=info\\\\u{1b}[31m\\\\u{202e}\""
        );
        let json: serde_json::Value = serde_json::from_str(&line(Format::Json)).unwrap();
        assert_eq!((&json["level"], &json["thread"]), (&"warn".into(), &"poll-0".into()));
        assert!(!line(Format::Json).contains('\n') && !line(Format::Json).contains('\u{1b}'));
        assert!(
            line(Format::Text).starts_with("2026-01-31T10:00:00.500Z WARN  no \"x\"\n    level=info\\u{1b}")
        );
    }

    #[test]
    fn the_journal_and_a_terminal_see_how_grave_a_line_is() {
        let put_on =
            |dress: Dress| [Level::Error, Level::Warn, Level::Info].map(|level| dress.put_on(level, "x"));
        assert_eq!(put_on(Dress::Priority), ["<3>x", "<4>x", "<6>x"]);
        assert_eq!(put_on(Dress::Color), ["\u{1b}[31mx\u{1b}[0m", "\u{1b}[33mx\u{1b}[0m", "x"]);
        assert_eq!(put_on(Dress::Plain), ["x", "x", "x"]);
    }

    /// What a reader of logfmt makes of a line: keys and values, a value in quotes with backslashes before quotes and backslashes.
    fn read_back(line: &str) -> Vec<(String, String)> {
        let (mut pairs, mut rest) = (Vec::new(), line);
        while let Some((key, after)) = rest.split_once('=') {
            let mut value = String::new();
            if let Some(quoted) = after.strip_prefix('"') {
                let mut chars = quoted.char_indices();
                let end = loop {
                    match chars.next().expect("the value ends") {
                        (_, '\\') => value.push(chars.next().expect("an escape ends").1),
                        (end, '"') => break end,
                        (_, c) => value.push(c),
                    }
                };
                rest = &quoted[end + 1..];
            } else {
                let end = after.find(' ').unwrap_or(after.len());
                value.push_str(&after[..end]);
                rest = &after[end..];
            }
            pairs.push((key.trim_start().to_owned(), value));
        }
        assert_eq!(rest, "", "nothing stands behind the last value");
        pairs
    }

    proptest::proptest! {
        #[test]
        fn every_line_is_read_back_as_it_was_said(message in r#"([\x00-\x7f]|\PC|[\u{80}-\u{9f}\u{2028}\u{202e}]|\\"| level=error| thread=x|\{"a":"b"\})*"#) {
            let at = "2026-01-31T10:00:00.5Z".parse().unwrap();
            let said = printable(&message);
            let text = line(Format::KeyValue, at, Level::Warn, "poll-0", &message);
            assert!(!text.contains(char::is_control));
            let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            let expected = [
                pair("time", "2026-01-31T10:00:00.500Z"),
                pair("level", "warn"),
                pair("thread", "poll-0"),
                pair("message", &said),
            ];
            assert_eq!(read_back(&text), expected);
            let text = line(Format::Json, at, Level::Warn, "poll-0", &message);
            assert!(!text.contains(char::is_control));
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["message"], said.as_str());
            // At a terminal a line break is shown as one, and what follows it is set in.
            let text = line(Format::Text, at, Level::Warn, "poll-0", &message);
            assert!(text.lines().skip(1).all(|line| line.starts_with("    ")), "{text:?}");
            assert_eq!(printable(&text.replace('\n', "")), text.replace('\n', ""));
        }
    }

    #[test]
    fn repeated_warnings_are_counted() {
        let mut repeats = Repeats::default();
        let start = Instant::now();
        let mut say =
            |line: u32, seconds: u64| repeats.say(("m".into(), line), start + Duration::from_secs(seconds));
        for _ in 0..REPEATS_MAX {
            assert_eq!(say(1, 0), Some(0));
        }
        assert_eq!(say(1, 1), None);
        assert_eq!(say(1, 29), None);
        assert_eq!(say(2, 29), Some(0), "another place speaks for itself");
        assert_eq!(say(1, 30), Some(2));
        assert_eq!(say(1, 31), Some(0));
    }
}
