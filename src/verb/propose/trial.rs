//! What would become of the sample's records: the proposed model is read as a configuration is, compiled against the proposed
//! table, and every record goes through the decoder of the pipeline. No server takes part, so what only a server refuses is
//! not found.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use super::proposal::Proposal;
use super::sample::Place;
use crate::decode::column::{Found, Lookups};
use crate::decode::record::{Limits, RecordDecoder};
use crate::decode::reject::{Reason, Reject};
use crate::model::RawModel;
use crate::model::compile::compile;
use crate::model::plan::quoted;
use crate::model::types::{Column, Kind, Table};
use crate::promise::batch::{Headers, Record};

/// Refused records that are named one by one; more than anybody reads.
const NAMED_MAX: usize = 100;

pub(super) struct Trial {
    decoder: RecordDecoder,
    records: u64,
    named: Vec<(Place, Reject)>,
    /// Beyond those that are named.
    more: BTreeMap<Reason, u64>,
}

/// The proposed model has no lookups.
struct NoLookups;

impl Lookups for NoLookups {
    fn find(&self, _lookup: usize, _token: &str) -> Found<'_> {
        Found::Unknown
    }
}

impl Trial {
    pub(super) fn new(proposal: &Proposal) -> Result<Trial> {
        #[derive(Deserialize)]
        struct Models {
            model: Vec<RawModel>,
        }
        let text = proposal.model();
        let Models { model } = toml::from_str(&text).context("the proposed model is no configuration")?;
        let name = model.first().context("no model was proposed")?.table.clone();
        let tables = HashMap::from([(name, table(proposal))]);
        let plan = compile(&model, &tables, &[]).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            anyhow!("the proposed model does not fit its table: {}", problems.join("; "))
        })?;
        let decoder = RecordDecoder::new(plan.into(), 0, Limits::default());
        Ok(Trial { decoder, records: 0, named: Vec::new(), more: BTreeMap::new() })
    }

    pub(super) fn run(&mut self, place: Place, value: Option<&[u8]>) {
        self.records += 1;
        match self.decode(place, value) {
            Err(reject) if self.named.len() < NAMED_MAX => self.named.push((place, reject)),
            Err(reject) => *self.more.entry(reject.reason).or_default() += 1,
            Ok(()) => {}
        }
    }

    fn decode(&mut self, place: Place, value: Option<&[u8]>) -> Result<(), Reject> {
        let record = Record {
            topic: "",
            partition: place.partition,
            offset: place.offset,
            timestamp_ms: None,
            key: None,
            value,
            headers: Headers::default(),
        };
        let Some(message) = self.decoder.parse(&record)?.message() else { return Ok(()) };
        self.decoder.encode(0, message, &NoLookups, &mut Vec::new()).map(drop)
    }

    /// In words, a line each.
    pub(super) fn verdict(&self) -> Vec<String> {
        let more: u64 = self.more.values().sum();
        let refused = self.named.len() as u64 + more;
        let mut lines = vec![match refused {
            0 => format!("Tried: all {} records would become rows.", self.records),
            1 => format!("Tried: 1 of {} records would become a dead letter:", self.records),
            _ => format!("Tried: {refused} of {} records would become dead letters:", self.records),
        }];
        lines.extend(self.named.iter().map(|(place, reject)| format!("  {place}: {reject}")));
        if more > 0 {
            let reasons: Vec<String> =
                self.more.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
            lines.push(format!("  and {more} more: {}", reasons.join(", ")));
        }
        lines
    }
}

/// The table as the server would describe it.
fn table(proposal: &Proposal) -> Table {
    let columns = proposal.columns.iter().zip(1..).map(|(column, attnum)| Column {
        name: column.name.clone(),
        attnum,
        ty: column.ty.clone(),
        not_null: column.not_null,
        has_default: false,
        generated_or_identity_always: false,
        fills_itself: false,
    });
    Table {
        oid: 1,
        schema: "public".into(),
        name: proposal.table().to_owned(),
        sql_name: quoted(proposal.table()),
        columns: columns.collect(),
        primary_key: proposal.key(),
        fingerprint: String::new(),
        kind: Kind::Ordinary,
        ranged_by: None,
    }
}
