//! Any text as a configuration, and any variables over it: no panic, and a refusal says something on one line or a few.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rowmill::config;

fuzz_target!(|input: (&str, Vec<(String, String)>)| {
    let (text, variables) = input;
    // A file that a fuzzer names may never end.
    if text.contains("file:") || variables.iter().any(|(_, value)| value.contains("file:")) {
        return;
    }
    let servers = |name: &str| match name {
        "KAFKA_BROKERS" => Some("localhost:9092".to_owned()),
        "DATABASE_URL" => Some("postgresql://u@localhost/d".to_owned()),
        "REDIS_URL" => Some("redis://localhost".to_owned()),
        _ => None,
    };
    let overrides = variables.into_iter().map(|(name, value)| (format!("ROWMILL_{name}"), value));
    if let Err(error) = config::parse(text, overrides, &servers) {
        assert!(!format!("{error:#}").is_empty());
    }
});
