//! What a message says: a pure function of (seed, stream, sequence number, due time), so that a row read back can be
//! compared with what was sent without anything having been kept.
//!
//! One `Draft` serves both directions: the generator writes it as JSON, the verifier compares it with the row.

use crate::base::hash::{mix, unit};
use crate::message::keys::Keys;
use crate::message::model::Model;

/// What identifies one message.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Identity {
    pub stream: u16,
    pub seq: u64,
    /// Microseconds since 1970 UTC.
    pub due_us: i64,
}

/// The content of a column. Decimals have two digits after the point, which a double holds without loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Field {
    /// A span of the draft's text.
    Text(u32, u32),
    Integer(i64),
    Hundredths(i64),
}

/// One message in the making; its buffers are used again for the next.
pub struct Draft {
    seed: u64,
    run: u32,
    text: Vec<u8>,
    fields: Vec<Field>,
}

const SITES: [&str; 6] = ["ams1", "fra2", "iad1", "nrt3", "gru1", "syd2"];
const GAUGES: [(&str, i64, i64); 8] = [
    // name, lowest, highest, in hundredths
    ("cpu/load", 0, 3_200),
    ("cpu/temperature", 2_500, 9_500),
    ("memory/used_percent", 500, 9_900),
    ("disk/sda/await_ms", 5, 12_000),
    ("disk/sda/used_percent", 1_000, 9_800),
    ("net/eth0/rx_mbit", 0, 940_000),
    ("psu/0/watts", 9_000, 75_000),
    ("inlet/celsius", -500, 4_500),
];
const STATES: [(&str, &[&str]); 5] = [
    ("link", &["up", "up", "up", "down", "flapping"]),
    ("power", &["on", "on", "on", "off", "failed"]),
    ("door", &["closed", "closed", "open"]),
    ("fan", &["normal", "normal", "normal", "slow", "stopped"]),
    ("raid", &["optimal", "optimal", "degraded", "rebuilding"]),
];
const LEVELS: [&str; 16] = [
    "debug", "debug", "debug", "info", "info", "info", "info", "info", "info", "info", "info", "notice",
    "warning", "warning", "error", "critical",
];
const CATEGORIES: [&str; 6] = ["kernel", "auth", "network", "storage", "scheduler", "application"];
/// Texts with what consumers stumble over: quotes, a backslash, letters outside ASCII, an emoji.
const MESSAGES: [&str; 8] = [
    "accepted connection from peer",
    "session opened for user \"backup\"",
    "write latency above target on C:\\data",
    "retrying request after timeout",
    "Temperatur über Grenzwert",
    "cache rebuilt in time",
    "dropped frame: checksum mismatch \u{1f525}",
    "scheduled job finished",
];
const PROTOCOLS: [&str; 3] = ["icmp", "udp", "tcp"];
const HOPS: u64 = 8;

impl Draft {
    pub fn new(seed: u64, run: u32) -> Self {
        Self { seed, run, text: Vec::with_capacity(512), fields: Vec::with_capacity(8) }
    }

    /// The index of the user whose token the message carries.
    pub fn user(&self, keys: &Keys, id: Identity) -> usize {
        keys.pick(unit(self.hash(id, 1)), id.seq)
    }

    /// Draws the message; the fields come in the order of `Model::columns`.
    pub fn fill(&mut self, model: Model, id: Identity) -> &[Field] {
        self.text.clear();
        self.fields.clear();
        let run = self.run;
        self.push(|text| {
            text.extend_from_slice(b"lt-");
            hex(text, u64::from(run), 8);
            text.push(b'-');
            hex(text, u64::from(id.stream), 3);
        });
        match model {
            Model::State => self.state(id),
            Model::Metric => self.metric(id),
            Model::Log => self.log(id),
            Model::Trace => self.trace(id),
            Model::Ping => self.ping(id),
        }
        &self.fields
    }

    pub fn field(&self, index: usize) -> Field {
        self.fields[index]
    }

    pub fn text(&self, start: u32, end: u32) -> &[u8] {
        &self.text[start as usize..end as usize]
    }

    /// Appends the JSON members of the filled draft, each followed by a comma.
    pub fn write_members(&self, model: Model, out: &mut Vec<u8>) {
        for (name, field) in model.columns().iter().zip(&self.fields) {
            out.push(b'"');
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            match *field {
                Field::Text(start, end) => json_string(out, self.text(start, end)),
                Field::Integer(n) => integer(out, n),
                Field::Hundredths(n) => hundredths(out, n),
            }
            out.push(b',');
        }
    }

    fn state(&mut self, id: Identity) {
        let (kind, values) = STATES[index(self.hash(id, 2), STATES.len())];
        let value = values[index(self.hash(id, 3), values.len())];
        self.path(id, kind);
        self.string(kind);
        self.string(value);
    }

    fn metric(&mut self, id: Identity) {
        let (name, low, high) = GAUGES[usize::from(id.stream) % GAUGES.len()];
        self.path(id, name);
        let at = self.wander(id);
        self.fields.push(Field::Hundredths(low + (at * (high - low) as f64) as i64));
    }

    fn log(&mut self, id: Identity) {
        let category = CATEGORIES[index(self.hash(id, 2), CATEGORIES.len())];
        let level = LEVELS[index(self.hash(id, 3), LEVELS.len())];
        let text = MESSAGES[index(self.hash(id, 4), MESSAGES.len())];
        let took = self.hash(id, 5) % 10_000;
        self.path(id, "syslog");
        self.string("syslog");
        self.string(category);
        self.string(level);
        self.push(|out| {
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b" (");
            integer(out, took as i64);
            out.extend_from_slice(b" ms)");
        });
    }

    /// Eight hops in a row belong to one trace; each hop is farther away than the one before.
    fn trace(&mut self, id: Identity) {
        let trace = Identity { seq: id.seq / HOPS, ..id };
        let hop = id.seq % HOPS + 1;
        let (name, kind) = (self.hash(trace, 2), PROTOCOLS[index(self.hash(trace, 3), PROTOCOLS.len())]);
        self.path(id, "traceroute");
        self.string(kind);
        self.push(|out| hex(out, name, 16));
        self.fields.push(Field::Integer(hop as i64));
        self.host(self.hash(id, 4));
        self.fields.push(Field::Hundredths(hop as i64 * 150 + latency(self.hash(id, 5))));
    }

    fn ping(&mut self, id: Identity) {
        let (name, host) = (self.hash(id, 2), self.hash(id, 3));
        self.path(id, "ping");
        self.string(PROTOCOLS[index(name, PROTOCOLS.len())]);
        self.push(|out| {
            out.extend_from_slice(b"ping-");
            hex(out, name, 8);
        });
        self.host(host);
        self.fields.push(Field::Hundredths(latency(self.hash(id, 4))));
    }

    /// `/site/rack/host/gauge/check/seq`. The check covers the due time, which is not drawn from the seed: a row whose
    /// `time` was altered is found by it.
    fn path(&mut self, id: Identity, gauge: &str) {
        let place = self.hash(Identity { seq: id.seq % 16, ..id }, 6);
        let check = self.check(id);
        self.push(|out| {
            out.push(b'/');
            out.extend_from_slice(SITES[index(place, SITES.len())].as_bytes());
            out.extend_from_slice(b"/rack");
            digits(out, place >> 8 & 63, 2);
            out.extend_from_slice(b"/host");
            digits(out, place >> 16 & 1023, 4);
            out.push(b'/');
            out.extend_from_slice(gauge.as_bytes());
            out.push(b'/');
            hex(out, check, 6);
            out.push(b'/');
            digits(out, id.seq, 1);
        });
    }

    fn check(&self, id: Identity) -> u64 {
        mix(self.hash(id, 7) ^ id.due_us as u64) >> 40
    }

    fn host(&mut self, hash: u64) {
        self.push(|out| {
            out.extend_from_slice(b"10.");
            integer(out, (hash & 31) as i64);
            out.push(b'.');
            integer(out, (hash >> 8 & 255) as i64);
            out.push(b'.');
            integer(out, (hash >> 16 & 255) as i64);
        });
    }

    fn string(&mut self, text: &str) {
        self.push(|out| out.extend_from_slice(text.as_bytes()));
    }

    fn push(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.text.len() as u32;
        write(&mut self.text);
        self.fields.push(Field::Text(start, self.text.len() as u32));
    }

    /// A gauge that wanders between 0 and 1: it moves smoothly from one drawn point to the next, 64 messages apart, with
    /// a little noise on top.
    fn wander(&self, id: Identity) -> f64 {
        let point = |n| unit(self.hash(Identity { seq: n, ..id }, 8));
        let (from, to) = (point(id.seq / 64), point(id.seq / 64 + 1));
        let at = (id.seq % 64) as f64 / 64.0;
        let smooth = at * at * (3.0 - 2.0 * at);
        (from + (to - from) * smooth) * 0.98 + unit(self.hash(id, 9)) * 0.02
    }

    /// `salt` separates the draws of one message from each other.
    fn hash(&self, id: Identity, salt: u64) -> u64 {
        mix(mix(self.seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15)) ^ (u64::from(id.stream) << 48 ^ id.seq))
    }
}

fn index(hash: u64, length: usize) -> usize {
    (hash % length as u64) as usize
}

/// Hundredths of a millisecond with a long tail: half are below 2 ms, one in a thousand is near a second.
fn latency(hash: u64) -> i64 {
    (100.0 / (unit(hash) + 0.000_3)) as i64 + (hash & 15) as i64
}

/// The lower `width` hexadecimal digits.
fn hex(out: &mut Vec<u8>, n: u64, width: u32) {
    for place in (0..width).rev() {
        out.push(b"0123456789abcdef"[(n >> (place * 4) & 15) as usize]);
    }
}

/// Decimal digits, with leading zeros up to `width`.
pub fn digits(out: &mut Vec<u8>, mut n: u64, width: usize) {
    let mut buffer = [b'0'; 20];
    let mut at = buffer.len();
    while n > 0 || buffer.len() - at < width {
        at -= 1;
        buffer[at] = b'0' + (n % 10) as u8;
        n /= 10;
    }
    out.extend_from_slice(&buffer[at..]);
}

fn integer(out: &mut Vec<u8>, n: i64) {
    if n < 0 {
        out.push(b'-');
    }
    digits(out, n.unsigned_abs(), 1);
}

fn hundredths(out: &mut Vec<u8>, n: i64) {
    if n < 0 {
        out.push(b'-');
    }
    digits(out, n.unsigned_abs() / 100, 1);
    out.push(b'.');
    digits(out, n.unsigned_abs() % 100, 2);
}

/// Our own texts hold no control characters, so only two characters need a backslash.
pub fn json_string(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    for &byte in text {
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

/// RFC 3339 in UTC with microseconds; the text of the last second is kept.
#[derive(Default)]
pub struct Rfc3339 {
    second: Option<i64>,
    text: Vec<u8>,
}

impl Rfc3339 {
    pub fn write(&mut self, out: &mut Vec<u8>, time_us: i64) {
        let second = time_us.div_euclid(1_000_000);
        if self.second != Some(second) {
            let time = jiff::Timestamp::from_second(second).unwrap_or_default();
            self.text.clear();
            self.text.extend_from_slice(time.strftime("%Y-%m-%dT%H:%M:%S.").to_string().as_bytes());
            self.second = Some(second);
        }
        out.extend_from_slice(&self.text);
        digits(out, time_us.rem_euclid(1_000_000) as u64, 6);
        out.push(b'Z');
    }
}

/// Everything that a generator thread needs to write its messages.
pub struct Writer {
    pub draft: Draft,
    clock: Rfc3339,
    extra: Extra,
}

/// What a message carries besides its columns; consumers ignore it.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Members of the user's sample messages, one sample an entry, without braces.
    pub members: std::sync::Arc<Vec<Vec<u8>>>,
    /// Pad the message to this many bytes.
    pub bytes: usize,
}

impl Writer {
    pub fn new(seed: u64, run: u32, extra: Extra) -> Self {
        Self { draft: Draft::new(seed, run), clock: Rfc3339::default(), extra }
    }

    /// Replaces `out` with the message.
    pub fn write(&mut self, out: &mut Vec<u8>, model: Model, id: Identity, token: &[u8]) {
        out.clear();
        out.extend_from_slice(b"{\"token\":");
        json_string(out, token);
        out.push(b',');
        self.draft.fill(model, id);
        self.draft.write_members(model, out);
        out.extend_from_slice(b"\"time\":\"");
        self.clock.write(out, id.due_us);
        out.push(b'"');
        if !self.extra.members.is_empty() {
            out.push(b',');
            out.extend_from_slice(&self.extra.members[id.seq as usize % self.extra.members.len()]);
        }
        const PADDING: &[u8] = b",\"padding\":\"";
        let missing = self.extra.bytes.saturating_sub(out.len() + PADDING.len() + 2);
        if missing > 0 {
            out.extend_from_slice(PADDING);
            out.resize(out.len() + missing, b'x');
            out.push(b'"');
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::model::MODELS;
    use crate::message::stream::parse_seq;

    fn message(model: Model, seq: u64) -> String {
        let mut writer = Writer::new(42, 0xabc, Extra::default());
        let mut out = Vec::new();
        writer.write(&mut out, model, Identity { stream: 5, seq, due_us: 1_700_000_000_123_456 }, b"token");
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_message_is_json_with_its_columns() {
        for model in MODELS {
            for seq in 0..200 {
                let text = message(model, seq);
                let json: serde_json::Value = serde_json::from_str(&text).expect(&text);
                let mut names: Vec<_> = model.columns().to_vec();
                names.extend(["token", "time"]);
                names.sort_unstable();
                let mut found: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
                found.sort_unstable();
                assert_eq!(found, names);
                assert_eq!(json["source"], "lt-00000abc-005");
                assert_eq!(json["time"], "2023-11-14T22:13:20.123456Z");
                assert_eq!(parse_seq(json["path"].as_str().unwrap().as_bytes()), Some(seq));
                assert!(json["path"].as_str().unwrap().len() <= 200);
                if model == Model::State {
                    assert!(json["value"].as_str().unwrap().len() <= 10);
                }
                for name in ["value", "latency"] {
                    if let Some(n) = json[name].as_f64() {
                        assert_eq!(n, (n * 100.0).round() / 100.0, "two digits survive the double");
                    }
                }
            }
        }
    }

    /// Runs of other versions stay comparable only while the same seed gives the same bytes. Who changes the texts on
    /// purpose changes this number too.
    #[test]
    fn the_fingerprint_of_the_messages() {
        let mut fingerprint = 0;
        for model in MODELS {
            for seq in 0..1000 {
                for byte in message(model, seq).bytes() {
                    fingerprint = mix(fingerprint ^ u64::from(byte));
                }
            }
        }
        assert_eq!(fingerprint, FINGERPRINT, "0x{fingerprint:016x}");
    }

    const FINGERPRINT: u64 = 0x0417_b4d3_993c_48d6;

    #[test]
    fn a_trace_counts_its_hops() {
        let field = |seq, name: &str| {
            serde_json::from_str::<serde_json::Value>(&message(Model::Trace, seq)).unwrap()[name].clone()
        };
        assert_eq!(
            (0..10).map(|s| field(s, "hop").as_i64().unwrap()).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
        );
        assert_eq!(field(0, "trace"), field(7, "trace"));
        assert_ne!(field(7, "trace"), field(8, "trace"));
    }

    #[test]
    fn a_changed_time_changes_the_path() {
        let mut draft = Draft::new(1, 1);
        let id = Identity { stream: 0, seq: 9, due_us: 1_000_000 };
        let path = |draft: &mut Draft, id| {
            let Field::Text(start, end) = draft.fill(Model::Metric, id)[1] else { panic!() };
            draft.text(start, end).to_vec()
        };
        let original = path(&mut draft, id);
        assert_eq!(original, path(&mut draft, id));
        assert_ne!(original, path(&mut draft, Identity { due_us: 1_000_001, ..id }));
    }

    #[test]
    fn padding_and_extra_members_keep_it_json() {
        let members = std::sync::Arc::new(vec![b"\"site\":{\"a\":1}".to_vec()]);
        for bytes in [0, 10, 300, 1000] {
            let mut writer = Writer::new(1, 1, Extra { members: members.clone(), bytes });
            let mut out = Vec::new();
            writer.write(&mut out, Model::Metric, Identity { stream: 0, seq: 0, due_us: 0 }, b"t");
            let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(json["site"]["a"], 1);
            assert!(bytes < 300 || out.len() == bytes, "{} {bytes}", out.len());
        }
    }

    #[test]
    fn gauges_wander_without_jumps() {
        let draft = Draft::new(3, 1);
        let at = |seq| draft.wander(Identity { stream: 1, seq, due_us: 0 });
        let steps = (0..10_000).map(|s| (at(s) - at(s + 1)).abs());
        assert!(steps.fold(0.0, f64::max) < 0.05);
        assert!((0..10_000).all(|s| (0.0..1.0).contains(&at(s))));
    }
}
