//! What the campaign moves: topics, tables, users, and the engine's configuration.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::stack::{connect, env, redirect, stack};

/// The three topics, with this before each name.
pub(crate) const PREFIX: &str = "campaign-";
pub(crate) const TOPICS: [&str; 3] = ["one", "two", "fan"];

/// A fourth topic, which the front doors fill, and its table.
pub(crate) const DOOR: &str = "door";
pub(crate) const TABLES: [&str; 4] = ["t1", "t2", "t3", "t4"];

/// Tables with keys: one for each mode, which the first topic fills as well with what its records come to; and that of the doors.
pub(crate) const KEYED: [&str; 4] = ["sums", "latest", "firsts", DOOR];

/// Their columns. The CHECKs refuse just the records that the first table's refuses, so that a record has one fate in all.
const KEYED_SQL: &str = "
    CREATE TABLE sums (word VARCHAR(20) PRIMARY KEY, count BIGINT NOT NULL, total BIGINT NOT NULL,
                       low BIGINT NOT NULL CHECK (low >= 0), high BIGINT NOT NULL) WITH (fillfactor = 70);
    CREATE TABLE latest (word VARCHAR(20) PRIMARY KEY, n BIGINT NOT NULL CHECK (n >= 0));
    CREATE TABLE firsts (word VARCHAR(20), _partition INTEGER, n BIGINT NOT NULL CHECK (n >= 0), PRIMARY KEY (word, _partition));
    CREATE TABLE door (n BIGINT PRIMARY KEY)";

/// Of each topic at the start: twelve in all.
const PARTITIONS: usize = 4;

/// What the engines run with; the default lease.
pub(crate) const LEASE_SECONDS: f64 = 5.0;

/// The watchdog ends a process that hangs; short, so that a swallowed reply costs seconds and not minutes. The guard is on, as
/// it is by default: six records in a thousand are bad, where it objects to every second one.
const SETTINGS: &str = "pipeline = \"campaign\"\n\
    [postgres]\nlock_timeout = \"2s\"\n\
    [threads]\nwatchdog = \"8s\"\n\
    [metrics]\nlisten = \"off\"\n\
    [lookup.user]\nkey = \"user:{}\"\nttl = \"2s\"\n";

pub(crate) struct World {
    pub(crate) url: String,
    pub(crate) brokers: String,
    /// Listeners for the engines, one of each broker: the port of its proxy, and Kafka's behind it.
    pub(crate) kafka_members: Vec<Vec<(u16, u16)>>,
    pub(crate) redis_url: String,
    pub(crate) config: PathBuf,
    pub(crate) rowmill: PathBuf,
    /// The producer's source.
    pub(crate) traffic: PathBuf,
    pub(crate) dir: PathBuf,
    /// Where the fourth table lives, if a small file system could be mounted there.
    pub(crate) small_disk: Option<SmallDisk>,
    /// Holds the seconds by which the database server's clock is ahead, where the stack gave it one of its own.
    pub(crate) clock: Option<PathBuf>,
}

impl World {
    /// Makes everything anew on the servers of the environment.
    pub(crate) fn make(dir: &Path, rowmill: &Path, traffic: &Path) -> Result<World> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let admin_url = env("DATABASE_URL")?;
        connect(&admin_url)?.batch_execute("CREATE DATABASE campaign").context("cannot create a database")?;
        let url = redirect(&admin_url, None, Some("campaign"));
        let mut client = connect(&url)?;
        let small_disk = SmallDisk::mount();
        if let Some(disk) = &small_disk {
            let path = disk.path.display();
            client.batch_execute(&format!("CREATE TABLESPACE small LOCATION '{path}'"))?;
        }
        for table in TABLES {
            let place = place(table, small_disk.as_ref());
            client.batch_execute(&format!(
                "CREATE TABLE {table} (n BIGINT NOT NULL CHECK (n >= 0), word VARCHAR(20), _topic TEXT, _partition INTEGER,
                                       _offset BIGINT) {place};
                 CREATE INDEX ON {table} (_topic, _partition, _offset) {place}"
            ))?;
        }
        client.batch_execute(KEYED_SQL)?;
        let init = std::process::Command::new(rowmill).arg("init").env("DATABASE_URL", &url).output()?;
        anyhow::ensure!(
            init.status.success(),
            "rowmill init failed: {}",
            String::from_utf8_lossy(&init.stderr)
        );
        for topic in TOPICS.iter().chain([&DOOR]) {
            let (name, count) = (format!("{PREFIX}{topic}"), PARTITIONS.to_string());
            stack(&["kafka-topics", "--create", "--topic", &name, "--partitions", &count])?;
        }
        let config = dir.join("rowmill.toml");
        std::fs::write(&config, SETTINGS.to_owned() + &models())?;
        let world = World {
            url,
            brokers: env("KAFKA_BROKERS")?,
            kafka_members: kafka_members()?,
            redis_url: env("REDIS_URL")?,
            config,
            rowmill: rowmill.to_owned(),
            traffic: traffic.to_owned(),
            dir: dir.to_owned(),
            small_disk,
            clock: env("PG_CLOCK_FILE").ok().map(PathBuf::from),
        };
        world.give_users()?;
        Ok(world)
    }

    /// What CREATE TABLE says of where a table lives.
    pub(crate) fn place(&self, table: &str) -> &'static str {
        place(table, self.small_disk.as_ref())
    }

    /// All users at once: a Redis that knows some of them would have the others' records set aside.
    pub(crate) fn give_users(&self) -> Result<()> {
        let mut redis = redis::Client::open(self.redis_url.as_str())?.get_connection()?;
        let mut pipe = redis::pipe();
        pipe.atomic();
        for k in 0..200 {
            pipe.cmd("SET").arg(format!("user:k{k}")).arg(format!("user-k{k}")).ignore();
        }
        pipe.query::<()>(&mut redis).context("cannot give Redis its users")
    }
}

fn place(table: &str, small_disk: Option<&SmallDisk>) -> &'static str {
    if table == "t4" && small_disk.is_some() { "TABLESPACE small" } else { "" }
}

/// The stack's pairs, ADVERTISED:REAL, for each broker and member.
fn kafka_members() -> Result<Vec<Vec<(u16, u16)>>> {
    let text = env("KAFKA_MEMBERS")?;
    let ports = |pair: &str| {
        let (advertised, real) = pair.split_once(':')?;
        Some((advertised.parse().ok()?, real.parse().ok()?))
    };
    let member = |pairs: &str| pairs.split(',').map(ports).collect::<Option<Vec<_>>>();
    text.split(' ').map(member).collect::<Option<_>>().with_context(|| format!("KAFKA_MEMBERS is {text:?}"))
}

fn models() -> String {
    let model = |topic: &str, table: &str, more: &str| {
        format!(
            "[[model]]\ntopic = \"{PREFIX}{topic}\"\ntable = \"{table}\"\ntombstones = \"skip\"\n{more}\n[model.columns]\n\
             _topic = {{ kafka = \"topic\" }}\n_partition = {{ kafka = \"partition\" }}\n_offset = {{ kafka = \"offset\" }}\n"
        )
    };
    let fan = |table: &str, kind: &str| model("fan", table, &format!("when = {{ kind = \"{kind}\" }}"));
    model("one", "t1", "")
        + &keyed()
        + &format!("[[model]]\ntopic = \"{PREFIX}{DOOR}\"\ntable = \"{DOOR}\"\nmode = \"first\"\n")
        + &model("two", "t2", "")
        + "word = { lookup = \"user\" }\n"
        + &fan("t3", "t")
        + &fan("t4", "u")
}

/// The order of offsets says what is first in a partition, and `n` what is newest among all of them.
fn keyed() -> String {
    let model = |table: &str, more: &str| {
        format!("[[model]]\ntopic = \"{PREFIX}one\"\ntable = \"{table}\"\ntombstones = \"skip\"\n{more}\n")
    };
    model(
        "sums",
        "mode = \"add\"\n[model.columns]\ncount = { fold = \"count\" }\ntotal = { fold = \"sum\", field = \"n\" }\n\
         low = { fold = \"min\", field = \"n\" }\nhigh = { fold = \"max\", field = \"n\" }",
    ) + &model("latest", "mode = \"upsert\"\nnewest = \"n\"")
        + &model("firsts", "mode = \"first\"\n[model.columns]\n_partition = { kafka = \"partition\" }")
}

/// A file system in memory that can be filled up. Only root may mount one.
pub(crate) struct SmallDisk {
    pub(crate) path: PathBuf,
}

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let path = std::env::temp_dir().join(format!("rowmill-small-{}", std::process::id()));
        std::fs::create_dir_all(&path).ok()?;
        let run = |program: &str, arguments: &[&str]| {
            let output = std::process::Command::new(program).args(arguments).output();
            output.is_ok_and(|o| o.status.success())
        };
        let place = path.to_str()?;
        if run("mount", &["-t", "tmpfs", "-o", "size=600m,mode=700", "tmpfs", place]) {
            let disk = SmallDisk { path: path.clone() };
            // The server's own user must own it.
            return run("chown", &["postgres:", place]).then_some(disk);
        }
        std::fs::remove_dir(&path).ok();
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The server may still hold files there: they go when it does.
        let ended = std::process::Command::new("umount").arg("-l").arg(&self.path).status();
        if ended.is_ok_and(|s| s.success()) {
            std::fs::remove_dir(&self.path).ok();
        }
    }
}
