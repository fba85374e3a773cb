//! `rowmill generate`: man pages and shell completions from the definition of the command line, for packages.

mod manual;

use std::path::PathBuf;

use crate::verb::out::say;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_complete::Shell;

/// Explains every setting.
const EXAMPLE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/rowmill.example.toml"));

#[derive(Args)]
pub struct Generate {
    /// Where to write: man/ and completions/ are made there.
    directory: PathBuf,
}

pub fn run(mut command: Command, generate: &Generate) -> Result<()> {
    let (man, completions) = (generate.directory.join("man"), generate.directory.join("completions"));
    for directory in [&man, &completions] {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {directory:?}"))?;
    }
    clap_mangen::generate_to(command.clone().disable_help_subcommand(true), &man)
        .with_context(|| format!("cannot write man pages to {man:?}"))?;
    let file = man.join("rowmill.toml.5");
    std::fs::write(&file, manual::page(EXAMPLE, env!("CARGO_PKG_VERSION")))
        .with_context(|| format!("cannot write {file:?}"))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command, "rowmill", &completions)
            .with_context(|| format!("cannot write completions to {completions:?}"))?;
    }
    say!("man pages in {}, completions in {}", man.display(), completions.display());
    Ok(())
}
