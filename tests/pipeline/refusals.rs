//! What cannot keep the promise: `check` names it, `run` does not start on it, with the same words; and where it comes later,
//! the transaction meets it.

use postgres::{Client, NoTls};

use crate::roles::url_of;
use crate::world::{World, all_rows, record, rowmill, rowmill_as, wait_for};

/// A world whose writer may do what sql/roles.sql grants, on `public.t`.
struct Refused {
    world: World,
    writer: String,
    role: String,
}

impl Refused {
    fn new(name: &str) -> Refused {
        let world = World::new(name);
        world.create_topic("in", 1);
        world.create_table("t", "");
        let role = format!("{name}_{}", std::process::id());
        world
            .sql()
            .batch_execute(&format!(
                "CREATE ROLE {role} LOGIN PASSWORD 'pw'; GRANT USAGE ON SCHEMA rowmill TO {role};
                 GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA rowmill TO {role};
                 REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA rowmill FROM PUBLIC;
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA rowmill TO {role};
                 GRANT USAGE ON SEQUENCE rowmill.session TO {role}; GRANT INSERT ON t TO {role}"
            ))
            .expect("a role");
        let writer = url_of(&world, &role);
        Refused { world, writer, role }
    }

    fn sql(&self, sql: &str) {
        let sql = sql.replace("WRITER", &self.role);
        self.world.sql().batch_execute(&sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    }

    /// `check` and `run` as the writer say this of the table; after `undo` both are content.
    #[track_caller]
    fn refuses(&self, make: &str, sentence: &str, undo: &str) {
        self.sql(make);
        let config = self.world.model("in", "t", "");
        let file = self.world.file("refused.toml", &config);
        let (text, ok) = rowmill_as(&self.world, &self.writer, &["check", "--config", &file]);
        let named = text.lines().find(|line| line.contains("PROBLEM") && line.contains(sentence));
        let Some(words) = named.map(|line| line.trim_start().trim_start_matches("PROBLEM").trim()) else {
            panic!("after {make}, expected {sentence:?}:\n{text}")
        };
        assert!(!ok, "{text}");
        let mut engine = self.world.engine(&config, &[("DATABASE_URL", &self.writer)]);
        assert!(!engine.wait(20).success(), "{make}: {}", engine.log());
        // The log has quotes escaped.
        let log = engine.log().replace("\\\"", "\"");
        assert!(log.contains(words), "{make}: the same words, {words:?}:\n{log}");
        self.sql(undo);
        self.is_content(undo);
    }

    #[track_caller]
    fn is_content(&self, after: &str) -> String {
        let file = self.world.file("refused.toml", &self.world.model("in", "t", ""));
        let (text, ok) = rowmill_as(&self.world, &self.writer, &["check", "--config", &file]);
        assert!(ok, "after {after}: {text}");
        text
    }
}

impl Drop for Refused {
    fn drop(&mut self) {
        // The roles belong to the whole server; a failed test leaves its own.
        if !std::thread::panicking() {
            self.sql("DROP OWNED BY WRITER; DROP ROLE WRITER");
        }
    }
}

#[test]
fn check_and_start_refuse_with_the_same_words() {
    let refused = Refused::new("refused");
    refused.is_content("nothing");
    let unlogged = "UNLOGGED: a crash of the server empties it";
    refused.refuses("ALTER TABLE t SET UNLOGGED", unlogged, "ALTER TABLE t SET LOGGED");
    refused.refuses(
        "ALTER TABLE rowmill.ledger SET UNLOGGED",
        "table rowmill.ledger is UNLOGGED",
        "ALTER TABLE rowmill.ledger SET LOGGED",
    );
    refused.refuses(
        "ALTER TABLE rowmill.dead_letter SET UNLOGGED",
        "table rowmill.dead_letter is UNLOGGED",
        "ALTER TABLE rowmill.dead_letter SET LOGGED",
    );
    refused.refuses(
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "row-level security of \"public\".\"t\" holds for the role",
        "ALTER TABLE t DISABLE ROW LEVEL SECURITY",
    );
    refused.refuses(
        "ALTER TABLE t ADD COLUMN id BIGSERIAL",
        "the role lacks USAGE ON SEQUENCE public.t_id_seq: GRANT",
        "GRANT USAGE ON SEQUENCE t_id_seq TO WRITER",
    );
    refused.refuses(
        "CREATE FUNCTION stamp() RETURNS TIMESTAMPTZ LANGUAGE sql AS 'SELECT pg_catalog.now()';
         REVOKE EXECUTE ON FUNCTION stamp() FROM PUBLIC;
         ALTER TABLE t ADD CHECK (stamp() > 'epoch')",
        "EXECUTE ON FUNCTION public.stamp()",
        "GRANT EXECUTE ON FUNCTION stamp() TO WRITER",
    );
    for function in ["advance", "claim", "register", "alive", "fingerprint"] {
        refused.refuses(
            &format!("REVOKE EXECUTE ON FUNCTION rowmill.{function} FROM WRITER"),
            &format!("EXECUTE ON FUNCTION rowmill.{function}("),
            &format!("GRANT EXECUTE ON FUNCTION rowmill.{function} TO WRITER"),
        );
    }
    refused.refuses(
        "REVOKE INSERT ON t FROM WRITER; GRANT INSERT (n, word) ON t TO WRITER",
        "the role may not INSERT (\"_topic\", \"_partition\", \"_offset\") on \"public\".\"t\"",
        "GRANT INSERT (n, word, _topic, _partition, _offset) ON t TO WRITER",
    );
}

#[test]
fn a_part_that_does_not_last_is_refused_as_the_whole() {
    let refused = Refused::new("refused_part");
    refused.sql(
        "DROP TABLE t; CREATE TABLE t (n BIGINT NOT NULL, word VARCHAR(20), _topic TEXT, _partition INTEGER, _offset BIGINT)
             PARTITION BY RANGE (n);
         CREATE TABLE low PARTITION OF t FOR VALUES FROM (0) TO (100) PARTITION BY RANGE (n);
         CREATE TABLE lowest PARTITION OF low FOR VALUES FROM (0) TO (50);
         CREATE TABLE high PARTITION OF t FOR VALUES FROM (100) TO (1000); GRANT INSERT ON t TO WRITER",
    );
    refused.refuses(
        "ALTER TABLE lowest SET UNLOGGED",
        "table public.lowest, a part of \"public\".\"t\", is UNLOGGED",
        "ALTER TABLE lowest SET LOGGED",
    );
}

#[test]
fn a_rule_is_warned_of() {
    let refused = Refused::new("refused_rule");
    refused.sql("CREATE TABLE copies (n BIGINT); CREATE RULE also AS ON INSERT TO t DO ALSO INSERT INTO copies VALUES (NEW.n)");
    let text = refused.is_content("a rule");
    assert!(
        text.lines().any(
            |l| l.contains("WARNING") && l.contains("rule \"also\" of table \"public\".\"t\" is not run")
        ),
        "{text}"
    );
}

/// A crash is what makes the difference, so the change must be met in the transaction that would be lost.
#[test]
fn a_table_that_stops_being_logged_takes_no_row_more() {
    for (what, words) in [("t", "table public.t is UNLOGGED"), ("part", "table public.part, a part of")] {
        let world = World::new("unlogged");
        world.create_topic("in", 1);
        world.create_table("t", "");
        if what == "part" {
            world.sql().batch_execute("CREATE TABLE part () INHERITS (t)").expect("a part");
        }
        let engine = world.engine(&world.model("in", "t", ""), &[]);
        world.produce("in", 0, (0..10).map(record));
        world.wait_drained(&["in"], 20);
        world.sql().batch_execute(&format!("ALTER TABLE {what} SET UNLOGGED")).expect("unlogged");
        world.produce("in", 0, (10..20).map(record));
        wait_for(words, 20, || engine.log().contains(words));
        assert_eq!(world.count("SELECT count(*) FROM t"), 10, "{what}: {}", engine.log());
        world.sql().batch_execute(&format!("ALTER TABLE {what} SET LOGGED")).expect("logged");
        world.wait_drained(&["in"], 30);
        world.check("t", &["in"], all_rows);
    }
}

#[test]
fn a_ledger_that_stops_being_logged_moves_no_more() {
    for what in ["rowmill.ledger", "rowmill.dead_letter"] {
        let world = World::new("unlogged_ledger");
        world.create_topic("in", 1);
        world.create_table("t", "");
        let config = world.model("in", "t", "");
        let mut engine = world.engine(&config, &[]);
        world.produce("in", 0, (0..10).map(record));
        world.wait_drained(&["in"], 20);
        world.sql().batch_execute(&format!("ALTER TABLE {what} SET UNLOGGED")).expect("unlogged");
        world.produce("in", 0, (10..20).map(record));
        assert!(!engine.wait(20).success(), "{what}: {}", engine.log());
        assert!(engine.log().contains("are UNLOGGED"), "{what}: {}", engine.log());
        assert_eq!(world.count("SELECT count(*) FROM t"), 10, "{what}: {}", engine.log());
        let mut again = world.engine(&config, &[]);
        assert!(!again.wait(20).success());
        assert!(again.log().contains(&format!("table {what} is UNLOGGED")), "{}", again.log());
        world.sql().batch_execute(&format!("ALTER TABLE {what} SET LOGGED")).expect("logged");
        let _engine = world.engine(&config, &[]);
        world.wait_drained(&["in"], 20);
        world.check("t", &["in"], all_rows);
    }
}

#[test]
fn a_database_that_is_not_utf8_is_refused() {
    let world = World::new("latin");
    world.create_topic("in", 1);
    let (base, name) = world.database_url.rsplit_once('/').expect("a database in the URL");
    let (latin, url) = (format!("{name}_latin1"), format!("{base}/{name}_latin1"));
    let create = format!("CREATE DATABASE {latin} ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0");
    world.sql().batch_execute(&create).expect("a database");
    let (text, ok) = rowmill_as(&world, &url, &["init"]);
    assert!(ok, "{text}");
    let mut sql = Client::connect(&url, NoTls).expect("it is there");
    sql.batch_execute(
        "CREATE TABLE t (n BIGINT, word VARCHAR(20), _topic TEXT, _partition INTEGER, _offset BIGINT)",
    )
    .expect("a table");
    drop(sql);
    let config = world.model("in", "t", "");
    let file = world.file("latin.toml", &config);
    let (text, ok) = rowmill_as(&world, &url, &["check", "--config", &file]);
    let words = "the database's encoding is LATIN1";
    assert!(!ok && text.contains(words), "{text}");
    let mut engine = world.engine(&config, &[("DATABASE_URL", &url)]);
    assert!(!engine.wait(20).success() && engine.log().contains(words), "{}", engine.log());
    world.sql().batch_execute(&format!("DROP DATABASE {latin} WITH (FORCE)")).expect("gone");
}

#[test]
fn a_table_in_our_own_schema_is_explained() {
    let world = World::new("own_schema");
    world.create_topic("in", 1);
    world.sql().batch_execute("CREATE TABLE rowmill.zzz (n BIGINT)").expect("a table");
    let config = format!("[[model]]\ntopic = {:?}\ntable = \"rowmill.zzz\"\n", world.topic("in"));
    let file = world.file("own.toml", &config);
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    for words in ["\"$user\"", "ALTER TABLE \"rowmill\".\"zzz\" SET SCHEMA public", "rowmill_writer"] {
        assert!(!ok && text.contains(words), "{words}: {text}");
    }
}

#[test]
fn an_older_schema_is_upgraded_by_init() {
    let world = World::new("upgrade");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let mut sql = world.sql();
    sql.batch_execute(
        "UPDATE rowmill.version SET version = 1; ALTER FUNCTION rowmill.fingerprint RESET ALL; ALTER FUNCTION rowmill.alive RESET ALL;
         ALTER FUNCTION rowmill.register RESET ALL; ALTER FUNCTION rowmill.claim RESET ALL; ALTER FUNCTION rowmill.advance RESET ALL",
    )
    .expect("as it was");
    let file = world.file("upgrade.toml", &world.model("in", "t", ""));
    let (text, ok) = rowmill(&world, &["check", "--config", &file]);
    assert!(!ok && text.contains("older than this program needs: run `rowmill init`"), "{text}");
    let (text, ok) = rowmill(&world, &["init"]);
    assert!(ok, "{text}");
    let open =
        "SELECT count(*) FROM pg_proc WHERE pronamespace = 'rowmill'::REGNAMESPACE AND proconfig IS NULL";
    assert_eq!(world.count(open), 0);
    wait_for("check to be content", 5, || rowmill(&world, &["check", "--config", &file]).1);
}
