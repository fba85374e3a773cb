//! A value as it comes: JSON text, or text from outside of JSON, and how its column reads it.

use std::ops::Range;

use super::decimal::Decimal;
use super::json;
use super::wrong::{Wrong, nul};
use crate::decode::reject::Reason;
use crate::model::notation::{Notation, Years};
use crate::model::types::Type;

/// How a column reads its JSON value where the type alone does not say it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    pub notation: Notation,
    /// Days since 2000 that a time may be on, if its model knows.
    pub days: Option<Range<i64>>,
    /// Levels of `[` and `{` in a json, jsonb or array value.
    pub depth_max: usize,
}

impl Default for Reading {
    fn default() -> Self {
        PLAIN.clone()
    }
}

/// As the type alone says it; at hand, since making one for each value costs more than reading it.
pub static PLAIN: Reading = Reading { notation: Notation::PLAIN, days: None, depth_max: 128 };

impl Reading {
    pub fn new(notation: Notation, depth_max: usize) -> Self {
        let days = notation.years.map(Years::days);
        Self { notation, days, depth_max }
    }
}

/// One JSON value that is not null, as scalars read it. A `String` is unescaped and holds no U+0000: both constructors
/// see to it, so that no type has to look again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value<'a> {
    Bool(bool),
    /// The number's exact text, in JSON's grammar.
    Number(&'a str),
    String(&'a str),
    /// An array or object, as text.
    Compound(&'a str),
}

/// The text of one valid JSON value, without white space around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Json<'a> {
    pub text: &'a str,
    /// False if no backslash is in it: then a string's content is what stands between its quotes.
    pub escapes: bool,
}

impl<'a> Json<'a> {
    /// For a text that nobody has searched for backslashes yet.
    pub fn of(text: &'a str) -> Self {
        Self { text, escapes: text.as_bytes().contains(&b'\\') }
    }

    pub fn is_null(self) -> bool {
        self.text == "null"
    }

    pub fn is_empty_text(self) -> bool {
        self.text == "\"\""
    }
}

impl<'a> Value<'a> {
    /// Of any JSON value but `null`.
    #[inline]
    pub fn of_json(json: Json<'a>, scratch: &'a mut String) -> Result<Self, Wrong> {
        let raw = json.text;
        Ok(match raw.as_bytes().first() {
            Some(b'"') if json.escapes => Value::String(json::unescape(raw, scratch)?),
            Some(b'"') => Value::String(raw.get(1..raw.len() - 1).unwrap_or_default()),
            Some(b't') => Value::Bool(true),
            Some(b'f') => Value::Bool(false),
            Some(b'[' | b'{') => Value::Compound(raw),
            _ => Value::Number(raw),
        })
    }

    /// Text from outside JSON: what a lookup found, a record's key. For a type that takes numbers or booleans, text
    /// that looks like one is one.
    pub fn of_text(text: &'a str, ty: &Type) -> Result<Self, Wrong> {
        if text.as_bytes().contains(&0) {
            return Err(nul());
        }
        let numeric = matches!(
            ty,
            Type::Int2 | Type::Int4 | Type::Int8 | Type::Float4 | Type::Float8 | Type::Numeric(_)
        );
        Ok(match text {
            _ if numeric && Decimal::parse(text).is_some() => Value::Number(text),
            "true" if *ty == Type::Bool => Value::Bool(true),
            "false" if *ty == Type::Bool => Value::Bool(false),
            _ => Value::String(text),
        })
    }

    /// A string that holds a number or boolean of this type becomes one; any other value stays what it is.
    pub fn out_of_text(self, ty: &Type) -> Result<Self, Wrong> {
        match self {
            Value::String(text) => Value::of_text(text, ty),
            other => Ok(other),
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Compound(raw) if raw.starts_with('[') => "an array",
            Value::Compound(_) => "an object",
        }
    }
}

pub(super) fn wrong_type(takes: &str, found: Value<'_>) -> Wrong {
    Wrong::new(Reason::WrongType, format!("takes {takes}, not {}", found.kind()))
}
