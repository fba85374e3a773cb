//! The files of a run directory that grow while the run goes on.

use std::path::Path;

use anyhow::Result;

use crate::measure::columns::{File, Values};
use crate::measure::latency::Set;
use crate::measure::phase::Phase;
use crate::plan::words::CsvTime;
use crate::tell::csv::Sheet;
use crate::tell::hdr::Log;

/// What one second has brought, for every output.
pub struct Second<'a> {
    pub begin_ns: i64,
    pub end_ns: i64,
    /// The wall clock's at its end.
    pub time_us: i64,
    pub phase: Phase,
    pub intervals: &'a Values,
    pub host: &'a Values,
    pub process: Option<&'a Values>,
    pub histograms: &'a Set,
}

/// The first file that cannot be written ends the writing, not the run.
pub struct Files {
    run: String,
    host_name: String,
    pub intervals: Sheet,
    pub process: Sheet,
    host: Sheet,
    pub disk: Sheet,
    pub net: Sheet,
    log: Log,
    failed: Option<String>,
}

impl Files {
    pub fn create(
        directory: &Path,
        run: String,
        host_name: String,
        time: CsvTime,
        start_us: i64,
    ) -> Result<Self> {
        let sheet = |file| Sheet::create(directory, file, time);
        Ok(Self {
            run,
            host_name,
            intervals: sheet(File::Intervals)?,
            process: sheet(File::Process)?,
            host: sheet(File::Host)?,
            disk: sheet(File::Disk)?,
            net: sheet(File::Net)?,
            log: Log::create(directory, start_us)?,
            failed: None,
        })
    }

    /// `disks` and `networks` are devices by name.
    pub fn write(&mut self, second: &Second<'_>, disks: &[(String, Values)], networks: &[(String, Values)]) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_write(second, disks, networks) {
            let text = format!(
                "{error:#}; free some space; the run goes on without files, and what was written before is kept"
            );
            log::error!("{text}");
            self.failed = Some(text);
        }
    }

    fn try_write(
        &mut self,
        second: &Second<'_>,
        disks: &[(String, Values)],
        networks: &[(String, Values)],
    ) -> Result<()> {
        let (time_us, tags) = (second.time_us, [self.run.as_str(), &self.host_name, second.phase.name()]);
        let [run, host, phase] = tags;
        self.intervals.write(time_us, &tags, second.intervals)?;
        self.host.write(time_us, &tags, second.host)?;
        if let Some(process) = second.process {
            self.process.write(time_us, &[run, host, phase, "consumer"], process)?;
        }
        for (name, values) in disks {
            self.disk.write(time_us, &[run, host, phase, name], values)?;
        }
        for (name, values) in networks {
            self.net.write(time_us, &[run, host, phase, name], values)?;
        }
        self.write_log(second.begin_ns, second.end_ns, second.histograms)
    }

    fn write_log(&mut self, begin_ns: i64, end_ns: i64, histograms: &Set) -> Result<()> {
        self.log.write(begin_ns as f64 / 1e9, (end_ns - begin_ns) as f64 / 1e9, histograms)
    }

    /// Adds the last histograms, and returns when all is on the disk.
    pub fn close(&mut self, begin_ns: i64, end_ns: i64, rest: &Set) {
        if self.failed.is_some() {
            return;
        }
        if let Err(error) = self.try_close(begin_ns, end_ns, rest) {
            self.failed = Some(format!("{error:#}; free some space, or choose another --out"));
        }
    }

    fn try_close(&mut self, begin_ns: i64, end_ns: i64, rest: &Set) -> Result<()> {
        self.write_log(begin_ns, end_ns, rest)?;
        let sheets = [&mut self.intervals, &mut self.process, &mut self.host, &mut self.disk, &mut self.net];
        sheets.into_iter().try_for_each(Sheet::close)
    }

    /// Why the files are not complete.
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }
}
