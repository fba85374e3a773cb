//! PostgreSQL as a store: rows by COPY BINARY, in the transaction that also moves the ledger. Rows with a key are folded
//! first, and go through a stage.

pub mod audit;
pub mod copy;
pub mod fold;
pub mod merge;
pub mod sink;
pub mod catalog;
pub mod partitions;
