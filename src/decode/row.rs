//! The pure step of decoding: one JSON record -> one COPY BINARY tuple for each model that takes it, or a reject.
//! A record is parsed once, into slots that say where in the payload each needed field stands; a model's columns are then
//! written from the slots. Nothing is allocated for a good record once the buffers have grown, and nothing here waits,
//! asks a clock, or knows Kafka, Redis or PostgreSQL.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::scan::{NotJson, Scan};
use crate::client::binary;
pub use crate::decode::reject::{Reason, Reject};
use crate::decode::reject::{excerpt, excerpt_bytes};
use crate::decode::value::{self, Json, Reading, Value, Wrong};
use crate::model::plan::{Condition, Expected, Path, Plan, PlanColumn, Source};
use crate::model::types::Type;
use crate::model::{Kafka, OnUnknown, Tombstones};
use crate::promise::batch::{Headers, Record};

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

/// What [`RecordDecoder::parse`] found.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'r> {
    Message(Message<'r>),
    /// No value, and the topic's models skip such records.
    Tombstone,
}

impl<'r> Parsed<'r> {
    pub fn message(self) -> Option<Message<'r>> {
        match self {
            Parsed::Message(message) => Some(message),
            Parsed::Tombstone => None,
        }
    }
}

/// A record whose value is known to be one JSON object. Only [`RecordDecoder::parse`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Message<'r> {
    record: &'r Record<'r>,
    text: &'r str,
}

/// What [`RecordDecoder::encode`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    Row,
    /// A token is not in the cache; nothing was written. Ask for [`RecordDecoder::tokens`] and encode again.
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
pub struct RecordDecoder {
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
    escapes: bool,
}

/// The names that one JSON object is searched for.
#[derive(Default)]
struct Level {
    /// Sorted by length, then by name: most keys that nobody wants differ in length already.
    entries: Vec<Entry>,
    /// Which entry was the n-th key of an object last time: producers keep their order.
    usual: [u16; USUAL_KEYS],
    /// Where a key with escapes becomes a plain one.
    scratch: String,
}

const USUAL_KEYS: usize = 32;

struct Entry {
    name: String,
    written: Quoted,
    target: Target,
}

/// A name as JSON nearly always writes it, quotes and colon included.
struct Quoted {
    bytes: Box<[u8]>,
    /// Its first bytes, zeros behind them, and ones in the mask where they stand: compared at once.
    head: u128,
    mask: u128,
}

impl Quoted {
    fn new(name: &str) -> Quoted {
        const HEAD: usize = size_of::<u128>();
        let bytes = format!("{}:", serde_json::Value::from(name)).into_bytes();
        let count = bytes.len().min(HEAD);
        let (mut head, mut mask) = ([0; HEAD], [0; HEAD]);
        head[..count].copy_from_slice(&bytes[..count]);
        mask[..count].fill(0xff);
        let (head, mask) = (u128::from_ne_bytes(head), u128::from_ne_bytes(mask));
        Quoted { bytes: bytes.into(), head, mask }
    }

    /// Passes this name if it stands next.
    #[inline]
    fn is_passed(&self, scan: &mut Scan<'_>) -> bool {
        match scan.rest().first_chunk() {
            Some(head) if (u128::from_ne_bytes(*head) ^ self.head) & self.mask != 0 => false,
            Some(_) if self.bytes.len() <= size_of::<u128>() => {
                scan.at += self.bytes.len();
                true
            }
            _ => scan.skip(&self.bytes),
        }
    }
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

impl RecordDecoder {
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
    pub fn parse<'r>(&mut self, record: &'r Record<'r>) -> Result<Parsed<'r>, Reject> {
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
        self.slots.iter_mut().for_each(Slot::clear);
        read_message(text, &mut self.levels, &mut self.slots).map_err(|NotJson| not_an_object(text))?;
        for route in &mut self.routes {
            let slots = &self.slots;
            let scratch = &mut self.scratch;
            route.takes =
                route.when.iter().all(|(slot, expected)| meets(slots[*slot].of(text), expected, scratch));
        }
        self.parsed = Some(id(text));
        Ok(Parsed::Message(Message { record, text }))
    }

    /// The models that take the parsed record, as indexes into the plan's models. None means unroutable.
    pub fn models(&self) -> impl Iterator<Item = usize> {
        self.routes.iter().filter(|route| route.takes).map(|route| route.model)
    }

    /// What to say about a record that no model takes.
    pub fn unroutable(&self, message: Message<'_>) -> Reject {
        let text = self.text(message);
        let mut seen = Vec::new();
        for (slot, path) in self.routes.iter().flat_map(|route| {
            let conditions = self.plan.models[route.model].when.iter();
            route.when.iter().zip(conditions).map(|((slot, _), condition)| (*slot, &condition.path))
        }) {
            let found = match self.slots[slot].of(text) {
                Some(json) => format!("{path} is {}", excerpt(json.text)),
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
        message: Message<'_>,
        lookups: &impl Lookups,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, Reject> {
        let text = self.text(message);
        let route = self.routes.iter().find(|route| route.model == model).expect("a model of this topic");
        let start = out.len();
        // What most rows take, once for all columns.
        out.reserve(2 * text.len());
        out.extend_from_slice(&(route.steps.len() as i16).to_be_bytes());
        for (place, step) in route.steps.iter().enumerate() {
            let input = Input { text, record: message.record, slots: &self.slots };
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
    pub fn tokens(&mut self, message: Message<'_>, mut want: impl FnMut(usize, &str)) {
        let text = self.text(message);
        for route in self.routes.iter().filter(|route| route.takes) {
            for step in &route.steps {
                if let Fill::Lookup { slot, lookup, .. } = step.fill
                    && let Some(json) = self.slots[slot].of(text).filter(|json| !json.is_null())
                    && let Ok(token) = token(json, &mut self.scratch)
                {
                    want(lookup, token);
                }
            }
        }
    }

    /// The text of the parsed record. The slots of one record must never cut another.
    fn text<'r>(&self, message: Message<'r>) -> &'r str {
        assert!(self.parsed == Some(id(message.text)), "a record is parsed before it is used");
        message.text
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
        let field = |slot: usize| input.slots[slot].of(input.text).map(|json| excerpt(json.text));
        let found = match step.fill {
            Fill::Field { slot, .. } => field(slot),
            // A token that works is a secret; one that nobody knows is what the reader has to look for.
            Fill::Lookup { slot, .. } if wrong.reason == Reason::UnknownToken => field(slot),
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
                Some(json) if json.is_null() => self.null("the field is null", out)?,
                Some(json) => value::from_json(&self.ty, reading, json, scratch, out)?,
            },
            Fill::Lookup { slot, lookup, unknown } => {
                let token = match input.slots[slot].of(input.text) {
                    None => return self.missing("the field is absent", out).map(|()| Encoded::Row),
                    Some(json) if json.is_null() => {
                        return self.null("the field is null", out).map(|()| Encoded::Row);
                    }
                    Some(json) => token(json, scratch)?,
                };
                match lookups.find(lookup, token) {
                    Found::Value(text) => self.outside_text(text, out)?,
                    Found::NotCached => return Ok(Encoded::NeedsLookup),
                    Found::Unknown if unknown == OnUnknown::Null => binary::null(out),
                    Found::Unknown => {
                        return Err(Wrong::new(Reason::UnknownToken, "the lookup does not know the token"));
                    }
                }
            }
            Fill::Clock => value::micros(0, out),
            Fill::Message { depth_max } => match &self.ty {
                Type::Json => value::json(input.text, depth_max, out)?,
                Type::Jsonb => value::jsonb(input.text, depth_max, out)?,
                ty => value::from_value(ty, Reading::default(), Value::String(input.text), out)?,
            },
            Fill::Kafka(part) => self.kafka(part, input.record, out)?,
            Fill::Null => binary::null(out),
        }
        Ok(Encoded::Row)
    }

    fn kafka(&self, part: Kafka, record: &Record<'_>, out: &mut Vec<u8>) -> Result<(), Wrong> {
        match part {
            Kafka::Key => match record.key {
                None => self.null("the record has no key", out)?,
                Some(key) => self.key(key, out)?,
            },
            Kafka::Offset => value::int(&self.ty, record.offset, out),
            Kafka::Partition => value::int(&self.ty, record.partition.into(), out),
            Kafka::Timestamp => match (record.timestamp_ms, &self.ty) {
                (None, _) => self.null("the record has no timestamp", out)?,
                (Some(ms), Type::Int8) => value::int(&self.ty, ms, out),
                (Some(ms), _) => {
                    let micros = binary::micros_of_millis(ms)
                        .ok_or_else(|| Wrong::new(Reason::OutOfRange, "PostgreSQL has no such time"))?;
                    value::micros(micros, out);
                }
            },
            Kafka::Headers => {
                let json = headers_json(record.headers);
                value::from_json(&self.ty, Reading::default(), Json::of(&json), &mut String::new(), out)?;
            }
            Kafka::Topic => self.outside_text(record.topic, out)?,
        }
        Ok(())
    }

    fn key(&self, key: &[u8], out: &mut Vec<u8>) -> Result<(), Wrong> {
        if self.ty == Type::Bytea {
            return value::bytes(key, out);
        }
        let text =
            std::str::from_utf8(key).map_err(|_| Wrong::new(Reason::InvalidUtf8, "the key is not UTF-8"))?;
        if !matches!(self.ty, Type::Json | Type::Jsonb) {
            return self.outside_text(text, out);
        }
        let raw: &RawValue = serde_json::from_str(text)
            .map_err(|error| Wrong::new(Reason::InvalidJson, format!("the key is not JSON: {error}")))?;
        value::from_json(&self.ty, Reading::default(), Json::of(raw.get()), &mut String::new(), out)
    }

    fn outside_text(&self, text: &str, out: &mut Vec<u8>) -> Result<(), Wrong> {
        value::from_value(&self.ty, Reading::default(), Value::of_text(text, &self.ty)?, out)
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
        binary::null(out);
        Ok(())
    }
}

impl Slot {
    /// A JSON value is never empty, so this is enough.
    fn clear(&mut self) {
        self.end = 0;
    }

    #[inline]
    fn of(self, text: &str) -> Option<Json<'_>> {
        let json = || Json { text: &text[self.start as usize..self.end as usize], escapes: self.escapes };
        (self.end > 0).then(json)
    }
}

/// Tokens are kept in a cache that counts entries, so each must have a bound.
const TOKEN_BYTES_MAX: usize = 1024;

/// A string, or a number by its text; anything else is no token.
fn token<'a>(json: Json<'a>, scratch: &'a mut String) -> Result<&'a str, Wrong> {
    match Value::of_json(json, scratch)? {
        Value::String(text) | Value::Number(text) if text.len() <= TOKEN_BYTES_MAX => Ok(text),
        Value::String(_) | Value::Number(_) => {
            Err(Wrong::new(Reason::TooLong, format!("a token has at most {TOKEN_BYTES_MAX} bytes")))
        }
        _ => Err(Wrong::new(Reason::WrongType, "a token is a string or a number")),
    }
}

fn meets(json: Option<Json<'_>>, expected: &Expected, scratch: &mut String) -> bool {
    match (json, expected) {
        (None, _) => false,
        (Some(json), Expected::Literal(text)) => json.text == text,
        (Some(json), Expected::Text(text)) => {
            matches!(Value::of_json(json, scratch), Ok(Value::String(found)) if found == text)
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
            entries.push(Entry {
                written: Quoted::new(&name),
                name,
                target: Target { slot, child, first_slot, end_slot: *slots },
            });
        }
        entries.sort_by(|a, b| by_length(a.name.as_bytes(), b.name.as_bytes()));
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
    /// Reads the key that stands next, the one at `position` in its object, with its colon, and finds its entry.
    fn read_key(&mut self, scan: &mut Scan<'_>, position: usize) -> Result<Option<Target>, NotJson> {
        let usual = self.usual.get(position).and_then(|index| self.entries.get(usize::from(*index)));
        if let Some(entry) = usual.filter(|entry| entry.written.is_passed(scan)) {
            return Ok(Some(entry.target));
        }
        let start = scan.at;
        scan.string()?;
        let raw = scan.since(start);
        scan.expect(b':')?;
        // A key with half a surrogate pair is nobody's field.
        let Ok(key) = value::unescape(raw, &mut self.scratch) else { return Ok(None) };
        let found = self.entries.binary_search_by(|entry| by_length(entry.name.as_bytes(), key.as_bytes()));
        let Ok(index) = found else { return Ok(None) };
        if let Some(usual) = self.usual.get_mut(position) {
            *usual = index as u16;
        }
        Ok(Some(self.entries[index].target))
    }
}

fn by_length(a: &[u8], b: &[u8]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Fills the slots of the object that stands next, and of those inside it.
fn read_object(
    scan: &mut Scan<'_>,
    levels: &mut [Level],
    level: usize,
    slots: &mut [Slot],
) -> Result<(), NotJson> {
    scan.expect(b'{')?;
    let mut position = 0;
    while scan.member(position == 0)? {
        let target = levels[level].read_key(scan, position)?;
        position += 1;
        let inner = scan.next() == b'{';
        let Some(target) = target else {
            scan.value()?;
            continue;
        };
        let start = scan.at;
        let escapes = if let Some(child) = target.child {
            // The last of several equal keys wins with all that is in it, as in jsonb.
            slots[target.range()].iter_mut().for_each(Slot::clear);
            if inner {
                read_object(scan, levels, child, slots)?;
                true
            } else {
                scan.value()?
            }
        } else {
            scan.value()?
        };
        if let Some(slot) = target.slot {
            slots[slot] = Slot { start: start as u32, end: scan.at as u32, escapes };
        }
    }
    Ok(())
}

/// Reads a whole text that must be one object.
fn read_message(text: &str, levels: &mut [Level], slots: &mut [Slot]) -> Result<(), NotJson> {
    let mut scan = Scan::new(text);
    read_object(&mut scan, levels, 0, slots)?;
    scan.next();
    if scan.at == text.len() { Ok(()) } else { Err(NotJson) }
}

impl Target {
    fn range(self) -> Range<usize> {
        self.first_slot..self.end_slot
    }
}

fn id(text: &str) -> RecordId {
    (text.as_ptr() as usize, text.len())
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
fn not_an_object(text: &str) -> Reject {
    if text.is_empty() {
        return Reject::new(Reason::InvalidJson, "the value is empty");
    }
    // Only what is no JSON is explained by serde_json: of a string it would quote all, however long.
    let error = serde_json::from_str::<IgnoredAny>(text).err();
    let reason = if error.is_some() { Reason::InvalidJson } else { Reason::NotAnObject };
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    let hint = hint(text.as_bytes()).map(|hint| format!(" ({hint})")).unwrap_or_default();
    Reject::new(reason, format!("the value is not a JSON object{error}{hint}; found {}", excerpt(text)))
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
        Some((_, bytes)) => ("_base64", value::base64_text(bytes).into()),
    };
    json.push_str(&format!("\"{name}{suffix}\":{value}"));
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::RawModel;
    use crate::model::compile::compile;
    use crate::model::types::{Column, Kind, Table};

    #[derive(serde::Deserialize)]
    struct Models {
        model: Vec<RawModel>,
    }

    /// A table of that name; `true` is NOT NULL.
    fn table(oid: u32, name: &str, columns: &[(&str, Type, bool)]) -> Table {
        let columns = columns.iter().zip(1..).map(|((name, ty, not_null), attnum)| Column {
            name: (*name).into(),
            attnum,
            ty: ty.clone(),
            not_null: *not_null,
            has_default: false,
            generated_or_identity_always: false,
            fills_itself: false,
        });
        Table {
            oid,
            schema: "public".into(),
            name: name.into(),
            sql_name: format!("\"public\".\"{name}\""),
            columns: columns.collect(),
            fingerprint: String::new(),
            kind: Kind::Ordinary,
        }
    }

    fn decoder(models: &str, tables: Vec<Table>) -> RecordDecoder {
        let models: Models = toml::from_str(models).unwrap();
        let tables: HashMap<_, _> = tables.into_iter().map(|table| (table.name.clone(), table)).collect();
        let plan = compile(&models.model, &tables, &["user".to_owned()]).unwrap();
        RecordDecoder::new(Arc::new(plan), 0, Limits::default())
    }

    fn record(value: &[u8]) -> Record<'_> {
        Record {
            topic: "t",
            partition: 3,
            offset: 42,
            timestamp_ms: Some(1_700_000_000_123),
            key: None,
            value: Some(value),
            headers: Headers::default(),
        }
    }

    /// Knows the token `tok-1`, knows of no other, and has not yet asked for those that begin with `?`.
    struct Users;

    impl Lookups for Users {
        fn find(&self, _lookup: usize, token: &str) -> Found<'_> {
            match token {
                "tok-1" => Found::Value("user-1"),
                _ if token.starts_with('?') => Found::NotCached,
                _ => Found::Unknown,
            }
        }
    }

    fn parsed<'r>(decoder: &mut RecordDecoder, record: &'r Record<'r>) -> Message<'r> {
        decoder.parse(record).unwrap().message().expect("a message")
    }

    fn metric() -> RecordDecoder {
        let columns = [
            ("userid", Type::Varchar(Some(100)), true),
            ("source", Type::Varchar(Some(100)), true),
            ("path", Type::Varchar(Some(200)), true),
            ("value", Type::Float8, true),
            ("time", Type::Timestamptz, true),
            ("timestamp", Type::Timestamptz, true),
        ];
        decoder(
            r#"[[model]]
            topic = "t"
            table = "metric"
            columns.userid = { lookup = "user", field = "token" }
            columns.timestamp = { clock = "write" }"#,
            vec![table(1, "metric", &columns)],
        )
    }

    const METRIC: &str = r#"{"token":"tok-1","source":"collector-7.dc2.example","path":"system/cpu/0/user","value":12.625,"time":"2024-05-01T12:30:00.123456Z"}"#;

    /// `cargo test --release --lib decode_speed -- --ignored --nocapture`
    #[test]
    #[ignore = "measures, and asserts nothing"]
    fn decode_speed() {
        let unused = |value: &str| (0..10).map(|n| format!("\"unused_{n}\":{value},")).collect::<String>();
        let cpu = || nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap();
        for (name, message) in [
            ("a metric", METRIC.to_owned()),
            ("with escapes", METRIC.replace("system/", "\\tsystem\\/")),
            ("with ten more numbers", METRIC.replacen('{', &format!("{{{}", unused("12.5")), 1)),
            ("with ten more objects", METRIC.replacen('{', &format!("{{{}", unused("{\"a\":[1]}")), 1)),
        ] {
            let mut decoder = metric();
            let messages: Vec<_> = (0..1000).map(|n| message.replace("12.625", &format!("{n}.25"))).collect();
            let mut out = Vec::with_capacity(1 << 20);
            let start = cpu();
            for _ in 0..1000 {
                out.clear();
                for message in &messages {
                    let record = record(message.as_bytes());
                    let message = parsed(&mut decoder, &record);
                    let model = decoder.models().next().unwrap();
                    assert_eq!(decoder.encode(model, message, &Users, &mut out), Ok(Encoded::Row));
                }
            }
            let seconds = std::time::Duration::from(cpu() - start).as_secs_f64();
            println!(
                "{name}, {} bytes: {seconds:.3} CPU-s per million, {:.2} M/s",
                message.len(),
                1.0 / seconds
            );
        }
    }

    /// One table `t` with one column `c`, filled as `columns` says; the bytes after the tuple's count.
    fn one(ty: Type, not_null: bool, columns: &str, record: &Record<'_>) -> Result<Vec<u8>, Reason> {
        let model = format!("[[model]]\ntopic = \"t\"\ntable = \"t\"\n{columns}");
        let mut decoder = decoder(&model, vec![table(1, "t", &[("c", ty, not_null)])]);
        let mut out = Vec::new();
        let message = decoder.parse(record).map_err(|reject| reject.reason)?.message().expect("a message");
        decoder.encode(0, message, &Users, &mut out).map_err(|reject| reject.reason)?;
        assert_eq!(out[..2], [0, 1]);
        Ok(out[2..].to_vec())
    }

    fn field(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
    }

    const NULL: [u8; 4] = [0xff; 4];

    #[test]
    fn what_is_not_one_json_object_is_refused() {
        fn check(value: &[u8], expected: Reason) {
            let record = record(value);
            let reject = metric().parse(&record).expect_err(&excerpt_bytes(value));
            assert_eq!(reject.reason, expected, "{:?}: {}", excerpt_bytes(value), reject.message);
            assert!(
                reject.message.len() < 500 && !reject.message.contains(char::is_control),
                "{}",
                reject.message
            );
        }
        for value in
            ["", " ", "\n", "{", "}", "{}{}", "{} x", "{},", "{'a':1}", "{a:1}", "{\"a\":1,}", "{\"a\" 1}"]
        {
            check(value.as_bytes(), Reason::InvalidJson);
        }
        for value in
            ["{\"a\":01}", "{\"a\":+1}", "{\"a\":.5}", "{\"a\":1.}", "{\"a\":NaN}", "{\"a\":Infinity}"]
        {
            check(value.as_bytes(), Reason::InvalidJson);
        }
        for value in
            ["{\"a\":\"\t\"}", "{\"a\":\"\\x\"}", "{\"a\":\"\\u12\"}", "// c\n{}", "{/**/}", "{\"a\":nul}"]
        {
            check(value.as_bytes(), Reason::InvalidJson);
        }
        for value in ["null", "1", "-0", "1e999", "\"x\"", "[]", "[{}]", "true", " null "] {
            check(value.as_bytes(), Reason::NotAnObject);
        }
        check(b"\xef\xbb\xbf{}", Reason::InvalidJson);
        check(b"\0\0\0\0\x07{}", Reason::InvalidJson);
        check(b"{\0\"\0a\0", Reason::InvalidJson);
        check(b"\0", Reason::InvalidJson);
        check(b"\xff\xfe{\0}\0", Reason::InvalidUtf8);
        check(b"\x1f\x8b\x08", Reason::InvalidUtf8);
        for bad in [&b"\xff"[..], b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xe2\x82"] {
            check(&[b"{\"unused\":\"", bad, b"\"}"].concat(), Reason::InvalidUtf8);
        }
        for end in 0..METRIC.len() {
            check(&METRIC.as_bytes()[..end], Reason::InvalidJson);
        }
        let large = vec![b' '; Limits::default().value_bytes_max + 1];
        check(&large, Reason::TooLarge);
    }

    #[test]
    fn fields_that_nobody_uses_may_be_odd() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let odd = [
            r#""a":"\ud800""#,
            r#""a":"\u0000""#,
            r#""a":1e999999"#,
            r#""":1"#,
            r#""\ud800":1"#,
            r#""__proto__":{}"#,
            r#""Value":"x""#,
            r#""value ":"x""#,
            "\"\u{76}a\u{301}lue\":1",
            &format!("\"{}\":1", "k".repeat(1 << 20)),
            &format!("\"deep\":{deep}"),
            &(0..100_000).map(|n| format!("\"k{n}\":{n}")).collect::<Vec<_>>().join(","),
        ]
        .map(|member| METRIC.replacen('{', &format!("{{{member},"), 1));
        let (mut decoder, mut expected) = (metric(), Vec::new());
        let usual = record(METRIC.as_bytes());
        let read = parsed(&mut decoder, &usual);
        decoder.encode(0, read, &Users, &mut expected).unwrap();
        for message in odd {
            let (record, mut out) = (record(message.as_bytes()), Vec::new());
            let read = parsed(&mut decoder, &record);
            decoder.encode(0, read, &Users, &mut out).unwrap();
            assert_eq!(out, expected, "{}", excerpt(&message));
        }
    }

    #[test]
    fn a_metric_becomes_a_row() {
        let (mut decoder, record) = (metric(), record(METRIC.as_bytes()));
        let mut out = b"before".to_vec();
        let message = parsed(&mut decoder, &record);
        assert_eq!(decoder.models().collect::<Vec<_>>(), [0]);
        assert_eq!(decoder.encode(0, message, &Users, &mut out), Ok(Encoded::Row));
        let time = 767_881_800_123_456i64; // 2024-05-01 12:30:00.123456 since 2000
        let expected = [
            &b"before\0\x06"[..],
            &field(&[0; 8]), // stamped by the writer
            &field(b"user-1"),
            &field(b"collector-7.dc2.example"),
            &field(b"system/cpu/0/user"),
            &field(&12.625f64.to_be_bytes()),
            &field(&time.to_be_bytes()),
        ];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn a_refused_row_leaves_nothing_behind() {
        fn check(message: &str, expected: Result<Encoded, (Reason, &str)>) {
            let (mut decoder, record) = (metric(), record(message.as_bytes()));
            let mut out = b"before".to_vec();
            let message = parsed(&mut decoder, &record);
            let found = decoder.encode(0, message, &Users, &mut out);
            let found = found.as_ref().map_err(|reject| (reject.reason, reject.message.as_str()));
            assert_eq!(found, expected.as_ref().map_err(|(reason, message)| (*reason, *message)));
            assert_eq!(out, b"before");
        }
        check(
            "{}",
            Err((
                Reason::MissingField,
                "column \"userid\" (varchar(100)) from field \"token\": the field is absent, and the column is NOT NULL",
            )),
        );
        check(
            &METRIC.replace("\"tok-1\"", "null"),
            Err((
                Reason::NullNotAllowed,
                "column \"userid\" (varchar(100)) from field \"token\": the field is null, and the column is NOT NULL",
            )),
        );
        check(
            &METRIC.replace("tok-1", "\\u001b[31m"),
            Err((
                Reason::UnknownToken,
                "column \"userid\" (varchar(100)) from field \"token\": the lookup does not know the token; found \
                 \"\\u001b[31m\"",
            )),
        );
        check(
            &METRIC.replace("12.625", "\"high\""),
            Err((
                Reason::WrongType,
                "column \"value\" (double precision) from field \"value\": takes a number (or \"NaN\", \"Infinity\", \
                 \"-Infinity\"), not a string; found \"high\"",
            )),
        );
        check(&METRIC.replace("tok-1", "?new"), Ok(Encoded::NeedsLookup));
    }

    #[test]
    fn tokens_are_told_before_they_are_looked_up() {
        fn check(message: &str, expected: &[&str]) {
            let (mut decoder, record) = (metric(), record(message.as_bytes()));
            let mut found = Vec::new();
            let read = parsed(&mut decoder, &record);
            decoder.tokens(read, |lookup, token| found.push((lookup, token.to_owned())));
            let expected: Vec<_> = expected.iter().map(|token| (0, (*token).to_owned())).collect();
            assert_eq!(found, expected, "{message}");
        }
        for none in
            ["{}", r#"{"token":null}"#, r#"{"token":[]}"#, r#"{"token":true}"#, r#"{"token":"\ud800"}"#]
        {
            check(none, &[]);
        }
        check(r#"{"token":"a\tb"}"#, &["a\tb"]);
        check(r#"{"token":17}"#, &["17"]);
        check(r#"{"token":""}"#, &[""]);
    }

    #[test]
    fn an_unknown_token_may_be_null() {
        let columns = r#"columns.c = { lookup = "user", unknown = "null" }"#;
        assert_eq!(one(Type::Text, false, columns, &record(br#"{"c":"nobody"}"#)), Ok(NULL.to_vec()));
        assert_eq!(one(Type::Text, false, columns, &record(br#"{"c":null}"#)), Ok(NULL.to_vec()));
        assert_eq!(one(Type::Text, false, columns, &record(b"{}")), Ok(NULL.to_vec()));
        assert_eq!(one(Type::Text, false, columns, &record(br#"{"c":"tok-1"}"#)), Ok(field(b"user-1")));
        assert_eq!(one(Type::Int4, false, columns, &record(br#"{"c":"tok-1"}"#)), Err(Reason::WrongType));
    }

    #[test]
    fn fields_are_found_wherever_they_stand() {
        fn check(columns: &str, message: &str, expected: Option<&str>) {
            let expected = expected.map_or(NULL.to_vec(), |text| field(text.as_bytes()));
            assert_eq!(
                one(Type::Text, false, columns, &record(message.as_bytes())),
                Ok(expected),
                "{message}"
            );
        }
        check("", "{}", None);
        check("", r#"{"C":1}"#, None);
        check("", r#"{"c":null}"#, None);
        check("", r#"{"c":1,"c":2}"#, Some("2"));
        check("", r#"{"c":1,"c":null}"#, None);
        check("", r#"{"\u0063":"x"}"#, Some("x"));
        check("", "\r\n\t {\n\"c\" :\t\"x\" } \n", Some("x"));
        let nested = r#"columns.c = { field = "a.b.c" }"#;
        check(nested, r#"{"a":{"b":{"c":"x"}}}"#, Some("x"));
        check(nested, r#"{ "a" : { "z":[{"c":2}], "b" : { "c" : 7 } } }"#, Some("7"));
        check(nested, r#"{"a":{"b":{"c":"x"}},"a":{}}"#, None);
        check(nested, r#"{"a":{"b":{"c":"x"}},"a":{"b":{"c":"y"}}}"#, Some("y"));
        check(nested, r#"{"a":{"b":[{"c":"x"}]}}"#, None);
        check(nested, r#"{"a":{"b":1e999}}"#, None);
        check(nested, r#"{"a":"b","a.b.c":"x","c":"x"}"#, None);
        let long = r#"columns.c = { field = "a_name_of_many_letters" }"#;
        check(long, r#"{"a_name_of_many_letters":"x"}"#, Some("x"));
        check(long, r#"{"a_name_of_many_lettres":"y","a_name_of_many_letters" : 7}"#, Some("7"));
        check(long, r#"{"a_name_of_many":1}"#, None);
        check(r#"columns.c = { field = ["a.b"] }"#, r#"{"a":{"b":1},"a.b":2}"#, Some("2"));
    }

    #[test]
    fn an_object_and_a_field_in_it_can_both_be_wanted() {
        let columns = [("doc", Type::Json, true), ("x", Type::Int4, true)];
        let model = "[[model]]\ntopic = \"t\"\ntable = \"t\"\ncolumns.x = { field = \"doc.x\" }";
        let mut decoder = decoder(model, vec![table(1, "t", &columns)]);
        let (record, mut out) = (record(br#"{"doc":{"x":1,"x":2}}"#), Vec::new());
        let message = parsed(&mut decoder, &record);
        decoder.encode(0, message, &Users, &mut out).unwrap();
        let expected = [&[0, 2][..], &field(br#"{"x":1,"x":2}"#), &field(&2i32.to_be_bytes())];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn keys_in_another_order_every_time() {
        let mut decoder = metric();
        let members: Vec<_> = METRIC.trim_matches(['{', '}']).split(',').collect();
        let mut rows = Vec::new();
        for turn in 0..20 {
            let mut turned = members.clone();
            turned.rotate_left(turn % members.len());
            if turn % 2 == 1 {
                turned.reverse();
            }
            let message = format!("{{{}}}", turned.join(","));
            let mut out = Vec::new();
            let record = record(message.as_bytes());
            let message = parsed(&mut decoder, &record);
            decoder.encode(0, message, &Users, &mut out).unwrap();
            rows.push(out);
        }
        rows.dedup();
        assert_eq!(rows.len(), 1);
    }

    #[test]
    fn the_record_around_the_message() {
        let mut headers = Vec::new();
        Headers::append(&mut headers, b"trace", Some(b"a\"b"));
        Headers::append(&mut headers, b"trace", None);
        Headers::append(&mut headers, b"bin", Some(&[0xff, 0]));
        let full = Record { key: Some(b"7"), headers: Headers(&headers), ..record(b"{}") };
        let bare = Record { timestamp_ms: None, ..record(b"{}") };
        let check = |ty: Type, part: &str, record: &Record<'_>, expected: Result<Vec<u8>, Reason>| {
            let columns = format!("columns.c = {{ kafka = \"{part}\" }}");
            assert_eq!(one(ty.clone(), false, &columns, record), expected, "{part} into {ty}");
        };
        check(Type::Text, "key", &full, Ok(field(b"7")));
        check(Type::Bytea, "key", &full, Ok(field(b"7")));
        check(Type::Int4, "key", &full, Ok(field(&7i32.to_be_bytes())));
        check(Type::Jsonb, "key", &full, Ok(field(b"\x017")));
        check(Type::Text, "key", &bare, Ok(NULL.to_vec()));
        check(Type::Json, "key", &Record { key: Some(b"{"), ..full }, Err(Reason::InvalidJson));
        check(Type::Text, "key", &Record { key: Some(b"\xff"), ..full }, Err(Reason::InvalidUtf8));
        check(Type::Bytea, "key", &Record { key: Some(b"\xff\0"), ..full }, Ok(field(b"\xff\0")));
        check(Type::Text, "key", &Record { key: Some(b"a\0"), ..full }, Err(Reason::NulCharacter));
        check(Type::Varchar(Some(1)), "key", &Record { key: Some(b"ab"), ..full }, Err(Reason::TooLong));
        check(Type::Int8, "offset", &full, Ok(field(&42i64.to_be_bytes())));
        check(Type::Int8, "partition", &full, Ok(field(&3i64.to_be_bytes())));
        check(Type::Int4, "partition", &full, Ok(field(&3i32.to_be_bytes())));
        check(Type::Int8, "timestamp", &full, Ok(field(&1_700_000_000_123i64.to_be_bytes())));
        check(Type::Timestamptz, "timestamp", &full, Ok(field(&753_315_200_123_000i64.to_be_bytes())));
        check(Type::Timestamptz, "timestamp", &bare, Ok(NULL.to_vec()));
        let far = Record { timestamp_ms: Some(i64::MAX), ..full };
        check(Type::Timestamptz, "timestamp", &far, Err(Reason::OutOfRange));
        check(Type::Text, "topic", &full, Ok(field(b"t")));
        check(Type::Json, "headers", &bare, Ok(field(b"[]")));
        let json = br#"[{"key":"trace","value":"a\"b"},{"key":"trace","value":null},{"key":"bin","value_base64":"/wA="}]"#;
        check(Type::Json, "headers", &full, Ok(field(json)));
        let not_null = one(Type::Text, true, r#"columns.c = { kafka = "key" }"#, &bare);
        assert_eq!(not_null, Err(Reason::NullNotAllowed));
    }

    #[test]
    fn the_whole_message() {
        let check = |ty: Type, message: &str, expected: Result<Vec<u8>, Reason>| {
            let found = one(ty.clone(), true, "columns.c = { message = true }", &record(message.as_bytes()));
            assert_eq!(found, expected, "{message} into {ty}");
        };
        check(Type::Jsonb, r#"{"a":"\u0000"}"#, Err(Reason::NulCharacter));
        check(Type::Jsonb, r#"{"a":"\ud800"}"#, Err(Reason::InvalidUnicode));
        check(Type::Varchar(Some(5)), r#"{"a":1}"#, Err(Reason::TooLong));
        check(
            Type::Json,
            &format!("{{\"a\":{}1{}}}", "[".repeat(128), "]".repeat(128)),
            Err(Reason::TooDeep),
        );
        check(Type::Json, r#"{"a":"\u0000"}"#, Ok(field(br#"{"a":"\u0000"}"#)));
        check(Type::Text, r#" {"a":"\u0000"} "#, Ok(field(br#" {"a":"\u0000"} "#)));
    }

    #[test]
    fn a_record_without_a_value() {
        let tombstone = Record { value: None, ..record(b"") };
        let mut strict = metric();
        assert_eq!(strict.parse(&tombstone).unwrap_err().reason, Reason::Tombstone);
        assert_eq!(strict.models().count(), 0);
        let columns = [("c", Type::Text, true)];
        let model = "[[model]]\ntopic = \"t\"\ntable = \"t\"\ntombstones = \"skip\"";
        let mut skipping = decoder(model, vec![table(1, "t", &columns)]);
        assert!(matches!(skipping.parse(&tombstone), Ok(Parsed::Tombstone)));
        assert_eq!(skipping.models().count(), 0);
        assert_eq!(skipping.parse(&record(b"")).unwrap_err().reason, Reason::InvalidJson);
    }

    #[test]
    fn records_find_their_tables() {
        let column = [("c", Type::Text, false)];
        let tables = ["text", "number", "both", "all"];
        let tables = tables.iter().zip(1..).map(|(name, oid)| table(oid, name, &column)).collect();
        let model =
            |table: &str, when: &str| format!("[[model]]\ntopic = \"t\"\ntable = \"{table}\"\n{when}\n");
        let models = [
            model("text", "when = { kind = \"3\" }"),
            model("number", "when = { kind = 3 }"),
            model("both", "when = { kind = 3, \"meta.ok\" = true }"),
        ];
        let check = |decoder: &mut RecordDecoder, message: &str, expected: &[usize]| {
            let record = record(message.as_bytes());
            let read = parsed(decoder, &record);
            let found: Vec<_> = decoder.models().collect();
            assert_eq!(found, expected, "{message}");
            if found.is_empty() {
                assert_eq!(decoder.unroutable(read).reason, Reason::Unroutable);
            }
        };
        let mut some = decoder(&models.concat(), Vec::clone(&tables));
        for none in [
            "{}",
            r#"{"kind":null}"#,
            r#"{"kind":4}"#,
            r#"{"kind":3.0}"#,
            r#"{"kind":"3 "}"#,
            r#"{"kind":[3]}"#,
        ] {
            check(&mut some, none, &[]);
        }
        check(&mut some, r#"{"kind":"3"}"#, &[0]);
        check(&mut some, r#"{"kind":"\u0033"}"#, &[0]);
        check(&mut some, r#"{"kind":3}"#, &[1]);
        check(&mut some, r#"{"kind":3,"meta":{"ok":true}}"#, &[1, 2]);
        check(&mut some, r#"{"kind":3,"meta":{"ok":"true"}}"#, &[1]);
        check(&mut some, r#"{"kind":"3","kind":3}"#, &[1]);
        let message = record(br#"{"kind":"\u001b"}"#);
        let message = parsed(&mut some, &message);
        assert_eq!(
            some.unroutable(message).message,
            r#"no model of topic "t" takes it: kind is "\u001b", meta.ok is absent"#
        );
        let mut every = decoder(&[&models[0], &model("all", "")].map(String::as_str).concat(), tables);
        check(&mut every, "{}", &[1]);
        check(&mut every, r#"{"kind":"3"}"#, &[0, 1]);
    }

    #[test]
    #[should_panic(expected = "parsed before it is used")]
    fn slots_never_cut_another_record() {
        let mut decoder = metric();
        let (one, other) = (record(METRIC.as_bytes()), record(b"{}"));
        let first = parsed(&mut decoder, &one);
        parsed(&mut decoder, &other);
        decoder.tokens(first, |_, _| {});
    }

    /// A table that has everything, for whatever bytes come.
    fn everything() -> RecordDecoder {
        let array = |element, element_oid| Type::Array { element: Box::new(element), element_oid };
        let limit = crate::model::types::NumericLimit { precision: 5, scale: 2 };
        let columns = [
            ("a", Type::Text, false),
            ("b", Type::Varchar(Some(3)), false),
            ("c", Type::Int4, false),
            ("d", Type::Float8, false),
            ("e", Type::Numeric(Some(limit)), false),
            ("f", Type::Timestamptz, false),
            ("g", Type::Jsonb, false),
            ("h", array(Type::Numeric(None), 1700), false),
            ("i", Type::Inet, false),
            ("j", Type::Bytea, false),
            ("k", Type::Timestamptz, false),
            ("l", Type::Text, false),
        ];
        decoder(
            "[[model]]\ntopic = \"t\"\ntable = \"t\"\ncolumns.k = { field = \"a.b\", unit = \"ms\" }\n\
             columns.l = { lookup = \"user\", field = \"a.c\" }",
            vec![table(1, "t", &columns)],
        )
    }

    fn any_json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            any::<bool>().prop_map(|b| b.to_string()),
            "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,9})?([eE][+-]?[0-9]{1,5})?",
            any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
            any::<u16>().prop_map(|unit| format!("\"\\u{unit:04x}\"")),
            Just("\"2024-05-01T12:30:00Z\"".to_owned()),
            Just("\"\\\\x0a\"".to_owned()),
            Just("\"10.0.0.1/8\"".to_owned()),
        ];
        leaf.prop_recursive(4, 40, 8, |inner| {
            let member =
                ("[a-l]|\\\\u006[0-9]", inner.clone()).prop_map(|(key, value)| format!("\"{key}\":{value}"));
            prop_oneof![
                prop::collection::vec(inner, 0..5).prop_map(|items| format!("[{}]", items.join(" , "))),
                prop::collection::vec(member, 0..9)
                    .prop_map(|members| format!("{{{}}}", members.join(",\n"))),
            ]
        })
    }

    /// Whatever happens, no panic; a row is whole, and a refusal leaves nothing.
    fn survives(decoder: &mut RecordDecoder, value: &[u8]) {
        let record = record(value);
        let valid = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(value).is_ok();
        match decoder.parse(&record) {
            Err(_) => assert!(!valid, "{}", excerpt_bytes(value)),
            Ok(found) => {
                let (mut out, message) = (Vec::new(), found.message().unwrap());
                decoder.tokens(message, |_, _| {});
                if decoder.encode(0, message, &Users, &mut out) == Ok(Encoded::Row) {
                    let (count, mut rest) = out.split_at(2);
                    for _ in 0..i16::from_be_bytes(count.try_into().unwrap()) {
                        let (length, after) = rest.split_at(4);
                        let length = i32::from_be_bytes(length.try_into().unwrap());
                        rest = &after[usize::try_from(length).unwrap_or(0)..];
                    }
                    assert!(rest.is_empty());
                } else {
                    assert!(out.is_empty());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(value: Vec<u8>) {
            survives(&mut everything(), &value);
        }

        #[test]
        fn no_json_panics(value in any_json()) {
            survives(&mut everything(), value.as_bytes());
        }

        #[test]
        fn no_damaged_message_panics(value in any_json(), at: prop::sample::Index, byte: u8) {
            let mut value = format!("{{\"a\":{value},\"g\":{value},\"h\":[{value}]}}").into_bytes();
            survives(&mut everything(), &value);
            let at = at.index(value.len());
            value[at] = byte;
            survives(&mut everything(), &value);
            value.truncate(at);
            survives(&mut everything(), &value);
        }
    }
}
