//! A count by seconds that several processes share, kept in Redis. The second is Redis' own: theirs may differ.

use ::redis::{Connection, RedisError};
use anyhow::{Result, anyhow};

use super::redis;
use crate::config;

/// Adds to the second that is now, gives what the last full one had, and lets go of older ones. Who does not count for ten seconds
/// finds nothing.
const SCRIPT: &str = "
local now = tonumber(redis.call('TIME')[1])
redis.call('HINCRBY', KEYS[1], now, ARGV[1])
for second = now - 14, now - 3 do redis.call('HDEL', KEYS[1], second) end
redis.call('EXPIRE', KEYS[1], 10)
return tonumber(redis.call('HGET', KEYS[1], now - 1) or 0)";

pub struct Tally {
    connection: Connection,
    key: String,
}

impl Tally {
    pub fn open(config: &config::Redis, name: &str) -> Result<Tally> {
        let connection = redis::reach(config)?;
        Ok(Tally { connection, key: format!("rowmill:rate:{name}") })
    }

    /// Adds what was counted since the last call; what all processes counted in the last full second.
    ///
    /// # Errors
    /// Where Redis does not answer. Whether it has added is not known then.
    pub fn add(&mut self, count: u64) -> Result<u64> {
        // Sent whole: a Redis that was started again knows no script, and it is short.
        let mut command = ::redis::cmd("EVAL");
        command.arg(SCRIPT).arg(1).arg(&self.key).arg(count);
        command.query(&mut self.connection).map_err(|error: RedisError| anyhow!("{error}"))
    }
}
