//! An address of HTTP as it is written.

use anyhow::{Result, bail, ensure};

/// Taken apart: the server, and the path with its query as written.
#[derive(Clone, Debug, PartialEq)]
pub struct Url {
    pub tls: bool,
    pub authority: String,
    pub path: String,
}

impl Url {
    pub fn parse(text: &str) -> Result<Self> {
        let (tls, rest) = match text.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            _ => bail!("\"{text}\" is no address of HTTP; write http://host:port/path"),
        };
        let at = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(at);
        ensure!(!authority.is_empty(), "\"{text}\" names no host");
        ensure!(!authority.contains('@'), "an address must hold no password; --bearer-file has the token");
        ensure!(!authority.contains("${"), "\"{text}\": the host is the same for all messages");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        Ok(Self { tls, authority: authority.to_owned(), path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["", "host", "ftp://host/", "http:///path", "http://me:secret@host/", "http://${host}/"] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
        let rows = [
            ("http://h:3000/save", false, "h:3000", "/save"),
            ("https://h", true, "h", "/"),
            ("http://h?x=${y}", false, "h", "/?x=${y}"),
            ("http://[::1]:80/${a}/b?c=d", false, "[::1]:80", "/${a}/b?c=d"),
        ];
        for (text, tls, authority, path) in rows {
            let expected = Url { tls, authority: authority.into(), path: path.into() };
            assert_eq!(Url::parse(text).unwrap(), expected);
        }
    }
}
