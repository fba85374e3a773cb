//! Redis: the URL, the login, TLS, and what it says of keys.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use ::redis::{
    Client, ClientTlsConfig, Connection, ConnectionAddr, FromRedisValue as _, IntoConnectionInfo as _,
    Pipeline, RedisError, RedisResult, TlsCertificates, Value,
};
use anyhow::{Context as _, Result};

use super::tls;
use crate::config;

/// For a connection and for each reply. A healthy Redis answers in a millisecond.
pub(super) const TIMEOUT: Duration = Duration::from_secs(2);

/// How many keys Redis has, for `rowmill check`.
pub fn ping(redis: &config::Redis) -> Result<u64> {
    let mut connection = connect(redis)?;
    ::redis::cmd("DBSIZE").query(&mut connection).context("Redis refuses DBSIZE")
}

/// What Redis has for a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Value(String),
    Missing,
    /// The key is there and no text can be read from it; why, with what to do.
    Unusable(String),
    /// It has more bytes than a value may have, and was not read.
    TooLong(u64),
}

/// What a token leads to is a user's number or name. Whoever may write to Redis must not have this process read gigabytes.
const VALUE_BYTES_MAX: u64 = 4096;

/// So many of the keys that a lookup misses are asked for their type: a few say what the others are.
const TYPES_MAX: usize = 16;

/// Reads the values of these keys; and how many keys Redis has in all.
pub fn read(
    connection: &mut Connection,
    lookup: &config::Lookup,
    keys: &[String],
) -> Result<(Vec<Told>, u64)> {
    let read = match &lookup.field {
        Some(field) => fields(connection, lookup, field, keys).context("HGET failed"),
        None => strings(connection, lookup, keys).context("MGET failed"),
    };
    read.map_err(|error| match error.downcast_ref().and_then(is_cluster) {
        Some(sentence) => error.context(sentence),
        None => error,
    })
}

/// Why this Redis cannot be read from whatever it holds; for `rowmill check`, and before the first record.
///
/// # Errors
/// Where it does not answer: that says nothing.
pub fn refusal(redis: &config::Redis, lookups: &[config::Lookup]) -> Result<Option<&'static str>> {
    let mut connection = connect(redis)?;
    for lookup in lookups {
        // A cluster spreads them over its nodes, or refuses to see them together.
        let keys: Vec<String> = (0..TYPES_MAX).map(|n| lookup.key_of(&format!("rowmill-{n}"))).collect();
        if let Err(error) = read(&mut connection, lookup, &keys)
            && let Some(sentence) = error.downcast_ref().and_then(is_cluster)
        {
            return Ok(Some(sentence));
        }
    }
    Ok(None)
}

/// True if Redis has keys and none of them can be a token's; unknown where there are too many to look at, or the user may
/// not. Redis looks at them in its own time between other requests.
pub fn matches_no_key(redis: &config::Redis, lookup: &config::Lookup) -> Result<bool> {
    const ROUNDS_MAX: usize = 200;
    const COUNT: usize = 1000;
    let mut connection = connect(redis)?;
    let pattern = format!("{}*{}", escaped(&lookup.key_prefix), escaped(&lookup.key_suffix));
    let mut cursor = 0;
    for _ in 0..ROUNDS_MAX {
        let mut scan = ::redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(COUNT);
        let (next, found): (u64, Vec<Vec<u8>>) = scan.query(&mut connection)?;
        if !found.is_empty() {
            return Ok(false);
        }
        if next == 0 {
            return Ok(true);
        }
        cursor = next;
    }
    Ok(false)
}

/// A text that a pattern of Redis takes for itself.
pub(super) fn escaped(text: &str) -> String {
    let escape = |c: char| if "*?[]^-\\".contains(c) { format!("\\{c}") } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn is_cluster(error: &RedisError) -> Option<&'static str> {
    matches!(error.code(), Some("CROSSSLOT" | "MOVED" | "ASK" | "CLUSTERDOWN")).then_some(
        "Redis is a cluster, which rowmill does not read, since each key lies on another node: give redis.url a server that has \
         all users, a replica set's or one of its own",
    )
}

/// Sends the commands of a pipe and reads an answer for each, which may be a refusal.
///
/// # Errors
/// Where an answer does not come: none is waited for then. The library's own call goes on to wait for each of the others, and so
/// makes hours of a thousand commands to a server that is frozen.
fn ask(connection: &mut Connection, pipe: &Pipeline) -> RedisResult<Vec<RedisResult<Value>>> {
    if pipe.is_empty() {
        return Ok(Vec::new());
    }
    connection.send_packed_command(&pipe.get_packed_pipeline())?;
    pipe.cmd_iter().map(|_| Ok(connection.recv_response()?.extract_error())).collect()
}

/// The same, where one refusal is all that is to be said.
fn ask_all(connection: &mut Connection, pipe: &Pipeline) -> RedisResult<Vec<Value>> {
    ask(connection, pipe)?.into_iter().collect()
}

/// How long each value is; 0 where there is none. A user who may not ask is said, once, and is told nothing.
fn lengths(connection: &mut Connection, lookup: &config::Lookup, keys: &[String]) -> RedisResult<Vec<u64>> {
    static SAID: AtomicBool = AtomicBool::new(false);
    let mut pipe = ::redis::pipe();
    for key in keys {
        match &lookup.field {
            Some(field) => pipe.cmd("HSTRLEN").arg(key).arg(field),
            None => pipe.cmd("STRLEN").arg(key),
        };
    }
    let answers = ask(connection, &pipe)?;
    let length = |answer: RedisResult<Value>| match answer {
        Ok(value) => u64::from_redis_value(value).unwrap_or(0),
        Err(error) if error.code() == Some("NOPERM") && !SAID.swap(true, Relaxed) => {
            log::warn!(
                "Redis does not let this user ask how long a value is, so values are read whatever their length: allow STRLEN, or \
                 HSTRLEN for hashes ({error})"
            );
            0
        }
        // Another type, or gone: reading it says so.
        Err(_) => 0,
    };
    Ok(answers.into_iter().map(length).collect())
}

fn strings(
    connection: &mut Connection,
    lookup: &config::Lookup,
    keys: &[String],
) -> RedisResult<(Vec<Told>, u64)> {
    let lengths = lengths(connection, lookup, keys)?;
    let short = |at: &usize| lengths[*at] <= VALUE_BYTES_MAX;
    let read: Vec<usize> = (0..keys.len()).filter(short).collect();
    let mut pipe = ::redis::pipe();
    pipe.cmd("DBSIZE");
    if !read.is_empty() {
        pipe.cmd("MGET").arg(read.iter().map(|at| &keys[*at]).collect::<Vec<_>>());
    }
    let mut answers = ask_all(connection, &pipe)?;
    let values: Vec<Option<Vec<u8>>> = if read.is_empty() {
        Vec::new()
    } else {
        Vec::from_redis_value(answers.pop().unwrap_or(Value::Nil))?
    };
    let size = u64::from_redis_value(answers.pop().unwrap_or(Value::Nil))?;
    let mut told: Vec<Told> = lengths.iter().map(|length| Told::TooLong(*length)).collect();
    for (at, value) in read.into_iter().zip(values) {
        told[at] = text(lookup, &keys[at], value);
    }
    // A key of another type is not there for MGET.
    let missing: Vec<usize> =
        (0..told.len()).filter(|at| told[*at] == Told::Missing).take(TYPES_MAX).collect();
    let mut pipe = ::redis::pipe();
    for at in &missing {
        pipe.cmd("TYPE").arg(&keys[*at]);
    }
    // A user who may not ask for types is not told about them.
    let types = ask(connection, &pipe)?;
    for (at, kind) in missing.into_iter().zip(types) {
        let kind =
            kind.and_then(|kind| Ok(String::from_redis_value(kind)?)).unwrap_or_else(|_| "none".to_owned());
        if kind != "none" && kind != "string" {
            told[at] = Told::Unusable(format!(
                "{:?} is a {kind}, and lookup.{} reads strings{}",
                keys[at],
                lookup.name,
                remedy(lookup, &kind)
            ));
        }
    }
    Ok((told, size))
}

fn remedy(lookup: &config::Lookup, kind: &str) -> String {
    let pattern = lookup.key_of("{}");
    match kind {
        "hash" => format!(
            ": write hash = {pattern:?} and field = \"...\" instead of key, with the field that has the value"
        ),
        _ => ": it must lead to keys that hold the value".to_owned(),
    }
}

fn fields(
    connection: &mut Connection,
    lookup: &config::Lookup,
    field: &str,
    keys: &[String],
) -> RedisResult<(Vec<Told>, u64)> {
    let lengths = lengths(connection, lookup, keys)?;
    let mut pipe = ::redis::pipe();
    for (key, length) in keys.iter().zip(&lengths) {
        // What is too long is asked for again, which costs nothing and keeps the answers in their places.
        let command = if *length > VALUE_BYTES_MAX { "HSTRLEN" } else { "HGET" };
        pipe.cmd(command).arg(key).arg(field);
    }
    // One key of another type must not hide the others' values.
    pipe.cmd("DBSIZE");
    let mut answers = ask(connection, &pipe)?;
    let size = answers.pop().map(|size| u64::from_redis_value(size?).map_err(RedisError::from));
    let told = keys.iter().zip(lengths).zip(answers).map(|((key, length), answer)| match answer {
        _ if length > VALUE_BYTES_MAX => Ok(Told::TooLong(length)),
        Ok(value) => Ok(text(lookup, key, Option::from_redis_value(value).map_err(RedisError::from)?)),
        Err(error) if error.code() == Some("WRONGTYPE") => Ok(Told::Unusable(format!(
            "{key:?} is no hash, and lookup.{} reads field {field:?} of hashes: write key = {:?} instead of hash and field if it \
             is a string",
            lookup.name,
            lookup.key_of("{}")
        ))),
        Err(error) => Err(error),
    });
    Ok((told.collect::<RedisResult<_>>()?, size.unwrap_or(Ok(0))?))
}

/// A value that is no text cannot be a user's id.
fn text(lookup: &config::Lookup, key: &str, value: Option<Vec<u8>>) -> Told {
    match value.map(String::from_utf8) {
        Some(Ok(text)) => Told::Value(text),
        Some(Err(_)) => Told::Unusable(format!(
            "the value of {key:?} is not UTF-8, so it is no value for lookup.{}: store text there",
            lookup.name
        )),
        None => Told::Missing,
    }
}

/// What a connection is made of, as the configuration and its files are now.
///
/// # Errors
/// Where the URL, or a certificate, is no use.
pub fn client(redis: &config::Redis) -> Result<Client> {
    let open = || {
        let mut info = redis.url.as_str().into_connection_info()?;
        let mut login = info.redis_settings().clone();
        if let Some(username) = &redis.username {
            login = login.set_username(username);
        }
        if let Some(password) = &redis.password {
            login = login.set_password(password.now());
        }
        info = info.set_redis_settings(login);
        let Some(ca) = &redis.ca else { return Client::open(info) };
        let read = |path: &String| std::fs::read(path).map_err(::redis::RedisError::from);
        let client_tls = match (&redis.cert, &redis.key) {
            (Some(cert), Some(key)) => {
                Some(ClientTlsConfig { client_cert: read(cert)?, client_key: read(key)? })
            }
            _ => None,
        };
        Client::build_with_tls(info, TlsCertificates { client_tls, root_cert: Some(read(ca)?) })
    };
    // The URL may hold a password, and the error could quote it.
    open().map_err(|error| {
        anyhow::anyhow!("cannot use the Redis URL or its certificates: {}", error.category())
    })
}

/// Opens a connection, each reply of which may take [`TIMEOUT`]. Passwords and certificates are read anew, since they may have been
/// exchanged. A TLS handshake is tried by ourselves first: the library's waits for ever for a server that does not speak TLS, and
/// trusts the system's authorities too.
pub fn connect(redis: &config::Redis) -> Result<Connection> {
    let address = address(redis)?;
    reach(redis).map_err(|error| {
        anyhow::anyhow!(
            "cannot connect to Redis at {address}: {error:#}; is redis.url right, and does Redis run there?"
        )
    })
}

/// The server's address, without anything secret.
///
/// # Errors
/// Where the URL is no use.
pub fn address(redis: &config::Redis) -> Result<String> {
    Ok(client(redis)?.get_connection_info().addr().to_string())
}

/// The same as [`connect`], where whoever asks says which server it is.
pub(super) fn reach(redis: &config::Redis) -> Result<Connection> {
    let client = client(redis)?;
    if let ConnectionAddr::TcpTls { host, port, .. } = client.get_connection_info().addr() {
        let pair = redis.cert.as_deref().zip(redis.key.as_deref());
        tls::probe(host, *port, tls::Files { ca: redis.ca.as_deref(), client: pair }, TIMEOUT)?;
    }
    // The library's error and its cause have the same words.
    let connection =
        client.get_connection_with_timeout(TIMEOUT).map_err(|error| anyhow::anyhow!("{error}"))?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_its_text() {
        assert_eq!(escaped("user:"), "user:");
        assert_eq!(escaped("a*[b]?\\"), "a\\*\\[b\\]\\?\\\\");
    }
}
