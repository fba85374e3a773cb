//! Transactions on their way: each may arrive late, or never, and its reply may be lost whether it was committed or not.

#![allow(dead_code, reason = "the simulator and the comparison use different parts")]

use std::collections::BTreeMap;

use crate::database::{Added, Ended, Server, Stored};
use crate::kafka::Cluster;
use rowmill::promise::span::Move;

pub(crate) struct Message {
    pub(crate) from: String,
    /// By which of the sender's sessions it goes.
    pub(crate) session: u64,
    pub(crate) table: usize,
    pub(crate) stored: Vec<Stored>,
    /// What is added up of those, where the table has keys.
    pub(crate) added: Vec<Added>,
    pub(crate) moves: Vec<Move>,
    /// Of the definition that the rows were encoded for.
    pub(crate) fingerprint: String,
    /// The server's answer, once it has executed the message.
    outcome: Option<Ended>,
    /// Sender and server do not hear each other any more.
    is_broken: bool,
}

impl Message {
    pub(crate) fn new(
        from: &str,
        session: u64,
        table: usize,
        stored: Vec<Stored>,
        added: Vec<Added>,
        moves: Vec<Move>,
        fingerprint: String,
    ) -> Message {
        let from = from.to_owned();
        Message { from, session, table, stored, added, moves, fingerprint, outcome: None, is_broken: false }
    }
}

/// What the sender sees.
pub(crate) enum Reply {
    NotYet,
    Ended(Ended),
    Broken,
}

#[derive(Default)]
pub(crate) struct Network {
    messages: BTreeMap<u64, Message>,
    next_id: u64,
}

impl Network {
    pub(crate) fn send(&mut self, message: Message) -> u64 {
        let is_busy = |other: &Message| {
            other.from == message.from && other.session == message.session && other.outcome.is_none()
        };
        assert!(
            !self.messages.values().any(is_busy),
            "{} sends by session {}, which may still commit something else",
            message.from,
            message.session
        );
        self.next_id += 1;
        self.messages.insert(self.next_id, message);
        self.next_id
    }

    pub(crate) fn len(&self) -> usize {
        self.messages.len()
    }

    /// The server executes one message, if it has not yet. True if that was a commit.
    pub(crate) fn deliver(&mut self, nth: usize, server: &mut Server, cluster: &Cluster) -> bool {
        let Some((&id, message)) = self.messages.iter_mut().nth(nth) else { return false };
        let is_new = message.outcome.is_none();
        if is_new {
            message.outcome = Some(server.commit(message, cluster));
        }
        let committed = is_new && message.outcome == Some(Ended::Committed);
        if message.is_broken {
            self.messages.remove(&id);
        }
        committed
    }

    pub(crate) fn undelivered(&self) -> usize {
        self.messages.values().filter(|m| m.outcome.is_none()).count()
    }

    pub(crate) fn deliver_all(&mut self, server: &mut Server, cluster: &Cluster) {
        for nth in (0..self.messages.len()).rev() {
            self.deliver(nth, server, cluster);
        }
    }

    /// The connection breaks: a message that was not executed may still be.
    pub(crate) fn cut(&mut self, nth: usize) {
        if let Some(message) = self.messages.values_mut().nth(nth) {
            message.is_broken = true;
        }
    }

    /// The server ends the sessions of a process: what was not executed never will be.
    pub(crate) fn terminate(&mut self, from: &str) {
        self.messages.retain(|_, m| {
            m.is_broken |= m.from == from;
            m.from != from || m.outcome.is_some()
        });
    }

    pub(crate) fn terminate_all(&mut self) {
        self.messages.clear();
    }

    pub(crate) fn reply(&mut self, id: u64) -> Reply {
        match self.messages.get(&id) {
            Some(Message { is_broken: false, outcome: None, .. }) => return Reply::NotYet,
            Some(Message { is_broken: true, outcome: None, .. }) | None => return Reply::Broken,
            _ => {}
        }
        let message = self.messages.remove(&id).expect("just seen");
        match message.outcome {
            _ if message.is_broken => Reply::Broken,
            Some(ended) => Reply::Ended(ended),
            None => Reply::Broken,
        }
    }
}
