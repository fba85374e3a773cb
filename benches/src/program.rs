//! How each program of the bench ends, and where its results go.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

/// For `main`: an error goes to the terminal with its causes.
pub fn exit_code(program: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{program}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A new directory for results: DATE-NAME, with a number behind it where that is taken.
pub fn result_directory(results: &Path, name: &str) -> Result<PathBuf> {
    let today = jiff::Zoned::now().strftime("%Y-%m-%d").to_string();
    let mut directory = results.join(format!("{today}-{name}"));
    let mut number = 2;
    while directory.exists() {
        directory = results.join(format!("{today}-{name}-{number}"));
        number += 1;
    }
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}
