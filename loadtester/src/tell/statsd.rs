//! StatsD, once a second: counters as whole increments, everything else as gauges. Never on a generator's thread, never
//! waiting: what the network does not take at once is dropped and counted.

use std::io::Write;
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;

use crate::measure::columns::{Column, FILES, File, Kind, Unit, Values};
use crate::measure::latency::{LATENCIES, Set};
use crate::measure::phase::Phase;
use crate::measure::tally::Tally;
use crate::plan::words::StatsdTags;
use crate::tell::files::Second;

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
    Tcp(TcpStream),
}

/// Timers of one latency in one second, at most: with seven latencies some 20 Ethernet frames a second, whatever the rate.
const TIMERS_MAX: u64 = 100;

pub struct Statsd {
    socket: Socket,
    /// A datagram's limit: an Ethernet frame's payload, or what agents read from a Unix socket.
    datagram_bytes_max: usize,
    dialect: StatsdTags,
    tags: Vec<(String, String)>,
    /// One a file, in the order of `File`.
    feeds: [Feed; FILES.len()],
    pub dropped: u64,
    warned: bool,
}

/// A file's columns, and what its counters stood at when they were sent last.
struct Feed {
    columns: Vec<Column>,
    last: Vec<Option<f64>>,
}

impl Statsd {
    pub fn connect(url: &str, dialect: StatsdTags, tags: Vec<(String, String)>) -> Result<Self> {
        let place = || format!("open the StatsD address {url}");
        let (socket, datagram_bytes_max) = match url.split_once("://") {
            Some(("udp", address)) => {
                let address = address.to_socket_addrs().with_context(place)?.next().with_context(place)?;
                let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })
                    .with_context(place)?;
                socket.connect(address).with_context(place)?;
                socket.set_nonblocking(true).with_context(place)?;
                (Socket::Udp(socket), 1432)
            }
            Some(("unix" | "unixgram", path)) => {
                let socket = UnixDatagram::unbound().with_context(place)?;
                socket.connect(path).with_context(place)?;
                socket.set_nonblocking(true).with_context(place)?;
                (Socket::Unix(socket), 8192)
            }
            Some(("tcp", address)) => {
                let address = address.to_socket_addrs().with_context(place)?.next().with_context(place)?;
                let stream =
                    TcpStream::connect_timeout(&address, Duration::from_secs(3)).with_context(place)?;
                stream.set_nonblocking(true).with_context(place)?;
                (Socket::Tcp(stream), 1432)
            }
            _ => bail!("--statsd \"{url}\" is none of udp://host:8125, unix:///path, tcp://host:8125"),
        };
        Ok(Self {
            socket,
            datagram_bytes_max,
            dialect,
            tags,
            feeds: FILES.map(|file| Feed { columns: file.columns(), last: Vec::new() }),
            dropped: 0,
            warned: false,
        })
    }

    pub fn send_second(&mut self, second: &Second<'_>, timers: bool) {
        self.send(File::Intervals, second.phase, second.intervals);
        self.send(File::Host, second.phase, second.host);
        if let Some(process) = second.process {
            self.send(File::Process, second.phase, process);
        }
        if timers {
            self.send_timers(second.phase, second.histograms);
        }
    }

    /// Sends one file's latest values; its counters count from what was sent of it last.
    fn send(&mut self, file: File, phase: Phase, values: &Values) {
        let Feed { columns, last } = &mut self.feeds[file as usize];
        let lines = lines(columns, values, last);
        let mut tags = self.tags.clone();
        tags.push(("phase".to_owned(), phase.name().to_owned()));
        self.send_lines(
            lines.into_iter().map(|(name, rest)| dress(self.dialect, &name, &rest, &tags)).collect(),
        );
    }

    /// One second's latencies as timers, for servers that take percentiles themselves: a sample, which says so with its rate.
    pub fn send_timers(&mut self, phase: Phase, second: &Set) {
        let mut tags = self.tags.clone();
        tags.push(("phase".to_owned(), phase.name().to_owned()));
        let mut dressed = Vec::new();
        for latency in LATENCIES {
            // Servers put .max, .count and so on behind a timer's name; without a name of its own it would run into the gauges.
            let name = format!("loadtester.{}.time", latency.name());
            let timers = timers(&second.all(latency).histogram, TIMERS_MAX);
            dressed.extend(timers.iter().map(|rest| dress(self.dialect, &name, rest, &tags)));
        }
        self.send_lines(dressed);
    }

    /// The account, which is only known after everything else was sent.
    pub fn send_tally(&mut self, tally: &Tally) {
        let bad = [
            ("lost", tally.lost),
            ("duplicated", tally.duplicated),
            ("corrupted", tally.corrupted),
            ("reordered", tally.reordered),
        ];
        let lines = bad.iter().map(|(class, count)| {
            dress(self.dialect, &format!("loadtester.verify.{class}"), &format!("{count}|g"), &self.tags)
        });
        self.send_lines(lines.collect());
    }

    /// Classic servers repeat the last gauge for ever: at the end rates and backlog are zero.
    pub fn finish(&mut self) {
        let tags = self.tags.clone();
        let gauges = ["rate.offered", "rate.sent", "rate.acked", "rate.stored", "backlog"];
        let lines =
            gauges.iter().map(|name| dress(self.dialect, &format!("loadtester.{name}"), "0|g", &tags));
        self.send_lines(lines.collect());
    }

    fn send_lines(&mut self, lines: Vec<String>) {
        for datagram in datagrams(&lines, self.datagram_bytes_max) {
            let sent = match &mut self.socket {
                Socket::Udp(socket) => socket.send(datagram.as_bytes()).map(|_| ()),
                Socket::Unix(socket) => socket.send(datagram.as_bytes()).map(|_| ()),
                // A stream needs the last line's end too.
                Socket::Tcp(stream) => stream.write_all(format!("{datagram}\n").as_bytes()),
            };
            if let Err(error) = sent {
                self.dropped += 1;
                if !std::mem::replace(&mut self.warned, true) {
                    log::warn!(
                        "a StatsD datagram was not taken ({error}); the run goes on, and such datagrams are counted"
                    );
                }
            }
        }
    }
}

/// What a counter stood at before the run: the tester's own begin at zero, others have counted since their machine, server or
/// process started, and that is no increment of the first second.
fn first(column: &Column, value: f64) -> f64 {
    let of_others = ["host_", "pg_", "process_"].iter().any(|prefix| column.csv.starts_with(prefix));
    if of_others { value } else { 0.0 }
}

/// (name, value and type) of each value that is known.
fn lines(columns: &[Column], values: &Values, last: &mut Vec<Option<f64>>) -> Vec<(String, String)> {
    last.resize(columns.len(), None);
    let mut lines = Vec::new();
    for ((column, value), last) in columns.iter().zip(&values.0).zip(last) {
        let (Some(name), Some(value)) = (&column.statsd, *value) else { continue };
        let name = format!("loadtester.{name}");
        match column.kind {
            Kind::Counter => {
                // Servers cut to whole numbers, so the increment is between whole readings and nothing adds up wrongly.
                let increment = value.floor() - last.unwrap_or(first(column, value)).floor();
                *last = Some(value);
                if increment > 0.0 {
                    lines.push((name, format!("{increment:.0}|c")));
                }
            }
            Kind::Gauge => {
                let shown = match column.unit {
                    Unit::Micros => format!("{:.3}", value / 1000.0),
                    Unit::Count => format!("{:.0}", value),
                    Unit::Real => format!("{value:.3}"),
                };
                // A sign would make it a change of the gauge instead of its value.
                if value < 0.0 {
                    lines.push((name.clone(), "0|g".to_owned()));
                }
                lines.push((name, format!("{shown}|g")));
            }
        }
    }
    lines
}

/// Value, type and rate of at most `most` values of a histogram of microseconds, in milliseconds: all of them where they are
/// few, else those in the middle of `most` parts of equal size. That is nearer to the distribution than a sample by chance.
fn timers(histogram: &Histogram<u32>, most: u64) -> Vec<String> {
    let (all, taken) = (histogram.len(), histogram.len().min(most));
    // A fraction without an exponent: that is all that servers parse.
    let rate = match taken == all {
        true => String::new(),
        false => format!("|@{:.9}", taken as f64 / all as f64),
    };
    let mut timers = Vec::with_capacity(taken as usize);
    let mut below = 0;
    for step in histogram.iter_recorded() {
        below += step.count_since_last_iteration();
        // The value of rank (n + 1/2) / taken.
        while (timers.len() as u64) < taken && (2 * timers.len() as u64 + 1) * all <= 2 * taken * below {
            timers.push(format!("{:.3}|ms{rate}", step.value_iterated_to() as f64 / 1000.0));
        }
    }
    timers
}

fn dress(dialect: StatsdTags, name: &str, rest: &str, tags: &[(String, String)]) -> String {
    let joined = |between: &str, equals: &str| {
        tags.iter().map(|(k, v)| format!("{k}{equals}{}", plain(v))).collect::<Vec<_>>().join(between)
    };
    match dialect {
        StatsdTags::None => format!("{name}:{rest}"),
        StatsdTags::Dogstatsd => format!("{name}:{rest}|#{}", joined(",", ":")),
        StatsdTags::Influx => format!("{name},{}:{rest}", joined(",", "=")),
        StatsdTags::Graphite => format!("{name};{}:{rest}", joined(";", "=")),
    }
}

fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "_.-".contains(c) { c } else { '_' }).collect()
}

/// As many lines in a datagram as fit.
fn datagrams(lines: &[String], bytes_max: usize) -> Vec<String> {
    let mut datagrams: Vec<String> = Vec::new();
    for line in lines {
        match datagrams.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= bytes_max => {
                last.push('\n');
                last.push_str(line);
            }
            _ => datagrams.push(line.clone()),
        }
    }
    datagrams
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::latency::{Latency, Recorder};

    /// Reads a line by Telegraf's rules, dialect none: name, value, type.
    fn parse(line: &str) -> (String, f64, String) {
        let (name, rest) = line.split_once(':').unwrap();
        let (value, kind) = rest.split_once('|').unwrap();
        assert!(!value.starts_with('+'), "{line}");
        assert!(kind != "c" || value.parse::<i64>().is_ok(), "{line}");
        (name.to_owned(), value.parse().unwrap(), kind.to_owned())
    }

    fn server() -> (UdpSocket, String) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let url = format!("udp://{}", socket.local_addr().unwrap());
        (socket, url)
    }

    fn received(socket: &UdpSocket) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 2000];
        while let Ok(length) = socket.recv(&mut buffer) {
            assert!(length <= 1432);
            lines.extend(std::str::from_utf8(&buffer[..length]).unwrap().lines().map(str::to_owned));
        }
        lines
    }

    #[test]
    fn counters_are_increments_and_gauges_are_values() {
        let (socket, url) = server();
        let mut statsd = Statsd::connect(&url, StatsdTags::None, Vec::new()).unwrap();
        let columns = File::Intervals.columns();
        let mut values = Values::new(&columns);
        for (sent, p99) in [(100.0, 1500.0), (250.0, 2750.0)] {
            values.set(&columns, "sent_total", sent);
            values.set(&columns, "pg_commits_total", 1e6 + sent);
            values.set(&columns, "visible_p99_us", p99);
            statsd.send(File::Intervals, Phase::Steady, &values);
        }
        let lines: Vec<_> = received(&socket).iter().map(|l| parse(l)).collect();
        let expected = [
            ("loadtester.messages.sent", 100.0, "c"),
            ("loadtester.visible.p99", 1.5, "g"),
            ("loadtester.messages.sent", 150.0, "c"),
            ("loadtester.pg.commits", 150.0, "c"),
            ("loadtester.visible.p99", 2.75, "g"),
        ];
        assert_eq!(lines, expected.map(|(n, v, k)| (n.to_owned(), v, k.to_owned())));
        statsd.finish();
        assert!(received(&socket).iter().all(|l| parse(l).1 == 0.0));
        assert_eq!(statsd.dropped, 0);
    }

    #[test]
    fn many_values_are_split_into_datagrams() {
        let (socket, url) = server();
        let mut statsd = Statsd::connect(&url, StatsdTags::None, Vec::new()).unwrap();
        let columns = File::Intervals.columns();
        statsd.send(File::Intervals, Phase::Steady, &Values(vec![Some(0.0); columns.len()]));
        received(&socket);
        statsd.send(File::Intervals, Phase::Steady, &Values(vec![Some(1e12); columns.len()]));
        let with_name = columns.iter().filter(|c| c.statsd.is_some()).count();
        assert_eq!(received(&socket).len(), with_name);
    }

    #[test]
    fn few_values_are_all_sent_and_many_as_a_sample_with_its_rate() {
        let recorder = |values: std::ops::RangeInclusive<i64>| {
            let mut recorder = Recorder::default();
            values.for_each(|us| recorder.record(us));
            recorder.histogram
        };
        assert!(timers(&Recorder::default().histogram, 4).is_empty());
        assert_eq!(timers(&recorder(1..=3), 4), ["0.001|ms", "0.002|ms", "0.003|ms"]);
        let eight = [2, 4, 6, 8].map(|us| format!("0.00{}|ms|@0.500000000", us - 1));
        assert_eq!(timers(&recorder(1..=8), 4), eight);
        // As many as allowed, the server's count is right, and its median too.
        let many = timers(&recorder(1..=100_000), 100);
        let rate: f64 = many[0].split_once("|@").unwrap().1.parse().unwrap();
        assert_eq!((many.len(), (many.len() as f64 / rate).round()), (100, 100_000.0));
        let median: f64 = many[50].split('|').next().unwrap().parse().unwrap();
        assert!((median / 50.5 - 1.0).abs() < 0.002, "{median}");
    }

    #[test]
    fn timers_are_bounded_a_second() {
        let (socket, url) = server();
        let mut statsd = Statsd::connect(&url, StatsdTags::Dogstatsd, Vec::new()).unwrap();
        let mut second = Set::new(1);
        (1..=1_000_000).for_each(|us| second.of(0, Latency::Ack).record(us));
        statsd.send_timers(Phase::Steady, &second);
        let lines = received(&socket);
        assert_eq!(lines.len(), TIMERS_MAX as usize);
        for line in &lines {
            assert!(
                line.starts_with("loadtester.ack.time:") && line.ends_with("|ms|@0.000100000|#phase:steady"),
                "{line}"
            );
        }
    }

    #[test]
    fn dialects() {
        let tags = [("run".to_owned(), "a b".to_owned()), ("phase".to_owned(), "steady".to_owned())];
        let rows = [
            (StatsdTags::None, "n:1|c"),
            (StatsdTags::Dogstatsd, "n:1|c|#run:a_b,phase:steady"),
            (StatsdTags::Influx, "n,run=a_b,phase=steady:1|c"),
            (StatsdTags::Graphite, "n;run=a_b;phase=steady:1|c"),
        ];
        for (dialect, line) in rows {
            assert_eq!(dress(dialect, "n", "1|c", &tags), line);
        }
    }

    #[test]
    fn a_missing_server_costs_nothing_but_a_count() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let server = UnixDatagram::bind(&path).unwrap();
        let mut statsd =
            Statsd::connect(&format!("unix://{}", path.display()), StatsdTags::None, Vec::new()).unwrap();
        drop(server);
        statsd.finish();
        assert_eq!(statsd.dropped, 1);
        assert!(Statsd::connect("carrier-pigeon://coop", StatsdTags::None, Vec::new()).is_err());
    }
}
