//! Which events were seen, by partition and offset: what is shown next, what came twice, what is missing. Pure.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;

/// Ids that are remembered, to know an event that was sent twice under two numbers. A proxy that sends a request again does so within
/// seconds; this is a quarter of a minute at a thousand a second.
const IDS: usize = 16_384;

/// Where an event stands: Kafka's partition and offset, whatever brought it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
}

impl Place {
    /// `3/129`.
    pub fn parse(text: &str) -> Option<Place> {
        let (partition, offset) = text.split_once('/')?;
        let place = Place { partition: partition.parse().ok()?, offset: offset.parse().ok()? };
        (place.partition >= 0 && place.offset >= 0).then_some(place)
    }
}

/// What an event's number says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is the next one, or the first of its partition.
    Next,
    /// It was shown before.
    Double,
    /// These come first; it is to be shown behind them.
    Behind(Range<i64>),
}

/// How far each partition was seen.
#[derive(Default)]
pub struct Order {
    next: BTreeMap<i32, i64>,
    ids: HashSet<String>,
    oldest: VecDeque<String>,
}

impl Order {
    /// Looks at an event's number, and changes nothing.
    pub fn look(&self, place: Place) -> Seen {
        match self.next.get(&place.partition) {
            Some(next) if place.offset < *next => Seen::Double,
            Some(next) if place.offset > *next => Seen::Behind(*next..place.offset),
            _ => Seen::Next,
        }
    }

    /// Everything of this partition below `next` was shown, or is known to be nothing. It never goes back.
    pub fn pass(&mut self, partition: i32, next: i64) {
        let known = self.next.entry(partition).or_insert(next);
        *known = next.max(*known);
    }

    /// True of an id that came before, under another number.
    pub fn is_known(&mut self, id: &str) -> bool {
        if self.ids.contains(id) {
            return true;
        }
        if self.oldest.len() == IDS
            && let Some(oldest) = self.oldest.pop_front()
        {
            self.ids.remove(&oldest);
        }
        self.ids.insert(id.to_owned());
        self.oldest.push_back(id.to_owned());
        false
    }

    pub fn next_of(&self, partition: i32) -> Option<i64> {
        self.next.get(&partition).copied()
    }

    pub fn positions(&self) -> Vec<(i32, i64)> {
        self.next.iter().map(|(partition, next)| (*partition, *next)).collect()
    }
}

/// How many of the offsets in `gap` a source has no more, where `first` is the oldest that it still has; `None` where it has nothing.
/// What it has and does not show is a hole, and no event.
pub fn gone(gap: &Range<i64>, first: Option<i64>) -> i64 {
    match first {
        Some(first) => (first.min(gap.end) - gap.start).max(0),
        None => gap.end - gap.start,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(partition: i32, offset: i64) -> Place {
        Place { partition, offset }
    }

    #[test]
    fn a_place_is_two_numbers() {
        for text in ["", "1", "1/", "/1", "-1/2", "1/-2", "1/2/3", "a/b"] {
            assert_eq!(Place::parse(text), None, "{text}");
        }
        assert_eq!(Place::parse("3/129"), Some(place(3, 129)));
    }

    #[test]
    fn each_event_is_shown_once_and_in_its_order() {
        let mut order = Order::default();
        let mut check = |partition, offset, expected: Seen| {
            assert_eq!(order.look(place(partition, offset)), expected, "{partition}/{offset}");
            if expected != Seen::Double {
                order.pass(partition, offset + 1);
            }
        };
        check(0, 100, Seen::Next);
        check(0, 100, Seen::Double);
        check(0, 101, Seen::Next);
        check(1, 5, Seen::Next);
        check(0, 99, Seen::Double);
        check(0, 105, Seen::Behind(102..105));
        check(0, 103, Seen::Double);
        check(0, 106, Seen::Next);
        check(1, 6, Seen::Next);
    }

    #[test]
    fn it_never_goes_back() {
        let mut order = Order::default();
        order.pass(0, 7);
        order.pass(0, 5);
        assert_eq!((order.next_of(0), order.next_of(1)), (Some(7), None));
    }

    #[test]
    fn an_id_that_comes_again_is_known_for_a_while() {
        let mut order = Order::default();
        assert!(!order.is_known("a") && order.is_known("a"));
        for n in 0..IDS {
            assert!(!order.is_known(&n.to_string()));
        }
        assert!(!order.is_known("a"), "it was the oldest");
        assert_eq!((order.ids.len(), order.oldest.len()), (IDS, IDS));
    }

    #[test]
    fn what_a_source_has_no_more_is_missing_and_a_hole_is_not() {
        for (gap, first, expected) in [
            (10..20, Some(0), 0),
            (10..20, Some(10), 0),
            (10..20, Some(15), 5),
            (10..20, Some(30), 10),
            (10..20, None, 10),
        ] {
            assert_eq!(gone(&gap, first), expected, "{gap:?} {first:?}");
        }
    }
}
