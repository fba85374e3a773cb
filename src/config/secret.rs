//! Secrets: where the configuration may find them, so that they need not stand in it, and words for a setting's value
//! that never quote it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, setrlimit};

/// Environment variables by name.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// systemd's directory of what LoadCredential= handed over.
const CREDENTIALS_DIRECTORY: &str = "CREDENTIALS_DIRECTORY";

/// A password or a URL is shorter; anything longer is the wrong file.
const SECRET_BYTES_MAX: u64 = 64 << 10;

/// From here on a crash writes no core dump: it would hold passwords and records. The service manager's limit says the same;
/// this holds without one, and cannot be taken back. A crash handler of the machine (a core_pattern with a pipe) is only
/// told, and may still keep one.
///
/// # Errors
/// None on Linux, where everybody may lower a limit.
pub fn refuse_core_dumps() -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot forbid core dumps, which would hold secrets")
}

/// A secret that is looked at again whenever it is needed: whoever exchanges a password writes its file anew, and nobody has to be
/// started again.
#[derive(Clone)]
pub struct Secret {
    /// As it was found at the start.
    found: String,
    /// The setting and its file, where it comes from one.
    file: Option<(String, String)>,
    /// systemd copied it at the start, and copies it anew at the next one only.
    pub is_handed_over: bool,
}

/// Never printed.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Secret {
    /// # Errors
    /// As [`value`].
    pub fn read(setting: &str, text: &str, environment: Environment<'_>) -> Result<Secret> {
        let found = value(setting, text, environment)?;
        let path = match text.split_once(':') {
            Some(("credential", name)) => Some(credential(setting, name, environment)?),
            Some(("file", path)) => Some(path.to_owned()),
            _ => None,
        };
        let is_handed_over = text.starts_with("credential:");
        Ok(Secret { found, file: path.map(|path| (setting.to_owned(), path)), is_handed_over })
    }

    /// [`Secret::read`] of a setting that may be absent.
    pub(super) fn optional(
        setting: &str,
        text: Option<String>,
        environment: Environment<'_>,
    ) -> Result<Option<Secret>> {
        text.map(|text| Secret::read(setting, &text, environment)).transpose()
    }

    /// As its file has it now. A file that is just being written, or that is gone, is as it was at the start.
    pub fn now(&self) -> String {
        let read_again = self.file.as_ref().and_then(|(setting, path)| read(path, setting).ok());
        read_again.filter(|text| !text.is_empty()).unwrap_or_else(|| self.found.clone())
    }
}

/// For what comes from elsewhere than a configuration, and does not change.
impl From<&str> for Secret {
    fn from(text: &str) -> Secret {
        Secret { found: text.to_owned(), file: None, is_handed_over: false }
    }
}

/// The value of a setting that may be secret: `credential:NAME`, `file:PATH`, `env:NAME`, or the text itself.
///
/// # Errors
/// With the setting's name and where the value should be, never with the value.
pub fn value(setting: &str, text: &str, environment: Environment<'_>) -> Result<String> {
    let found = match text.split_once(':') {
        Some(("credential", name)) => read(&credential(setting, name, environment)?, setting)?,
        Some(("file", path)) => read(path, setting)?,
        Some(("env", name)) => environment(name).with_context(|| {
            format!("{setting} is read from the environment variable {name}, which is not set")
        })?,
        _ => return Ok(text.to_owned()),
    };
    if found.is_empty() {
        // As a file that cannot be read: it may be about to be written.
        let empty = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        return Err(empty).with_context(|| format!("{setting} is empty where it is read from ({text})"));
    }
    Ok(found)
}

/// The path of a setting that names a file: `credential:NAME`, or a path.
pub fn path(setting: &str, text: &str, environment: Environment<'_>) -> Result<String> {
    let path = match text.split_once(':') {
        Some(("credential", name)) => credential(setting, name, environment)?,
        _ => text.strip_prefix("file:").unwrap_or(text).to_owned(),
    };
    std::fs::File::open(&path).with_context(|| format!("cannot read {setting} {path:?}"))?;
    Ok(path)
}

/// [`value`] of a setting that may be absent.
pub(super) fn optional(
    setting: &str,
    text: Option<String>,
    environment: Environment<'_>,
) -> Result<Option<String>> {
    text.map(|text| value(setting, &text, environment)).transpose()
}

/// [`path`] of a setting that may be absent.
pub(super) fn optional_path(
    setting: &str,
    text: Option<String>,
    environment: Environment<'_>,
) -> Result<Option<String>> {
    text.map(|text| path(setting, &text, environment)).transpose()
}

fn credential(setting: &str, name: &str, environment: Environment<'_>) -> Result<String> {
    if name.is_empty() || name.contains('/') {
        bail!("{setting}: {name:?} is no name of a credential");
    }
    let directory = environment(CREDENTIALS_DIRECTORY).with_context(|| {
        format!("{setting} is the credential {name:?}, and ${CREDENTIALS_DIRECTORY} is not set: run under systemd with LoadCredential={name}:PATH")
    })?;
    Ok(Path::new(&directory).join(name).to_string_lossy().into_owned())
}

/// A file's text without the line break that editors leave at its end.
fn read(path: &str, setting: &str) -> Result<String> {
    let about = || format!("cannot read {setting} from {path:?}");
    let metadata = std::fs::metadata(path).with_context(about)?;
    if !metadata.is_file() {
        bail!("{setting}: {path:?} is no regular file: a device or a pipe may never end");
    }
    if metadata.len() > SECRET_BYTES_MAX {
        bail!("{setting}: {path:?} is larger than any secret");
    }
    let text = std::fs::read_to_string(path).with_context(about)?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_as_its_file_has_it_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        std::fs::write(&file, "first\n").unwrap();
        let secret = Secret::read("x.y", &format!("file:{}", file.display()), &|_| None).unwrap();
        assert_eq!(secret.now(), "first");
        std::fs::write(&file, "second").unwrap();
        assert_eq!(secret.now(), "second");
        std::fs::write(&file, "").unwrap();
        assert_eq!(secret.now(), "first");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(secret.now(), "first");
        assert!(!format!("{secret:?}").contains("first"));
        assert_eq!(Secret::read("x.y", "plain", &|_| None).unwrap().now(), "plain");
    }

    #[test]
    fn a_secret_is_found_where_the_setting_says() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "s3cret\n").unwrap();
        std::fs::write(dir.path().join("empty"), "\n").unwrap();
        let directory = dir.path().to_str().unwrap().to_owned();
        let environment = |name: &str| match name {
            "CREDENTIALS_DIRECTORY" => Some(directory.clone()),
            "PASSWORD" => Some("from env".to_owned()),
            _ => None,
        };
        let check =
            |text: &str, expected: Result<&str, &str>| match (value("x.y", text, &environment), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(error), Err(words)) => {
                    let error = format!("{error:#}");
                    assert!(error.contains(words) && error.contains("x.y"), "{error}");
                }
                (found, _) => panic!("{text}: {found:?}"),
            };
        check("credential:key", Ok("s3cret"));
        check(&format!("file:{}", file.display()), Ok("s3cret"));
        check("env:PASSWORD", Ok("from env"));
        check("plain", Ok("plain"));
        check("postgresql://u@h/d", Ok("postgresql://u@h/d"));
        check("credential:../key", Err("no name of a credential"));
        check("file:/dev/zero", Err("no regular file"));
        check("credential:other", Err("cannot read"));
        check("credential:empty", Err("is empty"));
        check("env:NOTHING", Err("is not set"));
        check("file:/nowhere/x", Err("cannot read"));
        let no_systemd = |_: &str| None;
        let error = value("x.y", "credential:key", &no_systemd).unwrap_err();
        assert!(error.to_string().contains("LoadCredential=key:PATH"), "{error}");
        assert_eq!(path("x.y", "credential:key", &environment).unwrap(), file.to_str().unwrap());
        assert!(path("x.y", "/nowhere/x", &environment).is_err());
    }
}
