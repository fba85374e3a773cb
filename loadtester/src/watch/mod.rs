//! Watches: the rows as they become visible, and the load of the consumer, the machine and this program. Asks, and changes
//! nothing but the consumer that it was told to start.

pub mod counters;
pub mod session;
pub mod sweep;
pub mod probe;
pub mod observe;
pub mod cost;
pub mod target;
pub mod consumer;
pub mod server;
