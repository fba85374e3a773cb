//! The machine's load as sysstat's `sadf -d` writes it, for what reads that: of each activity a header that begins with `#`,
//! then lines with semicolons. Made from a finished run's CSV files; their counters become rates here, as they do there.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};

use crate::measure::columns::File;
use crate::tell::csv::{self, time_ms};

struct Activity {
    /// What its file is called, and the option of sar that shows it.
    name: &'static str,
    file: File,
    columns: &'static str,
    cells: fn(&Span<'_>) -> Vec<String>,
}

const ACTIVITIES: [Activity; 7] = [
    // -u ALL
    Activity {
        name: "cpu",
        file: File::Host,
        columns: "CPU;%usr;%nice;%sys;%iowait;%steal;%irq;%soft;%guest;%gnice;%idle",
        cells: cpu,
    },
    // -w
    Activity { name: "tasks", file: File::Host, columns: "proc/s;cswch/s", cells: tasks },
    // -W
    Activity { name: "swap", file: File::Host, columns: "pswpin/s;pswpout/s", cells: swap },
    // -r
    Activity {
        name: "memory",
        file: File::Host,
        columns: "kbmemfree;kbavail;kbmemused;%memused;kbbuffers;kbcached;kbcommit;%commit;kbactive;kbinact;kbdirty",
        cells: memory,
    },
    // -q LOAD
    Activity {
        name: "load",
        file: File::Host,
        columns: "runq-sz;plist-sz;ldavg-1;ldavg-5;ldavg-15;blocked",
        cells: load,
    },
    // -d
    Activity {
        name: "disk",
        file: File::Disk,
        columns: "DEV;tps;rkB/s;wkB/s;dkB/s;areq-sz;aqu-sz;await;%util",
        cells: disk,
    },
    // -n DEV
    Activity {
        name: "net",
        file: File::Net,
        columns: "IFACE;rxpck/s;txpck/s;rxkB/s;txkB/s;rxcmp/s;txcmp/s;rxmcst/s;%ifutil",
        cells: net,
    },
];

/// All activities, one after the other, as `sadf -d` does when asked for several.
pub fn write(run: &Path, out: &mut dyn Write) -> Result<()> {
    for activity in &ACTIVITIES {
        let table = csv::read(&run.join(activity.file.name())).context("export a run; give its directory")?;
        activity.write(&table, out).context("write a run as sadf does")?;
    }
    Ok(())
}

/// A file for each activity, `sadf-NAME.csv`, in the run's own directory.
pub fn write_files(run: &Path) -> Result<()> {
    for activity in &ACTIVITIES {
        let path = run.join(format!("sadf-{}.csv", activity.name));
        let table = csv::read(&run.join(activity.file.name()))?;
        let mut text = Vec::new();
        activity.write(&table, &mut text).context("write a run as sadf does")?;
        std::fs::write(&path, text)
            .with_context(|| format!("write {}; free some space, or choose another --out", path.display()))?;
    }
    Ok(())
}

impl Activity {
    fn write(&self, table: &csv::Table, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "# hostname;interval;timestamp;{}", self.columns)?;
        let host = table.column("host");
        for span in spans(table) {
            let seconds = span.seconds.round();
            let Ok(time) = jiff::Timestamp::from_millisecond(span.time_ms) else { continue };
            let time = time.strftime("%Y-%m-%d %H:%M:%S UTC");
            let host = host.map_or("-", |at| &span.now[at]);
            writeln!(out, "{host};{seconds:.0};{time};{}", (self.cells)(&span).join(";"))?;
        }
        Ok(())
    }
}

/// Two readings of the same thing, one after the other.
struct Span<'a> {
    table: &'a csv::Table,
    before: &'a [String],
    now: &'a [String],
    device: &'a str,
    time_ms: i64,
    seconds: f64,
}

fn spans(table: &csv::Table) -> Vec<Span<'_>> {
    let device = table.column("device");
    let mut last: BTreeMap<&str, &[String]> = BTreeMap::new();
    let mut spans = Vec::new();
    for now in &table.rows {
        let device = device.map_or("", |at| &now[at]);
        let time_ms = |row: &[String]| time_ms(&table.header[0], &row[0]);
        let (Some(before), Some(now_ms)) = (last.insert(device, now), time_ms(now)) else { continue };
        let seconds = time_ms(before).map_or(0.0, |then| (now_ms - then) as f64 / 1000.0);
        if seconds > 0.0 {
            spans.push(Span { table, before, now, device, time_ms: now_ms, seconds });
        }
    }
    spans
}

impl Span<'_> {
    fn now(&self, name: &str) -> Option<f64> {
        self.now[self.table.column(name)?].parse().ok()
    }

    /// By how much a counter grew.
    fn growth(&self, name: &str) -> Option<f64> {
        let at = self.table.column(name)?;
        let (before, now): (f64, f64) = (self.before[at].parse().ok()?, self.now[at].parse().ok()?);
        Some((now - before).max(0.0))
    }

    fn rate(&self, name: &str) -> Option<f64> {
        Some(self.growth(name)? / self.seconds)
    }

    fn kb(&self, name: &str) -> Option<f64> {
        Some(self.now(name)? / 1024.0)
    }
}

/// With two digits; empty where it is not known.
fn real(value: Option<f64>) -> String {
    value.map_or(String::new(), |v| format!("{v:.2}"))
}

fn whole(value: Option<f64>) -> String {
    value.map_or(String::new(), |v| format!("{v:.0}"))
}

/// -1 stands for all cores together. What guests used is part of user and nice in the kernel's count, and not here.
fn cpu(span: &Span<'_>) -> Vec<String> {
    let growth = |mode: &str| span.growth(&format!("host_cpu_{mode}_seconds_total"));
    let all = ["user", "nice", "system", "iowait", "steal", "irq", "softirq", "idle"];
    let all: Option<f64> = all.into_iter().map(growth).sum();
    let share =
        |part: Option<f64>| real(part.zip(all).filter(|(_, all)| *all > 0.0).map(|(p, a)| p / a * 100.0));
    let without = |mode: &str, guest: &str| growth(mode).map(|all| all - growth(guest).unwrap_or(0.0));
    let mut cells =
        vec!["-1".to_owned(), share(without("user", "guest")), share(without("nice", "guest_nice"))];
    let others = ["system", "iowait", "steal", "irq", "softirq", "guest", "guest_nice", "idle"];
    cells.extend(others.map(|mode| share(growth(mode))));
    cells
}

fn tasks(span: &Span<'_>) -> Vec<String> {
    ["host_forks_total", "host_context_switches_total"].map(|name| real(span.rate(name))).into()
}

fn swap(span: &Span<'_>) -> Vec<String> {
    ["host_swap_in_pages_total", "host_swap_out_pages_total"].map(|name| real(span.rate(name))).into()
}

/// The reader of /proc is not counted among the tasks that run.
fn load(span: &Span<'_>) -> Vec<String> {
    vec![
        whole(span.now("host_procs_running").map(|n| (n - 1.0).max(0.0))),
        whole(span.now("host_tasks")),
        real(span.now("host_load1")),
        real(span.now("host_load5")),
        real(span.now("host_load15")),
        whole(span.now("host_procs_blocked")),
    ]
}

fn memory(span: &Span<'_>) -> Vec<String> {
    let kb = |name: &str| span.kb(&format!("host_memory_{name}_bytes"));
    let not_used: Option<f64> = ["free", "buffers", "cached", "slab"].into_iter().map(kb).sum();
    let used = kb("total").zip(not_used).map(|(total, rest)| (total - rest).max(0.0));
    let room = kb("total").zip(span.kb("host_swap_total_bytes")).map(|(memory, swap)| memory + swap);
    let share = |part: Option<f64>, all: Option<f64>| {
        real(part.zip(all).filter(|(_, all)| *all > 0.0).map(|(p, a)| p / a * 100.0))
    };
    vec![
        whole(kb("free")),
        whole(kb("available")),
        whole(used),
        share(used, kb("total")),
        whole(kb("buffers")),
        whole(kb("cached")),
        whole(kb("committed")),
        share(kb("committed"), room),
        whole(kb("active")),
        whole(kb("inactive")),
        whole(kb("dirty")),
    ]
}

/// Old kernels do not count discards.
fn disk(span: &Span<'_>) -> Vec<String> {
    let growth = |name: &str| span.growth(&format!("host_disk_{name}_total"));
    let three = |names: [&str; 3]| {
        let [read, written, discarded] = names.map(growth);
        Some(read? + written? + discarded.unwrap_or(0.0))
    };
    let requests = three(["reads", "writes", "discards"]);
    let bytes = three(["read_bytes", "written_bytes", "discarded_bytes"]);
    let busy_s = three(["read_time_seconds", "write_time_seconds", "discard_time_seconds"]);
    let each = |sum: Option<f64>| sum.zip(requests).map(|(s, n)| if n > 0.0 { s / n } else { 0.0 });
    let a_second = |sum: Option<f64>| sum.map(|s| s / span.seconds);
    let kb = |name: &str| a_second(growth(name)).map(|bytes| bytes / 1024.0);
    vec![
        span.device.to_owned(),
        real(a_second(requests)),
        real(kb("read_bytes")),
        real(kb("written_bytes")),
        real(Some(kb("discarded_bytes").unwrap_or(0.0))),
        real(each(bytes).map(|b| b / 1024.0)),
        real(a_second(growth("io_time_weighted_seconds"))),
        real(each(busy_s).map(|s| s * 1000.0)),
        real(a_second(growth("io_time_seconds")).map(|share| share * 100.0)),
    ]
}

/// The link counts as one that sends and receives at once; of what has no speed, such as the loopback, nothing is used.
fn net(span: &Span<'_>) -> Vec<String> {
    let rate = |name: &str| span.rate(&format!("host_net_{name}_total"));
    let kb = |name: &str| rate(name).map(|bytes| bytes / 1024.0);
    let busier = rate("receive_bytes").zip(rate("transmit_bytes")).map(|(a, b)| a.max(b));
    let speed = span.now("host_net_speed_bytes").filter(|speed| *speed > 0.0);
    vec![
        span.device.to_owned(),
        real(rate("receive_packets")),
        real(rate("transmit_packets")),
        real(kb("receive_bytes")),
        real(kb("transmit_bytes")),
        real(rate("receive_compressed")),
        real(rate("transmit_compressed")),
        real(rate("receive_multicast")),
        real(busier.map(|bytes| speed.map_or(0.0, |speed| bytes / speed * 100.0))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(header: &str, rows: &[&str]) -> csv::Table {
        let words = |line: &str| line.split(',').map(str::to_owned).collect::<Vec<_>>();
        csv::Table { header: words(header), rows: rows.iter().map(|row| words(row)).collect() }
    }

    fn written(name: &str, table: &csv::Table) -> Vec<String> {
        let activity = ACTIVITIES.iter().find(|a| a.name == name).unwrap();
        let mut out = Vec::new();
        activity.write(table, &mut out).unwrap();
        String::from_utf8(out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn every_line_has_a_cell_for_each_column() {
        for activity in &ACTIVITIES {
            let columns = activity.file.columns();
            let tags = activity.file.tags();
            let names: Vec<&str> =
                tags.iter().copied().chain(columns.iter().map(|c| c.csv.as_str())).collect();
            let row = |at: i64| format!("{at}000{}", format!(",{at}").repeat(names.len()));
            let mut table = table(&format!("timestamp_ms,{}", names.join(",")), &[&row(1), &row(2)]);
            let device = table.column("device");
            table
                .rows
                .iter_mut()
                .for_each(|row| device.into_iter().for_each(|at| row[at] = "sda".to_owned()));
            let lines = written(activity.name, &table);
            assert_eq!(lines.len(), 2, "{}", activity.name);
            let (header, line) = (lines[0].split(';'), lines[1].split(';'));
            assert_eq!(header.count(), line.clone().count(), "{}", activity.name);
            assert!(line.clone().all(|cell| !cell.is_empty()), "{}", lines[1]);
        }
    }

    #[test]
    fn a_disk_at_work() {
        let header = "timestamp_ms,run,host,phase,device,host_disk_read_bytes_total,host_disk_written_bytes_total,\
                      host_disk_reads_total,host_disk_writes_total,host_disk_io_time_seconds_total,\
                      host_disk_io_time_weighted_seconds_total,host_disk_read_time_seconds_total,host_disk_write_time_seconds_total";
        let rows = [
            "1000,r,h,steady,sda,0,0,0,0,0.0,0.0,0.0,0.0",
            "1000,r,h,steady,sdb,0,0,0,0,0.0,0.0,0.0,0.0",
            "3000,r,h,steady,sda,2048,6144,2,6,0.5,3.0,0.016,0.064",
        ];
        let expected = [
            "# hostname;interval;timestamp;DEV;tps;rkB/s;wkB/s;dkB/s;areq-sz;aqu-sz;await;%util",
            "h;2;1970-01-01 00:00:03 UTC;sda;4.00;1.00;3.00;0.00;1.00;1.50;10.00;25.00",
        ];
        assert_eq!(written("disk", &table(header, &rows)), expected);
    }

    #[test]
    fn cores_at_work() {
        let modes =
            ["user", "nice", "system", "iowait", "steal", "irq", "softirq", "guest", "guest_nice", "idle"];
        let names = modes.map(|mode| format!("host_cpu_{mode}_seconds_total")).join(",");
        let rows = ["1000,h,1,0,1,0,0,0,0,0,0,8", "2000,h,1.5,0.2,1.1,0.1,0,0,0.1,0.1,0.2,9"];
        let lines = written("cpu", &table(&format!("timestamp_ms,host,{names}"), &rows));
        assert_eq!(
            lines[1],
            "h;1;1970-01-01 00:00:02 UTC;-1;20.00;0.00;5.00;5.00;0.00;0.00;5.00;5.00;10.00;50.00"
        );
    }

    #[test]
    fn what_is_not_known_is_empty() {
        let lines = written("load", &table("timestamp_ms,host,host_load1", &["1000,h,0.5", "2000,h,0.25"]));
        assert_eq!(lines[1], "h;1;1970-01-01 00:00:02 UTC;;;0.25;;;");
    }
}
