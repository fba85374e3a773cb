//! The records of the simulated topics, the plan that routes them, and what each must become.

#![allow(dead_code, reason = "the simulator and the comparison use different parts")]

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use rowmill_faults::random::Random;

use rowmill::model::RawModel;
use rowmill::model::compile::compile;
use rowmill::model::plan::Plan;
use rowmill::model::types::{Column, Kind, Table, Type};
use rowmill::promise::topics::Topic;
use rowmill::verb::setup;

/// Topic `a` feeds two tables by a field, topic `b` one of them, and a third that has its sums.
const MODELS: &str = r#"
[[model]]
topic = "a"
table = "t"
when = { kind = "t" }
tombstones = "skip"
[[model]]
topic = "a"
table = "u"
when = { kind = "u" }
tombstones = "skip"
[[model]]
topic = "b"
table = "u"
tombstones = "skip"
[[model]]
topic = "b"
table = "s"
mode = "add"
tombstones = "skip"
[model.columns]
count = { fold = "count" }
total = { fold = "sum", field = "n" }
"#;

pub(crate) const TABLES: usize = 3;

/// The table of sums.
pub(crate) const SUMS: usize = 2;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    ForT,
    ForU,
    Unroutable,
    MissingField,
    NoJson,
    Tombstone,
    /// A row for the decoder, and none for the server.
    Refused,
}

/// What a record becomes in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Row,
    Dead,
    Skipped,
    Other,
}

impl Shape {
    pub(crate) fn any(random: &mut Random) -> Shape {
        match random.below(13) {
            0 => Shape::Unroutable,
            1 => Shape::MissingField,
            2 => Shape::NoJson,
            3 => Shape::Tombstone,
            12 => Shape::Refused,
            4..8 => Shape::ForT,
            _ => Shape::ForU,
        }
    }

    pub(crate) fn value(self) -> Option<&'static [u8]> {
        match self {
            Shape::ForT => Some(br#"{"kind":"t","n":1}"#),
            Shape::ForU => Some(br#"{"kind":"u","n":2}"#),
            Shape::Unroutable => Some(br#"{"kind":"?","n":3}"#),
            Shape::MissingField => Some(br#"{"kind":"u"}"#),
            Shape::NoJson => Some(b"{"),
            Shape::Refused => Some(br#"{"kind":"t","n":-1}"#),
            Shape::Tombstone => None,
        }
    }

    /// The key and the number of one that is added up.
    pub(crate) fn added(self) -> (&'static str, i64) {
        match self {
            Shape::ForT => ("t", 1),
            Shape::ForU => ("u", 2),
            Shape::Unroutable => ("?", 3),
            other => unreachable!("{other:?} is no row"),
        }
    }

    /// The specification, in words of its own: `lane` counts the tables of the topic.
    pub(crate) fn outcome(self, topic: usize, lane: usize) -> Outcome {
        let home = lane == 0;
        match (self, topic) {
            (Shape::Tombstone, _) => Outcome::Skipped,
            (Shape::NoJson, _) if home => Outcome::Dead,
            (Shape::Refused, _) if home => Outcome::Dead,
            (Shape::MissingField | Shape::Refused, 1) => Outcome::Dead,
            (Shape::ForT | Shape::ForU | Shape::Unroutable, 1) => Outcome::Row,
            (Shape::ForT, _) if lane == 0 => Outcome::Row,
            (Shape::ForU, _) if lane == 1 => Outcome::Row,
            (Shape::MissingField, _) if lane == 1 => Outcome::Dead,
            (Shape::Unroutable, _) if home => Outcome::Dead,
            _ => Outcome::Other,
        }
    }
}

#[derive(serde::Deserialize)]
struct Models {
    model: Vec<RawModel>,
}

/// Compiled once: the same for every schedule.
pub(crate) fn plan() -> Arc<Plan> {
    static PLAN: OnceLock<Arc<Plan>> = OnceLock::new();
    let compiled = || {
        let models: Models = toml::from_str(MODELS).expect("the models are TOML");
        let columns = |name| match name {
            "s" => vec![column("kind", Type::Text), column("count", Type::Int8), column("total", Type::Int8)],
            _ => vec![column("n", Type::Int8)],
        };
        let tables: HashMap<_, _> = ["t", "u", "s"]
            .into_iter()
            .zip(1..)
            .map(|(n, oid)| (n.into(), table(oid, n, columns(n))))
            .collect();
        Arc::new(compile(&models.model, &tables, &[]).unwrap_or_else(|problems| panic!("{problems:?}")))
    };
    PLAN.get_or_init(compiled).clone()
}

pub(crate) fn topics() -> Arc<[Topic]> {
    setup::topics(&plan())
}

fn column(name: &str, ty: Type) -> Column {
    Column {
        name: name.into(),
        attnum: 1,
        ty,
        not_null: true,
        has_default: false,
        generated_or_identity_always: false,
        fills_itself: false,
    }
}

fn table(oid: u32, name: &str, columns: Vec<Column>) -> Table {
    Table {
        oid,
        schema: "public".into(),
        name: name.into(),
        sql_name: format!("\"public\".\"{name}\""),
        primary_key: vec![columns[0].name.clone()],
        columns,
        fingerprint: String::new(),
        kind: Kind::Ordinary,
        ranged_by: None,
    }
}
