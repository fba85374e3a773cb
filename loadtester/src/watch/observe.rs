//! The load of the consumer and of the machine, from /proc. What may not be read stays empty; nothing here fails a run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::measure::columns::{Column, File, Values};

const TICKS_PER_SECOND: f64 = 100.0;
const PAGE_BYTES: f64 = 4096.0;
const SECTOR_BYTES: f64 = 512.0;

/// One process with its descendants.
pub struct Target {
    how: How,
    root: Option<Root>,
    columns: Vec<Column>,
    pub restarts: u64,
    /// What processes that have ended, had used.
    last: Option<(Instant, f64)>,
    rollup_at: Option<Instant>,
    pss: Option<f64>,
}

#[derive(Clone, Debug)]
pub enum How {
    Pid(i32),
    Unit(String),
    Port(u16),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Root {
    pid: i32,
    /// Ticks since boot: with the pid it names a process for good.
    started: u64,
}

impl Target {
    pub fn new(how: How) -> Self {
        Self {
            how,
            root: None,
            columns: File::Process.columns(),
            restarts: 0,
            last: None,
            rollup_at: None,
            pss: None,
        }
    }

    pub fn is_there(&mut self) -> bool {
        self.find();
        self.root.is_some()
    }

    fn find(&mut self) {
        if self.root.is_some_and(|root| start_time(root.pid) == Some(root.started)) {
            return;
        }
        let pid = match &self.how {
            How::Pid(pid) => Some(*pid),
            How::Unit(unit) => unit_pid(unit),
            How::Port(port) => port_pid(*port),
        };
        let found = pid.and_then(|pid| Some(Root { pid, started: start_time(pid)? }));
        // A process of another start time under the same number is another process.
        let replaced = self.root.is_some() && found.is_some() && !matches!(self.how, How::Pid(_));
        if replaced {
            self.restarts += 1;
            self.last = None;
        }
        self.root = match self.how {
            How::Pid(_) if self.root.is_some() => None,
            _ => found,
        };
    }

    pub fn sample(&mut self) -> Option<Values> {
        self.find();
        let root = self.root?;
        let mut values = Values::new(&self.columns);
        let pids = descendants(root.pid);
        let mut sum = Sum::default();
        pids.iter().for_each(|pid| sum.add(*pid));
        let now = Instant::now();
        let cpu = sum.user + sum.system;
        if let Some((then, before)) = self.last {
            let percent = (cpu - before) / (now - then).as_secs_f64() * 100.0;
            self.set(&mut values, "process_cpu_percent", Some(percent.max(0.0)));
        }
        self.last = Some((now, cpu));
        // smaps_rollup walks the whole address space in the kernel: rarely.
        if self.rollup_at.is_none_or(|at| at.elapsed().as_secs() >= 10) {
            self.pss = pids
                .iter()
                .map(|pid| keyed(&read(format!("/proc/{pid}/smaps_rollup")), "Pss:"))
                .sum::<Option<f64>>();
            self.rollup_at = Some(now);
        }
        let rows = [
            ("process_pid", Some(f64::from(root.pid))),
            ("process_count", Some(pids.len() as f64)),
            ("process_restarts_total", Some(self.restarts as f64)),
            ("process_cpu_user_seconds_total", Some(sum.user)),
            ("process_cpu_system_seconds_total", Some(sum.system)),
            ("process_run_delay_seconds_total", sum.run_delay),
            ("process_resident_memory_bytes", Some(sum.resident)),
            ("process_resident_memory_peak_bytes", sum.peak),
            ("process_pss_bytes", self.pss.map(|kb| kb * 1024.0)),
            ("process_virtual_memory_bytes", Some(sum.virtual_memory)),
            ("process_minor_page_faults_total", Some(sum.minor_faults)),
            ("process_major_page_faults_total", Some(sum.major_faults)),
            ("process_read_bytes_total", sum.read_bytes),
            ("process_written_bytes_total", sum.written_bytes),
            ("process_rchar_bytes_total", sum.rchar),
            ("process_wchar_bytes_total", sum.wchar),
            ("process_threads", Some(sum.threads)),
            ("process_open_fds", sum.open_fds),
            ("process_voluntary_context_switches_total", sum.voluntary),
            ("process_involuntary_context_switches_total", sum.involuntary),
        ];
        for (name, value) in rows {
            self.set(&mut values, name, value);
        }
        self.cgroup(root.pid, &mut values);
        Some(values)
    }

    fn set(&self, values: &mut Values, name: &str, value: Option<f64>) {
        if let Some(value) = value {
            values.set(&self.columns, name, value);
        }
    }

    /// Version 2 of control groups only.
    fn cgroup(&self, pid: i32, values: &mut Values) {
        let text = read(format!("/proc/{pid}/cgroup"));
        let Some(path) = text.as_deref().and_then(|t| t.lines().find_map(|l| l.strip_prefix("0::"))) else {
            return;
        };
        let directory = format!("/sys/fs/cgroup{path}");
        let throttled = keyed(&read(format!("{directory}/cpu.stat")), "throttled_usec");
        self.set(values, "cgroup_cpu_throttled_seconds_total", throttled.map(|us| us / 1e6));
        let peak = read(format!("{directory}/memory.peak")).and_then(|t| t.trim().parse().ok());
        self.set(values, "cgroup_memory_peak_bytes", peak);
        let limit = read(format!("{directory}/cpu.max")).and_then(|t| {
            let (quota, period) = t.trim().split_once(' ')?;
            Some(quota.parse::<f64>().ok()? / period.parse::<f64>().ok()?)
        });
        self.set(values, "cgroup_cpu_limit_cores", limit);
    }
}

/// The sum over a process and its descendants. What one of them does not tell is unknown for all.
struct Sum {
    user: f64,
    system: f64,
    resident: f64,
    virtual_memory: f64,
    minor_faults: f64,
    major_faults: f64,
    threads: f64,
    run_delay: Option<f64>,
    peak: Option<f64>,
    read_bytes: Option<f64>,
    written_bytes: Option<f64>,
    rchar: Option<f64>,
    wchar: Option<f64>,
    open_fds: Option<f64>,
    voluntary: Option<f64>,
    involuntary: Option<f64>,
}

impl Default for Sum {
    fn default() -> Self {
        let zero = Some(0.0);
        Self {
            user: 0.0,
            system: 0.0,
            resident: 0.0,
            virtual_memory: 0.0,
            minor_faults: 0.0,
            major_faults: 0.0,
            threads: 0.0,
            run_delay: zero,
            peak: zero,
            read_bytes: zero,
            written_bytes: zero,
            rchar: zero,
            wchar: zero,
            open_fds: zero,
            voluntary: zero,
            involuntary: zero,
        }
    }
}

impl Sum {
    fn add(&mut self, pid: i32) {
        let Some(stat) = read(format!("/proc/{pid}/stat")).and_then(|text| Stat::parse(&text)) else {
            return;
        };
        self.user += stat.user;
        self.system += stat.system;
        self.resident += stat.resident;
        self.virtual_memory += stat.virtual_memory;
        self.minor_faults += stat.minor_faults;
        self.major_faults += stat.major_faults;
        self.threads += stat.threads;
        let plus = |sum: &mut Option<f64>, value: Option<f64>| *sum = sum.zip(value).map(|(a, b)| a + b);
        plus(&mut self.run_delay, run_delay_s(&format!("/proc/{pid}")));
        let status = read(format!("/proc/{pid}/status"));
        plus(&mut self.peak, keyed(&status, "VmHWM:").map(|kb| kb * 1024.0));
        plus(&mut self.voluntary, keyed(&status, "voluntary_ctxt_switches:"));
        plus(&mut self.involuntary, keyed(&status, "nonvoluntary_ctxt_switches:"));
        let io = read(format!("/proc/{pid}/io"));
        plus(&mut self.read_bytes, keyed(&io, "read_bytes:"));
        plus(&mut self.written_bytes, keyed(&io, "write_bytes:"));
        plus(&mut self.rchar, keyed(&io, "rchar:"));
        plus(&mut self.wchar, keyed(&io, "wchar:"));
        plus(&mut self.open_fds, fs::read_dir(format!("/proc/{pid}/fd")).ok().map(|d| d.count() as f64));
    }
}

/// What `/proc/PID/stat` says. The second field is the program's name in parentheses and may hold anything, so fields
/// count from after the last one.
#[derive(Debug, PartialEq)]
struct Stat {
    parent: i32,
    started: u64,
    user: f64,
    system: f64,
    resident: f64,
    virtual_memory: f64,
    minor_faults: f64,
    major_faults: f64,
    threads: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
        // Field 3 of the manual page is the first here.
        let field = |n: usize| fields.get(n - 3)?.parse::<f64>().ok();
        Some(Self {
            parent: field(4)? as i32,
            started: field(22)? as u64,
            user: field(14)? / TICKS_PER_SECOND,
            system: field(15)? / TICKS_PER_SECOND,
            resident: field(24)? * PAGE_BYTES,
            virtual_memory: field(23)?,
            minor_faults: field(10)?,
            major_faults: field(12)?,
            threads: field(20)?,
        })
    }
}

fn start_time(pid: i32) -> Option<u64> {
    let stat = read(format!("/proc/{pid}/stat"))?;
    // A zombie has ended; only its parent has not noticed.
    let state = stat[stat.rfind(')')? + 1..].trim_start().chars().next()?;
    (state != 'Z').then(|| Stat::parse(&stat).map(|s| s.started))?
}

fn descendants(root: i32) -> Vec<i32> {
    let mut children: Vec<(i32, i32)> = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if let Some(stat) = read(format!("/proc/{pid}/stat")).and_then(|t| Stat::parse(&t)) {
            children.push((stat.parent, pid));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent_pid = found[at];
        found.extend(children.iter().filter(|(parent, _)| *parent == parent_pid).map(|(_, pid)| *pid));
        at += 1;
    }
    found
}

fn unit_pid(unit: &str) -> Option<i32> {
    let output = std::process::Command::new("systemctl")
        .args(["show", "--property=MainPID", "--value", unit])
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok().filter(|pid| *pid > 0)
}

/// The process that holds the listening socket of a port.
fn port_pid(port: u16) -> Option<i32> {
    let listening = |table: &str| {
        let text = read(table.to_owned()).unwrap_or_default();
        let inodes = text.lines().skip(1).filter_map(|line| {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let local = u16::from_str_radix(fields.get(1)?.rsplit(':').next()?, 16).ok()?;
            // 0A: listening.
            (local == port && fields.get(3) == Some(&"0A")).then(|| fields.get(9).map(|i| (*i).to_owned()))?
        });
        inodes.collect::<BTreeSet<String>>()
    };
    let inodes: BTreeSet<String> = listening("/proc/net/tcp")
        .union(&listening("/proc/net/tcp6"))
        .map(|i| format!("socket:[{i}]"))
        .collect();
    let holds = |pid: &i32| {
        let links = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        links
            .filter_map(|l| fs::read_link(l.path()).ok())
            .any(|l| inodes.contains(l.to_string_lossy().as_ref()))
    };
    let pids = fs::read_dir("/proc").ok()?.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    let mut pids = pids.collect::<Vec<i32>>();
    pids.sort_unstable();
    pids.into_iter().find(holds)
}

/// Seconds that a process or thread was ready to run and did not get a core.
fn run_delay_s(directory: &str) -> Option<f64> {
    read(format!("{directory}/schedstat"))?
        .split_ascii_whitespace()
        .nth(1)?
        .parse::<f64>()
        .ok()
        .map(|ns| ns / 1e9)
}

/// The machine as a whole.
pub struct Host {
    columns: Vec<Column>,
    last: Option<[f64; 8]>,
}

impl Default for Host {
    fn default() -> Self {
        Self { columns: File::Host.columns(), last: None }
    }
}

impl Host {
    pub fn sample(&mut self) -> Values {
        let mut values = Values::new(&self.columns);
        let columns = &self.columns;
        let mut set = |name: &str, value: Option<f64>| {
            if let Some(value) = value {
                values.set(columns, name, value);
            }
        };
        let stat = read("/proc/stat".to_owned());
        let cpu = cpu_seconds(stat.as_deref().unwrap_or_default());
        if let Some(cpu) = cpu {
            let names = ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"];
            for (name, seconds) in names.iter().zip(cpu) {
                set(&format!("host_cpu_{name}_seconds_total"), Some(seconds));
            }
            let [guest, guest_nice] = guest_seconds(stat.as_deref().unwrap_or_default());
            set("host_cpu_guest_seconds_total", guest);
            set("host_cpu_guest_nice_seconds_total", guest_nice);
            set("host_cpu_percent", self.last.and_then(|last| busy_percent(&last, &cpu)));
        }
        let cores = stat.as_deref().unwrap_or_default().lines().filter(|l| l.starts_with("cpu")).count();
        set("host_cores", Some(cores.saturating_sub(1) as f64));
        for (name, key) in [
            ("host_procs_running", "procs_running"),
            ("host_procs_blocked", "procs_blocked"),
            ("host_context_switches_total", "ctxt"),
            ("host_interrupts_total", "intr"),
            ("host_forks_total", "processes"),
        ] {
            set(name, keyed(&stat, key));
        }
        let load = read("/proc/loadavg".to_owned()).unwrap_or_default();
        for (name, word) in ["host_load1", "host_load5", "host_load15"].iter().zip(load.split(' ')) {
            set(name, word.parse().ok());
        }
        // The fourth word: how many of them run, a slash, and all.
        let tasks = load.split(' ').nth(3).and_then(|word| word.split_once('/'));
        set("host_tasks", tasks.and_then(|(_, all)| all.parse().ok()));
        let memory = read("/proc/meminfo".to_owned());
        for (name, key) in [
            ("host_memory_total_bytes", "MemTotal:"),
            ("host_memory_available_bytes", "MemAvailable:"),
            ("host_memory_free_bytes", "MemFree:"),
            ("host_memory_buffers_bytes", "Buffers:"),
            ("host_memory_cached_bytes", "Cached:"),
            ("host_memory_dirty_bytes", "Dirty:"),
            ("host_memory_slab_bytes", "Slab:"),
            ("host_memory_committed_bytes", "Committed_AS:"),
            ("host_memory_active_bytes", "Active:"),
            ("host_memory_inactive_bytes", "Inactive:"),
            ("host_swap_total_bytes", "SwapTotal:"),
        ] {
            set(name, keyed(&memory, key).map(|kb| kb * 1024.0));
        }
        let vmstat = read("/proc/vmstat".to_owned());
        for (name, key) in [
            ("host_swap_in_pages_total", "pswpin"),
            ("host_swap_out_pages_total", "pswpout"),
            ("host_major_page_faults_total", "pgmajfault"),
            ("host_oom_kills_total", "oom_kill"),
        ] {
            set(name, keyed(&vmstat, key));
        }
        set("host_tcp_retrans_segs_total", netstat("/proc/net/snmp", "Tcp:", "RetransSegs"));
        set("host_tcp_listen_overflows_total", netstat("/proc/net/netstat", "TcpExt:", "ListenOverflows"));
        set("host_softnet_dropped_total", softnet_dropped());
        for resource in ["cpu", "memory", "io"] {
            let text = read(format!("/proc/pressure/{resource}"));
            set(&format!("host_pressure_{resource}_waiting_seconds_total"), pressure(&text, "some"));
            if resource != "cpu" {
                set(&format!("host_pressure_{resource}_stalled_seconds_total"), pressure(&text, "full"));
            }
        }
        self.last = cpu;
        values
    }
}

/// user, nice, system, idle, iowait, irq, softirq, steal over all cores.
fn cpu_seconds(stat: &str) -> Option<[f64; 8]> {
    let line = stat.lines().find(|l| l.starts_with("cpu "))?;
    let mut seconds = [0.0; 8];
    for (place, word) in seconds.iter_mut().zip(line.split_ascii_whitespace().skip(1)) {
        *place = word.parse::<f64>().ok()? / TICKS_PER_SECOND;
    }
    Some(seconds)
}

/// What guests used, at normal and at nice priority: it is in user and nice too.
fn guest_seconds(stat: &str) -> [Option<f64>; 2] {
    let line = stat.lines().find(|l| l.starts_with("cpu ")).unwrap_or_default();
    let word = |at| line.split_ascii_whitespace().nth(at)?.parse::<f64>().ok();
    [9, 10].map(|at| word(at).map(|ticks| ticks / TICKS_PER_SECOND))
}

/// 100 is all cores busy.
fn busy_percent(before: &[f64; 8], now: &[f64; 8]) -> Option<f64> {
    let passed: f64 = now.iter().sum::<f64>() - before.iter().sum::<f64>();
    let idle = now[3] + now[4] - before[3] - before[4];
    (passed > 0.0).then(|| (1.0 - idle / passed).clamp(0.0, 1.0) * 100.0)
}

/// The number after a word at the beginning of a line.
fn keyed(text: &Option<String>, key: &str) -> Option<f64> {
    let mut lines = text.as_deref()?.lines();
    lines.find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(key)).then(|| words.next()?.parse().ok())?
    })
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in microseconds.
fn pressure(text: &Option<String>, kind: &str) -> Option<f64> {
    let line = text.as_deref()?.lines().find(|l| l.starts_with(kind))?;
    line.rsplit_once("total=")?.1.trim().parse::<f64>().ok().map(|us| us / 1e6)
}

/// These files have a line of names and a line of numbers for each protocol.
fn netstat(path: &str, protocol: &str, name: &str) -> Option<f64> {
    let text = read(path.to_owned())?;
    let mut lines = text.lines().filter(|l| l.starts_with(protocol));
    let at = lines.next()?.split_ascii_whitespace().position(|w| w == name)?;
    lines.next()?.split_ascii_whitespace().nth(at)?.parse().ok()
}

fn softnet_dropped() -> Option<f64> {
    let text = read("/proc/net/softnet_stat".to_owned())?;
    let dropped = |line: &str| u64::from_str_radix(line.split_ascii_whitespace().nth(1)?, 16).ok();
    text.lines().map(dropped).sum::<Option<u64>>().map(|n| n as f64)
}

/// Whole disks with traffic: (name, values).
pub fn disks(columns: &[Column]) -> Vec<(String, Values)> {
    let text = read("/proc/diskstats".to_owned()).unwrap_or_default();
    text.lines()
        .filter_map(|line| disk(columns, line))
        .filter(|(name, _)| Path::new(&format!("/sys/block/{name}")).exists())
        .collect()
}

fn disk(columns: &[Column], line: &str) -> Option<(String, Values)> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let name = (*fields.get(2)?).to_owned();
    let field = |n: usize| fields.get(n)?.parse::<f64>().ok();
    if name.starts_with("loop") || name.starts_with("ram") || field(3)? + field(7)? == 0.0 {
        return None;
    }
    let mut values = Values::new(columns);
    values.set(columns, "host_disk_reads_total", field(3)?);
    values.set(columns, "host_disk_read_bytes_total", field(5)? * SECTOR_BYTES);
    values.set(columns, "host_disk_writes_total", field(7)?);
    values.set(columns, "host_disk_written_bytes_total", field(9)? * SECTOR_BYTES);
    values.set(columns, "host_disk_in_flight", field(11)?);
    values.set(columns, "host_disk_io_time_seconds_total", field(12)? / 1000.0);
    values.set(columns, "host_disk_io_time_weighted_seconds_total", field(13)? / 1000.0);
    values.set(columns, "host_disk_read_time_seconds_total", field(6)? / 1000.0);
    values.set(columns, "host_disk_write_time_seconds_total", field(10)? / 1000.0);
    // Since Linux 4.18.
    if let (Some(discards), Some(sectors), Some(ms)) = (field(14), field(16), field(17)) {
        values.set(columns, "host_disk_discards_total", discards);
        values.set(columns, "host_disk_discarded_bytes_total", sectors * SECTOR_BYTES);
        values.set(columns, "host_disk_discard_time_seconds_total", ms / 1000.0);
    }
    Some((name, values))
}

/// Network interfaces with traffic.
pub fn networks(columns: &[Column]) -> Vec<(String, Values)> {
    let text = read("/proc/net/dev".to_owned()).unwrap_or_default();
    text.lines().filter_map(|line| network(columns, line)).collect()
}

fn network(columns: &[Column], line: &str) -> Option<(String, Values)> {
    let (name, numbers) = line.split_once(':')?;
    let numbers: Vec<f64> =
        numbers.split_ascii_whitespace().map(|w| w.parse().ok()).collect::<Option<_>>()?;
    if numbers.len() < 16 || numbers[0] + numbers[8] == 0.0 {
        return None;
    }
    let mut values = Values::new(columns);
    for (direction, start) in [("receive", 0), ("transmit", 8)] {
        for (offset, what) in ["bytes", "packets", "errors", "drops"].iter().enumerate() {
            values.set(columns, &format!("host_net_{direction}_{what}_total"), numbers[start + offset]);
        }
    }
    values.set(columns, "host_net_receive_compressed_total", numbers[6]);
    values.set(columns, "host_net_receive_multicast_total", numbers[7]);
    values.set(columns, "host_net_transmit_compressed_total", numbers[15]);
    let name = name.trim();
    // Millions of bits a second, -1 where the driver does not know; a loopback has none.
    let speed = read(format!("/sys/class/net/{name}/speed")).and_then(|t| t.trim().parse::<f64>().ok());
    if let Some(megabits) = speed.filter(|megabits| *megabits > 0.0) {
        values.set(columns, "host_net_speed_bytes", megabits * 1e6 / 8.0);
    }
    Some((name.to_owned(), values))
}

/// CPU and waiting of this program's own threads, by name.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnThread {
    pub name: String,
    pub cpu_s: f64,
    pub run_delay_s: f64,
}

pub fn own_threads() -> Vec<OwnThread> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let thread = |task: fs::DirEntry| {
        let directory = task.path().display().to_string();
        let name = read(format!("{directory}/comm"))?.trim().to_owned();
        let cpu_s = read(format!("{directory}/schedstat"))?.split(' ').next()?.parse::<f64>().ok()? / 1e9;
        Some(OwnThread { name, cpu_s, run_delay_s: run_delay_s(&directory)? })
    };
    tasks.filter_map(thread).collect()
}

/// The process of a PostgreSQL connection, if it is one of this machine: its title names the client's port.
pub fn backend_here(pid: i32, client_port: Option<i32>) -> Option<i32> {
    let title = read(format!("/proc/{pid}/cmdline"))?;
    let end = client_port.map_or("[local]".to_owned(), |port| format!("({port})"));
    (title.starts_with("postgres:") && title.contains(&end)).then_some(pid)
}

/// CPU seconds of a process, while it lives.
pub fn cpu_of(pid: i32) -> Option<f64> {
    let stat = read(format!("/proc/{pid}/stat")).and_then(|text| Stat::parse(&text))?;
    Some(stat.user + stat.system)
}

/// This program's own CPU seconds and resident memory.
pub fn own_use() -> (f64, f64) {
    let stat = read("/proc/self/stat".to_owned()).and_then(|text| Stat::parse(&text));
    stat.map_or((0.0, 0.0), |s| (s.user + s.system, s.resident))
}

pub fn machine() -> Vec<(String, String)> {
    let cpu = read("/proc/cpuinfo".to_owned()).unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown", |(_, m)| m.trim());
    let release = read("/etc/os-release".to_owned()).unwrap_or_default();
    let system = release
        .lines()
        .find_map(|l| l.strip_prefix("PRETTY_NAME="))
        .unwrap_or("unknown")
        .trim_matches('"')
        .to_owned();
    let memory = keyed(&read("/proc/meminfo".to_owned()), "MemTotal:").unwrap_or(0.0);
    vec![
        ("host".into(), host_name()),
        ("cpu".into(), model.to_owned()),
        ("cores".into(), std::thread::available_parallelism().map_or(1, usize::from).to_string()),
        ("memory".into(), format!("{:.1} GB", memory / 1e6)),
        ("system".into(), system),
        (
            "kernel".into(),
            read("/proc/sys/kernel/osrelease".to_owned()).unwrap_or_default().trim().to_owned(),
        ),
    ]
}

pub fn host_name() -> String {
    read("/proc/sys/kernel/hostname".to_owned()).unwrap_or_default().trim().to_owned()
}

fn read(path: String) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let line = "42 (a) b (c)) S 7 42 42 0 -1 4194560 100 0 3 0 250 50 0 0 20 0 9 0 12345 1000000 256 18446744073709551615";
        let stat = Stat::parse(line).unwrap();
        assert_eq!((stat.parent, stat.started, stat.threads), (7, 12345, 9.0));
        assert_eq!((stat.user, stat.system, stat.resident), (2.5, 0.5, 256.0 * 4096.0));
        assert_eq!((stat.minor_faults, stat.major_faults), (100.0, 3.0));
        assert_eq!(Stat::parse("42 (x) S 7"), None);
    }

    #[test]
    fn lines_of_proc() {
        let text = Some("MemTotal:  100 kB\nMemTotalX: 5\nctxt 77\n".to_owned());
        assert_eq!(
            (keyed(&text, "MemTotal:"), keyed(&text, "ctxt"), keyed(&text, "none"), keyed(&None, "x")),
            (Some(100.0), Some(77.0), None, None)
        );
        let psi = Some("some avg10=1.00 avg60=0.00 avg300=0.00 total=2000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=500000".to_owned());
        assert_eq!((pressure(&psi, "some"), pressure(&psi, "full")), (Some(2.0), Some(0.5)));
        let before = cpu_seconds("cpu  100 0 100 800 0 0 0 0 0 0").unwrap();
        let after = cpu_seconds("cpu  150 0 150 850 50 0 0 0 0 0").unwrap();
        assert_eq!(busy_percent(&before, &after), Some(50.0));
        assert_eq!(busy_percent(&before, &before), None);
    }

    #[test]
    fn devices() {
        let columns = File::Disk.columns();
        let (name, values) = disk(&columns, "   8  0 sda 10 0 20 5 30 0 40 7 2 1500 2500 0 0").unwrap();
        assert_eq!(
            (name.as_str(), values.get(&columns, "host_disk_written_bytes_total")),
            ("sda", Some(40.0 * 512.0))
        );
        assert_eq!(values.get(&columns, "host_disk_io_time_seconds_total"), Some(1.5));
        assert!(disk(&columns, "   7  0 loop0 10 0 20 5 30 0 40 7 2 1500 2500").is_none());
        let columns = File::Net.columns();
        let (name, values) = network(&columns, "  eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0").unwrap();
        assert_eq!(
            (name.as_str(), values.get(&columns, "host_net_transmit_bytes_total")),
            ("eth0", Some(500.0))
        );
    }

    #[test]
    fn this_process_is_seen() {
        let mut target = Target::new(How::Pid(std::process::id() as i32));
        assert!(target.is_there());
        let values = target.sample().unwrap();
        assert!(values.get(&File::Process.columns(), "process_resident_memory_bytes").unwrap() > 1e5);
        assert!(!Target::new(How::Pid(i32::MAX)).is_there());
        let host = Host::default().sample();
        assert!(host.get(&File::Host.columns(), "host_memory_total_bytes").unwrap() > 1e6);
        assert!(!own_threads().is_empty());
    }

    #[test]
    fn the_owner_of_a_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(port_pid(listener.local_addr().unwrap().port()), Some(std::process::id() as i32));
    }
}
