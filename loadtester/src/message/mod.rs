//! The messages: what one says, whose it is, which stream it belongs to, how a row is known again, what became of each. Pure;
//! knows no server.

pub mod keys;
pub mod text;
pub mod pattern;
pub mod url;
pub mod draw;
pub mod raw;
pub mod compile;
pub mod identity;
pub mod ask;
pub mod fold;
pub mod model;
pub mod payload;
pub mod stream;
pub mod account;
pub mod index;
pub mod known;
