//! What the bench's programs share. `run` is the way in; docs/development.md explains the figures.
//!
//! metric   the record: message for Kafka, row for COPY, both functions of its number
//! visible  rows per second, counted in the same way for every subject
//! usage    CPU time and memory of a process, from /proc
//! kafka    topics, offsets and the consumer's settings
//! fill     topics full of records, and users in Redis

pub mod fill;
pub mod kafka;
pub mod metric;
pub mod usage;
pub mod visible;
