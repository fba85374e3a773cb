//! Faults of Kafka and of Redis.

use std::time::Duration;

use nix::sys::signal::Signal;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::stack::{signal, stack};
use crate::world::PREFIX;

pub(super) const KINDS: [Kind; 5] = [
    Kind { name: "kafka-kill", run: kill },
    Kind { name: "kafka-frozen", run: frozen },
    Kind { name: "partitions-added", run: partitions_added },
    Kind { name: "redis-down", run: redis_down },
    Kind { name: "redis-frozen", run: redis_frozen },
];

fn kill(_: &Campaign, random: &mut Random) -> Struck {
    stack(&["kill", "kafka"])?;
    std::thread::sleep(random.ms(0, 3000));
    stack(&["restart", "kafka"])?;
    Ok((true, "SIGKILL and a restart".to_owned()))
}

/// A broker that neither answers nor closes its connections.
fn frozen(_: &Campaign, random: &mut Random) -> Struck {
    let pause = random.ms(1000, 6000);
    signal("kafka", Signal::SIGSTOP)?;
    std::thread::sleep(pause);
    signal("kafka", Signal::SIGCONT)?;
    Ok((true, format!("for {} ms", pause.as_millis())))
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
