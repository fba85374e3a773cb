//! `rowmill dead-letters`: look at what was set aside, write it again, or let it be.
//!
//! A letter stays in the table for ever, settled or not: it is the record's one outcome in the ledger. What a person decides
//! about it is written beside it, in the same transaction as the rows that come of it.

mod letter;
mod retry;

use anyhow::{Context, Result, bail};
use jiff::{Span, Timestamp, Zoned};
use postgres::Client;
use postgres::types::ToSql;

use crate::client::pg::Server;
use crate::config::Config;
use crate::promise::{dead_letter, ledger};

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

/// Which letters, and whether it is meant.
#[derive(clap::Args)]
pub struct Decision {
    #[command(flatten)]
    filter: Filter,
    /// All open letters of the pipeline: what an empty filter would mean has to be said.
    #[arg(long, conflicts_with_all = ["ids", "topic", "table", "reason", "since", "until"])]
    every: bool,
    /// Do it all, and roll it back.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Default)]
pub struct Filter {
    /// Only these letters.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// Only from this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Only for this table, as schema.table or without the schema.
    #[arg(long)]
    table: Option<String>,
    /// Only for this reason, as `list` shows it.
    #[arg(long)]
    reason: Option<String>,
    /// Only those set aside since then: RFC 3339, or how long ago, such as 2h or 3d.
    #[arg(long, value_parser = moment)]
    since: Option<String>,
    /// Only those set aside before then.
    #[arg(long, value_parser = moment)]
    until: Option<String>,
}

/// A point in time, or a distance back from now, as PostgreSQL reads it.
fn moment(text: &str) -> Result<String, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at.to_string());
    }
    let back = text.parse::<Span>().ok().filter(|span| !span.is_negative());
    back.and_then(|span| Zoned::now().checked_sub(span).ok())
        .map(|at| at.timestamp().to_string())
        .ok_or_else(|| "expected a time like 2024-05-01T12:00:00Z, or how long ago, like 2h or 3d".to_owned())
}

impl Filter {
    fn is_empty(&self) -> bool {
        let Filter { ids, topic, table, reason, since, until } = self;
        ids.is_empty()
            && topic.is_none()
            && table.is_none()
            && reason.is_none()
            && since.is_none()
            && until.is_none()
    }

    /// A condition on rowmill.dead_letter for [`Filter::parameters`], which are `$1` to `$7`.
    const SQL: &str = "pipeline = $1 AND ($2::BIGINT[] = '{}' OR id = ANY ($2)) AND ($3::TEXT IS NULL OR topic = $3)
        AND ($4::TEXT IS NULL OR target = $4 OR split_part(target, '.', 2) = $4) AND ($5::TEXT IS NULL OR reason = $5)
        AND ($6::TEXT IS NULL OR created_at >= $6::TIMESTAMPTZ) AND ($7::TEXT IS NULL OR created_at < $7::TIMESTAMPTZ)";

    /// The parameters of [`Filter::SQL`], and more behind them.
    fn parameters<'a>(
        &'a self,
        pipeline: &'a String,
        more: &[&'a (dyn ToSql + Sync)],
    ) -> Vec<&'a (dyn ToSql + Sync)> {
        let Filter { ids, topic, table, reason, since, until } = self;
        let mut all: Vec<&(dyn ToSql + Sync)> = vec![pipeline, ids, topic, table, reason, since, until];
        all.extend(more);
        all
    }
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
            discard(&mut client, &config.pipeline, decision).map(|()| true)
        }
    }
}

impl Decision {
    fn check(&self) -> Result<()> {
        if self.filter.is_empty() && !self.every {
            bail!(
                "which letters? Give ids, --topic, --table, --reason, --since or --until, or --every for all of them"
            );
        }
        Ok(())
    }
}

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
    let letters = letter::read(
        client,
        &condition,
        "id DESC",
        &filter.parameters(pipeline, &[]),
        limit,
        letter::Part::Head,
    )?;
    for letter in &letters {
        if json { println!("{}", letter.json()) } else { println!("{}", letter.line()) }
    }
    let sql = format!("SELECT count(*) FROM rowmill.dead_letter WHERE {condition}");
    let all: i64 = client
        .query_one(&sql, &filter.parameters(pipeline, &[]))
        .context("cannot count the dead letters")?
        .get(0);
    let more = all - letters.len() as i64;
    if !json && all == 0 {
        println!("no dead letters match");
    } else if !json && more > 0 {
        println!("and {more} more: --limit shows them, `rowmill status` counts them by reason");
    }
    Ok(())
}

fn show(client: &mut Client, pipeline: &str, ids: &[i64], json: bool) -> Result<bool> {
    let mut all = true;
    for id in ids {
        let parameters: [&(dyn ToSql + Sync); 2] = [&pipeline, id];
        let found =
            letter::read(client, "pipeline = $1 AND id = $2", "id", &parameters, 1, letter::Part::Whole)?;
        match found.first() {
            Some(letter) if json => println!("{}", letter.json()),
            Some(letter) => println!("{}", letter.page()),
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

fn discard(client: &mut Client, pipeline: &String, decision: &Decision) -> Result<()> {
    let filter = &decision.filter;
    let sql = format!(
        "UPDATE rowmill.dead_letter SET settled_at = clock_timestamp(), settled_as = 'discarded'
         WHERE {} AND settled_at IS NULL RETURNING id",
        Filter::SQL
    );
    let mut transaction = client.transaction().context("cannot begin a transaction")?;
    let rows =
        transaction.query(&sql, &filter.parameters(pipeline, &[])).context("cannot discard dead letters")?;
    if decision.dry_run {
        transaction.rollback().context("cannot roll back")?;
    } else {
        transaction.commit().context("it is unknown whether the letters were discarded; run it again")?;
    }
    if decision.json {
        for row in &rows {
            println!("{}", serde_json::json!({ "id": row.get::<_, i64>(0), "outcome": "discarded" }));
        }
    } else {
        println!(
            "{} {}",
            count(rows.len(), "discarded"),
            if decision.dry_run { "(and rolled back)" } else { "" }
        );
    }
    Ok(())
}

/// "3 letters discarded".
fn count(letters: usize, what: &str) -> String {
    format!("{letters} {} {what}", if letters == 1 { "letter" } else { "letters" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_times_or_distances() {
        let second = |text: &str| moment(text).unwrap().parse::<Timestamp>().unwrap().as_second();
        assert_eq!(second("2024-05-01T12:00:00Z"), 1_714_564_800);
        let now = Timestamp::now().as_second();
        for (text, seconds) in [("2h", 7200), ("90m", 5400), ("PT1H", 3600), ("30 s", 30)] {
            let back = now - second(text);
            assert!((seconds..seconds + 5).contains(&back), "{text}: {back}");
        }
        for wrong in ["", "yesterday", "-2h", "12", "2024-05-01"] {
            assert!(moment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_decision_about_everything_has_to_be_said() {
        let decision = |filter, every| Decision { filter, every, dry_run: false, json: false };
        assert!(decision(Filter::default(), false).check().is_err());
        assert!(decision(Filter::default(), true).check().is_ok());
        assert!(decision(Filter { ids: vec![1], ..Filter::default() }, false).check().is_ok());
        assert!(
            decision(Filter { reason: Some("too_long".into()), ..Filter::default() }, false).check().is_ok()
        );
    }
}
