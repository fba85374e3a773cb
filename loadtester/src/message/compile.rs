//! From a scenario as written to models that can be drawn: names become places, lists become constants, and what does not fit
//! together is refused with the model, the draw and the reason.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::base::quantity;
use crate::message::draw::{
    Along, Bound, Clock, Constant, Kind, Pick, Program, Source, Step, Turn, UserPart, Walk, power,
};
use crate::message::keys::{KeySpread, Keys};
use crate::message::pattern::{Pattern, Style};
use crate::message::raw::{RawBound, RawChoice, RawDraw, RawEvery};

/// Digits behind the point: a double holds no more of a number above a million.
const PLACES_MAX: u8 = 9;
/// An array in a message; a thousand numbers are some 10 kB.
const LENGTH_MAX: u32 = 1000;

/// Makes the program of one model.
pub struct Compiler<'a> {
    own: &'a BTreeMap<String, RawDraw>,
    shared: &'a BTreeMap<String, RawDraw>,
    program: Program,
    /// Names whose inputs are being compiled: whoever meets one of them again goes in a circle.
    open: Vec<String>,
    /// The tables that a choice among tables chooses from.
    rows: BTreeMap<usize, Vec<toml::Table>>,
}

impl<'a> Compiler<'a> {
    pub fn new(own: &'a BTreeMap<String, RawDraw>, shared: &'a BTreeMap<String, RawDraw>) -> Self {
        Self { own, shared, program: Program::default(), open: Vec::new(), rows: BTreeMap::new() }
    }

    pub fn finish(self) -> Program {
        self.program
    }

    pub fn program(&self) -> &Program {
        &self.program
    }

    pub fn pattern(&mut self, text: &str, style: Style) -> Result<Pattern> {
        Pattern::parse(text, style, |name| self.slot(name))
    }

    /// The place of a name's value; compiles it where that has not been done.
    pub fn slot(&mut self, name: &str) -> Result<usize> {
        if let Some(at) = self.program.names.iter().position(|known| known == name) {
            return Ok(at);
        }
        let builtin = match name {
            "run" => Some(Kind::Run),
            "stream" => Some(Kind::Stream),
            "seq" => Some(Kind::Seq),
            _ => None,
        };
        if let Some(kind) = builtin {
            return Ok(self.push(name, Step::of(kind)));
        }
        if let Some((row, member)) = name.split_once('.') {
            return self.member(name, row, member);
        }
        let Some(raw) = self.own.get(name).or_else(|| self.shared.get(name)) else {
            bail!("there is no draw \"{name}\"; {}", self.known());
        };
        ensure!(
            !self.open.iter().any(|open| open == name),
            "the draw \"{name}\" is made from itself: {} -> {name}",
            self.open.join(" -> ")
        );
        self.open.push(name.to_owned());
        let slot = self.draw(name, raw).with_context(|| format!("draw \"{name}\""));
        self.open.pop();
        slot
    }

    fn known(&self) -> String {
        let names: Vec<&str> = self.own.keys().chain(self.shared.keys()).map(String::as_str).collect();
        format!("there are {}, and in every scenario run, stream and seq", names.join(", "))
    }

    fn push(&mut self, name: &str, step: Step) -> usize {
        self.program.steps.push(step);
        self.program.names.push(name.to_owned());
        self.program.steps.len() - 1
    }

    /// A draw that only stands where it is used.
    pub fn draw(&mut self, name: &str, raw: &RawDraw) -> Result<usize> {
        check_members(raw)?;
        let source = self.source(name, raw)?;
        let kind = self.kind(raw)?;
        let plus = raw.plus.as_ref().map(|other| self.plus(other, raw, &kind)).transpose()?;
        let length = raw.length;
        if let Some(length) = length {
            ensure!((1..=LENGTH_MAX).contains(&length), "length must be 1 to {LENGTH_MAX}");
        }
        let slot = self.push(name, Step { kind, source, plus, length });
        if let Some(RawChoice::Items(items)) = &raw.choice {
            let tables: Vec<toml::Table> = items.iter().filter_map(|item| item.as_table().cloned()).collect();
            if !tables.is_empty() {
                self.rows.insert(slot, tables);
            }
        }
        Ok(slot)
    }

    fn plus(&mut self, other: &str, raw: &RawDraw, kind: &Kind) -> Result<(usize, i64)> {
        let slot = self.slot(other)?;
        let times = raw.times.unwrap_or(1.0) * power(places_of(kind));
        ensure!(times.fract() == 0.0, "times has more digits than decimals says");
        Ok((slot, times as i64))
    }

    fn source(&mut self, name: &str, raw: &RawDraw) -> Result<Source> {
        let turn = match (raw.cycle, raw.group) {
            (None, None) => Turn::Each,
            (Some(n), None) if n > 0 => Turn::Cycle(n),
            (None, Some(n)) if n > 0 => Turn::Group(n),
            (Some(_), Some(_)) => bail!("cycle and group exclude each other"),
            _ => bail!("cycle and group count messages, from one on"),
        };
        // All draws of users in a message speak of the same user.
        let salt = if raw.user.is_some() { 1 } else { salt_of(name) };
        let by = raw.by.as_ref().map(|other| self.slot(other)).transpose()?;
        Ok(Source { salt: raw.salt.unwrap_or(salt), turn, shift: raw.shift.unwrap_or(0).min(63), by })
    }

    fn kind(&mut self, raw: &RawDraw) -> Result<Kind> {
        let places = raw.decimals.unwrap_or(0);
        ensure!(places <= PLACES_MAX, "decimals must be 0 to {PLACES_MAX}");
        if let Some(value) = &raw.constant {
            return Ok(Kind::Constant(constant(value)?));
        }
        if raw.null == Some(true) {
            return Ok(Kind::Constant(Constant::Null));
        }
        if let Some(text) = &raw.text {
            return Ok(Kind::Text(self.pattern(text, Style::Plain)?));
        }
        if let Some(choice) = &raw.choice {
            return self.choice(choice, raw);
        }
        if let Some([low, high]) = raw.integer {
            ensure!(low <= high, "the first number must not be above the last");
            let span = high.wrapping_sub(low) as u64;
            return Ok(Kind::Uniform { low, span: span.saturating_add(1), places: 0 });
        }
        if let Some([low, high]) = raw.decimal {
            ensure!(
                low <= high && places > 0,
                "write decimal = [low, high] with decimals = 1 to {PLACES_MAX}"
            );
            let (low, high) = (scaled(low, places)?, scaled(high, places)?);
            return Ok(Kind::Uniform { low, span: (high - low) as u64 + 1, places });
        }
        if let Some(first) = raw.counter {
            return Ok(Kind::Counter(first));
        }
        if let Some(width) = raw.hex {
            ensure!((1..=16).contains(&width), "hex has 1 to 16 digits");
            return Ok(Kind::Hex(width));
        }
        if let Some([low, high]) = &raw.walk {
            return Ok(Kind::Walk(Walk {
                low: self.bound(low, places)?,
                high: self.bound(high, places)?,
                along: along(raw.every.as_ref())?,
                noise: raw.noise.unwrap_or(0.02).clamp(0.0, 1.0),
                places,
            }));
        }
        if let Some([scale, thin]) = raw.tail {
            ensure!(scale > 0.0 && thin > 0.0, "tail = [scale, thin] needs two numbers above zero");
            return Ok(Kind::Tail { scale: scale * power(places), thin, places });
        }
        if let Some(width) = raw.check {
            ensure!((1..=15).contains(&width), "check has 1 to 15 digits");
            return Ok(Kind::Check(width));
        }
        if let Some(clock) = &raw.due {
            let before = raw.before.as_deref().map_or(Ok(Duration::ZERO), quantity::duration);
            return Ok(Kind::Due(clock_of(clock)?, before.map_err(anyhow::Error::msg)?.as_micros() as i64));
        }
        if let Some(part) = &raw.user {
            return Ok(Kind::User(match part.as_str() {
                "token" => UserPart::Token,
                "id" => UserPart::Id,
                other => bail!("user = \"{other}\" is none of token, id"),
            }));
        }
        if let Some(count) = raw.keys {
            ensure!((1..=10_000_000).contains(&count), "keys must be 1 to 10,000,000");
            let spread = raw.spread.as_deref().unwrap_or("uniform");
            return Ok(Kind::Keys(Keys::new(
                count,
                KeySpread::from_str(spread).map_err(anyhow::Error::msg)?,
            )));
        }
        if let Some(share) = raw.flag {
            ensure!((0.0..=1.0).contains(&share), "flag is a share from 0 to 1");
            return Ok(Kind::Flag(share));
        }
        if raw.number == Some(true) {
            return Ok(Kind::Number);
        }
        if let Some(of) = &raw.of {
            let (times, offset) = (raw.times.unwrap_or(1.0), raw.offset.unwrap_or(0.0));
            return Ok(Kind::Scaled { of: self.slot(of)?, times, offset, places });
        }
        bail!("it does not say what is drawn; {}", KINDS.join(", "))
    }

    fn choice(&mut self, choice: &RawChoice, raw: &RawDraw) -> Result<Kind> {
        let pick = match &raw.index {
            Some(other) => Pick::Index(self.slot(other)?),
            None => Pick::Drawn,
        };
        match choice {
            RawChoice::Member(path) => {
                let (row, member) =
                    path.split_once('.').context("a choice by name is written \"draw.member\"")?;
                let slot = self.slot(row)?;
                let lists = self.members(slot, row, member, |value| {
                    let items = value.as_array().filter(|items| !items.is_empty());
                    items.context("it is not a list with something in it")?.iter().map(constant).collect()
                })?;
                Ok(Kind::ChoiceOf(slot, lists))
            }
            RawChoice::Items(items) if items.is_empty() => bail!("there is nothing to choose from"),
            RawChoice::Items(items) if items.iter().all(toml::Value::is_table) => {
                Ok(Kind::Row(items.len(), pick))
            }
            RawChoice::Items(items) => {
                Ok(Kind::Choice(items.iter().map(constant).collect::<Result<_>>()?, pick))
            }
        }
    }

    /// `row.member`, where `row` chooses among tables.
    fn member(&mut self, name: &str, row: &str, member: &str) -> Result<usize> {
        let slot = self.slot(row)?;
        let values = self.members(slot, row, member, constant)?;
        Ok(self.push(name, Step::of(Kind::Member(slot, values))))
    }

    fn members<T>(
        &self,
        slot: usize,
        row: &str,
        member: &str,
        read: impl Fn(&toml::Value) -> Result<T>,
    ) -> Result<Vec<T>> {
        let tables =
            self.rows.get(&slot).with_context(|| format!("\"{row}\" does not choose among tables"))?;
        let each = tables.iter().enumerate().map(|(at, table)| {
            let value = table.get(member);
            let value =
                value.with_context(|| format!("table {} of \"{row}\" has no \"{member}\"", at + 1))?;
            read(value).with_context(|| format!("\"{member}\" in table {} of \"{row}\"", at + 1))
        });
        each.collect()
    }

    fn bound(&mut self, bound: &RawBound, places: u8) -> Result<Bound> {
        match bound {
            RawBound::Number(n) => Ok(Bound::Fixed(scaled(*n, places)?)),
            RawBound::Member(path) => {
                let (row, member) =
                    path.split_once('.').context("a bound by name is written \"draw.member\"")?;
                let slot = self.slot(row)?;
                let values = self.members(slot, row, member, |value| {
                    let number = value.as_float().or(value.as_integer().map(|n| n as f64));
                    scaled(number.context("it is not a number")?, places)
                })?;
                Ok(Bound::OfRow(slot, values))
            }
        }
    }
}

const KINDS: [&str; 17] = [
    "constant = VALUE",
    "null = true",
    "text = \"a ${draw}\"",
    "choice = [...]",
    "integer = [low, high]",
    "decimal = [low, high]",
    "counter = FIRST",
    "hex = DIGITS",
    "walk = [low, high]",
    "tail = [scale, thin]",
    "check = DIGITS",
    "due = \"rfc3339\"",
    "user = \"token\"",
    "keys = COUNT",
    "flag = SHARE",
    "number = true",
    "of = \"draw\"",
];

/// Exactly one kind, and only what refines that one: what would be read over is a mistake.
fn check_members(raw: &RawDraw) -> Result<()> {
    let kinds = [
        ("constant", raw.constant.is_some()),
        ("null", raw.null.is_some()),
        ("text", raw.text.is_some()),
        ("choice", raw.choice.is_some()),
        ("integer", raw.integer.is_some()),
        ("decimal", raw.decimal.is_some()),
        ("counter", raw.counter.is_some()),
        ("hex", raw.hex.is_some()),
        ("walk", raw.walk.is_some()),
        ("tail", raw.tail.is_some()),
        ("check", raw.check.is_some()),
        ("due", raw.due.is_some()),
        ("user", raw.user.is_some()),
        ("keys", raw.keys.is_some()),
        ("flag", raw.flag.is_some()),
        ("number", raw.number.is_some()),
        ("of", raw.of.is_some()),
    ];
    let given: Vec<&str> = kinds.iter().filter(|(_, given)| *given).map(|(name, _)| *name).collect();
    let &[kind] = given.as_slice() else {
        bail!("it must be exactly one of these, and is {}: {}", given.len(), KINDS.join(", "));
    };
    const DRAWN: [&str; 9] = ["choice", "integer", "decimal", "hex", "walk", "tail", "check", "keys", "flag"];
    const NUMBERS: [&str; 4] = ["integer", "decimal", "walk", "tail"];
    let among = |kinds: &[&str]| kinds.contains(&kind);
    let refinements = [
        ("salt", raw.salt.is_some(), among(&DRAWN) || kind == "user"),
        ("cycle", raw.cycle.is_some(), among(&DRAWN) || kind == "counter"),
        ("group", raw.group.is_some(), among(&DRAWN) || kind == "counter"),
        ("shift", raw.shift.is_some(), among(&DRAWN)),
        ("by", raw.by.is_some(), among(&DRAWN)),
        ("index", raw.index.is_some(), kind == "choice"),
        ("plus", raw.plus.is_some(), among(&NUMBERS)),
        ("times", raw.times.is_some(), raw.plus.is_some() || kind == "of"),
        ("offset", raw.offset.is_some(), kind == "of"),
        ("decimals", raw.decimals.is_some(), among(&NUMBERS) || kind == "of"),
        ("length", raw.length.is_some(), among(&NUMBERS)),
        ("every", raw.every.is_some(), kind == "walk"),
        ("noise", raw.noise.is_some(), kind == "walk"),
        ("spread", raw.spread.is_some(), kind == "keys"),
        ("before", raw.before.is_some(), kind == "due"),
    ];
    match refinements.iter().find(|(_, given, allowed)| *given && !*allowed) {
        Some((name, ..)) => bail!("{name} says nothing about {kind}"),
        None => Ok(()),
    }
}

/// Whether a value is written in one way only, so that it can identify a row.
pub fn identifies(step: &Step) -> bool {
    step.length.is_none() && places_of(&step.kind) == 0
}

fn places_of(kind: &Kind) -> u8 {
    match kind {
        Kind::Uniform { places, .. } | Kind::Tail { places, .. } | Kind::Scaled { places, .. } => *places,
        Kind::Walk(walk) => walk.places,
        _ => 0,
    }
}

fn along(every: Option<&RawEvery>) -> Result<Along> {
    match every {
        None => Ok(Along::Messages(64)),
        Some(RawEvery::Messages(0)) => {
            bail!("every counts messages, from one on, or is a time such as \"10s\"")
        }
        Some(RawEvery::Messages(n)) => Ok(Along::Messages(*n)),
        Some(RawEvery::Time(text)) => {
            let time = quantity::duration(text).map_err(anyhow::Error::msg)?;
            ensure!(time.as_micros() > 0, "every must be above zero");
            Ok(Along::Micros(time.as_micros() as u64))
        }
    }
}

pub fn clock_of(text: &str) -> Result<Clock> {
    match text {
        "rfc3339" => Ok(Clock::Rfc3339),
        "s" => Ok(Clock::Seconds),
        "ms" => Ok(Clock::Millis),
        "us" => Ok(Clock::Micros),
        "ns" => Ok(Clock::Nanos),
        other => bail!("due = \"{other}\" is none of rfc3339, s, ms, us, ns"),
    }
}

fn scaled(n: f64, places: u8) -> Result<i64> {
    let n = (n * power(places)).round();
    ensure!(n.abs() < 9e15, "the number is too large for as many decimals");
    Ok(n as i64)
}

fn constant(value: &toml::Value) -> Result<Constant> {
    match value {
        toml::Value::String(text) => Ok(Constant::Text(text.as_bytes().to_vec())),
        toml::Value::Integer(n) => Ok(Constant::Integer(*n)),
        toml::Value::Boolean(truth) => Ok(Constant::Bool(*truth)),
        toml::Value::Float(n) => {
            let text = n.to_string();
            let places = text.split_once('.').map_or(0, |(_, digits)| digits.len());
            ensure!(
                places <= usize::from(PLACES_MAX),
                "{n} has more than {PLACES_MAX} digits after the point"
            );
            Ok(Constant::Decimal(scaled(*n, places as u8)?, places as u8))
        }
        other => bail!("{other} is no text, number or truth"),
    }
}

/// The salt of a draw that does not say one: it follows from the name, so that a draw that is added changes no other.
fn salt_of(name: &str) -> u64 {
    name.bytes().fold(0x1000, |salt, byte| crate::base::hash::mix(salt ^ u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(draws: &str, words: Option<&str>) {
        let own: BTreeMap<String, RawDraw> = match toml::from_str(draws) {
            Ok(own) => own,
            Err(error) => return assert!(words.is_some(), "{draws}: {error}"),
        };
        let shared = BTreeMap::new();
        let found = Compiler::new(&own, &shared).slot("x").map_err(|error| format!("{error:#}"));
        match (found, words) {
            (Ok(_), None) => {}
            (Err(text), Some(words)) => assert!(text.contains(words), "{draws}: {text}"),
            (found, _) => panic!("{draws}: {found:?}"),
        }
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let rows = [
            ("y = {number = true}", "no draw \"x\""),
            ("x = {}", "exactly one"),
            ("x = {hex = 4, flag = 0.5}", "exactly one"),
            ("x = {constant = 1, salt = 3}", "salt says nothing about constant"),
            ("x = {hex = 17}", "1 to 16 digits"),
            ("x = {integer = [2, 1]}", "must not be above"),
            ("x = {text = \"${y}\"}\ny = {text = \"${x}\"}", "x -> y -> x"),
            ("x = {text = \"${y.z}\"}\ny = {choice = [\"a\"]}", "does not choose among tables"),
            ("x = {text = \"${y.z}\"}\ny = {choice = [{z = 1}, {a = 2}]}", "table 2 of \"y\" has no \"z\""),
            ("x = {choice = []}", "nothing to choose"),
            ("x = {due = \"m\"}", "none of rfc3339"),
            ("x = {keys = 10, spread = \"some\"}", "none of uniform"),
            ("x = {cycle = 2, group = 2, hex = 1}", "exclude"),
            ("x = {walk = [0, 1], every = \"soon\"}", "not a duration"),
            ("x = {decimal = [0.0, 1.0]}", "decimals"),
            ("x = {surprise = 1}", ""),
        ];
        for (draws, words) in rows {
            check(draws, Some(words));
        }
    }

    #[test]
    fn what_fits_together_is_taken() {
        let rows = [
            "x = {choice = [{n = \"a\", v = [1, 2]}, {n = \"b\", v = [3]}]}",
            "x = {choice = \"y.v\", salt = 3}\ny = {choice = [{v = [1, 2]}, {v = [3]}], index = \"stream\"}",
            "x = {walk = [\"y.low\", 5.5], decimals = 2, every = \"10s\", by = \"y\", length = 10}\ny = {choice = [{low = 1}]}",
            "x = {tail = [1.0, 0.001], plus = \"seq\", times = 1.5, decimals = 2}",
            "x = {of = \"y\", times = 1.8, offset = 32.0, decimals = 1}\ny = {integer = [0, 100]}",
            "x = {keys = 10000, spread = \"geometric(1%)\"}",
        ];
        for draws in rows {
            check(draws, None);
        }
    }
}
