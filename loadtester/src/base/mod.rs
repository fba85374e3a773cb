//! What every part stands on; imports nothing of the tester.

pub mod clock;
pub mod hash;
pub mod quantity;
pub mod printable;
pub mod signals;
pub mod thread;
pub mod lock;
pub mod descriptors;
