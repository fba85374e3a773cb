//! A pseudo-terminal with `rowmill tail` on it: what is typed, every byte that comes back, and what a person sees of them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;

use crate::world::wait_for;

pub(super) struct Terminal {
    child: Mutex<Child>,
    master: File,
    /// Kept open, so that its settings can be asked for when the process is gone.
    slave: OwnedFd,
    seen: Arc<Mutex<Vec<u8>>>,
    is_paused: Arc<AtomicBool>,
    /// Its settings before anything ran there.
    pub(super) before: String,
}

impl Terminal {
    pub(super) fn start(term: &str, arguments: &[&str]) -> Terminal {
        let mut command = vec![env!("CARGO_BIN_EXE_rowmill"), "tail"];
        command.extend(arguments);
        Terminal::run(term, &command)
    }

    /// A shell that a person works in.
    pub(super) fn shell(term: &str) -> Terminal {
        Terminal::run(term, &["bash", "--norc", "--noediting", "-i"])
    }

    fn run(term: &str, command: &[&str]) -> Terminal {
        let size = Winsize { ws_row: 50, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let end = || pty.slave.try_clone().unwrap();
        let before = settings(&pty.slave);
        // A session of its own, whose terminal it is: so Ctrl-C is a signal, as at any terminal.
        let child = Command::new("setsid")
            .arg("--ctty")
            .args(command)
            .env("TERM", term)
            .env_remove("REDIS_URL")
            .stdin(end())
            .stdout(end())
            .stderr(end())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let is_paused = Arc::new(AtomicBool::new(false));
        let master = File::from(pty.master);
        let (mut reader, kept, pause) = (master.try_clone().unwrap(), seen.clone(), is_paused.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 64 << 10];
            loop {
                if pause.load(SeqCst) {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                }
                match reader.read(&mut piece) {
                    Ok(0) | Err(_) => return,
                    Ok(count) => kept.lock().unwrap().extend_from_slice(&piece[..count]),
                }
            }
        });
        Terminal { child: Mutex::new(child), master, slave: pty.slave, seen, is_paused, before }
    }

    pub(super) fn types(&self, text: &str) {
        (&self.master).write_all(text.as_bytes()).unwrap();
    }

    /// Every byte that came.
    pub(super) fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    /// What a person sees, as lines.
    pub(super) fn screen(&self) -> String {
        drawn(&self.bytes())
    }

    pub(super) fn last_line(&self) -> String {
        self.screen().trim_end_matches('\n').lines().next_back().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub(super) fn wait_for(&self, text: &str) {
        self.wait_for_times(text, 1);
    }

    #[track_caller]
    pub(super) fn wait_for_times(&self, text: &str, times: usize) {
        let mut left = 1500;
        while self.screen().matches(text).count() < times {
            left -= 1;
            assert!(left > 0, "{text:?} does not come:\n{}\n{:?}", self.screen(), self.bytes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    pub(super) fn wait_for_prompt(&self) {
        wait_for("a prompt", 20, || self.last_line().ends_with('>'));
    }

    /// The other end reads, or does not.
    pub(super) fn pause(&self, pause: bool) {
        self.is_paused.store(pause, SeqCst);
    }

    pub(super) fn settings(&self) -> String {
        settings(&self.slave)
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.lock().unwrap().id() as i32), signal).unwrap();
    }

    /// Peak resident memory in bytes.
    pub(super) fn peak_memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.lock().unwrap().id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }

    pub(super) fn end(&self) -> i32 {
        let mut status = None;
        wait_for("tail to end", 20, || {
            status = self.child.lock().unwrap().try_wait().unwrap();
            status.is_some()
        });
        // Its last bytes.
        std::thread::sleep(Duration::from_millis(100));
        status.unwrap().code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let mut child = self.child.lock().unwrap();
        child.kill().ok();
        child.wait().ok();
    }
}

/// What `stty -a` would say.
fn settings(terminal: &OwnedFd) -> String {
    let all = tcgetattr(terminal).unwrap();
    format!(
        "{:?} {:?} {:?} {:?} {:?}",
        all.input_flags, all.output_flags, all.control_flags, all.local_flags, all.control_chars
    )
}

/// The lines that these bytes draw on a screen that is wide and long enough for all of them.
fn drawn(bytes: &str) -> String {
    let mut rows: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column) = (0usize, 0usize);
    let mut chars = bytes.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                if row == rows.len() {
                    rows.push(Vec::new());
                }
            }
            '\u{8}' => column = column.saturating_sub(1),
            '\u{1b}' => {
                chars.next_if_eq(&'[');
                let mut number = String::new();
                while let Some(digit) = chars.next_if(|c| c.is_ascii_digit() || *c == '?') {
                    number.push(digit);
                }
                let count = number.parse().unwrap_or(1);
                match chars.next() {
                    Some('A') => row = row.saturating_sub(count),
                    Some('B') => row += count,
                    Some('C') => column += count,
                    Some('D') => column = column.saturating_sub(count),
                    Some('K') => rows[row].truncate(column),
                    other => panic!("an escape that a line needs not: {number:?} {other:?}"),
                }
                while row >= rows.len() {
                    rows.push(Vec::new());
                }
            }
            c => {
                let line = &mut rows[row];
                while line.len() <= column {
                    line.push(' ');
                }
                line[column] = c;
                column += 1;
            }
        }
    }
    let lines: Vec<String> = rows.into_iter().map(|row| row.into_iter().collect::<String>()).collect();
    lines.join("\n")
}
