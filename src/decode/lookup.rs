//! Tokens to values through Redis, cached: at most one round trip a batch, and only when a token is not in the cache.
//!
//! Redis is spoken to here only. Its absence is waited out; what it does not know becomes a dead letter only after the
//! grace time, and never while Redis seems to have lost its data.

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use redis::Connection;

use crate::base::retry::BackOff;
use crate::base::thread::Pulse;
use crate::client::redis::{Told, client, connect, read};
use crate::config;
use crate::decode::column::{Found, Lookups};
use crate::figures::instruments::{LookupMetrics, Wait, Waits};

/// Between two tries while Redis is away: from the first to the last value, doubling.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Between two questions for a token within its grace time.
const GRACE_LOOK: Duration = Duration::from_millis(100);

/// Known tokens that are asked again beside unknown ones, to see whether Redis still has its data.
const SAMPLE: usize = 16;

/// Fewer say nothing: single users come and go.
const SAMPLE_MIN: usize = 4;

/// Tokens of one MGET; a batch of 10,000 records may have as many.
const KEYS_MAX: usize = 10_000;

/// A longer token is nobody's, and is not asked for: whoever writes to a topic must not fill a cache with a few.
const TOKEN_BYTES_MAX: usize = 4096;

/// Bytes of a cache for each of its tokens, as a mean: a user's token and number have fewer.
const ENTRY_BYTES: usize = 256;

/// What an entry has beside its texts.
const OVERHEAD_BYTES: usize = 100;

/// All lookups of one decoder, each with a cache of its own.
pub struct LookupCache {
    redis: Option<config::Redis>,
    connection: Option<Connection>,
    caches: Vec<Cache>,
    pulse: Arc<Pulse>,
    waits: Arc<Waits>,
    back_off: BackOff,
    /// What was said last; each new state of Redis is said once.
    said: Said,
}

/// What a question brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Tried {
    /// Every token is known, or known to be unknown.
    Known,
    /// Not yet; to be asked again after this.
    Again(Duration),
}

struct Cache {
    config: config::Lookup,
    metrics: Arc<LookupMetrics>,
    /// Answers from the cache in the present batch: a plain number, because it moves with each record.
    hits: Cell<u64>,
    /// Looked into for every record: the standard hash would cost a tenth of the decoder.
    known: HashMap<Box<str>, Entry, foldhash::quality::RandomState>,
    /// Of all entries.
    bytes: usize,
    /// A few tokens that had a value, the last one found at the back.
    found_last: VecDeque<Box<str>>,
    /// That a key cannot be used was said: whoever sends tokens must not fill the log.
    said_unusable: bool,
    said_too_long: bool,
    /// When the present batch began: an answer cannot expire between asking and encoding.
    now: Instant,
    /// Answers of this age and older have expired for the present batch.
    stale: Option<Instant>,
}

struct Entry {
    /// `None`: Redis did not have it when last asked.
    value: Option<Box<str>>,
    asked_at: Instant,
    /// When it was first asked for and not there.
    missing_since: Instant,
}

/// A token that a batch needs and the cache does not have, with the age of its youngest record.
pub struct Wanted {
    pub lookup: usize,
    pub token: Box<str>,
    /// Milliseconds since 1970, and never later than when the record came: a producer may write any timestamp. `None` if nothing is
    /// known of it.
    pub newest_ms: Option<i64>,
}

impl LookupCache {
    pub fn new(
        redis: Option<&config::Redis>,
        lookups: &[(config::Lookup, Arc<LookupMetrics>)],
        pulse: Arc<Pulse>,
        waits: Arc<Waits>,
    ) -> Result<LookupCache> {
        // What can be seen now to be of no use is said now.
        redis.map(client).transpose()?;
        let caches = lookups
            .iter()
            .map(|(config, metrics)| Cache {
                config: config.clone(),
                metrics: metrics.clone(),
                hits: Cell::new(0),
                known: HashMap::default(),
                bytes: 0,
                found_last: VecDeque::new(),
                said_unusable: false,
                said_too_long: false,
                now: Instant::now(),
                stale: None,
            })
            .collect();
        let back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1);
        Ok(LookupCache {
            redis: redis.cloned(),
            connection: None,
            caches,
            pulse,
            waits,
            back_off,
            said: Said::Nothing,
        })
    }

    /// Ages the caches: what is found from now on is good for the whole batch.
    pub fn begin_batch(&mut self) {
        let now = Instant::now();
        for cache in &mut self.caches {
            cache.now = now;
            cache.stale = now.checked_sub(cache.config.ttl);
            cache.keep_to_its_bytes();
            cache.metrics.hits.fetch_add(cache.hits.take(), Relaxed);
        }
    }

    /// How many tokens may be asked for at once: what is learned must not push itself out of a cache.
    pub fn wanted_max(&self) -> usize {
        self.caches.iter().map(|c| c.config.cache_max / 2).min().unwrap_or(KEYS_MAX).min(KEYS_MAX)
    }

    /// How many tokens of one record can be known at once.
    pub fn tokens_max(&self) -> usize {
        self.caches.iter().map(|c| c.config.cache_max / 2).min().unwrap_or(usize::MAX)
    }

    /// Asks for all of `wanted`, and waits until each is known, or known to be unknown. Returns false if `keep_going`
    /// said so first.
    pub fn look_up(&mut self, wanted: &[Wanted], mut keep_going: impl FnMut() -> bool) -> bool {
        let waits = self.waits.clone();
        waits.during(Wait::Lookup, || {
            loop {
                if !keep_going() {
                    return false;
                }
                match self.try_look_up(wanted) {
                    Tried::Known => return true,
                    Tried::Again(pause) => std::thread::sleep(pause),
                }
            }
        })
    }

    /// Asks for all of `wanted` once. Whoever is told to ask again may do something else meanwhile.
    pub fn try_look_up(&mut self, wanted: &[Wanted]) -> Tried {
        for chunk in wanted.chunks(KEYS_MAX) {
            match self.ask(chunk) {
                Ok(Answer::Settled) => {}
                Ok(Answer::Grace) => return Tried::Again(GRACE_LOOK),
                Ok(Answer::Unfit(words)) => {
                    self.put_off(chunk, &words);
                    if std::mem::replace(&mut self.said, Said::Unfit) != Said::Unfit {
                        log::error!("waiting, nothing is set aside: {words}");
                    }
                    return Tried::Again(BACK_OFF.1);
                }
                Err(error) => {
                    self.put_off(chunk, &format!("{error:#}"));
                    self.connection = None;
                    if std::mem::replace(&mut self.said, Said::Away) != Said::Away {
                        log::warn!("waiting for Redis: {error:#}");
                    }
                    return Tried::Again(self.back_off.pause());
                }
            }
        }
        self.back_off = BackOff::new(BACK_OFF.0, BACK_OFF.1);
        if std::mem::replace(&mut self.said, Said::Nothing) != Said::Nothing {
            self.caches.iter().for_each(|cache| cache.metrics.trouble.ends());
            log::info!("Redis answers again");
        }
        Tried::Known
    }

    /// Counts a question that has to be asked again, and shows why.
    fn put_off(&self, wanted: &[Wanted], words: &str) {
        if let Some(want) = wanted.first() {
            let metrics = &self.caches[want.lookup].metrics;
            metrics.retries.fetch_add(1, Relaxed);
            metrics.trouble.is(words);
        }
    }

    /// One round trip for each lookup among `wanted`.
    fn ask(&mut self, wanted: &[Wanted]) -> Result<Answer> {
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let mut answer = Answer::Settled;
        for lookup in 0..self.caches.len() {
            let mine: Vec<&Wanted> = wanted.iter().filter(|w| w.lookup == lookup).collect();
            if mine.is_empty() {
                continue;
            }
            // Beside what the batch needs, what was found last: a handful of answers says whether Redis still has its data.
            let sample = self.caches[lookup].sample(lookup, &mine);
            let mine: Vec<&Wanted> = mine.into_iter().chain(&sample).collect();
            let (told, size) = self.read(lookup, &mine)?;
            let cache = &mut self.caches[lookup];
            if let Some(words) = cache.unusable(&told) {
                return Ok(Answer::Unfit(words));
            }
            let values: Vec<Option<&str>> = told.iter().map(value).collect();
            let had = mine.iter().zip(&values).filter(|(want, _)| cache.had(&want.token));
            let gone = had.clone().filter(|(_, value)| value.is_none()).count();
            if values.iter().any(Option::is_none)
                && let Some(words) = emptied(had.count(), gone, size)
            {
                return Ok(Answer::Unfit(words));
            }
            let found = values.iter().flatten().count();
            cache.metrics.found.fetch_add(found as u64, Relaxed);
            cache.metrics.missing.fetch_add((values.len() - found) as u64, Relaxed);
            for (want, value) in mine.into_iter().zip(values) {
                if !cache.learn(want, value, now_ms) {
                    answer = Answer::Grace;
                }
            }
        }
        Ok(answer)
    }

    /// What Redis has for the tokens, and how many keys it has in all.
    fn read(&mut self, lookup: usize, tokens: &[&Wanted]) -> Result<(Vec<Told>, u64)> {
        let redis = self.redis.as_ref().context("a lookup needs [redis]")?;
        let (connection, config) = (&mut self.connection, &self.caches[lookup].config);
        let keys: Vec<String> = tokens.iter().map(|want| config.key_of(&want.token)).collect();
        self.pulse.during("asking Redis", || {
            if connection.is_none() {
                *connection = Some(connect(redis)?);
            }
            read(connection.as_mut().expect("just made"), config, &keys)
        })
    }
}

fn value(told: &Told) -> Option<&str> {
    if let Told::Value(text) = told { Some(text) } else { None }
}

/// Says why nothing should be set aside now, if Redis seems to have lost its data.
fn emptied(had: usize, gone: usize, keys_in_all: u64) -> Option<String> {
    if keys_in_all == 0 {
        return Some(
            "Redis is empty: was it restarted without its data, or is this another database?".to_owned(),
        );
    }
    (had >= SAMPLE_MIN && gone * 2 > had)
        .then(|| format!("Redis lost its data: of {had} tokens that it knew it has forgotten {gone}"))
}

#[derive(PartialEq, Eq)]
enum Said {
    Nothing,
    Away,
    Unfit,
}

enum Answer {
    /// Every token is known, or known to be unknown.
    Settled,
    /// Some are unknown and may still come.
    Grace,
    /// Redis has not what this lookup needs, whatever the token; why.
    Unfit(String),
}

impl Cache {
    /// Keys that are there and cannot be read are the setup's fault where none could be read yet; where others can, they are
    /// their own, and no value. Said once.
    fn unusable(&mut self, told: &[Told]) -> Option<String> {
        if let Some(bytes) =
            told.iter().find_map(|told| if let Told::TooLong(bytes) = told { Some(bytes) } else { None })
            && !std::mem::replace(&mut self.said_too_long, true)
        {
            log::warn!(
                "a token of lookup.{} is unknown because Redis has a value of {bytes} bytes for it, and none is read that has more \
                 than a user's number or name",
                self.config.name
            );
        }
        let why =
            told.iter().find_map(|told| if let Told::Unusable(why) = told { Some(why) } else { None })?;
        if self.found_last.is_empty() && !told.iter().any(|told| matches!(told, Told::Value(_))) {
            return Some(why.clone());
        }
        if !std::mem::replace(&mut self.said_unusable, true) {
            log::warn!("a token is unknown because of what Redis has for it: {why}");
        }
        None
    }

    /// The tokens that were found last and are not asked for anyway.
    fn sample(&self, lookup: usize, asked: &[&Wanted]) -> Vec<Wanted> {
        let others = self.found_last.iter().filter(|token| !asked.iter().any(|w| w.token == **token));
        // Old enough to have no grace time: nobody waits for these.
        others.map(|token| Wanted { lookup, token: token.clone(), newest_ms: Some(i64::MIN) }).collect()
    }

    /// True if the token had a value when it was asked for last, however long ago.
    fn had(&self, token: &str) -> bool {
        self.known.get(token).is_some_and(|entry| entry.value.is_some())
    }

    /// Keeps an answer. False while the token is unknown and within its grace time.
    fn learn(&mut self, want: &Wanted, value: Option<&str>, now_ms: i64) -> bool {
        if self.known.len() >= self.config.cache_max && !self.known.contains_key(&want.token) {
            self.make_room();
        }
        let now = Instant::now();
        let missing_since =
            self.known.get(&want.token).filter(|e| e.value.is_none()).map_or(now, |e| e.missing_since);
        let entry = Entry { value: value.map(Into::into), asked_at: now, missing_since };
        let in_grace = value.is_none()
            && now.duration_since(missing_since) < self.config.grace
            // A record that is older than the grace time was asked for late enough.
            && want.newest_ms.is_none_or(|ms| now_ms.saturating_sub(ms) < self.config.grace.as_millis() as i64);
        self.bytes += bytes_of(&want.token, &entry);
        if let Some(before) = self.known.insert(want.token.clone(), entry) {
            self.bytes -= bytes_of(&want.token, &before);
        }
        self.found_last.retain(|token| *token != want.token);
        if value.is_some() {
            self.found_last.push_back(want.token.clone());
            if self.found_last.len() > SAMPLE {
                self.found_last.pop_front();
            }
        }
        !in_grace
    }

    /// Forgets the older half.
    fn make_room(&mut self) {
        let mut ages: Vec<Instant> = self.known.values().map(|e| e.asked_at).collect();
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.known.retain(|_, e| e.asked_at > median);
        self.bytes = self.known.iter().map(|(token, entry)| bytes_of(token, entry)).sum();
    }

    /// Between two batches: within one, what was learned is needed.
    fn keep_to_its_bytes(&mut self) {
        while self.bytes > self.config.cache_max.saturating_mul(ENTRY_BYTES) {
            self.make_room();
        }
    }
}

fn bytes_of(token: &str, entry: &Entry) -> usize {
    OVERHEAD_BYTES + token.len() + entry.value.as_ref().map_or(0, |value| value.len())
}

impl Lookups for LookupCache {
    /// An unknown token is good for this batch only: the next one asks again, so that a new user is seen at once.
    #[inline(always)]
    fn find(&self, lookup: usize, token: &str) -> Found<'_> {
        if token.len() > TOKEN_BYTES_MAX {
            return Found::Unknown;
        }
        let cache = &self.caches[lookup];
        match cache.known.get(token) {
            Some(Entry { value: Some(value), asked_at, .. })
                if Some(*asked_at) > cache.stale || *asked_at >= cache.now =>
            {
                cache.hits.set(cache.hits.get() + 1);
                Found::Value(value)
            }
            Some(Entry { value: None, asked_at, .. }) if *asked_at >= cache.now => Found::Unknown,
            _ => Found::NotCached,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(max: usize) -> Cache {
        let config = config::Lookup {
            name: "user".into(),
            key_prefix: "user:".into(),
            key_suffix: ":id".into(),
            field: None,
            ttl: Duration::from_secs(60),
            cache_max: max,
            grace: Duration::from_secs(1),
        };
        Cache {
            config,
            metrics: Arc::default(),
            hits: Cell::new(0),
            known: HashMap::default(),
            bytes: 0,
            found_last: VecDeque::new(),
            said_unusable: false,
            said_too_long: false,
            now: Instant::now(),
            stale: None,
        }
    }

    fn want(token: &str, newest_ms: Option<i64>) -> Wanted {
        Wanted { lookup: 0, token: token.into(), newest_ms }
    }

    #[test]
    fn an_unknown_token_waits_only_for_a_young_record() {
        let mut cache = cache(1000);
        assert_eq!(cache.config.key_of("t"), "user:t:id");
        assert!(cache.learn(&want("known", Some(0)), Some("7"), 0));
        assert!(!cache.learn(&want("young", Some(10_000)), None, 10_500));
        assert!(!cache.learn(&want("no time", None), None, 10_500));
        assert!(cache.learn(&want("old", Some(10_000)), None, 11_000));
    }

    #[test]
    fn a_full_cache_forgets_its_older_half() {
        let mut cache = cache(1000);
        for i in 0..1001 {
            cache.learn(&want(&i.to_string(), None), Some("v"), 0);
        }
        assert!(cache.known.len() <= 501, "{}", cache.known.len());
        assert!(cache.known.contains_key("1000"));
    }

    #[test]
    fn a_cache_is_bounded_in_bytes_whatever_the_length_of_what_it_holds() {
        let mut cache = cache(1000);
        let long = "v".repeat(4000);
        for i in 0..500 {
            cache.learn(&want(&format!("{i:04}{long}"), None), Some(&long), 0);
        }
        assert!(cache.bytes > 500 * 8000, "a batch keeps what it needs");
        cache.keep_to_its_bytes();
        assert!(cache.bytes <= 1000 * ENTRY_BYTES && !cache.known.is_empty(), "{}", cache.bytes);
        let counted: usize = cache.known.iter().map(|(token, entry)| bytes_of(token, entry)).sum();
        assert_eq!(cache.bytes, counted);
        // Learned again is held once.
        cache.learn(&want("x", None), Some("1"), 0);
        let before = cache.bytes;
        cache.learn(&want("x", None), Some("22"), 0);
        assert_eq!(cache.bytes, before + 1);
    }

    #[test]
    fn what_was_found_last_is_asked_again_beside_what_is_needed() {
        let mut cache = cache(1000);
        for i in 0..20 {
            cache.learn(&want(&i.to_string(), None), Some("v"), 0);
        }
        let needed = want("19", None);
        let sample = cache.sample(0, &[&needed]);
        assert_eq!(sample.len(), SAMPLE - 1, "the needed one is asked anyway");
        assert_eq!(&*sample[0].token, "4");
        // One that is gone is no witness any more, but it was known until it was asked for.
        assert!(cache.had("18"));
        cache.learn(&want("18", Some(i64::MIN)), None, 0);
        assert!(!cache.had("18"));
        assert!(cache.sample(0, &[]).iter().all(|w| &*w.token != "18"));
    }

    #[test]
    fn keys_that_cannot_be_read_are_the_setups_fault_until_others_can() {
        let odd = || Told::Unusable("why".into());
        let mut cache = cache(1000);
        assert_eq!(cache.unusable(&[Told::Missing]), None);
        assert_eq!(cache.unusable(&[Told::Missing, odd()]), Some("why".into()));
        assert_eq!(cache.unusable(&[Told::Value("7".into()), odd()]), None);
        assert_eq!(cache.unusable(&[odd()]), Some("why".into()));
        cache.learn(&want("known", None), Some("7"), 0);
        assert_eq!(cache.unusable(&[odd()]), None);
    }

    #[test]
    fn an_emptied_redis_is_no_reason_to_set_records_aside() {
        #[track_caller]
        fn check(sampled: usize, gone: usize, keys: u64, expected: bool) {
            assert_eq!(emptied(sampled, gone, keys).is_some(), expected);
        }
        check(0, 0, 0, true);
        check(0, 0, 5, false);
        check(16, 0, 5, false);
        check(16, 8, 5, false);
        check(16, 9, 5, true);
        check(3, 3, 5, false);
        check(4, 3, 5, true);
    }
}
