//! Somebody who may create in the schema public, in that of the tables, or in both, where she may also write to a table, against
//! every verb: she makes a function or an operator for each one that our SQL uses, in the way of all our roles, and none of hers is
//! ever called.
//!
//! What our SQL uses is read from the source: the string literals of `src/` that hold a statement, and the files of `sql/`.

use postgres::{Client, NoTls};

use crate::roles::{ROLES, url_of};
use crate::source::Tree;
use crate::traps::{self, Used};
use crate::world::{World, record, rowmill_as, wait_for};

/// What our SQL calls by a name without a schema.
fn used_by_us() -> Used {
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
    used
}

#[test]
fn what_a_stranger_makes_in_public_is_never_called() {
    play("mallory", &["public"], "public");
}

#[test]
fn what_a_stranger_makes_in_the_tables_schema_is_never_called() {
    play("mallory_app", &["app"], "app");
}

#[test]
fn what_a_stranger_makes_in_both_is_never_called_and_her_rights_to_a_table_help_nothing() {
    play("mallory_both", &["app", "public"], "app");
}

/// She makes her traps in these schemas, which all our roles look into before the server's own. The tables are in `home`.
fn play(name: &str, hers: &[&str], home: &str) {
    let world = World::alone(name);
    world.create_topic("in", 1);
    let mut admin = world.sql();
    admin
        .batch_execute("DROP SCHEMA rowmill CASCADE; CREATE SCHEMA IF NOT EXISTS app")
        .expect("the tests' own is gone");
    admin.batch_execute(ROLES).expect("roles");
    admin
        .batch_execute("DROP ROLE IF EXISTS mallory; CREATE ROLE mallory LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA app TO PUBLIC")
        .expect("mallory");
    let database: String = admin.query_one("SELECT current_database()", &[]).expect("a name").get(0);
    // Her schemas come before the server's own, so that each of hers hides it, whatever the types.
    let path = format!("{}, pg_catalog", hers.join(", "));
    for role in ["rowmill_owner", "rowmill_writer"] {
        admin
            .batch_execute(&format!(
                "ALTER ROLE {role} PASSWORD 'pw'; ALTER ROLE {role} IN DATABASE {database} SET search_path = {path}"
            ))
            .expect("a role");
    }
    let used = used_by_us();
    let mut mallory = Client::connect(&url_of(&world, "mallory"), NoTls).expect("she logs in");
    traps::prepare(&mut mallory);
    for schema in hers {
        admin.batch_execute(&format!("GRANT CREATE ON SCHEMA {schema} TO mallory")).expect("a right");
        let (functions, operators) = traps::set_traps(&mut mallory, schema, &used);
        assert!(functions > 60 && operators > 100, "{functions} functions, {operators} operators");
    }
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
    for schema in hers {
        admin.batch_execute(&format!("SELECT setval('{schema}.sprung', 1, false)")).expect("as new");
    }
    let untouched = |after: &str| {
        let mut admin = world.sql();
        for schema in hers {
            assert!(!traps::are_sprung(&mut admin, schema), "{schema} after {after}");
        }
    };
    let as_role = |url: &str, arguments: &[&str]| {
        let (text, ok) = rowmill_as(&world, url, arguments);
        untouched(&arguments.join(" "));
        assert!(ok && !text.contains("mallory was called"), "{arguments:?}: {text}");
        text
    };

    as_role(&owner, &["init", "--models"]);
    let mut superuser = world.sql();
    superuser.batch_execute(&format!("SET search_path = {path}")).expect("set");
    superuser.batch_execute(ROLES).expect("grants");
    untouched("sql/roles.sql");
    admin
        .batch_execute(&format!(
            "CREATE TABLE {home}.t (n BIGINT NOT NULL UNIQUE, word VARCHAR(20), _topic TEXT, _partition INTEGER, _offset BIGINT);
             GRANT INSERT ON {home}.t TO rowmill_writer; GRANT SELECT ON {home}.t TO rowmill_owner"
        ))
        .expect("a table");
    if hers.len() > 1 {
        admin.batch_execute(&format!("GRANT INSERT ON {home}.t TO mallory")).expect("a right");
    }

    let config = world.model("in", "t", "");
    let file = world.file("mallory.toml", &config);
    let text = as_role(&writer, &["check", "--config", &file]);
    for schema in hers {
        let warning = format!("mallory may create in schema {schema}");
        assert!(text.contains("WARNING") && text.contains(&warning), "{text}");
    }
    // Rows, a letter, and a row that only the server refuses.
    world.produce("in", 0, (0..50).map(record).chain(["{".to_owned(), record(7)]));
    let engine = world.engine(&config, &[("DATABASE_URL", writer.as_str())]);
    let outcomes =
        format!("SELECT (SELECT count(*) FROM {home}.t) + (SELECT count(*) FROM rowmill.dead_letter)");
    wait_for("rows and letters", 30, || world.count(&outcomes) >= 52);
    let second = world.engine(&config, &[("DATABASE_URL", writer.as_str())]);
    wait_for("a second member", 30, || second.log().contains("member"));
    if hers.len() > 1 {
        // With her right to the table she writes rows, and nothing else: neither a trigger nor the ledger.
        mallory.batch_execute(&format!("INSERT INTO {home}.t (n) VALUES (-1)")).expect("a row of hers");
        for sql in [
            format!(
                "CREATE TRIGGER hers BEFORE INSERT ON {home}.t EXECUTE FUNCTION suppress_redundant_updates_trigger()"
            ),
            "UPDATE rowmill.ledger SET next_offset = next_offset".to_owned(),
            "SELECT rowmill.advance('x', 'x', 0, 'x', '[]')".to_owned(),
        ] {
            mallory.batch_execute(&sql).expect_err(&sql);
        }
        admin.batch_execute(&format!("DELETE FROM {home}.t WHERE n = -1")).expect("gone");
    }
    as_role(&owner, &["status", "--config", &file]);
    let (status, _) = engine.stop();
    assert!(status.success() && !second.log().contains("mallory was called"), "{}", second.log());
    second.kill();
    untouched("run");
    as_role(&owner, &["verify", "--config", &file]);
    for action in [&["list"][..], &["show", "1"], &["retry", "--every", "--dry-run"]] {
        as_role(&owner, &[&["dead-letters", "--config", &file], action].concat());
    }
    admin.batch_execute(&format!("DELETE FROM {home}.t WHERE n = 7")).expect("room");
    let text = as_role(&owner, &["dead-letters", "--config", &file, "retry", "--every"]);
    assert!(text.contains("1 letter stored"), "{text}");
    as_role(&owner, &["dead-letters", "--config", &file, "discard", "--every"]);
    let gap = format!("{}/0:52-60", world.topic("in"));
    as_role(&owner, &["init", "--config", &file, "--accept-gap", &gap]);
    let other = world.file("other.toml", &format!("pipeline = \"other\"\n{config}"));
    admin.batch_execute("UPDATE rowmill.member SET heartbeat_at = 'epoch'").expect("nobody lives");
    as_role(&owner, &["init", "--config", &other, "--take-over", "rowmill"]);
    assert_eq!(
        world.count("SELECT count(*) FROM rowmill.ledger WHERE next_offset <> 60"),
        0,
        "as it was moved by name"
    );
    drop((mallory, admin, superuser));
    let mut last = world.sql();
    last.batch_execute(&format!(
        "DROP OWNED BY mallory; DROP ROLE mallory; ALTER ROLE rowmill_owner IN DATABASE {database} RESET search_path;
         ALTER ROLE rowmill_writer IN DATABASE {database} RESET search_path"
    ))
    .expect("gone");
}

#[test]
fn a_built_in_table_that_somebody_else_made_is_refused() {
    let world = World::alone("mallory_metric");
    let mut admin = world.sql();
    admin.batch_execute("DROP SCHEMA rowmill CASCADE").expect("the tests' own is gone");
    admin.batch_execute(ROLES).expect("roles");
    admin
        .batch_execute(
            "ALTER ROLE rowmill_owner PASSWORD 'pw'; DROP ROLE IF EXISTS mallory; CREATE ROLE mallory LOGIN PASSWORD 'pw';
             GRANT CREATE ON SCHEMA public TO mallory",
        )
        .expect("mallory");
    let mut mallory = Client::connect(&url_of(&world, "mallory"), NoTls).expect("she logs in");
    mallory.batch_execute("CREATE TABLE public.metric (value FLOAT8)").expect("a table of hers");
    let owner = url_of(&world, "rowmill_owner");
    let (text, ok) = rowmill_as(&world, &owner, &["init", "--models"]);
    assert!(!ok && text.contains("public.metric is there already and belongs to mallory"), "{text}");
    assert_eq!(
        world.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'rowmill'"),
        0,
        "nothing was changed"
    );
    drop(mallory);
    admin.batch_execute("DROP TABLE public.metric; DROP OWNED BY mallory; DROP ROLE mallory").expect("gone");
    let (text, ok) = rowmill_as(&world, &owner, &["init", "--models"]);
    assert!(ok, "{text}");
    // Again, as often as one likes.
    let (text, ok) = rowmill_as(&world, &owner, &["init", "--models"]);
    assert!(ok, "{text}");
}

#[test]
fn check_tells_who_may_have_code_run_for_each_row() {
    let world = World::alone("mallory_triggers");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let mut admin = world.sql();
    let person = format!("mallory_{}", std::process::id());
    let config = world.model("in", "t", "");
    let file = world.file("triggers.toml", &config);
    let check = || {
        let (text, ok) = rowmill_as(&world, &world.database_url, &["check", "--config", &file]);
        assert!(ok, "{text}");
        text
    };
    assert!(!check().contains("run with this role's rights"));
    admin.batch_execute(&format!("CREATE ROLE {person}; GRANT TRIGGER ON t TO {person}")).expect("a right");
    assert!(check().contains(&format!("WARNING  {person} may make triggers on table \"public\".\"t\"")));
    admin
        .batch_execute(&format!(
            "REVOKE TRIGGER ON t FROM {person};
             CREATE FUNCTION hers() RETURNS TRIGGER LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             ALTER FUNCTION hers() OWNER TO {person};
             CREATE TRIGGER of_ours BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION hers()"
        ))
        .expect("a trigger");
    let text = check();
    assert!(
        text.contains(&format!(
            "WARNING  trigger of_ours of table \"public\".\"t\" calls a function of {person}"
        )),
        "{text}"
    );
    admin
        .batch_execute(&format!("DROP TRIGGER of_ours ON t; ALTER TABLE t OWNER TO {person}"))
        .expect("hers now");
    let text = check();
    assert!(text.contains(&format!("WARNING  table \"public\".\"t\" belongs to {person}")), "{text}");
    admin.batch_execute(&format!("DROP TABLE t; DROP OWNED BY {person}; DROP ROLE {person}")).expect("gone");
}
