//! `collect`: an HTTP front door to Kafka. Each of its threads is one event loop with a Kafka client of its own: it accepts, reads,
//! sends, hears of what is stored, and answers; nothing is handed from thread to thread.

pub mod template;
pub mod route;
pub mod verdict;
pub mod pace;
pub mod records;
pub mod topics;
pub mod tables;
pub mod standing;
pub mod rate;
pub mod figures;
pub mod openapi;
pub mod door;

use std::os::fd::AsFd;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result};
use crossbeam_channel::Receiver;
use nix::sys::eventfd::{EfdFlags, EventFd};

use self::door::{Door, House};
use self::figures::Figures;
use self::rate::Rate;
use self::route::Routes;
use self::standing::{Post, Standing, Standings};
use self::tables::Tables;
use self::topics::Topics;
use crate::base::queue;
use crate::base::thread::Kind;
use crate::config;
use crate::config::source::Source;
use crate::http::event_loop::{EventLoop, Shared, Waker, loops};
use crate::http::exchange::Ticket;
use crate::http::limits::Limits;
use crate::http::listen;
use crate::http::tls::Identity;
use crate::kafka;
use crate::kafka::native::send::Sender;
use crate::verb::service::{Process, Reload};
use crate::verb::web::closing;
use crate::verb::web::reload::files;
use crate::verb::web::tokens::TokenFile;

const BEFORE: &str = "the door is not open yet";
const ENDING: &str = "answering what is in hand";

/// Beside `deliver_timeout`, for the last answers to reach their clients.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Takes records until a signal.
///
/// # Errors
/// What cannot be as it is configured, and what ended a thread.
pub fn run(config: &config::Door, source: Source) -> Result<()> {
    let process = Process::start(config.watchdog, &config.metrics, BEFORE)?;
    let collect = &config.collect;
    let routes = Routes::new(&collect.routes)?;
    let tokens = collect
        .tokens
        .as_deref()
        .map(|path| TokenFile::read(path, "collect.tokens"))
        .transpose()?
        .map(Arc::new);
    let identity = collect.tls.as_ref().map(|(cert, key)| Identity::read(cert, key)).transpose()?;
    let files = files(tokens.as_ref(), identity.as_ref());
    let listeners = listen::open(&collect.listen, "collect.listen")?;
    let addresses: Vec<String> =
        listeners.iter().filter_map(|l| l.local_addr().ok()).map(|address| address.to_string()).collect();
    let limits = Limits {
        connections: collect.connections_max.div_ceil(collect.threads),
        idle: collect.idle_timeout,
        ..Limits::default()
    };
    let loops = loops(collect.threads, listeners, identity.as_ref(), &limits)?;
    let shared: Vec<Arc<Shared>> = loops.iter().map(|l| l.shared.clone()).collect();
    let wakers: Vec<_> = loops.iter().map(EventLoop::waker).collect();
    let names: Vec<String> = routes.routes.iter().map(|route| route.name.clone()).collect();
    let figures = Arc::new(Figures::new(&names, collect.inflight_max_bytes, shared.clone()));
    let tables =
        config.pipeline.as_deref().map(|pipeline| Tables::new(pipeline, &routes)).transpose()?.map(Arc::new);
    let rate = collect.rate.clone().map(|rate| Arc::new(Rate::new(rate, config.redis.clone())));
    let standings = Standings::new(config.postgres.as_ref(), &routes)?.map(Arc::new);
    let (posts, standing): (Vec<Post>, Vec<_>) = wakers
        .iter()
        .map(|waker| {
            let (sender, receiver) = queue::bounded(limits.connections);
            ((sender, waker.clone()), receiver)
        })
        .unzip();
    let house = Arc::new(House {
        openapi: openapi::document(&routes, collect).to_string(),
        topics: Arc::new(Topics::new(&routes.topics)),
        tables: tables.clone(),
        standings: standings.clone(),
        rate: rate.clone(),
        cors: door::cors(collect),
        config: collect.clone(),
        routes,
        tokens,
        figures: figures.clone(),
        board: process.board(),
        hostname: nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_else(|| "localhost".to_owned()),
    });
    watch_topics(config, &house, &process)?;
    if let Some(tables) = tables {
        let pulse = process.threads.pulse(&Kind::Tables.only());
        process.threads.spawn(Kind::Tables.only(), None, || Ok(()), move |()| tables.watch(&pulse))?;
    }
    if let Some(rate) = rate {
        let (name, figures) = (Kind::Rate.only(), figures.clone());
        let pulse = process.threads.pulse(&name);
        process.threads.spawn(name, None, || Ok(()), move |()| rate.count(&figures, &pulse))?;
    }
    if let Some(standings) = standings {
        know(standings, posts, &process)?;
    }
    for ((number, event_loop), standing) in loops.into_iter().enumerate().zip(standing) {
        start(config, number, event_loop, standing, house.clone(), &process)?;
    }
    process.show(figures.clone())?;
    log::info!("taking records on {} for {}", addresses.join(", "), names.join(", "));
    let read = |path: &Path| config::read_door(path).map(|config| config.log);
    process.run(ENDING, Reload { source, read, files })?;
    end(config, &figures, &shared, &wakers);
    log::info!("stopped");
    Ok(())
}

/// One loop, with its own client.
fn start(
    config: &config::Door,
    number: usize,
    event_loop: EventLoop,
    standing: Receiver<(Ticket, Standing)>,
    house: Arc<House>,
    process: &Process,
) -> Result<()> {
    let (kafka, collect) = (config.kafka.clone(), config.collect.clone());
    process.threads.spawn(
        Kind::Collect.of(number),
        None,
        || Ok(()),
        move |()| {
            let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
            let ring = EventFd::from_flags(flags).context("cannot create an eventfd")?;
            event_loop.watch(ring.as_fd())?;
            let topics = house.routes.topics.clone();
            let make = move |packing| {
                let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
                Sender::new(kafka::producer(&kafka, &collect, packing)?, &topics, ring.as_fd())
            };
            event_loop.run(|| Ok(Rc::new(Door::new(house, number, standing, make)?)))
        },
    )
}

/// What is there is asked for, and changes of it are heard of.
fn know(standings: Arc<Standings>, posts: Vec<Post>, process: &Process) -> Result<()> {
    let (asks, hears) = (Kind::Know.of("asks"), Kind::Know.of("hears"));
    let (pulse, other) = (process.threads.pulse(&asks), process.threads.pulse(&hears));
    let hearing = standings.clone();
    process.threads.spawn(asks, None, || Ok(()), move |()| standings.answer(&posts, &pulse))?;
    process.threads.spawn(hears, None, || Ok(()), move |()| hearing.hear(&other))
}

fn watch_topics(config: &config::Door, house: &House, process: &Process) -> Result<()> {
    let name = Kind::Watch.only();
    let pulse = process.threads.pulse(&name);
    let (topics, figures, kafka) = (house.topics.clone(), house.figures.clone(), config.kafka.clone());
    process.threads.spawn(name, None, || Ok(()), move |()| topics.watch(&kafka, &figures, &pulse))
}

fn end(config: &config::Door, figures: &Figures, shared: &[Arc<Shared>], wakers: &[Arc<Waker>]) {
    std::thread::sleep(config.collect.drain_delay);
    let last = config.collect.deliver_timeout + LAST_ANSWERS;
    let in_flight = || figures.bytes_in_flight.load(Relaxed);
    if !closing::end(shared, wakers, last, || in_flight() == 0) {
        log::warn!(
            "{} bytes were not answered in {} s; their clients were told nothing",
            in_flight(),
            last.as_secs()
        );
    }
}
