//! `rowmill status`: how far each table is, who owns what, and what was set aside; for people, for programs, once or again and again.

pub mod look;
pub mod page;

use std::time::Duration;

use anyhow::Result;

use crate::client::pg::Server;
use crate::config::Config;
use crate::promise::ledger;
use crate::verb::out;

/// What is asked for.
#[derive(clap::Args)]
pub struct Asked {
    /// Print one line of JSON, for programs.
    #[arg(long)]
    json: bool,
    /// Print again every so many seconds, until Ctrl-C.
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

/// # Errors
/// Where PostgreSQL does not answer, or shows nothing of the ledger to this role.
pub fn run(config: &Config, asked: &Asked) -> Result<()> {
    loop {
        let mut client = Server::of(&config.postgres)?.connect("rowmill status")?;
        ledger::check_version(&mut client)?;
        let status = look::look(&mut client, config)?;
        if asked.watch.is_some() && !asked.json {
            out::clear();
        }
        if asked.json {
            out::json(&serde_json::to_value(&status)?);
        } else {
            out::lines(&page::page(&status));
        }
        let Some(seconds) = asked.watch.filter(|_| out::is_complete() && !out::is_closed()) else {
            return Ok(());
        };
        std::thread::sleep(Duration::from_secs(seconds));
    }
}
