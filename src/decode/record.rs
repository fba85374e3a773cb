//! The pure step of decoding: one JSON record -> one COPY BINARY tuple for each model that takes it, or a reject.
//! A record is parsed once, into slots that say where in the payload each needed field stands ([`super::fields`]); a model's
//! columns are then written from the slots ([`super::column`]). Nothing is allocated for a good record once the buffers have
//! grown, and nothing here waits, asks a clock, or knows Kafka, Redis or PostgreSQL.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::column::{Encoded, Fill, Found, Input, Lookups, Step, Written, header, token};
use super::fields::{Element, Level, Slot, Tree, read_array, read_element, read_message, slot_of};
use super::scan::NotJson;
use crate::client::binary;
use crate::decode::reject::{COLUMN, Reason, Reject, excerpt, excerpt_bytes};
use crate::decode::value::read::{Json, Value};
use crate::decode::value::wrong::Wrong;
use crate::model::plan::{Condition, Envelope, Expected, Model, Path, Plan, PlanColumn, Source};
use crate::model::{Framing, Kafka, Tombstones};
use crate::promise::batch::{CUT_KEEPS_BYTES, Cut, Record, Shape};

/// What bounds one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Larger values are refused before they are looked at. At most 1 GB, which is what PostgreSQL holds in a value.
    pub value_bytes_max: usize,
    /// Levels of `{` and `[` in what goes into json, jsonb and array columns. Fields that no model uses may be deeper:
    /// they are skipped without recursion.
    pub depth_max: usize,
    /// Tokens of one record that can be known at once; a list that may need more is refused.
    pub tokens_max: usize,
}

impl Limits {
    /// Messages in one record. All of them go in one transaction, which has 16,000 rows at most where they come singly; and
    /// two bytes of a message can be a row of a hundred.
    pub const ELEMENTS_MAX: u16 = 10_000;

    /// Slots count bytes in `u32`, and PostgreSQL's lengths are `i32`.
    pub const VALUE_BYTES_CEILING: usize = 1 << 30;
}

impl Default for Limits {
    fn default() -> Self {
        Self { value_bytes_max: 64 << 20, depth_max: 128, tokens_max: usize::MAX }
    }
}

/// What [`RecordDecoder::parse`] found.
#[derive(Clone, Copy, Debug)]
pub enum Parsed<'r> {
    Message(Message<'r>),
    /// Many messages, which [`RecordDecoder::next`] reads one after another.
    List(List<'r>),
    /// No value, and the topic's models skip such records.
    Tombstone,
}

impl<'r> Parsed<'r> {
    pub fn message(self) -> Option<Message<'r>> {
        match self {
            Parsed::Message(message) => Some(message),
            Parsed::List(_) | Parsed::Tombstone => None,
        }
    }
}

/// A record whose value is known to be one JSON object. Only [`RecordDecoder::parse`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Message<'r> {
    record: &'r Record<'r>,
    /// All of the value, in which the slots stand.
    text: &'r str,
    /// The message itself, which an envelope may be around.
    body: &'r str,
    /// Which one of its record's list.
    element: Option<u16>,
}

impl Message<'_> {
    pub fn element(self) -> Option<u16> {
        self.element
    }
}

/// The messages of one record, for whoever does not care whether it has one or many.
pub enum Messages<'r> {
    One(Option<Message<'r>>),
    Many(List<'r>),
}

impl<'r> Messages<'r> {
    pub fn none() -> Messages<'r> {
        Messages::One(None)
    }

    pub fn of(parsed: Parsed<'r>) -> Messages<'r> {
        match parsed {
            Parsed::Message(message) => Messages::One(Some(message)),
            Parsed::List(list) => Messages::Many(list),
            Parsed::Tombstone => Messages::none(),
        }
    }

    /// The next one, of which the decoder speaks then.
    ///
    /// # Errors
    /// See [`RecordDecoder::next`].
    pub fn next(&mut self, decoder: &mut RecordDecoder) -> Result<Option<Message<'r>>, Reject> {
        match self {
            Messages::One(message) => Ok(message.take()),
            Messages::Many(list) => decoder.next(list),
        }
    }
}

/// The messages of one record. Only [`RecordDecoder::parse`] makes one, of an array that is known to be JSON.
#[derive(Clone, Copy, Debug)]
pub struct List<'r> {
    record: &'r Record<'r>,
    text: &'r str,
    /// Where the last message that was read ended.
    at: usize,
    /// How many were read.
    count: u16,
}

/// Decodes the records of one topic. Holds the last parsed record's slots, so one decoder serves one thread.
pub struct RecordDecoder {
    plan: Arc<Plan>,
    topic: usize,
    limits: Limits,
    /// The objects that fields stand in, the message itself first.
    levels: Vec<Level>,
    slots: Vec<Slot>,
    /// Where the message is, if it is in an envelope.
    payload: Option<usize>,
    /// Where the messages are, if a record has many.
    list: Option<Whereabouts>,
    elements_max: u16,
    routes: Vec<Route>,
    /// Where escaped strings become plain ones; valid until the next one.
    scratch: String,
    /// Which record the slots speak of.
    parsed: Option<RecordId>,
    /// Microseconds since 1970, by which rows are too old for their tables.
    now: i64,
}

/// How a list of messages is found in a record's value; the other levels and slots are those of its elements.
struct Whereabouts {
    levels: Vec<Level>,
    slots: Vec<Slot>,
    payload: Option<usize>,
    /// `None` where the value itself is the list.
    list: Option<usize>,
}

/// One model of the topic, with its fields resolved to slots.
struct Route {
    model: usize,
    when: Vec<(usize, Expected)>,
    /// A message that meets all of these deletes; none does where there are none.
    delete_when: Vec<(usize, Expected)>,
    steps: Vec<Step>,
    /// The fields of which one has to be there. Empty where a row cannot come of nothing.
    wants_one_of: Vec<usize>,
    takes: bool,
}

/// Of the fields that a model looks for, in a sentence.
const NAMES_SHOWN: usize = 8;

/// Tells one record from another without keeping a borrow.
type RecordId = (usize, usize, Option<u16>);

impl RecordDecoder {
    /// `topic` is an index into the plan's topics.
    pub fn new(plan: Arc<Plan>, topic: usize, limits: Limits) -> Self {
        assert!(limits.value_bytes_max <= Limits::VALUE_BYTES_CEILING, "lengths must fit PostgreSQL's");
        let models = &plan.topics[topic].models;
        let mut tree = Tree::default();
        let list = Whereabouts::of(&plan.topics[topic].envelope);
        let payload = plan.topics[topic].envelope.payload.as_ref().filter(|_| list.is_none());
        payload.into_iter().for_each(|path| tree.want(path));
        for model in models.iter().map(|index| &plan.models[*index]) {
            let conditions = model.when.iter().chain(&model.delete_when);
            conditions.for_each(|condition| tree.want(&condition.path));
            model.sources.iter().filter_map(path_of).for_each(|path| tree.want(path));
        }
        let (mut levels, mut slots) = (Vec::new(), 0);
        tree.lay_out(&mut levels, &mut slots);
        let routes: Vec<Route> =
            models.iter().map(|model| Route::new(&plan, *model, &levels, limits)).collect();
        let tokens = routes.iter().map(Route::tokens).sum::<usize>().max(1);
        let elements_max = (limits.tokens_max / tokens).min(Limits::ELEMENTS_MAX.into()) as u16;
        let payload = payload.map(|path| slot_of(&levels, path));
        let slots = vec![Slot::default(); slots];
        Self {
            plan,
            topic,
            limits,
            levels,
            slots,
            payload,
            list,
            elements_max,
            routes,
            scratch: String::new(),
            parsed: None,
            now: jiff::Timestamp::now().as_microsecond(),
        }
    }

    /// What time it is for the records that follow, in microseconds since 1970; by itself when the decoder was made.
    pub fn set_now(&mut self, now: i64) {
        self.now = now;
    }

    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Reads the record's JSON once. Every other function speaks of the record that was parsed last.
    pub fn parse<'r>(&mut self, record: &'r Record<'r>) -> Result<Parsed<'r>, Reject> {
        self.parsed = None;
        for route in &mut self.routes {
            route.takes = false;
        }
        if let Some(cut) = record.headers.cut() {
            return Err(self.cut(cut));
        }
        let Some(value) = record.value else {
            return self.tombstone("the record has no value");
        };
        if value.len() > self.limits.value_bytes_max {
            return Err(self.too_large(value.len()));
        }
        let value = match self.plan.topics[self.topic].envelope.framing {
            None => value,
            Some(Framing::SchemaRegistry) => unframed(value)?,
        };
        let text = std::str::from_utf8(value).map_err(|error| not_utf8(value, error))?;
        if self.list.is_some() {
            return self.find_list(record, text);
        }
        self.slots.iter_mut().for_each(Slot::clear);
        read_message(text, &mut self.levels, &mut self.slots).map_err(|NotJson| not_one(text, "object"))?;
        let body = match self.payload.map(|slot| self.slots[slot].of(text)) {
            None => text,
            Some(Some(json)) if json.text.starts_with('{') => json.text,
            Some(Some(json)) if json.is_null() => return self.tombstone("the envelope holds null"),
            Some(found) => return Err(self.no_payload(found, text)),
        };
        Ok(Parsed::Message(self.routed(Message { record, text, body, element: None })))
    }

    /// Finds the models that take the message whose slots are filled.
    fn routed<'r>(&mut self, message: Message<'r>) -> Message<'r> {
        for route in &mut self.routes {
            let slots = &self.slots;
            let scratch = &mut self.scratch;
            route.takes = route
                .when
                .iter()
                .all(|(slot, expected)| meets(slots[*slot].of(message.text), expected, scratch));
        }
        self.parsed = Some(id(message));
        message
    }

    fn find_list<'r>(&mut self, record: &'r Record<'r>, text: &'r str) -> Result<Parsed<'r>, Reject> {
        let whereabouts = self.list.as_mut().expect("asked for where there is one");
        let list = |text| Ok(Parsed::List(List { record, text, at: 0, count: 0 }));
        let Some(slot) = whereabouts.list else {
            return match read_array(text) {
                Ok(()) => list(text),
                Err(NotJson) => Err(no_list(text, None)),
            };
        };
        whereabouts.slots.iter_mut().for_each(Slot::clear);
        read_message(text, &mut whereabouts.levels, &mut whereabouts.slots)
            .map_err(|NotJson| not_one(text, "object"))?;
        let found = whereabouts.slots[slot].of(text);
        if let Some(json) = found.filter(|json| json.text.starts_with('[')) {
            return list(json.text);
        }
        let payload = whereabouts.payload.and_then(|slot| whereabouts.slots[slot].of(text));
        if payload.is_some_and(Json::is_null) {
            return self.tombstone("the envelope holds null");
        }
        let envelope = &self.plan.topics[self.topic].envelope;
        let path = envelope.list_path().expect("there is one").to_string();
        Err(no_list(found.map_or(text, |json| json.text), Some((&path, found.is_some()))))
    }

    /// Reads the next message of a list, of which the other functions speak then; `None` after the last one.
    ///
    /// # Errors
    /// Why the whole record is refused.
    pub fn next<'r>(&mut self, list: &mut List<'r>) -> Result<Option<Message<'r>>, Reject> {
        self.parsed = None;
        for route in &mut self.routes {
            route.takes = false;
        }
        self.slots.iter_mut().for_each(Slot::clear);
        let read = read_element(list.text, &mut list.at, &mut self.levels, &mut self.slots)
            .map_err(|NotJson| not_one(list.text, "list"))?;
        let number = list.count;
        let range = match read {
            Element::End => return Ok(None),
            _ if number == self.elements_max => return Err(self.too_many()),
            Element::Object(range) => range,
            Element::Other(range) => {
                let message = format!(
                    "element {number} of the list is no object; found {}",
                    excerpt(&list.text[range])
                );
                return Err(Reject::new(Reason::NotAnObject, message));
            }
        };
        list.count += 1;
        let (record, text, body) = (list.record, list.text, &list.text[range]);
        Ok(Some(self.routed(Message { record, text, body, element: Some(number) })))
    }

    #[cold]
    fn too_large(&self, bytes: usize) -> Reject {
        let message = format!("the value has {bytes} bytes, the bound is {}", self.limits.value_bytes_max);
        Reject::new(Reason::TooLarge, message)
    }

    /// A record of which only a beginning is held.
    #[cold]
    fn cut(&self, cut: Cut) -> Reject {
        let value = match cut.value_bytes {
            -1 => "no value".to_owned(),
            bytes => format!("a value of {bytes} bytes"),
        };
        let message = format!(
            "the record has {value} and {} bytes in all, the bound is {}; kept are the first {CUT_KEEPS_BYTES} bytes of its value \
             and of its key, no header, and the hash of all of it, {:016x}",
            cut.bytes, self.limits.value_bytes_max, cut.hash
        );
        Reject::new(Reason::TooLarge, message)
    }

    #[cold]
    fn too_many(&self) -> Reject {
        let is_usual = self.elements_max == Limits::ELEMENTS_MAX;
        let why = if is_usual { "" } else { "; cache_max of its lookups allows no more" };
        let message =
            format!("the list has more than {} records, which is the bound{why}", self.elements_max);
        Reject::new(Reason::TooLarge, message)
    }

    #[cold]
    fn tombstone<'r>(&self, what: &str) -> Result<Parsed<'r>, Reject> {
        match self.plan.topics[self.topic].tombstones {
            Tombstones::Skip | Tombstones::Delete => Ok(Parsed::Tombstone),
            Tombstones::DeadLetter => Err(Reject::new(
                Reason::Tombstone,
                format!("{what}; set tombstones = \"skip\" in the model to pass over such records"),
            )),
        }
    }

    #[cold]
    fn no_payload(&self, found: Option<Json<'_>>, text: &str) -> Reject {
        let payload = self.plan.topics[self.topic].envelope.payload.as_ref().expect("it was looked for");
        let what = if found.is_some() { "is no object" } else { "is absent" };
        let found = excerpt(found.map_or(text, |json| json.text));
        let message = format!(
            "field {:?}, in which the model has its message (payload), {what}; found {found}",
            payload.to_string()
        );
        Reject::new(Reason::NotAnObject, message)
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
        let (seen, place) = (seen.join(", "), in_element(message.element));
        Reject::new(Reason::Unroutable, format!("no model of topic {topic:?} takes it: {seen}{place}"))
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
        if !route.delete_when.is_empty() && route.deletes(&self.slots, text, &mut self.scratch) {
            let body = message.body;
            let input = Input {
                text,
                body,
                element: message.element,
                record: message.record,
                slots: &self.slots,
                now: self.now,
            };
            return match route.deletion(&self.plan, &input, lookups, &mut self.scratch, out) {
                Ok(encoded) => Ok(encoded),
                Err((place, wrong)) => Err(self.describe(model, place, &route.steps[place], &input, wrong)),
            };
        }
        let wanted = &route.wants_one_of;
        if !wanted.is_empty() && !wanted.iter().any(|slot| self.slots[*slot].is_filled()) {
            return Err(self.nothing_taken(model, message));
        }
        let start = out.len();
        let mut shape = Shape::WHOLE;
        // What most rows take, once for all columns.
        out.reserve(2 * text.len());
        out.extend_from_slice(&(route.steps.len() as i16).to_be_bytes());
        // Once for all columns as well: it is more than a register holds.
        let input = Input {
            text,
            body: message.body,
            element: message.element,
            record: message.record,
            slots: &self.slots,
            now: self.now,
        };
        for (place, step) in route.steps.iter().enumerate() {
            match step.write(&input, lookups, &mut self.scratch, out) {
                Ok(Written::Value) => {}
                Ok(Written::LeftOut(optional)) => shape.leave_out(optional),
                Ok(Written::NeedsLookup) => {
                    out.truncate(start);
                    return Ok(Encoded::NeedsLookup);
                }
                Ok(Written::Expired) => {
                    out.truncate(start);
                    return Ok(Encoded::Expired);
                }
                Err(wrong) => {
                    out.truncate(start);
                    return Err(self.describe(model, place, step, &input, wrong));
                }
            }
        }
        if shape != Shape::WHOLE {
            let fields = (route.steps.len() - shape.count()) as i16;
            out[start..start + size_of_val(&fields)].copy_from_slice(&fields.to_be_bytes());
        }
        Ok(Encoded::Row(shape))
    }

    /// Appends the tuple by which a record without a value deletes the row of its key, where the model asks for it.
    ///
    /// # Errors
    /// Why its key is none; `out` is as before then.
    pub fn encode_tombstone(
        &mut self,
        model: usize,
        record: &Record<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, Reject> {
        let route = self.routes.iter().find(|route| route.model == model).expect("a model of this topic");
        let input = Input { text: "", body: "", element: None, record, slots: &self.slots, now: self.now };
        match route.deletion(&self.plan, &input, &NoTokens, &mut self.scratch, out) {
            Ok(encoded) => Ok(encoded),
            Err((place, wrong)) => Err(self.describe(model, place, &route.steps[place], &input, wrong)),
        }
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
        assert!(self.parsed == Some(id(message)), "a record is parsed before it is used");
        message.text
    }

    #[cold]
    fn nothing_taken(&self, model: usize, message: Message<'_>) -> Reject {
        let paths = self.plan.models[model].sources.iter().filter_map(path_of);
        let mut names: Vec<String> = paths.map(|path| format!("{:?}", path.to_string())).collect();
        let more = if names.len() > NAMES_SHOWN { ", …" } else { "" };
        names.truncate(NAMES_SHOWN);
        let message = format!(
            "none of the fields that the model looks for is there ({}{more}): names are compared letter for letter, and \
             `payload` leads into an envelope; found {}{}",
            names.join(", "),
            excerpt(message.body),
            in_element(message.element)
        );
        Reject::new(Reason::NothingTaken, message)
    }

    #[cold]
    fn describe(
        &self,
        model: usize,
        place: usize,
        step: &Step,
        input: &Input<'_, '_>,
        wrong: Wrong,
    ) -> Reject {
        let model = &self.plan.models[model];
        let column: &PlanColumn = &self.plan.tables[model.table].columns[place];
        let from = match &model.sources[place] {
            Source::Field { path, .. } | Source::Lookup { path, .. } => {
                format!("field {:?}", path.to_string())
            }
            Source::Kafka(part) => format!("the record's {}", part.name()),
            Source::Header(name) => format!("the record's header {name:?}"),
            Source::Message => "the message".into(),
            Source::Clock | Source::One | Source::Null => "no field".into(),
        };
        let field = |slot: usize| input.slots[slot].of(input.text).map(|json| excerpt(json.text));
        let found = match &step.fill {
            Fill::Field { slot, .. } => field(*slot),
            // A token that works is a secret; one that nobody knows is what the reader has to look for.
            Fill::Lookup { slot, .. } if wrong.reason == Reason::UnknownToken => field(*slot),
            Fill::Kafka(Kafka::Key) => input.record.key.map(excerpt_bytes),
            Fill::Header(name) => header(input.record, name).flatten().map(excerpt_bytes),
            Fill::Kafka(Kafka::Timestamp) => input.record.timestamp_ms.map(|ms| ms.to_string()),
            Fill::Message { .. } => Some(excerpt(input.body)),
            _ => None,
        };
        let found = found.map(|found| format!("; found {found}")).unwrap_or_default();
        let place = in_element(input.element);
        let message =
            format!("{COLUMN}{:?} ({}) from {from}: {}{found}{place}", column.name, column.ty, wrong.why);
        Reject::new(wrong.reason, message)
    }
}

impl Whereabouts {
    fn of(envelope: &Envelope) -> Option<Whereabouts> {
        let path = envelope.list_path()?;
        let mut tree = Tree::default();
        let list = Some(&path).filter(|path| !path.0.is_empty());
        envelope.payload.iter().chain(list).for_each(|path| tree.want(path));
        let (mut levels, mut slots) = (Vec::new(), 0);
        tree.lay_out(&mut levels, &mut slots);
        let slot = |path: &Path| slot_of(&levels, path);
        let (payload, list) = (envelope.payload.as_ref().map(slot), list.map(slot));
        Some(Whereabouts { levels, slots: vec![Slot::default(); slots], payload, list })
    }
}

impl Route {
    /// How many tokens one message may need.
    fn tokens(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step.fill, Fill::Lookup { .. })).count()
    }

    fn new(plan: &Plan, index: usize, levels: &[Level], limits: Limits) -> Self {
        let model = &plan.models[index];
        let columns = &plan.tables[model.table].columns;
        let slot = |path: &Path| slot_of(levels, path);
        let resolved = |conditions: &[Condition]| {
            conditions.iter().map(|Condition { path, equals }| (slot(path), equals.clone())).collect()
        };
        let sources = model.sources.iter().zip(&model.floors);
        let retention = plan.tables[model.table].retention.as_ref();
        let steps = columns.iter().zip(sources).enumerate().map(|(place, (column, (source, floor)))| {
            let retention = retention.filter(|retention| retention.column == Some(place));
            Step::new(column, source, *floor, retention, limits.depth_max, slot)
        });
        let wants_one_of = wanted(model, columns).iter().map(|path| slot(path)).collect();
        Self {
            model: index,
            when: resolved(&model.when),
            delete_when: resolved(&model.delete_when),
            steps: steps.collect(),
            wants_one_of,
            takes: false,
        }
    }

    fn deletes(&self, slots: &[Slot], text: &str, scratch: &mut String) -> bool {
        self.delete_when.iter().all(|(slot, expected)| meets(slots[*slot].of(text), expected, scratch))
    }

    /// Appends the key, and NULL for all else; `out` is as before where there is no key. The error has the column's place.
    #[cold]
    fn deletion(
        &self,
        plan: &Plan,
        input: &Input<'_, '_>,
        lookups: &impl Lookups,
        scratch: &mut String,
        out: &mut Vec<u8>,
    ) -> Result<Encoded, (usize, Wrong)> {
        let table = &plan.tables[plan.models[self.model].table];
        let keyed = table.keyed.as_ref().expect("only rows with a key are deleted");
        let key = table.clock_columns..table.clock_columns + keyed.keys;
        let start = out.len();
        out.extend_from_slice(&(self.steps.len() as i16).to_be_bytes());
        for (place, step) in self.steps.iter().enumerate() {
            if place >= key.end {
                binary::null(out);
                continue;
            }
            match step.write(input, lookups, scratch, out) {
                Ok(Written::NeedsLookup) => {
                    out.truncate(start);
                    return Ok(Encoded::NeedsLookup);
                }
                Ok(Written::Expired) => {
                    out.truncate(start);
                    return Ok(Encoded::Expired);
                }
                Ok(_) => {}
                Err(wrong) => {
                    out.truncate(start);
                    return Err((place, wrong));
                }
            }
        }
        Ok(Encoded::Deletion)
    }
}

/// A tombstone has no field that could be a token.
struct NoTokens;

impl Lookups for NoTokens {
    fn find(&self, _lookup: usize, _token: &str) -> Found<'_> {
        Found::Unknown
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

/// The fields of which a message must have one, for a model that could make a row of NULLs out of any message: it asks for
/// nothing by name (`when`), it does not keep the message as it is, and no field of it has to be there.
fn wanted<'p>(model: &'p Model, columns: &[PlanColumn]) -> Vec<&'p Path> {
    let fields = || columns.iter().zip(&model.sources).filter_map(|(c, source)| Some((c, path_of(source)?)));
    let certain = !model.when.is_empty()
        || model.sources.contains(&Source::Message)
        || fields().any(|(column, _)| column.not_null && column.optional.is_none());
    if certain { Vec::new() } else { fields().map(|(_, path)| path).collect() }
}

fn path_of(source: &Source) -> Option<&Path> {
    match source {
        Source::Field { path, .. } | Source::Lookup { path, .. } => Some(path),
        Source::Clock
        | Source::Message
        | Source::Kafka(_)
        | Source::Header(_)
        | Source::One
        | Source::Null => None,
    }
}

fn id(message: Message<'_>) -> RecordId {
    (message.text.as_ptr() as usize, message.text.len(), message.element)
}

/// The end of a sentence about one message of many.
fn in_element(element: Option<u16>) -> String {
    element.map(|number| format!(", in element {number} of the list")).unwrap_or_default()
}

/// What follows a schema registry's zero byte and the four bytes of a schema's number.
fn unframed(value: &[u8]) -> Result<&[u8], Reject> {
    match value {
        [0, _, _, _, _, rest @ ..] => Ok(rest),
        _ => Err(Reject::new(
            Reason::NotFramed,
            format!(
                "the value does not begin with a schema registry's framing, a zero byte and four more, which the model says it \
                 has (framing); found {}",
                excerpt_bytes(value)
            ),
        )),
    }
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

/// Why a text has no list of messages: it is another JSON value, or its field at `path` is absent or another value.
#[cold]
fn no_list(found: &str, path: Option<(&str, bool)>) -> Reject {
    let what = match path {
        None if serde_json::from_str::<IgnoredAny>(found).is_err() => return not_one(found, "list"),
        None => "the value, which is the list of the model's records, is no list".to_owned(),
        Some((path, is_there)) => {
            let what = if is_there { "is no list" } else { "is absent" };
            format!("field {path:?}, in which the model has its records, {what}")
        }
    };
    Reject::new(Reason::NoRecords, format!("{what}; found {}", excerpt(found)))
}

/// Why a text is not one JSON value of this kind.
#[cold]
fn not_one(text: &str, kind: &str) -> Reject {
    if text.is_empty() {
        return Reject::new(Reason::InvalidJson, "the value is empty");
    }
    // Only what is no JSON is explained by serde_json: of a string it would quote all, however long.
    let error = serde_json::from_str::<IgnoredAny>(text).err();
    let reason = if error.is_some() { Reason::InvalidJson } else { Reason::NotAnObject };
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    let hint = hint(text.as_bytes()).map(|hint| format!(" ({hint})")).unwrap_or_default();
    Reject::new(reason, format!("the value is not a JSON {kind}{error}{hint}; found {}", excerpt(text)))
}

/// What else it may be: the usual surprises in a topic of JSON.
fn hint(value: &[u8]) -> Option<&'static str> {
    match value {
        [0xef, 0xbb, 0xbf, ..] => Some("it starts with a byte order mark"),
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [b'{', 0, ..] | [0, b'{', ..] => Some("it looks like UTF-16"),
        [0x1f, 0x8b, ..] => Some("it looks like gzip"),
        [0, _, _, _, _, ..] => Some(
            "it looks like a schema registry's framing; framing = \"schema-registry\" in the model skips it",
        ),
        _ => None,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::model::RawModel;
    use crate::model::compile::compile;
    use crate::model::types::{Column, Kind, Table, Type};
    use crate::promise::batch::Headers;

    #[derive(serde::Deserialize)]
    struct Models {
        model: Vec<RawModel>,
    }

    /// A table of that name; `true` is NOT NULL.
    pub(in crate::decode) fn table(oid: u32, name: &str, columns: &[(&str, Type, bool)]) -> Table {
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
            primary_key: Vec::new(),
            fingerprint: String::new(),
            kind: Kind::Ordinary,
            ranged_by: None,
        }
    }

    pub(in crate::decode) fn decoder(models: &str, tables: Vec<Table>) -> RecordDecoder {
        let models: Models = toml::from_str(models).unwrap();
        let tables: HashMap<_, _> = tables.into_iter().map(|table| (table.name.clone(), table)).collect();
        let plan = compile(&models.model, &tables, &["user".to_owned()]).unwrap();
        RecordDecoder::new(Arc::new(plan), 0, Limits::default())
    }

    pub(in crate::decode) fn record(value: &[u8]) -> Record<'_> {
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
    pub(in crate::decode) struct Users;

    impl Lookups for Users {
        fn find(&self, _lookup: usize, token: &str) -> Found<'_> {
            match token {
                "tok-1" => Found::Value("user-1"),
                _ if token.starts_with('?') => Found::NotCached,
                _ => Found::Unknown,
            }
        }
    }

    pub(in crate::decode) fn parsed<'r>(decoder: &mut RecordDecoder, record: &'r Record<'r>) -> Message<'r> {
        decoder.parse(record).unwrap().message().expect("a message")
    }

    pub(in crate::decode) fn metric() -> RecordDecoder {
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

    pub(in crate::decode) const METRIC: &str = r#"{"token":"tok-1","source":"collector-7.dc2.example","path":"system/cpu/0/user","value":12.625,"time":"2024-05-01T12:30:00.123456Z"}"#;

    /// One table `t` with one column `c`, filled as `columns` says; the bytes after the tuple's count.
    pub(in crate::decode) fn one(
        ty: Type,
        not_null: bool,
        columns: &str,
        record: &Record<'_>,
    ) -> Result<Vec<u8>, Reason> {
        let model = format!("[[model]]\ntopic = \"t\"\ntable = \"t\"\n{columns}");
        let mut decoder = decoder(&model, vec![table(1, "t", &[("c", ty, not_null)])]);
        let mut out = Vec::new();
        let message = decoder.parse(record).map_err(|reject| reject.reason)?.message().expect("a message");
        decoder.encode(0, message, &Users, &mut out).map_err(|reject| reject.reason)?;
        assert_eq!(out[..2], [0, 1]);
        Ok(out[2..].to_vec())
    }

    pub(in crate::decode) fn field(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
    }

    pub(in crate::decode) const NULL: [u8; 4] = [0xff; 4];

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
                    assert_eq!(
                        decoder.encode(model, message, &Users, &mut out),
                        Ok(Encoded::Row(Shape::WHOLE))
                    );
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
    fn a_metric_becomes_a_row() {
        let (mut decoder, record) = (metric(), record(METRIC.as_bytes()));
        let mut out = b"before".to_vec();
        let message = parsed(&mut decoder, &record);
        assert_eq!(decoder.models().collect::<Vec<_>>(), [0]);
        assert_eq!(decoder.encode(0, message, &Users, &mut out), Ok(Encoded::Row(Shape::WHOLE)));
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
    fn absent_fields_are_left_to_the_columns_defaults() {
        let mut table =
            table(1, "t", &[("a", Type::Int4, true), ("b", Type::Int4, true), ("c", Type::Int4, false)]);
        table.columns[1].has_default = true;
        table.columns[2].has_default = true;
        let mut decoder = decoder("[[model]]\ntopic = \"t\"\ntable = \"t\"", vec![table]);
        let mut check = |message: &str, expected: Result<(&[u8], &[i32]), Reason>| {
            let (record, mut out) = (record(message.as_bytes()), b"before".to_vec());
            let message = parsed(&mut decoder, &record);
            let encoded = decoder.encode(0, message, &Users, &mut out).map_err(|reject| reject.reason);
            let expected = expected.map(|(left_out, values)| {
                let mut shape = Shape::WHOLE;
                left_out.iter().for_each(|optional| shape.leave_out(*optional));
                let values = values.iter().flat_map(|v| field(&v.to_be_bytes())).collect::<Vec<u8>>();
                (Encoded::Row(shape), [&b"before\0"[..], &[3 - left_out.len() as u8], &values].concat())
            });
            assert_eq!(encoded.map(|encoded| (encoded, out)), expected);
        };
        check(r#"{"a":1,"b":2,"c":3}"#, Ok((&[], &[1, 2, 3])));
        check(r#"{"a":1,"c":3}"#, Ok((&[0], &[1, 3])));
        check(r#"{"c":3,"a":1}"#, Ok((&[0], &[1, 3])));
        check(r#"{"a":1}"#, Ok((&[0, 1], &[1])));
        // Null is a value, and no default.
        check(r#"{"a":1,"b":null}"#, Err(Reason::NullNotAllowed));
        check(r#"{"b":2}"#, Err(Reason::MissingField));
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
    fn a_message_with_nothing_for_the_model_is_no_row_of_nulls() {
        /// `columns` of the table may be NULL unless their name is in capitals.
        #[track_caller]
        fn check(columns: &[&str], settings: &str, message: &str, expected: Result<(), Reason>) {
            let columns: Vec<_> = columns.iter().map(|name| (*name, Type::Text, *name == "MUST")).collect();
            let model = format!("[[model]]\ntopic = \"t\"\ntable = \"t\"\n{settings}");
            let (mut decoder, record) =
                (decoder(&model, vec![table(1, "t", &columns)]), record(message.as_bytes()));
            let message = parsed(&mut decoder, &record);
            let mut out = b"before".to_vec();
            let found = decoder.encode(0, message, &Users, &mut out).map(drop);
            assert_eq!(
                found.as_ref().map_err(|reject| reject.reason),
                expected.as_ref().map(|_| &()).map_err(|r| *r)
            );
            assert_eq!(out == b"before", found.is_err());
        }
        let nothing = Err(Reason::NothingTaken);
        check(&["s"], "", r#"{"S":"x"}"#, nothing);
        check(&["s"], "", "{}", nothing);
        check(&["s", "t"], "", r#"{"schema":{"s":1},"payload":{"s":"x"}}"#, nothing);
        check(&["s", "t"], "columns.t = { field = \"a.b\" }", r#"{"a":{"c":1},"b":2}"#, nothing);
        check(&["s"], "columns.s = { lookup = \"user\", unknown = \"null\" }", r#"{"S":"x"}"#, nothing);
        check(&["s", "t"], "columns.t = { kafka = \"topic\" }", r#"{"S":"x"}"#, nothing);
        // One field is enough, and null is a way to be there.
        check(&["s", "t"], "", r#"{"t":"x"}"#, Ok(()));
        check(&["s", "t"], "", r#"{"t":null}"#, Ok(()));
        check(&["s", "t"], "columns.t = { field = \"a.b\" }", r#"{"a":{"b":null}}"#, Ok(()));
        check(&["s"], "columns.s = { lookup = \"user\", unknown = \"null\" }", r#"{"s":"x"}"#, Ok(()));
        // The reason that names the column comes first.
        check(&["s", "MUST"], "", r#"{"S":"x"}"#, Err(Reason::MissingField));
        check(&["s", "MUST"], "columns.MUST = { kafka = \"topic\" }", r#"{"S":"x"}"#, nothing);
        // Nothing was looked for by name, the record was known by a field, or nothing of it is lost.
        check(&["s"], "columns.s = { kafka = \"topic\" }", r#"{"S":"x"}"#, Ok(()));
        check(&["s", "t"], "columns.t = { message = true }", r#"{"S":"x"}"#, Ok(()));
        check(&["s"], "when = { kind = \"x\" }", r#"{"kind":"x"}"#, Ok(()));
    }

    #[test]
    fn what_was_looked_for_is_told() {
        let (mut decoder, record) = (
            decoder(
                "[[model]]\ntopic = \"t\"\ntable = \"t\"",
                vec![table(1, "t", &[("s", Type::Text, false)])],
            ),
            record(b"{\"S\":\"\\u001b\"}"),
        );
        let message = parsed(&mut decoder, &record);
        let reject = decoder.encode(0, message, &Users, &mut Vec::new()).unwrap_err();
        assert_eq!(
            reject.message,
            "none of the fields that the model looks for is there (\"s\"): names are compared letter for letter, and \
             `payload` leads into an envelope; found {\"S\":\"\\u001b\"}"
        );
    }

    #[test]
    fn a_message_in_an_envelope() {
        const MODEL: &str = "[[model]]\ntopic = \"t\"\ntable = \"t\"\npayload = \"payload.after\"\n\
                             when = { kind = \"x\" }\ncolumns.doc = { message = true }";
        let make = |settings: &str| {
            let columns =
                [("doc", Type::Json, true), ("n", Type::Int4, false), ("payload", Type::Text, false)];
            decoder(&format!("{MODEL}\n{settings}"), vec![table(1, "t", &columns)])
        };
        let check = |message: &str, expected: Result<&[Vec<u8>], Reason>| {
            let (mut decoder, record) = (make(""), record(message.as_bytes()));
            let found = decoder.parse(&record).map_err(|reject| reject.reason).map(|parsed| {
                let mut out = Vec::new();
                let takes = decoder.models().count();
                decoder.encode(0, parsed.message().unwrap(), &Users, &mut out).unwrap();
                assert_eq!(takes, 1, "{message}");
                out[2..].to_vec()
            });
            assert_eq!(found, expected.map(<[Vec<u8>]>::concat), "{message}");
        };
        let body = r#"{"kind":"x", "n":7 ,"payload":"p"}"#;
        let row = [field(body.as_bytes()), field(&7i32.to_be_bytes()), field(b"p")];
        check(
            &format!(r#"{{"schema":{{"n":1}},"payload":{{"op":"c","after":{body}}},"kind":"y","n":8}}"#),
            Ok(&row),
        );
        check(&format!(r#"{{"payload":{{"after": {body} ,"before":null}}}}"#), Ok(&row));
        // The last of equal keys wins, as everywhere.
        check(&format!(r#"{{"payload":{{"after":{{"n":1}},"after":{body}}}}}"#), Ok(&row));
        for none in [
            "{}",
            r#"{"payload":null}"#,
            r#"{"payload":{}}"#,
            r#"{"payload":{"after":7}}"#,
            r#"{"payload":{"after":[{}]}}"#,
            r#"{"payload":{"after":"{}"}}"#,
            r#"{"payload.after":{"kind":"x"}}"#,
            &format!(r#"{{"payload":{{"after":{body}}},"payload":{{}}}}"#),
        ] {
            check(none, Err(Reason::NotAnObject));
        }
        check(r#"{"payload":{"after":{}}"#, Err(Reason::InvalidJson));
        check(r#"{"payload":{"after":null}}"#, Err(Reason::Tombstone));
        let (skipping, record) =
            (&mut make("tombstones = \"skip\""), record(br#"{"payload":{"after":null}}"#));
        assert!(matches!(skipping.parse(&record), Ok(Parsed::Tombstone)));
    }

    #[test]
    fn a_message_behind_a_schema_registrys_framing() {
        let columns = [("c", Type::Int4, true), ("doc", Type::Text, true)];
        let model = "[[model]]\ntopic = \"t\"\ntable = \"t\"\nframing = \"schema-registry\"\ncolumns.doc = { message = true }";
        let mut decoder = decoder(model, vec![table(1, "t", &columns)]);
        for framed in [&b"\0\0\0\0\x07{\"c\":7}"[..], b"\0\xff\xff\xff\xff{\"c\":7}"] {
            let (record, mut out) = (record(framed), Vec::new());
            let message = parsed(&mut decoder, &record);
            decoder.encode(0, message, &Users, &mut out).unwrap();
            assert_eq!(out[2..], [field(&7i32.to_be_bytes()), field(b"{\"c\":7}")].concat());
        }
        for (value, expected) in [
            (&b"{\"c\":7}"[..], Reason::NotFramed),
            (b"", Reason::NotFramed),
            (b"\0\0\0\x07", Reason::NotFramed),
            (b"\x01\0\0\0\x07{\"c\":7}", Reason::NotFramed),
            (b" \0\0\0\0\x07{\"c\":7}", Reason::NotFramed),
            (b"\0\0\0\0\x07", Reason::InvalidJson),
            (b"\0\0\0\0\x07\0{\"c\":7}", Reason::InvalidJson),
            (b"\0\0\0\0\x07\xff", Reason::InvalidUtf8),
            (b"\0\0\0\0\x07[]", Reason::NotAnObject),
        ] {
            let reject = decoder.parse(&record(value)).unwrap_err();
            assert_eq!(reject.reason, expected, "{}", excerpt_bytes(value));
            assert!(reject.reason.is_of_no_table(&reject.message), "{reject}");
        }
        let tombstone = Record { value: None, ..record(b"") };
        assert_eq!(decoder.parse(&tombstone).unwrap_err().reason, Reason::Tombstone);
    }

    /// What every message of a record becomes in one table: (element, payload) as text, or why the record is refused.
    fn all_of(settings: &str, value: &str) -> Result<Vec<String>, Reject> {
        let columns = [("n", Type::Int4, false), ("doc", Type::Text, false), ("at", Type::Int8, false)];
        let model = format!(
            "[[model]]\ntopic = \"t\"\ntable = \"t\"\n{settings}\ncolumns.doc = {{ message = true }}\n\
             columns.at = {{ kafka = \"element\" }}"
        );
        let (mut decoder, record) =
            (decoder(&model, vec![table(1, "t", &columns)]), record(value.as_bytes()));
        let (mut messages, mut rows) = (Messages::of(decoder.parse(&record)?), Vec::new());
        while let Some(message) = messages.next(&mut decoder)? {
            let mut out = Vec::new();
            decoder.encode(0, message, &Users, &mut out)?;
            let n = if out[2..6] == [0xff; 4] { 4 } else { 8 };
            let (doc, element) = (&out[2 + n + 4..out.len() - 12], &out[out.len() - 1..]);
            let n = if n == 4 { "NULL".into() } else { out[9].to_string() };
            rows.push(format!("{} {n} {}", element[0], String::from_utf8_lossy(doc)));
        }
        Ok(rows)
    }

    #[test]
    fn a_list_of_messages() {
        #[track_caller]
        fn check(settings: &str, value: &str, expected: &[&str]) {
            assert_eq!(all_of(settings, value).unwrap(), expected, "{value}");
        }
        let document = "records = \".\"";
        check(document, "[]", &[]);
        check(document, " [ ] ", &[]);
        check(document, r#"[{"n":7}]"#, &[r#"0 7 {"n":7}"#]);
        check(
            document,
            "\n[ {\"n\":7} ,\t{ \"n\" : 8 }, {\"m\":9} ] ",
            &[r#"0 7 {"n":7}"#, r#"1 8 { "n" : 8 }"#, r#"2 NULL {"m":9}"#],
        );
        check(
            document,
            r#"[{"n":7,"n":8,"x":[{"n":1}]},{}]"#,
            &[r#"0 8 {"n":7,"n":8,"x":[{"n":1}]}"#, "1 NULL {}"],
        );
        let items = "records = \"items\"";
        check(items, r#"{"n":1,"items":[{"n":7},{"n":8}],"m":2}"#, &[r#"0 7 {"n":7}"#, r#"1 8 {"n":8}"#]);
        check(items, r#"{"items":[{"n":1}],"items":[]}"#, &[]);
        let nested = "payload = \"p.q\"\nrecords = \"a.b\"";
        check(nested, r#"{"p":{"q":{"a":{"b":[{"n":7}]}}}}"#, &[r#"0 7 {"n":7}"#]);
        let payload = "payload = \"p\"\nrecords = \".\"";
        check(payload, r#"{"p":[{"n":7}]}"#, &[r#"0 7 {"n":7}"#]);
    }

    #[test]
    fn a_list_that_is_none() {
        #[track_caller]
        fn check(settings: &str, value: &str, reason: Reason, words: &str) {
            let reject = all_of(settings, value).unwrap_err();
            assert_eq!(reject.reason, reason, "{value}: {reject}");
            assert!(reject.message.contains(words), "{value}: {reject}");
            assert!(reject.reason.is_of_no_table(&reject.message), "{reject}");
        }
        let document = "records = \".\"";
        check(
            document,
            "{}",
            Reason::NoRecords,
            "the value, which is the list of the model's records, is no list",
        );
        check(document, "7", Reason::NoRecords, "is no list");
        check(document, "", Reason::InvalidJson, "the value is empty");
        check(document, "[{}", Reason::InvalidJson, "not a JSON list");
        check(document, "[{}]]", Reason::InvalidJson, "not a JSON list");
        check(document, "[{\"a\":01}]", Reason::InvalidJson, "not a JSON list");
        check(document, "[{},]", Reason::InvalidJson, "not a JSON list");
        check(document, "[{},7]", Reason::NotAnObject, "element 1 of the list is no object; found 7");
        check(document, "[null]", Reason::NotAnObject, "element 0 of the list is no object; found null");
        check(document, "[[{}]]", Reason::NotAnObject, "element 0");
        let items = "records = \"items\"";
        check(
            items,
            "{}",
            Reason::NoRecords,
            "field \"items\", in which the model has its records, is absent",
        );
        check(items, r#"{"items":null}"#, Reason::NoRecords, "is no list; found null");
        check(items, r#"{"items":{}}"#, Reason::NoRecords, "is no list; found {}");
        check(items, "[]", Reason::NotAnObject, "not a JSON object");
        let payload = "payload = \"p\"\nrecords = \"items\"";
        check(payload, r#"{"p":null}"#, Reason::Tombstone, "the envelope holds null");
        check(payload, r#"{"items":[]}"#, Reason::NoRecords, "field \"p.items\"");
        check(
            document,
            &format!("[{}]", vec!["{}"; 10_001].join(",")),
            Reason::TooLarge,
            "more than 10000 records",
        );
        assert_eq!(all_of(document, &format!("[{}]", vec!["{}"; 10_000].join(","))).unwrap().len(), 10_000);
    }

    #[test]
    fn what_is_wrong_with_a_message_of_many_says_which() {
        let reject = all_of("records = \".\"", r#"[{"n":7},{"n":"x"}]"#).unwrap_err();
        assert_eq!(reject.reason, Reason::WrongType);
        assert!(reject.message.ends_with("; found \"x\", in element 1 of the list"), "{reject}");
        assert!(!reject.reason.is_of_no_table(&reject.message));
    }

    #[test]
    fn a_list_needs_no_more_tokens_than_can_be_known() {
        let columns = [("a", Type::Text, false), ("b", Type::Text, false)];
        let model = "[[model]]\ntopic = \"t\"\ntable = \"t\"\nrecords = \".\"\n\
                     columns.a = { lookup = \"user\" }\ncolumns.b = { lookup = \"user\" }";
        let plan = decoder(model, vec![table(1, "t", &columns)]).plan;
        let limits = Limits { tokens_max: 6, ..Limits::default() };
        let mut decoder = RecordDecoder::new(plan, 0, limits);
        let mut read = |value: &[u8]| {
            let record = record(value);
            let (mut messages, mut count) = (Messages::of(decoder.parse(&record).unwrap()), 0);
            while messages.next(&mut decoder)?.is_some() {
                count += 1;
            }
            Ok::<_, Reject>(count)
        };
        assert_eq!(read(b"[{},{},{}]"), Ok(3));
        assert!(read(b"[{},{},{},{}]").unwrap_err().message.contains("more than 3 records"));
    }

    proptest! {
        #[test]
        fn a_list_is_read_as_its_elements_alone(elements in prop::collection::vec(any_json(), 0..6)) {
            let list = format!("[ {} ]", elements.join(" ,\n"));
            let is_object = |text: &String| text.starts_with('{');
            let found = all_of("records = \".\"", &list).map(|rows| rows.len()).map_err(|reject| reject.reason);
            if elements.iter().all(is_object) {
                let alone: Result<Vec<_>, Reason> = elements
                    .iter()
                    .map(|element| all_of("records = \".\"", &format!("[{element}]")).map_err(|reject| reject.reason))
                    .collect();
                prop_assert_eq!(found, alone.map(|rows| rows.len()));
            } else {
                prop_assert!(found.is_err());
            }
        }
    }

    #[test]
    fn a_letter_of_one_column_is_of_its_table() {
        let model = "[[model]]\ntopic = \"t\"\ntable = \"t\"\ncolumns.c = { kafka = \"key\" }";
        let mut decoder = decoder(model, vec![table(1, "t", &[("c", Type::Json, true)])]);
        let record = Record { key: Some(b"{"), ..record(b"{}") };
        let message = parsed(&mut decoder, &record);
        let reject = decoder.encode(0, message, &Users, &mut Vec::new()).unwrap_err();
        assert_eq!(reject.reason, Reason::InvalidJson);
        assert!(!reject.reason.is_of_no_table(&reject.message), "{reject}");
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
                if decoder.encode(0, message, &Users, &mut out) == Ok(Encoded::Row(Shape::WHOLE)) {
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
