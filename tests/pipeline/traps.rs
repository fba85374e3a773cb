//! What somebody who may create in a schema puts in the way of others: a function or an operator for each one that some SQL uses.
//! Each raises when it is called, and leaves a trace that no rollback takes away.
//!
//! The scan takes every lower-case name before an opening parenthesis unless a dot stands before it, every run of operator
//! characters, and what `IN`, `ANY`, `BETWEEN`, `DISTINCT`, `JOIN .. USING` and `ORDER BY` mean by themselves; more than there
//! is does no harm. It does not see names that are put together at run time.

use std::collections::BTreeSet;

use postgres::Client;

/// Better matches than the server's own, for calls whose types its "any" leaves open. `concat_ws` as the fingerprint calls it.
const BETTER: [&str; 10] = [
    "format(TEXT, TEXT)",
    "format(TEXT, NAME)",
    "format(TEXT, NAME, NAME)",
    "format(TEXT, TEXT, TEXT)",
    "format(TEXT, ANYCOMPATIBLE, ANYCOMPATIBLE)",
    "concat_ws(TEXT, SMALLINT, NAME, OID, INTEGER, BOOLEAN)",
    "concat_ws(TEXT, TEXT, BOOLEAN)",
    "concat(TEXT, TEXT, TEXT, TEXT, TEXT)",
    "count(TEXT)",
    "array_agg(TEXT)",
];

/// What some SQL calls by a name without a schema.
pub(crate) struct Used {
    functions: BTreeSet<String>,
    operators: BTreeSet<String>,
}

impl Default for Used {
    fn default() -> Used {
        let operators = ["=", "<>", "<", ">", "<=", ">="].map(str::to_owned);
        Used { functions: BTreeSet::new(), operators: operators.into() }
    }
}

/// No name in the catalog has as many bytes: what is longer is none.
const NAME_BYTES: usize = 64;

impl Used {
    pub(crate) fn read(&mut self, sql: &str) {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        for (at, _) in sql.match_indices('(') {
            let before = &sql[..at];
            let name = &before[before.trim_end_matches(is_name).len()..];
            if (1..NAME_BYTES).contains(&name.len()) && !before[..at - name.len()].ends_with(['.', '"', '$'])
            {
                self.functions.insert(name.to_owned());
            }
        }
        let runs = sql.split(|c: char| !"+-*/<>=~!@#%^&|`?".contains(c));
        self.operators.extend(runs.filter(|run| (1..NAME_BYTES).contains(&run.len())).map(str::to_owned));
    }
}

const TRAPS: &str = "
CREATE SEQUENCE pg_temp.number;
CREATE FUNCTION pg_temp.trap(schema TEXT, signature TEXT, result TEXT) RETURNS BOOLEAN LANGUAGE plpgsql AS $make$
BEGIN
    EXECUTE format(
        'CREATE FUNCTION %I.%s RETURNS %s LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_catalog.nextval(''%I.sprung''); RAISE EXCEPTION ''mallory was called: %%'', %L; END $$',
        schema, signature, result, schema, signature);
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    -- Pseudo-types that only the server may use.
    RETURN false;
END $make$;
CREATE FUNCTION pg_temp.operator(schema TEXT, name TEXT, a OID, b OID, result OID) RETURNS BOOLEAN LANGUAGE plpgsql AS $make$
DECLARE
    number    INTEGER := nextval('pg_temp.number');
    arguments TEXT := concat_ws(', ', nullif(a, 0)::REGTYPE, nullif(b, 0)::REGTYPE);
    sides     TEXT := concat_ws(', ', 'LEFTARG = ' || nullif(a, 0)::REGTYPE, 'RIGHTARG = ' || nullif(b, 0)::REGTYPE);
BEGIN
    IF NOT pg_temp.trap(schema, format('operator_%s(%s)', number, arguments), result::REGTYPE::TEXT) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE OPERATOR %I.%s (FUNCTION = %I.operator_%s, %s)', schema, name, schema, number, sides);
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $make$;
";

/// In a session that has the makers.
pub(crate) fn prepare(mallory: &mut Client) {
    mallory.batch_execute(TRAPS).expect("hers");
}

/// Her own session makes a trap for each in one schema; how many.
pub(crate) fn set_traps(mallory: &mut Client, schema: &str, used: &Used) -> (i64, i64) {
    mallory
        .batch_execute(&format!(
            "CREATE SEQUENCE {schema}.sprung; GRANT USAGE, SELECT ON {schema}.sprung TO PUBLIC"
        ))
        .expect("hers");
    let functions: Vec<&String> = used.functions.iter().collect();
    let operators: Vec<&String> = used.operators.iter().collect();
    let sql = "SELECT count(*) FILTER (WHERE pg_temp.trap(
                   $2, format('%I(%s)', proname, oidvectortypes(proargtypes)),
                   CASE WHEN proretset THEN 'SETOF ' ELSE '' END || prorettype::REGTYPE))
               FROM pg_catalog.pg_proc WHERE proname = ANY ($1) AND pronamespace = 'pg_catalog'::REGNAMESPACE";
    let made = mallory.query_one(sql, &[&functions, &schema]).expect("traps").get(0);
    for better in BETTER {
        let trapped = "SELECT pg_temp.trap($2, $1, 'TEXT')";
        assert!(
            mallory.query_one(trapped, &[&better, &schema]).expect("a trap").get::<_, bool>(0),
            "{better}"
        );
    }
    let sql = "SELECT count(*) FILTER (WHERE pg_temp.operator($2, oprname::TEXT, oprleft, oprright, oprresult))
               FROM pg_catalog.pg_operator WHERE oprname = ANY ($1) AND oprnamespace = 'pg_catalog'::REGNAMESPACE";
    (made, mallory.query_one(sql, &[&operators, &schema]).expect("traps").get(0))
}

/// True if one of hers in this schema was called since [`set_traps`].
pub(crate) fn are_sprung(client: &mut Client, schema: &str) -> bool {
    let sql = format!("SELECT is_called FROM {schema}.sprung");
    client.query_one(&sql, &[]).expect("hers").get(0)
}
