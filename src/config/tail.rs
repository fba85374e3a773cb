//! `[tail]`: where the events come from that `rowmill tail` shows, what their fields are called, and the words of its dialogue.

use anyhow::{Result, bail};
use serde::Deserialize;

/// What stands in a stream's name for the partition's number.
const PARTITION: &str = "{partition}";

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTail {
    from: Option<From>,
    channel: Option<String>,
    stream: Option<String>,
    topic: Option<String>,
    account: Option<Fields>,
    account_type: Option<AccountType>,
    time: Option<Fields>,
    data: Option<Fields>,
    host: Option<Fields>,
    at: Option<Fields>,
    id: Option<Fields>,
    #[serde(default)]
    say: RawWords,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWords {
    accounts: Option<String>,
    account_ids: Option<String>,
    events: Option<String>,
}

/// A field that has other names in other sources: the first of them that an event has counts.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Fields {
    One(String),
    Many(Vec<String>),
}

impl Fields {
    fn list(self) -> Vec<String> {
        match self {
            Fields::One(name) => vec![name],
            Fields::Many(names) => names,
        }
    }
}

/// What is shown as it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    Channel,
    Stream,
    Topic,
}

/// What an account's id is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccountType {
    /// A whole number from 1 on.
    #[default]
    Number,
    Text,
}

/// The section as used.
#[derive(Debug, Clone)]
pub struct Tail {
    pub from: From,
    /// Of Redis' publish and subscribe.
    pub channel: String,
    /// The key of a partition's stream: what stands before and behind the partition's number. What was missed comes from there.
    pub stream: Option<(String, String)>,
    /// Kafka's topic. What was missed comes from there where there is no stream.
    pub topic: Option<String>,
    pub fields: Names,
    pub account_type: AccountType,
    pub words: Words,
}

/// The names of an event's fields, each with others that it may have instead.
#[derive(Debug, Clone)]
pub struct Names {
    pub account: Vec<String>,
    pub time: Vec<String>,
    pub data: Vec<String>,
    pub host: Vec<String>,
    /// Partition and offset, as `3/129`.
    pub at: Vec<String>,
    /// What is the same in an event that was sent twice.
    pub id: Vec<String>,
}

/// What the dialogue calls things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    pub accounts: String,
    pub account_ids: String,
    pub events: String,
}

impl Default for Words {
    fn default() -> Words {
        let word = str::to_owned;
        Words { accounts: word("accounts"), account_ids: word("account IDs"), events: word("events") }
    }
}

impl Tail {
    /// The key of a partition's stream.
    pub fn stream_of(&self, partition: i32) -> Option<String> {
        self.stream.as_ref().map(|(before, behind)| format!("{before}{partition}{behind}"))
    }

    /// The partition whose stream this is.
    pub fn partition_of(&self, key: &str) -> Option<i32> {
        let (before, behind) = self.stream.as_ref()?;
        key.strip_prefix(before.as_str())?.strip_suffix(behind.as_str())?.parse().ok().filter(|n| *n >= 0)
    }

    pub fn needs_redis(&self) -> bool {
        self.from != From::Topic
    }
}

/// # Errors
/// What the settings lack, or contradict.
pub(super) fn resolve_tail(raw: RawTail) -> Result<Tail> {
    let default_from = match (&raw.channel, &raw.stream, &raw.topic) {
        (None, Some(_), _) => From::Stream,
        (None, None, Some(_)) => From::Topic,
        _ => From::Channel,
    };
    let stream = match raw.stream.as_deref().map(|text| text.split(PARTITION).collect::<Vec<_>>()) {
        None => None,
        Some(parts) => match parts[..] {
            [before, behind] if !before.is_empty() => Some((before.to_owned(), behind.to_owned())),
            _ => bail!(
                "tail.stream must have {PARTITION} in it once, behind a name: write it like \"events:{PARTITION}\""
            ),
        },
    };
    let names = |fields: Option<Fields>, default: &[&str]| match fields {
        Some(fields) => fields.list(),
        None => default.iter().map(|name| (*name).to_owned()).collect(),
    };
    let default = Words::default();
    let word = |word: Option<String>, default: String| word.unwrap_or(default);
    let tail = Tail {
        from: raw.from.unwrap_or(default_from),
        channel: raw.channel.unwrap_or_else(|| "events".to_owned()),
        stream,
        topic: raw.topic,
        fields: Names {
            account: names(raw.account, &["ID", "account"]),
            time: names(raw.time, &["Timestamp", "time"]),
            data: names(raw.data, &["Data", "data"]),
            host: names(raw.host, &["host"]),
            at: names(raw.at, &["At"]),
            id: names(raw.id, &["Id", "id"]),
        },
        account_type: raw.account_type.unwrap_or_default(),
        words: Words {
            accounts: word(raw.say.accounts, default.accounts),
            account_ids: word(raw.say.account_ids, default.account_ids),
            events: word(raw.say.events, default.events),
        },
    };
    if tail.channel.is_empty() {
        bail!("tail.channel is empty: name the channel that events are published on");
    }
    match tail.from {
        From::Stream if tail.stream.is_none() => {
            bail!(
                "tail.from is \"stream\", and there is no tail.stream: write it like \"events:{PARTITION}\""
            )
        }
        From::Topic if tail.topic.is_none() => {
            bail!("tail.from is \"topic\", and there is no tail.topic: name Kafka's topic")
        }
        _ => {}
    }
    let is_command = |word: &String| !word.is_empty() && !word.contains(char::is_whitespace);
    if !is_command(&tail.words.accounts)
        || !is_command(&tail.words.events)
        || tail.words.accounts == tail.words.events
    {
        bail!("tail.say: accounts and events are what a person types, so each is one word, and not the same");
    }
    Ok(tail)
}

/// A source as a person gives it: Redis' URL, and the channel at its end. A number there is a database, as in any URL of Redis.
pub(super) fn split_channel(source: &str) -> (String, Option<String>) {
    let Some((scheme, rest)) = source.split_once("://") else { return (source.to_owned(), None) };
    match rest.rsplit_once('/') {
        Some((server, channel)) if !channel.is_empty() && !channel.bytes().all(|b| b.is_ascii_digit()) => {
            (format!("{scheme}://{server}"), Some(channel.to_owned()))
        }
        _ => (source.to_owned(), None),
    }
}

impl RawTail {
    /// What was asked for at the command line comes before the file.
    pub(super) fn with_channel(mut self, channel: Option<String>) -> RawTail {
        self.from = Some(From::Channel);
        self.channel = channel.or(self.channel);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::check;

    #[test]
    fn what_is_wrong_is_said_with_a_remedy() {
        check("[tail]\nchannel = \"events\"", Ok(()));
        check("[tail]\nstream = \"events\"", Err("must have {partition} in it once"));
        check("[tail]\nstream = \"{partition}\"", Err("behind a name"));
        check("[tail]\nfrom = \"stream\"", Err("there is no tail.stream"));
        check("[tail]\nfrom = \"topic\"", Err("there is no tail.topic"));
        check("[tail]\nchannel = \"\"", Err("tail.channel is empty"));
        check("[tail.say]\naccounts = \"my tags\"", Err("each is one word"));
        check("[tail.say]\naccounts = \"events\"", Err("not the same"));
        check("[tail]\nchanel = \"x\"", Err("did you mean \"channel\"?"));
    }

    #[test]
    fn what_is_shown_is_what_is_named() {
        let from = |text: &str| resolve_tail(toml::from_str(text).unwrap()).unwrap().from;
        assert_eq!(from(""), From::Channel);
        assert_eq!(from("stream = \"e:{partition}\""), From::Stream);
        assert_eq!(from("topic = \"t\""), From::Topic);
        assert_eq!(from("channel = \"c\"\ntopic = \"t\""), From::Channel);
        let tail = resolve_tail(toml::from_str("stream = \"e:{partition}!\"").unwrap()).unwrap();
        assert_eq!(tail.stream_of(7).as_deref(), Some("e:7!"));
        for (key, partition) in
            [("e:7!", Some(7)), ("e:x!", None), ("e:7", None), ("e:-1!", None), ("f:7!", None)]
        {
            assert_eq!(tail.partition_of(key), partition, "{key}");
        }
    }

    #[test]
    fn a_source_ends_in_its_channel() {
        let check = |source: &str, url: &str, channel: Option<&str>| {
            assert_eq!(split_channel(source), (url.to_owned(), channel.map(str::to_owned)), "{source}");
        };
        check("redis://h:1/events", "redis://h:1", Some("events"));
        check("redis://:p@h/3/events", "redis://:p@h/3", Some("events"));
        check("redis://h/3", "redis://h/3", None);
        check("rediss://h", "rediss://h", None);
        check("redis://h/", "redis://h/", None);
        check("h", "h", None);
    }
}
