//! `rowmill check`: what would go wrong, before it does.

use std::collections::BTreeMap;
use std::ops::Range;
mod sample;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

use crate::client::pg::{Client, Server};
use crate::client::{redis, tls};
use crate::config::{self, Config};
use crate::kafka::ask::{ANSWER, Asker};
use crate::kafka::native;
use crate::model::plan::Plan;
use crate::promise::duties::Entry;
use crate::promise::gate::{LogState, Opening, opening};
use crate::promise::ledger;
use crate::promise::offsets::Place;
use crate::verb::out::say;
use crate::verb::setup;

/// For a handshake of our own with a broker that does not answer.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What was found, good and bad.
#[derive(Default)]
struct Findings {
    problems: Vec<String>,
    /// The server acknowledges commits before they are on disk.
    commits_are_late: bool,
}

impl Findings {
    fn good(&self, text: impl std::fmt::Display) {
        say!("  ok       {text}");
    }

    /// `run` would work, and yet somebody should look at it.
    fn doubtful(&self, text: impl std::fmt::Display) {
        say!("  WARNING  {text}");
    }

    fn bad(&mut self, text: impl std::fmt::Display) {
        say!("  PROBLEM  {text}");
        self.problems.push(text.to_string());
    }
}

/// True if `run` would work.
pub fn run(path: &Path, sample: u32) -> Result<bool> {
    let mut findings = Findings::default();
    say!("configuration {}", path.display());
    let config = match config::read(path) {
        Ok(config) => config,
        Err(error) => {
            findings.bad(format!("{error:#}"));
            return Ok(conclude(&findings));
        }
    };
    findings.good(format!("pipeline {:?}, {} models", config.pipeline, config.models.len()));
    let found = check_postgres(&config, &mut findings);
    check_redis(&config, &mut findings);
    check_kafka(&config, found, sample, &mut findings);
    say!("memory");
    match setup::memory(&config) {
        Ok(fine) => findings.good(fine),
        Err(small) => findings.doubtful(small),
    }
    print_guarantee(&findings);
    Ok(conclude(&findings))
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

fn conclude(findings: &Findings) -> bool {
    match findings.problems.len() {
        0 => say!("\n`rowmill run` would work"),
        1 => say!("\n1 problem: `rowmill run` would not work"),
        n => say!("\n{n} problems: `rowmill run` would not work"),
    }
    findings.problems.is_empty()
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
    if let Err(error) = ledger::check_version(&mut client) {
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
        }
        Err(error) => findings.bad(format!("{error:#}")),
    }
    for table in &plan.tables {
        findings.good(format!("table {} with {} columns to fill", table.name, table.columns.len()));
    }
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
            Err(error) => Err(why(config, &asker, error)),
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
        match &topic.id {
            Ok(_) => check_rights(topic, findings),
            Err(reason) => findings.bad(format!(
                "topic {:?}: {}; create it, mend its name, or let this user describe it",
                topic.name,
                reason.trim()
            )),
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

/// A request without an answer says nothing; a handshake of our own, or the connection's last error, says why.
fn why(config: &Config, asker: &Asker, error: anyhow::Error) -> anyhow::Error {
    if let Some(tls) = &config.kafka.tls {
        // A key with a password is for the client only; a server's certificate can be judged without one.
        let client = tls.cert.as_deref().zip(tls.key.as_deref()).filter(|_| tls.key_password.is_none());
        let files = tls::Files { ca: tls.ca.as_deref(), client };
        for broker in config.kafka.brokers.split(',') {
            let (host, port) = config::address::address_of(broker);
            if let Err(refused) = tls::probe(host, port, files, HANDSHAKE) {
                return refused;
            }
        }
    }
    let said = asker.last_error();
    // A broker that waits for a handshake says nothing at all.
    let speaks_tls = || {
        let files = || tls::Files { ca: None, client: None };
        config.kafka.tls.is_none()
            && config
                .kafka
                .brokers
                .split(',')
                .map(config::address::address_of)
                .any(|(host, port)| tls::speaks(&tls::probe(host, port, files(), HANDSHAKE)))
    };
    if said.as_deref().is_none_or(|words| unanswered(words).is_none()) && speaks_tls() {
        return anyhow::anyhow!(
            "the brokers speak TLS there, and this configuration has no [kafka.tls]: add it with ca, or name the plaintext port"
        );
    }
    let words = said.unwrap_or_else(|| format!("{error:#}"));
    let remedy = unanswered(&words).unwrap_or("are the brokers and their ports right?");
    anyhow::anyhow!("{words}; {remedy}")
}

/// What an error of a connection calls for, where its words tell.
fn unanswered(words: &str) -> Option<&'static str> {
    let has = |part: &str| words.to_lowercase().contains(part);
    if has("sasl") && (has("authentication") || has("credentials")) {
        Some("are username, password and mechanism in [kafka.sasl] right?")
    } else if has("invalid response size") || has("receive failed") && has("response") {
        Some("what answers there is no Kafka broker: is it another server's port?")
    } else if has("connection refused") {
        Some("nothing listens there: are the brokers and their ports right, and do they run?")
    } else {
        None
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
    let (members, entries) = ledger::snapshot(client, &config.pipeline, &names)?;
    findings.good(format!("{} living members", members.len()));
    let mut places: BTreeMap<(&str, i32), Vec<&Entry>> = BTreeMap::new();
    for entry in &entries {
        let Some(topic) = topics.iter().find(|t| *t.name == *entry.topic) else { continue };
        let place = format!("{}/{} -> {}", entry.topic, entry.partition, entry.target);
        if entry.pipeline != config.pipeline {
            if topic.targets.contains(&entry.target) {
                findings.bad(format!(
                    "{place} belongs to pipeline {:?}: use that name, or `rowmill init --take-over {}`",
                    entry.pipeline, entry.pipeline
                ));
            }
            continue;
        }
        if !cluster.is_empty() && entry.cluster_id != cluster {
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
    for ((topic, partition), entries) in places {
        let Some(Ok(topic_id)) = described.iter().find(|d| d.name == topic).map(|d| d.id.clone()) else {
            continue;
        };
        let Range { start, end } = asker.ends(topic, partition)?;
        // Without the right to ask, `run` takes it for a topic that keeps everything, too.
        let compacted = *compacted.entry(topic).or_insert_with(|| asker.is_compacted(topic).unwrap_or(false));
        let log = LogState { topic_id, start, end, compacted };
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
    fn an_error_of_a_connection_has_its_remedy() {
        #[track_caller]
        fn check(words: &str, expected: Option<&str>) {
            let found = unanswered(words);
            assert_eq!(found.is_some(), expected.is_some(), "{words}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{words}: {found:?}");
        }
        check("cannot describe the topics: Local: Timed out", None);
        check(
            "b:1/bootstrap: Receive failed: Invalid response size 1157627904 (0..100000000)",
            Some("no Kafka broker"),
        );
        check(
            "SASL authentication error: Authentication failed due to invalid credentials with SASL mechanism",
            Some("[kafka.sasl]"),
        );
        check("Connect to ipv4#127.0.0.1:1 failed: Connection refused", Some("nothing listens there"));
    }
}
