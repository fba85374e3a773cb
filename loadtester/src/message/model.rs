//! The models of a scenario: what each message says, where it goes, and which row it must become.

use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use crate::message::ask::Reader;
use crate::message::compile::{Compiler, identifies};
use crate::message::draw::{Clock, Kind, Program, numbers_of};
use crate::message::fold::{Aggregate, Slots};
use crate::message::identity::Reader as Told;
use crate::message::identity::{self, Piece};
use crate::message::pattern::{Pattern, Style};
use crate::message::raw::{RawAggregate, RawColumn, RawHttp, RawModel, RawReader, RawScenario, RawTable};
use crate::message::url::Url;

/// What a run sends that is given no models of its own.
pub const COLLECTORS: &str = include_str!("../../scenarios/collectors.toml");

/// Columns of an identity: a row's are kept in an array of this size, which is read for every row.
pub const IDENTITY_MAX: usize = 8;

#[derive(Clone, Debug)]
pub struct Scenario {
    pub models: Vec<Arc<Model>>,
    pub readers: Vec<Arc<Reader>>,
    pub aggregates: Vec<Arc<Aggregate>>,
}

/// One kind of message.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: String,
    also: Vec<String>,
    pub topic: String,
    share: f64,
    /// Messages per second, where the scenario says so.
    pub rate: Option<f64>,
    pub key: Pattern,
    pub message: Pattern,
    pub program: Program,
    /// The draws that a message is made from; a column may need more.
    pub sent: Vec<bool>,
    pub table: Option<Table>,
    pub http: Option<Http>,
    /// Where the aggregates that take it find what they add up.
    pub folds: Vec<Slots>,
    /// The draw by which readers tell its messages apart.
    pub fresh: Option<usize>,
}

/// How a model's messages are sent over HTTP.
#[derive(Clone, Debug)]
pub struct Http {
    /// As written.
    pub url: String,
    pub method: String,
    /// Path and query.
    pub path: Pattern,
    pub headers: Vec<(String, Pattern)>,
    /// Messages in one request.
    pub batch: usize,
    pub format: Format,
}

/// How a request's body holds its messages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    Single,
    Array,
    /// A message a line.
    Lines,
}

/// Messages in one request, at most: what the front door takes.
const BATCH_MAX: usize = 10_000;

/// What the command line says of sending over HTTP.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// Everything goes there.
    pub url: Option<String>,
    pub batch: Option<usize>,
    pub format: Option<String>,
}

/// Where every message of a model must be one row.
#[derive(Clone, Debug)]
pub struct Table {
    pub name: String,
    pub columns: Vec<Column>,
    /// Places among the columns.
    pub identity: Vec<usize>,
    pub recognize: Recognize,
    /// The column that holds the due time, where an altered one would be found by another.
    pub due: Option<usize>,
    pub received: Option<String>,
    pub filter: Option<String>,
    pub create: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// The draw that it must hold.
    pub slot: usize,
    /// What is wrong where it holds something else.
    pub label: String,
}

/// How a row is known.
#[derive(Clone, Debug)]
pub enum Recognize {
    /// Its identity tells run, stream and number.
    Reading(Vec<Told>),
    /// Its identity is looked up among those of all messages.
    Looking,
}

impl Scenario {
    pub fn collectors() -> Self {
        Self::parse(COLLECTORS).expect("a test compiles the scenario that ships")
    }

    pub fn parse(text: &str) -> Result<Self> {
        Self::compile(&toml::from_str(text).context("read the scenario")?, &Door::default())
    }

    pub fn compile(raw: &RawScenario, door: &Door) -> Result<Self> {
        ensure!(!raw.models.is_empty(), "a scenario has at least one [[model]]");
        let reader = |reader: &RawReader| {
            let compiled = Reader::compile(reader, raw).map(Arc::new);
            compiled.with_context(|| format!("reader \"{}\"", reader.name))
        };
        let readers = raw.readers.iter().map(reader).collect::<Result<Vec<_>>>()?;
        let aggregate = |aggregate: &RawAggregate| {
            let compiled = Aggregate::compile(aggregate).map(Arc::new);
            compiled.with_context(|| format!("aggregate \"{}\"", aggregate.name))
        };
        let aggregates = raw.aggregates.iter().map(aggregate).collect::<Result<Vec<_>>>()?;
        let model = |model: &RawModel| {
            let compiled = Model::compile(model, raw, door, &readers, &aggregates).map(Arc::new);
            compiled.with_context(|| format!("model \"{}\"", model.name))
        };
        let models = raw.models.iter().map(model).collect::<Result<Vec<_>>>()?;
        let named = readers.iter().filter_map(|reader| reader.freshness.as_ref().map(|fresh| &fresh.model));
        let mut named = named.chain(aggregates.iter().flat_map(|aggregate| &aggregate.models));
        if let Some(unknown) = named.find(|name| !models.iter().any(|model| model.is(name))) {
            bail!("a reader or an aggregate speaks of a model \"{unknown}\", and there is none");
        }
        for (at, model) in models.iter().enumerate() {
            if models[..at].iter().any(|other| other.is(&model.name)) {
                bail!("two models are called \"{}\"", model.name);
            }
        }
        Ok(Self { models, readers, aggregates })
    }

    pub fn find(&self, name: &str) -> Option<&Arc<Model>> {
        self.models.iter().find(|model| model.is(name))
    }

    /// The models that are sent, with their shares: as the command line has it, or all as the scenario has it.
    pub fn mix(&self, shares: Option<&Shares>) -> Result<Mix> {
        let Some(shares) = shares else {
            let share = |model: &Arc<Model>| (model.clone(), model.rate.unwrap_or(model.share));
            return Ok(Mix(self.models.iter().map(share).collect()));
        };
        let mut mix: Vec<(Arc<Model>, f64)> = Vec::new();
        for (name, share) in &shares.0 {
            let model = self.find(name).with_context(|| {
                let names: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
                format!("there is no model \"{name}\"; the models are {}", names.join(", "))
            })?;
            ensure!(!mix.iter().any(|(m, _)| m.name == model.name), "{name} stands twice in the mix");
            mix.push((model.clone(), *share));
        }
        Ok(Mix(mix))
    }
}

impl Model {
    fn compile(
        raw: &RawModel,
        scenario: &RawScenario,
        door: &Door,
        readers: &[Arc<Reader>],
        aggregates: &[Arc<Aggregate>],
    ) -> Result<Self> {
        let plain = |name: &str| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        ensure!(plain(&raw.name), "a model's name has letters, digits, \"_\", \"-\" and \".\" only");
        let share = raw.share.unwrap_or(1.0);
        ensure!(share > 0.0 && share.is_finite(), "share must be above zero");
        ensure!(raw.rate.is_none_or(|rate| rate > 0.0 && rate.is_finite()), "rate must be above zero");
        let mut compiler = Compiler::new(&raw.draws, &scenario.draws);
        let message = compiler.pattern(&raw.message, Style::Json).context("message")?;
        let key = compiler.pattern(&raw.key, Style::Plain).context("key")?;
        let table = raw
            .table
            .as_ref()
            .map(|table| Table::compile(table, &raw.name, &mut compiler).context("table"))
            .transpose()?;
        let http = Http::compile(raw, door, &mut compiler).context("http")?;
        let fresh = fresh(&raw.name, readers, &mut compiler).context("freshness")?;
        let mut folds = Vec::new();
        for (at, aggregate) in aggregates.iter().enumerate().filter(|(_, a)| a.takes(&raw.name)) {
            let slots = aggregate.slots(at, &mut compiler);
            folds.push(slots.with_context(|| format!("aggregate \"{}\"", aggregate.name))?);
        }
        let program = compiler.finish();
        let sent = http.iter().flat_map(Http::slots).chain(message.slots()).chain(key.slots()).chain(fresh);
        Ok(Self {
            name: raw.name.clone(),
            also: raw.also.clone(),
            topic: raw.topic.clone().unwrap_or_else(|| raw.name.clone()),
            share,
            rate: raw.rate,
            sent: program.needed(sent),
            key,
            message,
            program,
            table,
            http,
            folds,
            fresh,
        })
    }

    fn is(&self, name: &str) -> bool {
        self.name == name || self.also.iter().any(|other| other == name)
    }

    /// Whether its messages speak of users, who must be in Redis then.
    pub fn has_users(&self) -> bool {
        self.program.steps.iter().any(|step| matches!(step.kind, Kind::User(_)))
    }

    /// What the documents and the reports call where it arrives.
    pub fn table_name(&self) -> &str {
        self.table.as_ref().map_or("", |table| &table.name)
    }
}

/// The draw by which the readers of a model tell its messages apart; there is one.
fn fresh(model: &str, readers: &[Arc<Reader>], compiler: &mut Compiler<'_>) -> Result<Option<usize>> {
    let of_model = readers.iter().filter_map(|reader| reader.freshness.as_ref()).filter(|f| f.model == model);
    let mut names: Vec<&str> = of_model.filter_map(|fresh| Some(fresh.by.as_ref()?.0.as_str())).collect();
    names.dedup();
    ensure!(names.len() < 2, "all readers of a model must tell its messages apart by the same draw");
    names.first().map(|name| compiler.slot(name)).transpose()
}

impl Http {
    /// `None` where messages go to Kafka.
    fn compile(model: &RawModel, door: &Door, compiler: &mut Compiler<'_>) -> Result<Option<Self>> {
        let raw = match (&model.http, &door.url) {
            (None, None) => return Ok(None),
            (raw, None) => raw.clone().unwrap_or_default(),
            (raw, Some(url)) => {
                let url = url.replace("${model}", &model.name);
                RawHttp { url, ..raw.clone().unwrap_or_default() }
            }
        };
        let Url { path, .. } = Url::parse(&raw.url)?;
        let path = compiler.pattern(&path, Style::Address)?;
        let mut headers = Vec::new();
        for (name, value) in &raw.headers {
            let value = compiler.pattern(value, Style::Plain).with_context(|| format!("header {name}"))?;
            headers.push((name.to_ascii_lowercase(), value));
        }
        let batch = door.batch.or(raw.batch).unwrap_or(1);
        ensure!((1..=BATCH_MAX).contains(&batch), "batch must be 1 to {BATCH_MAX}");
        let drawn =
            path.slots().next().or_else(|| headers.iter().find_map(|(_, value)| value.slots().next()));
        ensure!(
            batch == 1 || drawn.is_none(),
            "messages whose path or headers are drawn go one by one; batch must be 1"
        );
        let format = match door.format.as_deref().or(raw.format.as_deref()) {
            _ if batch == 1 => Format::Single,
            None | Some("array") => Format::Array,
            Some("lines") => Format::Lines,
            Some(other) => bail!("format = \"{other}\" is none of array, lines"),
        };
        let method = raw.method.unwrap_or_else(|| "POST".to_owned());
        Ok(Some(Self { url: raw.url, method, path, headers, batch, format }))
    }

    fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.path.slots().chain(self.headers.iter().flat_map(|(_, value)| value.slots()))
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Table {
    fn compile(raw: &RawTable, model: &str, compiler: &mut Compiler<'_>) -> Result<Self> {
        let mut columns = Vec::new();
        for (name, column) in &raw.columns {
            let slot = match column {
                RawColumn::Name(draw) => compiler.slot(draw),
                RawColumn::Draw(draw) => compiler.draw(&format!("column {name}"), draw),
            };
            let slot = slot.with_context(|| format!("column \"{name}\""))?;
            columns.push(Column { name: name.clone(), slot, label: name.clone() });
        }
        ensure!(!raw.identity.is_empty(), "identity names the columns that say which message a row is");
        ensure!(raw.identity.len() <= IDENTITY_MAX, "an identity has at most {IDENTITY_MAX} columns");
        let place = |name: &String| {
            columns.iter().position(|column| column.name == *name).with_context(|| {
                format!("identity names \"{name}\", and columns do not say what it must hold")
            })
        };
        let identity = raw.identity.iter().map(place).collect::<Result<Vec<_>>>()?;
        let program = compiler.program();
        if let Some(at) = identity.iter().find(|at| !identifies(&program.steps[columns[**at].slot])) {
            bail!(
                "\"{}\" identifies no row: fractions and arrays are written in several ways",
                columns[*at].name
            );
        }
        let slots: Vec<usize> = identity.iter().map(|at| columns[*at].slot).collect();
        let recognize = identity::readers(program, &slots).map_or(Recognize::Looking, Recognize::Reading);
        let due = self_describing(program, &mut columns, &recognize);
        Ok(Self {
            name: raw.name.clone().unwrap_or_else(|| model.to_owned()),
            columns,
            identity,
            recognize,
            due,
            received: raw.received.clone(),
            filter: raw.filter.clone(),
            create: raw.create.clone(),
        })
    }

    /// The columns that identify a row.
    pub fn identity_columns(&self) -> impl Iterator<Item = &Column> {
        self.identity.iter().map(|at| &self.columns[*at])
    }

    /// What every row of a run has at the beginning of one column: the column, and the text.
    pub fn beginning(&self, run: u32) -> Option<(&str, String)> {
        let Recognize::Reading(readers) = &self.recognize else { return None };
        readers.iter().zip(self.identity_columns()).find_map(|(reader, column)| {
            let Told::Whole(pieces) = reader else { return None };
            let [Piece::Literal(before), Piece::Run(_), ..] = pieces.as_slice() else { return None };
            Some((column.name.as_str(), format!("{}{run:08x}", String::from_utf8_lossy(before))))
        })
    }

    /// SQL that only rows of this run fulfill, as far as that is known without looking them up.
    pub fn condition(&self, run: u32, start_us: i64) -> String {
        if let Some(filter) = &self.filter {
            return filter
                .replace("${run}", &format!("{run:08x}"))
                .replace("${start_s}", &start_us.div_euclid(1_000_000).to_string())
                .replace("${start_ms}", &start_us.div_euclid(1000).to_string())
                .replace("${start_us}", &start_us.to_string())
                .replace("${start_ns}", &(start_us * 1000).to_string());
        }
        if let Some((column, text)) = self.beginning(run) {
            return format!("starts_with({}::text, '{}')", quoted(column), text.replace('\'', "''"));
        }
        let Recognize::Reading(readers) = &self.recognize else { return "true".to_owned() };
        let has_run = |reader: &Told| match reader {
            Told::Whole(pieces) => pieces.iter().any(|piece| matches!(piece, Piece::Run(_))),
            reader => *reader == Told::Number,
        };
        let (at, column) =
            readers.iter().zip(self.identity_columns()).find(|(r, _)| has_run(r)).expect("one tells the run");
        let name = quoted(&column.name);
        match at {
            Told::Number => {
                let [first, last] = numbers_of(run);
                format!("{name} BETWEEN {first} AND {last}")
            }
            _ => format!("strpos({name}::text, '{run:08x}') > 0"),
        }
    }

    /// Whether the condition holds for rows of this run alone.
    pub fn tells_runs_apart(&self) -> bool {
        self.filter.is_none() && matches!(self.recognize, Recognize::Reading(_))
    }
}

/// The column of the due time, where another column has a check of it: that one then speaks for both.
fn self_describing(program: &Program, columns: &mut [Column], recognize: &Recognize) -> Option<usize> {
    if !matches!(recognize, Recognize::Reading(_)) {
        return None;
    }
    let is_due = |column: &Column| matches!(program.steps[column.slot].kind, Kind::Due(Clock::Rfc3339, 0));
    let due = columns.iter().position(is_due)?;
    let checked = |column: &Column| program.rests_on(column.slot, |kind| matches!(kind, Kind::Check(_)));
    let checking = columns.iter().position(checked)?;
    columns[checking].label = format!("{} or {}", columns[checking].name, columns[due].name);
    Some(due)
}

/// A name in SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `--mix`, as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares(pub Vec<(String, f64)>);

impl std::str::FromStr for Shares {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut shares = Vec::new();
        for part in text.split(',') {
            let (name, share) = part.trim().split_once('=').unwrap_or((part.trim(), "1"));
            let share: f64 =
                share.parse().map_err(|_| format!("the share \"{share}\" of {name} is not a number"))?;
            if !(share > 0.0 && share.is_finite()) {
                return Err(format!("the share of {name} must be above zero; leave the model out instead"));
            }
            shares.push((name.to_owned(), share));
        }
        Ok(Shares(shares))
    }
}

/// Which share of the messages each model has.
#[derive(Clone, Debug)]
pub struct Mix(pub Vec<(Arc<Model>, f64)>);

impl Mix {
    pub fn models(&self) -> Vec<Arc<Model>> {
        self.0.iter().map(|(model, _)| model.clone()).collect()
    }

    /// The model at `at`, a number from 0 to 1, as an index into the mix.
    pub fn pick(&self, at: f64) -> usize {
        let total: f64 = self.0.iter().map(|(_, share)| share).sum();
        let mut left = at * total;
        for (index, (_, share)) in self.0.iter().enumerate() {
            left -= share;
            if left < 0.0 {
                return index;
            }
        }
        self.0.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(text: &str) -> Result<Mix, String> {
        Scenario::collectors().mix(Some(&text.parse()?)).map_err(|error| error.to_string())
    }

    #[test]
    fn mixes() {
        for text in ["", "disk=1", "metric=-1", "metric=0", "metric=x", "metric=1,metric=2"] {
            assert!(mix(text).is_err(), "{text}");
        }
        let mix = mix("metric=60, state=20,log=10,network_trace=5,ping=5").unwrap();
        let names: Vec<String> = mix.models().iter().map(|model| model.name.clone()).collect();
        assert_eq!(names, ["metric", "state", "log", "trace", "ping"]);
        for (at, index) in [(0.0, 0), (0.599, 0), (0.601, 1), (0.85, 2), (0.94, 3), (0.96, 4), (1.0, 4)] {
            assert_eq!(mix.pick(at), index, "{at}");
        }
    }

    #[test]
    fn rows_of_the_collectors_tell_what_they_are() {
        for model in Scenario::collectors().models {
            let table = model.table.as_ref().unwrap();
            assert!(matches!(table.recognize, Recognize::Reading(_)), "{model}");
            assert_eq!(table.columns[table.due.unwrap()].name, "time");
            assert_eq!(table.condition(0xabc, 0), "starts_with(\"source\"::text, 'lt-00000abc')");
            let labels: Vec<&str> = table.columns.iter().map(|column| column.label.as_str()).collect();
            assert!(labels.contains(&"path or time"), "{labels:?}");
        }
    }

    #[test]
    fn what_cannot_be_judged_is_refused() {
        let check = |text: &str, words: &str| {
            let error = format!("{:#}", Scenario::parse(text).unwrap_err());
            assert!(error.contains(words), "{error}");
        };
        check("", "at least one");
        check("[[model]]\nname = \"a b\"\nmessage = \"{}\"", "letters, digits");
        check("[[model]]\nname = \"a\"\nmessage = '${x}'", "no draw \"x\"");
        let model = "[[model]]\nname = \"a\"\nmessage = '${seq}'\n";
        check(&format!("{model}{model}"), "two models");
        check(
            &format!("{model}[model.table]\nidentity = [\"b\"]\ncolumns = {{c = \"seq\"}}"),
            "identity names \"b\"",
        );
        check(
            &format!("{model}[model.table]\nidentity = []\ncolumns = {{c = \"seq\"}}"),
            "identity names the columns",
        );
        check(&format!("{model}surprise = 1"), "surprise");
        let fraction =
            "[model.table]\nidentity = [\"x\"]\ncolumns = {x = {decimal = [0.0, 1.0], decimals = 2}}";
        check(&format!("{model}{fraction}"), "\"x\" identifies no row");
    }

    #[test]
    fn a_filter_of_ones_own_knows_run_and_start() {
        let text = "[[model]]\nname = \"a\"\nmessage = '${seq}'\n[model.table]\nidentity = [\"n\"]\ncolumns = {n = \"seq\"}\nwhere = \"t >= ${start_ms} AND r = '${run}'\"";
        let scenario = Scenario::parse(text).unwrap();
        let table = scenario.models[0].table.as_ref().unwrap();
        assert!(matches!(table.recognize, Recognize::Looking), "a number alone does not tell the run");
        assert_eq!(table.condition(0xabc, 1_234_567), "t >= 1234 AND r = '00000abc'");
    }
}
