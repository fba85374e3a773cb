//! What became of each message: a few bits each, in a growing array per stream, so that 72 million messages take 18 MB.

/// What Kafka said of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    /// Not sent, or no report yet; at the end of a run it counts as indeterminate.
    Pending = 0,
    Acked = 1,
    /// Certainly not in Kafka.
    Failed = 2,
    /// It may be in Kafka or not.
    Indeterminate = 3,
}

/// Numbers of `WIDTH` bits (1, 2 or 4), zero where nothing was set.
#[derive(Clone, Debug, Default)]
pub struct Packed<const WIDTH: u32> {
    words: Vec<u64>,
}

impl<const WIDTH: u32> Packed<WIDTH> {
    const PER_WORD: u64 = 64 / WIDTH as u64;
    const MASK: u64 = (1 << WIDTH) - 1;

    pub fn get(&self, at: u64) -> u8 {
        let word = self.words.get((at / Self::PER_WORD) as usize).copied().unwrap_or(0);
        (word >> (at % Self::PER_WORD * u64::from(WIDTH)) & Self::MASK) as u8
    }

    pub fn set(&mut self, at: u64, value: u8) {
        let index = (at / Self::PER_WORD) as usize;
        if index >= self.words.len() {
            // A step of 4 kB: growing must not show as a pause of the generator.
            self.words.resize((index + 1).next_multiple_of(512), 0);
        }
        let shift = at % Self::PER_WORD * u64::from(WIDTH);
        self.words[index] = self.words[index] & !(Self::MASK << shift) | u64::from(value) << shift;
    }

    pub fn bytes(&self) -> usize {
        self.words.capacity() * 8
    }
}

/// A set of messages of one stream.
pub type Bits = Packed<1>;

/// One stream's side of the account, kept by the thread that sends it.
#[derive(Clone, Debug, Default)]
pub struct StreamAccount {
    /// Messages 0 up to, and not, this one were handed to the producer.
    pub sent: u64,
    outcomes: Packed<2>,
}

impl StreamAccount {
    pub fn settle(&mut self, seq: u64, outcome: Outcome) {
        self.outcomes.set(seq, outcome as u8);
    }

    pub fn outcome(&self, seq: u64) -> Outcome {
        match self.outcomes.get(seq) {
            1 => Outcome::Acked,
            2 => Outcome::Failed,
            3 => Outcome::Indeterminate,
            _ => Outcome::Pending,
        }
    }

    pub fn bytes(&self) -> usize {
        self.outcomes.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_do_not_disturb_each_other() {
        let mut packed = Packed::<2>::default();
        for at in 0..10_000 {
            packed.set(at, (at % 4) as u8);
        }
        packed.set(500, 1);
        packed.set(500, 2);
        for at in (0..10_000).filter(|at| *at != 500) {
            assert_eq!(packed.get(at), (at % 4) as u8, "{at}");
        }
        assert_eq!(packed.get(500), 2);
        assert_eq!(packed.get(1 << 40), 0);
        assert_eq!(packed.bytes(), 4096);
    }

    #[test]
    fn outcomes_come_back() {
        let mut account = StreamAccount::default();
        let outcomes = [Outcome::Acked, Outcome::Failed, Outcome::Indeterminate, Outcome::Pending];
        for (seq, outcome) in outcomes.iter().enumerate() {
            account.settle(seq as u64, *outcome);
        }
        for (seq, outcome) in outcomes.iter().enumerate() {
            assert_eq!(account.outcome(seq as u64), *outcome);
        }
    }
}
