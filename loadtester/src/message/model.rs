//! The five tables and the messages that belong to them: names, columns and their order.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Model {
    State,
    Metric,
    Log,
    Trace,
    Ping,
}

pub const MODELS: [Model; 5] = [Model::State, Model::Metric, Model::Log, Model::Trace, Model::Ping];

impl Model {
    /// The name of the table and of the topic.
    pub fn table(self) -> &'static str {
        match self {
            Model::State => "state",
            Model::Metric => "metric",
            Model::Log => "log",
            Model::Trace => "network_trace",
            Model::Ping => "network_ping",
        }
    }

    /// What `--mix` calls it.
    pub fn short(self) -> &'static str {
        match self {
            Model::Trace => "trace",
            Model::Ping => "ping",
            other => other.table(),
        }
    }

    pub fn parse(name: &str) -> Option<Model> {
        MODELS.into_iter().find(|m| m.table() == name || m.short() == name)
    }

    /// The columns that carry what was drawn, in the order of the message. `userid`, `time` and `timestamp` are in every
    /// table too.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Model::State => &["source", "path", "type", "value"],
            Model::Metric => &["source", "path", "value"],
            Model::Log => &["source", "path", "type", "category", "level", "message"],
            Model::Trace => &["source", "path", "type", "trace", "hop", "host", "latency"],
            Model::Ping => &["source", "path", "type", "ping", "host", "latency"],
        }
    }

    /// The statement for a reader who has no such table yet.
    pub fn create_table(self) -> &'static str {
        match self {
            Model::State => {
                "CREATE TABLE state (userid VARCHAR(100) NOT NULL, source VARCHAR(100) NOT NULL, path VARCHAR(200) NOT NULL, \
                 type VARCHAR(20) NOT NULL, value VARCHAR(10) NOT NULL, time TIMESTAMPTZ NOT NULL, timestamp TIMESTAMPTZ NOT NULL)"
            }
            Model::Metric => {
                "CREATE TABLE metric (userid VARCHAR(100) NOT NULL, source VARCHAR(100) NOT NULL, path VARCHAR(200) NOT NULL, \
                 value DOUBLE PRECISION NOT NULL, time TIMESTAMPTZ NOT NULL, timestamp TIMESTAMPTZ NOT NULL)"
            }
            Model::Log => {
                "CREATE TABLE log (userid VARCHAR(100) NOT NULL, source VARCHAR(100) NOT NULL, path VARCHAR(200) NOT NULL, \
                 type VARCHAR(20) NOT NULL, category VARCHAR(100) NOT NULL, level VARCHAR(20) NOT NULL, message TEXT NOT NULL, \
                 time TIMESTAMPTZ NOT NULL, timestamp TIMESTAMPTZ NOT NULL)"
            }
            Model::Trace => {
                "CREATE TABLE network_trace (userid VARCHAR(100) NOT NULL, source VARCHAR(100) NOT NULL, path VARCHAR(200) NOT NULL, \
                 type VARCHAR(20) NOT NULL, trace VARCHAR(100) NOT NULL, hop INTEGER NOT NULL, host VARCHAR(200) NOT NULL, \
                 latency DOUBLE PRECISION NOT NULL, time TIMESTAMPTZ NOT NULL, timestamp TIMESTAMPTZ NOT NULL)"
            }
            Model::Ping => {
                "CREATE TABLE network_ping (userid VARCHAR(100) NOT NULL, source VARCHAR(100) NOT NULL, path VARCHAR(200) NOT NULL, \
                 type VARCHAR(20) NOT NULL, ping VARCHAR(100) NOT NULL, host VARCHAR(200) NOT NULL, latency DOUBLE PRECISION NOT NULL, \
                 time TIMESTAMPTZ NOT NULL, timestamp TIMESTAMPTZ NOT NULL)"
            }
        }
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// Which share of the messages each model has.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix(pub Vec<(Model, f64)>);

impl Mix {
    pub fn models(&self) -> Vec<Model> {
        self.0.iter().map(|(model, _)| *model).collect()
    }

    /// The model at `at`, a number from 0 to 1, as an index into the mix.
    pub fn pick(&self, at: f64) -> usize {
        let total: f64 = self.0.iter().map(|(_, share)| share).sum();
        let mut left = at * total;
        for (index, (_, share)) in self.0.iter().enumerate() {
            left -= share;
            if left < 0.0 {
                return index;
            }
        }
        self.0.len() - 1
    }
}

impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix: Vec<(Model, f64)> = Vec::new();
        for part in text.split(',') {
            let (name, share) = part.trim().split_once('=').unwrap_or((part.trim(), "1"));
            let model = Model::parse(name).ok_or_else(|| {
                format!("there is no model \"{name}\"; the models are state, metric, log, trace and ping")
            })?;
            let share: f64 =
                share.parse().map_err(|_| format!("the share \"{share}\" of {name} is not a number"))?;
            if !(share > 0.0 && share.is_finite()) {
                return Err(format!("the share of {name} must be above zero; leave the model out instead"));
            }
            if mix.iter().any(|(m, _)| *m == model) {
                return Err(format!("{name} stands twice in the mix"));
            }
            mix.push((model, share));
        }
        Ok(Mix(mix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes() {
        let rejected = ["", "disk=1", "metric", "metric=-1", "metric=0", "metric=x", "metric=1,metric=2"];
        for text in rejected.iter().filter(|t| **t != "metric") {
            assert!(text.parse::<Mix>().is_err(), "{text}");
        }
        let mix: Mix = "metric=60, state=20,log=10,trace=5,ping=5".parse().unwrap();
        assert_eq!(mix.models(), [Model::Metric, Model::State, Model::Log, Model::Trace, Model::Ping]);
        for (at, index) in [(0.0, 0), (0.599, 0), (0.601, 1), (0.85, 2), (0.94, 3), (0.96, 4), (1.0, 4)] {
            assert_eq!(mix.pick(at), index, "{at}");
        }
    }
}
