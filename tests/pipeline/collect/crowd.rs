//! Clients of the door that remember what they were told, and the judgment of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use super::{read, request};
use crate::http_client::Client;
use crate::world::{World, wait_for};

/// Clients that send numbered records, each number once, and remember what they were told.
pub(super) struct Crowd {
    stop: Arc<AtomicBool>,
    pub(super) told: Arc<Mutex<Told>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) stored: BTreeSet<u64>,
    /// "stored": "no", or no connection at all.
    pub(super) not_stored: BTreeSet<u64>,
    pub(super) unknown: BTreeSet<u64>,
    pub(super) statuses: BTreeMap<u16, u64>,
    pub(super) lost_connections: u64,
}

impl Crowd {
    pub(super) fn start(address: SocketAddr, clients: usize, pause: Duration) -> Crowd {
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Told::default())));
        let number = Arc::new(AtomicU64::new(0));
        let threads = (0..clients)
            .map(|_| {
                let (stop, told, number) = (stop.clone(), told.clone(), number.clone());
                std::thread::spawn(move || {
                    let mut client = None;
                    while !stop.load(SeqCst) {
                        one(address, &mut client, number.fetch_add(1, SeqCst), &told);
                        std::thread::sleep(pause);
                    }
                })
            })
            .collect();
        Crowd { stop, told, threads }
    }

    /// How many have been acknowledged.
    pub(super) fn stored(&self) -> usize {
        self.told.lock().unwrap().stored.len()
    }

    /// How many have an answer, whatever it says.
    pub(super) fn answered(&self) -> u64 {
        self.told.lock().unwrap().statuses.values().sum()
    }

    /// Waits until so many more are acknowledged.
    pub(super) fn wait_stored(&self, more: usize) {
        let before = self.stored();
        wait_for("some to be stored", 120, || self.stored() >= before + more);
    }

    /// Waits until so many more are answered.
    pub(super) fn wait_answered(&self, more: u64) {
        let before = self.answered();
        wait_for("so many answers", 300, || self.answered() >= before + more);
    }

    pub(super) fn stop(self) -> Told {
        self.stop.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        Arc::try_unwrap(self.told).unwrap().into_inner().unwrap()
    }
}

fn one(address: SocketAddr, kept: &mut Option<Client>, number: u64, told: &Mutex<Told>) {
    let body = format!("{{\"n\":{number},\"word\":\"w\"}}");
    let mut client = match kept.take() {
        Some(client) => client,
        None => match std::net::TcpStream::connect(address) {
            Ok(socket) => {
                socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
                Client::on(socket)
            }
            Err(_) => {
                // Nobody was told anything, so nothing can be there.
                told.lock().unwrap().not_stored.insert(number);
                std::thread::sleep(Duration::from_millis(5));
                return;
            }
        },
    };
    client.send(request("/save", "", body.as_bytes()));
    let reply = client.reply();
    let mut told = told.lock().unwrap();
    let Some(reply) = reply else {
        told.lost_connections += 1;
        told.unknown.insert(number);
        return;
    };
    *told.statuses.entry(reply.status).or_default() += 1;
    let answer: Value = serde_json::from_slice(&reply.body).unwrap_or(Value::Null);
    let place = match (reply.status, answer["stored"].as_str()) {
        (200, _) => &mut told.stored,
        (_, Some("no")) => &mut told.not_stored,
        (_, Some("unknown")) => &mut told.unknown,
        other => panic!("an answer without a word on the record: {other:?} {answer}"),
    };
    place.insert(number);
    if !reply.head.contains("connection: close") {
        *kept = Some(client);
    }
}

/// What was told, held against what is there.
#[track_caller]
pub(super) fn judge(world: &World, topic: &str, told: &Told) {
    let mut there: BTreeMap<u64, u64> = BTreeMap::new();
    for record in read(world, topic) {
        let value: Value = serde_json::from_slice(&record.value).unwrap();
        *there.entry(value["n"].as_u64().unwrap()).or_default() += 1;
    }
    let missing: Vec<&u64> = told.stored.iter().filter(|n| !there.contains_key(n)).collect();
    assert!(missing.is_empty(), "answered with 200 and not there: {missing:?}");
    let lies: Vec<&u64> = told.not_stored.iter().filter(|n| there.contains_key(n)).collect();
    assert!(lies.is_empty(), "\"stored\":\"no\", and there: {lies:?}");
    // Each number was sent once.
    let doubled: Vec<&u64> = there.iter().filter(|(_, times)| **times > 1).map(|(n, _)| n).collect();
    assert!(doubled.is_empty(), "doubled: {doubled:?}");
}

/// How often something is done: more where the environment says so.
pub(super) fn number(variable: &str, default: u32) -> u32 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
