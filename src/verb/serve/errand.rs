//! What takes its time with a server, done by a thread beside the loops, one for each server: opening sessions, carrying cancel
//! requests, and asking anew what a statement's tables look like.

use std::sync::Arc;

use anyhow::Result;
use crossbeam_channel::{Receiver, Sender};

use super::describe;
use super::house::House;
use super::session::SETTINGS;
use crate::base::failure::Class;
use crate::base::thread::Pulse;
use crate::client::login::{self, Key};
use crate::client::pg::{Server, class_of};
use crate::http::event_loop::Waker;

/// What a loop asks for.
pub enum Errand {
    /// A session for that loop.
    Open { to: usize },
    /// The end of a statement.
    Cancel { to: usize, session: usize, number: u64, key: Key },
    /// What an endpoint's statement is now.
    Describe { endpoint: usize },
}

/// What came of it.
pub enum Done {
    Opened {
        pool: usize,
        result: Result<login::Session>,
    },
    /// The request cannot strike any more, if that is known.
    Canceled {
        session: usize,
        number: u64,
        is_over: bool,
    },
}

/// Errands that wait. Sessions and their cancels are bounded by their number; more than this is a server that does not answer,
/// and a session whose cancel finds no room is closed.
pub const ERRANDS_MAX: usize = 256;

/// A server, and who runs its errands.
pub struct Runner {
    pub pool: usize,
    pub server: Server,
    /// Statements there may write.
    pub is_primary: bool,
    pub errands: Receiver<Errand>,
    /// By loop.
    pub loops: Vec<(Sender<Done>, Arc<Waker>)>,
    pub house: Arc<House>,
}

impl Runner {
    /// Until nobody has errands any more.
    ///
    /// # Errors
    /// None.
    pub fn run(self, pulse: &Pulse) -> Result<()> {
        while let Ok(errand) = self.errands.recv() {
            match errand {
                Errand::Open { to } => {
                    // Behind a pooler each transaction makes its own settings.
                    let settings = if self.house.config.prepare { SETTINGS } else { "" };
                    let result = pulse.during("a session with PostgreSQL", || {
                        login::open(&self.server, "rowmill serve", settings, self.is_primary)
                    });
                    self.tell(to, Done::Opened { pool: self.pool, result });
                }
                Errand::Cancel { to, session, number, key } => {
                    let result =
                        pulse.during("a cancel request to PostgreSQL", || login::cancel(&self.server, &key));
                    if let Err(error) = &result {
                        log::debug!("{error:#}");
                    }
                    self.tell(to, Done::Canceled { session, number, is_over: result.is_ok() });
                }
                Errand::Describe { endpoint } => {
                    pulse.during("PostgreSQL's description of a statement", || self.describe(endpoint));
                }
            }
        }
        Ok(())
    }

    fn tell(&self, to: usize, done: Done) {
        let Some((sender, waker)) = self.loops.get(to) else { return };
        // There is room for everything that one loop may have asked for.
        if sender.try_send(done).is_ok() {
            drop(waker.wake());
        }
    }

    fn describe(&self, endpoint: usize) {
        let house = &self.house;
        let described = self
            .server
            .connect_to_any("rowmill serve")
            .and_then(|mut client| describe::describe(&mut client, &house.endpoints[endpoint]));
        match described {
            Ok(description) => house.describe(endpoint, Ok(Arc::new(description))),
            // Nothing was said of the statement: what is known of it stays.
            Err(error) if matches!(class_of(&error), Class::Lost | Class::World) => {
                log::debug!(
                    "what endpoint {:?} looks like was not learned: {error:#}",
                    house.endpoints[endpoint].name
                );
            }
            Err(error) => house.describe(endpoint, Err(format!("{error:#}"))),
        }
    }
}
