//! The verbs beside `run`, one file each.

pub mod check;
pub mod dead_letters;
pub mod generate;
pub mod init;
pub mod propose;
pub mod status;
pub mod verify;
