//! Whether a run may be believed, whether it passed, and the exit code that says so.

use serde::Serialize;

use crate::base::quantity::{show_count, show_us};
use crate::measure::tally::Tally;
use crate::plan::words::Delivery;

/// What the tester knows about itself and its machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Facts {
    /// Messages sent in time, of those due after the warm-up.
    pub achieved_ratio: f64,
    pub achieved_rate: f64,
    pub schedule_lag_p99_us: f64,
    pub visible_p99_us: f64,
    /// The busiest generator thread; 100 is one core.
    pub busiest_thread_percent: f64,
    /// Messages that found the producer's queue full, of all.
    pub queue_full_ratio: f64,
    pub probe_interval_us: f64,
    pub probe_longest_gap_us: f64,
    /// Of the probe's thread and, where it runs here, its server process; 100 is one core.
    pub probe_cpu_percent: f64,
    pub probe_reconnects: u64,
    /// Time that the machine's host gave to others.
    pub steal_percent: f64,
    /// The largest change between the wall clock and the monotonic one within a second.
    pub clock_step_us: f64,
    /// Consumer or servers run on the generator's cores.
    pub shares_cores: bool,
    pub has_probe: bool,
    /// Connections for which this machine had no port or no descriptor.
    pub no_room: u64,
    /// Answers that held values newer than anything that has been sent: another clock made them.
    pub ahead: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The numbers do not say what the consumer can do.
    Invalid,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    pub severity: Severity,
    pub text: String,
}

/// What speaks against the run. Lateness of the generator counts into every latency, so it makes the consumer look worse,
/// never better; from a fifth of the headline on, it is no longer the consumer that is measured.
pub fn reasons(facts: &Facts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    let mut add = |severity, text| reasons.push(Reason { severity, text });
    if facts.achieved_ratio < 0.99 {
        add(
            Severity::Invalid,
            format!(
                "only {:.1} % of the messages were sent in time: at least {:.0} messages/s, limited by the generator or by Kafka",
                facts.achieved_ratio * 100.0,
                facts.achieved_rate
            ),
        );
    }
    let lag_limit_us = f64::max(5000.0, 0.2 * facts.visible_p99_us);
    if facts.schedule_lag_p99_us > lag_limit_us {
        let text = format!(
            "one message in a hundred left {} late or more; up to {} would be acceptable here",
            show_us(facts.schedule_lag_p99_us),
            show_us(lag_limit_us)
        );
        add(Severity::Invalid, text);
    } else if facts.schedule_lag_p99_us > 1000.0 {
        add(
            Severity::Warning,
            format!("one message in a hundred left {} late or more", show_us(facts.schedule_lag_p99_us)),
        );
    }
    if facts.busiest_thread_percent > 90.0 {
        let text = format!(
            "a generator thread used {:.0} % of a core: use more --threads",
            facts.busiest_thread_percent
        );
        add(Severity::Invalid, text);
    }
    if facts.queue_full_ratio > 0.001 {
        let text = format!(
            "{:.2} % of the messages found the producer's queue full: Kafka did not take them as fast as they were due",
            facts.queue_full_ratio * 100.0
        );
        add(Severity::Invalid, text);
    }
    if facts.steal_percent > 2.0 {
        add(
            Severity::Invalid,
            format!("the machine's host took {:.1} % of the CPU for others", facts.steal_percent),
        );
    }
    if facts.clock_step_us > 10_000.0 {
        let text = format!(
            "the wall clock jumped by {} during the run: `row` latencies and times are off",
            show_us(facts.clock_step_us)
        );
        add(Severity::Invalid, text);
    }
    if facts.no_room > 0 {
        add(
            Severity::Invalid,
            format!(
                "{} connections could not be opened for want of a port or a file descriptor of this machine: fewer \
                 --connections, a server that keeps them open, or a higher `ulimit -n`",
                show_count(facts.no_room)
            ),
        );
    }
    if facts.ahead > 0 {
        add(
            Severity::Invalid,
            format!(
                "{} answers held values newer than this machine's clock: `behind` says nothing here",
                show_count(facts.ahead)
            ),
        );
    }
    if facts.has_probe {
        probe_reasons(facts, &mut add);
    }
    if facts.shares_cores {
        add(Severity::Warning, "the consumer runs on the generator's machine and shares its cores (--pin keeps the generator on some)".to_owned());
    }
    reasons
}

fn probe_reasons(facts: &Facts, add: &mut impl FnMut(Severity, String)) {
    let starved_us = f64::max(1e6, 20.0 * facts.probe_interval_us);
    if facts.probe_longest_gap_us > starved_us {
        let text = format!(
            "the tables were not looked at for {}: latencies in that time are too high by up to as much",
            show_us(facts.probe_longest_gap_us)
        );
        add(if facts.probe_reconnects > 0 { Severity::Warning } else { Severity::Invalid }, text);
    }
    if facts.probe_cpu_percent > 5.0 {
        let text = format!(
            "looking into the tables took {:.1} % of a core; a longer --probe-interval costs less",
            facts.probe_cpu_percent
        );
        add(Severity::Warning, text);
    }
    if facts.probe_reconnects > 0 {
        add(
            Severity::Warning,
            format!("the probe lost its connection to PostgreSQL {} times", facts.probe_reconnects),
        );
    }
}

/// What was wrong beside the rows.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside {
    /// Answers to readers.
    pub answers: u64,
    /// Messages that aggregates have too few and too many of, and values that are not the truth.
    pub missing: u64,
    pub surplus: u64,
    pub values: u64,
}

/// What the consumer did wrong; empty where it kept its promise.
pub fn violations(tally: &Tally, beside: &Beside, delivery: Delivery) -> Vec<String> {
    let duplicates_matter = delivery == Delivery::ExactlyOnce;
    let rows = [
        ("lost", tally.lost, true),
        ("duplicated", tally.duplicated, duplicates_matter),
        ("corrupted", tally.corrupted, true),
        ("reordered", tally.reordered, true),
        ("missing in aggregates", beside.missing, true),
        ("too many in aggregates", beside.surplus, duplicates_matter),
        ("wrong in aggregates", beside.values, duplicates_matter || beside.surplus == 0),
        ("wrong answers", beside.answers, true),
    ];
    let bad = rows.into_iter().filter(|(_, count, matters)| *matters && *count > 0);
    let mut found: Vec<String> = bad
        .map(|(class, count, _)| format!("{} {class}", crate::base::quantity::show_count(count)))
        .collect();
    if tally.lost > 0 && tally.stored == 0 && tally.dead_letters == 0 {
        found.push(
            "nothing was stored at all: is a consumer running, and does it write to this database?"
                .to_owned(),
        );
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    Passed,
    /// Something that has nothing to do with the measurement failed.
    Error,
    Invalid,
    Incorrect,
    Threshold,
    Interrupted,
}

impl Exit {
    pub fn code(self) -> u8 {
        match self {
            Exit::Passed => 0,
            Exit::Error => 1,
            Exit::Invalid => 97,
            Exit::Incorrect => 98,
            Exit::Threshold => 99,
            Exit::Interrupted => 130,
        }
    }

    pub fn headline(self) -> &'static str {
        match self {
            Exit::Passed => "PASSED",
            Exit::Error => "ERROR",
            Exit::Invalid => "INVALID",
            Exit::Incorrect => "FAILED: messages are not as they were sent",
            Exit::Threshold => "FAILED: a threshold was missed",
            Exit::Interrupted => "INTERRUPTED",
        }
    }
}

/// Wrong rows are wrong however the load was made, so they come before the run's validity.
pub fn exit(error: bool, interrupted: bool, incorrect: bool, invalid: bool, missed: bool) -> Exit {
    match () {
        () if error => Exit::Error,
        () if interrupted => Exit::Interrupted,
        () if incorrect => Exit::Incorrect,
        () if invalid => Exit::Invalid,
        () if missed => Exit::Threshold,
        () => Exit::Passed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            achieved_ratio: 1.0,
            visible_p99_us: 20_000.0,
            probe_interval_us: 10_000.0,
            has_probe: true,
            ..Default::default()
        }
    }

    #[test]
    fn what_makes_a_run_invalid() {
        use Severity::{Invalid, Warning};
        let rows: [(Facts, &[Severity]); 17] = [
            (good(), &[]),
            (Facts { achieved_ratio: 0.991, ..good() }, &[]),
            (Facts { achieved_ratio: 0.98, ..good() }, &[Invalid]),
            (Facts { schedule_lag_p99_us: 900.0, ..good() }, &[]),
            (Facts { schedule_lag_p99_us: 1500.0, ..good() }, &[Warning]),
            (Facts { schedule_lag_p99_us: 5100.0, ..good() }, &[Invalid]),
            (Facts { schedule_lag_p99_us: 5100.0, visible_p99_us: 50_000.0, ..good() }, &[Warning]),
            (Facts { busiest_thread_percent: 91.0, ..good() }, &[Invalid]),
            (Facts { queue_full_ratio: 0.002, ..good() }, &[Invalid]),
            (Facts { steal_percent: 3.0, ..good() }, &[Invalid]),
            (Facts { clock_step_us: 20_000.0, ..good() }, &[Invalid]),
            (Facts { probe_longest_gap_us: 2e6, ..good() }, &[Invalid]),
            (Facts { probe_longest_gap_us: 2e6, probe_reconnects: 1, ..good() }, &[Warning, Warning]),
            (Facts { probe_cpu_percent: 6.0, ..good() }, &[Warning]),
            (Facts { shares_cores: true, ..good() }, &[Warning]),
            (Facts { no_room: 1, ..good() }, &[Invalid]),
            (Facts { ahead: 1, ..good() }, &[Invalid]),
        ];
        for (facts, expected) in rows {
            let found: Vec<Severity> = reasons(&facts).iter().map(|r| r.severity).collect();
            assert_eq!(found, expected, "{facts:?}");
        }
    }

    #[test]
    fn duplicates_are_allowed_where_they_were_announced() {
        let tally =
            Tally { duplicated: 3, stored_indeterminate: 9, rejected: 2, foreign: 4, ..Default::default() };
        assert_eq!(violations(&tally, &Beside::default(), Delivery::ExactlyOnce), ["3 duplicated"]);
        assert!(violations(&tally, &Beside::default(), Delivery::AtLeastOnce).is_empty());
        let none = Tally { lost: 9, ..Default::default() };
        let said = violations(&none, &Beside::default(), Delivery::ExactlyOnce);
        assert!(said[0] == "9 lost" && said[1].contains("is a consumer running"), "{said:?}");
        let tally = Tally { stored: 5, lost: 1, corrupted: 2, reordered: 3, ..Default::default() };
        assert_eq!(
            violations(&tally, &Beside::default(), Delivery::AtLeastOnce),
            ["1 lost", "2 corrupted", "3 reordered"]
        );
    }

    #[test]
    fn exit_codes() {
        let rows = [
            (exit(false, false, false, false, false), 0),
            (exit(true, true, true, true, true), 1),
            (exit(false, true, true, true, true), 130),
            (exit(false, false, true, true, true), 98),
            (exit(false, false, false, true, true), 97),
            (exit(false, false, false, false, true), 99),
        ];
        for (exit, code) in rows {
            assert_eq!(exit.code(), code);
        }
    }
}
