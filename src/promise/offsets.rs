//! Places in Kafka's logs: partitions, how far a table is in one, and the record by which a log is known again. Pure.

use serde::Serialize;

/// A partition of a topic, by the topic's index in the plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    pub topic: usize,
    pub id: i32,
}

/// A record that was committed last in a table: its offset and [hash](crate::promise::batch::Record::hash).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Anchor {
    #[serde(rename = "anchor_offset")]
    pub offset: i64,
    #[serde(rename = "anchor_hash")]
    pub hash: i64,
}

/// A table's place in a partition, as the ledger has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub next: i64,
    pub anchor: Option<Anchor>,
}
