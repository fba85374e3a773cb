//! What became of the messages, as counts. The classes have one list, from which every output takes its names.

use serde::{Deserialize, Serialize};

/// The numbers of the account: of one model, or of all together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default)]
pub struct Tally {
    pub sent: u64,
    pub acked: u64,
    pub failed: u64,
    pub indeterminate: u64,
    /// Distinct messages found.
    pub stored: u64,
    pub rejected: u64,
    /// What rowmill set aside during the run, whoever sent it.
    pub dead_letters: u64,
    pub lost: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    pub reordered: u64,
    pub foreign: u64,
    pub stored_indeterminate: u64,
    pub stored_failed: u64,
    pub late_after_drain: u64,
    /// Rows that are in the tables where the probe does not look.
    pub unseen_by_probe: u64,
}

impl Tally {
    /// (class, count, what it means), in the order of the report.
    pub fn classes(&self) -> [(&'static str, u64, &'static str); 16] {
        [
            ("sent", self.sent, "handed to the producer"),
            ("acked", self.acked, "acknowledged by Kafka"),
            ("failed", self.failed, "certainly not stored by Kafka"),
            ("indeterminate", self.indeterminate, "Kafka's answer is unknown"),
            ("stored", self.stored, "distinct messages found in the tables"),
            ("rejected", self.rejected, "messages of this run found among the dead letters"),
            (
                "dead_letters",
                self.dead_letters,
                "dead letters that rowmill wrote during the run, whoever sent them",
            ),
            ("lost", self.lost, "acknowledged, and neither stored nor rejected"),
            ("duplicated", self.duplicated, "rows beyond the first of a message"),
            ("corrupted", self.corrupted, "rows with a column that is not what was sent, user included"),
            ("reordered", self.reordered, "became visible after a later message of their stream"),
            ("foreign", self.foreign, "rows that appeared during the run and are not of it"),
            ("stored_indeterminate", self.stored_indeterminate, "stored, though Kafka's answer is unknown"),
            ("stored_failed", self.stored_failed, "stored, though Kafka reported a failure"),
            ("late_after_drain", self.late_after_drain, "appeared only after the drain had ended"),
            (
                "unseen_by_probe",
                self.unseen_by_probe,
                "stored, but not where new rows are expected (see the docs)",
            ),
        ]
    }

    pub fn add(&mut self, other: &Tally) {
        self.sent += other.sent;
        self.acked += other.acked;
        self.failed += other.failed;
        self.indeterminate += other.indeterminate;
        self.stored += other.stored;
        self.rejected += other.rejected;
        self.dead_letters += other.dead_letters;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.corrupted += other.corrupted;
        self.reordered += other.reordered;
        self.foreign += other.foreign;
        self.stored_indeterminate += other.stored_indeterminate;
        self.stored_failed += other.stored_failed;
        self.late_after_drain += other.late_after_drain;
        self.unseen_by_probe += other.unseen_by_probe;
    }
}
