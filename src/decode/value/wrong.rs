//! Why a value does not fit.

use crate::decode::reject::Reason;

/// A value that its column does not take. The caller adds which column, which field, and an excerpt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub reason: Reason,
    /// Half a sentence that follows the column's name: "takes at most 10 characters, not 12".
    pub why: String,
}

impl Wrong {
    pub fn new(reason: Reason, why: impl Into<String>) -> Self {
        Self { reason, why: why.into() }
    }
}

pub type Written = Result<(), Wrong>;

pub(super) fn out_of_range(why: &str) -> Wrong {
    Wrong::new(Reason::OutOfRange, why)
}

pub(super) fn invalid_time(why: &str) -> Wrong {
    Wrong::new(Reason::InvalidTime, why)
}

pub(super) fn nul() -> Wrong {
    Wrong::new(Reason::NulCharacter, "PostgreSQL cannot hold the character U+0000")
}
