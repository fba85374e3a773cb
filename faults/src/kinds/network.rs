//! Faults between one process and PostgreSQL, and COMMITs whose outcome the process cannot see.

use std::time::Duration;

use rowmill_faults::proxy::Weather;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::engines::SLOTS;

pub(super) const KINDS: [Kind; 7] = [
    Kind { name: "cut", run: cut },
    Kind { name: "slow", run: slow },
    Kind { name: "silent", run: silent },
    Kind { name: "commit-lost", run: commit_lost },
    Kind { name: "reply-lost", run: reply_lost },
    Kind { name: "commit-late", run: commit_late },
    Kind { name: "reply-swallowed", run: reply_swallowed },
];

/// All connections of one process break, several times.
fn cut(campaign: &Campaign, random: &mut Random) -> Struck {
    let victim = random.below(SLOTS);
    let mut broken = 0;
    for _ in 0..=random.below(6) {
        broken += campaign.engines.lock()[victim].proxy.cut();
        std::thread::sleep(random.ms(50, 600));
    }
    Ok((broken > 0, format!("engine {victim}: {broken} sockets")))
}

fn slow(campaign: &Campaign, random: &mut Random) -> Struck {
    let (victim, each) = (random.below(SLOTS), random.ms(20, 200));
    weather(campaign, victim, Weather::Slow(each), random.ms(2000, 5000));
    Ok((true, format!("engine {victim}: {} ms each piece", each.as_millis())))
}

/// A half-open connection: nothing arrives, nothing breaks. Longer than the lease, sometimes than the watchdog.
fn silent(campaign: &Campaign, random: &mut Random) -> Struck {
    let (victim, time) = (random.below(SLOTS), random.ms(3000, 11_000));
    weather(campaign, victim, Weather::Silent, time);
    Ok((true, format!("engine {victim} for {} ms", time.as_millis())))
}

fn weather(campaign: &Campaign, victim: usize, weather: Weather, time: Duration) {
    campaign.engines.lock()[victim].proxy.set(weather);
    std::thread::sleep(time);
    campaign.engines.lock()[victim].proxy.set(Weather::Fair);
}

fn commit_lost(campaign: &Campaign, random: &mut Random) -> Struck {
    strike(campaign, random, Weather::CommitLost)
}

fn reply_lost(campaign: &Campaign, random: &mut Random) -> Struck {
    strike(campaign, random, Weather::ReplyLost)
}

fn commit_late(campaign: &Campaign, random: &mut Random) -> Struck {
    let late = random.ms(10, 2000);
    strike(campaign, random, Weather::CommitLate(late))
}

/// Only the watchdog ends this wait.
fn reply_swallowed(campaign: &Campaign, random: &mut Random) -> Struck {
    strike(campaign, random, Weather::ReplySwallowed)
}

/// Strikes a few COMMITs of every process.
fn strike(campaign: &Campaign, random: &mut Random, weather: Weather) -> Struck {
    let strikes = || campaign.engines.lock().iter().map(|s| s.proxy.strikes()).sum::<u64>();
    let before = strikes();
    for round in 1..=3 {
        campaign.engines.lock().iter().for_each(|s| s.proxy.set(weather));
        campaign.wait(4, || strikes() >= before + round * SLOTS as u64);
        std::thread::sleep(random.ms(0, 300));
    }
    campaign.engines.lock().iter().for_each(|s| s.proxy.set(Weather::Fair));
    let count = strikes() - before;
    Ok((count > 0, format!("{count} COMMITs")))
}
