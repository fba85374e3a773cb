//! The database as the protocol sees it: the verbs of sql/rowmill.sql in Rust, one at a time, and the promise checked at
//! every commit. tests/ledger.rs compares the verbs with the real ones.

#![allow(dead_code, reason = "the simulator and the comparison use different parts")]

use std::collections::{BTreeMap, BTreeSet};

use rowmill_faults::random::Random;

use crate::kafka::Cluster;
use crate::network::Message;
use crate::records::{Outcome, SUMS, Shape};
use rowmill::base::mutant::{Bug, planted};
use rowmill::promise::decide::{Peer, Standing};
use rowmill::promise::offsets::{Anchor, Partition};
use rowmill::promise::reach::Reach;
use rowmill::promise::span::{Counts, Move};

/// Partition and table.
pub(crate) type Key = (Partition, usize);

/// In ticks of the simulated clock.
pub(crate) const LEASE: u64 = 60;
/// The server's clock is so much ahead of the time when all begins, give or take as much as it is ever stepped.
const AHEAD: u64 = 20 * LEASE;

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) owner: Option<String>,
    pub(crate) epoch: i64,
    pub(crate) start: i64,
    pub(crate) next: i64,
    pub(crate) anchor: Option<Anchor>,
    counts: Counts,
    holes: i64,
}

/// One COPYed row or dead letter.
pub(crate) type Stored = (Key, i64, Outcome);

/// What the rows of one key came to: how many, and their sum.
pub(crate) type Added = (String, i64, i64);

/// What a restore brings back.
#[derive(Clone)]
pub(crate) struct Database {
    /// When each member's heartbeat came by the server's clock, its session, and how well it reaches Kafka.
    members: BTreeMap<String, (u64, u64, Reach)>,
    pub(crate) ledger: BTreeMap<Key, Row>,
    stored: BTreeMap<Key, BTreeMap<i64, Outcome>>,
    /// The rows of the table of sums, by their keys.
    sums: BTreeMap<String, (i64, i64)>,
    /// The definition of each table, by its fingerprint: it counts the changes.
    definitions: BTreeMap<usize, u64>,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Committed,
    Fenced,
    /// The table is another one than the rows were encoded for.
    TableChanged,
}

/// The server: a database that may go back, and what never does.
pub(crate) struct Server {
    pub(crate) now: u64,
    /// The server's clock less `now`.
    ahead: u64,
    booted_at: u64,
    sessions: BTreeSet<u64>,
    next_session: u64,
    pub(crate) database: Database,
    past: Vec<Database>,
}

/// How many states a failover may go back.
const PAST: usize = 4;

impl Server {
    /// REGISTER, once for all: every partition starts where its log does.
    pub(crate) fn new(keys: impl Iterator<Item = (Key, i64)>) -> Server {
        let row = |start| Row {
            owner: None,
            epoch: 0,
            start,
            next: start,
            anchor: None,
            counts: Counts::default(),
            holes: 0,
        };
        let ledger = keys.map(|(key, start)| (key, row(start))).collect();
        let database = Database {
            members: BTreeMap::new(),
            ledger,
            stored: BTreeMap::new(),
            sums: BTreeMap::new(),
            definitions: BTreeMap::new(),
        };
        Server {
            now: 0,
            ahead: AHEAD,
            booted_at: 0,
            sessions: BTreeSet::new(),
            next_session: 0,
            database,
            past: Vec::new(),
        }
    }

    pub(crate) fn open_session(&mut self) -> u64 {
        self.next_session += 1;
        self.sessions.insert(self.next_session);
        self.next_session
    }

    pub(crate) fn end_session(&mut self, session: u64) {
        self.sessions.remove(&session);
    }

    /// False where the session is gone: the caller has to open another.
    pub(crate) fn has_session(&self, session: u64) -> bool {
        self.sessions.contains(&session)
    }

    fn clock(&self) -> u64 {
        self.now + self.ahead
    }

    /// Sets the server's clock forward or back, by up to twenty leases from what is right.
    pub(crate) fn step_clock(&mut self, random: &mut Random) {
        self.ahead = random.below(2 * AHEAD as usize) as u64;
    }

    pub(crate) fn heartbeat(&mut self, member: &str, session: u64, reach: Reach) {
        let clock = self.clock();
        self.database.members.insert(member.to_owned(), (clock, session, reach));
    }

    pub(crate) fn alive(&self, member: &str) -> bool {
        self.database.members.get(member).is_some_and(|(heartbeat_at, session, _)| {
            heartbeat_at + LEASE > self.clock()
                && *heartbeat_at < self.clock() + LEASE
                && (*heartbeat_at < self.booted_at || self.sessions.contains(session))
        })
    }

    pub(crate) fn living(&self) -> Vec<Peer> {
        let living = self.database.members.iter().filter(|(name, _)| self.alive(name));
        living.map(|(name, (_, _, reach))| Peer { name: name.clone(), reach: *reach }).collect()
    }

    /// What a member does before it claims: the sessions of the dead are ended, so that their locks bring nobody back to life
    /// when a clock that was set back comes to their heartbeats.
    pub(crate) fn end_dead_members(&mut self, me: &str) {
        let dead = |(name, _): &(&String, &(u64, u64, Reach))| *name != me && !self.alive(name);
        let sessions: Vec<u64> = self.database.members.iter().filter(dead).map(|(_, (_, s, _))| *s).collect();
        sessions.iter().for_each(|session| self.end_session(*session));
    }

    /// All keys or none, each with its row.
    pub(crate) fn claim(&mut self, me: &str, keys: &[Key]) -> Option<Vec<Row>> {
        let free = |row: &Row| match &row.owner {
            Some(owner) => owner == me || !self.alive(owner) || planted(Bug::LivingAreRobbed),
            None => true,
        };
        if !keys.iter().all(|key| free(&self.database.ledger[key])) {
            return None;
        }
        for key in keys {
            let robbed = self.database.ledger[key].owner.clone().filter(|o| o != me && self.alive(o));
            assert_eq!(robbed, None, "{me} took {key:?} from a living member");
        }
        let mut claimed = Vec::new();
        for key in keys {
            let row = self.database.ledger.get_mut(key).expect("registered");
            row.owner = Some(me.to_owned());
            row.epoch += 1;
            claimed.push(row.clone());
        }
        Some(claimed)
    }

    pub(crate) fn release(&mut self, me: &str, key: Key, epoch: i64) {
        let row = self.database.ledger.get_mut(&key).expect("registered");
        if row.owner.as_deref() == Some(me) && row.epoch == epoch {
            row.owner = None;
        }
    }

    pub(crate) fn resolve(&mut self, me: &str, table: usize, moves: &[Move]) -> Vec<Option<Standing>> {
        let standing = |m: &Move| {
            let row = self.database.ledger.get_mut(&(m.partition, table)).expect("registered");
            (row.owner.as_deref() == Some(me) && row.epoch == m.epoch).then(|| {
                row.epoch += 1;
                Standing { epoch: row.epoch, next_offset: row.next }
            })
        };
        moves.iter().map(standing).collect()
    }

    /// The fingerprint of a table's definition.
    pub(crate) fn fingerprint(&self, table: usize) -> String {
        self.database.definitions.get(&table).copied().unwrap_or_default().to_string()
    }

    /// ALTER TABLE.
    pub(crate) fn alter(&mut self, table: usize) {
        *self.database.definitions.entry(table).or_default() += 1;
    }

    /// One whole transaction: COPY, advance, COMMIT.
    pub(crate) fn commit(&mut self, message: &Message, cluster: &Cluster) -> Ended {
        let Message { from, table, stored, added, moves, fingerprint, .. } = message;
        let table = *table;
        let before = self.database.clone();
        if *fingerprint != self.fingerprint(table) {
            return Ended::TableChanged;
        }
        if !self.advance(from, table, moves) {
            return Ended::Fenced;
        }
        self.past.push(before);
        if self.past.len() > PAST {
            self.past.remove(0);
        }
        for (key, offset, outcome) in stored {
            let before = self.database.stored.entry(*key).or_default().insert(*offset, *outcome);
            assert_eq!(before, None, "{key:?} offset {offset} has two outcomes");
        }
        for (key, count, total) in added {
            let sum = self.database.sums.entry(key.clone()).or_default();
            *sum = (sum.0 + count, sum.1 + total);
        }
        moves.iter().for_each(|m| self.check((m.partition, table), cluster));
        if table == SUMS {
            self.check_sums(cluster);
        }
        Ended::Committed
    }

    /// ADVANCE: all spans or none.
    pub(crate) fn advance(&mut self, me: &str, table: usize, moves: &[Move]) -> bool {
        let fits = |m: &Move| {
            let row = &self.database.ledger[&(m.partition, table)];
            let owned = row.owner.as_deref() == Some(me) && row.epoch == m.epoch;
            planted(Bug::BlindAdvance) || owned && (row.next == m.first || planted(Bug::EpochOnly))
        };
        if !moves.iter().all(fits) {
            return false;
        }
        for m in moves {
            let row = self.database.ledger.get_mut(&(m.partition, table)).expect("registered");
            row.next = m.next;
            row.anchor = Some(m.anchor);
            row.counts += m.counts;
            row.holes += m.holes;
            assert_eq!(
                row.next - row.start,
                row.counts.records() + row.holes,
                "the ledger's CHECK refuses {m:?}"
            );
            assert!(row.holes >= 0 && m.anchor.offset < m.next, "{m:?}");
        }
        true
    }

    /// As if its last heartbeat had come so much later, by the server's clock; with a minus, earlier.
    pub(crate) fn shift_heartbeat(&mut self, member: &str, by: i64) {
        if let Some((heartbeat_at, ..)) = self.database.members.get_mut(member) {
            *heartbeat_at = heartbeat_at.saturating_add_signed(by);
        }
    }

    /// The promise, for one partition and table.
    pub(crate) fn check(&self, key: Key, cluster: &Cluster) {
        let row = &self.database.ledger[&key];
        let lane = cluster.lane(key);
        let mut expected = Counts::default();
        let mut listed = BTreeMap::new();
        for (offset, shape) in cluster.logs[&key.0].history.range(row.start..row.next) {
            let outcome = shape.outcome(key.0.topic, lane);
            match outcome {
                Outcome::Row => expected.rows += 1,
                Outcome::Dead => expected.dead += 1,
                Outcome::Skipped => expected.skipped += 1,
                Outcome::Other => expected.other += 1,
            }
            if matches!(outcome, Outcome::Row | Outcome::Dead) {
                listed.insert(*offset, outcome);
            }
        }
        let stored = self.database.stored.get(&key).cloned().unwrap_or_default();
        assert_eq!(stored, listed, "{key:?}: outcomes of [{}, {})", row.start, row.next);
        assert_eq!(row.counts, expected, "{key:?}: counts of [{}, {})", row.start, row.next);
    }

    /// The same for the table of sums: each record that the ledger counts as a row is in its key's sum, once.
    pub(crate) fn check_sums(&self, cluster: &Cluster) {
        let mut expected: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for (key, row) in self.database.ledger.iter().filter(|(key, _)| key.1 == SUMS) {
            let records = cluster.logs[&key.0].history.range(row.start..row.next);
            let is_row = |shape: &Shape| shape.outcome(key.0.topic, cluster.lane(*key)) == Outcome::Row;
            for (kind, n) in records.map(|(_, shape)| *shape).filter(is_row).map(Shape::added) {
                let sum = expected.entry(kind.to_owned()).or_default();
                *sum = (sum.0 + 1, sum.1 + n);
            }
        }
        assert_eq!(self.database.sums, expected, "the sums and the records that are in them");
    }

    /// The offset below which no table needs a record again, not even after a failover.
    pub(crate) fn safe_to_expire(&self, keys: &[Key]) -> i64 {
        let states = self.past.iter().chain(std::iter::once(&self.database));
        states.flat_map(|d| keys.iter().map(|k| d.ledger[k].next)).min().expect("there is a present")
    }

    /// An immediate restart: sessions are gone, the data is not.
    pub(crate) fn restart(&mut self) {
        self.booted_at = self.clock();
        self.sessions.clear();
    }

    /// A standby that lacks the last commits takes over. False if there was nothing to lose.
    pub(crate) fn fail_over(&mut self, back: usize) -> bool {
        self.restart();
        let Some(index) = self.past.len().checked_sub(1 + back) else { return false };
        self.database = self.past[index].clone();
        self.past.truncate(index);
        true
    }
}
