//! Standard output, for every verb. Whoever reads it may have seen enough and close it, as `head` does: what is said from then
//! on goes nowhere, and the verb does what it was asked to, to the end. `println!` would end the process in the middle.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Something was not written that somebody still waits for.
static INCOMPLETE: AtomicBool = AtomicBool::new(false);

/// A line on standard output, written as for `println!`.
macro_rules! say {
    () => { $crate::verb::out::write(format_args!("\n")) };
    ($($text:tt)*) => { $crate::verb::out::write(format_args!("{}\n", format_args!($($text)*))) };
}
pub(crate) use say;

/// Text as it is.
pub fn write(text: Arguments<'_>) {
    write_to(&mut std::io::stdout().lock(), text);
}

/// False if the output is not whole, which was said; for the exit code.
pub fn is_complete() -> bool {
    if let Err(error) = std::io::stdout().lock().flush() {
        failed(&error);
    }
    !INCOMPLETE.load(Relaxed)
}

fn write_to(out: &mut impl Write, text: Arguments<'_>) {
    if let Err(error) = out.write_fmt(text) {
        failed(&error);
    }
}

fn failed(error: &std::io::Error) {
    if error.kind() != ErrorKind::BrokenPipe && !INCOMPLETE.swap(true, Relaxed) {
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
        write_to(&mut Broken(ErrorKind::BrokenPipe), format_args!("x"));
        assert!(is_complete());
        write_to(&mut Broken(ErrorKind::StorageFull), format_args!("x"));
        assert!(!is_complete());
    }
}
