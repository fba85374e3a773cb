//! Texts with holes that a request fills: `{path.account}`, `{query.data:int}`, `{header.x}`, `{now}`, `{hostname}`. They are
//! taken apart once, at the start; what a request puts in is never read as a template.

use anyhow::{Result, bail};
use serde_json::Value;

/// A text, parts of which come from the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Hole(Hole),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hole {
    source: Source,
    form: Form,
}

/// Where a hole's text comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A parameter of the route's path, by its number.
    Path(usize),
    Query(String),
    /// In lower case.
    Header(String),
    /// RFC 3339 in UTC, with milliseconds; with `:s` or `:ms` a number.
    Now,
    Hostname,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    /// A whole number that is written in one way only: `7`, and not `07` or `+7`, which would be another key.
    Int,
    Number,
    Bool,
    Seconds,
    Millis,
}

/// What a request has for holes.
pub trait Request {
    /// `None` where it has none.
    fn text(&self, source: &Source) -> Option<std::borrow::Cow<'_, str>>;
    /// Milliseconds since 1970.
    fn now_ms(&self) -> i64;
}

impl Template {
    /// `parameters` are the names in the route's path.
    ///
    /// # Errors
    /// What is no hole that is known here.
    pub fn parse(text: &str, parameters: &[String]) -> Result<Template> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find('{') {
            if open > 0 {
                parts.push(Part::Text(rest[..open].to_owned()));
            }
            let Some(close) = rest[open..].find('}') else { bail!("{text:?} has a {{ without its }}") };
            parts.push(Part::Hole(Hole::parse(&rest[open + 1..open + close], parameters)?));
            rest = &rest[open + close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Template(parts))
    }

    /// As text, for a key.
    ///
    /// # Errors
    /// What the request lacks, or has in another form.
    pub fn text(&self, request: &impl Request) -> Result<String, String> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(part) => text.push_str(part),
                Part::Hole(hole) => match hole.value(request)? {
                    Value::String(part) => text.push_str(&part),
                    other => text.push_str(&other.to_string()),
                },
            }
        }
        Ok(text)
    }

    /// As a value of a record: a lone hole keeps its type, anything else is text.
    ///
    /// # Errors
    /// As [`Template::text`].
    pub fn value(&self, request: &impl Request) -> Result<Value, String> {
        match self.0.as_slice() {
            [Part::Hole(hole)] => hole.value(request),
            _ => self.text(request).map(Value::String),
        }
    }
}

impl Hole {
    fn parse(text: &str, parameters: &[String]) -> Result<Hole> {
        let (name, form) = text.split_once(':').unwrap_or((text, "text"));
        let source = match name.split_once('.') {
            Some(("path", name)) => match parameters.iter().position(|parameter| parameter == name) {
                Some(number) => Source::Path(number),
                None => bail!("{{{text}}}: the path has no {{{name}}}"),
            },
            Some(("query", name)) => Source::Query(name.to_owned()),
            Some(("header", name)) => Source::Header(name.to_ascii_lowercase()),
            _ if name == "now" => Source::Now,
            _ if name == "hostname" => Source::Hostname,
            _ => bail!(
                "{{{text}}} is unknown: use {{path.NAME}}, {{query.NAME}}, {{header.NAME}}, {{now}} or {{hostname}}"
            ),
        };
        let form = match (form, &source) {
            ("text", _) => Form::Text,
            ("s", Source::Now) => Form::Seconds,
            ("ms", Source::Now) => Form::Millis,
            ("int", _) if source != Source::Now => Form::Int,
            ("number", _) if source != Source::Now => Form::Number,
            ("bool", _) if source != Source::Now => Form::Bool,
            _ => bail!("{{{text}}}: use :int, :number, :bool or :text; or :s or :ms for {{now}}"),
        };
        Ok(Hole { source, form })
    }

    fn value(&self, request: &impl Request) -> Result<Value, String> {
        match self.form {
            Form::Seconds => return Ok(request.now_ms().div_euclid(1000).into()),
            Form::Millis => return Ok(request.now_ms().into()),
            _ => {}
        }
        let Some(text) = request.text(&self.source) else {
            return Err(match &self.source {
                Source::Query(name) => format!("the query has no {name:?}"),
                Source::Header(name) => format!("the request has no header {name:?}"),
                Source::Path(_) | Source::Now | Source::Hostname => "the path lacks a part".to_owned(),
            });
        };
        match self.form {
            Form::Int => match text.parse::<i64>() {
                Ok(number) if number.to_string() == text => Ok(number.into()),
                _ => Err(format!(
                    "{text:?} is no whole number as this route takes it, such as 7 or -7, within 64 bits"
                )),
            },
            Form::Number => match serde_json::from_str::<Value>(&text) {
                Ok(number @ Value::Number(_)) => Ok(number),
                _ => Err(format!("{text:?} is no number")),
            },
            Form::Bool => match &*text {
                "true" => Ok(true.into()),
                "false" => Ok(false.into()),
                _ => Err(format!("{text:?} is neither true nor false")),
            },
            Form::Text | Form::Seconds | Form::Millis => Ok(Value::String(text.into_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    struct Asked(&'static str);

    impl Request for Asked {
        fn text(&self, source: &Source) -> Option<Cow<'_, str>> {
            match source {
                Source::Path(0) | Source::Query(_) => Some(self.0.into()),
                Source::Hostname => Some("h".into()),
                _ => None,
            }
        }

        fn now_ms(&self) -> i64 {
            1_700_000_000_123
        }
    }

    #[test]
    fn holes_are_filled_and_keep_their_type() {
        let check = |template: &str, asked: &'static str, expected: Result<Value, &str>| {
            let template = Template::parse(template, &["account".to_owned()]).unwrap();
            let found = template.value(&Asked(asked));
            match expected {
                Ok(value) => assert_eq!(found, Ok(value), "{template:?} {asked:?}"),
                Err(words) => {
                    assert!(found.clone().unwrap_err().contains(words), "{template:?} {asked:?}: {found:?}")
                }
            }
        };
        check("{path.account:int}", "7", Ok(7.into()));
        check("{path.account:int}", "-7", Ok((-7).into()));
        for spelling in ["007", "+7", "1e3", "7.0", " 7", "", "9223372036854775808", "-0"] {
            check("{path.account:int}", spelling, Err("no whole number"));
        }
        check("{query.data}", "{now}", Ok("{now}".into()));
        check("a-{path.account}-{hostname}", "x", Ok("a-x-h".into()));
        check("{now:s}", "", Ok(1_700_000_000.into()));
        check("{now:ms}", "", Ok(1_700_000_000_123i64.into()));
        check("{query.n:number}", "1.50", Ok(serde_json::from_str("1.50").unwrap()));
        check("{query.b:bool}", "yes", Err("neither"));
        check("{header.X}", "", Err("no header"));
    }

    #[test]
    fn what_is_no_hole_is_refused_at_the_start() {
        for (template, words) in [
            ("{path.other}", "has no {other}"),
            ("{body.x}", "is unknown"),
            ("{now:int}", "use :int"),
            ("{x", "without its }"),
            ("{query.a:uuid}", "use :int"),
        ] {
            let error = Template::parse(template, &["account".to_owned()]).unwrap_err();
            assert!(error.to_string().contains(words), "{template}: {error}");
        }
    }
}
