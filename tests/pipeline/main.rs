//! The whole engine on real servers, one file for each kind of thing that happens to it. `make test` starts the servers.

#![allow(clippy::disallowed_methods, reason = "a test's threads need no core plan")]

mod own_redis;
mod servers;
mod world;

#[path = "../http/client.rs"]
#[allow(dead_code, reason = "how a connection ends is for others to ask")]
mod http_client;

#[path = "../architecture/source.rs"]
#[allow(dead_code, reason = "of the rules' reader, only the texts are needed")]
mod source;

mod backpressure;
mod bombs;
mod browser;
mod cgroup;
mod changes;
mod check;
mod closed_pipe;
mod collect;
mod contract;
mod corpus;
mod crash;
mod cut;
mod dead_letters;
mod definitions;
mod delivery;
mod failover;
mod guard;
mod hostile;
mod keyed;
mod lists;
mod lookups;
mod mallory;
mod metrics;
mod modes;
mod night;
mod outage;
mod poison;
mod pooler;
mod readme;
mod refusals;
mod retention;
mod roles;
mod security;
mod serve;
mod shutdown;
mod slow;
mod systemd;
mod tail;
mod takeover;
mod terminal;
mod texts;
mod traps;
mod unknown_commit;
mod verify;
