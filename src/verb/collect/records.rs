//! The records of one body: where each stands, its key, its id, and what is wrong with the others.

use std::ops::Range;

use bytes::Bytes;

use super::route::{Id, Key, Route};
use super::verdict::{Failure, Kind};
use crate::config::{JsonType, Validate};
use crate::decode::stream::{Cursor, Stream};
use crate::decode::value::read::{Json, Value};
use crate::model::plan::Path;

/// Where a record stands in its body, and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number in the request.
    pub index: u32,
    pub range: Range<usize>,
    pub key: Option<Vec<u8>>,
    pub id: Option<Vec<u8>>,
}

/// What a body holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    Records(Vec<Record>, Vec<Failure>),
    /// More than a request may have.
    TooMany,
}

/// Finds the records of one route's bodies.
pub struct Reader {
    stream: Stream,
    /// The key's, the id's and the required fields, in this order among the stream's.
    key: Option<usize>,
    id: Range<usize>,
    required: Vec<(usize, String, JsonType)>,
    scratch: String,
}

impl Reader {
    pub fn new(route: &Route) -> Reader {
        let mut fields: Vec<Path> = Vec::new();
        let mut place = |path: &Path| {
            fields.push(path.clone());
            fields.len() - 1
        };
        let key = match &route.key {
            Key::Field(path) => Some(place(path)),
            Key::None | Key::Template(_) => None,
        };
        let ids: Vec<usize> = match &route.id {
            Id::Fields(paths) => paths.iter().map(&mut place).collect(),
            Id::None | Id::IdempotencyKey | Id::Header(_) => Vec::new(),
        };
        let required = route.required.iter().map(|(path, ty)| (place(path), path.to_string(), *ty)).collect();
        let id = ids.first().map_or(0..0, |first| *first..first + ids.len());
        Reader { stream: Stream::new(&fields), key, id, required, scratch: String::new() }
    }

    /// Looks at every record of a body before any is sent.
    pub fn read(&mut self, route: &Route, body: &Bytes, bytes_max: usize, records_max: usize) -> Found {
        if route.validate == Validate::None {
            let record = Record { index: 0, range: 0..body.len(), key: None, id: None };
            return match self.size(&record.range, bytes_max) {
                Ok(()) => Found::Records(vec![record], Vec::new()),
                Err((kind, reason)) => {
                    Found::Records(Vec::new(), vec![Failure { index: 0, at: Some(0), kind, reason }])
                }
            };
        }
        let text = match std::str::from_utf8(body) {
            Ok(text) => text,
            Err(error) => {
                let at = error.valid_up_to();
                let reason = format!("the body is not UTF-8 from byte {at} on");
                let failure = Failure { index: 0, at: Some(at), kind: Kind::Bad, reason };
                return Found::Records(Vec::new(), vec![failure]);
            }
        };
        let (mut records, mut failed) = (Vec::new(), Vec::new());
        let mut cursor = Cursor::new(text);
        let mut index = 0;
        while let Some(found) = self.stream.next(text, &mut cursor) {
            if index as usize == records_max {
                return Found::TooMany;
            }
            let (at, record) = match found {
                Ok(record) => {
                    let at = record.as_ptr() as usize - text.as_ptr() as usize;
                    (at, self.record(text, index, at..at + record.len(), bytes_max))
                }
                Err(bad) => (bad.at, Err((Kind::Bad, bad.reason))),
            };
            match record {
                Ok(record) => records.push(record),
                Err((kind, reason)) => failed.push(Failure { index, at: Some(at), kind, reason }),
            }
            index += 1;
        }
        Found::Records(records, failed)
    }

    fn size(&self, range: &Range<usize>, bytes_max: usize) -> Result<(), (Kind, String)> {
        if range.len() <= bytes_max {
            return Ok(());
        }
        Err((Kind::TooLarge, format!("the record has {} bytes, its topic takes {bytes_max}", range.len())))
    }

    fn record(
        &mut self,
        text: &str,
        index: u32,
        range: Range<usize>,
        bytes_max: usize,
    ) -> Result<Record, (Kind, String)> {
        self.size(&range, bytes_max)?;
        for (number, name, ty) in &self.required {
            let found = self.stream.field(text, *number).filter(|json| !json.is_null());
            match found {
                None => return Err((Kind::Bad, format!("the field {name:?} is absent or null"))),
                Some(json) if !is(json, *ty) => {
                    return Err((Kind::Bad, format!("the field {name:?} is not {}", ty.words())));
                }
                Some(_) => {}
            }
        }
        let key = match self.key {
            None => None,
            Some(number) => Some(key(self.stream.field(text, number), &mut self.scratch)?),
        };
        let id = if self.id.is_empty() { None } else { Some(self.id(text)?) };
        Ok(Record { index, range, key, id })
    }

    /// The fields that tell one record from another, as a JSON array.
    fn id(&self, text: &str) -> Result<Vec<u8>, (Kind, String)> {
        let mut id = vec![b'['];
        for number in self.id.clone() {
            let field = self.stream.field(text, number).filter(|json| !json.is_null());
            let Some(json) = field else {
                return Err((Kind::Bad, "a field of the record's id is absent or null".to_owned()));
            };
            if id.len() > 1 {
                id.push(b',');
            }
            id.extend_from_slice(json.text.as_bytes());
        }
        id.push(b']');
        if id.len() > ID_MAX {
            return Err((Kind::Bad, format!("the record's id is longer than {ID_MAX} bytes")));
        }
        Ok(id)
    }
}

/// It travels with each record.
const ID_MAX: usize = 1024;

/// A field as a key: a string's content, or a number's or boolean's text as it stands.
fn key(field: Option<Json<'_>>, scratch: &mut String) -> Result<Vec<u8>, (Kind, String)> {
    let Some(json) = field.filter(|json| !json.is_null()) else {
        return Err((Kind::Bad, "the key's field is absent or null: records with equal keys keep their order, so none goes without".to_owned()));
    };
    match Value::of_json(json, scratch) {
        Ok(Value::String(text) | Value::Number(text)) => Ok(text.as_bytes().to_vec()),
        Ok(Value::Bool(_)) => Ok(json.text.as_bytes().to_vec()),
        Ok(Value::Compound(_)) => Err((Kind::Bad, "the key's field is an array or object".to_owned())),
        Err(wrong) => Err((Kind::Bad, format!("the key's field: {}", wrong.why))),
    }
}

fn is(json: Json<'_>, ty: JsonType) -> bool {
    let first = json.text.as_bytes().first().copied().unwrap_or_default();
    let is_number = first == b'-' || first.is_ascii_digit();
    match ty {
        JsonType::Any => true,
        JsonType::Text => first == b'"',
        JsonType::Int => is_number && !json.text.contains(['.', 'e', 'E']),
        JsonType::Number => is_number,
        JsonType::Bool => matches!(first, b't' | b'f'),
        JsonType::Array => first == b'[',
        JsonType::Object => first == b'{',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RawRoute;
    use crate::verb::collect::route::Routes;

    fn read(settings: &str, body: &str) -> Found {
        let raw: RawRoute = toml::from_str(&format!("path = \"/\"\ntopic = \"t\"\n{settings}")).unwrap();
        let routes = Routes::new(&[raw]).unwrap();
        Reader::new(&routes.routes[0]).read(&routes.routes[0], &Bytes::from(body.to_owned()), 40, 3)
    }

    #[track_caller]
    fn check(settings: &str, body: &str, keys: &[Option<&str>], bad: &[&str]) {
        let Found::Records(records, failed) = read(settings, body) else { panic!("too many") };
        let found: Vec<_> = records
            .iter()
            .map(|r| r.key.as_ref().map(|key| String::from_utf8(key.clone()).unwrap()))
            .collect();
        assert_eq!(found, keys.iter().map(|key| key.map(str::to_owned)).collect::<Vec<_>>(), "{body}");
        assert_eq!(failed.len(), bad.len(), "{failed:?}");
        for (failure, words) in failed.iter().zip(bad) {
            assert!(failure.reason.contains(words), "{failure:?}");
        }
    }

    #[test]
    fn keys_are_what_the_field_says() {
        let key = "key = \"a.b\"";
        check(key, r#"{"a":{"b":"x\u0041"}}"#, &[Some("xA")], &[]);
        check(key, r#"{"a":{"b":7.50}}{"a":{"b":true}}"#, &[Some("7.50"), Some("true")], &[]);
        check(key, r#"{"a":{}} {"a":{"b":null}} {"a":{"b":[]}}"#, &[], &["absent", "absent", "array"]);
        check("", r#"[{"a":1},{"a":2}]"#, &[None, None], &[]);
    }

    #[test]
    fn required_fields_are_there_and_of_their_type() {
        let names = "require = [\"a\", \"b\"]";
        check(
            names,
            r#"{"a":1,"b":{}}{"a":1}{"b":null,"a":1}"#,
            &[None],
            &["\"b\" is absent", "\"b\" is absent"],
        );
        let types = "require = { a = \"int\", b = \"text\" }";
        check(
            types,
            r#"{"a":1,"b":"x"}{"a":1.0,"b":"x"}{"a":1,"b":2}"#,
            &[None],
            &["\"a\" is not a whole number", "\"b\" is not a text"],
        );
    }

    #[test]
    fn a_record_is_as_large_as_its_topic_takes() {
        check("", &format!("{{\"a\":\"{}\"}}", "x".repeat(40)), &[], &["its topic takes 40"]);
        check("validate = \"none\"", &"x".repeat(40), &[None], &[]);
        check("validate = \"none\"", &"x".repeat(41), &[], &["its topic takes 40"]);
        assert_eq!(read("", "{}{}{}{}"), Found::TooMany);
    }

    #[test]
    fn an_id_is_made_of_fields() {
        let Found::Records(records, _) = read("id = [\"tag\", \"time\"]", r#"{"time":7,"tag":"a,\"b"}"#)
        else {
            panic!()
        };
        assert_eq!(records[0].id.as_deref(), Some(br#"["a,\"b",7]"#.as_slice()));
        check("id = \"tag\"", r#"{"time":7}"#, &[], &["id is absent"]);
    }

    #[test]
    fn what_is_no_json_is_said_with_its_place() {
        let Found::Records(records, failed) = read("", "{\"a\":1}\n{\"a\":}\n{}") else { panic!() };
        assert_eq!(
            (records.len(), failed[0].index, failed[0].at, failed[0].kind),
            (2, 1, Some(13), Kind::Bad)
        );
        assert_eq!(records[1].index, 2);
    }
}
