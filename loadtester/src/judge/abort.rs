//! `--abort-on`: conditions on the latest second that end a run early, once they have held for their time of grace.

use crate::base::clock::SECOND_NS;
use crate::measure::columns::{Column, Values};
use crate::measure::condition::Threshold;
use crate::measure::results::{Results, interval_name};

pub struct Aborts {
    conditions: Vec<Abort>,
    grace_ns: i64,
    /// The last known value of each column, under the name that conditions use.
    latest: Results,
}

struct Abort {
    condition: Threshold,
    since_ns: Option<i64>,
    done: bool,
}

impl Aborts {
    pub fn new(conditions: &[Threshold], grace_ns: i64) -> Self {
        let abort =
            |condition: &Threshold| Abort { condition: condition.clone(), since_ns: None, done: false };
        Self { conditions: conditions.iter().map(abort).collect(), grace_ns, latest: Results::new() }
    }

    /// Takes in a row of intervals.csv.
    pub fn note(&mut self, columns: &[Column], values: &Values) {
        for (column, value) in columns.iter().zip(&values.0) {
            if let Some(value) = value {
                self.latest.insert(interval_name(column).to_owned(), *value);
            }
        }
    }

    /// The sentence of the first condition that has held for its time of grace; once.
    pub fn due(&mut self, now_ns: i64) -> Option<String> {
        for abort in self.conditions.iter_mut().filter(|abort| !abort.done) {
            if abort.condition.holds(&self.latest) != Some(true) {
                abort.since_ns = None;
                continue;
            }
            if now_ns - *abort.since_ns.get_or_insert(now_ns) >= self.grace_ns {
                abort.done = true;
                return Some(format!("{} has held for {} s", abort.condition, self.grace_ns / SECOND_NS));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::columns::File;

    #[test]
    fn a_condition_must_hold_without_a_break_and_speaks_once() {
        let columns = File::Intervals.columns();
        let mut aborts = Aborts::new(&["backlog>10".parse().unwrap()], 2 * SECOND_NS);
        let mut at = |second: i64, backlog: f64| {
            let mut values = Values::new(&columns);
            values.set(&columns, "backlog", backlog);
            aborts.note(&columns, &values);
            aborts.due(second * SECOND_NS)
        };
        let rows = [(0, 11.0), (1, 11.0), (2, 10.0), (3, 11.0), (4, 11.0)];
        for (second, backlog) in rows {
            assert_eq!(at(second, backlog), None, "{second}");
        }
        assert_eq!(at(5, 11.0).as_deref(), Some("backlog>10 has held for 2 s"));
        assert_eq!(at(6, 11.0), None);
    }
}
