//! What the user asks for: as written on the command line, and as it will be done.

pub mod words;
pub mod shape;
pub mod options;
