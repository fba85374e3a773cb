//! A status as lines for people, within 80 columns as far as names allow. Pure.

use super::look::{Kept, Letters, Member, Part, Status};
use crate::base::printable::printable;
use crate::base::words::count;

/// The whole status. Line breaks are our own: those of others are made visible.
pub fn page(status: &Status) -> String {
    let mut lines =
        vec![format!("pipeline {:?}, {}", status.pipeline, count(status.members.len() as u64, "member"))];
    lines.extend(status.members.iter().map(member));
    let mut above: Option<(&str, &str)> = None;
    for part in &status.partitions {
        let table = (part.topic.as_str(), part.table.as_str());
        if above.replace(table) != Some(table) {
            lines.extend([
                String::new(),
                format!("topic {}, table {}", part.topic, part.table),
                HEADER.to_owned(),
            ]);
        }
        lines.extend(partition(part));
    }
    if let Some(brokers) = &status.kafka_is_silent {
        lines.push(format!("lag is unknown where it is \"?\": Kafka at {brokers} did not answer"));
    }
    if !status.kept.is_empty() {
        lines.push(String::new());
    }
    lines.extend(status.kept.iter().flat_map(kept));
    lines.push(String::new());
    if status.dead_letters.is_empty() && status.hidden.is_empty() {
        lines.push("no open dead letters".to_owned());
    }
    if !status.dead_letters.is_empty() {
        lines.push("open dead letters".to_owned());
    }
    lines.extend(status.dead_letters.iter().flat_map(letters));
    lines.extend(status.hidden.iter().map(|what| format!("not shown: {what}")));
    lines.iter().map(|line| printable(line) + "\n").collect()
}

const HEADER: &str = "  part          next       lag          rows     dead     moved  owner";

fn member(member: &Member) -> String {
    let state = if member.is_alive { "alive" } else { "gone" };
    let remark = member.remark.map_or_else(String::new, |remark| format!(", {remark}"));
    format!(
        "  {} {state}{remark}, {}, heartbeat {:.1} s ago",
        member.member,
        count(member.partitions, "partition"),
        member.heartbeat_age_s
    )
}

fn partition(part: &Part) -> Vec<String> {
    let lag = part.lag.map_or_else(|| "?".to_owned(), |lag| lag.to_string());
    let moved = part.still_s.map_or_else(|| "never".to_owned(), ago);
    let owner = part.owner.as_deref().unwrap_or("nobody");
    let mut lines = vec![format!(
        "  {:>4} {:>13} {lag:>9} {:>13} {:>8} {moved:>9}  {owner}",
        part.partition, part.next_offset, part.rows, part.dead_letters
    )];
    lines.extend(part.stopped.iter().map(|reason| format!("     STOPPED: {reason}")));
    lines.extend(part.remarks.iter().map(|remark| format!("     {remark}")));
    lines
}

/// A stretch of time by its largest unit.
fn ago(seconds: f64) -> String {
    match seconds {
        _ if seconds < 100.0 => format!("{seconds:.0} s ago"),
        _ if seconds < 6000.0 => format!("{:.0} m ago", seconds / 60.0),
        _ if seconds < 360_000.0 => format!("{:.0} h ago", seconds / 3600.0),
        _ => format!("{:.0} d ago", seconds / 86400.0),
    }
}

fn kept(kept: &Kept) -> Vec<String> {
    let partitions = count(kept.partitions as u64, "partition");
    let mut lines = vec![format!("table {}: {partitions}; {}", kept.table, kept.retention)];
    if kept.missing > 0 {
        lines.push(format!("     missing: {}; the log of a running rowmill says why", kept.missing));
    }
    for overdue in &kept.overdue {
        let holders =
            if overdue.in_the_way.is_empty() { "nobody".to_owned() } else { overdue.in_the_way.join(", ") };
        lines.push(format!("     {} should be gone; in the way: {holders}", overdue.partition));
    }
    lines
}

fn letters(letters: &Letters) -> [String; 2] {
    [
        format!("  {:>8}  {} as {}", letters.count, letters.table, letters.reason),
        format!("            newest {}: {}", letters.newest_at, letters.newest),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(partition: i32) -> Part {
        Part {
            topic: "readings".into(),
            partition,
            table: "public.t".into(),
            next_offset: 9_876_543_210,
            lag: Some(123_456_789),
            rows: 9_876_543_210,
            dead_letters: 12_345_678,
            owner: Some("db-host-17".into()),
            still_s: Some(1.2),
            stopped: None,
            remarks: Vec::new(),
        }
    }

    #[test]
    fn a_page_fits_a_terminal_and_forges_no_line() {
        let mut stopped = part(1);
        (stopped.stopped, stopped.owner, stopped.lag) = (Some("gone\n  ok".into()), None, None);
        let status = Status {
            pipeline: "p".into(),
            members: vec![Member {
                member: "db-host-17".into(),
                is_alive: true,
                remark: None,
                partitions: 1,
                heartbeat_age_s: 0.44,
            }],
            partitions: vec![part(0), stopped],
            hidden: vec!["dead letters: no".into()],
            ..Status::default()
        };
        let expected = "\
pipeline \"p\", 1 member
  db-host-17 alive, 1 partition, heartbeat 0.4 s ago

topic readings, table public.t
  part          next       lag          rows     dead     moved  owner
     0    9876543210 123456789    9876543210 12345678   1 s ago  db-host-17
     1    9876543210         ?    9876543210 12345678   1 s ago  nobody
     STOPPED: gone\\n  ok

not shown: dead letters: no
";
        assert_eq!(page(&status), expected);
        assert!(expected.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn a_stretch_of_time_has_one_unit() {
        let shown = [1.0, 99.0, 150.0, 7200.0, 864_000.0].map(ago);
        assert_eq!(shown, ["1 s ago", "99 s ago", "2 m ago", "2 h ago", "10 d ago"]);
    }
}
