//! What travels between the stages: records as they came, rows as they go, and what was set aside.

/// One Kafka record, borrowed from the arena of the batch it was polled with.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since 1970 UTC, as the producer or broker stamped it; `None` where the record has none.
    pub timestamp_ms: Option<i64>,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone, which is not the same as an empty value.
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

/// A record's headers in the arena's own form: for each `u32` name length, name, `i32` value length (-1: null), value,
/// all little-endian. Written only by [`Headers::append`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Headers<'a>(pub &'a [u8]);

impl<'a> Headers<'a> {
    /// Appends one header to an arena.
    pub fn append(arena: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
        arena.extend_from_slice(&(name.len() as u32).to_le_bytes());
        arena.extend_from_slice(name);
        let length = value.map_or(-1, |v| v.len() as i32);
        arena.extend_from_slice(&length.to_le_bytes());
        arena.extend_from_slice(value.unwrap_or_default());
    }

    /// The headers in their order; names repeat as the producer wrote them.
    pub fn iter(self) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let name_length = u32::from_le_bytes(take(&mut rest, 4).try_into().expect("four bytes")) as usize;
            let name = take(&mut rest, name_length);
            let value_length = i32::from_le_bytes(take(&mut rest, 4).try_into().expect("four bytes"));
            let value = usize::try_from(value_length).ok().map(|n| take(&mut rest, n));
            Some((name, value))
        })
    }
}

fn take<'a>(rest: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, tail) = rest.split_at(count);
    *rest = tail;
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_come_back_as_they_were_written() {
        let mut arena = Vec::new();
        Headers::append(&mut arena, b"a", Some(b"1"));
        Headers::append(&mut arena, b"", None);
        Headers::append(&mut arena, b"a", Some(b""));
        let read: Vec<_> = Headers(&arena).iter().collect();
        assert_eq!(read, [(&b"a"[..], Some(&b"1"[..])), (b"", None), (b"a", Some(b""))]);
        assert_eq!(Headers::default().iter().count(), 0);
    }
}
