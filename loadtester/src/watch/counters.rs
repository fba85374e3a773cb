//! What the probe tells: counters that it adds to while it looks, and that the reporter reads once a second.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering::Relaxed};

use crate::base::lock::lock;

/// What is seen of the probe from outside.
#[derive(Debug, Default)]
pub struct Counters {
    /// Distinct messages of this run seen in the tables.
    pub stored: ByModel,
    pub duplicated: AtomicU64,
    /// Became visible after a later message of their stream.
    pub reordered: ByModel,
    /// (stream, sequence number) of the first of them.
    overtaken: Mutex<Vec<(u16, u64)>>,
    /// Rows that appeared during the run and are not of it.
    pub foreign: ByModel,
    /// Looks, and how many of them found that a transaction had ended and read the tables.
    pub looks: AtomicU64,
    pub reads: AtomicU64,
    pub rows: AtomicU64,
    /// Rows that only the count once a second gave away; their lower bound is that much earlier.
    pub found_late: AtomicU64,
    pub busy_ns: AtomicU64,
    /// The longest time between two looks in the steady phase.
    pub longest_gap_us: AtomicU64,
    /// Rows whose `timestamp` is their `time`, to the microsecond.
    pub row_is_event_time: AtomicU64,
    pub reconnects: AtomicU64,
    /// The server processes of the probe and of its count, where they run on this machine; else 0.
    pub backend: AtomicI32,
    pub sweep_backend: AtomicI32,
}

/// A count for each model of the mix.
#[derive(Debug, Default)]
pub struct ByModel(Vec<AtomicU64>);

impl ByModel {
    pub fn add(&self, model: usize) {
        self.0[model].fetch_add(1, Relaxed);
    }

    pub fn each(&self) -> Vec<u64> {
        self.0.iter().map(|n| n.load(Relaxed)).collect()
    }

    pub fn sum(&self) -> u64 {
        self.0.iter().map(|n| n.load(Relaxed)).sum()
    }
}

impl Counters {
    pub fn new(models: usize) -> Self {
        let by_model = || ByModel((0..models).map(|_| AtomicU64::new(0)).collect());
        Self { stored: by_model(), reordered: by_model(), foreign: by_model(), ..Self::default() }
    }

    pub fn overtaken(&self) -> Vec<(u16, u64)> {
        lock(&self.overtaken).clone()
    }

    pub fn note_overtaken(&self, stream: u16, seq: u64) {
        let mut overtaken = lock(&self.overtaken);
        if overtaken.len() < OVERTAKEN_MAX {
            overtaken.push((stream, seq));
        }
    }
}

/// So many overtaken messages are kept by name; all are counted.
const OVERTAKEN_MAX: usize = 10_000;
