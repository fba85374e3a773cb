//! What this PostgreSQL takes at best: raw binary COPY of generated rows into tables of the same form, with nothing else
//! in the way. A report can then say which share of it a consumer reached.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use postgres::Client;

use crate::base::quantity::show_count;
use crate::judge::verdict::Exit;
use crate::message::draw::{Draft, Identity, People, Value, power};
use crate::message::keys::{KeySpread, Keys};
use crate::message::model::{Door, Model, Table, quoted};
use crate::plan::options::CeilingArgs;
use crate::plan::{self, scenario};
use crate::server::pg::{self, Database};

const SCHEMA: &str = "loadtester_ceiling";

pub fn ceiling(args: &CeilingArgs) -> Result<Exit> {
    let database = Database { url: args.servers.database.clone() };
    let mut client = database.connect("ceiling")?;
    let own =
        args.scenario.as_deref().map(|path| scenario::models(path, &Door::default())).transpose()?.flatten();
    let mix = match own {
        Some(scenario) => scenario.mix(args.mix.as_ref())?,
        None => plan::collectors(args.mix.as_ref(), &Door::default())?.1,
    };
    let mut models = mix.models();
    models.retain(|model| model.table.is_some());
    pg::leaves(&mut client, &models)?;
    let targets = models.iter().map(|model| Target::of(&mut client, model)).collect::<Result<Vec<_>>>()?;
    create(&mut client, &targets)?;
    let measured = targets.iter().flat_map(|target| [(target, 1), (target, 2)]);
    let result = measured
        .map(|(target, connections)| measure(&database, target, connections, args))
        .collect::<Result<Vec<_>>>();
    // The tables go whether it worked or not.
    drop_schema(&mut client)?;
    println!(
        "rows a second, committed, COPY BINARY of {} rows a transaction:",
        show_count(args.batch as u64)
    );
    for (table, connections, rate) in result? {
        println!(
            "  {table:<14} {connections} connection{}  {:>12}",
            if connections == 1 { " " } else { "s" },
            show_count(rate as u64)
        );
    }
    Ok(Exit::Passed)
}

/// A model, and the types of what its table must hold.
struct Target {
    model: Arc<Model>,
    /// The table that is copied in form, and the copy.
    original: String,
    copy: String,
    types: Vec<String>,
}

impl Target {
    fn of(client: &mut Client, model: &Arc<Model>) -> Result<Self> {
        let types = pg::column_types(client, model)?;
        let table = table_of(model);
        let of = |name: &str| {
            let found = types.iter().find(|(column, _)| column == name);
            found.map_or(String::new(), |(_, kind)| kind.clone())
        };
        Ok(Self {
            original: pg::qualified_name(client, model)?,
            copy: format!("{SCHEMA}.{}", quoted(&model.name)),
            types: table.columns.iter().map(|column| of(&column.name)).collect(),
            model: model.clone(),
        })
    }

    fn statement(&self) -> String {
        let table = table_of(&self.model);
        let names = table.columns.iter().map(|column| column.name.as_str());
        let names: Vec<String> = names.chain(table.received.as_deref()).map(quoted).collect();
        format!("COPY {} ({}) FROM STDIN (FORMAT binary)", self.copy, names.join(", "))
    }
}

fn table_of(model: &Model) -> &Table {
    model.table.as_ref().expect("models without a table were left out")
}

fn create(client: &mut Client, targets: &[Target]) -> Result<()> {
    drop_schema(client)?;
    client
        .batch_execute(&format!("CREATE SCHEMA {SCHEMA}"))
        .context("create a schema for the measurement; the user needs CREATE on the database")?;
    for target in targets {
        client
            .batch_execute(&format!("CREATE TABLE {} (LIKE {} INCLUDING ALL)", target.copy, target.original))
            .with_context(|| format!("create a table like {}", target.original))?;
    }
    Ok(())
}

fn drop_schema(client: &mut Client) -> Result<()> {
    client
        .batch_execute(&format!("DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"))
        .context("remove the schema of the measurement")
}

fn measure(
    database: &Database,
    target: &Target,
    connections: usize,
    args: &CeilingArgs,
) -> Result<(String, usize, f64)> {
    let copies = (0..connections)
        .map(|n| batch(&target.model, &target.types, n as u16, args.batch))
        .collect::<Result<Vec<_>>>()?;
    let clients = (0..connections).map(|_| database.connect("ceiling")).collect::<Result<Vec<_>>>()?;
    let (rows, statement) = (AtomicU64::new(0), target.statement());
    let began = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = clients
            .into_iter()
            .zip(&copies)
            .map(|(client, copy)| {
                scope.spawn(|| fill(client, &statement, copy, args.batch, began, args.duration, &rows))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    let rate = rows.load(Relaxed) as f64 / began.elapsed().as_secs_f64();
    Ok((table_of(&target.model).name.clone(), connections, rate))
}

fn fill(
    mut client: Client,
    statement: &str,
    copy: &[u8],
    batch: usize,
    began: Instant,
    duration: Duration,
    rows: &AtomicU64,
) -> Result<()> {
    while began.elapsed() < duration {
        let mut writer = client.copy_in(statement).context("start a COPY")?;
        writer.write_all(copy).context("send rows")?;
        writer.finish().context("commit rows")?;
        rows.fetch_add(batch as u64, Relaxed);
    }
    Ok(())
}

/// Microseconds from 1970 to 2000, PostgreSQL's own zero.
const EPOCH_2000_US: i64 = 946_684_800_000_000;

/// One COPY's bytes, made before the clock starts.
fn batch(model: &Model, types: &[String], stream: u16, rows: usize) -> Result<Vec<u8>> {
    let name = || Arc::new(vec!["lt-user-000000".to_owned()]);
    let people = People { keys: Keys::new(1, KeySpread::Uniform), tokens: name(), ids: name() };
    let mut draft = Draft::new(1, 0, Arc::new(people));
    let mut out = b"PGCOPY\n\xff\r\n\0".to_vec();
    out.extend([0; 8]);
    let table = table_of(model);
    let columns = table.columns.len() + usize::from(table.received.is_some());
    for seq in 0..rows as u64 {
        draft.fill(&model.program, Identity { stream, seq, due_us: EPOCH_2000_US + seq as i64 });
        out.extend((columns as i16).to_be_bytes());
        for (column, kind) in table.columns.iter().zip(types) {
            write(&mut out, &draft, draft.value(column.slot), kind)
                .with_context(|| format!("write the column \"{}\" of {}", column.name, table.name))?;
        }
        if table.received.is_some() {
            field(&mut out, &(seq as i64).to_be_bytes());
        }
    }
    out.extend((-1i16).to_be_bytes());
    Ok(out)
}

/// A column as PostgreSQL's binary COPY has its type.
fn write(out: &mut Vec<u8>, draft: &Draft, value: Value, kind: &str) -> Result<()> {
    match (kind, value) {
        (_, Value::Null) => out.extend((-1i32).to_be_bytes()),
        ("text" | "varchar" | "bpchar" | "bytea" | "json", Value::Text(span)) => field(out, draft.text(span)),
        ("int2", Value::Integer(n)) => field(out, &(n as i16).to_be_bytes()),
        ("int4", Value::Integer(n)) => field(out, &(n as i32).to_be_bytes()),
        ("int8", Value::Integer(n)) => field(out, &n.to_be_bytes()),
        ("float8", Value::Integer(n)) => field(out, &(n as f64).to_be_bytes()),
        ("float8", Value::Decimal(n, places)) => field(out, &(n as f64 / power(places)).to_be_bytes()),
        ("float4", Value::Decimal(n, places)) => {
            field(out, &((n as f64 / power(places)) as f32).to_be_bytes())
        }
        ("timestamptz" | "timestamp", Value::Time(us)) => field(out, &(us - EPOCH_2000_US).to_be_bytes()),
        ("bool", Value::Bool(truth)) => field(out, &[u8::from(truth)]),
        (kind, _) => bail!("`ceiling` makes no values of type {kind} from what the scenario draws"),
    }
    Ok(())
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as i32).to_be_bytes());
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::model::Scenario;

    #[test]
    fn the_batch_is_a_binary_copy() {
        for model in Scenario::collectors().models {
            let types: Vec<String> = table_of(&model)
                .columns
                .iter()
                .map(|column| match column.name.as_str() {
                    "time" => "timestamptz",
                    "hop" => "int4",
                    "latency" => "float8",
                    "value" if model.name == "metric" => "float8",
                    _ => "varchar",
                })
                .map(str::to_owned)
                .collect();
            let bytes = batch(&model, &types, 0, 10).unwrap();
            let rows = crate::server::copy_out::read(&mut bytes.as_slice(), |row| {
                let userid = table_of(&model).columns.iter().position(|c| c.name == "userid").unwrap();
                assert_eq!(row.bytes(userid), Some(&b"lt-user-000000"[..]));
                assert!(row.timestamp_us(types.len()).is_some());
                Ok(())
            });
            assert_eq!(rows.unwrap(), 10);
        }
    }
}
