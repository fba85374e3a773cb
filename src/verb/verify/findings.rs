//! Everything that `rowmill verify` found, and whether it is good.

use super::database::Counted;
use super::folded::{Compared, Differences};
use super::judge::Partition;

/// Everything that was found.
pub(super) struct Findings {
    pub(super) pipeline: String,
    pub(super) brokers: String,
    pub(super) database: String,
    pub(super) taken_at: String,
    pub(super) partitions: Vec<Partition>,
    pub(super) traced: Vec<String>,
    pub(super) counted: Vec<Counted>,
    /// Tables with keys.
    pub(super) folded: Vec<Compared>,
    /// Tables of the ledger that the configuration does not have.
    pub(super) unknown: Vec<String>,
    /// Sentences about what contradicts itself, and about what could not be judged.
    pub(super) broken: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Findings {
    /// Lost, duplicated, phantom, altered.
    pub(super) fn totals(&self) -> [i64; 4] {
        let mut totals = [0; 4];
        for partition in &self.partitions {
            totals.iter_mut().zip(partition.totals()).for_each(|(sum, more)| *sum += more);
        }
        totals[0] += self.counted.iter().map(Counted::lost).sum::<i64>();
        totals
    }

    /// Keys that are wrong: lost, phantom, or with other values.
    pub(super) fn wrong_keys(&self) -> i64 {
        let wrong = |d: &Differences| d.lost + d.phantom + d.different + d.refused;
        self.folded.iter().filter_map(Compared::differences).map(wrong).sum()
    }

    /// Rows too many in tables that do not say which: duplicates or phantoms.
    pub(super) fn surplus(&self) -> i64 {
        self.counted.iter().map(Counted::surplus).sum()
    }

    pub(super) fn broken(&self) -> usize {
        self.broken.len() + self.partitions.iter().map(|p| p.broken.len()).sum::<usize>()
    }

    pub(super) fn is_good(&self) -> bool {
        self.totals() == [0; 4] && self.surplus() == 0 && self.wrong_keys() == 0 && self.broken() == 0
    }
}
