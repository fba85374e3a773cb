//! Which message a row is, where the columns that identify it say so outright: run, stream and sequence number stand in them.
//! Where they do not, the messages are looked up (see [`crate::message::index`]).

use crate::message::draw::{Kind, Program, of_number};
use crate::message::pattern::{Part, Pattern, Width};

/// How one column is read back.
#[derive(Clone, Debug, PartialEq)]
pub enum Reader {
    /// Literals, run, stream and number alone, so that the whole text must fit.
    Whole(Vec<Piece>),
    /// Ends in the sequence number, after this byte.
    Ending(u8),
    /// [`Kind::Number`].
    Number,
    /// The sequence number, or the stream's, itself.
    Seq,
    Stream,
    /// Says nothing that is needed.
    Other,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Literal(Vec<u8>),
    Run(usize),
    Stream(usize),
    Seq,
}

/// What the columns of a row have told so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Told {
    pub run: Option<u32>,
    pub stream: Option<u16>,
    pub seq: Option<u64>,
}

/// The readers of all columns of an identity; `None` where they do not tell run, stream and number together.
pub fn readers(program: &Program, slots: &[usize]) -> Option<Vec<Reader>> {
    let readers: Vec<Reader> = slots.iter().map(|slot| reader(program, *slot)).collect();
    let has = |of: &dyn Fn(&Piece) -> bool| {
        readers.iter().any(|reader| matches!(reader, Reader::Whole(pieces) if pieces.iter().any(of)))
    };
    let number = readers.contains(&Reader::Number);
    let run = number || has(&|piece| matches!(piece, Piece::Run(_)));
    let stream =
        number || readers.contains(&Reader::Stream) || has(&|piece| matches!(piece, Piece::Stream(_)));
    let seq = number
        || readers.contains(&Reader::Seq)
        || readers.iter().any(|reader| matches!(reader, Reader::Ending(_)))
        || has(&|piece| *piece == Piece::Seq);
    (run && stream && seq).then_some(readers)
}

fn reader(program: &Program, slot: usize) -> Reader {
    match &program.steps[slot].kind {
        Kind::Number => Reader::Number,
        Kind::Seq => Reader::Seq,
        Kind::Stream => Reader::Stream,
        Kind::Text(pattern) => of_pattern(program, pattern),
        _ => Reader::Other,
    }
}

fn of_pattern(program: &Program, pattern: &Pattern) -> Reader {
    let piece = |part: &Part| match part {
        Part::Literal(bytes) => Some(Piece::Literal(bytes.clone())),
        Part::Value { slot, width } => match (&program.steps[*slot].kind, width) {
            (Kind::Run, Width::Hex(8)) => Some(Piece::Run(8)),
            (Kind::Stream, Width::Hex(width)) if *width >= 3 => Some(Piece::Stream(usize::from(*width))),
            (Kind::Seq, Width::Free) => Some(Piece::Seq),
            _ => None,
        },
    };
    let pieces: Option<Vec<Piece>> = pattern.parts.iter().map(piece).collect();
    // Digits behind a number would be read as a part of it.
    let ends_clearly = |pieces: &[Piece]| {
        pieces.windows(2).all(|pair| match pair {
            [Piece::Seq, Piece::Literal(bytes)] => !bytes[0].is_ascii_digit(),
            [Piece::Seq, _] => false,
            _ => true,
        })
    };
    match pieces.filter(|pieces| ends_clearly(pieces)) {
        Some(pieces) => Reader::Whole(pieces),
        None => match pattern.parts.as_slice() {
            [.., Part::Literal(before), last] if piece(last) == Some(Piece::Seq) => match before.last() {
                Some(byte) if !byte.is_ascii_digit() => Reader::Ending(*byte),
                _ => Reader::Other,
            },
            _ => Reader::Other,
        },
    }
}

impl Reader {
    /// Whether the column can be what it must be; what it tells is noted.
    pub fn read(&self, run: u32, column: &[u8], told: &mut Told) -> bool {
        match self {
            Reader::Other => true,
            Reader::Ending(before) => {
                told.seq = number_at_end(column, *before);
                told.seq.is_some()
            }
            Reader::Number => {
                let found = decimal(column).and_then(|n| of_number(run, i64::try_from(n).ok()?));
                if let Some((stream, seq)) = found {
                    *told = Told { run: Some(run), stream: Some(stream), seq: Some(seq) };
                }
                found.is_some()
            }
            Reader::Seq => {
                told.seq = decimal(column);
                told.seq.is_some()
            }
            Reader::Stream => {
                told.stream = decimal(column).and_then(|n| u16::try_from(n).ok());
                told.stream.is_some()
            }
            Reader::Whole(pieces) => whole(pieces, column, told).is_some(),
        }
    }
}

fn whole(pieces: &[Piece], column: &[u8], told: &mut Told) -> Option<()> {
    let mut rest = column;
    for piece in pieces {
        match piece {
            Piece::Literal(bytes) => rest = rest.strip_prefix(bytes.as_slice())?,
            Piece::Run(width) => {
                let (digits, behind) = rest.split_at_checked(*width)?;
                told.run = Some(u32::try_from(hexadecimal(digits)?).ok()?);
                rest = behind;
            }
            Piece::Stream(width) => {
                let (digits, behind) = rest.split_at_checked(*width)?;
                told.stream = Some(u16::try_from(hexadecimal(digits)?).ok()?);
                rest = behind;
            }
            Piece::Seq => {
                let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
                let (digits, behind) = rest.split_at(count);
                told.seq = Some(decimal(digits)?);
                rest = behind;
            }
        }
    }
    rest.is_empty().then_some(())
}

fn number_at_end(text: &[u8], before: u8) -> Option<u64> {
    let count = text.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (rest, digits) = text.split_at(text.len() - count);
    (rest.last() == Some(&before)).then(|| decimal(digits)).flatten()
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 19 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    digits.iter().try_fold(0u64, |n, digit| n.checked_mul(10)?.checked_add(u64::from(digit - b'0')))
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    digits.iter().try_fold(0, |n, digit| match digit {
        b'0'..=b'9' => Some(n << 4 | u64::from(digit - b'0')),
        b'a'..=b'f' => Some(n << 4 | u64::from(digit - b'a' + 10)),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_text_is_read_back() {
        let source =
            [Piece::Literal(b"lt-".to_vec()), Piece::Run(8), Piece::Literal(b"-".to_vec()), Piece::Stream(3)];
        let reader = Reader::Whole(source.to_vec());
        let mut told = Told::default();
        assert!(reader.read(0, b"lt-deadbeef-fff", &mut told));
        assert_eq!(told, Told { run: Some(0xdead_beef), stream: Some(0xfff), seq: None });
        for text in ["", "lt-", "lt-1-1", "lt-deadbeef-ffff", "xx-deadbeef-fff", "lt-deadbeeg-fff"] {
            assert!(!reader.read(0, text.as_bytes(), &mut Told::default()), "{text}");
        }
    }

    #[test]
    fn numbers_at_the_end_are_read_back() {
        for (path, seq) in [
            ("/a/12", Some(12)),
            ("7", None),
            ("/a/x7", None),
            ("/a/", None),
            ("/a/1x", None),
            ("", None),
            ("/99999999999999999999", None),
        ] {
            let mut told = Told::default();
            assert_eq!(
                (Reader::Ending(b'/').read(0, path.as_bytes(), &mut told), told.seq),
                (seq.is_some(), seq),
                "{path}"
            );
        }
    }

    #[test]
    fn a_number_tells_all_three() {
        use crate::message::draw::{Identity, number};
        let id = Identity { stream: 0xabc, seq: 1234, due_us: 0 };
        let text = number(0x1234_5678, id).to_string();
        let mut told = Told::default();
        assert!(Reader::Number.read(0x1234_5678, text.as_bytes(), &mut told));
        assert_eq!((told.stream, told.seq), (Some(0xabc), Some(1234)));
        assert!(!Reader::Number.read(0x1234_5679, text.as_bytes(), &mut Told::default()));
    }
}
