//! `rowmill tail`: events as they come, for a person who leaves it open for a week, or for a script.
//!
//! One thread reads events ([`follow`]) and puts them on the [`shelf`]; the main thread owns the screen and the [`dialogue`]. What an
//! event is stands in [`event`], which one comes next in [`order`]; how all of it ends, in [`ending`].

pub mod order;
pub mod event;
pub mod dialogue;
pub mod shelf;
pub mod ending;
pub mod follow;
pub mod screen;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use jiff::{Span, Timestamp, Zoned};

use self::dialogue::{Dialogue, Reply};
use self::ending::Ending;
use self::follow::{Follower, Form, Wanted, server};
use self::screen::{Heard, Input, Printer, Prompt, Typed, has_prompt, is_person};
use self::shelf::Shelf;
use crate::base::logging;
use crate::base::queue;
use crate::base::thread::{Kind, Threads};
use crate::config;
use crate::verb::{moment, out};

#[derive(Args)]
pub struct Asked {
    /// Redis' URL with a channel at its end, such as redis://localhost/events; else as [tail] has it.
    source: Option<String>,
    /// Lets SOURCE be on another machine without TLS.
    #[arg(long, requires = "source")]
    plaintext: bool,
    /// Shows events of these accounts at once, without being asked: 1,2,3.
    #[arg(long, value_name = "IDS")]
    accounts: Option<String>,
    /// Shows older events first: since so long ago (10m), or since a time (2026-01-31T00:00:00Z).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Ends after so many events.
    #[arg(long, value_name = "EVENTS", default_value_t = 0, hide_default_value = true)]
    count: u64,
    /// Ends after so long (30s).
    #[arg(long = "for", value_name = "TIME")]
    duration: Option<String>,
    #[arg(long, value_enum, default_value_t = Form::Text)]
    format: Form,
    /// Shows only events whose data have this text.
    #[arg(long = "match", value_name = "TEXT")]
    has: Option<String>,
    /// Keeps the prompt below the events, so that accounts can be added while they come. Enter brings it, too.
    #[arg(long)]
    live: bool,
    /// Reads no commands: shows events of all accounts, or of those that --accounts names.
    #[arg(long)]
    no_input: bool,
    /// Ends with 3 if an event was missed that could not be fetched.
    #[arg(long)]
    fail_on_gap: bool,
}

/// Shows events until the end that was asked for.
///
/// # Errors
/// What cannot be as it was asked for, and why it cannot go on.
pub fn run(file: &Path, tail: &Asked) -> Result<ExitCode> {
    let is_terminal = out::is_terminal();
    // A client library's words would stand in the middle of what a person types; whatever matters is said by ourselves.
    let level = if is_terminal { log::LevelFilter::Error } else { log::LevelFilter::Info };
    logging::start(logging::Format::Text, level);
    let view = config::read_view(file, tail.source.as_deref(), tail.plaintext)?;
    let since = tail.since.as_deref().map(since).transpose()?;
    if since.is_some() && view.tail.stream.is_none() && view.tail.topic.is_none() {
        bail!("--since needs a place that keeps events: name tail.stream or tail.topic in the configuration");
    }
    let mut dialogue = Dialogue::new(view.tail.words.clone(), view.tail.account_type);
    if let Some(accounts) = &tail.accounts
        && let Some(Reply::Say(wrong)) = dialogue.select(accounts).into_iter().next()
    {
        bail!("--accounts:{wrong}");
    }
    let shelf = Arc::new(Shelf::new(!is_terminal)?);
    let ending = Arc::new(Ending::new(shelf.clone(), tail.fail_on_gap, is_terminal));
    let (exit_sender, _exits) = queue::bounded(queue::EXITS);
    let threads = Threads::new(exit_sender);
    ending.watch(&threads)?;
    let printer = Arc::new(Printer {
        shelf: shelf.clone(),
        ending: ending.clone(),
        form: tail.format,
        is_terminal,
        count_max: tail.count,
        shown: AtomicU64::new(0),
    });
    let server = server(&view)?;
    let wanted = Arc::new(Wanted::default());
    let follower =
        Follower { view, form: tail.format, has: tail.has.clone(), since, shelf, wanted: wanted.clone() };
    follow(&threads, follower, &ending)?;
    if let Some(text) = &tail.duration {
        let time = period(text).with_context(|| format!("--for {text:?}"))?;
        let ending = ending.clone();
        threads.spawn(
            Kind::Timer.only(),
            None,
            || Ok(()),
            move |()| {
                std::thread::sleep(time);
                ending.request();
                Ok(())
            },
        )?;
    }
    let is_asked = tail.accounts.is_none() && !tail.no_input;
    if tail.format == Form::Text {
        printer.say(&format!("Connecting to {server}"));
    }
    let mut session = Session { dialogue, printer, wanted, threads, is_live: tail.live, is_listening: false };
    if !is_asked {
        session.listen(tail.accounts.is_none());
    }
    session.run(tail, is_asked)?;
    ending.exit_code()
}

/// Starts reading. A thread that ends, however it does, ends the process with its reason.
fn follow(threads: &Threads, follower: Follower, ending: &Arc<Ending>) -> Result<()> {
    let ending = ending.clone();
    threads.spawn(
        Kind::Follow.only(),
        None,
        || Ok(()),
        move |()| {
            let run = std::panic::AssertUnwindSafe(|| follower.run());
            let ended =
                std::panic::catch_unwind(run).unwrap_or_else(|_| Err(anyhow!("reading events panicked")));
            ending
                .fail(ended.err().unwrap_or_else(|| anyhow!("reading events ended without being asked to")));
            Ok(())
        },
    )
}

struct Session {
    dialogue: Dialogue,
    printer: Arc<Printer>,
    wanted: Arc<Wanted>,
    threads: Threads,
    is_live: bool,
    is_listening: bool,
}

impl Session {
    fn listen(&mut self, all: bool) {
        self.is_listening = true;
        self.wanted.listen((!all).then(|| self.dialogue.selected.clone()));
    }

    /// What follows from a line; true where events are to be shown without a prompt.
    fn line(&mut self, line: &str) -> bool {
        let replies = self.dialogue.line(line);
        let listens = replies.contains(&Reply::Listen);
        if listens {
            // Before it is said: what is published from then on is shown.
            self.listen(false);
        }
        for reply in replies {
            if let Reply::Say(text) = reply {
                self.printer.say(&text);
            }
        }
        listens && !self.is_live
    }

    fn run(self, tail: &Asked, is_asked: bool) -> Result<()> {
        let wants_input = !tail.no_input;
        if is_asked {
            self.printer.say(&self.dialogue.options());
        }
        if has_prompt() && wants_input { self.edited(is_asked) } else { self.plain(is_asked, wants_input) }
    }

    /// At a terminal.
    fn edited(mut self, is_asked: bool) -> Result<()> {
        let (mut prompt, mut knock) = Prompt::new(self.printer.clone())?;
        self.threads.spawn(Kind::Knock.only(), None, || Ok(()), move |()| knock())?;
        let mut input = Input::default();
        let mut is_prompted = is_asked || self.is_live;
        loop {
            if is_prompted {
                match prompt.read(&self.dialogue.prompt(), self.dialogue.completions(""))? {
                    Typed::Line(line) => is_prompted = !self.line(&line),
                    Typed::End => {
                        self.printer.say("Goodbye!");
                        return Ok(());
                    }
                }
            } else {
                match input.wait(&self.printer, true)? {
                    Heard::Line(_) => {
                        is_prompted = true;
                        self.printer.say(&self.dialogue.options());
                    }
                    Heard::InputEnded | Heard::End => {
                        self.stopped();
                        return Ok(());
                    }
                }
            }
        }
    }

    /// From a pipe, or at a terminal that can do nothing.
    fn plain(mut self, is_asked: bool, wants_input: bool) -> Result<()> {
        let mut input = Input::default();
        let (is_person, mut is_prompted) = (is_person() && wants_input, is_asked || self.is_live);
        loop {
            if is_person && is_prompted {
                self.printer.ask(&self.dialogue.prompt());
            }
            match input.wait(&self.printer, wants_input)? {
                Heard::Line(_) if is_person && !is_prompted => {
                    is_prompted = true;
                    self.printer.say(&self.dialogue.options());
                }
                Heard::Line(line) => is_prompted = !self.line(&line),
                // Those who piped their commands watch on.
                Heard::InputEnded if self.is_listening => {}
                Heard::InputEnded => {
                    self.printer.say("Goodbye!");
                    return Ok(());
                }
                Heard::End => {
                    if is_asked && self.is_listening {
                        self.stopped();
                    }
                    return Ok(());
                }
            }
        }
    }

    fn stopped(&self) {
        if self.printer.form == Form::Text {
            self.printer.say("stopped listening");
        }
    }
}

fn since(text: &str) -> Result<Timestamp> {
    moment::past(text, &Zoned::now()).with_context(|| {
        format!("--since {text:?}: write how long ago, like 10m, or a time like 2026-01-31T00:00:00Z")
    })
}

fn period(text: &str) -> Result<Duration> {
    let span: Span =
        text.parse().map_err(|_| anyhow!("{text:?} is no duration: write it like 30s or 10m"))?;
    Ok(Duration::try_from(span)?)
}
