//! How a table takes its rows: each by itself, or all rows of a key as one, and the words for it. What a writer needs to know;
//! which settings lead to it is the matter of `keys`.

use serde::Deserialize;

use super::types::quoted;

/// What becomes of a row whose key is there already.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// There are no keys: every row is one more.
    #[default]
    Append,
    /// The last one replaces it.
    Upsert,
    /// The first one stays.
    First,
    /// They are added up, each column in its way.
    Add,
}

/// How one column of many rows becomes one value.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Fold {
    /// How many there are.
    Count,
    Sum,
    Min,
    Max,
    /// The value of the newest.
    Last,
}

/// How rows of one key become one row of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keyed {
    /// Never [`Mode::Append`].
    pub mode: Mode,
    /// So many of the table's columns, behind its clocks, are the key.
    pub keys: usize,
    /// Which column says when a row was true, in place of the order of offsets.
    pub time: Option<usize>,
    /// One for each of the table's columns.
    pub joins: Vec<Join>,
    /// True where a record may delete the row of its key.
    pub deletes: bool,
}

/// What becomes of one column where rows of one key meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    Key,
    /// As the row that stays has it.
    Whole,
    Sum,
    Least,
    Greatest,
    /// As the newest row has it.
    Newest,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Append => "append",
            Mode::Upsert => "upsert",
            Mode::First => "first",
            Mode::Add => "add",
        }
    }
}

impl Keyed {
    /// The same words for the same way of writing: stored progress says what was written by them.
    pub(super) fn routing_text(&self, columns: &[impl AsRef<str>]) -> String {
        let name = |index: usize| quoted(columns[index].as_ref());
        let with = |join: Join| {
            let joined = self.joins.iter().enumerate().filter(move |(_, j)| **j == join);
            joined.map(|(index, _)| name(index)).collect::<Vec<_>>().join(", ")
        };
        let mut words = format!("{} by ({})", self.mode.name(), with(Join::Key));
        for (join, what) in [
            (Join::Sum, "sum"),
            (Join::Least, "least"),
            (Join::Greatest, "greatest"),
            (Join::Newest, "newest"),
        ] {
            if self.joins.contains(&join) {
                words += &format!(" {what} ({})", with(join));
            }
        }
        words += &self.time.map(|time| format!(" in the order of {}", name(time))).unwrap_or_default();
        words + if self.deletes { " with deletes" } else { "" }
    }

    /// For `rowmill check`: one sentence about the table.
    pub(super) fn explain(&self, columns: &[impl AsRef<str>]) -> String {
        let key: Vec<String> = (0..columns.len())
            .filter(|index| self.joins[*index] == Join::Key)
            .map(|index| quoted(columns[index].as_ref()))
            .collect();
        let time = self.time.map(|time| quoted(columns[time].as_ref()));
        let what = match (self.mode, time) {
            (Mode::Append, _) => unreachable!("what is appended has no key"),
            (Mode::Upsert, None) => "the last one by its offset replaces the others".to_owned(),
            (Mode::Upsert, Some(time)) => format!("the one with the greatest {time} replaces the others"),
            (Mode::First, None) => "the first one that comes stays".to_owned(),
            (Mode::First, Some(time)) => format!("the one with the least {time} stays"),
            (Mode::Add, None) => "they are added up".to_owned(),
            (Mode::Add, Some(time)) => format!("they are added up, the newest by {time}"),
        };
        let deletes = if self.deletes { "; a deletion takes its row away" } else { "" };
        format!("mode {}: of rows with the same ({}), {what}{deletes}", self.mode.name(), key.join(", "))
    }
}

impl Join {
    /// For `rowmill check`, behind the column's source; empty where the mode alone says it.
    pub(super) fn words(self) -> &'static str {
        match self {
            Join::Key => "; the key",
            Join::Whole => "",
            Join::Sum => "; added up",
            Join::Least => "; the least stays",
            Join::Greatest => "; the greatest stays",
            Join::Newest => "; the newest stays",
        }
    }
}
