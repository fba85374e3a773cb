//! The verbs, and from their outcome the exit code.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use loadtester::base::printable::printable_lines;
use loadtester::base::quantity::show_count;
use loadtester::base::signals;
use loadtester::judge::verdict::Exit;
use loadtester::plan::options::{Cli, CompareArgs, RunArgs, UsersAction, UsersArgs, Verb};
use loadtester::plan::{self, Plan, scenario};
use loadtester::server::users;
use loadtester::tell::{self, export, tui};
use loadtester::verb::{ceiling, compare, find_max, merge, run, scenario as scenario_verb};

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn"))
        .format(|out, record| {
            let (at, level) = (out.timestamp(), record.level());
            let style = out.default_level_style(level);
            writeln!(out, "[{at} {style}{level:<5}{style:#}] {}", printable_lines(&record.args().to_string()))
        })
        .target(env_logger::Target::Pipe(Box::new(tui::Log)))
        .write_style(if tui::colors() {
            env_logger::WriteStyle::Always
        } else {
            env_logger::WriteStyle::Never
        })
        .init();
    let given = match scenario::arguments(std::env::args().collect()) {
        Ok(given) => given,
        Err(error) => {
            eprintln!("loadtester: {}", printable_lines(&format!("{error:#}")));
            return ExitCode::from(2);
        }
    };
    let cli = Cli::parse_from(given);
    signals::install();
    match act(cli) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(error) => {
            eprintln!("loadtester: {}", printable_lines(&format!("{error:#}")));
            ExitCode::from(if error.is::<WrongUse>() { 2 } else { 1 })
        }
    }
}

/// What the command line asks for does not fit together.
#[derive(Debug)]
struct WrongUse(anyhow::Error);

impl std::fmt::Display for WrongUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for WrongUse {}

fn act(cli: Cli) -> Result<Exit> {
    match cli.verb {
        None => test(cli.run),
        Some(Verb::Run(args)) => test(*args),
        Some(Verb::Ceiling(args)) => ceiling::ceiling(&args),
        Some(Verb::Compare(args)) => compare::compare(&args),
        Some(Verb::Report(args)) => {
            tell::html::write_comparison(&args.runs, &args.html).map(|()| Exit::Passed)
        }
        Some(Verb::Export(args)) => {
            export::export(&args, &mut std::io::stdout().lock()).map(|()| Exit::Passed)
        }
        Some(Verb::Users(args)) => users_verb(&args),
        Some(Verb::Scenario(args)) => scenario_verb::scenario(&args),
        Some(Verb::Merge(args)) => merge::merge(&args),
    }
}

fn test(args: RunArgs) -> Result<Exit> {
    let plan = Plan::resolve(args).map_err(WrongUse)?;
    if plan.args.dry_run {
        print_plan(&plan);
        return Ok(Exit::Passed);
    }
    if plan.args.find_max {
        return find_max::find_max(plan);
    }
    let directory = run::directory(&plan)?;
    let summary = run::run(&plan, &directory)?;
    tell::terminal::summary(&summary);
    if let Some(baseline) = &plan.args.baseline {
        println!("\nagainst {}:", baseline.display());
        let args = CompareArgs { runs: vec![baseline.clone(), directory], fail_on: Vec::new(), force: false };
        compare::compare(&args)?;
    }
    Ok(summary.exit)
}

fn print_plan(plan: &Plan) {
    let (full, args) = (plan.full_shape(), &plan.args);
    let total = full.messages();
    println!(
        "would send {} messages in {:.0} s over {} threads:",
        show_count(total as u64),
        full.seconds(),
        args.threads
    );
    println!(
        "  warm-up  {:.0} s, {} messages, not measured",
        args.warmup.as_secs_f64(),
        show_count((total - plan.shape.messages()) as u64)
    );
    println!(
        "  steady   {:.0} s, {} messages, at most {:.0}/s",
        plan.shape.seconds(),
        show_count(plan.shape.messages() as u64),
        plan.shape.peak()
    );
    let shares: f64 = plan.mix.0.iter().map(|(_, share)| share).sum();
    for ((model, share), topic) in plan.mix.0.iter().zip(&plan.topics) {
        let place = model.http.as_ref().map_or(format!("topic {topic}"), |http| http.url.clone());
        println!("  {:<14} about {} to {place}", model.topic, show_count((total * share / shares) as u64),);
    }
    if plan.has_users() {
        println!(
            "  users    {} in Redis, such as {} -> {}",
            show_count(args.user_flags.users as u64),
            plan.users.token(0),
            plan.users.id_of(0)
        );
    }
    println!("  seed     {}", args.user_flags.seed);
    let accounting_mb = total * 4.0 / 8.0 / 1e6;
    println!(
        "  memory   about {:.0} MB, of which {accounting_mb:.1} MB for the account of every message",
        40.0 + accounting_mb
    );
    let mut servers = Vec::new();
    if plan.has_topics() {
        servers.push(format!("Kafka {}", plan.kafka.brokers));
    }
    if plan.has_database() {
        servers.push(format!("PostgreSQL {}", plan.database.shown()));
    }
    if plan.has_users() {
        servers.push(format!("Redis {}", users::without_password(&args.servers.redis)));
    }
    let doors = plan.mix.0.iter().filter_map(|(model, _)| Some(model.http.as_ref()?.url.clone()));
    servers.extend(doors);
    println!("  servers  {}", servers.join(", "));
}

fn users_verb(args: &UsersArgs) -> Result<Exit> {
    let users = plan::users(&args.user_flags).map_err(WrongUse)?;
    let mut redis = users::connect(&args.servers.redis, args.servers.redis_ca.as_deref())?;
    match args.action {
        UsersAction::Create => {
            let found = users.create(&mut redis)?;
            println!(
                "{} users created, {} were there already",
                show_count(found.created as u64),
                show_count(found.present as u64)
            );
        }
        UsersAction::Check => {
            println!("{} of {} users are there", users.count_present(&mut redis)?, users.count)
        }
        UsersAction::Cleanup => println!("{} users removed", show_count(users.remove(&mut redis)? as u64)),
    }
    Ok(Exit::Passed)
}
