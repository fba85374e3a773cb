//! Messages by their identity, for tables whose columns do not tell run, stream and number: the identities of all messages,
//! folded to 64 bits each, and when each was due. Some 40 bytes a message, and only where they are needed.

use std::collections::HashMap;

use crate::base::hash::mix;

#[derive(Debug, Default)]
pub struct Index {
    messages: HashMap<u64, (u16, u32)>,
    /// By stream id and number, in microseconds since 1970 UTC.
    dues: Vec<Vec<i64>>,
    /// Messages whose identity another has, too: their rows cannot be told apart.
    pub alike: u64,
}

impl Index {
    /// Messages come in the order of their stream.
    pub fn note_due(&mut self, stream: u16, seq: u64, due_us: i64) {
        let stream = usize::from(stream);
        if stream >= self.dues.len() {
            self.dues.resize(stream + 1, Vec::new());
        }
        debug_assert_eq!(self.dues[stream].len() as u64, seq);
        self.dues[stream].push(due_us);
    }

    pub fn note(&mut self, identity: u64, stream: u16, seq: u64) {
        if self.messages.insert(identity, (stream, seq as u32)).is_some() {
            self.alike += 1;
        }
    }

    pub fn find(&self, identity: u64) -> Option<(u16, u64)> {
        self.messages.get(&identity).map(|(stream, seq)| (*stream, u64::from(*seq)))
    }

    pub fn due_us(&self, stream: u16, seq: u64) -> Option<i64> {
        self.dues.get(usize::from(stream))?.get(usize::try_from(seq).ok()?).copied()
    }

    /// How many messages of a stream are known.
    pub fn count(&self, stream: u16) -> u64 {
        self.dues.get(usize::from(stream)).map_or(0, |dues| dues.len() as u64)
    }
}

/// The columns of an identity as one number; models have each their own.
pub fn fold<'a>(model: usize, columns: impl Iterator<Item = &'a [u8]>) -> u64 {
    columns.fold(mix(model as u64 + 1), |hash, column| {
        let words = column.chunks(8).fold(hash, |hash, word| {
            let number = word.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
            mix(hash ^ number)
        });
        // The length too: "a" and "b" are not "ab" and "".
        mix(words ^ column.len() as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(columns: &[&str]) -> u64 {
        fold(0, columns.iter().map(|column| column.as_bytes()))
    }

    #[test]
    fn identities_differ() {
        let all =
            [&["a", "b"][..], &["ab", ""], &["", "ab"], &["b", "a"], &["12345678", "9"], &["1234567", "89"]];
        let mut folds: Vec<u64> = all.iter().map(|columns| folded(columns)).collect();
        folds.push(fold(1, [b"a".as_slice(), b"b"].into_iter()));
        folds.sort_unstable();
        folds.dedup();
        assert_eq!(folds.len(), all.len() + 1);
    }

    #[test]
    fn messages_are_found_again() {
        let mut index = Index::default();
        for seq in 0..3 {
            index.note_due(2, seq, 100 + seq as i64);
            index.note(folded(&["x", &seq.to_string()]), 2, seq);
        }
        assert_eq!(index.find(folded(&["x", "1"])), Some((2, 1)));
        assert_eq!(index.find(folded(&["x", "7"])), None);
        assert_eq!((index.due_us(2, 2), index.due_us(2, 3), index.due_us(0, 0)), (Some(102), None, None));
        index.note(folded(&["x", "1"]), 2, 2);
        assert_eq!((index.alike, index.count(2)), (1, 3));
    }
}
