//! Before a run: asks the servers for what must be there, and creates the users.

use anyhow::{Result, bail};

use crate::judge::verify;
use crate::plan::Plan;
use crate::server::pg::{self, ClockOffset, Leaf};
use crate::server::users::{self, Found};

/// What the servers said before the run.
pub struct Setup {
    pub partitions: Vec<i32>,
    pub leaves: Vec<Leaf>,
    pub users: Found,
    pub offset_before: ClockOffset,
    pub settings: Vec<(String, String)>,
    pub commit_times: bool,
    pub redis_version: Option<String>,
    /// By topic, what rowmill had set aside before.
    pub dead_letters: Vec<u64>,
}

pub fn set_up(plan: &Plan) -> Result<Setup> {
    let models = plan.args.mix.models();
    let topics: Vec<&str> = plan.topics.iter().map(String::as_str).collect();
    let mut client = plan.database.connect("setup")?;
    let leaves = pg::leaves(&mut client, &models)?;
    let version = pg::version(&mut client)?;
    if version < 140_000 {
        bail!(
            "PostgreSQL {} cannot read the end of a table by place; version 14 or later is needed",
            version / 10_000
        );
    }
    let mut redis = users::connect(&plan.args.servers.redis, plan.args.servers.redis_ca.as_deref())?;
    if let Some(partitions) = plan.args.create_topics {
        plan.kafka.create_topics(&topics, partitions)?;
    }
    let partitions = plan.kafka.partitions(&topics)?;
    let users = plan.users.create(&mut redis)?;
    let settings = pg::settings(&mut client)?;
    let commit_times = settings.iter().any(|(name, value)| name == "track_commit_timestamp" && value == "on");
    Ok(Setup {
        partitions,
        leaves,
        users,
        offset_before: pg::clock_offset(&mut client)?,
        settings,
        commit_times,
        redis_version: users::version(&mut redis),
        dead_letters: verify::count_dead_letters(&mut client, &plan.topics)?,
    })
}
