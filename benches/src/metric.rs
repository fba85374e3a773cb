//! The record that the bench moves: a gauge as a data collector sends it. All of it is a function of its number, so
//! that the raw ceiling copies the very rows which the others make out of Kafka's messages.

use std::io::Write;

const SITES: [&str; 4] = ["ams1", "fra2", "iad1", "nrt3"];
const GAUGES: [&str; 4] = ["cpu/load", "memory/used_percent", "disk/sda/await_ms", "net/eth0/rx_mbit"];

/// 2026-01-01T00:00:00Z in microseconds since 1970.
const FIRST_TIME_US: i64 = 1_767_225_600_000_000;
/// 2000-01-01, where PostgreSQL's clock starts.
pub const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

pub const CREATE_TABLE: &str = "
    DROP TABLE IF EXISTS metric;
    CREATE TABLE metric (
        userid    VARCHAR(100) NOT NULL,
        source    VARCHAR(100) NOT NULL,
        path      VARCHAR(200) NOT NULL,
        value     DOUBLE PRECISION NOT NULL,
        time      TIMESTAMPTZ NOT NULL,
        timestamp TIMESTAMPTZ NOT NULL
    )";
pub const COPY: &str =
    "COPY metric (userid, source, path, value, time, timestamp) FROM STDIN (FORMAT BINARY)";

/// The same columns, and the path is the key: each record is a row of its own.
pub const CREATE_KEYED_TABLE: &str = "
    DROP TABLE IF EXISTS metric_once;
    CREATE TABLE metric_once (
        userid    VARCHAR(100) NOT NULL,
        source    VARCHAR(100) NOT NULL,
        path      VARCHAR(200) COLLATE \"C\" PRIMARY KEY,
        value     DOUBLE PRECISION NOT NULL,
        time      TIMESTAMPTZ NOT NULL,
        timestamp TIMESTAMPTZ NOT NULL
    )";
pub const COPY_KEYED: &str =
    "COPY metric_once (userid, source, path, value, time, timestamp) FROM STDIN (FORMAT BINARY)";

/// The number at the end of a path has so many.
pub const NUMBER_DIGITS: usize = 10;

pub struct Metric {
    pub user: u64,
    pub source: String,
    pub path: String,
    pub value: f64,
    pub time_us: i64,
}

impl Metric {
    pub fn nth(number: u64, users: u64) -> Metric {
        let random = mix(number);
        let (site, gauge) = (SITES[(random % 4) as usize], GAUGES[(random >> 2) as usize % 4]);
        let (rack, host) = ((random >> 8) % 40, (random >> 16) % 400);
        Metric {
            user: (random >> 32) % users,
            source: format!("collector-{:03}", random % 100),
            path: format!("{site}/rack-{rack:02}/node-{host:03}/{gauge}/{number:0NUMBER_DIGITS$}"),
            value: ((random >> 24) % 1_000_000) as f64 / 100.0,
            time_us: FIRST_TIME_US + number as i64 * 37,
        }
    }

    /// Appends the message.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        let time = jiff::Timestamp::from_microsecond(self.time_us).expect("a time of this century");
        let (token, source, path, value) = (token(self.user), &self.source, &self.path, self.value);
        write!(
            out,
            r#"{{"token":"{token}","source":"{source}","path":"{path}","value":{value},"time":"{time:.6}"}}"#
        )
        .expect("memory takes everything");
    }

    /// Appends the row.
    pub fn write_tuple(&self, timestamp_us: i64, out: &mut Vec<u8>) {
        write_tuple(
            &user_id(self.user),
            &self.source,
            &self.path,
            self.value,
            self.time_us,
            timestamp_us,
            out,
        );
    }
}

/// Where the number begins in the tuple of a record: at the end of its third field.
pub fn number_place(metric: &Metric) -> usize {
    let before = 2 + 4 + user_id(metric.user).len() + 4 + metric.source.len() + 4;
    before + metric.path.len() - NUMBER_DIGITS
}

/// As long as a user's id, so that a pipe without lookups writes rows of the same size.
pub fn token(user: u64) -> String {
    format!("{:016x}", mix(user ^ 0x746f_6b65_6e00))
}

pub fn user_id(user: u64) -> String {
    format!("user-{user:011}")
}

/// One row in the format of binary COPY.
pub fn write_tuple(
    userid: &str,
    source: &str,
    path: &str,
    value: f64,
    time_us: i64,
    timestamp_us: i64,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(&6_i16.to_be_bytes());
    for text in [userid, source, path] {
        write_field(text.as_bytes(), out);
    }
    write_field(&value.to_be_bytes(), out);
    for time in [time_us, timestamp_us] {
        write_field(&(time - POSTGRES_EPOCH_US).to_be_bytes(), out);
    }
}

/// A field of a binary COPY: its length, its bytes.
pub fn write_field(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(bytes.len() as i32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// What stands before the first tuple of a binary COPY, and after the last.
pub const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
pub const COPY_TRAILER: &[u8] = &[0xff, 0xff];

/// A number that looks random and is not (splitmix64).
pub fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_json_and_says_what_the_row_says() {
        let metric = Metric::nth(7, 1000);
        let mut json = Vec::new();
        metric.write_json(&mut json);
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(value["path"], metric.path.as_str());
        assert_eq!(value["value"].as_f64(), Some(metric.value));
        let time: jiff::Timestamp = value["time"].as_str().unwrap().parse().unwrap();
        assert_eq!(time.as_microsecond(), metric.time_us);
        assert_eq!(value["token"].as_str().unwrap().len(), user_id(metric.user).len());
    }
}
