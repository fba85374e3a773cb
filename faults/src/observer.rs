//! The promise, watched while it is being kept: one snapshot after another, each with the ledger and the rows that came
//! since the one before.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use postgres::{Client, IsolationLevel};

use crate::campaign::Campaign;

/// Between two snapshots.
const PAUSE: Duration = Duration::from_millis(100);

/// What one ledger row said.
#[derive(Clone, Copy)]
struct Seen {
    epoch: i64,
    next: i64,
    rows: i64,
}

type Key = (String, i32, String);

/// Watches until the campaign is over; returns how many snapshots there were.
pub(crate) fn watch(campaign: &Arc<Campaign>) -> u64 {
    let mut seen: BTreeMap<Key, Seen> = BTreeMap::new();
    let (mut client, mut snapshots) = (None, 0);
    while !campaign.is_over() {
        std::thread::sleep(PAUSE);
        let connected = match client.take() {
            Some(connected) => Ok(connected),
            None => campaign.sql(),
        };
        // A server that is away is one of the faults.
        let Ok(mut connected) = connected else { continue };
        match look(&mut connected, &mut seen) {
            Ok(anomalies) => {
                anomalies.into_iter().for_each(|a| campaign.journal.anomaly(a));
                snapshots += 1;
                client = Some(connected);
            }
            Err(_) => client = None,
        }
    }
    snapshots
}

fn look(client: &mut Client, seen: &mut BTreeMap<Key, Seen>) -> Result<Vec<String>> {
    let mut anomalies = Vec::new();
    let mut transaction =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true).start()?;
    let ledger = transaction.query(
        "SELECT topic, partition, target, epoch, next_offset, rows, start_offset, rows + dead + skipped + other + holes,
                EXISTS (SELECT FROM pg_attribute WHERE attrelid = to_regclass(target) AND attname = '_offset')
         FROM rowmill.ledger",
        &[],
    )?;
    let mut now = seen.clone();
    for row in &ledger {
        let key: Key = (row.get(0), row.get(1), row.get(2));
        let (start, total): (i64, i64) = (row.get(6), row.get(7));
        let latest = Seen { epoch: row.get(3), next: row.get(4), rows: row.get(5) };
        if latest.next - start != total {
            anomalies.push(format!("{key:?}: the counts do not add up: {total} of {}", latest.next - start));
        }
        let before = now.insert(key.clone(), latest).unwrap_or(Seen { epoch: 0, next: start, rows: 0 });
        if latest.next < before.next || latest.epoch < before.epoch {
            anomalies.push(format!("{key:?} went back from {} to {}", before.next, latest.next));
        }
        // Of a table with keys no row is one record's: its sums are compared at the end.
        if latest.next == before.next || !row.get::<_, bool>(8) {
            continue;
        }
        let table = key.2.trim_start_matches("public.");
        let counts = transaction.query_one(
            &format!(
                "SELECT count(*) FILTER (WHERE _offset < $4), count(DISTINCT _offset) FILTER (WHERE _offset < $4),
                        count(*) FILTER (WHERE _offset >= $4)
                 FROM {table} WHERE _topic = $1 AND _partition = $2 AND _offset >= $3"
            ),
            &[&key.0, &key.1, &before.next, &latest.next],
        )?;
        let (rows, offsets, beyond): (i64, i64, i64) = (counts.get(0), counts.get(1), counts.get(2));
        if rows != latest.rows - before.rows || rows != offsets || beyond != 0 {
            anomalies.push(format!(
                "{key:?} [{}, {}): {rows} rows of {offsets} offsets where the ledger counts {}, and {beyond} beyond it",
                before.next,
                latest.next,
                latest.rows - before.rows
            ));
        }
    }
    transaction.commit()?;
    *seen = now;
    Ok(anomalies)
}
