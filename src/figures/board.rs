//! What a running process shows of itself, whatever it does: alive, ready, figures, a line for people. It knows the process
//! and no verb; what the verb has to show comes as a [`Service`]. It never acts: the watchdog and the ways out read it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::base::lock::lock;
use crate::base::thread::Threads;
use crate::figures::family::Family;
use crate::figures::process;

/// What a verb shows while it runs.
pub trait Service: Send + Sync {
    /// False with a sentence while it is of no use, for example because a server is away.
    fn ready(&self) -> Result<(), String>;

    /// Its parts, for the watchdog.
    fn works(&self) -> Vec<Work>;

    /// Every figure of its own. Labels come from the configuration and from closed sets, so that their number is bounded.
    fn families(&self) -> Vec<Family>;

    /// One line for people at each call. Each listener has a teller of its own.
    fn teller(self: Arc<Self>) -> Teller;
}

/// Says in one line what happened since it was asked the last time, which is so long ago.
pub type Teller = Box<dyn FnMut(Duration) -> String + Send>;

/// A part of a service as the watchdog sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    pub name: String,
    /// There is something to do.
    pub waiting: bool,
    /// Moves whenever something was done, or tried.
    pub signs: u64,
}

/// What everybody who asks about this process may look at.
pub struct Board {
    threads: Arc<Threads>,
    /// A call that lasts longer, or work that nobody does for so long, is a hang.
    limit: Duration,
    /// What it waits for while there is no service.
    before: &'static str,
    service: OnceLock<Arc<dyn Service>>,
    /// What is done at the end, once the end has begun.
    stopping: Mutex<Option<&'static str>>,
    /// Tells the watchdog that something changed.
    changed: Condvar,
    progress: Mutex<Progress>,
    spent: Mutex<process::Threads>,
}

impl Board {
    pub fn new(threads: Arc<Threads>, limit: Duration, before: &'static str) -> Board {
        Board {
            threads,
            limit,
            before,
            service: OnceLock::new(),
            stopping: Mutex::new(None),
            changed: Condvar::new(),
            progress: Mutex::default(),
            spent: Mutex::default(),
        }
    }

    /// The service runs from now on.
    pub fn show(&self, service: Arc<dyn Service>) {
        assert!(self.service.set(service).is_ok(), "a process runs one service");
    }

    pub fn service(&self) -> Option<&Arc<dyn Service>> {
        self.service.get()
    }

    /// The orderly end begins; `doing` says what is done in it.
    pub fn set_stopping(&self, doing: &'static str) {
        *self.end() = Some(doing);
        self.changed.notify_all();
    }

    /// What is done at the end; `None` while it runs.
    pub fn stopping(&self) -> Option<&'static str> {
        *self.end()
    }

    fn end(&self) -> MutexGuard<'_, Option<&'static str>> {
        lock(&self.stopping)
    }

    /// Waits for `timeout`, or until the end begins.
    pub fn wait(&self, timeout: Duration) {
        let stopping = self.end();
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
        let Some(service) = self.service().filter(|_| self.stopping().is_none()) else { return Ok(()) };
        let mut progress = lock(&self.progress);
        match progress.stuck(service.works(), Instant::now(), self.limit) {
            Some(work) => Err(format!("{work} has had work and not moved for {} s", self.limit.as_secs())),
            None => Ok(()),
        }
    }

    /// False with a sentence before there is a service, while it is of no use, and while stopping.
    pub fn ready(&self) -> Result<(), String> {
        if self.stopping().is_some() {
            return Err("stopping".to_owned());
        }
        self.service().ok_or_else(|| self.before.to_owned())?.ready()
    }

    /// Reads every instrument of the process, when somebody asks.
    pub fn families(&self) -> Vec<Family> {
        let is = |result: Result<(), String>| f64::from(u8::from(result.is_ok()));
        let mut build = Family::gauge("rowmill_build_info", "The program's version; always 1.");
        build.add(&[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        let mut families = vec![
            build,
            Family::gauge("rowmill_healthy", "1 unless a thread hangs.").with(is(self.healthy())),
            Family::gauge("rowmill_ready", "1 while the lease is kept and records may flow.")
                .with(is(self.ready())),
        ];
        families.extend(self.service().into_iter().flat_map(|service| service.families()));
        families.extend(lock(&self.spent).families());
        families
    }
}

/// The watchdog looks every second: where nobody looked for so long, the process itself stood still, and its threads with it.
const STOOD_STILL: Duration = Duration::from_secs(3);

/// What was seen at the last look.
#[derive(Debug, Default)]
struct Progress {
    looked: Option<Instant>,
    /// The signs of each part, and since when it has had work and shown no other.
    parts: BTreeMap<String, (u64, Option<Instant>)>,
}

impl Progress {
    /// The name of a part that has had work for longer than `limit` and did not move. Time in which the process stood still does
    /// not count: a process that was frozen goes on, and is no hang.
    fn stuck(&mut self, works: Vec<Work>, now: Instant, limit: Duration) -> Option<String> {
        let still = self.looked.map(|looked| now.duration_since(looked)).filter(|gap| *gap >= STOOD_STILL);
        self.looked = Some(now);
        for (_, since) in self.parts.values_mut() {
            *since = since.map(|since| since + still.unwrap_or_default());
        }
        let mut stuck = None;
        for work in works {
            let known = self.parts.get(&work.name).filter(|(signs, _)| *signs == work.signs);
            let since = work.waiting.then(|| known.and_then(|(_, since)| *since).unwrap_or(now));
            if since.is_some_and(|since| now.duration_since(since) > limit) {
                stuck = Some(work.name.clone());
            }
            self.parts.insert(work.name, (work.signs, since));
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
        let mut look = |seconds: std::ops::RangeInclusive<u64>, waiting: bool, signs: u64| {
            let mut one = |second: u64| {
                let works = vec![Work { name: "t".into(), waiting, signs }];
                progress.stuck(works, start + Duration::from_secs(second), limit).is_some()
            };
            seconds.map(&mut one).collect::<Vec<bool>>()
        };
        assert_eq!(look(0..=10, true, 1), [false; 11]);
        assert_eq!(look(11..=11, true, 1), [true]);
        // It moved.
        assert_eq!(look(12..=22, true, 2), [false; 11]);
        // Nothing to do is no hang, however long; and the time begins anew with the next work.
        assert_eq!(look(23..=100, false, 2), [false; 78]);
        assert_eq!(look(101..=111, true, 2), [false; 11]);
        assert_eq!(look(112..=112, true, 2), [true]);
        // Frozen for a minute with work in hand: the time before and after it counts.
        assert_eq!(look(113..=118, true, 3), [false; 6]);
        assert_eq!(look(178..=183, true, 3), [false, false, false, false, false, false]);
        assert_eq!(look(184..=184, true, 3), [true]);
    }
}
