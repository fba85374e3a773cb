//! What a message says: a pure function of (seed, stream, sequence number, due time), so that a row read back can be
//! compared with what was sent without anything having been kept.
//!
//! A model's program is a list of draws, each made from those before it. One `Draft` serves both directions: the generator
//! writes it as a message, the verifier compares it with the row.

use std::sync::Arc;

use crate::base::hash::{mix, unit};
use crate::message::keys::Keys;
use crate::message::pattern::{Part, Pattern, Style, Width};
use crate::message::text::{self, Rfc3339};

/// What identifies one message.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Identity {
    pub stream: u16,
    pub seq: u64,
    /// Microseconds since 1970 UTC.
    pub due_us: i64,
}

/// A part of a draft's buffer: from, and up to.
type Span = (u32, u32);

/// What was drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Null,
    Text(Span),
    Integer(i64),
    /// A number of 10 to the minus as many places.
    Decimal(i64, u8),
    /// Microseconds since 1970 UTC.
    Time(i64),
    Bool(bool),
    /// Numbers of 10 to the minus as many places.
    Array(Span, u8),
}

/// What a scenario says outright.
#[derive(Clone, Debug, PartialEq)]
pub enum Constant {
    Null,
    Text(Vec<u8>),
    Integer(i64),
    Decimal(i64, u8),
    Bool(bool),
}

/// The draws of one model, in an order in which each only needs those before it.
#[derive(Clone, Debug, Default)]
pub struct Program {
    pub steps: Vec<Step>,
    pub names: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub kind: Kind,
    pub source: Source,
    /// Another whole number that is added, times so many units of this one's last digit.
    pub plus: Option<(usize, i64)>,
    /// An array of so many of them.
    pub length: Option<u32>,
}

/// Where a draw's hash comes from.
#[derive(Clone, Copy, Debug, Default)]
pub struct Source {
    /// Separates the draws of one message from each other; draws of the same salt share their hash.
    pub salt: u64,
    pub turn: Turn,
    /// The hash's lower bits that are left out.
    pub shift: u32,
    /// The draw whose value it follows from, instead of the message's number.
    pub by: Option<usize>,
}

/// Which messages of a stream draw the same.
#[derive(Clone, Copy, Debug, Default)]
pub enum Turn {
    /// None.
    #[default]
    Each,
    /// Every so manyth.
    Cycle(u64),
    /// So many in a row.
    Group(u64),
}

#[derive(Clone, Debug)]
pub enum Kind {
    Run,
    Stream,
    Seq,
    /// A number that no other message of any run has, as far as 63 bits reach: of the run 20, of the stream 12, of the message
    /// 31.
    Number,
    Constant(Constant),
    Text(Pattern),
    /// One of a list.
    Choice(Vec<Constant>, Pick),
    /// One of a list of tables; the value is its place there.
    Row(usize, Pick),
    /// What the chosen table holds.
    Member(usize, Vec<Constant>),
    /// One of the list that the chosen table holds.
    ChoiceOf(usize, Vec<Vec<Constant>>),
    /// Evenly from the first number up to the last, in units of 10 to the minus `places`.
    Uniform {
        low: i64,
        span: u64,
        places: u8,
    },
    /// The number of the message in its turn, from here on.
    Counter(i64),
    Hex(u32),
    Walk(Walk),
    /// Many small numbers and a few large ones: scale / (u + thin), u evenly from 0 to 1; the last four bits are noise.
    Tail {
        scale: f64,
        thin: f64,
        places: u8,
    },
    /// Hexadecimal digits over the due time, which is not drawn from the seed: a row whose time was altered is found by it.
    Check(u32),
    /// Moved into the past by so many microseconds.
    Due(Clock, i64),
    User(UserPart),
    Keys(Keys),
    /// True for this share of the messages.
    Flag(f64),
    /// Another number times a factor and moved, rounded.
    Scaled {
        of: usize,
        times: f64,
        offset: f64,
        places: u8,
    },
}

#[derive(Clone, Copy, Debug)]
pub enum Pick {
    Drawn,
    /// By another's value: the item of that number, and so on from the first.
    Index(usize),
}

/// How a due time is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Clock {
    Rfc3339,
    Seconds,
    Millis,
    Micros,
    /// The nanoseconds below the microsecond are the message's number, so that messages due at the same moment differ.
    Nanos,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum UserPart {
    Token,
    Id,
}

/// A number that wanders between two others: it moves smoothly from one drawn point to the next, with a little noise on top.
#[derive(Clone, Debug)]
pub struct Walk {
    pub low: Bound,
    pub high: Bound,
    pub along: Along,
    /// The share of the noise.
    pub noise: f64,
    pub places: u8,
}

/// What lies between two drawn points.
#[derive(Clone, Copy, Debug)]
pub enum Along {
    Messages(u64),
    Micros(u64),
}

#[derive(Clone, Debug)]
pub enum Bound {
    Fixed(i64),
    /// By the chosen table.
    OfRow(usize, Vec<i64>),
}

/// What users there are and how messages spread over them; the same for all models of a run.
#[derive(Clone, Debug)]
pub struct People {
    pub keys: Keys,
    pub tokens: Arc<Vec<String>>,
    pub ids: Arc<Vec<String>>,
}

/// One message in the making; its buffers are used again for the next.
pub struct Draft {
    seed: u64,
    run: u32,
    people: Arc<People>,
    text: Vec<u8>,
    numbers: Vec<i64>,
    values: Vec<Value>,
    scratch: Vec<u8>,
    clock: Rfc3339,
}

/// Of the draw whose noise a walk has, beside its own.
const NOISE: u64 = 1;

impl Program {
    /// Of each draw whether one of these is made from it.
    pub fn needed(&self, slots: impl IntoIterator<Item = usize>) -> Vec<bool> {
        let mut needed = vec![false; self.steps.len()];
        let mut open: Vec<usize> = slots.into_iter().collect();
        while let Some(slot) = open.pop() {
            if !std::mem::replace(&mut needed[slot], true) {
                open.extend(self.steps[slot].inputs());
            }
        }
        needed
    }

    /// Whether a draw is made from one of a kind.
    pub fn rests_on(&self, slot: usize, kind: impl Fn(&Kind) -> bool) -> bool {
        let needed = self.needed([slot]);
        self.steps.iter().zip(needed).any(|(step, needed)| needed && kind(&step.kind))
    }
}

impl Step {
    pub fn of(kind: Kind) -> Self {
        Self { kind, source: Source::default(), plus: None, length: None }
    }

    fn inputs(&self) -> Vec<usize> {
        let mut inputs: Vec<usize> = match &self.kind {
            Kind::Text(pattern) => pattern.slots().collect(),
            Kind::Choice(_, Pick::Index(slot)) | Kind::Row(_, Pick::Index(slot)) => vec![*slot],
            Kind::Member(row, _) | Kind::ChoiceOf(row, _) => vec![*row],
            Kind::Scaled { of, .. } => vec![*of],
            Kind::Walk(walk) => [&walk.low, &walk.high]
                .into_iter()
                .filter_map(|bound| match bound {
                    Bound::OfRow(row, _) => Some(*row),
                    Bound::Fixed(_) => None,
                })
                .collect(),
            _ => Vec::new(),
        };
        inputs.extend(self.source.by);
        inputs.extend(self.plus.map(|(slot, _)| slot));
        inputs
    }
}

impl Draft {
    pub fn new(seed: u64, run: u32, people: Arc<People>) -> Self {
        Self {
            seed,
            run,
            people,
            text: Vec::with_capacity(512),
            numbers: Vec::new(),
            values: Vec::with_capacity(32),
            scratch: Vec::new(),
            clock: Rfc3339::default(),
        }
    }

    /// Draws the message.
    pub fn fill(&mut self, program: &Program, id: Identity) {
        self.clear();
        for step in &program.steps {
            let value = self.draw(step, id);
            self.values.push(value);
        }
    }

    /// Draws only what is needed; the rest is null.
    pub fn fill_only(&mut self, program: &Program, id: Identity, needed: &[bool]) {
        self.clear();
        for (step, needed) in program.steps.iter().zip(needed) {
            let value = if *needed { self.draw(step, id) } else { Value::Null };
            self.values.push(value);
        }
    }

    fn clear(&mut self) {
        self.text.clear();
        self.numbers.clear();
        self.values.clear();
    }

    pub fn value(&self, slot: usize) -> Value {
        self.values[slot]
    }

    pub fn text(&self, (start, end): Span) -> &[u8] {
        &self.text[start as usize..end as usize]
    }

    pub fn numbers(&self, (start, end): Span) -> &[i64] {
        &self.numbers[start as usize..end as usize]
    }

    /// A value as it is written, as a number: equal texts of different programs are equal.
    pub fn fold_plain(&mut self, slot: usize) -> u64 {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        self.write_value(slot, Width::Free, Style::Plain, &mut scratch);
        let folded = scratch.iter().fold(1, |hash, byte| mix(hash ^ u64::from(*byte)));
        self.scratch = scratch;
        folded
    }

    /// Appends the pattern with this message's values.
    pub fn write(&mut self, pattern: &Pattern, out: &mut Vec<u8>) {
        for part in &pattern.parts {
            match part {
                Part::Literal(bytes) => out.extend_from_slice(bytes),
                Part::Value { slot, width } => self.write_value(*slot, *width, pattern.style, out),
            }
        }
    }

    fn write_value(&mut self, slot: usize, width: Width, style: Style, out: &mut Vec<u8>) {
        match (self.values[slot], width, style) {
            (Value::Integer(n), Width::Hex(width), _) => text::hex(out, n as u64, u32::from(width)),
            (Value::Integer(n), Width::Decimal(width), _) if n >= 0 => {
                text::digits(out, n as u64, usize::from(width))
            }
            (Value::Text(span), _, Style::Json) => text::json_string(out, self.text(span)),
            (Value::Text(span), _, Style::Plain) => out.extend_from_slice(self.text(span)),
            (Value::Text(span), _, Style::Address) => text::address(out, self.text(span)),
            (Value::Integer(n), ..) => text::integer(out, n),
            (Value::Decimal(n, places), ..) => text::decimal(out, n, places),
            (Value::Null, _, Style::Json) => out.extend_from_slice(b"null"),
            (Value::Null, ..) => {}
            (Value::Bool(truth), ..) => out.extend_from_slice(if truth { b"true" } else { b"false" }),
            (Value::Time(us), _, Style::Json) => {
                out.push(b'"');
                self.clock.write(out, us);
                out.push(b'"');
            }
            // A colon may stand in a path and in a query.
            (Value::Time(us), ..) => self.clock.write(out, us),
            (Value::Array(span, places), ..) => {
                for (at, n) in self.numbers(span).iter().enumerate() {
                    out.push(if at == 0 { b'[' } else { b',' });
                    text::decimal(out, *n, places);
                }
                out.extend_from_slice(if span.0 == span.1 { b"[]" } else { b"]" });
            }
        }
    }

    fn draw(&mut self, step: &Step, id: Identity) -> Value {
        let Some(length) = step.length else { return self.draw_one(step, id, step.source.salt) };
        let start = self.numbers.len() as u32;
        let mut places = 0;
        for element in 0..u64::from(length) {
            // Elements wander apart, and none meets another draw's salt.
            match self.draw_one(step, id, mix(step.source.salt ^ (element + 1) << 32)) {
                Value::Integer(n) => self.numbers.push(n),
                Value::Decimal(n, of) => {
                    self.numbers.push(n);
                    places = of;
                }
                other => unreachable!("the compiler lets no array of {other:?} through"),
            }
        }
        Value::Array((start, self.numbers.len() as u32), places)
    }

    fn draw_one(&mut self, step: &Step, id: Identity, salt: u64) -> Value {
        let source = Source { salt, ..step.source };
        match &step.kind {
            Kind::Run => Value::Integer(i64::from(self.run)),
            Kind::Stream => Value::Integer(i64::from(id.stream)),
            Kind::Seq => Value::Integer(id.seq as i64),
            Kind::Number => Value::Integer(number(self.run, id)),
            Kind::Constant(constant) => self.constant(constant),
            Kind::Text(pattern) => self.pattern(pattern),
            Kind::Choice(items, pick) => {
                let at = self.pick(*pick, &source, id, items.len());
                self.constant(&items[at])
            }
            Kind::Row(count, pick) => Value::Integer(self.pick(*pick, &source, id, *count) as i64),
            Kind::Member(row, values) => self.constant(&values[self.place(*row)]),
            Kind::ChoiceOf(row, lists) => {
                let list = &lists[self.place(*row)];
                self.constant(&list[index(self.hash(&source, id), list.len())])
            }
            Kind::Uniform { low, span, places } => {
                let n = low + (self.hash(&source, id) % span) as i64;
                numeric(self.added(step, n), *places)
            }
            Kind::Counter(first) => Value::Integer(first + turn(source.turn, id.seq) as i64),
            Kind::Hex(width) => {
                let hash = self.hash(&source, id);
                self.push(|out| text::hex(out, hash, *width))
            }
            Kind::Walk(walk) => {
                let (low, high) = (self.bound(&walk.low), self.bound(&walk.high));
                let n = low + (self.wander(walk, &source, id) * (high - low) as f64) as i64;
                numeric(self.added(step, n), walk.places)
            }
            Kind::Tail { scale, thin, places } => {
                let hash = self.hash(&source, id);
                let n = (scale / (unit(hash) + thin)) as i64 + (hash & 15) as i64;
                numeric(self.added(step, n), *places)
            }
            Kind::Check(width) => {
                let check = mix(self.hash(&source, id) ^ id.due_us as u64) >> (64 - 4 * width);
                self.push(|out| text::hex(out, check, *width))
            }
            Kind::Due(clock, before_us) => due(*clock, Identity { due_us: id.due_us - before_us, ..id }),
            Kind::User(part) => {
                let people = self.people.clone();
                let user = people.keys.pick(unit(self.hash(&source, id)), id.seq);
                let names = if *part == UserPart::Token { &people.tokens } else { &people.ids };
                self.push(|out| out.extend_from_slice(names[user].as_bytes()))
            }
            Kind::Keys(keys) => Value::Integer(keys.pick(unit(self.hash(&source, id)), id.seq) as i64),
            Kind::Flag(share) => Value::Bool(unit(self.hash(&source, id)) < *share),
            Kind::Scaled { of, times, offset, places } => {
                let n = match self.values[*of] {
                    Value::Integer(n) | Value::Time(n) => n as f64,
                    Value::Decimal(n, places) => n as f64 / power(places),
                    _ => return Value::Null,
                };
                numeric(((n * times + offset) * power(*places)).round() as i64, *places)
            }
        }
    }

    fn pattern(&mut self, pattern: &Pattern) -> Value {
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.clear();
        self.write(pattern, &mut scratch);
        let value = self.push(|out| out.extend_from_slice(&scratch));
        self.scratch = scratch;
        value
    }

    fn constant(&mut self, constant: &Constant) -> Value {
        match constant {
            Constant::Null => Value::Null,
            Constant::Text(bytes) => self.push(|out| out.extend_from_slice(bytes)),
            Constant::Integer(n) => Value::Integer(*n),
            Constant::Decimal(n, places) => Value::Decimal(*n, *places),
            Constant::Bool(truth) => Value::Bool(*truth),
        }
    }

    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Value {
        let start = self.text.len() as u32;
        write(&mut self.text);
        Value::Text((start, self.text.len() as u32))
    }

    fn added(&self, step: &Step, n: i64) -> i64 {
        let Some((slot, times)) = step.plus else { return n };
        match self.values[slot] {
            Value::Integer(other) => n.wrapping_add(other.wrapping_mul(times)),
            _ => n,
        }
    }

    fn pick(&self, pick: Pick, source: &Source, id: Identity, count: usize) -> usize {
        match pick {
            Pick::Drawn => index(self.hash(source, id), count),
            Pick::Index(slot) => self.place(slot) % count,
        }
    }

    /// A value that counts something.
    fn place(&self, slot: usize) -> usize {
        match self.values[slot] {
            Value::Integer(n) => n.unsigned_abs() as usize,
            other => index(self.fold(other), usize::MAX),
        }
    }

    fn bound(&self, bound: &Bound) -> i64 {
        match bound {
            Bound::Fixed(n) => *n,
            Bound::OfRow(row, values) => values[self.place(*row)],
        }
    }

    /// From 0 up to, and never, 1.
    fn wander(&self, walk: &Walk, source: &Source, id: Identity) -> f64 {
        let (position, every) = match walk.along {
            Along::Messages(every) => (id.seq, every),
            Along::Micros(every) => (id.due_us as u64, every),
        };
        let point = |n| unit(self.hash_at(source, id.stream, n));
        let (from, to) = (point(position / every), point(position / every + 1));
        let at = (position % every) as f64 / every as f64;
        let smooth = at * at * (3.0 - 2.0 * at);
        let noise = unit(self.hash_at(
            &Source { salt: source.salt.wrapping_add(NOISE), ..*source },
            id.stream,
            position,
        ));
        // Rounded, because 1 - 0.02 is not the number that 0.98 is.
        let calm = ((1.0 - walk.noise) * 1e9).round() / 1e9;
        (from + (to - from) * smooth) * calm + noise * walk.noise
    }

    fn hash(&self, source: &Source, id: Identity) -> u64 {
        match source.by {
            None => self.hash_at(source, id.stream, turn(source.turn, id.seq)),
            // What follows from another's value is the same for every message that has it.
            Some(_) => self.hash_at(source, id.stream, 0),
        }
        .wrapping_shr(source.shift)
    }

    fn hash_at(&self, source: &Source, stream: u16, position: u64) -> u64 {
        let salted = mix(self.seed ^ source.salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        match source.by {
            None => mix(salted ^ (u64::from(stream) << 48 ^ position)),
            Some(slot) => mix(salted ^ mix(self.fold(self.values[slot])) ^ position),
        }
    }

    /// A value as a number to draw from.
    fn fold(&self, value: Value) -> u64 {
        match value {
            Value::Null => 0,
            Value::Integer(n) | Value::Time(n) | Value::Decimal(n, _) => n as u64 ^ 0x5bd1_e995,
            Value::Bool(truth) => u64::from(truth) + 1,
            Value::Text(span) => self.text(span).iter().fold(1, |hash, byte| mix(hash ^ u64::from(*byte))),
            Value::Array(span, _) => self.numbers(span).iter().fold(2, |hash, n| mix(hash ^ *n as u64)),
        }
    }
}

/// Appends the identity's column as it is compared: texts as they are, times in microseconds.
pub fn write_key(draft: &Draft, value: Value, out: &mut Vec<u8>) {
    match value {
        Value::Text(span) => out.extend_from_slice(draft.text(span)),
        Value::Integer(n) | Value::Time(n) => text::integer(out, n),
        Value::Decimal(n, places) => text::decimal(out, n, places),
        Value::Bool(truth) => out.extend_from_slice(if truth { b"true" } else { b"false" }),
        Value::Null | Value::Array(..) => {}
    }
}

/// See [`Kind::Number`].
pub fn number(run: u32, id: Identity) -> i64 {
    i64::from(run & 0xf_ffff) << 43 | i64::from(id.stream) << 31 | (id.seq & 0x7fff_ffff) as i64
}

/// The first and the last number of a run.
pub fn numbers_of(run: u32) -> [i64; 2] {
    let first = i64::from(run & 0xf_ffff) << 43;
    [first, first | ((1 << 43) - 1)]
}

/// (stream, sequence number) of a number of this run.
pub fn of_number(run: u32, number: i64) -> Option<(u16, u64)> {
    (number >> 43 == i64::from(run & 0xf_ffff))
        .then_some(((number >> 31 & 0xfff) as u16, (number & 0x7fff_ffff) as u64))
}

fn due(clock: Clock, id: Identity) -> Value {
    match clock {
        Clock::Rfc3339 => Value::Time(id.due_us),
        Clock::Seconds => Value::Integer(id.due_us.div_euclid(1_000_000)),
        Clock::Millis => Value::Integer(id.due_us.div_euclid(1000)),
        Clock::Micros => Value::Integer(id.due_us),
        Clock::Nanos => Value::Integer(id.due_us * 1000 + (id.seq % 1000) as i64),
    }
}

fn turn(turn: Turn, seq: u64) -> u64 {
    match turn {
        Turn::Each => seq,
        Turn::Cycle(n) => seq % n,
        Turn::Group(n) => seq / n,
    }
}

fn numeric(n: i64, places: u8) -> Value {
    if places == 0 { Value::Integer(n) } else { Value::Decimal(n, places) }
}

pub fn power(places: u8) -> f64 {
    10f64.powi(i32::from(places))
}

fn index(hash: u64, length: usize) -> usize {
    (hash % length as u64) as usize
}
