//! Writes messages: the model's own, with what the user wants added to each.

use std::sync::Arc;

use crate::message::draw::{Draft, Identity, People};
use crate::message::model::Model;

/// What a message carries besides its columns; consumers ignore it.
#[derive(Clone, Debug, Default)]
pub struct Extra {
    /// Members of the user's sample messages, one sample an entry, without braces.
    pub members: Arc<Vec<Vec<u8>>>,
    /// Pad the message to this many bytes.
    pub bytes: usize,
}

/// One message, ready to be sent; its buffers are used again for the next.
#[derive(Debug, Default)]
pub struct Written {
    pub message: Vec<u8>,
    /// Kafka's.
    pub key: Vec<u8>,
    /// Path and query of HTTP.
    pub path: Vec<u8>,
    /// In the order of the model's.
    pub headers: Vec<Vec<u8>>,
    /// What readers tell it apart by, folded.
    pub fresh: Option<u64>,
}

impl Written {
    fn clear(&mut self) {
        self.message.clear();
        self.key.clear();
        self.path.clear();
    }
}

/// Everything that a generator thread needs to write its messages.
pub struct Writer {
    draft: Draft,
    extra: Extra,
}

impl Writer {
    pub fn new(seed: u64, run: u32, people: Arc<People>, extra: Extra) -> Self {
        Self { draft: Draft::new(seed, run, people), extra }
    }

    /// Replaces what is written.
    pub fn write(&mut self, written: &mut Written, model: &Model, id: Identity) {
        written.clear();
        self.draft.fill_only(&model.program, id, &model.sent);
        written.fresh = model.fresh.map(|slot| self.draft.fold_plain(slot));
        let Written { message: out, key, path, headers, .. } = written;
        self.draft.write(&model.message, out);
        self.draft.write(&model.key, key);
        if let Some(http) = &model.http {
            self.draft.write(&http.path, path);
            headers.resize_with(http.headers.len(), Vec::new);
            for ((_, value), out) in http.headers.iter().zip(headers) {
                out.clear();
                self.draft.write(value, out);
            }
        }
        // Only an object has room for more.
        if out.last() == Some(&b'}') {
            out.pop();
            self.write_extra(out, id);
            out.push(b'}');
        }
    }

    fn write_extra(&self, out: &mut Vec<u8>, id: Identity) {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::hash::mix;
    use crate::message::keys::{KeySpread, Keys};
    use crate::message::model::Scenario;

    fn people() -> Arc<People> {
        let names = |name: &str| Arc::new(vec![name.to_owned()]);
        Arc::new(People {
            keys: Keys::new(1, KeySpread::Uniform),
            tokens: names("token"),
            ids: names("user"),
        })
    }

    fn message(model: &Model, seq: u64) -> String {
        let mut writer = Writer::new(42, 0xabc, people(), Extra::default());
        let mut written = Written::default();
        writer.write(&mut written, model, Identity { stream: 5, seq, due_us: 1_700_000_000_123_456 });
        assert_eq!(written.key, b"lt-00000abc-005");
        String::from_utf8(written.message).unwrap()
    }

    #[test]
    fn every_message_is_json_with_its_columns() {
        for model in Scenario::collectors().models {
            for seq in 0..200 {
                let text = message(&model, seq);
                let json: serde_json::Value = serde_json::from_str(&text).expect(&text);
                let columns = model.table.as_ref().unwrap().columns.iter();
                let mut names: Vec<&str> = columns.map(|column| column.name.as_str()).collect();
                names.retain(|name| *name != "userid");
                names.push("token");
                names.sort_unstable();
                let mut found: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
                found.sort_unstable();
                assert_eq!(found, names);
                assert_eq!(json["source"], "lt-00000abc-005");
                assert_eq!(json["time"], "2023-11-14T22:13:20.123456Z");
                assert!(json["path"].as_str().unwrap().ends_with(&format!("/{seq}")));
                assert!(json["path"].as_str().unwrap().len() <= 200);
                if model.name == "state" {
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
        for model in Scenario::collectors().models {
            for seq in 0..1000 {
                for byte in message(&model, seq).bytes() {
                    fingerprint = mix(fingerprint ^ u64::from(byte));
                }
            }
        }
        assert_eq!(fingerprint, FINGERPRINT, "0x{fingerprint:016x}");
    }

    const FINGERPRINT: u64 = 0x0417_b4d3_993c_48d6;

    #[test]
    fn a_trace_counts_its_hops() {
        let scenario = Scenario::collectors();
        let field = |seq, name: &str| {
            let text = message(scenario.find("trace").unwrap(), seq);
            serde_json::from_str::<serde_json::Value>(&text).unwrap()[name].clone()
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
        let scenario = Scenario::collectors();
        let model = scenario.find("metric").unwrap();
        let mut writer = Writer::new(1, 1, people(), Extra::default());
        let mut path = |due_us| {
            let mut written = Written::default();
            writer.write(&mut written, model, Identity { stream: 0, seq: 9, due_us });
            serde_json::from_slice::<serde_json::Value>(&written.message).unwrap()["path"].clone()
        };
        assert_eq!(path(1_000_000), path(1_000_000));
        assert_ne!(path(1_000_000), path(1_000_001));
    }

    #[test]
    fn padding_and_extra_members_keep_it_json() {
        let members = Arc::new(vec![b"\"site\":{\"a\":1}".to_vec()]);
        let scenario = Scenario::collectors();
        for bytes in [0, 10, 300, 1000] {
            let mut writer = Writer::new(1, 1, people(), Extra { members: members.clone(), bytes });
            let mut written = Written::default();
            writer.write(&mut written, scenario.find("metric").unwrap(), Identity::default());
            let out = written.message;
            let json: serde_json::Value = serde_json::from_slice(&out).unwrap();
            assert_eq!(json["site"]["a"], 1);
            assert!(bytes < 300 || out.len() == bytes, "{} {bytes}", out.len());
        }
    }

    #[test]
    fn each_tag_wanders_by_itself_over_time() {
        let text = include_str!("../../scenarios/measurements.toml").replace("keys = 10000", "keys = 2");
        let scenario = Scenario::parse(&text).unwrap();
        let mut writer = Writer::new(1, 1, people(), Extra::default());
        let mut tags = [Vec::new(), Vec::new()];
        for seq in 0..2000 {
            let mut written = Written::default();
            let due_us = 1_700_000_000_000_000 + seq as i64 * 50_000;
            writer.write(&mut written, &scenario.models[0], Identity { stream: 0, seq, due_us });
            let json: serde_json::Value = serde_json::from_slice(&written.message).unwrap();
            let values: Vec<f64> =
                json["values"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
            assert_eq!(values.len(), 10);
            tags[usize::from(json["tag"] == "tag-00001")].push(values);
        }
        for tag in &tags {
            // A few tenths of a second apart, of ten seconds between two points, and 2 % of noise.
            let steps =
                tag.windows(2).flat_map(|pair| pair[0].iter().zip(&pair[1]).map(|(a, b)| (a - b).abs()));
            assert!(steps.fold(0.0, f64::max) < 30.0);
            assert!(tag[0].windows(2).all(|pair| pair[0] != pair[1]), "each value wanders by itself");
        }
        assert!(tags[0].len() > 500 && tags[1].len() > 500 && tags[0][0] != tags[1][0]);
    }

    #[test]
    fn gauges_wander_without_jumps() {
        let scenario = Scenario::collectors();
        let value = |seq| {
            let text = message(scenario.find("metric").unwrap(), seq);
            serde_json::from_str::<serde_json::Value>(&text).unwrap()["value"].as_f64().unwrap()
        };
        // Stream 5 is the one from 0 to 9400.
        let steps = (0..2000).map(|seq| (value(seq) - value(seq + 1)).abs() / 9400.0);
        assert!(steps.fold(0.0, f64::max) < 0.05);
        assert!((0..2000).all(|seq| (0.0..9400.0).contains(&value(seq))));
    }
}
