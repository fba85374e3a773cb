//! The verbs: arguments to functions, logging, errors to exit codes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};

use rowmill::base::logging;
use rowmill::config::source::Source;
use rowmill::config::{self, secret};
use rowmill::verb::{self, run};

/// What a page of a manual has beside the verbs.
const MORE: &str = "\
Files:
  rowmill.toml               the configuration, here or where --config says; rowmill.toml(5)
  /etc/rowmill/rowmill.toml  that of the service

Environment:
  KAFKA_BROKERS, DATABASE_URL, REDIS_URL  servers that the file does not name
  ROWMILL_SECTION__SETTING                comes before the file; two underscores for a dot
  CREDENTIALS_DIRECTORY                   where credential:NAME is found
  RUST_LOG                                comes before [log] level
  NO_COLOR                                no colour at a terminal

Exit status:
  0    it is done, or all is well
  1    something was found, or failed; also what may have passed by the next start
  2    the command line cannot be understood
  3    tail --fail-on-gap: an event is missing
  78   a service whose configuration cannot be used
  130  a second signal";

/// Moves JSON from Kafka into PostgreSQL, each record exactly once, at the speed of COPY.
///
/// Create the schema with `rowmill init`, see what would go wrong with `rowmill check`, then `rowmill run`.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_long_help = MORE)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Move records until SIGTERM or SIGINT.
    ///
    /// Several processes with the same configuration share the partitions. Ends with 0 after a signal, once everything in
    /// hand is committed or rolled back; a second signal ends it at once, which is safe.
    Run(ConfigFile),
    /// Take records over HTTP and put them into Kafka.
    ///
    /// Answers when all in-sync replicas have the records of a request, and says of each that failed whether it may be stored
    /// all the same. Needs [collect] and [[route]] of the configuration, and Kafka. Ends with 0 after a signal, once everybody
    /// who waits was answered.
    Collect(ConfigFile),
    /// Answer questions over HTTP, each from one SQL statement.
    ///
    /// Needs [[endpoint]] of the configuration, [serve] for what is not as usual, and PostgreSQL. Values of a request are
    /// checked and bound, and never become a part of a statement. /docs is a page on which a person tries the endpoints, and
    /// /openapi.json has the same for programs. Ends with 0 after a signal, once everybody who waits was answered.
    Serve(ConfigFile),
    /// Create or migrate the rowmill schema: the ledger, the dead letters, the gaps.
    Init(verb::init::Init),
    /// Say what would go wrong before it does.
    ///
    /// Reads the configuration, connects to every server, prints how each column is filled and which guarantee results.
    /// Ends with 0 only if `run` would work.
    ///
    /// With --sample, so many of each topic's newest records are decoded as well: how many would be dead letters, and which
    /// columns no record has a field for. Lookups are not asked, and nothing is written.
    Check {
        #[command(flatten)]
        file: ConfigFile,
        /// Records of each topic to decode.
        #[arg(long, value_name = "RECORDS", default_value_t = 0)]
        sample: u32,
    },
    /// Read a sample of a topic, and print a table and a model that would take it, with the evidence.
    ///
    /// Types, NOT NULL and names come from the newest records: how often each field was there, of which kind, how long. It
    /// needs Kafka only, and changes nothing anywhere.
    Propose(verb::propose::Propose),
    /// Show how far each table is, who owns what, and what was set aside.
    ///
    /// Lag is what the log has and a table lacks, in offsets, and "?" while Kafka does not answer. What this role may not see is
    /// named, with what to do.
    Status {
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        asked: verb::status::Asked,
    },
    /// Read Kafka once more and compare it with the tables, the dead letters and the ledger.
    ///
    /// Works while the pipeline runs: the database is looked at in one snapshot, and each log from start_offset up to the
    /// snapshot's next_offset, with a consumer of its own that asks for no group's offset and commits none. Where the columns
    /// of a table are filled with { kafka = "partition" } and { kafka = "offset" } (and "topic", if several fill it), each
    /// record must be exactly one row or one dead letter, and each row one record; other tables are counted. Dead letters
    /// are compared by place and bytes everywhere, and the ledger's counters and positions with all of it.
    ///
    /// Not looked at: what stands in the other columns of a row, and what Kafka no longer has. Rows that somebody deleted
    /// count as lost. The output says in each case what was checked and what was not. A long run keeps the server from
    /// removing dead row versions, as any long snapshot does.
    ///
    /// Prints PASS and ends with 0 only if nothing is lost, duplicated, phantom or contradictory.
    Verify(ConfigFile),
    /// Fill a new table with what its topics held before it was there, while the pipeline goes on.
    ///
    /// A new table of a topic that is read already begins where the topic's other tables are. This goes from there down to the
    /// begin of each log, and moves the ledger's start_offset with it, in the same transaction as the rows: it can be ended
    /// and run again at any time. What lies below comes after what lies above, so a table that is being filled has no order.
    Backfill {
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        which: verb::backfill::Which,
    },
    /// Show events as they come, at a terminal or to a script.
    ///
    /// Reads them from a channel or streams of Redis, or from Kafka: SOURCE or [tail] of the configuration says which. Asks for the
    /// accounts to show; the same commands are taken from a pipe. Comes back by itself whenever the server does, shows each event
    /// once, fetches what it missed from where it is kept, and says what is missing. Ctrl-C ends it.
    ///
    /// Events go to standard output, and what else there is to say to standard error, but at a terminal. Ends with 1 where it cannot go
    /// on, and with 3 for --fail-on-gap.
    Tail {
        #[command(flatten)]
        file: ConfigFile,
        #[command(flatten)]
        tail: verb::tail::Asked,
    },
    /// Write man pages and shell completions; for packages.
    #[command(hide = true)]
    Generate(verb::generate::Generate),
    /// Look at what was set aside, write it again, or let it be.
    DeadLetters {
        #[command(flatten)]
        file: ConfigFile,
        #[command(subcommand)]
        action: verb::dead_letters::Action,
    },
}

#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(short, long, global = true, default_value = "rowmill.toml")]
    config: PathBuf,
}

fn main() -> ExitCode {
    #[cfg(feature = "fault-points")]
    let _scenario = fail::FailScenario::setup();
    match dispatch(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            log::error!("{error:#}");
            error.downcast_ref::<Misconfigured>().map_or(ExitCode::FAILURE, |_| ExitCode::from(EX_CONFIG))
        }
    }
}

/// What a service ends with where only another configuration helps, as sysexits.h has it: our units do not start it again then. Any
/// other end is one that may have passed by the next start.
const EX_CONFIG: u8 = 78;

/// Marks such an error, and adds its sentence.
#[derive(Debug)]
struct Misconfigured;

impl std::fmt::Display for Misconfigured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the configuration cannot be used")
    }
}

/// A file that cannot be read may be there at the next start: a secret comes late, a disk is not mounted yet.
fn judged<T>(config: Result<T>) -> Result<T> {
    config.map_err(|error| {
        let may_pass = error.chain().any(|cause| cause.is::<std::io::Error>());
        if may_pass { error } else { error.context(Misconfigured) }
    })
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    // Every verb reads secrets.
    secret::refuse_core_dumps()?;
    // False for a check that found something.
    let is_good = match verb {
        Verb::Run(file) => {
            let source = Source::of(&file.config);
            let config = config::read(&file.config);
            log_as(config.as_ref().map(|config| &config.log).ok());
            run::run(&judged(config)?, source).map(|()| true)
        }
        Verb::Collect(file) => {
            let source = Source::of(&file.config);
            let config = config::read_door(&file.config);
            log_as(config.as_ref().map(|config| &config.log).ok());
            verb::collect::run(&judged(config)?, source).map(|()| true)
        }
        Verb::Serve(file) => {
            let source = Source::of(&file.config);
            let config = config::read_window(&file.config);
            log_as(config.as_ref().map(|config| &config.log).ok());
            verb::serve::run(&judged(config)?, source).map(|()| true)
        }
        Verb::Init(init) => for_people(|| verb::init::run(&init).map(|()| true)),
        Verb::Check { file, sample } => for_people(|| verb::check::run(&file.config, sample)),
        Verb::Propose(propose) => for_people(|| verb::propose::run(&propose).map(|()| true)),
        Verb::Generate(generate) => {
            for_people(|| verb::generate::run(Arguments::command(), &generate).map(|()| true))
        }
        Verb::Status { file, asked } => {
            for_people(|| verb::status::run(&config::read(&file.config)?, &asked).map(|()| true))
        }
        Verb::DeadLetters { file, action } => {
            for_people(|| verb::dead_letters::run(&config::read(&file.config)?, &action))
        }
        Verb::Backfill { file, which } => {
            for_people(|| verb::backfill::run(&config::read(&file.config)?, &which).map(|()| true))
        }
        // It has codes of its own.
        Verb::Tail { file, tail } => return verb::tail::run(&file.config, &tail),
        Verb::Verify(file) => for_people(|| verb::verify::run(&config::read(&file.config)?)),
    }?;
    Ok(if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As configured, once that is known.
fn log_as(log: Option<&config::Log>) {
    match log {
        Some(log) => logging::start(log.format, log.level),
        None => logging::start(logging::Format::Auto, log::LevelFilter::Info),
    }
}

/// A verb that does its work and ends speaks to whoever called it.
fn for_people(verb: impl FnOnce() -> Result<bool>) -> Result<bool> {
    logging::start(logging::Format::Text, log::LevelFilter::Info);
    let good = verb()?;
    Ok(verb::out::is_complete() && good)
}
