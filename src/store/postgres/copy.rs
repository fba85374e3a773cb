//! A table's COPY: its statement, and the times that are stamped into rows just before they are sent.

use crate::model::plan::{OPTIONAL_MAX, PlanColumn, TablePlan, quoted};
use crate::promise::batch::Shape;

const _: () =
    assert!(OPTIONAL_MAX <= Shape::OPTIONAL_MAX, "a shape has room for every column that may be left out");

/// `COPY "s"."t" ("a", "b") FROM STDIN (FORMAT binary)`, for rows of this shape.
pub fn statement(table: &TablePlan, shape: Shape) -> String {
    let is_sent = |column: &&PlanColumn| !column.optional.is_some_and(|optional| shape.leaves_out(optional));
    let names: Vec<_> = table.columns.iter().filter(is_sent).map(|column| quoted(&column.name)).collect();
    format!("COPY {} ({}) FROM STDIN (FORMAT binary)", table.sql_name, names.join(", "))
}

/// Stamps the clock columns of one encoded row: they stand at fixed places at its head, after the field count, each
/// with its length of 8 in front. `row` is one tuple as the decoder wrote it, `clock_columns` its table's.
pub fn patch_clocks(row: &mut [u8], clock_columns: usize, micros_since_2000: i64) {
    const COUNT: usize = 2;
    const LENGTH: usize = 4;
    const STAMP: usize = 8;
    for clock in row[COUNT..].chunks_exact_mut(LENGTH + STAMP).take(clock_columns) {
        clock[LENGTH..].copy_from_slice(&micros_since_2000.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::plan::PlanColumn;
    use crate::model::types::Type;

    #[test]
    fn the_statement_names_its_columns() {
        let column = |name: &str, optional| PlanColumn {
            name: name.into(),
            ty: Type::Int8,
            not_null: false,
            optional,
        };
        let table = TablePlan {
            oid: 1,
            name: "public.odd".into(),
            sql_name: "\"public\".\"odd\"".into(),
            fingerprint: "f".into(),
            columns: vec![column("id", None), column("odd \"name\"", Some(0)), column("at", Some(1))],
            clock_columns: 0,
            retention: None,
            keyed: None,
        };
        #[track_caller]
        fn check(table: &TablePlan, left_out: &[u8], columns: &str) {
            let mut shape = Shape::WHOLE;
            left_out.iter().for_each(|optional| shape.leave_out(*optional));
            let expected = format!("COPY \"public\".\"odd\" ({columns}) FROM STDIN (FORMAT binary)");
            assert_eq!(statement(table, shape), expected);
        }
        check(&table, &[], "\"id\", \"odd \"\"name\"\"\", \"at\"");
        check(&table, &[0], "\"id\", \"at\"");
        check(&table, &[0, 1], "\"id\"");
    }

    #[test]
    fn clocks_are_patched_in_place() {
        let mut row = vec![0, 3];
        for _ in 0..2 {
            row.extend_from_slice(&8i32.to_be_bytes());
            row.extend_from_slice(&[0; 8]);
        }
        row.extend_from_slice(&[0, 0, 0, 1, b'x']);
        let mut expected = row.clone();
        patch_clocks(&mut row, 0, 7);
        assert_eq!(row, expected);
        patch_clocks(&mut row, 2, -7);
        expected[6..14].copy_from_slice(&(-7i64).to_be_bytes());
        expected[18..26].copy_from_slice(&(-7i64).to_be_bytes());
        assert_eq!(row, expected);
    }
}
