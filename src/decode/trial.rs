//! What a record would become, found by the decoder of the pipeline, with nothing looked up and nothing written. What only a lookup
//! or the server refuses is not found.

use std::sync::Arc;

use super::column::{Encoded, Found, Lookups};
use super::record::{Limits, Messages, RecordDecoder};
use super::reject::Reject;
use crate::model::plan::Plan;
use crate::promise::batch::{Record, Shape};

/// No token is asked for: what a row has behind its first lookup is not tried.
struct NothingCached;

impl Lookups for NothingCached {
    fn find(&self, _lookup: usize, _token: &str) -> Found<'_> {
        Found::NotCached
    }
}

/// The trial of one topic's records.
pub struct Trial {
    plan: Arc<Plan>,
    decoder: RecordDecoder,
    row: Vec<u8>,
}

impl Trial {
    pub fn new(plan: &Arc<Plan>, topic: usize, limits: Limits) -> Trial {
        Trial {
            plan: plan.clone(),
            decoder: RecordDecoder::new(plan.clone(), topic, limits),
            row: Vec::new(),
        }
    }

    /// Tries one record; `row` hears of each whole row: its table's number, and which columns it leaves out.
    ///
    /// # Errors
    /// What would stand in its dead letter.
    pub fn record(&mut self, record: &Record<'_>, mut row: impl FnMut(usize, Shape)) -> Result<(), Reject> {
        let decoder = &mut self.decoder;
        let mut messages = Messages::of(decoder.parse(record)?);
        while let Some(message) = messages.next(decoder)? {
            let models: Vec<usize> = decoder.models().collect();
            if models.is_empty() {
                return Err(decoder.unroutable(message));
            }
            for model in models {
                self.row.clear();
                if let Encoded::Row(shape) = decoder.encode(model, message, &NothingCached, &mut self.row)? {
                    row(self.plan.models[model].table, shape);
                }
            }
        }
        Ok(())
    }
}
