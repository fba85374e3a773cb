//! Somebody who may create in the schema of the tables, against every verb that asks the database: she makes a function or an operator
//! for each one that the load tester's SQL uses, in the way of a superuser, which is what its default URL names. None of hers is ever
//! called.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use postgres::{Client, NoTls};

#[path = "../../tests/pipeline/traps.rs"]
mod traps;

use traps::Used;

fn server(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run through `make test`, which starts the servers"))
}

/// What the load tester's SQL calls by a name without a schema: whatever stands in its source before an opening parenthesis.
fn used_by_the_tester() -> Used {
    fn read(directory: &Path, used: &mut Used) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, used);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                used.read(&std::fs::read_to_string(path).unwrap());
            }
        }
    }
    let mut used = Used::default();
    read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &mut used);
    used
}

struct Consumer(Child);

impl Drop for Consumer {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn tester(directory: &Path, url: &str, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtester"))
        .args(line.split_whitespace())
        .env("DATABASE_URL", url)
        .current_dir(directory)
        .output()
        .unwrap()
}

#[test]
fn what_a_stranger_makes_beside_the_tables_is_never_called() {
    let (name, person) = ("lt_mallory", format!("mallory_{}", std::process::id()));
    let url = server("DATABASE_URL");
    let mut admin = Client::connect(&url, NoTls).expect("connect to DATABASE_URL");
    admin.batch_execute(&format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")).unwrap();
    admin.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
    admin.batch_execute(&format!("CREATE ROLE {person} LOGIN PASSWORD 'pw'")).unwrap();
    let (login, _) = url.rsplit_once('/').expect("the URL names a database");
    let own = format!("{login}/{name}");
    let mut client = Client::connect(&own, NoTls).unwrap();
    client.batch_execute(include_str!("../../sql/tables.sql")).unwrap();
    client.batch_execute(&format!("GRANT CREATE ON SCHEMA public TO {person}")).unwrap();
    // Hers come before the server's own, so that each hides it, whatever the types.
    admin.batch_execute(&format!("ALTER DATABASE {name} SET search_path = public, pg_catalog")).unwrap();

    let (_, address) = own.rsplit_once('@').expect("a user in the URL");
    // She looks for her own tools by the usual path.
    let hers = format!("postgresql://{person}:pw@{address}?options=-c%20search_path%3Dpg_catalog");
    let mut mallory = Client::connect(&hers, NoTls).expect("she logs in");
    traps::prepare(&mut mallory);
    let (functions, operators) = traps::set_traps(&mut mallory, "public", &used_by_the_tester());
    println!("{functions} functions, {operators} operators");
    assert!(functions > 30 && operators > 100, "{functions} functions, {operators} operators");
    // They work on whoever does not look out.
    let mut careless = Client::connect(&own, NoTls).unwrap();
    for sql in ["SELECT 1 WHERE 1 = 1", "SELECT count(*)", "SELECT format('%I', 'x'::TEXT)"] {
        careless.query(sql, &[]).expect_err(sql);
    }
    assert!(traps::are_sprung(&mut client, "public"), "they leave a trace");
    client.batch_execute("SELECT pg_catalog.setval('public.sprung', 1, false)").unwrap();

    let directory = tempfile::tempdir().unwrap();
    let mut check = |line: &str, codes: &[i32]| {
        let output = tester(directory.path(), &own, line);
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!traps::are_sprung(&mut client, "public"), "{line}: {text}");
        assert!(!text.contains("mallory was called"), "{line}: {text}");
        assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{line}: {text}");
    };
    let all = "--topic-prefix lt-mallory- --mix metric=1,state=1,log=1,trace=1,ping=1 --quiet --warmup 0s";
    // Nobody fills the tables yet: what was sent is missing.
    check(
        &format!(
            "run {all} --rate 50 --duration 200ms --drain-timeout 0s --create-topics 2 --verify none --out 0"
        ),
        &[0, 97],
    );
    let consumer = Command::new(env!("CARGO_BIN_EXE_loadtester-fake-consumer"))
        .args(["--database", &format!("{own}?options=-c%20search_path%3Dpg_catalog,public")])
        .args(["--topic-prefix", "lt-mallory-", "--tables", "metric,state,log,network_trace,network_ping"])
        .env("KAFKA_BROKERS", server("KAFKA_BROKERS"))
        .env("REDIS_URL", server("REDIS_URL"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let _consumer = Consumer(consumer);
    // A busy machine may make a run invalid, and miss rows that come late.
    for depth in ["full", "count"] {
        check(&format!("run {all} --rate 200 --duration 2s --verify {depth} --out {depth}"), &[0, 97, 98]);
    }
    check(&format!("run {all} --rate 100 --duration 1s --find-max --out max"), &[0, 97, 98, 99]);
    check("ceiling --duration 200ms --batch 500", &[0]);
    check("users create --users 10", &[0]);
    check("users check --users 10", &[0]);
    check("users cleanup --users 10", &[0]);
    drop(mallory);
    client
        .batch_execute(&format!(
            "SET search_path = pg_catalog; DROP OWNED BY {person} CASCADE; DROP ROLE {person}"
        ))
        .unwrap();
    drop(client);
    drop(careless);
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).unwrap();
}
