//! The load tester: plays many data collectors against Kafka, a consumer and PostgreSQL, and judges the whole path.
//!
//! ```text
//! plan -> send -> Kafka -> (the consumer) -> PostgreSQL -> watch -> judge -> tell
//!           |                                                |        ^
//!           +------------- counters, histograms -------------+--------+
//! ```
//!
//! Each folder may import those above it in the list below, and none below: first what all stand on, then the parts of
//! the drawing, then the verbs, which put the parts together.

pub mod base;
pub mod measure;
pub mod message;
pub mod server;

pub mod plan;
pub mod send;
pub mod watch;
pub mod judge;
pub mod tell;

pub mod verb;
