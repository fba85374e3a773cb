//! Any name as an identifier and as a text in SQL: read by SQL's own rules, it is one token, and the same name.

#![no_main]

use libfuzzer_sys::fuzz_target;

use rowmill::model::plan::quoted;
use rowmill::promise::ledger::{Target, advance_and_commit};

fuzz_target!(|names: (&str, &str)| {
    let (identifier, text) = names;
    let (name, rest) = unquote(&quoted(identifier), '"').expect("a quoted identifier");
    assert_eq!((&*name, &*rest), (identifier, ""));

    let target = Target { name: text.to_owned(), sql_name: quoted(identifier), fingerprint: "f".to_owned() };
    let sql = advance_and_commit("me", &target, &[]);
    let rest = sql.strip_prefix("SELECT rowmill.advance('me', ").expect("the call");
    let (name, rest) = literal(rest).expect("a text");
    assert_eq!(name, text);
    let rest = rest.strip_prefix(", pg_catalog.to_regclass(").expect("the table by its name");
    let (name, rest) = literal(rest).expect("a text");
    assert_eq!((name, &*rest), (quoted(identifier), ")::pg_catalog.oid, 'f', '[]'::pg_catalog.jsonb); COMMIT"));
});

/// Reads a token between two quotes, in which a doubled one stands for itself; the token, and what follows.
fn unquote(sql: &str, quote: char) -> Option<(String, String)> {
    let mut name = String::new();
    let mut rest = sql.strip_prefix(quote)?.chars();
    while let Some(c) = rest.next() {
        if c != quote {
            name.push(c);
        } else if let Some(after) = rest.as_str().strip_prefix(quote) {
            name.push(quote);
            rest = after.chars();
        } else {
            return Some((name, rest.as_str().to_owned()));
        }
    }
    None
}

/// A text as SQL reads it: `'..'`, or ` E'..'` with doubled backslashes.
fn literal(sql: &str) -> Option<(String, String)> {
    match sql.strip_prefix(" E") {
        Some(escaped) => unquote(escaped, '\'').map(|(text, rest)| (text.replace("\\\\", "\\"), rest)),
        None => unquote(sql, '\''),
    }
}
