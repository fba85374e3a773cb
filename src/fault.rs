//! Fault points: places where a test may kill the process. Compiled to nothing without the feature `fault-points`.
//!
//! A test sets `FAILPOINTS="after-copy=3*off->return"` to abort at the fourth passing of that point. The names are the
//! places where data becomes durable, or almost: see docs/development.md.

/// Aborts the process, without unwinding and without cleaning up, if a test asked for it here.
#[cfg_attr(not(feature = "fault-points"), expect(unused_variables))]
pub fn fault(name: &str) {
    fail::fail_point!(name, |_| {
        eprintln!("fault point {name}: aborting");
        std::process::abort()
    });
}
