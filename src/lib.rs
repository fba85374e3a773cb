//! rowmill moves JSON from Kafka into PostgreSQL, each record exactly once.
//!
//! ```text
//!  lease ---- who owns what (one shared table) ----.
//!  watch ---- what Kafka has, where to start ------+
//!                                                  v
//!  poll-N --RawBatch--> decode-N --TableBatch--> write-TABLE-N --COPY + ledger, one transaction--> PostgreSQL
//! ```
//!
//! Data flows to the right only. Progress is an atomic that a writer moves and everybody reads; ownership is a table that
//! the lease thread writes and everybody reads. The modules below stand in reading order.

// What is configured, and what the catalog makes of it.
pub mod config;
pub mod model;
pub mod schema;

// The nouns.
pub mod batch;
pub mod ownership;
pub mod protocol;
pub mod topics;

// The plumbing.
pub mod budget;
pub mod cpu;
pub mod fault;
pub mod metrics;
pub mod pg;
pub mod queue;

// The stages, as data passes.
pub mod copy;
pub mod dead_letter;
pub mod decode;
pub mod lease;
pub mod ledger;
pub mod lookup;
pub mod reject;
pub mod row;
pub mod source;
pub mod writer;

// Holding it together.
pub mod command;
pub mod pipeline;
pub mod setup;
pub mod supervisor;
