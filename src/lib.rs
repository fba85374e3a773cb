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
//! the lease thread writes and everybody reads.
//!
//! The folders stand in the order in which one may import the other: each knows only those above it, and `kafka`, `decode`
//! and `write`, the stages, do not know each other. `tests/architecture.rs` holds them to it.

/// What every thread stands on.
pub mod base;
/// Which topic fills which column of which table; sees no record and no server.
pub mod model;
/// As written, and as used.
pub mod config;
/// How each server is reached, and what its errors call for.
pub mod client;
/// What people and machines are told; knows no pipeline.
pub mod figures;
/// HTTP/1.1 on an event loop of our own; knows no verb.
pub mod http;
/// Who owns what, how far each table is, what must follow; knows no store, no Kafka and no model.
pub mod promise;
/// librdkafka and nothing else: poll-N and watch.
pub mod kafka;
/// Bytes and statements of each store; decides nothing.
pub mod store;
/// Bytes to rows, or a reason: decode-N.
pub mod decode;
/// The transaction: write-TABLE-N.
pub mod write;
/// What a person or a service manager asks for.
pub mod verb;
