//! `scenario check` and `scenario show`: what would be sent, and what is wrong with it, without a server.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use crate::judge::verdict::Exit;
use crate::message::draw::{Draft, Identity, Kind, People};
use crate::message::known::identity;
use crate::message::model::{COLLECTORS, Door, Model, Recognize, Scenario};
use crate::message::payload::{Extra, Writer, Written};
use crate::plan::options::{ScenarioAction, ScenarioArgs};
use crate::plan::scenario;

/// Messages of each model that are printed, and that are looked at.
const SHOWN: u64 = 10;
const LOOKED_AT: u64 = 10_000;
/// As far apart as those of a thousand a second.
const APART_US: i64 = 1000;

pub fn scenario(args: &ScenarioArgs) -> Result<Exit> {
    match &args.action {
        ScenarioAction::Show => {
            print!("{COLLECTORS}");
            Ok(Exit::Passed)
        }
        ScenarioAction::Check { file } => check(file),
    }
}

fn check(file: &Path) -> Result<Exit> {
    // The flags of the file too, so that it is known to be taken as a whole.
    scenario::arguments(vec!["loadtester".to_owned(), format!("--scenario={}", file.display())])?;
    let Some(scenario) = scenario::models(file, &Door::default())? else {
        println!("{} has flags only; the models are those of `loadtester scenario show`", file.display());
        return Ok(Exit::Passed);
    };
    let people = people();
    let mut problems = Vec::new();
    for (number, model) in scenario.models.iter().enumerate() {
        show(model, &people);
        problems
            .extend(problems_of(number, model, &people).into_iter().map(|text| format!("{model}: {text}")));
    }
    show_others(&scenario, &people);
    println!();
    problems.iter().for_each(|problem| println!("wrong: {problem}"));
    if problems.is_empty() {
        println!("nothing is wrong");
    }
    Ok(if problems.is_empty() { Exit::Passed } else { Exit::Error })
}

/// A thousand users, as a run has them.
fn people() -> Arc<People> {
    use crate::message::keys::{KeySpread, Keys};
    let users = crate::server::users::Users {
        count: 1000,
        seed: 1,
        key: String::new(),
        id: "lt-user-{n}".to_owned(),
    };
    Arc::new(People {
        keys: Keys::new(users.count, KeySpread::Uniform),
        tokens: Arc::new(users.tokens()),
        ids: Arc::new((0..users.count).map(|n| users.id_of(n)).collect()),
    })
}

fn at(seq: u64) -> Identity {
    Identity { stream: 0, seq, due_us: 1_700_000_000_000_000 + seq as i64 * APART_US }
}

fn show(model: &Model, people: &Arc<People>) {
    match &model.http {
        Some(http) => println!("\nmodel {model}: {} {}", http.method, http.url),
        None => println!("\nmodel {model}: topic {}", model.topic),
    }
    let mut writer = Writer::new(1, 1, people.clone(), Extra::default());
    let mut written = Written::default();
    for seq in 0..SHOWN {
        writer.write(&mut written, model, at(seq));
        let place = if model.http.is_some() { &written.path } else { &written.key };
        println!("  {}  {}", String::from_utf8_lossy(place), String::from_utf8_lossy(&written.message));
    }
    if let Some(table) = &model.table {
        let columns: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
        let how = match table.recognize {
            Recognize::Reading(_) => "tell which message a row is",
            Recognize::Looking => "are looked up among those of all messages",
        };
        let identity: Vec<&str> = table.identity_columns().map(|column| column.name.as_str()).collect();
        println!(
            "  becomes a row of {} with {}; {} {how}",
            table.name,
            columns.join(", "),
            identity.join(", ")
        );
    }
}

fn show_others(scenario: &Scenario, people: &Arc<People>) {
    for reader in &scenario.readers {
        println!("\nreader {}: {} at {}", reader.name, reader.method, reader.url.authority);
        let mut draft = Draft::new(1, 1, people.clone());
        for seq in 0..SHOWN {
            draft.fill(&reader.program, at(seq));
            let mut path = Vec::new();
            draft.write(&reader.path, &mut path);
            println!("  {}", String::from_utf8_lossy(&path));
        }
    }
    for aggregate in &scenario.aggregates {
        let columns: Vec<&str> = aggregate.values.iter().map(|held| held.column.as_str()).collect();
        let key: Vec<&str> = aggregate.key.iter().map(|(column, _)| column.as_str()).collect();
        println!(
            "\naggregate {}: {} of {} by {}",
            aggregate.name,
            columns.join(", "),
            aggregate.table,
            key.join(", ")
        );
    }
}

/// What a run would stumble over.
fn problems_of(number: usize, model: &Model, people: &Arc<People>) -> Vec<String> {
    let mut problems = Vec::new();
    let mut writer = Writer::new(1, 1, people.clone(), Extra::default());
    let mut written = Written::default();
    for seq in 0..SHOWN {
        writer.write(&mut written, model, at(seq));
        if written.message.is_empty() {
            continue;
        }
        if let Err(error) = serde_json::from_slice::<serde_json::Value>(&written.message) {
            let text = String::from_utf8_lossy(&written.message).into_owned();
            problems.push(format!("a message is no JSON ({error}): {text}"));
            break;
        }
    }
    if model.table.is_none() && model.folds.is_empty() {
        problems.push("nothing says where its messages must arrive, so none can be missed".to_owned());
    }
    let alike = alike(number, model, people);
    if alike > 0 {
        problems.push(format!(
            "{alike} of {LOOKED_AT} messages have the identity of another, and their rows cannot be told apart"
        ));
    }
    let unused = model.program.steps.iter().filter(|step| matches!(step.kind, Kind::Check(_))).count();
    if unused > 0 && model.table.is_none() {
        problems.push("a check is of no use where no table is judged".to_owned());
    }
    problems
}

fn alike(number: usize, model: &Model, people: &Arc<People>) -> u64 {
    let Some(table) = model.table.as_ref().filter(|t| matches!(t.recognize, Recognize::Looking)) else {
        return 0;
    };
    let needed = model.program.needed(table.identity_columns().map(|column| column.slot));
    let mut draft = Draft::new(1, 1, people.clone());
    let mut index = crate::message::index::Index::default();
    for seq in 0..LOOKED_AT {
        let folded = identity(&mut draft, number, model, &needed, at(seq));
        index.note(folded, 0, seq);
    }
    index.alike
}
