//! What is measured, under which names, and what conditions may be put on it. Knows no server and nobody who measures.

pub mod latency;
pub mod newest;
pub mod columns;
pub mod phase;
pub mod backlog;
pub mod tally;
pub mod results;
pub mod condition;
