//! What people and machines are told of a running service. Knows no pipeline.

pub mod instruments;
pub mod family;
pub mod board;
pub mod statsd;
pub mod notify;
pub mod process;
pub mod lag;
