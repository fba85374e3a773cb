//! The verdict in words, for the terminal and for bench-results/.

use std::fmt::Write;
use std::time::Duration;

use crate::campaign::Campaign;
use crate::engines::PHASES;
use crate::judge::{Findings, WRONGS};
use crate::kinds;
use crate::traffic::Sent;
use crate::world::LEASE_SECONDS;

/// Seconds within which a restarted process writes its first row, in the median.
const RESTART_MAX: f64 = 3.0;

/// The same for somebody else's partitions: their lease, a tick, and a claim.
const TAKE_OVER_MAX: f64 = LEASE_SECONDS + 2.0;

pub(crate) struct Facts<'a> {
    pub(crate) seed: u64,
    pub(crate) lasted: Duration,
    pub(crate) sent: Sent,
    pub(crate) snapshots: u64,
    pub(crate) findings: &'a Findings,
    /// How processes ended that should have ended well.
    pub(crate) bad_ends: Vec<String>,
    pub(crate) kills_min: u64,
    pub(crate) records_min: u64,
    /// One kind by itself: nothing else is asked for.
    pub(crate) is_single: bool,
}

/// The report, and whether everything held.
pub(crate) fn write(campaign: &Campaign, facts: &Facts<'_>) -> (String, bool) {
    let mut text = String::new();
    let problems = problems(campaign, facts);
    let findings = facts.findings;
    let wrongs: Vec<String> = WRONGS[..4].iter().map(|w| format!("{} {w}", count(findings, w))).collect();
    let verdict = if problems.is_empty() { "PASS" } else { "FAIL" };
    let mut line = |words: String| writeln!(text, "{words}").expect("a string takes everything");
    line(format!("# {verdict}: {}\n", wrongs.join(", ")));
    line(format!(
        "{} records in the logs, each with exactly one outcome: {} rows, {} dead letters, {} skipped. The producer saw {} \
         acknowledged, {} aborted with their transactions, {} refused.",
        findings.records,
        findings.rows,
        findings.dead,
        findings.skipped,
        facts.sent.acked,
        facts.sent.aborted,
        facts.sent.failed
    ));
    line(format!(
        "{} kills in {:.0} s; seed {}; {} snapshots compared on the way. `make faults SEED={} DURATION={}s` makes the same choices \
         again, as far as real clocks allow.\n",
        kills(campaign),
        facts.lasted.as_secs_f64(),
        facts.seed,
        facts.snapshots,
        facts.seed,
        facts.lasted.as_secs()
    ));
    for problem in &problems {
        line(format!("- FAILED: {problem}"));
    }
    findings.examples.iter().for_each(|example| line(format!("- {example}")));
    line("\n## Recovery\n".to_owned());
    line(format!(
        "A restart: from the SIGKILL of all processes, which are started again at once, to the first new row. Taken over: from the signal until every \
                  partition of the process has new rows; the lease is {LEASE_SECONDS} s.\n"
    ));
    line("| | times | median | longest |\n|---|---|---|---|".to_owned());
    for (kind, mut times) in campaign.journal.recoveries() {
        times.sort_unstable();
        let (middle, longest) = (times[times.len() / 2], times[times.len() - 1]);
        line(format!(
            "| {kind} | {} | {:.2} s | {:.2} s |",
            times.len(),
            middle.as_secs_f64(),
            longest.as_secs_f64()
        ));
    }
    line("\n## Faults\n".to_owned());
    line("| kind | struck | tried |\n|---|---|---|".to_owned());
    for (kind, (fired, tried)) in campaign.journal.faults() {
        line(format!("| {kind} | {fired} | {tried} |"));
    }
    line("\n## How processes ended\n".to_owned());
    line("| | times |\n|---|---|".to_owned());
    for (how, times) in campaign.journal.ends() {
        line(format!("| {how} | {times} |"));
    }
    if campaign.world.small_disk.is_none() {
        line("\nNot enabled: disk-full, because only root may mount a small file system.".to_owned());
    }
    if campaign.world.clock.is_none() {
        line("\nNot enabled: clock-steps, because the server was started without STACK_PG_CLOCK.".to_owned());
    }
    (text, problems.is_empty())
}

fn count(findings: &Findings, wrong: &str) -> u64 {
    findings.counts.get(wrong).copied().unwrap_or(0)
}

/// SIGKILLs and aborts; orderly ends are none.
fn kills(campaign: &Campaign) -> u64 {
    let ends = campaign.journal.ends();
    ends.iter().filter(|(how, _)| how.starts_with("abort") || *how == "SIGKILL").map(|(_, n)| n).sum()
}

/// Everything that makes this campaign a failure.
fn problems(campaign: &Campaign, facts: &Facts<'_>) -> Vec<String> {
    let mut problems = campaign.journal.anomalies();
    problems.extend(facts.bad_ends.iter().cloned());
    for wrong in WRONGS {
        let count = count(facts.findings, wrong);
        if count > 0 {
            problems.push(format!("{count} {wrong}"));
        }
    }
    if facts.is_single {
        return problems;
    }
    let faults = campaign.journal.faults();
    let enabled = kinds::enabled(campaign);
    for kind in enabled.iter().map(|k| k.name).chain(kinds::ALONG_THE_WAY) {
        if faults.get(kind).is_none_or(|(fired, _)| *fired == 0) {
            problems.push(format!("the fault {kind} never struck: run longer"));
        }
    }
    let ends = campaign.journal.ends();
    for (phase, _) in PHASES {
        if !ends.contains_key(&format!("abort {phase}")) {
            problems.push(format!("no process died in the phase {phase}: run longer"));
        }
    }
    if kills(campaign) < facts.kills_min {
        problems.push(format!("{} kills, {} were wanted", kills(campaign), facts.kills_min));
    }
    if facts.findings.records < facts.records_min {
        problems.push(format!("{} records, {} were wanted", facts.findings.records, facts.records_min));
    }
    for (kind, mut times) in campaign.journal.recoveries() {
        times.sort_unstable();
        // The longest depends on what else the machine does; it is printed.
        let middle = times[times.len() / 2].as_secs_f64();
        let most = if kind == "restart" { RESTART_MAX } else { TAKE_OVER_MAX };
        if middle > most {
            problems.push(format!("{kind}: {middle:.1} s in the median, {most} s are the limit"));
        }
    }
    problems
}
