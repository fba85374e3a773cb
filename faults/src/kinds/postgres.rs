//! Faults of PostgreSQL as a server.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::stack::{env, stack};

pub(super) const KINDS: [Kind; 7] = [
    Kind { name: "postgres-immediate-stop", run: immediate_stop },
    Kind { name: "ghost-standby", run: ghost_standby },
    Kind { name: "backends-terminated", run: terminated },
    Kind { name: "backends-canceled", run: canceled },
    Kind { name: "table-locked", run: table_locked },
    Kind { name: "deadlock", run: deadlock },
    Kind { name: "read-only", run: read_only },
];

pub(super) const CLOCK_STEPS: Kind = Kind { name: "clock-steps", run: clock_steps };

pub(super) const DISK_FULL: Kind = Kind { name: "disk-full", run: disk_full };

/// An engine's sessions, through whichever proxy.
const ENGINES: &str =
    "FROM pg_stat_activity WHERE application_name LIKE 'rowmill %' AND datname = 'campaign'";

fn immediate_stop(_: &Campaign, random: &mut Random) -> Struck {
    stack(&["kill", "postgres"])?;
    std::thread::sleep(random.ms(0, 3000));
    stack(&["restart", "postgres"])?;
    Ok((true, "recovered from WAL".to_owned()))
}

/// COMMITs wait for a standby that does not exist, and the server dies meanwhile: each is committed, and no client knows.
fn ghost_standby(campaign: &Campaign, _: &mut Random) -> Struck {
    campaign.execute("ALTER SYSTEM SET synchronous_standby_names = 'ghost'")?;
    campaign.execute("SELECT pg_reload_conf()")?;
    let mut client = campaign.sql()?;
    let sql = format!("SELECT count(*) {ENGINES} AND wait_event = 'SyncRep'");
    let mut waiting = 0i64;
    campaign.wait(6, || {
        waiting = client.query_one(&sql, &[]).map_or(0, |r| r.get(0));
        waiting > 0
    });
    stack(&["kill", "postgres"])?;
    forget_standby()?;
    stack(&["restart", "postgres"])?;
    Ok((waiting > 0, format!("{waiting} sessions waited in COMMIT")))
}

/// ALTER SYSTEM needs a server; this one is down.
fn forget_standby() -> Result<()> {
    let path = std::path::Path::new(&env("PGDATA")?).join("postgresql.auto.conf");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let kept: Vec<&str> = text.lines().filter(|l| !l.contains("synchronous_standby_names")).collect();
    std::fs::write(&path, kept.join("\n") + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn terminated(campaign: &Campaign, random: &mut Random) -> Struck {
    signal_backends(campaign, random, "pg_terminate_backend")
}

fn canceled(campaign: &Campaign, random: &mut Random) -> Struck {
    signal_backends(campaign, random, "pg_cancel_backend")
}

fn signal_backends(campaign: &Campaign, random: &mut Random, function: &str) -> Struck {
    let mut client = campaign.patient_sql()?;
    let sql = format!("SELECT count({function}(pid)) {ENGINES} AND state <> 'idle'");
    let (start, mut hit) = (Instant::now(), 0i64);
    while start.elapsed() < Duration::from_secs(5) {
        hit += client.query_one(&sql, &[])?.get::<_, i64>(0);
        std::thread::sleep(random.ms(100, 500));
    }
    Ok((hit > 0, format!("{hit} times in 5 s")))
}

/// Longer than the engine's lock_timeout.
fn table_locked(campaign: &Campaign, random: &mut Random) -> Struck {
    let table = *random.pick(&crate::world::TABLES);
    let mut client = campaign.patient_sql()?;
    client.batch_execute(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))?;
    std::thread::sleep(random.ms(500, 4000));
    client.batch_execute("COMMIT")?;
    Ok((true, table.to_owned()))
}

/// We hold the last row of the ledger; a writer that has the first waits for us; we ask for the first.
fn deadlock(campaign: &Campaign, _: &mut Random) -> Struck {
    let mut client = campaign.patient_sql()?;
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'campaign'";
    let before: i64 = client.query_one(deadlocks, &[])?.get(0);
    let (mut met, mut after) = (0, before);
    for _ in 0..8 {
        if after > before {
            break;
        }
        let row = |order: &str| {
            format!("SELECT FROM rowmill.ledger WHERE target = 'public.t1' AND owner = (SELECT owner FROM rowmill.ledger
                     WHERE target = 'public.t1' AND owner IS NOT NULL GROUP BY owner ORDER BY count(*) DESC, owner LIMIT 1)
                     ORDER BY topic {order}, partition {order} LIMIT 1 FOR UPDATE")
        };
        client.batch_execute(&format!(
            "BEGIN; SET LOCAL deadlock_timeout = '4s'; SET LOCAL lock_timeout = '8s'; {}",
            row("DESC")
        ))?;
        let blocked = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))";
        let caught = campaign.wait(2, || client.query_one(blocked, &[]).is_ok_and(|r| r.get(0)));
        if caught {
            met += 1;
            // Either of us may be the victim.
            client.batch_execute(&row("ASC")).ok();
        }
        client.batch_execute("ROLLBACK")?;
        // Sessions report what they counted once a second.
        std::thread::sleep(Duration::from_millis(1100));
        after = client.query_one(deadlocks, &[])?.get(0);
    }
    Ok((after > before, format!("{} deadlocks, {met} times a writer waited", after - before)))
}

/// What a standby is until it is promoted.
fn read_only(campaign: &Campaign, random: &mut Random) -> Struck {
    campaign.execute("ALTER DATABASE campaign SET default_transaction_read_only = on")?;
    campaign.execute(&format!("SELECT pg_terminate_backend(pid) {ENGINES}"))?;
    std::thread::sleep(random.ms(500, 3000));
    campaign.execute("ALTER DATABASE campaign RESET default_transaction_read_only")?;
    Ok((true, "every new session was read-only".to_owned()))
}

/// The server's wall clock goes on by an hour and comes back, or back and comes on: the one clock that leases know.
fn clock_steps(campaign: &Campaign, random: &mut Random) -> Struck {
    let file = campaign.world.clock.as_ref().context("the server has a clock of its own")?;
    let mut client = campaign.patient_sql()?;
    let mut step = |seconds: i64| -> Result<bool> {
        std::fs::write(file, format!("{seconds:+}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
        let sql = "SELECT extract(epoch FROM clock_timestamp())::BIGINT";
        Ok(campaign.wait(5, || {
            let ours = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs() as i64);
            client.query_one(sql, &[]).is_ok_and(|r| (r.get::<_, i64>(0) - ours - seconds).abs() < 5)
        }))
    };
    let hour = *random.pick(&[3600, -3600]);
    let there = step(hour)?;
    std::thread::sleep(random.ms(1000, 7000));
    let back = step(0)?;
    Ok((there && back, format!("{hour:+} s, and back")))
}

/// The disk of one table is full for a while.
fn disk_full(campaign: &Campaign, random: &mut Random) -> Struck {
    let disk = campaign.world.small_disk.as_ref().context("there is a small disk")?;
    let ballast = disk.path.join("ballast");
    let mut file = std::fs::File::create(&ballast)?;
    let mebibyte = vec![0u8; 1 << 20];
    let mut size = 0;
    while std::io::Write::write_all(&mut file, &mebibyte).is_ok() {
        size += 1;
    }
    let log = || campaign.engines.lock().iter().any(|s| s.words().contains("No space left on device"));
    let seen = campaign.wait(8, log);
    std::thread::sleep(random.ms(0, 2000));
    drop(file);
    std::fs::remove_file(&ballast)?;
    Ok((seen, format!("{size} MB of ballast")))
}
