//! Aggregates: which messages a key's row adds up, and what it must then hold. Pure; knows no server.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use crate::message::account::Outcome;
use crate::message::compile::Compiler;
use crate::message::draw::{Draft, Value, write_key};
use crate::message::raw::{RawAggregate, RawFold};

#[derive(Clone, Debug)]
pub struct Aggregate {
    pub name: String,
    pub table: String,
    /// Names of the models; all where there are none.
    pub models: Vec<String>,
    /// (column, draw)
    pub key: Vec<(String, String)>,
    pub values: Vec<Held>,
    pub filter: Option<String>,
}

/// What a column of values holds.
#[derive(Clone, Debug)]
pub struct Held {
    pub column: String,
    pub fold: Fold,
    /// The draw that is folded; none is needed to count.
    pub draw: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fold {
    Count,
    Sum,
    Min,
    Max,
    First,
}

/// Where a model has the draws of an aggregate.
#[derive(Clone, Debug)]
pub struct Slots {
    /// The aggregate's place in the scenario.
    pub aggregate: usize,
    pub key: Vec<usize>,
    pub values: Vec<Option<usize>>,
}

impl Aggregate {
    pub fn compile(raw: &RawAggregate) -> Result<Self> {
        ensure!(!raw.key.is_empty(), "an aggregate has a key");
        let held = |(column, fold): (&String, &RawFold)| {
            let (fold, draw) = fold_of(fold).with_context(|| format!("value \"{column}\""))?;
            Ok(Held { column: column.clone(), fold, draw })
        };
        Ok(Self {
            name: raw.name.clone(),
            table: raw.table.clone().unwrap_or_else(|| raw.name.clone()),
            models: raw.models.clone().unwrap_or_default(),
            key: raw.key.iter().map(|(column, draw)| (column.clone(), draw.clone())).collect(),
            values: raw.values.iter().map(held).collect::<Result<_>>()?,
            filter: raw.filter.clone(),
        })
    }

    pub fn takes(&self, model: &str) -> bool {
        self.models.is_empty() || self.models.iter().any(|name| name == model)
    }

    pub fn slots(&self, aggregate: usize, compiler: &mut Compiler<'_>) -> Result<Slots> {
        let key = self.key.iter().map(|(_, draw)| compiler.slot(draw)).collect::<Result<_>>()?;
        let value = |held: &Held| held.draw.as_ref().map(|draw| compiler.slot(draw)).transpose();
        Ok(Slots { aggregate, key, values: self.values.iter().map(value).collect::<Result<_>>()? })
    }
}

fn fold_of(raw: &RawFold) -> Result<(Fold, Option<String>)> {
    let all =
        [(Fold::Sum, &raw.sum), (Fold::Min, &raw.min), (Fold::Max, &raw.max), (Fold::First, &raw.first)];
    let mut given = all.into_iter().filter_map(|(fold, draw)| Some((fold, Some(draw.clone()?))));
    match (raw.count, given.next(), given.next()) {
        (Some(true), None, None) => Ok((Fold::Count, None)),
        (None, Some(found), None) => Ok(found),
        _ => bail!("it is one of count = true, sum, min, max, first"),
    }
}

/// Digits behind the point that sums keep: as many as a draw can have.
pub const PLACES: u8 = 9;

/// A number in units of 10 to the minus [`PLACES`], times in microseconds; `None` of what is no number.
pub fn number(value: Value) -> Option<i128> {
    match value {
        Value::Integer(n) | Value::Time(n) => Some(i128::from(n) * 10i128.pow(u32::from(PLACES))),
        Value::Decimal(n, places) => Some(i128::from(n) * 10i128.pow(u32::from(PLACES - places))),
        _ => None,
    }
}

/// What is true of each key.
#[derive(Debug, Default)]
pub struct Truth {
    pub keys: HashMap<Vec<u8>, Vec<Range>>,
    /// Values that are no numbers.
    pub unfit: u64,
}

/// The values that may be found: what certainly was added up, and what perhaps was.
#[derive(Clone, Debug, PartialEq)]
pub struct Range {
    pub least: i128,
    pub most: i128,
    /// Nothing certain has come yet.
    pub empty: bool,
    /// Of the first: when it was due, and others that it may be.
    first_us: i64,
    perhaps: Vec<(i64, i128)>,
}

impl Default for Range {
    fn default() -> Self {
        Self { least: 0, most: 0, empty: true, first_us: i64::MAX, perhaps: Vec::new() }
    }
}

/// Keys have no byte that ends them, so each column says how long it is.
pub fn key_of<'a>(columns: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut key = Vec::new();
    for column in columns {
        key.extend((column.len() as u32).to_be_bytes());
        key.extend_from_slice(column);
    }
    key
}

/// The columns of a key again, for people.
pub fn shown(key: &[u8]) -> String {
    let (mut rest, mut columns) = (key, Vec::new());
    while let Some((length, behind)) = rest.split_at_checked(4) {
        let length = u32::from_be_bytes(length.try_into().unwrap_or_default()) as usize;
        let (column, behind) = behind.split_at(length.min(behind.len()));
        columns.push(String::from_utf8_lossy(column).into_owned());
        rest = behind;
    }
    columns.join(", ")
}

impl Truth {
    /// Adds a message; the first value of each key is the count.
    pub fn add(&mut self, values: &[Held], slots: &Slots, draft: &Draft, due_us: i64, outcome: Outcome) {
        let certain = match outcome {
            Outcome::Acked => true,
            Outcome::Indeterminate | Outcome::Pending => false,
            Outcome::Failed => return,
        };
        let columns: Vec<Vec<u8>> = slots
            .key
            .iter()
            .map(|slot| {
                let mut column = Vec::new();
                write_key(draft, draft.value(*slot), &mut column);
                column
            })
            .collect();
        let key = key_of(columns.iter().map(Vec::as_slice));
        let ranges = self.keys.entry(key).or_insert_with(|| vec![Range::default(); values.len() + 1]);
        ranges[0].take(Fold::Count, 1, due_us, certain);
        for ((held, slot), range) in values.iter().zip(&slots.values).zip(&mut ranges[1..]) {
            let value = match slot {
                None => Some(1),
                Some(slot) => number(draft.value(*slot)),
            };
            match value {
                Some(value) => range.take(held.fold, value, due_us, certain),
                None => self.unfit += 1,
            }
        }
    }
}

impl Range {
    fn take(&mut self, fold: Fold, value: i128, due_us: i64, certain: bool) {
        match (fold, certain) {
            (Fold::Count | Fold::Sum, true) => {
                self.least += value;
                self.most += value;
            }
            (Fold::Count | Fold::Sum, false) => {
                self.least += value.min(0);
                self.most += value.max(0);
            }
            // Of an extreme, what is certain bounds one side and what is not the other.
            (Fold::Min, true) => {
                self.most = if self.empty { value } else { self.most.min(value) };
                self.perhaps.push((0, value));
            }
            (Fold::Max, true) => {
                self.least = if self.empty { value } else { self.least.max(value) };
                self.perhaps.push((0, value));
            }
            (Fold::Min | Fold::Max, false) => self.perhaps.push((0, value)),
            (Fold::First, true) => {
                if due_us < self.first_us {
                    (self.first_us, self.least, self.most) = (due_us, value, value);
                }
            }
            (Fold::First, false) => self.perhaps.push((due_us, value)),
        }
        if matches!(fold, Fold::Min | Fold::Max) && self.perhaps.len() > 1 {
            let values = self.perhaps.iter().map(|(_, value)| *value);
            let extreme = if fold == Fold::Min { values.min() } else { values.max() };
            self.perhaps = extreme.map(|value| (0, value)).into_iter().collect();
        }
        self.empty &= !certain;
    }

    /// Whether a value may be found, beside one that was there before.
    pub fn holds(&self, fold: Fold, found: i128, before: Option<i128>, slack: i128) -> bool {
        let within = |least: i128, most: i128| least - slack <= found && found <= most + slack;
        let perhaps = self.perhaps.first().map(|(_, value)| *value);
        match fold {
            Fold::Count | Fold::Sum => {
                let before = before.unwrap_or(0);
                within(self.least + before, self.most + before)
            }
            Fold::Min => {
                let most = if self.empty { i128::MAX / 2 } else { self.most };
                let most = before.map_or(most, |before| most.min(before));
                within(perhaps.unwrap_or(most).min(most), most)
            }
            Fold::Max => {
                let least = if self.empty { i128::MIN / 2 } else { self.least };
                let least = before.map_or(least, |before| least.max(before));
                within(least, perhaps.unwrap_or(least).max(least))
            }
            Fold::First => match before {
                Some(before) => within(before, before),
                None => {
                    !self.empty && within(self.least, self.most)
                        || self
                            .perhaps
                            .iter()
                            .any(|(due_us, value)| *due_us <= self.first_us && within(*value, *value))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(fold: Fold, values: &[(i128, i64, bool)]) -> Range {
        let mut range = Range::default();
        for (value, due_us, certain) in values {
            range.take(fold, *value, *due_us, *certain);
        }
        range
    }

    #[test]
    fn what_may_be_found() {
        let certain = [(5, 10, true), (3, 20, true), (8, 30, true)];
        let mut with_doubt = certain.to_vec();
        with_doubt.extend([(1, 5, false), (9, 40, false), (-2, 50, false)]);
        let rows: [(Fold, &[i128], &[i128]); 5] = [
            (Fold::Count, &[16], &[15, 17]),
            (Fold::Sum, &[16], &[15, 17]),
            (Fold::Min, &[3], &[2, 4]),
            (Fold::Max, &[8], &[7, 9]),
            (Fold::First, &[5], &[3, 8]),
        ];
        for (fold, right, wrong) in rows {
            let range = range(fold, &certain);
            assert!(right.iter().all(|n| range.holds(fold, *n, None, 0)), "{fold:?}");
            assert!(!wrong.iter().any(|n| range.holds(fold, *n, None, 0)), "{fold:?}");
        }
        let rows: [(Fold, &[i128], &[i128]); 4] = [
            (Fold::Sum, &[14, 16, 26], &[13, 27]),
            (Fold::Min, &[-2, 3], &[-3, 4]),
            (Fold::Max, &[8, 9], &[7, 10]),
            (Fold::First, &[5, 1], &[9, -2]),
        ];
        for (fold, right, wrong) in rows {
            let range = range(fold, &with_doubt);
            assert!(right.iter().all(|n| range.holds(fold, *n, None, 0)), "{fold:?}");
            assert!(!wrong.iter().any(|n| range.holds(fold, *n, None, 0)), "{fold:?}");
        }
    }

    #[test]
    fn what_was_there_before_counts() {
        let values = [(5, 10, true), (3, 20, true)];
        assert!(range(Fold::Sum, &values).holds(Fold::Sum, 108, Some(100), 0));
        assert!(range(Fold::Min, &values).holds(Fold::Min, 1, Some(1), 0));
        assert!(!range(Fold::Min, &values).holds(Fold::Min, 3, Some(1), 0));
        assert!(range(Fold::Max, &values).holds(Fold::Max, 7, Some(7), 0));
        assert!(range(Fold::First, &values).holds(Fold::First, 7, Some(7), 0));
        assert!(!range(Fold::First, &values).holds(Fold::First, 5, Some(7), 0));
    }

    #[test]
    fn keys_are_told_apart() {
        let key = |columns: &[&str]| key_of(columns.iter().map(|column| column.as_bytes()));
        assert_ne!(key(&["a", "bc"]), key(&["ab", "c"]));
        assert_eq!(shown(&key(&["a", "bc"])), "a, bc");
    }
}
