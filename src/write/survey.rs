//! Whose fault it is that a store refuses rows: a record's or the table's. By evidence and not by the error: a row that is
//! refused while another goes in is at fault itself; where so many are refused for one reason that no producer's mistake
//! explains it, and none goes in, the table is. Pure.

use crate::base::failure::Refusal;
use crate::base::hash;

/// So many rows that are refused for one reason, and none between them that goes in, speak against the table. A producer's
/// burst of bad records is shorter as a rule, and it takes one good record to end the suspicion.
pub const ENOUGH: usize = 50;

/// Which of `rows` are asked alone, one after another until one goes in: the last, then one somewhere in each of as many equal
/// parts. The last came last, so it tells first that the table is mended, or that a producer is. A fixed distance would ask
/// only bad ones where every second is bad.
pub fn sample(rows: usize) -> impl Iterator<Item = usize> {
    let asked = rows.min(ENOUGH);
    (0..asked).map(move |number| {
        let (from, to) = (number * rows / asked, (number + 1) * rows / asked);
        let within = if number == 0 { 0 } else { hash::of(&number.to_string()) as usize % (to - from) };
        rows - 1 - (from + within)
    })
}

/// Refusals for one reason, with no row between them that went in.
#[derive(Clone, Debug, Default)]
pub struct Streak {
    first: Option<Refusal>,
    /// True while all of them had the same words, which then say nothing of a single record.
    is_same_words: bool,
    count: usize,
}

impl Streak {
    pub fn add(&mut self, refusal: &Refusal) {
        match &self.first {
            Some(first) if first.kind == refusal.kind => {
                self.is_same_words &= first.words == refusal.words;
                self.count += 1;
            }
            _ => *self = Streak { first: Some(refusal.clone()), is_same_words: true, count: 1 },
        }
    }

    /// A row went in.
    pub fn end(&mut self) {
        *self = Streak::default();
    }

    /// Why the table is at fault, if it is; without anything that a record holds.
    pub fn against_the_table(&self) -> Option<String> {
        let first = self.first.as_ref().filter(|_| self.count >= ENOUGH)?;
        let words = if self.is_same_words { &first.words } else { &first.kind };
        Some(format!("it refused {} records in a row, and took none between them: {words}", self.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_row_is_asked_first_and_no_row_twice() {
        for rows in [0, 1, 2, 49, 50, 51, 99, 1000, 16_001] {
            let asked: Vec<usize> = sample(rows).collect();
            assert_eq!(asked.len(), rows.min(ENOUGH));
            assert_eq!(asked.first().copied(), rows.checked_sub(1));
            assert!(asked.windows(2).all(|pair| pair[0] > pair[1]), "{asked:?}");
        }
        for period in 2..10 {
            let rests: std::collections::BTreeSet<usize> = sample(1200).map(|row| row % period).collect();
            assert_eq!(rests.len(), period, "rows that are bad by turns are not all that is asked");
        }
    }

    #[test]
    fn many_refusals_for_one_reason_speak_against_the_table() {
        fn refusal(kind: &str, words: &str) -> Refusal {
            Refusal { kind: kind.into(), words: words.into(), ..Refusal::default() }
        }
        #[track_caller]
        fn check(refusals: &[(&str, &str, usize)], expected: Option<&str>) {
            let mut streak = Streak::default();
            for (kind, words, count) in refusals {
                (0..*count).for_each(|_| streak.add(&refusal(kind, words)));
            }
            let found = streak.against_the_table();
            let told = found.as_deref().map(|text| text.rsplit(": ").next().expect("words"));
            assert_eq!(told, expected);
            streak.end();
            assert_eq!(streak.against_the_table(), None);
        }
        check(&[], None);
        check(&[("a", "full", ENOUGH - 1)], None);
        check(&[("a", "full", ENOUGH)], Some("full"));
        // Words that differ may quote what the records hold.
        check(&[("a", "7 is bad", 1), ("a", "8 is bad", ENOUGH)], Some("a"));
        // Several reasons are several bad records.
        check(&[("a", "x", ENOUGH - 1), ("b", "y", ENOUGH - 1)], None);
        check(&[("a", "x", 1), ("b", "y", 1), ("a", "x", ENOUGH - 1)], None);
    }
}
