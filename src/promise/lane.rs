//! What became of each partition in each table, counted for as long as the process lives.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::sync::{Arc, Mutex};

use crate::base::lock::lock;
use crate::promise::offsets::Partition;

/// What became of the records of one partition in one table, in this process, through all its claims.
#[derive(Debug, Default)]
pub struct LaneMetrics {
    pub rows: AtomicU64,
    pub dead: AtomicU64,
    pub skipped: AtomicU64,
    pub other: AtomicU64,
    pub holes: AtomicU64,
    /// When the last span was committed, in milliseconds since 1970 UTC; 0 before the first.
    pub progress_ms: AtomicI64,
}

/// A partition, and the index of a table in the plan.
type LanePlace = (Partition, usize);

/// The lanes that this process has ever held: as many as there are partitions and tables.
#[derive(Debug, Default)]
pub struct LaneRegister(Mutex<BTreeMap<LanePlace, Arc<LaneMetrics>>>);

impl LaneRegister {
    pub fn lane(&self, partition: Partition, table: usize) -> Arc<LaneMetrics> {
        let mut lanes = lock(&self.0);
        lanes.entry((partition, table)).or_default().clone()
    }

    pub fn all(&self) -> Vec<(LanePlace, Arc<LaneMetrics>)> {
        let lanes = lock(&self.0);
        lanes.iter().map(|(place, lane)| (*place, lane.clone())).collect()
    }
}
