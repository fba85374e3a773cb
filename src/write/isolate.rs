//! The search for the records that a store refuses, as a question asked again and again: does this range go in? Pure. A record
//! has one row nearly always; where it has many, they go in or stay out together.

use std::ops::Range;

use crate::base::failure::Refusal;
use crate::promise::batch::TableBatch;

/// The search begins with this many rows at once and doubles while they are good.
const CHUNK_ROWS: usize = 64;

/// Bad rows of one transaction, and chunks of good ones: more than 64 subtransactions slow the whole server.
const BAD_ROWS_MAX: usize = 32;
const GOOD_CHUNKS_MAX: usize = 60;

/// How far a search came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// So many rows are judged: those that are not bad are in.
    pub judged: usize,
    /// Ascending.
    pub bad: Vec<(usize, Refusal)>,
}

/// Sends records `0..rows` in growing chunks, the first after a bad one about as large as the good stretch before it; a row stands for all of its record. `send` takes a range whole, or says what is wrong with it and takes nothing.
/// A row that it names is believed only if the rows before it go in; where it names none, halving finds one. The search ends early
/// where `is_late` says so, but never before a row is judged.
///
/// # Errors
/// The first error of `send`, which is none of a row's.
pub fn isolate<E>(
    rows: usize,
    mut send: impl FnMut(Range<usize>) -> Result<Option<Refusal>, E>,
    mut is_late: impl FnMut() -> bool,
) -> Result<Found, E> {
    let mut found = Found::default();
    let (mut chunk, mut good_chunks, mut after_bad) = (CHUNK_ROWS, 0, 0);
    while found.judged < rows && found.bad.len() < BAD_ROWS_MAX && good_chunks < GOOD_CHUNKS_MAX {
        if found.judged > 0 && is_late() {
            break;
        }
        let at = found.judged;
        let count = chunk.min(rows - at);
        let Some(refusal) = send(at..at + count)? else {
            found.judged += count;
            chunk *= 2;
            good_chunks += 1;
            continue;
        };
        // Where the row is not named, or wrongly, the next chunk is half of this one.
        chunk = (count / 2).max(1);
        let named = if count == 1 { Some(0) } else { refusal.row.filter(|row| *row < count) };
        let Some(good) = named else { continue };
        good_chunks += usize::from(good > 0);
        if good == 0 || send(at..at + good)?.is_none() {
            found.bad.push((at + good, refusal));
            found.judged += good + 1;
            // The next one is about as far away as this one was: where most rows are bad, few go in vain.
            chunk = (2 * (at + good - after_bad)).clamp(1, CHUNK_ROWS);
            after_bad = found.judged;
        }
    }
    Ok(found)
}

/// The rows of records, one record after another: between a store, which counts rows, and the search, which counts records.
pub struct Records(Vec<Range<usize>>);

impl Records {
    /// Of a whole batch.
    pub fn of(batch: &TableBatch) -> Records {
        Records(batch.records())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The rows of some records, which stand together.
    pub fn rows(&self, records: &Range<usize>) -> Range<usize> {
        if records.is_empty() { 0..0 } else { self.0[records.start].start..self.0[records.end - 1].end }
    }

    /// How many rows the first records have.
    pub fn rows_of_first(&self, records: usize) -> usize {
        records.checked_sub(1).map_or(0, |last| self.0[last].end)
    }

    /// A refusal of some rows of `batch` as one of the records that they are of. Where the record has many rows, the sentence
    /// says which.
    pub fn refused(&self, batch: &TableBatch, records: &Range<usize>, mut refusal: Refusal) -> Refusal {
        let rows = self.rows(records);
        let row = refusal.row.map(|row| rows.start + row).filter(|row| rows.contains(row));
        refusal.row = row.map(|row| self.0[records.clone()].partition_point(|record| record.end <= row));
        let only = if records.len() == 1 { batch.rows[rows.start].element } else { None };
        match (row.and_then(|row| batch.rows[row].element), only) {
            (Some(number), _) => refusal.message += &format!(", in element {number} of the list"),
            (None, Some(_)) => refusal.message += &format!(", in one of the {} rows of the list", rows.len()),
            (None, None) => {}
        }
        refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a store names the row that it refuses.
    #[derive(Clone, Copy, Debug)]
    enum Names {
        Right,
        /// A later row, as a trigger's own line number might be.
        Wrong,
        /// A row that was not sent.
        Beyond,
        Not,
    }

    const NAMES: [Names; 4] = [Names::Right, Names::Wrong, Names::Beyond, Names::Not];

    /// Runs the search as often as it takes, as a writer does; every refusal and how often rows were sent.
    fn search(rows: usize, bad: &[usize], names: Names, is_late: bool) -> (Vec<usize>, usize) {
        let (mut found, mut stored, mut sent, mut from) = (Vec::new(), Vec::new(), 0, 0);
        while from < rows {
            let result = isolate(
                rows - from,
                |range| {
                    sent += range.len();
                    let range = from + range.start..from + range.end;
                    let Some(first) = bad.iter().find(|row| range.contains(row)) else {
                        stored.extend(range);
                        return Ok::<_, ()>(None);
                    };
                    let row = match names {
                        Names::Right => Some(first - range.start),
                        Names::Wrong => Some(range.len() - 1),
                        Names::Beyond => Some(range.len()),
                        Names::Not => None,
                    };
                    Ok(Some(Refusal { row, code: "x".into(), ..Refusal::default() }))
                },
                || is_late,
            )
            .expect("it never fails");
            assert!(result.judged > 0, "a search goes on");
            assert!(result.bad.len() <= BAD_ROWS_MAX);
            found.extend(result.bad.iter().map(|(row, _)| from + row));
            from += result.judged;
        }
        let good: Vec<usize> = (0..rows).filter(|row| !found.contains(row)).collect();
        assert_eq!(stored, good, "each row that is not bad is stored once, in order");
        (found, sent)
    }

    #[test]
    fn exactly_the_bad_rows_are_found() {
        #[track_caller]
        fn check(rows: usize, bad: impl IntoIterator<Item = usize>) {
            let bad: Vec<usize> = bad.into_iter().collect();
            for names in NAMES {
                for is_late in [false, true] {
                    let (found, _) = search(rows, &bad, names, is_late);
                    assert_eq!(found, bad, "{rows} rows, {names:?}");
                }
            }
        }
        check(0, []);
        check(1, []);
        check(1, [0]);
        check(1000, []);
        check(1000, [0]);
        check(1000, [999]);
        check(1000, [64]);
        check(1000, [0, 999]);
        check(1000, [500, 501, 502]);
        check(300, 0..300);
        check(2000, (0..2000).step_by(50));
        check(200, 100..133);
    }

    #[test]
    fn a_refused_row_is_its_records() {
        use crate::promise::batch::{Row, Shape};
        let row = |element| Row { end: 0, record: 0, element, deletes: false, shape: Shape::WHOLE };
        let mut batch = TableBatch::new(0, 1);
        batch.rows = vec![row(None), row(Some(0)), row(Some(1)), row(Some(4)), row(None)];
        let records = Records(vec![0..1, 1..4, 4..5]);
        assert_eq!((records.rows(&(1..3)), records.rows(&(0..0)), records.len()), (1..5, 0..0, 3));
        assert_eq!([0, 1, 2, 3].map(|first| records.rows_of_first(first)), [0, 1, 4, 5]);
        let check = |range: Range<usize>, row: Option<usize>, expected: (Option<usize>, &str)| {
            let refusal = Refusal { row, message: "bad".into(), ..Refusal::default() };
            let found = records.refused(&batch, &range, refusal);
            assert_eq!((found.row, found.message.as_str()), expected, "{range:?}, {row:?}");
        };
        check(0..3, Some(0), (Some(0), "bad"));
        check(0..3, Some(3), (Some(1), "bad, in element 4 of the list"));
        check(1..3, Some(0), (Some(0), "bad, in element 0 of the list"));
        check(1..3, Some(3), (Some(1), "bad"));
        check(1..2, None, (None, "bad, in one of the 3 rows of the list"));
        check(0..3, Some(5), (None, "bad"));
        check(0..3, None, (None, "bad"));
        check(2..3, None, (None, "bad"));
    }

    #[test]
    fn few_bad_rows_cost_few_rows_sent_again() {
        let (_, sent) = search(16_000, &[8_000], Names::Right, false);
        assert!(sent <= 16_000 * 2, "{sent}");
        let (_, sent) = search(16_000, &(0..16_000).step_by(20).collect::<Vec<_>>(), Names::Right, false);
        assert!(sent <= 16_000 * 5, "{sent}");
    }

    /// Where the server never says which row it is, and where it does.
    #[test]
    fn many_bad_rows_cost_few_rows_sent_again() {
        for (period, most) in [(1, 5), (2, 5), (10, 7), (20, 7)] {
            let bad: Vec<usize> = (0..4000).step_by(period).collect();
            for names in [Names::Not, Names::Right] {
                let (found, sent) = search(4000, &bad, names, false);
                assert_eq!(found, bad);
                assert!(sent <= 4000 * most, "{period}, {names:?}: {sent}");
            }
        }
    }

    #[test]
    fn a_transaction_holds_few_subtransactions() {
        #[track_caller]
        fn check(is_bad: impl Fn(usize) -> bool, bad: usize) {
            let mut good_chunks = 0;
            let found = isolate(
                100_000,
                |mut range| {
                    let Some(row) = range.position(&is_bad) else {
                        good_chunks += 1;
                        return Ok::<_, ()>(None);
                    };
                    Ok(Some(Refusal { row: Some(row), code: "x".into(), ..Refusal::default() }))
                },
                || false,
            );
            assert_eq!(found.map(|f| f.bad.len()), Ok(bad));
            assert!(good_chunks <= GOOD_CHUNKS_MAX, "{good_chunks}");
        }
        check(|_| false, 0);
        check(|_| true, BAD_ROWS_MAX);
        // Each bad row costs two good chunks: one before it, and what of its own chunk stands before it.
        check(|row| row % 100 == 99, GOOD_CHUNKS_MAX / 2);
    }
}
