//! What a failed call to a server means for the one who made it, whichever server it was.

/// What a failed statement calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// One of the rows is bad: find it and set it aside.
    Row,
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
    pub const ALL: &[Class] =
        &[Class::Row, Class::World, Class::Fenced, Class::TableChanged, Class::Setup, Class::Lost];

    /// Its name in labels.
    pub fn name(self) -> &'static str {
        match self {
            Class::Row => "row",
            Class::World => "world",
            Class::Fenced => "fenced",
            Class::TableChanged => "table_changed",
            Class::Setup => "setup",
            Class::Lost => "lost",
        }
    }
}
