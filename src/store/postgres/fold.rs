//! Many rows of one key made one, before they are sent: by the bytes of the key, which stand together in a tuple, and in the
//! order of the bytes, so that two writers of one table lock its rows in the same order. Pure: it knows the form of a tuple and
//! of the types that are added up and compared, and asks no server.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::base::mutant::{Bug, planted};
use crate::client::binary;
use crate::model::mode::{Join, Keyed, Mode};
use crate::model::plan::TablePlan;
use crate::model::types::Type;
use crate::store::postgres::copy;

/// Tuples for the stage, one for each key, without the frame of a COPY.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Folded {
    pub bytes: Vec<u8>,
    /// How many tuples.
    pub groups: usize,
    /// How many of them are deletions.
    pub deletions: usize,
}

/// The sum of a column is more than its type holds.
#[derive(Debug, PartialEq, Eq)]
pub struct TooMuch {
    /// Index into the table's columns.
    pub column: usize,
}

/// Bytes of a tuple's count of fields, and of a field's length.
const COUNT: usize = 2;
const LENGTH: usize = 4;
/// A clock's field.
const CLOCK: usize = LENGTH + 8;

/// Folds rows of a table that has keys, in their order: each a tuple as the decoder wrote it, and whether it deletes. Clocks are
/// stamped with `now`, in microseconds since 2000.
///
/// # Errors
/// Where a sum leaves the type of its column.
pub fn fold<'a>(
    table: &TablePlan,
    keyed: &Keyed,
    rows: impl Iterator<Item = (&'a [u8], bool)>,
    now: i64,
) -> Result<Folded, TooMuch> {
    let form = Form { table, keyed, now };
    match keyed.mode {
        Mode::Add => form.added(rows),
        Mode::Append | Mode::Upsert | Mode::First => Ok(form.chosen(rows)),
    }
}

/// Of which form tuples are.
struct Form<'p> {
    table: &'p TablePlan,
    keyed: &'p Keyed,
    now: i64,
}

/// By the key's bytes: where its group is.
type Groups<'a> = HashMap<&'a [u8], usize, foldhash::quality::RandomState>;

impl Form<'_> {
    /// One row of each key stays as it is.
    fn chosen<'a>(&self, rows: impl Iterator<Item = (&'a [u8], bool)>) -> Folded {
        let mut groups = Groups::default();
        let mut stays: Vec<(&[u8], &[u8], bool)> = Vec::new();
        for (tuple, deletes) in rows {
            let key = self.key(tuple);
            match groups.get(key) {
                None => {
                    groups.insert(key, stays.len());
                    stays.push((key, tuple, deletes));
                }
                Some(group) => {
                    let (_, before, deleted) = &mut stays[*group];
                    if self.replaces(tuple, before) {
                        (*before, *deleted) = (tuple, deletes);
                    }
                }
            }
        }
        stays.sort_unstable_by_key(|(key, ..)| *key);
        let mut folded = Folded { groups: stays.len(), ..Folded::default() };
        folded.bytes.reserve(stays.iter().map(|(_, tuple, _)| tuple.len() + LENGTH + 1).sum());
        for (_, tuple, deletes) in stays {
            let start = folded.bytes.len();
            folded.bytes.extend_from_slice(tuple);
            copy::patch_clocks(&mut folded.bytes[start..], self.table.clock_columns, self.now);
            self.note_deletion(deletes, start, &mut folded);
        }
        folded
    }

    /// True where a row takes the place of one that came before it.
    fn replaces(&self, new: &[u8], old: &[u8]) -> bool {
        let is_first = self.keyed.mode == Mode::First;
        let Some(time) = self.keyed.time.filter(|_| !planted(Bug::LastByArrival)) else {
            return !is_first;
        };
        let at = |tuple| self.fields(tuple).nth(time - self.value_start()).flatten().map_or(0, integer);
        if is_first { at(new) < at(old) } else { at(new) >= at(old) }
    }

    /// A table whose rows can be deleted has a column more on its stage.
    fn note_deletion(&self, deletes: bool, start: usize, folded: &mut Folded) {
        if self.keyed.deletes {
            let count = self.table.columns.len() as i16 + 1;
            folded.bytes[start..start + COUNT].copy_from_slice(&count.to_be_bytes());
            binary::field(&[u8::from(deletes)], &mut folded.bytes);
            folded.deletions += usize::from(deletes);
        }
    }

    /// All rows of each key, column by column.
    fn added<'a>(&self, rows: impl Iterator<Item = (&'a [u8], bool)>) -> Result<Folded, TooMuch> {
        let joins = &self.keyed.joins[self.value_start()..];
        let columns = &self.table.columns[self.value_start()..];
        let time = self.keyed.time.map(|time| time - self.value_start());
        let mut groups = Groups::default();
        let mut keys: Vec<(&[u8], usize)> = Vec::new();
        let mut values: Vec<Part<'a>> = Vec::new();
        let mut fields: Vec<Option<&[u8]>> = Vec::new();
        for (tuple, _) in rows {
            fields.clear();
            fields.extend(self.fields(tuple));
            let key = self.key(tuple);
            let group = *groups.entry(key).or_insert_with(|| {
                keys.push((key, keys.len()));
                values.extend(joins.iter().map(|_| Part::Null));
                keys.len() - 1
            });
            let parts = &mut values[group * joins.len()..][..joins.len()];
            let is_newest = time.is_some_and(|time| match &parts[time] {
                Part::Field(before) if !planted(Bug::LastByArrival) => {
                    fields[time].map_or(0, integer) >= integer(before)
                }
                _ => true,
            });
            for (place, field) in fields.iter().enumerate() {
                parts[place].join(joins[place], &columns[place].ty, *field, is_newest);
            }
        }
        keys.sort_unstable_by_key(|(key, _)| *key);
        let mut folded = Folded { groups: keys.len(), ..Folded::default() };
        for (key, group) in keys {
            folded.bytes.extend_from_slice(&(self.table.columns.len() as i16).to_be_bytes());
            for _ in 0..self.table.clock_columns {
                binary::field(&self.now.to_be_bytes(), &mut folded.bytes);
            }
            folded.bytes.extend_from_slice(key);
            for (place, part) in values[group * joins.len()..][..joins.len()].iter().enumerate() {
                let too_much = || TooMuch { column: self.value_start() + place };
                part.write(&columns[place].ty, &mut folded.bytes).ok_or_else(too_much)?;
            }
        }
        Ok(folded)
    }

    /// How many columns stand before those that are no key.
    fn value_start(&self) -> usize {
        self.table.clock_columns + self.keyed.keys
    }

    /// The fields of the key, with their lengths.
    fn key<'a>(&self, tuple: &'a [u8]) -> &'a [u8] {
        let start = COUNT + self.table.clock_columns * CLOCK;
        let end = (0..self.keyed.keys).fold(start, |at, _| end_of_field(tuple, at));
        &tuple[start..end]
    }

    /// The fields behind the key; `None` is NULL.
    fn fields<'a>(&self, tuple: &'a [u8]) -> impl Iterator<Item = Option<&'a [u8]>> {
        let mut at = COUNT + self.table.clock_columns * CLOCK + self.key(tuple).len();
        std::iter::from_fn(move || {
            if at == tuple.len() {
                return None;
            }
            let (start, end) = (at + LENGTH, end_of_field(tuple, at));
            let is_null = tuple[at] & 0x80 != 0;
            at = end;
            Some((!is_null).then(|| &tuple[start..end]))
        })
    }
}

/// Where the field that begins there ends.
fn end_of_field(tuple: &[u8], at: usize) -> usize {
    let length = i32::from_be_bytes(tuple[at..at + LENGTH].try_into().expect("four bytes"));
    at + LENGTH + usize::try_from(length).unwrap_or(0)
}

/// One column of a group so far.
#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    /// Nothing but NULLs came.
    Null,
    Sum(i128),
    Field(&'a [u8]),
}

impl<'a> Part<'a> {
    /// Takes one more value; NULLs count for nothing, as in SQL, but where the newest row has one.
    fn join(&mut self, join: Join, ty: &Type, field: Option<&'a [u8]>, is_newest: bool) {
        let Some(field) = field else {
            if join == Join::Newest && is_newest {
                *self = Part::Null;
            }
            return;
        };
        let stays = match (join, &*self) {
            (Join::Sum, Part::Sum(before)) => return *self = Part::Sum(before + i128::from(integer(field))),
            (Join::Sum, _) => return *self = Part::Sum(integer(field).into()),
            (Join::Newest, _) => !is_newest,
            (Join::Least, Part::Field(before)) => compare(ty, field, before) != Ordering::Less,
            (Join::Greatest, Part::Field(before)) => compare(ty, field, before) != Ordering::Greater,
            _ => false,
        };
        if !stays {
            *self = Part::Field(field);
        }
    }

    /// Appends the field; `None` where its type does not hold it.
    fn write(self, ty: &Type, out: &mut Vec<u8>) -> Option<()> {
        match (self, ty) {
            (Part::Null, _) => binary::null(out),
            (Part::Field(field), _) => binary::field(field, out),
            (Part::Sum(sum), Type::Int2) => binary::field(&i16::try_from(sum).ok()?.to_be_bytes(), out),
            (Part::Sum(sum), Type::Int4) => binary::field(&i32::try_from(sum).ok()?.to_be_bytes(), out),
            (Part::Sum(sum), _) => binary::field(&i64::try_from(sum).ok()?.to_be_bytes(), out),
        }
        Some(())
    }
}

/// An integer, a time or a date: all are integers of two, four or eight bytes.
fn integer(field: &[u8]) -> i64 {
    match field.len() {
        2 => i16::from_be_bytes(field.try_into().expect("two bytes")).into(),
        4 => i32::from_be_bytes(field.try_into().expect("four bytes")).into(),
        8 => i64::from_be_bytes(field.try_into().expect("eight bytes")),
        length => unreachable!("no integer, time or date has {length} bytes"),
    }
}

/// As the server orders them: NaN is the greatest number, and 0 is -0.
fn compare(ty: &Type, one: &[u8], other: &[u8]) -> Ordering {
    let float = |field: &[u8]| match ty {
        Type::Float4 => f32::from_be_bytes(field.try_into().expect("four bytes")).into(),
        _ => f64::from_be_bytes(field.try_into().expect("eight bytes")),
    };
    match ty {
        Type::Float4 | Type::Float8 => {
            let (one, other) = (float(one), float(other));
            one.partial_cmp(&other).unwrap_or_else(|| one.is_nan().cmp(&other.is_nan()))
        }
        _ => integer(one).cmp(&integer(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::PlanColumn;

    /// A field's bytes, or NULL.
    type Field = Option<Vec<u8>>;

    fn n(number: i64) -> Field {
        Some(number.to_be_bytes().to_vec())
    }

    fn f(number: f64) -> Field {
        Some(number.to_be_bytes().to_vec())
    }

    fn t(text: &str) -> Field {
        Some(text.as_bytes().to_vec())
    }

    fn tuple(fields: &[Field]) -> Vec<u8> {
        let mut out = (fields.len() as i16).to_be_bytes().to_vec();
        fields.iter().for_each(|field| binary::optional(field.as_deref(), &mut out));
        out
    }

    /// A table of a key and these columns behind it, `clocks` before it.
    fn table(mode: Mode, clocks: usize, columns: &[(Type, Join)], time: Option<usize>) -> (TablePlan, Keyed) {
        let column =
            |ty: &Type| PlanColumn { name: "c".into(), ty: ty.clone(), not_null: false, optional: None };
        let all: Vec<(Type, Join)> = std::iter::repeat_n((Type::Timestamptz, Join::Whole), clocks)
            .chain([(Type::Text, Join::Key)])
            .chain(columns.iter().cloned())
            .collect();
        let keyed = Keyed {
            mode,
            keys: 1,
            time: time.map(|time| time + clocks),
            joins: all.iter().map(|(_, join)| *join).collect(),
            deletes: false,
        };
        let plan = TablePlan {
            oid: 1,
            name: "public.t".into(),
            sql_name: "\"public\".\"t\"".into(),
            fingerprint: String::new(),
            columns: all.iter().map(|(ty, _)| column(ty)).collect(),
            clock_columns: clocks,
            retention: None,
            keyed: Some(keyed.clone()),
        };
        (plan, keyed)
    }

    fn folded((plan, keyed): &(TablePlan, Keyed), rows: &[Vec<Field>]) -> Result<(usize, Vec<u8>), TooMuch> {
        let tuples: Vec<Vec<u8>> = rows.iter().map(|row| tuple(row)).collect();
        let found = fold(plan, keyed, tuples.iter().map(|tuple| (tuple.as_slice(), false)), 77)?;
        Ok((found.groups, found.bytes))
    }

    fn all(rows: &[Vec<Field>]) -> (usize, Vec<u8>) {
        (rows.len(), rows.iter().flat_map(|row| tuple(row)).collect())
    }

    #[test]
    fn the_last_or_the_first_row_of_a_key_stays() {
        let columns = [(Type::Int8, Join::Whole)];
        let rows = |pairs: &[(&str, i64)]| -> Vec<Vec<Field>> {
            pairs.iter().map(|(key, number)| vec![t(key), n(*number)]).collect()
        };
        #[track_caller]
        fn check(table: &(TablePlan, Keyed), given: Vec<Vec<Field>>, expected: Vec<Vec<Field>>) {
            assert_eq!(folded(table, &given), Ok(all(&expected)));
        }
        let last = table(Mode::Upsert, 0, &columns, None);
        let first = table(Mode::First, 0, &columns, None);
        let newest = table(Mode::Upsert, 0, &columns, Some(1));
        let oldest = table(Mode::First, 0, &columns, Some(1));
        let given = || rows(&[("b", 2), ("a", 5), ("b", 9), ("a", 1), ("b", 3)]);
        check(&last, Vec::new(), Vec::new());
        check(&last, given(), rows(&[("a", 1), ("b", 3)]));
        check(&first, given(), rows(&[("a", 5), ("b", 2)]));
        check(&newest, given(), rows(&[("a", 5), ("b", 9)]));
        check(&oldest, given(), rows(&[("a", 1), ("b", 2)]));
        // A key that begins like another is another.
        check(&last, rows(&[("ab", 1), ("a", 2), ("", 3)]), rows(&[("", 3), ("a", 2), ("ab", 1)]));
    }

    #[test]
    fn of_equal_times_the_later_offset_is_newer_and_the_earlier_older() {
        let columns = [(Type::Int8, Join::Whole), (Type::Text, Join::Whole)];
        let given = vec![vec![t("k"), n(1), t("x")], vec![t("k"), n(1), t("y")]];
        let newest = table(Mode::Upsert, 0, &columns, Some(1));
        let oldest = table(Mode::First, 0, &columns, Some(1));
        assert_eq!(folded(&newest, &given), Ok(all(&given[1..])));
        assert_eq!(folded(&oldest, &given), Ok(all(&given[..1])));
    }

    #[test]
    fn columns_are_added_up_each_in_its_way() {
        let number = |join| (Type::Int8, join);
        let columns = [number(Join::Sum), number(Join::Least), number(Join::Greatest)];
        let table = table(Mode::Add, 0, &columns, None);
        let row = |key: &str, number: Field| vec![t(key), number.clone(), number.clone(), number];
        #[track_caller]
        fn check(table: &(TablePlan, Keyed), given: &[Vec<Field>], expected: &[Vec<Field>]) {
            assert_eq!(folded(table, given), Ok(all(expected)));
        }
        check(&table, &[], &[]);
        check(&table, &[row("k", n(3))], &[row("k", n(3))]);
        check(
            &table,
            &[row("b", n(3)), row("a", n(-1)), row("b", n(-7)), row("b", n(1))],
            &[row("a", n(-1)), vec![t("b"), n(-3), n(-7), n(3)]],
        );
        // NULL is no number.
        check(&table, &[row("k", None), row("k", None)], &[row("k", None)]);
        check(&table, &[row("k", None), row("k", n(2)), row("k", None)], &[row("k", n(2))]);
    }

    #[test]
    fn numbers_and_times_are_compared_as_the_server_compares_them() {
        #[track_caller]
        fn check(ty: Type, fields: &[Field], least: &Field, greatest: &Field) {
            let table = table(Mode::Add, 0, &[(ty.clone(), Join::Least), (ty, Join::Greatest)], None);
            let rows: Vec<Vec<Field>> =
                fields.iter().map(|field| vec![t("k"), field.clone(), field.clone()]).collect();
            assert_eq!(folded(&table, &rows), Ok(all(&[vec![t("k"), least.clone(), greatest.clone()]])));
        }
        let (nan, inf) = (f(f64::NAN), f(f64::INFINITY));
        check(Type::Float8, &[f(1.0), nan.clone(), inf.clone()], &f(1.0), &nan);
        check(Type::Float8, &[nan.clone(), f(-1e300)], &f(-1e300), &nan);
        check(Type::Float8, std::slice::from_ref(&nan), &nan, &nan);
        // Neither is less: the first one stays.
        check(Type::Float8, &[f(0.0), f(-0.0)], &f(0.0), &f(0.0));
        let float4 = |number: f32| Some(number.to_be_bytes().to_vec());
        check(Type::Float4, &[float4(2.5), float4(-2.5)], &float4(-2.5), &float4(2.5));
        let int2 = |number: i16| Some(number.to_be_bytes().to_vec());
        check(Type::Int2, &[int2(-1), int2(1)], &int2(-1), &int2(1));
        let date = |day: i32| Some(day.to_be_bytes().to_vec());
        check(Type::Date, &[date(5), date(-5)], &date(-5), &date(5));
        check(Type::Timestamptz, &[n(i64::MAX), n(i64::MIN)], &n(i64::MIN), &n(i64::MAX));
    }

    #[test]
    fn the_newest_row_says_what_was_last() {
        let columns = [(Type::Text, Join::Newest), (Type::Int8, Join::Greatest)];
        let table = table(Mode::Add, 0, &columns, Some(2));
        let row = |word: Field, at: i64| vec![t("k"), word, n(at)];
        #[track_caller]
        fn check(table: &(TablePlan, Keyed), given: &[Vec<Field>], expected: &Vec<Field>) {
            assert_eq!(folded(table, given), Ok(all(std::slice::from_ref(expected))));
        }
        check(&table, &[row(t("x"), 5), row(t("y"), 3)], &row(t("x"), 5));
        check(&table, &[row(t("x"), 3), row(t("y"), 5), row(t("z"), 4)], &row(t("y"), 5));
        check(&table, &[row(t("x"), 5), row(t("y"), 5)], &row(t("y"), 5));
        // It may be that the newest has none.
        check(&table, &[row(t("x"), 3), row(None, 5)], &row(None, 5));
        check(&table, &[row(None, 5), row(t("x"), 3)], &row(None, 5));
    }

    #[test]
    fn a_sum_that_leaves_its_type_is_none() {
        let table_of = |ty: Type| table(Mode::Add, 0, &[(ty, Join::Sum)], None);
        let int4 = |number: i32| Some(number.to_be_bytes().to_vec());
        #[track_caller]
        fn check(table: &(TablePlan, Keyed), fields: &[Field], expected: Result<Field, usize>) {
            let rows: Vec<Vec<Field>> = fields.iter().map(|field| vec![t("k"), field.clone()]).collect();
            let expected = expected.map(|field| all(&[vec![t("k"), field]]));
            assert_eq!(folded(table, &rows), expected.map_err(|column| TooMuch { column }));
        }
        check(&table_of(Type::Int4), &[int4(i32::MAX), int4(1)], Err(1));
        check(&table_of(Type::Int4), &[int4(i32::MIN), int4(-1)], Err(1));
        check(&table_of(Type::Int4), &[int4(i32::MAX), int4(0)], Ok(int4(i32::MAX)));
        // What it was in between does not matter.
        check(&table_of(Type::Int8), &[n(i64::MAX), n(1), n(-5)], Ok(n(i64::MAX - 4)));
        check(&table_of(Type::Int8), &[n(i64::MAX), n(i64::MAX)], Err(1));
        let int2 = |number: i16| Some(number.to_be_bytes().to_vec());
        check(&table_of(Type::Int2), &[int2(30_000), int2(30_000)], Err(1));
    }

    #[test]
    fn clocks_are_stamped_when_rows_are_folded() {
        for mode in [Mode::Upsert, Mode::Add] {
            let join = if mode == Mode::Add { Join::Sum } else { Join::Whole };
            let table = table(mode, 1, &[(Type::Int8, join)], None);
            let given = [vec![n(0), t("k"), n(1)]];
            assert_eq!(folded(&table, &given), Ok(all(&[vec![n(77), t("k"), n(1)]])));
        }
    }

    #[test]
    fn a_deletion_is_the_last_word_or_none() {
        let (plan, keyed) = table(Mode::Upsert, 0, &[(Type::Int8, Join::Whole)], None);
        let keyed = Keyed { deletes: true, ..keyed };
        let (row, gone) = (tuple(&[t("k"), n(1)]), tuple(&[t("k"), None]));
        let other = tuple(&[t("z"), n(2)]);
        let staged = |fields: &[Field], deletes: bool| {
            let mut fields = fields.to_vec();
            fields.push(Some(vec![u8::from(deletes)]));
            tuple(&fields)
        };
        #[track_caller]
        fn check(
            (plan, keyed): (&TablePlan, &Keyed),
            rows: &[(&[u8], bool)],
            deletions: usize,
            expected: &[Vec<u8>],
        ) {
            let found = fold(plan, keyed, rows.iter().copied(), 0);
            let bytes = expected.concat();
            assert_eq!(found, Ok(Folded { bytes, groups: expected.len(), deletions }));
        }
        let stored = staged(&[t("k"), n(1)], false);
        let deleted = staged(&[t("k"), None], true);
        check((&plan, &keyed), &[(&row, false), (&gone, true), (&row, false)], 0, &[stored]);
        check(
            (&plan, &keyed),
            &[(&row, false), (&other, false), (&gone, true)],
            1,
            &[deleted, staged(&[t("z"), n(2)], false)],
        );
    }

    /// However the rows are cut into batches, what is folded again from the parts is the same.
    #[test]
    fn where_a_batch_ends_does_not_matter() {
        let columns = [
            (Type::Int8, Join::Sum),
            (Type::Int8, Join::Least),
            (Type::Int8, Join::Greatest),
            (Type::Int8, Join::Newest),
            (Type::Int8, Join::Greatest),
        ];
        let table = table(Mode::Add, 0, &columns, Some(5));
        let row = |i: i64| {
            let value = if i % 7 == 0 { None } else { n(i * 31 % 17 - 8) };
            vec![
                t(&format!("k{}", i * 13 % 5)),
                value.clone(),
                value.clone(),
                value.clone(),
                value,
                n(i * 5 % 11),
            ]
        };
        let rows: Vec<Vec<Field>> = (0..100).map(row).collect();
        let whole = folded(&table, &rows).expect("it fits");
        let (plan, keyed) = &table;
        for cut in [1, 2, 50, 99] {
            let mut parts: Vec<Vec<u8>> = Vec::new();
            for chunk in rows.chunks(cut) {
                let tuples: Vec<Vec<u8>> = chunk.iter().map(|row| tuple(row)).collect();
                let found = fold(plan, keyed, tuples.iter().map(|t| (t.as_slice(), false)), 0).expect("fits");
                parts.extend(split(&found.bytes));
            }
            let again = fold(plan, keyed, parts.iter().map(|t| (t.as_slice(), false)), 0).expect("it fits");
            assert_eq!((again.groups, again.bytes), whole, "in parts of {cut}");
        }
    }

    /// Tuples that stand one behind another.
    fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
        let (mut tuples, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let start = at;
            let fields = i16::from_be_bytes(bytes[at..at + COUNT].try_into().expect("two bytes"));
            at = (0..fields).fold(at + COUNT, |at, _| end_of_field(bytes, at));
            tuples.push(bytes[start..at].to_vec());
        }
        tuples
    }
}
