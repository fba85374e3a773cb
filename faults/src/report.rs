//! The verdict in words, for the terminal and for bench-results/.

use std::fmt::Write;
use std::time::Duration;

use crate::campaign::Campaign;
use crate::doors::Delivered;
use crate::engines::PHASES;
use crate::judge::{Findings, WRONGS};
use crate::kinds;
use crate::recovery::{ENOUGH, Judged, Recovery, Verdict, judge};
use crate::traffic::Sent;
use crate::world::LEASE_SECONDS;

pub(crate) struct Facts<'a> {
    pub(crate) seed: u64,
    pub(crate) lasted: Duration,
    pub(crate) sent: Sent,
    pub(crate) delivered: Delivered,
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
    let Delivered { records, sent, refused, unknown, broken, kills: door_kills } = facts.delivered;
    line(format!(
        "{records} more were acknowledged to HTTP clients by two doors, which were killed {door_kills} times: sent {sent} times until \
         then, refused {refused} times, with {unknown} answers that nobody knows and {broken} broken connections."
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
    recoveries(campaign).into_iter().for_each(&mut line);
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

/// The table of recoveries, and what of it was left out.
fn recoveries(campaign: &Campaign) -> Vec<String> {
    let seconds = |time: Duration| format!("{:.2} s", time.as_secs_f64());
    let mut lines =
        vec!["| | times | median | longest | limit of the median |\n|---|---|---|---|---|".to_owned()];
    let mut left_out = Vec::new();
    for (kind, recoveries) in campaign.journal.recoveries() {
        let Judged { count, times, verdict } = judge(&recoveries, kind.limit());
        let (median, longest) =
            times.map_or_else(Default::default, |(median, longest)| (seconds(median), seconds(longest)));
        let limit = match verdict {
            Verdict::TooFew => format!("not judged: fewer than {ENOUGH}"),
            Verdict::Held | Verdict::TooSlow => seconds(kind.limit()),
        };
        lines.push(format!("| {} | {count} | {median} | {longest} | {limit} |", kind.name()));
        for Recovery { took, disturbance } in recoveries {
            left_out.extend(disturbance.map(|what| format!("- {}, {}: {what}", kind.name(), seconds(took))));
        }
    }
    if !left_out.is_empty() {
        lines.push("\nLeft out, because another fault struck those who recovered:\n".to_owned());
        lines.extend(left_out);
    }
    lines
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
    // A watcher that cannot look must not look like one that finds nothing.
    if (facts.snapshots as f64) < facts.lasted.as_secs_f64() / 5.0 {
        problems.push(format!("{} snapshots, one in five seconds was wanted", facts.snapshots));
    }
    if facts.findings.records < facts.records_min {
        problems.push(format!("{} records, {} were wanted", facts.findings.records, facts.records_min));
    }
    for (kind, recoveries) in campaign.journal.recoveries() {
        if let Judged { times: Some((median, _)), verdict: Verdict::TooSlow, .. } =
            judge(&recoveries, kind.limit())
        {
            let (median, limit) = (median.as_secs_f64(), kind.limit().as_secs_f64());
            problems.push(format!("{}: {median:.1} s in the median, {limit} s are the limit", kind.name()));
        }
    }
    problems
}
