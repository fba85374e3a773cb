//! `rowmill tail` on a real Redis that is killed, a real Kafka, and a terminal that a person could sit at.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

mod pty;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use self::pty::Terminal;
use crate::hostile::texts;
use crate::own_redis::Redis;
use crate::world::{World, wait_for};

fn publish(redis: &Redis, message: &str) {
    redis::cmd("PUBLISH").arg("events").arg(message).query::<i64>(&mut redis.connection().unwrap()).unwrap();
}

/// The configuration of a tail that has streams.
fn settings(redis: &Redis, from: &str) -> String {
    format!(
        "[redis]\nurl = {:?}\n[tail]\nfrom = {from:?}\nstream = \"events:{{partition}}\"\n",
        redis.url("")
    )
}

/// An event as the pipeline publishes it.
fn event(account: u64, data: &str, partition: usize, offset: i64) -> String {
    json!({
        "ID": account, "Timestamp": "2021-02-06T17:35:30.000Z", "Data": data,
        "At": format!("{partition}/{offset}"), "Id": format!("{partition}-{offset}"),
    })
    .to_string()
}

/// A `tail` of a script.
struct Script {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    errors: std::path::PathBuf,
}

impl Script {
    fn command(arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rowmill"));
        command.arg("tail").args(arguments).env_remove("REDIS_URL").env_remove("KAFKA_BROKERS");
        command
    }

    fn start(dir: &Path, arguments: &[&str]) -> Script {
        Script::of(dir, &mut Script::command(arguments))
    }

    fn of(dir: &Path, command: &mut Command) -> Script {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let errors = dir.join(format!("tail-{}.log", NUMBER.fetch_add(1, SeqCst)));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (out, kept) = (child.stdout.take().unwrap(), lines.clone());
        let read = move |out: ChildStdout| {
            for line in BufReader::new(out).split(b'\n') {
                kept.lock().unwrap().push(String::from_utf8(line.unwrap()).unwrap());
            }
        };
        std::thread::spawn(move || read(out));
        Script { child, lines, errors }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.lines.lock().unwrap().len()
    }

    fn errors(&self) -> String {
        std::fs::read_to_string(&self.errors).unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// How it ends.
    fn end(&mut self) -> i32 {
        let mut status = None;
        wait_for("tail to end", 20, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const DIALOGUE: &str = "\
Connecting to Redis@127.0.0.1:PORT
options: [accounts events]
>accounts
 already selected accounts: []
 input space separated account IDs
accounts >1 2 3
 current selected accounts: [1 2 3]
options: [accounts events]
>accounts
 already selected accounts: [1 2 3]
 input space separated account IDs
accounts >
 \"\" should be an (positive) number
 current selected accounts: [1 2 3]
options: [accounts events]
>events
listening for events from: [1 2 3]
<2021-02-06 17:35:30:000>: [1]: \"test data\" [290ad619a440]
<2021-02-06 17:35:30:000>: [2]: \"test data\" [290ad619a440]
";

fn play(terminal: &Terminal, redis: &Redis) {
    let asked = [("options:", 1), ("accounts >", 1), ("options:", 2), ("accounts >", 2), ("options:", 3)];
    for (line, (words, times)) in ["accounts", "1 2 3", "accounts", "", "events"].into_iter().zip(asked) {
        terminal.wait_for_times(words, times);
        terminal.wait_for_prompt();
        terminal.types(&format!("{line}\r"));
    }
    terminal.wait_for("listening for events from: [1 2 3]");
    for (offset, account) in [1, 4, 2].into_iter().enumerate() {
        publish(redis, &event(account, "\"test data\" [290ad619a440]", 0, offset as i64));
    }
    terminal.wait_for("[2]: ");
}

#[test]
fn the_dialogue_is_letter_for_letter_what_it_always_was() {
    let redis = Redis::start();
    let expected = DIALOGUE.replace("PORT", &redis.port.to_string());
    // Where a line can be edited, and where the terminal can do nothing and every byte stays as it is.
    for term in ["xterm", "dumb"] {
        let terminal = Terminal::start(term, &[&redis.url("events")]);
        play(&terminal, &redis);
        assert_eq!(terminal.screen(), expected, "{term}: {:?}", terminal.bytes());
        if term == "dumb" {
            assert_eq!(terminal.bytes(), expected.replace('\n', "\r\n"));
        }
        terminal.types("\u{3}");
        assert_eq!(terminal.end(), 0);
        assert!(
            terminal.screen().trim_start_matches(&expected).contains("stopped listening\n"),
            "{}",
            terminal.screen()
        );
    }
}

#[test]
fn outages_in_the_middle_of_typing_take_nothing_from_the_line() {
    let mut redis = Redis::start();
    let terminal = Terminal::start("xterm", &[&redis.url("events")]);
    let server = format!("Redis@127.0.0.1:{}", redis.port);
    terminal.wait_for_prompt();
    let mut typed = String::new();
    for (number, part) in ["ac", "cou", "nts"].into_iter().enumerate() {
        terminal.types(part);
        typed += part;
        terminal.wait_for(&format!(">{typed}"));
        redis.kill();
        terminal.wait_for_times(&format!("{server} is away: "), number + 1);
        assert_eq!(terminal.last_line(), format!(">{typed}"), "{}", terminal.screen());
        redis.restart();
        let returned = Instant::now();
        terminal.wait_for_times(&format!("{server} is back after "), number + 1);
        assert!(returned.elapsed() < Duration::from_millis(5500), "{:?}", returned.elapsed());
        assert_eq!(terminal.last_line(), format!(">{typed}"), "{}", terminal.screen());
    }
    terminal.types("\r");
    terminal.wait_for("accounts >");
    terminal.types("7\revents\r");
    terminal.wait_for("listening for events from: [7]");
    publish(&redis, &event(7, "x [h]", 0, 0));
    terminal.wait_for("[7]: \"x\" [h]");
    // Said once, whatever happens in between.
    assert_eq!(terminal.screen().matches("is away").count(), 3, "{}", terminal.screen());
}

#[test]
fn it_begins_while_redis_is_away_and_says_so_once() {
    let mut redis = Redis::absent();
    let terminal = Terminal::start("xterm", &[&redis.url("events"), "--accounts", "1"]);
    terminal.wait_for("is away: ");
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(terminal.screen().matches("is away").count(), 1);
    redis.restart();
    terminal.wait_for("is back after ");
    publish(&redis, &event(1, "x [h]", 0, 0));
    terminal.wait_for("[1]: \"x\" [h]");
}

#[test]
fn enter_brings_the_prompt_below_the_events_and_a_live_one_stays() {
    let redis = Redis::start();
    let terminal = Terminal::start("xterm", &[&redis.url("events"), "--accounts", "1"]);
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    publish(&redis, &event(1, "first [h]", 0, 0));
    terminal.wait_for("first");
    terminal.types("\r");
    terminal.wait_for("options: ");
    terminal.types("acc");
    terminal.wait_for(">acc");
    publish(&redis, &event(1, "second [h]", 0, 1));
    terminal.wait_for("second");
    assert_eq!(terminal.last_line(), ">acc", "{}", terminal.screen());
    // Tab says what it may mean.
    terminal.types("\t\r4\r");
    terminal.wait_for("current selected accounts: [1 4]");
    terminal.types("events\r");
    terminal.wait_for("listening for events from: [1 4]");
    publish(&redis, &event(4, "third [h]", 0, 2));
    terminal.wait_for("third");
}

fn subscribers(redis: &Redis) -> i64 {
    let found: (String, i64) =
        redis::cmd("PUBSUB").arg("NUMSUB").arg("events").query(&mut redis.connection().unwrap()).unwrap();
    found.1
}

#[test]
fn the_terminal_is_as_before_however_it_ends() {
    let redis = Redis::start();
    for signal in [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT] {
        let terminal = Terminal::start("xterm", &[&redis.url("events")]);
        let before = terminal.before.clone();
        terminal.wait_for_prompt();
        terminal.types("acc");
        terminal.wait_for(">acc");
        assert_ne!(terminal.settings(), before, "a line is edited");
        terminal.signal(signal);
        assert_eq!(terminal.end(), 0, "{signal}");
        assert_eq!(terminal.settings(), before, "{signal}");
    }
    let terminal = Terminal::start("xterm", &[&redis.url("events")]);
    terminal.wait_for_prompt();
    terminal.types("\u{3}");
    assert_eq!(terminal.end(), 0);
    assert!(terminal.screen().ends_with("Goodbye!\n"), "{}", terminal.screen());
    assert_eq!(terminal.settings(), terminal.before);
}

/// Adds an event to its stream, and publishes it. Whatever Redis does meanwhile, it is in the stream once.
fn give(url: &str, kept: &mut Option<redis::Connection>, partition: usize, offset: i64, publishes: bool) {
    loop {
        let connection = match kept {
            Some(connection) => connection,
            None => match redis::Client::open(url).unwrap().get_connection() {
                Ok(connection) => kept.insert(connection),
                Err(_) => {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
            },
        };
        let message: Value = serde_json::from_str(&event(1, "x [h]", partition, offset)).unwrap();
        let mut add = redis::cmd("XADD");
        add.arg(format!("events:{partition}")).arg(format!("{offset}-1"));
        for (name, value) in message.as_object().unwrap() {
            add.arg(name).arg(value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
        match add.query::<String>(connection) {
            Ok(_) => {}
            // The answer to the last try was lost.
            Err(error) if error.to_string().contains("equal or smaller") => {}
            Err(_) => {
                *kept = None;
                continue;
            }
        }
        if publishes
            && redis::cmd("PUBLISH").arg("events").arg(message.to_string()).query::<i64>(connection).is_err()
        {
            *kept = None;
        }
        return;
    }
}

/// Partition to offsets, in the order in which they were shown.
fn shown(lines: &[String]) -> BTreeMap<i64, Vec<i64>> {
    let mut shown: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for line in lines {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["type"] == "event" {
            shown
                .entry(line["partition"].as_i64().unwrap())
                .or_default()
                .push(line["offset"].as_i64().unwrap());
        }
    }
    shown
}

const PARTITIONS: usize = 3;

/// How many outages, and events a second: `TAIL_OUTAGES` has more.
fn outages() -> u64 {
    std::env::var("TAIL_OUTAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(5)
}

fn through_outages(from: &str) {
    let mut redis = Redis::start();
    let file = redis.dir().join("tail.toml");
    std::fs::write(&file, settings(&redis, from)).unwrap();
    let file = file.to_str().unwrap().to_owned();
    for partition in 0..PARTITIONS {
        give(&redis.url(""), &mut None, partition, 0, false);
    }
    let mut tail =
        Script::start(redis.dir(), &["--config", &file, "--no-input", "--format", "json", "--fail-on-gap"]);
    if from == "channel" {
        wait_for("a subscription", 20, || subscribers(&redis) == 1);
    }
    std::thread::sleep(Duration::from_secs(1));
    let (stop, given) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut backs = Vec::new();
    // The publisher needs only the address, and Redis is killed meanwhile.
    let url = redis.url("");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (began, mut kept) = (Instant::now(), None);
            for number in 0.. {
                if stop.load(SeqCst) {
                    return;
                }
                give(&url, &mut kept, number as usize % PARTITIONS, 1 + number / PARTITIONS as i64, true);
                given.fetch_add(1, SeqCst);
                // A thousand a second; what an outage held up comes at once behind it.
                let due = began + Duration::from_millis(number as u64);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
        for outage in 0..outages() {
            std::thread::sleep(Duration::from_millis(700 + outage % 3 * 150));
            redis.kill();
            std::thread::sleep(Duration::from_millis(outage % 4 * 300));
            redis.restart();
            let (returned, before) = (Instant::now(), tail.count());
            wait_for("tail to come back", 20, || tail.count() > before + 20);
            backs.push(returned.elapsed());
        }
        std::thread::sleep(Duration::from_secs(1));
        stop.store(true, SeqCst);
    });
    let given = given.into_inner() as usize;
    wait_for("all to be shown", 20, || shown(&tail.lines()).values().map(Vec::len).sum::<usize>() >= given);
    let lines = tail.lines();
    let shown = shown(&lines);
    for (partition, offsets) in &shown {
        let expected: Vec<i64> = (1..=offsets.len() as i64).collect();
        assert_eq!(*offsets, expected, "partition {partition}: missing, doubled or out of order");
    }
    assert_eq!(shown.values().map(Vec::len).sum::<usize>(), given);
    assert!(
        !lines.iter().any(|line| line.contains("\"gap\"")),
        "{:?}",
        lines.iter().find(|l| l.contains("gap"))
    );
    backs.sort_unstable();
    println!("{from}: {given} events through {} outages, back after {backs:?}", backs.len());
    assert!(backs.last().is_some_and(|most| *most < Duration::from_millis(5500)), "{backs:?}");
    tail.signal(Signal::SIGTERM);
    assert_eq!(tail.end(), 0, "{}", tail.errors());
}

#[test]
fn a_channel_with_streams_behind_it_shows_each_event_once_through_outages() {
    through_outages("channel");
}

#[test]
fn streams_show_each_event_once_through_outages() {
    through_outages("stream");
}

/// From when an event is published to when a script has its line, at a thousand a second.
#[test]
fn an_event_is_shown_in_a_moment() {
    let redis = Redis::start();
    let tail = Script::start(redis.dir(), &[&redis.url("events"), "--no-input", "--format", "json"]);
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    let (mut connection, mut took) = (redis.connection().unwrap(), Vec::new());
    for offset in 0..3000 {
        let published = Instant::now();
        redis::cmd("PUBLISH")
            .arg("events")
            .arg(event(1, "x [h]", 0, offset))
            .query::<i64>(&mut connection)
            .unwrap();
        while tail.count() as i64 <= offset {
            std::thread::sleep(Duration::from_micros(100));
            assert!(published.elapsed() < Duration::from_secs(10));
        }
        took.push(published.elapsed());
        std::thread::sleep(Duration::from_millis(1).saturating_sub(published.elapsed()));
    }
    took.sort_unstable();
    println!("published to shown: p50 {:?}, p99 {:?}, most {:?}", took[1500], took[2970], took[2999]);
    assert!(took[2970] < Duration::from_millis(20), "{:?}", took[2970]);
}

/// A shell with a job: what is typed, and the prompt, are there again behind `fg`.
#[test]
fn what_was_typed_is_there_again_after_a_pause() {
    let redis = Redis::start();
    let terminal = Terminal::shell("xterm");
    terminal.types(&format!("PS1='sh: '; {} tail {}\r", env!("CARGO_BIN_EXE_rowmill"), redis.url("events")));
    terminal.wait_for("\n>");
    terminal.types("accounts\r");
    terminal.wait_for("accounts >");
    terminal.types("1\r");
    terminal.wait_for("current selected accounts: [1]");
    terminal.types("eve");
    terminal.wait_for(">eve");
    terminal.types("\u{1a}");
    terminal.wait_for("Stopped");
    terminal.types("echo in the $((1+1))nd shell\r");
    terminal.wait_for("\nin the 2nd shell");
    terminal.types("fg\r");
    terminal.wait_for_times(">eve", 2);
    terminal.types("nts\r");
    terminal.wait_for("listening for events from: [1]");
    publish(&redis, &event(1, "behind [h]", 0, 0));
    terminal.wait_for("[1]: \"behind\" [h]");
    // And while it listens.
    terminal.types("\u{1a}");
    terminal.wait_for_times("Stopped", 2);
    publish(&redis, &event(1, "meanwhile [h]", 0, 1));
    terminal.types("fg\r");
    terminal.wait_for("[1]: \"meanwhile\" [h]");
    terminal.types("\u{3}");
    terminal.wait_for("stopped listening");
    terminal.types("echo over $((2+1))\r");
    terminal.wait_for("over 3");
}

#[test]
fn what_is_kept_nowhere_is_counted_and_said() {
    let redis = Redis::start();
    let arguments = [&redis.url("events"), "--no-input", "--count", "3", "--fail-on-gap"];
    let mut tail = Script::start(redis.dir(), &arguments.map(|text: &str| text));
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    for offset in [5, 5, 6, 10, 9] {
        publish(&redis, &event(1, "x [h]", 0, offset));
    }
    assert_eq!(tail.end(), 3, "{}", tail.errors());
    assert_eq!(tail.count(), 3, "{:?}", tail.lines());
    assert!(tail.errors().contains("3 events are missing: partition 0, 7 to 9"), "{}", tail.errors());
}

#[test]
fn an_event_that_a_proxy_sent_twice_is_shown_once() {
    let redis = Redis::start();
    let mut tail = Script::start(redis.dir(), &[&redis.url("events"), "--no-input", "--count", "2"]);
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    for (offset, id) in [(0, "a"), (1, "a"), (2, "b")] {
        let mut message: Value = serde_json::from_str(&event(1, "x [h]", 0, offset)).unwrap();
        message["Id"] = id.into();
        publish(&redis, &message.to_string());
    }
    assert_eq!((tail.end(), tail.count()), (0, 2), "{:?}", tail.lines());
}

#[test]
fn a_time_to_begin_at_neither_skips_nor_doubles() {
    let redis = Redis::start();
    let file = redis.dir().join("tail.toml");
    std::fs::write(&file, settings(&redis, "channel")).unwrap();
    let mut connection = redis.connection().unwrap();
    let stamps = [
        "17:35:29.999",
        "17:35:30.000",
        "17:35:30.000",
        "17:35:30.000",
        "17:35:30.000",
        "17:35:30.000",
        "17:35:30.001",
    ];
    for (offset, stamp) in stamps.into_iter().enumerate() {
        let record = json!({"ID": 1, "Timestamp": format!("2021-02-06T{stamp}Z"), "Data": "x [h]"});
        redis::cmd("XADD")
            .arg("events:0")
            .arg(format!("{offset}-1"))
            .arg("record")
            .arg(record.to_string())
            .query::<String>(&mut connection)
            .unwrap();
    }
    for from in ["channel", "stream"] {
        std::fs::write(&file, settings(&redis, from)).unwrap();
        let arguments = ["--config", file.to_str().unwrap(), "--no-input", "--format", "json", "--for", "3s"];
        let since = ["--since", "2021-02-06T17:35:30.000Z"];
        let mut tail = Script::start(redis.dir(), &[&arguments[..], &since].concat());
        assert_eq!(tail.end(), 0, "{}", tail.errors());
        assert_eq!(shown(&tail.lines()), BTreeMap::from([(0, (1..=6).collect())]), "{from}");
    }
}

#[test]
fn commands_from_a_pipe_are_the_same_and_its_end_ends_nothing() {
    let redis = Redis::start();
    let mut child = Script::command(&[&redis.url("events")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"accounts\n1 2 x\nevents\n").unwrap();
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    let spent = || {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    };
    let before = spent();
    std::thread::sleep(Duration::from_secs(2));
    assert!(spent() - before <= 3, "it spins: {} ticks", spent() - before);
    publish(&redis, &event(2, "x [h]", 0, 0));
    publish(&redis, &event(3, "x [h]", 0, 1));
    std::thread::sleep(Duration::from_millis(300));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "<2021-02-06 17:35:30:000>: [2]: \"x\" [h]\n");
    for words in
        ["\"x\" should be an (positive) number", "listening for events from: [1 2]", "stopped listening"]
    {
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_reader_who_leaves_ends_it_even_while_nothing_comes() {
    let redis = Redis::start();
    let mut child =
        Script::command(&[&redis.url("events"), "--no-input"]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    drop(child.stdout.take());
    let mut status = None;
    wait_for("tail to end", 5, || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(status.unwrap().success());
}

#[test]
fn a_long_line_goes_whole_into_a_slow_pipe() {
    let redis = Redis::start();
    let mut child = Script::command(&[&redis.url("events"), "--no-input", "--count", "4"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    let long = "y".repeat(1 << 20);
    for (offset, data) in ["a", &long, "b", &long].into_iter().enumerate() {
        publish(&redis, &event(1, data, 0, offset as i64));
    }
    let (mut all, mut out, mut piece) = (Vec::new(), child.stdout.take().unwrap(), vec![0; 64 << 10]);
    loop {
        std::thread::sleep(Duration::from_millis(20));
        match out.read(&mut piece).unwrap() {
            0 => break,
            count => all.extend_from_slice(&piece[..count]),
        }
    }
    let line = |data: &str| format!("<2021-02-06 17:35:30:000>: [1]: \"{data}\"\n");
    assert!(String::from_utf8(all).unwrap() == line("a") + &line(&long) + &line("b") + &line(&long));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_terminal_that_nobody_reads_bounds_memory_and_says_what_it_left_out() {
    let redis = Redis::start();
    let terminal = Terminal::start("xterm", &[&redis.url("events"), "--accounts", "1"]);
    wait_for("a subscription", 20, || subscribers(&redis) == 1);
    terminal.pause(true);
    let (mut connection, data) = (redis.connection().unwrap(), "z".repeat(500));
    for offset in 0..60_000 {
        redis::cmd("PUBLISH")
            .arg("events")
            .arg(event(1, &data, 0, offset))
            .query::<i64>(&mut connection)
            .unwrap();
    }
    std::thread::sleep(Duration::from_secs(2));
    let memory = terminal.peak_memory();
    assert!(memory < 80 << 20, "{memory}");
    terminal.pause(false);
    publish(&redis, &event(1, "the end", 0, 60_000));
    terminal.wait_for("the end");
    assert!(terminal.bytes().contains(" events were left out: "));
    println!("60,000 events at a terminal that nobody read: {} MB at most", memory >> 20);
    terminal.pause(true);
    terminal.signal(Signal::SIGTERM);
    assert_eq!(terminal.end(), 0);
}

#[test]
fn nothing_that_others_wrote_drives_the_terminal() {
    let world = World::new("tail_hostile");
    let redis = Redis::start();
    let file = world.file("tail.toml", &settings(&redis, "stream"));
    let mut texts = texts();
    assert_eq!(texts.len(), 1000);
    texts.push("1".repeat(1 << 10));
    let mut connection = redis.connection().unwrap();
    for (offset, text) in texts.iter().enumerate() {
        let mut add = redis::cmd("XADD");
        add.arg("events:0").arg(format!("{offset}-1"));
        match offset % 3 {
            // An event, what is none, and what is not even text.
            0 => add.arg("ID").arg(1).arg("Timestamp").arg("2021-02-06T17:35:30Z").arg("Data").arg(text),
            1 => add.arg("record").arg(text),
            _ => add.arg("record").arg([text.as_bytes(), b"\xff\x9b2J\x1b[2J"].concat()),
        };
        add.query::<String>(&mut connection).unwrap();
    }
    let count = texts.len().to_string();
    let common = ["tail", "--config", &file, "--no-input", "--since", "2020-01-01T00:00:00Z", "--for", "60s"];
    let arguments = [&common[..], &["--count", &count]].concat();
    let output = world.command(env!("CARGO_BIN_EXE_rowmill")).args(&arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.chars().find(|c| crate::hostile::acts(*c) && *c != '\n'), None);
    assert_eq!(text.lines().count(), texts.len());
    let json = [&arguments[..], &["--format", "json"]].concat();
    let output = world.command(env!("CARGO_BIN_EXE_rowmill")).args(&json).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    for (line, text) in lines.lines().zip(&texts).step_by(3) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["data"], text.as_str());
    }
    // And on a terminal, which is as it was.
    if let Some(seen) = crate::terminal::shown(&world, &arguments) {
        let without_times = |text: &str| text.split_once(": [").map(|(_, rest)| rest.trim_end().to_owned());
        let expected: Vec<_> = text.lines().map(without_times).collect();
        let seen: Vec<_> =
            seen.iter().filter(|line| line.starts_with('<')).map(|l| without_times(l)).collect();
        assert_eq!(seen, expected);
    }
}

/// As a door writes it to Kafka.
fn record(n: i64) -> String {
    json!({"account": 1, "time": "2021-02-06T17:35:30Z", "data": n.to_string(), "host": "h"}).to_string()
}

/// A `tail` of a script that has the world's servers, with the file and more arguments.
fn in_world(world: &World, dir: &tempfile::TempDir, file: &str, more: &[&str]) -> Script {
    let mut command = world.command(env!("CARGO_BIN_EXE_rowmill"));
    command.args(["tail", "--config", file, "--no-input", "--format", "json"]).args(more);
    Script::of(dir.path(), &mut command)
}

#[test]
fn kafka_alone_shows_what_is_written_to_it() {
    let world = World::new("tail_kafka");
    world.create_topic("in", 2);
    let file = world.file("tail.toml", &format!("[tail]\ntopic = {:?}\n", world.topic("in")));
    world.produce("in", 0, (0..5).map(record));
    let dir = tempfile::tempdir().unwrap();
    let more = ["--since", "2021-01-01T00:00:00Z", "--count", "25"];
    let mut tail = in_world(&world, &dir, &file, &more);
    wait_for("the first ones", 60, || tail.count() >= 5);
    world.produce("in", 1, (0..10).map(record));
    world.produce("in", 0, (5..15).map(record));
    assert_eq!(tail.end(), 0, "{}", tail.errors());
    let shown = shown(&tail.lines());
    assert_eq!(shown, BTreeMap::from([(0, (0..15).collect()), (1, (0..10).collect())]));
}

#[test]
fn a_channel_with_kafka_behind_it_fetches_what_it_missed() {
    let world = World::new("tail_filled");
    world.create_topic("in", 1);
    let redis = Redis::start();
    let settings = format!(
        "[redis]\nurl = {:?}\n[tail]\nfrom = \"channel\"\ntopic = {:?}\n",
        redis.url(""),
        world.topic("in")
    );
    let file = world.file("tail.toml", &settings);
    world.produce("in", 0, (0..3).map(record));
    let dir = tempfile::tempdir().unwrap();
    let mut tail = in_world(&world, &dir, &file, &["--count", "7", "--fail-on-gap"]);
    // What came before is shown at once, where that is asked for.
    let more = ["--count", "3", "--since", "2021-01-01T00:00:00Z"];
    let mut older = in_world(&world, &dir, &file, &more);
    assert_eq!((older.end(), older.count()), (0, 3), "{}", older.errors());
    wait_for("a subscription", 60, || subscribers(&redis) == 1);
    // Kafka's place is known behind the subscription.
    std::thread::sleep(Duration::from_secs(2));
    world.produce("in", 0, (3..10).map(record));
    publish(&redis, &event(1, "9 [h]", 0, 9));
    assert_eq!(tail.end(), 0, "{}", tail.errors());
    assert_eq!(shown(&tail.lines()), BTreeMap::from([(0, (3..10).collect())]), "{:?}", tail.lines());
}
