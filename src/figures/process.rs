//! What Linux says of this process: the standard `process_` figures, and the CPU time of each kind of thread.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use nix::unistd::{SysconfVar, sysconf};

use crate::base::thread::Kind;
use crate::figures::family::Family;

/// The thread that was there before all others has the program's name.
const MAIN: &str = env!("CARGO_PKG_NAME");

/// Remembers the CPU time of threads that have ended, so that no counter goes back.
#[derive(Debug)]
pub struct Threads {
    /// By this machine's clock: a service that sees only itself in /proc cannot ask when the machine was started.
    started_s: f64,
    alive: HashMap<String, (String, f64)>,
    ended: BTreeMap<String, f64>,
}

impl Default for Threads {
    fn default() -> Threads {
        let started_s = jiff::Timestamp::now().as_millisecond() as f64 / 1000.0;
        Threads { started_s, alive: HashMap::new(), ended: BTreeMap::new() }
    }
}

impl Threads {
    /// CPU seconds of each kind of thread, the ended ones included.
    fn read(&mut self, ticks_per_second: f64) -> BTreeMap<String, f64> {
        let now: HashMap<String, (String, f64)> = std::fs::read_dir("/proc/self/task")
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let stat = Stat::read(&entry.path().join("stat"))?;
                let seconds = stat.cpu_ticks() / ticks_per_second;
                Some((entry.file_name().into_string().ok()?, (kind_of(&stat.name), seconds)))
            })
            .collect();
        self.account(now)
    }

    fn account(&mut self, now: HashMap<String, (String, f64)>) -> BTreeMap<String, f64> {
        for (thread, (kind, seconds)) in std::mem::take(&mut self.alive) {
            // A number that is used again belongs to a new thread, which has used less.
            if now.get(&thread).is_none_or(|(_, later)| *later < seconds) {
                *self.ended.entry(kind).or_default() += seconds;
            }
        }
        let mut sums = self.ended.clone();
        for (kind, seconds) in now.values() {
            *sums.entry(kind.clone()).or_default() += seconds;
        }
        self.alive = now;
        sums
    }

    /// All families; one that Linux does not tell about is left out.
    pub fn families(&mut self) -> Vec<Family> {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100) as f64;
        let page = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as f64;
        let mut cpu =
            Family::counter("rowmill_thread_cpu_seconds_total", "CPU time, by thread or kind of thread.");
        self.read(ticks).iter().for_each(|(kind, seconds)| cpu.add(&[("thread", kind)], *seconds));
        let mut families = vec![cpu];
        if let Some(stat) = Stat::read(Path::new("/proc/self/stat")) {
            families.extend([
                Family::counter("process_cpu_seconds_total", "CPU time of the process.")
                    .with(stat.cpu_ticks() / ticks),
                Family::gauge("process_resident_memory_bytes", "Resident memory.")
                    .with(stat.number(23) * page),
                Family::gauge("process_virtual_memory_bytes", "Virtual memory.").with(stat.number(22)),
                Family::gauge("process_threads", "Threads.").with(stat.number(19)),
            ]);
        }
        let help = "When the process started, in seconds since 1970 UTC.";
        families.push(Family::gauge("process_start_time_seconds", help).with(self.started_s));
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            families.push(Family::gauge("process_open_fds", "Open files.").with(files.count() as f64));
        }
        if let Ok((soft, _)) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE) {
            families.push(Family::gauge("process_max_fds", "Most open files.").with(soft as f64));
        }
        families
    }
}

/// A `stat` file of /proc: the name, and what follows it.
struct Stat {
    name: String,
    fields: Vec<String>,
}

impl Stat {
    fn read(path: &Path) -> Option<Stat> {
        Stat::parse(&std::fs::read_to_string(path).ok()?)
    }

    fn parse(text: &str) -> Option<Stat> {
        // The name may hold spaces and parentheses; nothing after it does.
        let (head, fields) = text.rsplit_once(") ")?;
        let (_, name) = head.split_once('(')?;
        Some(Stat { name: name.to_owned(), fields: fields.split_whitespace().map(str::to_owned).collect() })
    }

    /// Field `index` as proc(5) numbers them, less one; the name is 1.
    fn number(&self, index: usize) -> f64 {
        self.fields.get(index - 2).and_then(|text| text.parse().ok()).unwrap_or_default()
    }

    /// User and system time.
    fn cpu_ticks(&self) -> f64 {
        self.number(13) + self.number(14)
    }
}

/// Our threads by their names, others by what they are for: their names hold addresses and numbers without end.
fn kind_of(name: &str) -> String {
    if name == MAIN || Kind::named(name).is_some() {
        name.to_owned()
    } else if name.starts_with("rdk:") {
        "kafka-client".to_owned()
    } else if name.starts_with(|c: char| c.is_ascii_digit() || c == '[') {
        // The HTTP library names its threads after addresses.
        "http".to_owned()
    } else {
        "other".to_owned()
    }
}

/// The memory that the service manager or the container allows this process, in bytes, by control groups of version 2: the
/// smallest bound on the way up. `None` where there is none.
pub fn memory_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let bounds = std::path::Path::new(own).ancestors().filter_map(|group| {
        let group = group.strip_prefix("/").unwrap_or(group);
        let file = std::path::Path::new("/sys/fs/cgroup").join(group).join("memory.max");
        // "max" is no number.
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    });
    bounds.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_apart_by_what_they_do() {
        #[track_caller]
        fn check(name: &str, expected: &str) {
            assert_eq!(kind_of(name), expected);
        }
        check("decode-0", "decode-0");
        check("write-network_t", "write-network_t");
        check("rdk:broker12", "kafka-client");
        check("127.0.0.1:41234", "http");
        check("[::1]:41234: re", "http");
        check("anything", "other");
        check("rowmill", "rowmill");
        check("watchdog", "watchdog");
    }

    #[test]
    fn a_stat_line_is_read_behind_the_name() {
        let line = "12 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0 7 0 1000 8192 3";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.name.as_str(), stat.cpu_ticks(), stat.number(19)), ("a) b", 200.0, 7.0));
        assert_eq!((stat.number(21), stat.number(22), stat.number(23)), (1000.0, 8192.0, 3.0));
    }

    #[test]
    fn no_counter_goes_back_when_a_thread_ends() {
        let thread = |seconds: f64| ("http".to_owned(), seconds);
        let mut threads = Threads::default();
        threads.account(HashMap::from([("7".into(), thread(2.0)), ("8".into(), thread(1.0))]));
        let sums = threads.account(HashMap::from([("8".into(), thread(1.5))]));
        assert_eq!(sums["http"], 3.5);
        // The number 8 is used again.
        let sums = threads.account(HashMap::from([("8".into(), thread(0.5))]));
        assert_eq!(sums["http"], 4.0);
    }

    #[test]
    fn this_process_has_figures() {
        let families = Threads::default().families();
        for name in ["rowmill_thread_cpu_seconds_total", "process_start_time_seconds", "process_open_fds"] {
            assert!(families.iter().any(|f| f.name == name && !f.samples.is_empty()), "{name}");
        }
    }
}
