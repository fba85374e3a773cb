//! The messages: what one says, whose it is, which stream it belongs to, what became of it. Pure; knows no server.

pub mod model;
pub mod keys;
pub mod stream;
pub mod payload;
pub mod account;
