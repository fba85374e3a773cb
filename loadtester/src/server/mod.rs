//! How Kafka, PostgreSQL and Redis are reached, and what they are asked. Decides nothing.

pub mod kafka;
pub mod pg;
pub mod copy_out;
pub mod form;
pub mod http;
pub mod users;
