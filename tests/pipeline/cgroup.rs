//! A memory limit that the kernel holds, as systemd sets it for the unit. Where there is no right to make one, the reason is told.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// A control group of this test's own.
pub(crate) struct Cgroup {
    path: PathBuf,
    files: &'static Files,
}

/// The same things have other names in the two versions of control groups.
struct Files {
    limits: &'static [&'static str],
    peak: &'static str,
    events: &'static str,
}

const V1: Files = Files {
    limits: &["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"],
    peak: "memory.max_usage_in_bytes",
    events: "memory.oom_control",
};
const V2: Files = Files { limits: &["memory.max"], peak: "memory.peak", events: "memory.events" };

impl Cgroup {
    /// # Errors
    /// Why there can be none here.
    pub(crate) fn with_memory_max(bytes: u64) -> Result<Cgroup, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let mounts = fs::read_to_string("/proc/mounts").map_err(|error| error.to_string())?;
        let mount = |kind: &str, option: &str| {
            let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            fields
                .filter(|f| f[2] == kind && (option.is_empty() || f[3].split(',').any(|o| o == option)))
                .map(|f| PathBuf::from(f[1]))
                .next()
        };
        let (root, files) = match (mount("cgroup", "memory"), mount("cgroup2", "")) {
            (Some(root), _) => (root, &V1),
            (None, Some(root)) => (root, &V2),
            (None, None) => return Err("no control groups are mounted".to_owned()),
        };
        let name = format!("rowmill-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let cgroup = Cgroup { path: root.join(name), files };
        fs::create_dir(&cgroup.path).map_err(|error| format!("{}: {error}", cgroup.path.display()))?;
        for limit in files.limits {
            // The second one counts swap, which not every kernel does.
            let is_there = cgroup.path.join(limit).exists();
            if is_there || *limit == files.limits[0] {
                let written = fs::write(cgroup.path.join(limit), bytes.to_string());
                written.map_err(|error| format!("{}/{limit}: {error}", cgroup.path.display()))?;
            }
        }
        if cgroup.path.join("memory.swap.max").exists() {
            fs::write(cgroup.path.join("memory.swap.max"), "0").map_err(|error| error.to_string())?;
        }
        Ok(cgroup)
    }

    pub(crate) fn add(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("the process runs");
    }

    /// Processes that the kernel ended because the limit was reached.
    pub(crate) fn kills(&self) -> u64 {
        let text = fs::read_to_string(self.path.join(self.files.events)).expect("the kernel tells");
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|count| count.parse().ok()).expect("a number")
    }

    /// The most that was counted, the kernel's own share included; `None` where the kernel does not tell.
    pub(crate) fn peak(&self) -> Option<u64> {
        fs::read_to_string(self.path.join(self.files.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Empty once its process is reaped; one that is left harms nobody.
        fs::remove_dir(&self.path).ok();
    }
}
