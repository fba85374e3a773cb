//! For CI: a JUnit file and a Markdown summary.

use std::path::Path;

use anyhow::{Context, Result};

use crate::base::printable::printable;
use crate::base::quantity::{show_count, show_us};
use crate::judge::summary::Summary;
use crate::tell::terminal;

pub fn write(directory: &Path, summary: &Summary) -> Result<()> {
    for (name, text) in [("junit.xml", junit(summary)), ("summary.md", markdown(summary))] {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn junit(summary: &Summary) -> String {
    let invalid: Vec<&str> = summary
        .reasons
        .iter()
        .filter(|r| r.severity == crate::judge::verdict::Severity::Invalid)
        .map(|r| r.text.as_str())
        .collect();
    let mut cases = vec![
        ("completed".to_owned(), summary.error.clone().unwrap_or_default()),
        ("valid".to_owned(), invalid.join("; ")),
        ("verified".to_owned(), summary.violations.join("; ")),
    ];
    for (text, holds) in &summary.thresholds {
        let problem = if *holds == Some(true) { String::new() } else { format!("{text} does not hold") };
        cases.push((text.clone(), problem));
    }
    let failures = cases.iter().filter(|(_, problem)| !problem.is_empty()).count();
    let mut out = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"loadtester\" tests=\"{}\" failures=\"{failures}\" time=\"{:.3}\">\n",
        cases.len(),
        summary.elapsed_seconds
    );
    for (name, problem) in cases {
        let name = escaped(&name);
        if problem.is_empty() {
            out.push_str(&format!("  <testcase classname=\"loadtester\" name=\"{name}\"/>\n"));
        } else {
            let problem = escaped(&problem);
            out.push_str(&format!(
                "  <testcase classname=\"loadtester\" name=\"{name}\"><failure message=\"{problem}\"/></testcase>\n"
            ));
        }
    }
    out.push_str("</testsuite>\n");
    out
}

/// One line of Markdown that shows the text and does nothing: no element, no link, no picture.
fn inert(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '&' => out.push_str("&amp;"),
            '[' | ']' | '!' | '`' | '*' | '|' | '\\' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

fn markdown(summary: &Summary) -> String {
    let mut out = format!("## Load test: {}\n\n", summary.exit.headline());
    for line in terminal::reasons(summary) {
        out.push_str(&format!("- {}\n", inert(&line)));
    }
    out.push_str("\n| latency | p50 | p99 | p99.9 | max |\n| --- | ---: | ---: | ---: | ---: |\n");
    for latency in summary.latencies.iter().filter(|l| l.summary.count > 0 && l.name != "visible_lower") {
        let p = latency.summary;
        let cells = [p.p50, p.p99, p.p999, p.max].map(|us| show_us(us as f64)).join(" | ");
        out.push_str(&format!("| {} | {cells} |\n", latency.name));
    }
    out.push_str("\n| class | messages |\n| --- | ---: |\n");
    for (class, count, _) in summary.verification.classes() {
        out.push_str(&format!("| {class} | {} |\n", show_count(count)));
    }
    out
}

/// XML knows no other control characters than line breaks and tabs, not even escaped.
fn escaped(text: &str) -> String {
    printable(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_for_xml() {
        assert_eq!(super::escaped("a<b & \"c\"\u{1b}"), "a&lt;b &amp; &quot;c&quot;\\u{1b}");
    }

    #[test]
    fn text_for_markdown() {
        assert_eq!(super::inert("<img> [a](b)\n# `x`"), "&lt;img> \\[a\\](b)\\\\n# \\`x\\`");
    }
}
