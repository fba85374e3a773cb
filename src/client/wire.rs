//! PostgreSQL's protocol as bytes, without a socket: what a session of our own is sent, and what it says. Values and columns are
//! text, so that they are the server's own words; a value never stands in a statement.

use bytes::BytesMut;
use postgres_protocol::IsNull;
use postgres_protocol::message::frontend;

/// What the server said.
#[derive(Debug)]
pub enum Said<'a> {
    /// The columns of the rows that follow.
    Columns(Vec<Column>),
    Row(Row<'a>),
    /// The values fit their types.
    Bound,
    /// No more rows. In a transaction of its own, it has not ended yet.
    Complete(&'a [u8]),
    Error(Complaint),
    /// It waits for the next message of ours; the transaction, where there was none around it, has ended. False while one that was
    /// begun by name is open, or has failed and waits for its end.
    Ready {
        is_idle: bool,
    },
    /// What may come at any time, or follows from what was asked.
    Other(u8),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The type's oid.
    pub ty: u32,
}

/// One row, its columns as text.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a>(&'a [u8]);

/// An error of the server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// SQLSTATE.
    pub code: String,
    /// In the server's language, and perhaps with data in it: for the log.
    pub message: String,
    /// The session ends with it.
    pub is_fatal: bool,
}

/// Bytes that are no message, or one that is not wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// So many bytes in one message.
    TooLarge(usize),
    Malformed,
}

/// Length of a message without its letter, and the letter; `None` until it is known.
pub fn head(bytes: &[u8]) -> Option<(u8, usize)> {
    let (&tag, rest) = bytes.split_first()?;
    let length = rest.first_chunk::<4>()?;
    Some((tag, u32::from_be_bytes(*length) as usize))
}

/// The first whole message, and how many bytes it has; `None` until it is there.
///
/// # Errors
/// See [`Unreadable`]: nothing after it can be read either.
pub fn next(bytes: &[u8], message_max: usize) -> Result<Option<(Said<'_>, usize)>, Unreadable> {
    let Some((tag, length)) = head(bytes) else { return Ok(None) };
    if length < 4 {
        return Err(Unreadable::Malformed);
    }
    if length > message_max {
        return Err(Unreadable::TooLarge(length));
    }
    let Some(body) = bytes.get(5..1 + length) else { return Ok(None) };
    let said = match tag {
        b'D' if Row(body).is_whole() => Said::Row(Row(body)),
        b'D' => return Err(Unreadable::Malformed),
        b'T' => Said::Columns(columns(body).ok_or(Unreadable::Malformed)?),
        b'2' => Said::Bound,
        b'C' => Said::Complete(body.strip_suffix(&[0]).unwrap_or(body)),
        b'E' => Said::Error(complaint(body)),
        b'Z' => Said::Ready { is_idle: body == b"I" },
        other => Said::Other(other),
    };
    Ok(Some((said, 1 + length)))
}

impl<'a> Row<'a> {
    pub fn columns(self) -> impl Iterator<Item = Option<&'a [u8]>> {
        let mut rest = self.0.get(2..).unwrap_or_default();
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk::<4>()?;
            rest = after;
            let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else { return Some(None) };
            let (value, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(Some(value))
        })
    }

    fn is_whole(self) -> bool {
        let count = self.0.first_chunk::<2>().map(|count| u16::from_be_bytes(*count));
        count == Some(self.columns().count() as u16)
    }
}

fn columns(body: &[u8]) -> Option<Vec<Column>> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut columns = Vec::new();
    for _ in 0..u16::from_be_bytes(*count) {
        let end = rest.iter().position(|byte| *byte == 0)?;
        let name = String::from_utf8_lossy(&rest[..end]).into_owned();
        // Table, column number, type, its size, its modifier, format.
        let fields = rest.get(end + 1..end + 19)?;
        let ty = u32::from_be_bytes(*fields[6..].first_chunk::<4>()?);
        columns.push(Column { name, ty });
        rest = &rest[end + 19..];
    }
    Some(columns)
}

fn complaint(body: &[u8]) -> Complaint {
    let mut complaint = Complaint { code: String::new(), message: String::new(), is_fatal: false };
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else { continue };
        let text = || String::from_utf8_lossy(text).into_owned();
        match kind {
            b'C' => complaint.code = text(),
            b'M' => complaint.message = text(),
            // Never translated.
            b'V' => complaint.is_fatal = matches!(&field[1..], b"FATAL" | b"PANIC"),
            _ => {}
        }
    }
    complaint
}

/// What is to be sent.
#[derive(Debug, Default)]
pub struct Letter(BytesMut);

impl Letter {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Text without parameters, answered with a [`Said::Ready`] of its own.
    ///
    /// # Errors
    /// A zero byte in the text.
    pub fn query(&mut self, sql: &str) -> std::io::Result<()> {
        frontend::query(sql, &mut self.0)
    }

    /// # Errors
    /// A zero byte in the text.
    pub fn prepare(&mut self, name: &str, sql: &str, types: &[u32]) -> std::io::Result<()> {
        frontend::parse(name, sql, types.iter().copied(), &mut self.0)
    }

    pub fn forget(&mut self, name: &str) -> std::io::Result<()> {
        frontend::close(b'S', name, &mut self.0)
    }

    /// Runs a prepared statement with these values, and ends what may have been begun: its answer ends with [`Said::Ready`].
    ///
    /// # Errors
    /// Values that are too large for the protocol.
    pub fn run(
        &mut self,
        name: &str,
        values: &[Option<Vec<u8>>],
        wants_columns: bool,
    ) -> std::io::Result<()> {
        let put = |value: &Option<Vec<u8>>, out: &mut BytesMut| {
            Ok(match value {
                None => IsNull::Yes,
                Some(value) => {
                    out.extend_from_slice(value);
                    IsNull::No
                }
            })
        };
        let nothing = std::iter::empty::<i16>();
        frontend::bind("", name, nothing.clone(), values, put, nothing, &mut self.0)
            .map_err(|_| std::io::Error::other("the values do not fit one message"))?;
        if wants_columns {
            frontend::describe(b'P', "", &mut self.0)?;
        }
        frontend::execute("", 0, &mut self.0)?;
        frontend::sync(&mut self.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn a_row_is_read_when_it_is_whole() {
        let row = message(b'D', b"\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0");
        for cut in 0..row.len() {
            assert!(matches!(next(&row[..cut], 1000), Ok(None)), "{cut}");
        }
        let (Said::Row(found), length) = next(&row, 1000).unwrap().unwrap() else { panic!("no row") };
        assert_eq!(length, row.len());
        assert_eq!(found.columns().collect::<Vec<_>>(), [Some(&b"ab"[..]), None, Some(b"")]);
        assert_eq!(next(&row, 10).unwrap_err(), Unreadable::TooLarge(row.len() - 1));
        // Fewer columns than it says, and a column that is longer than the row.
        for body in [&b"\0\x04\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0"[..], b"\0\x01\0\0\0\x09ab", b"\0"] {
            assert_eq!(next(&message(b'D', body), 1000).unwrap_err(), Unreadable::Malformed);
        }
        assert_eq!(next(b"D\0\0\0\x03", 1000).unwrap_err(), Unreadable::Malformed);
    }

    #[test]
    fn columns_have_names_and_types() {
        let body = b"\0\x02n\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0w w\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0";
        let message = message(b'T', body);
        let (Said::Columns(columns), _) = next(&message, 1000).unwrap().unwrap() else { panic!("none") };
        assert_eq!(columns, [Column { name: "n".into(), ty: 20 }, Column { name: "w w".into(), ty: 25 }]);
    }

    #[test]
    fn an_error_is_known_by_its_code_in_any_language() {
        let bytes = message(b'E', b"SFATAL\0VFATAL\0C57P01\0Mbeende Verbindung\0\0");
        let (Said::Error(complaint), _) = next(&bytes, 1000).unwrap().unwrap() else { panic!("none") };
        assert_eq!((&*complaint.code, complaint.is_fatal), ("57P01", true));
        let bytes = message(b'E', b"SFEHLER\0VERROR\0C22P02\0Mx\0\0");
        let (Said::Error(complaint), _) = next(&bytes, 1000).unwrap().unwrap() else { panic!("none") };
        assert_eq!((&*complaint.code, complaint.is_fatal, &*complaint.message), ("22P02", false, "x"));
    }
}
