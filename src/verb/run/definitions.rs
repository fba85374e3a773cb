//! The tables' definitions while the pipeline runs: read again when a table is not the one that rows were encoded for. What
//! changed is said, and published as a new edition of the plan; whose data is void then is the writers' matter.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::Result;

use crate::base::failure::{Class, Failure};
use crate::base::lock::lock;
use crate::client::pg::{self, Client, Server};
use crate::config::Config;
use crate::model::compile::Problem;
use crate::model::editions::Editions;
use crate::model::plan::Plan;
use crate::model::types::Table;
use crate::verb::setup::{self, Setup};

/// The last good definitions, by the tables' names in the models.
pub struct Definitions {
    config: Config,
    server: Server,
    editions: Arc<Editions>,
    tables: Mutex<HashMap<String, Table>>,
}

impl Definitions {
    pub fn new(config: &Config, setup: &Setup) -> Definitions {
        Definitions {
            config: config.clone(),
            server: setup.server.clone(),
            editions: Arc::new(Editions::begin(setup.plan.clone())),
            tables: Mutex::new(setup.tables.clone()),
        }
    }

    pub fn editions(&self) -> Arc<Editions> {
        self.editions.clone()
    }

    /// Reads one table of the plan again. Others keep the definition that they had: one that is broken must not hold them up.
    ///
    /// # Errors
    /// Where PostgreSQL is away, and where the table is none any more that the models could fill, or that keeps the promise.
    pub fn renew(&self, table: usize) -> Result<(), Failure> {
        let mut tables = lock(&self.tables);
        let plan = self.editions.newest().plan;
        let known = &plan.tables[table];
        let names = tables.iter().filter(|(_, t)| t.sql_name == known.sql_name).map(|(name, _)| name.clone());
        let names: Vec<String> = names.collect();
        let mut client = self.server.connect("rowmill definitions").map_err(away)?;
        let mut renewed = tables.clone();
        for name in &names {
            renewed.insert(name.clone(), read(&mut client, name)?);
        }
        if renewed == *tables {
            return Ok(());
        }
        let new = setup::compiled(&self.config, &renewed).map_err(|problems| unfit(&problems))?;
        same_places(&plan, &new)?;
        let remarks = setup::audit_table(&mut client, &new.tables[table]).map_err(away)?;
        if !remarks.refusals.is_empty() {
            return Err(Failure::new(Class::Table, remarks.refusals.join("; ")));
        }
        // Once, and not at each try while a definition is waited for. Several names may stand for the one table.
        if let Some(name) = names.first() {
            say_changes(&tables[name], &renewed[name]);
        }
        *tables = renewed;
        self.editions.publish(new);
        Ok(())
    }
}

fn read(client: &mut Client, name: &str) -> Result<Table, Failure> {
    setup::table(client, name).map_err(away)?.map_err(|problem| unfit(&[problem]))
}

fn away(error: anyhow::Error) -> Failure {
    let class = match pg::class_of(&error) {
        class @ (Class::World | Class::Lost) => class,
        _ => Class::Table,
    };
    Failure::new(class, format!("{error:#}"))
}

fn unfit(problems: &[Problem]) -> Failure {
    let problems: Vec<String> = problems.iter().map(Problem::to_string).collect();
    Failure::new(Class::Table, problems.join("; "))
}

fn say_changes(old: &Table, new: &Table) {
    for change in old.changes_to(new) {
        log::info!("table {}.{}: {change}", new.schema, new.name);
    }
}

/// The ledger knows tables by their names, and the threads by their places.
fn same_places(old: &Plan, new: &Plan) -> Result<(), Failure> {
    let names = |plan: &Plan| plan.tables.iter().map(|table| table.sql_name.clone()).collect::<Vec<_>>();
    if names(old) == names(new) {
        return Ok(());
    }
    let words =
        format!("the models name the tables {:?} now, and {:?} before: start again", names(new), names(old));
    Err(Failure::new(Class::Table, words))
}
