//! Texts that other people write, through everything that a person or a program reads of us: payloads, servers' words, names in the
//! tables that a role of ours may write to. Nothing of them acts, forges a line, or gets lost.

use std::io::Write as _;
use std::process::{Command, Stdio};

use postgres::types::ToSql;

use crate::hostile::{acts, texts};
use crate::terminal;
use crate::world::{World, record, rowmill, wait_for};

/// The lines that a verb printed, none of which does anything but show.
#[track_caller]
fn lines(world: &World, arguments: &[&str]) -> Vec<String> {
    let output = world
        .command(env!("CARGO_BIN_EXE_rowmill"))
        .args(arguments)
        .env("DATABASE_URL", &world.database_url)
        .env("REDIS_URL", &world.redis_url)
        .output()
        .expect("rowmill starts");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    let bad = |c: &char| acts(*c) && *c != '\n';
    assert_eq!(text.chars().chain(said.chars()).find(bad), None, "{arguments:?}: {text}{said}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn what_others_wrote_is_shown_and_does_nothing() {
    let world = World::new("texts");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    let file = world.file("texts.toml", &config);
    let engine = world.engine(&config, &[]);
    world.produce("in", 0, [record(1)]);
    world.wait_drained(&["in"], 20);
    assert!(engine.stop().0.success());
    let texts = texts();
    assert_eq!(texts.len(), 1000);
    let mut sql = world.sql();
    let topic = world.topic("in");
    let insert = sql
        .prepare(
            "INSERT INTO rowmill.dead_letter
                 (pipeline, topic, partition, \"offset\", target, reason, message, key, value, header_names, header_values)
             VALUES ('rowmill', $1, 0, $2, $3, $4, $5, $6, $6, ARRAY[$6::BYTEA], ARRAY[$6::BYTEA])",
        )
        .expect("prepared");
    for (offset, text) in texts.iter().enumerate() {
        let bytes = text.as_bytes();
        let place = format!("{topic}{text}");
        let values: [&(dyn ToSql + Sync); 6] = [&place, &(offset as i64), text, text, text, &bytes];
        sql.execute(&insert, &values).expect("a letter");
    }
    for (number, text) in texts.iter().take(50).enumerate() {
        sql.execute(
            "INSERT INTO rowmill.member (pipeline, member, lease) VALUES ('rowmill', $1, '5 s')",
            &[&format!("{number}{text}")],
        )
        .expect("a member");
    }
    sql.execute("UPDATE rowmill.ledger SET owner = $1, stopped = $2", &[&texts[7], &texts[30]])
        .expect("an owner");

    assert_eq!(lines(&world, &["dead-letters", "--config", &file, "list", "--limit", "2000"]).len(), 1000);
    let shown = lines(&world, &["dead-letters", "--config", &file, "show", "1", "2", "500"]);
    assert_eq!(shown.len(), 3 * 8, "each has eight lines: {shown:#?}");
    let status = lines(&world, &["status", "--config", &file]);
    assert!(
        status.iter().filter(|line| line.contains(" partitions, heartbeat ")).count() >= 50,
        "{status:#?}"
    );
    assert!(status.iter().any(|line| line.starts_with("     STOPPED: ")), "{status:#?}");
    assert!(!status.iter().any(|line| line.starts_with("  ok ")), "a forged line: {status:#?}");
    lines(&world, &["verify", "--config", &file]);
    lines(&world, &["check", "--config", &file]);
    for arguments in [
        &["dead-letters", "--config", &file, "list", "--limit", "2000"][..],
        &["dead-letters", "--config", &file, "show", "1", "2", "30", "500", "999"],
    ] {
        terminal::check(&world, arguments, &lines(&world, arguments));
    }
    // JSON means what was written.
    let list = lines(&world, &["dead-letters", "--config", &file, "list", "--limit", "2000", "--json"]);
    let mut told: Vec<(i64, String)> = list
        .iter()
        .map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
            (json["offset"].as_i64().expect("a number"), json["message"].as_str().expect("a text").to_owned())
        })
        .collect();
    told.sort_unstable();
    assert!(told.into_iter().map(|(_, text)| text).eq(texts.iter().cloned()));
    let show = lines(&world, &["dead-letters", "--config", &file, "show", "3", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&show[0]).expect("JSON");
    assert_eq!(json["value"]["text"], texts[2].as_str());
}

#[test]
fn a_server_that_quotes_a_row_tells_neither_the_terminal_nor_the_log() {
    let world = World::new("texts_server");
    world.create_topic("in", 1);
    world.create_table("t", "");
    // A notice a row, with the row; and an error with a forged line.
    world
        .sql()
        .batch_execute(
            "CREATE FUNCTION noisy() RETURNS TRIGGER LANGUAGE plpgsql AS $$
             BEGIN
                 RAISE NOTICE 'seen %', NEW.word;
                 IF NEW.n < 0 THEN RAISE EXCEPTION E'\\x1b[2J\\x07 %\\n       2  in/0@2  stored in public.t', NEW.word; END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER noisy BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION noisy()",
        )
        .expect("a trigger");
    let config = world.model("in", "t", "");
    let file = world.file("server.toml", &config);
    let engine = world.engine(&config, &[]);
    let secret = |n: i64| format!("{{\"n\":{n},\"word\":\"s3cret\\u001b\\n{n}\"}}");
    world.produce("in", 0, (0..100).map(secret).chain([secret(-1), secret(-2)]));
    world.wait_drained(&["in"], 30);
    let log = engine.log();
    assert!(!log.contains("s3cret"), "{log}");
    assert_eq!(log.matches("PostgreSQL sends notices").count(), 1, "{log}");
    assert_eq!(log.chars().find(|c| acts(*c) && *c != '\n'), None);
    assert!(engine.stop().0.success());
    let retried = lines(&world, &["dead-letters", "--config", &file, "retry", "--every"]);
    assert_eq!(retried.len(), 3, "two letters and the sum: {retried:#?}");
    assert!(retried[0].contains("still refused") && retried[1].contains("still refused"), "{retried:#?}");
}

/// A table's columns have room for a hundred names at a time, so each hundred is a topic and a table of its own.
#[test]
fn a_proposal_that_is_piped_into_psql_makes_its_table_and_nothing_else() {
    let world = World::new("texts_propose");
    let texts = texts();
    for (number, names) in texts.chunks(100).enumerate() {
        let topic = format!("in{number}");
        world.create_topic(&topic, 1);
        for names in names.chunks(50) {
            let fields: serde_json::Map<String, serde_json::Value> =
                names.iter().map(|text| (text.clone(), serde_json::json!({ text: 1, "v": text }))).collect();
            world.produce(&topic, 0, [serde_json::Value::Object(fields).to_string()]);
        }
        // And as what is no JSON.
        world.produce(&topic, 0, names.iter().take(40).cloned());
    }
    let classes = || world.count("SELECT count(*) FROM pg_class");
    let before = classes();
    for number in 0..texts.len() / 100 {
        let topic = world.topic(&format!("in{number}"));
        let table = format!("proposed_{number}");
        let proposal = lines(&world, &["propose", "--topic", &topic, "--table", &table]).join("\n");
        let (said, ok) = psql(&world, &proposal);
        assert!(ok && said.is_empty(), "{said}\n{proposal}");
        assert_eq!(world.count(&format!("SELECT count(*) FROM pg_class WHERE relname = '{table}'")), 1);
        assert!(!world.path("owned").exists());
    }
    // Each table and its TOAST table with an index, and nothing that a name asked for.
    assert!(classes() - before <= 3 * (texts.len() / 100) as i64);
}

/// What psql said to a script, and whether it was content.
fn psql(world: &World, script: &str) -> (String, bool) {
    let bin = std::path::Path::new("/usr/lib/postgresql")
        .read_dir()
        .expect("PostgreSQL is installed")
        .map(|version| version.expect("an entry").path().join("bin/psql"))
        .find(|psql| psql.exists())
        .expect("psql");
    let mut psql = Command::new(bin)
        .args(["--no-psqlrc", "--quiet", "--dbname", &world.database_url])
        .current_dir(world.path(""))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql starts");
    psql.stdin.take().expect("piped").write_all(script.as_bytes()).expect("read");
    let output = psql.wait_with_output().expect("psql ends");
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    (said, output.status.success())
}

#[test]
fn a_forged_line_in_the_ledger_does_not_reach_the_log() {
    let world = World::new("texts_log");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let mut sql = world.sql();
    for text in texts().iter().take(100) {
        sql.execute(
            "INSERT INTO rowmill.member (pipeline, member, lease) VALUES ('rowmill', $1, '1 h')",
            &[&format!("m{text}")],
        )
        .expect("a member");
    }
    let engine = world.engine(&world.model("in", "t", ""), &[("RUST_LOG", "debug")]);
    world.produce("in", 0, [record(1)]);
    wait_for("some lines", 30, || engine.log().lines().count() > 5);
    let (text, _) =
        rowmill(&world, &["status", "--config", &world.file("log.toml", &world.model("in", "t", ""))]);
    assert!(text.contains("members"), "{text}");
    let log = engine.log();
    assert_eq!(log.chars().find(|c| acts(*c) && *c != '\n'), None);
    assert!(log.lines().all(|line| line.starts_with("time=")), "{log}");
}

/// What a reader of logfmt makes of a line: keys and values, where a backslash in quotes keeps the next character's meaning off.
fn logfmt(line: &str) -> Vec<(String, String)> {
    let (mut pairs, mut chars) = (Vec::new(), line.chars().peekable());
    while chars.peek().is_some() {
        let key: String = chars.by_ref().skip_while(|c| *c == ' ').take_while(|c| *c != '=').collect();
        let mut value = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next().expect("the value ends") {
                    '"' => break,
                    '\\' => value.push(chars.next().expect("an escape ends")),
                    c => value.push(c),
                }
            }
        } else {
            value.extend(chars.by_ref().take_while(|c| *c != ' '));
        }
        pairs.push((key, value));
    }
    pairs
}

/// A configuration names a thousand tables that are not there, and the log says which.
#[test]
fn readers_of_logfmt_and_json_find_every_text_in_the_message() {
    let world = World::new("texts_logfmt");
    world.create_topic("in", 1);
    // A name cannot be empty, and quotes mean something in it.
    let texts: Vec<String> = texts().into_iter().filter(|text| !text.trim().is_empty()).collect();
    let model = world.model("in", "TABLE", "");
    let models: String =
        texts.iter().map(|text| model.replace("\"TABLE\"", &in_toml(&quoted(text)))).collect();
    for format in ["keyvalue", "json"] {
        let config = format!("[log]\nformat = \"{format}\"\n{models}");
        let mut engine = world.engine(&config, &[]);
        assert!(!engine.wait(60).success());
        let log = engine.log();
        assert_eq!(log.chars().find(|c| acts(*c) && *c != '\n'), None);
        let read = |line: &str| -> Vec<(String, String)> {
            if format == "keyvalue" {
                return logfmt(line);
            }
            let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let pairs = json.as_object().expect("an object").iter();
            pairs.map(|(key, value)| (key.clone(), value.as_str().expect("a text").to_owned())).collect()
        };
        let mut messages = String::new();
        for line in log.lines() {
            let mut pairs = read(line);
            pairs.sort();
            let keys: Vec<&str> = pairs.iter().map(|(key, _)| key.as_str()).collect();
            assert_eq!(keys, ["level", "message", "thread", "time"], "{line}");
            messages += &pairs[1].1;
        }
        for text in &texts {
            let shown = shown(&format!("{:?}", quoted(text)));
            assert!(messages.contains(&shown), "{shown:?} is not in the log: {messages}");
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As TOML has it.
fn in_toml(text: &str) -> String {
    let escape = |c: char| match c {
        '"' | '\\' => format!("\\{c}"),
        c if acts(c) => format!("\\U{:08X}", u32::from(c)),
        c => c.to_string(),
    };
    format!("\"{}\"", text.chars().map(escape).collect::<String>())
}

/// As a person reads it.
fn shown(text: &str) -> String {
    let show = |c: char| if acts(c) { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(show).collect()
}
