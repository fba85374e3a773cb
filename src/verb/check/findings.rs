//! What a check found, as it is said.

use crate::verb::out::say;

/// What was found, good and bad.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<String>,
    /// The server acknowledges commits before they are on disk.
    pub(super) commits_are_late: bool,
}

impl Findings {
    pub(super) fn good(&self, text: impl std::fmt::Display) {
        say!("  ok       {text}");
    }

    /// `run` would work, and yet somebody should look at it.
    pub(super) fn doubtful(&self, text: impl std::fmt::Display) {
        say!("  WARNING  {text}");
    }

    pub(super) fn bad(&mut self, text: impl std::fmt::Display) {
        say!("  PROBLEM  {text}");
        self.problems.push(text.to_string());
    }

    /// True if there is no problem.
    pub(super) fn conclude(&self, verb: &str) -> bool {
        say!();
        match self.problems.len() {
            0 => say!("`rowmill {verb}` would work"),
            1 => say!("1 problem: `rowmill {verb}` would not work"),
            n => say!("{n} problems: `rowmill {verb}` would not work"),
        }
        self.problems.is_empty()
    }
}
