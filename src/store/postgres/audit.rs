//! What the database has to be, and to allow, so that the promise can be kept: asked of the catalog as the server itself will
//! ask. `run` refuses to start on what `check` shows, in the same sentences, because both come from here. Nothing is changed.

use postgres::types::{ToSql, Type};
use postgres::{Error, Row, Transaction};

use crate::model::plan::{PlanColumn, TablePlan, quoted};

/// What was found, a sentence each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// With these the promise cannot be kept, or nothing can be written at all.
    pub refusals: Vec<String>,
    /// What works, and yet is hardly what somebody wants.
    pub warnings: Vec<String>,
}

/// Tables of ours, with what `run` does with them.
const OWN_TABLES: [(&str, &str); 3] = [
    ("rowmill.member", "SELECT, INSERT, UPDATE, DELETE"),
    ("rowmill.ledger", "SELECT, INSERT, UPDATE"),
    ("rowmill.dead_letter", "INSERT"),
];

/// The database, our schema in it, and the tables that are filled.
pub fn audit(client: &mut Transaction<'_>, tables: &[TablePlan]) -> Result<Remarks, Error> {
    let mut remarks = Remarks::default();
    remarks.refusals.extend(encoding(client)?);
    own_schema(client, &mut remarks)?;
    for table in tables {
        let Remarks { refusals, warnings } = audit_table(client, table)?;
        remarks.refusals.extend(refusals);
        remarks.warnings.extend(warnings);
    }
    remarks.warnings.extend(strangers(client, tables)?);
    Ok(remarks)
}

/// JSON is UTF-8, and so are our own sentences about a record: elsewhere a dead letter could not always be stored.
fn encoding(client: &mut Transaction<'_>) -> Result<Option<String>, Error> {
    let row = client.query_typed_one(
        "SELECT pg_encoding_to_char(encoding)::TEXT FROM pg_database WHERE datname = current_database()",
        &[],
    )?;
    Ok(encoding_refusal(row.get(0)))
}

fn encoding_refusal(encoding: &str) -> Option<String> {
    (encoding != "UTF8").then(|| {
        format!(
            "the database's encoding is {encoding}, which has not every character that JSON may hold: use a database made with \
             CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )
    })
}

fn own_schema(client: &mut Transaction<'_>, remarks: &mut Remarks) -> Result<(), Error> {
    let usage = "USAGE ON SCHEMA rowmill";
    if !truth(client, "SELECT has_schema_privilege('rowmill', 'USAGE')", &[])? {
        remarks.refusals.push(lacks(usage));
        // Without it the rest cannot be looked at by name.
        return Ok(());
    }
    for (table, privileges) in OWN_TABLES {
        let oid = relation(client, table)?;
        for privilege in privileges.split(", ") {
            let sql = "SELECT has_table_privilege($1, $2)";
            if !truth(client, sql, &[(&oid, Type::OID), (&privilege, Type::TEXT)])? {
                remarks.refusals.push(may_not(privilege, table));
            }
        }
        lasting(client, oid, table, remarks)?;
        row_security(client, oid, table, remarks)?;
    }
    if !truth(client, "SELECT has_sequence_privilege('rowmill.session', 'USAGE')", &[])? {
        remarks.refusals.push(lacks("USAGE ON SEQUENCE rowmill.session"));
    }
    let closed = client.query_typed(
        "SELECT p.oid::REGPROCEDURE::TEXT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
         WHERE n.nspname = 'rowmill' AND NOT has_function_privilege(p.oid, 'EXECUTE') ORDER BY 1",
        &[],
    )?;
    remarks.refusals.extend(texts(&closed).map(|function| lacks(&format!("EXECUTE ON FUNCTION {function}"))));
    Ok(())
}

/// One table that is filled.
pub fn audit_table(client: &mut Transaction<'_>, table: &TablePlan) -> Result<Remarks, Error> {
    let mut found = Remarks::default();
    let remarks = &mut found;
    let names = |keep: fn(&PlanColumn) -> bool| -> Vec<&str> {
        table.columns.iter().filter(|column| keep(column)).map(|column| column.name.as_str()).collect()
    };
    may_be_filled(client, table, &names(|_| true), remarks)?;
    what_fills_the_rest(client, table, &names(|column| column.optional.is_none()), remarks)?;
    lasting(client, table.oid, &table.sql_name, remarks)?;
    row_security(client, table.oid, &table.sql_name, remarks)?;
    let rules = client.query_typed(
        "SELECT rulename::TEXT FROM pg_rewrite WHERE ev_class = $1 AND ev_type = '3' ORDER BY 1",
        &[(&table.oid, Type::OID)],
    )?;
    remarks.warnings.extend(texts(&rules).map(|rule| {
        format!(
            "rule {} of table {} is not run: rows come by COPY, which runs triggers and no rules; make it a trigger",
            quoted(rule),
            table.sql_name
        )
    }));
    Ok(found)
}

/// INSERT on the whole table, or on each column that COPY names; and USAGE on its schema.
fn may_be_filled(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    columns: &[&str],
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let row = client.query_typed_one(
        "SELECT n.nspname::TEXT, has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'INSERT')
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        &[(&table.oid, Type::OID)],
    )?;
    if !row.get::<_, bool>(1) {
        remarks.refusals.push(lacks(&format!("USAGE ON SCHEMA {}", quoted(row.get(0)))));
    }
    if row.get(2) {
        return Ok(());
    }
    let closed = client.query_typed(
        "SELECT attname::TEXT FROM pg_attribute
         WHERE attrelid = $1 AND attname = ANY ($2) AND NOT has_column_privilege(attrelid, attnum, 'INSERT') ORDER BY attnum",
        &[(&table.oid, Type::OID), (&columns, Type::TEXT_ARRAY)],
    )?;
    if closed.len() == columns.len() {
        remarks.refusals.push(may_not("INSERT", &table.sql_name));
    } else if !closed.is_empty() {
        let names: Vec<String> = texts(&closed).map(quoted).collect();
        remarks.refusals.push(may_not(&format!("INSERT ({})", names.join(", ")), &table.sql_name));
    }
    Ok(())
}

/// What the server calls with the role's rights for a row: sequences of the columns that are not always sent, and functions
/// of their defaults, of generated columns and of checks. An identity column's sequence is the table's own.
fn what_fills_the_rest(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    always: &[&str],
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&table.oid, Type::OID), (&always, Type::TEXT_ARRAY)];
    let sequences = client.query_typed(
        "SELECT DISTINCT s.oid::REGCLASS::TEXT
         FROM pg_attrdef a
         JOIN pg_attribute t ON t.attrelid = a.adrelid AND t.attnum = a.adnum
         JOIN pg_depend d ON d.classid = 'pg_attrdef'::REGCLASS AND d.objid = a.oid AND d.refclassid = 'pg_class'::REGCLASS
         JOIN pg_class s ON s.oid = d.refobjid
         WHERE a.adrelid = $1 AND t.attname <> ALL ($2) AND CASE WHEN s.relkind = 'S' THEN NOT has_sequence_privilege(s.oid, 'USAGE, UPDATE') END
         ORDER BY 1",
        &parameters,
    )?;
    remarks
        .refusals
        .extend(texts(&sequences).map(|sequence| lacks(&format!("USAGE ON SEQUENCE {sequence}"))));
    let functions = client.query_typed(
        "SELECT DISTINCT p.oid::REGPROCEDURE::TEXT
         FROM (SELECT 'pg_attrdef'::REGCLASS::OID AS class, a.oid
               FROM pg_attrdef a JOIN pg_attribute t ON t.attrelid = a.adrelid AND t.attnum = a.adnum
               WHERE a.adrelid = $1 AND (t.attname <> ALL ($2) OR coalesce(to_jsonb(t) ->> 'attgenerated', '') <> '')
               UNION ALL
               SELECT 'pg_constraint'::REGCLASS, oid FROM pg_constraint WHERE conrelid = $1 AND contype = 'c') AS used
         JOIN pg_depend d ON d.classid = used.class AND d.objid = used.oid AND d.refclassid = 'pg_proc'::REGCLASS
         JOIN pg_proc p ON p.oid = d.refobjid
         WHERE NOT has_function_privilege(p.oid, 'EXECUTE')
         ORDER BY 1",
        &parameters,
    )?;
    remarks.refusals.extend(texts(&functions).map(|function| {
        format!("{}; table {} calls it", lacks(&format!("EXECUTE ON FUNCTION {function}")), table.sql_name)
    }));
    Ok(())
}

/// Every part of a table must outlive a crash of the server: the ledger does.
fn lasting(
    client: &mut Transaction<'_>,
    oid: u32,
    sql_name: &str,
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let parts = client.query_typed(
        "WITH RECURSIVE parts AS (
             SELECT $1::OID AS part UNION ALL
             SELECT i.inhrelid FROM parts JOIN pg_inherits i ON i.inhparent = parts.part)
         SELECT format('%I.%I', n.nspname, c.relname), c.relpersistence = 't', c.oid = $1
         FROM parts JOIN pg_class c ON c.oid = parts.part JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relpersistence <> 'p' ORDER BY 1",
        &[(&oid, Type::OID)],
    )?;
    remarks.refusals.extend(parts.iter().map(|row| {
        let part: &str = row.get(0);
        let of = if row.get(2) { String::new() } else { format!(", a part of {sql_name},") };
        if row.get(1) {
            format!("table {part}{of} is temporary: its rows end with a session; name a table that stays")
        } else {
            format!(
                "table {part}{of} is UNLOGGED: a crash of the server empties it, and what the promise says would be stored is \
                 gone; ALTER TABLE {part} SET LOGGED"
            )
        }
    }));
    Ok(())
}

fn row_security(
    client: &mut Transaction<'_>,
    oid: u32,
    sql_name: &str,
    remarks: &mut Remarks,
) -> Result<(), Error> {
    if truth(client, "SELECT row_security_active($1)", &[(&oid, Type::OID)])? {
        remarks.refusals.push(format!(
            "row-level security of {sql_name} holds for the role, and COPY works only without it: ALTER ROLE ... BYPASSRLS for \
             this role, or ALTER TABLE {sql_name} DISABLE ROW LEVEL SECURITY"
        ));
    }
    Ok(())
}

/// Who else may create in a schema where names are looked for: the role's search_path, our schema, those of the tables. Our
/// own statements name everything, but triggers, defaults and checks of the tables may not.
fn strangers(client: &mut Transaction<'_>, tables: &[TablePlan]) -> Result<Vec<String>, Error> {
    let oids: Vec<u32> = tables.iter().map(|table| table.oid).collect();
    let rows = client.query_typed(
        "SELECT quote_ident(n.nspname), string_agg(DISTINCT coalesce(quote_ident(r.rolname), 'PUBLIC'), ', ')
         FROM pg_namespace n
         CROSS JOIN aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS granted
         LEFT JOIN pg_roles r ON r.oid = granted.grantee
         WHERE (n.nspname IN ('rowmill', 'public')
                OR n.oid IN (SELECT c.relnamespace FROM pg_class c WHERE c.oid = ANY ($1)))
           AND granted.privilege_type = 'CREATE' AND granted.grantee <> n.nspowner
           AND NOT coalesce(r.rolsuper, false)
           AND r.rolname IS DISTINCT FROM current_user
           AND granted.grantee <> (SELECT o.nspowner FROM pg_namespace o WHERE o.nspname = 'rowmill')
         GROUP BY n.nspname ORDER BY 1",
        &[(&oids, Type::OID_ARRAY)],
    )?;
    Ok(rows.iter().map(|row| stranger_warning(row.get(0), row.get(1))).collect())
}

fn stranger_warning(schema: &str, who: &str) -> String {
    format!(
        "{who} may create in schema {schema}: a trigger, default or check that names a function without its schema may call \
         theirs, with this role's rights; REVOKE CREATE ON SCHEMA {schema} FROM {who}"
    )
}

fn may_not(privilege: &str, table: &str) -> String {
    format!("the role may not {privilege} on {table}: GRANT {privilege} ON {table} TO it")
}

fn lacks(what: &str) -> String {
    format!("the role lacks {what}: GRANT {what} TO it")
}

fn relation(client: &mut Transaction<'_>, name: &str) -> Result<u32, Error> {
    // In the catalog there is one, once the schema's version fits.
    let row = client.query_typed_one("SELECT $1::REGCLASS::OID", &[(&name, Type::TEXT)])?;
    Ok(row.get(0))
}

fn truth(
    client: &mut Transaction<'_>,
    sql: &str,
    parameters: &[(&(dyn ToSql + Sync), Type)],
) -> Result<bool, Error> {
    Ok(client.query_typed_one(sql, parameters)?.get(0))
}

fn texts(rows: &[Row]) -> impl Iterator<Item = &str> {
    rows.iter().map(|row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_utf8_holds_every_character() {
        assert_eq!(encoding_refusal("UTF8"), None);
        for other in ["LATIN1", "SQL_ASCII", "EUC_JP"] {
            assert!(encoding_refusal(other).is_some_and(|words| words.contains(other)));
        }
    }
}
