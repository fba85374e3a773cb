//! rowmill moves JSON from Kafka into PostgreSQL, each record exactly once.

pub mod schema;

pub mod model;

pub mod batch;

pub mod reject;

pub mod copy;

pub mod row;
