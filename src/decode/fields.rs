//! Where the needed fields of a record stand: one pass over its text, which fills a slot for each wanted path. The rest is
//! skipped without being read as anything.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use super::scan::{NotJson, Scan};
use crate::decode::value::json;
use crate::decode::value::read::Json;
use crate::model::plan::Path;

/// Where a field's raw JSON text stands in the payload. A JSON value is never empty, so empty means absent.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    start: u32,
    end: u32,
    escapes: bool,
}

/// The names that one JSON object is searched for.
#[derive(Default)]
pub(super) struct Level {
    /// Sorted by length, then by name: most keys that nobody wants differ in length already.
    entries: Vec<Entry>,
    /// Which entry was the n-th key of an object last time: producers keep their order.
    usual: [u16; USUAL_KEYS],
    /// Where a key with escapes becomes a plain one.
    scratch: String,
}

const USUAL_KEYS: usize = 32;

struct Entry {
    name: String,
    written: Quoted,
    target: Target,
}

/// A name as JSON nearly always writes it, quotes and colon included.
struct Quoted {
    bytes: Box<[u8]>,
    /// Its first bytes, zeros behind them, and ones in the mask where they stand: compared at once.
    head: u128,
    mask: u128,
}

impl Quoted {
    fn new(name: &str) -> Quoted {
        const HEAD: usize = size_of::<u128>();
        let bytes = format!("{}:", serde_json::Value::from(name)).into_bytes();
        let count = bytes.len().min(HEAD);
        let (mut head, mut mask) = ([0; HEAD], [0; HEAD]);
        head[..count].copy_from_slice(&bytes[..count]);
        mask[..count].fill(0xff);
        let (head, mask) = (u128::from_ne_bytes(head), u128::from_ne_bytes(mask));
        Quoted { bytes: bytes.into(), head, mask }
    }

    /// Passes this name if it stands next.
    #[inline]
    fn is_passed(&self, scan: &mut Scan<'_>) -> bool {
        match scan.rest().first_chunk() {
            Some(head) if (u128::from_ne_bytes(*head) ^ self.head) & self.mask != 0 => false,
            Some(_) if self.bytes.len() <= size_of::<u128>() => {
                scan.at += self.bytes.len();
                true
            }
            _ => scan.skip(&self.bytes),
        }
    }
}

#[derive(Clone, Copy)]
struct Target {
    slot: Option<usize>,
    /// The level that its object is read by.
    child: Option<usize>,
    /// All slots at and below this name; contiguous.
    first_slot: usize,
    end_slot: usize,
}

impl Slot {
    /// A JSON value is never empty, so this is enough.
    pub(super) fn clear(&mut self) {
        self.end = 0;
    }

    pub(super) fn is_filled(self) -> bool {
        self.end > 0
    }

    #[inline]
    pub(super) fn of(self, text: &str) -> Option<Json<'_>> {
        let json = || Json { text: &text[self.start as usize..self.end as usize], escapes: self.escapes };
        (self.end > 0).then(json)
    }
}

/// All wanted paths, before they are laid out as levels and slots.
#[derive(Default)]
pub(super) struct Tree {
    wanted: bool,
    children: BTreeMap<String, Tree>,
}

impl Tree {
    pub(super) fn want(&mut self, path: &Path) {
        let node = path.0.iter().fold(self, |node, name| node.children.entry(name.clone()).or_default());
        node.wanted = true;
    }

    /// Adds this object's level and those below it; slots are numbered depth first, so a subtree's are contiguous.
    pub(super) fn lay_out(self, levels: &mut Vec<Level>, slots: &mut usize) -> usize {
        let index = levels.len();
        levels.push(Level::default());
        let mut entries = Vec::with_capacity(self.children.len());
        for (name, tree) in self.children {
            let first_slot = *slots;
            let slot = tree.wanted.then_some(first_slot);
            *slots += usize::from(tree.wanted);
            let child = (!tree.children.is_empty()).then(|| tree.lay_out(levels, slots));
            entries.push(Entry {
                written: Quoted::new(&name),
                name,
                target: Target { slot, child, first_slot, end_slot: *slots },
            });
        }
        entries.sort_by(|a, b| by_length(a.name.as_bytes(), b.name.as_bytes()));
        levels[index].entries = entries;
        index
    }
}

pub(super) fn slot_of(levels: &[Level], path: &Path) -> usize {
    let mut level = 0;
    let mut slot = None;
    for name in &path.0 {
        let target = levels[level].entries.iter().find(|entry| entry.name == *name).expect("laid out").target;
        slot = target.slot;
        level = target.child.unwrap_or_default();
    }
    slot.expect("a wanted path has a slot")
}

impl Level {
    /// Reads the key that stands next, the one at `position` in its object, with its colon, and finds its entry.
    fn read_key(&mut self, scan: &mut Scan<'_>, position: usize) -> Result<Option<Target>, NotJson> {
        let usual = self.usual.get(position).and_then(|index| self.entries.get(usize::from(*index)));
        if let Some(entry) = usual.filter(|entry| entry.written.is_passed(scan)) {
            return Ok(Some(entry.target));
        }
        let start = scan.at;
        scan.string()?;
        let raw = scan.since(start);
        scan.expect(b':')?;
        // A key with half a surrogate pair is nobody's field.
        let Ok(key) = json::unescape(raw, &mut self.scratch) else { return Ok(None) };
        let found = self.entries.binary_search_by(|entry| by_length(entry.name.as_bytes(), key.as_bytes()));
        let Ok(index) = found else { return Ok(None) };
        if let Some(usual) = self.usual.get_mut(position) {
            *usual = index as u16;
        }
        Ok(Some(self.entries[index].target))
    }
}

fn by_length(a: &[u8], b: &[u8]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

/// Fills the slots of the object that stands next, and of those inside it.
fn read_object(
    scan: &mut Scan<'_>,
    levels: &mut [Level],
    level: usize,
    slots: &mut [Slot],
) -> Result<(), NotJson> {
    scan.expect(b'{')?;
    let mut position = 0;
    while scan.member(position == 0)? {
        let target = levels[level].read_key(scan, position)?;
        position += 1;
        let inner = scan.next() == b'{';
        let Some(target) = target else {
            scan.value()?;
            continue;
        };
        let start = scan.at;
        let escapes = if let Some(child) = target.child {
            // The last of several equal keys wins with all that is in it, as in jsonb.
            slots[target.range()].iter_mut().for_each(Slot::clear);
            if inner {
                read_object(scan, levels, child, slots)?;
                true
            } else {
                scan.value()?
            }
        } else {
            scan.value()?
        };
        if let Some(slot) = target.slot {
            slots[slot] = Slot { start: start as u32, end: scan.at as u32, escapes };
        }
    }
    Ok(())
}

/// Reads a whole text that must be one object.
pub(super) fn read_message(text: &str, levels: &mut [Level], slots: &mut [Slot]) -> Result<(), NotJson> {
    let mut scan = Scan::new(text);
    read_object(&mut scan, levels, 0, slots)?;
    scan.next();
    if scan.at == text.len() { Ok(()) } else { Err(NotJson) }
}

/// Passes a whole text that must be one array.
pub(super) fn read_array(text: &str) -> Result<(), NotJson> {
    let mut scan = Scan::new(text);
    if scan.next() != b'[' {
        return Err(NotJson);
    }
    scan.value()?;
    scan.next();
    if scan.at == text.len() { Ok(()) } else { Err(NotJson) }
}

/// One step through an array.
pub(super) enum Element {
    /// Its slots are filled; this is where it stands.
    Object(Range<usize>),
    Other(Range<usize>),
    End,
}

/// Reads the element that comes next in an array which was passed before; `at` stands where the last one ended, at 0 before
/// the first.
pub(super) fn read_element(
    text: &str,
    at: &mut usize,
    levels: &mut [Level],
    slots: &mut [Slot],
) -> Result<Element, NotJson> {
    let mut scan = Scan::new(text);
    scan.at = *at;
    if scan.next() != if *at == 0 { b'[' } else { b',' } {
        return Ok(Element::End);
    }
    scan.at += 1;
    if scan.next() == b']' {
        return Ok(Element::End);
    }
    read_value(scan, at, levels, slots)
}

impl Target {
    fn range(self) -> Range<usize> {
        self.first_slot..self.end_slot
    }
}

/// Reads the value that comes next in a text of values with nothing but white space between them; `at` stands behind it then.
pub(super) fn read_stretch(
    text: &str,
    at: &mut usize,
    levels: &mut [Level],
    slots: &mut [Slot],
) -> Result<Element, NotJson> {
    let mut scan = Scan::new(text);
    scan.at = *at;
    if scan.next() == 0 && scan.at == text.len() {
        return Ok(Element::End);
    }
    read_value(scan, at, levels, slots)
}

/// Reads the value that stands next, white space before it passed.
fn read_value(
    mut scan: Scan<'_>,
    at: &mut usize,
    levels: &mut [Level],
    slots: &mut [Slot],
) -> Result<Element, NotJson> {
    let start = scan.at;
    let is_object = scan.next() == b'{';
    if is_object {
        read_object(&mut scan, levels, 0, slots)?;
    } else {
        scan.value()?;
    }
    *at = scan.at;
    Ok(if is_object { Element::Object(start..scan.at) } else { Element::Other(start..scan.at) })
}

#[cfg(test)]
mod tests {
    use crate::decode::record::tests::{
        METRIC, NULL, Users, decoder, field, metric, one, parsed, record, table,
    };
    use crate::decode::reject::{Reason, excerpt};
    use crate::model::types::Type;

    #[test]
    fn fields_that_nobody_uses_may_be_odd() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let odd = [
            r#""a":"\ud800""#,
            r#""a":"\u0000""#,
            r#""a":1e999999"#,
            r#""":1"#,
            r#""\ud800":1"#,
            r#""__proto__":{}"#,
            r#""Value":"x""#,
            r#""value ":"x""#,
            "\"\u{76}a\u{301}lue\":1",
            &format!("\"{}\":1", "k".repeat(1 << 20)),
            &format!("\"deep\":{deep}"),
            &(0..100_000).map(|n| format!("\"k{n}\":{n}")).collect::<Vec<_>>().join(","),
        ]
        .map(|member| METRIC.replacen('{', &format!("{{{member},"), 1));
        let (mut decoder, mut expected) = (metric(), Vec::new());
        let usual = record(METRIC.as_bytes());
        let read = parsed(&mut decoder, &usual);
        decoder.encode(0, read, &Users, &mut expected).unwrap();
        for message in odd {
            let (record, mut out) = (record(message.as_bytes()), Vec::new());
            let read = parsed(&mut decoder, &record);
            decoder.encode(0, read, &Users, &mut out).unwrap();
            assert_eq!(out, expected, "{}", excerpt(&message));
        }
    }

    #[test]
    fn fields_are_found_wherever_they_stand() {
        fn check(columns: &str, message: &str, expected: Option<&str>) {
            let expected = expected.map_or(NULL.to_vec(), |text| field(text.as_bytes()));
            assert_eq!(
                one(Type::Text, false, columns, &record(message.as_bytes())),
                Ok(expected),
                "{message}"
            );
        }
        fn absent(columns: &str, message: &str) {
            let found = one(Type::Text, false, columns, &record(message.as_bytes()));
            assert_eq!(found, Err(Reason::NothingTaken), "{message}");
        }
        absent("", "{}");
        absent("", r#"{"C":1}"#);
        check("", r#"{"c":null}"#, None);
        check("", r#"{"c":1,"c":2}"#, Some("2"));
        check("", r#"{"c":1,"c":null}"#, None);
        check("", r#"{"\u0063":"x"}"#, Some("x"));
        check("", "\r\n\t {\n\"c\" :\t\"x\" } \n", Some("x"));
        let nested = r#"columns.c = { field = "a.b.c" }"#;
        check(nested, r#"{"a":{"b":{"c":"x"}}}"#, Some("x"));
        check(nested, r#"{ "a" : { "z":[{"c":2}], "b" : { "c" : 7 } } }"#, Some("7"));
        absent(nested, r#"{"a":{"b":{"c":"x"}},"a":{}}"#);
        check(nested, r#"{"a":{"b":{"c":"x"}},"a":{"b":{"c":"y"}}}"#, Some("y"));
        absent(nested, r#"{"a":{"b":[{"c":"x"}]}}"#);
        absent(nested, r#"{"a":{"b":1e999}}"#);
        absent(nested, r#"{"a":"b","a.b.c":"x","c":"x"}"#);
        let long = r#"columns.c = { field = "a_name_of_many_letters" }"#;
        check(long, r#"{"a_name_of_many_letters":"x"}"#, Some("x"));
        check(long, r#"{"a_name_of_many_lettres":"y","a_name_of_many_letters" : 7}"#, Some("7"));
        absent(long, r#"{"a_name_of_many":1}"#);
        check(r#"columns.c = { field = ["a.b"] }"#, r#"{"a":{"b":1},"a.b":2}"#, Some("2"));
    }

    #[test]
    fn an_object_and_a_field_in_it_can_both_be_wanted() {
        let columns = [("doc", Type::Json, true), ("x", Type::Int4, true)];
        let model = "[[model]]\ntopic = \"t\"\ntable = \"t\"\ncolumns.x = { field = \"doc.x\" }";
        let mut decoder = decoder(model, vec![table(1, "t", &columns)]);
        let (record, mut out) = (record(br#"{"doc":{"x":1,"x":2}}"#), Vec::new());
        let message = parsed(&mut decoder, &record);
        decoder.encode(0, message, &Users, &mut out).unwrap();
        let expected = [&[0, 2][..], &field(br#"{"x":1,"x":2}"#), &field(&2i32.to_be_bytes())];
        assert_eq!(out, expected.concat());
    }

    #[test]
    fn keys_in_another_order_every_time() {
        let mut decoder = metric();
        let members: Vec<_> = METRIC.trim_matches(['{', '}']).split(',').collect();
        let mut rows = Vec::new();
        for turn in 0..20 {
            let mut turned = members.clone();
            turned.rotate_left(turn % members.len());
            if turn % 2 == 1 {
                turned.reverse();
            }
            let message = format!("{{{}}}", turned.join(","));
            let mut out = Vec::new();
            let record = record(message.as_bytes());
            let message = parsed(&mut decoder, &record);
            decoder.encode(0, message, &Users, &mut out).unwrap();
            rows.push(out);
        }
        rows.dedup();
        assert_eq!(rows.len(), 1);
    }
}
