//! What the database has to be, and to allow, so that the promise can be kept: asked of the catalog as the server itself will
//! ask. `run` refuses to start on what `check` shows, in the same sentences, because both come from here. Nothing is changed.

use postgres::types::{ToSql, Type};
use postgres::{Error, Row, Transaction};

use crate::model::mode::{Join, Keyed, Mode};
use crate::model::plan::{PlanColumn, TablePlan, quoted};

/// What was found, a sentence each.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remarks {
    /// With these the promise cannot be kept, or nothing can be written at all.
    pub refusals: Vec<String>,
    /// What works, and yet is hardly what somebody wants.
    pub warnings: Vec<String>,
    /// What would make it quicker.
    pub advice: Vec<String>,
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
        let Remarks { refusals, warnings, advice } = audit_table(client, table)?;
        remarks.refusals.extend(refusals);
        remarks.warnings.extend(warnings);
        remarks.advice.extend(advice);
    }
    remarks.warnings.extend(strangers(client, tables)?);
    Ok(remarks)
}

/// How many sessions there may be, for this role and in this database, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seats {
    pub allowed: i32,
    pub taken: i64,
}

/// Whose sessions count where the server itself has the least room.
pub fn seats(client: &mut Transaction<'_>) -> Result<Seats, Error> {
    let row = client.query_typed_one(
        "SELECT current_setting('max_connections')::INTEGER - current_setting('superuser_reserved_connections')::INTEGER
                    - coalesce(current_setting('reserved_connections', true)::INTEGER, 0),
                (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user),
                (SELECT datconnlimit FROM pg_database WHERE datname = current_database()),
                (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())",
        &[],
    )?;
    let limits = [row.get::<_, i32>(0), row.get(1), row.get(2)];
    let allowed = limits.into_iter().filter(|limit| *limit >= 0).min().unwrap_or_default();
    Ok(Seats { allowed, taken: row.get(3) })
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
    let all = names(|_| true);
    may_use_schema(client, table, remarks)?;
    may(client, "INSERT", table, &all, remarks)?;
    what_fills_the_rest(client, table, &names(|column| column.optional.is_none()), remarks)?;
    lasting(client, table.oid, &table.sql_name, remarks)?;
    row_security(client, table.oid, &table.sql_name, remarks)?;
    remarks.warnings.extend(strange_triggers(client, table)?);
    if table.retention.is_some() {
        audit_retention(client, table, remarks)?;
    }
    if let Some(keyed) = &table.keyed {
        audit_keyed(client, table, keyed, remarks)?;
        return Ok(found);
    }
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

fn may_use_schema(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let row = client.query_typed_one(
        "SELECT n.nspname::TEXT, has_schema_privilege(n.oid, 'USAGE')
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1",
        &[(&table.oid, Type::OID)],
    )?;
    if !row.get::<_, bool>(1) {
        remarks.refusals.push(lacks(&format!("USAGE ON SCHEMA {}", quoted(row.get(0)))));
    }
    Ok(())
}

/// A privilege on the whole table, or on each of these columns.
fn may(
    client: &mut Transaction<'_>,
    privilege: &str,
    table: &TablePlan,
    columns: &[&str],
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let sql = "SELECT has_table_privilege($1, $2)";
    if truth(client, sql, &[(&table.oid, Type::OID), (&privilege, Type::TEXT)])? {
        return Ok(());
    }
    let closed = client.query_typed(
        "SELECT attname::TEXT FROM pg_attribute
         WHERE attrelid = $1 AND attname = ANY ($2) AND NOT has_column_privilege(attrelid, attnum, $3) ORDER BY attnum",
        &[(&table.oid, Type::OID), (&columns, Type::TEXT_ARRAY), (&privilege, Type::TEXT)],
    )?;
    if closed.len() == columns.len() {
        remarks.refusals.push(may_not(privilege, &table.sql_name));
    } else if !closed.is_empty() {
        let names: Vec<String> = texts(&closed).map(quoted).collect();
        remarks.refusals.push(may_not(&format!("{privilege} ({})", names.join(", ")), &table.sql_name));
    }
    Ok(())
}

/// What making and dropping partitions needs.
fn audit_retention(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let row = client.query_typed_one(
        "SELECT pg_has_role(c.relowner, 'USAGE'), has_schema_privilege(c.relnamespace, 'CREATE'),
                quote_ident(n.nspname), quote_ident(r.rolname),
                (SELECT p.partdefid::REGCLASS::TEXT FROM pg_partitioned_table p WHERE p.partrelid = c.oid AND p.partdefid <> 0)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
         WHERE c.oid = $1",
        &[(&table.oid, Type::OID)],
    )?;
    let name = &table.sql_name;
    if !row.get::<_, bool>(0) {
        remarks.refusals.push(format!(
            "retention makes and drops partitions of table {name}, which only its owner may: ALTER TABLE {name} OWNER TO the role that \
             writes, or GRANT {} TO it",
            row.get::<_, &str>(3)
        ));
    }
    if !row.get::<_, bool>(1) {
        remarks.refusals.push(lacks(&format!("CREATE ON SCHEMA {}", row.get::<_, &str>(2))));
    }
    if let Some(default) = row.get::<_, Option<&str>>(4) {
        remarks.refusals.push(format!(
            "table {name} has a default partition, {default}: rows without a partition would go there, be kept for ever, and stand in the \
             way of new ones; ALTER TABLE {name} DETACH PARTITION {default}"
        ));
    }
    Ok(())
}

/// What a table with keys needs beside the rest. Where two rows may be one for SQL and two for us, or the other way round, nothing
/// is written.
fn audit_keyed(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    keyed: &Keyed,
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let name = &table.sql_name;
    if truth(client, "SELECT to_regprocedure('rowmill.stored(text, bigint, bigint)') IS NULL", &[])? {
        remarks.refusals.push(format!(
            "the rowmill schema is older than mode = {:?} needs, which table {name} has: run `rowmill init`",
            keyed.mode.name()
        ));
    }
    if !truth(client, "SELECT has_database_privilege(current_database(), 'TEMP')", &[])? {
        remarks.refusals.push(format!(
            "the role may not make temporary tables, through which rows reach table {name}: GRANT TEMPORARY ON DATABASE ... TO it"
        ));
    }
    let with = |keep: fn(Join) -> bool| -> Vec<&str> {
        let kept = table.columns.iter().zip(&keyed.joins).filter(|(_, join)| keep(**join));
        kept.map(|(column, _)| column.name.as_str()).collect()
    };
    may(client, "SELECT", table, &with(|_| true), remarks)?;
    let changes = with(|join| join != Join::Key);
    if !changes.is_empty() && (keyed.mode != Mode::First || keyed.time.is_some()) {
        may(client, "UPDATE", table, &changes, remarks)?;
    }
    if keyed.deletes {
        let sql = "SELECT has_table_privilege($1, 'DELETE')";
        if !truth(client, sql, &[(&table.oid, Type::OID)])? {
            remarks.refusals.push(may_not("DELETE", name));
        }
    }
    audit_indexes(client, table, &with(|join| join == Join::Key), remarks)?;
    audit_key_types(client, table, &with(|join| join == Join::Key), remarks)?;
    audit_reactions(client, table, keyed, remarks)
}

/// The key has a unique index of its own, and no other one sees the rows in an order that nobody sent them in.
fn audit_indexes(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    key: &[&str],
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let filled: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let indexes = client.query_typed(
        "SELECT i.indexrelid::REGCLASS::TEXT, c.columns @> $2::TEXT[] AND c.columns <@ $2::TEXT[], c.columns && $3::TEXT[],
                i.indexprs IS NOT NULL, i.indpred IS NOT NULL, NOT i.indimmediate, NOT i.indisvalid, i.indisexclusion
         FROM pg_index i
         CROSS JOIN LATERAL (
             SELECT coalesce(array_agg(a.attname::TEXT), '{}') AS columns
             FROM pg_attribute a
             WHERE a.attrelid = i.indrelid
               AND a.attnum IN (SELECT k.attnum FROM unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
                                WHERE k.place <= (to_jsonb(i) ->> 'indnkeyatts')::INTEGER)) AS c
         WHERE i.indrelid = $1 AND (i.indisunique OR i.indisexclusion)
         ORDER BY 1",
        &[(&table.oid, Type::OID), (&key, Type::TEXT_ARRAY), (&filled, Type::TEXT_ARRAY)],
    )?;
    let names: Vec<String> = key.iter().map(|name| quoted(name)).collect();
    let (names, name) = (names.join(", "), &table.sql_name);
    let mut has_own = false;
    let mut nearly = String::new();
    for index in &indexes {
        let is = |column| index.get::<_, bool>(column);
        let (is_on_key, is_filled, index) = (is(1), is(2) || is(3), index.get::<_, &str>(0));
        let why = match () {
            () if is(3) => "is on an expression",
            () if is(4) => "is partial",
            () if is(5) => "is deferrable",
            () if is(6) => "is not valid",
            () if is(7) => "is an exclusion constraint's",
            () => "",
        };
        match (is_on_key, why) {
            (true, "") => has_own = true,
            (true, why) => nearly = format!("; {index} {why}, so it does not say which rows are one"),
            _ if is_filled => remarks.refusals.push(format!(
                "index {index} of table {name} is unique on other columns than the key ({names}): rows are written in the order of \
                 their keys, so a value that goes from one key to another would be refused there; drop it, or say key = [...] with \
                 its columns"
            )),
            _ => {}
        }
    }
    if !has_own {
        remarks.refusals.push(format!(
            "table {name} has no unique index on exactly its key ({names}){nearly}: CREATE UNIQUE INDEX ON {name} ({names}); of a \
             partitioned table, the key must contain the columns by which it is partitioned"
        ));
    }
    Ok(())
}

/// Keys that are equal for SQL have the same bytes.
fn audit_key_types(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    key: &[&str],
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let columns = client.query_typed(
        "SELECT a.attname::TEXT, c.collname::TEXT, coalesce(to_jsonb(c) ->> 'collisdeterministic', 'true') = 'false',
                t.oid IN (1083, 1114, 1184) AND (a.atttypmod BETWEEN 0 AND 5 OR coalesce(d.typtypmod, -1) BETWEEN 0 AND 5)
         FROM pg_attribute a
         JOIN pg_type d ON d.oid = a.atttypid
         JOIN pg_type t ON t.oid = CASE d.typtype WHEN 'd' THEN d.typbasetype ELSE d.oid END
         LEFT JOIN pg_collation c ON c.oid = a.attcollation
         WHERE a.attrelid = $1 AND a.attname = ANY ($2) ORDER BY a.attnum",
        &[(&table.oid, Type::OID), (&key, Type::TEXT_ARRAY)],
    )?;
    for column in &columns {
        let name = quoted(column.get(0));
        if column.get(2) {
            remarks.refusals.push(format!(
                "column {name} in the key of table {} has the collation {}, which calls different texts equal: ALTER COLUMN {name} \
                 TYPE TEXT COLLATE \"C\"",
                table.sql_name,
                quoted(column.get(1))
            ));
        }
        if column.get(3) {
            remarks.refusals.push(format!(
                "column {name} in the key of table {} rounds its times, so that different ones become equal: ALTER COLUMN {name} TYPE \
                 TIMESTAMPTZ, and say floor = \"1s\" in the model",
                table.sql_name
            ));
        }
    }
    Ok(())
}

/// What the server does beside: rules, triggers, sequences that are used up, room for updates.
fn audit_reactions(
    client: &mut Transaction<'_>,
    table: &TablePlan,
    keyed: &Keyed,
    remarks: &mut Remarks,
) -> Result<(), Error> {
    let name = &table.sql_name;
    let rules = client.query_typed(
        "SELECT rulename::TEXT FROM pg_rewrite WHERE ev_class = $1 AND ev_type IN ('2', '3') ORDER BY 1",
        &[(&table.oid, Type::OID)],
    )?;
    remarks.refusals.extend(texts(&rules).map(|rule| {
        format!(
            "rule {} of table {name} stands in the way of INSERT ... ON CONFLICT, which the server refuses then; make it a trigger",
            quoted(rule)
        )
    }));
    let triggers = client.query_typed(
        "SELECT tgname::TEXT FROM pg_trigger
         WHERE tgrelid = $1 AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 7 = 7 ORDER BY 1",
        &[(&table.oid, Type::OID)],
    )?;
    remarks.warnings.extend(texts(&triggers).map(|trigger| {
        format!(
            "trigger {} of table {name} runs before each INSERT, also where the key is there already, and sees what many records \
             became together; one that counts or changes keys is better AFTER INSERT OR UPDATE",
            quoted(trigger)
        )
    }));
    let filled: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let sequences = client.query_typed(
        "SELECT s.seqrelid::REGCLASS::TEXT,
                min(least(s.seqmax, CASE a.atttypid WHEN 21 THEN 32767 WHEN 23 THEN 2147483647 ELSE s.seqmax END))
         FROM pg_depend d
         JOIN pg_sequence s ON s.seqrelid = d.objid
         JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::REGCLASS AND d.refclassid = 'pg_class'::REGCLASS AND d.refobjid = $1
           AND d.deptype IN ('a', 'i') AND a.attname <> ALL ($2) AND NOT s.seqcycle
           AND (s.seqmax <= 2147483647 OR a.atttypid IN (21, 23))
         GROUP BY s.seqrelid
         ORDER BY 1",
        &[(&table.oid, Type::OID), (&filled, Type::TEXT_ARRAY)],
    )?;
    remarks.warnings.extend(sequences.iter().map(|row| {
        let (sequence, most): (&str, i64) = (row.get(0), row.get(1));
        format!(
            "sequence {sequence} of table {name} loses a value for each key of a transaction, also where the key is there already: at \
             a thousand a second its {most} are used up after {} days; make the column BIGINT, and ALTER SEQUENCE {sequence} AS BIGINT",
            most / 86_400_000
        )
    }));
    if keyed.mode == Mode::Add
        && truth(
            client,
            "SELECT NOT EXISTS (SELECT FROM pg_class, unnest(reloptions) AS o WHERE oid = $1 AND o LIKE 'fillfactor=%')
                    AND (SELECT relkind = 'r' FROM pg_class WHERE oid = $1)",
            &[(&table.oid, Type::OID)],
        )?
    {
        remarks.advice.push(format!(
            "rows of table {name} change again and again: ALTER TABLE {name} SET (fillfactor = 70) leaves room for that in each page, \
             and halves what it grows to"
        ));
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

/// Who else has code run for each row of a table, or may have it run: its owner, those who may make triggers on it, and those whose
/// functions its triggers call. With the right to INSERT goes the right to be called by a trigger, with this role's rights.
///
/// Nobody is a stranger who may do as much anyway: superusers, this role, and the owners of the database, of our schema and of the
/// table's own.
fn strange_triggers(client: &mut Transaction<'_>, table: &TablePlan) -> Result<Vec<String>, Error> {
    let rows = client.query_typed(
        "WITH the_table AS (SELECT c.oid, c.relowner, c.relacl, n.nspowner
                            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1),
         found AS (
             SELECT 'owner' AS what, relowner AS who, '' AS trigger FROM the_table
             UNION ALL
             SELECT 'right', granted.grantee, ''
             FROM the_table, aclexplode(relacl) AS granted
             WHERE granted.privilege_type = 'TRIGGER' AND granted.grantee <> relowner
             UNION ALL
             SELECT 'function', p.proowner, quote_ident(t.tgname)
             FROM the_table JOIN pg_trigger t ON t.tgrelid = the_table.oid JOIN pg_proc p ON p.oid = t.tgfoid
             WHERE NOT t.tgisinternal AND p.proowner <> relowner)
         SELECT DISTINCT found.what, coalesce(quote_ident(r.rolname), 'PUBLIC'), found.trigger
         FROM the_table, found LEFT JOIN pg_roles r ON r.oid = found.who
         WHERE NOT coalesce(r.rolsuper, false)
           AND r.rolname IS DISTINCT FROM current_user
           AND found.who <> the_table.nspowner
           AND found.who <> (SELECT o.nspowner FROM pg_namespace o WHERE o.nspname = 'rowmill')
           AND found.who <> (SELECT d.datdba FROM pg_database d WHERE d.datname = current_database())
         ORDER BY 1, 2, 3",
        &[(&table.oid, Type::OID)],
    )?;
    let warning = |row: &Row| trigger_warning(&table.sql_name, row.get(0), row.get(1), row.get(2));
    Ok(rows.iter().map(warning).collect())
}

fn trigger_warning(table: &str, what: &str, who: &str, trigger: &str) -> String {
    match what {
        "owner" => format!(
            "table {table} belongs to {who}, whose triggers on it run with this role's rights for each row: look at them, and if that is \
             not meant, ALTER TABLE {table} OWNER TO somebody you trust"
        ),
        "right" => format!(
            "{who} may make triggers on table {table}, which run with this role's rights for each row; REVOKE TRIGGER ON {table} FROM \
             {who}"
        ),
        _ => format!(
            "trigger {trigger} of table {table} calls a function of {who}, who may change what it does with this role's rights; ALTER \
             FUNCTION .. OWNER TO the table's owner"
        ),
    }
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
