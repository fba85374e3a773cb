//! Which request goes where: routes as configured, made ready, and the search for one.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hyper::header::HeaderName;
use hyper::{Method, StatusCode};

use super::template::Template;
use crate::config::{Ack, Batch, Form, JsonType, RawMust, RawRoute, Require, Validate};
use crate::model::plan::{Path, quoted};
use crate::verb::web::paths::{self, Found, Pattern};

/// What the name of a header begins with, where a field could be meant.
const HEADER: &str = "header.";

/// One route, made ready.
#[derive(Clone, Debug)]
pub struct Route {
    /// As written, for people and figures.
    pub name: String,
    pub method: Method,
    pub path: Pattern,
    /// Index into the topics.
    pub topic: usize,
    pub key: Key,
    pub id: Id,
    /// Fields that each record must have.
    pub required: Vec<(Path, JsonType)>,
    /// The record where it is not the body, by field.
    pub record: Option<Vec<(String, Template)>>,
    pub batch: Batch,
    pub ack: Ack,
    pub validate: Validate,
    pub content_type: Option<String>,
    pub answer: Form,
    pub must: Option<Must>,
}

/// What has to be in a table before anything of a request is sent.
#[derive(Clone, Debug)]
pub struct Must {
    /// Its key.
    pub value: Template,
    /// With its schema, quoted.
    pub table: String,
    pub column: String,
    pub active: Option<String>,
    pub cache: Duration,
    pub unknown: StatusCode,
    pub inactive: StatusCode,
    pub channel: String,
}

/// What decides a record's partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// Records go wherever the client library likes.
    None,
    Field(Path),
    Template(Template),
}

/// What tells one record from another, for whoever stores it once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    None,
    Fields(Vec<Path>),
    /// The header of that name, which the client has to send, and the record's number in the request.
    IdempotencyKey,
    /// Another header, likewise: for one that a proxy sets.
    Header(HeaderName),
}

/// Every route, and the topics they send to.
#[derive(Clone, Debug)]
pub struct Routes {
    pub routes: Vec<Route>,
    pub topics: Vec<String>,
}

impl Routes {
    /// # Errors
    /// Which route cannot be, and why.
    pub fn new(raw: &[RawRoute]) -> Result<Routes> {
        let mut made = Routes { routes: Vec::new(), topics: Vec::new() };
        for route in raw {
            let name = format!("{} {}", route.method, route.path);
            let route = made.route(route).with_context(|| format!("in the route {name:?}"))?;
            if let Some(other) = made
                .routes
                .iter()
                .find(|other| other.method == route.method && other.path.is_like(&route.path))
            {
                bail!("the routes {:?} and {name:?} are the same", other.name);
            }
            made.routes.push(route);
        }
        Ok(made)
    }

    fn route(&mut self, raw: &RawRoute) -> Result<Route> {
        let method = Method::from_bytes(raw.method.as_bytes())
            .ok()
            .filter(|method| [Method::POST, Method::PUT, Method::PATCH, Method::GET].contains(method))
            .with_context(|| format!("method is {:?}: use POST, PUT, PATCH or GET", raw.method))?;
        let path = Pattern::parse(&raw.path)?;
        let path_parameters = path.parameters.clone();
        let record = match &raw.record {
            None => None,
            Some(fields) => Some(
                fields
                    .iter()
                    .map(|(name, text)| Ok((name.clone(), Template::parse(text, &path.parameters)?)))
                    .collect::<Result<Vec<_>>>()?,
            ),
        };
        if method == Method::GET {
            ensure!(record.is_some(), "a GET has no body: say record = {{ .. }}");
        }
        let key = match raw.key.as_deref() {
            None => Key::None,
            Some(text) if text.contains('{') => Key::Template(Template::parse(text, &path.parameters)?),
            Some(text) => Key::Field(field(text)?),
        };
        let id = match raw.id.list().as_slice() {
            [] => Id::None,
            ["Idempotency-Key"] => Id::IdempotencyKey,
            [name] if name.starts_with(HEADER) => {
                let name = &name[HEADER.len()..];
                Id::Header(name.parse().ok().with_context(|| format!("{name:?} is the name of no header"))?)
            }
            names => Id::Fields(names.iter().map(|name| field(name)).collect::<Result<_>>()?),
        };
        let required = match &raw.require {
            Require::Names(names) => {
                names.iter().map(|name| Ok((field(name)?, JsonType::Any))).collect::<Result<Vec<_>>>()?
            }
            Require::Types(types) => {
                types.iter().map(|(name, ty)| Ok((field(name)?, *ty))).collect::<Result<Vec<_>>>()?
            }
        };
        if raw.validate == Validate::None {
            let needs = matches!(key, Key::Field(_)) || matches!(id, Id::Fields(_)) || !required.is_empty();
            ensure!(
                !needs,
                "validate = \"none\" reads no field: leave key, id and require out, or take them from the request"
            );
        }
        let topic = match self.topics.iter().position(|topic| *topic == raw.topic) {
            Some(topic) => topic,
            None => {
                self.topics.push(raw.topic.clone());
                self.topics.len() - 1
            }
        };
        Ok(Route {
            name: format!("{} {}", raw.method, raw.path),
            method,
            path,
            topic,
            key,
            id,
            required,
            record,
            batch: raw.batch,
            ack: raw.ack,
            validate: raw.validate,
            content_type: raw.content_type.clone(),
            answer: raw.answer,
            must: raw.must_exist.as_ref().map(|must| self::must(must, &path_parameters)).transpose()?,
        })
    }

    /// The route of a request.
    pub fn find<'p>(&self, method: &Method, path: &'p str) -> Found<'p> {
        paths::find(self.routes.iter().map(|route| (&route.method, &route.path)), method, path)
    }
}

fn must(raw: &RawMust, parameters: &[String]) -> Result<Must> {
    let (schema, table) = raw.table.split_once('.').unwrap_or(("public", &raw.table));
    let (unknown, inactive) = raw.statuses();
    Ok(Must {
        value: Template::parse(&raw.value, parameters).context("must_exist.value")?,
        table: format!("{}.{}", quoted(schema), quoted(table)),
        column: raw.column.clone(),
        active: raw.active.clone(),
        cache: raw.cache(),
        unknown: StatusCode::from_u16(unknown)?,
        inactive: StatusCode::from_u16(inactive)?,
        channel: raw.channel().to_owned(),
    })
}

fn field(text: &str) -> Result<Path> {
    let parts: Vec<String> = text.split('.').map(str::to_owned).collect();
    ensure!(parts.iter().all(|part| !part.is_empty()), "{text:?} is no field: write it like a or a.b");
    Ok(Path(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(text: &str) -> Result<Routes> {
        #[derive(serde::Deserialize)]
        struct Written {
            route: Vec<RawRoute>,
        }
        Routes::new(&toml::from_str::<Written>(text).unwrap().route)
    }

    #[test]
    fn what_cannot_be_a_route_is_said() {
        for (text, words) in [
            ("path = \"save\"", "begins with a /"),
            ("path = \"/a\"\nmethod = \"BREW\"", "use POST"),
            ("path = \"/a\"\nmethod = \"GET\"", "a GET has no body"),
            ("path = \"/a\"\nkey = \"a..b\"", "is no field"),
            ("path = \"/a\"\nkey = \"{path.b}\"", "has no {b}"),
            ("path = \"/a\"\nid = \"header.a b\"", "the name of no header"),
            (
                "path = \"/a\"\nmust_exist = { value = \"{path.b}\", table = \"t\", column = \"c\" }",
                "has no {b}",
            ),
            ("path = \"/a\"\nvalidate = \"none\"\nkey = \"b\"", "reads no field"),
        ] {
            let error = routes(&format!("[[route]]\ntopic = \"t\"\n{text}\n")).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{text}: {error:#}");
        }
        let twice = "[[route]]\npath = \"/a\"\ntopic = \"t\"\n";
        assert!(routes(&twice.repeat(2)).unwrap_err().to_string().contains("are the same"));
    }
}
