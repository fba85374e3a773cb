//! What the server says of a statement, without running it: its columns and types, and which tables it reads. Asked at the start,
//! by `check`, and again when a table changed.

use anyhow::{Context, Result, anyhow};
use postgres::error::ErrorPosition;
use postgres::types::{Kind, Type};

use super::endpoint::Endpoint;
use crate::base::failure::Class;
use crate::client::pg::{Client, FIXED_PATH, classify, describe as words};
use crate::config::{Etag, Format, PlanMode, Shape};

/// What is known of an endpoint's statement.
#[derive(Clone, Debug, Default)]
pub struct Description {
    pub columns: Vec<Column>,
    pub tables: Vec<Table>,
    /// Why a tag from the ledger would be wrong; empty where it would not.
    pub untagged: Vec<String>,
    /// The statement for each form of the answer, in the order of the endpoint's formats.
    pub sql: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub ty: Type,
}

/// A table that a statement reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// As the ledger calls it.
    pub target: String,
    pub oid: u32,
    /// It has parts: partitions, chunks, or tables that inherit.
    pub has_parts: bool,
    /// An ordinary or partitioned table, whose rows only change by being written.
    pub is_plain: bool,
    /// Roles beside the owner and this one that may write it.
    pub writers: Vec<String>,
}

/// Words that stand for the time of the question.
const CLOCKS: [&str; 14] = [
    "now",
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
    "clock_timestamp",
    "statement_timestamp",
    "transaction_timestamp",
    "timeofday",
    "age",
    "current_user",
    "session_user",
    "current_setting",
];

/// Locks that this transaction took for names in the statement: the server takes them while it reads the statement.
const TABLES_SQL: &str = "\
SELECT n.nspname::text, c.relname::text, c.oid, c.relhassubclass OR c.relkind = 'p', c.relkind IN ('r', 'p')
FROM pg_catalog.pg_locks k
JOIN pg_catalog.pg_class c ON c.oid = k.relation
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE k.pid = pg_backend_pid() AND k.locktype = 'relation'
  AND k.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())
  AND c.relkind IN ('r', 'p', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'pg_toast', 'information_schema')
ORDER BY 1, 2";

const WRITERS_SQL: &str = "\
SELECT DISTINCT coalesce(r.rolname::text, 'everybody')
FROM pg_catalog.pg_class c, aclexplode(c.relacl) a
LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE c.oid = $1 AND a.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE') AND a.grantee <> c.relowner
ORDER BY 1";

/// Of these words, those that may call a function whose answer depends on more than tables and values.
const FUNCTIONS_SQL: &str = "\
SELECT DISTINCT p.proname::text FROM pg_catalog.pg_proc p
WHERE p.proname::text = ANY ($1)
  AND (p.provolatile = 'v' OR p.pronamespace <> 'pg_catalog'::regnamespace)
ORDER BY 1";

/// Asks in a transaction that changes nothing.
///
/// # Errors
/// The server's words where the statement cannot be: unknown columns, types that do not fit, with the line.
pub fn describe(client: &mut Client, endpoint: &Endpoint) -> Result<Description> {
    asked(client, endpoint).with_context(|| format!("in the endpoint {:?}", endpoint.name))
}

fn asked(client: &mut Client, endpoint: &Endpoint) -> Result<Description> {
    let types: Vec<Type> =
        endpoint.types().into_iter().map(|oid| Type::from_oid(oid).unwrap_or(Type::UNKNOWN)).collect();
    // The statement is the operator's, and finds its names by the role's own search_path; everything after it does not.
    let mut transaction = client.by_role_path().transaction()?;
    let text = &endpoint.statement.text;
    let statement =
        transaction.prepare_typed(text, &types).map_err(|error| said(error, text)).context("sql")?;
    let columns: Vec<Column> = statement
        .columns()
        .iter()
        .map(|column| Column { name: column.name().to_owned(), ty: column.type_().clone() })
        .collect();
    fits_its_shape(endpoint, &columns)?;
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    let mut sql = Vec::new();
    for format in &endpoint.formats {
        let text = endpoint.sql(*format, &names);
        transaction
            .prepare_typed(&text, &types)
            .map_err(|error| said(error, &text))
            .with_context(|| format!("sql, as {} asks for it", super::endpoint::suffix(*format)))?;
        sql.push(text);
    }
    transaction.batch_execute(FIXED_PATH)?;
    let mut tables = Vec::new();
    for row in transaction.query_typed(TABLES_SQL, &[]).context("read which tables it names")? {
        let (schema, name): (String, String) = (row.get(0), row.get(1));
        let oid: u32 = row.get(2);
        let writers = transaction.query_typed(WRITERS_SQL, &[(&oid, Type::OID)])?;
        tables.push(Table {
            target: target(&schema, &name),
            oid,
            has_parts: row.get(3),
            is_plain: row.get(4),
            writers: writers.iter().map(|row| row.get(0)).collect(),
        });
    }
    let untagged = if endpoint.etag == Some(Etag::Ledger) {
        let calls = &endpoint.statement.words;
        let found = transaction.query_typed(FUNCTIONS_SQL, &[(calls, Type::TEXT_ARRAY)])?;
        untagged(endpoint, &tables, found.iter().map(|row| row.get(0)).collect())
    } else {
        Vec::new()
    };
    transaction.rollback()?;
    Ok(Description { columns, tables, untagged, sql })
}

/// As `rowmill run` writes it into the ledger.
fn target(schema: &str, name: &str) -> String {
    let is_plain =
        |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    if is_plain(schema) && is_plain(name) {
        format!("{schema}.{name}")
    } else {
        format!("{}.{}", quoted(schema), quoted(name))
    }
}

fn untagged(endpoint: &Endpoint, tables: &[Table], functions: Vec<String>) -> Vec<String> {
    let mut why = Vec::new();
    if tables.is_empty() {
        why.push("it reads no table".to_owned());
    }
    let others = tables.iter().filter(|table| !table.is_plain);
    why.extend(others.map(|table| format!("{} is no table that rowmill fills", table.target)));
    let clocks = endpoint.statement.words.iter().filter(|word| CLOCKS.contains(&word.as_str()));
    why.extend(clocks.map(|word| format!("{word} changes without any record")));
    let functions = functions.into_iter().filter(|name| !CLOCKS.contains(&name.as_str()));
    why.extend(functions.map(|name| format!("{name} is the name of a function that may read anything")));
    why.dedup();
    why
}

fn fits_its_shape(endpoint: &Endpoint, columns: &[Column]) -> Result<()> {
    if columns.is_empty() {
        return Err(anyhow!("sql gives no rows; for a statement that writes, end it with RETURNING"));
    }
    for (at, column) in columns.iter().enumerate() {
        if columns[..at].iter().any(|other| other.name == column.name) {
            return Err(anyhow!("sql has two columns named {0:?}: name one of them with AS", column.name));
        }
    }
    if endpoint.shape == Shape::Value && columns.len() != 1 {
        return Err(anyhow!("sql has {} columns, and shape = \"value\" is of one", columns.len()));
    }
    let names = || columns.iter().map(|column| column.name.as_str());
    let missing =
        endpoint.chart.iter().flat_map(|chart| chart.columns()).find(|wanted| !names().any(|n| n == *wanted));
    if let Some(missing) = missing {
        return Err(anyhow!(
            "chart: sql has no column {missing:?}{}",
            crate::base::spelling::did_you_mean(missing, names())
        ));
    }
    Ok(())
}

/// The server's words, with the line of the statement that they are about. What is not about the statement stays an error of its own.
fn said(error: postgres::Error, sql: &str) -> anyhow::Error {
    if matches!(classify(&error), Class::Lost | Class::World) {
        return error.into();
    }
    let position = error.as_db_error().and_then(|db| db.position());
    match position {
        Some(ErrorPosition::Original(at)) => {
            let before: String = sql.chars().take((*at as usize).saturating_sub(1)).collect();
            let line = 1 + before.matches('\n').count();
            anyhow!("line {line}: {}", words(&error))
        }
        _ => anyhow!("{}", words(&error)),
    }
}

impl Description {
    /// How the server is to plan the statement.
    pub fn plan(&self, endpoint: &Endpoint) -> PlanMode {
        match endpoint.plan {
            // A plan for all values opens every part of a table; from the sixth call on the server prefers it.
            PlanMode::Choose if self.tables.iter().any(|table| table.has_parts) => PlanMode::Custom,
            PlanMode::Choose => PlanMode::Auto,
            chosen => chosen,
        }
    }

    pub fn targets(&self) -> Vec<String> {
        self.tables.iter().map(|table| table.target.clone()).collect()
    }

    pub fn sql_for(&self, endpoint: &Endpoint, format: Format) -> &str {
        let at = endpoint.formats.iter().position(|other| *other == format).unwrap_or(0);
        &self.sql[at]
    }
}

/// What JSON has for a column's type: a schema of OpenAPI 3.1.
pub fn schema(ty: &Type) -> serde_json::Value {
    use serde_json::json;
    // Any column may be NULL, which JSON writes as null.
    match *ty {
        Type::BOOL => json!({ "type": ["boolean", "null"] }),
        Type::INT2 | Type::INT4 | Type::INT8 | Type::OID => json!({ "type": ["integer", "null"] }),
        // What is no number is a text there.
        Type::FLOAT4 | Type::FLOAT8 | Type::NUMERIC => json!({ "anyOf": [
            { "type": "number" },
            { "type": "string", "enum": ["NaN", "Infinity", "-Infinity"] },
            { "type": "null" },
        ] }),
        // Beside times there are infinity and -infinity, and years before the first.
        Type::TIMESTAMPTZ | Type::TIMESTAMP | Type::DATE | Type::UUID | Type::TEXT | Type::VARCHAR => {
            json!({ "type": ["string", "null"] })
        }
        Type::JSON | Type::JSONB => json!({}),
        ref other => match other.kind() {
            // Of one dimension, as a rule; another one is a list of lists.
            Kind::Array(_) => json!({ "type": ["array", "null"] }),
            Kind::Composite(_) => json!({ "type": ["object", "null"] }),
            Kind::Domain(inner) => schema(inner),
            Kind::Enum(labels) => {
                let labels: Vec<Option<&String>> = labels.iter().map(Some).chain([None]).collect();
                json!({ "enum": labels })
            }
            _ => json!({ "type": ["string", "null"] }),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_called_as_the_ledger_calls_them() {
        assert_eq!(target("public", "sample_1"), "public.sample_1");
        assert_eq!(target("public", "Sample"), "\"public\".\"Sample\"");
        assert_eq!(target("s", "a\"b"), "\"s\".\"a\"\"b\"");
    }

    #[test]
    fn schemas_know_what_is_no_number() {
        assert_eq!(schema(&Type::INT8)["type"][0], "integer");
        assert!(schema(&Type::FLOAT8).to_string().contains("-Infinity"));
        assert_eq!(schema(&Type::INT8_ARRAY)["type"][0], "array");
        assert_eq!(schema(&Type::INET)["type"][0], "string");
    }
}
