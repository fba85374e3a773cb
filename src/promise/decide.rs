//! The decisions of the protocol, as plain functions: who has a partition ([`holder`]) and who should ([`share`]), whether
//! a claim still holds ([`lost`]), what follows from a transaction that failed ([`after_failure`]), and what became of a
//! commit whose reply was lost ([`resolve`]). Where to start reading and which record to take are in [`super::gate`].
//!
//! Nothing here does input or output, reads a clock or holds a lock. The loops that do ask here first, and so does the
//! simulator in tests/simulator.

use std::collections::BTreeMap;

use crate::base::failure::Class;
use crate::base::mutant::{Bug, planted};
use crate::promise::reach::Reach;

/// One partition as the ledger showed it: `None` is free, or owned by a member that is no longer alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holding<P> {
    pub partition: P,
    pub owner: Option<String>,
}

/// What a member should do at this tick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moves<P> {
    pub release: Vec<P>,
    pub claim: Vec<P>,
}

/// A living member, and how well it reaches Kafka.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: String,
    pub reach: Reach,
}

/// Shares the partitions among the living members: sticky, fair, without a leader. Every member computes the same
/// from the same snapshot, and where snapshots differ the ledger's compare-and-swap decides. What stands together in `holdings`
/// goes to one member as a rule.
///
/// Each member claims free partitions up to its quota, and gives partitions away only when it has more than the ceiling,
/// or another one is below the floor and the free ones do not suffice: two members never take turns at outbidding each
/// other.
///
/// While there is a member that reaches Kafka well, one that does not reach it gives everything away, and one that came back a
/// moment ago keeps what it has and takes nothing. Where nobody reaches it well, the brokers are away and not the network of
/// one: all count alike, and nothing moves.
pub fn share<P: Clone + Ord>(me: &Peer, members: &[Peer], holdings: &[Holding<P>]) -> Moves<P> {
    let mut peers: BTreeMap<&str, Reach> = members.iter().map(|p| (p.name.as_str(), p.reach)).collect();
    peers.entry(&me.name).or_insert(me.reach);
    let reach = |name: &str| peers.get(name).copied();
    let of_the_living = |holding: &Holding<P>| Holding {
        owner: holding.owner.clone().filter(|owner| peers.contains_key(owner.as_str())),
        partition: holding.partition.clone(),
    };
    let holdings: Vec<Holding<P>> = holdings.iter().map(of_the_living).collect();
    let is_one_well = peers.values().any(|reach| *reach == Reach::Well);
    if !is_one_well || planted(Bug::CutIsKept) {
        return share_alike(&me.name, &peers.keys().copied().collect::<Vec<_>>(), &holdings);
    }
    let well: Vec<&str> = peers.iter().filter(|(_, r)| **r == Reach::Well).map(|(name, _)| *name).collect();
    match reach(&me.name) {
        Some(Reach::Cut) => {
            let is_mine = |holding: &&Holding<P>| holding.owner.as_deref() == Some(&*me.name);
            let release = holdings.iter().filter(is_mine).map(|h| h.partition.clone()).collect();
            Moves { release, claim: Vec::new() }
        }
        Some(Reach::Back) => Moves { release: Vec::new(), claim: Vec::new() },
        _ => {
            let is_kept = |owner: &str| reach(owner) == Some(Reach::Back);
            let shared: Vec<Holding<P>> =
                holdings.iter().filter(|h| !h.owner.as_deref().is_some_and(is_kept)).cloned().collect();
            share_alike(&me.name, &well, &shared)
        }
    }
}

/// The same where all `ranked` members, which are sorted and hold `me`, reach Kafka alike. What somebody else owns counts as
/// given up soon: it is neither claimed yet nor asked of others.
fn share_alike<P: Clone + Ord>(me: &str, ranked: &[&str], holdings: &[Holding<P>]) -> Moves<P> {
    let floor = holdings.len() / ranked.len();
    let remainder = holdings.len() % ranked.len();

    let mut owned: BTreeMap<&str, Vec<&P>> = ranked.iter().map(|m| (*m, Vec::new())).collect();
    let (mut free, mut soon): (Vec<&P>, usize) = (Vec::new(), 0);
    for holding in holdings {
        match holding.owner.as_deref().map(|owner| owned.get_mut(owner)) {
            Some(Some(list)) => list.push(&holding.partition),
            Some(None) => soon += 1,
            None => free.push(&holding.partition),
        }
    }

    let rank = ranked.iter().position(|m| *m == me).expect("me is among the ranked");
    let quota = floor + usize::from(rank < remainder);
    let wanted = quota.saturating_sub(owned[me].len());
    // Each member starts at another place of the free list, so that two that tick together rarely ask for the same.
    let start = if free.is_empty() { 0 } else { rank * free.len() / ranked.len() };
    let claim = free.iter().cycle().skip(start).take(wanted.min(free.len())).map(|p| (*p).clone()).collect();

    let missing: usize = owned.values().map(|list| floor.saturating_sub(list.len())).sum();
    let ceiling = holdings.len().div_ceil(ranked.len());
    let excess: usize = owned.values().map(|list| list.len().saturating_sub(ceiling)).sum();
    let mut to_give = missing.saturating_sub(free.len() + soon).max(excess);
    let mut counts: BTreeMap<&str, usize> = owned.iter().map(|(m, list)| (*m, list.len())).collect();
    let mut mine_to_give = 0;
    while to_give > 0 {
        let Some((donor, _)) = counts
            .iter()
            .filter(|(_, count)| **count > floor)
            .max_by_key(|(m, count)| (**count, std::cmp::Reverse(**m)))
        else {
            break;
        };
        let donor = *donor;
        *counts.get_mut(donor).expect("the donor is counted") -= 1;
        mine_to_give += usize::from(donor == me);
        to_give -= 1;
    }
    let release = owned[me].iter().rev().take(mine_to_give).map(|p| (*p).clone()).collect();
    Moves { release, claim }
}

/// Who counts as the owner of a ledger row when partitions are shared out. `held`: our own memory has the partition.
pub fn holder(me: &str, owner: Option<&str>, owner_alive: bool, held: bool) -> Option<String> {
    match owner {
        // Ours, but nobody reads it: what a lost reply to a claim leaves behind.
        Some(owner) if owner == me => held.then(|| owner.to_owned()),
        Some(owner) if owner_alive => Some(owner.to_owned()),
        _ => None,
    }
}

/// Why a claim that memory holds is not ours any more, if so. `committed` is what memory knew to be committed before the
/// ledger was asked; `row` is what it answered: owner and next offset.
pub fn lost(me: &str, committed: i64, row: Option<(Option<&str>, i64)>) -> Option<String> {
    match row {
        None => Some("its ledger row is gone".to_owned()),
        Some((owner, _)) if owner != Some(me) => Some(format!("it belongs to {}", owner.unwrap_or("nobody"))),
        Some((_, next)) if next < committed => {
            Some(format!("the ledger went back from offset {committed} to {next}: a failover or a restore"))
        }
        Some(_) => None,
    }
}

/// What a writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FollowUp {
    /// It was rolled back: the same again.
    SendAgain,
    /// Ask the ledger ([`resolve`]) before anything else.
    Ask,
    /// It was rolled back, and the rows are none for the table as it is now: read its definition, and the records, again.
    Reopen,
    /// Waiting cannot mend it: a person must act.
    Stop,
}

/// `at_commit`: the message with the COMMIT was under way.
pub fn after_failure(class: Class, at_commit: bool) -> FollowUp {
    match class {
        Class::World | Class::Row | Class::Table => FollowUp::SendAgain,
        Class::Lost if !at_commit => FollowUp::SendAgain,
        Class::Lost | Class::Fenced => FollowUp::Ask,
        Class::TableChanged => FollowUp::Reopen,
        Class::Setup => FollowUp::Stop,
    }
}

/// What a commit with an unknown outcome turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The ledger stands at the span's end.
    Committed,
    /// The ledger stands at the span's start: send it again.
    NotCommitted,
    /// Somebody else owns it, or the ledger stands elsewhere (after a failover): drop it and claim anew.
    Fenced,
}

/// `found` is the ledger's next offset if the row was still ours, `None` if it was not.
pub fn resolve(first: i64, next: i64, found: Option<i64>) -> Resolved {
    match found {
        None if planted(Bug::FailureIsTrusted) => Resolved::Committed,
        Some(_) if planted(Bug::UnknownIsDone) => Resolved::Committed,
        Some(_) if planted(Bug::UnknownIsNotDone) => Resolved::NotCommitted,
        Some(offset) if offset == next => Resolved::Committed,
        Some(offset) if offset == first => Resolved::NotCommitted,
        _ => Resolved::Fenced,
    }
}

/// Where the ledger stands for one span that is still ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub epoch: i64,
    pub next_offset: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A trailing `!` is cut off from Kafka, a trailing `?` back for a moment.
    fn peer(name: &str) -> Peer {
        let reach = match name.as_bytes().last() {
            Some(b'!') => Reach::Cut,
            Some(b'?') => Reach::Back,
            _ => Reach::Well,
        };
        Peer { name: name.trim_end_matches(['!', '?']).to_owned(), reach }
    }

    fn members(names: &[&str]) -> Vec<Peer> {
        names.iter().map(|name| peer(name)).collect()
    }

    fn holdings(owners: &[&str]) -> Vec<Holding<usize>> {
        owners
            .iter()
            .enumerate()
            .map(|(partition, owner)| Holding {
                partition,
                owner: (!owner.is_empty()).then(|| (*owner).to_owned()),
            })
            .collect()
    }

    #[test]
    fn share_is_fair_and_sticky() {
        #[track_caller]
        fn check(me: &str, alive: &[&str], owners: &[&str], release: &[usize], claim: &[usize]) {
            let moves = share(&peer(me), &members(alive), &holdings(owners));
            assert_eq!(moves, Moves { release: release.to_vec(), claim: claim.to_vec() });
        }
        check("a", &["a"], &[], &[], &[]);
        check("a", &["a"], &["", "", ""], &[], &[0, 1, 2]);
        check("a", &["a"], &["a", "a", ""], &[], &[2]);
        // An owner that is not among the living counts as free.
        check("a", &["a"], &["dead", "a"], &[], &[0]);
        // A member that is not yet listed counts itself.
        check("b", &["a"], &["", ""], &[], &[1]);
        // Two members tick together on a free topic: different partitions.
        check("a", &["a", "b"], &["", "", "", ""], &[], &[0, 1]);
        check("b", &["a", "b"], &["", "", "", ""], &[], &[2, 3]);
        // A newcomer: the owner of everything gives half away, from the end.
        check("a", &["a", "b"], &["a", "a", "a", "a"], &[3, 2], &[]);
        check("b", &["a", "b"], &["a", "a", "a", "a"], &[], &[]);
        // An odd one stays where it is, whatever the rank.
        check("b", &["a", "b"], &["b", "b", "a"], &[], &[]);
        check("a", &["a", "b"], &["b", "b", "a"], &[], &[]);
        // More members than partitions: nobody is robbed.
        check("a", &["a", "b", "c"], &["a", "b"], &[], &[]);
        check("c", &["a", "b", "c"], &["a", "b"], &[], &[]);
        // Three members, one below the floor: exactly one donor gives one.
        check("a", &["a", "b", "c"], &["a", "a", "b", "b"], &[1], &[]);
        check("b", &["a", "b", "c"], &["a", "a", "b", "b"], &[], &[]);
    }

    #[test]
    fn partitions_go_to_those_who_reach_kafka() {
        #[track_caller]
        fn check(me: &str, alive: &[&str], owners: &[&str], release: &[usize], claim: &[usize]) {
            let moves = share(&peer(me), &members(alive), &holdings(owners));
            assert_eq!(moves, Moves { release: release.to_vec(), claim: claim.to_vec() });
        }
        // Cut off: everything goes, and the others wait for it without taking from each other.
        check("a!", &["a!", "b", "c"], &["a", "a", "b", "c"], &[0, 1], &[]);
        check("b", &["a!", "b", "c"], &["a", "a", "b", "c"], &[], &[]);
        check("b", &["a!", "b", "c"], &["", "", "b", "c"], &[], &[0]);
        check("c", &["a!", "b", "c"], &["", "", "b", "c"], &[], &[1]);
        check("b", &["a!", "b"], &["", "a", "b", "b"], &[], &[0]);
        // Not even what is free, while somebody else could have it.
        check("a!", &["a!", "b"], &["", "", "b"], &[], &[]);
        check("a!", &["b"], &["", ""], &[], &[]);
        // Back for a moment: what it has it keeps, and takes nothing.
        check("a?", &["a?", "b", "c"], &["", "", "b", "c"], &[], &[]);
        check("b", &["a?", "b", "c"], &["", "", "b", "c"], &[], &[0]);
        check("a?", &["a?", "b", "c"], &["a", "", "b", "c"], &[], &[]);
        check("b", &["a?", "b", "c"], &["a", "", "b", "c", "c"], &[], &[1]);
        // Nobody reaches it well: the brokers are away, and nothing moves.
        check("a!", &["a!", "b!"], &["a", "a", "b", "b"], &[], &[]);
        check("a!", &["a!", "b?"], &["a", "a", "b", "b"], &[], &[]);
        check("b?", &["a!", "b?"], &["a", "a", "b", "b"], &[], &[]);
        check("a!", &["a!"], &["", ""], &[], &[0, 1]);
        // The well one died: whoever is left takes all.
        check("a?", &["a?"], &["b", "b"], &[], &[0, 1]);
    }

    /// Members tick in any order, each on the true state, until nothing moves: everything is owned, evenly.
    #[test]
    fn share_settles() {
        for partitions in 0..14 {
            for count in 1..5 {
                let names: Vec<Peer> = (0..count).map(|i| peer(&format!("m{i}"))).collect();
                // The worst start: one member owns all.
                let mut state: Vec<Holding<usize>> = (0..partitions)
                    .map(|partition| Holding { partition, owner: Some("m0".into()) })
                    .collect();
                let mut moved = usize::MAX;
                for _ in 0..20 {
                    moved = 0;
                    for me in &names {
                        let moves = share(me, &names, &state);
                        moved += moves.release.len() + moves.claim.len();
                        moves.release.iter().for_each(|p| state[*p].owner = None);
                        moves.claim.iter().for_each(|p| state[*p].owner = Some(me.name.clone()));
                    }
                    if moved == 0 {
                        break;
                    }
                }
                assert_eq!(moved, 0, "{partitions} partitions, {count} members do not settle");
                for me in &names {
                    let own = state.iter().filter(|h| h.owner.as_ref() == Some(&me.name)).count();
                    assert!(
                        own >= partitions / count && own <= partitions.div_ceil(count),
                        "{} has {own}",
                        me.name
                    );
                }
            }
        }
    }

    #[test]
    fn a_claim_is_lost_to_others_and_to_the_past() {
        assert_eq!(lost("a", 10, Some((Some("a"), 10))), None);
        assert_eq!(lost("a", 10, Some((Some("a"), 20))), None, "committed a moment ago");
        for row in [None, Some((None, 10)), Some((Some("b"), 10)), Some((Some("a"), 9))] {
            assert!(lost("a", 10, row).is_some(), "{row:?}");
        }
    }

    #[test]
    fn only_the_living_hold_anything() {
        assert_eq!(holder("a", Some("a"), true, true).as_deref(), Some("a"));
        assert_eq!(holder("a", Some("a"), true, false), None, "ours, but memory has lost it");
        assert_eq!(holder("a", Some("b"), true, false).as_deref(), Some("b"));
        assert_eq!(holder("a", Some("b"), false, false), None);
        assert_eq!(holder("a", None, false, false), None);
    }

    #[test]
    fn only_what_was_rolled_back_for_certain_is_sent_again() {
        // Class, after a statement before the COMMIT, after the COMMIT.
        let table = [
            (Class::World, FollowUp::SendAgain, FollowUp::SendAgain),
            (Class::Row, FollowUp::SendAgain, FollowUp::SendAgain),
            (Class::Table, FollowUp::SendAgain, FollowUp::SendAgain),
            // No answer: only at the COMMIT may it have been done.
            (Class::Lost, FollowUp::SendAgain, FollowUp::Ask),
            (Class::Fenced, FollowUp::Ask, FollowUp::Ask),
            (Class::TableChanged, FollowUp::Reopen, FollowUp::Reopen),
            (Class::Setup, FollowUp::Stop, FollowUp::Stop),
        ];
        assert_eq!(table.len(), Class::ALL.len());
        for (class, before, at_commit) in table {
            assert_eq!(after_failure(class, false), before, "{class:?}");
            assert_eq!(after_failure(class, true), at_commit, "{class:?} at the COMMIT");
        }
    }

    #[test]
    fn resolve_compares_with_the_ledger() {
        assert_eq!(resolve(10, 20, Some(20)), Resolved::Committed);
        assert_eq!(resolve(10, 20, Some(10)), Resolved::NotCommitted);
        assert_eq!(resolve(10, 20, Some(15)), Resolved::Fenced);
        assert_eq!(resolve(10, 20, None), Resolved::Fenced);
    }
}
