//! The whole engine on real servers, one file for each kind of thing that happens to it. `make test` starts the servers.

#![allow(clippy::disallowed_methods, reason = "a test's threads need no core plan")]

mod servers;
mod world;

mod backpressure;
mod changes;
mod check;
mod corpus;
mod crash;
mod dead_letters;
mod definitions;
mod delivery;
mod failover;
mod guard;
mod lists;
mod metrics;
mod outage;
mod poison;
mod roles;
mod security;
mod shutdown;
mod systemd;
mod takeover;
mod unknown_commit;
mod verify;
