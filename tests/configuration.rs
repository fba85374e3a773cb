//! Any text as a configuration: no panic, and what is wrong is named.

use proptest::prelude::*;
use rowmill::config;

/// Settings of every section, one a line.
const GOOD: &str = r#"
pipeline = "collectors"
memory_max = "32MB"
message_max = "4MB"
[kafka]
brokers = "localhost:9092"
group_id = "collectors"
start = "earliest"
plaintext = true
[postgres]
url = "postgresql://rowmill_writer@localhost/collectors"
lock_timeout = "10s"
[redis]
url = "redis://localhost/0"
plaintext = true
[lookup.user]
key = "user:{}"
ttl = "60s"
cache_max = 100000
grace = "1s"
[lease]
duration = "5s"
session_lock = true
[threads]
pollers = 1
decoders = 1
writers = 1
pin = "auto"
watchdog = "2m"
[guard]
dead_letter_share = 0.5
dead_letter_window = 1000
[metrics]
listen = "127.0.0.1:9753"
statsd = "udp://127.0.0.1:8125"
statsd_tags = "none"
statsd_interval = "10s"
[log]
format = "auto"
level = "info"
[[model]]
topic = "metric"
table = "metric"
tombstones = "skip"
when = { kind = "x" }
[model.columns]
userid = { lookup = "user", field = "token" }
"#;

fn parse(text: &str, overrides: &[(String, String)]) -> Result<(), String> {
    let parsed = config::parse(text, overrides.iter().cloned(), &|_| None);
    parsed.map(drop).map_err(|error| format!("{error:#}"))
}

/// The lines with a setting: their number from 1, and the setting's key.
fn settings() -> Vec<(usize, &'static str)> {
    let numbered = GOOD.lines().zip(1..);
    numbered.filter_map(|(line, number)| Some((number, line.split_once(" = ")?.0))).collect()
}

fn with_line(number: usize, line: &str) -> String {
    let lines = GOOD.lines().zip(1..).map(|(old, n)| if n == number { line } else { old });
    lines.map(|line| format!("{line}\n")).collect()
}

/// A value as TOML writes it, of whatever kind.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<bool>().prop_map(|b| b.to_string()),
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| format!("{n:e}").replace("NaN", "nan")),
        "[0-9]{1,20} ?(B|kB|MB|GB|ms|s|m|h)".prop_map(|text| format!("{text:?}")),
        any::<String>().prop_map(|text| serde_json::Value::from(text).to_string()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("1979-05-27T07:32:00Z".to_owned()),
    ]
}

#[test]
fn the_good_one_is_good() {
    assert_eq!(parse(GOOD, &[]), Ok(()));
}

proptest! {
    #[test]
    fn no_text_panics(text: String) {
        prop_assert!(parse(&text, &[]).is_err(), "there is no [[model]] in it");
    }

    #[test]
    fn no_damaged_text_panics(at: prop::sample::Index, length in 0usize..20, put: String) {
        let start = GOOD.floor_char_boundary(at.index(GOOD.len()));
        let end = GOOD.floor_char_boundary((start + length).min(GOOD.len()));
        parse(&format!("{}{put}{}", &GOOD[..start], &GOOD[end..]), &[]).ok();
    }

    #[test]
    fn no_variable_panics(name in "[A-Z_]{0,20}", key: prop::sample::Index, value: String) {
        let known = format!("ROWMILL_{}", key.get(&settings()).1.to_uppercase());
        for name in [known, format!("ROWMILL_{name}"), format!("ROWMILL_GUARD__{name}")] {
            parse(GOOD, &[(name, value.clone())]).ok();
        }
    }

    #[test]
    fn a_refusal_names_the_setting_or_its_line(at: prop::sample::Index, value in any_value()) {
        let (number, key) = *at.get(&settings());
        if let Err(words) = parse(&with_line(number, &format!("{key} = {value}")), &[]) {
            let is_named = words.contains(key) || words.contains(&format!("line {number}:"));
            prop_assert!(is_named, "{key} = {value}: {words}");
        }
    }

    #[test]
    fn a_key_that_does_not_exist_is_named(at: prop::sample::Index, more in "[a-z]{1,8}") {
        let (number, key) = *at.get(&settings());
        let wrong = format!("{key}_{more}");
        let words = parse(&with_line(number, &format!("{wrong} = 1")), &[]).expect_err("unknown");
        // Where keys are the user's own words, something else is missing then.
        prop_assert!(words.contains(&wrong) || words.contains(key) || words.contains("line "), "{wrong}: {words}");
    }
}
