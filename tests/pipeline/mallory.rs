//! Somebody who may create in the schema public and nowhere else, against every verb: she makes a function or an operator for
//! each one that our SQL uses, in the way of all our roles, and none of hers is ever called.
//!
//! What our SQL uses is read from the source: the string literals of `src/` that hold a statement, and the files of `sql/`. The
//! scan takes every lower-case name before an opening parenthesis unless a dot stands before it, every run of operator
//! characters, and what `IN`, `ANY`, `BETWEEN`, `DISTINCT`, `JOIN .. USING` and `ORDER BY` mean by themselves; more than there
//! is does no harm. It does not see names that are put together at run time.

use std::collections::BTreeSet;

use postgres::{Client, NoTls};

use crate::roles::{ROLES, url_of};
use crate::source::Tree;
use crate::world::{World, record, rowmill_as, wait_for};

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

/// What our SQL calls by a name without a schema.
#[derive(Default)]
struct Used {
    functions: BTreeSet<String>,
    operators: BTreeSet<String>,
}

impl Used {
    fn by_us() -> Used {
        let mut used = Used::default();
        for (text, _) in Tree::read("src").sources.iter().flat_map(|source| &source.texts) {
            if ["SELECT", "INSERT", "UPDATE", "DELETE", "COPY", "WHERE", " AND ", "::"]
                .iter()
                .any(|w| text.contains(w))
            {
                used.read(text);
            }
        }
        for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/sql")).expect("sql") {
            used.read(&std::fs::read_to_string(file.expect("a file").path()).expect("a text"));
        }
        used.operators.extend(["=", "<>", "<", ">", "<=", ">="].map(str::to_owned));
        used
    }

    fn read(&mut self, sql: &str) {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        for (at, _) in sql.match_indices('(') {
            let before = &sql[..at];
            let name = &before[before.trim_end_matches(is_name).len()..];
            if !name.is_empty() && !before[..at - name.len()].ends_with(['.', '"', '$']) {
                self.functions.insert(name.to_owned());
            }
        }
        let runs = sql.split(|c: char| !"+-*/<>=~!@#%^&|`?".contains(c));
        self.operators.extend(runs.filter(|run| !run.is_empty()).map(str::to_owned));
    }
}

/// Each of hers raises, and leaves a trace that no rollback takes away.
const TRAPS: &str = "
CREATE SEQUENCE public.sprung;
GRANT USAGE, SELECT ON public.sprung TO PUBLIC;
CREATE FUNCTION pg_temp.trap(signature TEXT, result TEXT) RETURNS BOOLEAN LANGUAGE plpgsql AS $make$
BEGIN
    EXECUTE format(
        'CREATE FUNCTION public.%s RETURNS %s LANGUAGE plpgsql AS
         $$ BEGIN PERFORM pg_catalog.nextval(''public.sprung''); RAISE EXCEPTION ''mallory was called: %%'', %L; END $$',
        signature, result, signature);
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    -- Pseudo-types that only the server may use.
    RETURN false;
END $make$;
CREATE FUNCTION pg_temp.operator(name TEXT, a OID, b OID, result OID) RETURNS BOOLEAN LANGUAGE plpgsql AS $make$
DECLARE
    number    INTEGER := nextval('pg_temp.number');
    arguments TEXT := concat_ws(', ', nullif(a, 0)::REGTYPE, nullif(b, 0)::REGTYPE);
    sides     TEXT := concat_ws(', ', 'LEFTARG = ' || nullif(a, 0)::REGTYPE, 'RIGHTARG = ' || nullif(b, 0)::REGTYPE);
BEGIN
    IF NOT pg_temp.trap(format('operator_%s(%s)', number, arguments), result::REGTYPE::TEXT) THEN
        RETURN false;
    END IF;
    EXECUTE format('CREATE OPERATOR public.%s (FUNCTION = public.operator_%s, %s)', name, number, sides);
    RETURN true;
EXCEPTION WHEN OTHERS THEN
    RETURN false;
END $make$;
";

/// Her own session makes a trap for each; how many.
fn set_traps(mallory: &mut Client, used: &Used) -> (i64, i64) {
    mallory.batch_execute("CREATE SEQUENCE pg_temp.number").expect("hers");
    mallory.batch_execute(TRAPS).expect("hers");
    let functions: Vec<&String> = used.functions.iter().collect();
    let operators: Vec<&String> = used.operators.iter().collect();
    let sql = "SELECT count(*) FILTER (WHERE pg_temp.trap(
                   format('%I(%s)', proname, oidvectortypes(proargtypes)),
                   CASE WHEN proretset THEN 'SETOF ' ELSE '' END || prorettype::REGTYPE))
               FROM pg_catalog.pg_proc WHERE proname = ANY ($1) AND pronamespace = 'pg_catalog'::REGNAMESPACE";
    let made = mallory.query_one(sql, &[&functions]).expect("traps").get(0);
    for better in BETTER {
        let trapped = "SELECT pg_temp.trap($1, 'TEXT')";
        assert!(mallory.query_one(trapped, &[&better]).expect("a trap").get::<_, bool>(0), "{better}");
    }
    let sql = "SELECT count(*) FILTER (WHERE pg_temp.operator(oprname::TEXT, oprleft, oprright, oprresult))
               FROM pg_catalog.pg_operator WHERE oprname = ANY ($1) AND oprnamespace = 'pg_catalog'::REGNAMESPACE";
    (made, mallory.query_one(sql, &[&operators]).expect("traps").get(0))
}

#[test]
fn what_a_stranger_makes_in_public_is_never_called() {
    let world = World::alone("mallory");
    world.create_topic("in", 1);
    let mut admin = world.sql();
    admin.batch_execute("DROP SCHEMA rowmill CASCADE").expect("the tests' own is gone");
    admin.batch_execute(ROLES).expect("roles");
    admin
        .batch_execute("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory LOGIN PASSWORD 'pw'; GRANT CREATE ON SCHEMA public TO mallory")
        .expect("mallory");
    let database: String = admin.query_one("SELECT current_database()", &[]).expect("a name").get(0);
    for role in ["rowmill_owner", "rowmill_writer"] {
        // Her schema comes before the server's own, so that each of hers hides it, whatever the types.
        admin
            .batch_execute(&format!(
                "ALTER ROLE {role} PASSWORD 'pw'; ALTER ROLE {role} IN DATABASE {database} SET search_path = public, pg_catalog"
            ))
            .expect("a role");
    }
    let used = Used::by_us();
    let mut mallory = Client::connect(&url_of(&world, "mallory"), NoTls).expect("she logs in");
    let (functions, operators) = set_traps(&mut mallory, &used);
    assert!(functions > 60 && operators > 100, "{functions} functions, {operators} operators");
    let (owner, writer) = (url_of(&world, "rowmill_owner"), url_of(&world, "rowmill_writer"));
    // They work on whoever does not look out.
    let mut careless = Client::connect(&writer, NoTls).expect("the writer logs in");
    for sql in [
        "SELECT format('%I', 'x'::TEXT)",
        "SELECT 1 WHERE 1 = 1",
        "SELECT count(*)",
        "SELECT unnest('{1}'::INTEGER[])",
    ] {
        careless.query(sql, &[]).expect_err(sql);
    }
    drop(careless);
    admin.batch_execute("SELECT setval('public.sprung', 1, false)").expect("as new");
    let untouched = |after: &str| {
        let mut admin = world.sql();
        let touched: bool = admin.query_one("SELECT is_called FROM public.sprung", &[]).expect("hers").get(0);
        assert!(!touched, "after {after}");
    };
    let as_role = |url: &str, arguments: &[&str]| {
        let (text, ok) = rowmill_as(&world, url, arguments);
        untouched(&arguments.join(" "));
        assert!(ok && !text.contains("mallory was called"), "{arguments:?}: {text}");
        text
    };

    as_role(&owner, &["init", "--models"]);
    let mut superuser = world.sql();
    superuser.batch_execute("SET search_path = public, pg_catalog").expect("set");
    superuser.batch_execute(ROLES).expect("grants");
    untouched("sql/roles.sql");
    admin
        .batch_execute(
            "CREATE TABLE public.t (n BIGINT NOT NULL UNIQUE, word VARCHAR(20), _topic TEXT, _partition INTEGER, _offset BIGINT);
             GRANT INSERT ON public.t TO rowmill_writer; GRANT SELECT ON public.t TO rowmill_owner",
        )
        .expect("a table");

    let config = world.model("in", "t", "");
    let file = world.file("mallory.toml", &config);
    let text = as_role(&writer, &["check", "--config", &file]);
    assert!(text.contains("WARNING") && text.contains("mallory may create in schema public"), "{text}");
    // Rows, a letter, and a row that only the server refuses.
    world.produce("in", 0, (0..50).map(record).chain(["{".to_owned(), record(7)]));
    let engine = world.engine(&config, &[("DATABASE_URL", writer.as_str())]);
    wait_for("rows and letters", 30, || {
        world.count("SELECT (SELECT count(*) FROM public.t) + (SELECT count(*) FROM rowmill.dead_letter)")
            >= 52
    });
    let second = world.engine(&config, &[("DATABASE_URL", writer.as_str())]);
    wait_for("a second member", 30, || second.log().contains("member"));
    as_role(&owner, &["status", "--config", &file]);
    let (status, _) = engine.stop();
    assert!(status.success() && !second.log().contains("mallory was called"), "{}", second.log());
    second.kill();
    untouched("run");
    as_role(&owner, &["verify", "--config", &file]);
    for action in [&["list"][..], &["show", "1"], &["retry", "--every", "--dry-run"]] {
        as_role(&owner, &[&["dead-letters", "--config", &file], action].concat());
    }
    admin.batch_execute("DELETE FROM public.t WHERE n = 7").expect("room");
    let text = as_role(&owner, &["dead-letters", "--config", &file, "retry", "--every"]);
    assert!(text.contains("1 letter stored"), "{text}");
    as_role(&owner, &["dead-letters", "--config", &file, "discard", "--every"]);
    let gap = format!("{}/0:52-60", world.topic("in"));
    as_role(&owner, &["init", "--config", &file, "--accept-gap", &gap]);
    let other = world.file("other.toml", &format!("pipeline = \"other\"\n{config}"));
    admin.batch_execute("UPDATE rowmill.member SET heartbeat_at = 'epoch'").expect("nobody lives");
    as_role(&owner, &["init", "--config", &other, "--take-over", "rowmill"]);
    drop((mallory, admin, superuser));
    let mut last = world.sql();
    last.batch_execute(&format!(
        "DROP OWNED BY mallory; DROP ROLE mallory; ALTER ROLE rowmill_owner IN DATABASE {database} RESET search_path;
         ALTER ROLE rowmill_writer IN DATABASE {database} RESET search_path"
    ))
    .expect("gone");
}
