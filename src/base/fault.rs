//! Fault points: places where a test may kill the process. Compiled to nothing without the feature `fault-points`.
//!
//! A test sets `FAILPOINTS="after-copy=3*off->return"` to abort at the fourth passing of that point, and
//! `"after-copy=3*off->1*return(freeze)"` to stop there until somebody sends SIGCONT. The names are the places where data
//! becomes durable, or almost: see docs/reliability.md.

/// Aborts the process, without unwinding and without cleaning up, or freezes it, if a test asked for it here.
#[cfg_attr(not(feature = "fault-points"), expect(unused_variables))]
pub fn fault(name: &str) {
    fail::fail_point!(name, |how: Option<String>| {
        if how.as_deref() == Some("freeze") {
            eprintln!("fault point {name}: freezing");
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).expect("a process may stop itself");
            return;
        }
        eprintln!("fault point {name}: aborting");
        std::process::abort()
    });
}
