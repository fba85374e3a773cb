//! PostgreSQL connections: the URL, TLS, session settings, and SQLSTATE sorted into what the caller does with it.

use std::time::Duration;

use anyhow::{Result, bail};
use openssl::ssl::SslVerifyMode;
use postgres::NoTls;
use postgres::config::Host;
use postgres::error::{Severity, SqlState};
use postgres_openssl::MakeTlsConnector;

use crate::base::failure::{Class, Failure};
use crate::base::spelling::did_you_mean;
use crate::client::tls;
use crate::config;
use crate::config::address::is_loopback;

pub use crate::client::path::{Client, FIXED_PATH, Parameters};
pub use postgres_protocol::escape::escape_literal;

/// How long a TCP connection may take to open; a server that then says nothing is the watchdog's matter.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A peer that is gone without a word is noticed after about this long.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(20);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);

/// A server and how to reach it; connects as often as needed.
#[derive(Clone)]
pub struct Server {
    config: postgres::Config,
    tls: Option<MakeTlsConnector>,
}

/// How far the server's certificate is checked; libpq's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SslMode {
    Disable,
    Require,
    VerifyCa,
    VerifyFull,
}

/// What libpq's TLS parameters of a URL ask for.
#[derive(Debug, Default, PartialEq, Eq)]
struct TlsParameters {
    mode: Option<String>,
    root_cert: Option<String>,
    cert: Option<String>,
    key: Option<String>,
}

impl Server {
    /// The configured server.
    pub fn of(postgres: &config::Postgres) -> Result<Server> {
        let mut server = Server::parse(&postgres.url)?;
        if let Some(password) = &postgres.password {
            server.config.password(password);
        }
        Ok(server)
    }

    /// True where the URL itself holds a password.
    pub fn has_password(&self) -> bool {
        self.config.get_password().is_some()
    }

    /// Reads a `postgresql://` URL with libpq's parameters `sslmode`, `sslrootcert`, `sslcert` and `sslkey`.
    ///
    /// Without `sslmode`, a server on this machine is spoken to in plaintext unless `sslrootcert` is there, and any other with
    /// `verify-full`. `prefer` and `allow` are refused: they fall back to plaintext when somebody in the middle says no to TLS.
    pub fn parse(url: &str) -> Result<Server> {
        let (plain_url, parameters) = split_tls_parameters(url);
        if !plain_url.starts_with("postgresql://") && !plain_url.starts_with("postgres://") {
            bail!("the PostgreSQL server is no URL: write postgresql://USER@HOST:PORT/DATABASE?sslmode=...");
        }
        refuse_unknown(&plain_url)?;
        // The parser's own message may quote the URL, and with it the password.
        let mut config: postgres::Config = plain_url.parse().map_err(|_| {
            anyhow::anyhow!("cannot read the PostgreSQL URL: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=...")
        })?;
        // `hostaddr` is where the connection goes, whatever the name says.
        let local = config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback)
            && config.get_hosts().iter().all(|host| match host {
                Host::Unix(_) => true,
                Host::Tcp(name) => is_loopback(name),
            });
        let mode = match parameters.mode.as_deref() {
            // Who names an authority wants it to be asked, here too.
            None if local && parameters.root_cert.is_none() => SslMode::Disable,
            None | Some("verify-full") => SslMode::VerifyFull,
            Some("verify-ca") => SslMode::VerifyCa,
            // As libpq: a certificate authority that is named is also asked.
            Some("require") if parameters.root_cert.is_some() => SslMode::VerifyCa,
            Some("require") => SslMode::Require,
            Some("disable") => SslMode::Disable,
            Some(weak @ ("prefer" | "allow")) => bail!(
                "sslmode={weak} is refused: it falls back to plaintext without a word; use verify-full, or disable where that \
                 is meant"
            ),
            Some(other) => bail!("unknown sslmode {other:?}: use verify-full, verify-ca, require or disable"),
        };
        let tls = (mode != SslMode::Disable).then(|| connector(mode, &parameters)).transpose()?;
        config.ssl_mode(if tls.is_some() {
            postgres::config::SslMode::Require
        } else {
            postgres::config::SslMode::Disable
        });
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .keepalives_idle(KEEPALIVE_IDLE)
            .target_session_attrs(postgres::config::TargetSessionAttrs::ReadWrite);
        Ok(Server { config, tls })
    }

    /// Opens one session. `application_name` shows in `pg_stat_activity` and says who may be ended at a take-over.
    pub fn connect(&self, application_name: &str) -> Result<Client> {
        let mut config = self.config.clone();
        config.application_name(application_name);
        let client = match &self.tls {
            Some(tls) => config.connect(tls.clone()),
            None => config.connect(NoTls),
        };
        client.map(Client::new).map_err(|error| {
            let words = describe(&error);
            let error = anyhow::Error::new(error);
            let error = match tls::explain(&words) {
                Some(sentence) => error.context(sentence),
                None if words.contains("password missing") => error.context(self.no_password()),
                None => error,
            };
            error.context(format!("cannot connect to PostgreSQL at {}", self.address()))
        })
    }

    /// The server asks for a password; who for, if nobody was named.
    fn no_password(&self) -> String {
        let who = match self.config.get_user() {
            Some(user) => format!("the role {user:?}"),
            None => "the role of this process's own user, since the URL names none (postgresql://USER@HOST/DATABASE)".to_owned(),
        };
        format!("the server wants a password for {who}: set password in [postgres], or in the URL")
    }

    /// Host, port and database, without secrets.
    pub fn address(&self) -> String {
        let hosts: Vec<String> = self
            .config
            .get_hosts()
            .iter()
            .map(|host| match host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(path) => path.display().to_string(),
            })
            .collect();
        let port = self.config.get_ports().first().copied().unwrap_or(5432);
        format!("{}:{port}/{}", hosts.join(","), self.config.get_dbname().unwrap_or_default())
    }

    /// How the connection is protected, for `rowmill check`.
    pub fn protection(&self) -> &'static str {
        if self.tls.is_some() { "TLS" } else { "plaintext" }
    }
}

/// What the client library takes in a URL, beside libpq's TLS parameters, which are taken out of it before.
const PARAMETERS: [&str; 17] = [
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "tcp_user_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "target_session_attrs",
    "channel_binding",
    "load_balance_hosts",
];

/// A misspelled `sslmode` must not be one that nobody meant.
fn refuse_unknown(url: &str) -> Result<()> {
    let names = url.split_once('?').into_iter().flat_map(|(_, query)| query.split('&'));
    for name in names.map(|pair| pair.split_once('=').map_or(pair, |(name, _)| name)) {
        if !PARAMETERS.contains(&name) {
            let known = PARAMETERS.into_iter().chain(["sslmode", "sslrootcert", "sslcert", "sslkey"]);
            bail!("the PostgreSQL URL has an unknown parameter {name:?}{}", did_you_mean(name, known));
        }
    }
    Ok(())
}

fn connector(mode: SslMode, parameters: &TlsParameters) -> Result<MakeTlsConnector> {
    let client = match (&parameters.cert, &parameters.key) {
        (Some(cert), Some(key)) => Some((cert.as_str(), key.as_str())),
        (None, None) => None,
        _ => bail!("sslcert and sslkey belong together; set both or none"),
    };
    let ca = parameters.root_cert.as_deref().filter(|path| *path != "system");
    let mut builder = tls::builder(tls::Files { ca, client })?;
    if mode == SslMode::Require {
        builder.set_verify(SslVerifyMode::NONE);
    }
    let mut connector = MakeTlsConnector::new(builder.build());
    if mode != SslMode::VerifyFull {
        connector.set_callback(|ssl, _| {
            ssl.set_verify_hostname(false);
            Ok(())
        });
    }
    Ok(connector)
}

/// Takes libpq's TLS parameters out of a URL: the client library knows only a part of them.
fn split_tls_parameters(url: &str) -> (String, TlsParameters) {
    let mut found = TlsParameters::default();
    let Some((base, query)) = url.split_once('?') else {
        return (url.to_owned(), found);
    };
    let mut rest = Vec::new();
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = Some(percent_decode(value));
        match name {
            "sslmode" => found.mode = value,
            "sslrootcert" => found.root_cert = value,
            "sslcert" => found.cert = value,
            "sslkey" => found.key = value,
            _ => rest.push(pair),
        }
    }
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    (url, found)
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = (byte == b'%').then(|| tail.get(..2)).flatten();
        match hex.and_then(|h| u8::from_str_radix(std::str::from_utf8(h).ok()?, 16).ok()) {
            Some(decoded) => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            None => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Failure {
        Failure::new(classify(&error), describe(&error))
    }
}

/// The COPY writer hides the client's own error in an I/O error.
pub fn copy_error(error: std::io::Error) -> Result<postgres::Error, Failure> {
    error.downcast().map_err(|error| Failure::new(Class::Lost, error.to_string()))
}

/// A COPY that failed while it was sent, where no row can be the cause.
pub fn copy_failed(error: std::io::Error) -> Failure {
    copy_error(error).map_or_else(|failure| failure, Failure::from)
}

/// What an error with a context around it calls for; one that is no server's is a matter of the setup.
pub fn class_of(error: &anyhow::Error) -> Class {
    error.downcast_ref::<postgres::Error>().map_or(Class::Setup, classify)
}

/// Sorts an error into what follows. ARCHITECTURE.md has the reasons.
pub fn classify(error: &postgres::Error) -> Class {
    match error.as_db_error() {
        Some(db) => classify_sqlstate(db.code(), db.parsed_severity()),
        None => Class::Lost,
    }
}

fn classify_sqlstate(code: &SqlState, severity: Option<Severity>) -> Class {
    if matches!(severity, Some(Severity::Fatal | Severity::Panic))
        && !matches!(&code.code()[..2], "28" | "3D")
    {
        return Class::Lost;
    }
    match code.code() {
        "RM001" => Class::Fenced,
        "RM002" => Class::TableChanged,
        // A failed-over server that is not yet, or no longer, the primary.
        "25006" => Class::World,
        // Somebody holds a lock.
        "55P03" | "55006" => Class::World,
        // Damaged data and indexes: never a matter of one row.
        "XX001" | "XX002" => Class::Setup,
        // The ledger itself would not outlive a crash.
        "RM003" => Class::Setup,
        other => match &other[..2] {
            "08" | "40" | "53" | "57" | "58" => Class::World,
            // Who we are, and where the database is.
            "28" | "3D" => Class::Setup,
            // Triggers, constraints and extensions raise whatever they like.
            _ => Class::Row,
        },
    }
}

/// The error's own words, with SQLSTATE, detail and place: what a person needs to see.
pub fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
            // The detail of a refused row quotes the row, which belongs into its dead letter and nowhere else.
            let detail = db.detail().filter(|_| !may_quote(db.code()));
            for part in [detail, db.hint()].into_iter().flatten() {
                text.push_str(": ");
                text.push_str(part);
            }
            text
        }
        None => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(error);
            while let Some(cause) = source {
                text.push_str(": ");
                text.push_str(&cause.to_string());
                source = cause.source();
            }
            text
        }
    }
}

/// True where the detail of an error may quote a row: data, constraints, and what triggers and extensions raise.
fn may_quote(code: &SqlState) -> bool {
    !matches!(&code.code()[..2], "0A" | "2B" | "2F" | "3D" | "3F" | "42" | "55")
        && classify_sqlstate(code, Some(Severity::Error)) == Class::Row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlstates_are_sorted_by_what_follows() {
        #[track_caller]
        fn check(code: &str, expected: Class) {
            assert_eq!(
                classify_sqlstate(&SqlState::from_code(code), Some(Severity::Error)),
                expected,
                "{code}"
            );
        }
        check("RM001", Class::Fenced);
        check("RM002", Class::TableChanged);
        check("RM003", Class::Setup);
        check("22P03", Class::Row);
        check("22001", Class::Row);
        check("23505", Class::Row);
        check("54001", Class::Row);
        check("P0001", Class::Row);
        check("40P01", Class::World);
        check("53100", Class::World);
        check("55P03", Class::World);
        check("57014", Class::World);
        check("25006", Class::World);
        check("55006", Class::World);
        check("55000", Class::Row);
        check("20000", Class::Row);
        check("21000", Class::Row);
        check("42501", Class::Row);
        check("42601", Class::Row);
        check("42P01", Class::Row);
        check("P0002", Class::Row);
        check("0A000", Class::Row);
        check("XX000", Class::Row);
        check("ZZZ99", Class::Row);
        check("XX001", Class::Setup);
        check("3D000", Class::Setup);
        // The backend was ended: nobody can say what became of its commit.
        assert_eq!(classify_sqlstate(&SqlState::from_code("57P01"), Some(Severity::Fatal)), Class::Lost);
        assert_eq!(classify_sqlstate(&SqlState::from_code("28P01"), Some(Severity::Fatal)), Class::Setup);
    }

    #[test]
    fn a_missing_password_is_said_with_whose_it_is() {
        let words = |url: &str| Server::parse(url).expect(url).no_password();
        assert!(
            words("postgresql://u@127.0.0.1/d").contains("for the role \"u\": set password in [postgres]")
        );
        assert!(
            words("postgresql://127.0.0.1/d")
                .contains("the URL names none (postgresql://USER@HOST/DATABASE)")
        );
    }

    #[test]
    fn tls_parameters_leave_the_url() {
        let (url, tls) = split_tls_parameters(
            "postgresql://u@h/d?sslmode=verify-ca&connect_timeout=3&sslrootcert=%2Fetc%2Fca.pem",
        );
        assert_eq!(url, "postgresql://u@h/d?connect_timeout=3");
        assert_eq!(tls.mode.as_deref(), Some("verify-ca"));
        assert_eq!(tls.root_cert.as_deref(), Some("/etc/ca.pem"));
    }

    #[test]
    fn a_remote_server_is_never_spoken_to_in_plaintext_by_default() {
        #[track_caller]
        fn check(url: &str, expected: Result<&str, &str>) {
            match (Server::parse(url), expected) {
                (Ok(server), Ok(protection)) => assert_eq!(server.protection(), protection, "{url}"),
                (Err(error), Err(words)) => assert!(format!("{error:#}").contains(words), "{error:#}"),
                (Ok(_), Err(words)) => panic!("{url} was accepted, expected: {words}"),
                (Err(error), Ok(_)) => panic!("{url}: {error:#}"),
            }
        }
        check("postgresql://u@db.example/d?sslmode=prefer", Err("refused"));
        check("postgresql://u@db.example/d?sslmode=yes", Err("unknown sslmode"));
        check(
            "postgresql://u@db.example/d?sslmod=disable",
            Err("unknown parameter \"sslmod\"; did you mean \"sslmode\"?"),
        );
        check("postgresql://u@db.example/d?connect_timeout=3&xyzzy=1", Err("unknown parameter \"xyzzy\""));
        check("postgresql://u:s3cret@[broken", Err("cannot read the PostgreSQL URL"));
        check("postgresql://u@db.example/d", Ok("TLS"));
        check("postgresql://u@db.example/d?sslmode=disable", Ok("plaintext"));
        check("host=db.example sslmode=prefer", Err("is no URL"));
        check("postgresql://u@127.0.0.1/d", Ok("plaintext"));
        check("postgresql://u@127.0.0.1/d?sslrootcert=system", Ok("TLS"));
        check("postgresql://u@localhost/d?hostaddr=10.0.0.1", Ok("TLS"));
        check("postgresql://u@/d?host=/run/postgresql", Ok("plaintext"));
        check(
            "postgresql://u@db.example/d?sslmode=verify-full&sslrootcert=/nowhere/ca",
            Err("cannot read the certificate authority"),
        );
        check("postgresql://u@db.example/d?sslrootcert=system", Ok("TLS"));
        check("postgresql://u@db.example/d?sslmode=require&sslcert=/x", Err("sslcert"));
        check("postgresql://u@127.0.0.1/d?sslmode=verify-full", Ok("TLS"));
    }
}
