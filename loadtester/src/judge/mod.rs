//! Judges: what became of every message, whether the run may be believed, and what it has come to. Pure but for reading back.

pub mod verify;
pub mod aggregate;
pub mod locate;
pub mod verdict;
pub mod abort;
pub mod summary;
