//! The pure step of decoding: one JSON record -> one COPY BINARY tuple for each model that takes it, or a reject.
//! A record is parsed once, into slots that say where in the payload each needed field stands; a model's columns are then
//! written from the slots. Nothing is allocated for a good record once the buffers have grown, and nothing here waits,
//! asks a clock, or knows Kafka, Redis or PostgreSQL.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::batch::{Headers, Record};
use crate::copy::{self, Reading, Value, Wrong};
use crate::model::{Condition, Expected, Kafka, OnUnknown, Path, Plan, PlanColumn, Source, Tombstones};
use crate::reject::{excerpt, excerpt_bytes};
use crate::schema::Type;

pub use crate::reject::{Reason, Reject};

/// What bounds one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Larger values are refused before they are looked at. At most 1 GB, which is what PostgreSQL holds in a value.
    pub value_bytes_max: usize,
    /// Levels of `{` and `[` in what goes into json, jsonb and array columns. Fields that no model uses may be deeper:
    /// they are skipped without recursion.
    pub depth_max: usize,
}

impl Limits {
    /// Slots count bytes in `u32`, and PostgreSQL's lengths are `i32`.
    pub const VALUE_BYTES_CEILING: usize = 1 << 30;
}

impl Default for Limits {
    fn default() -> Self {
        Self { value_bytes_max: 64 << 20, depth_max: 128 }
    }
}

/// What [`TopicDecoder::parse`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    Message,
    /// No value, and the topic's models skip such records.
    Tombstone,
}

/// What [`TopicDecoder::encode`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    Row,
    /// A token is not in the cache; nothing was written. Ask for [`TopicDecoder::tokens`] and encode again.
    NeedsLookup,
}

/// What is known about tokens without asking anyone.
pub trait Lookups {
    fn find(&self, lookup: usize, token: &str) -> Found<'_>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Value(&'a str),
    /// Asked for, and it does not exist.
    Unknown,
    NotCached,
}

/// Decodes the records of one topic. Holds the last parsed record's slots, so one decoder serves one thread.
pub struct TopicDecoder {
    plan: Arc<Plan>,
    topic: usize,
    limits: Limits,
    /// The objects that fields stand in, the message itself first.
    levels: Vec<Level>,
    slots: Vec<Slot>,
    routes: Vec<Route>,
    /// Where escaped strings become plain ones; valid until the next one.
    scratch: String,
    /// Which record the slots speak of.
    parsed: Option<RecordId>,
}

/// Where a field's raw JSON text stands in the payload. A JSON value is never empty, so empty means absent.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    start: u32,
    end: u32,
}

/// The names that one JSON object is searched for.
#[derive(Default)]
struct Level {
    /// Sorted by name.
    entries: Vec<Entry>,
    /// Which entry was the n-th key of an object last time: producers keep their order.
    usual: [u16; USUAL_KEYS],
}

const USUAL_KEYS: usize = 32;

struct Entry {
    name: String,
    target: Target,
}

#[derive(Clone, Copy)]
struct Target {
    slot: Option<usize>,
    /// The level that its object is read by.
    child: Option<usize>,
    /// All slots at and below this name; contiguous.
    first_slot: usize,
    end_slot: usize,
}

/// One model of the topic, with its fields resolved to slots.
struct Route {
    model: usize,
    when: Vec<(usize, Expected)>,
    steps: Vec<Step>,
    takes: bool,
}

/// How one column of the tuple is written.
struct Step {
    ty: Type,
    not_null: bool,
    fill: Fill,
}

enum Fill {
    Field { slot: usize, reading: Reading },
    Lookup { slot: usize, lookup: usize, unknown: OnUnknown },
    Clock,
    Message { depth_max: usize },
    Kafka(Kafka),
    Null,
}

/// Tells one record from another without keeping a borrow.
type RecordId = (usize, usize);

impl TopicDecoder {
    /// `topic` is an index into the plan's topics.
    pub fn new(plan: Arc<Plan>, topic: usize, limits: Limits) -> Self {
        assert!(limits.value_bytes_max <= Limits::VALUE_BYTES_CEILING, "lengths must fit PostgreSQL's");
        let models = &plan.topics[topic].models;
        let mut tree = Tree::default();
        for model in models.iter().map(|index| &plan.models[*index]) {
            model.when.iter().for_each(|condition| tree.want(&condition.path));
            model.sources.iter().filter_map(path_of).for_each(|path| tree.want(path));
        }
        let (mut levels, mut slots) = (Vec::new(), 0);
        tree.lay_out(&mut levels, &mut slots);
        let routes = models.iter().map(|model| Route::new(&plan, *model, &levels, limits)).collect();
        let slots = vec![Slot::default(); slots];
        Self { plan, topic, limits, levels, slots, routes, scratch: String::new(), parsed: None }
    }

    /// Reads the record's JSON once. Every other function speaks of the record that was parsed last.
    pub fn parse(&mut self, record: &Record<'_>) -> Result<Parsed, Reject> {
        self.parsed = None;
        for route in &mut self.routes {
            route.takes = false;
        }
        let Some(value) = record.value else {
            return match self.plan.topics[self.topic].tombstones {
                Tombstones::Skip => Ok(Parsed::Tombstone),
                Tombstones::DeadLetter => Err(Reject::new(
                    Reason::Tombstone,
                    "the record has no value; set tombstones = \"skip\" in the model to pass over such records",
                )),
            };
        };
        if value.len() > self.limits.value_bytes_max {
            let message =
                format!("the value has {} bytes, the bound is {}", value.len(), self.limits.value_bytes_max);
            return Err(Reject::new(Reason::TooLarge, message));
        }
        let text = std::str::from_utf8(value).map_err(|error| not_utf8(value, error))?;
        self.slots.fill(Slot::default());
        let read = read_object(text, &mut self.levels, 0, &mut self.slots, text.as_ptr() as usize);
        read.map_err(|error| not_an_object(text, &error))?;
        for route in &mut self.routes {
            let slots = &self.slots;
            let scratch = &mut self.scratch;
            route.takes =
                route.when.iter().all(|(slot, expected)| meets(slots[*slot].of(text), expected, scratch));
        }
        self.parsed = Some(id(value));
        Ok(Parsed::Message)
    }

    /// The models that take the parsed record, as indexes into the plan's models. None means unroutable.
    pub fn models(&self) -> impl Iterator<Item = usize> {
        self.routes.iter().filter(|route| route.takes).map(|route| route.model)
    }

    /// What to say about a record that no model takes.
    pub fn unroutable(&self, record: &Record<'_>) -> Reject {
        let text = self.text(record);
        let mut seen = Vec::new();
        for (slot, path) in self.routes.iter().flat_map(|route| {
            let conditions = self.plan.models[route.model].when.iter();
            route.when.iter().zip(conditions).map(|((slot, _), condition)| (*slot, &condition.path))
        }) {
            let found = match self.slots[slot].of(text) {
                Some(raw) => format!("{path} is {}", excerpt(raw)),
                None => format!("{path} is absent"),
            };
            if !seen.contains(&found) {
                seen.push(found);
            }
        }
        let topic = &self.plan.topics[self.topic].name;
        Reject::new(Reason::Unroutable, format!("no model of topic {topic:?} takes it: {}", seen.join(", ")))
    }

    /// Appends one tuple for one of the plan's models. On `Err` and on [`Encoded::NeedsLookup`], `out` is as before.
    pub fn encode(
        &mut self,
        model: usize,
        record: &Record<'_>,
        lookups: &impl Lookups,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, Reject> {
        let text = self.text(record);
        let route = self.routes.iter().find(|route| route.model == model).expect("a model of this topic");
        let start = out.len();
        out.extend_from_slice(&(route.steps.len() as i16).to_be_bytes());
        for (place, step) in route.steps.iter().enumerate() {
            let input = Input { text, record, slots: &self.slots };
            match step.write(input, lookups, &mut self.scratch, out) {
                Ok(Encoded::Row) => {}
                Ok(Encoded::NeedsLookup) => {
                    out.truncate(start);
                    return Ok(Encoded::NeedsLookup);
                }
                Err(wrong) => {
                    out.truncate(start);
                    return Err(self.describe(model, place, step, input, wrong));
                }
            }
        }
        Ok(Encoded::Row)
    }

    /// The tokens that the parsed record needs, with their lookup's index, in the models that take it. A token that is no
    /// text at all is left for `encode` to refuse.
    pub fn tokens(&mut self, record: &Record<'_>, mut want: impl FnMut(usize, &str)) {
        let text = self.text(record);
        for route in self.routes.iter().filter(|route| route.takes) {
            for step in &route.steps {
                if let Fill::Lookup { slot, lookup, .. } = step.fill
                    && let Some(raw) = self.slots[slot].of(text).filter(|raw| *raw != "null")
                    && let Ok(token) = token(raw, &mut self.scratch)
                {
                    want(lookup, token);
                }
            }
        }
    }

    /// The payload of the parsed record. The slots of one record must never cut another.
    fn text<'r>(&self, record: &Record<'r>) -> &'r str {
        let value = record.value.unwrap_or_default();
        assert!(self.parsed == Some(id(value)), "a record is parsed before it is used");
        std::str::from_utf8(value).expect("parse has checked it")
    }

    #[cold]
    fn describe(
        &self,
        model: usize,
        place: usize,
        step: &Step,
        input: Input<'_, '_>,
        wrong: Wrong,
    ) -> Reject {
        let model = &self.plan.models[model];
        let column: &PlanColumn = &self.plan.tables[model.table].columns[place];
        let from = match &model.sources[place] {
            Source::Field { path, .. } | Source::Lookup { path, .. } => {
                format!("field {:?}", path.to_string())
            }
            Source::Kafka(part) => format!("the record's {}", part.name()),
            Source::Message => "the message".into(),
            Source::Clock | Source::Null => "no field".into(),
        };
        let found = match step.fill {
            Fill::Field { slot, .. } | Fill::Lookup { slot, .. } => {
                input.slots[slot].of(input.text).map(excerpt)
            }
            Fill::Kafka(Kafka::Key) => input.record.key.map(excerpt_bytes),
            Fill::Kafka(Kafka::Timestamp) => input.record.timestamp_ms.map(|ms| ms.to_string()),
            Fill::Message { .. } => Some(excerpt(input.text)),
            _ => None,
        };
        let found = found.map(|found| format!("; found {found}")).unwrap_or_default();
        let message = format!("column {:?} ({}) from {from}: {}{found}", column.name, column.ty, wrong.why);
        Reject::new(wrong.reason, message)
    }
}

/// What a step may read.
#[derive(Clone, Copy)]
struct Input<'a, 'r> {
    text: &'a str,
    record: &'a Record<'r>,
    slots: &'a [Slot],
}

impl Route {
    fn new(plan: &Plan, index: usize, levels: &[Level], limits: Limits) -> Self {
        let model = &plan.models[index];
        let columns = &plan.tables[model.table].columns;
        let slot = |path: &Path| slot_of(levels, path);
        let when = model.when.iter().map(|Condition { path, equals }| (slot(path), equals.clone()));
        let steps = columns.iter().zip(&model.sources).map(|(column, source)| Step {
            ty: column.ty.clone(),
            not_null: column.not_null,
            fill: match source {
                Source::Field { path, unit, encoding } => Fill::Field {
                    slot: slot(path),
                    reading: Reading { unit: *unit, encoding: *encoding, depth_max: limits.depth_max },
                },
                Source::Lookup { path, lookup, unknown, .. } => {
                    Fill::Lookup { slot: slot(path), lookup: *lookup, unknown: *unknown }
                }
                Source::Clock => Fill::Clock,
                Source::Message => Fill::Message { depth_max: limits.depth_max },
                Source::Kafka(part) => Fill::Kafka(*part),
                Source::Null => Fill::Null,
            },
        });
        Self { model: index, when: when.collect(), steps: steps.collect(), takes: false }
    }
}

impl Step {
    fn write(
        &self,
        input: Input<'_, '_>,
        lookups: &impl Lookups,
        scratch: &mut String,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, Wrong> {
        match self.fill {
            Fill::Field { slot, reading } => match input.slots[slot].of(input.text) {
                None => self.missing("the field is absent", out)?,
                Some("null") => self.null("the field is null", out)?,
                Some(raw) => copy::from_json(&self.ty, reading, raw, scratch, out)?,
            },
            Fill::Lookup { slot, lookup, unknown } => {
                let token = match input.slots[slot].of(input.text) {
                    None => return self.missing("the field is absent", out).map(|()| Encoded::Row),
                    Some("null") => return self.null("the field is null", out).map(|()| Encoded::Row),
                    Some(raw) => token(raw, scratch)?,
                };
                match lookups.find(lookup, token) {
                    Found::Value(text) => self.outside_text(text, out)?,
                    Found::NotCached => return Ok(Encoded::NeedsLookup),
                    Found::Unknown if unknown == OnUnknown::Null => copy::null(out),
                    Found::Unknown => {
                        return Err(Wrong::new(Reason::UnknownToken, "the lookup does not know the token"));
                    }
                }
            }
            Fill::Clock => copy::micros(0, out),
            Fill::Message { depth_max } => match &self.ty {
                Type::Json => copy::json(input.text, depth_max, out)?,
                Type::Jsonb => copy::jsonb(input.text, depth_max, out)?,
                ty => copy::from_value(ty, Reading::default(), Value::String(input.text), out)?,
            },
            Fill::Kafka(part) => self.kafka(part, input.record, out)?,
            Fill::Null => copy::null(out),
        }
        Ok(Encoded::Row)
    }

    fn kafka(&self, part: Kafka, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), Wrong> {
        match part {
            Kafka::Key => match record.key {
                None => self.null("the record has no key", out),
                Some(key) => self.key(key, out),
            },
            Kafka::Offset => Ok(copy::int(&self.ty, record.offset, out)),
            Kafka::Partition => Ok(copy::int(&self.ty, record.partition.into(), out)),
            Kafka::Timestamp => match (record.timestamp_ms, &self.ty) {
                (None, _) => self.null("the record has no timestamp", out),
                (Some(ms), Type::Int8) => Ok(copy::int(&self.ty, ms, out)),
                (Some(ms), _) => {
                    let micros = copy::micros_of_millis(ms)
                        .ok_or_else(|| Wrong::new(Reason::OutOfRange, "PostgreSQL has no such time"))?;
                    Ok(copy::micros(micros, out))
                }
            },
            Kafka::Headers => copy::from_json(
                &self.ty,
                Reading::default(),
                &headers_json(record.headers),
                &mut String::new(),
                out,
            ),
            Kafka::Topic => self.outside_text(record.topic, out),
        }
    }

    fn key(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), Wrong> {
        if self.ty == Type::Bytea {
            return copy::bytes(key, out);
        }
        let text =
            std::str::from_utf8(key).map_err(|_| Wrong::new(Reason::InvalidUtf8, "the key is not UTF-8"))?;
        if !matches!(self.ty, Type::Json | Type::Jsonb) {
            return self.outside_text(text, out);
        }
        let raw: &RawValue = serde_json::from_str(text)
            .map_err(|error| Wrong::new(Reason::InvalidJson, format!("the key is not JSON: {error}")))?;
        copy::from_json(&self.ty, Reading::default(), raw.get(), &mut String::new(), out)
    }

    fn outside_text(&self, text: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        copy::from_value(&self.ty, Reading::default(), Value::of_text(text, &self.ty)?, out)
    }

    fn missing(&self, what: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        self.nothing(Reason::MissingField, what, out)
    }

    fn null(&self, what: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        self.nothing(Reason::NullNotAllowed, what, out)
    }

    fn nothing(&self, reason: Reason, what: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        if self.not_null {
            return Err(Wrong::new(reason, format!("{what}, and the column is NOT NULL")));
        }
        copy::null(out);
        Ok(())
    }
}

impl Slot {
    fn of(self, text: &str) -> Option<&str> {
        (self.end > 0).then(|| &text[self.start as usize..self.end as usize])
    }
}

/// A string, or a number by its text; anything else is no token.
fn token<'a>(raw: &'a str, scratch: &'a mut String) -> Result<&'a str, Wrong> {
    match Value::of_json(raw, scratch)? {
        Value::String(text) | Value::Number(text) => Ok(text),
        _ => Err(Wrong::new(Reason::WrongType, "a token is a string or a number")),
    }
}

fn meets(raw: Option<&str>, expected: &Expected, scratch: &mut String) -> bool {
    match (raw, expected) {
        (None, _) => false,
        (Some(raw), Expected::Literal(text)) => raw == text,
        (Some(raw), Expected::Text(text)) => {
            matches!(Value::of_json(raw, scratch), Ok(Value::String(found)) if found == text)
        }
    }
}

fn path_of(source: &Source) -> Option<&Path> {
    match source {
        Source::Field { path, .. } | Source::Lookup { path, .. } => Some(path),
        Source::Clock | Source::Message | Source::Kafka(_) | Source::Null => None,
    }
}

/// All wanted paths, before they are laid out as levels and slots.
#[derive(Default)]
struct Tree {
    wanted: bool,
    children: BTreeMap<String, Tree>,
}

impl Tree {
    fn want(&mut self, path: &Path) {
        let node = path.0.iter().fold(self, |node, name| node.children.entry(name.clone()).or_default());
        node.wanted = true;
    }

    /// Adds this object's level and those below it; slots are numbered depth first, so a subtree's are contiguous.
    fn lay_out(self, levels: &mut Vec<Level>, slots: &mut usize) -> usize {
        let index = levels.len();
        levels.push(Level::default());
        let mut entries = Vec::with_capacity(self.children.len());
        for (name, tree) in self.children {
            let first_slot = *slots;
            let slot = tree.wanted.then_some(first_slot);
            *slots += usize::from(tree.wanted);
            let child = (!tree.children.is_empty()).then(|| tree.lay_out(levels, slots));
            entries.push(Entry { name, target: Target { slot, child, first_slot, end_slot: *slots } });
        }
        levels[index].entries = entries;
        index
    }
}

fn slot_of(levels: &[Level], path: &Path) -> usize {
    let mut level = 0;
    let mut slot = None;
    for name in &path.0 {
        let target = levels[level].entries.iter().find(|entry| entry.name == *name).expect("laid out").target;
        slot = target.slot;
        level = target.child.unwrap_or_default();
    }
    slot.expect("a wanted path has a slot")
}

impl Level {
    /// The entry of a key that stands at `position` in its object.
    fn find(&mut self, key: &[u8], position: usize) -> Option<Target> {
        let usual = self.usual.get(position).and_then(|index| self.entries.get(usize::from(*index)));
        if let Some(entry) = usual.filter(|entry| entry.name.as_bytes() == key) {
            return Some(entry.target);
        }
        let index = self.entries.binary_search_by(|entry| entry.name.as_bytes().cmp(key)).ok()?;
        if let Some(usual) = self.usual.get_mut(position) {
            *usual = index as u16;
        }
        Some(self.entries[index].target)
    }
}

/// Fills the slots of one object and of those inside it. `base` is the payload's address.
fn read_object(
    text: &str,
    levels: &mut [Level],
    level: usize,
    slots: &mut [Slot],
    base: usize,
) -> serde_json::Result<()> {
    let mut reader = serde_json::Deserializer::from_str(text);
    serde::Deserializer::deserialize_map(&mut reader, ObjectVisitor { levels, level, slots, base })?;
    reader.end()
}

struct ObjectVisitor<'a> {
    levels: &'a mut [Level],
    level: usize,
    slots: &'a mut [Slot],
    base: usize,
}

impl<'de> Visitor<'de> for ObjectVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut position = 0;
        while let Some(target) = map.next_key_seed(Key { level: &mut self.levels[self.level], position })? {
            position += 1;
            let Some(target) = target else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let raw = map.next_value::<&'de RawValue>()?.get();
            // The last of several equal keys wins with all that is in it, as in jsonb.
            self.slots[target.range()].fill(Slot::default());
            if let Some(slot) = target.slot {
                let start = raw.as_ptr() as usize - self.base;
                self.slots[slot] = Slot { start: start as u32, end: (start + raw.len()) as u32 };
            }
            if let Some(child) = target.child
                && raw.starts_with('{')
            {
                read_object(raw, self.levels, child, self.slots, self.base)
                    .map_err(serde::de::Error::custom)?;
            }
        }
        Ok(())
    }
}

impl Target {
    fn range(self) -> Range<usize> {
        self.first_slot..self.end_slot
    }
}

/// Recognizes a key without keeping it. Bytes, not text: a key with half a surrogate pair is nobody's field.
struct Key<'a> {
    level: &'a mut Level,
    position: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<Target>;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        reader.deserialize_bytes(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<Target>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(self.level.find(key, self.position))
    }
}

fn id(value: &[u8]) -> RecordId {
    (value.as_ptr() as usize, value.len())
}

#[cold]
fn not_utf8(value: &[u8], error: std::str::Utf8Error) -> Reject {
    let hint = hint(value).map(|hint| format!(" ({hint})")).unwrap_or_default();
    let message = format!(
        "the value is not UTF-8 from byte {} on{hint}; found {}",
        error.valid_up_to(),
        excerpt_bytes(value)
    );
    Reject::new(Reason::InvalidUtf8, message)
}

#[cold]
fn not_an_object(text: &str, error: &serde_json::Error) -> Reject {
    let message = if text.is_empty() {
        "the value is empty".to_owned()
    } else {
        let hint = hint(text.as_bytes()).map(|hint| format!(" ({hint})")).unwrap_or_default();
        format!("the value is not a JSON object: {error}{hint}; found {}", excerpt(text))
    };
    let valid = serde_json::from_str::<IgnoredAny>(text).is_ok();
    Reject::new(if valid { Reason::NotAnObject } else { Reason::InvalidJson }, message)
}

/// What else it may be: the usual surprises in a topic of JSON.
fn hint(value: &[u8]) -> Option<&'static str> {
    match value {
        [0xef, 0xbb, 0xbf, ..] => Some("it starts with a byte order mark"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{', 0, ..] | [0, b'{', ..] => Some("it looks like UTF-16"),
        [0x1f, 0x8b, ..] => Some("it looks like gzip"),
        [0, _, _, _, _, ..] => {
            Some("it looks like a schema registry's framing: a zero byte and a schema's number")
        }
        _ => None,
    }
}

/// `[{"key": .., "value": ..}, ..]`. What is not text without U+0000, which jsonb could not hold, is given as base64
/// under another name: a tracing header must not make a dead letter.
fn headers_json(headers: Headers<'_>) -> String {
    let mut json = String::from("[");
    for (name, value) in headers.iter() {
        json.push_str(if json.len() > 1 { ",{" } else { "{" });
        member("key", Some(name), &mut json);
        json.push(',');
        member("value", value, &mut json);
        json.push('}');
    }
    json.push(']');
    json
}

fn member(name: &str, value: Option<&[u8]>, json: &mut String) {
    let (suffix, value) = match value.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => ("", serde_json::Value::Null),
        Some((Ok(text), _)) if !text.contains('\0') => ("", text.into()),
        Some((_, bytes)) => ("_base64", copy::base64_text(bytes).into()),
    };
    json.push_str(&format!("\"{name}{suffix}\":{value}"));
}
