//! What `serve` promises of its answers in `/openapi.json`. Every answer in the tests is held against the document of the process
//! that gave it; and the document against two validators, and against a generator of requests that knows it.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use boon::{Compiler, Draft, SchemaIndex, Schemas};
use serde_json::Value;

use crate::http_client::Client;
use crate::serve::open;
use crate::world::World;

/// Where a document lies for whoever reads its references.
const PLACE: &str = "http://rowmill.test/openapi.json";

/// What a target has that is none (RFC 3986).
const NOT_IN_A_URI: [char; 9] = ['"', '<', '>', '\\', '^', '`', '{', '|', '}'];

/// What the document is not about.
const PAGES: [&str; 5] = ["/docs", "/openapi.json", "/metrics", "/healthz", "/readyz"];

/// A table that changed is described anew with the next request for it.
const FOLLOWS_WITHIN: Duration = Duration::from_secs(20);

/// An answer as its client saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    /// The request's first line.
    pub(crate) line: &'a str,
    pub(crate) status: u16,
    /// In lower case.
    pub(crate) head: &'a str,
    /// As far as it came; `None` where that is not all.
    pub(crate) body: Option<&'a [u8]>,
}

/// A document, and what of it was needed so far.
struct Contract {
    document: Value,
    compiler: Compiler,
    schemas: Schemas,
    places: HashMap<String, SchemaIndex>,
}

thread_local! {
    static KNOWN: RefCell<HashMap<SocketAddr, Contract>> = RefCell::default();
}

/// Fails where an answer is not what the process at this address promises.
#[track_caller]
pub(crate) fn hold(address: SocketAddr, seen: Seen<'_>) {
    let began = Instant::now();
    KNOWN.with_borrow_mut(|known| {
        loop {
            let contract = known.entry(address).or_insert_with(|| Contract::of(address));
            let Err(why) = contract.agrees(seen) else { return };
            assert!(
                began.elapsed() < FOLLOWS_WITHIN,
                "{}: {} breaks the document: {why}",
                seen.line,
                seen.status
            );
            known.remove(&address);
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

/// One that is patient: a machine that is busy takes its time.
pub(crate) fn client(address: SocketAddr) -> Client {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    Client::on(socket)
}

impl Contract {
    fn of(address: SocketAddr) -> Contract {
        let mut client = client(address);
        client.send("GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let reply = client.reply().expect("a document");
        let document: Value = serde_json::from_slice(&reply.body).expect("the document is JSON");
        let mut compiler = Compiler::new();
        compiler.set_default_draft(Draft::V2020_12);
        compiler.enable_format_assertions();
        compiler.add_resource(PLACE, document.clone()).expect("the document is a place for schemas");
        Contract { document, compiler, schemas: Schemas::new(), places: HashMap::new() }
    }

    fn agrees(&mut self, seen: Seen<'_>) -> Result<(), String> {
        let mut words = seen.line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let is_head = method == "HEAD";
        let method = if is_head { "get".to_owned() } else { method.to_ascii_lowercase() };
        let path = target.split('?').next().unwrap_or_default();
        if seen.status == 400 && seen.body.is_some_and(<[u8]>::is_empty) && target.contains(NOT_IN_A_URI) {
            // No request yet: hyper refuses it without a word.
            return Ok(());
        }
        let media =
            header(seen.head, "content-type").map(|value| value.split(';').next().unwrap_or_default());
        let Some(template) = self.template(path, &method) else {
            if PAGES.contains(&path) {
                return Ok(());
            }
            // Preflights, and requests for what is not there.
            return match (seen.body, media) {
                (Some(body), Some("application/problem+json")) => {
                    self.is_valid("#/components/schemas/Problem", seen.head, body)
                }
                (_, _) if seen.status < 400 => Ok(()),
                (_, other) => Err(format!("a refusal as {other:?}")),
            };
        };
        let response = format!("#/paths/{}/{method}/responses/{}", escaped(&template), seen.status);
        let Some(documented) = self.document.pointer(&response[1..]) else {
            return Err(format!("{template} has no such status"));
        };
        let Some(content) = documented.get("content").and_then(Value::as_object) else {
            return if seen.body.is_some_and(<[u8]>::is_empty) {
                Ok(())
            } else {
                Err("it has a body".to_owned())
            };
        };
        let Some(media) = media.filter(|media| content.contains_key(*media)) else {
            return Err(format!(
                "it is {media:?}, and {:?} are promised",
                content.keys().collect::<Vec<_>>()
            ));
        };
        let place = format!("{response}/content/{}/schema", escaped(media));
        match seen.body.filter(|_| !is_head) {
            Some(body) if media.ends_with("json") && media != "application/x-ndjson" => {
                self.is_valid(&place, seen.head, body)
            }
            _ => Ok(()),
        }
    }

    /// The path of the document that a request is for: the one with the most in it that is no parameter.
    fn template(&self, path: &str, method: &str) -> Option<String> {
        let paths = self.document["paths"].as_object().expect("paths");
        let fitting =
            paths.iter().filter(|(template, methods)| methods.get(method).is_some() && fits(template, path));
        let literals = |template: &str| template.split(['{', '}']).step_by(2).map(str::len).sum::<usize>();
        fitting.map(|(template, _)| template).max_by_key(|template| literals(template)).cloned()
    }

    fn is_valid(&mut self, place: &str, head: &str, body: &[u8]) -> Result<(), String> {
        let mut unpacked = Vec::new();
        let body = if header(head, "content-encoding") == Some("gzip") {
            flate2::read::MultiGzDecoder::new(body).read_to_end(&mut unpacked).map_err(|e| e.to_string())?;
            &unpacked[..]
        } else {
            body
        };
        let json: Value = match serde_json::from_slice(body) {
            Ok(json) => json,
            // JSON's numbers have no bound, and PostgreSQL's are beyond a double's; the reader here has only those.
            Err(error) if error.to_string().starts_with("number out of range") => return Ok(()),
            Err(error) => return Err(format!("no JSON: {error}")),
        };
        let index = match self.places.get(place) {
            Some(index) => *index,
            None => {
                let compiled = self.compiler.compile(&format!("{PLACE}{place}"), &mut self.schemas);
                let index = compiled.map_err(|error| format!("{place} is no schema: {error:#}"))?;
                self.places.insert(place.to_owned(), index);
                index
            }
        };
        self.schemas.validate(&json, index).map_err(|error| format!("{error:#}"))
    }
}

/// As a JSON pointer has it.
fn escaped(part: &str) -> String {
    part.replace('~', "~0").replace('/', "~1")
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn fits(template: &str, path: &str) -> bool {
    let (wanted, given): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    let fits = |(wanted, given): (&&str, &&str)| match wanted.split_once('{').zip(wanted.split_once('}')) {
        Some(((before, _), (_, behind))) => {
            given.len() > before.len() + behind.len() && given.starts_with(before) && given.ends_with(behind)
        }
        None => wanted == given,
    };
    wanted.len() == given.len() && wanted.iter().zip(&given).all(fits)
}

#[test]
fn a_request_is_held_against_its_own_path() {
    for (template, path, expected) in [
        ("/a/{n}", "/a/1", true),
        ("/a/{n}", "/a/", false),
        ("/a/{n}", "/a/1/2", false),
        ("/a/{n}.csv", "/a/1.csv", true),
        ("/a/{n}.csv", "/a/1.json", false),
        ("/", "/", true),
    ] {
        assert_eq!(fits(template, path), expected, "{template} {path}");
    }
}

/// A program that `stack/install --contract` brings, or `None` where there is none, which is said; in CI that is a failure.
pub(crate) fn tool(path: &Path) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/contract").join(path);
    if path.exists() {
        return Some(path);
    }
    let words = format!("NOT TESTED: there is no {}; `stack/install --contract` brings it", path.display());
    assert!(std::env::var("CI").is_err(), "{words}");
    println!("{words}");
    None
}

#[track_caller]
fn run(command: &mut Command, what: &str) {
    let output = command.output().unwrap_or_else(|error| panic!("{what}: {error}"));
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {said}");
    let last: Vec<&str> = said.lines().rev().filter(|line| !line.trim().is_empty()).take(8).collect();
    last.iter().rev().for_each(|line| eprintln!("{what}: {line}"));
}

/// The generator takes the types of a list's first elements for what they were in an older draft, and then refuses them: it is told
/// that each element is one of these.
fn without_prefix_items(json: &mut Value) {
    match json {
        Value::Object(members) => {
            if let Some(types) = members.remove("prefixItems") {
                members.insert("items".to_owned(), serde_json::json!({ "anyOf": types }));
            }
            members.values_mut().for_each(without_prefix_items);
        }
        Value::Array(items) => items.iter_mut().for_each(without_prefix_items),
        _ => {}
    }
}

/// `SERVE_EXAMPLES` says how many requests are made up for each endpoint.
#[test]
#[ignore = "make serve-contract runs it"]
fn two_validators_take_the_document_and_a_generator_of_requests_finds_nothing() {
    let world = World::new("contract");
    // Nobody can wait for a ledger that is not there.
    world.sql().batch_execute("DROP SCHEMA rowmill CASCADE").unwrap();
    world.sql().batch_execute(include_str!("../contract/tables.sql")).unwrap();
    let patience = "queue_wait = \"30s\"\nstatement_timeout = \"30s\"";
    let open = open(&world, patience, include_str!("../contract/endpoints.toml"));
    let mut client = client(open.address);
    client.send("GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let document = String::from_utf8(client.reply().unwrap().body).unwrap();
    let file = world.file("openapi.json", &document);
    let directory = world.path("");
    if let Some(validator) = tool(Path::new("bin/openapi-spec-validator")) {
        run(Command::new(validator).arg(&file), "openapi-spec-validator");
    }
    if let Some(validator) = tool(Path::new("node_modules/.bin/redocly")) {
        // It would look for news of itself.
        let mut command = Command::new(validator);
        command.args(["lint", "--extends=spec", &file]).current_dir(&directory);
        run(command.env("REDOCLY_SUPPRESS_UPDATE_NOTICE", "true").env("REDOCLY_TELEMETRY", "off"), "redocly");
    }
    if let Some(generator) = tool(Path::new("bin/schemathesis")) {
        let examples = std::env::var("SERVE_EXAMPLES").unwrap_or_else(|_| "10".to_owned());
        let mut readable: Value = serde_json::from_str(&document).unwrap();
        without_prefix_items(&mut readable);
        let file = world.file("readable.json", &readable.to_string());
        let mut command = Command::new(generator);
        command.args(["--no-color", "run", &file, "--url", &format!("http://{}", open.address)]);
        command.args([
            "--phases",
            "examples,coverage,fuzzing",
            "--request-timeout",
            "60",
            "--continue-on-failure",
        ]);
        // PostgreSQL's text and jsonb have no character zero, which no schema says of any JSON.
        command.args(["--generation-allow-x00", "false", "--suppress-health-check", "all"]);
        // The same requests each time: what fails, fails again.
        command.args(["--seed", "1", "--max-examples", &examples, "--generation-database", "none"]);
        run(command.current_dir(&directory), "schemathesis");
    }
    assert_eq!(open.figure("rowmill_http_requests_total", "code=\"5"), 0.0, "{}", open.engine.log());
}
