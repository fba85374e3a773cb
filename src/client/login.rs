//! Sessions that a loop of ours drives: opened here, with calls that wait, and handed over as sockets that do not. Cancel requests
//! too: each is over when the server has closed its connection, and so has struck whom it was to strike.
//!
//! The client library opens sessions for everything else; it gives no socket away, and does not say when a cancel has arrived.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::BytesMut;
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::ssl::{ErrorCode, SslStream};
use postgres::config::{ChannelBinding as Binding, Host};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;

use super::pg::{Server, Way};
use super::wire::{self, Said};
use super::{plain, tls};

/// For each step of a login: the connection, the handshake, each answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server says during a login is short.
const MESSAGE_MAX: usize = 1 << 20;

/// The way to the server.
pub enum Line {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<SslStream<TcpStream>>),
}

/// A session that waits for its first question, on a line that does not block.
pub struct Session {
    pub line: Line,
    pub key: Key,
}

/// What cancels the statement of a session.
#[derive(Clone, Debug)]
pub struct Key {
    at: At,
    /// As the server gave it: its process, and a secret.
    secret: Vec<u8>,
}

/// One of the configured servers.
#[derive(Clone, Debug)]
struct At {
    /// For the certificate.
    name: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Line::Tcp(socket) => socket.read(buffer),
            Line::Unix(socket) => socket.read(buffer),
            Line::Tls(stream) => match stream.ssl_read(buffer) {
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
                other => other.map_err(as_io),
            },
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Line::Tcp(socket) => socket.write(bytes),
            Line::Unix(socket) => socket.write(bytes),
            Line::Tls(stream) => stream.ssl_write(bytes).map_err(as_io),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn as_io(error: openssl::ssl::Error) -> io::Error {
    match error.code() {
        ErrorCode::WANT_READ | ErrorCode::WANT_WRITE => ErrorKind::WouldBlock.into(),
        _ => error.into_io_error().unwrap_or_else(|error| io::Error::other(error.to_string())),
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Line::Tcp(socket) => socket.as_fd(),
            Line::Unix(socket) => socket.as_fd(),
            Line::Tls(stream) => stream.get_ref().as_fd(),
        }
    }
}

impl Line {
    fn never_wait(&self) -> io::Result<()> {
        match self {
            Line::Tcp(socket) => socket.set_nonblocking(true),
            Line::Unix(socket) => socket.set_nonblocking(true),
            Line::Tls(stream) => stream.get_ref().set_nonblocking(true),
        }
    }
}

/// Opens a session on the first of the configured servers that gives one. `settings` is SQL that is run first; with
/// `wants_primary`, a server that takes no writes is passed over.
///
/// # Errors
/// Why the last of them gave none.
pub fn open(server: &Server, application_name: &str, settings: &str, wants_primary: bool) -> Result<Session> {
    let server = server.now();
    let mut last = anyhow!("the URL names no server");
    for at in places(&server)? {
        match open_at(&server, &at, application_name, settings, wants_primary) {
            Ok(session) => return Ok(session),
            Err(error) => last = error,
        }
    }
    let words = format!("{last:#}");
    let last = match tls::explain(&words) {
        Some(sentence) => last.context(sentence),
        None => last,
    };
    Err(last.context(format!("cannot connect to PostgreSQL at {}", server.address())))
}

/// Asks the server to end the statement of a session, and waits until it has closed the connection: from then on the request
/// cannot strike any more.
///
/// # Errors
/// Where it is not known whether the request is over.
pub fn cancel(server: &Server, key: &Key) -> Result<()> {
    let mut line = reach(server, &key.at)?;
    let mut request = Vec::from((8 + key.secret.len() as u32).to_be_bytes());
    request.extend_from_slice(&80_877_102_u32.to_be_bytes());
    request.extend_from_slice(&key.secret);
    line.write_all(&request).context("cannot send a cancel request")?;
    let mut rest = [0; 64];
    loop {
        match line.read(&mut rest) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(error) => return Err(error).context("the server does not close a cancel request"),
        }
    }
}

fn places(server: &Server) -> Result<Vec<At>> {
    let config = &server.config;
    let (hosts, addresses, ports) = (config.get_hosts(), config.get_hostaddrs(), config.get_ports());
    let mut places = Vec::new();
    for number in 0..hosts.len().max(addresses.len()) {
        let port = ports.get(number).or(ports.first()).copied().unwrap_or(5432);
        let name = match hosts.get(number) {
            Some(Host::Unix(directory)) => {
                let place = Place::Unix(directory.join(format!(".s.PGSQL.{port}")));
                places.push(At { name: String::new(), place });
                continue;
            }
            Some(Host::Tcp(name)) => name.clone(),
            None => String::new(),
        };
        if let Some(address) = addresses.get(number) {
            let name = if name.is_empty() { address.to_string() } else { name };
            places.push(At { name, place: Place::Tcp(SocketAddr::new(*address, port)) });
            continue;
        }
        let found = (name.as_str(), port)
            .to_socket_addrs()
            .with_context(|| format!("cannot find the address of PostgreSQL's host {name:?}"))?;
        places.extend(found.map(|address| At { name: name.clone(), place: Place::Tcp(address) }));
    }
    Ok(places)
}

fn reach(server: &Server, at: &At) -> Result<Line> {
    let socket = match &at.place {
        Place::Unix(path) => {
            let socket = UnixStream::connect(path).with_context(|| format!("cannot open {path:?}"))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.set_write_timeout(Some(PATIENCE))?;
            return Ok(Line::Unix(socket));
        }
        Place::Tcp(address) => TcpStream::connect_timeout(address, PATIENCE)
            .with_context(|| format!("cannot open a connection to {address}"))?,
    };
    socket.set_nodelay(true)?;
    super::pg::watch_peer(&socket)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let Way::Tls(tls) = &server.way else { return Ok(Line::Tcp(socket)) };
    let mut socket = socket;
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request)?;
    let mut answer = [0];
    socket.read_exact(&mut answer).context("no answer to the question for TLS")?;
    ensure!(answer == *b"S", "the server does not speak TLS (ssl = off?)");
    let stream = tls
        .connector
        .configure()?
        .verify_hostname(tls.checks_name)
        .connect(&at.name, socket)
        .map_err(|error| anyhow!("{error}"))?;
    Ok(Line::Tls(Box::new(stream)))
}

fn open_at(
    server: &Server,
    at: &At,
    application_name: &str,
    settings: &str,
    wants_primary: bool,
) -> Result<Session> {
    let line = reach(server, at)?;
    let mut login = Login { line, read: Vec::new(), deadline: Instant::now() + 4 * PATIENCE };
    let secret = login.enter(server, application_name)?;
    if !settings.is_empty() {
        login.ask(settings).context("cannot make the settings of a session")?;
    }
    if wants_primary {
        let read_only = login.ask("SHOW transaction_read_only")?;
        ensure!(
            read_only.as_deref() != Some("on"),
            "the server takes no writes: it is a standby, or read-only"
        );
    }
    login.line.never_wait()?;
    Ok(Session { line: login.line, key: Key { at: at.clone(), secret } })
}

struct Login {
    line: Line,
    read: Vec<u8>,
    /// However slowly the server answers, byte by byte.
    deadline: Instant,
}

impl Login {
    /// From the first message to the server's readiness; the secret that cancels.
    fn enter(&mut self, server: &Server, application_name: &str) -> Result<Vec<u8>> {
        let config = &server.config;
        let user = config.get_user().context("name the role in the URL: postgresql://USER@HOST/DATABASE")?;
        let mut parameters = vec![
            ("client_encoding", "UTF8"),
            ("user", user),
            ("database", config.get_dbname().unwrap_or(user)),
            ("application_name", application_name),
        ];
        parameters.extend(config.get_options().map(|options| ("options", options)));
        let mut letter = BytesMut::new();
        frontend::startup_message(parameters, &mut letter)?;
        self.line.write_all(&letter)?;
        let mut secret = Vec::new();
        let mut scram = None;
        loop {
            let (tag, body) = self.message()?;
            match tag {
                b'R' => self.authenticate(server, user, &body, &mut scram)?,
                b'K' => secret = body,
                b'E' => bail!("{}", words_of(&body)),
                b'Z' => return Ok(secret),
                // What the server tells of itself.
                b'S' | b'N' | b'v' => {}
                other => {
                    bail!("what listens there is no PostgreSQL: it said {:?} to a login", char::from(other))
                }
            }
        }
    }

    fn authenticate(
        &mut self,
        server: &Server,
        user: &str,
        body: &[u8],
        scram: &mut Option<ScramSha256>,
    ) -> Result<()> {
        let (kind, rest) = body.split_first_chunk::<4>().context("a question without its kind")?;
        let password = || {
            server.config.get_password().with_context(|| {
                format!(
                    "the server wants a password for the role {user:?}: set password, or give it in the URL"
                )
            })
        };
        let mut letter = BytesMut::new();
        match u32::from_be_bytes(*kind) {
            0 => return Ok(()),
            3 if matches!(self.line, Line::Tcp(_)) => bail!("{}", plain::ASKED_FOR_PASSWORD),
            3 => frontend::password_message(password()?, &mut letter)?,
            5 => {
                let salt = rest.first_chunk::<4>().context("a question without its salt")?;
                let hash = md5_hash(user.as_bytes(), password()?, *salt);
                frontend::password_message(hash.as_bytes(), &mut letter)?;
            }
            10 => {
                let offered: Vec<&[u8]> = rest.split(|byte| *byte == 0).collect();
                let binding = self.binding().filter(|_| offered.contains(&SCRAM_SHA_256_PLUS.as_bytes()));
                ensure!(
                    binding.is_some() || server.config.get_channel_binding() != Binding::Require,
                    "channel_binding=require, and the server offers none"
                );
                let (mechanism, binding) = match (binding, &self.line) {
                    (Some(binding), _) => (SCRAM_SHA_256_PLUS, binding),
                    (None, Line::Tls(_)) => (SCRAM_SHA_256, ChannelBinding::unrequested()),
                    (None, _) => (SCRAM_SHA_256, ChannelBinding::unsupported()),
                };
                ensure!(
                    offered.contains(&mechanism.as_bytes()),
                    "the server offers no SCRAM-SHA-256 to log in with"
                );
                let new = scram.insert(ScramSha256::new(password()?, binding));
                frontend::sasl_initial_response(mechanism, new.message(), &mut letter)?;
            }
            11 => {
                let scram = scram.as_mut().context("an answer to nothing")?;
                scram.update(rest).context("the server's side of SCRAM is wrong")?;
                frontend::sasl_response(scram.message(), &mut letter)?;
            }
            12 => {
                let scram = scram.as_mut().context("an answer to nothing")?;
                // That it knows the password as well.
                return scram.finish(rest).context("the server does not prove that it knows the password");
            }
            other => bail!("the server wants a way to log in that is not known here ({other})"),
        }
        Ok(self.line.write_all(&letter)?)
    }

    /// What ties the login to the certificate that TLS showed (RFC 5929, tls-server-end-point).
    fn binding(&self) -> Option<ChannelBinding> {
        let Line::Tls(stream) = &self.line else { return None };
        let certificate = stream.ssl().peer_certificate()?;
        let signed = certificate.signature_algorithm().object().nid().signature_algorithms()?;
        let digest = match signed.digest {
            Nid::MD5 | Nid::SHA1 => MessageDigest::sha256(),
            other => MessageDigest::from_nid(other)?,
        };
        let hash = certificate.digest(digest).ok()?;
        Some(ChannelBinding::tls_server_end_point(hash.to_vec()))
    }

    /// SQL without values; the first column of the last row.
    fn ask(&mut self, sql: &str) -> Result<Option<String>> {
        let mut letter = BytesMut::new();
        frontend::query(sql, &mut letter)?;
        self.line.write_all(&letter)?;
        let (mut found, mut refusal) = (None, None);
        loop {
            let (tag, body) = self.message()?;
            match tag {
                b'D' => {
                    let mut message = vec![tag];
                    message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
                    message.extend_from_slice(&body);
                    if let Ok(Some((Said::Row(row), _))) = wire::next(&message, MESSAGE_MAX) {
                        let first = row.columns().next().flatten();
                        found = first.map(|text| String::from_utf8_lossy(text).into_owned());
                    }
                }
                b'E' => refusal = Some(words_of(&body)),
                b'Z' => return refusal.map_or(Ok(found), |words| Err(anyhow!(words))),
                _ => {}
            }
        }
    }

    fn message(&mut self) -> Result<(u8, Vec<u8>)> {
        loop {
            if let Some((tag, length)) = wire::head(&self.read) {
                ensure!(
                    (4..MESSAGE_MAX).contains(&length),
                    "what listens there is no PostgreSQL: a message of {length} bytes"
                );
                if self.read.len() > length {
                    let body = self.read[5..=length].to_vec();
                    self.read.drain(..=length);
                    return Ok((tag, body));
                }
            }
            ensure!(Instant::now() < self.deadline, "the server does not come to the end of a login");
            let mut buffer = [0; 4096];
            match self.line.read(&mut buffer) {
                Ok(0) => bail!("the server closed the connection during the login"),
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {
                    bail!("the server did not answer in {} s", PATIENCE.as_secs())
                }
                Err(error) => return Err(error).context("the connection broke during the login"),
            }
        }
    }
}

fn words_of(body: &[u8]) -> String {
    let mut message = vec![b'E'];
    message.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    message.extend_from_slice(body);
    match wire::next(&message, MESSAGE_MAX) {
        Ok(Some((Said::Error(complaint), _))) => {
            format!("{} (SQLSTATE {})", complaint.message, complaint.code)
        }
        _ => "the server refused, and did not say why".to_owned(),
    }
}
