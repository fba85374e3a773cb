//! The bounded channels between the stages. Data flows one way only; the depth is what the report shows.

use crossbeam_channel::{Receiver, Sender};

/// Raw batches between a poller and its decoder: one in work, two waiting. The byte budget is the real bound.
pub const RAW_BATCHES: usize = 2;

/// Table batches between a decoder and a writer: the writer takes all that is there in one transaction, and a decoder
/// that finds no room goes on filling the open batch, so more would only hide memory.
pub const TABLE_BATCHES: usize = 4;

/// Notices from threads to the main one: each thread sends at most one.
pub const EXITS: usize = 1024;

/// Wake-ups of the lease thread: one that is waiting serves everybody who would send another.
pub const WAKES: usize = 4;

/// A channel with room for `capacity` items.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    crossbeam_channel::bounded(capacity)
}
