//! Who owns what, how far each table is, and what must follow. Knows no store, no Kafka and no model.

pub mod offsets;
pub mod span;
pub mod batch;
pub mod claim;
pub mod lane;
pub mod topics;
pub mod gate;
pub mod decide;
pub mod guard;
pub mod reach;
pub mod duties;
pub mod looks;
pub mod ledger;
pub mod loans;
pub mod session;
pub mod dead_letter;
pub mod lease;
pub mod mend;
