//! How each server is reached, and how bytes lie on the way to it.

pub mod binary;
pub mod tls;
pub mod path;
pub mod plain;
pub mod pg;
pub mod wire;
pub mod login;
pub mod redis;
pub mod feed;
pub mod tally;
