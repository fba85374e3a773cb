//! The engine under the role that sql/roles.sql makes, with not one right more.

use std::cell::RefCell;
use std::collections::BTreeSet;

use postgres::{Client, NoTls};

use crate::world::{Class, World, record, rowmill_as, wait_for};

pub(crate) const ROLES: &str = include_str!("../../sql/roles.sql");

/// The world's database as one of the roles.
pub(crate) fn url_of(world: &World, role: &str) -> String {
    let (_, address) = world.database_url.rsplit_once('@').expect("a user in the URL");
    format!("postgresql://{role}:pw@{address}")
}

#[test]
fn the_writer_needs_what_the_file_grants_and_can_do_nothing_else() {
    let world = World::new("roles");
    world.create_topic("in", 2);
    let mut admin = world.sql();
    admin.batch_execute("DROP SCHEMA rowmill CASCADE").expect("the tests' own is gone");
    admin.batch_execute(ROLES).expect("roles");
    for role in ["rowmill_owner", "rowmill_writer"] {
        admin.batch_execute(&format!("ALTER ROLE {role} PASSWORD 'pw'")).expect("a password");
    }
    // Roles belong to the whole server, and outlive a test that failed.
    let person = format!("roles_reader_{}", std::process::id());
    admin
        .batch_execute(&format!("CREATE ROLE {person} LOGIN PASSWORD 'pw' IN ROLE rowmill_reader"))
        .expect("a person");
    let (owner, writer) = (url_of(&world, "rowmill_owner"), url_of(&world, "rowmill_writer"));
    let (text, ok) = rowmill_as(&world, &owner, &["init", "--models"]);
    assert!(ok, "{text}");
    admin
        .batch_execute(
            "CREATE TABLE public.t (n BIGINT NOT NULL, word VARCHAR(20), _topic TEXT, _partition INTEGER, _offset BIGINT)",
        )
        .expect("a table");
    let config = world.model("in", "t", "");
    let file = world.file("roles.toml", &config);
    let (text, ok) = rowmill_as(&world, &writer, &["check", "--config", &file]);
    assert!(!ok, "the file was not run after init: {text}");
    admin.batch_execute(ROLES).expect("grants");
    let (text, ok) = rowmill_as(&world, &writer, &["check", "--config", &file]);
    assert!(!ok && text.contains("the role may not INSERT on \"public\".\"t\""), "{text}");
    admin.batch_execute("GRANT INSERT ON public.t TO rowmill_writer").expect("granted");
    admin.batch_execute("GRANT SELECT ON public.t TO rowmill_reader").expect("granted");
    let (text, ok) = rowmill_as(&world, &writer, &["check", "--config", &file]);
    assert!(ok, "{text}");

    // Rows, dead letters, a row that only the server refuses, a kill and a take-over.
    admin.batch_execute("CREATE UNIQUE INDEX ON public.t (n)").expect("an index");
    let environment = [("DATABASE_URL", writer.as_str())];
    let first = world.engine(&config, &environment);
    world.produce("in", 0, (0..500).map(record).chain(["{".to_owned(), record(7)]));
    wait_for("rows", 20, || world.count("SELECT count(*) FROM public.t") >= 500);
    first.kill();
    world.produce("in", 1, (500..700).map(record));
    let second = world.engine(&config, &environment);
    world.wait_drained(&["in"], 30);
    let (status, _) = second.stop();
    assert_eq!(status.code(), Some(0));
    let seen = RefCell::new(BTreeSet::new());
    world.check("t", &["in"], |value| {
        let text = String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
        if text == "{" || !seen.borrow_mut().insert(text) { Class::Dead } else { Class::Row }
    });

    let (text, ok) = rowmill_as(&world, &owner, &["dead-letters", "list", "--config", &file]);
    assert!(ok && text.contains("invalid_json"), "{text}");
    let reader = url_of(&world, &person);
    let (text, ok) = rowmill_as(&world, &reader, &["status", "--config", &file]);
    assert!(ok && text.contains("open dead letters"), "{text}");
    // The service's own role may not read what was set aside, and is told so beside the rest.
    let (text, ok) = rowmill_as(&world, &writer, &["status", "--config", &file]);
    assert!(ok && text.contains("topic ") && text.contains("not shown: dead letters"), "{text}");
    let mut sql = Client::connect(&writer, NoTls).expect("the writer logs in");
    for forbidden in [
        "SELECT n FROM public.t",
        "DELETE FROM public.t",
        "TRUNCATE public.t",
        "SELECT value FROM rowmill.dead_letter",
        "DELETE FROM rowmill.ledger",
        "INSERT INTO rowmill.gap VALUES ('t', 0, 'x', 0, 1)",
        "UPDATE rowmill.version SET version = 9",
        "CREATE TABLE rowmill.x (n INTEGER)",
        "CREATE SCHEMA x",
    ] {
        let error = sql.batch_execute(forbidden).expect_err(forbidden);
        assert_eq!(error.code().map(|c| c.code()), Some("42501"), "{forbidden}: {error}");
    }
    drop(sql);
    admin.batch_execute(&format!("DROP OWNED BY {person}; DROP ROLE {person}")).expect("dropped");
}
