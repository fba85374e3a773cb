//! rowmill moves JSON from Kafka into PostgreSQL, each record exactly once.

pub mod batch;
pub mod budget;
pub mod cpu;
pub mod dead_letter;
pub mod lease;
pub mod ledger;
pub mod ownership;
pub mod pg;
pub mod protocol;
pub mod queue;
pub mod topics;
