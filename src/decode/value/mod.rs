//! Values -> fields of a COPY BINARY tuple, appended to a buffer that the caller keeps.
//! Pure: no clock, no randomness, no server. What is accepted here is what `docs/message-format.md` promises;
//! a value that does not fit is refused, never cut, rounded to zero or guessed. (The server itself rounds `numeric(p,s)`
//! and `timestamptz(p)` to their declared scale, as for any value; that is the table's wish and stays with it.)
//!
//! A field is an `int32` length and that many bytes; -1 is NULL. On an error the buffer may end in half a field: the
//! caller cuts it back to where the row began.
//!
//! [`read`] is a value as it comes, [`take`] what each type makes of it; the others know one kind of text each.

mod array;
pub mod base64;
mod bounds;
pub mod decimal;
pub mod json;
pub mod read;
pub mod take;
mod time;
mod formatted;
pub mod wrong;
