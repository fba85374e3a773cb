//! What every thread stands on. Imports nothing of ours.

pub mod lock;
pub mod retry;
pub mod thread;
pub mod queue;
pub mod budget;
pub mod failure;
pub mod logging;
pub mod spelling;
pub mod fault;
pub mod mutant;
pub mod hash;
pub mod printable;
pub mod words;
