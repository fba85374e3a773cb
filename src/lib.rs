//! rowmill moves JSON from Kafka into PostgreSQL, each record exactly once.

pub mod batch;
