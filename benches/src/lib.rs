//! What the bench's programs share. `run` is the way in; docs/development.md explains the figures.
//!
//! metric     the record: message for Kafka, row for COPY, both functions of its number
//! visible    rows per second, counted in the same way for every subject
//! usage      CPU time and memory of a process, from /proc
//! servers    where they are, and the conditions of a result
//! engine     rowmill, run until everything is stored
//! kafka      topics, offsets and the consumer's settings
//! reference  what raw_copy and naive_pipe say of themselves
//! wrk        requests by that program, and what it saw of them
//! program    how each program ends, and where its results go

pub mod engine;
pub mod kafka;
pub mod metric;
pub mod program;
pub mod reference;
pub mod servers;
pub mod usage;
pub mod visible;
pub mod wrk;
