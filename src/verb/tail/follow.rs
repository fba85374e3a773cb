//! The thread that reads events: from a channel, from streams, or from Kafka. It comes back whenever its server does, shows each event
//! once and in the order of its partition, fetches what it missed from where it is kept, and counts what is kept nowhere.
//!
//! It never ends by itself but where it cannot begin. What it reads goes to the shelf, and nothing comes back from there.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::event::{self, Account, Message, Reader};
use super::order::{Order, Place, Seen, gone};
use super::shelf::{Line, Note, Shelf};
use crate::base::lock::lock;
use crate::client::feed::{self, Entry, Feed};
use crate::client::redis;
use crate::config::{From, View};
use crate::kafka::ask::{self, Asker};
use crate::kafka::follow::{Follow, Heard};
use crate::kafka::native::Named;
use crate::kafka::reread;

/// Between two proofs that the server is there, while nobody wants events yet.
const LOOK: Duration = Duration::from_secs(1);

/// One wait for entries of streams, which is also the proof that the server is there.
const READ: Duration = Duration::from_secs(1);

/// Entries that are read at once: a fifth of a second of five thousand a second, and a tenth of the shelf.
const ENTRIES: usize = 1000;

/// Between two looks for partitions of a topic that are new.
const NEW: Duration = Duration::from_secs(5);

/// Between two looks for streams that are new, which go through all of Redis' keys. A new one is read from its first entry.
const NEW_STREAMS: Duration = Duration::from_secs(30);

/// An event may be published before it is in its stream: it is waited for so long before it counts as missing.
const LATE: Duration = Duration::from_secs(2);

/// As large as a record may be anywhere in the house by default.
const PART_MAX: usize = 4 << 20;

/// The pauses between two tries: a tenth of what the outage has taken, since who was away for a moment is expected back in a moment.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The stream's field that holds a whole record.
const RECORD: &str = "record";

/// A pause before the next try, after an outage of so long. `dice` is any number.
fn pause(outage: Duration, dice: u32) -> Duration {
    let spread = 0.8 + f64::from(dice % 1000) / 1000.0 * 0.2;
    (outage / 10).clamp(PAUSE_MIN, PAUSE_MAX).mul_f64(spread)
}

/// What is wanted of the thread, and how far it is.
#[derive(Default)]
pub struct Wanted {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    is_listening: bool,
    /// `None` for all.
    accounts: Option<BTreeSet<Account>>,
    /// Events come, or the server is away, which was said.
    is_settled: bool,
}

impl Wanted {
    /// From now on events of these accounts are wanted, or of all. Returns once they are listened to, or cannot be for now, and after a
    /// second at the latest.
    pub fn listen(&self, accounts: Option<BTreeSet<Account>>) {
        let mut state = lock(&self.state);
        state.is_listening = true;
        state.accounts = accounts;
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, LOOK, |state| !state.is_settled);
        drop(waited);
    }

    fn settle(&self, is_settled: bool) {
        lock(&self.state).is_settled = is_settled;
        self.changed.notify_all();
    }

    /// True once events are wanted; waits for it for a while.
    fn wait(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(lock(&self.state), time, |state| !state.is_listening);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_listening
    }

    fn wants(&self, account: &Account) -> bool {
        lock(&self.state).accounts.as_ref().is_none_or(|accounts| accounts.contains(account))
    }
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    Text,
    Json,
}

/// What the thread needs.
pub struct Follower {
    pub view: View,
    pub form: Form,
    /// Only events whose data have this text.
    pub has: Option<String>,
    /// Older events are shown from here on.
    pub since: Option<Timestamp>,
    pub shelf: Arc<Shelf>,
    pub wanted: Arc<Wanted>,
}

/// The server's name, as people are told it.
pub fn server(view: &View) -> Result<String> {
    Ok(match (&view.redis, &view.kafka) {
        (Some(redis), _) => format!("Redis@{}", redis::address(redis)?),
        (None, Some(kafka)) => format!("Kafka@{}", kafka.brokers),
        (None, None) => bail!("there is no server to ask"),
    })
}

struct Run {
    needs: Follower,
    server: String,
    reader: Reader,
    order: Order,
    /// Where reading starts is known.
    has_begun: bool,
    /// Since when the server is away.
    away: Option<Instant>,
    /// It was there before.
    was_there: bool,
    /// Fetched since it came back.
    caught_up: u64,
    /// Every partition that has a stream, and when that was looked for.
    streams: Option<(Instant, Vec<(i32, String)>)>,
}

impl Follower {
    /// Reads until the process ends.
    ///
    /// # Errors
    /// Where it can never begin, since the server refuses us.
    pub fn run(self) -> Result<()> {
        let reader =
            Reader { names: self.view.tail.fields.clone(), account_type: self.view.tail.account_type };
        let server = server(&self.view)?;
        let mut run = Run {
            needs: self,
            server,
            reader,
            order: Order::default(),
            has_begun: false,
            away: None,
            was_there: false,
            caught_up: 0,
            streams: None,
        };
        loop {
            let ended = match run.needs.view.tail.from {
                From::Channel => run.channel(),
                From::Stream => run.stream(),
                From::Topic => run.topic(),
            };
            let Err(error) = ended;
            if feed::was_stopped(&error) {
                continue;
            }
            if !run.was_there && feed::is_refusal(&error) {
                return Err(error);
            }
            run.lost(&error);
        }
    }
}

impl Run {
    /// From the channel, with what was missed from wherever it is kept.
    fn channel(&mut self) -> Result<Infallible> {
        let feed = self.reach()?;
        let channel = self.needs.view.tail.channel.clone();
        feed.listen(
            &channel,
            self,
            |run| {
                // Behind the subscription, so that nothing falls between the two.
                run.streams = None;
                run.begin()?;
                run.catch_up()?;
                run.catch_up_in_kafka()?;
                run.returned();
                Ok(())
            },
            |run, payload| {
                let message = run.reader.read(payload, None, None);
                run.take(message)
            },
            Run::catch_up,
        )
    }

    /// From streams alone.
    fn stream(&mut self) -> Result<Infallible> {
        let mut feed = self.reach()?;
        self.begin()?;
        let mut looked = Instant::now();
        let mut places = self.streams(&mut feed)?;
        self.returned();
        loop {
            if looked.elapsed() > NEW_STREAMS || places.is_empty() {
                self.streams = None;
                places = self.streams(&mut feed)?;
                looked = Instant::now();
            }
            if places.is_empty() {
                std::thread::sleep(READ);
                continue;
            }
            for (key, entries) in feed.read(&places, ENTRIES, READ)? {
                let Some(partition) = self.needs.view.tail.partition_of(&key) else { continue };
                for entry in entries {
                    self.take_entry(partition, entry)?;
                }
                if let (Some(place), Some(next)) =
                    (places.iter_mut().find(|(known, _)| *known == key), self.order.next_of(partition))
                {
                    place.1 = next;
                }
            }
        }
    }

    /// Every stream and where it is read on. One that was not there before is read from its first entry.
    fn streams(&mut self, feed: &mut Feed) -> Result<Vec<(String, i64)>> {
        let keys = self.keys(feed)?;
        Ok(keys
            .into_iter()
            .map(|(partition, key)| (key, self.order.next_of(partition).unwrap_or(0)))
            .collect())
    }

    /// From Kafka alone.
    fn topic(&mut self) -> Result<Infallible> {
        let (asker, topic) = self.asker()?;
        asker.partitions(&topic)?;
        self.there();
        while !self.needs.wanted.wait(LOOK) {}
        self.begin()?;
        let kafka = self.needs.view.kafka.clone().context("there is no Kafka")?;
        let follow = Follow::new(&kafka, &topic, &self.order.positions(), PART_MAX)?;
        self.returned();
        let mut looked = Instant::now();
        loop {
            match follow.look(|record| self.take_record(record))? {
                Heard::Records => {}
                Heard::Expired => {
                    self.expired(&asker, &topic)?;
                    bail!("Kafka deleted records before they were shown");
                }
                Heard::Nothing if looked.elapsed() > NEW => {
                    looked = Instant::now();
                    let new = self.new_partitions(&asker, &topic)?;
                    if !new.is_empty() {
                        follow.add(&new)?;
                    }
                }
                Heard::Nothing => {}
            }
        }
    }

    /// Partitions that the topic has got meanwhile, each from its first record on.
    fn new_partitions(&mut self, asker: &Asker, topic: &str) -> Result<Vec<(i32, i64)>> {
        let new: Vec<i32> =
            asker.partitions(topic)?.into_iter().filter(|id| self.order.next_of(*id).is_none()).collect();
        new.iter().for_each(|id| self.order.pass(*id, 0));
        Ok(new.into_iter().map(|id| (id, 0)).collect())
    }

    /// What Kafka has no more is passed over, and counted.
    fn expired(&mut self, asker: &Asker, topic: &str) -> Result<()> {
        for (partition, next) in self.order.positions() {
            let first = asker.ends(topic, partition)?.start;
            if first > next {
                self.missing(partition, next, first);
                self.order.pass(partition, first);
            }
        }
        Ok(())
    }

    /// A connection that was proven, once events are wanted.
    fn reach(&mut self) -> Result<Feed> {
        let mut feed = self.feed()?;
        feed.ping()?;
        self.there();
        while !self.needs.wanted.wait(LOOK) {
            feed.ping()?;
        }
        Ok(feed)
    }

    fn feed(&self) -> Result<Feed> {
        Feed::open(self.needs.view.redis.as_ref().context("there is no Redis")?)
    }

    fn asker(&self) -> Result<(Asker, String)> {
        let kafka = self.needs.view.kafka.as_ref().context("there is no Kafka")?;
        let topic = self.needs.view.tail.topic.clone().context("there is no topic")?;
        Ok((Asker::new(kafka, ask::ANSWER)?, topic))
    }

    // ---- where reading starts ----

    /// Finds, once, where each partition stands, or stood at `since`.
    fn begin(&mut self) -> Result<()> {
        if self.has_begun {
            return Ok(());
        }
        match self.needs.view.tail.from {
            From::Topic => self.begin_in_kafka()?,
            _ if self.needs.view.tail.stream.is_some() => self.begin_in_streams()?,
            // It may be away while events come: then the first of each partition is where it begins.
            _ if self.needs.view.tail.topic.is_some() => {
                if let Err(error) = self.begin_in_kafka() {
                    self.cannot_fetch(&error);
                }
            }
            _ => {}
        }
        self.has_begun = true;
        Ok(())
    }

    fn begin_in_streams(&mut self) -> Result<()> {
        let mut feed = self.feed()?;
        for (partition, key) in self.keys(&mut feed)? {
            let Some((_, last)) = feed.ends(&key)? else { continue };
            let next = match self.needs.since {
                None => last + 1,
                Some(since) => self.since_in(&mut feed, &key, last, since)?,
            };
            self.order.pass(partition, next);
        }
        Ok(())
    }

    /// The first offset of a stream whose event is not older. Times may be a little out of order, so a whole piece must be older.
    fn since_in(&self, feed: &mut Feed, key: &str, last: i64, since: Timestamp) -> Result<i64> {
        let (mut first, mut below) = (last + 1, last + 1);
        loop {
            let piece = feed.range_back(key, below, ENTRIES)?;
            let Some(oldest) = piece.last().map(|entry| entry.offset) else { return Ok(first) };
            below = oldest;
            let is_new = |entry: &Entry| {
                let place = Place { partition: 0, offset: entry.offset };
                matches!(self.message_of(place, entry).event, Ok(event) if event.at >= since)
            };
            match piece.iter().rev().find(|entry| is_new(entry)) {
                Some(found) => first = found.offset,
                None => return Ok(first),
            }
        }
    }

    /// Every partition that has a stream, as it was looked for not long ago.
    fn keys(&mut self, feed: &mut Feed) -> Result<Vec<(i32, String)>> {
        if let Some((looked, keys)) = &self.streams
            && looked.elapsed() < NEW_STREAMS
            && !keys.is_empty()
        {
            return Ok(keys.clone());
        }
        let tail = &self.needs.view.tail;
        let Some((before, behind)) = &tail.stream else { return Ok(Vec::new()) };
        let found = feed.streams(before, behind)?;
        let keys: Vec<(i32, String)> =
            found.into_iter().filter_map(|key| Some((tail.partition_of(&key)?, key))).collect();
        self.streams = Some((Instant::now(), keys.clone()));
        Ok(keys)
    }

    fn begin_in_kafka(&mut self) -> Result<()> {
        let (asker, topic) = self.asker()?;
        let partitions = asker.partitions(&topic)?;
        let places: Vec<Named<'_>> = partitions.iter().map(|id| (topic.as_str(), *id)).collect();
        let ends = asker.all_ends(&places);
        let at: Vec<Option<i64>> = match self.needs.since {
            None => vec![None; places.len()],
            Some(since) => {
                asker.all_at(&places, since.as_millisecond()).into_iter().collect::<Result<_>>()?
            }
        };
        for ((partition, ends), at) in partitions.iter().zip(ends).zip(at) {
            self.order.pass(*partition, at.unwrap_or(ends?.end));
        }
        Ok(())
    }

    // ---- what was missed ----

    /// Shows what the streams have got since they were last looked at.
    fn catch_up(&mut self) -> Result<()> {
        if self.needs.view.tail.stream.is_none() {
            return Ok(());
        }
        let mut feed = self.feed()?;
        for (partition, key) in self.keys(&mut feed)? {
            while self.piece(&mut feed, partition, &key, i64::MAX)? == ENTRIES {}
        }
        Ok(())
    }

    /// The same from Kafka, where there are no streams. What it does not say now is fetched when an event shows the gap.
    fn catch_up_in_kafka(&mut self) -> Result<()> {
        let positions = self.order.positions();
        let tail = &self.needs.view.tail;
        if tail.stream.is_some() || tail.topic.is_none() || positions.is_empty() {
            return Ok(());
        }
        let (asker, topic) = self.asker()?;
        let places: Vec<Named<'_>> = positions.iter().map(|(id, _)| (topic.as_str(), *id)).collect();
        for ((partition, next), ends) in positions.iter().zip(asker.all_ends(&places)) {
            match ends {
                Ok(ends) if ends.end > *next => self.fetch(*partition, *next, ends.end)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Shows the next entries of a stream that lie below `end`; how many it read.
    fn piece(&mut self, feed: &mut Feed, partition: i32, key: &str, end: i64) -> Result<usize> {
        let entries = feed.range(key, self.order.next_of(partition).unwrap_or(0), ENTRIES)?;
        let count = entries.len();
        for entry in entries {
            if entry.offset >= end {
                return Ok(0);
            }
            self.caught_up += 1;
            self.take_entry(partition, entry)?;
        }
        Ok(count)
    }

    /// Shows what is still kept of a gap, and counts the rest as missing.
    fn fill(&mut self, partition: i32, next: i64, end: i64) -> Result<()> {
        let tail = &self.needs.view.tail;
        let key = tail.stream_of(partition).filter(|_| tail.from != From::Topic);
        let Some(key) = key else { return self.fetch(partition, next, end) };
        let mut feed = self.feed()?;
        let began = Instant::now();
        let ends = loop {
            match feed.ends(&key)? {
                Some((first, last)) if last + 1 >= end => break Some(first),
                ends if began.elapsed() > LATE => break ends.map(|(first, _)| first),
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        };
        let lost = gone(&(next..end), ends);
        if lost > 0 {
            self.fetch(partition, next, next + lost)?;
        }
        while self.piece(&mut feed, partition, &key, end)? == ENTRIES {}
        self.order.pass(partition, end);
        Ok(())
    }

    /// Shows what Kafka still has of a gap, and counts the rest as missing.
    fn fetch(&mut self, partition: i32, next: i64, end: i64) -> Result<()> {
        let fetched = match (&self.needs.view.tail.topic, self.needs.view.tail.from) {
            (Some(_), From::Channel | From::Stream) => self.fetch_from_kafka(partition, next, end),
            // Kafka itself has holes where transactions end, and no gaps: it says when it has deleted something.
            (_, From::Topic) => Ok(()),
            (None, _) => {
                self.missing(partition, next, end);
                Ok(())
            }
        };
        if let Err(error) = fetched {
            self.cannot_fetch(&error);
            let next = self.order.next_of(partition).unwrap_or(next).max(next);
            if next < end {
                self.missing(partition, next, end);
            }
        }
        self.order.pass(partition, end);
        Ok(())
    }

    fn fetch_from_kafka(&mut self, partition: i32, next: i64, end: i64) -> Result<()> {
        let (asker, topic) = self.asker()?;
        let kafka = self.needs.view.kafka.clone().context("there is no Kafka")?;
        let first = asker.ends(&topic, partition)?.start;
        if first > next {
            self.missing(partition, next, first.min(end));
            self.order.pass(partition, first.min(end));
        }
        reread::range(&kafka, &topic, partition, next.max(first)..end, PART_MAX, |record| {
            self.order.pass(partition, record.offset);
            self.caught_up += 1;
            self.take_record(record)
        })
    }

    // ---- one event ----

    fn message_of(&self, place: Place, entry: &Entry) -> Message {
        if let Some((_, bytes)) = entry.fields.iter().find(|(name, _)| name == RECORD) {
            return self.reader.read(bytes, Some(place), None);
        }
        let value = |bytes: &[u8]| Value::String(event::shown(bytes));
        let fields: Map<String, Value> =
            entry.fields.iter().map(|(name, bytes)| (name.clone(), value(bytes))).collect();
        self.reader.fields(&fields, Some(place), None, || Value::Object(fields.clone()).to_string())
    }

    fn take_entry(&mut self, partition: i32, entry: Entry) -> Result<()> {
        let message = self.message_of(Place { partition, offset: entry.offset }, &entry);
        self.take(message)
    }

    fn take_record(&mut self, record: &crate::promise::batch::Record<'_>) -> Result<()> {
        // What is no record any more holds no event.
        let Some(value) = record.value else { return Ok(()) };
        let place = Place { partition: record.partition, offset: record.offset };
        let at = record.timestamp_ms.and_then(|ms| Timestamp::from_millisecond(ms).ok());
        let message = self.reader.read(value, Some(place), at);
        self.take(message)
    }

    /// Shows a message, if it was not shown before, behind everything that comes before it.
    fn take(&mut self, message: Message) -> Result<()> {
        if let Some(place) = message.place {
            match self.order.look(place) {
                Seen::Double => return Ok(()),
                // Kafka's own holes are where transactions end.
                Seen::Behind(_) if self.needs.view.tail.from == From::Topic => {}
                Seen::Behind(gap) => {
                    self.fill(place.partition, gap.start, gap.end)?;
                    if self.order.look(place) == Seen::Double {
                        return Ok(());
                    }
                }
                Seen::Next => {}
            }
            self.order.pass(place.partition, place.offset + 1);
        }
        self.show(message);
        Ok(())
    }

    fn show(&mut self, message: Message) {
        let has = |text: &str| self.needs.has.as_ref().is_none_or(|part| text.contains(part.as_str()));
        let line = match (message.event, self.needs.form) {
            (Ok(event), form) => {
                let is_old = self.needs.since.is_some_and(|since| event.at < since);
                if is_old || !has(&event.data) || !self.needs.wanted.wants(&event.account) {
                    return;
                }
                if event.id.as_deref().is_some_and(|id| self.order.is_known(id)) {
                    return;
                }
                match form {
                    Form::Text => event::text(&event),
                    Form::Json => event::json(&event, message.place),
                }
            }
            (Err(text), _) if !has(&text) => return,
            (Err(text), Form::Text) => event::error_text(&text, Timestamp::now()),
            (Err(text), Form::Json) => event::error_json(&text, Timestamp::now()),
        };
        self.needs.shelf.put(Line::Event(line));
    }

    // ---- what is said ----

    fn say(&self, text: String, json: Value, is_grave: bool) {
        self.needs.shelf.put(Line::Note(Note { text, json, is_grave }));
    }

    fn cannot_fetch(&self, error: &anyhow::Error) {
        self.say(
            format!(" what was missed cannot be fetched from Kafka: {error:#}"),
            json!({"type": "state", "reason": format!("{error:#}")}),
            true,
        );
    }

    fn missing(&self, partition: i32, from: i64, to: i64) {
        let count = to - from;
        self.needs.shelf.missing.fetch_add(count.unsigned_abs(), SeqCst);
        let (are, which) = if count == 1 {
            ("event is", from.to_string())
        } else {
            ("events are", format!("{from} to {}", to - 1))
        };
        self.say(
            format!(" {count} {are} missing: partition {partition}, {which}"),
            json!({"type": "gap", "missed": count, "partition": partition, "from": from, "to": to - 1}),
            true,
        );
    }

    /// The server is away, which is said once; and the pause before the next try.
    fn lost(&mut self, error: &anyhow::Error) {
        let is_new = self.away.is_none();
        let since = *self.away.get_or_insert_with(Instant::now);
        if is_new {
            let (server, reason) = (&self.server, format!("{error:#}"));
            self.say(
                format!(" {server} is away: {reason}; waiting for it"),
                json!({"type": "state", "server": server, "connected": false, "reason": reason}),
                true,
            );
        }
        self.needs.wanted.settle(true);
        let dice = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_micros());
        std::thread::sleep(pause(since.elapsed(), dice));
    }

    /// The server answers. Where events are read, it is back once those that were missed are shown.
    fn there(&mut self) {
        self.was_there = true;
        if !self.needs.wanted.wait(Duration::ZERO) {
            self.returned();
            self.needs.wanted.settle(false);
        }
    }

    fn returned(&mut self) {
        let caught_up = std::mem::take(&mut self.caught_up);
        if let Some(since) = self.away.take() {
            let seconds = since.elapsed().as_secs_f64();
            let server = &self.server;
            let fetched = match caught_up {
                0 => String::new(),
                1 => "; 1 event was fetched that came meanwhile".to_owned(),
                count => format!("; {count} events were fetched that came meanwhile"),
            };
            self.say(
                format!(" {server} is back after {seconds:.1} s{fetched}"),
                json!({"type": "state", "server": server, "connected": true, "away_seconds": seconds, "fetched": caught_up}),
                false,
            );
        }
        self.needs.wanted.settle(true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_away_for_a_moment_is_looked_for_in_a_moment() {
        let ms = Duration::from_millis;
        for (outage, least, most) in [
            (0, 80, 100),
            (1000, 80, 100),
            (10_000, 800, 1000),
            (60_000, 4000, 5000),
            (3_600_000, 4000, 5000),
        ] {
            for dice in [0, 500, 999] {
                let pause = pause(ms(outage), dice);
                assert!(pause >= ms(least) && pause <= ms(most), "{outage}: {pause:?}");
            }
        }
    }
}
