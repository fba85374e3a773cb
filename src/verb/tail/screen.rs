//! What a person sees and types, or a script reads and writes. Everything is printed by the thread that calls here, so that no two
//! lines can mix; a prompt that is being typed at is redrawn with whatever is to be shown above it.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustyline::completion::Completer;
use rustyline::config::Configurer as _;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{ColorMode, Config, Context, Editor, ExternalPrinter, Helper};

use super::ending::Ending;
use super::follow::Form;
use super::shelf::{Line, Shelf};
use crate::base::printable::{self, printable};
use crate::verb::out;

/// Has a prompt redrawn and shows nothing itself: a line up, and down again. The line editor ends every message from outside with a
/// new line.
const KNOCK: &str = "\u{1b}[A\n";

/// What comes within so long of a redrawn prompt is shown with the next one.
const GATHER: Duration = Duration::from_millis(5);

/// A line that is typed is shorter; what is longer is none, and dropped.
const TYPED_MAX: usize = 64 << 10;

/// How lines are printed, and which was the last.
pub struct Printer {
    pub shelf: Arc<Shelf>,
    pub ending: Arc<Ending>,
    pub form: Form,
    /// Notes go between the events where a person reads both.
    pub is_terminal: bool,
    /// Events until the end; 0 for no end.
    pub count_max: u64,
    pub shown: AtomicU64,
}

impl Printer {
    /// What is to be shown next, as it is printed. What goes elsewhere is there then.
    fn piece(&self) -> String {
        let mut text = String::new();
        for line in self.shelf.take() {
            match line {
                Line::Event(line) => {
                    if self.count_max > 0 {
                        let shown = self.shown.fetch_add(1, SeqCst) + 1;
                        if shown > self.count_max {
                            break;
                        }
                    }
                    text.push_str(&line);
                    text.push('\n');
                }
                Line::Note(note) if self.form == Form::Json => {
                    text.push_str(&printable::json(&note.json.to_string()));
                    text.push('\n');
                }
                Line::Note(note) if self.is_terminal => {
                    text.push_str(&printable(&note.text));
                    text.push('\n');
                }
                Line::Note(note) if note.is_grave => log::warn!("{}", note.text.trim()),
                Line::Note(note) => log::info!("{}", note.text.trim()),
            }
        }
        text
    }

    /// Shows everything that waits.
    pub fn show(&self) {
        loop {
            let text = self.piece();
            if text.is_empty() {
                return;
            }
            out::piece(&text);
            if self.is_done() {
                return self.ending.stop();
            }
        }
    }

    /// As many events were shown as were asked for.
    fn is_done(&self) -> bool {
        self.count_max > 0 && self.shown.load(SeqCst) >= self.count_max
    }

    /// What stands before a line that is typed without an editor.
    pub fn ask(&self, prompt: &str) {
        out::piece(&printable(prompt));
    }

    /// Something of the dialogue.
    pub fn say(&self, text: &str) {
        if self.is_terminal {
            out::piece(&format!("{}\n", printable(text)));
        } else {
            // Whoever reads the events of a script wants nothing else there.
            log::info!("{}", text.trim());
        }
    }
}

/// What a person typed.
pub enum Typed {
    Line(String),
    /// Ctrl-C, Ctrl-D, or the terminal is gone.
    End,
}

/// A line that can be edited while events are shown above it.
pub struct Prompt {
    editor: Editor<Above, DefaultHistory>,
    shelf: Arc<Shelf>,
}

/// Shows what waits above the prompt, whenever that is drawn.
struct Above {
    printer: Arc<Printer>,
    words: Vec<String>,
}

impl Prompt {
    /// The second value has the prompt redrawn, from a thread of its own.
    pub fn new(printer: Arc<Printer>) -> Result<(Prompt, impl FnMut() -> Result<()> + Send + 'static)> {
        // The helper draws, so its words count whether there are colors or not. Nothing of the terminal is switched on that would have
        // to be switched off again, if we end in the middle.
        let mut config =
            Config::builder().color_mode(ColorMode::Forced).bracketed_paste(false).auto_add_history(true);
        config.enable_synchronized_output(false);
        let config = config.build();
        let cannot = "cannot use this terminal";
        let mut editor = Editor::with_config(config).context(cannot)?;
        let mut knocker = editor.create_external_printer().context(cannot)?;
        let shelf = printer.shelf.clone();
        editor.set_helper(Some(Above { printer, words: Vec::new() }));
        let waiting = shelf.clone();
        let knock = move || loop {
            waiting.wait_for_knock();
            if waiting.is_prompting() {
                knocker.print(KNOCK.to_owned()).map_err(|error| anyhow!("the prompt is gone: {error}"))?;
            }
            std::thread::sleep(GATHER);
        };
        Ok((Prompt { editor, shelf }, knock))
    }

    /// Waits for a line; `words` are what Tab completes to.
    pub fn read(&mut self, prompt: &str, words: Vec<String>) -> Result<Typed> {
        if let Some(above) = self.editor.helper_mut() {
            above.words = words;
        }
        self.shelf.prompt(true);
        let read = self.editor.readline(prompt);
        self.shelf.prompt(false);
        match read {
            Ok(line) => Ok(Typed::Line(line)),
            Err(
                ReadlineError::Interrupted
                | ReadlineError::Eof
                | ReadlineError::Io(_)
                | ReadlineError::Errno(_),
            ) => Ok(Typed::End),
            Err(error) => Err(error).context("cannot read from this terminal"),
        }
    }
}

impl Helper for Above {}
impl Hinter for Above {
    type Hint = String;
}
impl Validator for Above {}

impl Highlighter for Above {
    fn highlight_prompt<'b, 's: 'b, 'p: 'b>(&'s self, prompt: &'p str, _: bool) -> Cow<'b, str> {
        let mut above = self.printer.piece();
        if above.is_empty() {
            return Cow::Borrowed(prompt);
        }
        above.push_str(prompt);
        if self.printer.is_done() {
            // Nobody else could tell a person who types.
            self.printer.ending.request();
        }
        Cow::Owned(above)
    }
}

impl Completer for Above {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        let typed = &line[..at];
        Ok((0, self.words.iter().filter(|word| word.starts_with(typed)).cloned().collect()))
    }
}

/// Standard input without a line editor: a pipe, a terminal that can do nothing, or one that shows events and no prompt.
#[derive(Default)]
pub struct Input {
    bytes: Vec<u8>,
    is_ended: bool,
}

/// What the wait brought.
pub enum Heard {
    Line(String),
    /// The input has no more.
    InputEnded,
    /// The process is to end, or nobody reads any more.
    End,
}

impl Input {
    /// Shows events until a line comes. Input that has ended, or that nobody wants, is not waited for.
    pub fn wait(&mut self, printer: &Printer, wants_input: bool) -> Result<Heard> {
        loop {
            // Whatever it was for is looked at below.
            printer.shelf.wake.read().ok();
            printer.show();
            if printer.ending.is_requested() || out::is_closed() {
                return Ok(Heard::End);
            }
            let reads = wants_input && !self.is_ended;
            if reads && let Some(line) = self.line() {
                return Ok(Heard::Line(line));
            }
            let input = std::io::stdin();
            let output = out::handle();
            let is_readable = ready(input.as_fd(), output.as_fd(), printer.shelf.wake.as_fd(), reads)?;
            if is_readable && self.read()? == 0 {
                self.is_ended = true;
                return Ok(Heard::InputEnded);
            }
        }
    }

    /// The next whole line that was read.
    fn line(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| *byte == b'\n')?;
        let line: Vec<u8> = self.bytes.drain(..=end).collect();
        Some(String::from_utf8_lossy(&line).trim_end_matches(['\n', '\r']).to_owned())
    }

    fn read(&mut self) -> Result<usize> {
        let mut piece = [0; 4096];
        match std::io::stdin().lock().read(&mut piece) {
            Ok(count) => {
                if self.bytes.len() < TYPED_MAX {
                    self.bytes.extend(&piece[..count]);
                }
                Ok(count)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(1),
            // A terminal that is gone.
            Err(_) => Ok(0),
        }
    }
}

/// Waits until something can be done; true where input can be read.
fn ready(input: BorrowedFd<'_>, output: BorrowedFd<'_>, wake: BorrowedFd<'_>, reads: bool) -> Result<bool> {
    let mut all = vec![PollFd::new(wake, PollFlags::POLLIN), PollFd::new(output, PollFlags::empty())];
    if reads {
        all.push(PollFd::new(input, PollFlags::POLLIN));
    }
    match poll(&mut all, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {}
        Err(error) => return Err(error).context("cannot wait for events"),
    }
    // Who reads a pipe left, which nothing else would say while no event comes.
    if all[1].revents().is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLNVAL)) {
        out::close();
    }
    Ok(all.get(2).is_some_and(|input| input.any().unwrap_or(false)))
}

/// True where a person types and reads.
pub fn is_person() -> bool {
    std::io::stdin().is_terminal() && out::is_terminal()
}

/// True where a person can edit a line.
pub fn has_prompt() -> bool {
    let is_dumb =
        std::env::var("TERM").is_ok_and(|term| ["dumb", "cons25", "emacs", ""].contains(&term.as_str()));
    is_person() && !is_dumb
}
