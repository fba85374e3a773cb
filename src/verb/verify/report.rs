//! The words of `rowmill verify`: a line for each partition and table, what was looked at and what was not, the verdict.

use super::findings::Findings;
use super::folded::{Differences, Outcome};
use super::judge::{Class, Lane, Partition};

use crate::verb::out::say;

pub(super) fn tell(findings: &Findings) {
    say!(
        "pipeline {:?}: Kafka at {} against PostgreSQL at {}, as it was at {}",
        findings.pipeline,
        findings.brokers,
        findings.database,
        findings.taken_at
    );
    say!();
    say!(
        "{:<28} {:>4} {:<24} {:>25} {:>12} {:>8} {:>8} {:>10} {:>8} {:>8}",
        "topic",
        "part",
        "table",
        "covered",
        "rows",
        "dead",
        "skipped",
        "other",
        "holes",
        "gaps"
    );
    findings.partitions.iter().for_each(partition);
    findings.counted.iter().filter(|t| t.lost() + t.surplus() > 0).for_each(|table| {
        let (what, by) = if table.lost() > 0 { ("LOST", -1) } else { ("DUPLICATED OR PHANTOM", 1) };
        say!(
            "table {}: {what} {}: it has {} rows, the ledger and the retried dead letters make {}",
            table.target,
            by * (table.stored - table.expected),
            table.stored,
            table.expected
        );
    });
    for table in &findings.folded {
        table.differences().into_iter().for_each(|differences| keys(&table.target, differences));
    }
    findings.broken.iter().for_each(|words| say!("BROKEN: {words}"));
    scope(findings);
    say!();
    say!("{}", verdict(findings));
}

/// What is wrong in a table with keys.
fn keys(target: &str, differences: &Differences) {
    let Differences { lost, phantom, different, refused, shown, .. } = differences;
    let classes = [
        (lost, "LOST"),
        (phantom, "PHANTOM"),
        (different, "DIFFERENT"),
        (refused, "RECORDS THAT NO MODEL TAKES NOW, WITHOUT A DEAD LETTER"),
    ];
    for (count, class) in classes.iter().filter(|(count, _)| **count > 0) {
        say!("table {target}: {count} {class}");
    }
    shown.iter().for_each(|key| say!("    {key}"));
}

fn partition(partition: &Partition) {
    for lane in &partition.lanes {
        let gaps: i64 = lane.gaps.iter().map(|g| g.end - g.start).sum();
        say!(
            "{:<28} {:>4} {:<24} {:>25} {:>12} {:>8} {:>8} {:>10} {:>8} {gaps:>8}",
            partition.topic,
            partition.id,
            lane.target,
            format!("[{}, {})", lane.start, lane.next),
            lane.rows,
            lane.dead,
            lane.skipped,
            lane.other,
            lane.holes,
        );
        classes(lane).into_iter().for_each(|(what, class)| bad(partition, what, class));
    }
    bad(partition, "LOST, in none of its tables", &partition.lost);
    partition.broken.iter().for_each(|words| say!("    BROKEN: {words}"));
}

fn classes(lane: &Lane) -> [(&'static str, &Class); 4] {
    [
        ("LOST", &lane.lost),
        ("DUPLICATED", &lane.duplicated),
        ("PHANTOM", &lane.phantom),
        ("DEAD LETTERS WITH OTHER BYTES", &lane.altered),
    ]
}

fn bad(partition: &Partition, what: &str, class: &Class) {
    if class.count == 0 {
        return;
    }
    let shown: Vec<String> = class.first.iter().map(|offset| format!("{}/{offset}", partition.id)).collect();
    let places = match (shown.is_empty(), class.count > shown.len() as i64) {
        (true, _) => "the counters do not say which".to_owned(),
        (false, true) => format!("partition/offset {}, ...", shown.join(", ")),
        (false, false) => format!("partition/offset {}", shown.join(", ")),
    };
    say!("    {what} {}: {places}", class.count);
}

/// What was looked at and what was not: a verdict is worth no more than that.
fn scope(findings: &Findings) {
    say!();
    say!("checked");
    if !findings.traced.is_empty() {
        say!(
            "  record by record, by topic, partition and offset: that each record has one row or one dead letter, and each row a \
             record: {}",
            findings.traced.join(", ")
        );
    }
    for table in &findings.counted {
        let bound = if table.at_least { ", of which it needs one row a record at least," } else { "" };
        say!(
            "  by number: count(*) of {} against the ledger{bound}, as {}; assumes that nobody else writes to it or deletes from it",
            table.target,
            table.why
        );
    }
    for table in &findings.folded {
        if let Some(Differences { keys, .. }) = table.differences() {
            say!(
                "  key by key: {keys} keys of {} against the records of Kafka, folded again; assumes that it began empty, that nobody \
                 else writes to it, and that all records of a key are in one partition where their order decides",
                table.target
            );
        }
    }
    say!("  dead letters, by topic, partition, offset and table, and the bytes of their values");
    say!(
        "  the ledger's counters against the number of records in Kafka, and its positions against rows and letters"
    );
    say!("not checked");
    say!(
        "  what stands in a row's other columns, which of a topic's tables should have taken a record, and how many rows a list of \
         messages should be"
    );
    say!(
        "  which of the records were right to become dead letters: `rowmill dead-letters list` shows why they did"
    );
    if !findings.counted.is_empty() {
        say!(
            "  in tables that are only counted: a lost row beside a duplicated one, and which record a row is"
        );
    }
    for partition in findings.partitions.iter().filter(|p| p.lanes.len() > 1 && !p.is_traced()) {
        say!(
            "  {}/{}: single records, because not every table that it feeds says which record a row is",
            partition.topic,
            partition.id
        );
    }
    for partition in findings.partitions.iter().filter(|p| p.checked_from > p.start()) {
        say!(
            "  {}/{} offsets [{}, {}) against Kafka, which no longer has them: only the ledger's counters",
            partition.topic,
            partition.id,
            partition.start(),
            partition.checked_from
        );
    }
    for partition in findings.partitions.iter().filter(|p| p.compacted) {
        say!(
            "  {}/{}: phantoms and losses where compaction took the record away",
            partition.topic,
            partition.id
        );
    }
    for table in &findings.folded {
        if let Outcome::Not(why) = &table.outcome {
            say!("  table {}, whose rows have keys: {why}", table.target);
        }
    }
    for target in &findings.unknown {
        say!("  table {target}: the ledger has it and the configuration has not");
    }
    findings.notes.iter().for_each(|note| say!("  {note}"));
}

fn verdict(findings: &Findings) -> String {
    let outcomes: i64 = findings
        .partitions
        .iter()
        .flat_map(|p| &p.lanes)
        .map(|l| l.rows + l.dead + l.skipped + l.other)
        .sum();
    if findings.is_good() {
        return format!(
            "PASS: {outcomes} outcomes in {} partitions, nothing is wrong",
            findings.partitions.len()
        );
    }
    let [lost, duplicated, phantom, altered] = findings.totals();
    let mut words =
        vec![format!("{lost} lost"), format!("{duplicated} duplicated"), format!("{phantom} phantom")];
    let more = [
        (findings.surplus(), "duplicated or phantom, which a count cannot tell"),
        (findings.wrong_keys(), "keys of folded tables"),
        (altered, "dead letters with other bytes"),
        (findings.broken() as i64, "contradictions"),
    ];
    words.extend(more.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    format!("FAIL: {}", words.join(", "))
}
