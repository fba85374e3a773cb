//! The search for the rows that a store refuses, as a question asked again and again: does this range go in? Pure.

use std::ops::Range;

use crate::base::failure::Refusal;

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

/// Sends rows `0..rows` in growing chunks. `send` takes a range whole, or says what is wrong with it and takes nothing.
/// A row that it names is believed only if the rows before it go in; where it names none, halving finds one.
///
/// # Errors
/// The first error of `send`, which is none of a row's.
pub fn isolate<E>(
    rows: usize,
    mut send: impl FnMut(Range<usize>) -> Result<Option<Refusal>, E>,
) -> Result<Found, E> {
    let mut found = Found::default();
    let (mut chunk, mut good_chunks) = (CHUNK_ROWS, 0);
    while found.judged < rows && found.bad.len() < BAD_ROWS_MAX && good_chunks < GOOD_CHUNKS_MAX {
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
            chunk = CHUNK_ROWS;
        }
    }
    Ok(found)
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
    fn search(rows: usize, bad: &[usize], names: Names) -> (Vec<usize>, usize) {
        let (mut found, mut stored, mut sent, mut from) = (Vec::new(), Vec::new(), 0, 0);
        while from < rows {
            let result = isolate(rows - from, |range| {
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
            })
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
                let (found, _) = search(rows, &bad, names);
                assert_eq!(found, bad, "{rows} rows, {names:?}");
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
    fn few_bad_rows_cost_few_rows_sent_again() {
        let (_, sent) = search(16_000, &[8_000], Names::Right);
        assert!(sent <= 16_000 * 2, "{sent}");
        let (_, sent) = search(16_000, &(0..16_000).step_by(20).collect::<Vec<_>>(), Names::Right);
        assert!(sent <= 16_000 * 5, "{sent}");
    }

    #[test]
    fn a_transaction_holds_few_subtransactions() {
        #[track_caller]
        fn check(is_bad: impl Fn(usize) -> bool, bad: usize) {
            let mut good_chunks = 0;
            let found = isolate(100_000, |mut range| {
                let Some(row) = range.position(&is_bad) else {
                    good_chunks += 1;
                    return Ok::<_, ()>(None);
                };
                Ok(Some(Refusal { row: Some(row), code: "x".into(), ..Refusal::default() }))
            });
            assert_eq!(found.map(|f| f.bad.len()), Ok(bad));
            assert!(good_chunks <= GOOD_CHUNKS_MAX, "{good_chunks}");
        }
        check(|_| false, 0);
        check(|_| true, BAD_ROWS_MAX);
        // Each bad row costs two good chunks: one before it, and what of its own chunk stands before it.
        check(|row| row % 100 == 99, GOOD_CHUNKS_MAX / 2);
    }
}
