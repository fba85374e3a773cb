//! What all parts of a campaign share, and what they ask of the database.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use postgres::Client;
use rowmill_faults::random::Random;

use crate::engines::{Engines, SLOTS, Slot};
use crate::interrupt::Interrupt;
use crate::journal::Journal;
use crate::stack::connect;
use crate::world::World;

pub(crate) struct Campaign {
    pub(crate) world: World,
    pub(crate) engines: Engines,
    pub(crate) journal: Journal,
    /// Processes are started and nobody is killed.
    pub(crate) calm: AtomicBool,
    /// The time is over.
    pub(crate) is_over: AtomicBool,
    /// Somebody asked for the end: nothing is waited for any more.
    pub(crate) interrupt: Interrupt,
}

/// A server that was struck comes back by itself, or the stack's scripts say after this time why it does not.
const SERVER_AWAY_MAX: Duration = Duration::from_secs(300);

/// Topic, partition, target; and how far it is.
pub(crate) type Progress = BTreeMap<(String, i32, String), i64>;

impl Campaign {
    pub(crate) fn sql(&self) -> Result<Client> {
        connect(&self.world.url)
    }

    /// Keeps trying for as long as a server may be away.
    pub(crate) fn patient_sql(&self) -> Result<Client> {
        let deadline = Instant::now() + SERVER_AWAY_MAX;
        loop {
            match self.sql() {
                Err(_) if Instant::now() < deadline && !self.interrupt.came() => {
                    std::thread::sleep(Duration::from_millis(100))
                }
                result => return result,
            }
        }
    }

    pub(crate) fn execute(&self, sql: &str) -> Result<()> {
        self.patient_sql()?.batch_execute(sql).with_context(|| format!("cannot {sql}"))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(SeqCst)
    }

    pub(crate) fn progress(&self, client: &mut Client, of: &str) -> Result<Progress> {
        let sql = format!("SELECT topic, partition, target, next_offset FROM rowmill.ledger WHERE {of}");
        let rows = client.query(&sql, &[])?;
        Ok(rows.iter().map(|r| ((r.get(0), r.get(1), r.get(2)), r.get(3))).collect())
    }

    /// Waits for a condition; false if it does not come in time, or a signal comes before it.
    pub(crate) fn wait(&self, seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !condition() {
            if Instant::now() > deadline || self.interrupt.came() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        true
    }

    /// Everybody runs, every partition is owned by the living and moves, and nobody is killed until the guard goes.
    /// `None` if that did not come about.
    pub(crate) fn calm(&self) -> Result<Option<Calm<'_>>> {
        let guard = Calm { campaign: self, was: self.calm.swap(true, SeqCst) };
        let mut client = self.patient_sql()?;
        // An empty ledger is none that moves: at the start nobody has registered yet.
        let sql = "SELECT count(*) > 0 AND count(*) FILTER (
                       WHERE owner IS NULL OR NOT rowmill.alive(pipeline, owner)
                          OR progress_at < clock_timestamp() - interval '2 s') = 0
                   FROM rowmill.ledger";
        let settled = self.wait(25, || {
            let all_run = self.engines.lock().iter().all(|s| s.child.is_some());
            all_run && client.query_one(sql, &[]).is_ok_and(|r| r.get(0))
        });
        Ok(settled.then_some(guard))
    }

    /// Kills everybody and waits until others run in their stead, share the partitions and have written all of them; false if
    /// they do not.
    pub(crate) fn replace_all(&self) -> Result<bool> {
        let pids = || self.engines.lock().iter().map(Slot::pid).collect::<Vec<_>>();
        let before = pids();
        self.engines.lock().iter_mut().for_each(Slot::kill);
        let are_new = || pids().iter().zip(&before).all(|(now, before)| now.is_some() && now != before);
        if !self.wait(10, are_new) {
            return Ok(false);
        }
        let mut client = self.patient_sql()?;
        let began: SystemTime = client.query_one("SELECT clock_timestamp()", &[])?.get(0);
        let sql = "SELECT count(*) FILTER (WHERE progress_at <= $1) = 0 AND count(DISTINCT owner) = $2
                   FROM rowmill.ledger";
        Ok(self.wait(20, || client.query_one(sql, &[&began, &(SLOTS as i64)]).is_ok_and(|row| row.get(0))))
    }

    /// Waits until one of these has moved past where it was; false if none does in time.
    pub(crate) fn one_moved(&self, client: &mut Client, before: &Progress, seconds: u64) -> bool {
        self.wait(seconds, || {
            let Ok(now) = self.progress(client, "true") else { return false };
            before.iter().any(|(place, at)| now.get(place) > Some(at))
        })
    }
}

/// While it lives, nobody is killed.
pub(crate) struct Calm<'a> {
    campaign: &'a Campaign,
    was: bool,
}

impl Drop for Calm<'_> {
    fn drop(&mut self) {
        self.campaign.calm.store(self.was, SeqCst);
        self.campaign.engines.lock().iter_mut().for_each(|slot| slot.is_held = false);
    }
}

/// What a fault says of itself: whether it struck, and a few words.
pub(crate) type Struck = Result<(bool, String)>;

/// A kind of fault: a name, what it does, and how.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) run: fn(&Campaign, &mut Random) -> Struck,
}
