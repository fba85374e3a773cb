//! One process is gone for the others, in whatever way: how long until they write all of its partitions?

use std::time::Instant;

use postgres::Client;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Progress, Struck};
use crate::engines::{SLOTS, Slot};
use crate::recovery::Kind;
use crate::world::PREFIX;

/// What is done to it, and what ends that.
pub(super) struct Blow {
    pub(super) strike: fn(&Slot),
    pub(super) mend: fn(&Slot),
}

/// Once, and once more where another fault disturbed it: a campaign of the default time comes to each kind five or six times, and
/// is judged by no fewer than five.
pub(super) fn measure(campaign: &Campaign, random: &mut Random, kind: Kind, blow: &Blow) -> Struck {
    let disturbed = || campaign.journal.disturbed(kind);
    let before = disturbed();
    let struck = once(campaign, random, kind, blow)?;
    if disturbed() == before { Ok(struck) } else { once(campaign, random, kind, blow) }
}

fn once(campaign: &Campaign, random: &mut Random, kind: Kind, blow: &Blow) -> Struck {
    let Some(_calm) = campaign.calm()? else { return Ok((false, "it never became calm".to_owned())) };
    let mut client = campaign.sql()?;
    // Without the topic whose transactions are sometimes left open: it stands still by itself.
    let of = |pid: u32| format!("owner LIKE '%-{pid}-%' AND topic <> '{PREFIX}two'");
    let not_of = |pid: u32| format!("owner NOT LIKE '%-{pid}-%'");
    let mut order: Vec<usize> = (0..SLOTS).collect();
    random.shuffle(&mut order);
    let mut chosen = None;
    for victim in order {
        let Some(pid) = campaign.engines.lock()[victim].pid() else { continue };
        let its = campaign.progress(&mut client, &of(pid))?;
        if !its.is_empty() {
            chosen = Some((victim, its, not_of(pid)));
            break;
        }
    }
    let Some((victim, its, by_others)) = chosen else {
        return Ok((false, "nobody owned anything".to_owned()));
    };
    let others = campaign.engines.watch_all_but(victim);
    {
        let mut slots = campaign.engines.lock();
        slots[victim].is_held = true;
        (blow.strike)(&slots[victim]);
    }
    let struck_at = Instant::now();
    let is_taken_over = written(campaign, &mut client, &its, &by_others);
    let took = struck_at.elapsed();
    let disturbance = campaign.engines.disturbance(&others);
    (blow.mend)(&campaign.engines.lock()[victim]);
    if !is_taken_over {
        campaign
            .journal
            .anomaly(format!("{}: engine {victim} had, and nobody else writes: {its:?}", kind.name()));
        return Ok((true, "not taken over".to_owned()));
    }
    campaign.journal.recovery(kind, took, disturbance);
    Ok((true, format!("engine {victim}: {} rows of the ledger in {:.2} s", its.len(), took.as_secs_f64())))
}

/// Waits until all these places were moved by others: one that is cut off from Kafka still writes what it has, so nothing counts
/// but what comes after the first sight of another owner. False if that takes longer than 30 s.
fn written(campaign: &Campaign, client: &mut Client, places: &Progress, by_others: &str) -> bool {
    let mut found = Progress::new();
    campaign.wait(30, || {
        let Ok(now) = campaign.progress(client, by_others) else { return false };
        let moved = places.keys().filter(|place| {
            now.get(*place).is_some_and(|at| at > found.entry((*place).clone()).or_insert(*at))
        });
        moved.count() == places.len()
    })
}
