//! run.json: everything that was measured and decided, for programs. `schema` is raised when a member changes its meaning;
//! members may be added at any time.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::judge::summary::{SCHEMA, Summary};
use crate::tell::hdr;

pub fn write(directory: &Path, summary: &Summary) -> Result<()> {
    let path = directory.join("run.json");
    let mut text = serde_json::to_string_pretty(summary).context("write run.json")?;
    text.push('\n');
    if let Err(error) = std::fs::write(&path, text) {
        // Half of it would only confuse the next reader.
        std::fs::remove_file(&path).ok();
        return Err(error)
            .with_context(|| format!("write {}; free some space, or choose another --out", path.display()));
    }
    let visible = summary.latencies.iter().find(|l| l.name == "visible");
    if let Some(visible) = visible.filter(|v| v.summary.count > 0) {
        hdr::write_spectrum(&directory.join("visible.hgrm"), &hdr::decode(&visible.histogram)?)?;
    }
    write_verification(&directory.join("verify.csv"), summary)
}

fn write_verification(path: &Path, summary: &Summary) -> Result<()> {
    let mut text = String::from("timestamp_ms,run,class,count,model\n");
    let each = summary.models.iter().map(|m| (m.model.as_str(), m.verification));
    for (model, tally) in [("all", summary.verification)].into_iter().chain(each) {
        for (class, count, _) in tally.classes() {
            text.push_str(&format!(
                "{},{},{class},{count},{model}\n",
                summary.started_us / 1000,
                summary.run
            ));
        }
    }
    std::fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

/// The run.json of a directory, or the file itself.
pub fn read(run: &Path) -> Result<Value> {
    let path = if run.is_dir() { run.join("run.json") } else { run.to_owned() };
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("read {}; give the directory of a finished run", path.display()))?;
    let value: Value = serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))?;
    let schema = value["schema"].as_u64().unwrap_or(0);
    // What is read of the first schema means the same in the second.
    anyhow::ensure!(
        (1..=u64::from(SCHEMA)).contains(&schema),
        "{} has schema {schema}; this program reads schemas up to {SCHEMA}",
        path.display()
    );
    Ok(value)
}
