//! What happened, when: every fault, every death of a process and why.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::recovery::{Kind, Recovery};

/// Written as it happens, so that a campaign that dies leaves its journal.
pub(crate) struct Journal {
    start: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    /// How often each kind fired, and how often it was tried.
    faults: BTreeMap<String, (u64, u64)>,
    /// How processes ended.
    ends: BTreeMap<String, u64>,
    /// What must not happen.
    anomalies: Vec<String>,
    recoveries: BTreeMap<Kind, Vec<Recovery>>,
}

impl Journal {
    pub(crate) fn new(path: &Path) -> Result<Journal> {
        let mut file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        writeln!(file, "seconds,what,detail")?;
        let inner = Inner {
            file,
            faults: BTreeMap::new(),
            ends: BTreeMap::new(),
            anomalies: Vec::new(),
            recoveries: BTreeMap::new(),
        };
        Ok(Journal { start: Instant::now(), inner: Mutex::new(inner) })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        change(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    pub(crate) fn note(&self, what: &str, detail: &str) {
        let seconds = self.start.elapsed().as_secs_f64();
        let detail = detail.replace(['"', '\n'], " ");
        self.with(|inner| {
            // A full disk must not end the campaign; the report says what it counted.
            writeln!(inner.file, "{seconds:.2},{what},\"{detail}\"").ok();
        });
    }

    pub(crate) fn fault(&self, kind: &str, fired: bool, detail: &str) {
        self.note(kind, if fired { detail.to_owned() } else { format!("did not fire: {detail}") }.as_str());
        self.with(|inner| {
            let counts = inner.faults.entry(kind.to_owned()).or_default();
            counts.0 += u64::from(fired);
            counts.1 += 1;
        });
    }

    pub(crate) fn end(&self, how: &str) {
        self.with(|inner| *inner.ends.entry(how.to_owned()).or_default() += 1);
    }

    pub(crate) fn anomaly(&self, what: String) {
        eprintln!("ANOMALY: {what}");
        self.note("ANOMALY", &what);
        self.with(|inner| inner.anomalies.push(what));
    }

    pub(crate) fn recovery(&self, kind: Kind, took: Duration, disturbance: Option<String>) {
        let meanwhile = disturbance.as_ref().map_or_else(String::new, |what| format!("; meanwhile {what}"));
        self.note(kind.name(), &format!("{:.2} s{meanwhile}", took.as_secs_f64()));
        let recovery = Recovery { took, disturbance };
        self.with(|inner| inner.recoveries.entry(kind).or_default().push(recovery));
    }

    /// How many times of this kind do not count.
    pub(crate) fn disturbed(&self, kind: Kind) -> usize {
        let is_disturbed = |recovery: &&Recovery| recovery.disturbance.is_some();
        self.with(|inner| {
            inner.recoveries.get(&kind).map_or(0, |all| all.iter().filter(is_disturbed).count())
        })
    }

    pub(crate) fn faults(&self) -> BTreeMap<String, (u64, u64)> {
        self.with(|inner| inner.faults.clone())
    }

    pub(crate) fn ends(&self) -> BTreeMap<String, u64> {
        self.with(|inner| inner.ends.clone())
    }

    pub(crate) fn anomalies(&self) -> Vec<String> {
        self.with(|inner| inner.anomalies.clone())
    }

    pub(crate) fn recoveries(&self) -> BTreeMap<Kind, Vec<Recovery>> {
        self.with(|inner| inner.recoveries.clone())
    }
}
