//! `rowmill check`: what would go wrong, before it does.

use std::collections::BTreeMap;
use std::ops::Range;
mod brokers;
mod door;
mod findings;
mod sample;
mod window;

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use self::brokers::{check_name, why};
use self::findings::Findings;

use crate::client::pg::{Client, Server};
use crate::client::redis;
use crate::config::{self, Config};
use crate::kafka::ask::{ANSWER, Asker};
use crate::kafka::native;
use crate::model::plan::Plan;
use crate::promise::dead_letter;
use crate::promise::duties::Entry;
use crate::promise::gate::{LogState, Opening, opening};
use crate::promise::ledger;
use crate::promise::offsets::Place;
use crate::store::postgres::audit::Seats;
use crate::verb::out::say;
use crate::verb::setup;

/// True if `run` would work.
pub fn run(path: &Path, sample: u32) -> Result<bool> {
    let mut findings = Findings::default();
    say!("configuration {}", path.display());
    // A file for the front door or for answers alone has no models.
    let (of_door, of_window) = (config::read_door(path), config::read_window(path));
    if config::has_no_models(path) && (of_door.is_ok() || of_window.is_ok()) {
        let mut good = true;
        if let Ok(door) = &of_door {
            good &= door::alone(door, &mut findings);
        }
        if let Ok(window) = &of_window {
            good &= window::alone(window, &mut findings);
        }
        return Ok(good);
    }
    let config = match config::read(path) {
        Ok(config) => config,
        Err(error) => {
            findings.bad(format!("{error:#}"));
            return Ok(findings.conclude("run"));
        }
    };
    findings.good(format!("pipeline {:?}, {} models", config.pipeline, config.models.len()));
    let found = check_postgres(&config, &mut findings);
    let read = found.as_ref().map(|(plan, _)| door::fields(plan)).unwrap_or_default();
    check_redis(&config, &mut findings);
    check_kafka(&config, found, sample, &mut findings);
    if let Ok(door) = &of_door {
        door::check(door, &read, &mut findings);
    }
    if let Ok(window) = &of_window {
        window::check(window, &mut findings);
    }
    say!("memory");
    match setup::memory(&config) {
        Ok(fine) => findings.good(fine),
        Err(small) => findings.doubtful(small),
    }
    print_guarantee(&findings);
    Ok(findings.conclude("run"))
}

fn print_guarantee(findings: &Findings) {
    say!("guarantee");
    say!(
        "  Each record of a partition, from start_offset up to next_offset in rowmill.ledger, has exactly one outcome in"
    );
    say!(
        "  each table: its row, one dead letter, or one count (skipped, other table). Rows and next_offset commit together."
    );
    if findings.commits_are_late {
        say!(
            "  synchronous_commit is off: after a crash of the server, the last rows and offsets go back together and are"
        );
        say!("  read again.");
    }
}

fn check_postgres(config: &Config, findings: &mut Findings) -> Option<(Plan, Client)> {
    say!("PostgreSQL");
    let opened =
        Server::of(&config.postgres).and_then(|server| Ok((server.connect("rowmill check")?, server)));
    let (mut client, server) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            let refused = matches!(login_class(&error), Some("28"));
            let remedy = if refused { "; is the password right?" } else { "" };
            findings.bad(format!("{error:#}{remedy}"));
            return None;
        }
    };
    findings.good(format!("{} over {}", server.address(), server.protection()));
    server.impostor_warning().into_iter().for_each(|warning| findings.doubtful(warning));
    let schema = ledger::check_version(&mut client).and_then(|()| dead_letter::check_columns(&mut client));
    if let Err(error) = schema {
        findings.bad(format!("{error:#}"));
        return None;
    }
    check_settings(&mut client, findings);
    let plan = match setup::plan(config, &mut client) {
        Ok(Ok(plan)) => plan,
        Ok(Err(problems)) => {
            problems.iter().for_each(|problem| findings.bad(problem));
            return None;
        }
        Err(error) => {
            findings.bad(format!("{error:#}"));
            return None;
        }
    };
    check_database(&mut client, &plan, findings);
    check_seats(config, &mut client, &plan, findings);
    say!("models");
    for model in &plan.models {
        say!("  topic {:?} -> table {}, {}", model.topic, plan.tables[model.table].name, model.when_text());
        model.explain(&plan).iter().for_each(|line| say!("    {line}"));
    }
    Some((plan, client))
}

/// The class of the SQLSTATE with which a server refused a session.
fn login_class(error: &anyhow::Error) -> Option<&str> {
    let code = error.downcast_ref::<postgres::Error>()?.code()?.code();
    code.get(..2)
}

/// Settings of the server that weaken the guarantee or stop the pump.
fn check_settings(client: &mut Client, findings: &mut Findings) {
    let mut setting = |name: &str| -> String {
        let row = client.query_typed("SELECT current_setting($1)", &[(&name, postgres::types::Type::TEXT)]);
        row.ok().and_then(|rows| rows.first().map(|row| row.get(0))).unwrap_or_default()
    };
    for name in ["fsync", "full_page_writes"] {
        if setting(name) == "off" {
            findings
                .bad(format!("{name} is off: a crash of the server may lose or damage what it acknowledged"));
        }
    }
    if setting("transaction_read_only") == "on" || setting("default_transaction_read_only") == "on" {
        findings.bad("the session is read-only: this is a standby, or default_transaction_read_only is on");
    }
    findings.commits_are_late = setting("synchronous_commit") == "off";
}

/// What the database is and allows: `run` refuses to start on the same sentences.
fn check_database(client: &mut Client, plan: &Plan, findings: &mut Findings) {
    match setup::audit(client, plan) {
        Ok(remarks) => {
            remarks.refusals.iter().for_each(|sentence| findings.bad(sentence));
            remarks.warnings.iter().for_each(|sentence| findings.doubtful(sentence));
            remarks.advice.iter().for_each(|sentence| findings.good(sentence));
        }
        Err(error) => findings.bad(format!("{error:#}")),
    }
    for table in &plan.tables {
        findings.good(format!("table {} with {} columns to fill", table.name, table.columns.len()));
    }
}

/// Sessions of one process beside those that write: the lease's, and one that reads definitions.
const SESSIONS_BESIDE: usize = 2;

/// Whether the server has room for the sessions of a process. Behind a pooler that is the pooler's matter.
fn check_seats(config: &Config, client: &mut Client, plan: &Plan, findings: &mut Findings) {
    if !config.lease.session_lock {
        return;
    }
    let writers = plan.tables.len() * config.threads.writers;
    let needed = writers.min(config.postgres.sessions) + SESSIONS_BESIDE;
    match setup::seats(client) {
        Ok(seats) => match seats_words(needed, writers, config.postgres.sessions, seats) {
            Ok(fine) => findings.good(fine),
            Err(tight) => findings.doubtful(tight),
        },
        Err(error) => findings.bad(format!("{error:#}")),
    }
}

fn seats_words(needed: usize, writers: usize, most: usize, seats: Seats) -> Result<String, String> {
    let Seats { allowed, taken } = seats;
    let turns = if writers > most { format!(": {writers} writers take turns") } else { String::new() };
    let words = format!(
        "a process has up to {needed} sessions{turns}; {allowed} are allowed, of which {taken} are taken"
    );
    if needed as i64 <= i64::from(allowed) {
        return Ok(words);
    }
    Err(format!(
        "{words}: tables take turns with what there is, and other programs may get none; set sessions in [postgres] to less, or \
         allow more (max_connections, CONNECTION LIMIT of the role and of the database)"
    ))
}

fn check_redis(config: &Config, findings: &mut Findings) {
    let Some(redis) = &config.redis else { return };
    say!("Redis");
    match redis::ping(redis) {
        Ok(0) => {
            return findings.bad(
                "Redis is empty, so every token would be unknown and `run` would wait: is it the right database?",
            );
        }
        Ok(keys) => findings.good(format!("{keys} keys")),
        Err(error) => return findings.bad(format!("{error:#}")),
    }
    match redis::refusal(redis, &config.lookups) {
        Ok(refusal) => refusal.into_iter().for_each(|sentence| findings.bad(sentence)),
        Err(error) => findings.bad(format!("{error:#}")),
    }
    for lookup in &config.lookups {
        // A user who may not look at keys is not told.
        if redis::matches_no_key(redis, lookup).is_ok_and(|none| none) {
            findings.doubtful(format!(
                "lookup.{}: no key of Redis looks like {:?}, so every token would be unknown: is the text around {{}} right?",
                lookup.name,
                lookup.key_of("{}")
            ));
        }
    }
}

fn check_kafka(config: &Config, found: Option<(Plan, Client)>, sample: u32, findings: &mut Findings) {
    say!("Kafka");
    let names: Vec<String> = {
        let mut names: Vec<String> = config.models.iter().map(|m| m.topic.clone()).collect();
        names.sort();
        names.dedup();
        names
    };
    let described = Asker::new(&config.kafka, ANSWER).and_then(|asker| {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match asker.describe(&names) {
            Ok(described) => Ok((described, asker)),
            Err(error) => Err(why(&config.kafka, &asker, error)),
        }
    });
    let (described, asker) = match described {
        Ok(described) => described,
        Err(error) => {
            findings.bad(format!("Kafka at {}: {error:#}", config.kafka.brokers));
            return;
        }
    };
    let cluster = asker.cluster_id().unwrap_or_default();
    findings.good(format!("cluster {cluster} at {}", config.kafka.brokers));
    for topic in &described {
        if check_name(topic, findings) {
            check_rights(topic, findings);
        }
    }
    let Some((plan, mut client)) = found else { return };
    if let Err(error) = check_ledger(config, &plan, &mut client, &asker, &described, &cluster, findings) {
        findings.bad(format!("{error:#}"));
    }
    if sample > 0 {
        try_sample(config, plan, &asker, sample, findings);
    }
}

/// The newest records of each topic, as the models would take them.
fn try_sample(config: &Config, plan: Plan, asker: &Asker, records: u32, findings: &Findings) {
    say!("sample");
    let plan = Arc::new(plan);
    for (index, topic) in plan.topics.iter().enumerate() {
        let tried = match sample::try_out(config, &plan, index, asker, records) {
            Ok(tried) => tried,
            Err(error) => {
                findings.doubtful(format!("topic {:?}: no sample: {error:#}", topic.name));
                continue;
            }
        };
        let refused: u64 = tried.refused.values().map(|(count, _)| count).sum();
        let sentence =
            format!("topic {:?}: {refused} of {} records would be dead letters", topic.name, tried.records);
        if refused == 0 {
            findings.good(sentence)
        } else {
            findings.doubtful(sentence)
        }
        for (reason, (count, message)) in &tried.refused {
            say!("    {count} {reason}, the first: {message}");
        }
        for (table, column) in tried.by_default(&plan) {
            say!(
                "    column {column:?} of table {table}: no record has its field, so each row takes the column's default"
            );
        }
    }
}

/// What this user may do with a topic that it may describe.
fn check_rights(topic: &native::Description, findings: &mut Findings) {
    if let Some(sentence) = topic.unreadable() {
        findings.bad(sentence);
    } else if topic.rights.describe_configs {
        findings.good(format!("topic {:?}", topic.name));
    } else {
        findings.good(format!(
            "topic {:?}; without DescribeConfigs on it, a record that compaction took stops its partition, and `verify` cannot \
             read it",
            topic.name
        ));
    }
}

/// The ledger's positions against the logs, by the same decision that `run` takes, on the same facts.
fn check_ledger(
    config: &Config,
    plan: &Plan,
    client: &mut Client,
    asker: &Asker,
    described: &[native::Description],
    cluster: &str,
    findings: &mut Findings,
) -> Result<()> {
    say!("ledger");
    let topics = setup::topics(plan);
    let names: Vec<String> = topics.iter().map(|t| t.name.to_string()).collect();
    let members = ledger::living(client, &config.pipeline)?;
    let entries = ledger::entries(client, &config.pipeline, &members, &names)?;
    findings.good(format!("{} living members", members.len()));
    let mut places: BTreeMap<(&str, i32), Vec<&Entry>> = BTreeMap::new();
    for entry in &entries {
        let Some(topic) = topics.iter().find(|t| *t.name == *entry.topic) else { continue };
        let place = format!("{}/{} -> {}", entry.topic, entry.partition, entry.target);
        if *entry.pipeline != *config.pipeline {
            if topic.targets.iter().any(|target| **target == *entry.target) {
                findings.bad(format!(
                    "{place} belongs to pipeline {:?}: use that name, or `rowmill init --take-over {}`",
                    entry.pipeline, entry.pipeline
                ));
            }
            continue;
        }
        if !cluster.is_empty() && *entry.cluster_id != *cluster {
            findings.bad(format!(
                "{place} was read from Kafka cluster {} and this is {cluster}",
                entry.cluster_id
            ));
            continue;
        }
        places.entry((&entry.topic, entry.partition)).or_default().push(entry);
    }
    let mut known = 0;
    let mut compacted: BTreeMap<&str, bool> = BTreeMap::new();
    let is_there = |topic: &str| described.iter().any(|d| d.name == topic && d.id.is_ok());
    places.retain(|(topic, _), _| is_there(topic));
    let logs = asker.all_ends(&places.keys().copied().collect::<Vec<_>>());
    for (((topic, partition), entries), log) in places.into_iter().zip(logs) {
        let Some(Ok(topic_id)) = described.iter().find(|d| d.name == topic).map(|d| d.id.clone()) else {
            continue;
        };
        let Range { start, end } = log?;
        // Without the right to ask, `run` takes it for a topic that keeps everything, too.
        let compacted = *compacted.entry(topic).or_insert_with(|| asker.is_compacted(topic).unwrap_or(false));
        let name = format!("{topic}/{partition}");
        let log = LogState { name, topic_id, start, end, compacted };
        let tables: Vec<Place> =
            entries.iter().map(|e| Place { next: e.next_offset, anchor: e.anchor }).collect();
        match opening(&entries[0].topic_id, &log, &tables) {
            Opening::Read { .. } => known += entries.len(),
            Opening::Stop(reason) => findings.bad(format!("{topic}/{partition}: {reason}")),
        }
    }
    findings.good(format!("{known} positions inside their logs"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_compared_with_what_is_allowed() {
        let seats = |allowed| Seats { allowed, taken: 7 };
        let words = |needed, writers, allowed| seats_words(needed, writers, 30, seats(allowed));
        assert_eq!(
            words(7, 5, 97).as_deref(),
            Ok("a process has up to 7 sessions; 97 are allowed, of which 7 are taken")
        );
        assert!(words(32, 200, 32).is_ok_and(|fine| fine.contains("200 writers take turns")));
        assert!(words(32, 200, 31).is_err_and(|tight| tight.contains("CONNECTION LIMIT")));
    }
}
