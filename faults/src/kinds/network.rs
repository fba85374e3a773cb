//! Faults between one process and its servers, each of which can be cut off from it alone; and COMMITs whose outcome the
//! process cannot see.

use std::time::Duration;

use rowmill_faults::proxy::Weather;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::engines::{SLOTS, Slot};
use crate::recovery;

use super::take_over::{self, Blow};

pub(super) const KINDS: [Kind; 11] = [
    Kind { name: "cut", run: cut },
    Kind { name: "slow", run: slow },
    Kind { name: "silent", run: silent },
    Kind { name: "postgres-cut", run: postgres_cut },
    Kind { name: "kafka-cut", run: kafka_cut },
    Kind { name: "kafka-refused", run: kafka_refused },
    Kind { name: "redis-cut", run: redis_cut },
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
        broken += campaign.engines.lock()[victim].networks.postgres.cut();
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

/// Silent for as long as it takes others to take over: always beyond its lease.
fn postgres_cut(campaign: &Campaign, random: &mut Random) -> Struck {
    let strike = |slot: &Slot| slot.networks.postgres.set(Weather::Silent);
    let mend = |slot: &Slot| slot.networks.postgres.set(Weather::Fair);
    take_over::measure(campaign, random, recovery::Kind::CutFromPostgres, &Blow { strike, mend })
}

/// Its lease lives, and it reads nothing: it must let go by itself.
fn kafka_cut(campaign: &Campaign, random: &mut Random) -> Struck {
    let Some(_calm) = campaign.calm()? else { return Ok((false, "it never became calm".to_owned())) };
    // Whoever missed Kafka during the last minute takes nothing from others: new ones remember no such time.
    if !campaign.replace_all()? {
        return Ok((false, "new processes did not write all partitions".to_owned()));
    }
    let strike = |slot: &Slot| slot.networks.kafka.set(Weather::Silent);
    let mend = |slot: &Slot| slot.networks.kafka.set(Weather::Fair);
    take_over::measure(campaign, random, recovery::Kind::CutFromKafka, &Blow { strike, mend })
}

/// From shorter to longer than it takes to be sure.
fn kafka_refused(campaign: &Campaign, random: &mut Random) -> Struck {
    let (victim, time) = (random.below(SLOTS), random.ms(2000, 11_000));
    let broken = campaign.engines.lock()[victim].networks.kafka.refuse();
    std::thread::sleep(time);
    campaign.engines.lock()[victim].networks.kafka.set(Weather::Fair);
    Ok((broken > 0, format!("engine {victim} for {} ms: {broken} sockets", time.as_millis())))
}

/// Lookups wait, and nothing else does.
fn redis_cut(campaign: &Campaign, random: &mut Random) -> Struck {
    let (victim, time) = (random.below(SLOTS), random.ms(1000, 6000));
    campaign.engines.lock()[victim].networks.redis.set(Weather::Silent);
    std::thread::sleep(time);
    campaign.engines.lock()[victim].networks.redis.set(Weather::Fair);
    Ok((true, format!("engine {victim} for {} ms", time.as_millis())))
}

fn weather(campaign: &Campaign, victim: usize, weather: Weather, time: Duration) {
    campaign.engines.lock()[victim].networks.postgres.set(weather);
    std::thread::sleep(time);
    campaign.engines.lock()[victim].networks.postgres.set(Weather::Fair);
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
    let strikes = || campaign.engines.lock().iter().map(|s| s.networks.postgres.strikes()).sum::<u64>();
    let before = strikes();
    for round in 1..=3 {
        campaign.engines.lock().iter().for_each(|s| s.networks.postgres.set(weather));
        campaign.wait(4, || strikes() >= before + round * SLOTS as u64);
        std::thread::sleep(random.ms(0, 300));
    }
    campaign.engines.lock().iter().for_each(|s| s.networks.postgres.set(Weather::Fair));
    let count = strikes() - before;
    Ok((count > 0, format!("{count} COMMITs")))
}
