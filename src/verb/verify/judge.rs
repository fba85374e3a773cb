//! What `rowmill verify` decides, as plain functions of what was seen: no server is spoken to here.
//!
//! Sets of offsets are first compared as sums, bucket by bucket: the rows of a bucket must weigh what its records weigh
//! without those that became dead letters. Only buckets that differ are looked at offset by offset.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Offsets of one bucket. A bucket's single offsets fit into memory, and a few thousand buckets do, too.
pub(super) const WIDTH: i64 = 100_000;

/// Offsets that are shown of each class.
const EXAMPLES_MAX: usize = 10;

/// A multiset of offsets of one bucket: how many, and the sums of their first three powers. Two different ones agree only
/// if they differ in four offsets or more on each side, and these in a very unlikely pattern.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) count: i64,
    pub(super) powers: [i128; 3],
}

impl Sum {
    /// Adds an offset, or takes it away with -1.
    fn weigh(&mut self, offset: i64, times: i64) {
        let place = i128::from(offset % WIDTH);
        let times_wide = i128::from(times);
        self.count += times;
        self.powers[0] += times_wide * place;
        self.powers[1] += times_wide * place * place;
        self.powers[2] += times_wide * place * place * place;
    }

    pub(super) fn add(&mut self, other: Sum) {
        self.count += other.count;
        self.powers.iter_mut().zip(other.powers).for_each(|(mine, more)| *mine += more);
    }
}

/// How many there are of a bad class, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) count: i64,
    pub(super) first: Vec<i64>,
}

impl Class {
    fn note(&mut self, offset: i64, count: i64) {
        self.count += count;
        if count > 0 && self.first.len() < EXAMPLES_MAX {
            self.first.push(offset);
        }
    }

    /// The same loss may be seen in two ways; it counts once.
    fn at_least(&mut self, count: i64) {
        self.count = self.count.max(count);
    }
}

/// One ledger row, and what was found of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Lane {
    pub(super) target: String,
    pub(super) start: i64,
    pub(super) next: i64,
    pub(super) rows: i64,
    pub(super) dead: i64,
    pub(super) skipped: i64,
    pub(super) other: i64,
    pub(super) holes: i64,
    /// Ranges that a person accepted as lost.
    pub(super) gaps: Vec<Range<i64>>,
    /// A record without a value deletes a row there, which counts as one that is stored; and so does one whose value has no message.
    pub(super) null_deletes: bool,
    pub(super) empty_deletes: bool,
    /// Its rows are kept for a time only, so that a record may be skipped for its age.
    pub(super) expires: bool,
    /// Its rows name the record that they come from.
    pub(super) traced: bool,
    /// Rows of a traced table, all of them.
    pub(super) stored: i64,
    /// Those of them that are duplicates or phantoms.
    pub(super) surplus: i64,
    /// Dead letters, each offset once.
    pub(super) letters: i64,
    /// Rows that a retried dead letter became.
    pub(super) retried: i64,
    /// Records that Kafka serves.
    pub(super) served: i64,
    /// Those of them without a value and without a dead letter.
    pub(super) empty: Class,
    pub(super) lost: Class,
    pub(super) duplicated: Class,
    pub(super) phantom: Class,
    /// Dead letters whose bytes are not the record's.
    pub(super) altered: Class,
}

impl Lane {
    fn is_within(&self, offset: i64) -> bool {
        (self.start..self.next).contains(&offset) && !self.gaps.iter().any(|gap| gap.contains(&offset))
    }

    fn counted(&self) -> i64 {
        self.rows + self.dead + self.skipped + self.other
    }
}

/// One partition with all tables that it feeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Partition {
    pub(super) topic: String,
    pub(super) id: i32,
    pub(super) lanes: Vec<Lane>,
    /// Kafka has no record below any more.
    pub(super) checked_from: i64,
    /// Compaction may have taken any record away.
    pub(super) compacted: bool,
    /// Records that have an outcome in none of several tables.
    pub(super) lost: Class,
    /// Sentences about what contradicts itself.
    pub(super) broken: Vec<String>,
    pub(super) expected: BTreeMap<i64, Sum>,
}

/// What Kafka has at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Served<'a> {
    No,
    Null,
    /// A value without a message in it: an empty list, or an envelope around nothing.
    Empty(&'a [u8]),
    Value(&'a [u8]),
    /// A record that is too large to be held: the beginning of its value, and how many bytes it has in all.
    Cut {
        value: Option<&'a [u8]>,
        bytes: i64,
    },
}

impl Served<'_> {
    /// It has an outcome that is a row or a letter.
    pub(super) fn is_record(self) -> bool {
        matches!(self, Served::Value(_) | Served::Cut { .. })
    }
}

/// One dead letter.
#[derive(Clone, Debug)]
pub(super) struct Letter {
    pub(super) offset: i64,
    pub(super) lane: usize,
    /// Length and SHA-256 of the value.
    pub(super) value: Option<(i64, Vec<u8>)>,
    /// How many bytes the record has, where the value is only its beginning.
    pub(super) whole_bytes: Option<i64>,
    /// The tables that got its row; none for one that was not retried.
    pub(super) retried_into: Vec<String>,
}

impl Letter {
    pub(super) fn is_outcome(&self) -> bool {
        self.retried_into.is_empty()
    }

    fn holds(&self, served: Served<'_>) -> bool {
        let is_beginning = |bytes: &[u8]| {
            self.value.as_ref().is_some_and(|(length, hash)| {
                let beginning = bytes.get(..*length as usize);
                beginning.is_some_and(|bytes| openssl::sha::sha256(bytes)[..] == hash[..])
            })
        };
        if let (Some(whole), Served::Value(bytes)) = (self.whole_bytes, served) {
            // The bound was lower when it was written.
            return bytes.len() as i64 <= whole && is_beginning(bytes);
        }
        match (served, &self.value) {
            (Served::No, _) => true,
            (Served::Cut { value, bytes }, _) => match self.whole_bytes {
                Some(whole) => whole == bytes && value.map_or(self.value.is_none(), is_beginning),
                // The bound was higher when it was written, and all of it is more than is held now.
                None => self.value.as_ref().is_none_or(|(length, _)| *length <= bytes),
            },
            (Served::Null, value) => value.is_none(),
            (Served::Value(bytes) | Served::Empty(bytes), Some((length, hash))) => {
                bytes.len() as i64 == *length && openssl::sha::sha256(bytes)[..] == hash[..]
            }
            (Served::Value(_) | Served::Empty(_), None) => false,
        }
    }
}

/// Everything that is known of one offset of a bucket that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Kafka serves a record, and whether it has a message.
    pub(super) served: Option<bool>,
    /// Lanes with a dead letter that is the record's outcome.
    pub(super) letters: BTreeSet<usize>,
    /// Rows, by lane.
    pub(super) rows: BTreeMap<usize, i64>,
}

impl Partition {
    /// Everything that the ledger says was read.
    pub(super) fn start(&self) -> i64 {
        self.lanes.iter().map(|l| l.start).min().unwrap_or_default()
    }

    pub(super) fn next(&self) -> i64 {
        self.lanes.iter().map(|l| l.next).max().unwrap_or_default()
    }

    /// Rows and records can be compared one by one.
    pub(super) fn is_traced(&self) -> bool {
        self.lanes.iter().all(|l| l.traced)
    }

    /// Takes in one offset, with all dead letters that name it. Called once an offset, in any order.
    pub(super) fn see(&mut self, offset: i64, served: Served<'_>, letters: &[Letter]) {
        if served != Served::No {
            for lane in self.lanes.iter_mut().filter(|l| l.is_within(offset)) {
                lane.served += 1;
                let is_empty = match served {
                    Served::Null => !lane.null_deletes,
                    Served::Empty(_) => !lane.empty_deletes,
                    _ => false,
                };
                lane.empty.note(offset, i64::from(is_empty && letters.is_empty()));
            }
        }
        let is_record = served.is_record();
        let mut weight = i64::from(is_record && self.lanes.iter().any(|l| l.is_within(offset)));
        let may_be_gone = self.compacted || offset < self.checked_from;
        let mut with_letter = BTreeSet::new();
        for letter in letters {
            let lane = &mut self.lanes[letter.lane];
            if !lane.is_within(offset) || (served == Served::No && !may_be_gone) {
                lane.phantom.note(offset, 1);
                continue;
            }
            lane.altered.note(offset, i64::from(!letter.holds(served)));
            if !with_letter.insert(letter.lane) {
                lane.duplicated.note(offset, 1);
                continue;
            }
            lane.letters += 1;
            weight -= i64::from(is_record && letter.is_outcome());
            let retried = |lane: &&mut Lane| letter.retried_into.contains(&lane.target);
            self.lanes.iter_mut().filter(retried).for_each(|lane| lane.retried += 1);
        }
        if weight != 0 {
            self.expected.entry(offset / WIDTH).or_default().weigh(offset, weight);
        }
    }

    /// The buckets in which the tables' rows are not what Kafka and the dead letters let expect.
    pub(super) fn differing(&self, rows: &BTreeMap<i64, Sum>) -> Vec<i64> {
        let buckets: BTreeSet<i64> = self.expected.keys().chain(rows.keys()).copied().collect();
        let sum = |sums: &BTreeMap<i64, Sum>, bucket: i64| sums.get(&bucket).copied().unwrap_or_default();
        // What Kafka no longer has cannot be compared, but rows below the start are wrong in any case.
        let is_judged =
            |bucket: i64| (bucket + 1) * WIDTH > self.checked_from || bucket * WIDTH < self.start();
        buckets
            .into_iter()
            .filter(|bucket| is_judged(*bucket) && sum(&self.expected, *bucket) != sum(rows, *bucket))
            .collect()
    }

    /// Names what is wrong in a bucket that differs.
    pub(super) fn judge(&mut self, bucket: &BTreeMap<i64, Seen>) {
        let level = self.lanes.iter().map(|l| l.next).min().unwrap_or_default();
        for (offset, seen) in bucket {
            let mut outcomes = 0;
            for (number, lane) in self.lanes.iter_mut().enumerate() {
                let rows = seen.rows.get(&number).copied().unwrap_or_default();
                let letters = i64::from(seen.letters.contains(&number));
                outcomes += rows + letters;
                let is_gone = *offset < self.checked_from || (self.compacted && seen.served.is_none());
                if !lane.is_within(*offset) || (!is_gone && seen.served != Some(true)) {
                    lane.phantom.note(*offset, rows);
                    lane.surplus += rows;
                } else if rows > 0 && rows + letters > 1 {
                    lane.duplicated.note(*offset, rows + letters - 1);
                    lane.surplus += rows + letters - 1;
                }
            }
            // A record above what the slowest table has may still belong to that one.
            let is_due = seen.served == Some(true) && *offset < level;
            if is_due && outcomes == 0 && self.lanes.iter().any(|l| l.is_within(*offset)) {
                match &mut self.lanes[..] {
                    [only] => only.lost.note(*offset, 1),
                    _ => self.lost.note(*offset, 1),
                }
            }
        }
    }

    /// Compares the ledger's counters with everything that was found.
    pub(super) fn conclude(&mut self) {
        let (alone, level) = (self.lanes.len() == 1, self.lanes.iter().all(|l| l.next == self.next()));
        for lane in &mut self.lanes {
            let whole = self.checked_from <= lane.start && !self.compacted;
            // Every record was asked for its outcome: counters can add nothing but contradictions.
            let exact = whole && alone && lane.traced;
            let mut missing = (lane.dead - lane.letters).max(0);
            let mut broken = |words: String| self.broken.push(format!("table {}: {words}", lane.target));
            if lane.next - lane.start != lane.counted() + lane.holes {
                broken(format!(
                    "next_offset - start_offset is {} and the ledger's counters add up to {}",
                    lane.next - lane.start,
                    lane.counted() + lane.holes
                ));
            }
            if lane.letters > lane.dead {
                broken(format!("{} dead letters, of which the ledger counts {}", lane.letters, lane.dead));
            }
            if lane.traced {
                let (found, expected) = (lane.stored - lane.surplus, lane.rows + lane.retried);
                missing += (expected - found).max(0);
                if found > expected {
                    broken(format!(
                        "{found} rows with a place of their own, of which the ledger counts {expected}"
                    ));
                }
            }
            if whole {
                let uncounted = lane.served - lane.counted();
                if uncounted < 0 {
                    broken(format!(
                        "the ledger counts {} records and Kafka serves {}",
                        lane.counted(),
                        lane.served
                    ));
                }
                if !exact {
                    missing = missing.max(uncounted);
                }
                if alone && lane.other > 0 {
                    broken(format!("{} records count as another table's, and there is none", lane.other));
                }
                if lane.expires {
                    // Which of those that are skipped were too old is not known any more.
                } else if lane.skipped > lane.empty.count {
                    let (skipped, empty) = (lane.skipped, lane.empty.count);
                    broken(format!("{skipped} records count as skipped, and {empty} have no message"));
                } else if alone && lane.skipped == 0 {
                    lane.empty.first.iter().for_each(|offset| lane.lost.note(*offset, 1));
                    lane.lost.count += lane.empty.count - lane.empty.first.len() as i64;
                } else if alone || level {
                    let unskipped = lane.empty.count - lane.skipped;
                    if exact { lane.lost.count += unskipped } else { missing = missing.max(unskipped) }
                }
            }
            if !exact {
                lane.lost.at_least(missing);
            } else if missing > 0 && lane.lost.count == 0 {
                broken(format!("the ledger counts {missing} rows or dead letters more than there are"));
            }
        }
    }

    /// Lost, duplicated, phantom and altered, over all tables.
    pub(super) fn totals(&self) -> [i64; 4] {
        let sum = |class: fn(&Lane) -> &Class| self.lanes.iter().map(|l| class(l).count).sum::<i64>();
        [
            sum(|l| &l.lost).max(self.lost.count),
            sum(|l| &l.duplicated),
            sum(|l| &l.phantom),
            sum(|l| &l.altered),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane(range: Range<i64>, rows: i64, dead: i64) -> Lane {
        let holes = range.end - range.start - rows - dead;
        Lane {
            target: "t".into(),
            start: range.start,
            next: range.end,
            rows,
            dead,
            holes,
            traced: true,
            ..Lane::default()
        }
    }

    fn letter(offset: i64) -> Letter {
        let value = Some((1, openssl::sha::sha256(b"v").to_vec()));
        Letter { offset, lane: 0, value, whole_bytes: None, retried_into: Vec::new() }
    }

    /// One table, records at `served`, rows and dead letters where they are given: lost, duplicated, phantom, altered, and
    /// how many contradictions.
    #[track_caller]
    fn check(lane: Lane, served: &[i64], rows: &[i64], letters: &[i64], expected: ([i64; 4], usize)) {
        let mut partition = Partition { checked_from: lane.start, lanes: vec![lane], ..Partition::default() };
        let mut sums: BTreeMap<i64, Sum> = BTreeMap::new();
        let mut seen: BTreeMap<i64, Seen> = BTreeMap::new();
        partition.lanes[0].stored = rows.len() as i64;
        for row in rows {
            sums.entry(row / WIDTH).or_default().weigh(*row, 1);
            *seen.entry(*row).or_default().rows.entry(0).or_default() += 1;
        }
        for offset in served {
            seen.entry(*offset).or_default().served = Some(true);
        }
        for offset in letters {
            seen.entry(*offset).or_default().letters.insert(0);
        }
        for offset in seen.keys() {
            let here: Vec<Letter> = letters.iter().filter(|l| *l == offset).map(|l| letter(*l)).collect();
            let record = if served.contains(offset) { Served::Value(b"v") } else { Served::No };
            partition.see(*offset, record, &here);
        }
        for bucket in partition.differing(&sums) {
            let of_it =
                seen.iter().filter(|(o, _)| *o / WIDTH == bucket).map(|(o, s)| (*o, s.clone())).collect();
            partition.judge(&of_it);
        }
        partition.conclude();
        assert_eq!((partition.totals(), partition.broken.len()), expected, "{:?}", partition.broken);
    }

    #[test]
    fn each_kind_of_damage_is_named_and_counted_once() {
        let four = [0, 1, 2, 3];
        check(lane(0..4, 4, 0), &four, &[0, 1, 2], &[], ([1, 0, 0, 0], 0));
        check(lane(0..4, 3, 1), &four, &[0, 1, 2], &[], ([1, 0, 0, 0], 0));
        check(lane(0..4, 4, 0), &four, &[0, 1, 2, 3, 3], &[], ([0, 1, 0, 0], 0));
        check(lane(0..4, 4, 0), &four, &[0, 1, 2, 2], &[], ([1, 1, 0, 0], 0));
        check(lane(0..4, 4, 0), &four, &[0, 1, 2, 3, 4], &[], ([0, 0, 1, 0], 0));
        check(lane(0..4, 3, 1), &four, &[0, 1, 2, 3], &[3], ([0, 1, 0, 0], 0));
        check(lane(0..4, 3, 1), &four, &[0, 1, 2], &[3, 3], ([0, 1, 0, 0], 0));
        check(lane(0..4, 3, 1), &four, &[0, 1, 2], &[3, 9], ([0, 0, 1, 0], 0));
        // Offset 2 was never a record.
        check(lane(0..4, 3, 0), &[0, 1, 3], &[0, 1, 2, 3], &[], ([0, 0, 1, 0], 0));
        check(lane(0..4, 3, 0), &[0, 1, 3], &[0, 1, 2], &[], ([1, 0, 1, 0], 0));
        // The counters lie.
        check(lane(0..4, 4, 0), &four, &[0, 1, 2], &[3], ([0, 0, 0, 0], 2));
        check(lane(0..4, 3, 0), &four, &four, &[], ([0, 0, 0, 0], 1));
        // All is well, over the edge of a bucket.
        check(lane(0..4, 3, 1), &four, &[0, 1, 2], &[3], ([0, 0, 0, 0], 0));
        check(
            lane(99_999..100_002, 2, 1),
            &[99_999, 100_000, 100_001],
            &[99_999, 100_001],
            &[100_000],
            ([0; 4], 0),
        );
    }

    #[test]
    fn a_retried_letter_is_its_row() {
        let mut partition = Partition { lanes: vec![lane(0..2, 1, 1)], ..Partition::default() };
        let retried = Letter { retried_into: vec!["t".into()], ..letter(1) };
        partition.see(0, Served::Value(b"v"), &[]);
        partition.see(1, Served::Value(b"v"), &[retried]);
        partition.lanes[0].stored = 2;
        let mut rows = Sum::default();
        rows.weigh(0, 1);
        rows.weigh(1, 1);
        assert_eq!(partition.differing(&BTreeMap::from([(0, rows)])), Vec::<i64>::new());
        partition.conclude();
        assert_eq!((partition.totals(), partition.broken.len()), ([0; 4], 0));
    }

    #[test]
    fn bytes_are_compared() {
        let mut partition = Partition { lanes: vec![lane(0..2, 0, 2)], ..Partition::default() };
        partition.see(0, Served::Value(b"v"), &[letter(0)]);
        partition.see(1, Served::Value(b"w"), &[letter(1)]);
        assert_eq!(partition.lanes[0].altered, Class { count: 1, first: vec![1] });
    }

    #[test]
    fn a_tombstone_is_skipped_or_set_aside() {
        #[track_caller]
        fn check(skipped: i64, with_letter: bool, expected: ([i64; 4], usize)) {
            let dead = i64::from(with_letter);
            let one = Lane { skipped, dead, holes: 1 - skipped - dead, ..lane(0..1, 0, 0) };
            let mut partition = Partition { lanes: vec![one], ..Partition::default() };
            let empty = Letter { value: None, ..letter(0) };
            partition.see(0, Served::Null, if with_letter { std::slice::from_ref(&empty) } else { &[] });
            partition.conclude();
            assert_eq!((partition.totals(), partition.broken.len()), expected);
        }
        check(1, false, ([0; 4], 0));
        check(0, true, ([0; 4], 0));
        check(0, false, ([1, 0, 0, 0], 0));
    }

    #[test]
    fn sums_tell_sets_apart() {
        let sum = |offsets: &[i64]| {
            let mut sum = Sum::default();
            offsets.iter().for_each(|o| sum.weigh(*o, 1));
            sum
        };
        assert_eq!(sum(&[1, 2, 3]), sum(&[3, 1, 2]));
        // Equal in number, sum and sum of squares.
        assert_ne!(sum(&[0, 4, 5]), sum(&[1, 2, 6]));
        assert_ne!(sum(&[2, 2]), sum(&[1, 3]));
    }
}
