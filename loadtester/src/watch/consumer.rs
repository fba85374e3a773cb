//! The consumer under test while it runs: read once a second, with what it used in the steady phase.

use anyhow::Result;

use crate::measure::columns::{Column, File, Values};
use crate::plan::options::RunArgs;
use crate::watch::target::{self, Target};

pub struct Consumer {
    target: Option<Target>,
    columns: Vec<Column>,
    seen: bool,
    /// Of the steady phase: (nanoseconds, CPU seconds so far).
    first: Option<(i64, f64)>,
    last: Option<(i64, f64)>,
    resident_bytes_max: f64,
}

impl Consumer {
    /// Starts it, or finds it, or does neither: as the flags say.
    pub fn start(args: &RunArgs) -> Result<Self> {
        Ok(Self {
            target: target::start(args)?,
            columns: File::Process.columns(),
            seen: false,
            first: None,
            last: None,
            resident_bytes_max: 0.0,
        })
    }

    pub fn sample(&mut self, now_ns: i64, steady: bool) -> Option<Values> {
        let process = self.target.as_mut()?.sample()?;
        let get = |name| process.get(&self.columns, name).unwrap_or(0.0);
        self.seen = true;
        self.resident_bytes_max = self.resident_bytes_max.max(get("process_resident_memory_bytes"));
        if steady {
            let cpu_s = get("process_cpu_user_seconds_total") + get("process_cpu_system_seconds_total");
            self.first.get_or_insert((now_ns, cpu_s));
            self.last = Some((now_ns, cpu_s));
        }
        Some(process)
    }

    /// Whether it runs on this machine, and was seen there.
    pub fn is_seen(&self) -> bool {
        self.seen
    }

    pub fn cpu_percent(&self) -> Option<f64> {
        let ((from_ns, from_s), (to_ns, to_s)) = self.first.zip(self.last)?;
        (to_ns > from_ns).then(|| (to_s - from_s) / ((to_ns - from_ns) as f64 / 1e9) * 100.0)
    }

    pub fn resident_bytes_max(&self) -> Option<f64> {
        self.seen.then_some(self.resident_bytes_max)
    }

    /// A sentence, where the consumer that was started here has ended before it was told to.
    pub fn ended_by_itself(&mut self) -> Option<String> {
        self.target.as_mut()?.ended_by_itself()
    }

    /// Ends it, where it was started here.
    pub fn end(&mut self) {
        self.target = None;
    }
}
