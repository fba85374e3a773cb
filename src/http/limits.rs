//! Who may stay, and for how long.

use std::time::Duration;

/// What bounds the connections of a process, and how long each stage of one may last. All deadlines are absolute: a byte now
/// and then does not move them.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Of one loop; more wait in the kernel's queue.
    pub connections: usize,
    /// Of those, for one address; behind a proxy, all come from one.
    pub per_address: Option<usize>,
    /// TLS handshakes in work on one loop: each costs the better part of a millisecond of CPU.
    pub handshakes: usize,
    pub handshake: Duration,
    /// Between two requests. Announced in each answer, so that clients that read it never send into an end.
    pub idle: Duration,
    pub head: Duration,
    pub body: Duration,
    /// Without a byte taken by a client that is answered.
    pub stall: Duration,
    /// After which an answer announces the end, so that long connections find new processes; a tenth more or less.
    pub age: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: 10_000,
            per_address: None,
            handshakes: 32,
            handshake: Duration::from_secs(5),
            // Above the 60 s of common balancers, which otherwise send into a closing socket.
            idle: Duration::from_secs(75),
            head: Duration::from_secs(5),
            body: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            age: Duration::from_secs(600),
        }
    }
}
