//! The verbs beside `run`, one file each.

pub mod check;
pub mod init;
pub mod status;
pub mod verify;
