//! The same figures for a StatsD server: counters as whole increments, everything else as gauges. Never waits: what the
//! network does not take at once is dropped, and said once.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::unix::net::UnixDatagram;

use anyhow::Result;

use crate::base::retry::Episode;
use crate::config::{Statsd, StatsdAddress, StatsdTags};
use crate::figures::board::Board;
use crate::figures::family::{Family, Kind, Labels, PIPELINE, Value};
use crate::figures::instruments::Buckets;

/// An Ethernet frame's payload, and what agents read from a Unix socket.
const UDP_BYTES_MAX: usize = 1432;
const UNIX_BYTES_MAX: usize = 8192;

/// Sends everything once an interval, for ever. A server that is not there is tried again each time.
pub fn run(config: &Statsd, board: &Board) -> Result<()> {
    let mut lines = Lines { prefix: config.prefix.clone(), tags: config.tags, last: HashMap::new() };
    let mut way = Way { socket: None, turn: 0 };
    let mut trouble = Episode::default();
    loop {
        std::thread::sleep(config.interval);
        let text = lines.of(&board.families());
        match way.deliver(|| places(&config.address), &text) {
            Ok(()) if trouble.ends() => log::info!("StatsD takes figures again"),
            Ok(()) => {}
            Err(error) => {
                if trouble.begins() {
                    log::warn!(
                        "StatsD at {:?} takes nothing: {error}; figures are dropped until it does",
                        config.address
                    );
                }
            }
        }
    }
}

/// Where datagrams go: an address of the server's name, or a path.
#[derive(Clone)]
enum Place {
    Udp(SocketAddr),
    Unix(String),
}

fn places(address: &StatsdAddress) -> io::Result<Vec<Place>> {
    Ok(match address {
        StatsdAddress::Udp(name) => name.to_socket_addrs()?.map(Place::Udp).collect(),
        StatsdAddress::Unix(path) => vec![Place::Unix(path.clone())],
    })
}

enum Socket {
    Udp(UdpSocket),
    Unix(UnixDatagram),
}

impl Socket {
    fn open(place: &Place) -> io::Result<Socket> {
        match place {
            Place::Udp(address) => {
                let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
                socket.connect(address)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Udp(socket))
            }
            Place::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                socket.set_nonblocking(true)?;
                Ok(Socket::Unix(socket))
            }
        }
    }

    fn send(&self, lines: &[String]) -> io::Result<()> {
        match self {
            Socket::Udp(socket) => {
                for datagram in datagrams(lines, UDP_BYTES_MAX) {
                    socket.send(datagram.as_bytes())?;
                }
                // On this machine a closed port has answered by now; one elsewhere is heard of at the next send.
                socket.take_error()?.map_or(Ok(()), Err)
            }
            Socket::Unix(socket) => {
                for datagram in datagrams(lines, UNIX_BYTES_MAX) {
                    socket.send(datagram.as_bytes())?;
                }
                Ok(())
            }
        }
    }
}

/// The socket in use, and whose turn it is when there is none. A name often has an address of each family, and the server
/// listens on one of them. UDP tells of a closed port, and of nothing else: an address at which nobody answers at all cannot be
/// told from the server.
struct Way {
    socket: Option<Socket>,
    /// Counts the addresses that have refused.
    turn: usize,
}

impl Way {
    /// Sends to where it went the last time, or else to the first place that does not refuse. The places are looked up only
    /// then: a name server that is away stops no figures that have their way already.
    fn deliver(
        &mut self,
        places: impl FnOnce() -> io::Result<Vec<Place>>,
        lines: &[String],
    ) -> io::Result<()> {
        let mut refused = io::Error::other("the name has no address");
        if let Some(socket) = &self.socket {
            match socket.send(lines) {
                Ok(()) => return Ok(()),
                Err(error) => self.refuse(&mut refused, error),
            }
        }
        let places = places()?;
        for _ in 0..places.len() {
            let place = &places[self.turn % places.len()];
            match Socket::open(place).and_then(|socket| socket.send(lines).map(|()| socket)) {
                Ok(socket) => {
                    self.socket = Some(socket);
                    return Ok(());
                }
                Err(error) => self.refuse(&mut refused, error),
            }
        }
        Err(refused)
    }

    fn refuse(&mut self, refused: &mut io::Error, error: io::Error) {
        *refused = error;
        self.socket = None;
        self.turn += 1;
    }
}

/// What was sent last, for the increments.
struct Lines {
    /// Begins every name.
    prefix: String,
    tags: StatsdTags,
    last: HashMap<String, Last>,
}

enum Last {
    Number(f64),
    Buckets(Vec<u64>),
}

impl Lines {
    fn of(&mut self, families: &[Family]) -> Vec<String> {
        let mut lines = Vec::new();
        for family in families {
            for sample in &family.samples {
                match &sample.value {
                    Value::Number(value) if family.kind == Kind::Counter => {
                        let key = self.dress(family.name, "", &sample.labels, "");
                        // Servers cut to whole numbers, so the increment is between whole readings.
                        let before = match self.last.insert(key, Last::Number(*value)) {
                            Some(Last::Number(before)) => before.floor(),
                            _ => 0.0,
                        };
                        let more = value.floor() - before;
                        if more > 0.0 {
                            lines.push(self.dress(family.name, "", &sample.labels, &format!("{more:.0}|c")));
                        }
                    }
                    Value::Number(value) => {
                        lines.push(self.dress(family.name, "", &sample.labels, &format!("{value}|g")));
                    }
                    Value::Histogram(buckets) => self.histogram(&mut lines, family, &sample.labels, buckets),
                }
            }
        }
        lines
    }

    /// How many values came since the last time, and what half and nearly all of them stayed below.
    fn histogram(&mut self, lines: &mut Vec<String>, family: &Family, labels: &Labels, buckets: &Buckets) {
        let key = self.dress(family.name, "", labels, "");
        let before = match self.last.insert(key, Last::Buckets(buckets.counts.clone())) {
            Some(Last::Buckets(before)) => before,
            _ => vec![0; buckets.counts.len()],
        };
        let new: Vec<u64> = buckets.counts.iter().zip(before).map(|(now, before)| now - before).collect();
        let count: u64 = new.iter().sum();
        if count == 0 {
            return;
        }
        lines.push(self.dress(family.name, ".count", labels, &format!("{count}|c")));
        for (suffix, share) in [(".p50", 0.5), (".p99", 0.99)] {
            let value = quantile(buckets.bounds, &new, share);
            lines.push(self.dress(family.name, suffix, labels, &format!("{value}|g")));
        }
    }

    fn dress(&self, name: &str, suffix: &str, labels: &Labels, rest: &str) -> String {
        let name = format!("{}{}{suffix}", self.prefix, name.replacen('_', ".", 1));
        let joined = |between: &str, equals: &str| {
            labels.iter().map(|(k, v)| format!("{k}{equals}{}", plain(v))).collect::<Vec<_>>().join(between)
        };
        match self.tags {
            _ if labels.is_empty() => format!("{name}:{rest}"),
            StatsdTags::None => {
                // The pipeline is the prefix's matter: names that dashboards have stay as they are.
                let told = labels.iter().filter(|(name, _)| *name != PIPELINE);
                let values: String = told.map(|(_, v)| format!(".{}", plain(v).replace('.', "_"))).collect();
                format!("{name}{values}:{rest}")
            }
            StatsdTags::Dogstatsd => format!("{name}:{rest}|#{}", joined(",", ":")),
            StatsdTags::Influx => format!("{name},{}:{rest}", joined(",", "=")),
            StatsdTags::Graphite => format!("{name};{}:{rest}", joined(";", "=")),
        }
    }
}

/// The upper bound of the bucket in which a share of the values is complete; the largest bound for what lies above all.
fn quantile(bounds: &[f64], counts: &[u64], share: f64) -> f64 {
    let wanted = (counts.iter().sum::<u64>() as f64 * share).ceil() as u64;
    let mut below = 0;
    for (bound, count) in bounds.iter().zip(counts) {
        below += count;
        if below >= wanted {
            return *bound;
        }
    }
    bounds.last().copied().unwrap_or_default()
}

/// A label's value without what has a meaning in some dialect.
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
    use std::time::Duration;

    use super::*;

    fn families(rows: f64, counts: Vec<u64>) -> Vec<Family> {
        let mut counter = Family::counter("rowmill_rows_total", "");
        counter.add(&[("table", "public.t"), ("outcome", "a b")], rows);
        let mut seconds = Family::histogram("rowmill_s_seconds", "");
        seconds.add_buckets(&[("table", "t")], Buckets { bounds: &[0.5, 1.0], counts, sum: 0.0 });
        vec![counter, Family::gauge("rowmill_memory_bytes", "").with(0.25), seconds]
    }

    #[test]
    fn a_prefix_keeps_processes_apart_and_tags_do_pipelines() {
        let mut family = Family::gauge("rowmill_lag_records", "");
        family.add(&[("table", "t")], 1.0);
        let families = [family.labeled(PIPELINE, "p")];
        let of = |tags| Lines { prefix: "db1.".to_owned(), tags, last: HashMap::new() }.of(&families);
        assert_eq!(of(StatsdTags::None), ["db1.rowmill.lag_records.t:1|g"]);
        assert_eq!(of(StatsdTags::Dogstatsd), ["db1.rowmill.lag_records:1|g|#table:t,pipeline:p"]);
    }

    #[test]
    fn counters_are_increments_and_histograms_their_new_values() {
        let mut lines = Lines { prefix: String::new(), tags: StatsdTags::None, last: HashMap::new() };
        let first = lines.of(&families(3.7, vec![1, 0, 0]));
        assert_eq!(
            first,
            [
                "rowmill.rows_total.public_t.a_b:3|c",
                "rowmill.memory_bytes:0.25|g",
                "rowmill.s_seconds.count.t:1|c",
                "rowmill.s_seconds.p50.t:0.5|g",
                "rowmill.s_seconds.p99.t:0.5|g",
            ]
        );
        let second = lines.of(&families(5.0, vec![1, 99, 0]));
        assert_eq!(second[0], "rowmill.rows_total.public_t.a_b:2|c");
        assert_eq!(second[2], "rowmill.s_seconds.count.t:99|c");
        assert_eq!(second[3], "rowmill.s_seconds.p50.t:1|g");
        assert_eq!(lines.of(&families(5.0, vec![1, 99, 0])), ["rowmill.memory_bytes:0.25|g"]);
    }

    #[test]
    fn each_dialect_has_its_place_for_labels() {
        #[track_caller]
        fn check(tags: StatsdTags, expected: &str) {
            let mut lines = Lines { prefix: String::new(), tags, last: HashMap::new() };
            assert_eq!(lines.of(&families(3.0, vec![0, 0, 0]))[0], expected);
        }
        check(StatsdTags::Dogstatsd, "rowmill.rows_total:3|c|#table:public.t,outcome:a_b");
        check(StatsdTags::Influx, "rowmill.rows_total,table=public.t,outcome=a_b:3|c");
        check(StatsdTags::Graphite, "rowmill.rows_total;table=public.t;outcome=a_b:3|c");
    }

    #[test]
    fn figures_go_to_the_address_on_which_the_server_listens() {
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (first, second) = (bind(), bind());
        let [closed, open] = [&first, &second].map(|server| Place::Udp(server.local_addr().unwrap()));
        drop(first);
        let places = [closed, open];
        let hear = |server: &UdpSocket| {
            server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut buffer = [0; 100];
            let length = server.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };
        let mut way = Way { socket: None, turn: 0 };
        for text in ["a:1|c", "b:1|c"] {
            way.deliver(|| Ok(places.to_vec()), &[text.to_owned()]).unwrap();
            assert_eq!(hear(&second), text);
        }
        way.deliver(|| unreachable!("the way is known"), &["b:1|c".to_owned()]).unwrap();
        assert_eq!(hear(&second), "b:1|c");
        // The server moves to its other address.
        let Place::Udp(address) = places[0] else { unreachable!("made above") };
        let first = UdpSocket::bind(address).unwrap();
        drop(second);
        way.deliver(|| Ok(places.to_vec()), &["c:1|c".to_owned()]).unwrap();
        assert_eq!(hear(&first), "c:1|c");
        drop(first);
        let refused = way.deliver(|| Ok(places.to_vec()), &["d:1|c".to_owned()]).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert!(way.deliver(|| Ok(Vec::new()), &["e:1|c".to_owned()]).is_err());
    }

    #[test]
    fn a_datagram_holds_what_fits() {
        let lines: Vec<String> = ["aaa", "bbb", "ccc"].map(str::to_owned).to_vec();
        assert_eq!(datagrams(&lines, 7), ["aaa\nbbb", "ccc"]);
    }
}
