//! What this PostgreSQL takes at best: raw binary COPY of generated rows into tables of the same form, with nothing else
//! in the way. A report can then say which share of it a consumer reached.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use postgres::Client;

use crate::base::quantity::show_count;
use crate::judge::verdict::Exit;
use crate::message::model::Model;
use crate::message::payload::{Draft, Field, Identity};
use crate::plan::options::CeilingArgs;
use crate::server::pg::{self, Database};

const SCHEMA: &str = "loadtester_ceiling";

pub fn ceiling(args: &CeilingArgs) -> Result<Exit> {
    let database = Database { url: args.servers.database.clone() };
    let mut client = database.connect("ceiling")?;
    let models = args.mix.models();
    pg::leaves(&mut client, &models)?;
    create(&mut client, &models)?;
    let measured = models.iter().flat_map(|model| [(*model, 1), (*model, 2)]);
    let result = measured
        .map(|(model, connections)| measure(&database, model, connections, args))
        .collect::<Result<Vec<_>>>();
    // The tables go whether it worked or not.
    drop_schema(&mut client)?;
    println!(
        "rows a second, committed, COPY BINARY of {} rows a transaction:",
        show_count(args.batch as u64)
    );
    for (model, connections, rate) in result? {
        println!(
            "  {:<14} {connections} connection{}  {:>12}",
            model.table(),
            if connections == 1 { " " } else { "s" },
            show_count(rate as u64)
        );
    }
    Ok(Exit::Passed)
}

fn create(client: &mut Client, models: &[Model]) -> Result<()> {
    drop_schema(client)?;
    client
        .batch_execute(&format!("CREATE SCHEMA {SCHEMA}"))
        .context("create a schema for the measurement; the user needs CREATE on the database")?;
    for model in models {
        let (table, original) = (model.table(), pg::qualified_name(client, *model)?);
        client
            .batch_execute(&format!("CREATE TABLE {SCHEMA}.\"{table}\" (LIKE {original} INCLUDING ALL)"))
            .with_context(|| format!("create a table like {table}"))?;
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
    model: Model,
    connections: usize,
    args: &CeilingArgs,
) -> Result<(Model, usize, f64)> {
    let copies = (0..connections).map(|n| batch(model, n as u16, args.batch)).collect::<Vec<_>>();
    let clients = (0..connections).map(|_| database.connect("ceiling")).collect::<Result<Vec<_>>>()?;
    let rows = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = clients
            .into_iter()
            .zip(&copies)
            .map(|(client, copy)| {
                scope.spawn(|| fill(client, model, copy, args.batch, began, args.duration, &rows))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
    })?;
    Ok((model, connections, rows.load(Relaxed) as f64 / began.elapsed().as_secs_f64()))
}

fn fill(
    mut client: Client,
    model: Model,
    copy: &[u8],
    batch: usize,
    began: Instant,
    duration: Duration,
    rows: &AtomicU64,
) -> Result<()> {
    let statement = format!(
        "COPY {SCHEMA}.\"{}\" (userid, {}, \"time\", \"timestamp\") FROM STDIN (FORMAT binary)",
        model.table(),
        model.columns().iter().map(|c| format!("\"{c}\"")).collect::<Vec<_>>().join(", ")
    );
    while began.elapsed() < duration {
        let mut writer = client.copy_in(&statement).context("start a COPY")?;
        writer.write_all(copy).context("send rows")?;
        writer.finish().context("commit rows")?;
        rows.fetch_add(batch as u64, Relaxed);
    }
    Ok(())
}

/// One COPY's bytes, made before the clock starts.
fn batch(model: Model, stream: u16, rows: usize) -> Vec<u8> {
    let mut draft = Draft::new(1, 0);
    let mut out = b"PGCOPY\n\xff\r\n\0".to_vec();
    out.extend([0; 8]);
    let columns = model.columns();
    for seq in 0..rows as u64 {
        let fields = draft.fill(model, Identity { stream, seq, due_us: 0 }).to_vec();
        out.extend((columns.len() as i16 + 3).to_be_bytes());
        field(&mut out, b"lt-user-000000");
        for (column, content) in columns.iter().zip(fields) {
            match content {
                Field::Text(start, end) => field(&mut out, draft.text(start, end)),
                // The only whole number is the hop, an INTEGER.
                Field::Integer(n) => field(&mut out, &(n as i32).to_be_bytes()),
                Field::Hundredths(n) => field(&mut out, &(n as f64 / 100.0).to_be_bytes()),
            }
            debug_assert!(!column.is_empty());
        }
        field(&mut out, &(seq as i64).to_be_bytes());
        field(&mut out, &(seq as i64).to_be_bytes());
    }
    out.extend((-1i16).to_be_bytes());
    out
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as i32).to_be_bytes());
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::model::MODELS;

    #[test]
    fn the_batch_is_a_binary_copy() {
        for model in MODELS {
            let bytes = batch(model, 0, 10);
            let rows = crate::server::copy_out::read(&mut bytes.as_slice(), |row| {
                assert_eq!(row.bytes(0), Some(&b"lt-user-000000"[..]));
                assert!(row.timestamp_us(model.columns().len() + 2).is_some());
                Ok(())
            });
            assert_eq!(rows.unwrap(), 10);
        }
    }
}
