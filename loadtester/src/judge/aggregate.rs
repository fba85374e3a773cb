//! Judges tables in which messages are added up: the truth follows from what was sent and acknowledged, and each key's difference
//! to it is told.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use postgres::Client;
use postgres::types::Type;
use serde::Serialize;

use crate::message::fold::{Aggregate, Fold, PLACES, Truth, key_of, shown};
use crate::message::model::quoted;
use crate::server::form::Form;
use crate::server::pg::as_the_role_finds;

/// What was found of one aggregate.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct OfAggregate {
    pub aggregate: String,
    pub table: String,
    /// Keys that messages have.
    pub keys: u64,
    /// Messages that the counts have too few, and too many.
    pub missing: u64,
    pub surplus: u64,
    /// Values that are not what follows from the messages, where the count does not explain it.
    pub wrong: u64,
    /// Keys that no message has and that were not there before.
    pub foreign: u64,
    pub examples: Vec<String>,
}

/// Of each aggregate.
const EXAMPLES: usize = 10;

/// The values of each key, in the order of the aggregate's; `None` for null.
pub type Rows = HashMap<Vec<u8>, Vec<Option<Found>>>;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Found {
    /// In units of 10 to the minus [`PLACES`].
    pub value: i128,
    /// A float that was summed in an order of its own is only so exact.
    pub slack: i128,
}

/// What all of them hold now.
pub fn read_all(client: &mut Client, aggregates: &[Arc<Aggregate>]) -> Result<Vec<Rows>> {
    aggregates.iter().map(|aggregate| read(client, aggregate)).collect()
}

/// Reads an aggregate's table.
pub fn read(client: &mut Client, aggregate: &Aggregate) -> Result<Rows> {
    let place = || format!("read the aggregate \"{}\"", aggregate.name);
    let types = types(client, aggregate).with_context(place)?;
    let type_of = |column: &str| {
        let found = types.columns.iter().find(|(name, _)| name == column);
        let table = &aggregate.table;
        found.map(|(_, kind)| kind.as_str()).with_context(|| format!("{table} has no column \"{column}\""))
    };
    let mut columns = Vec::new();
    for (column, _) in &aggregate.key {
        columns.push(Form::of_type(type_of(column)?).key_sql(column));
    }
    let keys: Vec<String> = (1..=columns.len()).map(|n| n.to_string()).collect();
    let mut floats = Vec::new();
    for held in &aggregate.values {
        let kind = type_of(&held.column)?;
        columns.push(value_sql(&held.column, held.fold, kind)?);
        floats.push(matches!(kind, "float4" | "float8"));
    }
    let statement = format!(
        "SELECT {} FROM {} WHERE {} GROUP BY {}",
        columns.join(", "),
        types.table,
        aggregate.filter.as_deref().unwrap_or("true"),
        keys.join(", ")
    );
    let rows = client.query(&statement, &[]).with_context(place)?;
    rows.iter().map(|row| read_row(row, aggregate, &floats).with_context(place)).collect()
}

fn read_row(
    row: &postgres::Row,
    aggregate: &Aggregate,
    floats: &[bool],
) -> Result<(Vec<u8>, Vec<Option<Found>>)> {
    let keys = aggregate.key.len();
    let key: Vec<String> = (0..keys).map(|at| row.get::<_, Option<String>>(at).unwrap_or_default()).collect();
    let value = |(at, float): (usize, &bool)| -> Result<Option<Found>> {
        let Some(text) = row.get::<_, Option<String>>(keys + at) else { return Ok(None) };
        let value = parse(&text).with_context(|| format!("\"{text}\" is no number"))?;
        let slack = if *float { value.abs() / 1_000_000_000 + 1 } else { 0 };
        Ok(Some(Found { value, slack }))
    };
    let values = floats.iter().enumerate().map(value).collect::<Result<_>>()?;
    Ok((key_of(key.iter().map(String::as_bytes)), values))
}

struct Types {
    table: String,
    columns: Vec<(String, String)>,
}

fn types(client: &mut Client, aggregate: &Aggregate) -> Result<Types> {
    let sql = "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid";
    let rows =
        as_the_role_finds(client, |client| client.query_typed(sql, &[(&aggregate.table, Type::TEXT)]))?;
    let oid: Option<u32> = rows.context("look for the table")?[0].get(0);
    let Some(oid) = oid else { bail!("the database has no table \"{}\"", aggregate.table) };
    let rows = client.query(
        "SELECT format('%I.%I', nspname, relname), attname::text, typname::text
         FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute ON attrelid = c.oid
         JOIN pg_type t ON t.oid = atttypid
         WHERE c.oid = $1 AND attnum > 0 AND NOT attisdropped",
        &[&oid],
    )?;
    let table = rows.first().context("the table has no columns")?.get(0);
    Ok(Types { table, columns: rows.iter().map(|row| (row.get(1), row.get(2))).collect() })
}

/// Rows of one key add up as their values do.
fn value_sql(column: &str, fold: Fold, kind: &str) -> Result<String> {
    let form = Form::of_type(kind);
    let outer = match fold {
        Fold::Count | Fold::Sum => "sum",
        Fold::Min | Fold::First => "min",
        Fold::Max => "max",
    };
    Ok(match form {
        Form::Time | Form::PlainTime | Form::Day => {
            format!("(extract(epoch FROM {outer}({}))*1000000)::int8::text", form.sql(column))
        }
        Form::Integer | Form::Float8 | Form::Float4 | Form::Numeric => {
            format!("{outer}({}::numeric)::text", quoted(column))
        }
        _ => bail!("the column \"{column}\" is of type {kind}, and holds no numbers and no times"),
    })
}

/// A numeric as PostgreSQL writes it.
fn parse(text: &str) -> Option<i128> {
    let (whole, behind) = text.split_once('.').unwrap_or((text, ""));
    let places = usize::from(PLACES);
    let behind = if behind.len() > places { &behind[..places] } else { behind };
    format!("{whole}{behind:0<places$}").parse().ok()
}

/// Holds what was found against the truth.
pub fn judge(aggregate: &Aggregate, truth: &Truth, before: &Rows, found: &Rows) -> OfAggregate {
    let mut judged = OfAggregate {
        aggregate: aggregate.name.clone(),
        table: aggregate.table.clone(),
        keys: truth.keys.len() as u64,
        ..OfAggregate::default()
    };
    let mut keys: Vec<&Vec<u8>> = truth.keys.keys().collect();
    // The same examples for the same run.
    keys.sort_unstable();
    for key in keys {
        judge_key(&mut judged, aggregate, truth, key, before.get(key), found.get(key));
    }
    judged.foreign =
        found.keys().filter(|key| !truth.keys.contains_key(*key) && !before.contains_key(*key)).count()
            as u64;
    judged
}

fn judge_key(
    judged: &mut OfAggregate,
    aggregate: &Aggregate,
    truth: &Truth,
    key: &[u8],
    before: Option<&Vec<Option<Found>>>,
    found: Option<&Vec<Option<Found>>>,
) {
    let ranges = &truth.keys[key];
    let mut example = |text: String| {
        if judged.examples.len() < EXAMPLES {
            judged.examples.push(format!("{} ({}): {text}", aggregate.name, shown(key)));
        }
    };
    let Some(found) = found else {
        if ranges[0].least > 0 {
            example(format!("there is no row, and {} messages were acknowledged", ranges[0].least));
            judged.missing += ranges[0].least as u64;
        }
        return;
    };
    let mut explained = false;
    for pass in [true, false] {
        for ((held, range), (at, value)) in
            aggregate.values.iter().zip(&ranges[1..]).zip(found.iter().enumerate())
        {
            if (held.fold == Fold::Count) != pass {
                continue;
            }
            let earlier = before.and_then(|before| before[at]).map(|found| found.value);
            let unit = if held.fold == Fold::Count { 10i128.pow(u32::from(PLACES)) } else { 1 };
            let (n, slack) = value.map_or((0, 0), |found| (found.value / unit, found.slack / unit));
            if range.holds(held.fold, n, earlier.map(|n| n / unit), slack) {
                continue;
            }
            let earlier = earlier.unwrap_or(0) / unit;
            if held.fold == Fold::Count {
                explained = true;
                let (least, most) = (range.least + earlier, range.most + earlier);
                judged.missing += (least - n).max(0) as u64;
                judged.surplus += (n - most).max(0) as u64;
                example(format!("\"{}\" is {n} instead of {}", held.column, span(least, most)));
            } else if !explained {
                judged.wrong += 1;
                example(format!("\"{}\" is {} and does not follow from the messages", held.column, text(n)));
            }
        }
    }
}

fn span(least: i128, most: i128) -> String {
    if least == most { least.to_string() } else { format!("{least} to {most}") }
}

fn text(n: i128) -> String {
    let unit = 10i128.pow(u32::from(PLACES));
    let digits = format!("{}{}.{:09}", if n < 0 { "-" } else { "" }, n.abs() / unit, n.abs() % unit);
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::account::Outcome;
    use crate::message::draw::{Draft, Identity, People};
    use crate::message::keys::{KeySpread, Keys};
    use crate::message::model::Scenario;

    const SCENARIO: &str = "[draw]\nmetric = {choice = ['a', 'b'], index = 'seq'}\nn = {counter = 1}\n\
        [[model]]\nname = 'm'\nmessage = '{\"metric\":${metric},\"n\":${n}}'\n\
        [[aggregate]]\nname = 'sums'\nkey = {metric = 'metric'}\n\
        values = {total = {sum = 'n'}, times = {count = true}, low = {min = 'n'}, high = {max = 'n'}}";

    /// Ten messages, 1 to 10, odd ones with metric a.
    fn truth(scenario: &Scenario) -> Truth {
        let names = std::sync::Arc::new(Vec::new());
        let people = People { keys: Keys::new(1, KeySpread::Uniform), tokens: names.clone(), ids: names };
        let mut draft = Draft::new(1, 1, std::sync::Arc::new(people));
        let model = &scenario.models[0];
        let mut truth = Truth::default();
        for seq in 0..10 {
            draft.fill(&model.program, Identity { stream: 0, seq, due_us: seq as i64 });
            truth.add(&scenario.aggregates[0].values, &model.folds[0], &draft, seq as i64, Outcome::Acked);
        }
        truth
    }

    /// Values in the order of their columns: high, low, times, total.
    fn rows(rows: &[(&str, [i128; 4])]) -> Rows {
        let found = |n: i128| Some(Found { value: n * 1_000_000_000, slack: 0 });
        rows.iter()
            .map(|(key, values)| (key_of([key.as_bytes()].into_iter()), values.map(found).to_vec()))
            .collect()
    }

    #[test]
    fn differences_are_told_by_key() {
        let scenario = Scenario::parse(SCENARIO).unwrap();
        let truth = truth(&scenario);
        let check = |before: &[(&str, [i128; 4])], found: &[(&str, [i128; 4])], expected: [u64; 4]| {
            let judged = judge(&scenario.aggregates[0], &truth, &rows(before), &rows(found));
            let counts = [judged.missing, judged.surplus, judged.wrong, judged.foreign];
            assert_eq!(counts, expected, "{found:?}: {:?}", judged.examples);
        };
        let right = [("a", [9, 1, 5, 25]), ("b", [10, 2, 5, 30])];
        check(&[], &right, [0, 0, 0, 0]);
        check(&[], &[right[0], ("b", [10, 2, 4, 24])], [1, 0, 0, 0]);
        check(&[], &[right[0], ("b", [10, 2, 7, 40])], [0, 2, 0, 0]);
        check(&[], &[right[0], ("b", [10, 3, 5, 31])], [0, 0, 2, 0]);
        check(&[], &right[..1], [5, 0, 0, 0]);
        check(&[], &[right[0], right[1], ("c", [1, 1, 1, 1])], [0, 0, 0, 1]);
        check(
            &[("a", [20, 1, 3, 100]), ("c", [1; 4])],
            &[("a", [20, 1, 8, 125]), right[1], ("c", [1; 4])],
            [0, 0, 0, 0],
        );
    }

    #[test]
    fn numbers_are_read() {
        let rows = [("12", 12_000_000_000), ("-0.5", -500_000_000), ("1.0000000001", 1_000_000_000)];
        for (text, n) in rows {
            assert_eq!(parse(text), Some(n), "{text}");
        }
        assert_eq!(parse("NaN"), None);
        assert_eq!(
            (text(12_500_000_000), text(-1), text(0)),
            ("12.5".into(), "-0.000000001".into(), "0".into())
        );
    }
}
