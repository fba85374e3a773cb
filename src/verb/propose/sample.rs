//! What was seen of the records: of each field, how often it was what. Numbers are judged by their text, since no type of this
//! program holds all that JSON can write.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::value::RawValue;

use crate::decode::value::read::{PLAIN, Value};
use crate::decode::value::take;
use crate::model::types::Type;

/// Fields of one proposal; a topic with more has keys that are data.
pub(super) const FIELDS_MAX: usize = 200;

/// Objects within objects are taken apart this deep; what lies deeper becomes jsonb.
const DEPTH_MAX: usize = 3;

/// Places that are named for one field.
const PLACES_MAX: usize = 5;

/// Digits that a double keeps, whatever they are.
const DOUBLE_DIGITS: usize = 15;

/// A record's own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) partition: i32,
    pub(super) offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "partition {}, offset {}", self.partition, self.offset)
    }
}

/// What was seen of all records.
#[derive(Debug, Default)]
pub(super) struct Sample {
    pub(super) records: u64,
    /// Records that are JSON objects; others would become dead letters.
    pub(super) objects: u64,
    pub(super) fields: BTreeMap<Vec<String>, Field>,
    /// Fields beyond the bound were not looked at.
    pub(super) overflow: bool,
}

/// What was seen of one field.
#[derive(Debug, Default)]
pub(super) struct Field {
    /// How often it held an object whose members are fields by themselves. All other counts are of what else it held.
    pub(super) objects: u64,
    pub(super) empty_objects: u64,
    pub(super) values: u64,
    pub(super) nulls: u64,
    pub(super) bools: u64,
    /// Of 64 bits.
    pub(super) integers: u64,
    /// Other numbers that a double holds without losing a digit.
    pub(super) floats: u64,
    /// Other numbers.
    pub(super) large: u64,
    pub(super) texts: u64,
    /// Objects that are too deep, and arrays.
    pub(super) structures: u64,
    pub(super) smallest: Option<i64>,
    pub(super) largest: Option<i64>,
    pub(super) longest: usize,
    pub(super) times: u64,
    pub(super) uuids: u64,
    /// Where the first values stood that are neither null nor an object.
    pub(super) places: Vec<Place>,
}

type Members<'v> = BTreeMap<String, &'v RawValue>;

impl Sample {
    pub(super) fn see(&mut self, place: Place, value: Option<&[u8]>) {
        self.records += 1;
        let Some(Ok(members)) = value.map(serde_json::from_slice) else { return };
        self.objects += 1;
        self.object(place, members, &mut Vec::new());
    }

    fn object(&mut self, place: Place, members: Members<'_>, path: &mut Vec<String>) {
        for (name, raw) in members {
            path.push(name);
            self.member(place, raw.get(), path);
            path.pop();
        }
    }

    fn member(&mut self, place: Place, raw: &str, path: &mut Vec<String>) {
        if self.fields.len() >= FIELDS_MAX && !self.fields.contains_key(path) {
            self.overflow = true;
            return;
        }
        let field = self.fields.entry(path.clone()).or_default();
        let inner = if raw.starts_with('{') && path.len() < DEPTH_MAX {
            serde_json::from_str(raw).ok()
        } else {
            None
        };
        match inner {
            Some(members) if !Members::is_empty(&members) => {
                field.objects += 1;
                self.object(place, members, path);
            }
            _ => field.see(place, raw),
        }
    }
}

impl Field {
    fn see(&mut self, place: Place, raw: &str) {
        self.values += 1;
        match raw.as_bytes()[0] {
            b'n' => self.nulls += 1,
            b't' | b'f' => self.bools += 1,
            b'"' => self.text(raw),
            b'[' | b'{' => {
                self.structures += 1;
                self.empty_objects += u64::from(raw.starts_with('{') && raw[1..].trim_start() == "}");
            }
            _ => self.number(raw),
        }
        if !raw.starts_with(['n', '{']) && self.places.len() < PLACES_MAX {
            self.places.push(place);
        }
    }

    fn number(&mut self, text: &str) {
        match text.parse() {
            Ok(integer) => {
                self.integers += 1;
                self.smallest = Some(self.smallest.map_or(integer, |s: i64| s.min(integer)));
                self.largest = Some(self.largest.map_or(integer, |l: i64| l.max(integer)));
            }
            Err(_) if is_double(text) => self.floats += 1,
            Err(_) => self.large += 1,
        }
    }

    fn text(&mut self, raw: &str) {
        self.texts += 1;
        // What cannot be unescaped is no time either, and the trial says what becomes of it.
        let text: String = serde_json::from_str(raw).unwrap_or_default();
        self.longest = self.longest.max(text.chars().count());
        self.times += u64::from(is_taken(&Type::Timestamptz, &text));
        self.uuids += u64::from(text.len() == 36 && is_taken(&Type::Uuid, &text));
    }

    pub(super) fn numbers(&self) -> u64 {
        self.integers + self.floats + self.large
    }

    /// What was seen, in words.
    pub(super) fn evidence(&self, objects: u64) -> String {
        let kinds = [
            (self.bools, "boolean"),
            (self.integers, "integer"),
            (self.floats, "fraction"),
            (self.large, "number beyond 64 bits"),
            (self.texts, "text"),
            (self.structures + self.objects, "array or object"),
            (self.nulls, "null"),
        ];
        let kinds =
            kinds.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}"));
        let mut words = format!(
            "in {} of {objects}: {}",
            self.values + self.objects,
            kinds.collect::<Vec<_>>().join(", ")
        );
        if let (Some(smallest), Some(largest)) = (self.smallest, self.largest) {
            words += &format!("; {smallest} to {largest}");
        }
        if self.texts > 0 {
            words += &format!("; longest {} characters", self.longest);
        }
        words
    }
}

/// As the decoder takes it.
fn is_taken(ty: &Type, text: &str) -> bool {
    take::from_value(ty, &PLAIN, Value::String(text), &mut Vec::new()).is_ok()
}

/// True if a double has the number, and all of its digits.
fn is_double(text: &str) -> bool {
    let (digits, _) = text.split_once(['e', 'E']).unwrap_or((text, ""));
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_start_matches('0').trim_end_matches('0');
    let fits = take::from_value(&Type::Float8, &PLAIN, Value::Number(text), &mut Vec::new()).is_ok();
    fits && digits.len() <= DOUBLE_DIGITS
}
