//! How far one table moves in one partition: what a transaction does to a ledger row. Pure.

use std::sync::Arc;

use serde::Serialize;

use crate::base::mutant::{Bug, planted};
use crate::promise::claim::{Claim, Lane};
use crate::promise::offsets::{Anchor, Partition};

/// Outcomes: how many records became what. Offsets without a record are holes, which is what is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub rows: i64,
    pub dead: i64,
    pub skipped: i64,
    pub other: i64,
}

impl Counts {
    pub fn records(&self) -> i64 {
        self.rows + self.dead + self.skipped + self.other
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, more: Counts) {
        self.rows += more.rows;
        self.dead += more.dead;
        self.skipped += more.skipped;
        self.other += more.other;
    }
}

/// When the first and the last record of a stretch were stamped, in milliseconds since 1970 UTC; `None` where one has no
/// timestamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub first_ms: Option<i64>,
    pub last_ms: Option<i64>,
}

/// The offsets `[first, next)` of one claim and what became of their records in one table.
#[derive(Clone, Debug)]
pub struct Span {
    pub claim: Arc<Claim>,
    /// Index into the claim's lanes.
    pub lane: usize,
    pub first: i64,
    pub next: i64,
    pub counts: Counts,
    /// The last record of `[first, next)`.
    pub anchor: Anchor,
    pub times: Times,
}

impl Span {
    pub fn lane(&self) -> &Lane {
        &self.claim.lanes[self.lane]
    }

    /// Appends the span that follows this one.
    pub fn join(&mut self, more: &Span) {
        assert_eq!(self.next, more.first, "spans of one claim follow each other");
        self.next = more.next;
        self.anchor = more.anchor;
        self.times.last_ms = more.times.last_ms;
        self.counts += more.counts;
    }

    /// Offsets without a record.
    pub fn holes(&self) -> i64 {
        self.next - self.first - self.counts.records()
    }

    /// As the ledger is asked to move it now.
    pub fn as_move(&self) -> Move {
        let off_by = i64::from(planted(Bug::OffByOne));
        Move {
            topic: self.claim.topic.clone(),
            partition: self.claim.partition,
            epoch: self.lane().epoch(),
            first: self.first,
            next: self.next + off_by,
            counts: self.counts,
            holes: self.holes() + off_by,
            anchor: self.anchor,
        }
    }
}

/// A span as the ledger is asked to move it, with the epoch of that moment: the request may arrive long after its sender
/// died, so it holds no claim. Serialized as `rowmill.advance` reads it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Move {
    pub topic: Arc<str>,
    #[serde(serialize_with = "as_its_number")]
    pub partition: Partition,
    pub epoch: i64,
    pub first: i64,
    pub next: i64,
    #[serde(flatten)]
    pub counts: Counts,
    pub holes: i64,
    #[serde(flatten)]
    pub anchor: Anchor,
}

fn as_its_number<S: serde::Serializer>(partition: &Partition, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i32(partition.id)
}

/// What a transaction with these spans moves.
pub fn moves(spans: &[Span]) -> Vec<Move> {
    spans.iter().map(Span::as_move).collect()
}
