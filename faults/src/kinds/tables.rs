//! What people do to tables that are written to: the processes must go on with what they find, and store what they stored.

use anyhow::{Result, ensure};
use postgres::Client;
use rowmill_faults::random::Random;

use crate::campaign::{Campaign, Kind, Struck};
use crate::world::TABLES;

pub(super) const KINDS: [Kind; 2] =
    [Kind { name: "trigger-drops-rows", run: trigger }, Kind { name: "table-altered", run: altered }];

/// A lock may be busy for a while: so often a statement is tried.
const TRIES: usize = 10;

/// It drops rows without a word, and they must become dead letters. It drops those that the table's CHECK refuses while there
/// is no trigger: what becomes of a record must not depend on when it arrives, or nobody could judge it.
fn trigger(campaign: &Campaign, _: &mut Random) -> Struck {
    let mut client = campaign.patient_sql()?;
    let mut dropped = || {
        let sql = "SELECT count(*) FROM rowmill.dead_letter WHERE reason = 'not_stored'";
        client.query_one(sql, &[]).map_or(0, |row| row.get::<_, i64>(0))
    };
    let before = dropped();
    campaign.execute(
        "CREATE OR REPLACE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN IF NEW.n < 0 THEN RETURN NULL; END IF; RETURN NEW; END';
         CREATE TRIGGER swallow BEFORE INSERT ON t1 FOR EACH ROW EXECUTE FUNCTION swallow()",
    )?;
    let noticed = campaign.wait(15, || dropped() > before);
    insist(campaign, "DROP TRIGGER swallow ON t1")?;
    Ok((noticed, format!("it swallowed {} rows", dropped() - before)))
}

/// One change of a table's definition.
struct Change {
    sql: String,
    /// What a running process says when it notices.
    said: String,
}

/// A column comes, another grows, the first is renamed and goes, and another table takes the name; and at last a column that
/// the model names is gone for a while. After each the table must get rows again.
fn altered(campaign: &Campaign, random: &mut Random) -> Struck {
    let table = *random.pick(&TABLES);
    let mut client = campaign.patient_sql()?;
    let changes = changes(campaign, &mut client, table, random.below(1_000_000))?;
    let mut unnoticed = Vec::new();
    for Change { sql, said } in &changes {
        insist(campaign, sql)?;
        if !campaign.wait(5, || is_said(campaign, said)) {
            unnoticed.push(said.as_str());
        }
        goes_on(campaign, &mut client, table, sql)?;
    }
    let away = format!("ALTER TABLE {table} RENAME COLUMN _offset TO kafka_offset");
    insist(campaign, &away)?;
    std::thread::sleep(random.ms(500, 2500));
    insist(campaign, &format!("ALTER TABLE {table} RENAME COLUMN kafka_offset TO _offset"))?;
    goes_on(campaign, &mut client, table, &away)?;
    // Those who run may all be new since the change.
    let words = format!("{table}: {} changes, not said by a running process: {unnoticed:?}", changes.len());
    Ok((unnoticed.len() < changes.len(), words))
}

/// With a number that makes this time's names new.
fn changes(campaign: &Campaign, client: &mut Client, table: &str, number: usize) -> Result<Vec<Change>> {
    let sql =
        "SELECT atttypmod - 4 FROM pg_attribute WHERE attrelid = $1::TEXT::REGCLASS AND attname = 'word'";
    let wider = client.query_one(sql, &[&table])?.get::<_, i32>(0) + 1;
    let (extra, old) = (format!("extra_{number}"), format!("{table}_{number}"));
    let place = campaign.world.place(table);
    let columns = the_other_way_round(client, table, wider)?;
    let change = |sql: String, said: String| Change { sql, said };
    Ok(vec![
        change(
            format!("ALTER TABLE {table} ADD COLUMN {extra} DOUBLE PRECISION"),
            format!("{extra} is a new column"),
        ),
        // A shorter one would have all rows read under a lock.
        change(
            format!("ALTER TABLE {table} ALTER COLUMN word TYPE VARCHAR({wider})"),
            format!("word is varchar({wider}) now"),
        ),
        change(
            format!("ALTER TABLE {table} RENAME COLUMN {extra} TO {extra}_b"),
            format!("{extra}_b is a new column"),
        ),
        change(
            format!("ALTER TABLE {table} DROP COLUMN {extra}_b"),
            format!("{extra}_b is no longer a column"),
        ),
        // A query of the new table finds the old one's rows as well, so that whoever compares finds them all.
        change(
            format!(
                "BEGIN; ALTER TABLE {table} RENAME TO {old};
                 CREATE TABLE {table} ({columns}, CONSTRAINT {table}_n_check CHECK (n >= 0)) {place};
                 CREATE INDEX ON {table} (_topic, _partition, _offset) {place};
                 ALTER TABLE {old} INHERIT {table}; COMMIT"
            ),
            "the name belongs to another table now".to_owned(),
        ),
    ])
}

/// The columns in the order that the table does not have at the moment: rows of the one order must never go into the other.
fn the_other_way_round(client: &mut Client, table: &str, word_length: i32) -> Result<String> {
    let word = format!("word VARCHAR({word_length})");
    let mut columns = ["n BIGINT NOT NULL", &word, "_topic TEXT", "_partition INTEGER", "_offset BIGINT"];
    let sql = "SELECT attname::TEXT FROM pg_attribute WHERE attrelid = $1::TEXT::REGCLASS AND attnum = 1";
    if client.query_one(sql, &[&table])?.get::<_, String>(0) == "n" {
        columns.reverse();
    }
    Ok(columns.join(", "))
}

fn insist(campaign: &Campaign, sql: &str) -> Result<()> {
    let done = (0..TRIES).any(|_| campaign.execute(sql).is_ok());
    ensure!(done, "{sql}: not done, tried {TRIES} times");
    Ok(())
}

fn is_said(campaign: &Campaign, words: &str) -> bool {
    campaign.engines.lock().iter().any(|slot| slot.words().contains(words))
}

/// Some partition of the table must be written again.
fn goes_on(campaign: &Campaign, client: &mut Client, table: &str, after: &str) -> Result<()> {
    let before = campaign.progress(client, &format!("target = 'public.{table}'"))?;
    if !campaign.one_moved(client, &before, 20) && !campaign.interrupt.came() {
        campaign.journal.anomaly(format!("nothing is written to {table} within 20 s after {after}"));
    }
    Ok(())
}
