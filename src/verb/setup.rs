//! The configuration against the servers: everything that is known before the first thread starts.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};

use crate::client::pg::{Client, Server};
use crate::client::redis;
use crate::config::Config;
use crate::figures::process;
use crate::model::compile::{Problem, compile};
use crate::model::plan::{Plan, TablePlan};
use crate::model::types::Table;
use crate::promise::dead_letter;
use crate::promise::duties::Entry;
use crate::promise::ledger::{self, Member};
use crate::promise::topics::Topic;
use crate::store::postgres::audit::{self, Remarks, Seats};
use crate::store::postgres::catalog;

/// What every verb that works on a pipeline needs.
pub struct Setup {
    pub server: Server,
    /// By their names in the models.
    pub tables: HashMap<String, Table>,
    pub plan: Arc<Plan>,
    pub topics: Arc<[Topic]>,
}

/// Connects, checks the schema's version, reads the tables and compiles the models.
///
/// # Errors
/// With every problem of the models in one message, so that they can be mended together.
pub fn read(config: &Config) -> Result<Setup> {
    if let Some(redis) = &config.redis
        // One that is away is waited for where it is needed.
        && let Ok(Some(refusal)) = redis::refusal(redis, &config.lookups)
    {
        bail!(refusal);
    }
    let server = Server::of(&config.postgres)?;
    let mut client = server.connect("rowmill setup")?;
    ledger::check_version(&mut client)?;
    dead_letter::check_columns(&mut client)?;
    let tables = tables(config, &mut client)?.map_err(all_problems)?;
    let plan = compiled(config, &tables).map_err(all_problems)?;
    let remarks = audit(&mut client, &plan)?;
    remarks.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if !remarks.refusals.is_empty() {
        bail!("the promise cannot be kept like this:{}", list(&remarks.refusals));
    }
    let topics = topics(&plan);
    settle_routing(&mut client, config, &topics)?;
    Ok(Setup { server, tables, plan: Arc::new(plan), topics })
}

/// Reads the catalog and compiles the models; the inner error lists what is wrong with them.
pub fn plan(config: &Config, client: &mut Client) -> Result<Result<Plan, Vec<Problem>>> {
    Ok(tables(config, client)?.and_then(|tables| compiled(config, &tables)))
}

/// The models with these tables.
pub fn compiled(config: &Config, tables: &HashMap<String, Table>) -> Result<Plan, Vec<Problem>> {
    let lookups: Vec<String> = config.lookups.iter().map(|l| l.name.clone()).collect();
    compile(&config.models, tables, &lookups)
}

/// Reads the tables that the models name; the inner error lists those that cannot be filled.
fn tables(config: &Config, client: &mut Client) -> Result<Result<HashMap<String, Table>, Vec<Problem>>> {
    let mut tables: HashMap<String, Table> = HashMap::new();
    let mut problems = Vec::new();
    for name in config.models.iter().map(|m| &m.table) {
        if tables.contains_key(name) {
            continue;
        }
        match table(client, name)? {
            Ok(table) => drop(tables.insert(name.clone(), table)),
            Err(problem) => problems.push(problem),
        }
    }
    Ok(if problems.is_empty() { Ok(tables) } else { Err(problems) })
}

/// Reads one table, by its name in the models; the inner error says why it cannot be filled.
pub fn table(client: &mut Client, name: &str) -> Result<Result<Table, Problem>> {
    match catalog::read_table(client.by_role_path(), name) {
        Ok(table) if table.schema == "rowmill" => Ok(Err(Problem(in_our_schema(name, &table)))),
        Ok(table) => Ok(Ok(table)),
        Err(error) if error.downcast_ref::<postgres::Error>().is_some() => Err(error),
        Err(error) => Ok(Err(Problem(format!("{error:#}")))),
    }
}

/// How a table of the user's comes into our schema: the default search_path begins with the schema of the role's own name.
fn in_our_schema(name: &str, table: &Table) -> String {
    format!(
        "table {name:?} is found in rowmill's own schema. PostgreSQL looks into the schema of the role's own name first (\"$user\" in \
         its search_path), and makes tables there, too: log in as a role that is not called rowmill (sql/roles.sql makes \
         rowmill_writer), and move the table with ALTER TABLE {} SET SCHEMA public; if another table is meant, write schema.table",
        table.sql_name
    )
}

/// What the database is and allows, beside the definitions of the tables.
pub fn audit(client: &mut Client, plan: &Plan) -> Result<Remarks> {
    let mut transaction = client.begin()?;
    let remarks = audit::audit(&mut transaction, &plan.tables).context("cannot look at the database")?;
    transaction.commit()?;
    Ok(remarks)
}

/// How many sessions the server allows, and how many there are.
pub fn seats(client: &mut Client) -> Result<Seats> {
    let mut transaction = client.begin()?;
    let seats = audit::seats(&mut transaction).context("cannot ask how many sessions the server allows")?;
    transaction.commit()?;
    Ok(seats)
}

/// The same of one table, when its definition has changed.
pub fn audit_table(client: &mut Client, table: &TablePlan) -> Result<Remarks> {
    let mut transaction = client.begin()?;
    let remarks = audit::audit_table(&mut transaction, table).context("cannot look at the table")?;
    transaction.commit()?;
    Ok(remarks)
}

/// Every problem of the models in one sentence.
pub fn all_problems(problems: Vec<Problem>) -> anyhow::Error {
    anyhow!("the models do not fit the tables:{}", list(&problems))
}

fn list(sentences: &[impl std::fmt::Display]) -> String {
    sentences.iter().map(|sentence| format!("\n  - {sentence}")).collect()
}

/// What the process may hold in memory, against what it needs; an error where it is less.
pub fn memory(config: &Config) -> Result<String, String> {
    let needed = config.limits.process_bytes() >> 20;
    match process::memory_limit().map(|bytes| bytes >> 20) {
        None => Ok(format!("about {needed} MB at most, and no limit here")),
        Some(limit) if limit >= needed => {
            Ok(format!("about {needed} MB at most, and the limit here is {limit} MB"))
        }
        Some(limit) => Err(format!(
            "the limit of this service or container is {limit} MB, and memory_max calls for about {needed} MB: it would be \
             killed again and again; lower memory_max, or raise MemoryMax"
        )),
    }
}

/// The plan's topics with their tables, each table once, in the order of the models.
pub fn topics(plan: &Plan) -> Arc<[Topic]> {
    plan.topics
        .iter()
        .map(|topic| {
            let mut tables: Vec<usize> = Vec::new();
            for model in &topic.models {
                let table = plan.models[*model].table;
                if !tables.contains(&table) {
                    tables.push(table);
                }
            }
            let targets = tables.iter().map(|t| plan.tables[*t].name.clone()).collect();
            Topic::new(&topic.name, tables, targets, &topic.routing_text())
        })
        .collect()
}

/// Adopts a changed routing where that is safe, and refuses it where stored progress would no longer say what was written.
fn settle_routing(client: &mut Client, config: &Config, topics: &[Topic]) -> Result<()> {
    let names: Vec<String> = topics.iter().map(|t| t.name.to_string()).collect();
    for topic in topics {
        let stale = |entries: &[Entry]| entries.iter().any(|e| is_stale(e, &config.pipeline, topic));
        let read = |client: &mut Client| {
            // Nothing here depends on who lives.
            ledger::entries(client, &config.pipeline, &[], &names).context("cannot read the ledger")
        };
        if !stale(&read(client)?) {
            continue;
        }
        let adopted =
            ledger::adopt_routing(client, &config.pipeline, &topic.name, topic.routing_hash, &topic.targets)
                .context("cannot adopt the changed routing")?;
        if stale(&read(client)?) {
            bail!(
                "which table takes which records of topic {:?} changed, and its tables are not level or another process still \
                 runs with the old models: stop all processes of pipeline {:?} with SIGTERM first, which levels them",
                topic.name,
                config.pipeline
            );
        }
        log::info!("topic {:?}: the changed routing was adopted for {adopted} ledger rows", topic.name);
    }
    Ok(())
}

fn is_stale(entry: &Entry, pipeline: &str, topic: &Topic) -> bool {
    *entry.pipeline == *pipeline
        && *entry.topic == *topic.name
        && topic.targets.iter().any(|target| **target == *entry.target)
        && entry.routing_hash != topic.routing_hash
}

/// A name for this process that no other has had: host, process id, and a random number.
pub fn member(config: &Config) -> Member {
    use std::hash::{BuildHasher, RandomState};
    let host = nix::unistd::gethostname().ok().and_then(|h| h.into_string().ok()).unwrap_or_default();
    // Session names hold 63 bytes.
    let host: String = host.chars().filter(char::is_ascii_alphanumeric).take(24).collect();
    let random = RandomState::new().hash_one(std::process::id()) as u32;
    Member {
        pipeline: config.pipeline.clone(),
        name: format!("{host}-{}-{random:08x}", std::process::id()),
        lease: config.lease.duration,
    }
}
