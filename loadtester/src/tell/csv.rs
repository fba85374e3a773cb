//! CSV as importers want it: one header line, never a comment, a missing value is an empty field, the same type in a
//! column for ever, each row flushed so that `tail -f` works.

use std::fs::File as OsFile;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use csv::{ReaderBuilder, Writer};

use crate::measure::columns::{Column, File, Unit, Values};
use crate::plan::words::CsvTime;

impl CsvTime {
    fn header(self) -> &'static str {
        match self {
            CsvTime::Unix => "timestamp",
            CsvTime::UnixMs => "timestamp_ms",
            CsvTime::UnixNs => "timestamp_ns",
            CsvTime::Rfc3339 => "time",
        }
    }

    fn show(self, time_us: i64) -> String {
        match self {
            CsvTime::Unix => format!("{:.3}", time_us as f64 / 1e6),
            CsvTime::UnixMs => (time_us / 1000).to_string(),
            CsvTime::UnixNs => (time_us * 1000).to_string(),
            CsvTime::Rfc3339 => {
                let mut out = Vec::new();
                crate::message::text::Rfc3339::default().write(&mut out, time_us);
                String::from_utf8(out).expect("digits and signs")
            }
        }
    }
}

/// One file being written.
pub struct Sheet {
    path: PathBuf,
    writer: Writer<OsFile>,
    pub columns: Vec<Column>,
    time: CsvTime,
    tags: usize,
}

impl Sheet {
    pub fn create(directory: &Path, file: File, time: CsvTime) -> Result<Self> {
        let path = directory.join(file.name());
        let writer =
            Writer::from_writer(OsFile::create(&path).with_context(|| format!("create {}", path.display()))?);
        let mut sheet = Self { path, writer, columns: file.columns(), time, tags: file.tags().len() };
        let names = std::iter::once(time.header()).chain(file.tags().iter().copied()).map(str::to_owned);
        let names: Vec<String> = names.chain(sheet.columns.iter().map(|c| c.csv.clone())).collect();
        sheet.line(names)?;
        Ok(sheet)
    }

    pub fn write(&mut self, time_us: i64, tags: &[&str], values: &Values) -> Result<()> {
        assert_eq!(tags.len(), self.tags, "every row has all tags");
        let words = std::iter::once(self.time.show(time_us)).chain(tags.iter().map(|tag| (*tag).to_owned()));
        let cells = self.columns.iter().zip(&values.0);
        let cells = cells.map(|(column, value)| value.map_or(String::new(), |v| number(v, column.unit)));
        self.line(words.chain(cells).collect())
    }

    fn line(&mut self, cells: Vec<String>) -> Result<()> {
        let place = || format!("write {}", self.path.display());
        self.writer.write_record(cells).with_context(place)?;
        self.writer.flush().with_context(place)
    }

    /// What was written is on the disk when this returns.
    pub fn close(&mut self) -> Result<()> {
        self.writer
            .flush()
            .and_then(|()| self.writer.get_ref().sync_all())
            .with_context(|| format!("write {}", self.path.display()))
    }
}

/// Whole numbers stay whole and real ones keep their point, or an importer would see two types in one column.
pub fn number(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Count | Unit::Micros => format!("{}", value.round() as i64),
        Unit::Real => {
            let text = format!("{value:.6}");
            let text = text.trim_end_matches('0');
            if text.ends_with('.') { format!("{text}0") } else { text.to_owned() }
        }
    }
}

/// A file read back: the header and the rows, as words.
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

pub fn read(path: &Path) -> Result<Table> {
    let place = || format!("read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(place)?;
    // A run that was cut off may end in half a line.
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(text.as_bytes());
    let mut rows = Vec::new();
    for record in reader.records() {
        rows.push(record.with_context(place)?.iter().map(str::to_owned).collect::<Vec<_>>());
    }
    let mut rows = rows.into_iter();
    let header = rows.next().with_context(|| format!("{} is empty", path.display()))?;
    let rows = rows.filter(|row| row.len() == header.len()).collect();
    Ok(Table { header, rows })
}

impl Table {
    pub fn column(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|h| h == name)
    }
}

/// `--csv-time` decided which clock stands in the first column.
pub fn time_ms(header: &str, text: &str) -> Option<i64> {
    match header {
        "timestamp_ms" => text.parse().ok(),
        "timestamp" => Some((text.parse::<f64>().ok()? * 1000.0) as i64),
        "timestamp_ns" => Some(text.parse::<i64>().ok()? / 1_000_000),
        _ => Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_type() {
        let rows = [
            (1.0, Unit::Count, "1"),
            (1.0, Unit::Real, "1.0"),
            (0.25, Unit::Real, "0.25"),
            (-3.0, Unit::Count, "-3"),
            (1.6, Unit::Micros, "2"),
        ];
        for (value, unit, text) in rows {
            assert_eq!(number(value, unit), text);
        }
    }

    #[test]
    fn a_sheet_is_a_header_and_rows() {
        let directory = tempfile::tempdir().unwrap();
        let mut sheet = Sheet::create(directory.path(), File::Disk, CsvTime::UnixMs).unwrap();
        let mut values = Values::new(&sheet.columns);
        values.set(&sheet.columns, "host_disk_reads_total", 7.0);
        sheet.write(1_700_000_000_123_456, &["r", "h,1", "steady", "sda"], &values).unwrap();
        sheet.close().unwrap();
        let text = std::fs::read_to_string(directory.path().join("disk.csv")).unwrap();
        assert_eq!(text.lines().nth(1), Some("1700000000123,r,\"h,1\",steady,sda,,,7,,,,,,,,,"));
        let table = read(&directory.path().join("disk.csv")).unwrap();
        assert_eq!(table.rows[0][table.column("host_disk_reads_total").unwrap()], "7");
        assert_eq!(table.rows[0][table.column("host").unwrap()], "h,1");
    }

    #[test]
    fn half_a_line_is_no_row() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cut.csv");
        for (text, rows) in [("a,b\n1,2\n3", 1), ("a,b\n1,2\n3,\"x", 2), ("a,b\n", 0)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap().rows.len(), rows, "{text}");
        }
        std::fs::write(&path, "").unwrap();
        assert!(read(&path).is_err());
    }

    #[test]
    fn times() {
        let us = 1_700_000_000_123_456;
        let rows = [
            (CsvTime::Unix, "1700000000.123"),
            (CsvTime::UnixMs, "1700000000123"),
            (CsvTime::UnixNs, "1700000000123456000"),
            (CsvTime::Rfc3339, "2023-11-14T22:13:20.123456Z"),
        ];
        for (time, shown) in rows {
            assert_eq!(time.show(us), shown);
        }
    }

    #[test]
    fn every_clock_of_the_csv_files() {
        let rows = [
            ("timestamp_ms", "1500"),
            ("timestamp", "1.5"),
            ("timestamp_ns", "1500000000"),
            ("time", "1970-01-01T00:00:01.5Z"),
        ];
        for (header, text) in rows {
            assert_eq!(time_ms(header, text), Some(1500), "{header}");
        }
    }
}
