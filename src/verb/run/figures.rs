//! What `run` shows of itself: the pipeline as a service. The list of its figures stands here, that of every process in
//! `board.rs` and `process.rs`, and all of them in `docs/operations.md`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::base::words::count;
use crate::figures::board::{Service, Teller, Work};
use crate::figures::family::{Family, PIPELINE};
use crate::figures::instruments::{Histogram, TableMetrics, Totals, Wait};
use crate::promise::reach::CUT_AFTER;
use crate::verb::run::pipeline::{Gauges, Pipeline};

impl Service for Pipeline {
    /// False before the first heartbeat, without a fresh one, and while records do not flow.
    fn ready(&self) -> Result<(), String> {
        match self.instruments.heartbeat.age() {
            None => Err(format!("waiting for the first heartbeat in the ledger{}", self.why_no_heartbeat())),
            Some(age) if age > self.lease => Err(format!(
                "no heartbeat in the ledger for {} s: PostgreSQL is away{}",
                age.as_secs(),
                self.why_no_heartbeat()
            )),
            Some(_) => self.flows(),
        }
    }

    fn works(&self) -> Vec<Work> {
        Pipeline::works(self)
    }

    fn families(&self) -> Vec<Family> {
        let all = partitions(self).into_iter().chain(tables(self)).chain(stages(self));
        // Two pipelines may read one topic.
        all.map(|family| family.labeled(PIPELINE, &self.name)).collect()
    }

    fn teller(self: Arc<Self>) -> Teller {
        let mut before = self.totals();
        Box::new(move |since| {
            let now = self.totals();
            let before = std::mem::replace(&mut before, now);
            report_line(before, now, since, self.gauges())
        })
    }
}

impl Pipeline {
    /// What PostgreSQL, or the way to it, said.
    fn why_no_heartbeat(&self) -> String {
        let trouble = self.instruments.heartbeat.trouble.shown();
        trouble.map_or_else(String::new, |(_, words)| format!(": {words}"))
    }

    /// False while Kafka or Redis is out of reach, and while a partition waits for a person.
    fn flows(&self) -> Result<(), String> {
        let silence = self.contact.silence(Instant::now());
        if silence >= CUT_AFTER {
            return Err(format!(
                "Kafka has not answered for {} s: its brokers are away, or out of reach from here",
                silence.as_secs()
            ));
        }
        for (name, lookup) in &self.instruments.lookups {
            if let Some((since, words)) = lookup.trouble.shown().filter(|(since, _)| *since >= CUT_AFTER) {
                return Err(format!("records wait for lookup.{name} since {} s: {words}", since.as_secs()));
            }
        }
        for claim in self.ownership.all() {
            if let Some(why) = self.why_still(&claim) {
                return Err(format!(
                    "partition {}/{} does not go on: {why}",
                    claim.topic, claim.partition.id
                ));
            }
        }
        Ok(())
    }
}

/// One line for people: what happened between two totals.
fn report_line(before: Totals, now: Totals, apart: Duration, gauges: Gauges) -> String {
    let seconds = apart.as_secs_f64().max(0.001);
    let rate = |from: u64, to: u64| (to - from) as f64 / seconds;
    let transactions = now.transactions - before.transactions;
    let batch = (now.rows - before.rows).checked_div(transactions).unwrap_or(0);
    let lag = gauges.lag.map_or_else(|| "unknown".to_owned(), |lag| lag.to_string());
    let mut line = format!(
        "{:.0} rows/s, lag {lag}, {} and {}, {:.0} commits/s of {batch} rows, {}, queues {}+{}, \
         {:.1} MB in hand",
        rate(before.rows, now.rows),
        count(now.rows, "row"),
        count(now.dead, "dead letter"),
        rate(before.transactions, now.transactions),
        count(gauges.partitions, "partition"),
        gauges.raw_batches,
        gauges.table_batches,
        gauges.bytes_in_hand as f64 / 1e6,
    );
    if gauges.stopped > 0 {
        line.push_str(&format!(", {} STOPPED (see rowmill status)", count(gauges.stopped, "partition")));
    }
    line
}

fn number(counter: &AtomicU64) -> f64 {
    counter.load(Relaxed) as f64
}

/// What is known of partitions: claims of this moment, and lanes of the whole life of the process.
fn partitions(pipeline: &Pipeline) -> Vec<Family> {
    let mut known = Family::gauge("rowmill_topic_partitions", "Partitions that Kafka says a topic has.");
    let mut claimed = Family::gauge("rowmill_claimed_partitions", "Partitions that this process owns.");
    let mut stopped = Family::gauge(
        "rowmill_partition_stopped",
        "1 if an owned partition is not read any more and a person must act; `rowmill status` says why.",
    );
    let mut lag = Family::gauge(
        "rowmill_lag_records",
        "Offsets between what a table has and the end of the log; absent while Kafka does not answer.",
    );
    let mut lag_seconds =
        Family::gauge("rowmill_lag_seconds", "How long the oldest record that a table lacks has waited.");
    let mut next = Family::gauge("rowmill_next_offset", "The offset after the last that a table has.");
    let claims = pipeline.ownership.all();
    let is_known = pipeline.sees_the_logs();
    for (index, topic) in pipeline.topics.iter().enumerate() {
        if let Some(seen) = topic.seen() {
            known.add(&[("topic", &topic.name)], f64::from(seen.partition_count));
        }
        let owned = claims.iter().filter(|c| c.partition.topic == index).count();
        claimed.add(&[("topic", &topic.name)], owned as f64);
    }
    for claim in &claims {
        let partition = claim.partition.id.to_string();
        let is_stopped = f64::from(u8::from(pipeline.why_still(claim).is_some()));
        stopped.add(&[("topic", &claim.topic), ("partition", &partition)], is_stopped);
        for lane in &claim.lanes {
            let table = &pipeline.instruments.tables[lane.table].0;
            let labels = [("topic", &*claim.topic), ("partition", &*partition), ("table", table.as_str())];
            if let Some(records) = claim.lane_lag(lane).filter(|_| is_known) {
                lag.add(&labels, records as f64);
            }
            if let Some(seconds) = claim.lane_lag_seconds(lane).filter(|_| is_known) {
                lag_seconds.add(&labels, seconds);
            }
            next.add(&labels, lane.committed() as f64);
        }
    }
    let mut families = vec![known, claimed, stopped, lag, lag_seconds, next];
    families.extend(lanes(pipeline));
    families.extend(upkept(pipeline));
    families
}

/// Of tables that keep their rows for a time.
fn upkept(pipeline: &Pipeline) -> [Family; 3] {
    let mut there = Family::gauge("rowmill_partitions", "Partitions of a table with retention.");
    let mut missing = Family::gauge(
        "rowmill_partitions_missing",
        "Partitions that rows may go to and that could not be made; `rowmill check` says why.",
    );
    let mut overdue = Family::gauge(
        "rowmill_partitions_overdue",
        "Partitions that the model keeps no more and that could not be dropped; the log says who is in the way.",
    );
    for (table, shown) in &pipeline.instruments.upkept {
        let labels = [("table", pipeline.instruments.tables[*table].0.as_str())];
        let of = |gauge: &std::sync::atomic::AtomicI64| gauge.load(Relaxed) as f64;
        there.add(&labels, of(&shown.partitions));
        missing.add(&labels, of(&shown.missing));
        overdue.add(&labels, of(&shown.overdue));
    }
    [there, missing, overdue]
}

fn lanes(pipeline: &Pipeline) -> [Family; 3] {
    let mut records =
        Family::counter("rowmill_records_total", "Committed records, by what became of them in a table.");
    let mut holes = Family::counter(
        "rowmill_holes_total",
        "Offsets without a record: transaction markers, aborted records, compaction.",
    );
    let mut progress = Family::gauge(
        "rowmill_last_progress_timestamp_seconds",
        "When this process last moved a table, in seconds since 1970 UTC.",
    );
    for ((partition, table), lane) in pipeline.instruments.lanes.all() {
        let (topic, table) = (&pipeline.topics[partition.topic].name, &pipeline.instruments.tables[table].0);
        let partition = partition.id.to_string();
        let labels = [("topic", &**topic), ("partition", &*partition), ("table", table.as_str())];
        let outcomes = [
            ("row", &lane.rows),
            ("dead_letter", &lane.dead),
            ("skipped", &lane.skipped),
            ("other_table", &lane.other),
        ];
        for (outcome, counter) in outcomes {
            records.add(&[labels[0], labels[1], labels[2], ("outcome", outcome)], number(counter));
        }
        holes.add(&labels, number(&lane.holes));
        let at_ms = lane.progress_ms.load(Relaxed);
        if at_ms > 0 {
            progress.add(&labels, at_ms as f64 / 1000.0);
        }
    }
    [records, holes, progress]
}

type Counter = fn(&TableMetrics) -> &AtomicU64;
type Distribution = fn(&TableMetrics) -> &Histogram;

fn tables(pipeline: &Pipeline) -> Vec<Family> {
    let counters: [(&str, &str, Counter); 4] = [
        ("rowmill_transactions_total", "Committed transactions.", |t| &t.transactions),
        ("rowmill_copied_bytes_total", "Bytes of committed rows, as COPY sent them.", |t| &t.bytes),
        ("rowmill_fences_total", "Spans that another process owned when they were to be committed.", |t| {
            &t.fenced
        }),
        ("rowmill_unknown_commits_total", "Commits whose outcome had to be asked for.", |t| &t.resolved),
    ];
    let histograms: [(&str, &str, Distribution); 4] = [
        ("rowmill_batch_rows", "Rows of a transaction.", |t| &t.batch_rows),
        ("rowmill_commit_seconds", "From the COMMIT's sending to its reply.", |t| &t.commit_seconds),
        ("rowmill_transaction_seconds", "From BEGIN to the COMMIT's reply.", |t| &t.transaction_seconds),
        (
            "rowmill_end_to_end_seconds",
            "From the timestamp of the oldest record of a committed span of one partition to the commit.",
            |t| &t.age_seconds,
        ),
    ];
    let tables = &pipeline.instruments.tables;
    let mut families: Vec<Family> = counters
        .into_iter()
        .map(|(name, help, counter)| {
            let mut family = Family::counter(name, help);
            tables.iter().for_each(|(name, table)| family.add(&[("table", name)], number(counter(table))));
            family
        })
        .collect();
    families.extend(histograms.into_iter().map(|(name, help, histogram)| {
        let mut family = Family::histogram(name, help);
        tables.iter().for_each(|(name, t)| family.add_buckets(&[("table", name)], histogram(t).read()));
        family
    }));
    let mut dead = Family::counter("rowmill_dead_letters_total", "Committed dead letters, by reason.");
    let mut retries =
        Family::counter("rowmill_retries_total", "Transactions that were tried again, by what went wrong.");
    for (name, table) in tables {
        for (reason, count) in table.dead_letters() {
            dead.add(&[("table", name), ("reason", &reason)], count as f64);
        }
        for (class, count) in table.retries() {
            retries.add(&[("table", name), ("class", class.name())], count as f64);
        }
    }
    families.extend([dead, retries]);
    families
}

/// Pollers, decoders, queues, lookups, memory.
fn stages(pipeline: &Pipeline) -> Vec<Family> {
    let instruments = &pipeline.instruments;
    let mut polled = Family::counter("rowmill_polled_records_total", "Records taken from Kafka.");
    let mut bytes = Family::counter(
        "rowmill_polled_bytes_total",
        "Keys, values and headers of records taken from Kafka.",
    );
    let mut dropped = Family::counter(
        "rowmill_dropped_records_total",
        "Records that came twice, too late, or before the proof of their log.",
    );
    for (poller, metrics) in &instruments.pollers {
        polled.add(&[("thread", poller)], number(&metrics.records));
        bytes.add(&[("thread", poller)], number(&metrics.bytes));
        dropped.add(&[("thread", poller)], number(&metrics.dropped));
    }
    let mut depth = Family::gauge("rowmill_queue_batches", "Batches that wait for a thread.");
    let mut room = Family::gauge("rowmill_queue_batches_max", "Batches that may wait for a thread.");
    for (thread, length, capacity) in pipeline.queues() {
        depth.add(&[("thread", thread)], length as f64);
        room.add(&[("thread", thread)], capacity as f64);
    }
    let mut waits = Family::counter(
        "rowmill_wait_seconds_total",
        "Where a thread loses time: input, output, memory, lookup, pace, retry.",
    );
    for thread in &instruments.waits {
        for wait in Wait::ALL {
            waits.add(&[("thread", &thread.thread), ("for", wait.name())], thread.seconds(*wait));
        }
    }
    let mut hits = Family::counter(
        "rowmill_lookup_hits_total",
        "Records whose token was in the cache, once it was asked for.",
    );
    let mut asked =
        Family::counter("rowmill_lookup_asked_total", "Tokens that Redis was asked for, by answer.");
    let mut put_off =
        Family::counter("rowmill_lookup_retries_total", "Questions to Redis that had to be asked again.");
    for (lookup, metrics) in &instruments.lookups {
        hits.add(&[("lookup", lookup)], number(&metrics.hits));
        asked.add(&[("lookup", lookup), ("answer", "found")], number(&metrics.found));
        asked.add(&[("lookup", lookup), ("answer", "missing")], number(&metrics.missing));
        put_off.add(&[("lookup", lookup)], number(&metrics.retries));
    }
    let (used, most) = pipeline.memory();
    let mut families = vec![polled, bytes, dropped, depth, room, waits, hits, asked, put_off];
    families.extend([
        Family::gauge("rowmill_memory_in_hand_bytes", "Raw and encoded records in hand.").with(used as f64),
        Family::gauge("rowmill_memory_max_bytes", "memory_max.").with(most as f64),
    ]);
    let silence = pipeline.contact.silence(Instant::now()).as_secs_f64();
    let help = "Since Kafka last answered this process; it is asked every second.";
    families.push(Family::gauge("rowmill_kafka_answer_age_seconds", help).with(silence));
    if let Some(age) = instruments.heartbeat.age() {
        let help = "Since the ledger last confirmed this process.";
        families.push(Family::gauge("rowmill_heartbeat_age_seconds", help).with(age.as_secs_f64()));
    }
    families
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_line_says_what_happened() {
        let before = Totals { rows: 100, dead: 1, transactions: 1 };
        let now = Totals { rows: 2100, dead: 3, transactions: 11 };
        let gauges = Gauges {
            lag: Some(5),
            partitions: 6,
            stopped: 1,
            raw_batches: 1,
            table_batches: 2,
            bytes_in_hand: 1_500_000,
        };
        assert_eq!(
            report_line(before, now, Duration::from_secs(2), gauges),
            "1000 rows/s, lag 5, 2100 rows and 3 dead letters, 5 commits/s of 200 rows, 6 partitions, queues 1+2, 1.5 MB in \
             hand, 1 partition STOPPED (see rowmill status)"
        );
    }

    /// Names of figures in a text, without what a histogram adds to them.
    fn names(text: &str) -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        words
            .filter(|word| word.starts_with("rowmill_") || word.starts_with("process_"))
            .map(|word| {
                let suffixes = ["_bucket", "_sum", "_count"];
                suffixes.iter().find_map(|suffix| word.strip_suffix(suffix)).unwrap_or(word).to_owned()
            })
            .collect()
    }

    #[test]
    fn documents_and_dashboards_name_what_exists_and_the_documents_name_all_of_it() {
        let code: BTreeSet<String> = [
            include_str!("figures.rs"),
            include_str!("../../figures/board.rs"),
            include_str!("../../figures/process.rs"),
        ]
        .iter()
        .flat_map(|text| text.split('"').skip(1).step_by(2))
        .flat_map(names)
        .filter(|name| name.len() > "process_".len())
        .collect();
        // Those of the verbs that answer over HTTP are in documents of their own.
        let others: BTreeSet<String> = [
            include_str!("../web/requests.rs"),
            include_str!("../serve/figures.rs"),
            include_str!("../collect/figures.rs"),
        ]
        .iter()
        .flat_map(|text| text.split('"').skip(1).step_by(2))
        .flat_map(names)
        .collect();
        // Roles have names of the same form.
        let roles = names(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/roles.sql")));
        for (file, text) in [
            ("operations.md", include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"))),
            (
                "rowmill.rules.yml",
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring/rowmill.rules.yml")),
            ),
            (
                "rowmill.grafana.json",
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring/rowmill.grafana.json")),
            ),
        ] {
            let unknown: Vec<String> = names(text)
                .into_iter()
                .filter(|name| !code.contains(name) && !others.contains(name) && !roles.contains(name))
                .collect();
            assert!(unknown.is_empty(), "{file} names {unknown:?}, which nobody measures");
        }
        let documented = names(include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md")));
        let missing: Vec<&String> = code.difference(&documented).collect();
        assert!(missing.is_empty(), "docs/operations.md lacks {missing:?}");
    }

    #[test]
    fn each_alert_has_its_paragraph() {
        let document = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/operations.md"));
        for line in
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/monitoring/rowmill.rules.yml")).lines()
        {
            if let Some((_, alert)) = line.split_once("alert: ") {
                assert!(document.contains(&format!("**{alert}**")), "{alert}");
            }
        }
    }
}
