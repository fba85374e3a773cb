//! Redis: the URL, the login, TLS.

use std::time::Duration;

use ::redis::{
    Client, ClientTlsConfig, Connection, ConnectionAddr, IntoConnectionInfo as _, TlsCertificates,
};
use anyhow::{Context, Result};

use super::tls;
use crate::config;

/// For a connection and for each reply. A healthy Redis answers in a millisecond.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How many keys Redis has, for `rowmill check`.
pub fn ping(redis: &config::Redis) -> Result<u64> {
    let mut connection = connect(&client(redis)?, redis)?;
    ::redis::cmd("DBSIZE").query(&mut connection).context("Redis refuses DBSIZE")
}

/// A client, which connects later.
pub fn client(redis: &config::Redis) -> Result<Client> {
    let open = || {
        let mut info = redis.url.as_str().into_connection_info()?;
        let mut login = info.redis_settings().clone();
        if let Some(username) = &redis.username {
            login = login.set_username(username);
        }
        if let Some(password) = &redis.password {
            login = login.set_password(password);
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

/// Opens a connection, each reply of which may take [`TIMEOUT`]. A TLS handshake is tried by ourselves first: the library's waits for ever for a server that does not
/// speak TLS, and trusts the system's authorities too.
pub fn connect(client: &Client, redis: &config::Redis) -> Result<Connection> {
    const ABOUT: &str = "cannot connect to Redis";
    if let ConnectionAddr::TcpTls { host, port, .. } = client.get_connection_info().addr() {
        let client = redis.cert.as_deref().zip(redis.key.as_deref());
        tls::probe(host, *port, tls::Files { ca: redis.ca.as_deref(), client }, TIMEOUT).context(ABOUT)?;
    }
    let connection = client.get_connection_with_timeout(TIMEOUT).context(ABOUT)?;
    connection.set_read_timeout(Some(TIMEOUT))?;
    connection.set_write_timeout(Some(TIMEOUT))?;
    Ok(connection)
}
