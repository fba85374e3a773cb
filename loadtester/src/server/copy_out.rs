//! Reads what `COPY ... TO STDOUT (FORMAT binary)` sends: the cheapest way to get many rows out, row by row, in a bounded
//! buffer.

use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, ensure};

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// One row; it lives until the next is read.
pub struct Row<'a> {
    bytes: &'a [u8],
    fields: &'a [Option<(usize, usize)>],
}

/// Calls `on_row` for each row and returns how many there were.
pub fn read(source: &mut impl BufRead, mut on_row: impl FnMut(Row<'_>) -> Result<()>) -> Result<u64> {
    let mut header = [0; 19];
    source.read_exact(&mut header).context("read the header of a binary COPY")?;
    ensure!(header.starts_with(SIGNATURE), "the server's COPY does not start as a binary COPY does");
    skip(source, u64::from(u32::from_be_bytes([header[15], header[16], header[17], header[18]])))?;
    let (mut bytes, mut fields, mut rows) = (Vec::new(), Vec::new(), 0);
    loop {
        let count = i16::from_be_bytes(array(source)?);
        if count < 0 {
            // Read to the end, so that the connection is ready for the next statement.
            io::copy(source, &mut io::sink()).context("read the end of a binary COPY")?;
            return Ok(rows);
        }
        bytes.clear();
        fields.clear();
        for _ in 0..count {
            let length = i32::from_be_bytes(array(source)?);
            if length < 0 {
                fields.push(None);
                continue;
            }
            let start = bytes.len();
            source.take(length as u64).read_to_end(&mut bytes).context("read a column of a binary COPY")?;
            ensure!(bytes.len() == start + length as usize, "the server's COPY ends within a column");
            fields.push(Some((start, bytes.len())));
        }
        on_row(Row { bytes: &bytes, fields: &fields })?;
        rows += 1;
    }
}

fn array<const N: usize>(source: &mut impl Read) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes).context("read a binary COPY")?;
    Ok(bytes)
}

fn skip(source: &mut impl Read, count: u64) -> Result<()> {
    io::copy(&mut source.take(count), &mut io::sink()).context("read the header of a binary COPY")?;
    Ok(())
}

/// Microseconds from 1970 to 2000, PostgreSQL's own zero.
const EPOCH_2000_US: i64 = 946_684_800_000_000;

impl Row<'_> {
    /// `None` for NULL.
    pub fn bytes(&self, column: usize) -> Option<&[u8]> {
        self.fields[column].map(|(start, end)| &self.bytes[start..end])
    }

    pub fn int8(&self, column: usize) -> Option<i64> {
        Some(i64::from_be_bytes(self.bytes(column)?.try_into().ok()?))
    }

    pub fn float8(&self, column: usize) -> Option<f64> {
        Some(f64::from_be_bytes(self.bytes(column)?.try_into().ok()?))
    }

    /// Microseconds since 1970 UTC. Infinite times come as the ends of the range, which no due time is near.
    pub fn timestamp_us(&self, column: usize) -> Option<i64> {
        Some(self.int8(column)?.saturating_add(EPOCH_2000_US))
    }

    /// (block, line) of a row's place in its table.
    pub fn tid(&self, column: usize) -> Option<(u32, u16)> {
        let bytes: [u8; 6] = self.bytes(column)?.try_into().ok()?;
        let [a, b, c, d, e, f] = bytes;
        Some((u32::from_be_bytes([a, b, c, d]), u16::from_be_bytes([e, f])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(rows: &[&[Option<&[u8]>]]) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        out.extend([0; 8]);
        for row in rows {
            out.extend((row.len() as i16).to_be_bytes());
            for field in *row {
                match field {
                    None => out.extend((-1i32).to_be_bytes()),
                    Some(bytes) => {
                        out.extend((bytes.len() as i32).to_be_bytes());
                        out.extend(*bytes);
                    }
                }
            }
        }
        out.extend((-1i16).to_be_bytes());
        out
    }

    #[test]
    fn rows_come_back() {
        let bytes = copy(&[
            &[Some(b"abc"), None, Some(&7i64.to_be_bytes()), Some(&[0, 0, 1, 0, 0, 9])],
            &[Some(b""), None, Some(&(-1i64).to_be_bytes()), None],
        ]);
        let mut seen = Vec::new();
        let count = read(&mut bytes.as_slice(), |row| {
            seen.push((row.bytes(0).map(<[u8]>::to_vec), row.int8(2), row.tid(3)));
            assert_eq!(row.bytes(1), None);
            Ok(())
        });
        assert_eq!(count.unwrap(), 2);
        assert_eq!(seen, [(Some(b"abc".to_vec()), Some(7), Some((256, 9))), (Some(vec![]), Some(-1), None)]);
    }

    #[test]
    fn a_broken_stream_is_an_error() {
        let bytes = copy(&[&[Some(b"abc")]]);
        for end in [0, 5, 19, 22, 27, bytes.len() - 1] {
            assert!(read(&mut &bytes[..end], |_| Ok(())).is_err(), "{end}");
        }
        assert!(read(&mut &b"something else entirely"[..], |_| Ok(())).is_err());
    }
}
