//! `[metrics]`: who is told the figures.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::units::Period;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawMetrics {
    listen: Option<String>,
    statsd: Option<String>,
    statsd_tags: Option<StatsdTags>,
    statsd_interval: Option<Period>,
    statsd_prefix: Option<String>,
}

/// On loopback: who may see the figures is for the operator to say.
const METRICS_LISTEN: &str = "127.0.0.1:9753";

/// What most StatsD servers flush by.
const STATSD_INTERVAL: Duration = Duration::from_secs(10);

/// Who is told the figures.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` for nowhere.
    pub listen: Option<SocketAddr>,
    /// The file asks for this address. A default that is taken, by a second process of this machine, is no error.
    pub listen_is_wanted: bool,
    pub statsd: Option<Statsd>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statsd {
    pub address: StatsdAddress,
    pub tags: StatsdTags,
    pub interval: Duration,
    /// Begins every name.
    pub prefix: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StatsdAddress {
    /// Host and port.
    Udp(String),
    /// A datagram socket's path.
    Unix(String),
}

/// How a StatsD server wants its labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StatsdTags {
    /// In the name, after a dot: every server reads that.
    #[default]
    None,
    Dogstatsd,
    Influx,
    Graphite,
}

pub(super) fn resolve_metrics(raw: RawMetrics) -> Result<Metrics> {
    let listen_is_wanted = raw.listen.is_some();
    let listen = match raw.listen.as_deref().unwrap_or(METRICS_LISTEN) {
        "off" => None,
        text => Some(text.parse().map_err(|_| {
            anyhow::anyhow!("metrics.listen is {text:?}: write an IP address and a port like {METRICS_LISTEN:?}, or \"off\"")
        })?),
    };
    let interval = raw.statsd_interval.map_or(STATSD_INTERVAL, |s| s.0);
    if interval < Duration::from_secs(1) {
        bail!("metrics.statsd_interval must be at least 1s");
    }
    let address = match raw.statsd.as_deref().map(|text| (text, text.split_once("://"))) {
        None => None,
        Some((_, Some(("udp", address)))) if address.contains(':') => {
            Some(StatsdAddress::Udp(address.to_owned()))
        }
        Some((_, Some(("unix", path)))) if path.starts_with('/') => {
            Some(StatsdAddress::Unix(path.to_owned()))
        }
        Some((text, _)) => bail!("metrics.statsd is {text:?}: write udp://host:8125 or unix:///path"),
    };
    let tags = raw.statsd_tags.unwrap_or_default();
    let prefix = raw.statsd_prefix.unwrap_or_default();
    if prefix.chars().any(|c| !c.is_ascii_alphanumeric() && !"_.-".contains(c)) {
        bail!(
            "metrics.statsd_prefix is {prefix:?}: write letters, digits, dots and dashes, such as \"db1.\""
        );
    }
    Ok(Metrics {
        listen,
        listen_is_wanted,
        statsd: address.map(|address| Statsd { address, tags, interval, prefix }),
    })
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        check("[metrics]\nlisten = \"localhost\"", Err("an IP address and a port"));
        check("[metrics]\nstatsd = \"localhost:8125\"", Err("udp://host:8125"));
        check("[metrics]\nstatsd_prefix = \"a:b\"", Err("letters, digits"));
    }
}
