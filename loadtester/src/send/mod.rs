//! Sends: when each message is due, and the threads that keep to it. Never waits for whoever is measured.

pub mod schedule;
pub mod course;
pub mod replay;
pub mod courier;
pub mod generate;
pub mod reader;
