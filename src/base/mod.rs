//! What every thread stands on. Imports nothing of ours.

pub mod lock;
pub mod retry;
