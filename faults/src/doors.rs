//! Two front doors, killed and replaced, and clients who send each record again until it is acknowledged: then it has to be in
//! the table, once.
//!
//! The engines write that table like the others (`mode = "first"`), so a record's way is the whole of it: client, door, Kafka,
//! engine, PostgreSQL, with all of them struck.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rowmill_faults::random::Random;

use crate::campaign::Campaign;
use crate::world::{DOOR, PREFIX};

const DOORS: usize = 2;
const CLIENTS: usize = 8;

/// Between an acknowledgement and a client's next record: together about 150 a second.
const PAUSE: Duration = Duration::from_millis(50);

/// After a refusal, or where no door answers.
const AGAIN: Duration = Duration::from_millis(100);

const ABORTED: i32 = nix::sys::signal::Signal::SIGABRT as i32;

/// Longer than a door waits for Kafka.
const ANSWER: Duration = Duration::from_secs(30);

/// What the clients were told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivered {
    /// Records, numbered from 0, each acknowledged.
    pub(crate) records: u64,
    /// How often they were sent for that.
    pub(crate) sent: u64,
    /// Answers that said that nothing is stored, or that nobody knows.
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// Connections that ended without an answer.
    pub(crate) broken: u64,
    /// Doors that were killed.
    pub(crate) kills: u64,
}

#[derive(Default)]
struct Counts {
    next: AtomicU64,
    sent: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
    broken: AtomicU64,
    kills: AtomicU64,
    stop_sending: AtomicBool,
    close: AtomicBool,
}

pub(crate) struct Doors {
    counts: Arc<Counts>,
    clients: Vec<JoinHandle<()>>,
    tending: JoinHandle<Result<()>>,
}

impl Doors {
    pub(crate) fn open(campaign: &Arc<Campaign>, seed: u64) -> Result<Doors> {
        let counts = Arc::new(Counts::default());
        let ports: Vec<u16> = (0..DOORS).map(|_| free_port()).collect::<Result<_>>()?;
        let addresses: Vec<SocketAddr> = ports.iter().map(|port| ([127, 0, 0, 1], *port).into()).collect();
        let tending = {
            let (campaign, counts) = (campaign.clone(), counts.clone());
            spawn(move || tend(&campaign, &counts, &ports, seed))
        };
        let client = |number: usize| {
            let (counts, addresses) = (counts.clone(), addresses.clone());
            spawn(move || send(&counts, &addresses, number))
        };
        Ok(Doors { clients: (0..CLIENTS).map(client).collect(), tending, counts })
    }

    /// Ends the clients, once everything that they sent is acknowledged, and then the doors.
    pub(crate) fn close(self) -> Result<Delivered> {
        let counts = &self.counts;
        counts.stop_sending.store(true, SeqCst);
        let joined: Vec<_> = self.clients.into_iter().map(JoinHandle::join).collect();
        counts.close.store(true, SeqCst);
        self.tending.join().map_err(|_| anyhow::anyhow!("the thread that tends the doors panicked"))??;
        anyhow::ensure!(joined.iter().all(std::result::Result::is_ok), "a client of the doors panicked");
        let read = |count: &AtomicU64| count.load(SeqCst);
        Ok(Delivered {
            records: read(&counts.next),
            sent: read(&counts.sent),
            refused: read(&counts.refused),
            unknown: read(&counts.unknown),
            broken: read(&counts.broken),
            kills: read(&counts.kills),
        })
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).context("there is no free port")?.local_addr()?.port())
}

/// Starts them, kills them in calm times not at all, and else each after a few seconds.
fn tend(campaign: &Campaign, counts: &Counts, ports: &[u16], seed: u64) -> Result<()> {
    let mut random = Random::new(seed ^ 0xd00a);
    let mut doors: Vec<Option<(Child, Instant)>> = ports.iter().map(|_| None).collect();
    while !counts.close.load(SeqCst) {
        for (door, port) in doors.iter_mut().zip(ports) {
            let calm = campaign.calm.load(SeqCst);
            match door {
                None => *door = Some((start(campaign, *port)?, Instant::now() + random.ms(1500, 9000))),
                Some((child, due)) => {
                    let ended = child.try_wait()?;
                    if let Some(status) = ended {
                        match status.signal() {
                            // Its Kafka client could never have sent again; it says so, and a service manager starts it anew.
                            Some(ABORTED) => campaign.journal.note("door-aborted", "by itself"),
                            _ => campaign.journal.anomaly(format!("a door ended by itself with {status}")),
                        }
                    } else if calm {
                        *due = Instant::now() + random.ms(1500, 9000);
                        continue;
                    } else if Instant::now() < *due {
                        continue;
                    } else {
                        child.kill()?;
                        child.wait()?;
                        counts.kills.fetch_add(1, SeqCst);
                    }
                    *door = None;
                }
            }
        }
        sleep(Duration::from_millis(20));
    }
    for (mut child, _) in doors.into_iter().flatten() {
        child.kill()?;
        child.wait()?;
    }
    Ok(())
}

fn start(campaign: &Campaign, port: u16) -> Result<Child> {
    let world = &campaign.world;
    let config = world.dir.join(format!("door-{port}.toml"));
    std::fs::write(
        &config,
        format!(
            "[metrics]\nlisten = \"off\"\n[collect]\nlisten = \"127.0.0.1:{port}\"\nthreads = 1\ndeliver_timeout = \"3s\"\n\
             [[route]]\npath = \"/event\"\ntopic = \"{PREFIX}{DOOR}\"\nkey = \"n\"\nid = \"n\"\n"
        ),
    )?;
    let log =
        OpenOptions::new().create(true).append(true).open(world.dir.join(format!("door-{port}.log")))?;
    Command::new(&world.rowmill)
        .args(["collect", "--config"])
        .arg(&config)
        .env("KAFKA_BROKERS", &world.brokers)
        .env("RUST_BACKTRACE", "0")
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", world.rowmill.display()))
}

/// One client: a record, again and again until it is acknowledged, and then the next one.
fn send(counts: &Counts, addresses: &[SocketAddr], number: usize) {
    let mut turn = number;
    let mut connection: Option<TcpStream> = None;
    while !counts.stop_sending.load(SeqCst) {
        let record = counts.next.fetch_add(1, SeqCst);
        loop {
            turn += 1;
            let open =
                connection.take().or_else(|| TcpStream::connect(addresses[turn % addresses.len()]).ok());
            let Some(mut open) = open else {
                sleep(AGAIN);
                continue;
            };
            counts.sent.fetch_add(1, SeqCst);
            let told = match ask(&mut open, record) {
                Some((200, _)) => {
                    connection = Some(open);
                    break;
                }
                Some((_, body)) if body.contains("\"stored\":\"no\"") => &counts.refused,
                Some(_) => &counts.unknown,
                None => &counts.broken,
            };
            told.fetch_add(1, SeqCst);
            sleep(AGAIN);
        }
        sleep(PAUSE);
    }
}

/// Status and body of one answer; `None` where the connection ended before it.
fn ask(connection: &mut TcpStream, record: u64) -> Option<(u16, String)> {
    let body = format!("{{\"n\":{record}}}");
    connection.set_read_timeout(Some(ANSWER)).ok()?;
    let head = format!("POST /event HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    connection.write_all((head + &body).as_bytes()).ok()?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match connection.read(&mut piece) {
            Ok(0) | Err(_) => return None,
            Ok(count) => answer.extend_from_slice(&piece[..count]),
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())?;
        if body.len() >= length {
            return Some((head.get(9..12)?.parse().ok()?, body.to_owned()));
        }
    }
}
