//! A stream is a source with its own sequence of messages. Run, stream and a message's number identify it; how they travel in
//! the user's own columns is the scenario's choice.

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

/// A stream's three hexadecimal digits end here.
pub const STREAMS_MAX: usize = 4096;

/// A stream's name in reports; the collectors carry it as their source.
pub fn name(run: u32, stream: u16) -> String {
    format!("lt-{run:08x}-{stream:03x}")
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
}
