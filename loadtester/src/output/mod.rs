//! What leaves the program: one format a file.

pub mod ci;
pub mod csv;
pub mod hdr;
pub mod html;
pub mod json;
pub mod sadf;
pub mod statsd;
pub mod terminal;
pub mod tui;
