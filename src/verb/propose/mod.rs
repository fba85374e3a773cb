//! `rowmill propose`: reads a sample of a topic and prints a table and a model that take it, each column with the evidence,
//! after both have been tried on the sample. A proposal: what the records mean, only their author knows.
//!
//! [`sample`] is what was seen, [`proposal`] what follows from it, [`trial`] what becomes of the records then.

mod proposal;
mod sample;
mod trial;

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::proposal::Proposal;
use self::sample::{Place, Sample};
use self::trial::Trial;
use crate::config;
use crate::decode::record::Limits;
use crate::kafka::ask::{ANSWER, Asker};
use crate::kafka::reread;
use crate::model::mode::Mode;
use crate::verb::out;

#[derive(Args)]
pub struct Propose {
    /// The topic to read; its offsets stay as they are.
    #[arg(long)]
    topic: String,
    /// Name of the proposed table. Default: the topic's, with _ for what SQL would quote.
    #[arg(long)]
    table: Option<String>,
    /// Propose a table whose rows have a key: the last record of a key replaces the others, the first one stays, or their numbers are
    /// added up. Needs --key.
    #[arg(long, value_enum, requires = "key")]
    mode: Option<Way>,
    /// The columns of the key, as they are called without --mode: user,metric,time. A time is floored to a minute where rows are
    /// added up.
    #[arg(long, value_delimiter = ',', requires = "mode")]
    key: Vec<String>,
    /// How many of the newest records to read, spread over the partitions.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    records: u32,
    /// Take [kafka] from this file. Default: KAFKA_BROKERS and the ROWMILL_KAFKA__ variables.
    #[arg(short, long)]
    config: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Way {
    Upsert,
    First,
    Add,
}

impl Way {
    fn mode(self) -> Mode {
        match self {
            Way::Upsert => Mode::Upsert,
            Way::First => Mode::First,
            Way::Add => Mode::Add,
        }
    }
}

pub fn run(propose: &Propose) -> Result<()> {
    let kafka = config::read_kafka(propose.config.as_deref())?;
    let table = propose.table.clone().unwrap_or_else(|| proposal::column_name(&[&propose.topic]));
    ensure!(
        !table.is_empty() && table.len() <= 63 && !table.contains(char::is_control),
        "a table's name has 1 to 63 bytes and no control characters; say another one with --table"
    );
    let asker = Asker::new(&kafka, ANSWER)?;
    let ranges = reread::newest(&asker, &propose.topic, i64::from(propose.records))
        .with_context(|| format!("at {}", kafka.brokers))?;
    let mut sample = Sample::default();
    read(&kafka, &propose.topic, &ranges, |place, value| sample.see(place, value))?;
    if sample.objects == 0 {
        bail!(
            "topic {:?} has no JSON object among {} records of {} partitions: there is nothing to propose from",
            propose.topic,
            sample.records,
            ranges.len()
        );
    }
    let mut proposal = Proposal::of(&propose.topic, &table, ranges.len(), &sample);
    if let Some(way) = propose.mode {
        proposal.give_key(way.mode(), &propose.key)?;
    }
    // Read again rather than kept: a million records may be larger than this machine's memory.
    let mut trial = Trial::new(&proposal)?;
    read(&kafka, &propose.topic, &ranges, |place, value| trial.run(place, value))?;
    out::lines(&proposal.text(&trial.verdict()));
    Ok(())
}

fn read(
    kafka: &config::Kafka,
    topic: &str,
    ranges: &reread::Ranges,
    mut see: impl FnMut(Place, Option<&[u8]>),
) -> Result<()> {
    for (partition, offsets) in ranges {
        let part_max = Limits::default().value_bytes_max;
        reread::range(kafka, topic, *partition, offsets.clone(), part_max, |record| {
            let (offset, value) = (record.offset, record.value);
            see(Place { partition: *partition, offset }, value);
            Ok(())
        })?;
    }
    Ok(())
}
