//! Which servers a test gets, and in what company. Most tests only use servers: a few of them at a time share those that
//! `make test` starts. A test that strikes servers has a second set to itself, which comes up when the first such test asks
//! for it; those tests go one after another, beside the others. A test of what only several brokers have gets a third set, with
//! three, which ends with it. It never starts an engine and knows nothing of tables.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many tests share servers at a time. Most of a test is waiting, so more than the cores are worth it: on two cores that
/// other builds kept busy the whole set took 450 s with two, 340 s with three, 280 s and 340 s with four. It needs 200
/// seconds of CPU, servers included; beyond four, tests that measure time would wait for a core.
const COMPANY: usize = 4;

/// The stack's commands after which the servers are what they were before. Who shares them may give no other.
const HARMLESS: [&str; 2] = ["kafka", "kafka-topics"];

/// The places beside each other, `true` while a test has one. The number of a place, from 1, is also that of its database in
/// Redis, where number 0 is for those who do not ask, and of its pair of ports in `KAFKA_MEMBERS`, which has four.
static PLACES: Mutex<[bool; COMPANY]> = Mutex::new([false; COMPANY]);
static PLACE_IS_FREE: Condvar = Condvar::new();

/// The addresses of the second set while it stands. A test that fails poisons the lock: who knows what it left behind.
static STRUCK: Mutex<Option<Addresses>> = Mutex::new(None);

/// Whose turn it is with three brokers: one test at a time.
static REPLICATED: Mutex<()> = Mutex::new(());

type Addresses = BTreeMap<String, String>;

/// Servers for one test. Dropping it lets the next one in.
pub(crate) struct Servers {
    addresses: Addresses,
    turn: Turn,
}

enum Turn {
    Beside(usize),
    Alone { _lock: MutexGuard<'static, Option<Addresses>> },
    Replicated { _lock: MutexGuard<'static, ()> },
}

impl Servers {
    /// Those that others use meanwhile.
    pub(crate) fn shared() -> Servers {
        Servers { turn: Turn::Beside(take_place()), addresses: std::env::vars().collect() }
    }

    /// Those that only this test uses, and may kill, restart and reconfigure.
    pub(crate) fn alone() -> Servers {
        let mut lock = STRUCK.lock().unwrap_or_else(|poisoned| {
            let mut lock = poisoned.into_inner();
            *lock = None;
            STRUCK.clear_poison();
            lock
        });
        let addresses = lock.get_or_insert_with(|| start_another_set("alone", None)).clone();
        Servers { addresses, turn: Turn::Alone { _lock: lock } }
    }

    /// Three brokers that have everything three times, and the other servers beside them. This test may strike them all.
    pub(crate) fn replicated() -> Servers {
        let lock = REPLICATED.lock().unwrap_or_else(PoisonError::into_inner);
        Servers {
            addresses: start_another_set("replicated", Some("3")),
            turn: Turn::Replicated { _lock: lock },
        }
    }

    /// One of the addresses that the stack gives.
    pub(crate) fn get(&self, name: &str) -> String {
        let address = self.addresses.get(name);
        address
            .unwrap_or_else(|| panic!("{name} is not set: run through `make test`, which starts the servers"))
            .clone()
    }

    /// All of them, for a process.
    pub(crate) fn environment(&self) -> &BTreeMap<String, String> {
        &self.addresses
    }

    /// Which of Redis's databases is this test's.
    pub(crate) fn redis_number(&self) -> usize {
        self.place()
    }

    /// The ports of this test's listener for clients of Kafka that it cuts off: where the client is sent, and where Kafka is.
    pub(crate) fn kafka_member(&self) -> (u16, u16) {
        let pairs = self.get("KAFKA_MEMBERS");
        let pair = pairs.split(' ').nth(self.place() - 1);
        let (advertised, real) = pair.and_then(|p| p.split_once(':')).expect("a pair for each place");
        let port = |text: &str| text.parse().expect("a port");
        (port(advertised), port(real))
    }

    /// From 1.
    fn place(&self) -> usize {
        match self.turn {
            Turn::Beside(place) => place,
            Turn::Alone { .. } | Turn::Replicated { .. } => 1,
        }
    }

    /// Runs one of the stack's own commands, for example `restart postgres`; what it printed.
    pub(crate) fn stack(&self, arguments: &[&str]) -> String {
        let is_alone = !matches!(self.turn, Turn::Beside(_));
        assert!(
            is_alone || HARMLESS.contains(&arguments[0]),
            "{arguments:?} would strike others: use World::alone"
        );
        run(&self.addresses, arguments)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        match self.turn {
            Turn::Beside(place) => {
                PLACES.lock().unwrap_or_else(PoisonError::into_inner)[place - 1] = false;
                PLACE_IS_FREE.notify_one();
            }
            Turn::Alone { .. } => {}
            // Where the test failed, `stack/with` ends it and keeps the logs.
            Turn::Replicated { .. } if std::thread::panicking() => {}
            Turn::Replicated { .. } => drop(run(&self.addresses, &["down", "--wipe"])),
        }
    }
}

fn take_place() -> usize {
    let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(free) = places.iter().position(|taken| !taken) {
            places[free] = true;
            return free + 1;
        }
        places = PLACE_IS_FREE.wait(places).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Starts it from nothing, in a directory within the first set's, so that `stack/down` ends both.
fn start_another_set(name: &str, brokers: Option<&str>) -> Addresses {
    let mut addresses: Addresses = std::env::vars().collect();
    let first = addresses.get("STACK_DIR").expect("STACK_DIR is not set: run through `make test`");
    let directory = format!("{first}/{name}");
    addresses.insert("STACK_DIR".to_owned(), directory.clone());
    addresses.extend(brokers.map(|count| ("BROKERS".to_owned(), count.to_owned())));
    run(&addresses, &["down", "--wipe"]);
    run(&addresses, &["up"]);
    let output = Command::new("bash")
        .args(["-c", ". \"$1\" && env -0", "bash", &format!("{directory}/env")])
        .output()
        .expect("bash starts");
    assert!(output.status.success(), "{directory}/env cannot be read");
    let text = String::from_utf8(output.stdout).expect("an environment in UTF-8");
    let pairs = text.split_terminator('\0').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn run(addresses: &Addresses, arguments: &[&str]) -> String {
    let bin = addresses.get("STACK_BIN").expect("STACK_BIN is not set: run through `make test`");
    let command = PathBuf::from(bin).join(arguments[0]);
    let output = Command::new(&command)
        .args(&arguments[1..])
        .envs(addresses)
        .stderr(Stdio::inherit())
        .output()
        .expect("the stack's command starts");
    assert!(output.status.success(), "{} {:?} failed", command.display(), &arguments[1..]);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
