//! Standard output, for every verb: a line, a line of JSON, or lines that were put together elsewhere. Whatever they hold, no character
//! of it acts on a terminal or begins a line of its own: names, errors and payloads are other people's.
//!
//! Whoever reads it may have seen enough and close it, as `head` does: what is said from then on goes nowhere, and the verb does what
//! it was asked to, to the end. `println!` would end the process in the middle.

use std::fmt::{Arguments, Display};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::base::printable::{self, Printable};

/// Something was not written that somebody still waits for.
static INCOMPLETE: AtomicBool = AtomicBool::new(false);

/// Whoever read has seen enough.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// One line on standard output, written as for `println!`. A line break within it is shown, and breaks nothing.
macro_rules! say {
    () => { $crate::verb::out::line(format_args!("")) };
    ($($text:tt)*) => { $crate::verb::out::line(format_args!($($text)*)) };
}
pub(crate) use say;

pub fn line(text: Arguments<'_>) {
    write_line(&mut std::io::stdout().lock(), Printable(&text.to_string()));
}

/// One line of JSON, with the same meaning for whoever parses it.
pub fn json(value: &serde_json::Value) {
    write_line(&mut std::io::stdout().lock(), printable::json(&value.to_string()));
}

/// Lines that were made printable before, with their ends, in one piece. All of it is written, however slowly it is read, and also to
/// a pipe that somebody else made one that does not wait.
pub fn piece(text: &str) {
    let out = std::io::stdout().lock();
    let mut rest = text.as_bytes();
    while !rest.is_empty() && !is_closed() {
        match nix::unistd::write(&out, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut room = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
                // What went wrong shows at the next write.
                poll(&mut room, PollTimeout::NONE).ok();
            }
            Err(error) => return failed(&error.into()),
        }
    }
}

/// True where standard output is a terminal.
pub fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Lines of a text whose line breaks are our own.
pub fn lines(text: &str) {
    text.lines().for_each(|text| line(format_args!("{text}")));
}

/// An empty screen, at a terminal; elsewhere an empty line.
pub fn clear() {
    let mut out = std::io::stdout().lock();
    // Home, and everything from there on.
    let text = if out.is_terminal() { "\u{1b}[H\u{1b}[2J" } else { "\n" };
    if let Err(error) = out.write_all(text.as_bytes()) {
        failed(&error);
    }
}

/// Nobody reads any more, as its poll says.
pub fn close() {
    CLOSED.store(true, Relaxed);
}

/// To be waited for.
pub fn handle() -> impl AsFd {
    std::io::stdout()
}

/// True where nobody reads any more.
pub fn is_closed() -> bool {
    CLOSED.load(Relaxed)
}

/// False if the output is not whole, which was said; for the exit code.
pub fn is_complete() -> bool {
    if let Err(error) = std::io::stdout().lock().flush() {
        failed(&error);
    }
    !INCOMPLETE.load(Relaxed)
}

fn write_line(out: &mut impl Write, text: impl Display) {
    if let Err(error) = writeln!(out, "{text}") {
        failed(&error);
    }
}

fn failed(error: &std::io::Error) {
    if error.kind() == ErrorKind::BrokenPipe {
        CLOSED.store(true, Relaxed);
    } else if !INCOMPLETE.swap(true, Relaxed) {
        log::error!("cannot write to standard output, so what was said is not whole: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Broken(ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_left_is_no_failure_and_a_full_disk_is() {
        write_line(&mut Broken(ErrorKind::BrokenPipe), "x");
        assert!(is_complete());
        write_line(&mut Broken(ErrorKind::StorageFull), "x");
        assert!(!is_complete());
    }
}
