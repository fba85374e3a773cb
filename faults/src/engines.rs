//! The engine's processes: each lives until its fate, and is replaced. Most are killed, half of them at a named phase.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rowmill_faults::random::Random;

use crate::journal::Journal;
use crate::networks::Networks;
use crate::recovery::{self, Look};
use crate::world::World;

/// The fault points of the engine, with how often one is passed at most before it strikes.
pub(crate) const PHASES: [(&str, usize); 9] = [
    ("after-poll", 60),
    ("before-copy", 200),
    ("mid-copy", 200),
    ("after-copy", 200),
    ("dead-letter-copy", 10),
    ("before-commit", 200),
    ("after-commit", 200),
    ("in-claim", 3),
    ("in-release", 1),
];

/// Processes at once, storms aside.
pub(crate) const SLOTS: usize = 3;

/// What will become of a process.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// It lives on.
    None,
    Kill(Instant),
    /// It aborts at a phase; if that does not come in time, SIGKILL.
    Phase(Instant),
    /// SIGTERM, and SIGKILL so long after.
    Stop(Instant, Option<Duration>),
    /// It froze in mid-COPY by itself: SIGCONT when seen for long enough.
    Freeze(Instant),
}

pub(crate) struct Slot {
    pub(crate) networks: Networks,
    pub(crate) child: Option<Child>,
    number: usize,
    log: PathBuf,
    /// Where this process's part of the log begins.
    log_from: u64,
    fate: Fate,
    restart_at: Instant,
    /// Somebody measures: it stays as it is.
    pub(crate) is_held: bool,
    /// When it froze in mid-COPY, and when it was woken up.
    frozen: Option<(Instant, Option<Instant>)>,
}

/// Those who recover, as they were at the beginning.
pub(crate) struct Watched {
    began: Instant,
    looks: Vec<(usize, Look)>,
}

pub(crate) struct Engines {
    slots: Mutex<Vec<Slot>>,
}

impl Engines {
    pub(crate) fn new(world: &World) -> Result<Engines> {
        let slot = |number| -> Result<Slot> {
            Ok(Slot {
                networks: Networks::new(world, number)?,
                child: None,
                number,
                log: world.dir.join(format!("engine-{number}.log")),
                log_from: 0,
                fate: Fate::None,
                restart_at: Instant::now(),
                is_held: false,
                frozen: None,
            })
        };
        Ok(Engines { slots: Mutex::new((0..SLOTS).map(slot).collect::<Result<_>>()?) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One look at every slot. `calm`: nobody is killed, everybody is started.
    pub(crate) fn tend(
        &self,
        world: &World,
        journal: &Journal,
        random: &mut Random,
        calm: bool,
    ) -> Result<()> {
        for slot in self.lock().iter_mut() {
            slot.reap(journal, random);
            if slot.child.is_none() && !slot.is_held && Instant::now() >= slot.restart_at {
                slot.start(world, random, calm)?;
            }
            slot.meet_fate(journal, random, calm);
        }
        Ok(())
    }

    /// Looks at all but one: another fault may strike them while they recover, from a fate that they were born with.
    pub(crate) fn watch_all_but(&self, victim: usize) -> Watched {
        let slots = self.lock();
        let others = slots.iter().filter(|slot| slot.number != victim);
        Watched { began: Instant::now(), looks: others.map(|slot| (slot.number, slot.look())).collect() }
    }

    /// What struck one of them since.
    pub(crate) fn disturbance(&self, watched: &Watched) -> Option<String> {
        let slots = self.lock();
        watched.looks.iter().find_map(|(number, before)| {
            let what = recovery::disturbance(watched.began, *before, slots[*number].look())?;
            Some(format!("engine {number} {what}"))
        })
    }

    /// SIGTERM to all; how those ended that did not end well.
    pub(crate) fn stop_all(&self) -> Vec<String> {
        let mut bad = Vec::new();
        for slot in self.lock().iter_mut() {
            slot.signal(Signal::SIGTERM);
        }
        for slot in self.lock().iter_mut() {
            let deadline = Instant::now() + Duration::from_secs(12);
            let Some(mut child) = slot.child.take() else { continue };
            loop {
                match child.try_wait() {
                    Ok(Some(status)) if status.code() == Some(0) => break,
                    Ok(Some(status)) => {
                        bad.push(format!(
                            "engine {} ended with {status}: {}",
                            slot.number,
                            slot.last_words()
                        ));
                        break;
                    }
                    _ if Instant::now() > deadline => {
                        bad.push(format!("engine {} did not end within 12 s of SIGTERM", slot.number));
                        child.kill().ok();
                        child.wait().ok();
                        break;
                    }
                    _ => std::thread::sleep(Duration::from_millis(20)),
                }
            }
        }
        bad
    }
}

impl Slot {
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            // It may have ended a moment ago.
            kill(Pid::from_raw(child.id() as i32), signal).ok();
        }
    }

    /// SIGKILL now, counted by whoever looks next.
    pub(crate) fn kill(&mut self) {
        self.fate = Fate::None;
        self.signal(Signal::SIGKILL);
    }

    /// The lease name's middle part: host-PID-random.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What this process wrote.
    pub(crate) fn words(&self) -> String {
        let mut text = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.log_from))?;
            file.read_to_end(&mut text)
        });
        read.map(|_| String::from_utf8_lossy(&text).into_owned()).unwrap_or_default()
    }

    fn last_words(&self) -> String {
        self.words().lines().last().unwrap_or_default().to_owned()
    }

    pub(crate) fn start(&mut self, world: &World, random: &mut Random, calm: bool) -> Result<()> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        self.log_from = log.metadata()?.len();
        let now = Instant::now();
        let mut points = String::new();
        self.fate = match random.below(20) {
            _ if calm => Fate::None,
            0..9 => Fate::Kill(now + random.ms(700, 7000)),
            9..16 => {
                let (name, most) = random.pick(&PHASES);
                points = format!("{name}={}*off->return", random.below(*most));
                // A release comes at the end.
                if *name == "in-release" {
                    Fate::Stop(now + random.ms(2000, 5000), Some(Duration::from_secs(9)))
                } else {
                    Fate::Phase(now + random.ms(4000, 9000))
                }
            }
            16 | 17 => Fate::Stop(now + random.ms(2000, 7000), None),
            18 => Fate::Stop(now + random.ms(2000, 7000), Some(Duration::from_millis(100))),
            _ => {
                points = format!("mid-copy={}*off->1*return(freeze)->off", random.below(100));
                Fate::Freeze(now + Duration::from_secs(15))
            }
        };
        self.frozen = None;
        let child = Command::new(&world.rowmill)
            .args(["run", "--config"])
            .arg(&world.config)
            .envs(self.networks.environment(world))
            .env("FAILPOINTS", points)
            .env("RUST_BACKTRACE", "0")
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", world.rowmill.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Notices an end and says how it came.
    fn reap(&mut self, journal: &Journal, random: &mut Random) {
        let Some(status) = self.child.as_mut().and_then(|c| c.try_wait().ok().flatten()) else { return };
        self.child = None;
        self.restart_at = Instant::now() + random.ms(0, 900);
        match how_it_ended(status, &self.words()) {
            Ok(how) => {
                journal.note("end", &format!("engine {}: {how}", self.number));
                journal.end(&how);
            }
            Err(why) => journal.anomaly(format!("engine {} ended by itself, {status}: {why}", self.number)),
        }
    }

    fn meet_fate(&mut self, journal: &Journal, random: &mut Random, calm: bool) {
        if self.is_held {
            return;
        }
        let now = Instant::now();
        match self.fate {
            // It was spared while somebody measured.
            Fate::None if !calm && self.child.is_some() => self.fate = Fate::Kill(now + random.ms(200, 4000)),
            Fate::Kill(at) | Fate::Phase(at) if now >= at && !calm => self.kill(),
            Fate::Stop(at, then) if now >= at && !calm => {
                self.signal(Signal::SIGTERM);
                self.fate = Fate::Kill(now + then.unwrap_or(Duration::from_secs(12)));
            }
            Fate::Freeze(at) => match self.frozen {
                None if self.is_frozen() => self.frozen = Some((now, None)),
                // Beyond the lease, so that others have taken over.
                Some((since, _)) if now > since + Duration::from_secs(7) => {
                    self.signal(Signal::SIGCONT);
                    self.frozen = Some((since, Some(now)));
                    journal.fault("freeze-mid-copy", true, &format!("engine {} for 7 s", self.number));
                    self.fate = Fate::Kill(now + random.ms(500, 5000));
                }
                None if now >= at => self.fate = Fate::Kill(now),
                _ => {}
            },
            _ => {}
        }
    }

    /// A freeze that nobody tended to yet began just now.
    fn look(&self) -> Look {
        let now = || self.is_frozen().then(|| (Instant::now(), None));
        Look { pid: self.pid(), frozen: self.frozen.or_else(now) }
    }

    fn is_frozen(&self) -> bool {
        let Some(pid) = self.pid() else { return false };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }
}

/// Reasons for which a process may end by itself, and what the journal calls them.
const LEGAL_ENDS: [(&str, &str); 3] = [
    ("again: ending at once", "SIGTERM twice"),
    ("longer than any legal wait", "watchdog"),
    // While a column that a model names is away, who runs waits for it and who starts does not start.
    ("the models do not fit the tables", "started without a column"),
];

/// In words; an error for an end that has no cause.
fn how_it_ended(status: ExitStatus, words: &str) -> Result<String, String> {
    if status.signal() == Some(Signal::SIGKILL as i32) {
        return Ok("SIGKILL".to_owned());
    }
    if status.code() == Some(0) {
        return Ok("SIGTERM".to_owned());
    }
    // It watches for signals before it says its first word.
    if status.signal() == Some(Signal::SIGTERM as i32) && words.is_empty() {
        return Ok("SIGTERM at its start".to_owned());
    }
    let point = words.lines().rev().find_map(|l| l.strip_prefix("fault point ")?.strip_suffix(": aborting"));
    if let Some(point) = point {
        return Ok(format!("abort {point}"));
    }
    let legal = LEGAL_ENDS.iter().find(|(words_of_it, _)| words.contains(words_of_it));
    legal.map(|(_, name)| (*name).to_owned()).ok_or_else(|| {
        let errors: Vec<&str> =
            words.lines().filter(|l| l.contains("level=error") || l.contains("panicked")).collect();
        errors.last().map_or_else(|| "it left no error".to_owned(), |line| (*line).to_owned())
    })
}
