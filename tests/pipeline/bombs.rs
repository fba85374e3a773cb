//! Whoever may write to a topic sends batches that Kafka takes by its defaults and that unpack to a thousand times their size. The
//! service's memory limit holds, each record has its outcome, and the other topics go on.
//!
//! The batches are put together here, byte for byte: no producer's client would send them.

use std::io::{Read as _, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::world::{World, record, rowmill, wait_for};

/// `MemoryMax` of systemd/rowmill.service.
const MEMORY_MAX: u64 = 512 << 20;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Codec {
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

/// Records of one batch, written one after another into whatever packs them.
type Records<'a> = &'a dyn Fn(&mut dyn Write) -> std::io::Result<i32>;

/// As Kafka's clients number them: zigzag.
fn varint(number: i64) -> Vec<u8> {
    let mut rest = ((number << 1) ^ (number >> 63)) as u64;
    let mut out = Vec::new();
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
    out
}

/// A record without key and headers, whose value is `bytes` long and written by `value`; `None` for a tombstone.
fn put_record(
    out: &mut dyn Write,
    number: i32,
    bytes: Option<usize>,
    value: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let head =
        [&[0, 0][..], &varint(number.into()), &varint(-1), &varint(bytes.map_or(-1, |b| b as i64))].concat();
    out.write_all(&varint((head.len() + bytes.unwrap_or(0) + 1) as i64))?;
    out.write_all(&head)?;
    value(out)?;
    out.write_all(&[0])
}

fn put_value(out: &mut dyn Write, number: i32, value: &[u8]) -> std::io::Result<()> {
    put_record(out, number, Some(value.len()), |out| out.write_all(value))
}

fn spaces(out: &mut dyn Write, bytes: usize) -> std::io::Result<()> {
    let piece = [b' '; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let some = left.min(piece.len());
        out.write_all(&piece[..some])?;
        left -= some;
    }
    Ok(())
}

fn packed(codec: Codec, records: Records<'_>) -> (Vec<u8>, i32) {
    let write = |out: &mut dyn Write| records(out).expect("memory takes all");
    match codec {
        Codec::None => {
            let mut out = Vec::new();
            let count = write(&mut out);
            (out, count)
        }
        Codec::Gzip => {
            let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            let count = write(&mut out);
            (out.finish().expect("packed"), count)
        }
        Codec::Snappy => {
            let mut plain = Vec::new();
            let count = write(&mut plain);
            (snap::raw::Encoder::new().compress_vec(&plain).expect("packed"), count)
        }
        Codec::Lz4 => {
            let mut out = lz4_flex::frame::FrameEncoder::new(Vec::new());
            let count = write(&mut out);
            (out.finish().expect("packed"), count)
        }
        Codec::Zstd => {
            let mut out = zstd::Encoder::new(Vec::new(), 3).expect("an encoder");
            let count = write(&mut out);
            (out.finish().expect("packed"), count)
        }
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    };
    !bytes.iter().fold(!0, step)
}

/// A batch in Kafka's record format v2.
fn batch(codec: Codec, records: Records<'_>) -> Vec<u8> {
    let (payload, count) = packed(codec, records);
    let now = jiff::Timestamp::now().as_millisecond();
    let mut checked = Vec::new();
    checked.extend_from_slice(&(codec as i16).to_be_bytes());
    checked.extend_from_slice(&(count - 1).to_be_bytes());
    checked.extend_from_slice(&now.to_be_bytes());
    checked.extend_from_slice(&now.to_be_bytes());
    checked.extend_from_slice(&(-1i64).to_be_bytes());
    checked.extend_from_slice(&(-1i16).to_be_bytes());
    checked.extend_from_slice(&(-1i32).to_be_bytes());
    checked.extend_from_slice(&count.to_be_bytes());
    checked.extend_from_slice(&payload);
    let mut batch = 0i64.to_be_bytes().to_vec();
    batch.extend_from_slice(&((4 + 1 + 4 + checked.len()) as i32).to_be_bytes());
    batch.extend_from_slice(&(-1i32).to_be_bytes());
    batch.push(2);
    batch.extend_from_slice(&crc32c(&checked).to_be_bytes());
    batch.extend_from_slice(&checked);
    batch
}

/// Sends a batch as it is, in a Produce request of version 7, and gives its first offset.
fn send(world: &World, topic: &str, partition: i32, batch: &[u8]) -> i64 {
    let text = |text: &str| [&(text.len() as i16).to_be_bytes()[..], text.as_bytes()].concat();
    let one = 1i32.to_be_bytes();
    let body = [
        &[0, 0, 0, 7, 0, 0, 0, 1][..],
        &text("bomb"),
        &(-1i16).to_be_bytes(),
        &(-1i16).to_be_bytes(),
        &60_000i32.to_be_bytes(),
        &one,
        &text(&world.topic(topic)),
        &one,
        &partition.to_be_bytes(),
        &(batch.len() as i32).to_be_bytes(),
        batch,
    ]
    .concat();
    let mut stream = TcpStream::connect(world.server("KAFKA_BROKERS")).expect("Kafka listens");
    stream.write_all(&(body.len() as i32).to_be_bytes()).expect("sent");
    stream.write_all(&body).expect("sent");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut answer = vec![0; i32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).expect("an answer");
    // Correlation, one topic with its name, one partition, its number.
    let at = 4 + 4 + 2 + world.topic(topic).len() + 4 + 4;
    let error = i16::from_be_bytes(answer[at..at + 2].try_into().expect("two bytes"));
    assert_eq!(error, 0, "Kafka takes it by its defaults, {} bytes", batch.len());
    i64::from_be_bytes(answer[at + 2..at + 10].try_into().expect("eight bytes"))
}

/// One record of spaces.
fn one(codec: Codec, bytes: usize) -> Vec<u8> {
    batch(codec, &|out| {
        put_record(out, 0, Some(bytes), |out| spaces(out, bytes))?;
        Ok(1)
    })
}

/// So many good records, each with as many bytes, most of them spaces.
fn many(codec: Codec, count: i32, bytes: usize) -> Vec<u8> {
    batch(codec, &|out| {
        for number in 0..count {
            let mut value = format!("{{\"n\":{number},\"word\":\"w\"}}").into_bytes();
            value.resize(bytes, b' ');
            put_value(out, number, &value)?;
        }
        Ok(count)
    })
}

/// How one table grows: when it did the last time, and from when to when it did not.
struct Flow {
    rows: i64,
    grew_at: Instant,
    /// What the threads on its way had waited for a core until then.
    waited: Vec<Duration>,
    gaps: Vec<Gap>,
}

struct Gap {
    from: Instant,
    to: Instant,
    /// For so long the threads on the way, through which a record goes one after another, could have run and had no core.
    without_core: Duration,
}

impl Flow {
    fn new(rows: i64) -> Flow {
        Flow { rows, grew_at: Instant::now(), waited: Vec::new(), gaps: Vec::new() }
    }

    fn see(&mut self, rows: i64, waited: Vec<Duration>) {
        if rows > self.rows {
            let more = waited.iter().zip(&self.waited).map(|(now, then)| now.saturating_sub(*then));
            let without_core = more.sum();
            self.gaps.push(Gap { from: self.grew_at, to: Instant::now(), without_core });
            (self.rows, self.grew_at, self.waited) = (rows, Instant::now(), waited);
        }
    }
}

/// How long each thread of these names waited for a core since it began; the second number of the kernel's `schedstat`.
fn waited_for_a_core(pid: u32, names: [&str; 5]) -> Vec<Duration> {
    let read =
        |task: &std::path::Path, file: &str| std::fs::read_to_string(task.join(file)).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks
        .map(|task| task.path())
        .filter(|task| names.contains(&read(task, "comm").trim()))
        .map(|task| {
            let ns = read(&task, "schedstat").split_whitespace().nth(1).and_then(|ns| ns.parse().ok());
            Duration::from_nanos(ns.unwrap_or_default())
        })
        .collect()
}

/// The other topic, through two processes: the one with the bombs, and one that reads nothing else. The second one shows what the
/// machine and the servers do by themselves while they are busy.
struct Other {
    sql: postgres::Client,
    pid: u32,
    attacked: Flow,
    control: Flow,
}

impl Other {
    fn new(world: &World, pid: u32) -> Other {
        let mut sql = world.sql();
        let [attacked, control] = Other::rows(&mut sql).map(Flow::new);
        Other { sql, pid, attacked, control }
    }

    fn rows(sql: &mut postgres::Client) -> [i64; 2] {
        let rows = "SELECT coalesce(sum(rows) FILTER (WHERE target = 'public.u'), 0)::BIGINT,
                           coalesce(sum(rows) FILTER (WHERE target = 'public.v'), 0)::BIGINT FROM rowmill.ledger";
        let row = sql.query_one(rows, &[]).expect("the ledger");
        [row.get(0), row.get(1)]
    }

    fn look(&mut self) {
        let [attacked, control] = Other::rows(&mut self.sql);
        let way = ["rdk:broker1", "rdk:main", "poll-0", "decode-0", "write-u-0"];
        self.attacked.see(attacked, waited_for_a_core(self.pid, way));
        self.control.see(control, Vec::new());
    }

    /// The longest stall of the attacked process's table since a moment, as the clock has it; and the longest that is left of one where
    /// the machine's share is taken away: the other process's stall at the same time, or what its own threads waited for a core.
    fn stalls(&self, since: Instant) -> (Duration, Duration) {
        let gaps = || self.attacked.gaps.iter().filter(|gap| gap.to > since);
        let shared = |gap: &Gap| {
            let overlap =
                |other: &Gap| other.to.min(gap.to).saturating_duration_since(other.from.max(gap.from));
            self.control.gaps.iter().map(overlap).max().unwrap_or_default()
        };
        let own = gaps().map(|gap| (gap.to - gap.from).saturating_sub(shared(gap).max(gap.without_core)));
        (gaps().map(|gap| gap.to - gap.from).max().unwrap_or_default(), own.max().unwrap_or_default())
    }
}

#[test]
fn a_bomb_in_a_topic_costs_its_own_records_and_nothing_else() {
    const MIB: usize = 1 << 20;
    let world = World::alone("bombs");
    world.create_topic("in", 3);
    world.create_topic("other", 1);
    world.create_table("t", "");
    world.create_table("u", "");
    world.create_table("v", "");
    let config = format!(
        "[guard]\ndead_letter_share = 1.0\n{}{}",
        world.model("in", "t", ""),
        world.model("other", "u", "")
    );
    let engine = world.engine(&config, &[]);
    let cgroup = match Cgroup::with_memory_max(MEMORY_MAX) {
        Ok(cgroup) => {
            cgroup.add(engine.pid());
            Some(cgroup)
        }
        Err(why) => {
            println!("NOT TESTED in a cgroup of {} MiB: {why}", MEMORY_MAX >> 20);
            None
        }
    };
    let control = world.engine(&format!("pipeline = \"control\"\n{}", world.model("other", "v", "")), &[]);
    let load = world.load("other", 1, 500);
    wait_for("the other topic to flow", 30, || {
        world.count("SELECT least((SELECT count(*) FROM u), (SELECT count(*) FROM v))") > 50
    });
    let empty = |codec| {
        batch(codec, &|out| {
            (0..300_000).try_for_each(|number| put_record(out, number, None, |_| Ok(())))?;
            Ok(300_000)
        })
    };
    // What, batches, rows of each, letters of each.
    let bombs: Vec<(&str, Vec<u8>, usize, i64, i64)> = vec![
        ("gzip, 100 MiB in one record", one(Codec::Gzip, 100 * MIB), 3, 0, 1),
        ("gzip, 1 GiB in one record", one(Codec::Gzip, 1024 * MIB), 1, 0, 1),
        ("zstd, 1 GiB in one record", one(Codec::Zstd, 1024 * MIB), 1, 0, 1),
        ("lz4, 240 MiB in one record", one(Codec::Lz4, 240 * MIB), 2, 0, 1),
        ("snappy, 20 MiB in one record", one(Codec::Snappy, 20 * MIB), 2, 0, 1),
        (
            "gzip, 60 records of 5 MiB",
            batch(Codec::Gzip, &|out| {
                (0..60).try_for_each(|n| put_record(out, n, Some(5 * MIB), |out| spaces(out, 5 * MIB)))?;
                Ok(60)
            }),
            2,
            0,
            60,
        ),
        ("gzip, 1,000 records of 100 kB", many(Codec::Gzip, 1000, 100_000), 2, 1000, 0),
        ("lz4, 1,000 records of 100 kB", many(Codec::Lz4, 1000, 100_000), 2, 1000, 0),
        ("zstd, 200,000 records of 100 B", many(Codec::Zstd, 200_000, 100), 2, 200_000, 0),
        ("gzip, 200,000 records of 100 B", many(Codec::Gzip, 200_000, 100), 2, 200_000, 0),
        ("snappy, 80,000 records of 100 B", many(Codec::Snappy, 80_000, 100), 2, 80_000, 0),
        ("gzip, 300,000 tombstones", empty(Codec::Gzip), 1, 0, 300_000),
    ];
    let mut other = Other::new(&world, engine.pid());
    let [before, control_before] = [other.attacked.rows, other.control.rows];
    let (mut rows, mut letters) = (0, 0);
    let bombs_at = Instant::now();
    for (what, bytes, count, rows_each, letters_each) in &bombs {
        let began = Instant::now();
        for number in 0..*count {
            send(&world, "in", number as i32 % 3, bytes);
        }
        rows += rows_each * *count as i64;
        letters += letters_each * *count as i64;
        wait_for(what, 300, || {
            other.look();
            world.count("SELECT coalesce(sum(rows), 0)::BIGINT FROM rowmill.ledger WHERE target = 'public.t'")
                == rows
                && world.count("SELECT coalesce(sum(dead), 0)::BIGINT FROM rowmill.ledger") == letters
        });
        let (stall, own) = other.stalls(began);
        println!(
            "{what}: {count} batches of {} kB in {:.1} s, peak {} MiB; longest stall of the other topic {:.2} s, {:.2} s of it not the \
             machine's",
            bytes.len() >> 10,
            began.elapsed().as_secs_f64(),
            engine.peak_memory() >> 20,
            stall.as_secs_f64(),
            own.as_secs_f64(),
        );
        assert!(engine.peak_memory() < MEMORY_MAX, "{what}: {} MiB", engine.peak_memory() >> 20);
    }
    other.look();
    let speed = (other.attacked.rows - before) as f64 / (other.control.rows - control_before).max(1) as f64;
    let (stall, own) = other.stalls(bombs_at);
    println!("the other topic ran at {speed:.2} of the speed that it has in a process without bombs");
    if let Some(cgroup) = &cgroup {
        let peak = cgroup.peak().map_or_else(|| "unknown".to_owned(), |peak| (peak >> 20).to_string());
        println!("in a cgroup of {} MiB: peak {peak} MiB, {} kills", MEMORY_MAX >> 20, cgroup.kills());
        assert_eq!(cgroup.kills(), 0);
    }
    let sent = load.stop() as i64;
    world.wait_drained(&["in", "other"], 60);
    assert_eq!(world.count("SELECT count(*) FROM u"), sent);
    assert_eq!(world.count("SELECT count(*) FROM t"), rows);
    assert_eq!(world.count("SELECT count(*) FROM (SELECT DISTINCT _partition, _offset FROM t) AS d"), rows);
    // Two busy processes are not equally lucky with a machine that does other things.
    assert!(
        own < Duration::from_secs(1),
        "the other topic stood still for {stall:?}, for {own:?} of it alone"
    );
    assert!(speed >= 0.8, "{speed}");
    // What is left of a record that was too large.
    assert_eq!(
        world.count(
            "SELECT count(*) FROM rowmill.dead_letter
             WHERE whole_bytes = 1 << 30 AND octet_length(value) = 1024 AND reason = 'too_large'"
        ),
        2
    );
    let file = world.file("bombs.toml", &config);
    let (text, ok) = rowmill(&world, &["verify", "--config", &file]);
    assert!(ok, "{text}");
    let (text, _) = rowmill(&world, &["dead-letters", "--config", &file, "retry", "--reason", "too_large"]);
    assert!(text.contains("only a beginning of its"), "{text}");
    assert!(engine.stop().0.success() && control.stop().0.success());
}

#[test]
fn the_next_owner_knows_a_record_that_was_cut() {
    let world = World::new("bombs_anchor");
    world.create_topic("in", 1);
    world.create_table("t", "");
    let config = world.model("in", "t", "");
    send(&world, "in", 0, &many(Codec::None, 3, 40));
    send(&world, "in", 0, &one(Codec::Gzip, 64 << 20));
    let first = world.engine(&config, &[]);
    world.wait_drained(&["in"], 30);
    first.kill();
    // The last committed record is the cut one: the next owner must find it again. With another bound it is whole.
    let config = format!("message_max = \"100MB\"\nmemory_max = \"500MB\"\n{config}");
    let second = world.engine(&config, &[]);
    world.produce("in", 0, [record(7)]);
    world.wait_drained(&["in"], 30);
    assert_eq!(world.count("SELECT count(*) FROM t WHERE n = 7"), 1, "{}", second.log());
    assert_eq!(world.count("SELECT count(*) FROM rowmill.dead_letter"), 1);
}
