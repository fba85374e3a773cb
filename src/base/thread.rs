//! The core plan, and the one place where threads start: each is of a known kind and has a name, a core where pinning is
//! on, and a guard that tells the main thread how it ended.

use std::fmt::{self, Display};
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicI64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::Builder;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use core_affinity::CoreId;
use crossbeam_channel::Sender;

use crate::base::lock::lock;

/// How threads are tied to cores.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Pin {
    /// One core each, when there are at least two cores more than busy threads.
    #[default]
    Auto,
    Off,
    /// Busy threads take these cores in turn: pollers, decoders, writers.
    Cores(Vec<usize>),
}

/// Which core each busy thread gets, in the order of the pipeline; `None` where it may run anywhere.
pub fn assign_cores(pin: &Pin, busy_threads: usize, cores: &[usize]) -> Vec<Option<usize>> {
    match pin {
        Pin::Off => vec![None; busy_threads],
        Pin::Auto if cores.len() < busy_threads + 2 => vec![None; busy_threads],
        // The last cores: interrupts and other programs tend to live on the first.
        Pin::Auto => cores.iter().rev().map(|core| Some(*core)).take(busy_threads).collect(),
        Pin::Cores(chosen) => chosen.iter().cycle().map(|core| Some(*core)).take(busy_threads).collect(),
    }
}

/// The cores that this process may use.
pub fn cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal,)*) => {
        /// What a thread of ours is for. Nothing else starts, so whoever shows threads can name all of them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// How the names of its threads begin.
            fn word(self) -> &'static str {
                match self {
                    $(Kind::$kind => $word,)*
                }
            }
        }
    };
}

kinds! {
    Poll = "poll",
    Decode = "decode",
    Write = "write",
    Lease = "lease",
    Watch = "watch",
    Mend = "mend",
    /// Counts what all instances of the front door store.
    Rate = "rate",
    /// Knows what is in a table, for the front door.
    Know = "know",
    /// Makes and drops partitions.
    Upkeep = "upkeep",
    Setup = "setup",
    Report = "report",
    Watchdog = "watchdog",
    Statsd = "statsd",
    /// Reads the definitions of tables again.
    Tables = "tables",
    /// An event loop of the front door.
    Collect = "collect",
    /// An event loop that answers questions.
    Serve = "serve",
    /// Opens the sessions of those loops, and carries their cancel requests.
    Errand = "errand",
    /// Serves figures.
    Page = "page",
    Signals = "signals",
    /// Reads the events that a person watches.
    Follow = "follow",
    /// Has a prompt redrawn, with what is to be shown above it.
    Knock = "knock",
    /// Ends what was to last for a time.
    Timer = "timer",
}

impl Kind {
    /// The name where there is one of it.
    pub fn only(self) -> Name {
        Name { kind: self, text: self.word().to_owned() }
    }

    /// The name where there are several.
    pub fn of(self, which: impl Display) -> Name {
        Name { kind: self, text: format!("{}-{which}", self.word()) }
    }

    /// Whose thread Linux shows under this name; `None` where the thread was started by a library.
    pub fn named(thread: &str) -> Option<Kind> {
        let word = thread.split('-').next();
        Kind::ALL.iter().copied().find(|kind| word == Some(kind.word()))
    }

    /// Its work is done at some time, and what comes after it goes on.
    pub fn may_end(self) -> bool {
        self == Kind::Setup
    }
}

/// The name of a thread, in the log, in figures and in /proc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    kind: Kind,
    text: String,
}

impl Name {
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// How a thread ended.
#[derive(Debug)]
pub struct Exit {
    pub thread: Name,
    pub result: Result<()>,
}

/// When a thread last entered a wait for something outside, so that the watchdog can see one that never returns.
#[derive(Debug)]
pub struct Pulse {
    name: String,
    start: Instant,
    /// Milliseconds since `start` at which the present call began; -1 while none is under way.
    since_ms: AtomicI64,
    doing: Mutex<&'static str>,
}

impl Pulse {
    /// One that is under no watch until [`Threads::pulse`] makes it.
    pub fn new(name: &str) -> Pulse {
        Pulse {
            name: name.to_owned(),
            start: Instant::now(),
            since_ms: AtomicI64::new(-1),
            doing: Mutex::new(""),
        }
    }

    /// Marks a call that must end: the watchdog ends the process if it does not.
    pub fn during<T>(&self, doing: &'static str, call: impl FnOnce() -> T) -> T {
        *lock(&self.doing) = doing;
        self.since_ms.store(self.start.elapsed().as_millis() as i64, SeqCst);
        let result = call();
        self.since_ms.store(-1, SeqCst);
        result
    }

    /// The call under way, if it lasts longer than `limit_ms`: thread, call, milliseconds.
    pub fn overdue(&self, limit_ms: i64) -> Option<(&str, &'static str, i64)> {
        let since = self.since_ms.load(SeqCst);
        let lasts = self.start.elapsed().as_millis() as i64 - since;
        (since >= 0 && lasts > limit_ms).then(|| (self.name.as_str(), *lock(&self.doing), lasts))
    }
}

/// Starts the threads of one pipeline.
#[derive(Debug)]
pub struct Threads {
    exits: Sender<Exit>,
    pulses: Mutex<Vec<Arc<Pulse>>>,
}

impl Threads {
    pub fn new(exits: Sender<Exit>) -> Threads {
        Threads { exits, pulses: Mutex::default() }
    }

    /// A pulse for a thread that is about to start.
    pub fn pulse(&self, name: &str) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse::new(name));
        lock(&self.pulses).push(pulse.clone());
        pulse
    }

    pub fn pulses(&self) -> Vec<Arc<Pulse>> {
        lock(&self.pulses).clone()
    }

    /// Starts a thread. However it ends, by return, error or panic, the main thread is told its name and why. Pinning is
    /// the first thing that the thread does after `prepare`, because threads that librdkafka starts inherit the affinity.
    pub fn spawn<P: Send + 'static>(
        &self,
        name: Name,
        core: Option<usize>,
        prepare: impl FnOnce() -> Result<P> + Send + 'static,
        run: impl FnOnce(P) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (exits, thread) = (self.exits.clone(), name.clone());
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                let prepared = prepare()?;
                if let Some(id) = core
                    && !core_affinity::set_for_current(CoreId { id })
                {
                    log::warn!(
                        "thread {thread} could not be pinned to core {id}: is sched_setaffinity allowed here?"
                    );
                }
                run(prepared)
            }))
            .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(panic.as_ref()))));
            // The main thread may be gone already when the process ends; then nobody needs to know.
            drop(exits.send(Exit { thread, result }));
        };
        // Linux shows 15 characters of a thread's name.
        let started = Builder::new().name(name.chars().take(15).collect()).spawn(body);
        // Nobody joins it: its exit says more than a handle would.
        started.map(drop).with_context(|| format!("cannot start thread {name}"))
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_assigned_only_where_there_is_room() {
        #[track_caller]
        fn check(pin: Pin, busy: usize, cores: usize, expected: &[Option<usize>]) {
            assert_eq!(assign_cores(&pin, busy, &(0..cores).collect::<Vec<_>>()), expected);
        }
        check(Pin::Off, 2, 64, &[None, None]);
        check(Pin::Auto, 3, 1, &[None; 3]);
        check(Pin::Auto, 3, 4, &[None; 3]);
        check(Pin::Auto, 3, 5, &[Some(4), Some(3), Some(2)]);
        check(Pin::Cores(vec![0, 1]), 3, 2, &[Some(0), Some(1), Some(0)]);
    }

    #[test]
    fn a_thread_is_known_by_its_name() {
        for kind in Kind::ALL {
            for name in [kind.only(), kind.of(0), kind.of("a table-0")] {
                assert_eq!(Kind::named(&name), Some(*kind), "{name}");
            }
        }
        for foreign in ["", "rdk:broker12", "127.0.0.1:41234", "watchdogs", "-lease"] {
            assert_eq!(Kind::named(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn a_thread_that_panics_says_so() {
        let (sender, receiver) = crate::base::queue::bounded(1);
        let threads = Threads::new(sender);
        threads.spawn(Kind::Decode.of(7), None, || Ok(()), |()| panic!("out of luck")).unwrap();
        let exit = receiver.recv().unwrap();
        assert_eq!(&*exit.thread, "decode-7");
        assert!(exit.result.unwrap_err().to_string().contains("out of luck"));
    }
}
