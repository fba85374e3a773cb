//! What every verb needs that answers the open network over HTTP: who may come, which path is meant, what browsers may see, what is
//! counted of requests, and how such a verb ends.

pub mod paths;
pub mod tokens;
pub mod cors;
pub mod requests;
pub mod refusals;
pub mod closing;
pub mod reload;
