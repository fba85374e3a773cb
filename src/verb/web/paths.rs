//! Paths with parameters: as configured, and as a request names one.

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};
use hyper::Method;
use percent_encoding::percent_decode_str;

/// A path in which a whole part may be a parameter: `/part/{x}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    segments: Vec<Segment>,
    /// Names of its parameters, from the left.
    pub parameters: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Parameter,
}

/// What the search for a path found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found<'p> {
    /// By its number, with the parameters as they stand in the path.
    Place(usize, Vec<&'p str>),
    /// The path is right; these methods are.
    OtherMethods(Vec<Method>),
    Nothing,
}

/// Paths that every service has.
const RESERVED: [&str; 6] = ["/metrics", "/healthz", "/readyz", "/debug/vars", "/openapi.json", "/docs"];

impl Pattern {
    /// # Errors
    /// What is no such path, or answered by rowmill itself.
    pub fn parse(path: &str) -> Result<Pattern> {
        ensure!(!RESERVED.contains(&path), "{path} is answered by rowmill itself");
        let Some(rest) = path.strip_prefix('/') else { bail!("path is {path:?}: it begins with a /") };
        let mut parameters: Vec<String> = Vec::new();
        let mut segments = Vec::new();
        for part in rest.split('/') {
            match part.strip_prefix('{').map(|name| name.strip_suffix('}')) {
                Some(Some(name)) if !name.is_empty() && !parameters.iter().any(|other| other == name) => {
                    parameters.push(name.to_owned());
                    segments.push(Segment::Parameter);
                }
                Some(_) => bail!("path is {path:?}: {part:?} is no parameter, or is there twice"),
                None if part.contains(['{', '}', '?', '#']) => {
                    bail!("path is {path:?}: a parameter is a whole part, like /{{account}}/events")
                }
                None => segments.push(Segment::Literal(part.to_owned())),
            }
        }
        Ok(Pattern { segments, parameters })
    }

    /// True where both match the same paths.
    pub fn is_like(&self, other: &Pattern) -> bool {
        self.segments == other.segments
    }

    fn fits(&self, parts: &[&str]) -> bool {
        self.segments.len() == parts.len()
            && self.segments.iter().zip(parts).all(|(segment, part)| match segment {
                Segment::Literal(text) => text == part,
                Segment::Parameter => !part.is_empty(),
            })
    }

    /// Where the literals are: compared, the one whose literal comes first is larger.
    fn literals(&self) -> Vec<bool> {
        self.segments.iter().map(|segment| *segment != Segment::Parameter).collect()
    }

    fn values<'p>(&self, parts: &[&'p str]) -> Vec<&'p str> {
        let is_parameter = |segment: &Segment| *segment == Segment::Parameter;
        let found = self.segments.iter().zip(parts).filter(|(segment, _)| is_parameter(segment));
        found.map(|(_, part)| *part).collect()
    }
}

/// Which of these a request means. A literal part is nearer than a parameter, from the left.
pub fn find<'a, 'p>(
    all: impl Iterator<Item = (&'a Method, &'a Pattern)>,
    method: &Method,
    path: &'p str,
) -> Found<'p> {
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let mut best: Option<(usize, &Pattern)> = None;
    let mut methods = Vec::new();
    for (number, (its_method, pattern)) in all.enumerate().filter(|(_, (_, pattern))| pattern.fits(&parts)) {
        if its_method != method {
            methods.push(its_method.clone());
        } else if best.is_none_or(|(_, other)| pattern.literals() > other.literals()) {
            best = Some((number, pattern));
        }
    }
    match best {
        Some((number, pattern)) => Found::Place(number, pattern.values(&parts)),
        None if methods.is_empty() => Found::Nothing,
        None => Found::OtherMethods(methods),
    }
}

/// A part of a path or a query as its writer meant it.
///
/// # Errors
/// Where it is no UTF-8.
pub fn decoded(text: &str) -> Result<Cow<'_, str>, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map_err(|_| format!("{text:?} is no UTF-8 once its percent signs are read"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_finds_its_place() {
        let all: Vec<(Method, Pattern)> = [
            (Method::POST, "/save"),
            (Method::PUT, "/{account}"),
            (Method::PUT, "/{x}/y"),
            (Method::PUT, "/fixed"),
        ]
        .map(|(method, path)| (method, Pattern::parse(path).unwrap()))
        .into();
        let check = |method: Method, path: &str, expected: Found<'_>| {
            let found = find(all.iter().map(|(method, pattern)| (method, pattern)), &method, path);
            assert_eq!(found, expected, "{method} {path}");
        };
        check(Method::POST, "/save", Found::Place(0, vec![]));
        check(Method::PUT, "/17", Found::Place(1, vec!["17"]));
        check(Method::PUT, "/17/y", Found::Place(2, vec!["17"]));
        check(Method::PUT, "/fixed", Found::Place(3, vec![]));
        check(Method::GET, "/save", Found::OtherMethods(vec![Method::POST, Method::PUT]));
        check(Method::POST, "/save/", Found::Nothing);
        check(Method::PUT, "/", Found::Nothing);
        check(Method::POST, "/a/b/c", Found::Nothing);
    }

    #[test]
    fn what_cannot_be_a_path_is_said() {
        for (path, words) in [
            ("save", "begins with a /"),
            ("/a{b}", "a whole part"),
            ("/{a}/{a}", "is there twice"),
            ("/{}", "is no parameter"),
            ("/metrics", "by rowmill itself"),
        ] {
            let error = Pattern::parse(path).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{path}: {error:#}");
        }
    }

    #[test]
    fn percent_signs_are_read() {
        assert_eq!(decoded("a%20b%2Bc").unwrap(), "a b+c");
        assert_eq!(decoded("%ff").unwrap_err(), "\"%ff\" is no UTF-8 once its percent signs are read");
    }
}
