//! Bodies that were packed for the way: gzip, deflate and zstd, unpacked whole and up to a bound.
//!
//! A body that ends before its own end mark is refused, and so is one that unpacks to more than the bound: half of what was sent
//! must never look like all of it. Several members or frames behind each other are one body, as their formats say. And answers,
//! packed with gzip piece by piece.

use std::io::{Read, Write};

use bytes::Bytes;
use flate2::Compression;
use flate2::bufread::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use flate2::write::GzEncoder;

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    Identity,
    Gzip,
    /// zlib's format by the standard; some clients send the bare stream, which is taken as well.
    Deflate,
    Zstd,
}

/// What this takes, for the answer to other ones.
pub const TAKEN: &str = "gzip, deflate, zstd";

/// Why a body cannot be unpacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed {
    TooLarge,
    Broken(String),
}

impl Coding {
    /// From a Content-Encoding header; `None` for what is not taken, two codings on top of each other among it.
    pub fn named(header: &str) -> Option<Coding> {
        match header.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Coding::Identity),
            "gzip" | "x-gzip" => Some(Coding::Gzip),
            "deflate" => Some(Coding::Deflate),
            "zstd" => Some(Coding::Zstd),
            _ => None,
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// See [`Packed`].
    pub fn unpack(self, body: Bytes, bytes_max: usize) -> Result<Bytes, Packed> {
        match self {
            Coding::Identity => Ok(body),
            Coding::Gzip => {
                let mut decoder = MultiGzDecoder::new(&body[..]);
                let unpacked = all(&mut decoder, bytes_max)?;
                nothing_behind(decoder.into_inner())?;
                Ok(unpacked)
            }
            Coding::Deflate if is_zlib(&body) => {
                let mut decoder = ZlibDecoder::new(&body[..]);
                let unpacked = all(&mut decoder, bytes_max)?;
                nothing_behind(decoder.into_inner())?;
                Ok(unpacked)
            }
            Coding::Deflate => {
                let mut decoder = DeflateDecoder::new(&body[..]);
                let unpacked = all(&mut decoder, bytes_max)?;
                nothing_behind(decoder.into_inner())?;
                Ok(unpacked)
            }
            Coding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(&body[..])
                    .map_err(|error| Packed::Broken(error.to_string()))?;
                // A window of 8 MB, which RFC 8878 asks everybody to have: a frame may not ask for more.
                decoder.window_log_max(23).map_err(|error| Packed::Broken(error.to_string()))?;
                all(&mut decoder, bytes_max)
            }
        }
    }
}

/// An answer on its way into gzip. What is packed so far is taken out as it comes, so memory is that of the window.
#[derive(Debug)]
pub struct Packer(GzEncoder<Vec<u8>>);

impl Default for Packer {
    fn default() -> Packer {
        // The fast level: text packs to a sixth, and the loop has other connections.
        Packer(GzEncoder::new(Vec::new(), Compression::fast()))
    }
}

impl Packer {
    /// What these bytes add to the packed ones, which may be nothing yet.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.0.write_all(bytes).expect("a vector takes everything");
        std::mem::take(self.0.get_mut())
    }

    /// The rest, with the end mark.
    pub fn finish(self) -> Vec<u8> {
        self.0.finish().expect("a vector takes everything")
    }
}

/// Whether an Accept-Encoding header takes gzip.
pub fn takes_gzip(header: &str) -> bool {
    let weight = |wanted: &str| {
        header.split(',').find_map(|part| {
            let (name, parameters) = part.split_once(';').unwrap_or((part, ""));
            let weight = parameters.trim().strip_prefix("q=").map_or(Ok(1.0), str::parse::<f32>);
            name.trim().eq_ignore_ascii_case(wanted).then(|| weight.unwrap_or(0.0))
        })
    };
    weight("gzip").or_else(|| weight("*")).is_some_and(|weight| weight > 0.0)
}

/// The header of zlib's format: a method, a window, and a checksum of both.
fn is_zlib(body: &[u8]) -> bool {
    matches!(body, [cmf, flags, ..] if cmf & 0x0f == 8 && (u16::from(*cmf) << 8 | u16::from(*flags)) % 31 == 0)
}

fn all(decoder: &mut impl Read, bytes_max: usize) -> Result<Bytes, Packed> {
    let mut unpacked = Vec::new();
    // One more than may be there, so that it is seen.
    decoder
        .take(bytes_max as u64 + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| Packed::Broken(error.to_string()))?;
    if unpacked.len() > bytes_max { Err(Packed::TooLarge) } else { Ok(unpacked.into()) }
}

fn nothing_behind(rest: &[u8]) -> Result<(), Packed> {
    if rest.is_empty() {
        Ok(())
    } else {
        Err(Packed::Broken(format!("{} bytes stand behind its end", rest.len())))
    }
}

#[cfg(test)]
mod tests {
    use flate2::write::{DeflateEncoder, ZlibEncoder};

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zlib(text: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn deflate(text: &[u8]) -> Vec<u8> {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(text: &[u8]) -> Vec<u8> {
        zstd::stream::encode_all(text, 1).unwrap()
    }

    #[test]
    fn bodies_are_unpacked_whole_or_not_at_all() {
        let text = "{\"a\":1}\n".repeat(1000).into_bytes();
        type Pack = fn(&[u8]) -> Vec<u8>;
        let packers: [(Coding, Pack); 4] =
            [(Coding::Gzip, gzip), (Coding::Deflate, zlib), (Coding::Deflate, deflate), (Coding::Zstd, zstd)];
        for (coding, pack) in packers {
            let packed = pack(&text);
            let unpack = |bytes: &[u8], bytes_max| coding.unpack(Bytes::copy_from_slice(bytes), bytes_max);
            assert_eq!(unpack(&packed, text.len()).unwrap(), text, "{coding:?}");
            assert_eq!(unpack(&packed, text.len() - 1), Err(Packed::TooLarge), "{coding:?}");
            for cut in 1..packed.len().min(40) {
                let cut = &packed[..packed.len() - cut];
                assert!(matches!(unpack(cut, 1 << 20), Err(Packed::Broken(_))), "{coding:?} cut by {cut:?}");
            }
            let bomb = pack(&vec![b' '; 50 << 20]);
            assert_eq!(unpack(&bomb, 1 << 20), Err(Packed::TooLarge), "{coding:?}");
            assert!(matches!(unpack(b"no such thing at all", 1 << 20), Err(Packed::Broken(_))), "{coding:?}");
        }
        for (coding, pack) in [packers[0], packers[3]] {
            let two = [pack(b"one"), pack(b"two")].concat();
            assert_eq!(coding.unpack(two.into(), 100).unwrap(), "onetwo", "{coding:?}");
        }
        assert_eq!(Coding::Identity.unpack("as it is".into(), 100).unwrap(), "as it is");
        assert!(matches!(
            Coding::Gzip.unpack([gzip(b"x"), b"rest".to_vec()].concat().into(), 100),
            Err(Packed::Broken(_))
        ));
    }

    #[test]
    fn answers_are_packed_piece_by_piece() {
        let mut packer = Packer::default();
        let mut packed = Vec::new();
        for _ in 0..1000 {
            packed.extend(packer.push(&b"some rows of text\n".repeat(100)));
        }
        packed.extend(packer.finish());
        let unpacked = Coding::Gzip.unpack(packed.into(), 10 << 20).unwrap();
        assert_eq!(unpacked, b"some rows of text\n".repeat(100_000));
    }

    #[test]
    fn who_takes_gzip_says_so() {
        for (header, expected) in [
            ("gzip, deflate, br", true),
            ("GZIP;q=0.5", true),
            ("*", true),
            ("gzip;q=0, *", false),
            ("gzip; q=0.0", false),
            ("br", false),
            ("", false),
            ("gzip;q=x", false),
        ] {
            assert_eq!(takes_gzip(header), expected, "{header}");
        }
    }

    #[test]
    fn codings_have_names() {
        assert_eq!(Coding::named("GZIP"), Some(Coding::Gzip));
        assert_eq!(Coding::named(" zstd "), Some(Coding::Zstd));
        for other in ["br", "gzip, gzip", "compress"] {
            assert_eq!(Coding::named(other), None, "{other}");
        }
    }
}
