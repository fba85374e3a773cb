//! PostgreSQL connections and what is asked of the server outside the probe: tables, versions, counters, clock offset.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use percent_encoding::percent_decode_str;
use postgres::config::Host;
use postgres::types::Type;
use postgres::{Client, Config, NoTls};

use crate::base::clock::wall_us;
use crate::message::draw::{Clock, Kind};
use crate::message::model::{Column, Model};
use crate::server::form::Form;
use crate::server::users::without_password;

/// From here on a name without a schema is the server's own: whoever may create a function in a schema of the tester's
/// search_path could else have it called with the tester's rights, which often are a superuser's.
const FIXED_PATH: &str = "SET search_path = pg_catalog, pg_temp";

/// How to reach the database. The URL may hold a password and is never printed as it is.
#[derive(Clone)]
pub struct Database {
    pub url: String,
}

/// What libpq's `sslmode` asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tls {
    None,
    /// Encrypted, with whoever answers.
    Unchecked,
    /// The certificate must be of a known authority.
    Authority,
    /// And be that host's.
    Full,
}

impl Database {
    pub fn shown(&self) -> String {
        without_password(self.url.split('?').next().unwrap_or_default())
    }

    /// A connection that names itself, so that the server's own views tell what it is for.
    pub fn connect(&self, name: &str) -> Result<Client> {
        self.open(name).with_context(|| {
            format!(
                "connect to PostgreSQL at {}; check that it runs there, or set --database or DATABASE_URL",
                self.shown()
            )
        })
    }

    fn open(&self, name: &str) -> Result<Client> {
        let (url, tls, ca) = split_url(&self.url)?;
        let mut config: Config = url.parse().context("read the database's address")?;
        // As the engine has it: another machine is not spoken to in plaintext unless that is asked for.
        let tls = tls.unwrap_or(if is_local(&config) && ca.is_none() { Tls::None } else { Tls::Full });
        config.application_name(&format!("loadtester {name}")).connect_timeout(Duration::from_secs(5));
        config.tcp_user_timeout(Duration::from_secs(30)).keepalives_idle(Duration::from_secs(30));
        if tls == Tls::None {
            return with_fixed_path(config.ssl_mode(postgres::config::SslMode::Disable).connect(NoTls)?);
        }
        let mut builder = SslConnector::builder(SslMethod::tls()).context("set up TLS")?;
        if let Some(ca) = &ca {
            builder.set_ca_file(ca).with_context(|| format!("read the CA file {}", ca.display()))?;
        }
        if tls == Tls::Unchecked {
            builder.set_verify(SslVerifyMode::NONE);
        }
        let mut connector = postgres_openssl::MakeTlsConnector::new(builder.build());
        if tls != Tls::Full {
            connector.set_callback(|connection, _| {
                connection.set_verify_hostname(false);
                Ok(())
            });
        }
        with_fixed_path(config.ssl_mode(postgres::config::SslMode::Require).connect(connector)?)
    }
}

fn is_local(config: &Config) -> bool {
    let is_loopback =
        |name: &str| name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    config.get_hostaddrs().iter().all(IpAddr::is_loopback)
        && config.get_hosts().iter().all(|host| match host {
            Host::Unix(_) => true,
            Host::Tcp(name) => is_loopback(name),
        })
}

fn with_fixed_path(mut client: Client) -> Result<Client> {
    client.batch_execute(FIXED_PATH).context("fix the search_path")?;
    Ok(client)
}

/// For what a person wrote: names mean what the role's own search_path says.
pub fn as_the_role_finds<T>(client: &mut Client, ask: impl FnOnce(&mut Client) -> T) -> Result<T> {
    client.batch_execute("RESET search_path").context("use the role's search_path")?;
    let answer = ask(client);
    client.batch_execute(FIXED_PATH).context("fix the search_path")?;
    Ok(answer)
}

/// The model's table as the role's own search_path finds it; `None` where it is not there, or there is none to look for.
fn table_of(client: &mut Client, model: &Model) -> Result<Option<u32>> {
    let Some(table) = &model.table else { return Ok(None) };
    // Everything has its schema here, types included.
    let sql = "SELECT pg_catalog.to_regclass($1)::pg_catalog.oid";
    let rows = as_the_role_finds(client, |client| client.query_typed(sql, &[(&table.name, Type::TEXT)]))?;
    Ok(rows.with_context(|| format!("look for the table {}", table.name))?[0].get(0))
}

/// A table's name with its schema, as SQL has it.
pub fn qualified_name(client: &mut Client, model: &Model) -> Result<String> {
    let oid = table_of(client, model)?;
    let row = client.query_one(
        "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE c.oid = $1",
        &[&oid],
    );
    Ok(row.with_context(|| format!("look at the table {}", model.table_name()))?.get(0))
}

/// The URL without the TLS parameters that the driver does not know, and what they ask for; `None` where they say nothing.
fn split_url(url: &str) -> Result<(String, Option<Tls>, Option<PathBuf>)> {
    let Some((base, query)) = url.split_once('?') else { return Ok((url.to_owned(), None, None)) };
    let (mut tls, mut ca, mut rest) = (None, None, Vec::new());
    for part in query.split('&') {
        match part.split_once('=') {
            Some(("sslmode", "disable")) => tls = Some(Tls::None),
            Some(("sslmode", "require")) => tls = Some(Tls::Unchecked),
            Some(("sslmode", "verify-ca")) => tls = Some(Tls::Authority),
            Some(("sslmode", "verify-full")) => tls = Some(Tls::Full),
            Some(("sslmode", weak @ ("allow" | "prefer"))) => bail!(
                "sslmode={weak} falls back to plaintext, and hands the password over, when somebody in between says no to TLS; use \
                 verify-full, or disable where that is meant"
            ),
            Some(("sslmode", other)) => {
                bail!("sslmode \"{other}\" is none of disable, require, verify-ca, verify-full")
            }
            Some(("sslrootcert", path)) => {
                ca = Some(PathBuf::from(&*percent_decode_str(path).decode_utf8_lossy()))
            }
            _ => rest.push(part),
        }
    }
    let url = if rest.is_empty() { base.to_owned() } else { format!("{base}?{}", rest.join("&")) };
    Ok((url, tls, ca))
}

/// A table that takes rows of one model: the model's table itself, or, where it is partitioned or a hypertable, each of
/// the plain tables below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Leaf {
    pub model: usize,
    /// Quoted, with its schema.
    pub name: String,
    pub oid: u32,
}

/// How the columns of each model's table are read, in the order of its columns.
pub type Forms = Vec<Vec<Form>>;

/// Checks that the tables are there with the columns that are needed, says how these are read, and lists the plain tables
/// below them.
pub fn leaves(client: &mut Client, models: &[Arc<Model>]) -> Result<(Vec<Leaf>, Forms)> {
    let forms = models.iter().map(|model| check_table(client, model)).collect::<Result<_>>()?;
    Ok((list_leaves(client, models)?, forms))
}

pub fn list_leaves(client: &mut Client, models: &[Arc<Model>]) -> Result<Vec<Leaf>> {
    let tables: Vec<&str> = models.iter().map(|model| model.table_name()).collect();
    let oids = models.iter().map(|model| table_of(client, model)).collect::<Result<Vec<_>>>()?;
    let rows = client
        .query(
            "WITH RECURSIVE tree AS (
                 SELECT number, oid FROM unnest($1::oid[]) WITH ORDINALITY AS t (oid, number)
                 UNION ALL
                 SELECT number, inhrelid FROM pg_inherits JOIN tree ON inhparent = tree.oid
             )
             SELECT number, c.oid, format('%I.%I', nspname, relname)
             FROM tree
             JOIN pg_class c ON c.oid = tree.oid
             JOIN pg_namespace n ON n.oid = relnamespace
             WHERE relkind = 'r'
             ORDER BY number, c.oid",
            &[&oids],
        )
        .with_context(|| format!("list the tables below {}", tables.join(", ")))?;
    let leaf = |row: &postgres::Row| Leaf {
        model: row.get::<_, i64>(0) as usize - 1,
        oid: row.get(1),
        name: row.get(2),
    };
    Ok(rows.iter().map(leaf).collect())
}

/// All rows that fulfill their model's condition, wherever in the tables they are.
pub fn count_rows(client: &mut Client, leaves: &[Leaf], conditions: &[String]) -> Result<u64> {
    if leaves.is_empty() {
        return Ok(0);
    }
    let count =
        |leaf: &Leaf| format!("(SELECT count(*) FROM ONLY {} WHERE {})", leaf.name, conditions[leaf.model]);
    let counts: Vec<String> = leaves.iter().map(count).collect();
    let row = client
        .query_one(&format!("SELECT {}", counts.join(" + ")), &[])
        .context("count the rows of this run")?;
    Ok(row.get::<_, i64>(0) as u64)
}

/// (column, type) of the model's table.
pub fn column_types(client: &mut Client, model: &Model) -> Result<Vec<(String, String)>> {
    let oid = table_of(client, model)?;
    let rows = client
        .query(
            // A domain is read as what it is made of.
            "SELECT attname::text, coalesce(b.typname, t.typname)::text
             FROM pg_attribute JOIN pg_type t ON t.oid = atttypid LEFT JOIN pg_type b ON b.oid = t.typbasetype
             WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped",
            &[&oid],
        )
        .with_context(|| format!("look at the table {}", model.table_name()))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

fn check_table(client: &mut Client, model: &Model) -> Result<Vec<Form>> {
    let Some(table) = &model.table else { return Ok(Vec::new()) };
    let found = column_types(client, model)?;
    if found.is_empty() {
        bail!(
            "the database has no table \"{}\" for the messages of model {model}; create it, or take the model out of --mix{}",
            table.name,
            table.create.as_ref().map_or(String::new(), |statement| format!(":\n  {statement}"))
        );
    }
    let form = |name: &str| match found.iter().find(|(column, _)| column == name) {
        Some((_, kind)) => Ok(Form::of_type(kind)),
        None => {
            bail!("the table \"{}\" has no column \"{name}\", which the {model} messages fill", table.name)
        }
    };
    table.received.iter().try_for_each(|name| form(name).map(|_| ()))?;
    let fitting = |column: &Column| {
        let form = form(&column.name)?;
        let drawn = &model.program.steps[column.slot].kind;
        if matches!(drawn, Kind::Due(Clock::Rfc3339, _)) && !form.is_time() {
            bail!(
                "the column \"{}\" of \"{}\" holds no times; say how the due time stands there: {{ due = \"us\" }}, or a text",
                column.name,
                table.name
            );
        }
        Ok(form)
    };
    table.columns.iter().map(fitting).collect()
}

pub fn version(client: &mut Client) -> Result<i32> {
    let row = client.query_one("SELECT current_setting('server_version_num')::int", &[])?;
    Ok(row.get(0))
}

/// The settings that decide how fast a server can be; they go into the report.
const SETTINGS: [&str; 12] = [
    "server_version",
    "shared_buffers",
    "wal_level",
    "synchronous_commit",
    "fsync",
    "full_page_writes",
    "max_wal_size",
    "min_wal_size",
    "checkpoint_timeout",
    "wal_compression",
    "max_connections",
    "track_commit_timestamp",
];

pub fn settings(client: &mut Client) -> Result<Vec<(String, String)>> {
    let rows = client.query(
        "SELECT name, current_setting(name) FROM pg_settings WHERE name = ANY($1) ORDER BY name",
        &[&SETTINGS.map(str::to_owned).to_vec()],
    )?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// The server's clock against ours: of several round trips the shortest, whose middle is nearest to the reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct ClockOffset {
    pub offset_us: i64,
    /// The reading may be off by this much in either direction.
    pub within_us: i64,
}

pub fn clock_offset(client: &mut Client) -> Result<ClockOffset> {
    let statement = client.prepare("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")?;
    let mut best: Option<ClockOffset> = None;
    for _ in 0..11 {
        let (before_us, started) = (wall_us(), Instant::now());
        let server_us: i64 = client.query_one(&statement, &[])?.get(0);
        let round_trip_us = started.elapsed().as_micros() as i64;
        let sample = ClockOffset {
            offset_us: server_us - before_us - round_trip_us / 2,
            within_us: round_trip_us / 2,
        };
        if best.is_none_or(|b| sample.within_us < b.within_us) {
            best = Some(sample);
        }
    }
    best.context("measure the server's clock")
}

/// The server's own counters, as they stand.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct ServerCounters {
    pub inserted_total: i64,
    pub commits_total: i64,
    pub rollbacks_total: i64,
    pub deadlocks_total: i64,
    pub wal_bytes_total: f64,
    pub active_backends: i64,
    pub waiting_backends: i64,
}

pub fn counters(client: &mut Client) -> Result<ServerCounters> {
    let row = client.query_one(
        "SELECT tup_inserted, xact_commit, xact_rollback, deadlocks,
                pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8,
                (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend'),
                (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND wait_event IS NOT NULL
                     AND backend_type = 'client backend')
         FROM pg_stat_database WHERE datname = current_database()",
        &[],
    )?;
    Ok(ServerCounters {
        inserted_total: row.get(0),
        commits_total: row.get(1),
        rollbacks_total: row.get(2),
        deadlocks_total: row.get(3),
        wal_bytes_total: row.get(4),
        active_backends: row.get(5),
        waiting_backends: row.get(6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tls_parameters_are_taken_out_of_the_url() {
        let rows = [
            ("postgres://h/d", "postgres://h/d", None, None),
            ("postgres://h/d?sslmode=disable", "postgres://h/d", Some(Tls::None), None),
            ("postgres://h/d?a=b&sslmode=require", "postgres://h/d?a=b", Some(Tls::Unchecked), None),
            (
                "postgres://h/d?sslmode=verify-full&sslrootcert=%2Fa%20b.crt",
                "postgres://h/d",
                Some(Tls::Full),
                Some("/a b.crt"),
            ),
            ("postgres://h/d?sslmode=verify-ca", "postgres://h/d", Some(Tls::Authority), None),
        ];
        for (url, rest, tls, ca) in rows {
            assert_eq!(split_url(url).unwrap(), (rest.to_owned(), tls, ca.map(PathBuf::from)), "{url}");
        }
        for mode in ["maybe", "prefer", "allow"] {
            assert!(split_url(&format!("postgres://h/d?sslmode={mode}")).is_err(), "{mode}");
        }
    }

    #[test]
    fn only_this_machine_is_spoken_to_in_plaintext_unless_it_is_asked_for() {
        let local = |url: &str| is_local(&url.parse().unwrap());
        assert!(
            local("postgres://127.0.0.1/d")
                && local("postgres://localhost/d")
                && local("postgres://%2Frun/d")
        );
        assert!(!local("postgres://db.example/d") && !local("postgres://localhost/d?hostaddr=10.0.0.1"));
    }
}
