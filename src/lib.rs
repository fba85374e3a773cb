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

// The nouns.

// The plumbing.
pub mod base;
pub mod client;

// The stages, as data passes, and what they use.
pub mod write;
pub mod store;

// Holding it together.
pub mod setup;
pub mod pipeline;

// What people and machines are told of a running process.
pub mod service;

// The verbs.
pub mod run;
pub mod run_figures;
pub mod command;
pub mod model;
pub mod config;
pub mod figures;
pub mod promise;
pub mod kafka;
pub mod decode;
