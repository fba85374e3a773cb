//! Brokers that do not answer, and topics that are not there: why, as far as it can be found out.

use std::time::Duration;

use super::findings::Findings;
use crate::client::tls;
use crate::config;
use crate::kafka::ask::Asker;
use crate::kafka::native;

/// For a handshake of our own with a broker that does not answer.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// False for a topic that is not there, or not for this user.
pub(super) fn check_name(topic: &native::Description, findings: &mut Findings) -> bool {
    let Err(reason) = &topic.id else { return true };
    findings.bad(format!(
        "topic {:?}: {}; create it, mend its name, or let this user describe it",
        topic.name,
        reason.trim()
    ));
    false
}

/// A request without an answer says nothing; a handshake of our own, or the connection's last error, says why.
pub(super) fn why(kafka: &config::Kafka, asker: &Asker, error: anyhow::Error) -> anyhow::Error {
    if let Some(tls) = &kafka.tls {
        // A key with a password is for the client only; a server's certificate can be judged without one.
        let client = tls.cert.as_deref().zip(tls.key.as_deref()).filter(|_| tls.key_password.is_none());
        let files = tls::Files { ca: tls.ca.as_deref(), client };
        for broker in kafka.brokers.split(',') {
            let (host, port) = config::address::address_of(broker);
            if let Err(refused) = tls::probe(host, port, files, HANDSHAKE) {
                return refused;
            }
        }
    }
    let said = asker.last_error();
    // A broker that waits for a handshake says nothing at all.
    let speaks_tls = || {
        let files = || tls::Files { ca: None, client: None };
        kafka.tls.is_none()
            && kafka
                .brokers
                .split(',')
                .map(config::address::address_of)
                .any(|(host, port)| tls::speaks(&tls::probe(host, port, files(), HANDSHAKE)))
    };
    if said.as_deref().is_none_or(|words| unanswered(words).is_none()) && speaks_tls() {
        return anyhow::anyhow!(
            "the brokers speak TLS there, and this configuration has no [kafka.tls]: add it with ca, or name the plaintext port"
        );
    }
    let words = said.unwrap_or_else(|| format!("{error:#}"));
    let remedy = unanswered(&words).unwrap_or("are the brokers and their ports right?");
    anyhow::anyhow!("{words}; {remedy}")
}

/// What an error of a connection calls for, where its words tell.
fn unanswered(words: &str) -> Option<&'static str> {
    let has = |part: &str| words.to_lowercase().contains(part);
    if has("sasl") && (has("authentication") || has("credentials")) {
        Some("are username, password and mechanism in [kafka.sasl] right?")
    } else if has("invalid response size") || has("receive failed") && has("response") {
        Some("what answers there is no Kafka broker: is it another server's port?")
    } else if has("connection refused") {
        Some("nothing listens there: are the brokers and their ports right, and do they run?")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_a_connection_has_its_remedy() {
        #[track_caller]
        fn check(words: &str, expected: Option<&str>) {
            let found = unanswered(words);
            assert_eq!(found.is_some(), expected.is_some(), "{words}: {found:?}");
            assert!(found.unwrap_or_default().contains(expected.unwrap_or_default()), "{words}: {found:?}");
        }
        check("cannot describe the topics: Local: Timed out", None);
        check(
            "b:1/bootstrap: Receive failed: Invalid response size 1157627904 (0..100000000)",
            Some("no Kafka broker"),
        );
        check(
            "SASL authentication error: Authentication failed due to invalid credentials with SASL mechanism",
            Some("[kafka.sasl]"),
        );
        check("Connect to ipv4#127.0.0.1:1 failed: Connection refused", Some("nothing listens there"));
    }
}
