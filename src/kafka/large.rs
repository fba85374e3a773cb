//! Sealed batches ([`unpack`](super::unpack)) that are being taken apart, and what waits behind them. Pure: it reads no clock but the
//! one it is given, and knows no Kafka client.
//!
//! A batch that is only dense is taken apart where it stands, and what comes behind it waits for that. One that goes on and on
//! gets the turn: it goes on piece by piece beside everything else, and its partition's later records are held. There is one turn;
//! whoever needs it while another has it is not read until it is free. So however many such batches there are, one is unpacked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::unpack::Unpacker;
use crate::promise::batch::{Headers, Record};
use crate::promise::claim::Claim;
use crate::promise::offsets::Partition;

/// Work of one look: unpacked bytes, and what a record costs beside them. A hundredth of a second, and little beside what a poll
/// may overshoot the budget by anyway.
const LOOK_BYTES: u64 = 4 << 20;
const RECORD_BYTES: u64 = 64;

/// A batch that has unpacked to more than this and is not at its end gives way to the others. Producers count a batch's size before
/// it is packed, up to 1 MB unless told otherwise.
const DENSE_BYTES: u64 = 16 << 20;

/// What is held behind the batch that has the turn, before its partition is left unread.
const HELD_BYTES_MAX: usize = 2 << 20;

/// A partition that is read again because it is its turn has so long to show why.
const RESERVED: Duration = Duration::from_secs(5);

/// How much may be done in one look.
#[derive(Debug)]
pub struct Look {
    left: i64,
}

impl Default for Look {
    fn default() -> Look {
        Look { left: LOOK_BYTES as i64 }
    }
}

impl Look {
    pub fn is_over(&self) -> bool {
        self.left <= 0
    }

    /// Notes what one step unpacked; `before` was unpacked before it.
    pub fn note(&mut self, unpacker: &Unpacker, before: u64) {
        self.left -= (unpacker.unpacked_bytes() - before + RECORD_BYTES) as i64;
    }

    /// The same for a batch that a step began.
    pub fn note_batch(&mut self, packed_bytes: usize) {
        self.left -= packed_bytes as i64;
    }
}

/// A record that is held: librdkafka's memory is not, since one record may hold a whole response of it.
#[derive(Debug)]
pub struct Held {
    offset: i64,
    timestamp_ms: Option<i64>,
    key: Option<Box<[u8]>>,
    value: Option<Box<[u8]>>,
    headers: Box<[u8]>,
}

impl Held {
    fn of(record: &Record<'_>) -> Held {
        Held {
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            key: record.key.map(Into::into),
            value: record.value.map(Into::into),
            headers: record.headers.0.into(),
        }
    }

    pub fn bytes(&self) -> usize {
        let part = |part: &Option<Box<[u8]>>| part.as_ref().map_or(0, |part| part.len());
        size_of::<Held>() + part(&self.key) + part(&self.value) + self.headers.len()
    }

    pub fn record<'a>(&'a self, claim: &'a Claim) -> Record<'a> {
        Record {
            topic: &claim.topic,
            partition: claim.partition.id,
            offset: self.offset,
            timestamp_ms: self.timestamp_ms,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            headers: Headers(&self.headers),
        }
    }
}

/// A batch in work, with the claim under which it is read.
#[derive(Debug)]
pub struct Batch {
    pub claim: Arc<Claim>,
    pub unpacker: Unpacker,
}

impl Batch {
    fn is_dense(&self) -> bool {
        self.unpacker.unpacked_bytes() <= DENSE_BYTES && !self.unpacker.is_within_a_large_record()
    }
}

/// The partition that has the turn.
#[derive(Debug)]
struct Turn {
    claim: Arc<Claim>,
    /// In work; `None` between two of its batches.
    unpacker: Option<Unpacker>,
    held: VecDeque<Held>,
    held_bytes: usize,
    /// Nothing came of it yet.
    reserved_at: Option<Instant>,
    /// It is not read: the batch in work is the one that was kept while it waited. It is read again after that.
    was_kept: bool,
}

/// A partition that is not read until it has the turn.
#[derive(Debug)]
pub struct Waiting {
    pub partition: Partition,
    /// The batch at which it stopped, if there was room for it. Without it the partition is read again from before that batch, which
    /// where nothing proves its first record takes a new client for all partitions.
    pub kept: Option<(Arc<Claim>, Arc<[u8]>)>,
}

/// Bytes of batches that are kept for those who wait, in all.
const KEPT_BYTES_MAX: usize = 16 << 20;

/// What is done next of the partition that has the turn.
#[derive(Debug)]
pub enum Next {
    Batch(Batch),
    Held(Arc<Claim>, Held),
}

/// The batches in work of one poller.
#[derive(Debug, Default)]
pub struct Large {
    dense: Option<Batch>,
    turn: Option<Turn>,
    waiting: VecDeque<Waiting>,
}

impl Large {
    /// The dense batch that everything waits for.
    pub fn take_dense(&mut self) -> Option<Batch> {
        self.dense.take()
    }

    pub fn has_dense(&self) -> bool {
        self.dense.is_some()
    }

    /// Puts back a batch that is not at its end. False if it needs the turn and another partition has it: then its partition must be
    /// left unread, and it is read again from the ledger's side of it once it has the turn.
    pub fn go_on_with(&mut self, batch: Batch) -> bool {
        if batch.is_dense() && !self.is_turn_of(batch.claim.partition) {
            self.dense = Some(batch);
            return true;
        }
        match &mut self.turn {
            Some(turn) if !Arc::ptr_eq(&turn.claim, &batch.claim) => {
                let kept: usize =
                    self.waiting.iter().flat_map(|w| &w.kept).map(|(_, batch)| batch.len()).sum();
                let has_room = kept + batch.unpacker.batch().len() <= KEPT_BYTES_MAX;
                self.waiting.push_back(Waiting {
                    partition: batch.claim.partition,
                    kept: has_room.then(|| (batch.claim, batch.unpacker.batch().clone())),
                });
                false
            }
            Some(turn) => {
                turn.unpacker = Some(batch.unpacker);
                turn.reserved_at = None;
                true
            }
            None => {
                self.turn = Some(Turn { unpacker: Some(batch.unpacker), ..Turn::new(batch.claim) });
                true
            }
        }
    }

    /// With the batch that was kept for it. Its partition is not read yet.
    pub fn begin_turn(&mut self, batch: Batch) {
        self.turn = Some(Turn { unpacker: Some(batch.unpacker), was_kept: true, ..Turn::new(batch.claim) });
    }

    /// The partition with the turn, if it is through with what was kept for it and is to be read again.
    pub fn has_done_what_was_kept(&self) -> Option<Partition> {
        let turn = self.turn.as_ref()?;
        (turn.was_kept && !turn.is_busy()).then_some(turn.claim.partition)
    }

    fn is_turn_of(&self, partition: Partition) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.claim.partition == partition)
    }

    /// True if a partition's records must be held: earlier ones are still being unpacked.
    pub fn must_hold(&self, partition: Partition) -> bool {
        self.turn.as_ref().is_some_and(|turn| turn.claim.partition == partition && turn.is_busy())
    }

    /// Holds a record of the partition that has the turn. True if that was enough: then the partition must be left unread, and gets
    /// another turn. Two batches at least, so that each turn goes on by one: the first may be read again only for its proof.
    pub fn hold(&mut self, record: &Record<'_>) -> bool {
        let Some(turn) = &mut self.turn else { return false };
        let held = Held::of(record);
        turn.held_bytes += held.bytes();
        turn.held.push_back(held);
        let is_enough = turn.held_bytes > HELD_BYTES_MAX;
        if is_enough {
            self.waiting.push_back(Waiting { partition: turn.claim.partition, kept: None });
        }
        is_enough
    }

    /// What the partition with the turn goes on with. It stays the one with the turn until there is nothing more.
    pub fn go_on(&mut self) -> Option<Next> {
        let turn = self.turn.as_mut()?;
        let claim = turn.claim.clone();
        if let Some(unpacker) = turn.unpacker.take() {
            return Some(Next::Batch(Batch { claim, unpacker }));
        }
        if let Some(held) = turn.held.pop_front() {
            turn.held_bytes -= held.bytes();
            return Some(Next::Held(claim, held));
        }
        if turn.reserved_at.is_none() && !turn.was_kept {
            self.turn = None;
        }
        None
    }

    /// True if the partition with the turn can go on at once.
    pub fn is_busy(&self) -> bool {
        self.turn.as_ref().is_some_and(Turn::is_busy)
    }

    /// The partition with the turn, and the one with the dense batch, are not through with what they were given.
    pub fn has_more_of(&self, partition: Partition) -> bool {
        self.must_hold(partition) || self.dense.as_ref().is_some_and(|b| b.claim.partition == partition)
    }

    /// Whose turn it is next, if it is free; whoever it is keeps it for a while.
    pub fn next_waiting(&mut self, now: Instant) -> Option<Waiting> {
        // One that cannot be read again in this turn waits for the next.
        if self.has_done_what_was_kept().is_some() {
            self.end_turn();
        }
        if self.turn.as_ref().is_some_and(|turn| turn.reserved_at.is_some_and(|at| now - at >= RESERVED)) {
            self.turn = None;
        }
        if self.turn.is_some() { None } else { self.waiting.pop_front() }
    }

    /// It cannot be read now.
    pub fn wait_again(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    pub fn reserve(&mut self, claim: Arc<Claim>, now: Instant) {
        self.turn = Some(Turn { reserved_at: Some(now), ..Turn::new(claim) });
    }

    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Drops what is in work of a topic, which is read again from an earlier place. Whoever waits goes on waiting.
    pub fn forget_topic(&mut self, topic: usize) {
        self.dense.take_if(|batch| batch.claim.partition.topic == topic);
        if self.turn.as_ref().is_some_and(|turn| turn.claim.partition.topic == topic) {
            self.end_turn();
        }
    }

    /// Whoever is not read because of it goes on waiting.
    fn end_turn(&mut self) {
        if let Some(turn) = self.turn.take().filter(|turn| turn.was_kept) {
            self.waiting.push_back(Waiting { partition: turn.claim.partition, kept: None });
        }
    }

    /// Drops what is in work of a partition: it is not read any more, or is read again from an earlier place.
    pub fn forget(&mut self, partition: Partition) {
        self.dense.take_if(|batch| batch.claim.partition == partition);
        self.turn.take_if(|turn| turn.claim.partition == partition);
        self.waiting.retain(|waiting| waiting.partition != partition);
    }
}

impl Turn {
    fn new(claim: Arc<Claim>) -> Turn {
        Turn {
            claim,
            unpacker: None,
            held: VecDeque::new(),
            held_bytes: 0,
            reserved_at: None,
            was_kept: false,
        }
    }

    fn is_busy(&self) -> bool {
        self.unpacker.is_some() || !self.held.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::unpack::{Codec, HEADER_BYTES, Step, open, tests::packed};
    use crate::promise::claim::Lane;

    fn claim(id: i32) -> Arc<Claim> {
        let lanes = vec![Lane::new(0, 1, 0, None, Arc::default())];
        Arc::new(Claim::new(Partition { topic: 0, id }, "t".into(), "id".into(), lanes))
    }

    /// One record of spaces, in work.
    fn bomb(claim: &Arc<Claim>) -> Batch {
        let bytes = 1 << 20;
        // Length, attributes, deltas, no key, the value's length, the value, no headers.
        let record =
            [&[0x92, 0x80, 0x80, 0x01, 0, 0, 0, 1, 0x80, 0x80, 0x80, 0x01][..], &vec![b' '; bytes], &[0]]
                .concat();
        let payload = packed(Codec::Gzip, &record);
        let mut header = [0; HEADER_BYTES];
        header[8..12].copy_from_slice(&((HEADER_BYTES - 12 + payload.len()) as i32).to_be_bytes());
        header[16] = 2;
        header[22] = Codec::Gzip as u8;
        header[60] = 1;
        let sealed = open(&header, &payload, Codec::Gzip).expect("packed");
        let found = (0..40).find_map(|at| Unpacker::of(sealed.get(at..sealed.len() - 1), 1000)?.ok());
        let mut unpacker = found.expect("it is sealed");
        assert!(matches!(unpacker.step(), Ok(Step::Working)));
        Batch { claim: claim.clone(), unpacker }
    }

    fn is_next(large: &mut Large, partition: i32) -> bool {
        matches!(large.go_on(), Some(Next::Batch(batch)) if batch.claim.partition.id == partition)
    }

    #[test]
    fn large_batches_take_turns_and_nobody_is_forgotten() {
        let (mut large, now) = (Large::default(), Instant::now());
        let (first, second) = (claim(0), claim(1));
        assert!(large.go_on_with(bomb(&first)) && !large.has_dense(), "it gives way to others at once");
        assert!(large.must_hold(first.partition) && !large.must_hold(second.partition));
        assert!(!large.go_on_with(bomb(&second)), "the second must wait");
        assert!(large.next_waiting(now).is_none(), "while the first has the turn");
        assert!(is_next(&mut large, 0) && large.go_on().is_none(), "the first is through");
        // The second goes on with what was kept for it, and is read again in the same turn.
        let waiting = large.next_waiting(now).expect("the second");
        let (claim, batch) = waiting.kept.expect("there was room for it");
        large.begin_turn(Batch { claim, unpacker: Unpacker::new(batch, 1000).expect("a batch") });
        assert!(large.has_done_what_was_kept().is_none() && is_next(&mut large, 1));
        assert!(large.go_on().is_none());
        assert_eq!(large.has_done_what_was_kept(), Some(second.partition));
        large.reserve(second.clone(), now);
        assert!(large.go_on().is_none() && !large.go_on_with(bomb(&first)), "its turn is kept for it");
        large.forget(first.partition);
        assert!(
            large.next_waiting(now + RESERVED).is_none() && large.go_on_with(bomb(&first)),
            "for a while"
        );
    }

    #[test]
    fn a_topic_that_is_parked_loses_the_turn_and_not_its_place() {
        let (mut large, now) = (Large::default(), Instant::now());
        let (first, second) = (claim(0), claim(1));
        large.go_on_with(bomb(&first));
        large.go_on_with(bomb(&second));
        assert!(is_next(&mut large, 0) && large.go_on().is_none());
        let (claim, batch) = large.next_waiting(now).and_then(|w| w.kept).expect("the second");
        large.begin_turn(Batch { claim, unpacker: Unpacker::new(batch, 1000).expect("a batch") });
        large.forget_topic(0);
        let again = large.next_waiting(now).expect("it goes on waiting");
        assert!(again.partition == second.partition && again.kept.is_none());
    }

    #[test]
    fn a_turn_holds_two_batches_at_least_and_then_no_more() {
        let mut large = Large::default();
        let first = claim(0);
        large.go_on_with(bomb(&first));
        let value = vec![b'x'; HELD_BYTES_MAX / 2 + 1];
        let record = Record {
            topic: "t",
            partition: 0,
            offset: 1,
            timestamp_ms: None,
            key: None,
            value: Some(&value),
            headers: Headers::default(),
        };
        assert!(!large.hold(&record) && large.hold(&record));
        assert!(is_next(&mut large, 0));
        for _ in 0..2 {
            assert!(
                matches!(large.go_on(), Some(Next::Held(_, held)) if held.record(&first).value == Some(&value[..]))
            );
        }
        assert!(large.go_on().is_none());
        assert_eq!(large.next_waiting(Instant::now()).map(|w| w.partition), Some(first.partition));
    }
}
