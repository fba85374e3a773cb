//! What the fault campaign and the tests on real servers share.

#![allow(clippy::disallowed_methods, reason = "cpu::spawn is the engine's")]

pub mod proxy;
