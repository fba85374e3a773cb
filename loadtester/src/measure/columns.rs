//! The names of everything that is measured over time: one list per file, from which CSV headers, StatsD names and
//! OpenMetrics names all come, so that they cannot drift apart.

use crate::measure::latency::{LATENCIES, Latency};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only grows; importers take its rate.
    Counter,
    Gauge,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// A whole number of something.
    Count,
    /// A real number.
    Real,
    /// Microseconds in CSV and JSON, milliseconds in StatsD, seconds in OpenMetrics.
    Micros,
}

#[derive(Clone, Debug)]
pub struct Column {
    pub csv: String,
    /// Without the prefix; `None` where StatsD does not get it.
    pub statsd: Option<String>,
    pub openmetrics: String,
    /// The quantile that belongs to the OpenMetrics name.
    pub quantile: Option<&'static str>,
    pub kind: Kind,
    pub unit: Unit,
}

/// The files of a run directory that hold measurements over time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum File {
    Intervals,
    Process,
    Host,
    Disk,
    Net,
}

pub const FILES: [File; 5] = [File::Intervals, File::Process, File::Host, File::Disk, File::Net];

impl File {
    pub fn name(self) -> &'static str {
        match self {
            File::Intervals => "intervals.csv",
            File::Process => "process.csv",
            File::Host => "host.csv",
            File::Disk => "disk.csv",
            File::Net => "net.csv",
        }
    }

    /// Columns with words: after the time, before the numbers.
    pub fn tags(self) -> &'static [&'static str] {
        match self {
            File::Intervals | File::Host => &["run", "host", "phase"],
            File::Process => &["run", "host", "phase", "process"],
            File::Disk | File::Net => &["run", "host", "phase", "device"],
        }
    }

    pub fn columns(self) -> Vec<Column> {
        match self {
            File::Intervals => intervals(),
            File::Process => plain(&PROCESS),
            File::Host => plain(&HOST),
            File::Disk => plain(&DISK),
            File::Net => plain(&NET),
        }
    }
}

use Kind::{Counter, Gauge};
use Unit::{Count, Real};

/// (CSV, StatsD, OpenMetrics, kind, unit)
type Entry = (&'static str, &'static str, &'static str, Kind, Unit);

const MESSAGES: [Entry; 28] = [
    ("offered_rate", "rate.offered", "offered_rate", Gauge, Real),
    ("sent_rate", "rate.sent", "sent_rate", Gauge, Real),
    ("acked_rate", "rate.acked", "acked_rate", Gauge, Real),
    ("stored_rate", "rate.stored", "stored_rate", Gauge, Real),
    ("sent_total", "messages.sent", "messages_sent_total", Counter, Count),
    ("sent_bytes_total", "bytes.sent", "sent_bytes_total", Counter, Count),
    ("acked_total", "messages.acked", "messages_acked_total", Counter, Count),
    ("failed_total", "messages.failed", "messages_failed_total", Counter, Count),
    ("indeterminate_total", "messages.indeterminate", "messages_indeterminate_total", Counter, Count),
    ("stored_total", "messages.stored", "messages_stored_total", Counter, Count),
    ("duplicated_total", "messages.duplicated", "messages_duplicated_total", Counter, Count),
    ("reordered_total", "messages.reordered", "messages_reordered_total", Counter, Count),
    ("foreign_total", "messages.foreign", "rows_foreign_total", Counter, Count),
    ("backlog", "backlog", "backlog_messages", Gauge, Count),
    ("queue_full_total", "producer.queue_full", "producer_queue_full_total", Counter, Count),
    ("row_negative_total", "row.negative", "row_latency_negative_total", Counter, Count),
    ("statsd_dropped_total", "", "statsd_datagrams_dropped_total", Counter, Count),
    ("probe_reads_total", "probe.reads", "probe_reads_total", Counter, Count),
    ("probe_rows_total", "probe.rows", "probe_rows_total", Counter, Count),
    ("probe_found_late_total", "probe.found_late", "probe_found_late_total", Counter, Count),
    ("probe_busy_seconds_total", "", "probe_busy_seconds_total", Counter, Real),
    ("pg_inserted_total", "pg.inserted", "pg_rows_inserted_total", Counter, Count),
    ("pg_commits_total", "pg.commits", "pg_commits_total", Counter, Count),
    ("pg_rollbacks_total", "pg.rollbacks", "pg_rollbacks_total", Counter, Count),
    ("pg_deadlocks_total", "pg.deadlocks", "pg_deadlocks_total", Counter, Count),
    ("pg_wal_bytes_total", "pg.wal_bytes", "pg_wal_bytes_total", Counter, Count),
    ("pg_active_backends", "pg.active_backends", "pg_active_backends", Gauge, Count),
    ("pg_waiting_backends", "pg.waiting_backends", "pg_waiting_backends", Gauge, Count),
];

/// Columns are only ever appended, so these stand behind the latencies.
const HTTP: [Entry; 8] = [
    ("refused_total", "messages.refused", "messages_refused_total", Counter, Count),
    ("retried_total", "requests.retried", "requests_retried_total", Counter, Count),
    ("connects_total", "connections.opened", "connections_opened_total", Counter, Count),
    ("closes_total", "connections.ended", "connections_ended_total", Counter, Count),
    ("no_room_total", "connections.no_room", "connections_without_room_total", Counter, Count),
    ("asked_total", "readers.asked", "reader_requests_total", Counter, Count),
    ("unanswered_total", "readers.unanswered", "reader_requests_unanswered_total", Counter, Count),
    ("wrong_total", "readers.wrong", "reader_answers_wrong_total", Counter, Count),
];

const PARTS: [(&str, &str); 11] = [
    ("min", "0"),
    ("mean", ""),
    ("p50", "0.5"),
    ("p75", "0.75"),
    ("p90", "0.9"),
    ("p95", "0.95"),
    ("p99", "0.99"),
    ("p999", "0.999"),
    ("p9999", "0.9999"),
    ("max", "1"),
    ("count", ""),
];

fn intervals() -> Vec<Column> {
    let mut columns: Vec<Column> = MESSAGES.iter().map(column).collect();
    let latencies = |of: &[Latency]| -> Vec<Column> {
        let parts =
            |latency: &Latency| PARTS.map(|(part, quantile)| latency_column(*latency, part, quantile));
        of.iter().flat_map(parts).collect()
    };
    columns.extend(latencies(&LATENCIES[..LATENCIES_OF_KAFKA]));
    columns.extend(HTTP.iter().map(column));
    columns.extend(latencies(&LATENCIES[LATENCIES_OF_KAFKA..]));
    columns
}

/// The first of them had their columns before there was anything else.
const LATENCIES_OF_KAFKA: usize = 7;

fn column((csv, statsd, openmetrics, kind, unit): &Entry) -> Column {
    Column {
        csv: (*csv).to_owned(),
        statsd: (!statsd.is_empty()).then(|| (*statsd).to_owned()),
        openmetrics: format!("loadtester_{openmetrics}"),
        quantile: None,
        kind: *kind,
        unit: *unit,
    }
}

fn latency_column(latency: Latency, part: &str, quantile: &'static str) -> Column {
    let name = latency.name();
    let counts = part == "count";
    let seconds = match latency {
        Latency::ScheduleLag => "schedule_lag_seconds".to_owned(),
        _ => format!("{name}_latency_seconds"),
    };
    Column {
        csv: if counts { format!("{name}_count") } else { format!("{name}_{part}_us") },
        statsd: Some(format!("{name}.{part}")),
        openmetrics: match part {
            "count" => format!("loadtester_{}_interval_count", seconds.trim_end_matches("_seconds")),
            "mean" => format!("loadtester_{}_mean_seconds", seconds.trim_end_matches("_seconds")),
            _ => format!("loadtester_{seconds}"),
        },
        quantile: (!quantile.is_empty()).then_some(quantile),
        kind: Gauge,
        unit: if counts { Count } else { Unit::Micros },
    }
}

/// (name everywhere, kind, unit). The names are those of the Prometheus client libraries where these have one.
type Plain = (&'static str, Kind, Unit);

pub const PROCESS: [Plain; 24] = [
    ("process_pid", Gauge, Count),
    ("process_count", Gauge, Count),
    ("process_restarts_total", Counter, Count),
    ("process_cpu_percent", Gauge, Real),
    ("process_cpu_user_seconds_total", Counter, Real),
    ("process_cpu_system_seconds_total", Counter, Real),
    ("process_run_delay_seconds_total", Counter, Real),
    ("process_resident_memory_bytes", Gauge, Count),
    ("process_resident_memory_peak_bytes", Gauge, Count),
    ("process_pss_bytes", Gauge, Count),
    ("process_virtual_memory_bytes", Gauge, Count),
    ("process_minor_page_faults_total", Counter, Count),
    ("process_major_page_faults_total", Counter, Count),
    ("process_read_bytes_total", Counter, Count),
    ("process_written_bytes_total", Counter, Count),
    ("process_rchar_bytes_total", Counter, Count),
    ("process_wchar_bytes_total", Counter, Count),
    ("process_threads", Gauge, Count),
    ("process_open_fds", Gauge, Count),
    ("process_voluntary_context_switches_total", Counter, Count),
    ("process_involuntary_context_switches_total", Counter, Count),
    ("cgroup_cpu_limit_cores", Gauge, Real),
    ("cgroup_cpu_throttled_seconds_total", Counter, Real),
    ("cgroup_memory_peak_bytes", Gauge, Count),
];

pub const HOST: [Plain; 44] = [
    ("host_cpu_percent", Gauge, Real),
    ("host_cpu_user_seconds_total", Counter, Real),
    ("host_cpu_nice_seconds_total", Counter, Real),
    ("host_cpu_system_seconds_total", Counter, Real),
    ("host_cpu_idle_seconds_total", Counter, Real),
    ("host_cpu_iowait_seconds_total", Counter, Real),
    ("host_cpu_irq_seconds_total", Counter, Real),
    ("host_cpu_softirq_seconds_total", Counter, Real),
    ("host_cpu_steal_seconds_total", Counter, Real),
    ("host_load1", Gauge, Real),
    ("host_load5", Gauge, Real),
    ("host_load15", Gauge, Real),
    ("host_procs_running", Gauge, Count),
    ("host_procs_blocked", Gauge, Count),
    ("host_context_switches_total", Counter, Count),
    ("host_memory_total_bytes", Gauge, Count),
    ("host_memory_available_bytes", Gauge, Count),
    ("host_memory_free_bytes", Gauge, Count),
    ("host_memory_buffers_bytes", Gauge, Count),
    ("host_memory_cached_bytes", Gauge, Count),
    ("host_memory_dirty_bytes", Gauge, Count),
    ("host_swap_in_pages_total", Counter, Count),
    ("host_swap_out_pages_total", Counter, Count),
    ("host_major_page_faults_total", Counter, Count),
    ("host_oom_kills_total", Counter, Count),
    ("host_tcp_retrans_segs_total", Counter, Count),
    ("host_tcp_listen_overflows_total", Counter, Count),
    ("host_softnet_dropped_total", Counter, Count),
    ("host_pressure_cpu_waiting_seconds_total", Counter, Real),
    ("host_pressure_memory_waiting_seconds_total", Counter, Real),
    ("host_pressure_memory_stalled_seconds_total", Counter, Real),
    ("host_pressure_io_waiting_seconds_total", Counter, Real),
    ("host_pressure_io_stalled_seconds_total", Counter, Real),
    ("host_interrupts_total", Counter, Count),
    ("host_forks_total", Counter, Count),
    ("host_cores", Gauge, Count),
    ("host_cpu_guest_seconds_total", Counter, Real),
    ("host_cpu_guest_nice_seconds_total", Counter, Real),
    ("host_tasks", Gauge, Count),
    ("host_memory_slab_bytes", Gauge, Count),
    ("host_memory_committed_bytes", Gauge, Count),
    ("host_memory_active_bytes", Gauge, Count),
    ("host_memory_inactive_bytes", Gauge, Count),
    ("host_swap_total_bytes", Gauge, Count),
];

pub const DISK: [Plain; 12] = [
    ("host_disk_read_bytes_total", Counter, Count),
    ("host_disk_written_bytes_total", Counter, Count),
    ("host_disk_reads_total", Counter, Count),
    ("host_disk_writes_total", Counter, Count),
    ("host_disk_io_time_seconds_total", Counter, Real),
    ("host_disk_io_time_weighted_seconds_total", Counter, Real),
    ("host_disk_in_flight", Gauge, Count),
    ("host_disk_read_time_seconds_total", Counter, Real),
    ("host_disk_write_time_seconds_total", Counter, Real),
    ("host_disk_discards_total", Counter, Count),
    ("host_disk_discarded_bytes_total", Counter, Count),
    ("host_disk_discard_time_seconds_total", Counter, Real),
];

pub const NET: [Plain; 12] = [
    ("host_net_receive_bytes_total", Counter, Count),
    ("host_net_transmit_bytes_total", Counter, Count),
    ("host_net_receive_packets_total", Counter, Count),
    ("host_net_transmit_packets_total", Counter, Count),
    ("host_net_receive_errors_total", Counter, Count),
    ("host_net_transmit_errors_total", Counter, Count),
    ("host_net_receive_drops_total", Counter, Count),
    ("host_net_transmit_drops_total", Counter, Count),
    ("host_net_receive_compressed_total", Counter, Count),
    ("host_net_transmit_compressed_total", Counter, Count),
    ("host_net_receive_multicast_total", Counter, Count),
    ("host_net_speed_bytes", Gauge, Count),
];

fn plain(entries: &[Plain]) -> Vec<Column> {
    let column = |(name, kind, unit): &Plain| Column {
        csv: (*name).to_owned(),
        statsd: Some(name.replacen('_', ".", 1)),
        openmetrics: (*name).to_owned(),
        quantile: None,
        kind: *kind,
        unit: *unit,
    };
    entries.iter().map(column).collect()
}

/// One line of a file: values in the order of its columns, `None` where nothing is known.
#[derive(Clone, Debug, PartialEq)]
pub struct Values(pub Vec<Option<f64>>);

impl Values {
    pub fn new(columns: &[Column]) -> Self {
        Self(vec![None; columns.len()])
    }

    pub fn set(&mut self, columns: &[Column], name: &str, value: f64) {
        let at = columns.iter().position(|c| c.csv == name);
        self.0[at.unwrap_or_else(|| panic!("{name} stands in the list of columns"))] = Some(value);
    }

    pub fn set_all<'a>(&mut self, columns: &[Column], rows: impl IntoIterator<Item = (&'a str, f64)>) {
        for (name, value) in rows {
            self.set(columns, name, value);
        }
    }

    pub fn get(&self, columns: &[Column], name: &str) -> Option<f64> {
        self.0[columns.iter().position(|c| c.csv == name)?]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_unique() {
        for file in FILES {
            let columns = file.columns();
            for column in &columns {
                let plain =
                    |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
                assert!(
                    plain(&column.csv)
                        && plain(&column.openmetrics)
                        && column.statsd.as_deref().is_none_or(plain)
                );
                assert!(columns.iter().filter(|c| c.csv == column.csv).count() == 1, "{}", column.csv);
                assert_eq!(column.kind == Counter, column.csv.ends_with("_total"), "{}", column.csv);
                assert_eq!(column.unit == Unit::Micros, column.csv.ends_with("_us"), "{}", column.csv);
            }
        }
    }

    #[test]
    fn the_dashboard_asks_for_what_is_written() {
        let dashboard = include_str!("../../../docs/monitoring/grafana.json");
        let asked = |key: &str| {
            let before = format!("{key} == \\\"");
            let parts = dashboard.split(before.as_str()).skip(1);
            parts.filter_map(|part| part.split('\\').next()).collect::<Vec<_>>()
        };
        let columns: Vec<Column> = FILES.iter().flat_map(|file| file.columns()).collect();
        // Telegraf makes underscores of StatsD's dots, and calls the number "value".
        let statsd = |name: &str| {
            columns.iter().filter_map(|c| c.statsd.as_deref()).any(|s| s.replace('.', "_") == name)
        };
        for field in asked("_field") {
            assert!(field == "value" || columns.iter().any(|c| c.csv == field), "{field}");
        }
        for measurement in asked("_measurement") {
            let name = measurement.trim_start_matches("loadtester_");
            assert!(["loadtester", "process", "host"].contains(&name) || statsd(name), "{measurement}");
        }
        assert!(asked("_field").len() > 10);
    }
}
