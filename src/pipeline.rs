//! The wiring, and nothing else: last stage first, so that each thread finds its outlet running.

use std::sync::Arc;

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender};

use crate::batch::{RawBatch, TableBatch};
use crate::budget::Budget;
use crate::config::Config;
use crate::cpu::{self, Threads};
use crate::decode::{self, Decode};
use crate::lease::{self, Lease, Wake};
use crate::ledger::{Member, Target};
use crate::lookup::LookupCache;
use crate::metrics::{Gauges, PollMetrics, TableMetrics, Totals};
use crate::ownership::Ownership;
use crate::queue;
use crate::row::Limits;
use crate::setup::Setup;
use crate::source::{self, kafka, watch};
use crate::writer::{self, Writer};

/// A running pipeline, as the supervisor sees it.
pub struct Pipeline {
    pub ownership: Arc<Ownership>,
    pub wake: Sender<Wake>,
    /// Names of the threads that hold data; when all have ended, nothing is in hand.
    pub stages: Vec<String>,
    pub lease_thread: String,
    budget: Arc<Budget>,
    tables: Vec<Arc<TableMetrics>>,
    // Receivers show how much waits; they take nothing, and do not keep a channel open for its reader.
    raw: Vec<Receiver<RawBatch>>,
    loads: Vec<Receiver<TableBatch>>,
}

impl Pipeline {
    pub fn totals(&self) -> Totals {
        TableMetrics::totals(self.tables.iter().map(|t| &**t))
    }

    pub fn gauges(&self) -> Gauges {
        let claims = self.ownership.all();
        Gauges {
            lag: claims.iter().map(|c| c.lag()).sum(),
            partitions: claims.len(),
            stopped: claims.iter().filter(|c| c.stop_reason().is_some()).count(),
            raw_batches: self.raw.iter().map(Receiver::len).sum(),
            table_batches: self.loads.iter().map(Receiver::len).sum(),
            bytes_in_hand: self.budget.used(),
        }
    }
}

/// Starts all threads. They begin to work at once; nothing is read before the first claim.
pub fn start(config: &Config, setup: &Setup, me: &Member, threads: &Threads) -> Result<Pipeline> {
    let (plan, topics, server) = (&setup.plan, &setup.topics, &setup.server);
    let counts = &config.threads;
    let ownership = Arc::new(Ownership::default());
    let budget = Budget::new(config.limits.memory_max_bytes, topics.len());
    let (wake, wakes) = queue::bounded(queue::WAKES);
    let mut stages = Vec::new();

    let busy = counts.pollers + counts.decoders + plan.tables.len() * counts.writers;
    let cores = cpu::plan(&counts.pin, busy, &cpu::cores());
    log::info!("{busy} busy threads on cores {}", describe(&cores));
    let mut cores = cores.into_iter();
    let mut next_core = || cores.next().flatten();
    let poll_cores: Vec<_> = (0..counts.pollers).map(|_| next_core()).collect();
    let decode_cores: Vec<_> = (0..counts.decoders).map(|_| next_core()).collect();

    let lease_thread = "lease".to_owned();
    let lease = Lease {
        server: server.clone(),
        me: me.clone(),
        topics: topics.clone(),
        ownership: ownership.clone(),
        session_lock: config.lease.session_lock,
        wake: wakes,
        pulse: threads.pulse(&lease_thread),
    };
    threads.spawn(&lease_thread, None, || Ok(()), |()| lease::run(lease))?;

    let (mut outlets, mut tables, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for table in &plan.tables {
        let metrics = Arc::new(TableMetrics::default());
        let mut senders = Vec::new();
        for number in 0..counts.writers {
            let (sender, inlet) = queue::bounded(queue::TABLE_BATCHES);
            let name = format!("write-{}-{number}", table.short_name());
            let writer = Writer {
                me: me.clone(),
                target: Target {
                    name: table.name.clone(),
                    oid: table.oid,
                    fingerprint: table.fingerprint.clone(),
                },
                table: table.clone(),
                server: server.clone(),
                lock_timeout: config.postgres.lock_timeout,
                ownership: ownership.clone(),
                inlet: inlet.clone(),
                wake: wake.clone(),
                metrics: metrics.clone(),
                pulse: threads.pulse(&name),
            };
            threads.spawn(&name, next_core(), || Ok(()), move |()| writer::run(&writer))?;
            stages.push(name);
            senders.push(sender);
            loads.push(inlet);
        }
        outlets.push(senders);
        tables.push(metrics);
    }

    let (mut decoders, mut raw) = (Vec::new(), Vec::new());
    for (number, core) in decode_cores.into_iter().enumerate() {
        let (sender, inlet) = queue::bounded(queue::RAW_BATCHES);
        let name = format!("decode-{number}");
        let lookups = LookupCache::new(config.redis.as_ref(), &config.lookups, threads.pulse(&name))?;
        let decode = Decode {
            plan: plan.clone(),
            topics: topics.clone(),
            ownership: ownership.clone(),
            limits: Limits { value_bytes_max: config.limits.message_max_bytes, ..Limits::default() },
            inlet: inlet.clone(),
            outlets: outlets.clone(),
        };
        threads.spawn(&name, core, || Ok(()), |()| decode::run(decode, lookups))?;
        stages.push(name);
        decoders.push(sender);
        raw.push(inlet);
    }
    drop(outlets);

    for (number, core) in poll_cores.into_iter().enumerate() {
        let name = format!("poll-{number}");
        let poller = kafka::Poller {
            kafka: config.kafka.clone(),
            topics: topics.clone(),
            ownership: ownership.clone(),
            budget: budget.clone(),
            decoders: decoders.clone(),
            number,
            pollers: counts.pollers,
            metrics: Arc::new(PollMetrics::default()),
            pulse: threads.pulse(&name),
        };
        // The client's own threads inherit the affinity of the thread that makes it: made first, pinned after.
        let kafka = config.kafka.clone();
        threads.spawn(
            &name,
            core,
            move || kafka::prepare(&kafka),
            move |queue| kafka::run(&poller, queue),
        )?;
        stages.push(name);
    }

    let watch = watch::Watch {
        kafka: config.kafka.clone(),
        topics: topics.clone(),
        ownership: ownership.clone(),
        wake: wake.clone(),
        pulse: threads.pulse("watch"),
    };
    let kafka = config.kafka.clone();
    threads.spawn("watch", None, move || source::consumer(&kafka), |consumer| watch::run(watch, consumer))?;

    Ok(Pipeline { ownership, wake, stages, lease_thread, budget, tables, raw, loads })
}

fn describe(cores: &[Option<usize>]) -> String {
    let listed: Vec<String> = cores.iter().flatten().map(usize::to_string).collect();
    if listed.is_empty() { "of the scheduler's choice (not pinned)".to_owned() } else { listed.join(", ") }
}
