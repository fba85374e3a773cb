//! Readers: what they ask, how often, and what must hold of the answer. Pure; knows no server.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value as Json;

use crate::base::quantity;
use crate::message::compile::{Compiler, clock_of};
use crate::message::draw::{Clock, Draft, Program};
use crate::message::pattern::{Pattern, Style};
use crate::message::raw::{RawCheck, RawReader, RawScenario};
use crate::message::url::Url;

#[derive(Clone, Debug)]
pub struct Reader {
    pub name: String,
    pub url: Url,
    pub method: String,
    pub path: Pattern,
    pub headers: Vec<(String, Pattern)>,
    pub body: Pattern,
    pub program: Program,
    pub pace: Pace,
    pub clients: usize,
    checks: Vec<Check>,
    pub freshness: Option<Freshness>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Requests per second, whoever is still waiting.
    Open(f64),
    /// Each client asks again so long after its answer.
    Closed(Duration),
}

#[derive(Clone, Debug)]
struct Check {
    path: Place,
    rule: Rule,
    /// As a sentence needs it.
    text: String,
}

#[derive(Clone, Debug)]
enum Rule {
    Exists,
    Is(Pattern),
    Length(usize),
    AtLeast(Pattern),
    AtMost(Pattern),
}

#[derive(Clone, Debug)]
pub struct Freshness {
    path: Place,
    unit: Clock,
    pub model: String,
    /// The name of the draw, and its place in the reader's program.
    pub by: Option<(String, usize)>,
}

/// A place in a document: names of members and places in lists, from the end where they are negative.
#[derive(Clone, Debug, PartialEq)]
struct Place(Vec<Step>);

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Name(String),
    At(i64),
}

/// Connections of one reader.
const CLIENTS_MAX: usize = 10_000;

impl Reader {
    pub fn compile(raw: &RawReader, scenario: &RawScenario) -> Result<Self> {
        let url = Url::parse(&raw.url)?;
        let mut compiler = Compiler::new(&raw.draws, &scenario.draws);
        let path = compiler.pattern(&url.path, Style::Address).context("url")?;
        let mut headers = Vec::new();
        for (name, value) in &raw.headers {
            let value = compiler.pattern(value, Style::Plain).with_context(|| format!("header {name}"))?;
            headers.push((name.to_ascii_lowercase(), value));
        }
        let body = compiler.pattern(&raw.body, Style::Json).context("body")?;
        let check = |check: &RawCheck| {
            Check::compile(check, &mut compiler).with_context(|| format!("check of \"{}\"", check.path))
        };
        let checks = raw.check.iter().map(check).collect::<Result<_>>()?;
        let freshness = raw.freshness.as_ref().map(|fresh| {
            let by =
                fresh.by.as_ref().map(|name| Ok::<_, anyhow::Error>((name.clone(), compiler.slot(name)?)));
            Ok::<_, anyhow::Error>(Freshness {
                path: fresh.path.parse()?,
                unit: clock_of(&fresh.unit)?,
                model: fresh.model.clone(),
                by: by.transpose()?,
            })
        });
        let pause = raw.pause.as_deref().map_or(Ok(Duration::ZERO), quantity::duration);
        let pace = match raw.rate {
            Some(rate) => {
                ensure!(rate > 0.0 && rate <= 1e6, "rate must be above zero, and at most a million");
                ensure!(raw.pause.is_none(), "with a rate nobody pauses");
                Pace::Open(rate)
            }
            None => Pace::Closed(pause.map_err(anyhow::Error::msg)?),
        };
        let clients = raw.clients.unwrap_or(if raw.rate.is_some() { 10 } else { 1 });
        ensure!((1..=CLIENTS_MAX).contains(&clients), "clients must be 1 to {CLIENTS_MAX}");
        Ok(Self {
            name: raw.name.clone(),
            method: raw.method.clone().unwrap_or_else(|| "GET".to_owned()),
            path,
            headers,
            body,
            pace,
            clients,
            checks,
            freshness: freshness.transpose().context("freshness")?,
            program: compiler.finish(),
            url,
        })
    }

    /// The first thing that does not hold of an answer to what the draft says.
    pub fn fault(&self, draft: &mut Draft, answer: &Json) -> Option<String> {
        self.checks.iter().find_map(|check| check.fault(draft, answer))
    }
}

impl Check {
    fn compile(raw: &RawCheck, compiler: &mut Compiler<'_>) -> Result<Self> {
        let mut pattern = |text: &Option<String>| {
            text.as_ref().map(|text| compiler.pattern(text, Style::Plain)).transpose()
        };
        let (is, least, most) = (pattern(&raw.is)?, pattern(&raw.at_least)?, pattern(&raw.at_most)?);
        let (rule, text) = match (is, raw.length, least, most) {
            (None, None, None, None) => (Rule::Exists, "must be there".to_owned()),
            (Some(is), None, None, None) => (Rule::Is(is), "must be".to_owned()),
            (None, Some(length), None, None) => (Rule::Length(length), format!("must have {length} items")),
            (None, None, Some(least), None) => (Rule::AtLeast(least), "must be at least".to_owned()),
            (None, None, None, Some(most)) => (Rule::AtMost(most), "must be at most".to_owned()),
            _ => bail!("a check says one of is, length, at_least, at_most, or nothing but the path"),
        };
        Ok(Self { text: format!("\"{}\" {text}", raw.path), path: raw.path.parse()?, rule })
    }

    fn fault(&self, draft: &mut Draft, answer: &Json) -> Option<String> {
        let Some(found) = self.path.find(answer) else {
            return Some(format!("{}: it is not there", self.text));
        };
        let mut wanted = |pattern: &Pattern| {
            let mut out = Vec::new();
            draft.write(pattern, &mut out);
            String::from_utf8_lossy(&out).into_owned()
        };
        let (holds, wanted) = match &self.rule {
            Rule::Exists => (!found.is_null(), String::new()),
            Rule::Is(pattern) => {
                let wanted = wanted(pattern);
                (plain(found) == wanted, wanted)
            }
            Rule::Length(length) => {
                (found.as_array().is_some_and(|items| items.len() == *length), String::new())
            }
            Rule::AtLeast(pattern) => {
                let wanted = wanted(pattern);
                (order(found, &wanted).is_some_and(|order| order.is_ge()), wanted)
            }
            Rule::AtMost(pattern) => {
                let wanted = wanted(pattern);
                (order(found, &wanted).is_some_and(|order| order.is_le()), wanted)
            }
        };
        // An answer may be long.
        let shown: String = found.to_string().chars().take(80).collect();
        (!holds).then(|| format!("{} {wanted}: it is {shown}", self.text))
    }
}

impl Freshness {
    /// The time of the newest value, in microseconds since 1970 UTC.
    pub fn newest_us(&self, answer: &Json) -> Option<i64> {
        let found = self.path.find(answer)?;
        let number = || found.as_i64().or_else(|| found.as_f64().map(|n| n as i64));
        match self.unit {
            Clock::Rfc3339 => Some(found.as_str()?.parse::<jiff::Timestamp>().ok()?.as_microsecond()),
            Clock::Seconds => found.as_f64().map(|seconds| (seconds * 1e6) as i64),
            Clock::Millis => number().map(|n| n.saturating_mul(1000)),
            Clock::Micros => number(),
            Clock::Nanos => number().map(|n| n.div_euclid(1000)),
        }
    }
}

impl FromStr for Place {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let step = |part: &str| match part.parse() {
            Ok(at) => Ok(Step::At(at)),
            Err(_) if part.is_empty() => bail!("\"{text}\" has nothing between two points"),
            Err(_) => Ok(Step::Name(part.to_owned())),
        };
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        Ok(Self(text.split('.').map(step).collect::<Result<_>>()?))
    }
}

impl Place {
    fn find<'a>(&self, mut json: &'a Json) -> Option<&'a Json> {
        for step in &self.0 {
            json = match step {
                Step::Name(name) => json.get(name)?,
                Step::At(at) => match json {
                    Json::Array(items) if *at < 0 => {
                        items.get(items.len().checked_sub(at.unsigned_abs() as usize)?)?
                    }
                    Json::Array(items) => items.get(*at as usize)?,
                    // A member may be called by a number.
                    object => object.get(at.to_string())?,
                },
            };
        }
        Some(json)
    }
}

fn plain(json: &Json) -> String {
    json.as_str().map_or_else(|| json.to_string(), str::to_owned)
}

/// As numbers where both are; else as texts, which orders times too.
fn order(found: &Json, wanted: &str) -> Option<std::cmp::Ordering> {
    if let (Some(found), Ok(wanted)) = (found.as_i64(), wanted.parse()) {
        return Some(found.cmp(&wanted));
    }
    match (found.as_f64(), wanted.parse::<f64>()) {
        (Some(found), Ok(wanted)) => found.partial_cmp(&wanted),
        _ => Some(found.as_str()?.cmp(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::message::draw::{Identity, People};
    use crate::message::keys::{KeySpread, Keys};

    fn reader(text: &str) -> Result<Reader> {
        let raw: RawScenario = toml::from_str(&format!("[[reader]]\nname = 'r'\n{text}"))?;
        Reader::compile(&raw.readers[0], &raw)
    }

    #[test]
    fn places_are_found() {
        let json: Json = serde_json::from_str(r#"{"a":[{"b":1},{"b":2}],"7":3}"#).unwrap();
        let rows = [
            ("a.0.b", Some("1")),
            ("a.-1.b", Some("2")),
            ("a.-3", None),
            ("a.2", None),
            ("7", Some("3")),
            ("x", None),
        ];
        for (path, found) in rows {
            let place: Place = path.parse().unwrap();
            assert_eq!(place.find(&json).map(Json::to_string).as_deref(), found, "{path}");
        }
        assert!("a..b".parse::<Place>().is_err());
    }

    #[test]
    fn answers_are_checked() {
        let reader = reader(
            "url = 'http://h/api?tag=${tag}'\nrate = 10\nfreshness = { path = 'samples.-1.time', unit = 'ns', model = 'm' }\n\
             check = [{ path = 'tagName', is = '${tag}' }, { path = 'samples', length = 2 }, { path = 'samples.0.time', at_least = '${seq}' }]\n\
             [reader.draw]\ntag = { constant = 'x' }",
        )
        .unwrap();
        let names = Arc::new(Vec::new());
        let people = People { keys: Keys::new(1, KeySpread::Uniform), tokens: names.clone(), ids: names };
        let mut draft = Draft::new(1, 1, Arc::new(people));
        draft.fill(&reader.program, Identity { stream: 0, seq: 5, due_us: 0 });
        let mut check = |text: &str, words: Option<&str>| {
            let json = serde_json::from_str(text).unwrap();
            let fault = reader.fault(&mut draft, &json);
            match (&fault, words) {
                (None, None) => {}
                (Some(fault), Some(words)) => assert!(fault.contains(words), "{fault}"),
                _ => panic!("{text}: {fault:?}"),
            }
            reader.freshness.as_ref().unwrap().newest_us(&json)
        };
        let good = r#"{"tagName":"x","samples":[{"time":5},{"time":7999}]}"#;
        assert_eq!(check(good, None), Some(7));
        check(r#"{"tagName":"y","samples":[{"time":5},{"time":7}]}"#, Some("must be x: it is \"y\""));
        check(r#"{"tagName":"x","samples":[{"time":5}]}"#, Some("must have 2 items"));
        check(r#"{"tagName":"x","samples":[{"time":4},{"time":7}]}"#, Some("must be at least 5: it is 4"));
        assert_eq!(check(r#"{"samples":[]}"#, Some("it is not there")), None);
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let rows = [
            ("url = 'h'\nrate = 1", "no address"),
            ("url = 'http://h/${x}'\nrate = 1", "no draw \"x\""),
            ("url = 'http://h/'\nrate = 0", "above zero"),
            ("url = 'http://h/'\nrate = 1\npause = '1s'", "nobody pauses"),
            ("url = 'http://h/'\nclients = 0", "clients must be"),
            ("url = 'http://h/'\ncheck = [{ path = 'a', is = '1', length = 1 }]", "a check says one"),
            ("url = 'http://h/'\nfreshness = { path = 'a', unit = 'm', model = 'm' }", "none of rfc3339"),
        ];
        for (text, words) in rows {
            let error = format!("{:#}", reader(text).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
