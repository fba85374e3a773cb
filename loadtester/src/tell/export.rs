//! A run's measurements in other systems' formats.

use std::io::Write;

use anyhow::{Context, Result};

use crate::measure::columns::{Column, FILES, File, Kind, Unit};
use crate::plan::options::ExportArgs;
use crate::plan::words::ExportFormat;
use crate::tell::{csv, sadf};

/// One value at one time.
struct Sample<'a> {
    time_ms: i64,
    tags: Vec<(&'static str, &'a str)>,
    value: f64,
}

pub fn export(args: &ExportArgs, out: &mut dyn Write) -> Result<()> {
    if args.format == ExportFormat::Sadf {
        return sadf::write(&args.run, out);
    }
    for file in FILES {
        let path = args.run.join(file.name());
        let table = csv::read(&path).with_context(|| "export a run; give its directory")?;
        match args.format {
            ExportFormat::Openmetrics => openmetrics(file, &table, out)?,
            ExportFormat::Influx => influx(file, &table, out)?,
            ExportFormat::Zabbix => zabbix(file, &table, out)?,
            ExportFormat::Sadf => {}
        }
    }
    if args.format == ExportFormat::Openmetrics {
        account(&csv::read(&args.run.join("verify.csv")).context("export a finished run")?, out)?;
        writeln!(out, "# EOF")?;
    }
    Ok(())
}

fn samples<'a>(file: File, table: &'a csv::Table, column: &Column) -> Vec<Sample<'a>> {
    let Some(at) = table.column(&column.csv) else { return Vec::new() };
    let sample = |row: &'a Vec<String>| {
        let tags = file.tags().iter().enumerate().map(|(n, name)| (*name, row[n + 1].as_str())).collect();
        Some(Sample { time_ms: csv::time_ms(&table.header[0], &row[0])?, tags, value: row[at].parse().ok()? })
    };
    table.rows.iter().filter_map(sample).collect()
}

/// Seconds are the only unit of time there.
fn base(value: f64, unit: Unit) -> f64 {
    if unit == Unit::Micros { value / 1e6 } else { value }
}

/// All samples of a name stand together, after its type; the samples of a quantile are the same name's.
fn openmetrics(file: File, table: &csv::Table, out: &mut dyn Write) -> Result<()> {
    let columns = file.columns();
    let mut last = "";
    for column in &columns {
        let family = column.openmetrics.strip_suffix("_total").unwrap_or(&column.openmetrics);
        let samples = samples(file, table, column);
        if samples.is_empty() {
            continue;
        }
        if column.openmetrics != last {
            let kind = if column.kind == Kind::Counter { "counter" } else { "gauge" };
            writeln!(out, "# TYPE {family} {kind}")?;
            last = &column.openmetrics;
        }
        for sample in samples {
            let mut labels: Vec<String> = sample
                .tags
                .iter()
                .filter(|(name, _)| *name != "phase")
                .map(|(k, v)| format!("{k}=\"{}\"", escaped(v)))
                .collect();
            labels.extend(column.quantile.map(|q| format!("quantile=\"{q}\"")));
            let value = base(sample.value, column.unit);
            writeln!(
                out,
                "{}{{{}}} {value} {:.3}",
                column.openmetrics,
                labels.join(","),
                sample.time_ms as f64 / 1000.0
            )?;
        }
    }
    Ok(())
}

/// The four classes that fail a run, at the run's start; the other classes are counters of the intervals.
fn account(table: &csv::Table, out: &mut dyn Write) -> Result<()> {
    for class in ["lost", "duplicated", "corrupted", "reordered"] {
        writeln!(out, "# TYPE loadtester_verify_{class} gauge")?;
        // time, run, class, count, model
        for row in table.rows.iter().filter(|row| row[2] == class) {
            let seconds = row[0].parse::<f64>().unwrap_or(0.0) / 1000.0;
            let (run, model) = (escaped(&row[1]), escaped(&row[4]));
            writeln!(
                out,
                "loadtester_verify_{class}{{run=\"{run}\",model=\"{model}\"}} {} {seconds:.3}",
                row[3]
            )?;
        }
    }
    Ok(())
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn influx(file: File, table: &csv::Table, out: &mut dyn Write) -> Result<()> {
    let measurement = match file {
        File::Intervals => "loadtester".to_owned(),
        other => format!("loadtester_{}", other.name().trim_end_matches(".csv")),
    };
    let columns = file.columns();
    for row in &table.rows {
        let Some(time_ms) = csv::time_ms(&table.header[0], &row[0]) else { continue };
        let tags: String = file
            .tags()
            .iter()
            .enumerate()
            .map(|(n, name)| format!(",{name}={}", influx_tag(&row[n + 1])))
            .collect();
        let field = |column: &Column| {
            let value = &row[table.column(&column.csv)?];
            let integer = if column.unit == Unit::Real { "" } else { "i" };
            (!value.is_empty()).then(|| format!("{}={value}{integer}", column.csv))
        };
        let fields: Vec<String> = columns.iter().filter_map(field).collect();
        if !fields.is_empty() {
            writeln!(out, "{measurement}{tags} {} {}", fields.join(","), time_ms * 1_000_000)?;
        }
    }
    Ok(())
}

fn influx_tag(text: &str) -> String {
    let text = if text.is_empty() { "none" } else { text };
    text.replace(' ', "\\ ").replace(',', "\\,").replace('=', "\\=")
}

/// `<host> <key> <seconds> <value>`; a device is the key's parameter.
fn zabbix(file: File, table: &csv::Table, out: &mut dyn Write) -> Result<()> {
    for column in file.columns() {
        for sample in samples(file, table, &column) {
            let tag =
                |wanted: &str| sample.tags.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
            let parameter = tag("device").map_or(String::new(), |d| format!("[{d}]"));
            let host = tag("host").unwrap_or("-");
            let name = if file == File::Intervals {
                format!("loadtester.{}", column.csv)
            } else {
                column.csv.clone()
            };
            writeln!(
                out,
                "\"{host}\" {name}{parameter} {} {}",
                sample.time_ms / 1000,
                csv::number(sample.value, column.unit)
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> csv::Table {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        csv::Table {
            header: words(&[
                "timestamp_ms",
                "run",
                "host",
                "phase",
                "sent_total",
                "visible_p99_us",
                "visible_p50_us",
                "sent_rate",
            ]),
            rows: vec![
                words(&["1000", "r", "a b", "steady", "5", "1500", "", "5.0"]),
                words(&["2000", "r", "a b", "steady", "9", "2500", "700", "4.0"]),
            ],
        }
    }

    fn written(write: impl Fn(&mut dyn Write) -> Result<()>) -> String {
        let mut out = Vec::new();
        write(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn openmetrics_groups_a_name() {
        let text = written(|out| openmetrics(File::Intervals, &table(), out));
        let expected = "\
# TYPE loadtester_sent_rate gauge
loadtester_sent_rate{run=\"r\",host=\"a b\"} 5 1.000
loadtester_sent_rate{run=\"r\",host=\"a b\"} 4 2.000
# TYPE loadtester_messages_sent counter
loadtester_messages_sent_total{run=\"r\",host=\"a b\"} 5 1.000
loadtester_messages_sent_total{run=\"r\",host=\"a b\"} 9 2.000
# TYPE loadtester_visible_latency_seconds gauge
loadtester_visible_latency_seconds{run=\"r\",host=\"a b\",quantile=\"0.5\"} 0.0007 2.000
loadtester_visible_latency_seconds{run=\"r\",host=\"a b\",quantile=\"0.99\"} 0.0015 1.000
loadtester_visible_latency_seconds{run=\"r\",host=\"a b\",quantile=\"0.99\"} 0.0025 2.000
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_account_is_exported_too() {
        let row = |words: &str| words.split(',').map(str::to_owned).collect::<Vec<_>>();
        let rows = vec![row("1500,r,lost,3,all"), row("1500,r,sent,9,all")];
        let table = csv::Table { header: row("timestamp_ms,run,class,count,model"), rows };
        let text = written(|out| account(&table, out));
        assert_eq!(text.matches("# TYPE").count(), 4);
        assert!(text.contains("loadtester_verify_lost{run=\"r\",model=\"all\"} 3 1.500\n"), "{text}");
        assert!(!text.contains("sent"), "{text}");
    }

    #[test]
    fn influx_keeps_types_and_leaves_gaps_out() {
        let text = written(|out| influx(File::Intervals, &table(), out));
        assert_eq!(
            text.lines().next(),
            Some(
                "loadtester,run=r,host=a\\ b,phase=steady sent_rate=5.0,sent_total=5i,visible_p99_us=1500i 1000000000"
            )
        );
    }

    #[test]
    fn zabbix_lines() {
        let text = written(|out| zabbix(File::Intervals, &table(), out));
        assert!(text.contains("\"a b\" loadtester.sent_total 2 9\n"), "{text}");
    }
}
