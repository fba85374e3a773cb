//! A scenario file: flags of a run, written down by their long names, and models of its own where it has any.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::message::model::{Door, Scenario};
use crate::message::raw::{RawScenario, TABLES};
use crate::plan::options::Cli;

/// The command line with the scenario file's flags before it, so that those written by hand win.
pub fn arguments(given: Vec<String>) -> Result<Vec<String>> {
    let at = given.iter().position(|a| a == "--scenario" || a.starts_with("--scenario="));
    let Some(at) = at else { return Ok(given) };
    let path = match given[at].split_once('=') {
        Some((_, path)) => path.to_owned(),
        None => given.get(at + 1).cloned().context("--scenario needs a file")?,
    };
    let text = std::fs::read_to_string(&path).with_context(|| format!("read the scenario {path}"))?;
    let flags = scenario_flags(&text).with_context(|| format!("read the scenario {path}"))?;
    // Behind the program's name and the verb, where one is given.
    let start = if given.get(1).is_some_and(|a| a == "run") { 2 } else { 1 };
    let mut all = given[..start].to_vec();
    all.extend(flags);
    all.extend_from_slice(&given[start..]);
    Ok(all)
}

fn scenario_flags(text: &str) -> Result<Vec<String>> {
    use clap::CommandFactory;
    let table: toml::Table = text.parse()?;
    let command = Cli::command();
    let known: Vec<&str> = command.get_arguments().filter_map(clap::Arg::get_long).collect();
    let mut flags = Vec::new();
    if let Some(rate) = rate(&table) {
        // Before the file's own flags, which say it more plainly.
        flags.push(format!("--rate={rate}"));
    }
    for (name, value) in table {
        if TABLES.contains(&name.as_str()) {
            continue;
        }
        let flag = name.replace('_', "-");
        if !known.contains(&flag.as_str()) || flag == "scenario" {
            bail!("there is no setting \"{name}\"; the settings are the long flags of `loadtester --help`");
        }
        match value {
            toml::Value::Boolean(true) => flags.push(format!("--{flag}")),
            toml::Value::Boolean(false) => {}
            toml::Value::Array(items) => {
                flags.extend(items.iter().map(|item| format!("--{flag}={}", plain(item))))
            }
            other => flags.push(format!("--{flag}={}", plain(&other))),
        }
    }
    Ok(flags)
}

/// The sum of the models' rates, where all have one.
fn rate(table: &toml::Table) -> Option<f64> {
    let models = table.get("model")?.as_array()?;
    let rate = |model: &toml::Value| {
        let rate = model.get("rate")?;
        rate.as_float().or(rate.as_integer().map(|n| n as f64))
    };
    models.iter().map(rate).sum()
}

/// The models of a scenario file; `None` where it has none and says flags only.
pub fn models(path: &Path, door: &Door) -> Result<Option<Scenario>> {
    let place = || format!("read the scenario {}", path.display());
    let text = std::fs::read_to_string(path).with_context(place)?;
    parse(&text, door).with_context(place)
}

pub fn parse(text: &str, door: &Door) -> Result<Option<Scenario>> {
    let mut table: toml::Table = text.parse()?;
    // Flags are read elsewhere; what remains is the scenario.
    table.retain(|name, _| TABLES.iter().any(|table| *name == **table));
    if table.is_empty() {
        return Ok(None);
    }
    let raw: RawScenario = table.try_into()?;
    Scenario::compile(&raw, door).map(Some)
}

fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::base::quantity::Rate;

    #[test]
    fn the_command_line_wins_over_the_scenario() {
        let flags = scenario_flags(
            "rate = '5k'\nthreads = 3\nnull = true\ncleanup = false\nthreshold = ['lost<1', 'failed<1']",
        )
        .unwrap();
        let line = format!("{} --rate 7k", flags.join(" "));
        let words = std::iter::once("loadtester").chain(line.split_whitespace());
        let args = Cli::try_parse_from(words).unwrap().run;
        assert_eq!((args.rate, args.threads, args.null, args.cleanup), (Rate(7000.0), 3, true, false));
        assert_eq!(args.threshold.len(), 2);
        assert!(scenario_flags("rates = 1").is_err());
    }

    #[test]
    fn models_stand_beside_flags() {
        let model =
            |name: &str, rest: &str| format!("[[model]]\nname = '{name}'\nmessage = '${{seq}}'\n{rest}\n");
        let text = format!("threads = 3\n{}{}", model("a", "rate = 100"), model("b", "rate = 50.5"));
        assert_eq!(scenario_flags(&text).unwrap(), ["--rate=150.5", "--threads=3"]);
        let shares = parse(&text, &Door::default()).unwrap().unwrap().mix(None).unwrap();
        assert_eq!(shares.0.iter().map(|(_, share)| *share).collect::<Vec<_>>(), [100.0, 50.5]);
        assert_eq!(scenario_flags(&model("a", "")).unwrap(), Vec::<String>::new());
        assert!(parse("threads = 3", &Door::default()).unwrap().is_none());
        assert!(parse(&model("a", "rates = 1"), &Door::default()).is_err());
    }
}
