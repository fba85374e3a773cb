//! What waits to be shown: between the thread that reads events and the one that owns the screen. It has a bound in lines and in bytes.
//! Where a person reads, the oldest lines make room, which is counted and said; a program is waited for, since it wants all of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, PoisonError};

use anyhow::{Context, Result};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde_json::{Value, json};

use crate::base::lock::lock;

/// Ten seconds of a thousand events a second: more is no live view.
const LINES: usize = 10_000;

/// Events of 150 bytes need 1.5 MB; one of 1 MB has room.
const BYTES: usize = 16 << 20;

/// Taken at once: more would make a typed key wait, fewer cost a redrawn prompt each.
const PIECE_LINES: usize = 200;
const PIECE_BYTES: usize = 256 << 10;

/// What is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// As it is printed, without an end.
    Event(String),
    Note(Note),
}

/// Something to know of the events: that they stopped to come, or that some are missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// For people.
    pub text: String,
    /// For programs.
    pub json: Value,
    /// True of what somebody may have to do something about.
    pub is_grave: bool,
}

impl Line {
    fn bytes(&self) -> usize {
        match self {
            Line::Event(text) => text.len(),
            Line::Note(note) => note.text.len(),
        }
    }
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<Line>,
    bytes: usize,
    /// Events that made room, and are not spoken of yet.
    left_out: u64,
    /// A prompt has to be redrawn, so that what waits is shown above it.
    is_knocked: bool,
}

pub struct Shelf {
    waiting: Mutex<Waiting>,
    room: Condvar,
    knock: Condvar,
    /// For who waits for several things.
    pub wake: EventFd,
    /// Whoever puts something here waits for room.
    is_patient: bool,
    /// A person is at a prompt.
    is_prompting: AtomicBool,
    /// Events that are known to be missing, whatever the reason.
    pub missing: AtomicU64,
}

impl Shelf {
    pub fn new(is_patient: bool) -> Result<Shelf> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Shelf {
            waiting: Mutex::default(),
            room: Condvar::new(),
            knock: Condvar::new(),
            wake: EventFd::from_flags(flags).context("cannot create an eventfd")?,
            is_patient,
            is_prompting: AtomicBool::new(false),
            missing: AtomicU64::new(0),
        })
    }

    pub fn put(&self, line: Line) {
        let bytes = line.bytes();
        let mut waiting = lock(&self.waiting);
        let is_full = |waiting: &Waiting| {
            !waiting.lines.is_empty() && (waiting.lines.len() >= LINES || waiting.bytes + bytes > BYTES)
        };
        while is_full(&waiting) {
            if self.is_patient {
                waiting = self.room.wait(waiting).unwrap_or_else(PoisonError::into_inner);
            } else if let Some(oldest) = waiting.lines.pop_front() {
                waiting.bytes -= oldest.bytes();
                if let Line::Event(_) = oldest {
                    waiting.left_out += 1;
                    self.missing.fetch_add(1, SeqCst);
                }
            }
        }
        waiting.bytes += bytes;
        waiting.lines.push_back(line);
        self.knock(&mut waiting);
        drop(waiting);
        // One that is full wakes as well.
        self.wake.write(1).ok();
    }

    /// The oldest lines that fit into one piece.
    pub fn take(&self) -> Vec<Line> {
        let mut waiting = lock(&self.waiting);
        waiting.is_knocked = false;
        let mut piece = Vec::new();
        let left_out = std::mem::take(&mut waiting.left_out);
        if left_out > 0 {
            piece.push(Line::Note(Note {
                text: format!(" {left_out} events were left out: they came faster than they were read here"),
                json: json!({"type": "gap", "missed": left_out, "reason": "they came faster than they were read"}),
                is_grave: true,
            }));
        }
        let mut bytes = 0;
        while piece.len() < PIECE_LINES
            && bytes < PIECE_BYTES
            && let Some(line) = waiting.lines.pop_front()
        {
            bytes += line.bytes();
            piece.push(line);
        }
        waiting.bytes -= bytes;
        if !waiting.lines.is_empty() {
            self.knock(&mut waiting);
        }
        self.room.notify_all();
        piece
    }

    /// From here on somebody is at a prompt, or not.
    pub fn prompt(&self, is_prompting: bool) {
        self.is_prompting.store(is_prompting, SeqCst);
    }

    pub fn is_prompting(&self) -> bool {
        self.is_prompting.load(SeqCst)
    }

    fn knock(&self, waiting: &mut Waiting) {
        if self.is_prompting() {
            waiting.is_knocked = true;
            self.knock.notify_all();
        }
    }

    /// Waits until something is to be shown above a prompt.
    pub fn wait_for_knock(&self) {
        let mut waiting = lock(&self.waiting);
        while !std::mem::take(&mut waiting.is_knocked) {
            waiting = self.knock.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Line {
        Line::Event(text.to_owned())
    }

    fn texts(lines: &[Line]) -> Vec<&str> {
        fn text(line: &Line) -> &str {
            match line {
                Line::Event(text) => text,
                Line::Note(note) => &note.text,
            }
        }
        lines.iter().map(text).collect()
    }

    #[test]
    fn what_does_not_fit_makes_room_and_is_said_first() {
        let shelf = Shelf::new(false).unwrap();
        for number in 0..LINES + 3 {
            shelf.put(event(&number.to_string()));
        }
        let piece = shelf.take();
        assert_eq!(
            texts(&piece)[..2],
            [" 3 events were left out: they came faster than they were read here", "3"]
        );
        assert_eq!((piece.len(), shelf.missing.load(SeqCst)), (PIECE_LINES, 3));
        assert_eq!(texts(&shelf.take())[0], "202");
    }

    #[test]
    fn a_line_always_has_room_and_bytes_are_bounded() {
        let shelf = Shelf::new(false).unwrap();
        shelf.put(event(&"x".repeat(BYTES + 1)));
        assert_eq!(shelf.take().len(), 1);
        for _ in 0..40 {
            shelf.put(event(&"x".repeat(1 << 20)));
        }
        assert!(lock(&shelf.waiting).bytes <= BYTES);
        assert_eq!(shelf.missing.load(SeqCst), 24);
    }

    #[test]
    fn a_program_is_waited_for() {
        let shelf = std::sync::Arc::new(Shelf::new(true).unwrap());
        let filler = shelf.clone();
        #[allow(clippy::disallowed_methods, reason = "a test's thread")]
        let thread =
            std::thread::spawn(move || (0..LINES + 50).for_each(|n| filler.put(event(&n.to_string()))));
        let mut all = Vec::new();
        while all.len() < LINES + 50 {
            all.extend(shelf.take());
        }
        thread.join().unwrap();
        assert!(
            texts(&all).into_iter().eq((0..LINES + 50).map(|n| n.to_string()).collect::<Vec<_>>().iter())
        );
        assert_eq!(shelf.missing.load(SeqCst), 0);
    }
}
