//! What a person or a service manager asks for, a file or a folder each. They alone know all the rest.

pub mod backfill;
pub mod moment;
pub mod out;
pub mod page;
pub mod service;
pub mod setup;
pub mod web;

pub mod collect;
pub mod serve;
pub mod run;

pub mod check;
pub mod dead_letters;
pub mod generate;
pub mod init;
pub mod propose;
pub mod status;
pub mod tail;
pub mod verify;
