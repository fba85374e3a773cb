//! rowmill moves JSON from Kafka into PostgreSQL, each record exactly once.

pub mod batch;
pub mod copy;
pub mod model;
pub mod reject;
pub mod row;
pub mod schema;
