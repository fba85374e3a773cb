//! What the fault campaign and the tests share.

#![allow(clippy::disallowed_methods, reason = "cpu::spawn is the engine's")]

pub mod proxy;
pub mod random;
