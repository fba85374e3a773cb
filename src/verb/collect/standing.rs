//! Whether what a request is about is there and active, for routes with `must_exist`: asked of PostgreSQL by a thread beside the loops,
//! which asks for everything that waits at once. A loop asks, and goes on; what it is told comes like any verdict.
//!
//! Only "active" is kept, for a second unless the route says otherwise: what is unknown now may be made in a moment, here or at another
//! instance. A notification drops it at once, and where none can come it is kept for a second at most. A client is never told "active"
//! of what was asked for longer ago than that.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, Sender};
use postgres::types::Type;

use super::route::{Must, Routes};
use crate::base::lock::lock;
use crate::base::queue;
use crate::base::retry::Episode;
use crate::base::thread::Pulse;
use crate::client::pg::{Client, Server};
use crate::config::Postgres;
use crate::http::event_loop::Waker;
use crate::http::exchange::Ticket;
use crate::model::plan::quoted;

/// Questions that wait. A loop that finds no room refuses its request, which is better than one that waits for seconds.
const QUESTIONS: usize = 4096;

/// Asked at once: what came while the last answer was under way.
const BATCH: usize = 256;

/// How long "active" is kept where no notification can come.
const KEPT_UNHEARD: Duration = Duration::from_secs(1);

/// Of one route. A key has some tens of bytes, so that is some megabytes.
const KEPT_MAX: usize = 100_000;

/// Keys in use that are asked for again, in one question.
const REFRESHED: usize = 2000;

/// After a failure everybody is told at once that nobody knows, for so long: then it is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// Between two proofs that the session is there which hears of changes.
const SILENCE: Duration = Duration::from_secs(1);

/// What PostgreSQL says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Active,
    Inactive,
    Unknown,
    /// It does not answer.
    Unanswered,
}

/// A loop's question.
struct Question {
    route: usize,
    key: String,
    /// The loop, and who waits there.
    to: usize,
    ticket: Ticket,
}

/// Where the answers of a loop go.
pub type Post = (Sender<(Ticket, Standing)>, Arc<Waker>);

/// What all loops share.
pub struct Standings {
    server: Server,
    /// By the route's number; `None` where nothing has to be there.
    routes: Vec<Option<(Must, Mutex<Kept>)>>,
    questions: Sender<Question>,
    asked: Receiver<Question>,
    /// Changes are heard of.
    is_heard: AtomicBool,
    /// Counts changes that were heard of: what was asked before one is not kept.
    changes: AtomicU64,
}

/// What is known to be active.
#[derive(Default)]
struct Kept {
    all: HashMap<String, Known>,
    /// When it was looked through last.
    swept: Option<Instant>,
}

struct Known {
    /// When that was asked.
    asked: Instant,
    /// Somebody needed it since then.
    is_used: bool,
}

impl Kept {
    /// True of what was asked for not too long ago.
    fn has(&mut self, key: &str, now: Instant, age: Duration) -> bool {
        let Some(known) = self.all.get_mut(key) else { return false };
        known.is_used = true;
        now.saturating_duration_since(known.asked) < age
    }

    fn put(&mut self, key: String, asked: Instant) {
        // Rarely: everything is asked again within its age anyway.
        if self.all.len() >= KEPT_MAX {
            self.all.clear();
        }
        self.all.insert(key, Known { asked, is_used: false });
    }

    /// One key, or all of them.
    fn forget(&mut self, key: &str) {
        if key.is_empty() {
            self.all.clear();
        } else {
            self.all.remove(key);
        }
    }

    /// What is in use and in the second half of its age: it is asked for with whatever is asked now, so that a thousand keys in use cost
    /// two questions an age, and not a thousand. What nobody needed goes once it is too old.
    fn stale(&mut self, now: Instant, age: Duration) -> Vec<String> {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < age / 4) {
            return Vec::new();
        }
        self.swept = Some(now);
        let old = |known: &Known| now.saturating_duration_since(known.asked);
        self.all.retain(|_, known| known.is_used || old(known) < age);
        let stale = self.all.iter().filter(|(_, known)| known.is_used && old(known) >= age / 2);
        stale.take(REFRESHED).map(|(key, _)| key.clone()).collect()
    }
}

impl Standings {
    /// `None` where no route asks.
    ///
    /// # Errors
    /// When the server's URL is of no use.
    pub fn new(postgres: Option<&Postgres>, routes: &Routes) -> Result<Option<Standings>> {
        if routes.routes.iter().all(|route| route.must.is_none()) {
            return Ok(None);
        }
        let postgres = postgres.context("a route has must_exist, and no PostgreSQL is configured")?;
        let (questions, asked) = queue::bounded(QUESTIONS);
        let kept = |must: &Must| (must.clone(), Mutex::default());
        Ok(Some(Standings {
            server: Server::of(postgres)?,
            routes: routes.routes.iter().map(|route| route.must.as_ref().map(kept)).collect(),
            questions,
            asked,
            is_heard: AtomicBool::new(false),
            changes: AtomicU64::new(0),
        }))
    }

    /// True of what is known to be active.
    pub fn is_active(&self, route: usize, key: &str) -> bool {
        let Some((must, kept)) = &self.routes[route] else { return true };
        lock(kept).has(key, Instant::now(), self.age(must))
    }

    fn age(&self, must: &Must) -> Duration {
        if self.is_heard.load(SeqCst) { must.cache } else { must.cache.min(KEPT_UNHEARD) }
    }

    /// Asks; false where there is no room.
    pub fn ask(&self, route: usize, key: String, to: usize, ticket: Ticket) -> bool {
        self.questions.try_send(Question { route, key, to, ticket }).is_ok()
    }

    /// Answers questions, by loop.
    ///
    /// # Errors
    /// Never: what is wrong is said, and those who ask are told that nobody knows.
    pub fn answer(&self, posts: &[Post], pulse: &Pulse) -> Result<()> {
        let mut session: Option<Session> = None;
        let mut trouble = Episode::default();
        let mut failed: Option<Instant> = None;
        while let Ok(first) = self.asked.recv() {
            let mut batch = vec![first];
            batch.extend(self.asked.try_iter().take(BATCH - 1));
            let is_early = failed.is_some_and(|at| at.elapsed() < PAUSE);
            let told = if is_early {
                HashMap::new()
            } else {
                let looked =
                    pulse.during("asking PostgreSQL what is there", || self.look(&mut session, &batch));
                match looked {
                    Ok(told) => {
                        failed = None;
                        if trouble.ends() {
                            log::info!("PostgreSQL says again what is there");
                        }
                        told
                    }
                    Err(error) => {
                        session = None;
                        failed = Some(Instant::now());
                        if trouble.begins() {
                            log::warn!(
                                "{error:#}; requests whose key is not known to be there are refused until it answers"
                            );
                        }
                        HashMap::new()
                    }
                }
            };
            for question in batch {
                let found = told.get(&(question.route, question.key));
                let standing = found.copied().unwrap_or(Standing::Unanswered);
                let Some((post, waker)) = posts.get(question.to) else { continue };
                // A loop has room for everything that it may have asked.
                if post.try_send((question.ticket, standing)).is_ok() {
                    drop(waker.wake());
                }
            }
        }
        Ok(())
    }

    /// What is known of each question's key.
    fn look(
        &self,
        session: &mut Option<Session>,
        batch: &[Question],
    ) -> Result<HashMap<(usize, String), Standing>> {
        let session = match session {
            Some(session) => session,
            None => session
                .insert(Session { client: self.server.connect("rowmill collect")?, types: HashMap::new() }),
        };
        let mut told = HashMap::new();
        let routes: HashSet<usize> = batch.iter().map(|question| question.route).collect();
        for route in routes {
            let Some((must, kept)) = &self.routes[route] else { continue };
            let wanted = batch.iter().filter(|question| question.route == route);
            let mut keys: HashSet<String> = wanted.map(|question| question.key.clone()).collect();
            keys.extend(lock(kept).stale(Instant::now(), self.age(must)));
            let keys: Vec<String> = keys.into_iter().collect();
            let (asked, changes) = (Instant::now(), self.changes.load(SeqCst));
            for (key, standing) in session.standings(must, &keys)? {
                let mut kept = lock(kept);
                if standing != Standing::Active {
                    kept.forget(&key);
                } else if self.changes.load(SeqCst) == changes {
                    kept.put(key.clone(), asked);
                }
                told.insert((route, key), standing);
            }
        }
        Ok(told)
    }

    /// Hears of changes, again and again.
    ///
    /// # Errors
    /// Never: while nothing can be heard, less is kept.
    pub fn hear(&self, pulse: &Pulse) -> Result<()> {
        let mut trouble = Episode::default();
        loop {
            let Err(error) = self.hear_once(pulse, &mut trouble);
            self.is_heard.store(false, SeqCst);
            self.forget(None, "");
            if trouble.begins() {
                log::warn!(
                    "{error:#}; until changes are heard of, what is active is asked for again each second"
                );
            }
            std::thread::sleep(SILENCE);
        }
    }

    fn hear_once(&self, pulse: &Pulse, trouble: &mut Episode) -> Result<std::convert::Infallible> {
        let mut client =
            pulse.during("a session with PostgreSQL", || self.server.connect("rowmill collect"))?;
        for (must, _) in self.routes.iter().flatten() {
            client.listen(&must.channel).with_context(|| format!("cannot listen to {:?}", must.channel))?;
        }
        // What changed before was not heard of.
        self.forget(None, "");
        self.is_heard.store(true, SeqCst);
        if trouble.ends() {
            log::info!("changes are heard of again");
        }
        loop {
            match client.notice(SILENCE).context("the session that hears of changes is lost")? {
                Some((channel, key)) => self.forget(Some(&channel), &key),
                None => pulse.during("a sign of life of PostgreSQL", || {
                    client.query_typed("SELECT 1", &[]).map(drop)
                })?,
            }
        }
    }

    fn forget(&self, channel: Option<&str>, key: &str) {
        self.changes.fetch_add(1, SeqCst);
        for (must, kept) in self.routes.iter().flatten() {
            if channel.is_none_or(|channel| channel == must.channel) {
                lock(kept).forget(key);
            }
        }
    }
}

/// Asks as the door will, for `rowmill check`.
///
/// # Errors
/// What is missing, or may not be seen.
pub fn try_out(postgres: &Postgres, must: &Must) -> Result<()> {
    let client = Server::of(postgres)?.connect("rowmill check")?;
    Session { client, types: HashMap::new() }.standings(must, &[]).map(drop)
}

/// One session, and the types of the columns that keys are compared with.
struct Session {
    client: Client,
    types: HashMap<(String, String), String>,
}

impl Session {
    /// What each key's row says.
    fn standings(&mut self, must: &Must, keys: &[String]) -> Result<Vec<(String, Standing)>> {
        let sql = sql(must, self.type_of(must)?);
        match self.client.query_typed(&sql, &[(&keys, Type::TEXT_ARRAY)]) {
            Ok(rows) => Ok(rows.iter().map(|row| (row.get(0), standing(row.get(1), row.get(2)))).collect()),
            // One key that can be nobody's, such as a number that is too large, must not hide the others.
            Err(error) if error.code().is_some_and(|code| code.code().starts_with("22")) => {
                let mut all = Vec::new();
                match keys {
                    [key] => all.push((key.clone(), Standing::Unknown)),
                    keys => {
                        for key in keys {
                            all.extend(self.standings(must, std::slice::from_ref(key))?);
                        }
                    }
                }
                Ok(all)
            }
            Err(error) => Err(error).with_context(|| format!("cannot look into {}", must.table)),
        }
    }

    fn type_of(&mut self, must: &Must) -> Result<&str> {
        let place = (must.table.clone(), must.column.clone());
        if !self.types.contains_key(&place) {
            let rows = self.client.query_typed(
                "SELECT format_type(atttypid, NULL) FROM pg_attribute
                 WHERE attrelid = to_regclass($1) AND attname = $2 AND NOT attisdropped",
                &[(&must.table, Type::TEXT), (&must.column, Type::TEXT)],
            )?;
            let row = rows.first().with_context(|| {
                format!("there is no column {:?} in {}, or it may not be seen", must.column, must.table)
            })?;
            self.types.insert(place.clone(), row.get(0));
        }
        Ok(&self.types[&place])
    }
}

fn standing(is_there: bool, is_active: bool) -> Standing {
    match (is_there, is_active) {
        (false, _) => Standing::Unknown,
        (true, false) => Standing::Inactive,
        (true, true) => Standing::Active,
    }
}

/// Which of some keys are there, and active.
fn sql(must: &Must, ty: &str) -> String {
    let key = quoted(&must.column);
    let active = match &must.active {
        Some(column) => format!("COALESCE(t.{}, FALSE)", quoted(column)),
        None => "TRUE".to_owned(),
    };
    format!(
        "SELECT asked.key, t.{key} IS NOT NULL, {active}
         FROM unnest($1::text[]) AS asked (key)
         LEFT JOIN {} AS t ON t.{key} = asked.key::{ty}",
        must.table
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_active_is_kept_for_its_age_and_until_it_changes() {
        let (mut kept, asked, second) = (Kept::default(), Instant::now(), Duration::from_secs(1));
        kept.put("7".to_owned(), asked);
        kept.put("8".to_owned(), asked);
        assert!(kept.has("7", asked, second) && !kept.has("9", asked, second));
        assert!(!kept.has("7", asked + second, second), "it is too old");
        assert!(!kept.has("7", asked, Duration::ZERO), "nothing is kept");
        kept.forget("7");
        assert!(!kept.has("7", asked, second) && kept.has("8", asked, second));
        kept.forget("");
        assert!(!kept.has("8", asked, second));
    }

    #[test]
    fn what_is_in_use_is_asked_for_again_before_it_is_too_old() {
        let (mut kept, asked, second) = (Kept::default(), Instant::now(), Duration::from_secs(1));
        let ms = |ms| asked + Duration::from_millis(ms);
        for key in ["used", "unused"] {
            kept.put(key.to_owned(), asked);
        }
        assert!(kept.has("used", ms(100), second));
        assert_eq!(kept.stale(ms(400), second), Vec::<String>::new(), "it is young");
        assert_eq!(kept.stale(ms(600), second), Vec::<String>::new(), "it was looked through a moment ago");
        assert_eq!(kept.stale(ms(700), second), ["used"]);
        kept.put("used".to_owned(), ms(700));
        assert_eq!(kept.stale(ms(1300), second), Vec::<String>::new(), "nobody needed it since");
        assert_eq!(kept.all.len(), 1, "what nobody needed is gone");
    }

    #[test]
    fn a_name_is_a_name() {
        let must = Must {
            value: super::super::template::Template::parse("{path.a:int}", &["a".to_owned()]).unwrap(),
            table: "\"public\".\"account\"".to_owned(),
            column: "i\"d".to_owned(),
            active: Some("isactive".to_owned()),
            cache: Duration::from_secs(1),
            unknown: hyper::StatusCode::NOT_FOUND,
            inactive: hyper::StatusCode::FORBIDDEN,
            channel: "account".to_owned(),
        };
        let sql = sql(&must, "bigint");
        assert!(
            sql.contains("t.\"i\"\"d\" = asked.key::bigint")
                && sql.contains("COALESCE(t.\"isactive\", FALSE)")
        );
        assert!(sql.contains("LEFT JOIN \"public\".\"account\" AS t"), "{sql}");
    }
}
