//! Faults of the engine's processes, measured where the promise has a number.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::engines::SLOTS;
use crate::world::PREFIX;

pub(super) const KINDS: [Kind; 5] = [
    Kind { name: "kill-all", run: kill_all },
    Kind { name: "take-over", run: take_over },
    Kind { name: "freeze", run: freeze },
    Kind { name: "short-freeze", run: short_freeze },
    Kind { name: "storm", run: storm },
];

/// All die at once and are started again at once: how long until the first row?
fn kill_all(campaign: &Campaign, random: &mut Random) -> Struck {
    let Some(_calm) = campaign.calm()? else { return Ok((false, "it never became calm".to_owned())) };
    let mut client = campaign.sql()?;
    for slot in campaign.engines.lock().iter_mut() {
        slot.is_held = true;
        slot.kill();
    }
    campaign.wait(5, || campaign.engines.lock().iter().all(|s| s.child.is_none()));
    let before = campaign.progress(&mut client, "true")?;
    let start = Instant::now();
    for slot in campaign.engines.lock().iter_mut() {
        slot.start(&campaign.world, random, true)?;
    }
    let Some(_) = campaign.moved(&mut client, &before, true, 30) else {
        campaign.journal.anomaly("no row within 30 s after all processes were started again".to_owned());
        return Ok((true, "no recovery".to_owned()));
    };
    campaign.journal.recovery("restart", start.elapsed());
    Ok((true, format!("{SLOTS} processes, first row after {:.2} s", start.elapsed().as_secs_f64())))
}

/// One dies for good: how long until others write all of its partitions?
fn take_over(campaign: &Campaign, random: &mut Random) -> Struck {
    taken_over(campaign, random, "taken over (killed)", Signal::SIGKILL)
}

/// One is frozen for longer than its lease, wherever it was, and then goes on as if nothing had happened.
fn freeze(campaign: &Campaign, random: &mut Random) -> Struck {
    taken_over(campaign, random, "taken over (frozen)", Signal::SIGSTOP)
}

fn taken_over(campaign: &Campaign, random: &mut Random, name: &'static str, signal: Signal) -> Struck {
    let Some(_calm) = campaign.calm()? else { return Ok((false, "it never became calm".to_owned())) };
    let mut client = campaign.sql()?;
    let victim = random.below(SLOTS);
    let pid = {
        let mut slots = campaign.engines.lock();
        slots[victim].is_held = true;
        let pid = slots[victim].pid();
        slots[victim].signal(signal);
        pid
    };
    let Some(pid) = pid else { return Ok((false, "it had just ended".to_owned())) };
    // What it sent before may still be executed.
    std::thread::sleep(Duration::from_millis(100));
    // Without the topic whose transactions are sometimes left open: it stands still by itself.
    let its = format!("owner LIKE '%-{pid}-%' AND topic <> '{PREFIX}two'");
    let before = campaign.progress(&mut client, &its)?;
    let took = campaign.moved(&mut client, &before, false, 30);
    campaign.engines.lock()[victim].signal(Signal::SIGCONT);
    let Some(took) = took else {
        campaign.journal.anomaly(format!("{its}: not taken over within 30 s: {before:?}"));
        return Ok((true, "not taken over".to_owned()));
    };
    if !before.is_empty() {
        campaign.journal.recovery(name, took + Duration::from_millis(100));
    }
    Ok((!before.is_empty(), format!("{} rows of the ledger in {:.2} s", before.len(), took.as_secs_f64())))
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
