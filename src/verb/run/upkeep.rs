//! upkeep: makes the partitions that rows will go to, and drops those that a model keeps no more. Of several instances, whoever comes
//! first does it.
//!
//! Place in the flow: beside it. It fails by itself: rows without a partition are waited for like any table that takes none, and what
//! could not be dropped is tried again, without anybody waiting behind it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::base::retry::Episode;
use crate::base::thread::Pulse;
use crate::client::path::Client;
use crate::client::pg::{self, Server};
use crate::model::editions::Editions;
use crate::model::plan::TablePlan;
use crate::model::retention::{Range, Retention};
use crate::promise::claim::Ownership;
use crate::store::postgres::partitions::{self, Done, Partition};

/// Between two rounds, at most; a quarter of the shortest partition where that is less. One is made a whole one ahead, so nothing
/// waits for this.
const ROUND: Duration = Duration::from_secs(30);

/// Before another try where something was in the way.
const AGAIN: Duration = Duration::from_secs(5);

/// By how much our clock and the server's may differ, in microseconds: rows are judged by one, partitions by the other.
const CLOCKS_APART_MAX: i64 = 60_000_000;

/// What people are shown of one table.
#[derive(Debug, Default)]
pub struct Upkept {
    pub partitions: AtomicI64,
    /// Those that should be gone.
    pub overdue: AtomicI64,
    /// Those that should be there.
    pub missing: AtomicI64,
}

/// What the thread needs.
pub struct Upkeep {
    pub server: Server,
    pub editions: Arc<Editions>,
    pub ownership: Arc<Ownership>,
    /// One for each table that keeps its rows for a time, by its place in the plan.
    pub shown: BTreeMap<usize, Arc<Upkept>>,
    pub pulse: Arc<Pulse>,
}

/// What is said once for each table.
#[derive(Default)]
struct Troubles {
    make: Episode,
    drop: Episode,
    clocks: Episode,
    strange: Episode,
}

impl Upkeep {
    /// Runs until the ownership closes.
    ///
    /// # Errors
    /// None.
    pub fn run(self) -> Result<()> {
        let mut troubles: BTreeMap<usize, Troubles> = BTreeMap::new();
        let mut away = Episode::default();
        let every = |table: &TablePlan| table.retention.as_ref().map(Retention::every);
        let plan = self.editions.newest().plan;
        let pause = plan.tables.iter().filter_map(every).map(|every| every / 4).chain([ROUND]).min();
        let pause = pause.unwrap_or(ROUND);
        while !self.ownership.is_closing() {
            let rounds = self.pulse.during("a round over partitions", || {
                let mut client = self.server.connect("rowmill upkeep")?;
                let mut is_done = true;
                let plan = self.editions.newest().plan;
                for (index, shown) in &self.shown {
                    let troubles = troubles.entry(*index).or_default();
                    is_done &= round(&mut client, &plan.tables[*index], shown, troubles);
                }
                anyhow::Ok(is_done)
            });
            if rounds.is_ok() && away.ends() {
                log::info!("partitions are looked after again");
            }
            let pause = match rounds {
                Ok(true) => pause,
                Ok(false) => AGAIN.min(pause),
                Err(error) => {
                    if away.begins() {
                        log::warn!("partitions are not looked after: {error:#}");
                    }
                    AGAIN.min(pause)
                }
            };
            self.wait(pause);
        }
        Ok(())
    }

    fn wait(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.ownership.is_closing() {
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// One table. False if something is left to do.
fn round(client: &mut Client, table: &TablePlan, shown: &Upkept, troubles: &mut Troubles) -> bool {
    let Some(retention) = &table.retention else { return true };
    match try_round(client, table, retention, shown, troubles) {
        Ok(is_done) => is_done,
        Err(error) => {
            if troubles.strange.begins() {
                log::warn!("cannot look at the partitions of table {}: {}", table.name, pg::describe(&error));
            }
            false
        }
    }
}

fn try_round(
    client: &mut Client,
    table: &TablePlan,
    retention: &Retention,
    shown: &Upkept,
    troubles: &mut Troubles,
) -> Result<bool, postgres::Error> {
    let look = partitions::look(client, table, retention)?;
    troubles.strange.ends();
    compare_clocks(table, look.now, troubles);
    let (mut missing, mut overdue) = (0, 0);
    for range in &look.missing {
        if !make(client, table, retention, *range, troubles) {
            missing += 1;
        }
    }
    for partition in &look.overdue {
        if !drop(client, table, partition, troubles) {
            overdue += 1;
        }
    }
    let is_done = missing + overdue == 0;
    if missing == 0 && troubles.make.ends() {
        log::info!("table {} has all of its partitions again", table.name);
    }
    if overdue == 0 && troubles.drop.ends() {
        log::info!("table {}: the partitions that were to go are gone", table.name);
    }
    shown.partitions.store(look.count as i64, Relaxed);
    shown.missing.store(missing, Relaxed);
    shown.overdue.store(overdue, Relaxed);
    Ok(is_done)
}

fn make(
    client: &mut Client,
    table: &TablePlan,
    retention: &Retention,
    range: Range,
    troubles: &mut Troubles,
) -> bool {
    match partitions::make(client, table, retention, range) {
        Ok(Done::Yes) => {
            log::debug!("table {}: made the partition from {}", table.name, retention.literal(range.0));
            true
        }
        Ok(Done::NotOurTurn) => false,
        Err(error) => {
            if troubles.make.begins() {
                log::warn!(
                    "table {}: cannot make its partition from {}: {}; rows of that time wait until there is one. The role that \
                     writes has to own the table, and may create in its schema",
                    table.name,
                    retention.literal(range.0),
                    pg::describe(&error)
                );
            }
            false
        }
    }
}

fn drop(client: &mut Client, table: &TablePlan, partition: &Partition, troubles: &mut Troubles) -> bool {
    match partitions::drop(client, table, &partition.sql_name) {
        Ok(Done::Yes) => {
            log::info!(
                "table {}: dropped {}, which is older than the model keeps",
                table.name,
                partition.sql_name
            );
            true
        }
        Ok(Done::NotOurTurn) => false,
        Err(error) => {
            if troubles.drop.begins() {
                let holders = partitions::in_the_way(client, table, &partition.sql_name).unwrap_or_default();
                let holders = if holders.is_empty() { pg::describe(&error) } else { holders.join(", ") };
                log::warn!(
                    "table {}: {} should be gone, and is tried again every few seconds; in the way: {holders}",
                    table.name,
                    partition.sql_name
                );
            }
            false
        }
    }
}

fn compare_clocks(table: &TablePlan, server: i64, troubles: &mut Troubles) {
    let here = jiff::Timestamp::now().as_microsecond();
    let apart = here.abs_diff(server);
    if apart <= CLOCKS_APART_MAX as u64 {
        troubles.clocks.ends();
    } else if troubles.clocks.begins() {
        log::warn!(
            "the clock here and PostgreSQL's are {} s apart: which rows of table {} are too old goes by ours, and which of its \
             partitions by the server's",
            apart / 1_000_000,
            table.name
        );
    }
}
