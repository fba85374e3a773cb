//! The topics of a plan: what the configuration says of them, and what Kafka was last seen to have.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ledger::NewPartition;

/// One topic and the tables that it feeds.
#[derive(Debug)]
pub struct Topic {
    pub name: Arc<str>,
    /// Indexes of the tables in the plan; the first is the topic's home table, where undecodable records are set aside.
    pub tables: Vec<usize>,
    /// The same tables as the ledger names them.
    pub targets: Vec<String>,
    /// A hash of which table takes what; the ledger refuses a changed one while tables are not level.
    pub routing_hash: i64,
    seen: Mutex<Option<Seen>>,
    registered: Mutex<BTreeSet<i32>>,
}

/// What Kafka says of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub cluster_id: String,
    pub topic_id: String,
    pub partition_count: i32,
    /// Partitions that the ledger does not have yet.
    pub new: Vec<NewPartition>,
    pub compacted: bool,
}

impl Topic {
    pub fn new(name: &str, tables: Vec<usize>, targets: Vec<String>, routing: &str) -> Topic {
        Topic {
            name: name.into(),
            tables,
            targets,
            routing_hash: stable_hash(routing),
            seen: Mutex::default(),
            registered: Mutex::default(),
        }
    }

    pub fn seen(&self) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_seen(&self, seen: Seen) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
    }

    pub fn is_registered(&self, partition: i32) -> bool {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).contains(&partition)
    }

    pub fn set_registered(&self, partitions: impl IntoIterator<Item = i32>) {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner).extend(partitions);
    }
}

/// FNV-1a: stored in the ledger, so it must be the same in every build.
fn stable_hash(text: &str) -> i64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
        as i64
}
