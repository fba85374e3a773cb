//! Compressed batches. librdkafka unpacks each batch whole, and makes an operation of its own for each record: of a megabyte it
//! can make gigabytes. So it is given what [`open`] makes of a batch: its records where they take little memory, else one
//! record that holds the batch as it came, sealed with a number that no producer knows. The poller takes that one apart with
//! [`Unpacker`], as a stream.
//!
//! Never holds more than one record's parts, each up to a bound: what is larger is read to its end, hashed, and cut.

use std::io::{self, Cursor, Read};
use std::sync::{Arc, OnceLock};

use lz4_flex::frame::FrameDecoder;

use crate::base::hash::StableHash;
use crate::promise::batch::{CUT_KEEPS_BYTES, Cut, Headers, Record};

/// What librdkafka may make of each compressed byte. JSON of 200 bytes a record comes to 14 under lz4 and to 30 under zstd.
const RATIO_MAX: usize = 32;

/// What librdkafka holds of a record beside its bytes: an operation, and what the allocator adds.
const OPERATION_BYTES: usize = 512;

/// Batches of formats that no producer writes any more are unpacked whole, up to this.
const OLD_FORMAT_BYTES_MAX: usize = 64 << 20;

/// A batch's header in Kafka's record format v2: <https://kafka.apache.org/documentation/#recordbatch>.
pub const HEADER_BYTES: usize = 61;

/// Bits of a batch's or a record's attributes.
const LOG_APPEND_TIME: i16 = 1 << 3;
const CONTROL: i16 = 1 << 5;
const CODEC: i16 = 7;

/// As the attributes number them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

impl Codec {
    pub const ALL: [Codec; 4] = [Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd];
}

/// The bytes are not what they should be.
#[derive(Debug, PartialEq, Eq)]
pub struct Broken(pub String);

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Broken {
        Broken(error.to_string())
    }
}

/// What of a batch's header matters here.
#[derive(Clone, Copy, Debug)]
struct Header {
    base_offset: i64,
    attributes: i16,
    last_offset_delta: i32,
    base_timestamp: i64,
    max_timestamp: i64,
    count: i32,
}

impl Header {
    /// `None` if these bytes are no header of a batch with such a payload: it is of an older format.
    fn read(bytes: &[u8; HEADER_BYTES], payload: usize, codec: Codec) -> Option<Header> {
        let header = Header {
            base_offset: i64::from_be_bytes(part(bytes, 0)),
            attributes: i16::from_be_bytes(part(bytes, 21)),
            last_offset_delta: i32::from_be_bytes(part(bytes, 23)),
            base_timestamp: i64::from_be_bytes(part(bytes, 27)),
            max_timestamp: i64::from_be_bytes(part(bytes, 35)),
            count: i32::from_be_bytes(part(bytes, 57)),
        };
        // The length counts from behind itself.
        let is_of_it = bytes[16] == 2
            && i32::from_be_bytes(part(bytes, 8)) as usize == HEADER_BYTES - 12 + payload
            && header.attributes & CODEC == codec as i16
            && header.last_offset_delta >= 0;
        is_of_it.then_some(header)
    }

    fn timestamp(&self, attributes: i16, delta: i64) -> i64 {
        if (self.attributes | attributes) & LOG_APPEND_TIME != 0 {
            self.max_timestamp
        } else {
            self.base_timestamp.wrapping_add(delta)
        }
    }
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a range of that length")
}

/// Begins the value of a record that holds a batch. A producer that could guess it could only hand in records of its own.
fn seal() -> &'static [u8; 16] {
    static SEAL: OnceLock<[u8; 16]> = OnceLock::new();
    SEAL.get_or_init(|| {
        let mut seal = [0; 16];
        openssl::rand::rand_bytes(&mut seal)
            .expect("the system has random numbers, as every TLS handshake needs");
        seal
    })
}

/// What librdkafka is to read in the place of a compressed batch: records in its format. `header` is what stands before the
/// payload.
pub fn open(header: &[u8; HEADER_BYTES], payload: &[u8], codec: Codec) -> Result<Vec<u8>, Broken> {
    let Some(found) = Header::read(header, payload.len(), codec) else {
        return unpack(payload, codec, OLD_FORMAT_BYTES_MAX)?.ok_or_else(|| {
            Broken(format!("an old batch unpacks to more than {OLD_FORMAT_BYTES_MAX} bytes"))
        });
    };
    let most = payload.len().saturating_mul(RATIO_MAX);
    let operations = usize::try_from(found.count).unwrap_or(0).saturating_mul(OPERATION_BYTES);
    if found.attributes & CONTROL != 0 {
        return unpack(payload, codec, most)?
            .ok_or_else(|| Broken("a marker of a transaction is large".into()));
    }
    let records = match most.checked_sub(operations) {
        Some(room) => unpack(payload, codec, room)?,
        None => None,
    };
    Ok(records.unwrap_or_else(|| sealed(&found, header, payload)))
}

/// All of it, if it has no more than `most` bytes.
fn unpack(payload: &[u8], codec: Codec, most: usize) -> Result<Option<Vec<u8>>, Broken> {
    /// A usual ratio; the buffer grows where it is higher.
    const GUESS: usize = 4;
    let mut stream = stream(codec, Cursor::new(payload))?;
    let mut bytes = Vec::with_capacity(payload.len().saturating_mul(GUESS).min(most.saturating_add(1)));
    stream.by_ref().take(most as u64 + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= most).then_some(bytes))
}

/// One record, at the batch's last offset: whoever wants any of the batch's records wants that one.
fn sealed(found: &Header, header: &[u8; HEADER_BYTES], payload: &[u8]) -> Vec<u8> {
    let value = seal().len() + header.len() + payload.len();
    let mut record = vec![0];
    put_varint(0, &mut record);
    put_varint(found.last_offset_delta.into(), &mut record);
    put_varint(-1, &mut record);
    put_varint(value as i64, &mut record);
    let mut bytes = Vec::with_capacity(value + record.len() + 20);
    put_varint((record.len() + value + 1) as i64, &mut bytes);
    bytes.extend_from_slice(&record);
    bytes.extend_from_slice(seal());
    bytes.extend_from_slice(header);
    bytes.extend_from_slice(payload);
    // No headers.
    bytes.push(0);
    bytes
}

/// Zigzag, as Kafka and Protocol Buffers write it.
fn put_varint(number: i64, out: &mut Vec<u8>) {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

type Stream<'a> = Box<dyn Read + Send + 'a>;

fn stream<'a>(codec: Codec, payload: Cursor<impl AsRef<[u8]> + Send + 'a>) -> Result<Stream<'a>, Broken> {
    Ok(match codec {
        Codec::Gzip => Box::new(flate2::read::MultiGzDecoder::new(payload)),
        Codec::Lz4 => Box::new(FrameDecoder::new(payload)),
        Codec::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(payload)?),
        Codec::Snappy => Box::new(Snappy::new(payload)),
    })
}

/// Snappy has no stream: a block is unpacked whole, to 22 times its size at most. Java's library puts several into a frame.
struct Snappy<T> {
    payload: Cursor<T>,
    block: Cursor<Vec<u8>>,
    is_framed: bool,
}

/// The frame's first bytes; a version and the oldest compatible one follow.
const SNAPPY_FRAME: &[u8] = b"\x82SNAPPY\0";
const SNAPPY_FRAME_BYTES: u64 = 16;

/// A copy of up to 64 bytes takes 3: what says more than this is a lie.
const SNAPPY_RATIO_MAX: usize = 24;

impl<T: AsRef<[u8]>> Snappy<T> {
    fn new(mut payload: Cursor<T>) -> Snappy<T> {
        let is_framed = payload.get_ref().as_ref().starts_with(SNAPPY_FRAME);
        if is_framed {
            payload.set_position(SNAPPY_FRAME_BYTES);
        }
        Snappy { payload, block: Cursor::default(), is_framed }
    }

    /// False at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        let at = self.payload.position() as usize;
        let all = self.payload.get_ref().as_ref();
        let rest = all.get(at..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(false);
        }
        let (skipped, length) = match (self.is_framed, rest.first_chunk::<4>()) {
            (false, _) => (0, rest.len()),
            (true, Some(length)) => (4, u32::from_be_bytes(*length) as usize),
            (true, None) => return Err(broken("a snappy block has no length")),
        };
        let block = rest.get(skipped..skipped + length).ok_or_else(|| broken("a snappy block is cut off"))?;
        if snap::raw::decompress_len(block)? > block.len().saturating_mul(SNAPPY_RATIO_MAX) {
            return Err(broken("a snappy block claims to be larger than it can be"));
        }
        self.block = Cursor::new(snap::raw::Decoder::new().decompress_vec(block)?);
        self.payload.set_position((at + skipped + length) as u64);
        Ok(true)
    }
}

impl<T: AsRef<[u8]>> Read for Snappy<T> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.block.read(out)?;
            if read > 0 || out.is_empty() || !self.next_block()? {
                return Ok(read);
            }
        }
    }
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// One record of a batch, alive until the next.
#[derive(Clone, Copy, Debug)]
pub struct Unpacked<'a> {
    pub offset: i64,
    pub timestamp_ms: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Headers<'a>,
}

impl<'a> Unpacked<'a> {
    pub fn record(self, topic: &'a str, partition: i32) -> Record<'a> {
        Record {
            topic,
            partition,
            offset: self.offset,
            timestamp_ms: Some(self.timestamp_ms),
            key: self.key,
            value: self.value,
            headers: self.headers,
        }
    }
}

/// What a step brought.
#[derive(Debug)]
pub enum Step<'a> {
    Record(Unpacked<'a>),
    /// A part of a large record was read.
    Working,
    End,
}

/// What stands behind a batch's header.
struct Payload(Arc<[u8]>);

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        &self.0[HEADER_BYTES..]
    }
}

/// A batch that is taken apart, record by record.
pub struct Unpacker {
    header: Header,
    /// Header and payload as they came.
    batch: Arc<[u8]>,
    window: Window,
    /// No part of a record that is held has more bytes.
    part_max: usize,
    /// The record in work, if it is a large one.
    large: Option<Box<Large>>,
    headers: Vec<u8>,
    cut: [u8; 28],
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("header", &self.header).finish_non_exhaustive()
    }
}

impl Unpacker {
    /// Takes a record's value for a sealed batch, if it is one.
    #[inline]
    pub fn of(value: Option<&[u8]>, part_max: usize) -> Option<Result<Unpacker, Broken>> {
        let batch = value?.strip_prefix(seal())?;
        Some(Unpacker::new(batch.into(), part_max))
    }

    /// From the beginning of a batch.
    pub fn new(batch: Arc<[u8]>, part_max: usize) -> Result<Unpacker, Broken> {
        let (header, payload) = batch.split_first_chunk().ok_or_else(|| Broken("no header".into()))?;
        let codec = |number: i16| Codec::ALL.into_iter().find(|codec| *codec as i16 == number & CODEC);
        let codec = codec(i16::from_be_bytes(part(header, 21))).ok_or_else(|| Broken("no codec".into()))?;
        let header = Header::read(header, payload.len(), codec).ok_or_else(|| Broken("no batch".into()))?;
        let window = Window::new(stream(codec, Cursor::new(Payload(batch.clone())))?);
        Ok(Unpacker { header, batch, window, part_max, large: None, headers: Vec::new(), cut: [0; 28] })
    }

    /// The batch as it came.
    pub fn batch(&self) -> &Arc<[u8]> {
        &self.batch
    }

    /// True within a record that may be too large to be held.
    pub fn is_within_a_large_record(&self) -> bool {
        self.large.is_some()
    }

    /// Bytes that were unpacked up to now.
    pub fn unpacked_bytes(&self) -> u64 {
        self.window.unpacked
    }

    /// Goes on, by one record or by a piece of a large one.
    pub fn step(&mut self) -> Result<Step<'_>, Broken> {
        if self.large.is_none() {
            if self.window.fill(VARINT_BYTES_MAX)? == 0 {
                return Ok(Step::End);
            }
            let length =
                self.window.length("a record")?.ok_or_else(|| Broken("a record of no length".into()))?;
            if length <= self.part_max {
                return self.small(length).map(Step::Record);
            }
            self.large = Some(Box::new(Large::new()));
        }
        let large = self.large.as_mut().expect("it was just put there");
        if !large.go_on(&mut self.window, &self.header, self.part_max)? {
            return Ok(Step::Working);
        }
        let large = self.large.take().expect("it was just there");
        Ok(Step::Record(self.finished(*large)))
    }

    /// A record that fits into the window.
    fn small(&mut self, length: usize) -> Result<Unpacked<'_>, Broken> {
        let mut rest = Slice(self.window.take(length)?);
        let attributes = rest.take(1)?[0];
        let timestamp_ms = self.header.timestamp(attributes.into(), rest.varint()?);
        let offset = self.header.base_offset.wrapping_add(rest.varint()?);
        let (key, value) = (rest.bytes()?, rest.bytes()?);
        self.headers.clear();
        for _ in 0..rest.varint()? {
            let name = rest.bytes()?.unwrap_or_default();
            let value = rest.bytes()?;
            Headers::append(&mut self.headers, until_nul(name), value);
        }
        Ok(Unpacked { offset, timestamp_ms, key, value, headers: Headers(&self.headers) })
    }

    /// A large record that was read to its end.
    fn finished(&mut self, large: Large) -> Unpacked<'_> {
        let cut = large.cut();
        let Large { offset, timestamp_ms, key, value, headers, .. } = large;
        self.headers = headers;
        let headers = match cut {
            Some(cut) => {
                self.cut = Headers::of_cut(cut);
                &self.cut[..]
            }
            None => &self.headers[..],
        };
        let (key, value) =
            self.window.lend(key, value, if cut.is_some() { CUT_KEEPS_BYTES } else { usize::MAX });
        Unpacked { offset, timestamp_ms, key, value, headers: Headers(headers) }
    }
}

/// librdkafka gives a header's name as a C string.
fn until_nul(name: &[u8]) -> &[u8] {
    &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())]
}

/// Bytes of one record, read from the front.
struct Slice<'a>(&'a [u8]);

impl<'a> Slice<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Broken> {
        let (head, tail) =
            self.0.split_at_checked(count).ok_or_else(|| Broken("a record is cut off".into()))?;
        self.0 = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<i64, Broken> {
        let (number, count) = varint(self.0)?;
        self.0 = &self.0[count..];
        Ok(number)
    }

    fn bytes(&mut self) -> Result<Option<&'a [u8]>, Broken> {
        match usize::try_from(self.varint()?) {
            Ok(count) => self.take(count).map(Some),
            Err(_) => Ok(None),
        }
    }
}

/// 64 bits, seven a byte.
const VARINT_BYTES_MAX: usize = 10;

fn varint(bytes: &[u8]) -> Result<(i64, usize), Broken> {
    let mut number = 0u64;
    for (place, byte) in bytes.iter().take(VARINT_BYTES_MAX).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(((number >> 1) as i64 ^ -((number & 1) as i64), place + 1));
        }
    }
    Err(Broken("a number does not end".into()))
}

/// What was unpacked and not yet read.
struct Window {
    stream: Stream<'static>,
    bytes: Vec<u8>,
    at: usize,
    unpacked: u64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
}

/// Unpacked at once. Large enough that the calls do not count, small enough for a step.
const PIECE_BYTES: usize = 64 << 10;

impl Window {
    fn new(stream: Stream<'static>) -> Window {
        Window { stream, bytes: Vec::new(), at: 0, unpacked: 0, key: None, value: None }
    }

    /// Unpacks until `count` bytes are there, or the stream is at its end; how many there are.
    fn fill(&mut self, count: usize) -> Result<usize, Broken> {
        let mut there = self.bytes.len() - self.at;
        if there >= count {
            return Ok(there);
        }
        self.bytes.drain(..self.at);
        self.at = 0;
        while there < count {
            let more = count.saturating_sub(there).max(PIECE_BYTES);
            let read = self.stream.by_ref().take(more as u64).read_to_end(&mut self.bytes)?;
            self.unpacked += read as u64;
            there = self.bytes.len();
            if read == 0 {
                break;
            }
        }
        Ok(there)
    }

    fn take(&mut self, count: usize) -> Result<&[u8], Broken> {
        if self.fill(count)? < count {
            return Err(Broken("a record is cut off".into()));
        }
        self.at += count;
        Ok(&self.bytes[self.at - count..self.at])
    }

    /// Some bytes, at least one and at most `count`.
    fn some(&mut self, count: usize) -> Result<&[u8], Broken> {
        let there = self.fill(1)?.min(count);
        self.take(there.max(1))
    }

    fn varint(&mut self) -> Result<i64, Broken> {
        self.fill(VARINT_BYTES_MAX)?;
        let (number, count) = varint(&self.bytes[self.at..])?;
        self.at += count;
        Ok(number)
    }

    /// A length, `None` for null.
    fn length(&mut self, of: &str) -> Result<Option<usize>, Broken> {
        match self.varint()? {
            -1 => Ok(None),
            number => {
                usize::try_from(number).map(Some).map_err(|_| Broken(format!("{of} of {number} bytes")))
            }
        }
    }

    /// Keeps a large record's parts as long as the record is lent.
    fn lend(
        &mut self,
        key: Option<Vec<u8>>,
        value: Option<Vec<u8>>,
        most: usize,
    ) -> (Option<&[u8]>, Option<&[u8]>) {
        (self.key, self.value) = (key, value);
        let lent = |part: &'_ Vec<u8>| part.len().min(most);
        (
            self.key.as_ref().map(|key| &key[..lent(key)]),
            self.value.as_ref().map(|value| &value[..lent(value)]),
        )
    }
}

/// Where in a large record the reading is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Start,
    Key { left: usize },
    ValueLength,
    Value { left: usize },
    HeaderCount,
    HeaderName { headers: i64 },
    HeaderNameRest { headers: i64, left: usize },
    HeaderValue { headers: i64, left: usize },
    End,
}

/// A record that may be larger than what is held: it is hashed as it passes, and of each part only what may be kept is kept.
#[derive(Debug)]
struct Large {
    place: Place,
    offset: i64,
    timestamp_ms: i64,
    hash: StableHash,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<u8>,
    key_bytes: usize,
    value_bytes: Option<usize>,
    headers_bytes: usize,
    part_max: usize,
}

impl Large {
    fn new() -> Large {
        Large {
            place: Place::Start,
            offset: 0,
            timestamp_ms: 0,
            hash: StableHash::default(),
            key: None,
            value: None,
            headers: Vec::new(),
            key_bytes: 0,
            value_bytes: None,
            headers_bytes: 0,
            part_max: 0,
        }
    }

    /// What was left out, if any part has more than may be held.
    fn cut(&self) -> Option<Cut> {
        let value_bytes = self.value_bytes.unwrap_or(0);
        let parts = [self.key_bytes, value_bytes, self.headers_bytes];
        parts.iter().any(|bytes| *bytes > self.part_max).then(|| Cut {
            bytes: parts.iter().sum::<usize>() as i64,
            value_bytes: self.value_bytes.map_or(-1, |bytes| bytes as i64),
            hash: self.hash.finish(),
        })
    }

    /// Reads a piece; true at the record's end.
    fn go_on(&mut self, window: &mut Window, header: &Header, part_max: usize) -> Result<bool, Broken> {
        let until = window.unpacked + PIECE_BYTES as u64;
        self.part_max = part_max;
        while window.unpacked < until {
            self.place = self.next_place(window, header)?;
            if matches!(self.place, Place::End) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn next_place(&mut self, window: &mut Window, header: &Header) -> Result<Place, Broken> {
        Ok(match self.place {
            Place::Start => {
                let attributes = window.take(1)?[0];
                self.timestamp_ms = header.timestamp(attributes.into(), window.varint()?);
                self.offset = header.base_offset.wrapping_add(window.varint()?);
                let length = window.length("a key")?;
                self.key = length.map(|_| Vec::new());
                self.key_bytes = length.unwrap_or(0);
                self.hash.eat(&length.map_or(-1, |bytes| bytes as i64).to_le_bytes());
                Place::Key { left: self.key_bytes }
            }
            Place::Key { left: 0 } => Place::ValueLength,
            Place::Key { left } => {
                let kept = self.key.as_mut().map(|kept| (kept, room(self.key_bytes, self.part_max)));
                Place::Key { left: left - eat(window, left, &mut self.hash, kept)? }
            }
            Place::ValueLength => {
                self.value_bytes = window.length("a value")?;
                self.value = self.value_bytes.map(|_| Vec::new());
                self.hash.eat(&self.value_bytes.map_or(-1, |bytes| bytes as i64).to_le_bytes());
                Place::Value { left: self.value_bytes.unwrap_or(0) }
            }
            Place::Value { left: 0 } => {
                self.hash.eat(&self.timestamp_ms.to_le_bytes());
                Place::HeaderCount
            }
            Place::Value { left } => {
                let room = room(self.value_bytes.unwrap_or(0), self.part_max);
                let kept = self.value.as_mut().map(|kept| (kept, room));
                Place::Value { left: left - eat(window, left, &mut self.hash, kept)? }
            }
            Place::HeaderCount => Place::HeaderName { headers: window.varint()? },
            Place::HeaderName { headers: ..=0 } => Place::End,
            Place::HeaderName { headers } => {
                let length = window.length("a header's name")?.unwrap_or(0);
                // Its end must be known before its hash, where a name that anybody means would end at a NUL.
                let rest = if length <= self.part_max {
                    let name = until_nul(window.take(length)?).to_vec();
                    self.put_header(&(name.len() as u32).to_le_bytes());
                    self.put_header(&name);
                    0
                } else {
                    self.put_header(&(length as u32).to_le_bytes());
                    length
                };
                Place::HeaderNameRest { headers, left: rest }
            }
            Place::HeaderNameRest { headers, left: 0 } => {
                let value = window.length("a header's value")?;
                self.put_header(&value.map_or(-1, |bytes| bytes as i32).to_le_bytes());
                Place::HeaderValue { headers: headers - 1, left: value.unwrap_or(0) }
            }
            Place::HeaderNameRest { headers, left } => {
                Place::HeaderNameRest { headers, left: left - self.pass_header(window, left)? }
            }
            Place::HeaderValue { headers, left: 0 } => Place::HeaderName { headers },
            Place::HeaderValue { headers, left } => {
                Place::HeaderValue { headers, left: left - self.pass_header(window, left)? }
            }
            Place::End => Place::End,
        })
    }

    fn pass_header(&mut self, window: &mut Window, left: usize) -> Result<usize, Broken> {
        let piece = window.some(left)?.to_vec();
        self.put_header(&piece);
        Ok(piece.len())
    }

    fn put_header(&mut self, bytes: &[u8]) {
        self.hash.eat(bytes);
        self.headers_bytes += bytes.len();
        if self.headers_bytes <= self.part_max {
            self.headers.extend_from_slice(bytes);
        }
    }
}

/// How much of a part is kept.
fn room(bytes: usize, part_max: usize) -> usize {
    if bytes > part_max { CUT_KEEPS_BYTES } else { bytes }
}

/// Hashes some of the next bytes, and keeps them while there is room; how many they were.
fn eat(
    window: &mut Window,
    left: usize,
    hash: &mut StableHash,
    kept: Option<(&mut Vec<u8>, usize)>,
) -> Result<usize, Broken> {
    let some = window.some(left)?;
    hash.eat(some);
    if let Some((kept, room)) = kept {
        let more = room.saturating_sub(kept.len()).min(some.len());
        kept.extend_from_slice(&some[..more]);
    }
    Ok(some.len())
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// As a test has it: key, value, headers.
    type Parts = (Option<Vec<u8>>, Option<Vec<u8>>, Vec<(Vec<u8>, Option<Vec<u8>>)>);

    fn put_bytes(bytes: Option<&[u8]>, out: &mut Vec<u8>) {
        put_varint(bytes.map_or(-1, |bytes| bytes.len() as i64), out);
        out.extend_from_slice(bytes.unwrap_or_default());
    }

    /// Records as they lie in a batch; record `n` is at offset `100 + 2n` and was stamped at `1000 + n`.
    fn encoded(records: &[Parts]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, (key, value, headers)) in records.iter().enumerate() {
            let mut record = vec![0];
            put_varint(number as i64, &mut record);
            put_varint(2 * number as i64, &mut record);
            put_bytes(key.as_deref(), &mut record);
            put_bytes(value.as_deref(), &mut record);
            put_varint(headers.len() as i64, &mut record);
            for (name, value) in headers {
                put_bytes(Some(name), &mut record);
                put_bytes(value.as_deref(), &mut record);
            }
            put_varint(record.len() as i64, &mut out);
            out.extend_from_slice(&record);
        }
        out
    }

    pub(in crate::kafka) fn packed(codec: Codec, bytes: &[u8]) -> Vec<u8> {
        match codec {
            Codec::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Codec::Lz4 => {
                let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Codec::Zstd => zstd::encode_all(bytes, 3).unwrap(),
            Codec::Snappy => snap::raw::Encoder::new().compress_vec(bytes).unwrap(),
        }
    }

    fn header(codec: Codec, payload: &[u8], count: i32) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&100i64.to_be_bytes());
        header[8..12].copy_from_slice(&((HEADER_BYTES - 12 + payload.len()) as i32).to_be_bytes());
        header[16] = 2;
        header[21..23].copy_from_slice(&(codec as i16).to_be_bytes());
        header[23..27].copy_from_slice(&(2 * (count - 1)).to_be_bytes());
        header[27..35].copy_from_slice(&1000i64.to_be_bytes());
        header[35..43].copy_from_slice(&5000i64.to_be_bytes());
        header[57..61].copy_from_slice(&count.to_be_bytes());
        header
    }

    /// The value of the one record, which is at the batch's last offset.
    fn sealed_value(bytes: &[u8]) -> (i64, Vec<u8>) {
        let (length, count) = varint(bytes).unwrap();
        assert_eq!(length as usize, bytes.len() - count, "one record");
        let mut rest = Slice(&bytes[count..]);
        rest.take(1).unwrap();
        rest.varint().unwrap();
        let offset = rest.varint().unwrap();
        assert_eq!(rest.bytes().unwrap(), None);
        let value = rest.bytes().unwrap().unwrap().to_vec();
        assert_eq!((rest.varint().unwrap(), rest.0.len()), (0, 0));
        (offset, value)
    }

    fn whole<'a>(record: &'a Parts, arena: &'a mut Vec<u8>, number: i64) -> Record<'a> {
        for (name, value) in &record.2 {
            Headers::append(arena, until_nul(name), value.as_deref());
        }
        Record {
            topic: "t",
            partition: 0,
            offset: 100 + 2 * number,
            timestamp_ms: Some(1000 + number),
            key: record.0.as_deref(),
            value: record.1.as_deref(),
            headers: Headers(arena),
        }
    }

    /// Takes the batch apart, and compares each record with what [`Record::bounded`] makes of it.
    #[track_caller]
    fn check(codec: Codec, records: &[Parts], part_max: usize) {
        let payload = packed(codec, &encoded(records));
        let header = header(codec, &payload, records.len() as i32);
        let found = Header::read(&header, payload.len(), codec).expect("a header");
        let (offset, value) = sealed_value(&sealed(&found, &header, &payload));
        assert_eq!(offset, i64::from(found.last_offset_delta));
        let mut unpacker = Unpacker::of(Some(&value), part_max).expect("a seal").expect("a batch");
        let mut seen = 0;
        loop {
            let record = match unpacker.step().expect("it is whole") {
                Step::End => break,
                Step::Working => continue,
                Step::Record(record) => record,
            };
            let (mut arena, mut cut) = (Vec::new(), [0; 28]);
            let expected = whole(&records[seen], &mut arena, seen as i64).bounded(part_max, &mut cut);
            // Many small headers have more bytes in the arena than in a batch.
            let mut again = [0; 28];
            let record = record.record("t", 0).bounded(part_max, &mut again);
            assert_eq!((record.offset, record.timestamp_ms), (expected.offset, expected.timestamp_ms));
            assert_eq!((record.key, record.value), (expected.key, expected.value), "{codec:?}");
            assert_eq!(record.headers.0, expected.headers.0, "{codec:?}");
            seen += 1;
        }
        assert_eq!(seen, records.len());
    }

    fn parts(size: usize) -> impl Strategy<Value = Parts> {
        let bytes = move || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..size));
        // A NUL ends a name unless that is too large to be held, so that its end is not known in time.
        let name = proptest::collection::vec(1..=255u8, 0..size);
        (bytes(), bytes(), proptest::collection::vec((name, bytes()), 0..3))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_batch_is_taken_apart_as_it_was_put_together(records in proptest::collection::vec(parts(90), 1..20)) {
            for codec in Codec::ALL {
                check(codec, &records, 4000);
                check(codec, &records, 40);
            }
        }

        #[test]
        fn bytes_that_are_no_batch_are_refused_and_never_a_panic(
            mut payload in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..300, records in proptest::collection::vec(parts(40), 1..5)
        ) {
            for codec in Codec::ALL {
                let mut broken = packed(codec, &encoded(&records));
                let place = at % broken.len();
                broken[place] ^= 0x55;
                for payload in [&mut payload, &mut broken] {
                    let header = header(codec, payload, 3);
                    drop(open(&header, payload, codec));
                    let found = Header::read(&header, payload.len(), codec).expect("a header");
                    let (_, value) = sealed_value(&sealed(&found, &header, payload));
                    let Some(Ok(mut unpacker)) = Unpacker::of(Some(&value), 100) else { continue };
                    while let Ok(Step::Record(_) | Step::Working) = unpacker.step() {}
                }
            }
        }
    }

    #[test]
    fn large_parts_of_each_kind_are_cut() {
        let large = || Some(vec![b'x'; 300_000]);
        let name = |bytes: usize| vec![b'n'; bytes];
        let records: Vec<Parts> = vec![
            (large(), None, vec![]),
            (None, large(), vec![(name(3), Some(b"v".to_vec()))]),
            (Some(vec![]), Some(vec![]), vec![(name(3), large()), (b"a\0b".to_vec(), None)]),
            (None, None, vec![(name(300_000), None)]),
            (Some(vec![b'k'; 90_000]), Some(vec![b'v'; 90_000]), vec![(name(3), Some(vec![b'h'; 90_000]))]),
            (None, Some(b"{}".to_vec()), vec![]),
        ];
        for codec in Codec::ALL {
            check(codec, &records, 100_000);
        }
    }

    #[test]
    fn librdkafka_gets_records_where_they_take_little_and_a_sealed_batch_where_not() {
        #[track_caller]
        fn check(codec: Codec, records: &[Parts], is_sealed: bool) {
            let bytes = encoded(records);
            let payload = packed(codec, &bytes);
            let given = open(&header(codec, &payload, records.len() as i32), &payload, codec).unwrap();
            assert_eq!(given != bytes, is_sealed, "{codec:?}, {} of {}", payload.len(), bytes.len());
            assert!(given.len() <= payload.len() * RATIO_MAX);
        }
        let noise = |n: u64| {
            (0..40u64)
                .flat_map(move |i| ((n * 41 + i) ^ 0x9e37).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        };
        let noise: Vec<Parts> = (0..50).map(|n| (None, Some(noise(n).collect()), vec![])).collect();
        let spaces = vec![(None, Some(vec![b' '; 1 << 20]), vec![])];
        let empty: Vec<Parts> = vec![(None, None, vec![]); 5000];
        for codec in Codec::ALL {
            check(codec, &noise, false);
            check(codec, &empty, true);
        }
        for codec in [Codec::Gzip, Codec::Lz4, Codec::Zstd] {
            check(codec, &spaces, true);
        }
        // 22 to one is the most.
        check(Codec::Snappy, &spaces, false);
    }

    #[test]
    fn javas_snappy_frames_are_read() {
        let records: Vec<Parts> = vec![(None, Some(vec![b'v'; 100_000]), vec![]); 3];
        let bytes = encoded(&records);
        let mut payload = [SNAPPY_FRAME, &1u32.to_be_bytes()[..], &1u32.to_be_bytes()[..]].concat();
        for block in bytes.chunks(32 << 10) {
            let block = packed(Codec::Snappy, block);
            payload.extend_from_slice(&(block.len() as u32).to_be_bytes());
            payload.extend_from_slice(&block);
        }
        assert_eq!(open(&header(Codec::Snappy, &payload, 3), &payload, Codec::Snappy), Ok(bytes));
        let lie = [&[0xff, 0xff, 0xff, 0xff, 0x0f][..], &[0; 20]].concat();
        assert!(
            open(&header(Codec::Snappy, &lie, 1), &lie, Codec::Snappy).is_err(),
            "four gigabytes in 25 bytes"
        );
    }

    #[test]
    fn a_producer_cannot_seal() {
        for value in [&b""[..], b"{}", &[0; 200]] {
            assert!(Unpacker::of(Some(value), 100).is_none());
        }
        assert!(Unpacker::of(None, 100).is_none());
    }

    #[test]
    fn an_old_format_is_unpacked_up_to_a_bound() {
        let small = packed(Codec::Gzip, b"messages of 2016");
        assert_eq!(open(&[0; HEADER_BYTES], &small, Codec::Gzip).as_deref(), Ok(&b"messages of 2016"[..]));
        let bomb = packed(Codec::Gzip, &vec![b' '; OLD_FORMAT_BYTES_MAX + 1]);
        assert!(open(&[0; HEADER_BYTES], &bomb, Codec::Gzip).is_err());
    }
}
