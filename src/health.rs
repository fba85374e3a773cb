//! Whether this process is alive and of use: what `/healthz`, `/readyz` and systemd are told.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::cpu::Threads;
use crate::metrics::{Totals, report_line};
use crate::pipeline::Pipeline;

/// What everybody who asks about this process may look at.
pub struct Board {
    threads: Arc<Threads>,
    /// A call that lasts longer, or work that nobody does for so long, is a hang.
    limit: Duration,
    /// Without a heartbeat for this long, others take the partitions.
    lease: Duration,
    pipeline: OnceLock<Arc<Pipeline>>,
    stopping: Mutex<bool>,
    /// Tells the watchdog that something changed.
    changed: Condvar,
    progress: Mutex<Progress>,
}

impl Board {
    pub fn new(threads: Arc<Threads>, limit: Duration, lease: Duration) -> Board {
        Board {
            threads,
            limit,
            lease,
            pipeline: OnceLock::new(),
            stopping: Mutex::new(false),
            changed: Condvar::new(),
            progress: Mutex::default(),
        }
    }

    /// The pipeline runs from now on.
    pub fn set_pipeline(&self, pipeline: Arc<Pipeline>) {
        // There is one for each process.
        assert!(self.pipeline.set(pipeline).is_ok(), "a process runs one pipeline");
    }

    pub fn pipeline(&self) -> Option<&Arc<Pipeline>> {
        self.pipeline.get()
    }

    pub fn set_stopping(&self) {
        *self.stopping.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    pub fn is_stopping(&self) -> bool {
        *self.stopping.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `timeout`, or until the end begins.
    pub fn wait(&self, timeout: Duration) {
        let stopping = self.stopping.lock().unwrap_or_else(PoisonError::into_inner);
        let was = *stopping;
        drop(
            self.changed
                .wait_timeout_while(stopping, timeout, |now| *now == was)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// False with a sentence where a thread hangs: in a call that never returns, or with work that it does not do. A server
    /// that is away is no hang: each try counts as progress.
    pub fn healthy(&self) -> Result<(), String> {
        for pulse in self.threads.pulses() {
            if let Some((thread, doing, ms)) = pulse.overdue(self.limit.as_millis() as i64) {
                return Err(format!(
                    "thread {thread} has waited {} s for {doing}, longer than any legal wait",
                    ms / 1000
                ));
            }
        }
        let Some(pipeline) = self.pipeline().filter(|_| !self.is_stopping()) else { return Ok(()) };
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        match progress.stuck(pipeline.works(), Instant::now(), self.limit) {
            Some(work) => Err(format!("{work} has had work and not moved for {} s", self.limit.as_secs())),
            None => Ok(()),
        }
    }

    /// False with a sentence before the first heartbeat, without a fresh one, and while stopping.
    pub fn ready(&self) -> Result<(), String> {
        if self.is_stopping() {
            return Err("stopping".to_owned());
        }
        let Some(pipeline) = self.pipeline() else {
            return Err("waiting for PostgreSQL: the catalog was not read yet".to_owned());
        };
        match pipeline.instruments.heartbeat.age() {
            None => Err("waiting for the first heartbeat in the ledger".to_owned()),
            Some(age) if age > self.lease => {
                Err(format!("no heartbeat in the ledger for {} s: PostgreSQL is away", age.as_secs()))
            }
            Some(_) => Ok(()),
        }
    }

    /// One line for people, with what happened since `before`.
    pub fn status(&self, before: Totals, since: Duration) -> String {
        match (self.ready(), self.pipeline()) {
            (Ok(()), Some(pipeline)) => {
                report_line(before, pipeline.totals(), since.as_secs_f64().max(0.001), pipeline.gauges())
            }
            (Err(reason), _) => reason,
            (Ok(()), None) => String::new(),
        }
    }
}

/// A part of the pipeline as the watchdog sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    pub name: String,
    /// There is something to do.
    pub waiting: bool,
    /// Moves whenever something was done, or tried.
    pub signs: u64,
}

/// The signs of each part when it was last looked at, and since when it has had work and shown no other.
#[derive(Debug, Default)]
struct Progress(BTreeMap<String, (u64, Option<Instant>)>);

impl Progress {
    /// The name of a part that has had work for longer than `limit` and did not move.
    fn stuck(&mut self, works: Vec<Work>, now: Instant, limit: Duration) -> Option<String> {
        let mut stuck = None;
        for work in works {
            let known = self.0.get(&work.name).filter(|(signs, _)| *signs == work.signs);
            let since = work.waiting.then(|| known.and_then(|(_, since)| *since).unwrap_or(now));
            if since.is_some_and(|since| now.duration_since(since) > limit) {
                stuck = Some(work.name.clone());
            }
            self.0.insert(work.name, (work.signs, since));
        }
        stuck
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stuck_is_work_that_nobody_touches() {
        let (start, limit) = (Instant::now(), Duration::from_secs(10));
        let mut progress = Progress::default();
        let mut look = |seconds: u64, waiting: bool, signs: u64| {
            let works = vec![Work { name: "t".into(), waiting, signs }];
            progress.stuck(works, start + Duration::from_secs(seconds), limit).is_some()
        };
        assert!(!look(0, true, 1));
        assert!(!look(10, true, 1));
        assert!(look(11, true, 1));
        // It moved.
        assert!(!look(12, true, 2));
        assert!(!look(22, true, 2));
        // Nothing to do is no hang, however long; and the time begins anew with the next work.
        assert!(!look(100, false, 2));
        assert!(!look(101, true, 2));
        assert!(!look(111, true, 2));
        assert!(look(112, true, 2));
    }
}
