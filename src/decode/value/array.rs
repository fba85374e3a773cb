//! JSON arrays as PostgreSQL's: the head with its dimensions, and the walk over the elements.

use serde::de::{SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::bounds::finish;
use super::wrong::{Written, Wrong};
use crate::client::binary::{begin, null};
use crate::decode::reject::Reason;

/// Appends the array that `raw`, which begins with `[`, stands for; null elements are NULLs. Arrays in arrays are the further
/// dimensions, up to the server's six, and must be rectangular; a flat one has one dimension. `element` appends one that is
/// not null.
pub(super) fn array(
    raw: &str,
    is_flat: bool,
    element_oid: u32,
    out: &mut Vec<u8>,
    element: &mut dyn FnMut(&str, &mut Vec<u8>) -> Written,
) -> Written {
    let dimensions = if is_flat { 1 } else { leading_brackets(raw) };
    if dimensions > DIMENSIONS_MAX {
        return Err(Wrong::new(Reason::TooDeep, "an array has at most 6 dimensions"));
    }
    let start = begin(out);
    let head = Head { at: out.len() };
    out.extend_from_slice(&(dimensions as i32).to_be_bytes());
    out.extend_from_slice(&0i32.to_be_bytes());
    out.extend_from_slice(&element_oid.to_be_bytes());
    for _ in 0..dimensions {
        out.extend_from_slice(&UNKNOWN.to_be_bytes());
        out.extend_from_slice(&1i32.to_be_bytes());
    }
    let mut walk = Elements { element, head, dimensions, out, error: None };
    walk.dimension(raw, 0)?;
    if head.size(out, 0) == 0 {
        head.make_empty(out);
    }
    finish(start, out)
}

const DIMENSIONS_MAX: usize = 6;

/// The size of a dimension that no element was counted for yet.
const UNKNOWN: i32 = -1;

/// Where the array's head stands: the number of dimensions, whether there are NULLs, the element's oid, and then each
/// dimension's size and lower bound, four bytes each.
#[derive(Clone, Copy)]
struct Head {
    at: usize,
}

impl Head {
    /// The last byte of the flag that says that there are NULLs.
    const NULLS: usize = 7;
    const DIMENSIONS: usize = 12;
    const DIMENSION: usize = 8;

    fn size_place(self, level: usize) -> std::ops::Range<usize> {
        let at = self.at + Head::DIMENSIONS + Head::DIMENSION * level;
        at..at + 4
    }

    fn size(self, out: &[u8], level: usize) -> i32 {
        i32::from_be_bytes(out[self.size_place(level)].try_into().expect("four bytes"))
    }

    fn set_size(self, out: &mut [u8], level: usize, size: i32) {
        out[self.size_place(level)].copy_from_slice(&size.to_be_bytes());
    }

    fn set_nulls(self, out: &mut [u8]) {
        out[self.at + Head::NULLS] = 1;
    }

    /// Empty is a form of its own: no dimensions at all.
    fn make_empty(self, out: &mut Vec<u8>) {
        out.truncate(self.at + Head::DIMENSIONS);
        out[self.at..self.at + 4].fill(0);
    }
}

struct Elements<'a> {
    element: &'a mut dyn FnMut(&str, &mut Vec<u8>) -> Written,
    head: Head,
    dimensions: usize,
    out: &'a mut Vec<u8>,
    /// The first element that was refused; the JSON reader cannot carry it.
    error: Option<Wrong>,
}

impl Elements<'_> {
    fn dimension(&mut self, raw: &str, level: usize) -> Written {
        let mut reader = serde_json::Deserializer::from_str(raw);
        let count = serde::Deserializer::deserialize_seq(&mut reader, ElementVisitor { walk: self, level });
        if let Some(wrong) = self.error.take() {
            return Err(wrong);
        }
        let count = count.map_err(|error| Wrong::new(Reason::InvalidJson, error.to_string()))?;
        let known = self.head.size(self.out, level);
        if known == UNKNOWN && (level == 0 || count > 0) {
            self.head.set_size(self.out, level, count);
        } else if known != count {
            return Err(Wrong::new(
                Reason::WrongType,
                "arrays inside an array must all have the same length, not 0",
            ));
        }
        Ok(())
    }

    fn item(&mut self, raw: &str, level: usize) -> Written {
        if level + 1 < self.dimensions {
            if !raw.starts_with('[') {
                return Err(Wrong::new(Reason::WrongType, "arrays and single values are mixed in one array"));
            }
            return self.dimension(raw, level + 1);
        }
        if raw == "null" {
            self.head.set_nulls(self.out);
            null(self.out);
            return Ok(());
        }
        (self.element)(raw, self.out)
    }
}

struct ElementVisitor<'w, 'a> {
    walk: &'w mut Elements<'a>,
    level: usize,
}

impl<'de> Visitor<'de> for ElementVisitor<'_, '_> {
    type Value = i32;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<i32, A::Error> {
        let mut count = 0;
        while let Some(raw) = items.next_element::<&RawValue>()? {
            if let Err(wrong) = self.walk.item(raw.get(), self.level) {
                self.walk.error = Some(wrong);
                return Err(serde::de::Error::custom("an element was refused"));
            }
            count += 1;
        }
        Ok(count)
    }
}

fn leading_brackets(raw: &str) -> usize {
    raw.bytes().filter(|b| !b.is_ascii_whitespace()).take_while(|b| *b == b'[').count()
}
