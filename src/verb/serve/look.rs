//! What the ledger says of the tables that a statement reads: a tag that changes whenever their rows may have, and whether a record
//! of Kafka's is in them yet. Pure, but for the question itself.
//!
//! The tag is asked for before the rows, on the same session: rows may be newer than their tag, which costs one answer more, and
//! never older, which would be a wrong 304. It holds while only rowmill writes these tables; dead letters that are written again
//! count too.

use openssl::sha::Sha256;

use super::parameter::Value;
use crate::client::wire::Row;

/// `$1` are the tables, as the ledger calls them. Names and operators with their schema: it runs under the role's own search_path.
pub const SQL: &str = "\
SELECT l.topic, l.partition, l.target, l.start_offset, l.next_offset, l.table_oid, d.settled, d.at
FROM rowmill.ledger AS l
CROSS JOIN (SELECT pg_catalog.count(*) AS settled, pg_catalog.max(settled_at) AS at
            FROM rowmill.dead_letter WHERE settled_at IS NOT NULL) AS d
WHERE l.target OPERATOR(pg_catalog.=) ANY ($1)";

/// Places that one request may name.
const PLACES_MAX: usize = 16;

/// A record of Kafka's that has to be in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    topic: String,
    partition: i32,
    offset: i64,
}

/// How far each table is with each partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    rows: Vec<Position>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Position {
    topic: String,
    partition: i32,
    target: String,
    start: i64,
    next: i64,
    /// Which table has the name, and what was written again from the dead letters.
    rest: String,
}

/// Whether places are in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reached {
    All,
    NotYet,
    /// No table of the statement is filled by this topic.
    Never(String),
}

/// `Rowmill-After: samples/3/129`, or several with commas: as a receipt says it.
///
/// # Errors
/// What is no such list.
pub fn places(header: &str) -> Result<Vec<Place>, String> {
    let places: Vec<&str> = header.split(',').map(str::trim).filter(|place| !place.is_empty()).collect();
    if places.is_empty() || places.len() > PLACES_MAX {
        return Err(format!("Rowmill-After names from 1 to {PLACES_MAX} places, like samples/3/129"));
    }
    let place = |text: &str| {
        let (rest, offset) = text.rsplit_once('/')?;
        let (topic, partition) = rest.rsplit_once('/')?;
        let place = Place {
            topic: topic.to_owned(),
            partition: partition.parse().ok().filter(|partition| *partition >= 0)?,
            offset: offset.parse().ok().filter(|offset| *offset >= 0)?,
        };
        (!topic.is_empty() && topic.len() <= 249).then_some(place)
    };
    let all = places.iter().map(|text| place(text));
    all.collect::<Option<_>>().ok_or_else(|| {
        "Rowmill-After is a topic, a partition and an offset, like samples/3/129, as a receipt says it"
            .to_owned()
    })
}

impl Look {
    /// One row of the answer.
    pub fn take(&mut self, row: Row<'_>) {
        let texts: Vec<&str> = row
            .columns()
            .map(|column| column.and_then(|text| std::str::from_utf8(text).ok()).unwrap_or_default())
            .collect();
        let [topic, partition, target, start, next, rest @ ..] = texts.as_slice() else { return };
        self.rows.push(Position {
            topic: (*topic).to_owned(),
            partition: partition.parse().unwrap_or(-1),
            target: (*target).to_owned(),
            start: start.parse().unwrap_or(0),
            next: next.parse().unwrap_or(0),
            rest: rest.join("/"),
        });
    }

    pub fn has_reached(&self, places: &[Place]) -> Reached {
        for place in places {
            let mut of_topic = self.rows.iter().filter(|row| row.topic == place.topic).peekable();
            if of_topic.peek().is_none() {
                return Reached::Never(place.topic.clone());
            }
            let mut of_partition = of_topic.filter(|row| row.partition == place.partition).peekable();
            // A partition that is new is not in the ledger yet.
            if of_partition.peek().is_none() || of_partition.any(|row| row.next <= place.offset) {
                return Reached::NotYet;
            }
        }
        Reached::All
    }

    /// `None` where a table is not in the ledger: nothing is known of its rows.
    pub fn tag(&mut self, targets: &[String], question: &str, values: &[Value]) -> Option<String> {
        if targets.iter().any(|target| !self.rows.iter().any(|row| row.target == *target)) {
            return None;
        }
        self.rows.sort();
        let mut hash = Sha256::new();
        let mut part = |text: &str| {
            // With its length, so that no two lists are the same text.
            hash.update(&(text.len() as u64).to_be_bytes());
            hash.update(text.as_bytes());
        };
        part(env!("CARGO_PKG_VERSION"));
        part(question);
        for value in values {
            part(if value.is_some() { "value" } else { "null" });
            part(value.as_deref().unwrap_or_default());
        }
        for row in &self.rows {
            part(&row.topic);
            part(&row.target);
            part(&format!("{} {} {} {}", row.partition, row.start, row.next, row.rest));
        }
        Some(tag_of(&hash.finish()))
    }
}

/// The tag of an answer by its bytes.
pub fn tag_of_body(body: &[u8]) -> String {
    tag_of(&openssl::sha::sha256(body))
}

/// Weak: the same rows may come packed, or not.
fn tag_of(hash: &[u8; 32]) -> String {
    let mut tag = String::from("W/\"");
    hash[..16].iter().for_each(|byte| tag.push_str(&format!("{byte:02x}")));
    tag.push('"');
    tag
}

/// Whether an If-None-Match header names the tag.
pub fn matches(header: &str, tag: &str) -> bool {
    let plain = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    header.trim() == "*" || header.split(',').any(|other| plain(other) == plain(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(rows: &[(&str, i32, &str, i64)]) -> Look {
        let row = |(topic, partition, target, next): &(&str, i32, &str, i64)| Position {
            topic: (*topic).to_owned(),
            partition: *partition,
            target: (*target).to_owned(),
            start: 0,
            next: *next,
            rest: String::new(),
        };
        Look { rows: rows.iter().map(row).collect() }
    }

    #[test]
    fn a_place_is_reached_when_all_tables_are_past_it() {
        let look = look(&[("a", 0, "t", 10), ("a", 0, "u", 5), ("a", 1, "t", 3), ("b", 0, "t", 1)]);
        for (header, expected) in [
            ("a/0/4", Reached::All),
            ("a/0/5", Reached::NotYet),
            ("a/1/2", Reached::All),
            ("a/1/3", Reached::NotYet),
            ("a/2/0", Reached::NotYet),
            ("c/0/0", Reached::Never("c".into())),
            ("a/0/4, b/0/0", Reached::All),
            ("a/0/4, b/0/1", Reached::NotYet),
        ] {
            assert_eq!(look.has_reached(&places(header).unwrap()), expected, "{header}");
        }
    }

    #[test]
    fn what_is_no_place_is_said() {
        for header in ["", "a", "a/0", "/0/1", "a/x/1", "a/0/-1", "a/-1/0", "a/0/99999999999999999999"] {
            assert!(places(header).is_err(), "{header}");
        }
        assert!(places(&["a/0/1"; 17].join(",")).is_err());
        assert_eq!(places("a/b/0/1").unwrap()[0].topic, "a/b");
    }

    #[test]
    fn a_tag_changes_with_what_it_stands_for() {
        let rows = [("a", 0, "t", 10), ("a", 1, "t", 3)];
        let targets = ["t".to_owned()];
        let value = |text: &str| Some(text.to_owned());
        let tag = |rows: &[(&str, i32, &str, i64)], question: &str, values: &[Value]| {
            look(rows).tag(&targets, question, values)
        };
        let first = tag(&rows, "q", &[value("x")]);
        assert!(first.is_some());
        // In whatever order the rows come.
        assert_eq!(first, tag(&[rows[1], rows[0]], "q", &[value("x")]));
        assert_ne!(first, tag(&[("a", 0, "t", 11), rows[1]], "q", &[value("x")]));
        assert_ne!(first, tag(&rows, "p", &[value("x")]));
        assert_ne!(first, tag(&rows, "q", &[value("y")]));
        assert_ne!(tag(&rows, "q", &[value("")]), tag(&rows, "q", &[None]));
        assert_ne!(tag(&rows, "q", &[value("ab"), value("c")]), tag(&rows, "q", &[value("a"), value("bc")]));
        assert_eq!(tag(&[("a", 0, "other", 1)], "q", &[]), None);
    }

    #[test]
    fn a_tag_is_matched_weakly() {
        for (header, expected) in [
            ("W/\"a\"", true),
            ("\"a\"", true),
            ("\"b\", W/\"a\"", true),
            ("*", true),
            ("\"b\"", false),
            ("a", false),
            ("", false),
        ] {
            assert_eq!(matches(header, "W/\"a\""), expected, "{header}");
        }
    }
}
