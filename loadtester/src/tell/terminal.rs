//! What a person sees while a run goes on, and at its end: plain lines, one a second, and a summary for one screen.

use std::io::IsTerminal;

use crate::base::printable::{printable, printable_lines};
use crate::base::quantity::{show_count, show_us};
use crate::judge::summary::Summary;
use crate::judge::verdict::Severity;
use crate::measure::phase::Phase;
use crate::measure::tally::Tally;

pub struct Line<'a> {
    pub at_s: f64,
    pub all_s: f64,
    pub phase: Phase,
    pub values: &'a dyn Fn(&str) -> Option<f64>,
    pub slope: Option<f64>,
    /// CPU percent and resident bytes of the consumer.
    pub process: Option<(Option<f64>, Option<f64>)>,
}

pub fn line(line: &Line<'_>) {
    let get = |name: &str| (line.values)(name).unwrap_or(0.0);
    let latency = |name: &str| (line.values)(name).map_or("-".to_owned(), show_us);
    let behind = get("sent_rate") < 0.99 * get("offered_rate") && line.phase == Phase::Steady;
    let done = match line.phase {
        Phase::Drain => "drain".to_owned(),
        phase => format!("{} {:.0}/{:.0} s", phase.name(), line.at_s.min(line.all_s), line.all_s),
    };
    let mut text = format!(
        "{done:>15} | sent {:>5.0}{} acked {:>5.0} stored {:>5.0} /s | backlog {:>5.0}{} | visible p50 {} p99 {} | lag {}",
        get("sent_rate"),
        if behind { format!(" of {:.0}", get("offered_rate")) } else { String::new() },
        get("acked_rate"),
        get("stored_rate"),
        get("backlog"),
        line.slope.map_or(String::new(), |s| format!(" ({s:+.0}/s)")),
        latency("visible_p50_us"),
        latency("visible_p99_us"),
        latency("schedule_lag_p99_us"),
    );
    if let Some((cpu, resident)) = line.process {
        let cpu = cpu.map_or("-".to_owned(), |c| format!("{c:.0} %"));
        text.push_str(&format!(" | consumer {cpu} {:.0} MB", resident.unwrap_or(0.0) / 1e6));
    }
    if get("asked_total") > 0.0 {
        text.push_str(&format!(
            " | readers p99 {} behind {}{}",
            latency("answer_p99_us"),
            latency("behind_p99_us"),
            if get("wrong_total") + get("unanswered_total") > 0.0 {
                format!(", {:.0} wrong, {:.0} unanswered", get("wrong_total"), get("unanswered_total"))
            } else {
                String::new()
            }
        ));
    }
    let trouble = get("failed_total") + get("duplicated_total") + get("reordered_total");
    if get("refused_total") > 0.0 {
        text.push_str(&format!(" | refused {:.0}", get("refused_total")));
    }
    if trouble > 0.0 {
        text.push_str(&format!(
            " | failed {:.0} duplicated {:.0} reordered {:.0}",
            get("failed_total"),
            get("duplicated_total"),
            get("reordered_total")
        ));
    }
    eprintln!("{text}");
}

/// One line, drawn over itself; where that cannot be done, the first is enough.
pub fn locating(found: usize, all: usize) {
    let text = format!("looking for bad messages in Kafka, to name their offsets: {found} of {all} found");
    match (std::io::stderr().is_terminal(), found) {
        (true, _) if found == all => eprintln!("\r{text}\x1b[K"),
        (true, _) => eprint!("\r{text}\x1b[K"),
        (false, 0) => eprintln!("looking for {all} bad messages in Kafka, to name their offsets ..."),
        (false, _) => {}
    }
}

/// Colors for people only.
fn colored(text: &str, good: bool) -> String {
    if !std::io::stdout().is_terminal() || std::env::var_os("NO_COLOR").is_some() {
        return text.to_owned();
    }
    format!("\x1b[1;{}m{text}\x1b[0m", if good { 32 } else { 31 })
}

pub fn summary(summary: &Summary) {
    println!("\n{}", colored(summary.exit.headline(), summary.exit.code() == 0));
    for line in reasons(summary) {
        println!("  {}", printable_lines(&line));
    }
    let result = |name: &str| summary.results.get(name).copied();
    let get = |name: &str| result(name).unwrap_or(0.0);
    if summary.totals.connects > 0 {
        http(summary);
    }
    println!(
        "\nrate      offered {:.0}/s, sent {:.0}/s ({:.2} % in time), acked {:.0}/s, stored {:.0}/s",
        get("offered_rate"),
        get("achieved_rate"),
        get("achieved_ratio") * 100.0,
        get("acked_rate"),
        get("stored_rate")
    );
    println!(
        "backlog   at most {} messages; {}",
        show_count(get("backlog_max") as u64),
        if summary.drained.complete {
            format!("empty {:.2} s after the last message", summary.drained.seconds)
        } else {
            "not empty when the drain ended".to_owned()
        }
    );
    println!(
        "\n{:<14}{:>10}{:>10}{:>10}{:>10}{:>10}{:>10}{:>12}",
        "latency", "p50", "p90", "p99", "p99.9", "p99.99", "max", "messages"
    );
    for latency in &summary.latencies {
        let p = latency.summary;
        if p.count == 0 || latency.name == "visible_lower" {
            continue;
        }
        let cells =
            [p.p50, p.p90, p.p99, p.p999, p.p9999, p.max].map(|us| format!("{:>10}", show_us(us as f64)));
        println!("{:<14}{}{:>12}", latency.name, cells.concat(), show_count(p.count));
    }
    let of_the_server = |name: &str| summary.latencies.iter().any(|l| l.name == name && l.summary.count > 0);
    if of_the_server("row") || of_the_server("commit") {
        let clock = summary.clock_during.unwrap_or(summary.clock_before);
        println!(
            "{:<14}`row` depends on two clocks: PostgreSQL's was {} {} ours, within {}",
            "",
            show_us(clock.offset_us.unsigned_abs() as f64),
            if clock.offset_us < 0 { "behind" } else { "ahead of" },
            show_us(clock.within_us as f64)
        );
    }
    if let Some(resolution) = result("visible_resolution") {
        println!(
            "{:<14}`visible` counts up to the first look that saw the row; looks are {} apart on average",
            "",
            show_us(resolution)
        );
    }
    println!();
    verification(summary);
    for example in summary.examples.iter().take(3) {
        let line = format!(
            "{}: {} {} in {} partition {}, {} ({})",
            example.class,
            example.stream,
            example.seq.map_or(String::new(), |s| format!("message {s}")),
            example.topic,
            example.partition,
            example.place(),
            example.detail
        );
        println!("  {}", printable(&line));
    }
    println!();
    readers(summary);
    if let Some(cpu) = result("consumer_cpu_percent") {
        println!("consumer  {:.0} % of a core, {:.0} MB at most", cpu, get("consumer_rss_bytes_max") / 1e6);
    }
    println!(
        "tester    {:.0} % of a core, {:.0} MB; the machine was {:.0} % busy; seed {}",
        get("generator_cpu_percent"),
        get("generator_rss_bytes") / 1e6,
        get("host_cpu_percent"),
        summary.seed
    );
    if let Some(looks) = result("probe_looks_rate") {
        println!(
            "probe     {looks:.0} looks/s, {:.0} of them reads: {:.1} % of a core here{}; waiting included, {:.0} % of the time",
            get("probe_reads_rate"),
            get("probe_thread_cpu_percent"),
            result("probe_server_cpu_percent").map_or(String::new(), |p| format!(", {p:.1} % in the server")),
            get("probe_busy_percent")
        );
    }
    let report = summary.directory.join("report.html");
    if report.exists() {
        println!("report    {}", report.display());
    } else {
        println!("files     {} (there is no report)", summary.directory.display());
    }
}

/// What was taken comes first: a server that says no is fast at it.
fn http(summary: &Summary) {
    let get = |name: &str| summary.results.get(name).copied().unwrap_or(0.0);
    println!(
        "\ngoodput   {:.0} messages/s acknowledged; {} refused ({:.2} %), {} requests sent again, {} connections opened",
        get("acked_rate"),
        show_count(summary.totals.refused),
        get("refused_ratio") * 100.0,
        show_count(summary.totals.retried),
        show_count(summary.totals.connects)
    );
    println!("answers   {}", counted(&summary.answers));
}

fn counted(answers: &std::collections::BTreeMap<String, u64>) -> String {
    let each: Vec<String> =
        answers.iter().map(|(name, count)| format!("{name} {}", show_count(*count))).collect();
    each.join(", ")
}

fn readers(summary: &Summary) {
    for reader in &summary.readers {
        let part =
            |name: &str| reader.latencies.iter().find(|(latency, _)| *latency == name).map(|(_, p)| *p);
        let behind = part("behind").filter(|behind| behind.count > 0);
        println!(
            "reader    {}: {} asked, answers p50 {} p99 {} max {}{}; {} wrong; {}",
            reader.reader,
            show_count(reader.asked),
            part("answer").map_or("-".to_owned(), |p| show_us(p.p50 as f64)),
            part("answer").map_or("-".to_owned(), |p| show_us(p.p99 as f64)),
            part("answer").map_or("-".to_owned(), |p| show_us(p.max as f64)),
            behind.map_or(String::new(), |p| format!(
                ", behind by p50 {} p99 {} max {}",
                show_us(p.p50 as f64),
                show_us(p.p99 as f64),
                show_us(p.max as f64)
            )),
            show_count(reader.wrong),
            counted(&reader.answers)
        );
        reader.examples.iter().take(3).for_each(|example| println!("  {}", printable(example)));
    }
    for sums in &summary.aggregates {
        println!(
            "aggregate {}: {} keys, {} messages missing, {} too many, {} values wrong, {} keys of others",
            sums.aggregate,
            show_count(sums.keys),
            show_count(sums.missing),
            show_count(sums.surplus),
            show_count(sums.wrong),
            show_count(sums.foreign)
        );
        sums.examples.iter().take(3).for_each(|example| println!("  {}", printable(example)));
    }
}

/// A line for each model; what hardly ever happens is only named where it did.
fn verification(summary: &Summary) {
    const COLUMNS: [&str; 9] = [
        "sent",
        "acked",
        "stored",
        "dead_letters",
        "lost",
        "duplicated",
        "corrupted",
        "reordered",
        "foreign",
    ];
    let width = |name: &str| name.len().max(9) + 2;
    let cells = |of: &dyn Fn(&str) -> String| {
        COLUMNS.map(|name| format!("{:>width$}", of(name), width = width(name))).concat()
    };
    let line = |name: &str, tally: &Tally| {
        let classes = tally.classes();
        let count =
            |column: &str| classes.iter().find(|c| c.0 == column).map_or(String::new(), |c| show_count(c.1));
        println!("{name:<14}{}", cells(&count));
    };
    println!("{:<14}{}", "messages", cells(&|name| name.replace('_', " ")));
    if summary.models.len() > 1 {
        summary.models.iter().for_each(|m| line(&m.model, &m.verification));
    }
    line("all", &summary.verification);
    let classes = summary.verification.classes();
    for (class, count, meaning) in classes.iter().filter(|c| c.1 > 0 && !COLUMNS.contains(&c.0)) {
        println!("{class} {}: {meaning}", show_count(*count));
    }
}

pub fn reasons(summary: &Summary) -> Vec<String> {
    let mut lines: Vec<String> = summary.error.iter().cloned().collect();
    lines.extend(summary.violations.iter().cloned());
    for (text, holds) in &summary.thresholds {
        match holds {
            Some(true) => {}
            Some(false) => lines.push(format!("missed: {text}")),
            None => lines.push(format!("missed: {text} (this run has no such result)")),
        }
    }
    for reason in &summary.reasons {
        let word = if reason.severity == Severity::Invalid { "invalid" } else { "note" };
        lines.push(format!("{word}: {}", reason.text));
    }
    lines
}
