//! Catalog -> tables: columns with the types rowmill can write, and a fingerprint that changes when they do.
//! This file reads the catalog and nothing else; it never changes anything on the server.

use anyhow::{Context, Result, bail};
use postgres::types::Type as PgType;
use postgres::{GenericClient, Transaction};

use crate::client::pg::FIXED_PATH;
use crate::model::types::{Column, Kind, NumericLimit, Table, Type};

/// One line for each live column; the ledger compares the same expression inside the transaction, so that a row is
/// never encoded for one shape of the table and stored in another. `$1` is the table's oid or regclass.
/// Labels added to an enum do not change it: a label that appears later is known after a restart.
pub const FINGERPRINT_SQL: &str = "\
SELECT md5(concat_ws(
    ' ',
    (SELECT string_agg(concat_ws(':', attnum, attname, atttypid, atttypmod, attnotnull), ',' ORDER BY attnum)
     FROM pg_catalog.pg_attribute
     WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped),
    (SELECT CASE WHEN t.relhassubclass THEN (
                WITH RECURSIVE parts AS (
                    SELECT t.oid AS part UNION ALL
                    SELECT i.inhrelid FROM parts JOIN pg_catalog.pg_inherits i ON i.inhparent = parts.part)
                SELECT bool_and(c.relpersistence = 'p') FROM parts JOIN pg_catalog.pg_class c ON c.oid = parts.part)
            ELSE t.relpersistence = 'p' END
     FROM pg_catalog.pg_class t
     WHERE t.oid = $1)))";

/// Reads one table. `name` is written as in SQL: `ping`, `public.ping`, `"Odd name"."x.y"`; an unqualified name is
/// searched in the role's own search_path. From then on the table is called by its schema and name.
pub fn read_table(client: &mut impl GenericClient, name: &str) -> Result<Table> {
    // The one question that is asked under that path, so it names everything with its schema.
    let row = client
        .query_typed_one("SELECT pg_catalog.to_regclass($1)::pg_catalog.oid", &[(&name, PgType::TEXT)])
        .with_context(|| format!("read the name of table {name:?}"))?;
    let mut transaction = client.transaction()?;
    transaction.batch_execute(FIXED_PATH)?;
    read_found(&mut transaction, name, row.get(0))
}

fn read_found(client: &mut Transaction<'_>, name: &str, oid: Option<u32>) -> Result<Table> {
    let Some(oid) = oid else {
        bail!(
            "table {name:?} does not exist, or its schema is not in this role's search_path (write schema.table)"
        );
    };
    let relation = client.query_typed_one(
        "SELECT n.nspname::text, c.relname::text, c.relkind::text,
                format('%I.%I', n.nspname, c.relname) AS shown,
                concat('\"', replace(n.nspname, '\"', '\"\"'), '\".\"', replace(c.relname, '\"', '\"\"'), '\"')
         FROM pg_catalog.pg_class c
         JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = $1",
        &[(&oid, PgType::OID)],
    )?;
    let kind = match relation.get::<_, &str>(2) {
        "r" => Kind::Ordinary,
        "p" => Kind::Partitioned,
        other => bail!(
            "{} is {}, and rowmill writes only to ordinary and partitioned tables: name the table behind it",
            relation.get::<_, &str>(3),
            relation_kind(other)
        ),
    };
    let columns = read_columns(client, oid).with_context(|| format!("read the columns of {name:?}"))?;
    if columns.is_empty() {
        bail!("table {name:?} has no columns");
    }
    let primary_key = client.query_typed(
        "SELECT a.attname::TEXT
         FROM pg_index i CROSS JOIN unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
         WHERE i.indrelid = $1 AND i.indisprimary ORDER BY k.place",
        &[(&oid, PgType::OID)],
    )?;
    let ranged_by = client.query_typed(
        "SELECT a.attname::TEXT FROM pg_partitioned_table p
         JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
         WHERE p.partrelid = $1 AND p.partstrat = 'r' AND p.partnatts = 1",
        &[(&oid, PgType::OID)],
    )?;
    let fingerprint: String = client.query_typed_one(FINGERPRINT_SQL, &[(&oid, PgType::OID)])?.get(0);
    Ok(Table {
        oid,
        schema: relation.get(0),
        name: relation.get(1),
        sql_name: relation.get(4),
        columns,
        primary_key: primary_key.iter().map(|row| row.get(0)).collect(),
        fingerprint,
        kind,
        ranged_by: ranged_by.first().map(|row| row.get(0)),
    })
}

fn relation_kind(relkind: &str) -> &'static str {
    match relkind {
        "v" => "a view",
        "m" => "a materialized view",
        "f" => "a foreign table",
        "S" => "a sequence",
        "i" | "I" => "an index",
        "c" => "a composite type",
        _ => "not a table",
    }
}

fn read_columns(client: &mut Transaction<'_>, table: u32) -> Result<Vec<Column>> {
    // attgenerated exists since PostgreSQL 12; asking the row as JSON works before, too.
    let rows = client.query_typed(
        "SELECT a.attnum, a.attname::text, a.attnotnull, a.atthasdef, a.attidentity::text,
                coalesce(to_jsonb(a) ->> 'attgenerated', ''), a.atttypid, a.atttypmod,
                coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), '')
         FROM pg_catalog.pg_attribute a
         LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
         ORDER BY a.attnum",
        &[(&table, PgType::OID)],
    )?;
    let mut columns = Vec::with_capacity(rows.len());
    for row in rows {
        let identity: &str = row.get(4);
        let generated = !row.get::<_, &str>(5).is_empty();
        let serial = row.get::<_, &str>(8).starts_with("nextval(");
        let (ty, domain) = read_type(client, row.get(6), row.get(7))?;
        columns.push(Column {
            attnum: row.get(0),
            name: row.get(1),
            not_null: row.get::<_, bool>(2) || domain.not_null,
            has_default: row.get::<_, bool>(3) || !identity.is_empty() || domain.has_default,
            generated_or_identity_always: generated || identity == "a",
            fills_itself: generated || !identity.is_empty() || serial,
            ty,
        });
    }
    Ok(columns)
}

/// What the domains on the way to the base type add to a column.
#[derive(Default)]
struct DomainRules {
    not_null: bool,
    has_default: bool,
}

/// Follows domains and arrays down to a type that rowmill knows, or that it does not.
fn read_type(client: &mut Transaction<'_>, mut oid: u32, mut typmod: i32) -> Result<(Type, DomainRules)> {
    let mut rules = DomainRules::default();
    loop {
        if let Some(ty) = builtin(oid, typmod) {
            return Ok((ty, rules));
        }
        let row = client.query_typed_one(
            "SELECT t.typtype::text, t.typbasetype, t.typtypmod, t.typnotnull, t.typdefault IS NOT NULL,
                    pg_catalog.format_type(t.oid, NULL),
                    (SELECT e.oid FROM pg_catalog.pg_type e WHERE e.oid = t.typelem AND e.typarray = t.oid)
             FROM pg_catalog.pg_type t
             WHERE t.oid = $1",
            &[(&oid, PgType::OID)],
        )?;
        let name: String = row.get(5);
        match (row.get::<_, &str>(0), row.get::<_, Option<u32>>(6)) {
            ("d", _) => {
                rules.not_null |= row.get::<_, bool>(3);
                rules.has_default |= row.get::<_, bool>(4);
                typmod = row.get(2);
                oid = row.get(1);
            }
            ("e", _) => return Ok((Type::Enum { name, labels: read_labels(client, oid)? }, rules)),
            (_, Some(element_oid)) => {
                let element = match read_type(client, element_oid, typmod)?.0 {
                    Type::Unsupported(_) => return Ok((Type::Unsupported(name), rules)),
                    // A domain over an array, inside an array: JSON cannot tell its levels apart.
                    Type::Array { .. } => return Ok((Type::Unsupported(name), rules)),
                    element => Box::new(element),
                };
                return Ok((Type::Array { element, element_oid }, rules));
            }
            _ => return Ok((Type::Unsupported(name), rules)),
        }
    }
}

fn read_labels(client: &mut Transaction<'_>, oid: u32) -> Result<Vec<String>> {
    let rows = client.query_typed(
        "SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = $1 ORDER BY enumsortorder",
        &[(&oid, PgType::OID)],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// The types of the server itself, whose oids are the same everywhere.
fn builtin(oid: u32, typmod: i32) -> Option<Type> {
    // varchar and char count the four bytes of a header in their typmod.
    let length = u32::try_from(typmod - 4).ok().filter(|_| typmod >= 4);
    Some(match oid {
        16 => Type::Bool,
        21 => Type::Int2,
        23 => Type::Int4,
        20 => Type::Int8,
        700 => Type::Float4,
        701 => Type::Float8,
        1700 => Type::Numeric(numeric_limit(typmod)),
        25 => Type::Text,
        1043 => Type::Varchar(length),
        1042 => Type::Char(length),
        1184 => Type::Timestamptz,
        1114 => Type::Timestamp,
        1082 => Type::Date,
        1083 => Type::Time,
        2950 => Type::Uuid,
        114 => Type::Json,
        3802 => Type::Jsonb,
        17 => Type::Bytea,
        869 => Type::Inet,
        _ => return None,
    })
}

/// Precision in the upper half, scale in the lower eleven bits with its sign (ten bits and no sign before 15).
fn numeric_limit(typmod: i32) -> Option<NumericLimit> {
    let packed = typmod.checked_sub(4).filter(|packed| *packed >= 0)?;
    let scale = ((packed & 0x7ff) ^ 1024) - 1024;
    Some(NumericLimit { precision: (packed >> 16) as u16, scale: scale as i16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch compares what the ledger's function says with what was read here: written differently, every one would be
    /// refused.
    #[test]
    fn the_fingerprint_is_the_ledgers_own() {
        let words = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
        let here = words(FINGERPRINT_SQL).replace("$1", "target_table");
        assert!(words(crate::promise::ledger::SCHEMA_SQL).contains(&here), "{here}");
    }

    #[test]
    fn typmods_are_read_as_the_server_writes_them() {
        fn check(oid: u32, typmod: i32, expected: &str) {
            let ty = builtin(oid, typmod).expect("a type of the server");
            assert_eq!(ty.to_string(), expected, "{oid} {typmod}");
        }
        check(1700, -1, "numeric");
        check(1700, 327686, "numeric(5,2)");
        check(1700, (2 << 16 | (-3i32 & 0x7ff)) + 4, "numeric(2,-3)");
        check(1700, (1000 << 16 | 1000) + 4, "numeric(1000,1000)");
        check(1043, -1, "varchar");
        check(1043, 24, "varchar(20)");
        check(1042, 5, "char(1)");
        check(1042, -1, "bpchar");
        assert_eq!(builtin(600, -1), None);
    }
}
