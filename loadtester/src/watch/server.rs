//! PostgreSQL's own counters and its clock, read beside the run on a connection of their own.

use postgres::Client;

use crate::base::clock::SECOND_NS;
use crate::server::pg::{self, ClockOffset, ServerCounters};

/// Eleven round trips, ten seconds apart.
const CLOCK_EVERY_NS: i64 = 10 * SECOND_NS;

pub struct Server {
    /// `None` where nobody is watched. A server that is away for a second is no reason to stop.
    client: Option<Client>,
    /// The most exact of the readings.
    offset: Option<ClockOffset>,
    next_clock_ns: i64,
}

impl Server {
    pub fn new(client: Option<Client>) -> Self {
        Self { client, offset: None, next_clock_ns: CLOCK_EVERY_NS / 2 }
    }

    pub fn counters(&mut self) -> Option<ServerCounters> {
        pg::counters(self.client.as_mut()?).ok()
    }

    pub fn read_clock_if_due(&mut self, now_ns: i64) {
        if now_ns < self.next_clock_ns {
            return;
        }
        self.next_clock_ns = now_ns + CLOCK_EVERY_NS;
        let read = self.client.as_mut().and_then(|client| pg::clock_offset(client).ok());
        let better = |read: &ClockOffset| self.offset.is_none_or(|best| read.within_us < best.within_us);
        if let Some(read) = read.filter(better) {
            self.offset = Some(read);
        }
    }

    pub fn offset(&self) -> Option<ClockOffset> {
        self.offset
    }
}
