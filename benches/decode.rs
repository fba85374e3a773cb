//! The decoder alone, on one core and in warm caches: nanoseconds for each record, from the bytes that Kafka holds to the
//! bytes that COPY takes. No server takes part, so it shows what a change of the decoder saves where the whole pipeline's
//! figures drown in noise.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use serde::Deserialize;

use rowmill::decode::column::{Encoded, Found, Lookups};
use rowmill::decode::record::{Limits, RecordDecoder};
use rowmill::model::RawModel;
use rowmill::model::compile::compile;
use rowmill::model::types::{Column, Kind, Table, Type};
use rowmill::promise::batch::{Headers, Record, Shape};

/// As many as a batch of Kafka's has.
const RECORDS: u64 = 10_000;
/// How often all of them are decoded in one round.
const TIMES: usize = 100;
const ROUNDS: usize = 9;
const USERS: u64 = 1000;

#[derive(Deserialize)]
struct Models {
    model: Vec<RawModel>,
}

const MODELS: &str = r#"
    [[model]]
    topic = "metric"
    table = "metric"
    [model.columns]
    userid = { lookup = "user", field = "token" }
    timestamp = { clock = "write" }
"#;

struct Users(HashMap<Box<str>, Box<str>, foldhash::quality::RandomState>);

impl Lookups for Users {
    #[inline(always)]
    fn find(&self, _lookup: usize, token: &str) -> Found<'_> {
        self.0.get(token).map_or(Found::Unknown, |user| Found::Value(user))
    }
}

fn main() -> Result<()> {
    let mut decoder = decoder()?;
    let users =
        Users((0..USERS).map(|user| (token(user).into(), format!("user-{user:011}").into())).collect());
    let messages: Vec<String> = (0..RECORDS).map(message).collect();
    let mut out = Vec::new();
    let mut found = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        for (encode, found) in [false, true].into_iter().zip(&mut found) {
            let began = Instant::now();
            for _ in 0..TIMES {
                out.clear();
                decode(&mut decoder, &messages, encode, &users, &mut out)?;
            }
            found.push(began.elapsed().as_secs_f64() * 1e9 / (RECORDS as f64 * TIMES as f64));
        }
    }
    let bytes = messages.iter().map(String::len).sum::<usize>() as f64 / RECORDS as f64;
    println!("a record          {bytes:.0} bytes of JSON, {:.0} of COPY", out.len() as f64 / RECORDS as f64);
    for (what, nanos) in ["parse", "parse and encode"].iter().zip(&mut found) {
        nanos.sort_by(f64::total_cmp);
        println!("{what:<17} {:.0} ns a record, {:.0} in the best round", nanos[ROUNDS / 2], nanos[0]);
    }
    Ok(())
}

/// A gauge as a data collector sends it.
fn message(number: u64) -> String {
    let random = mix(number);
    let (rack, host, value) = ((random >> 8) % 40, (random >> 16) % 400, (random >> 24) % 1_000_000);
    format!(
        r#"{{"token":"{}","source":"collector-{:03}","path":"ams1/rack-{rack:02}/node-{host:03}/cpu/load/{number:010}","value":{},"time":"2026-01-01T00:00:00.{number:06}Z"}}"#,
        token((random >> 32) % USERS),
        random % 100,
        value as f64 / 100.0,
    )
}

fn token(user: u64) -> String {
    format!("{:016x}", mix(user))
}

/// A number that looks random and is not (splitmix64).
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn decode(
    decoder: &mut RecordDecoder,
    messages: &[String],
    encode: bool,
    users: &Users,
    out: &mut Vec<u8>,
) -> Result<()> {
    for (offset, json) in messages.iter().enumerate() {
        let record = Record {
            topic: "metric",
            partition: 0,
            offset: offset as i64,
            timestamp_ms: Some(0),
            key: None,
            value: Some(json.as_bytes()),
            headers: Headers::default(),
        };
        let parsed = decoder.parse(&record).map_err(|reject| anyhow!("{}", reject.message))?;
        let message = parsed.message().context("a record without a value")?;
        if encode {
            let encoded = decoder.encode(0, message, users, out);
            ensure!(encoded == Ok(Encoded::Row(Shape::WHOLE)), "no row: {encoded:?}");
        }
    }
    Ok(())
}

fn decoder() -> Result<RecordDecoder> {
    let text = |length| Type::Varchar(Some(length));
    let columns = [
        ("userid", text(100)),
        ("source", text(100)),
        ("path", text(200)),
        ("value", Type::Float8),
        ("time", Type::Timestamptz),
        ("timestamp", Type::Timestamptz),
    ];
    let columns = columns.into_iter().zip(1..).map(|((name, ty), attnum)| Column {
        name: name.into(),
        attnum,
        ty,
        not_null: true,
        has_default: false,
        generated_or_identity_always: false,
        fills_itself: false,
    });
    let table = Table {
        oid: 1,
        schema: "public".into(),
        name: "metric".into(),
        sql_name: "\"public\".\"metric\"".into(),
        columns: columns.collect(),
        primary_key: Vec::new(),
        fingerprint: String::new(),
        kind: Kind::Ordinary,
        ranged_by: None,
    };
    let models: Models = toml::from_str(MODELS)?;
    let tables = HashMap::from([("metric".to_owned(), table)]);
    let plan =
        compile(&models.model, &tables, &["user".to_owned()]).map_err(|problems| anyhow!("{problems:?}"))?;
    Ok(RecordDecoder::new(Arc::new(plan), 0, Limits::default()))
}
