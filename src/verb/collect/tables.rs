//! What the models of a topic would make of a record, for routes with `validate = "model"`: their tables' definitions, read again
//! and again by a thread of its own, and one judge for each loop.
//!
//! A door without its database stays open: what it would have refused becomes a dead letter, as without this setting.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use super::records::Record;
use super::route::Routes;
use crate::base::lock::lock;
use crate::base::retry::Episode;
use crate::base::thread::Pulse;
use crate::client::pg::Server;
use crate::config::{Config, Validate};
use crate::decode::record::Limits;
use crate::decode::trial::Trial;
use crate::model::plan::Plan;
use crate::promise::batch::{Headers, Record as Kafkas};
use crate::verb::setup;

/// Between two looks at the definitions. Until a change is seen, its records are refused or become dead letters, as before it.
const LOOK: Duration = Duration::from_secs(10);

/// Before the first look has succeeded.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What all loops share.
pub struct Tables {
    config: Config,
    server: Server,
    /// Counts the plans; 0 while there is none.
    edition: AtomicU64,
    plan: Mutex<Option<Arc<Plan>>>,
}

impl Tables {
    /// # Errors
    /// For a route that asks for the models of a topic that has none.
    pub fn new(config: &Config, routes: &Routes) -> Result<Tables> {
        for route in routes.routes.iter().filter(|route| route.validate == Validate::Model) {
            let topic = &routes.topics[route.topic];
            if !config.models.iter().any(|model| model.topic == *topic) {
                bail!(
                    "route {}: validate = \"model\", and no [[model]] is of topic {topic:?}: add one, or leave validate out",
                    route.name
                );
            }
        }
        let server = Server::of(&config.postgres)?;
        Ok(Tables { config: config.clone(), server, edition: AtomicU64::new(0), plan: Mutex::new(None) })
    }

    /// Looks again and again.
    ///
    /// # Errors
    /// Never: what is wrong is said, and looked at again.
    pub fn watch(&self, pulse: &Pulse) -> Result<()> {
        let mut trouble = Episode::default();
        loop {
            match pulse.during("reading the definitions of tables", || self.look()) {
                Ok(()) if trouble.ends() => log::info!("the tables of the models are known again"),
                Ok(()) => {}
                Err(error) if trouble.begins() => log::warn!(
                    "{error:#}; until that is mended, records are taken that the models would refuse, and become dead letters"
                ),
                Err(_) => {}
            }
            std::thread::sleep(if self.edition.load(SeqCst) == 0 { LOOK_AGAIN } else { LOOK });
        }
    }

    fn look(&self) -> Result<()> {
        let mut client = self.server.connect("rowmill collect")?;
        let plan = setup::plan(&self.config, &mut client)
            .context("cannot read the tables of the models")?
            .map_err(setup::all_problems)?;
        let mut known = lock(&self.plan);
        if known.as_ref().is_none_or(|known| **known != plan) {
            *known = Some(Arc::new(plan));
            self.edition.fetch_add(1, SeqCst);
        }
        Ok(())
    }
}

/// One loop's judge.
pub struct Judge {
    tables: Arc<Tables>,
    edition: u64,
    /// By the topic's number among the routes'; `None` where no model is of it.
    trials: Vec<Option<Trial>>,
    topics: Vec<String>,
    headers: Vec<u8>,
}

impl Judge {
    pub fn new(tables: Arc<Tables>, topics: &[String]) -> Judge {
        Judge { tables, edition: 0, trials: Vec::new(), topics: topics.to_vec(), headers: Vec::new() }
    }

    /// What would stand in the dead letter of a record; `None` where it would be rows, or nobody knows. `id` is the name of the
    /// header that carries its id.
    pub fn refusal(&mut self, topic: usize, record: &Record, body: &[u8], id: &str) -> Option<String> {
        self.keep_up();
        let trial = self.trials.get_mut(topic)?.as_mut()?;
        self.headers.clear();
        if let Some(value) = &record.id {
            Headers::append(&mut self.headers, id.as_bytes(), Some(value));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
        let as_it_would_be = Kafkas {
            topic: &self.topics[topic],
            partition: 0,
            offset: 0,
            timestamp_ms: now.and_then(|now| i64::try_from(now.as_millis()).ok()),
            key: record.key.as_deref(),
            value: Some(&body[record.range.clone()]),
            headers: Headers(&self.headers),
        };
        trial.record(&as_it_would_be, |_, _| {}).err().map(|reject| reject.message)
    }

    fn keep_up(&mut self) {
        let newest = self.tables.edition.load(SeqCst);
        if newest == self.edition {
            return;
        }
        let Some(plan) = lock(&self.tables.plan).clone() else { return };
        let bytes_max = self.tables.config.limits.message_max_bytes;
        let limits = Limits { value_bytes_max: bytes_max, ..Limits::default() };
        let number = |topic: &String| plan.topics.iter().position(|planned| planned.name == *topic);
        self.trials =
            self.topics.iter().map(|topic| Some(Trial::new(&plan, number(topic)?, limits))).collect();
        self.edition = newest;
    }
}
