//! How many messages of a run have come to rest, as far as that can be counted without looking at each.

use anyhow::Result;
use postgres::Client;

use crate::judge::verify;
use crate::plan::Plan;
use crate::server::pg;

/// Rows and dead letters that may be of this run, which began at `start_us`.
pub fn settled(plan: &Plan, client: &mut Client, start_us: i64) -> Result<u64> {
    let models = plan.models();
    let leaves = pg::list_leaves(client, &models)?;
    let rows = pg::count_rows(client, &leaves, &conditions(plan, start_us))?;
    Ok(rows + verify::dead_letters(client, &models, &plan.topics, plan.run)?.len() as u64)
}

/// By model, which rows may be of this run.
pub fn conditions(plan: &Plan, start_us: i64) -> Vec<String> {
    let condition = |table: &crate::message::model::Table| table.condition(plan.run, start_us);
    plan.models().iter().map(|model| model.table.as_ref().map_or("false".to_owned(), condition)).collect()
}
