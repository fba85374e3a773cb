//! What a request gives for the names of a statement: found, checked, and put into one spelling. Pure. Everything that is wrong with
//! a request is said at once.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::civil;
use regex::Regex;
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value as Json;
use serde_json::value::RawValue;

use crate::base::spelling::did_you_mean;
use crate::config::{ParameterType, Place, RawParameter, TimeUnit};
use crate::verb::web::paths::decoded;

/// One parameter, made ready.
#[derive(Clone, Debug)]
pub struct Parameter {
    pub name: String,
    pub ty: ParameterType,
    pub place: Place,
    pub raw: RawParameter,
    pattern: Option<Regex>,
    /// By its number among the endpoint's parameters.
    after: Option<usize>,
    default: Option<Value>,
}

/// A value as PostgreSQL reads it; `None` is NULL.
pub type Value = Option<String>;

/// Why a parameter cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub name: String,
    pub reason: String,
}

/// What a request has for parameters.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// The path's, in the order of its pattern, still with percent signs.
    pub path: &'a [(&'a str, &'a str)],
    /// Still with percent signs.
    pub query: &'a str,
    pub body: &'a Members,
    /// Nanoseconds since 1970.
    pub now_ns: i128,
}

/// The members of a body that is a JSON object, their values as they were written: a number keeps its digits.
#[derive(Debug, Default)]
pub struct Members(Vec<(String, Box<RawValue>)>);

impl Members {
    fn get(&self, name: &str) -> Option<&RawValue> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| &**value)
    }
}

/// Members that a body may have: each is looked for among the parameters.
const MEMBERS_MAX: usize = 1000;

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members;

            fn expecting(&self, words: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                words.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = Members::default();
                while let Some((name, value)) = access.next_entry::<String, Box<RawValue>>()? {
                    if members.get(&name).is_some() {
                        return Err(de::Error::custom(format!("{:?} is there twice", shown(&name))));
                    }
                    if members.0.len() == MEMBERS_MAX {
                        return Err(de::Error::custom(format!("more than {MEMBERS_MAX} members")));
                    }
                    members.0.push((name, value));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

/// Elements of a list where nothing else is said: a page of identifiers, and a statement that is planned in no time.
pub const ITEMS_MAX: usize = 1000;

/// The largest float4, as PostgreSQL prints it.
pub const FLOAT4_MAX: f64 = 3.4028235e38;

/// Digits before and behind the point of a numeric, with its exponent: far above any measurement, far below what the server takes.
const NUMERIC_DIGITS_MAX: usize = 1000;

/// All parameters of an endpoint. `in_path` are the names in its path; `takes_body` where its method has one.
///
/// # Errors
/// Which parameter cannot be, and why.
pub fn parameters(
    raw: &std::collections::BTreeMap<String, RawParameter>,
    in_path: &[String],
    takes_body: bool,
) -> Result<Vec<Parameter>> {
    if let Some(name) = in_path.iter().find(|name| !raw.contains_key(*name)) {
        bail!("the path has {{{name}}}: say its type, like params.{name} = {{ type = \"int8\" }}");
    }
    let names: Vec<&str> = raw.keys().map(String::as_str).collect();
    let mut made = Vec::new();
    for (name, raw) in raw {
        let parameter = parameter(name, raw, in_path, &names, takes_body);
        made.push(parameter.with_context(|| format!("params.{name}"))?);
    }
    for parameter in &mut made {
        if let Some(default) = &parameter.raw.default {
            let text = default_text(default)?;
            let value = read(parameter, &text).map_err(|why| anyhow::anyhow!("its default: {why}"));
            parameter.default = Some(Some(value.with_context(|| format!("params.{}", parameter.name))?));
        }
    }
    Ok(made)
}

fn parameter(
    name: &str,
    raw: &RawParameter,
    in_path: &[String],
    names: &[&str],
    takes_body: bool,
) -> Result<Parameter> {
    let is_in_path = in_path.iter().any(|other| other == name);
    let place = match raw.place {
        Some(Place::Path) | None if is_in_path => Place::Path,
        Some(Place::Path) => bail!("it is in the path, and the path has no {{{name}}}"),
        Some(_) if is_in_path => bail!("the path has {{{name}}}, so it comes from there"),
        Some(Place::Body) if !takes_body => bail!("a GET has no body"),
        Some(other) => other,
        None => Place::Query,
    };
    ensure!(
        place != Place::Path || (!raw.optional && raw.default.is_none()),
        "a part of the path is always there: leave optional and default out"
    );
    ensure!(!raw.optional || raw.default.is_none(), "optional and default exclude each other");
    let is_number = matches!(
        raw.ty,
        ParameterType::Int2
            | ParameterType::Int4
            | ParameterType::Int8
            | ParameterType::Float4
            | ParameterType::Float8
            | ParameterType::Numeric
    );
    ensure!(is_number || (raw.min.is_none() && raw.max.is_none()), "min and max are for numbers");
    let is_text = matches!(raw.ty, ParameterType::Text | ParameterType::Texts);
    ensure!(
        is_text || (raw.length_min.is_none() && raw.length_max.is_none() && raw.pattern.is_none()),
        "length_min, length_max and pattern are for text"
    );
    let pattern = raw.pattern.as_ref().map(|text| Regex::new(&format!("^(?:{text})$"))).transpose();
    let after = match &raw.after {
        None => None,
        Some(other) => Some(names.iter().position(|name| name == other).with_context(|| {
            format!(
                "after = {other:?}: there is no such parameter{}",
                did_you_mean(other, names.iter().copied())
            )
        })?),
    };
    ensure!(
        after.is_some() || (raw.span_min().is_none() && raw.span_max().is_none()),
        "span_min and span_max need after: how far behind which parameter?"
    );
    let is_timed = raw.span_min().is_some() || raw.span_max().is_some() || raw.age_max().is_some();
    let is_time =
        matches!(raw.ty, ParameterType::Timestamp | ParameterType::Timestamptz | ParameterType::Date);
    ensure!(
        !is_timed || is_time || (raw.ty == ParameterType::Int8 && raw.unit.is_some()),
        "span_min, span_max and age_max need a time: timestamptz, timestamp, date, or int8 with unit = \"ns\", \"us\", \"ms\" or \"s\""
    );
    Ok(Parameter {
        name: name.to_owned(),
        ty: raw.ty,
        place,
        raw: raw.clone(),
        pattern: pattern.with_context(|| format!("pattern {:?}", raw.pattern))?,
        after,
        default: None,
    })
}

fn default_text(default: &toml::Value) -> Result<String> {
    Ok(match default {
        toml::Value::String(text) => text.clone(),
        toml::Value::Integer(number) => number.to_string(),
        toml::Value::Float(number) => number.to_string(),
        toml::Value::Boolean(bool) => bool.to_string(),
        other => bail!("a default is a text, a number, or true or false, and not {other}"),
    })
}

/// The values of a request, in the order of the parameters.
///
/// # Errors
/// Everything that is wrong with them.
pub fn values(parameters: &[Parameter], given: &Given<'_>) -> Result<Vec<Value>, Vec<Wrong>> {
    let mut wrong = Vec::new();
    let query = query(parameters, given, &mut wrong);
    for (name, _) in &given.body.0 {
        if !parameters.iter().any(|p| p.place == Place::Body && p.name == *name) {
            let names = parameters.iter().filter(|p| p.place == Place::Body).map(|p| p.name.as_str());
            wrong.push(Wrong {
                name: shown(name),
                reason: format!("the body has no such member{}", did_you_mean(name, names)),
            });
        }
    }
    let mut found: Vec<Option<Value>> = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        match value(parameter, given, &query) {
            Ok(value) => found.push(Some(value)),
            Err(reason) => {
                // What is wrong with it was said already.
                if !wrong.iter().any(|other| other.name == parameter.name) {
                    wrong.push(Wrong { name: parameter.name.clone(), reason });
                }
                found.push(None);
            }
        }
    }
    for (parameter, value) in parameters.iter().zip(&found) {
        if let Some(Some(text)) = value
            && let Err(reason) = related(parameter, text, parameters, &found, given.now_ns)
        {
            wrong.push(Wrong { name: parameter.name.clone(), reason });
        }
    }
    if wrong.is_empty() { Ok(found.into_iter().flatten().collect()) } else { Err(wrong) }
}

/// Names of other people in our words: not longer than anybody reads.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

type Pairs = Vec<(String, Vec<String>)>;

/// The query, taken apart. A blank may be written as +, as forms do.
fn query(parameters: &[Parameter], given: &Given<'_>, wrong: &mut Vec<Wrong>) -> Pairs {
    let mut pairs: Pairs = Vec::new();
    for pair in given.query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (name, value) = (name.replace('+', " "), value.replace('+', " "));
        let name = match decoded(&name) {
            Ok(name) => name.into_owned(),
            Err(reason) => {
                wrong.push(Wrong { name: shown(&name), reason });
                continue;
            }
        };
        let Some(parameter) = parameters.iter().find(|p| p.place == Place::Query && p.name == name) else {
            let names = parameters.iter().filter(|p| p.place == Place::Query).map(|p| p.name.as_str());
            let hint = did_you_mean(&name, names);
            if !wrong.iter().any(|other| other.name == shown(&name)) {
                wrong.push(Wrong { name: shown(&name), reason: format!("there is no such parameter{hint}") });
            }
            continue;
        };
        let value = match decoded(&value) {
            Ok(value) => value.into_owned(),
            Err(_) => {
                wrong.push(Wrong { name, reason: "is no UTF-8 once its percent signs are read".to_owned() });
                continue;
            }
        };
        match pairs.iter_mut().find(|(other, _)| *other == name) {
            Some((_, values)) if element(parameter.ty).is_some() => values.push(value),
            Some(_) => wrong.push(Wrong { name, reason: "is there more than once".to_owned() }),
            None => pairs.push((name, vec![value])),
        }
    }
    pairs
}

fn value(parameter: &Parameter, given: &Given<'_>, query: &Pairs) -> Result<Value, String> {
    let absent = || match (&parameter.default, parameter.raw.optional) {
        (Some(default), _) => Ok(default.clone()),
        (None, true) => Ok(None),
        (None, false) => Err("is missing".to_owned()),
    };
    match parameter.place {
        Place::Path => {
            let found = given.path.iter().find(|(name, _)| *name == parameter.name);
            let Some((_, text)) = found else { return absent() };
            let text = decoded(text).map_err(|_| "is no UTF-8 once its percent signs are read".to_owned())?;
            read(parameter, &text).map(Some)
        }
        Place::Query => {
            let Some((_, values)) = query.iter().find(|(name, _)| *name == parameter.name) else {
                return absent();
            };
            match element(parameter.ty) {
                None => read(parameter, &values[0]).map(Some),
                Some(_) => {
                    let is_empty =
                        parameter.ty != ParameterType::Texts && values.iter().all(String::is_empty);
                    let items = values.iter().flat_map(|value| value.split(',')).filter(|_| !is_empty);
                    list(parameter, items.map(str::to_owned).collect()).map(Some)
                }
            }
        }
        Place::Body => match given.body.get(&parameter.name) {
            Some(json) if json.get() != "null" => from_json(parameter, json).map(Some),
            _ => absent(),
        },
    }
}

fn from_json(parameter: &Parameter, raw: &RawValue) -> Result<String, String> {
    use ParameterType::*;
    if parameter.ty == Jsonb {
        return Ok(raw.get().to_owned());
    }
    let Ok(json) = serde_json::from_str::<Json>(raw.get()) else {
        return Err(format!("is not {}", words(parameter.ty)));
    };
    match (parameter.ty, &json) {
        (Bool, Json::Bool(_)) | (Int2 | Int4 | Int8 | Float4 | Float8 | Numeric, Json::Number(_)) => {
            read(parameter, raw.get())
        }
        (Text | Uuid | Date | Timestamp | Timestamptz, Json::String(text)) => read(parameter, text),
        (Texts | Int4s | Int8s | Float8s | Uuids, Json::Array(items)) => {
            let items = items.iter().map(|item| match (parameter.ty, item) {
                (Texts | Uuids, Json::String(text)) => Ok(text.clone()),
                (Int4s | Int8s | Float8s, Json::Number(number)) => Ok(number.to_string()),
                _ => Err(format!("is a list of {}", words(element(parameter.ty).unwrap_or(Text)))),
            });
            list(parameter, items.collect::<Result<_, _>>()?)
        }
        (Texts | Int4s | Int8s | Float8s | Uuids, _) => Err("is no list".to_owned()),
        (ty, _) => Err(format!("is not {}", words(ty))),
    }
}

/// What a list is of; `None` for what is no list.
pub fn element(ty: ParameterType) -> Option<ParameterType> {
    match ty {
        ParameterType::Texts => Some(ParameterType::Text),
        ParameterType::Int4s => Some(ParameterType::Int4),
        ParameterType::Int8s => Some(ParameterType::Int8),
        ParameterType::Float8s => Some(ParameterType::Float8),
        ParameterType::Uuids => Some(ParameterType::Uuid),
        _ => None,
    }
}

/// Behind "is not".
fn words(ty: ParameterType) -> &'static str {
    match ty {
        ParameterType::Text => "a text",
        ParameterType::Bool => "true or false",
        ParameterType::Int2 | ParameterType::Int4 | ParameterType::Int8 => "a whole number",
        ParameterType::Float4 | ParameterType::Float8 | ParameterType::Numeric => "a number",
        ParameterType::Uuid => "a UUID",
        ParameterType::Date => "a date like 2026-01-31",
        ParameterType::Timestamp => "a time like 2026-01-31T12:00:00",
        ParameterType::Timestamptz => "a time like 2026-01-31T12:00:00Z",
        ParameterType::Jsonb => "JSON",
        _ => "a list",
    }
}

/// A list in PostgreSQL's own notation.
fn list(parameter: &Parameter, items: Vec<String>) -> Result<String, String> {
    let most = parameter.raw.items_max.unwrap_or(ITEMS_MAX);
    if items.len() > most {
        return Err(format!("has {} elements, more than {most}", items.len()));
    }
    let ty = element(parameter.ty).unwrap_or(ParameterType::Text);
    let mut text = String::from("{");
    for (number, item) in items.iter().enumerate() {
        let item = scalar(parameter, ty, item).map_err(|why| format!("element {}: {why}", number + 1))?;
        if number > 0 {
            text.push(',');
        }
        text.push('"');
        for c in item.chars() {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('"');
    }
    text.push('}');
    Ok(text)
}

fn read(parameter: &Parameter, text: &str) -> Result<String, String> {
    match element(parameter.ty) {
        None => scalar(parameter, parameter.ty, text),
        Some(_) if text.is_empty() => Ok("{}".to_owned()),
        Some(_) => list(parameter, text.split(',').map(str::to_owned).collect()),
    }
}

/// One value, in the one spelling that it has here.
fn scalar(parameter: &Parameter, ty: ParameterType, text: &str) -> Result<String, String> {
    use ParameterType::*;
    if let Some(choices) = &parameter.raw.choices
        && !choices.iter().any(|choice| choice == text)
    {
        return Err(format!("is none of {}", choices.join(", ")));
    }
    let not = || Err(format!("is not {}", words(ty)));
    match ty {
        Text => plain(parameter, text),
        Bool => match text {
            "true" | "false" => Ok(text.to_owned()),
            _ => not(),
        },
        Int2 | Int4 | Int8 => {
            let bits =
                [(Int2, 16), (Int4, 32), (Int8, 64)].into_iter().find(|(t, _)| *t == ty).map_or(64, |t| t.1);
            whole(text, bits).and_then(|number| bounded(parameter, number as f64, number.to_string()))
        }
        Float4 | Float8 | Numeric => {
            // JSON's notation: a number that a client wrote, and no "inf" or "0x1p3".
            let Ok(number @ Json::Number(_)) = serde_json::from_str::<Json>(text) else { return not() };
            let Some(value) = number.as_f64().filter(|value| value.is_finite()) else {
                return Err("is out of range".to_owned());
            };
            if ty == Float4 && value.abs() > FLOAT4_MAX {
                return Err("is out of range".to_owned());
            }
            if ty == Numeric && digits(text) > NUMERIC_DIGITS_MAX {
                return Err(format!("has more than {NUMERIC_DIGITS_MAX} digits"));
            }
            bounded(parameter, value, text.to_owned())
        }
        Uuid => {
            let is_uuid = text.len() == 36
                && text.bytes().enumerate().all(|(at, byte)| match at {
                    8 | 13 | 18 | 23 => byte == b'-',
                    _ => byte.is_ascii_hexdigit(),
                });
            if is_uuid { Ok(text.to_ascii_lowercase()) } else { not() }
        }
        Date => text.parse::<civil::Date>().map(|date| date.to_string()).or_else(|_| not()),
        Timestamp => match text.parse::<civil::DateTime>() {
            Ok(time) if text.contains(['T', 't', ' ']) => Ok(time.to_string()),
            _ => Err("is not a time without an offset, like 2026-01-31T12:00:00".to_owned()),
        },
        Timestamptz => match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(time.to_string()),
            Err(_) if lost_its_plus(text) => {
                Err("has a blank where its offset begins: write the + of an offset as %2B".to_owned())
            }
            Err(_) => Err("is not a time with its offset, like 2026-01-31T12:00:00Z".to_owned()),
        },
        Jsonb => match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => not(),
        },
        Texts | Int4s | Int8s | Float8s | Uuids => not(),
    }
}

fn plain(parameter: &Parameter, text: &str) -> Result<String, String> {
    if text.contains('\0') {
        return Err("holds a zero byte, which PostgreSQL's text cannot".to_owned());
    }
    let raw = &parameter.raw;
    let length = text.chars().count();
    if raw.length_min.is_some_and(|least| length < least) {
        return Err(format!("has {length} characters, fewer than {}", raw.length_min.unwrap_or(0)));
    }
    if raw.length_max.is_some_and(|most| length > most) {
        return Err(format!("has {length} characters, more than {}", raw.length_max.unwrap_or(0)));
    }
    if parameter.pattern.as_ref().is_some_and(|pattern| !pattern.is_match(text)) {
        return Err(format!("does not match {}", raw.pattern.as_deref().unwrap_or_default()));
    }
    Ok(text.to_owned())
}

/// In one spelling only: `7`, and not `07` or `+7`.
fn whole(text: &str, bits: u32) -> Result<i64, String> {
    let number: i64 = match text.parse::<i128>() {
        Ok(number) if number.to_string() == text => {
            let most = (1i128 << (bits - 1)) - 1;
            if number > most || number < -most - 1 {
                return Err(format!("is out of range: {bits} bits"));
            }
            number as i64
        }
        _ => {
            let is_long = text.len() > 20 && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
            let words = if is_long {
                format!("is out of range: {bits} bits")
            } else {
                "is not a whole number, like 7 or -7".to_owned()
            };
            return Err(words);
        }
    };
    Ok(number)
}

fn bounded(parameter: &Parameter, number: f64, text: String) -> Result<String, String> {
    match (parameter.raw.min, parameter.raw.max) {
        (Some(min), _) if number < min => Err(format!("is below {min}")),
        (_, Some(max)) if number > max => Err(format!("is above {max}")),
        _ => Ok(text),
    }
}

/// How many digits a number has, written out.
fn digits(text: &str) -> usize {
    let (number, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let exponent = exponent.parse::<i64>().map_or(usize::MAX, |exponent| exponent.unsigned_abs() as usize);
    number.len().saturating_add(exponent)
}

/// `2026-03-01T07:08:04 07:00`: a query's + is a blank.
fn lost_its_plus(text: &str) -> bool {
    text.rsplit_once(' ')
        .is_some_and(|(time, offset)| format!("{time}+{offset}").parse::<jiff::Timestamp>().is_ok())
}

fn related(
    parameter: &Parameter,
    text: &str,
    all: &[Parameter],
    found: &[Option<Value>],
    now_ns: i128,
) -> Result<(), String> {
    let raw = &parameter.raw;
    if let Some(age) = raw.age_max()
        && instant(parameter, text).is_some_and(|at| now_ns - at > age.as_nanos() as i128)
    {
        return Err(format!("is longer ago than {}", in_words(age)));
    }
    let Some(other) = parameter.after else { return Ok(()) };
    let (Some(before), Some(Some(earlier))) = (all.get(other), found.get(other).and_then(Option::as_ref))
    else {
        return Ok(());
    };
    let is_after = match (instant(parameter, text), instant(before, earlier)) {
        (Some(at), Some(from)) => {
            let span = at - from;
            if raw.span_min().is_some_and(|least| span < least.as_nanos() as i128) {
                return Err(format!(
                    "is less than {} after {:?}",
                    in_words(raw.span_min().unwrap_or_default()),
                    before.name
                ));
            }
            if raw.span_max().is_some_and(|most| span > most.as_nanos() as i128) {
                return Err(format!(
                    "is more than {} after {:?}",
                    in_words(raw.span_max().unwrap_or_default()),
                    before.name
                ));
            }
            span > 0
        }
        _ => match (text.parse::<f64>(), earlier.parse::<f64>()) {
            (Ok(number), Ok(smaller)) => number > smaller,
            _ => text > earlier.as_str(),
        },
    };
    if is_after { Ok(()) } else { Err(format!("is not after {:?}", before.name)) }
}

/// A time in nanoseconds since 1970.
fn instant(parameter: &Parameter, text: &str) -> Option<i128> {
    let utc = |time: civil::DateTime| {
        time.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|t| t.timestamp().as_nanosecond())
    };
    match parameter.ty {
        ParameterType::Timestamptz => Some(text.parse::<jiff::Timestamp>().ok()?.as_nanosecond()),
        ParameterType::Timestamp => utc(text.parse().ok()?),
        ParameterType::Date => utc(text.parse::<civil::Date>().ok()?.at(0, 0, 0, 0)),
        ParameterType::Int8 => {
            let unit: TimeUnit = parameter.raw.unit?;
            Some(text.parse::<i128>().ok()? * (1_000_000_000 / unit.per_second()))
        }
        _ => None,
    }
}

fn in_words(span: Duration) -> String {
    let ms = span.as_millis();
    for (length, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1000, "s")] {
        if ms >= length && ms.is_multiple_of(length) {
            return format!("{} {unit}", ms / length);
        }
    }
    format!("{ms} ms")
}

/// A value as JSON has it, for answers that repeat it.
pub fn json(ty: ParameterType, value: &Value) -> Json {
    use ParameterType::*;
    let Some(text) = value else { return Json::Null };
    match ty {
        Bool | Int2 | Int4 | Int8 | Float4 | Float8 | Numeric | Jsonb => {
            serde_json::from_str(text).unwrap_or_else(|_| Json::String(text.clone()))
        }
        _ => Json::String(text.clone()),
    }
}

/// The type's oid, which never changes.
pub fn oid(ty: ParameterType) -> u32 {
    use ParameterType::*;
    use postgres::types::Type;
    let ty = match ty {
        Text => Type::TEXT,
        Bool => Type::BOOL,
        Int2 => Type::INT2,
        Int4 => Type::INT4,
        Int8 => Type::INT8,
        Float4 => Type::FLOAT4,
        Float8 => Type::FLOAT8,
        Numeric => Type::NUMERIC,
        Uuid => Type::UUID,
        Date => Type::DATE,
        Timestamp => Type::TIMESTAMP,
        Timestamptz => Type::TIMESTAMPTZ,
        Jsonb => Type::JSONB,
        Texts => Type::TEXT_ARRAY,
        Int4s => Type::INT4_ARRAY,
        Int8s => Type::INT8_ARRAY,
        Float8s => Type::FLOAT8_ARRAY,
        Uuids => Type::UUID_ARRAY,
    };
    ty.oid()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i128 = 1_800_000_000_000_000_000;

    fn made(toml: &str, in_path: &[&str]) -> Result<Vec<Parameter>> {
        let raw = toml::from_str(toml).unwrap();
        parameters(&raw, &in_path.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), true)
    }

    fn asked(toml: &str, query: &str) -> Result<Vec<Value>, Vec<Wrong>> {
        let body = Members::default();
        values(&made(toml, &[]).unwrap(), &Given { path: &[], query, body: &body, now_ns: NOW })
    }

    #[track_caller]
    fn taken(ty: &str, query: &str, expected: &str) {
        let found = asked(&format!("a = {{ {ty} }}"), query).unwrap();
        assert_eq!(found, [Some(expected.to_owned())], "{ty} {query}");
    }

    #[track_caller]
    fn refused(ty: &str, query: &str, words: &str) {
        let wrong = asked(&format!("a = {{ {ty} }}"), query).unwrap_err();
        assert!(wrong.len() == 1 && wrong[0].reason.contains(words), "{ty} {query}: {wrong:?}");
    }

    #[test]
    fn values_are_taken_in_one_spelling() {
        for (ty, query, expected) in [
            ("type = \"text\"", "a=b%20c+d%27%22", "b c d'\""),
            ("type = \"text\"", "a=", ""),
            ("type = \"bool\"", "a=true", "true"),
            ("type = \"int8\"", "a=-9223372036854775808", "-9223372036854775808"),
            ("type = \"int2\"", "a=32767", "32767"),
            ("type = \"float8\"", "a=1.5e3", "1.5e3"),
            ("type = \"float4\"", "a=3.4028235e38", "3.4028235e38"),
            ("type = \"numeric\"", "a=123456789012345678901234567890.5", "123456789012345678901234567890.5"),
            (
                "type = \"uuid\"",
                "a=AAAAAAAA-bbbb-cccc-dddd-000000000001",
                "aaaaaaaa-bbbb-cccc-dddd-000000000001",
            ),
            ("type = \"date\"", "a=2026-02-28", "2026-02-28"),
            ("type = \"timestamp\"", "a=2026-02-28T01:02:03", "2026-02-28T01:02:03"),
            ("type = \"timestamptz\"", "a=2026-03-01T07:08:04%2B07:00", "2026-03-01T00:08:04Z"),
            ("type = \"jsonb\"", "a={\"b\":[1]}", "{\"b\":[1]}"),
            ("type = \"text[]\"", "a=x,y%22&a=z\\", "{\"x\",\"y\\\"\",\"z\\\\\"}"),
            ("type = \"int8[]\"", "a=1,2", "{\"1\",\"2\"}"),
            ("type = \"int8[]\"", "a=", "{}"),
            ("type = \"text[]\"", "a=", "{\"\"}"),
            ("type = \"int4\", default = 5", "", "5"),
            ("type = \"text\", choices = [\"x\", \"y\"]", "a=y", "y"),
            ("type = \"text\", pattern = \"[a-z]+|0\"", "a=abc", "abc"),
        ] {
            taken(ty, query, expected);
        }
        assert_eq!(asked("a = { type = \"int4\", optional = true }", "").unwrap(), [None]);
    }

    #[test]
    fn what_is_no_value_is_said() {
        for (ty, query, words) in [
            ("type = \"text\"", "", "is missing"),
            ("type = \"text\"", "a=%00", "zero byte"),
            ("type = \"text\"", "a=%ff", "no UTF-8"),
            ("type = \"text\"", "a=1&a=2", "more than once"),
            ("type = \"text\", length_max = 2", "a=äöü", "3 characters, more than 2"),
            ("type = \"text\", length_min = 2", "a=ä", "fewer than 2"),
            ("type = \"text\", pattern = \"[a-z]+|0\"", "a=abc0", "does not match"),
            ("type = \"text\", choices = [\"x\", \"y\"]", "a=z", "is none of x, y"),
            ("type = \"bool\"", "a=1", "true or false"),
            ("type = \"int8\"", "a=007", "whole number"),
            ("type = \"int8\"", "a=%2B7", "whole number"),
            ("type = \"int8\"", "a=1e3", "whole number"),
            ("type = \"int8\"", "a=", "whole number"),
            ("type = \"int8\"", "a=9223372036854775808", "out of range"),
            ("type = \"int8\"", "a=99999999999999999999999999999999999999999999", "out of range"),
            ("type = \"int2\"", "a=32768", "out of range"),
            ("type = \"int4\", min = 1, max = 5", "a=0", "is below 1"),
            ("type = \"int4\", min = 1, max = 5", "a=6", "is above 5"),
            ("type = \"float8\"", "a=NaN", "not a number"),
            ("type = \"float8\"", "a=1e999", "number"),
            ("type = \"float4\"", "a=1e39", "out of range"),
            ("type = \"numeric\"", "a=1e300000", "number"),
            ("type = \"uuid\"", "a=x", "not a UUID"),
            ("type = \"date\"", "a=2026-02-30", "not a date"),
            ("type = \"timestamp\"", "a=2026-02-28T01:02:03Z", "without an offset"),
            ("type = \"timestamptz\"", "a=2026-02-28T01:02:03", "with its offset"),
            ("type = \"timestamptz\"", "a=2026-03-01T07:08:04+07:00", "%2B"),
            ("type = \"jsonb\"", "a={", "not JSON"),
            ("type = \"int8[]\"", "a=1,", "element 2: is not a whole number"),
            ("type = \"int8[]\"", "a=1,x", "element 2: is not a whole number"),
            ("type = \"int8[]\", items_max = 2", "a=1,2,3", "more than 2"),
            ("type = \"text\", optional = true", "b=1", "no such parameter"),
        ] {
            refused(ty, query, words);
        }
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let wrong =
            asked("a = { type = \"int8\" }\nb = { type = \"bool\" }\nc = { type = \"text\" }", "a=x&b=y&d=1");
        let names: Vec<String> = wrong.unwrap_err().into_iter().map(|wrong| wrong.name).collect();
        assert_eq!(names, ["d", "a", "b", "c"]);
    }

    #[test]
    fn values_stand_in_relations() {
        let times = "start = { type = \"int8\", unit = \"ns\", age_max = \"24h\" }\n\
                     end = { type = \"int8\", unit = \"ns\", after = \"start\", span_min = \"10m\", span_max = \"31d\" }";
        let check = |start: i128, end: i128, words: Option<&str>| {
            let found = asked(times, &format!("start={start}&end={end}"));
            match words {
                None => assert!(found.is_ok(), "{found:?}"),
                Some(words) => assert!(found.clone().unwrap_err()[0].reason.contains(words), "{found:?}"),
            }
        };
        let minute = 60_000_000_000;
        check(NOW - 60 * minute, NOW, None);
        check(NOW - 60 * minute, NOW - 51 * minute, Some("less than 10 min after \"start\""));
        check(NOW - 60 * minute, NOW + 32 * 1440 * minute, Some("more than 31 d after"));
        check(NOW - 1441 * minute, NOW, Some("longer ago than 1 d"));
        let plain = "a = { type = \"timestamptz\" }\nb = { type = \"timestamptz\", after = \"a\" }";
        assert!(asked(plain, "a=2026-01-01T00:00:00Z&b=2026-01-01T00:30:00%2B01:00").is_err());
        assert!(asked(plain, "a=2026-01-01T00:00:00Z&b=2026-01-01T01:30:00%2B01:00").is_ok());
    }

    #[test]
    fn a_body_has_types() {
        let parameters = made(
            "Name = { type = \"text\", in = \"body\", length_max = 100 }\nn = { type = \"int8\", in = \"body\" }\n\
             l = { type = \"text[]\", in = \"body\", optional = true }\nj = { type = \"jsonb\", in = \"body\", optional = true }",
            &[],
        )
        .unwrap();
        let ask = |body: &str| {
            let body: Members = serde_json::from_str(body).unwrap();
            values(&parameters, &Given { path: &[], query: "", body: &body, now_ns: NOW })
        };
        let found = ask("{\"Name\":\"a'b\",\"n\":7,\"l\":[\"x,y\"],\"j\":{\"k\":null}}").unwrap();
        let expected = ["a'b", "{\"k\":null}", "{\"x,y\"}", "7"].map(|text| Some(text.to_owned()));
        assert_eq!(found, expected);
        // Digits that a script's numbers would lose.
        let exact = made("v = { type = \"numeric\", in = \"body\" }", &[]).unwrap();
        let body = serde_json::from_str("{\"v\": 12345678901234567890.50}").unwrap();
        let found = values(&exact, &Given { path: &[], query: "", body: &body, now_ns: NOW });
        assert_eq!(found.unwrap(), [Some("12345678901234567890.50".to_owned())]);
        let twice = serde_json::from_str::<Members>("{\"n\":1,\"n\":2}").unwrap_err();
        assert!(twice.to_string().contains("\"n\" is there twice"), "{twice}");
        for (body, words) in [
            ("{\"Name\":7,\"n\":7}", "not a text"),
            ("{\"Name\":\"a\",\"n\":\"7\"}", "not a whole number"),
            ("{\"Name\":\"a\",\"n\":7.5}", "not a whole number"),
            ("{\"Name\":\"a\",\"n\":null}", "is missing"),
            ("{\"Name\":\"a\",\"n\":7,\"l\":[1]}", "a list of a text"),
            ("{\"Name\":\"a\",\"n\":7,\"nn\":7}", "no such member"),
            ("{\"Name\":\"a\\u0000\",\"n\":7}", "zero byte"),
        ] {
            let wrong = ask(body).unwrap_err();
            assert!(wrong[0].reason.contains(words), "{body}: {wrong:?}");
        }
    }

    #[test]
    fn what_cannot_be_a_parameter_is_said() {
        for (toml, in_path, words) in [
            ("", &["x"][..], "say its type"),
            ("x = { type = \"int8\", in = \"path\" }", &[], "the path has no {x}"),
            ("x = { type = \"int8\", in = \"query\" }", &["x"], "comes from there"),
            ("x = { type = \"int8\", optional = true }", &["x"], "always there"),
            ("x = { type = \"int8\", optional = true, default = 1 }", &[], "exclude each other"),
            ("x = { type = \"text\", min = 1 }", &[], "are for numbers"),
            ("x = { type = \"int8\", pattern = \"a\" }", &[], "are for text"),
            ("x = { type = \"text\", pattern = \"(\" }", &[], "pattern"),
            ("x = { type = \"int8\", after = \"y\" }", &[], "no such parameter"),
            ("x = { type = \"int8\", span_min = \"1s\" }", &[], "need after"),
            ("x = { type = \"int8\", age_max = \"1s\" }", &[], "need a time"),
            ("x = { type = \"int8\", default = \"a\" }", &[], "its default: is not a whole number"),
        ] {
            let error = made(toml, in_path).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{toml}: {error:#}");
        }
    }
}
