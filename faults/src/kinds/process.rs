//! Faults of the engine's processes, measured where the promise has a number.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::engines::{SLOTS, Slot};
use crate::recovery;

use super::take_over::{self, Blow};

pub(super) const KINDS: [Kind; 5] = [
    Kind { name: "kill-all", run: kill_all },
    Kind { name: "take-over", run: killed },
    Kind { name: "freeze", run: freeze },
    Kind { name: "short-freeze", run: short_freeze },
    Kind { name: "storm", run: storm },
];

/// All die at once and are started again at once: how long from the kill to the first row?
fn kill_all(campaign: &Campaign, random: &mut Random) -> Struck {
    let Some(_calm) = campaign.calm()? else { return Ok((false, "it never became calm".to_owned())) };
    let mut client = campaign.sql()?;
    let start = Instant::now();
    for slot in campaign.engines.lock().iter_mut() {
        slot.is_held = true;
        slot.kill();
    }
    // What they sent before they died may still be executed, and is no sign of life.
    let theirs = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name LIKE 'rowmill %' AND datname = 'campaign'";
    campaign.wait(5, || {
        let all_dead = campaign.engines.lock().iter().all(|s| s.child.is_none());
        all_dead && client.query_one(theirs, &[]).is_ok_and(|r| r.get(0))
    });
    let before = campaign.progress(&mut client, "true")?;
    for slot in campaign.engines.lock().iter_mut() {
        slot.start(&campaign.world, random, true)?;
    }
    if !campaign.one_moved(&mut client, &before, 30) {
        campaign.journal.anomaly("no row within 30 s after all processes were started again".to_owned());
        return Ok((true, "no recovery".to_owned()));
    }
    // Nobody is left whom another fault could strike, and the new ones have no fate.
    campaign.journal.recovery(recovery::Kind::Restart, start.elapsed(), None);
    Ok((true, format!("{SLOTS} processes, first row after {:.2} s", start.elapsed().as_secs_f64())))
}

/// One dies for good: how long until others write all of its partitions?
fn killed(campaign: &Campaign, random: &mut Random) -> Struck {
    let strike = |slot: &Slot| slot.signal(Signal::SIGKILL);
    take_over::measure(campaign, random, recovery::Kind::Killed, &Blow { strike, mend: |_| {} })
}

/// One is frozen for longer than its lease, wherever it was, and then goes on as if nothing had happened.
fn freeze(campaign: &Campaign, random: &mut Random) -> Struck {
    let strike = |slot: &Slot| slot.signal(Signal::SIGSTOP);
    let mend = |slot: &Slot| slot.signal(Signal::SIGCONT);
    take_over::measure(campaign, random, recovery::Kind::Frozen, &Blow { strike, mend })
}

/// Shorter than the lease: nothing may move.
fn short_freeze(campaign: &Campaign, random: &mut Random) -> Struck {
    let victim = random.below(SLOTS);
    let pause = random.ms(500, 2500);
    campaign.engines.lock()[victim].signal(Signal::SIGSTOP);
    std::thread::sleep(pause);
    campaign.engines.lock()[victim].signal(Signal::SIGCONT);
    Ok((true, format!("engine {victim} for {} ms", pause.as_millis())))
}

/// Processes come and go faster than partitions can be shared out.
fn storm(campaign: &Campaign, random: &mut Random) -> Struck {
    let end = Instant::now() + Duration::from_secs(8);
    let mut deaths = 0;
    while Instant::now() < end {
        std::thread::sleep(random.ms(200, 800));
        let mut slots = campaign.engines.lock();
        let slot = &mut slots[random.below(SLOTS)];
        if slot.child.is_some() {
            deaths += 1;
            if random.one_in(3) { slot.signal(Signal::SIGTERM) } else { slot.kill() }
        }
    }
    Ok((deaths > 0, format!("{deaths} deaths in 8 s")))
}
