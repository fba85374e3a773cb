//! Fault points: places where a test may kill the process. Compiled to nothing without the feature `fault-points`.
//!
//! A test sets `FAILPOINTS="after-copy=3*off->return"` to abort at the fourth passing of that point, and
//! `"after-copy=3*off->1*return(freeze)"` to stop there until somebody sends SIGCONT. The points are the places where data
//! becomes durable, or almost: see docs/reliability.md.

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place in the code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            pub const ALL: &[Point] = &[$(Point::$point,)*];

            /// As `FAILPOINTS` has it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    /// Records are taken from Kafka and not yet passed on.
    AfterPoll = "after-poll",
    /// A transaction has begun.
    BeforeCopy = "before-copy",
    /// A part of the rows is sent.
    MidCopy = "mid-copy",
    /// All rows are sent.
    AfterCopy = "after-copy",
    /// The dead letters are sent.
    DeadLetterCopy = "dead-letter-copy",
    /// The message that moves the ledger and commits is about to be sent.
    BeforeCommit = "before-commit",
    /// The server has answered it.
    AfterCommit = "after-commit",
    /// The ledger says that a partition is ours, memory does not yet.
    InClaim = "in-claim",
    /// Memory has given a partition up, the ledger has not yet.
    InRelease = "in-release",
}

/// Aborts the process, without unwinding and without cleaning up, or freezes it, if a test asked for it here.
#[cfg_attr(not(feature = "fault-points"), expect(unused_variables))]
pub fn fault(point: Point) {
    fail::fail_point!(point.name(), |how: Option<String>| {
        let name = point.name();
        if how.as_deref() == Some("freeze") {
            eprintln!("fault point {name}: freezing");
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP).expect("a process may stop itself");
            return;
        }
        eprintln!("fault point {name}: aborting");
        std::process::abort()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_documented() {
        let document = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reliability.md"));
        for point in Point::ALL {
            assert!(document.contains(point.name()), "{} is missing in reliability.md", point.name());
        }
    }
}
