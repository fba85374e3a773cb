//! The settings `mode`, `key`, `newest`, `oldest`, `delete_when`, `fold` and `floor` of a model: which of them stand together, and
//! which types they take. Half a sentence each with its remedy, for [`super::compile`].

use super::duration::{self, DAY, MILLISECOND};
use super::mode::{Fold, Join, Mode};
use super::types::{Column, Table, Type, quoted};
use super::{Kafka, RawModel, RawSource, Tombstones};
use crate::base::spelling::did_you_mean;

/// The places of the key's columns in the table; none where rows are appended.
pub(super) fn key(raw: &RawModel, table: &Table) -> Result<Vec<usize>, String> {
    if raw.mode == Mode::Append {
        return Ok(Vec::new());
    }
    let mode = raw.mode.name();
    let names = raw.key.as_ref().unwrap_or(&table.primary_key);
    if names.is_empty() {
        return Err(format!(
            "mode = {mode:?} needs a key, and the table has no primary key: give it one, or say key = [...] with the columns of a \
             unique index"
        ));
    }
    let mut places: Vec<usize> = Vec::new();
    for name in names {
        let known = table.columns.iter().map(|column| column.name.as_str());
        let Some(place) = table.columns.iter().position(|column| column.name == *name) else {
            return Err(format!("key: the table has no column {name:?}{}", did_you_mean(name, known)));
        };
        if places.contains(&place) {
            return Err(format!("key: column {name:?} is there twice"));
        }
        key_column(&table.columns[place])?;
        places.push(place);
    }
    Ok(places)
}

/// Rows are put together by the bytes of their keys, so SQL must call equal only what has the same bytes.
fn key_column(column: &Column) -> Result<(), String> {
    let name = &column.name;
    let why = match &column.ty {
        Type::Bool | Type::Int2 | Type::Int4 | Type::Int8 | Type::Text | Type::Varchar(_) => None,
        Type::Timestamptz | Type::Timestamp | Type::Date | Type::Time => None,
        Type::Uuid | Type::Bytea | Type::Enum { .. } => None,
        Type::Numeric(_) => Some("1.0 and 1.00 are one number with two forms; use bigint or text"),
        Type::Float4 | Type::Float8 => Some("0 and -0 are one number with two forms; use bigint or text"),
        Type::Char(_) => Some("spaces at the end do not count in it; use text"),
        Type::Inet => Some("an address may be written with and without its length; use text"),
        Type::Json | Type::Jsonb | Type::Array { .. } | Type::Unsupported(_) => {
            Some("only columns of a single plain value can be")
        }
    };
    if let Some(why) = why {
        return Err(format!("key: column {name:?} of type {} cannot be in a key: {why}", column.ty));
    }
    if !column.not_null {
        return Err(format!(
            "key: column {name:?} may be NULL, and no NULL is equal to another: they would pile up; ALTER COLUMN {} SET NOT NULL",
            quoted(name)
        ));
    }
    Ok(())
}

/// The name of the column that says when a row was true.
pub(super) fn time_of(raw: &RawModel) -> Option<&String> {
    raw.newest.as_ref().or(raw.oldest.as_ref())
}

/// What is wrong with the settings of a model by themselves.
pub(super) fn model_problems(raw: &RawModel, table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    let mode = raw.mode.name();
    let deletes = raw.tombstones == Tombstones::Delete || !raw.delete_when.is_empty();
    if raw.mode == Mode::Append && (raw.key.is_some() || time_of(raw).is_some()) {
        problems.push(
            "key, newest and oldest go with mode = \"upsert\", \"first\" or \"add\"; say one, or remove them"
                .to_owned(),
        );
        return problems;
    }
    if raw.newest.is_some() && raw.mode == Mode::First {
        problems.push("newest does not go with mode = \"first\", where the oldest stays; say oldest".into());
    }
    if raw.oldest.is_some() && raw.mode != Mode::First {
        problems.push(format!("oldest goes with mode = \"first\" only; with {mode:?} say newest"));
    }
    if deletes && raw.mode != Mode::Upsert {
        problems.push(format!(
            "tombstones = \"delete\" and delete_when go with mode = \"upsert\" only: with {mode:?} it is not known what a row was \
             without the others"
        ));
    }
    if deletes && raw.newest.is_some() {
        problems.push(
            "newest does not go with deletions: a row that is gone has no time to compare an older record with; let the order of \
             offsets decide"
                .into(),
        );
    }
    if let Some(name) = time_of(raw) {
        problems.extend(time_problem(raw, table, name));
    }
    problems
}

fn time_problem(raw: &RawModel, table: &Table, name: &str) -> Option<String> {
    let setting = if raw.newest.is_some() { "newest" } else { "oldest" };
    let Some(column) = table.columns.iter().find(|column| column.name == *name) else {
        let names = table.columns.iter().map(|column| column.name.as_str());
        return Some(format!("{setting}: the table has no column {name:?}{}", did_you_mean(name, names)));
    };
    let written = raw.columns.get(name);
    if written.is_some_and(|written| written.clock.is_some() || written.floor.is_some()) {
        return Some(format!(
            "{setting}: column {name:?} must say when the thing happened, to the moment: a clock says when it was written, and \
             floor makes many moments one"
        ));
    }
    let is_ordered = matches!(
        column.ty,
        Type::Int2 | Type::Int4 | Type::Int8 | Type::Timestamptz | Type::Timestamp | Type::Date
    );
    if !is_ordered {
        return Some(format!(
            "{setting}: column {name:?} is of type {}, and must be a time, a date or an integer",
            column.ty
        ));
    }
    if !column.not_null {
        return Some(format!(
            "{setting}: column {name:?} may be NULL, which is neither newer nor older; ALTER COLUMN {} SET NOT NULL",
            quoted(name)
        ));
    }
    None
}

/// What becomes of a column that a model fills; the error is half a sentence with its remedy.
pub(super) fn join(raw: &RawModel, column: &Column, is_key: bool) -> Result<Join, String> {
    let written = raw.columns.get(&column.name);
    let fold = written.and_then(|written| written.fold);
    let is_clock = written.is_some_and(|written| written.clock.is_some());
    if is_key {
        return match (fold, is_clock) {
            (Some(_), _) => Err("is in the key, which is the same in all rows: remove fold".into()),
            (_, true) => Err("is in the key, and a clock would give each row a key of its own".into()),
            (None, false) => Ok(Join::Key),
        };
    }
    if raw.mode != Mode::Add {
        return match fold {
            Some(_) => Err("fold goes with mode = \"add\"".into()),
            None => Ok(Join::Whole),
        };
    }
    if time_of(raw) == Some(&column.name) {
        return match fold {
            None | Some(Fold::Max) => Ok(Join::Greatest),
            Some(_) => Err("is what newest compares, so its greatest stays: remove fold".into()),
        };
    }
    if is_clock {
        return match fold {
            None => Ok(Join::Whole),
            Some(_) => Err("a clock has the moment of the last write: remove fold".into()),
        };
    }
    let Some(fold) = fold else {
        return Err(
            "must say how many rows become one: fold = \"count\", \"sum\", \"min\", \"max\" or \"last\"; or leave the column to the \
             server with { default = true }"
                .into(),
        );
    };
    fold_type(fold, &column.ty)?;
    match fold {
        Fold::Count | Fold::Sum => Ok(Join::Sum),
        Fold::Min => Ok(Join::Least),
        Fold::Max => Ok(Join::Greatest),
        Fold::Last if raw.newest.is_none() => Err(
            "fold = \"last\" needs a time: say newest = \"...\" in the model, with the column that has it"
                .into(),
        ),
        Fold::Last => Ok(Join::Newest),
    }
}

fn fold_type(fold: Fold, ty: &Type) -> Result<(), String> {
    let is_integer = matches!(ty, Type::Int2 | Type::Int4 | Type::Int8);
    let is_float = matches!(ty, Type::Float4 | Type::Float8);
    let is_time = matches!(ty, Type::Timestamptz | Type::Timestamp | Type::Date | Type::Time);
    let takers = match fold {
        Fold::Count | Fold::Sum if is_integer => return Ok(()),
        Fold::Min | Fold::Max if is_integer || is_float || is_time => return Ok(()),
        Fold::Last => return Ok(()),
        Fold::Count => "a count is for integer columns",
        Fold::Sum if is_float => {
            "a sum of floating-point numbers depends on the order in which they come, so it would not be the same after a crash; \
             sum an integer of the smallest unit"
        }
        Fold::Sum => "a sum is for smallint, integer and bigint columns; sum an integer of the smallest unit",
        Fold::Min | Fold::Max => {
            "min and max are for columns of integers, floating-point numbers, dates and times"
        }
    };
    Err(format!("is of type {ty}, but {takers}"))
}

/// The columns of a key that a tombstone can fill: it has nothing but a key.
pub(super) fn fits_tombstone(written: Option<&RawSource>) -> bool {
    let part = written.and_then(|written| written.kafka);
    matches!(part, Some(Kafka::Key | Kafka::Partition | Kafka::Topic))
}

/// The length of a bucket in microseconds, which a time is floored to: `"1m"`.
pub(super) fn bucket(text: &str, ty: &Type) -> Result<i64, String> {
    if !matches!(ty, Type::Timestamptz | Type::Timestamp) {
        return Err(format!("is of type {ty}, but floor is for timestamptz and timestamp columns"));
    }
    let Some(micros) = duration::parse(text, MILLISECOND) else {
        return Err(format!(
            "floor = {text:?} is no duration: write it like \"1m\", \"15m\", \"1h\" or \"1d\""
        ));
    };
    if micros <= 0 || DAY % micros != 0 {
        return Err(format!(
            "floor = {text:?} does not divide a day, so its buckets would begin at another time each day; a day, and what divides \
             it, is possible, counted in UTC"
        ));
    }
    Ok(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_divide_a_day() {
        #[track_caller]
        fn check(text: &str, expected: Result<i64, &str>) {
            match (bucket(text, &Type::Timestamptz), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(found), Err(expected)) => assert!(found.contains(expected), "{text}: {found}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        check("", Err("no duration"));
        check("1", Err("no duration"));
        check("m", Err("no duration"));
        check("1.5h", Err("no duration"));
        check("99999999999999999h", Err("no duration"));
        check("0s", Err("does not divide"));
        check("-1h", Err("does not divide"));
        check("7m", Err("does not divide"));
        check("2d", Err("does not divide"));
        check("500ms", Ok(500_000));
        check("1s", Ok(1_000_000));
        check("15m", Ok(900_000_000));
        check("1h", Ok(3_600_000_000));
        check("1d", Ok(86_400_000_000));
        assert!(bucket("1m", &Type::Date).is_err_and(|words| words.contains("floor is for")));
    }
}
