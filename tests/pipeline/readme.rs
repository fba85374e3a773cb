//! What a newcomer does: the table, the configuration and the commands of README.md, in its order.

use crate::world::{World, wait_for};

const README: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md"));

/// The first fenced block of this language behind a heading.
fn block(heading: &str, language: &str) -> String {
    let (_, section) = README.split_once(heading).expect(heading);
    // Text and blocks take turns.
    let blocks = section.split("\n```").skip(1).step_by(2);
    let found = blocks.filter_map(|block| block.split_once('\n')).find(|(named, _)| *named == language);
    found.expect(language).1.to_owned()
}

#[test]
fn the_first_way_of_the_readme_leads_to_a_row() {
    let world = World::new("readme");
    world.create_topic("weather", 1);
    let section = "## On your own servers";
    world.sql().batch_execute(&block(section, "sql")).expect("the table");
    world.sql().batch_execute("DROP SCHEMA rowmill CASCADE").expect("a new database");
    // The servers and the topic are this test's.
    let config = block(section, "toml")
        .replace("localhost:9092", &world.server("KAFKA_BROKERS"))
        .replace("postgresql://owner@localhost/app", &world.database_url)
        .replace("topic = \"weather\"", &format!("topic = {:?}", world.topic("weather")));
    let home = world.path("home");
    std::fs::create_dir(&home).expect("a directory");
    std::fs::write(home.join("rowmill.toml"), config).expect("a file");
    let run = |verb: &[&str]| {
        let mut command = world.command(env!("CARGO_BIN_EXE_rowmill"));
        command.args(verb).current_dir(&home).env_remove("DATABASE_URL").env_remove("REDIS_URL");
        command
    };
    let commands = block(section, "");
    let commands: Vec<&str> = commands.lines().collect();
    let record = commands.iter().find_map(|line| line.split_once("# {")).expect("the record").1;
    let record = format!("{{{}", record.split_once(" becomes").expect("what it becomes").0);
    let mut verbs = commands.iter().filter_map(|line| line.strip_prefix("rowmill "));
    let mut next = || -> Vec<&str> {
        let line = verbs.next().expect("one more command");
        line.split_once('#').expect("what it is for").0.split_whitespace().collect()
    };
    for _ in ["init", "check"] {
        let verb = next();
        let output = run(&verb).output().expect("it runs");
        assert!(output.status.success(), "{verb:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!String::from_utf8_lossy(&output.stderr).contains("NOTICE"), "{output:?}");
    }
    let mut engine = run(&next()).stderr(std::process::Stdio::null()).spawn().expect("it runs");
    world.produce("weather", 0, [record]);
    let rows = "SELECT count(*) FROM weather WHERE station = 'LJU' AND celsius = 3.5 AND measured = '2026-01-31 10:00:00Z'";
    wait_for("the row", 30, || world.count(rows) == 1);
    for verb in [next(), next(), next()] {
        let output = run(&verb).output().expect("it runs");
        assert!(output.status.success(), "{verb:?}: {output:?}");
    }
    engine.kill().expect("it runs");
    engine.wait().expect("it ended");
}
