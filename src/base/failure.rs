//! What a failed call to a server means for the one who made it, whichever server it was.

use std::borrow::Cow;

/// What a failed statement calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// A row is refused, or the table takes none: which of them it is shows when rows are tried alone.
    Row,
    /// The table takes no row as it is: wait, a person must mend it.
    Table,
    /// The world is bad: wait and send the same again.
    World,
    /// Somebody else owns a span.
    Fenced,
    /// The table is not the one that the rows were encoded for.
    TableChanged,
    /// The setup is bad: stop, a person must act.
    Setup,
    /// No answer: for a commit, its outcome is unknown.
    Lost,
}

impl Class {
    pub const ALL: &[Class] = &[
        Class::Row,
        Class::Table,
        Class::World,
        Class::Fenced,
        Class::TableChanged,
        Class::Setup,
        Class::Lost,
    ];

    /// Its name in labels.
    pub fn name(self) -> &'static str {
        match self {
            Class::Row => "row",
            Class::Table => "table",
            Class::World => "world",
            Class::Fenced => "fenced",
            Class::TableChanged => "table_changed",
            Class::Setup => "setup",
            Class::Lost => "lost",
        }
    }
}

/// A store's account of a row that it does not take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Which of the rows that were sent, counted from 0, where the store says it.
    pub row: Option<usize>,
    /// A stable code for the dead letter's reason.
    pub code: Cow<'static, str>,
    /// The store's own sentence. It may quote the row, so it belongs into the dead letter and nowhere else.
    pub message: String,
    /// What refusals for the same reason have in common: the code, and what it names of the table.
    pub kind: String,
    /// The sentence without its details, which quote the row.
    pub words: String,
}

/// A failed call: what follows, and the words for it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub class: Class,
    /// Without anything that a record holds.
    pub words: String,
    /// Where one of the rows is at fault.
    pub refusal: Option<Box<Refusal>>,
    /// The COMMIT was under way: its outcome is unknown unless the server said no.
    pub at_commit: bool,
    /// The server ended a statement because it lasted too long.
    pub cut_off: bool,
    /// There was no session to send anything by.
    pub starved: bool,
}

impl Failure {
    pub fn new(class: Class, words: impl Into<String>) -> Failure {
        Failure {
            class,
            words: words.into(),
            refusal: None,
            at_commit: false,
            cut_off: false,
            starved: false,
        }
    }

    /// The same, where a single row cannot be the cause: our own tables are.
    pub fn not_of_a_row(mut self) -> Failure {
        if self.class == Class::Row {
            self.class = Class::Setup;
        }
        self
    }
}
