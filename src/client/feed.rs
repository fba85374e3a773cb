//! Redis as a source of events: a channel that is listened to, and streams whose entries have the numbers of Kafka's records.
//!
//! Every call ends within a bound: a server that says nothing is given up, whether its socket knows of it or not.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Connection, RedisError, Value};
use anyhow::{Result, anyhow};

use super::redis::{self, TIMEOUT};
use crate::config;

/// A channel that is silent for so long is asked whether it is still there.
const SILENCE: Duration = Duration::from_secs(5);

/// Keys that are looked through at a time, in Redis' own time between other requests.
const SCAN: usize = 1000;

/// A connection to the server of a feed.
pub struct Feed(Connection);

/// One entry of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of Kafka's record, which is the first half of the entry's ID.
    pub offset: i64,
    pub fields: Vec<(String, Vec<u8>)>,
}

/// What Redis answers a read of a stream with: IDs, each with names and values by turns.
type Raw = Vec<(String, Vec<Vec<u8>>)>;

impl Feed {
    pub fn open(config: &config::Redis) -> Result<Feed> {
        redis::reach(config).map(Feed)
    }

    /// # Errors
    /// Where the server does not answer in time.
    pub fn ping(&mut self) -> Result<()> {
        let answer: Result<Value, RedisError> = ::redis::cmd("PING").query(&mut self.0);
        answer.map(drop).map_err(lost)
    }

    /// Shows every message of a channel. `ready` is called once it is listened to, and `idle` whenever nothing came for a while.
    ///
    /// # Errors
    /// When the connection is lost, or one of the callers does not want to go on. It does not end otherwise.
    pub fn listen<T>(
        mut self,
        channel: &str,
        state: &mut T,
        ready: impl FnOnce(&mut T) -> Result<()>,
        mut see: impl FnMut(&mut T, &[u8]) -> Result<()>,
        mut idle: impl FnMut(&mut T) -> Result<()>,
    ) -> Result<Infallible> {
        let mut listening = self.0.as_pubsub();
        listening.subscribe(channel).map_err(lost)?;
        ready(state)?;
        loop {
            listening.set_read_timeout(Some(SILENCE))?;
            loop {
                match listening.get_message() {
                    Ok(message) => see(state, message.get_payload_bytes())?,
                    Err(error) if error.is_timeout() => break,
                    // The process was stopped, and goes on; so does the message that was being read.
                    Err(error) if is_pause(&error) => {}
                    Err(error) => return Err(lost(error)),
                }
            }
            // A socket may be half dead, and say nothing of it.
            listening.set_read_timeout(Some(TIMEOUT))?;
            listening.ping::<Value>().map_err(lost)?;
            idle(state)?;
        }
    }

    /// The keys of all streams whose names begin and end so.
    pub fn streams(&mut self, before: &str, behind: &str) -> Result<Vec<String>> {
        let pattern = format!("{}*{}", redis::escaped(before), redis::escaped(behind));
        let (mut cursor, mut keys): (u64, Vec<String>) = (0, Vec::new());
        loop {
            let mut scan = ::redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(SCAN).arg("TYPE").arg("stream");
            let (next, found): (u64, Vec<Vec<u8>>) = scan.query(&mut self.0).map_err(lost)?;
            keys.extend(found.into_iter().filter_map(|key| String::from_utf8(key).ok()));
            if next == 0 {
                // The same key may come twice.
                keys.sort_unstable();
                keys.dedup();
                return Ok(keys);
            }
            cursor = next;
        }
    }

    /// The offsets of a stream's oldest and newest entry; `None` of one that is empty, or not there.
    pub fn ends(&mut self, key: &str) -> Result<Option<(i64, i64)>> {
        let one = |raw: Raw| entries(raw).first().map(|entry| entry.offset);
        let first = ::redis::cmd("XRANGE").arg(key).arg("-").arg("+").arg("COUNT").arg(1).query(&mut self.0);
        let last =
            ::redis::cmd("XREVRANGE").arg(key).arg("+").arg("-").arg("COUNT").arg(1).query(&mut self.0);
        Ok(one(first.map_err(lost)?).zip(one(last.map_err(lost)?)))
    }

    /// The first entries from this offset on, at most so many.
    pub fn range(&mut self, key: &str, from: i64, count: usize) -> Result<Vec<Entry>> {
        let mut range = ::redis::cmd("XRANGE");
        range.arg(key).arg(format!("{from}-0")).arg("+").arg("COUNT").arg(count);
        Ok(entries(range.query(&mut self.0).map_err(lost)?))
    }

    /// The last entries below this offset, newest first, at most so many.
    pub fn range_back(&mut self, key: &str, below: i64, count: usize) -> Result<Vec<Entry>> {
        if below <= 0 {
            return Ok(Vec::new());
        }
        let mut range = ::redis::cmd("XREVRANGE");
        range.arg(key).arg(behind(below)).arg("-").arg("COUNT").arg(count);
        Ok(entries(range.query(&mut self.0).map_err(lost)?))
    }

    /// The entries that several streams have from these offsets on, at most so many of each; waits for the first one for at most
    /// `wait`, which must be less than [`TIMEOUT`].
    pub fn read(
        &mut self,
        places: &[(String, i64)],
        count: usize,
        wait: Duration,
    ) -> Result<Vec<(String, Vec<Entry>)>> {
        let mut read = ::redis::cmd("XREAD");
        read.arg("COUNT").arg(count).arg("BLOCK").arg(wait.as_millis() as u64).arg("STREAMS");
        for (key, _) in places {
            read.arg(key);
        }
        for (_, next) in places {
            read.arg(behind(*next));
        }
        let found: Option<Vec<(String, Raw)>> = read.query(&mut self.0).map_err(lost)?;
        Ok(found.unwrap_or_default().into_iter().map(|(key, raw)| (key, entries(raw))).collect())
    }
}

/// The library's error and its cause have the same words.
fn lost(error: RedisError) -> anyhow::Error {
    if is_pause(&error) {
        return std::io::Error::from(std::io::ErrorKind::Interrupted).into();
    }
    if error.is_timeout() { anyhow!("it does not answer any more") } else { anyhow!("{error}") }
}

fn is_pause(error: &RedisError) -> bool {
    // The library has a call for each kind but this one, and keeps the cause behind a shared pointer.
    let cause = error.source().and_then(|cause| cause.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    let cause = cause.and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::Interrupted)
}

/// True where nothing is wrong with the server: this process was stopped for a while, in the middle of a wait.
pub fn was_stopped(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::Interrupted)
}

/// The greatest ID below those of this offset: XREAD wants what was read last.
fn behind(next: i64) -> String {
    if next <= 0 { "0-0".to_owned() } else { format!("{}-{}", next - 1, u64::MAX) }
}

fn entries(raw: Raw) -> Vec<Entry> {
    let entry = |(id, fields): (String, Vec<Vec<u8>>)| {
        let offset = id.split_once('-')?.0.parse().ok()?;
        let pairs = fields
            .chunks_exact(2)
            .map(|pair| (String::from_utf8_lossy(&pair[0]).into_owned(), pair[1].clone()));
        Some(Entry { offset, fields: pairs.collect() })
    };
    raw.into_iter().filter_map(entry).collect()
}

/// True of an error that waiting does not mend: the password, or what this user may do.
pub fn is_refusal(error: &anyhow::Error) -> bool {
    let words = format!("{error:#}");
    ["WRONGPASS", "NOAUTH", "NOPERM", "WRONGTYPE", "AuthenticationFailed", "authentication failed"]
        .iter()
        .any(|word| words.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_stopped_has_lost_nothing() {
        let of = |kind: std::io::ErrorKind| lost(RedisError::from(std::io::Error::from(kind)));
        assert!(was_stopped(&of(std::io::ErrorKind::Interrupted)));
        for other in [std::io::ErrorKind::UnexpectedEof, std::io::ErrorKind::WouldBlock] {
            assert!(!was_stopped(&of(other)), "{other}");
        }
    }

    #[test]
    fn an_entry_has_the_number_of_its_record() {
        let raw = vec![(
            "17-1".to_owned(),
            vec![b"ID".to_vec(), b"1".to_vec(), b"Data".to_vec(), b"\xff".to_vec()],
        )];
        let fields = vec![("ID".to_owned(), b"1".to_vec()), ("Data".to_owned(), b"\xff".to_vec())];
        assert_eq!(entries(raw), [Entry { offset: 17, fields }]);
        assert_eq!(entries(vec![("x".to_owned(), vec![])]), []);
    }

    #[test]
    fn reading_goes_on_behind_what_was_read() {
        assert_eq!((behind(0), behind(1)), ("0-0".to_owned(), "0-18446744073709551615".to_owned()));
    }
}
