//! What the references, `raw_copy` and `naive_pipe`, say of themselves: one line of JSON, which the bench reads.

use anyhow::Result;
use serde::Deserialize;

use crate::usage::{self, Usage};
use crate::visible::Visible;

#[derive(Deserialize)]
pub struct Report {
    pub span_rows: u64,
    pub seconds: f64,
    #[serde(flatten)]
    pub usage: Usage,
}

/// Prints the line, at the end of the process that it is about.
pub fn report(visible: &Visible) -> Result<()> {
    let (rows, seconds) = visible.span();
    let usage = usage::of("self")?;
    println!(
        r#"{{"rows":{},"span_rows":{rows},"seconds":{seconds:.4},"cpu_seconds":{:.2},"rss_peak_kb":{}}}"#,
        visible.rows(),
        usage.cpu_seconds,
        usage.rss_peak_kb
    );
    Ok(())
}
