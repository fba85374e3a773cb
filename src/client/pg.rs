//! PostgreSQL connections: the URL, TLS, session settings, and SQLSTATE sorted into what the caller does with it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::socket::{setsockopt, sockopt};
use openssl::ssl::{SslConnector, SslVerifyMode};
use postgres::NoTls;
use postgres::config::Host;
use postgres::error::{Severity, SqlState};
use postgres_openssl::MakeTlsConnector;

use crate::base::failure::{Class, Failure};
use crate::base::spelling::did_you_mean;
use crate::client::{plain, tls};
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
    pub(super) config: postgres::Config,
    pub(super) way: Way,
    /// What it was made of, where that is a configuration: its password and its certificates may be others at the next login.
    settings: Option<config::Postgres>,
}

/// What the connection goes over.
#[derive(Clone)]
pub(super) enum Way {
    Tls(Tls),
    /// Whose files' rights say who may listen.
    UnixSocket,
    /// Anybody may listen there while the server is down: see [`plain`].
    Watched(plain::Plain),
}

/// What asks the server for its certificate.
#[derive(Clone)]
pub(super) struct Tls {
    make: MakeTlsConnector,
    /// The same, for sessions that [`super::login`] opens.
    pub(super) connector: SslConnector,
    pub(super) checks_name: bool,
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
        let mut server = Server::parse(&postgres.url.now())?;
        if let Some(password) = &postgres.password {
            server.config.password(password.now());
        }
        server.settings = Some(postgres.clone());
        Ok(server)
    }

    /// The same server as the files of its configuration have it now: whoever exchanges a password or a certificate restarts nobody.
    /// Where they are of no use for a moment, it is as it was.
    pub(super) fn now(&self) -> Server {
        let read_again = self.settings.as_ref().and_then(|settings| Server::of(settings).ok());
        let Some(mut server) = read_again else { return self.clone() };
        server.config.target_session_attrs(self.config.get_target_session_attrs());
        if matches!(self.way, Way::Watched(_)) {
            // It remembers what was asked of it.
            server.way = self.way.clone();
        }
        server
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
        refuse_misplaced_password(&plain_url)?;
        refuse_unknown(&plain_url)?;
        // The parser's own message may quote the URL, and with it the password.
        let mut config: postgres::Config = plain_url.parse().map_err(|_| {
            anyhow::anyhow!("cannot read the PostgreSQL URL: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=...")
        })?;
        let local = is_local(&config);
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
        let is_unix = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        let way = match tls {
            Some(tls) => Way::Tls(tls),
            None if is_unix && config.get_hostaddrs().is_empty() => Way::UnixSocket,
            None => {
                // Straight into what stands in the place of TLS; the library has a setting for it in the URL only.
                let separator = if plain_url.contains('?') { '&' } else { '?' };
                config = format!("{plain_url}{separator}sslnegotiation=direct")
                    .parse()
                    .map_err(|_| anyhow::anyhow!("cannot read the PostgreSQL URL with a setting of ours"))?;
                Way::Watched(plain::Plain::default())
            }
        };
        config.ssl_mode(match way {
            Way::UnixSocket => postgres::config::SslMode::Disable,
            Way::Tls(_) | Way::Watched(_) => postgres::config::SslMode::Require,
        });
        config
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(TCP_USER_TIMEOUT)
            .keepalives_idle(KEEPALIVE_IDLE)
            .target_session_attrs(postgres::config::TargetSessionAttrs::ReadWrite)
            .notice_callback(|_| pass_over_notice());
        Ok(Server { config, way, settings: None })
    }

    /// The same where the server may be a standby.
    ///
    /// # Errors
    /// As [`Server::connect`].
    pub fn connect_to_any(&self, application_name: &str) -> Result<Client> {
        let mut server = self.clone();
        server.config.target_session_attrs(postgres::config::TargetSessionAttrs::Any);
        server.connect(application_name)
    }

    /// Opens one session. `application_name` shows in `pg_stat_activity` and says who may be ended at a take-over.
    pub fn connect(&self, application_name: &str) -> Result<Client> {
        let Server { mut config, way, .. } = self.now();
        config.application_name(application_name);
        let client = match &way {
            Way::Tls(tls) => config.connect(tls.make.clone()),
            Way::UnixSocket => config.connect(NoTls),
            Way::Watched(plain) => config.connect(plain.clone()),
        };
        client.map(Client::new).map_err(|error| {
            let words = describe(&error);
            let error = anyhow::Error::new(error);
            let error = match tls::explain(&words) {
                Some(sentence) => error.context(sentence),
                None if words.contains("password missing") => error.context(self.no_password()),
                None if words.contains(plain::ASKED_FOR_PASSWORD) => error.context(
                    "what listens there wants the password as it is, and is not given it without TLS: is it PostgreSQL? If so, let it take \
                     scram-sha-256 (pg_hba.conf), or use sslmode=verify-full or a Unix socket",
                ),
                None => error,
            };
            let error = error.context(format!("cannot connect to PostgreSQL at {}", self.address()));
            if is_refused(&error) && self.settings.as_ref().is_some_and(is_handed_over) {
                // In words only: then it is nothing that waiting mends.
                return anyhow::anyhow!("{error:#}; systemd hands over the present credential at the next start");
            }
            error
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

    /// What whoever stands between, or listens in this server's place while it is down, gets of a connection without TLS, once there was
    /// one. `None` where only users of this machine could, and would get no password: docs/security.md says so much.
    pub fn impostor_warning(&self) -> Option<String> {
        let Way::Watched(plain) = &self.way else { return None };
        let address = self.address();
        if plain.asked_for_md5() {
            return Some(format!(
                "the server at {address} takes md5: over TCP without TLS, whoever listens there while it is down gets something to guess the \
                 password from; let it take scram-sha-256 (password_encryption, and the password set again), or use a Unix socket or \
                 sslmode=verify-full"
            ));
        }
        (!is_local(&self.config)).then(|| {
            format!(
                "the connection to {address} is not encrypted, and nothing proves that it is PostgreSQL that answers: who stands between \
                 reads the rows, and may take or change them; use sslmode=verify-full"
            )
        })
    }

    /// How the connection is protected, for `rowmill check`.
    pub fn protection(&self) -> &'static str {
        if matches!(self.way, Way::Tls(_)) { "TLS" } else { "plaintext" }
    }
}

/// True where the password is one that only another start of the process exchanges.
fn is_handed_over(postgres: &config::Postgres) -> bool {
    postgres.password.as_ref().unwrap_or(&postgres.url).is_handed_over
}

/// `hostaddr` is where the connection goes, whatever the name says.
fn is_local(config: &postgres::Config) -> bool {
    config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback)
        && config.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => is_loopback(name),
        })
}

/// Triggers may raise a notice for each row, with the row in it: that is no matter of this log, which the library would fill with it.
fn pass_over_notice() {
    static SAID: AtomicBool = AtomicBool::new(false);
    if !SAID.swap(true, Relaxed) {
        log::info!(
            "PostgreSQL sends notices, which are not logged, now or later: a trigger's may quote rows; the server's own log has them \
             with log_min_messages = notice"
        );
    }
}

/// An @ or a slash that is not written as %40 or %2F cuts a password in two, and what comes behind would be taken for the server's
/// name: logged, and asked of DNS. Not a word of it is quoted here.
fn refuse_misplaced_password(url: &str) -> Result<()> {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let all = rest.matches('@').count();
    if all > 1 || (all == 1 && !authority.contains('@')) {
        bail!(
            "the PostgreSQL URL has an @ beside the one before the server's name, or before that a / or ?: write those of a password as \
             %40, %2F and %3F, or give the password in [postgres]"
        );
    }
    Ok(())
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

fn connector(mode: SslMode, parameters: &TlsParameters) -> Result<Tls> {
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
    let (connector, checks_name) = (builder.build(), mode == SslMode::VerifyFull);
    let mut make = MakeTlsConnector::new(connector.clone());
    if !checks_name {
        make.set_callback(|ssl, _| {
            ssl.set_verify_hostname(false);
            Ok(())
        });
    }
    Ok(Tls { make, connector, checks_name })
}

/// Keeps watch over the server's end of a socket that the client library does not know.
pub(super) fn watch_peer(socket: &std::net::TcpStream) -> nix::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &(KEEPALIVE_IDLE.as_secs() as u32))?;
    setsockopt(socket, sockopt::TcpUserTimeout, &(TCP_USER_TIMEOUT.as_millis() as u32))
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
        let cut_off = error.code() == Some(&SqlState::QUERY_CANCELED);
        Failure { cut_off, ..Failure::new(classify(&error), describe(&error)) }
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

/// True where the server has no room for one more session: for anybody, for this role, or in this database.
pub fn has_no_room(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<postgres::Error>().and_then(postgres::Error::code);
    code == Some(&SqlState::TOO_MANY_CONNECTIONS)
}

/// What an error with a context around it calls for; one that is no server's is a matter of the setup.
pub fn class_of(error: &anyhow::Error) -> Class {
    error.downcast_ref::<postgres::Error>().map_or(Class::Setup, classify)
}

/// True where the server does not let us in with these credentials, or has no such database.
pub fn is_refused(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<postgres::Error>().and_then(postgres::Error::code);
    code.is_some_and(|code| is_about_login(code.code()))
}

fn is_about_login(code: &str) -> bool {
    matches!(&code[..2], "28" | "3D")
}

/// Sorts an error into what follows. ARCHITECTURE.md has the reasons.
pub fn classify(error: &postgres::Error) -> Class {
    match error.as_db_error() {
        Some(db) => classify_sqlstate(db.code(), db.parsed_severity()),
        None => Class::Lost,
    }
}

fn classify_sqlstate(code: &SqlState, severity: Option<Severity>) -> Class {
    if matches!(severity, Some(Severity::Fatal | Severity::Panic)) && !is_about_login(code.code()) {
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
        // Who we are, and where the database is. It worked at the start, which looks for [`is_refused`]: a password is being
        // exchanged, or a database restored.
        login if is_about_login(login) => Class::World,
        other => match &other[..2] {
            "08" | "40" | "53" | "57" | "58" => Class::World,
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
        check("3D000", Class::World);
        // The backend was ended: nobody can say what became of its commit.
        assert_eq!(classify_sqlstate(&SqlState::from_code("57P01"), Some(Severity::Fatal)), Class::Lost);
        assert_eq!(classify_sqlstate(&SqlState::from_code("28P01"), Some(Severity::Fatal)), Class::World);
    }

    #[test]
    fn who_may_play_the_server_is_warned_of() {
        let warned = |url: &str| Server::parse(url).expect(url).impostor_warning().is_some();
        assert!(warned("postgresql://u@db.example/d?sslmode=disable"));
        assert!(warned("postgresql://u@localhost/d?hostaddr=10.0.0.1&sslmode=disable"));
        assert!(!warned("postgresql://u@127.0.0.1/d"), "it did not ask for md5");
        assert!(!warned("postgresql://u@db.example/d") && !warned("postgresql://u@/d?host=/run/postgresql"));
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
        for misplaced in
            ["u:p@ss-s3cret@db.example/d", "u:p/s3cret@db/d", "u:p?s3cret@db/d", "u:p@h/d?options=a@s3cret"]
        {
            let url = format!("postgresql://{misplaced}");
            check(&url, Err("write those of a password as %40"));
            assert!(!format!("{:#}", Server::parse(&url).err().expect("refused")).contains("s3cret"));
        }
        check("postgresql://u:p%40ss@127.0.0.1/d", Ok("plaintext"));
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
