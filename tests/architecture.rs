//! The rules of the house, run: which folder may import which, which file may name which outside crate, who writes the
//! ledger, and what no file may do. ARCHITECTURE.md says why. No servers are needed.

#[path = "architecture/source.rs"]
mod source;

use std::collections::BTreeSet;

use source::{Source, Tree};

/// The folders of `src/`, each with those that it may import. `main.rs` may name everything.
const FOLDERS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("model", &["base"]),
    ("config", &["base", "model"]),
    ("client", &["base", "config"]),
    ("figures", &["base", "config"]),
    ("http", &["base", "config"]),
    ("promise", &["base", "config", "client", "figures"]),
    ("kafka", &["base", "config", "client", "figures", "promise"]),
    ("store", &["base", "model", "client", "promise"]),
    ("decode", &["base", "model", "config", "client", "figures", "promise"]),
    ("write", &["base", "figures", "promise", "store"]),
    (
        "verb",
        &[
            "base", "model", "config", "client", "figures", "http", "promise", "kafka", "store", "decode",
            "write",
        ],
    ),
];

/// Outside crates of the engine, each with where it may be named: a folder, or a file. A crate that is not here may be named
/// nowhere.
const CRATES: &[(&str, &[&str])] = &[
    ("anyhow", &["src"]),
    ("log", &["src"]),
    ("serde", &["src"]),
    ("serde_json", &["src"]),
    ("bytes", &["src/client", "src/http", "src/verb"]),
    ("flate2", &["src/http/coding.rs", "src/kafka/unpack.rs"]),
    ("hyper", &["src/http", "src/verb"]),
    ("listenfd", &["src/http/listen.rs"]),
    ("memchr", &["src/http/wire.rs"]),
    ("mio", &["src/http"]),
    ("regex", &["src/verb/serve/parameter.rs"]),
    ("slab", &["src/http", "src/verb/collect", "src/verb/serve/works.rs"]),
    ("wide", &["src/decode/scan.rs"]),
    ("zstd", &["src/http/coding.rs", "src/kafka/unpack.rs"]),
    ("base64", &["src/decode", "src/verb/dead_letters"]),
    ("clap", &["src/verb", "src/main.rs"]),
    ("clap_complete", &["src/verb/generate"]),
    ("clap_mangen", &["src/verb/generate"]),
    ("core_affinity", &["src/base/thread.rs"]),
    (
        "crossbeam_channel",
        &["src/base", "src/http", "src/promise", "src/kafka", "src/decode", "src/write", "src/verb"],
    ),
    ("env_logger", &["src/base/logging.rs"]),
    ("fail", &["src/base/fault.rs", "src/main.rs"]),
    ("foldhash", &["src/decode/lookup.rs", "src/store/postgres/fold.rs"]),
    ("jiff", &["src"]),
    ("lz4_flex", &["src/kafka/unpack.rs"]),
    ("nix", &["src"]),
    (
        "openssl",
        &[
            "src/client",
            "src/http/tls.rs",
            "src/kafka/unpack.rs",
            "src/verb/serve/look.rs",
            "src/verb/verify/judge.rs",
            "src/verb/web/tokens.rs",
        ],
    ),
    ("percent_encoding", &["src/verb/web/paths.rs"]),
    ("postgres", &["src/client", "src/promise", "src/store", "src/verb"]),
    ("postgres_openssl", &["src/client"]),
    ("postgres_protocol", &["src/client/login.rs", "src/client/pg.rs", "src/client/wire.rs"]),
    ("rdkafka", &["src/kafka"]),
    ("rdkafka_sys", &["src/kafka"]),
    ("redis", &["src/client", "src/decode/lookup.rs"]),
    ("rowmill", &["src/main.rs"]),
    ("rustyline", &["src/verb/tail/screen.rs"]),
    ("snap", &["src/kafka/unpack.rs"]),
    ("strsim", &["src/base/spelling.rs"]),
    ("tokio", &["src/client/plain.rs"]),
    ("toml", &["src/config", "src/verb/propose", "src/verb/serve", "src/verb/web/tokens.rs"]),
];

/// Texts that only some files may hold.
const TEXTS: &[(&str, &[&str])] = &[
    // Whoever moves the ledger decides what was stored.
    ("UPDATE rowmill.ledger", &["src/promise/ledger.rs"]),
    ("INSERT INTO rowmill.ledger", &["src/promise/ledger.rs"]),
    ("DELETE FROM rowmill.ledger", &["src/promise/ledger.rs"]),
    ("rowmill.advance(", &["src/promise/ledger.rs"]),
    // A store sends rows within a transaction that is not its own.
    ("COMMIT", &["src/client/path.rs", "src/promise", "src/write", "src/verb"]),
];

/// Words that only some files may use.
const WORDS: &[(&str, &[&str])] = &[
    ("unsafe", &["src/kafka/native"]),
    // What runs under the role's own search_path.
    (
        "by_role_path",
        &[
            "src/client/path.rs",
            "src/promise/session.rs",
            "src/promise/lease.rs",
            "src/verb/serve/describe.rs",
            "src/verb/setup.rs",
        ],
    ),
    // They end the process where nobody reads any more, and print whatever they are given: what reaches a person goes through
    // src/verb/out.rs or the log, which show other people's text so that it does nothing.
    // That one is the line editor's, and is given a constant of ours.
    ("print", &["src/verb/tail/screen.rs"]),
    ("println", &[]),
    ("eprint", &[]),
    // Fault points are compiled away outside of tests.
    ("eprintln", &["src/base/fault.rs"]),
    ("stdout", &["src/verb/out.rs"]),
    // Two only ask whether it is a terminal, and one counts there.
    ("stderr", &["src/base/logging.rs", "src/verb/service.rs", "src/verb/verify/mod.rs"]),
];

/// Today's violations of any rule, as they are reported. It may only get shorter, and it is empty.
const EXCEPTIONS: &[&str] = &[];

#[test]
fn the_engine_keeps_the_rules_of_the_house() {
    let tree = Tree::read("src");
    let mut found: Vec<String> = folder_violations(&tree);
    for source in &tree.sources {
        found.extend(crate_violations(source));
        found.extend(word_violations(source));
    }
    found.extend(circle_violations(&tree));
    judge(&found, EXCEPTIONS);
}

#[test]
fn the_load_tester_has_no_circle() {
    judge(&circle_violations(&Tree::read("loadtester/src")), &[]);
}

#[test]
fn the_tree_is_the_drawing() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names: BTreeSet<String> = std::fs::read_dir(root)
        .expect("src is there")
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name in UTF-8"))
        .collect();
    let folders = FOLDERS.iter().map(|(name, _)| (*name).to_owned());
    let expected: BTreeSet<String> = folders.chain(["lib.rs".into(), "main.rs".into()]).collect();
    assert_eq!(names, expected);
    assert!(names.len() <= 14, "{names:?}");
    // lib.rs lists them in this order, and has no code.
    let lib = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/src/lib.rs")).expect("lib.rs");
    let listed: Vec<&str> =
        lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    assert_eq!(listed, FOLDERS.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    assert!(
        lib.lines().all(|line| line.is_empty() || line.starts_with("//") || line.starts_with("pub mod "))
    );
}

/// Fails for what is new, and for exceptions that are none any more.
#[track_caller]
fn judge(found: &[String], exceptions: &[&str]) {
    let new: Vec<&String> =
        found.iter().filter(|violation| !exceptions.contains(&violation.as_str())).collect();
    assert!(new.is_empty(), "against the rules of the house:\n{new:#?}");
    let mended: Vec<&&str> =
        exceptions.iter().filter(|e| !found.iter().any(|violation| violation == **e)).collect();
    assert!(mended.is_empty(), "mended, so take these from the list of exceptions:\n{mended:#?}");
}

/// The folder that a module is in; `None` for lib.rs and main.rs.
fn folder(source: &Source) -> Option<&str> {
    source.module.first().map(String::as_str)
}

/// Imports that go up, or across.
fn folder_violations(tree: &Tree) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (from, to, line) in tree.imports() {
        let (from, to) = (&tree.sources[from], &tree.sources[to]);
        let (Some(here), Some(there)) = (folder(from), folder(to)) else { continue };
        let allowed = FOLDERS.iter().find(|(name, _)| *name == here).map_or(&[][..], |(_, allowed)| allowed);
        if here != there && !allowed.contains(&there) {
            found.insert(format!("{}:{line} imports {}: {here} may not import {there}", from.file, to.file));
        }
    }
    found.into_iter().collect()
}

fn circle_violations(tree: &Tree) -> Vec<String> {
    tree.circles().iter().map(|circle| format!("these import each other: {}", circle.join(", "))).collect()
}

/// True if a file is one of these, or in one of these folders.
fn is_among(file: &str, places: &[&str]) -> bool {
    places
        .iter()
        .any(|place| file.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

fn crate_violations(source: &Source) -> Vec<String> {
    // A module of ours may have the name of a crate; where it is imported, the name means that.
    let ours = |name: &str| {
        source.paths.iter().any(|(path, _)| {
            path.len() > 1 && path[0] == "crate" && path.last().is_some_and(|last| last == name)
        })
    };
    let mut found = BTreeSet::new();
    for (path, line) in source.paths.iter().filter(|(path, _)| path.len() > 1 && !ours(&path[0])) {
        let Some((name, places)) = CRATES.iter().find(|(name, _)| *name == path[0]) else { continue };
        if !is_among(&source.file, places) {
            found.insert(format!("{}:{line} names the crate {name}", source.file));
        }
    }
    found.into_iter().collect()
}

fn word_violations(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let last = |(path, line): &(Vec<String>, usize)| Some((path.last()?.clone(), *line));
    for (word, line) in source.words.iter().cloned().chain(source.paths.iter().filter_map(last)) {
        let rule = WORDS.iter().find(|(name, _)| *name == word);
        if rule.is_some_and(|(_, places)| !is_among(&source.file, places)) {
            found.push(format!("{}:{line} uses the word {word}", source.file));
        }
    }
    for (text, line) in &source.texts {
        for (words, places) in TEXTS {
            if text.contains(words) && !is_among(&source.file, places) {
                found.push(format!("{}:{line} has the text {words:?}", source.file));
            }
        }
    }
    found
}

/// Every crate of Cargo.toml stands in the table, and nothing else.
#[test]
fn each_outside_crate_has_its_place() {
    let manifest =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).expect("Cargo.toml");
    let manifest: toml::Table = manifest.parse().expect("Cargo.toml is TOML");
    let dependencies = manifest["dependencies"].as_table().expect("dependencies");
    let named: BTreeSet<String> = dependencies.keys().map(|name| name.replace('-', "_")).collect();
    let known: BTreeSet<String> =
        CRATES.iter().map(|(name, _)| (*name).to_owned()).filter(|name| name != "rowmill").collect();
    assert_eq!(named, known);
}

// ---- the checker itself ----

#[test]
fn an_import_that_goes_up_is_found_however_it_is_written() {
    #[track_caller]
    fn check(text: &str, expected: usize) {
        let tree = Tree::of(&[
            ("base/a.rs", text),
            ("write/hand.rs", "pub struct Hand;"),
            ("base/b.rs", "pub struct B;"),
            ("base/mod.rs", "pub mod a; pub mod b;"),
        ]);
        assert_eq!(folder_violations(&tree).len(), expected, "{text}");
    }
    check("use crate::write::hand::Hand;", 1);
    check("use crate::{base::b::B, write::{hand::{self, Hand}}};", 1);
    check("use crate::write::hand as other;", 1);
    check("use super::super::write::hand::*;", 1);
    check("fn f() { crate::write::hand::Hand; }", 1);
    check("fn f() { println!(\"{}\", crate::write::hand::Hand); }", 1);
    check("struct S { hand: Vec<crate::write::hand::Hand> }", 1);
    check("mod inner { use crate::write::hand::Hand; }", 1);
    // Neighbors may, and so may tests and comments.
    check("use super::b::B;", 0);
    check("#[cfg(test)] mod tests { use crate::write::hand::Hand; }", 0);
    check("/// See [`crate::write::hand::Hand`].\nfn f() {}", 0);
    check("fn f() { \"crate::write::hand::Hand\"; }", 0);
}

#[test]
fn a_circle_is_found_through_parents_and_children() {
    let circles = |files: &[(&str, &str)]| Tree::of(files).circles().len();
    assert_eq!(circles(&[("a.rs", "use crate::b::B;"), ("b.rs", "use crate::a::A;")]), 1);
    assert_eq!(
        circles(&[("a.rs", "use crate::b::B;"), ("b.rs", "use crate::c::C;"), ("c.rs", "use super::a::A;")]),
        1
    );
    assert_eq!(circles(&[("a/mod.rs", "mod b; fn f() { b::g(); }"), ("a/b.rs", "use super::f;")]), 1);
    assert_eq!(circles(&[("a/mod.rs", "mod b; fn f() {}"), ("a/b.rs", "use super::f;")]), 0);
    assert_eq!(circles(&[("a.rs", "use crate::b::B;"), ("b.rs", "struct B;")]), 0);
}

#[test]
fn a_crate_or_word_out_of_place_is_found() {
    let parse = |file: &str, text: &str| Source::parse(file, vec!["x".into()], text);
    #[track_caller]
    fn check(source: &Source, crates: usize, words: usize) {
        assert_eq!(
            (crate_violations(source).len(), word_violations(source).len()),
            (crates, words),
            "{source:#?}"
        );
    }
    check(&parse("src/write/mod.rs", "use rdkafka::Message;"), 1, 0);
    check(&parse("src/write/mod.rs", "fn f() { rdkafka::poll(); }"), 1, 0);
    check(&parse("src/kafka/poll.rs", "use rdkafka::Message;"), 0, 0);
    check(&parse("src/kafka_other.rs", "use rdkafka::Message;"), 1, 0);
    check(&parse("src/write/mod.rs", "use crate::store::postgres; fn f() { postgres::sink(); }"), 0, 0);
    check(&parse("src/write/mod.rs", "fn f() { unsafe { g() } }"), 0, 1);
    check(&parse("src/kafka/native/mod.rs", "fn f() { unsafe { g() } }"), 0, 0);
    check(&parse("src/write/mod.rs", "fn f() { println!(\"x\"); }"), 0, 1);
    check(&parse("src/verb/status.rs", "fn f() { write!(std::io::stdout(), \"x\"); }"), 0, 1);
    check(&parse("src/verb/status.rs", "use std::io::stderr; fn f() { stderr().write_all(b\"x\"); }"), 0, 2);
    check(&parse("src/verb/init.rs", "const SQL: &str = \"UPDATE rowmill.ledger SET x = 1\";"), 0, 1);
    check(&parse("src/store/postgres/sink.rs", "fn f() { run(\"COPY x; COMMIT\"); }"), 0, 1);
    check(&parse("src/store/postgres/sink.rs", "/// Before the COMMIT.\nfn f() {}"), 0, 0);
}

#[test]
#[should_panic(expected = "mended")]
fn an_exception_that_is_none_any_more_must_go() {
    judge(&[], &["src/a.rs:1 imports src/b.rs: a may not import b"]);
}

#[test]
#[should_panic(expected = "against the rules")]
fn a_new_violation_is_not_excused_by_others() {
    judge(&["one".to_owned(), "two".to_owned()], &["one"]);
}
