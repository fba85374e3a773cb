//! `rowmill check --sample`: the newest records of each topic through the decoder of the pipeline, and nothing written. What only
//! a lookup or the server refuses is not found.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;

use crate::config::Config;
use crate::decode::record::Limits;
use crate::decode::reject::Reason;
use crate::decode::trial::Trial;
use crate::kafka::ask::Asker;
use crate::kafka::reread;
use crate::model::plan::Plan;
use crate::promise::batch::Shape;

/// What became of one topic's records.
#[derive(Default)]
pub(super) struct Tried {
    pub(super) records: u64,
    /// For each reason: how many, and the first one's sentence.
    pub(super) refused: BTreeMap<Reason, (u64, String)>,
    /// For each table, by its index: how many whole rows, and what all of them leave out.
    rows: BTreeMap<usize, (u64, Option<Shape>)>,
}

/// Reads so many of a topic's newest records, spread over its partitions.
pub(super) fn try_out(
    config: &Config,
    plan: &Arc<Plan>,
    topic: usize,
    asker: &Asker,
    records: u32,
) -> Result<Tried> {
    let limits = Limits { value_bytes_max: config.limits.message_max_bytes, ..Limits::default() };
    let mut trial = Trial::new(plan, topic, limits);
    let mut tried = Tried::default();
    let name = &plan.topics[topic].name;
    let ranges = reread::newest(asker, name, records.into())?;
    reread::ranges(&config.kafka, name, &ranges, limits.value_bytes_max, |record| {
        tried.records += 1;
        let rows = &mut tried.rows;
        let refused = trial.record(record, |table, shape| {
            let (rows, always) = rows.entry(table).or_default();
            *rows += 1;
            *always = Some(always.map_or(shape, |before| before.and(shape)));
        });
        if let Err(reject) = refused {
            tried.refused.entry(reject.reason).or_insert_with(|| (0, reject.message)).0 += 1;
        }
        Ok(())
    })?;
    Ok(tried)
}

impl Tried {
    /// Columns whose field no record had, so that each row takes the column's default: table and column.
    pub(super) fn by_default<'p>(&self, plan: &'p Plan) -> Vec<(&'p str, &'p str)> {
        let mut found = Vec::new();
        for (table, (_, always)) in &self.rows {
            let (table, Some(always)) = (&plan.tables[*table], always) else { continue };
            let is_left_out = |optional: Option<u8>| optional.is_some_and(|number| always.leaves_out(number));
            let columns = table.columns.iter().filter(|column| is_left_out(column.optional));
            found.extend(columns.map(|column| (table.name.as_str(), column.name.as_str())));
        }
        found
    }
}
