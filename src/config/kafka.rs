//! `[kafka]`: the brokers, how they are reached, and where a new topic begins.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::address::{host_of, is_loopback};
use super::secret::{self, Environment};
use crate::base::spelling::did_you_mean;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKafka {
    brokers: Option<String>,
    group_id: Option<String>,
    start: Option<String>,
    tls: Option<RawKafkaTls>,
    sasl: Option<RawSasl>,
    #[serde(default)]
    plaintext: bool,
    #[serde(default)]
    properties: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawKafkaTls {
    ca: String,
    cert: Option<String>,
    key: Option<String>,
    key_password: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSasl {
    mechanism: String,
    username: String,
    password: String,
}

#[derive(Debug, Clone)]
pub struct Kafka {
    pub brokers: String,
    /// Only named in the offsets that are committed for Kafka's lag tools; nobody joins it.
    pub group_id: String,
    pub start: StartPosition,
    pub tls: Option<KafkaTls>,
    pub sasl: Option<Sasl>,
    /// librdkafka's own properties, passed through.
    pub properties: BTreeMap<String, String>,
}

/// PEM files for TLS to Kafka; `cert` and `key` where the brokers ask for them.
#[derive(Clone, PartialEq, Eq)]
pub struct KafkaTls {
    /// `None` for the authorities that the system trusts.
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
    pub key_password: Option<String>,
}

/// A user for Kafka.
#[derive(Clone, PartialEq, Eq)]
pub struct Sasl {
    pub mechanism: String,
    pub username: String,
    pub password: String,
}

/// Where a topic begins that the ledger does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartPosition {
    Earliest,
    Latest,
    /// The first record at or after this time, in milliseconds since 1970 UTC.
    At(i64),
}

/// A URL may hold a password, so none of these is ever printed whole.
impl std::fmt::Debug for KafkaTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaTls").field("ca", &self.ca).field("cert", &self.cert).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Sasl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sasl").field("mechanism", &self.mechanism).finish_non_exhaustive()
    }
}

pub(super) fn resolve_kafka(raw: RawKafka, pipeline: &str, env: Environment<'_>) -> Result<Kafka> {
    let brokers = raw
        .brokers
        .or_else(|| env("KAFKA_BROKERS"))
        .context("no Kafka brokers: set brokers in [kafka], or KAFKA_BROKERS")?;
    let properties = checked_properties(raw.properties)?;
    let tls = raw.tls.map(|tls| resolve_kafka_tls(tls, env)).transpose()?;
    let sasl = raw.sasl.map(|sasl| resolve_sasl(sasl, env)).transpose()?;
    let is_local = brokers.split(',').all(|broker| is_loopback(host_of(broker)));
    if tls.is_none() && !is_local && !raw.plaintext {
        bail!(
            "the brokers {brokers} are on other machines and there is no [kafka.tls]: set ca there, or plaintext = true in \
             [kafka] if everybody in between may read and change the records"
        );
    }
    Ok(Kafka {
        brokers,
        group_id: raw.group_id.unwrap_or_else(|| pipeline.to_owned()),
        start: resolve_start(raw.start.as_deref())?,
        tls,
        sasl,
        properties,
    })
}

fn resolve_kafka_tls(raw: RawKafkaTls, env: Environment<'_>) -> Result<KafkaTls> {
    if raw.cert.is_some() != raw.key.is_some() {
        bail!("kafka.tls: cert and key belong together; set both or none");
    }
    Ok(KafkaTls {
        ca: if raw.ca == "system" { None } else { Some(secret::path("kafka.tls.ca", &raw.ca, env)?) },
        cert: secret::optional_path("kafka.tls.cert", raw.cert, env)?,
        key: secret::optional_path("kafka.tls.key", raw.key, env)?,
        key_password: secret::optional("kafka.tls.key_password", raw.key_password, env)?,
    })
}

/// What librdkafka can do without a Kerberos library.
const SASL_MECHANISMS: [&str; 3] = ["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"];

fn resolve_sasl(raw: RawSasl, env: Environment<'_>) -> Result<Sasl> {
    if !SASL_MECHANISMS.contains(&raw.mechanism.as_str()) {
        bail!(
            "kafka.sasl.mechanism is {:?}: use one of {}{}",
            raw.mechanism,
            SASL_MECHANISMS.join(", "),
            did_you_mean(&raw.mechanism.to_uppercase(), SASL_MECHANISMS.into_iter())
        );
    }
    Ok(Sasl {
        mechanism: raw.mechanism,
        username: secret::value("kafka.sasl.username", &raw.username, env)?,
        password: secret::value("kafka.sasl.password", &raw.password, env)?,
    })
}

fn resolve_start(raw: Option<&str>) -> Result<StartPosition> {
    match raw {
        None | Some("earliest") => Ok(StartPosition::Earliest),
        Some("latest") => Ok(StartPosition::Latest),
        Some(text) => {
            let time: jiff::Timestamp = text.parse().map_err(|_| {
                anyhow::anyhow!("kafka.start is {text:?}: use \"earliest\", \"latest\" or a time like \"2026-01-31T00:00:00Z\"")
            })?;
            Ok(StartPosition::At(time.as_millisecond()))
        }
    }
}

/// Properties on which the promise rests: librdkafka would skip records or lose its place with other values.
pub(super) const FIXED_PROPERTIES: [&str; 16] = [
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "isolation.level",
    "bootstrap.servers",
    "group.id",
    // [kafka.tls] and [kafka.sasl] say these, and check them.
    "security.protocol",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.username",
    "sasl.password",
    "ssl.key.password",
    "ssl.ca.location",
    "enable.ssl.certificate.verification",
    "ssl.endpoint.identification.algorithm",
];

fn checked_properties(properties: BTreeMap<String, String>) -> Result<BTreeMap<String, String>> {
    match properties.keys().find(|name| FIXED_PROPERTIES.contains(&name.as_str())) {
        Some(fixed) => bail!(
            "kafka.properties may not set {fixed:?}: the guarantee rests on its value, or [kafka], [kafka.tls] or [kafka.sasl] has \
             a setting for it"
        ),
        None => Ok(properties),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        check("[kafka]\nstart = \"now\"", Err("\"earliest\", \"latest\""));
        check("[kafka.properties]\n\"auto.offset.reset\" = \"latest\"", Err("may not set"));
    }

    #[test]
    fn what_would_be_plaintext_between_machines_must_be_asked_for() {
        check("[kafka]\nbrokers = \"k-1:9092,localhost:1\"", Err("no [kafka.tls]"));
        check("[kafka]\nbrokers = \"k-1:9092\"\nplaintext = true", Ok(()));
        check("[kafka]\nbrokers = \"[::1]:9092, 127.0.0.1:1\"", Ok(()));
        check("[kafka.tls]\nca = \"system\"\n[kafka]\nbrokers = \"k-1:9092\"", Ok(()));
        check("[kafka.tls]\nca = \"/nowhere/ca.crt\"", Err("cannot read kafka.tls.ca \"/nowhere/ca.crt\""));
        check("[kafka.tls]\nca = \"system\"\ncert = \"/x\"", Err("belong together"));
        check("[kafka.sasl]\nmechanism = \"GSSAPI\"\nusername = \"u\"\npassword = \"p\"", Err("use one of"));
        check("[kafka.properties]\n\"sasl.password\" = \"x\"", Err("may not set"));
    }
}
