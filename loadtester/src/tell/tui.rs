//! The screen of `--tui`: one frame a second, drawn over the one before. A thread of its own writes it, so a terminal that is
//! slow, or stopped with Ctrl-S, holds up nobody: it misses frames.
//!
//! Plain ANSI, and nothing that would have to be put back if the program ends at once: no other screen, no hidden cursor.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::base::lock::lock;
use crate::base::quantity::{show_count, show_us};
use crate::base::thread;
use crate::judge::verdict::{Reason, Severity};
use crate::measure::latency::{Latency, Summary};
use crate::measure::phase::Phase;
use crate::tell::terminal::Line;

/// What a frame shows beside what the plain line has.
pub struct View<'a> {
    pub line: &'a Line<'a>,
    pub run: &'a str,
    pub backlog_max: f64,
    /// Of the whole steady phase, so far.
    pub total: &'a dyn Fn(Latency) -> Summary,
    /// What would speak against the run if it ended now.
    pub reasons: &'a [Reason],
    pub colors: bool,
}

pub struct Screen {
    frames: Option<Sender<Vec<String>>>,
    thread: Option<JoinHandle<()>>,
}

/// One waits while one is being written.
const FRAMES_WAITING: usize = 1;
/// Log lines that a frame shows, and that are kept for the end.
const LOG_SHOWN: usize = 4;
const LOG_KEPT: usize = 100;

impl Screen {
    /// `None` where nobody would see it.
    pub fn open() -> Option<Self> {
        if !io::stderr().is_terminal() {
            return None;
        }
        let (frames, waiting) = bounded(FRAMES_WAITING);
        let thread = thread::spawn(thread::SCREEN, move || draw(&waiting)).ok()?;
        *kept() = Some(VecDeque::new());
        Some(Self { frames: Some(frames), thread: Some(thread) })
    }

    /// Never waits.
    pub fn show(&self, frame: Vec<String>) {
        if let Some(frames) = &self.frames {
            frames.try_send(frame).ok();
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.frames = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        // The frame stands where it is, and what was said meanwhile follows it.
        for line in kept().take().into_iter().flatten() {
            eprintln!("{line}");
        }
    }
}

pub fn colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn draw(frames: &Receiver<Vec<String>>) {
    let mut height = 0;
    for mut frame in frames {
        if let Some(lines) = &*kept() {
            frame.extend(lines.iter().skip(lines.len().saturating_sub(LOG_SHOWN)).cloned());
        }
        // A terminal that is gone is no reason to end a test.
        io::stderr().lock().write_all(paint(&frame, height).as_bytes()).ok();
        height = frame.len();
    }
}

/// The frame over one of `height` lines. Lines end at the terminal's edge instead of wrapping, or heights would be wrong.
fn paint(frame: &[String], height: usize) -> String {
    let mut text = String::from("\x1b[?7l\r");
    if height > 0 {
        write!(text, "\x1b[{height}A").expect("a string takes any text");
    }
    for line in frame {
        text.push_str(line);
        text.push_str("\x1b[K\n");
    }
    text.push_str("\x1b[J\x1b[?7h");
    text
}

/// What a person wants to see of a run while it goes on, in 80 columns.
pub fn frame(view: &View<'_>) -> Vec<String> {
    let line = view.line;
    let get = |name: &str| (line.values)(name).unwrap_or(0.0);
    let count = |name: &str| show_count(get(name) as u64);
    let mut frame = vec![
        format!("loadtester {}  {}", view.run, progress(line)),
        lamp(view),
        String::new(),
        format!(
            "per second   offered {:>9} sent {:>9} acked {:>9} stored {:>9}",
            count("offered_rate"),
            count("sent_rate"),
            count("acked_rate"),
            count("stored_rate")
        ),
        format!(
            "so far       {:>17} sent {:>9} acked {:>9} stored {:>9}",
            "",
            count("sent_total"),
            count("acked_total"),
            count("stored_total")
        ),
        format!(
            "backlog      {}{}, at most {}",
            count("backlog"),
            line.slope.map_or(String::new(), |slope| format!(", changing by {slope:+.0}/s")),
            show_count(view.backlog_max as u64)
        ),
        String::new(),
        format!("{:<13}{:^30}  {:^30}", "", "last second", "steady phase so far"),
        format!("{:<13}{1:>10}{2:>10}{3:>10}  {1:>10}{2:>10}{3:>10}", "latency", "p50", "p99", "max"),
    ];
    for latency in [Latency::Visible, Latency::Ack, Latency::ScheduleLag] {
        frame.push(latencies(view, latency));
    }
    frame.push(String::new());
    if let Some((cpu, resident)) = line.process {
        let cpu = cpu.map_or("-".to_owned(), |cpu| format!("{cpu:.0} % of a core"));
        frame.push(format!("consumer     {cpu}, {:.0} MB", resident.unwrap_or(0.0) / 1e6));
    }
    let troubles = ["failed", "duplicated", "reordered", "foreign"];
    let troubles = troubles.map(|name| format!("{name} {}", count(&format!("{name}_total"))));
    frame.push(format!("trouble      {}", troubles.join("  ")));
    frame
}

fn progress(line: &Line<'_>) -> String {
    const WIDTH: usize = 30;
    if line.phase == Phase::Drain {
        return "drain: waiting for the last rows".to_owned();
    }
    let at_s = line.at_s.clamp(0.0, line.all_s);
    let done = (at_s / line.all_s.max(1e-9) * WIDTH as f64) as usize;
    format!(
        "{:<6} [{}{}] {at_s:.0} of {:.0} s",
        line.phase.name(),
        "#".repeat(done),
        "-".repeat(WIDTH - done),
        line.all_s
    )
}

/// Whether these numbers would judge the consumer. A word as well as a color: not everybody sees both.
fn lamp(view: &View<'_>) -> String {
    let invalid = view.reasons.iter().find(|reason| reason.severity == Severity::Invalid);
    let (word, color, text) = match (view.line.phase, invalid) {
        (Phase::Setup | Phase::Warmup, _) => ("WARMING UP", 33, "nothing is measured yet".to_owned()),
        (_, Some(reason)) => ("INVALID", 31, reason.text.clone()),
        (_, None) => (
            "VALID",
            32,
            view.reasons.first().map_or("so far".to_owned(), |r| format!("so far; note: {}", r.text)),
        ),
    };
    match view.colors {
        true => format!("\x1b[1;{color}m* {word}\x1b[0m  {text}"),
        false => format!("* {word}  {text}"),
    }
}

fn latencies(view: &View<'_>, latency: Latency) -> String {
    let name = latency.name();
    let second = ["p50", "p99", "max"].map(|part| (view.line.values)(&format!("{name}_{part}_us")));
    let total = (view.total)(latency);
    let all = [total.p50, total.p99, total.max].map(|us| (total.count > 0).then_some(us as f64));
    let cells = |cells: [Option<f64>; 3]| {
        cells.map(|us| format!("{:>10}", us.map_or("-".to_owned(), show_us))).concat()
    };
    format!("{name:<13}{}  {}", cells(second), cells(all))
}

/// Log lines while a screen is open; `None` while there is none.
static KEPT: Mutex<Option<VecDeque<String>>> = Mutex::new(None);

fn kept() -> std::sync::MutexGuard<'static, Option<VecDeque<String>>> {
    lock(&KEPT)
}

/// Where the log goes: standard error, or into the frame while there is one, which would paint over it.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *kept() {
            None => io::stderr().write_all(bytes)?,
            Some(kept) => {
                kept.extend(String::from_utf8_lossy(bytes).lines().map(str::to_owned));
                let excess = kept.len().saturating_sub(LOG_KEPT);
                kept.drain(..excess);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line<'a>(phase: Phase, values: &'a dyn Fn(&str) -> Option<f64>) -> Line<'a> {
        let process = Some((Some(120.4), Some(80e6)));
        Line { at_s: 20.0, all_s: 60.0, phase, values, slope: Some(-3.0), process }
    }

    fn shown(phase: Phase, reasons: &[Reason], colors: bool) -> Vec<String> {
        let values = |name: &str| match name {
            "offered_rate" | "sent_rate" => Some(20_000.0),
            "backlog" => Some(123.0),
            "visible_p99_us" => Some(12_300.0),
            _ => None,
        };
        let total = |latency| match latency {
            Latency::Ack => Summary { count: 5, max: 7000, ..Summary::default() },
            _ => Summary::default(),
        };
        let line = line(phase, &values);
        frame(&View { line: &line, run: "0000002a", backlog_max: 999.0, total: &total, reasons, colors })
    }

    #[test]
    fn a_frame_fits_the_smallest_terminal() {
        let frame = shown(Phase::Steady, &[], false);
        assert!(frame.len() + LOG_SHOWN < 24, "{}", frame.len());
        let text = frame.join("\n");
        assert!(frame.iter().all(|line| line.chars().count() <= 80), "{text}");
        for words in [
            "20,000",
            "123, changing by -3/s, at most 999",
            "12.30 ms",
            "120 % of a core, 80 MB",
            "20 of 60 s",
        ] {
            assert!(text.contains(words), "{words}\n{text}");
        }
    }

    #[test]
    fn the_lamp_says_what_the_verdict_would() {
        let reason = |severity| Reason { severity, text: "why".to_owned() };
        let rows = [
            (Phase::Warmup, vec![], "* WARMING UP  nothing is measured yet"),
            (Phase::Steady, vec![], "* VALID  so far"),
            (Phase::Steady, vec![reason(Severity::Warning)], "* VALID  so far; note: why"),
            (Phase::Drain, vec![reason(Severity::Warning), reason(Severity::Invalid)], "* INVALID  why"),
        ];
        for (phase, reasons, expected) in rows {
            assert_eq!(shown(phase, &reasons, false)[1], expected);
        }
        assert!(shown(Phase::Steady, &[], true)[1].starts_with("\x1b[1;32m* VALID\x1b[0m"));
    }

    #[test]
    fn a_frame_is_painted_over_the_one_before() {
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(paint(&lines, 0), "\x1b[?7l\ra\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h");
        assert_eq!(paint(&lines[..1], 2), "\x1b[?7l\r\x1b[2Aa\x1b[K\n\x1b[J\x1b[?7h");
    }

    #[test]
    fn what_is_logged_meanwhile_is_kept_and_bounded() {
        *kept() = Some(VecDeque::new());
        (0..2 * LOG_KEPT).for_each(|n| Log.write_all(format!("line {n}\n").as_bytes()).unwrap());
        let lines = kept().take().unwrap();
        assert_eq!((lines.len(), lines.back().map(String::as_str)), (LOG_KEPT, Some("line 199")));
    }
}
