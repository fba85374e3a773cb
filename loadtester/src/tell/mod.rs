//! Tells: what leaves the program, one format a file. Measures and decides nothing.

pub mod csv;
pub mod hdr;
pub mod files;
pub mod statsd;
pub mod terminal;
pub mod tui;
pub mod json;
pub mod html;
pub mod ci;
pub mod sadf;
pub mod export;
