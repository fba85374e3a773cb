//! A stream is a source with its own sequence of messages. Its name and a message's number travel in the user's own columns,
//! `source` and `path`, so that a row read back says which message it was.

/// One collector: a source with its own sequence of messages, all in one partition, because order is promised only there.
#[derive(Clone, Debug)]
pub struct Stream {
    pub id: u16,
    /// Index into the mix.
    pub model: usize,
    pub partition: i32,
}

/// The streams of all threads: each thread has, of each model, as many as it takes to reach all partitions.
pub fn streams(threads: usize, partitions: &[i32]) -> Vec<Vec<Stream>> {
    let mut next = 0;
    let mut of_thread = |thread: usize| {
        let mut streams = Vec::new();
        for (model, &partitions) in partitions.iter().enumerate() {
            let share = (partitions as usize).div_ceil(threads);
            for n in 0..share {
                let partition = ((thread + n * threads) % partitions as usize) as i32;
                streams.push(Stream { id: next, model, partition });
                next += 1;
            }
        }
        streams
    };
    (0..threads).map(&mut of_thread).collect()
}

/// A source's three hexadecimal digits end here.
pub const STREAMS_MAX: usize = 4096;

/// The streams' sources: fixed width, so that no source is the beginning of another.
pub fn source(run: u32, stream: u16) -> String {
    format!("{}{stream:03x}", source_prefix(run))
}

pub fn source_prefix(run: u32) -> String {
    format!("lt-{run:08x}-")
}

/// (run, stream) of a source that some run of this program wrote.
pub fn parse_source(source: &[u8]) -> Option<(u32, u16)> {
    let text = std::str::from_utf8(source).ok()?.strip_prefix("lt-")?;
    let (run, stream) = text.split_once('-')?;
    if run.len() != 8 || stream.len() != 3 {
        return None;
    }
    Some((u32::from_str_radix(run, 16).ok()?, u16::from_str_radix(stream, 16).ok()?))
}

/// The sequence number at the end of a path.
pub fn parse_seq(path: &[u8]) -> Option<u64> {
    let digits = path.rsplit(|b| *b == b'/').next()?;
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |n, d| n * 10 + u64::from(d - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_reach_every_partition_and_stay_in_one() {
        for (threads, partitions) in [(1, 1), (1, 6), (2, 3), (8, 4), (8, 16), (3, 7)] {
            let all: Vec<Stream> = streams(threads, &[partitions, 1]).concat();
            let mut reached: Vec<i32> = all.iter().filter(|s| s.model == 0).map(|s| s.partition).collect();
            reached.sort_unstable();
            reached.dedup();
            assert_eq!(reached, (0..partitions).collect::<Vec<_>>(), "{threads} threads");
            let ids: Vec<u16> = all.iter().map(|s| s.id).collect();
            assert_eq!(ids, (0..all.len() as u16).collect::<Vec<_>>());
        }
    }

    #[test]
    fn sources_are_read_back() {
        assert_eq!(parse_source(source(0xdead_beef, 0xfff).as_bytes()), Some((0xdead_beef, 0xfff)));
        for text in ["", "lt-", "lt-1-1", "lt-deadbeef-ffff", "xx-deadbeef-fff", "lt-deadbeeg-fff"] {
            assert_eq!(parse_source(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn sequence_numbers_are_read_back() {
        for (path, seq) in [
            ("/a/12", Some(12)),
            ("7", Some(7)),
            ("/a/", None),
            ("/a/x1", None),
            ("", None),
            ("/99999999999999999999", None),
        ] {
            assert_eq!(parse_seq(path.as_bytes()), seq, "{path}");
        }
    }
}
