//! `[redis]` and `[lookup.*]`: where tokens become values, and how long an answer holds.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::address::{host_of, is_loopback};
use super::secret::{self, Environment, Secret};
use super::units::Period;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRedis {
    url: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(default)]
    plaintext: bool,
    ca: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLookup {
    key: Option<String>,
    hash: Option<String>,
    field: Option<String>,
    ttl: Option<Period>,
    cache_max: Option<usize>,
    grace: Option<Period>,
}

/// Users change their tokens rarely, and a removed user should be noticed within a minute.
const LOOKUP_TTL: Duration = Duration::from_secs(60);

/// About 100 bytes each: 10 MB when full.
const LOOKUP_CACHE_MAX: usize = 100_000;

/// A collector may send before its user's token has reached Redis.
const LOOKUP_GRACE: Duration = Duration::from_secs(1);

impl RawRedis {
    /// Another server than the file's, as the command line has it.
    pub(super) fn ask(&mut self, url: String, plaintext: bool) {
        self.url = Some(url);
        self.plaintext |= plaintext;
    }

    /// True where there is an address, in the file or beside it.
    pub(super) fn is_named(&self, env: Environment<'_>) -> bool {
        self.url.is_some() || env("REDIS_URL").is_some()
    }
}

#[derive(Clone)]
pub struct Redis {
    pub url: String,
    /// Instead of those in the URL.
    pub username: Option<String>,
    pub password: Option<Secret>,
    pub ca: Option<String>,
    pub cert: Option<String>,
    pub key: Option<String>,
}

/// A URL may hold a password, so it is never printed whole.
impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").field("ca", &self.ca).finish_non_exhaustive()
    }
}

/// One kind of key in Redis, and how its answers are kept.
#[derive(Debug, Clone)]
pub struct Lookup {
    pub name: String,
    /// The key's text with `{}` where the token goes.
    pub key_prefix: String,
    pub key_suffix: String,
    /// The key is a hash, and this its field with the value; else it is a string.
    pub field: Option<String>,
    /// A found value is asked again after this.
    pub ttl: Duration,
    /// Tokens kept; the oldest half goes when it is full.
    pub cache_max: usize,
    /// An unknown token is asked again for this long before its record is set aside.
    pub grace: Duration,
}

impl Lookup {
    pub fn key_of(&self, token: &str) -> String {
        format!("{}{token}{}", self.key_prefix, self.key_suffix)
    }
}

pub(super) fn resolve_redis(raw: RawRedis, env: Environment<'_>) -> Result<Redis> {
    let url = raw
        .url
        .or_else(|| env("REDIS_URL"))
        .context("there is a [lookup] but no Redis: set url in [redis], or REDIS_URL")?;
    let url = secret::value("redis.url", &url, env)?;
    if url.contains('#') {
        bail!(
            "redis.url ends in #..., which would switch the check of certificates off: give the CA in redis.ca instead"
        );
    }
    let remote = match url.split_once("://") {
        Some(("redis", rest)) => {
            let authority = rest.split(['/', '?']).next().unwrap_or_default();
            Some(host_of(authority.rsplit('@').next().unwrap_or_default()))
        }
        Some(("rediss" | "unix" | "redis+unix", _)) => None,
        _ => bail!("redis.url must begin with rediss://, redis:// or unix://"),
    };
    if remote.is_some_and(|host| !is_loopback(host)) && !raw.plaintext {
        bail!(
            "Redis is on another machine and redis.url begins with redis://, which is plaintext: write rediss:// and its TLS \
             port, or plaintext = true in [redis] if everybody in between may read and change users"
        );
    }
    if raw.cert.is_some() != raw.key.is_some() {
        bail!("redis: cert and key belong together; set both or none");
    }
    Ok(Redis {
        url,
        username: secret::optional("redis.username", raw.username, env)?,
        password: Secret::optional("redis.password", raw.password, env)?,
        ca: secret::optional_path("redis.ca", raw.ca, env)?,
        cert: secret::optional_path("redis.cert", raw.cert, env)?,
        key: secret::optional_path("redis.key", raw.key, env)?,
    })
}

pub(super) fn resolve_lookup(name: String, raw: RawLookup) -> Result<Lookup> {
    let (setting, pattern, field) = match (raw.key, raw.hash, raw.field) {
        (Some(key), None, None) => ("key", key, None),
        (None, Some(hash), Some(field)) if !field.is_empty() => ("hash", hash, Some(field)),
        _ => bail!(
            "lookup.{name}: write key = \"user:{{}}\" where each key is a string, or hash = \"user:{{}}\" and field = \"id\" where \
             it is a hash; {{}} is the token"
        ),
    };
    let (prefix, suffix) = match pattern.split("{}").collect::<Vec<_>>()[..] {
        [prefix, suffix] => (prefix, suffix),
        [_] => bail!("lookup.{name}: {setting} {pattern:?} has no {{}} where the token goes"),
        _ => bail!(
            "lookup.{name}: {setting} {pattern:?} has {{}} more than once, and the token goes to one place"
        ),
    };
    let lookup = Lookup {
        key_prefix: prefix.to_owned(),
        key_suffix: suffix.to_owned(),
        field,
        ttl: raw.ttl.map_or(LOOKUP_TTL, |s| s.0),
        cache_max: raw.cache_max.unwrap_or(LOOKUP_CACHE_MAX),
        grace: raw.grace.map_or(LOOKUP_GRACE, |s| s.0),
        name,
    };
    if lookup.cache_max < 1000 {
        bail!("lookup.{}: cache_max must be at least 1000, or one batch would not fit", lookup.name);
    }
    Ok(lookup)
}

#[cfg(test)]
mod tests {
    use crate::config::tests::check;

    #[test]
    fn a_key_has_a_place_for_the_token() {
        check("[lookup.user]\nkey = \"user\"", Err("no {} where the token goes"));
        check("[lookup.user]\nkey = \"user:{}:{}\"", Err("key \"user:{}:{}\" has {} more than once"));
        check("[lookup.user]\nhash = \"user\"\nfield = \"id\"", Err("hash \"user\" has no {}"));
        for unclear in [
            "",
            "hash = \"user:{}\"",
            "field = \"id\"",
            "hash = \"{}\"\nfield = \"\"",
            "key = \"{}\"\nfield = \"id\"",
            "key = \"{}\"\nhash = \"{}\"\nfield = \"id\"",
        ] {
            check(&format!("[lookup.user]\n{unclear}"), Err("lookup.user: write key = \"user:{}\""));
        }
        check(
            "[redis]\nurl = \"redis://127.0.0.1\"\n[lookup.user]\nhash = \"user:{}\"\nfield = \"id\"",
            Ok(()),
        );
    }

    #[test]
    fn what_would_be_plaintext_between_machines_must_be_asked_for() {
        #[track_caller]
        fn check(section: &str, expected: Result<(), &str>) {
            super::super::tests::check(&format!("{section}\n[lookup.user]\nkey = \"{{}}\""), expected);
        }
        check("[redis]\nurl = \"redis://:pw@10.0.0.1:6379/0\"", Err("plaintext"));
        check("[redis]\nurl = \"redis://10.0.0.1\"\nplaintext = true", Ok(()));
        check("[redis]\nurl = \"rediss://10.0.0.1\"", Ok(()));
        check("[redis]\nurl = \"rediss://10.0.0.1/#insecure\"", Err("certificates"));
        check("[redis]\nurl = \"REDIS://10.0.0.1\"", Err("must begin with"));
    }
}
