//! A scenario file: flags of a run, written down by their long names.

use anyhow::{Context, Result, bail};

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
    for (name, value) in table {
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
}
