//! Many JSON objects in one text, whatever is between them: an array of them, one in each line, or one after another; and a
//! few fields of each. For those who pass records on and do not read them.

use super::fields::{Element, Level, Slot, Tree, read_element, read_stretch, slot_of};
use super::scan::NotJson;
use super::value::read::Json;
use crate::decode::reject::excerpt;
use crate::model::plan::Path;

/// Reads the objects of one text after another, and the same fields of each.
pub struct Stream {
    levels: Vec<Level>,
    slots: Vec<Slot>,
    /// Which slot each of the fields has, in the order in which they were asked for.
    places: Vec<usize>,
}

/// How far a text was read.
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    is_array: bool,
    at: usize,
    is_over: bool,
}

/// What is no object, and where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// In bytes of the text.
    pub at: usize,
    pub reason: String,
}

impl Cursor {
    pub fn new(text: &str) -> Cursor {
        let is_array = text.trim_ascii_start().starts_with('[');
        Cursor { is_array, at: 0, is_over: false }
    }
}

impl Stream {
    pub fn new(fields: &[Path]) -> Stream {
        let mut tree = Tree::default();
        fields.iter().for_each(|path| tree.want(path));
        let (mut levels, mut slots) = (Vec::new(), 0);
        tree.lay_out(&mut levels, &mut slots);
        let places = fields.iter().map(|path| slot_of(&levels, path)).collect();
        Stream { levels, slots: vec![Slot::default(); slots], places }
    }

    /// The next object, as it stands in the text; `None` behind the last one. What is no object is said, and the next one is
    /// looked for behind it where its end is known: behind other JSON, and in the next line.
    pub fn next<'t>(&mut self, text: &'t str, cursor: &mut Cursor) -> Option<Result<&'t str, Bad>> {
        if cursor.is_over {
            return None;
        }
        self.slots.iter_mut().for_each(Slot::clear);
        let start = cursor.at;
        let read = if cursor.is_array {
            read_element(text, &mut cursor.at, &mut self.levels, &mut self.slots)
        } else {
            read_stretch(text, &mut cursor.at, &mut self.levels, &mut self.slots)
        };
        match read {
            Ok(Element::End) => {
                cursor.is_over = true;
                self.rest_of_array(text, cursor)
            }
            Ok(Element::Object(range)) => Some(Ok(&text[range])),
            Ok(Element::Other(range)) => {
                let reason = format!("no JSON object; found {}", excerpt(&text[range.clone()]));
                Some(Err(Bad { at: range.start, reason }))
            }
            Err(NotJson) => {
                let bad = not_json(text, start, cursor.is_array);
                match text[start..].find(|c: char| !c.is_ascii_whitespace()).and_then(|skip| {
                    let line = text[start + skip..].find('\n')?;
                    Some(start + skip + line + 1)
                }) {
                    Some(next) if !cursor.is_array => cursor.at = next,
                    _ => cursor.is_over = true,
                }
                Some(Err(bad))
            }
        }
    }

    /// Behind the bracket of an array nothing may stand.
    fn rest_of_array<'t>(&self, text: &'t str, cursor: &Cursor) -> Option<Result<&'t str, Bad>> {
        if !cursor.is_array {
            return None;
        }
        let rest = text[cursor.at..].trim_ascii_start();
        let rest = if cursor.at == 0 { rest.strip_prefix('[')?.trim_ascii_start() } else { rest };
        match rest.strip_prefix(']').map(str::trim_ascii_start) {
            Some("") => None,
            Some(behind) => {
                let reason = format!("something behind the array; found {}", excerpt(behind));
                Some(Err(Bad { at: text.len() - behind.len(), reason }))
            }
            None => Some(Err(not_json(text, cursor.at, true))),
        }
    }

    /// One of the fields of the object that was read last, by its place in the list.
    pub fn field<'t>(&self, text: &'t str, number: usize) -> Option<Json<'t>> {
        self.slots[self.places[number]].of(text)
    }
}

#[cold]
fn not_json(text: &str, start: usize, is_array: bool) -> Bad {
    let rest = if is_array { text } else { &text[start..] };
    let base = if is_array { 0 } else { start };
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<serde::de::IgnoredAny>();
    loop {
        match values.next() {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                let line = rest
                    .split_inclusive('\n')
                    .take(error.line().saturating_sub(1))
                    .map(str::len)
                    .sum::<usize>();
                let at = (base + line + error.column().saturating_sub(1)).min(text.len());
                let at = if error.is_eof() { text.len() } else { at };
                return Bad { at, reason: format!("no JSON: {error}") };
            }
            None => return Bad { at: start, reason: "no JSON".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Vec<Result<String, usize>> {
        let mut stream = Stream::new(&[Path(vec!["a".into()])]);
        let mut cursor = Cursor::new(text);
        let mut found = Vec::new();
        while let Some(record) = stream.next(text, &mut cursor) {
            found.push(record.map(str::to_owned).map_err(|bad| bad.at));
            assert!(found.len() < 100, "it ends");
        }
        found
    }

    #[test]
    fn records_are_found_by_looking() {
        #[track_caller]
        fn check(text: &str, expected: &[&str]) {
            let expected: Vec<_> = expected.iter().map(|record| Ok((*record).to_owned())).collect();
            assert_eq!(read(text), expected, "{text:?}");
        }
        check(r#"{"a":1}"#, &[r#"{"a":1}"#]);
        check(" {\"a\":1} \n", &[r#"{"a":1}"#]);
        check("{\"a\":1}\n{\"a\":2}\r\n\n{\"a\":3}", &[r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":3}"#]);
        check(r#"{"a":1}{"a":2} {"a":{"b":"}{"}}"#, &[r#"{"a":1}"#, r#"{"a":2}"#, r#"{"a":{"b":"}{"}}"#]);
        check("{\n\"a\":\n1}\n{}", &["{\n\"a\":\n1}", "{}"]);
        check(r#"[{"a":1}, {"a":2}]"#, &[r#"{"a":1}"#, r#"{"a":2}"#]);
        check(" [ ] ", &[]);
        check("", &[]);
        check(" \n ", &[]);
    }

    #[test]
    fn what_is_no_object_is_said_with_its_place() {
        assert_eq!(
            read("{\"a\":1}\n{\"a\":}\n{\"a\":3}"),
            [Ok("{\"a\":1}".into()), Err(13), Ok("{\"a\":3}".into())]
        );
        assert_eq!(read("[{\"a\":1},7,{}]"), [Ok("{\"a\":1}".into()), Err(9), Ok("{}".into())]);
        assert_eq!(read("7\n{}"), [Err(0), Ok("{}".into())]);
        assert_eq!(read("[{\"a\":1}").last(), Some(&Err(8)));
        assert_eq!(read("[{\"a\":1}]x").last(), Some(&Err(9)));
        assert_eq!(read("[{\"a\":1}][{}]").last(), Some(&Err(9)));
        assert_eq!(read("[{\"a\":1},]").last(), Some(&Err(9)));
        assert_eq!(read("{\"a\":1"), [Err(6)]);
        assert_eq!(read("x"), [Err(0)]);
    }

    #[test]
    fn fields_are_those_of_the_object_that_was_read_last() {
        let text = r#"{"a":1,"b":{"c":"x"}}{"b":{}}"#;
        let mut stream = Stream::new(&[Path(vec!["b".into(), "c".into()]), Path(vec!["a".into()])]);
        let mut cursor = Cursor::new(text);
        stream.next(text, &mut cursor).unwrap().unwrap();
        assert_eq!(stream.field(text, 0).unwrap().text, "\"x\"");
        assert_eq!(stream.field(text, 1).unwrap().text, "1");
        stream.next(text, &mut cursor).unwrap().unwrap();
        assert!(stream.field(text, 0).is_none() && stream.field(text, 1).is_none());
    }
}
