//! The wiring, and nothing else: last stage first, so that each thread finds its outlet running.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender};

use crate::base::budget::Budget;
use crate::base::queue;
use crate::base::thread::{self, Kind, Name, Threads};
use crate::config::Config;
use crate::decode::Decoder;
use crate::decode::lookup::LookupCache;
use crate::decode::record::Limits;
use crate::decode::reject::Reason;
use crate::figures::board::Work;
use crate::figures::instruments::{Heartbeat, LookupMetrics, PollMetrics, TableMetrics, Totals, Waits};
use crate::kafka::ask::{ANSWER, Asker};
use crate::kafka::{poll, watch};
use crate::model::editions::Editions;
use crate::promise::batch::{RawBatch, TableBatch};
use crate::promise::claim::{Claim, Ownership, Wake};
use crate::promise::guard::Guard;
use crate::promise::lane::LaneRegister;
use crate::promise::lease::Lease;
use crate::promise::ledger::Member;
use crate::promise::mend::Mend;
use crate::promise::reach::Contact;
use crate::promise::session::{Lender, Sessions};
use crate::promise::topics::Topic;
use crate::store::postgres::sink::Sinks;
use crate::verb::run::definitions::Definitions;
use crate::verb::run::upkeep::{Upkeep, Upkept};
use crate::verb::setup::Setup;
use crate::write::Writer;

/// Kafka is asked every second: after three times that without an answer nobody knows how long the logs are.
const LAG_IS_KNOWN_FOR: Duration = Duration::from_secs(3);

/// A running pipeline, as `run` sees it.
pub struct Pipeline {
    pub name: String,
    pub ownership: Arc<Ownership>,
    pub contact: Arc<Contact>,
    pub wake: Sender<Wake>,
    /// Names of the threads that hold data; when all have ended, nothing is in hand.
    pub stages: Vec<Name>,
    pub lease_thread: Name,
    pub topics: Arc<[Topic]>,
    pub instruments: Instruments,
    pub guard: Option<Arc<Guard>>,
    /// Without a heartbeat for this long, others take the partitions.
    pub lease: Duration,
    budget: Arc<Budget>,
    // Receivers only show how much waits, each with its reader's name. They keep a channel open for its senders, so a stage
    // that ends empties its own.
    raw: Vec<(Name, Receiver<RawBatch>)>,
    /// With the table's index in the plan.
    loads: Vec<(Name, usize, Receiver<TableBatch>)>,
}

/// What it holds at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Records between the tables and the logs' ends; `None` until it is known for all partitions.
    pub lag: Option<i64>,
    pub partitions: usize,
    pub stopped: usize,
    pub raw_batches: usize,
    pub table_batches: usize,
    pub bytes_in_hand: i64,
}

/// What the threads count, by the names that people know.
#[derive(Default)]
pub struct Instruments {
    /// In the plan's order.
    pub tables: Vec<(String, Arc<TableMetrics>)>,
    pub pollers: Vec<(Name, Arc<PollMetrics>)>,
    pub lookups: Vec<(String, Arc<LookupMetrics>)>,
    /// One for each poller, decoder and writer.
    pub waits: Vec<Arc<Waits>>,
    pub lanes: Arc<LaneRegister>,
    pub heartbeat: Arc<Heartbeat>,
    /// By the table's place.
    pub upkept: BTreeMap<usize, Arc<Upkept>>,
}

impl Instruments {
    fn waits(&mut self, thread: &str) -> Arc<Waits> {
        let waits = Waits::new(thread);
        self.waits.push(waits.clone());
        waits
    }
}

impl Pipeline {
    pub fn totals(&self) -> Totals {
        TableMetrics::totals(self.instruments.tables.iter().map(|(_, t)| &**t))
    }

    pub fn gauges(&self) -> Gauges {
        let claims = self.ownership.all();
        Gauges {
            lag: self.sees_the_logs().then(|| claims.iter().map(|c| c.lag()).sum()).flatten(),
            partitions: claims.len(),
            stopped: claims.iter().filter(|c| self.why_still(c).is_some()).count(),
            raw_batches: self.raw.iter().map(|(_, r)| r.len()).sum(),
            table_batches: self.loads.iter().map(|(_, _, r)| r.len()).sum(),
            bytes_in_hand: self.budget.used(),
        }
    }

    /// False where Kafka has said nothing for so long that logs may be longer than they were when it did.
    pub fn sees_the_logs(&self) -> bool {
        self.contact.silence(Instant::now()) < LAG_IS_KNOWN_FOR
    }

    /// Why nothing of a partition goes on, if so; also while a topic that the guard stopped is tried again.
    pub fn why_still(&self, claim: &Claim) -> Option<String> {
        let by_guard = || self.guard.as_ref()?.stopped(claim.partition.topic);
        claim.why_still().or_else(by_guard)
    }

    /// Each queue by the thread that reads it: batches in it, and its bound.
    pub fn queues(&self) -> impl Iterator<Item = (&str, usize, usize)> {
        let raw = self.raw.iter().map(|(name, r)| (&**name, r.len(), r.capacity()));
        let loads = self.loads.iter().map(|(name, _, r)| (&**name, r.len(), r.capacity()));
        raw.chain(loads).map(|(name, length, most)| (name, length, most.unwrap_or_default()))
    }

    /// Bytes in hand, and their bound.
    pub fn memory(&self) -> (i64, i64) {
        (self.budget.used(), self.budget.max())
    }

    /// What the watchdog compares: the writers of each table, and all stages together.
    pub fn works(&self) -> Vec<Work> {
        let mut works: Vec<Work> = Vec::new();
        for (index, (name, table)) in self.instruments.tables.iter().enumerate() {
            let waiting = self.loads.iter().any(|(_, table, r)| *table == index && !r.is_empty());
            works.push(Work { name: format!("table {name}"), waiting, signs: table.signs_of_life() });
        }
        let asked = |lookup: &LookupMetrics| {
            [&lookup.found, &lookup.missing, &lookup.retries].map(|c| c.load(Relaxed)).iter().sum::<u64>()
        };
        let signs = works.iter().map(|w| w.signs).sum::<u64>()
            + self.instruments.lookups.iter().map(|(_, lookup)| asked(lookup)).sum::<u64>();
        works.push(Work { name: "the pipeline".to_owned(), waiting: self.budget.used() > 0, signs });
        works
    }
}

/// Starts all threads. They begin to work at once; nothing is read before the first claim.
pub fn start(config: &Config, setup: &Setup, me: &Member, threads: &Threads) -> Result<Pipeline> {
    let (plan, topics, server) = (&setup.plan, &setup.topics, &setup.server);
    let counts = &config.threads;
    let definitions = Arc::new(Definitions::new(config, setup));
    let editions = definitions.editions();
    let ownership = Arc::new(Ownership::default());
    let budget = Budget::new(config.limits.memory_max_bytes, topics.len());
    let (wake, wakes) = queue::bounded(queue::WAKES);
    let mut stages = Vec::new();
    let mut instruments = Instruments::default();

    let busy = counts.pollers + counts.decoders + plan.tables.len() * counts.writers;
    let cores = thread::assign_cores(&counts.pin, busy, &thread::cores());
    log::info!("{busy} busy threads on cores {}", describe(&cores));
    let mut cores = cores.into_iter();
    let mut next_core = || cores.next().flatten();
    let poll_cores: Vec<_> = (0..counts.pollers).map(|_| next_core()).collect();
    let decode_cores: Vec<_> = (0..counts.decoders).map(|_| next_core()).collect();

    let contact = Arc::new(Contact::begin(Instant::now()));
    let lease_thread = Kind::Lease.only();
    let lease = Lease {
        server: server.clone(),
        me: me.clone(),
        topics: topics.clone(),
        ownership: ownership.clone(),
        contact: contact.clone(),
        session_lock: config.lease.session_lock,
        wake: wakes,
        pulse: threads.pulse(&lease_thread),
        lanes: instruments.lanes.clone(),
        heartbeat: instruments.heartbeat.clone(),
    };
    threads.spawn(lease_thread.clone(), None, || Ok(()), |()| lease.run())?;

    let sessions = Sessions {
        server: server.clone(),
        me: me.clone(),
        lock_timeout: config.postgres.lock_timeout,
        prepare: config.lease.session_lock,
    };
    let lender = Arc::new(Lender::new(sessions, config.postgres.sessions));
    let guard = config.guard.map(|limit| Arc::new(Guard::new(limit, topics.len())));
    let (mut outlets, mut loads) = (Vec::new(), Vec::new());
    for (index, table) in plan.tables.iter().enumerate() {
        let metrics = Arc::new(TableMetrics::new(Reason::ALL.iter().map(|reason| reason.code())));
        let mut senders = Vec::new();
        for number in 0..counts.writers {
            let (sender, inlet) = queue::bounded(queue::TABLE_BATCHES);
            let name = Kind::Write.of(format_args!("{}-{number}", table.short_name()));
            let writer = Writer {
                lender: lender.clone(),
                borrower: loads.len(),
                name: table.name.clone(),
                sinks: Sinks { editions: editions.clone(), table: index },
                renew: Box::new({
                    let definitions = definitions.clone();
                    move || definitions.renew(index)
                }),
                ownership: ownership.clone(),
                inlet: inlet.clone(),
                wake: wake.clone(),
                metrics: metrics.clone(),
                topics: topics.clone(),
                guard: guard.clone(),
                waits: instruments.waits(&name),
                pulse: threads.pulse(&name),
                statement_max: config.threads.watchdog * 3 / 4,
            };
            threads.spawn(name.clone(), next_core(), || Ok(()), move |()| writer.run())?;
            stages.push(name.clone());
            senders.push(sender);
            loads.push((name, index, inlet));
        }
        outlets.push(senders);
        instruments.tables.push((table.name.clone(), metrics));
    }

    let mend_thread = Kind::Mend.only();
    let mend = Mend {
        ownership: ownership.clone(),
        renew: Box::new({
            let (topics, definitions) = (topics.clone(), definitions.clone());
            move |topic| topics[topic].tables.iter().try_for_each(|table| definitions.renew(*table))
        }),
        wake: wake.clone(),
        pulse: threads.pulse(&mend_thread),
    };
    threads.spawn(mend_thread, None, || Ok(()), |()| mend.run())?;

    start_upkeep(setup, editions.clone(), &ownership, threads, &mut instruments)?;

    let lookups: Vec<_> =
        config.lookups.iter().map(|lookup| (lookup.clone(), Arc::<LookupMetrics>::default())).collect();
    instruments.lookups = lookups.iter().map(|(l, metrics)| (l.name.clone(), metrics.clone())).collect();
    let (mut decoders, mut raw) = (Vec::new(), Vec::new());
    for (number, core) in decode_cores.into_iter().enumerate() {
        let (sender, inlet) = queue::bounded(queue::RAW_BATCHES);
        let name = Kind::Decode.of(number);
        let waits = instruments.waits(&name);
        let lookups = LookupCache::new(config.redis.as_ref(), &lookups, threads.pulse(&name), waits.clone())?;
        let decoder = Decoder {
            editions: editions.clone(),
            topics: topics.clone(),
            ownership: ownership.clone(),
            limits: Limits { value_bytes_max: config.limits.message_max_bytes, ..Limits::default() },
            budget: budget.clone(),
            inlet: inlet.clone(),
            outlets: outlets.clone(),
            waits,
        };
        threads.spawn(name.clone(), core, || Ok(()), |()| decoder.run(lookups))?;
        stages.push(name.clone());
        decoders.push(sender);
        raw.push((name, inlet));
    }
    drop(outlets);

    for (number, core) in poll_cores.into_iter().enumerate() {
        let name = Kind::Poll.of(number);
        let metrics = Arc::<PollMetrics>::default();
        instruments.pollers.push((name.clone(), metrics.clone()));
        let poller = poll::Poller {
            kafka: config.kafka.clone(),
            topics: topics.clone(),
            ownership: ownership.clone(),
            contact: contact.clone(),
            budget: budget.clone(),
            message_max_bytes: config.limits.message_max_bytes,
            decoders: decoders.clone(),
            number,
            pollers: counts.pollers,
            metrics,
            waits: instruments.waits(&name),
            pulse: threads.pulse(&name),
        };
        // The client's own threads inherit the affinity of the thread that makes it: made first, pinned after.
        let kafka = config.kafka.clone();
        threads.spawn(name.clone(), core, move || poll::prepare(&kafka), move |queue| poller.run(queue))?;
        stages.push(name);
    }

    let watch_thread = Kind::Watch.only();
    let watch = watch::Watch {
        kafka: config.kafka.clone(),
        topics: topics.clone(),
        ownership: ownership.clone(),
        contact: contact.clone(),
        wake: wake.clone(),
        pulse: threads.pulse(&watch_thread),
    };
    let kafka = config.kafka.clone();
    threads.spawn(watch_thread, None, move || Asker::new(&kafka, ANSWER), |asker| watch.run(asker))?;

    let topics = topics.clone();
    let lease = config.lease.duration;
    Ok(Pipeline {
        name: config.pipeline.clone(),
        ownership,
        contact,
        wake,
        stages,
        lease_thread,
        topics,
        guard,
        instruments,
        lease,
        budget,
        raw,
        loads,
    })
}

/// Only where a table keeps its rows for a time.
fn start_upkeep(
    setup: &Setup,
    editions: Arc<Editions>,
    ownership: &Arc<Ownership>,
    threads: &Threads,
    instruments: &mut Instruments,
) -> Result<()> {
    let tables = setup.plan.tables.iter().enumerate();
    let shown: BTreeMap<usize, Arc<Upkept>> = tables
        .filter(|(_, table)| table.retention.is_some())
        .map(|(index, _)| (index, Arc::default()))
        .collect();
    if shown.is_empty() {
        return Ok(());
    }
    instruments.upkept = shown.clone();
    let name = Kind::Upkeep.only();
    let upkeep = Upkeep {
        server: setup.server.clone(),
        editions,
        ownership: ownership.clone(),
        shown,
        pulse: threads.pulse(&name),
    };
    threads.spawn(name, None, || Ok(()), |()| upkeep.run())
}

fn describe(cores: &[Option<usize>]) -> String {
    let listed: Vec<String> = cores.iter().flatten().map(usize::to_string).collect();
    if listed.is_empty() { "of the scheduler's choice (not pinned)".to_owned() } else { listed.join(", ") }
}
