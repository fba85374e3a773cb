//! The fault campaign. `make faults` starts the servers, builds the engine with fault points, and runs this.
//!
//! ```text
//!  Traffic.java --produces--> Kafka --proxies--> three engines --proxies--> PostgreSQL
//!                               |                killed, replaced            ^ watched by the observer
//!  Traffic.java <--reads back---+                                            |
//!        `------------- the truth ------------> judge <--- rows -------------'
//!  clients --HTTP--> two doors, killed, replaced --> Kafka, as above
//! ```
//!
//! One thread tends the processes (`engines`), one makes faults one after another in an order that the seed decides
//! (`kinds`), one looks at snapshots (`observer`). At the end the servers are well, everything is stored, and the judge
//! compares every record.

#![allow(clippy::disallowed_methods, reason = "cpu::spawn is the engine's")]

mod campaign;
mod doors;
mod engines;
mod interrupt;
mod journal;
mod judge;
mod kinds;
mod networks;
mod observer;
mod recovery;
mod report;
mod stack;
mod traffic;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use rowmill_faults::random::Random;

use campaign::Campaign;
use doors::Doors;
use engines::Engines;
use interrupt::Interrupt;
use journal::Journal;
use judge::Judge;
use report::Facts;
use traffic::{Producer, read_truth};
use world::World;

/// rowmill on real servers, under every fault that one machine can make.
#[derive(Parser)]
struct Arguments {
    /// Seconds of faults.
    #[arg(long, default_value_t = 1200)]
    seconds: u64,
    /// The same seed makes the same choices; default: the time.
    #[arg(long)]
    seed: Option<u64>,
    /// Records a second.
    #[arg(long, default_value_t = 2500)]
    rate: u64,
    /// The engine, built with fault points.
    #[arg(long)]
    rowmill: PathBuf,
    /// The producer's source.
    #[arg(long, default_value = "faults/java/Traffic.java")]
    traffic: PathBuf,
    /// Report and journal go here.
    #[arg(long)]
    out: PathBuf,
    /// Only these kinds of fault, again and again, and nobody is killed beside them: one, or several with commas between.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

/// What the full campaign must reach; a shorter one in proportion.
const KILLS: u64 = 500;
const RECORDS: u64 = 2_000_000;
const FULL_SECONDS: u64 = 1200;

/// For everything to be stored once the faults are over.
const DRAIN: Duration = Duration::from_secs(180);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the campaign could not be run to its end: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
    let seed = arguments.seed.unwrap_or(clock);
    println!("seed {seed}, {} s of faults, about {} records a second", arguments.seconds, arguments.rate);
    std::fs::create_dir_all(&arguments.out)?;
    let interrupt = Interrupt::watch()?;
    let work = PathBuf::from(stack::env("STACK_DIR")?).join("campaign");
    let world = World::make(&work, &arguments.rowmill, &arguments.traffic)?;
    let engines = Engines::new(&world)?;
    let journal = Journal::new(&arguments.out.join("journal.csv"))?;
    let campaign = Arc::new(Campaign {
        world,
        engines,
        journal,
        calm: AtomicBool::new(!arguments.only.is_empty()),
        is_over: AtomicBool::new(false),
        interrupt,
    });
    let log = work.join("producer.log");
    let producer = Producer::start(&arguments.traffic, &campaign.world.brokers, seed, arguments.rate, &log)?;
    let doors = Doors::open(&campaign, seed)?;
    let tending = tend(&campaign, seed);
    let watching = {
        let campaign = campaign.clone();
        spawn(move || observer::watch(&campaign))
    };
    // A campaign that fails half-way, or is asked to end, must not leave processes behind.
    let lasted = faults(&campaign, arguments, seed, &producer);
    campaign.calm.store(true, SeqCst);
    // Their clients end when everything is acknowledged, which servers that are well see to.
    let delivered = doors.close();
    let result = lasted.and_then(|lasted| {
        let (sent, delivered) = (producer.stop()?, delivered?);
        campaign.journal.fault(
            "aborted-transactions",
            sent.aborted > 0,
            &format!("{} records", sent.aborted),
        );
        let truth = work.join("truth.tsv");
        read_truth(&arguments.traffic, &campaign.world.brokers, &truth)?;
        let judge = Judge::new(&truth, delivered)?;
        drain(&campaign, &judge)?;
        Ok((lasted, sent, delivered, judge))
    });
    campaign.is_over.store(true, SeqCst);
    join(tending)?;
    let snapshots = join(watching)?;
    let bad_ends = campaign.engines.stop_all();
    let (lasted, sent, delivered, judge) = result?;
    let findings = judge.judge(&mut campaign.patient_sql()?)?;
    let share = |of: u64| {
        if !arguments.only.is_empty() { 0 } else { of * lasted.as_secs().min(FULL_SECONDS) / FULL_SECONDS }
    };
    let facts = Facts {
        seed,
        lasted,
        sent,
        delivered,
        snapshots,
        findings: &findings,
        bad_ends,
        kills_min: share(KILLS),
        records_min: share(RECORDS),
        is_single: !arguments.only.is_empty(),
    };
    let (text, held) = report::write(&campaign, &facts);
    let path = arguments.out.join("summary.md");
    std::fs::write(&path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{text}\n{}", if held { "PASS" } else { "FAIL" });
    println!("{}", Path::new(&arguments.out).display());
    Ok(held)
}

fn join<T>(thread: JoinHandle<T>) -> Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("a thread of the campaign panicked"))
}

/// The thread that starts, kills and buries processes.
fn tend(campaign: &Arc<Campaign>, seed: u64) -> JoinHandle<()> {
    let campaign = campaign.clone();
    spawn(move || {
        let mut random = Random::new(seed ^ 0x7e9d);
        while !campaign.is_over() {
            let calm = campaign.calm.load(SeqCst);
            if let Err(error) = campaign.engines.tend(&campaign.world, &campaign.journal, &mut random, calm) {
                campaign.journal.anomaly(format!("{error:#}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    })
}

/// Makes one fault after another, each kind once in every round; returns how long it lasted.
fn faults(campaign: &Campaign, arguments: &Arguments, seed: u64, producer: &Producer) -> Result<Duration> {
    let mut random = Random::new(seed);
    let start = Instant::now();
    let duration = Duration::from_secs(arguments.seconds);
    let mut told = Instant::now();
    while start.elapsed() < duration {
        let mut round = kinds::enabled(campaign);
        if !arguments.only.is_empty() {
            round.retain(|kind| arguments.only.iter().any(|name| name == kind.name));
            anyhow::ensure!(
                round.len() == arguments.only.len(),
                "not all of {:?} are faults here",
                arguments.only
            );
        }
        random.shuffle(&mut round);
        for kind in round {
            campaign.interrupt.check()?;
            if start.elapsed() >= duration {
                break;
            }
            std::thread::sleep(random.ms(200, 1500));
            match (kind.run)(campaign, &mut random) {
                Ok((struck, detail)) => campaign.journal.fault(kind.name, struck, &detail),
                // The fault itself met another one, for example a server that a kill had just ended.
                Err(error) => campaign.journal.fault(kind.name, false, &format!("{error:#}")),
            }
            if told.elapsed() > Duration::from_secs(30) {
                told = Instant::now();
                let ends: u64 = campaign.journal.ends().values().sum();
                println!(
                    "{:.0} s: {ends} processes ended, {} records acknowledged, {} anomalies",
                    campaign.journal.elapsed().as_secs_f64(),
                    producer.sent().acked,
                    campaign.journal.anomalies().len()
                );
            }
        }
    }
    Ok(start.elapsed())
}

/// Waits until everything is stored, with nobody killed and all servers well.
fn drain(campaign: &Campaign, judge: &Judge) -> Result<()> {
    let start = Instant::now();
    let mut client = campaign.patient_sql()?;
    while !judge.is_drained(&mut client) {
        campaign.interrupt.check()?;
        if start.elapsed() > DRAIN {
            bail!("not everything was stored within {} s after the last fault", DRAIN.as_secs());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    campaign.journal.note("drained", &format!("{:.1} s", start.elapsed().as_secs_f64()));
    Ok(())
}
