//! How long a field may be.

use super::wrong::{Written, Wrong};
use crate::client::binary::{self, field};
use crate::decode::reject::Reason;

/// PostgreSQL's bound for one value (MaxAllocSize, less its own header).
const FIELD_BYTES_MAX: usize = 0x3fff_ffff - 64;

/// Appends a field of any length that a value may have.
#[inline]
pub(super) fn checked_field(bytes: &[u8], out: &mut Vec<u8>) -> Written {
    if bytes.len() > FIELD_BYTES_MAX {
        return Err(too_large());
    }
    field(bytes, out);
    Ok(())
}

/// Ends a field that began with [`binary::begin`].
pub(super) fn finish(start: usize, out: &mut [u8]) -> Written {
    if binary::finish(start, out) > FIELD_BYTES_MAX { Err(too_large()) } else { Ok(()) }
}

fn too_large() -> Wrong {
    Wrong::new(Reason::TooLarge, "PostgreSQL holds at most 1 GB in one value")
}
