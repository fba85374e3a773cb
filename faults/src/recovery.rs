//! Times of recovery, and which of them a campaign is judged by: those that no other fault disturbed, where there are enough
//! of them. Pure.

use std::time::{Duration, Instant};

use crate::world::LEASE_SECONDS;

/// Of fewer, a median says more about chance than about the engine.
pub(crate) const ENOUGH: usize = 5;

/// What is waited for, and from when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// From the SIGKILL of all processes to the first new row.
    Restart,
    /// From the SIGKILL of one until others wrote all of its partitions; the rest likewise.
    Killed,
    Frozen,
    CutFromPostgres,
    CutFromKafka,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Restart => "restart",
            Kind::Killed => "taken over (killed)",
            Kind::Frozen => "taken over (frozen)",
            Kind::CutFromPostgres => "taken over (cut from PostgreSQL)",
            Kind::CutFromKafka => "taken over (cut from Kafka)",
        }
    }

    /// What the median may be. The longest depends on what else the machine does; it is printed.
    pub(crate) fn limit(self) -> Duration {
        Duration::from_secs_f64(match self {
            Kind::Restart => 3.0,
            // The lease, a tick, and a claim.
            Kind::Killed | Kind::Frozen | Kind::CutFromPostgres => LEASE_SECONDS + 2.0,
            // Its lease lives: it must first be sure that it is cut off, and then let go.
            Kind::CutFromKafka => LEASE_SECONDS + 5.0,
        })
    }
}

/// One time, and what another fault did meanwhile to those who recover.
#[derive(Clone, Debug)]
pub(crate) struct Recovery {
    pub(crate) took: Duration,
    pub(crate) disturbance: Option<String>,
}

/// What one kind comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// How many count.
    pub(crate) count: usize,
    /// Median and longest of those.
    pub(crate) times: Option<(Duration, Duration)>,
    pub(crate) verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Held,
    TooSlow,
    /// Not judged.
    TooFew,
}

/// Disturbed ones are left out: they tell how long the other fault took.
pub(crate) fn judge(recoveries: &[Recovery], limit: Duration) -> Judged {
    let undisturbed = recoveries.iter().filter(|r| r.disturbance.is_none());
    let mut times: Vec<Duration> = undisturbed.map(|r| r.took).collect();
    times.sort_unstable();
    let figures = times.last().map(|longest| (times[times.len() / 2], *longest));
    let verdict = match figures {
        Some((median, _)) if times.len() >= ENOUGH && median > limit => Verdict::TooSlow,
        Some(_) if times.len() >= ENOUGH => Verdict::Held,
        _ => Verdict::TooFew,
    };
    Judged { count: times.len(), times: figures, verdict }
}

/// One of those who recover, at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) pid: Option<u32>,
    /// When it last froze by itself, and when it was woken up again, if it was.
    pub(crate) frozen: Option<(Instant, Option<Instant>)>,
}

/// What another fault did to it between `began`, when it was looked at first, and the second look.
pub(crate) fn disturbance(began: Instant, before: Look, after: Look) -> Option<&'static str> {
    let was_frozen = |(_, until): (Instant, Option<Instant>)| until.is_none_or(|until| until > began);
    match (before.pid, after.pid) {
        (None, _) => Some("was not running"),
        (before, after) if before != after => Some("ended"),
        _ if after.frozen.is_some_and(was_frozen) => Some("was frozen"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(7);

    #[test]
    fn only_enough_undisturbed_times_are_judged() {
        #[track_caller]
        fn check(undisturbed: &[u64], disturbed: &[u64], verdict: Verdict, times: Option<(u64, u64)>) {
            let recovery =
                |seconds: u64, disturbance| Recovery { took: Duration::from_secs(seconds), disturbance };
            let mut all: Vec<Recovery> =
                disturbed.iter().map(|s| recovery(*s, Some("x".to_owned()))).collect();
            all.extend(undisturbed.iter().map(|s| recovery(*s, None)));
            let times =
                times.map(|(median, longest)| (Duration::from_secs(median), Duration::from_secs(longest)));
            assert_eq!(judge(&all, LIMIT), Judged { count: undisturbed.len(), times, verdict });
        }
        check(&[], &[], Verdict::TooFew, None);
        check(&[], &[13, 13, 13, 13, 13, 13], Verdict::TooFew, None);
        // Two freezes, one of which met a second fault: neither is a verdict.
        check(&[6], &[13], Verdict::TooFew, Some((6, 6)));
        check(&[6, 13], &[], Verdict::TooFew, Some((13, 13)));
        check(&[13, 13, 13, 13], &[1], Verdict::TooFew, Some((13, 13)));
        // The median decides, and not the longest.
        check(&[13, 6, 6, 13, 6], &[13, 13, 13], Verdict::Held, Some((6, 13)));
        check(&[13, 8, 6, 8, 6], &[1, 1, 1], Verdict::TooSlow, Some((8, 13)));
        check(&[7, 7, 7, 7, 7], &[], Verdict::Held, Some((7, 7)));
    }

    #[test]
    fn who_ended_or_froze_meanwhile_was_disturbed() {
        let began = Instant::now();
        let at = |ms: u64| began + Duration::from_millis(ms);
        let earlier = began.checked_sub(Duration::from_millis(5)).unwrap_or(began);
        let look = |pid, frozen| Look { pid, frozen };
        #[track_caller]
        fn check(began: Instant, before: Look, after: Look, expected: Option<&str>) {
            assert_eq!(disturbance(began, before, after), expected);
        }
        let calm = look(Some(1), None);
        check(began, calm, calm, None);
        check(began, look(None, None), calm, Some("was not running"));
        check(began, calm, look(None, None), Some("ended"));
        check(began, calm, look(Some(2), None), Some("ended"));
        check(began, calm, look(Some(1), Some((at(1000), None))), Some("was frozen"));
        check(began, calm, look(Some(1), Some((at(1000), Some(at(8000))))), Some("was frozen"));
        // It was frozen at the beginning, and woke up only later; or had woken up before.
        check(began, calm, look(Some(1), Some((earlier, Some(at(100))))), Some("was frozen"));
        check(began, calm, look(Some(1), Some((earlier, Some(began)))), None);
    }
}
