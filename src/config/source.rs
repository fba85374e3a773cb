//! The file itself, to be looked at again while a process runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A configuration file, and what stood in it when it was looked at last.
pub struct Source {
    pub path: PathBuf,
    seen: toml::Table,
}

impl Source {
    pub fn of(path: &Path) -> Source {
        Source { path: path.to_owned(), seen: table(path) }
    }

    /// The sections that are others than at the last look, as a person writes them, such as `[kafka]`.
    pub fn changes(&mut self) -> Vec<String> {
        let now = table(&self.path);
        let names: BTreeSet<&String> = now.keys().chain(self.seen.keys()).collect();
        let changed = names.into_iter().filter(|name| now.get(*name) != self.seen.get(*name));
        let written = |name: &String| match now.get(name).or_else(|| self.seen.get(name)) {
            Some(toml::Value::Table(_)) => format!("[{name}]"),
            Some(toml::Value::Array(items)) if items.iter().any(toml::Value::is_table) => {
                format!("[[{name}]]")
            }
            _ => name.clone(),
        };
        let changed = changed.map(written).collect();
        self.seen = now;
        changed
    }
}

/// Nothing where it cannot be read: whoever reads it for its meaning says so.
fn table(path: &Path) -> toml::Table {
    std::fs::read_to_string(path).ok().and_then(|text| text.parse().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changed_is_named_as_it_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rowmill.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("pipeline = \"a\"\n[kafka]\nbrokers = \"x\"\n[[model]]\ntopic = \"t\"\n");
        let mut source = Source::of(&path);
        assert!(source.changes().is_empty());
        write(
            "pipeline = \"b\"\n[kafka]\nbrokers = \"x\"\n[[model]]\ntopic = \"u\"\n[log]\nlevel = \"debug\"\n",
        );
        assert_eq!(source.changes(), ["[log]", "[[model]]", "pipeline"]);
        assert!(source.changes().is_empty());
        write("[kafka]\nbrokers = \"y\"\n");
        assert_eq!(source.changes(), ["[kafka]", "[log]", "[[model]]", "pipeline"]);
    }
}
