//! Before a run: asks the servers for what must be there, and creates the users.

use anyhow::{Result, bail};

use crate::base::clock;
use crate::judge::aggregate::{self, Rows};
use crate::judge::verify;
use crate::message::model::Table;
use crate::plan::Plan;
use crate::server::pg::{self, ClockOffset, Forms, Leaf};
use crate::server::users::{self, Found};
use crate::verb::run::settled::settled;

/// What the servers said before the run.
pub struct Setup {
    pub partitions: Vec<i32>,
    pub tables: (Vec<Leaf>, Forms),
    /// Where messages speak of users.
    pub users: Option<Found>,
    pub offset_before: ClockOffset,
    pub settings: Vec<(String, String)>,
    pub commit_times: bool,
    pub redis_version: Option<String>,
    /// By topic, what rowmill had set aside before.
    pub dead_letters: Vec<u64>,
    /// Rows and dead letters that were there, where this run's cannot be told from them.
    pub there_before: u64,
    /// What each aggregate held.
    pub aggregates: Vec<Rows>,
}

pub fn set_up(plan: &Plan) -> Result<Setup> {
    let models = plan.models();
    let to_kafka = models.iter().zip(&plan.topics).filter(|(model, _)| model.http.is_none());
    let topics: Vec<&str> = to_kafka.map(|(_, topic)| topic.as_str()).collect();
    let database = if plan.has_database() { Some(of_the_database(plan)?) } else { None };
    let mut redis = match plan.has_users() {
        true => Some(users::connect(&plan.args.servers.redis, plan.args.servers.redis_ca.as_deref())?),
        false => None,
    };
    if let Some(partitions) = plan.args.create_topics.filter(|_| !topics.is_empty()) {
        plan.kafka.create_topics(&topics, partitions)?;
    }
    let mut of_topics =
        if topics.is_empty() { Vec::new() } else { plan.kafka.partitions(&topics)? }.into_iter();
    // Over HTTP there is no order to keep, so one sender a thread is enough.
    let partitions = models
        .iter()
        .map(|model| if model.http.is_some() { 1 } else { of_topics.next().unwrap_or(1) })
        .collect();
    let users = redis.as_mut().map(|redis| plan.users.create(redis)).transpose()?;
    let there = database.unwrap_or_default();
    Ok(Setup {
        partitions,
        tables: there.tables,
        users,
        offset_before: there.offset,
        commit_times: there
            .settings
            .iter()
            .any(|(name, value)| name == "track_commit_timestamp" && value == "on"),
        settings: there.settings,
        redis_version: redis.as_mut().and_then(users::version),
        dead_letters: if there.dead_letters.is_empty() {
            vec![0; plan.topics.len()]
        } else {
            there.dead_letters
        },
        there_before: there.before,
        aggregates: there.aggregates,
    })
}

#[derive(Default)]
struct There {
    tables: (Vec<Leaf>, Forms),
    settings: Vec<(String, String)>,
    offset: ClockOffset,
    dead_letters: Vec<u64>,
    before: u64,
    aggregates: Vec<Rows>,
}

fn of_the_database(plan: &Plan) -> Result<There> {
    let models = plan.models();
    let mut client = plan.database.connect("setup")?;
    let tables = pg::leaves(&mut client, &models)?;
    let version = pg::version(&mut client)?;
    if version < 140_000 {
        bail!(
            "PostgreSQL {} cannot read the end of a table by place; version 14 or later is needed",
            version / 10_000
        );
    }
    // Rows that tell their run are not counted before it has any: the tables may be large.
    let told_apart = models.iter().filter_map(|model| model.table.as_ref()).all(Table::tells_runs_apart);
    Ok(There {
        before: if told_apart { 0 } else { settled(plan, &mut client, clock::wall_us())? },
        tables,
        aggregates: aggregate::read_all(&mut client, &plan.aggregates)?,
        settings: pg::settings(&mut client)?,
        offset: pg::clock_offset(&mut client)?,
        dead_letters: verify::count_dead_letters(&mut client, &plan.topics)?,
    })
}
