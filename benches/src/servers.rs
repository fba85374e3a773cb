//! Where the servers of a bench are, and under which conditions they run.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use postgres::{Client, NoTls};
use rdkafka::ClientConfig;

use crate::metric;

#[derive(Clone, clap::Args)]
pub struct Servers {
    #[arg(long, env = "KAFKA_BROKERS")]
    pub brokers: String,
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
    #[arg(long, env = "REDIS_URL", hide_env_values = true)]
    pub redis_url: String,
}

impl Servers {
    pub fn postgres(&self) -> Result<Client> {
        Client::connect(&self.database_url, NoTls).context("connect to PostgreSQL")
    }

    pub fn kafka(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    pub fn redis(&self) -> Result<redis::Connection> {
        let client = redis::Client::open(self.redis_url.as_str()).context("read REDIS_URL")?;
        client.get_connection().context("connect to Redis")
    }

    /// Gives Redis the users whose tokens the records carry, numbers 0 to `users`.
    pub fn fill_redis(&self, users: u64) -> Result<()> {
        let mut pipe = redis::pipe();
        for user in 0..users {
            pipe.set(format!("user:{}", metric::token(user)), metric::user_id(user)).ignore();
        }
        pipe.query::<()>(&mut self.redis()?).context("write users to Redis")
    }

    /// Makes all the WAL files that the server keeps, as if it had run for a while: while it still has to make new ones,
    /// each of them holds every commit up for 50 to 100 ms.
    pub fn make_wal_files(&self) -> Result<()> {
        let mut client = self.postgres()?;
        let sql = "SELECT pg_size_bytes(current_setting('min_wal_size')) / pg_size_bytes(current_setting('wal_segment_size'))";
        let files: i64 = client.query_one(sql, &[]).context("ask how much WAL is kept")?.get(0);
        for _ in 0..files {
            // An empty file is not switched.
            client
                .batch_execute("SELECT pg_logical_emit_message(false, 'bench', ''); SELECT pg_switch_wal()")
                .context("begin a new WAL file")?;
        }
        client.batch_execute("CHECKPOINT").context("checkpoint")
    }

    /// No ledger, and the tables that the SQL makes.
    pub fn fresh_tables(&self, sql: &str) -> Result<Client> {
        let mut client = self.postgres()?;
        // First: a role named rowmill creates its tables in the schema of that name, while there is one.
        client.batch_execute("DROP SCHEMA IF EXISTS rowmill CASCADE").context("drop the schema rowmill")?;
        client.batch_execute(sql).with_context(|| format!("create the tables: {}", sql.trim()))?;
        // So that no subject pays for its predecessor's dirty pages.
        client.batch_execute("CHECKPOINT").context("checkpoint")?;
        Ok(client)
    }
}

/// What one has to know to compare two results.
pub fn conditions(client: &mut Client, program: &str) -> Result<String> {
    let mut show =
        |name: &str| -> Result<String> { Ok(client.query_one(&format!("SHOW {name}"), &[])?.get(0)) };
    let mut database = format!("- PostgreSQL: {}\n", show("server_version")?);
    for setting in ["fsync", "synchronous_commit", "shared_buffers", "max_wal_size"] {
        database.push_str(&format!("- {setting}: {}\n", show(setting)?));
    }
    conditions_with(program, &database)
}

/// The same where no database takes part.
pub fn conditions_with(program: &str, more: &str) -> Result<String> {
    let mut text = String::from("\n## Conditions\n\n");
    let mut line = |name: &str, value: &str| text.push_str(&format!("- {name}: {}\n", value.trim()));
    line("command", &format!("{program} {}", recorded(std::env::args().skip(1))));
    line("commit", &output_of("git", &["describe", "--always", "--dirty"]));
    line("Kafka", &std::env::var("KAFKA_VERSION").unwrap_or_else(|_| "unknown".into()));
    line("librdkafka", &rdkafka::util::get_rdkafka_version().1);
    line("rustc", &output_of("rustc", &["--version"]));
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|l| l.starts_with("model name")).and_then(|l| l.split(": ").nth(1));
    let cores = cpuinfo.lines().filter(|l| l.starts_with("processor")).count();
    line(
        "machine",
        &format!("{cores} cores, {}; servers and programs share them", model.unwrap_or("unknown")),
    );
    line("kernel", &fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default());
    line("memory", fs::read_to_string("/proc/meminfo")?.lines().next().unwrap_or_default());
    text.push_str(more);
    Ok(text)
}

/// The arguments without where the results go, and with paths that begin at the checkout: another machine has neither.
fn recorded(arguments: impl Iterator<Item = String>) -> String {
    let checkout = format!("{}/", source_directory().parent().unwrap_or(Path::new("")).display());
    let mut kept = Vec::new();
    let mut arguments = arguments.map(|argument| argument.replace(&checkout, ""));
    while let Some(argument) = arguments.next() {
        if argument == "--results" {
            arguments.next();
        } else if !argument.starts_with("--results=") {
            kept.push(argument);
        }
    }
    kept.join(" ")
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(source_directory()).output();
    output.map_or_else(|_| "unknown".into(), |o| String::from_utf8_lossy(&o.stdout).into_owned())
}

fn source_directory() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recorded_command_names_no_place_of_this_machine() {
        let here = source_directory().join("x.toml").display().to_string();
        let rows = [
            (vec!["--results", "/var/x", "--rounds", "3"], "--rounds 3"),
            (vec!["--rounds", "3", "--results=/var/x"], "--rounds 3"),
            (vec!["--config", &here], "--config benches/x.toml"),
        ];
        for (arguments, expected) in rows {
            assert_eq!(recorded(arguments.into_iter().map(str::to_owned)), expected);
        }
    }
}
