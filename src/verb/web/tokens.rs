//! Who may come: a file of names with the SHA-256 of each one's token, and how many records or questions a second each may have.
//! The file is no secret; the tokens are nowhere.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use openssl::sha::sha256;
use serde::Deserialize;

use crate::base::lock::{Live, lock};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    token: Vec<RawToken>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawToken {
    name: String,
    sha256: String,
    /// Records a second at a front door, questions a second where answers are given.
    rate: Option<f64>,
    /// Paths as they are configured; all where there are none.
    #[serde(default)]
    routes: Vec<String>,
}

/// Everybody who may come.
#[derive(Debug, Default)]
pub struct Tokens {
    by_hash: HashMap<[u8; 32], Arc<Token>>,
}

/// The file, as it was read last.
#[derive(Debug)]
pub struct TokenFile {
    path: String,
    setting: &'static str,
    tokens: Live<Tokens>,
}

impl TokenFile {
    /// `setting` is what names the file.
    ///
    /// # Errors
    /// Where the file cannot be read, or is wrong.
    pub fn read(path: &str, setting: &'static str) -> Result<TokenFile> {
        let tokens = Live::new(Tokens::read(path, setting)?);
        Ok(TokenFile { path: path.to_owned(), setting, tokens })
    }

    /// Reads it again; rates begin anew.
    ///
    /// # Errors
    /// As above; then everybody stays who was in it.
    pub fn read_again(&self) -> Result<()> {
        self.tokens.set(Tokens::read(&self.path, self.setting)?);
        Ok(())
    }

    /// As [`Tokens::of`].
    pub fn of(&self, authorization: Option<&str>) -> Option<Arc<Token>> {
        self.tokens.get().of(authorization).cloned()
    }
}

/// One who may.
#[derive(Debug)]
pub struct Token {
    pub name: String,
    routes: Vec<String>,
    bucket: Option<Mutex<Bucket>>,
}

/// Records that may come at once, and how fast more may.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: f64,
    left: f64,
    since: Instant,
}

impl Tokens {
    /// `setting` is what names the file.
    ///
    /// # Errors
    /// Where the file cannot be read, or is wrong.
    pub fn read(path: &str, setting: &str) -> Result<Tokens> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {setting} {path:?}"))?;
        Tokens::parse(&text, Instant::now()).with_context(|| format!("in {path}"))
    }

    fn parse(text: &str, now: Instant) -> Result<Tokens> {
        // Never the file's own words: somebody may have written a token into it.
        let file: RawFile = toml::from_str(text).map_err(|error| anyhow::anyhow!("{}", error.message()))?;
        let mut tokens = Tokens::default();
        for raw in file.token {
            let hash = hash(&raw.sha256).with_context(|| {
                format!(
                    "the token {:?} has no sha256 of 64 hexadecimal digits: printf %s TOKEN | sha256sum",
                    raw.name
                )
            })?;
            ensure!(raw.rate.is_none_or(|rate| rate >= 1.0), "the token {:?}: rate is at least 1", raw.name);
            let bucket = raw.rate.map(|rate| Mutex::new(Bucket { rate, left: rate, since: now }));
            let token = Token { name: raw.name, routes: raw.routes, bucket };
            let name = token.name.clone();
            ensure!(
                tokens.by_hash.insert(hash, Arc::new(token)).is_none(),
                "two tokens are the same: {name:?}"
            );
        }
        Ok(tokens)
    }

    /// Whose token a request shows. Which bytes of it are right cannot be told from the time: its hash is looked up.
    pub fn of(&self, authorization: Option<&str>) -> Option<&Arc<Token>> {
        let (scheme, token) = authorization?.split_once(' ')?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        self.by_hash.get(&sha256(token.trim().as_bytes()))
    }
}

impl Token {
    /// `path` as it is configured, with its parameters' names.
    pub fn may(&self, path: &str) -> bool {
        self.routes.is_empty() || self.routes.iter().any(|route| route == path)
    }

    /// Takes so many records of this second.
    ///
    /// # Errors
    /// Seconds until they may come. More than a whole second's share may come once the bucket is full: it is owed then.
    pub fn take(&self, records: u32, now: Instant) -> Result<(), u64> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let mut bucket = lock(bucket);
        let passed = now.saturating_duration_since(bucket.since).as_secs_f64();
        bucket.left = (bucket.left + passed * bucket.rate).min(bucket.rate);
        bucket.since = now;
        let wanted = f64::from(records);
        if bucket.left < wanted.min(bucket.rate) {
            let missing = wanted.min(bucket.rate) - bucket.left;
            return Err((missing / bucket.rate).ceil().max(1.0) as u64);
        }
        bucket.left -= wanted;
        Ok(())
    }
}

fn hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    if text.len() != 2 * hash.len() {
        return None;
    }
    for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const FILE: &str = "[[token]]\nname = \"a\"\nsha256 = \"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae\"\nrate = 100.0\nroutes = [\"/save\"]\n";

    #[test]
    fn a_token_is_known_by_its_hash() {
        let tokens = Tokens::parse(FILE, Instant::now()).unwrap();
        let token = tokens.of(Some("Bearer foo")).unwrap();
        assert_eq!((&*token.name, token.may("/save"), token.may("/other")), ("a", true, false));
        assert!(tokens.of(Some("bearer foo")).is_some());
        for other in [None, Some("foo"), Some("Basic foo"), Some("Bearer bar"), Some("Bearer "), Some("")] {
            assert!(tokens.of(other).is_none(), "{other:?}");
        }
    }

    #[test]
    fn a_rate_is_kept() {
        let start = Instant::now();
        let tokens = Tokens::parse(FILE, start).unwrap();
        let token = tokens.of(Some("Bearer foo")).unwrap();
        assert_eq!(token.take(60, start), Ok(()));
        assert_eq!(token.take(60, start), Err(1));
        assert_eq!(token.take(40, start), Ok(()));
        let later = start + Duration::from_secs(1);
        // Larger than a second's share: taken when the bucket is full, and owed.
        assert_eq!(token.take(250, later), Ok(()));
        assert_eq!(token.take(1, later + Duration::from_secs(1)), Err(1));
        assert_eq!(token.take(1, later + Duration::from_secs(2)), Ok(()));
    }

    #[test]
    fn a_wrong_file_is_said_without_its_words() {
        for (text, words) in [
            ("[[token]]\nname = \"a\"\nsha256 = \"canary\"", "64 hexadecimal digits"),
            ("[[token]]\nname = \"a\"\ntoken = \"canary\"", "unknown field"),
            (&FILE.repeat(2), "two tokens are the same"),
            (&FILE.replace("100.0", "0.5"), "at least 1"),
        ] {
            let error = format!("{:#}", Tokens::parse(text, Instant::now()).unwrap_err());
            assert!(error.contains(words) && !error.contains("canary"), "{error}");
        }
    }
}
