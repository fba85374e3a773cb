//! PostgreSQL as a store: rows by COPY BINARY, in the transaction that also moves the ledger.

pub mod audit;
pub mod copy;
pub mod sink;
pub mod catalog;
