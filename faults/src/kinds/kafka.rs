//! Faults of Kafka and of Redis.

use std::time::Duration;

use nix::sys::signal::Signal;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::engines::Slot;
use crate::stack::{signal, stack};
use crate::traffic::send_bomb;
use crate::world::PREFIX;

pub(super) const KINDS: [Kind; 6] = [
    Kind { name: "bomb", run: bomb },
    Kind { name: "kafka-kill", run: kill },
    Kind { name: "kafka-frozen", run: frozen },
    Kind { name: "partitions-added", run: partitions_added },
    Kind { name: "redis-down", run: redis_down },
    Kind { name: "redis-frozen", run: redis_frozen },
];

/// What the unit allows one process.
const MEMORY_MAX_BYTES: u64 = 512 << 20;

/// A record that unpacks to a thousand times its batch: its letter comes, its partition goes on, and no process grows beyond what a
/// service manager would kill it for.
fn bomb(campaign: &Campaign, random: &mut Random) -> Struck {
    let world = &campaign.world;
    let (partition, offset) = send_bomb(&world.traffic, &world.brokers, random.below(1_000_000) as u64)?;
    let mut client = campaign.patient_sql()?;
    let topic = format!("{PREFIX}one");
    let sql = "SELECT count(*) FROM rowmill.dead_letter
               WHERE topic = $1 AND partition = $2 AND \"offset\" = $3 AND whole_bytes IS NOT NULL";
    let set_aside = campaign.wait(30, || {
        client.query_one(sql, &[&topic, &partition, &offset]).is_ok_and(|row| row.get::<_, i64>(0) == 1)
    });
    let pids: Vec<u32> = campaign.engines.lock().iter().filter_map(Slot::pid).collect();
    let peak = pids.into_iter().filter_map(peak_bytes).max().unwrap_or_default();
    if peak > MEMORY_MAX_BYTES {
        campaign.journal.anomaly(format!("a process had {} MiB in memory after a bomb", peak >> 20));
    }
    Ok((set_aside, format!("partition {partition}, offset {offset}; the largest process {} MiB", peak >> 20)))
}

/// The most that a process ever had in memory; `None` if it is gone.
fn peak_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

fn kill(campaign: &Campaign, random: &mut Random) -> Struck {
    let broker = any_broker(campaign, random);
    stack(&["kill", &broker])?;
    std::thread::sleep(random.ms(0, 3000));
    stack(&["restart", &broker])?;
    Ok((true, format!("SIGKILL and a restart of {broker}")))
}

/// The stack's name for one of them.
fn any_broker(campaign: &Campaign, random: &mut Random) -> String {
    match random.below(campaign.world.brokers.split(',').count()) {
        0 => "kafka".to_owned(),
        number => format!("kafka{}", number + 1),
    }
}

/// A broker that neither answers nor closes its connections.
fn frozen(campaign: &Campaign, random: &mut Random) -> Struck {
    let (broker, pause) = (any_broker(campaign, random), random.ms(1000, 6000));
    signal(&broker, Signal::SIGSTOP)?;
    std::thread::sleep(pause);
    signal(&broker, Signal::SIGCONT)?;
    Ok((true, format!("{broker} for {} ms", pause.as_millis())))
}

/// Each adds one; enough of them would only make the rest slower.
fn partitions_added(campaign: &Campaign, _: &mut Random) -> Struck {
    let mut client = campaign.patient_sql()?;
    let topic = format!("{PREFIX}one");
    let count = |client: &mut postgres::Client| -> anyhow::Result<i64> {
        Ok(client.query_one("SELECT count(*) FROM rowmill.ledger WHERE topic = $1", &[&topic])?.get(0))
    };
    let before = count(&mut client)?;
    if before >= 8 {
        return Ok((true, "enough already".to_owned()));
    }
    stack(&["kafka-topics", "--alter", "--topic", &topic, "--partitions", &(before + 1).to_string()])?;
    let came = campaign.wait(20, || count(&mut client).is_ok_and(|now| now > before));
    Ok((came, format!("{} partitions", before + 1)))
}

fn redis_down(campaign: &Campaign, random: &mut Random) -> Struck {
    stack(&["kill", "redis"])?;
    std::thread::sleep(random.ms(500, 4000));
    stack(&["restart", "redis"])?;
    std::thread::sleep(Duration::from_millis(500));
    campaign.world.give_users()?;
    Ok((true, "killed, restarted empty, filled again".to_owned()))
}

fn redis_frozen(_: &Campaign, random: &mut Random) -> Struck {
    let pause = random.ms(1000, 5000);
    signal("redis", Signal::SIGSTOP)?;
    std::thread::sleep(pause);
    signal("redis", Signal::SIGCONT)?;
    Ok((true, format!("for {} ms", pause.as_millis())))
}
