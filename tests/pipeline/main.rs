//! The whole engine on real servers, one file for each kind of thing that happens to it. `make test` starts the servers.

#![allow(clippy::disallowed_methods, reason = "a test's threads need no core plan")]

mod servers;
mod world;

#[path = "../architecture/source.rs"]
#[allow(dead_code, reason = "of the rules' reader, only the texts are needed")]
mod source;

mod backpressure;
mod changes;
mod check;
mod closed_pipe;
mod corpus;
mod crash;
mod cut;
mod dead_letters;
mod definitions;
mod delivery;
mod failover;
mod guard;
mod lists;
mod lookups;
mod mallory;
mod metrics;
mod outage;
mod poison;
mod pooler;
mod refusals;
mod roles;
mod security;
mod shutdown;
mod systemd;
mod takeover;
mod unknown_commit;
mod verify;
