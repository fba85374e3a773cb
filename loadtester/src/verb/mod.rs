//! The verbs that are more than one call: each puts the parts together.

pub mod run;
pub mod find_max;
pub mod compare;
pub mod ceiling;
pub mod scenario;
pub mod merge;
