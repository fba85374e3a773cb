//! Waits, after the last message, for the rows that are still under way.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::Result;

use crate::base::clock::SECOND_NS;
use crate::base::signals;
use crate::judge::summary::Drained;
use crate::measure::phase::Phase;
use crate::plan::Plan;
use crate::verb::run::reporter::{GLANCE, Reporter};
use crate::verb::run::settled::settled;

/// So long without a new row, and the drain counts what there is; and again so much later.
const QUIET_NS: i64 = 2 * SECOND_NS;
/// After the drain: what appears now appeared late.
const SECOND_LOOK: Duration = Duration::from_secs(1);

/// Waits until every acknowledged message has its row or dead letter, or the user's patience ends. Then, by model, how many
/// rows appeared after that. `before`: what was there before the run and looks like a part of it.
pub fn drain(plan: &Plan, before: u64, reporter: &mut Reporter) -> (Drained, Vec<u64>) {
    let drained = wait(plan, before, reporter);
    let clock = reporter.readings.clock;
    let stored = reporter.readings.counts.probe.stored.each();
    let until_ns = clock.now_ns() + SECOND_LOOK.as_nanos() as i64;
    while clock.now_ns() < until_ns {
        std::thread::sleep(GLANCE);
        reporter.tick_if_due(Some(Phase::Drain));
    }
    let late =
        reporter.readings.counts.probe.stored.each().into_iter().zip(stored).map(|(now, then)| now - then);
    (drained, late.collect())
}

fn wait(plan: &Plan, before: u64, reporter: &mut Reporter) -> Drained {
    let clock = reporter.readings.clock;
    let began_ns = clock.now_ns();
    let patience_ns = plan.args.drain_timeout.as_nanos() as i64;
    let (mut last_stored, mut moved_ns, mut next_count_ns) = (0, began_ns, 0);
    let complete = loop {
        let now_ns = clock.now_ns();
        let totals = reporter.readings.counts.totals();
        if last_stored != totals.stored {
            (last_stored, moved_ns) = (totals.stored, now_ns);
        }
        if totals.stored >= totals.acked {
            break true;
        }
        if now_ns - began_ns > patience_ns || signals::count() > 1 {
            break false;
        }
        // Dead letters never become rows, and a row in a hole of a table is not seen by the probe.
        if now_ns - moved_ns > QUIET_NS && now_ns >= next_count_ns {
            if all_settled(plan, before, reporter) {
                break true;
            }
            next_count_ns = clock.now_ns() + QUIET_NS;
        }
        std::thread::sleep(GLANCE);
        reporter.readings.glance();
        reporter.tick_if_due(Some(Phase::Drain));
    };
    let ended_ns = if complete { moved_ns } else { clock.now_ns() };
    Drained { seconds: (ended_ns - began_ns) as f64 / 1e9, complete }
}

/// Counts what the tables and dead letters hold of this run. Where they do not answer, the drain goes on.
fn all_settled(plan: &Plan, before: u64, reporter: &Reporter) -> bool {
    let duplicated = reporter.readings.counts.probe.duplicated.load(Relaxed);
    let count = || -> Result<u64> {
        let mut client = plan.database.connect("drain")?;
        let now = settled(plan, &mut client, reporter.readings.clock.wall_us(0))?;
        Ok(now.saturating_sub(before).saturating_sub(duplicated))
    };
    count().is_ok_and(|settled| settled >= reporter.readings.counts.totals().acked)
}
