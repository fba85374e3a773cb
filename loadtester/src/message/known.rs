//! Which message of a run a row is, or a message that was set aside: one answer for all who ask, whatever the table.

use std::sync::Arc;

use serde_json::Value as Json;

use crate::message::draw::{Draft, Identity, Kind, write_key};
use crate::message::identity::{Reader, Told};
use crate::message::index::{self, Index};
use crate::message::model::{Model, Recognize};
use crate::message::pattern::{Part, Pattern};
use crate::message::stream::Stream;

/// The messages of this part of a run.
pub struct Known {
    pub run: u32,
    pub models: Vec<Arc<Model>>,
    /// The first of this part's streams has this id.
    pub first: u16,
    /// The model of each of this part's streams.
    pub streams: Vec<usize>,
    /// How many streams all parts have together.
    pub all: usize,
}

/// What a row is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found {
    /// A message: place of its stream in this part, and its number.
    Message(usize, u64),
    /// Of this run, but no message of it: the place of its stream, where that is known, and what is wrong.
    Damaged(Option<usize>, &'static str),
    /// Of another part of this run.
    Elsewhere,
    Foreign,
}

const NO_STREAM: &str = "a source that this run does not have in this table";
pub const NO_NUMBER: &str = "an identity without a number that was sent";

impl Known {
    pub fn new(run: u32, models: Vec<Arc<Model>>, streams: &[Stream], all: usize) -> Self {
        Self {
            run,
            models,
            all,
            first: streams.first().map_or(0, |stream| stream.id),
            streams: streams.iter().map(|stream| stream.model).collect(),
        }
    }

    /// The stream's place in this part.
    fn place(&self, stream: u16) -> Option<usize> {
        let place = usize::from(stream).checked_sub(usize::from(self.first))?;
        (place < self.streams.len()).then_some(place)
    }

    /// `columns` are those of the identity, as text; times are microseconds.
    pub fn find(&self, model: usize, columns: &[Option<&[u8]>], index: &Index) -> Found {
        let Some(table) = &self.models[model].table else { return Found::Foreign };
        match &table.recognize {
            Recognize::Reading(readers) => self.read(model, readers, columns),
            Recognize::Looking => {
                let Some(columns) = columns.iter().copied().collect::<Option<Vec<_>>>() else {
                    return Found::Foreign;
                };
                match index.find(index::fold(model, columns.into_iter())) {
                    Some((stream, seq)) => match self.place(stream) {
                        Some(place) => Found::Message(place, seq),
                        None => Found::Elsewhere,
                    },
                    None => Found::Foreign,
                }
            }
        }
    }

    fn read(&self, model: usize, readers: &[Reader], columns: &[Option<&[u8]>]) -> Found {
        let mut told = Told::default();
        // The columns that say whose a row is come first, wherever they stand: without them it is a stranger's.
        let mut fits = true;
        for (reader, column) in readers.iter().zip(columns) {
            fits &= column.is_some_and(|column| reader.read(self.run, column, &mut told));
        }
        if told.run != Some(self.run) {
            return Found::Foreign;
        }
        let Some(stream) = told.stream else { return Found::Damaged(None, NO_STREAM) };
        match (self.place(stream), told.seq) {
            (Some(place), _) if self.streams[place] != model => Found::Damaged(None, NO_STREAM),
            (Some(place), Some(seq)) if fits => Found::Message(place, seq),
            (Some(place), _) => Found::Damaged(Some(place), NO_NUMBER),
            (None, _) if usize::from(stream) < self.all => Found::Elsewhere,
            (None, _) => Found::Damaged(None, NO_STREAM),
        }
    }

    /// The message that a JSON document is, by the members that hold the identity's draws. A list is searched.
    pub fn of_json(&self, model: usize, json: &Json, index: &Index) -> Vec<(usize, u64)> {
        if let Some(items) = json.as_array() {
            return items.iter().flat_map(|item| self.of_json(model, item, index)).collect();
        }
        let Some(table) = &self.models[model].table else { return Vec::new() };
        let columns: Vec<Option<Vec<u8>>> = table
            .identity_columns()
            .map(|column| {
                let member = member_of(&self.models[model], column.slot)?;
                as_text(find_member(json, &member)?)
            })
            .collect();
        let columns: Vec<Option<&[u8]>> = columns.iter().map(Option::as_deref).collect();
        match self.find(model, &columns, index) {
            Found::Message(place, seq) => vec![(place, seq)],
            _ => Vec::new(),
        }
    }
}

/// The identity of a message, folded.
pub fn identity(draft: &mut Draft, number: usize, model: &Model, needed: &[bool], id: Identity) -> u64 {
    draft.fill_only(&model.program, id, needed);
    let table = model.table.as_ref().expect("only what arrives in a table is looked up");
    let keys: Vec<Vec<u8>> = table
        .identity_columns()
        .map(|column| {
            let mut key = Vec::new();
            write_key(draft, draft.value(column.slot), &mut key);
            key
        })
        .collect();
    index::fold(number, keys.iter().map(Vec::as_slice))
}

/// The name of the message's member that holds a draw, or holds the same kind of thing.
fn member_of(model: &Model, slot: usize) -> Option<String> {
    let steps = &model.program.steps;
    let same = |other: usize| {
        other == slot || matches!((&steps[other].kind, &steps[slot].kind), (Kind::Due(..), Kind::Due(..)))
    };
    named_slots(&model.message).into_iter().find(|(_, other)| same(*other)).map(|(name, _)| name)
}

/// The places of a message that stand right behind a member's name.
pub fn named_slots(message: &Pattern) -> Vec<(String, usize)> {
    let pairs = message.parts.windows(2).filter_map(|pair| match pair {
        [Part::Literal(before), Part::Value { slot, .. }] => {
            let before = std::str::from_utf8(before).ok()?.trim_end().strip_suffix(':')?.trim_end();
            let name = before.strip_suffix('"')?;
            Some((name.rsplit('"').next()?.to_owned(), *slot))
        }
        _ => None,
    });
    pairs.collect()
}

fn find_member<'a>(json: &'a Json, name: &str) -> Option<&'a Json> {
    let object = json.as_object()?;
    object.get(name).or_else(|| object.values().find_map(|value| find_member(value, name)))
}

fn as_text(json: &Json) -> Option<Vec<u8>> {
    match json {
        Json::String(text) => Some(match text.parse::<jiff::Timestamp>() {
            Ok(time) => time.as_microsecond().to_string().into_bytes(),
            Err(_) => text.clone().into_bytes(),
        }),
        Json::Number(number) => Some(number.to_string().into_bytes()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::model::Scenario;

    fn known() -> Known {
        let models = Scenario::collectors().mix(Some(&"metric".parse().unwrap())).unwrap().models();
        let streams = [4, 5].map(|id| Stream { id, model: 0, partition: 0 });
        Known::new(7, models, &streams, 6)
    }

    #[test]
    fn a_row_says_which_message_it_is() {
        let (known, index) = (known(), Index::default());
        let rows = [
            ("lt-00000007-004", "/a/12", Found::Message(0, 12)),
            ("lt-00000007-005", "/a/12", Found::Message(1, 12)),
            ("lt-00000007-005", "/a/x", Found::Damaged(Some(1), NO_NUMBER)),
            ("lt-00000007-006", "/a/1", Found::Damaged(None, NO_STREAM)),
            ("lt-00000007-003", "/a/1", Found::Elsewhere),
            ("lt-00000008-004", "/a/1", Found::Foreign),
            ("somebody", "/a/1", Found::Foreign),
        ];
        for (source, path, found) in rows {
            let columns = [Some(source.as_bytes()), Some(path.as_bytes())];
            assert_eq!(known.find(0, &columns, &index), found, "{source} {path}");
        }
        assert_eq!(known.find(0, &[None, None], &index), Found::Foreign);
    }

    #[test]
    fn a_message_is_known_by_its_members() {
        let (known, index) = (known(), Index::default());
        let json = |text: &str| serde_json::from_str::<Json>(text).unwrap();
        let good = r#"{"source":"lt-00000007-004","path":"/ams1/rack1/42"}"#;
        assert_eq!(known.of_json(0, &json(good), &index), [(0, 42)]);
        assert_eq!(known.of_json(0, &json(&format!("[{good},{good}]")), &index), [(0, 42), (0, 42)]);
        assert_eq!(known.of_json(0, &json("{}"), &index), []);
        assert_eq!(known.of_json(0, &json("7"), &index), []);
    }

    #[test]
    fn identities_are_looked_up() {
        use crate::message::draw::People;
        use crate::message::keys::{KeySpread, Keys};
        let text = "[draw]\ntag = {keys = 100}\ntime = {due = \"ns\"}\n[[model]]\nname = \"s\"\nmessage = '{\"tag\":${tag},\"at\":{\"time\":${time}}}'\n\
                    [model.table]\nidentity = [\"tag\", \"time\"]\ncolumns = {tag = \"tag\", time = \"time\"}";
        let models = Scenario::parse(text).unwrap().models;
        let streams = [Stream { id: 0, model: 0, partition: 0 }];
        let known = Known::new(7, models.clone(), &streams, 1);
        let names = Arc::new(Vec::new());
        let people = People { keys: Keys::new(1, KeySpread::Uniform), tokens: names.clone(), ids: names };
        let mut draft = Draft::new(1, 7, Arc::new(people));
        let table = models[0].table.as_ref().unwrap();
        let needed = models[0].program.needed(table.identity_columns().map(|column| column.slot));
        let mut index = Index::default();
        for seq in 0..50 {
            let id = Identity { stream: 0, seq, due_us: 1_000_000 + seq as i64 };
            let folded = identity(&mut draft, 0, &models[0], &needed, id);
            index.note(folded, 0, seq);
        }
        let id = Identity { stream: 0, seq: 9, due_us: 1_000_009 };
        draft.fill(&models[0].program, id);
        let mut message = Vec::new();
        draft.write(&models[0].message, &mut message);
        let json: Json = serde_json::from_slice(&message).unwrap();
        assert_eq!(known.of_json(0, &json, &index), [(0, 9)]);
        let tag = json["tag"].to_string();
        let columns = [Some(tag.as_bytes()), Some(b"1000009009".as_slice())];
        assert_eq!(known.find(0, &columns, &index), Found::Message(0, 9));
        assert_eq!(known.find(0, &[columns[0], Some(b"5")], &index), Found::Foreign);
    }
}
