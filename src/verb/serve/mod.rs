//! `serve`: answers over HTTP, each from one SQL statement and a few lines of configuration.
//!
//! One kind of thread, an event loop: it has its clients' connections, and sessions of its own with the database, on one `epoll`.
//! Nothing is handed from thread to thread between a request and its answer. Beside the loops, a thread for each server does what
//! takes its time: it opens sessions, carries cancel requests, and asks what statements look like ([`errand`]).
//!
//! Written down before it was built, because sessions, flights and waiting for one's own write share one pool and could hurt each
//! other: who owns a session is said in [`session`], who flies with whom in [`works`], and why a tag is asked for before its rows
//! in [`look`].
//!
//! Bounds: sessions (`connections`), questions that wait (`queue_max`, for `queue_wait`), those that wait for the ledger, bytes held
//! back before a status, bytes ahead of a slow reader, bytes of one row, rows of an answer: each with its reason where it stands.

pub mod statement;
pub mod parameter;
pub mod chart;
pub mod endpoint;
pub mod describe;
pub mod render;
pub mod look;
pub mod failure;
pub mod figures;
pub mod openapi;
pub mod docs;
pub mod house;
pub mod session;
pub mod errand;
pub mod works;
pub mod window;

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Result, bail};
use crossbeam_channel::Sender;

use self::describe::Description;
use self::endpoint::Endpoint;
use self::errand::{ERRANDS_MAX, Errand, Runner};
use self::figures::Figures;
use self::house::House;
use self::window::Window;
use self::works::{Way, Works};
use crate::base::queue;
use crate::base::retry::{BackOff, Episode};
use crate::base::thread::Kind;
use crate::client::pg::{Client, Server, is_refused};
use crate::config;
use crate::config::source::Source;
use crate::http::event_loop::{EventLoop, Shared, Waker, loops};
use crate::http::limits::Limits;
use crate::http::listen;
use crate::http::tls::Identity;
use crate::verb::service::{Process, Reload};
use crate::verb::web::closing;
use crate::verb::web::cors::Cors;
use crate::verb::web::reload::files;
use crate::verb::web::tokens::TokenFile;

const BEFORE: &str = "the database was not asked yet what the statements look like";
const ENDING: &str = "answering what was asked";

/// Beside the longest statement, for the last answers to reach their clients; and how long those are waited for at most.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
const LAST_MAX: Duration = Duration::from_secs(20);

/// A server that statements are sent to.
pub struct Place {
    /// Behind "no session with the".
    pub name: &'static str,
    pub server: Server,
    /// Statements there may write.
    pub is_primary: bool,
}

/// The servers of a configuration: where statements read, and where they write, if these are two.
///
/// # Errors
/// A URL that is none.
pub fn places(config: &config::Window, endpoints: &[Endpoint]) -> Result<Vec<Place>> {
    let writes = endpoints.iter().any(|endpoint| endpoint.write);
    let primary = Server::of(&config.postgres)?;
    let Some(replica) = &config.serve.replica else {
        return Ok(vec![Place { name: "database", server: primary, is_primary: writes }]);
    };
    let mut places = Vec::new();
    if endpoints.iter().any(|endpoint| !endpoint.write) {
        places.push(Place { name: "database that is read", server: Server::of(replica)?, is_primary: false });
    }
    if writes {
        places.push(Place { name: "database that is written", server: primary, is_primary: true });
    }
    Ok(places)
}

/// Whether the ledger can be read with these rights.
///
/// # Errors
/// Where the server cannot be asked.
pub fn has_ledger(client: &mut Client) -> Result<bool> {
    let sql = "SELECT to_regclass('rowmill.ledger') IS NOT NULL
                  AND has_schema_privilege('rowmill', 'USAGE')
                  AND has_table_privilege('rowmill.ledger', 'SELECT')
                  AND has_column_privilege('rowmill.dead_letter', 'settled_at', 'SELECT')";
    // Names of what is not there are errors in all but the first.
    let there = client.query_typed("SELECT to_regclass('rowmill.ledger') IS NOT NULL", &[])?;
    Ok(there[0].get::<_, bool>(0) && client.query_typed(sql, &[])?[0].get::<_, Option<bool>>(0) == Some(true))
}

/// Answers until a signal.
///
/// # Errors
/// What cannot be as it is configured, and what ended a thread.
pub fn run(config: &config::Window, source: Source) -> Result<()> {
    let process = Process::start(config.watchdog, &config.metrics, BEFORE)?;
    let serve = &config.serve;
    let endpoints = endpoint::endpoints(serve)?;
    let places = places(config, &endpoints)?;
    let tokens =
        serve.tokens.as_deref().map(|path| TokenFile::read(path, "serve.tokens")).transpose()?.map(Arc::new);
    let identity = serve.tls.as_ref().map(|(cert, key)| Identity::read(cert, key)).transpose()?;
    let files = files(tokens.as_ref(), identity.as_ref());
    let (described, has_ledger) = describe_all(&places, &endpoints)?;
    let listeners = listen::open(&serve.listen, "serve.listen")?;
    let addresses: Vec<String> =
        listeners.iter().filter_map(|l| l.local_addr().ok()).map(|address| address.to_string()).collect();
    let limits = Limits {
        connections: serve.connections_max.div_ceil(serve.threads),
        idle: serve.idle_timeout,
        ..Limits::default()
    };
    let loops = loops(serve.threads, listeners, identity.as_ref(), &limits)?;
    let shared: Vec<Arc<Shared>> = loops.iter().map(|l| l.shared.clone()).collect();
    let wakers: Vec<_> = loops.iter().map(EventLoop::waker).collect();
    let names: Vec<String> = endpoints.iter().map(|endpoint| endpoint.name.clone()).collect();
    let pools = places.iter().map(|place| (place.name, serve.connections)).collect();
    let figures = Arc::new(Figures::new(&names, pools, shared.clone()));
    let cors = Cors {
        origins: serve.cors_origins.clone(),
        methods: "GET, HEAD, POST, PUT, PATCH, DELETE",
        sent: "Authorization, Content-Type, Content-Encoding, If-None-Match, Rowmill-After",
        seen: "ETag, Retry-After, Content-Disposition",
    };
    let longest = endpoints.iter().map(|endpoint| endpoint.timeout).max().unwrap_or_default();
    let house = Arc::new(House::new(
        serve.clone(),
        endpoints,
        described,
        has_ledger,
        tokens,
        cors,
        figures.clone(),
        process.board(),
    ));
    start(places, loops, &house, &process)?;
    process.show(figures.clone())?;
    log::info!("answering on {} for {}", addresses.join(", "), names.join(", "));
    let read = |path: &Path| config::read_window(path).map(|config| config.log);
    process.run(ENDING, Reload { source, read, files })?;
    std::thread::sleep(serve.drain_delay);
    let last = (longest + LAST_ANSWERS).min(LAST_MAX);
    if !closing::end(&shared, &wakers, last, || figures.waiting.load(Relaxed) == 0) {
        log::warn!("{} requests were not answered in {} s", figures.waiting.load(Relaxed), last.as_secs());
    }
    log::info!("stopped");
    Ok(())
}

/// The loops, and who runs their errands.
fn start(places: Vec<Place>, loops: Vec<EventLoop>, house: &Arc<House>, process: &Process) -> Result<()> {
    let count = loops.len();
    // Whatever one loop can have asked for at once.
    let room = places.len() * (2 * house.config.connections + ERRANDS_MAX);
    let (senders, inboxes): (Vec<_>, Vec<_>) = (0..count).map(|_| queue::bounded(room)).unzip();
    let wakers: Vec<Arc<Waker>> = loops.iter().map(EventLoop::waker).collect();
    let mut errands: Vec<Sender<Errand>> = Vec::new();
    for (pool, place) in places.into_iter().enumerate() {
        let (sender, receiver) = queue::bounded(ERRANDS_MAX);
        errands.push(sender);
        let runner = Runner {
            pool,
            server: place.server,
            is_primary: place.is_primary,
            errands: receiver,
            loops: senders.iter().cloned().zip(wakers.iter().cloned()).collect(),
            house: house.clone(),
        };
        let name = Kind::Errand.of(pool);
        let pulse = process.threads.pulse(&name);
        process.threads.spawn(name, None, || Ok(()), move |()| runner.run(&pulse))?;
    }
    for ((number, event_loop), inbox) in loops.into_iter().enumerate().zip(inboxes) {
        let house = house.clone();
        let share = house.config.connections / count + usize::from(number < house.config.connections % count);
        let ways = errands.iter().map(|errands| Way { sessions: share, errands: errands.clone() }).collect();
        let run = move |()| {
            let sources = event_loop.sources()?;
            let works = Works::new(house.clone(), number, sources, inbox, ways);
            event_loop.run(|| Ok(Rc::new(Window::new(house, works))))
        };
        process.threads.spawn(Kind::Serve.of(number), None, || Ok(()), run)?;
    }
    Ok(())
}

type Descriptions = Vec<Result<Arc<Description>, String>>;

/// What each statement is. A server that is away is waited for; a statement that fits no tables is said, and its endpoint answers
/// with 503 until it does.
fn describe_all(places: &[Place], endpoints: &[Endpoint]) -> Result<(Descriptions, bool)> {
    let mut clients = places.iter().map(|place| wait_for(&place.server)).collect::<Result<Vec<_>>>()?;
    let last = clients.len() - 1;
    let has_ledger = has_ledger(&mut clients[0])?;
    let mut described = Vec::new();
    for endpoint in endpoints {
        let client = &mut clients[if endpoint.write { last } else { 0 }];
        match describe::describe(client, endpoint) {
            Ok(description) => {
                for why in &description.untagged {
                    log::warn!("endpoint {:?} gives no ETag: {why}", endpoint.name);
                }
                described.push(Ok(Arc::new(description)));
            }
            Err(error) => {
                log::error!("{error:#}; this endpoint is answered with 503 until it fits");
                described.push(Err(format!("{error:#}")));
            }
        }
    }
    if described.iter().all(Result::is_err) {
        bail!("no endpoint fits the database: `rowmill check` says why for each");
    }
    if !has_ledger && endpoints.iter().any(|endpoint| endpoint.etag == Some(config::Etag::Ledger)) {
        log::warn!(
            "etag = \"ledger\" gives no tags: the ledger cannot be read (sql/roles.sql has the GRANTs)"
        );
    }
    Ok((described, has_ledger))
}

fn wait_for(server: &Server) -> Result<Client> {
    let mut trouble = Episode::default();
    let mut back_off = BackOff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        match server.connect_to_any("rowmill serve") {
            Ok(client) => return Ok(client),
            Err(error) if is_refused(&error) => return Err(error),
            Err(error) => {
                if trouble.begins() {
                    log::warn!("{error:#}; waiting for it");
                }
                std::thread::sleep(back_off.pause());
            }
        }
    }
}
