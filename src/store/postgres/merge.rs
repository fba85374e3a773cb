//! From the stage into a table with keys: the statements, which know no rows but their number. Pure.
//!
//! They are sent under the role's own search_path, so every name, type and operator in them has its schema.

use crate::base::hash;
use crate::base::mutant::{Bug, planted};
use crate::client::pg::escape_literal;
use crate::model::mode::{Join, Keyed, Mode};
use crate::model::plan::{PlanColumn, TablePlan, quoted};
use crate::store::postgres::fold::Folded;

/// First key of the locks by which writers of one table take turns; the ledger's own locks have the number before it.
const LOCK_CLASS: i32 = 1_919_907_694;

/// Beside the table's columns: whether the row of the key is to be deleted.
const DELETES: &str = "\"rowmill deletes\"";

/// A table with keys, and the stage from which its rows come.
#[derive(Clone, Debug)]
pub struct Merge {
    /// The stage's name in SQL.
    pub stage: String,
    /// The query whose columns the stage has.
    pub definition: String,
    /// The COPY into the stage.
    pub copy: String,
    /// Takes this table's turn, until the transaction ends.
    pub lock: String,
    /// Empties the stage.
    pub clear: String,
    name: String,
    delete: Option<String>,
    insert: String,
    /// Counts the rows of the stage whose key the table has; `None` where the INSERT stores each that it is given.
    present: Option<String>,
}

impl Merge {
    pub fn of(table: &TablePlan, keyed: &Keyed) -> Merge {
        let all = names(&table.columns);
        let key = &table.columns[table.clock_columns..table.clock_columns + keyed.keys];
        let more = if keyed.deletes { format!(", {DELETES}") } else { String::new() };
        let flag = if keyed.deletes { format!(", false AS {DELETES}") } else { String::new() };
        let definition = format!("SELECT {all}{flag} FROM {}", table.sql_name);
        // Another definition, or another choice of columns, has another stage.
        let number = hash::of(&format!("{definition} {}", table.fingerprint));
        let stage = format!("pg_temp.\"rowmill_stage_{number:016x}\"");
        let equal = |key: &PlanColumn| {
            let name = quoted(&key.name);
            format!("t.{name} OPERATOR(pg_catalog.=) s.{name}")
        };
        let equal: Vec<String> = key.iter().map(equal).collect();
        let equal = equal.join(" AND ");
        let rows = if keyed.deletes { format!(" WHERE NOT {DELETES}") } else { String::new() };
        let insert = format!(
            "INSERT INTO {} AS t ({all}) SELECT {all} FROM {stage}{rows} ON CONFLICT ({}) {}",
            table.sql_name,
            names(key),
            on_conflict(table, keyed)
        );
        let and_kept = if keyed.deletes { format!("NOT s.{DELETES} AND ") } else { String::new() };
        let is_whole = stores_all(table, keyed);
        Merge {
            definition,
            copy: format!("COPY {stage} ({all}{more}) FROM STDIN (FORMAT binary)"),
            lock: format!(
                "SELECT pg_catalog.pg_advisory_xact_lock({LOCK_CLASS}, {})",
                hash::of(&table.sql_name) as i32
            ),
            clear: format!("DELETE FROM {stage}"),
            name: table.name.clone(),
            delete: keyed.deletes.then(|| {
                // The server does not know how few rows a stage has, and would rather read all of the table than ask its index.
                format!(
                    "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; DELETE FROM {} AS t USING {stage} AS s WHERE \
                     s.{DELETES} AND {equal}; SET LOCAL enable_hashjoin TO DEFAULT; SET LOCAL enable_mergejoin TO DEFAULT",
                    table.sql_name
                )
            }),
            // A question within the question stays one: as a join, the server might read all of the table for it.
            present: (!is_whole).then(|| {
                format!(
                    "SELECT pg_catalog.count(*) FROM {stage} AS s WHERE {and_kept}(SELECT true FROM {} AS t WHERE {equal})",
                    table.sql_name
                )
            }),
            insert,
            stage,
        }
    }

    /// The statements that bring the stage into the table, or raise where it does not have each of them then.
    pub fn statements(&self, folded: &Folded) -> String {
        let Merge { insert, name, .. } = self;
        let rows = folded.groups - folded.deletions;
        let stored = |count: &str| {
            // Without its number, the count is only asked for.
            let expected = if planted(Bug::GroupsUncounted) { count.to_owned() } else { rows.to_string() };
            format!("SELECT rowmill.stored({}, {count}, {expected})", escape_literal(name))
        };
        let counting = format!("WITH stored AS ({insert} RETURNING 1)");
        let insert = match &self.present {
            None => format!("{counting} {}", stored("(SELECT pg_catalog.count(*) FROM stored)")),
            // Where all were stored, all are there. Only where some were not is each looked for, by a statement that sees them.
            Some(present) => format!(
                "{counting} SELECT pg_catalog.set_config('rowmill.stored', CAST(pg_catalog.count(*) AS pg_catalog.text), true) FROM \
                 stored; {}",
                stored(&format!(
                    "CASE WHEN CAST(pg_catalog.current_setting('rowmill.stored') AS pg_catalog.int8) OPERATOR(pg_catalog.=) {rows} \
                     THEN {rows} ELSE ({present}) END"
                ))
            ),
        };
        let delete = self.delete.as_ref().filter(|_| folded.deletions > 0);
        let lock = Some(&self.lock).filter(|_| !planted(Bug::LockLeftOut));
        let all: Vec<&str> = lock.into_iter().chain(delete).chain([&insert]).map(String::as_str).collect();
        let all = all.join("; ");
        if planted(Bug::FoldedTwice) { format!("{all}; {insert}") } else { all }
    }
}

/// True where the INSERT stores, and so counts, each row that it is given.
fn stores_all(table: &TablePlan, keyed: &Keyed) -> bool {
    match keyed.mode {
        Mode::Append | Mode::Add => true,
        Mode::First => false,
        Mode::Upsert => keyed.time.is_none() && table.columns.len() > keyed.keys,
    }
}

/// What follows where the key is there already.
fn on_conflict(table: &TablePlan, keyed: &Keyed) -> String {
    let name = |index: usize| quoted(&table.columns[index].name);
    let newer = keyed.time.filter(|_| !planted(Bug::LastByArrival)).map(name);
    let sets: Vec<String> = (0..table.columns.len())
        .filter(|index| keyed.joins[*index] != Join::Key)
        .map(|index| {
            format!("{} = {}", name(index), joined(&name(index), keyed.joins[index], newer.as_deref()))
        })
        .collect();
    let compares = match (keyed.mode, &newer) {
        (Mode::Upsert, Some(time)) => format!(" WHERE excluded.{time} OPERATOR(pg_catalog.>=) t.{time}"),
        (Mode::First, Some(time)) => format!(" WHERE excluded.{time} OPERATOR(pg_catalog.<) t.{time}"),
        _ => String::new(),
    };
    let keeps = keyed.mode == Mode::First && newer.is_none();
    match (keeps, sets.is_empty(), keyed.mode) {
        (true, ..) => "DO NOTHING".into(),
        // It is counted, so something has to be set.
        (_, true, Mode::Add) => {
            let key = name(table.clock_columns);
            format!("DO UPDATE SET {key} = excluded.{key}")
        }
        (_, true, _) => "DO NOTHING".into(),
        _ => format!("DO UPDATE SET {}{compares}", sets.join(", ")),
    }
}

/// What a column becomes where a row that is there and one that comes have one key. NULL counts for nothing.
fn joined(name: &str, join: Join, newer: Option<&str>) -> String {
    match (join, newer) {
        (Join::Key | Join::Whole, _) => format!("excluded.{name}"),
        (Join::Sum, _) => {
            format!("coalesce(t.{name} OPERATOR(pg_catalog.+) excluded.{name}, t.{name}, excluded.{name})")
        }
        (Join::Least, _) => format!("least(t.{name}, excluded.{name})"),
        (Join::Greatest, _) => format!("greatest(t.{name}, excluded.{name})"),
        (Join::Newest, Some(time)) => format!(
            "CASE WHEN excluded.{time} OPERATOR(pg_catalog.>=) t.{time} THEN excluded.{name} ELSE t.{name} END"
        ),
        (Join::Newest, None) => format!("excluded.{name}"),
    }
}

fn names(columns: &[PlanColumn]) -> String {
    columns.iter().map(|column| quoted(&column.name)).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::types::Type;

    fn merge(mode: Mode, time: Option<usize>, deletes: bool, joins: &[(&str, Join)]) -> Merge {
        let column = |(name, _): &(&str, Join)| PlanColumn {
            name: (*name).into(),
            ty: Type::Int8,
            not_null: true,
            optional: None,
        };
        let keyed = Keyed {
            mode,
            keys: joins.iter().filter(|(_, join)| *join == Join::Key).count(),
            time,
            joins: joins.iter().map(|(_, join)| *join).collect(),
            deletes,
        };
        let table = TablePlan {
            oid: 1,
            name: "public.t".into(),
            sql_name: "\"public\".\"t\"".into(),
            fingerprint: "f".into(),
            columns: joins.iter().map(column).collect(),
            clock_columns: 0,
            retention: None,
            keyed: None,
        };
        Merge::of(&table, &keyed)
    }

    #[track_caller]
    fn check(merge: &Merge, deletions: usize, expected: &[&str]) {
        let folded = Folded { groups: 7, deletions, ..Folded::default() };
        let found = merge.statements(&folded).replace(&merge.stage, "STAGE");
        let (lock, rest) = found.split_once("; ").expect("several statements");
        assert!(lock.starts_with("SELECT pg_catalog.pg_advisory_xact_lock(1919907694, "), "{lock}");
        assert_eq!(rest, expected.join("; "));
    }

    const KV: [(&str, Join); 2] = [("k", Join::Key), ("v", Join::Whole)];

    #[test]
    fn each_mode_has_its_statements() {
        let insert = "INSERT INTO \"public\".\"t\" AS t (\"k\", \"v\") SELECT \"k\", \"v\" FROM STAGE ON CONFLICT (\"k\")";
        let counted = |action: &str| {
            format!(
                "WITH stored AS ({insert} {action} RETURNING 1) \
                 SELECT rowmill.stored('public.t', (SELECT pg_catalog.count(*) FROM stored), 7)"
            )
        };
        let kept = |action: &str| {
            format!(
                "WITH stored AS ({insert} {action} RETURNING 1) SELECT pg_catalog.set_config('rowmill.stored', \
                 CAST(pg_catalog.count(*) AS pg_catalog.text), true) FROM stored; SELECT rowmill.stored('public.t', CASE WHEN \
                 CAST(pg_catalog.current_setting('rowmill.stored') AS pg_catalog.int8) OPERATOR(pg_catalog.=) 7 THEN 7 ELSE (SELECT \
                 pg_catalog.count(*) FROM STAGE AS s WHERE (SELECT true FROM \"public\".\"t\" AS t WHERE t.\"k\" \
                 OPERATOR(pg_catalog.=) s.\"k\")) END, 7)"
            )
        };
        check(&merge(Mode::Upsert, None, false, &KV), 0, &[&counted("DO UPDATE SET \"v\" = excluded.\"v\"")]);
        check(
            &merge(Mode::Upsert, Some(1), false, &KV),
            0,
            &[&kept(
                "DO UPDATE SET \"v\" = excluded.\"v\" WHERE excluded.\"v\" OPERATOR(pg_catalog.>=) t.\"v\"",
            )],
        );
        check(&merge(Mode::First, None, false, &KV), 0, &[&kept("DO NOTHING")]);
        check(
            &merge(Mode::First, Some(1), false, &KV),
            0,
            &[&kept(
                "DO UPDATE SET \"v\" = excluded.\"v\" WHERE excluded.\"v\" OPERATOR(pg_catalog.<) t.\"v\"",
            )],
        );
        let sum = [("k", Join::Key), ("v", Join::Sum)];
        check(
            &merge(Mode::Add, None, false, &sum),
            0,
            &[&counted(
                "DO UPDATE SET \"v\" = coalesce(t.\"v\" OPERATOR(pg_catalog.+) excluded.\"v\", t.\"v\", excluded.\"v\")",
            )],
        );
    }

    #[test]
    fn a_key_that_is_all_there_is_stays() {
        let insert = "INSERT INTO \"public\".\"t\" AS t (\"k\") SELECT \"k\" FROM STAGE ON CONFLICT (\"k\") DO NOTHING";
        let merge = merge(Mode::Upsert, None, false, &[("k", Join::Key)]);
        let found =
            merge.statements(&Folded { groups: 1, ..Folded::default() }).replace(&merge.stage, "STAGE");
        assert!(found.contains(insert) && found.contains("ELSE (SELECT"), "{found}");
    }

    #[test]
    fn deletions_go_before_what_is_stored() {
        let merge = merge(Mode::Upsert, None, true, &KV);
        let delete = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; DELETE FROM \"public\".\"t\" AS t USING STAGE \
                      AS s WHERE s.\"rowmill deletes\" AND t.\"k\" OPERATOR(pg_catalog.=) s.\"k\"; SET LOCAL enable_hashjoin TO \
                      DEFAULT; SET LOCAL enable_mergejoin TO DEFAULT";
        let insert = "WITH stored AS (INSERT INTO \"public\".\"t\" AS t (\"k\", \"v\") SELECT \"k\", \"v\" FROM STAGE WHERE NOT \
                      \"rowmill deletes\" ON CONFLICT (\"k\") DO UPDATE SET \"v\" = excluded.\"v\" RETURNING 1) SELECT \
                      rowmill.stored('public.t', (SELECT pg_catalog.count(*) FROM stored), ";
        check(&merge, 3, &[delete, &format!("{insert}4)")]);
        check(&merge, 0, &[&format!("{insert}7)")]);
        assert!(merge.definition.ends_with("\"v\", false AS \"rowmill deletes\" FROM \"public\".\"t\""));
        assert!(merge.copy.contains("(\"k\", \"v\", \"rowmill deletes\") FROM STDIN"));
    }

    #[test]
    fn what_was_last_goes_by_time() {
        let joins = [("k", Join::Key), ("v", Join::Newest), ("at", Join::Greatest), ("low", Join::Least)];
        let merge = merge(Mode::Add, Some(2), false, &joins);
        let found = merge.statements(&Folded::default());
        for expected in [
            "\"v\" = CASE WHEN excluded.\"at\" OPERATOR(pg_catalog.>=) t.\"at\" THEN excluded.\"v\" ELSE t.\"v\" END",
            "\"at\" = greatest(t.\"at\", excluded.\"at\")",
            "\"low\" = least(t.\"low\", excluded.\"low\")",
        ] {
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn another_definition_has_another_stage() {
        let one = merge(Mode::Upsert, None, false, &KV).stage;
        assert_eq!(one, merge(Mode::First, None, false, &KV).stage);
        assert_ne!(one, merge(Mode::Upsert, None, true, &KV).stage);
        assert_ne!(one, merge(Mode::Upsert, None, false, &[("k", Join::Key), ("w", Join::Whole)]).stage);
    }
}
