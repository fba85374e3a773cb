//! What the client library's reasons mean for whoever sent a record.

use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::native::send::{Failed, words};

/// What is known of a record that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Larger than its topic takes; it is not stored.
    TooLarge,
    NotStored,
    /// It was sent, and may be stored.
    Unknown,
}

/// A record that the client library did not take.
pub fn refused(code: Code, topic: &str) -> (Fate, String) {
    explained(code, topic, Fate::NotStored)
}

/// A record that it reported as failed.
pub fn failed(failed: Failed, topic: &str) -> (Fate, String) {
    explained(failed.code, topic, if failed.may_be_stored { Fate::Unknown } else { Fate::NotStored })
}

fn explained(code: Code, topic: &str, fate: Fate) -> (Fate, String) {
    use Code::*;
    let sentence = match code {
        RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE if fate == Fate::NotStored => {
            return (Fate::TooLarge, format!("topic {topic:?} takes no record of this size"));
        }
        RD_KAFKA_RESP_ERR__QUEUE_FULL => "more records wait for Kafka than may".to_owned(),
        RD_KAFKA_RESP_ERR__MSG_TIMED_OUT => format!(
            "no broker acknowledged it in time (topic {topic:?}): are the brokers up, and enough replicas in sync?"
        ),
        RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC | RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART => {
            format!("there is no topic {topic:?}")
        }
        RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED | RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED => {
            format!("the brokers do not let this user write to topic {topic:?}: allow Write on it")
        }
        RD_KAFKA_RESP_ERR_INVALID_RECORD => format!(
            "the brokers call it invalid: topic {topic:?} is compacted, perhaps, and the route has no key"
        ),
        RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS | RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND => {
            format!("topic {topic:?} has fewer replicas in sync than its min.insync.replicas")
        }
        _ => format!("Kafka says: {}", words(code)),
    };
    (fate, sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_stored_is_never_called_lost() {
        let of = |code, may_be_stored| failed(Failed { code, may_be_stored }, "t").0;
        for code in [
            Code::RD_KAFKA_RESP_ERR__MSG_TIMED_OUT,
            Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE,
            Code::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS_AFTER_APPEND,
            Code::RD_KAFKA_RESP_ERR__TRANSPORT,
        ] {
            assert_eq!(of(code, true), Fate::Unknown, "{code:?}");
            assert_ne!(of(code, false), Fate::Unknown, "{code:?}");
        }
        assert_eq!(of(Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE, false), Fate::TooLarge);
        assert!(refused(Code::RD_KAFKA_RESP_ERR__QUEUE_FULL, "t").1.contains("wait for Kafka"));
    }
}
