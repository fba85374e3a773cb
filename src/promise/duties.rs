//! What a look at the ledger calls for: which claims are lost, and what to claim, give away and give up. Pure; the simulator
//! drives it as well.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::promise::claim::{Claim, Lane, Ownership};
use crate::promise::decide::{Holding, Peer, holder, lost, share};
use crate::promise::offsets::{Anchor, Partition};
use crate::promise::reach::Reach;
use crate::promise::topics::Topic;

/// One ledger row, as a snapshot shows it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub topic: Arc<str>,
    pub partition: i32,
    pub target: Arc<str>,
    pub owner: Option<Arc<str>>,
    /// False where the owner's lease ran out, or its session is gone.
    pub owner_alive: bool,
    pub epoch: i64,
    pub next_offset: i64,
    /// The record that was committed last.
    pub anchor: Option<Anchor>,
    pub routing_hash: i64,
    pub pipeline: Arc<str>,
    pub topic_id: Arc<str>,
    pub cluster_id: Arc<str>,
    /// Which table had the target's name at the last move; `None` before the first.
    pub table: Option<Seen>,
}

/// A ledger row, and the epoch under which somebody holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub target: &'a str,
    pub epoch: i64,
}

impl Entry {
    /// As its owner would give it up.
    pub fn hold(&self) -> Hold<'_> {
        Hold { topic: &self.topic, partition: self.partition, target: &self.target, epoch: self.epoch }
    }
}

/// A table by its object identifier, and since when it has the name of the one before: seconds since 1970 UTC by the server's
/// clock, 0 where it has always had it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    pub oid: u32,
    pub since_s: f64,
}

/// The targets whose name belongs to another table than when `known` was looked at the last time. Rows that have not moved since
/// show the older one.
pub fn new_tables(known: &mut BTreeMap<Arc<str>, Seen>, entries: &[Entry]) -> BTreeSet<Arc<str>> {
    let mut new = BTreeSet::new();
    for entry in entries {
        let Some(seen) = entry.table else { continue };
        let Some(before) = known.get_mut(&entry.target) else {
            known.insert(entry.target.clone(), seen);
            continue;
        };
        if seen.since_s > before.since_s {
            if seen.oid != before.oid {
                new.insert(entry.target.clone());
            }
            *before = seen;
        }
    }
    new
}

/// What memory holds, and how far each table was committed. Noted before the ledger is asked: one that is behind it then was
/// taken back by a failover.
#[derive(Debug)]
pub struct Held(Vec<(Arc<Claim>, Vec<i64>)>);

impl Held {
    pub fn note(ownership: &Ownership) -> Held {
        let committed = |claim: Arc<Claim>| {
            let committed = claim.lanes.iter().map(Lane::committed).collect();
            (claim, committed)
        };
        Held(ownership.all().into_iter().map(committed).collect())
    }

    /// The sum of where all tables of what is held stand. A ledger whose rows come to less was taken back.
    pub fn committed(&self) -> i128 {
        self.0.iter().flat_map(|(_, committed)| committed).map(|offset| i128::from(*offset)).sum()
    }
}

/// Who looks.
#[derive(Clone, Copy, Debug)]
pub struct Viewer<'a> {
    pub me: &'a str,
    /// How well it reaches Kafka.
    pub reach: Reach,
    pub pipeline: &'a str,
    pub topics: &'a [Topic],
}

/// What follows from a look, in this order.
#[derive(Debug, Default)]
pub struct Duties<'e> {
    /// Claims that are not ours any more, each with the reason.
    pub lost: Vec<(Arc<Claim>, String)>,
    /// Rows that the ledger says are ours, memory does not hold, and nobody will claim now: the reply to a claim was lost,
    /// or a release failed. Nobody else could take them while we live.
    pub give_up: Vec<&'e Entry>,
    /// Claims that another member should have.
    pub give_away: Vec<Arc<Claim>>,
    pub claim: Vec<Partition>,
    /// Partitions stand still: nothing is to be done here, and nothing is to come.
    pub is_settled: bool,
}

impl Viewer<'_> {
    /// Compares what memory held with the ledger's rows of all our topics, whoever owns them.
    pub fn duties<'e>(&self, held: &Held, members: &[Peer], entries: &'e [Entry]) -> Duties<'e> {
        let rows = self.by_partition(entries);
        let lost: Vec<(Arc<Claim>, String)> = held
            .0
            .iter()
            .filter_map(|(claim, committed)| Some((claim.clone(), self.lost(claim, committed, &rows)?)))
            .collect();
        let gone: BTreeSet<Partition> = lost.iter().map(|(claim, _)| claim.partition).collect();
        let kept: BTreeMap<Partition, &Arc<Claim>> = held
            .0
            .iter()
            .map(|(claim, _)| (claim.partition, claim))
            .filter(|(partition, _)| !gone.contains(partition))
            .collect();
        let holdings = self.holdings(&rows, |partition| kept.contains_key(&partition));
        let me = Peer { name: self.me.to_owned(), reach: self.reach };
        let moves = share(&me, members, &holdings);
        let claim: BTreeSet<Partition> = moves.claim.iter().copied().collect();
        let is_forgotten = |partition: &Partition, entry: &Entry| {
            entry.owner.as_deref() == Some(self.me)
                && !kept.contains_key(partition)
                && !claim.contains(partition)
        };
        let give_up: Vec<&Entry> = rows
            .iter()
            .flat_map(|(partition, rows)| rows.iter().map(move |entry| (partition, *entry)))
            .filter(|(partition, entry)| is_forgotten(partition, entry))
            .map(|(_, entry)| entry)
            .collect();
        let give_away = moves.release.iter().filter_map(|partition| kept.get(partition));
        let give_away: Vec<Arc<Claim>> =
            give_away.filter(|claim| !claim.is_draining()).map(|claim| (*claim).clone()).collect();
        let is_idle = lost.is_empty() && give_up.is_empty() && give_away.is_empty() && moves.claim.is_empty();
        // With less than its share, others are about to give something.
        let has_its_share = kept.len() >= holdings.len() / members.len().max(1);
        let is_settled = is_idle && has_its_share && !kept.values().any(|claim| claim.is_draining());
        Duties { lost, give_up, give_away, claim: moves.claim, is_settled }
    }

    /// The rows of each partition, sorted by their targets.
    fn by_partition<'e>(&self, entries: &'e [Entry]) -> BTreeMap<Partition, Vec<&'e Entry>> {
        let topics: BTreeMap<&str, usize> =
            self.topics.iter().enumerate().map(|(index, topic)| (&*topic.name, index)).collect();
        let mut rows: BTreeMap<Partition, Vec<&Entry>> = BTreeMap::new();
        for entry in entries {
            if let Some(topic) = topics.get(&*entry.topic) {
                rows.entry(Partition { topic: *topic, id: entry.partition }).or_default().push(entry);
            }
        }
        rows.values_mut().for_each(|rows| rows.sort_unstable_by(|a, b| a.target.cmp(&b.target)));
        rows
    }

    /// Why a claim that memory held is not ours any more, if so.
    fn lost(
        &self,
        claim: &Claim,
        committed: &[i64],
        rows: &BTreeMap<Partition, Vec<&Entry>>,
    ) -> Option<String> {
        if !claim.is_current() {
            return Some("a writer was fenced".to_owned());
        }
        let rows = rows.get(&claim.partition).map_or(&[][..], Vec::as_slice);
        self.topics[claim.partition.topic].targets.iter().zip(committed).find_map(|(target, committed)| {
            let row = rows.binary_search_by(|entry| (*entry.target).cmp(target)).ok().map(|at| rows[at]);
            lost(self.me, *committed, row.map(|entry| (entry.owner.as_deref(), entry.next_offset)))
        })
    }

    /// The partitions that may be shared out, and who has them now.
    fn holdings(
        &self,
        rows: &BTreeMap<Partition, Vec<&Entry>>,
        is_held: impl Fn(Partition) -> bool,
    ) -> Vec<Holding<Partition>> {
        let mut holdings = Vec::new();
        for (partition, rows) in rows {
            let is_shared = |entry: &&&Entry| {
                *entry.pipeline == *self.pipeline
                    && entry.routing_hash == self.topics[partition.topic].routing_hash
            };
            let mut rows = rows.iter().filter(is_shared).peekable();
            if rows.peek().is_none() {
                continue;
            }
            let held = is_held(*partition);
            let owner =
                rows.find_map(|entry| holder(self.me, entry.owner.as_deref(), entry.owner_alive, held));
            holdings.push(Holding { partition: *partition, owner });
        }
        spread(&mut holdings);
        holdings
    }
}

/// Sorts partitions so that any stretch of them has its part of every topic: by how far into its topic each stands. Who has the
/// busy topic alone would have all the work.
fn spread(holdings: &mut [Holding<Partition>]) {
    let mut counts: BTreeMap<usize, i64> = BTreeMap::new();
    for holding in holdings.iter() {
        *counts.entry(holding.partition.topic).or_default() += 1;
    }
    let mut ranks: BTreeMap<usize, i64> = BTreeMap::new();
    let mut key = |holding: &Holding<Partition>| {
        let topic = holding.partition.topic;
        let rank = ranks.entry(topic).or_default();
        *rank += 1;
        // The middle of its share of the topic, in millionths.
        ((*rank * 2 - 1) * 500_000 / counts[&topic], topic)
    };
    holdings.sort_by_cached_key(&mut key);
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEWER: &str = "a";

    fn topics() -> Vec<Topic> {
        vec![Topic::new("t", vec![0, 1], vec!["s.x".into(), "s.y".into()], "routing")]
    }

    fn entry(id: i32, target: &str, owner: &str, next: i64) -> Entry {
        Entry {
            topic: "t".into(),
            partition: id,
            target: target.into(),
            owner: (!owner.is_empty()).then(|| owner.trim_end_matches('!').into()),
            owner_alive: !owner.ends_with('!'),
            epoch: 1,
            next_offset: next,
            anchor: None,
            routing_hash: topics()[0].routing_hash,
            pipeline: "p".into(),
            topic_id: "id".into(),
            cluster_id: "c".into(),
            table: None,
        }
    }

    /// Both tables of each partition, with one owner; `!` behind a name is a dead one.
    fn entries(owners: &[&str]) -> Vec<Entry> {
        let both =
            |(id, owner): (usize, &&str)| ["s.x", "s.y"].map(|target| entry(id as i32, target, owner, 10));
        owners.iter().enumerate().flat_map(both).collect()
    }

    fn ownership(ids: &[i32]) -> Ownership {
        let ownership = Ownership::default();
        for id in ids {
            let lanes = [0, 1].map(|table| Lane::new(table, 1, 10, None, Arc::default()));
            let claim = Claim::new(Partition { topic: 0, id: *id }, "t".into(), "id".into(), lanes.into());
            ownership.insert(Arc::new(claim));
        }
        ownership
    }

    /// Duties as partitions: lost, given up, given away, claimed.
    fn look(ownership: &Ownership, members: &[&str], entries: &[Entry]) -> [Vec<i32>; 4] {
        let topics = topics();
        let viewer = Viewer { me: VIEWER, reach: Reach::Well, pipeline: "p", topics: &topics };
        let members = members.iter().map(|name| Peer { name: (*name).to_owned(), reach: Reach::Well });
        let members: Vec<Peer> = members.collect();
        let duties = viewer.duties(&Held::note(ownership), &members, entries);
        let mut claimed: Vec<i32> = duties.claim.iter().map(|p| p.id).collect();
        claimed.sort_unstable();
        [
            duties.lost.iter().map(|(claim, _)| claim.partition.id).collect(),
            duties.give_up.iter().map(|entry| entry.partition).collect(),
            duties.give_away.iter().map(|claim| claim.partition.id).collect(),
            claimed,
        ]
    }

    #[test]
    fn a_look_says_what_is_lost_and_what_to_do() {
        #[track_caller]
        fn check(held: &[i32], members: &[&str], owners: &[&str], expected: [&[i32]; 4]) {
            assert_eq!(look(&ownership(held), members, &entries(owners)), expected.map(<[i32]>::to_vec));
        }
        check(&[], &["a"], &["", "b!"], [&[], &[], &[], &[0, 1]]);
        check(&[0], &["a"], &["a", ""], [&[], &[], &[], &[1]]);
        check(&[0], &["a", "b"], &["b", "a"], [&[0], &[], &[], &[1]]);
        // The reply to a claim was lost, and it is not ours to claim again: both rows are given up.
        check(&[0], &["a", "b"], &["a", "a"], [&[], &[1, 1], &[], &[]]);
        check(&[0, 1], &["a", "b"], &["a", "a"], [&[], &[], &[1], &[]]);
        // The row is gone.
        check(&[0, 1], &["a"], &["a"], [&[1], &[], &[], &[]]);
    }

    #[test]
    fn it_is_settled_where_nothing_is_to_do_and_nothing_to_come() {
        #[track_caller]
        fn check(held: &[i32], members: &[&str], owners: &[&str], expected: bool) {
            let (topics, entries) = (topics(), entries(owners));
            let viewer = Viewer { me: VIEWER, reach: Reach::Well, pipeline: "p", topics: &topics };
            let peer = |name: &&str| Peer { name: (*name).to_owned(), reach: Reach::Well };
            let members: Vec<Peer> = members.iter().map(peer).collect();
            let duties = viewer.duties(&Held::note(&ownership(held)), &members, &entries);
            assert_eq!(duties.is_settled, expected);
        }
        check(&[0], &["a", "b"], &["a", "b"], true);
        check(&[0], &["a", "b"], &["a", "b", "b"], true);
        // Something is free, one has too much, or too little yet.
        check(&[0], &["a"], &["a", ""], false);
        check(&[0, 1, 2], &["a", "b"], &["a", "a", "a"], false);
        check(&[], &["a", "b"], &["b", "b"], false);
    }

    #[test]
    fn one_table_behind_what_memory_knows_loses_the_partition() {
        let ownership = ownership(&[0]);
        let mut rows = entries(&["a"]);
        rows[1].next_offset = 9;
        assert_eq!(look(&ownership, &["a"], &rows)[0], [0]);
        ownership.get(Partition { topic: 0, id: 0 }).expect("held").lanes[1].set_committed(9);
        assert!(look(&ownership, &["a"], &rows)[0].is_empty());
    }

    #[test]
    fn what_has_another_routing_or_pipeline_is_not_shared_out() {
        let mut rows = entries(&["", "", ""]);
        rows[0].routing_hash += 1;
        rows[1].routing_hash += 1;
        rows[2].pipeline = "q".into();
        rows[3].pipeline = "q".into();
        assert_eq!(look(&ownership(&[]), &["a"], &rows)[3], [2]);
    }

    #[test]
    fn another_table_under_the_same_name_is_seen_once() {
        let mut known = BTreeMap::new();
        let mut look = |rows: &[(u32, f64)]| {
            let row = |&(oid, since_s): &(u32, f64)| Entry {
                table: Some(Seen { oid, since_s }),
                ..entry(0, "s.x", "a", 0)
            };
            !new_tables(&mut known, &rows.iter().map(row).collect::<Vec<_>>()).is_empty()
        };
        assert!(!look(&[]) && !look(&[(7, 0.0), (7, 0.0)]));
        assert!(look(&[(8, 10.0), (7, 0.0)]));
        assert!(!look(&[(8, 10.0), (7, 0.0)]) && !look(&[(8, 10.0), (8, 11.0)]));
        assert!(look(&[(8, 10.0), (7, 20.0)]), "the old one is back");
    }

    #[test]
    fn every_topic_is_spread_over_the_members() {
        #[track_caller]
        fn check(counts: &[i32], members: &[&str], expected: &[&[usize]]) {
            let partitions = |(topic, count): (usize, &i32)| {
                (0..*count).map(move |id| Holding { partition: Partition { topic, id }, owner: None })
            };
            let mut holdings: Vec<Holding<Partition>> =
                counts.iter().enumerate().flat_map(partitions).collect();
            spread(&mut holdings);
            let peers: Vec<Peer> =
                members.iter().map(|name| Peer { name: (*name).to_owned(), reach: Reach::Well }).collect();
            let shares = peers.iter().map(|me| {
                let claim = share(me, &peers, &holdings).claim;
                (0..counts.len()).map(|topic| claim.iter().filter(|p| p.topic == topic).count()).collect()
            });
            assert_eq!(shares.collect::<Vec<Vec<usize>>>(), expected);
        }
        check(&[6, 6], &["a", "b"], &[&[3, 3], &[3, 3]]);
        check(&[12, 2], &["a", "b"], &[&[6, 1], &[6, 1]]);
        check(&[3, 3, 3], &["a", "b", "c"], &[&[1, 1, 1], &[1, 1, 1], &[1, 1, 1]]);
        check(&[1, 1], &["a", "b"], &[&[1, 0], &[0, 1]]);
    }

    #[test]
    fn what_is_drained_already_is_not_given_away_again() {
        let ownership = ownership(&[0, 1]);
        ownership.all().iter().for_each(|claim| claim.drain());
        assert!(look(&ownership, &["a", "b"], &entries(&["a", "a"]))[2].is_empty());
    }
}
