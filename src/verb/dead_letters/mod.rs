//! `rowmill dead-letters`: look at what was set aside, write it again, or let it be.
//!
//! A letter stays in the table for ever, settled or not: it is the record's one outcome in the ledger. What a person decides
//! about it is written beside it, in the same transaction as the rows that come of it.

mod filter;
mod letter;
mod retry;

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use postgres::types::Type;

use filter::{Decision, Filter, count};

use crate::client::pg::{Client, Server};
use crate::config::Config;
use crate::promise::{dead_letter, ledger};
use crate::verb::out::{self, say};

#[derive(clap::Subcommand)]
pub enum Action {
    /// List dead letters, the newest first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// At most so many.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(i64).range(1..))]
        limit: i64,
        /// Those too that were retried or discarded.
        #[arg(long)]
        settled: bool,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show dead letters with key, headers and value.
    Show {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<i64>,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Decode dead letters with the models of today, and store those that are rows now.
    ///
    /// Each letter is marked in the same transaction as its rows, so it is never written twice, however often this is run.
    /// What is still refused stays as it is. Works while the pipeline runs.
    Retry(Decision),
    /// Mark dead letters as done with. They stay in the table.
    Discard(Decision),
}

/// Runs one of the verbs. False if a letter that was asked for is not there.
pub fn run(config: &Config, action: &Action) -> Result<bool> {
    let mut client = Server::of(&config.postgres)?.connect("rowmill dead-letters")?;
    ledger::check_version(&mut client)?;
    dead_letter::check_columns(&mut client)?;
    match action {
        Action::List { filter, limit, settled, json } => {
            list(&mut client, &config.pipeline, filter, *limit, *settled, *json).map(|()| true)
        }
        Action::Show { ids, json } => show(&mut client, &config.pipeline, ids, *json),
        Action::Retry(decision) => {
            decision.check()?;
            retry::run(config, &mut client, decision).map(|()| true)
        }
        Action::Discard(decision) => {
            decision.check()?;
            discard(&mut client, &config.pipeline, decision)
        }
    }
}

/// Letters that are read at once: a list may be longer than this machine's memory.
const PAGE: i64 = 1000;

fn list(
    client: &mut Client,
    pipeline: &String,
    filter: &Filter,
    limit: i64,
    settled: bool,
    json: bool,
) -> Result<()> {
    let open = if settled { "TRUE" } else { "settled_at IS NULL" };
    let condition = format!("{} AND {open}", Filter::SQL);
    let (mut shown, mut below) = (0, i64::MAX);
    while shown < limit {
        let wanted = PAGE.min(limit - shown);
        let page = format!("{condition} AND id < {below}");
        let parameters = filter.parameters(pipeline, &[]);
        let letters = letter::read(client, &page, "id DESC", &parameters, wanted, letter::Part::Head)?;
        for letter in &letters {
            if json { out::json(&letter.json()) } else { say!("{}", letter.line()) }
        }
        shown += letters.len() as i64;
        match letters.last() {
            Some(last) if letters.len() as i64 == wanted => below = last.id,
            _ => break,
        }
    }
    let sql = format!("SELECT count(*) FROM rowmill.dead_letter WHERE {condition}");
    let all: i64 = client
        .query_typed(&sql, &filter.parameters(pipeline, &[]))
        .context("cannot count the dead letters")?[0]
        .get(0);
    let more = all - shown;
    if !json && all == 0 {
        say!("no dead letters match");
    } else if !json && more > 0 {
        say!("and {more} more: --limit shows them, `rowmill status` counts them by reason");
    }
    Ok(())
}

fn show(client: &mut Client, pipeline: &str, ids: &[i64], json: bool) -> Result<bool> {
    let mut all = true;
    for id in ids {
        let parameters: [filter::Parameter<'_>; 2] = [(&pipeline, Type::TEXT), (id, Type::INT8)];
        let part = if json { letter::Part::Whole } else { letter::Part::Shown };
        let found = letter::read(client, "pipeline = $1 AND id = $2", "id", &parameters, 1, part)?;
        match found.first() {
            Some(letter) if json => out::json(&letter.json()),
            Some(letter) => letter.page().iter().for_each(|line| say!("{line}")),
            None => {
                log::error!(
                    "pipeline {pipeline:?} has no dead letter {id}: `rowmill dead-letters list` shows them"
                );
                all = false;
            }
        }
    }
    Ok(all)
}

/// False where a letter was named that is not there, or is settled already.
fn discard(client: &mut Client, pipeline: &String, decision: &Decision) -> Result<bool> {
    let filter = &decision.filter;
    let sql = format!(
        "UPDATE rowmill.dead_letter SET settled_at = clock_timestamp(), settled_as = 'discarded'
         WHERE {} AND settled_at IS NULL RETURNING id",
        Filter::SQL
    );
    let mut transaction = client.begin().context("cannot begin a transaction")?;
    let rows = transaction
        .query_typed(&sql, &filter.parameters(pipeline, &[]))
        .context("cannot discard dead letters")?;
    if decision.dry_run {
        transaction.rollback().context("cannot roll back")?;
    } else {
        transaction.commit().context("it is unknown whether the letters were discarded; run it again")?;
    }
    if decision.json {
        for row in &rows {
            out::json(&serde_json::json!({ "id": row.get::<_, i64>(0), "outcome": "discarded" }));
        }
    } else {
        say!(
            "{} {}",
            count(rows.len(), "discarded"),
            if decision.dry_run { "(and rolled back)" } else { "" }
        );
    }
    let found: BTreeSet<i64> = rows.iter().map(|row| row.get(0)).collect();
    let missing: Vec<String> =
        filter.ids.iter().filter(|id| !found.contains(id)).map(i64::to_string).collect();
    if !missing.is_empty() {
        log::error!(
            "pipeline {pipeline:?} has no open dead letter {}: `rowmill dead-letters list --settled` shows all",
            missing.join(", ")
        );
    }
    Ok(missing.is_empty())
}
