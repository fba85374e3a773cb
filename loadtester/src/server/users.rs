//! The simulated users in Redis: token to user id. Which tokens there are follows from the seed, so that later runs with
//! the same seed find them again and `users cleanup` removes exactly them.

use anyhow::{Context, Result, bail};
use redis::Commands;

use crate::base::hash::mix;

/// How users are named. In each template `{token}` and `{n}` stand for the token and the user's number.
#[derive(Clone, Debug)]
pub struct Users {
    pub count: usize,
    pub seed: u64,
    pub key: String,
    pub id: String,
}

/// What was found in Redis.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Found {
    pub present: usize,
    pub created: usize,
    /// Present, but with the id of somebody else.
    pub different: usize,
}

/// Commands sent together: few round trips, and never more than some 100 kB under way.
const PIPELINE: usize = 1000;

impl Users {
    pub fn token(&self, n: usize) -> String {
        format!("lt{:04x}-{n:06}-{:08x}", self.seed & 0xffff, mix(self.seed ^ mix(n as u64)) >> 32)
    }

    pub fn tokens(&self) -> Vec<String> {
        (0..self.count).map(|n| self.token(n)).collect()
    }

    pub fn id_of(&self, n: usize) -> String {
        self.fill(&self.id, n)
    }

    fn key_of(&self, n: usize) -> String {
        self.fill(&self.key, n)
    }

    fn fill(&self, template: &str, n: usize) -> String {
        template.replace("{token}", &self.token(n)).replace("{n}", &format!("{n:06}"))
    }

    /// Templates that give every user the same key or id would hide exchanged users.
    pub fn check(&self) -> Result<()> {
        for (flag, template) in [("--user-key", &self.key), ("--user-id", &self.id)] {
            if !template.contains("{token}") && !template.contains("{n}") {
                bail!("{flag} \"{template}\" is the same for every user; put {{token}} or {{n}} into it");
            }
        }
        Ok(())
    }

    /// Writes the users that are missing or different.
    pub fn create(&self, redis: &mut redis::Connection) -> Result<Found> {
        let mut found = Found::default();
        for chunk in chunks(self.count) {
            let keys: Vec<String> = chunk.clone().map(|n| self.key_of(n)).collect();
            let present: Vec<Option<String>> = redis.mget(&keys).context("look the users up in Redis")?;
            let mut pipe = redis::pipe();
            let mut missing = 0;
            for ((n, key), value) in chunk.zip(&keys).zip(present) {
                let id = self.id_of(n);
                match value {
                    Some(value) if value == id => found.present += 1,
                    value => {
                        found.different += usize::from(value.is_some());
                        pipe.set(key, id).ignore();
                        missing += 1;
                    }
                }
            }
            if missing > 0 {
                pipe.exec(redis).context("create users in Redis")?;
                found.created += missing;
            }
        }
        Ok(found)
    }

    /// How many of the users are in Redis.
    pub fn count_present(&self, redis: &mut redis::Connection) -> Result<usize> {
        let mut present = 0;
        for chunk in chunks(self.count) {
            let keys: Vec<String> = chunk.map(|n| self.key_of(n)).collect();
            present += redis.exists::<_, usize>(&keys).context("count the users in Redis")?;
        }
        Ok(present)
    }

    pub fn remove(&self, redis: &mut redis::Connection) -> Result<usize> {
        let mut removed = 0;
        for chunk in chunks(self.count) {
            let keys: Vec<String> = chunk.map(|n| self.key_of(n)).collect();
            removed += redis.del::<_, usize>(&keys).context("remove users from Redis")?;
        }
        Ok(removed)
    }
}

fn chunks(count: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..count).step_by(PIPELINE).map(move |start| start..(start + PIPELINE).min(count))
}

/// Connects to the URL; `rediss://` is TLS, checked against the CA file where one is given.
pub fn connect(url: &str, ca: Option<&std::path::Path>) -> Result<redis::Connection> {
    let shown = without_password(url);
    // The environment may name an authority although this address is a plain one.
    let client = match ca.filter(|_| url.starts_with("rediss://")) {
        None => redis::Client::open(url),
        Some(path) => {
            let pem = std::fs::read(path)
                .with_context(|| format!("read the CA of Redis from {}", path.display()))?;
            let certificates = redis::TlsCertificates { client_tls: None, root_cert: Some(pem) };
            redis::Client::build_with_tls(url, certificates)
        }
    };
    client
        .and_then(|client| client.get_connection_with_timeout(std::time::Duration::from_secs(5)))
        .with_context(|| {
            format!("connect to Redis at {shown}; check that it runs there, or set --redis or REDIS_URL")
        })
}

/// The server's version; `None` where it may not be asked.
pub fn version(redis: &mut redis::Connection) -> Option<String> {
    let info: String = redis::cmd("INFO").arg("server").query(redis).ok()?;
    info.lines().find_map(|line| line.strip_prefix("redis_version:")).map(|v| v.trim().to_owned())
}

/// A URL that may be printed.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "(an address without \"://\")".to_owned();
    };
    match rest.rsplit_once('@') {
        Some((login, place)) => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{place}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(count: usize, seed: u64) -> Users {
        Users { count, seed, key: "user:{token}".into(), id: "lt-user-{n}".into() }
    }

    #[test]
    fn tokens_differ_between_users_and_seeds() {
        let mut tokens = users(2000, 1).tokens();
        tokens.extend(users(2000, 2).tokens());
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 4000);
        assert_eq!(users(1, 1).token(0), users(5, 1).token(0));
    }

    #[test]
    fn templates_must_tell_users_apart() {
        assert!(users(1, 1).check().is_ok());
        assert!(Users { id: "me".into(), ..users(1, 1) }.check().is_err());
    }

    #[test]
    fn passwords_are_not_printed() {
        let rows = [
            ("redis://host:1/0", "redis://host:1/0"),
            ("redis://:secret@host/0", "redis://@host/0"),
            ("postgres://me:p@ss@host/db", "postgres://me@host/db"),
            ("secret", "(an address without \"://\")"),
        ];
        for (url, shown) in rows {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn chunks_cover_everything_once() {
        for count in [0, 1, 999, 1000, 1001, 2500] {
            assert_eq!(chunks(count).flatten().collect::<Vec<_>>(), (0..count).collect::<Vec<_>>());
        }
    }
}
