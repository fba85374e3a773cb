//! The load tester: plays many data collectors against Kafka, a consumer and PostgreSQL, and judges the whole path.
//!
//! ```text
//! options -> schedule, payload -> generate -> Kafka -> (the consumer) -> PostgreSQL <- probe, verify
//!                                    |                                                  |
//!                                    +------ counters, histograms ---> reporter <-------+
//!                                                                          |
//!                                           output, verdict, exit code <---+
//! ```

pub mod account;
pub mod ceiling;
pub mod clock;
pub mod compare;
pub mod copy_out;
pub mod counters;
pub mod export;
pub mod generate;
pub mod hash;
pub mod kafka;
pub mod keys;
pub mod latency;
pub mod locate;
pub mod metrics;
pub mod model;
pub mod observe;
pub mod options;
pub mod output;
pub mod payload;
pub mod pg;
pub mod probe;
pub mod quantity;
pub mod reporter;
pub mod run;
pub mod saturate;
pub mod schedule;
pub mod results;
pub mod setup;
pub mod shape;
pub mod session;
pub mod signals;
pub mod tally;
pub mod stream;
pub mod summarize;
pub mod summary;
pub mod sweep;
pub mod target;
pub mod threshold;
pub mod users;
pub mod verdict;
pub mod verify;
pub mod words;
