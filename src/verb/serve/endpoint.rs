//! Endpoints as configured, made ready: what is asked of the server for each form of the answer, and which form a request wants.

use anyhow::{Context, Result, bail, ensure};
use hyper::Method;
use serde_json::Value as Json;

use super::chart::Chart;
use super::parameter::{self, Parameter, Value, oid};
use super::statement::Statement;
use crate::base::spelling::did_you_mean;
use crate::client::pg::escape_literal;
use crate::config::{Etag, Format, Place, PlanMode, RawEndpoint, Serve, Shape};
use crate::verb::web::paths::{self, Found, Pattern};

/// One endpoint, made ready.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// `GET /part/{x}`: for people and figures.
    pub name: String,
    pub method: Method,
    /// As written.
    pub path_text: String,
    path: Pattern,
    pub summary: String,
    pub description: String,
    pub parameters: Vec<Parameter>,
    pub statement: Statement,
    /// Which parameter each number of the statement stands for.
    order: Vec<usize>,
    pub write: bool,
    pub shape: Shape,
    pub response: Option<Response>,
    /// The first is the one for who asks for none.
    pub formats: Vec<Format>,
    /// `/path.csv` asks for CSV.
    pub has_suffixes: bool,
    pub chart: Option<Chart>,
    pub etag: Option<Etag>,
    pub max_age_s: Option<u64>,
    pub timeout: std::time::Duration,
    /// `None` for a stream without a bound.
    pub rows_max: Option<u64>,
    pub plan: PlanMode,
    pub share: bool,
}

/// An answer of the endpoint's own form, taken apart: text, and what comes in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    before: Vec<Piece>,
    after: Vec<Piece>,
    /// As written, for who reads of it.
    pub written: Json,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    /// A parameter's value.
    Value(usize),
}

/// Each with a statement of its own.
pub const FORMATS: [Format; 4] = [Format::Json, Format::Ndjson, Format::Csv, Format::Svg];

/// What this calls the rows of a statement; nobody has a column of this name.
const ROWS: &str = "rowmill_rows_of_the_statement";

impl Endpoint {
    /// # Errors
    /// What cannot be as it is written, with its place.
    pub fn new(raw: &RawEndpoint, serve: &Serve) -> Result<Endpoint> {
        let name = format!("{} {}", raw.method, raw.path);
        Endpoint::made(raw, serve, &name).with_context(|| format!("in the endpoint {name:?}"))
    }

    fn made(raw: &RawEndpoint, serve: &Serve, name: &str) -> Result<Endpoint> {
        let known = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        let method = Method::from_bytes(raw.method.as_bytes()).ok().filter(|method| known.contains(method));
        let method = method
            .with_context(|| format!("method is {:?}: use GET, POST, PUT, PATCH or DELETE", raw.method))?;
        ensure!(!raw.write || method != Method::GET, "a GET must not write: give it another method");
        let path = Pattern::parse(&raw.path)?;
        let takes_body = !matches!(method, Method::GET | Method::DELETE);
        let parameters = parameter::parameters(&raw.params, &path.parameters, takes_body)?;
        let names = || parameters.iter().map(|parameter| parameter.name.as_str());
        let number = |name: &str| {
            names().position(|other| other == name).with_context(|| {
                format!(":{name} is no parameter{}; declare it under params", did_you_mean(name, names()))
            })
        };
        let statement = Statement::parse(&raw.sql)?;
        let order =
            statement.names.iter().map(|name| number(name)).collect::<Result<Vec<_>>>().context("sql")?;
        let response = raw.response.as_ref().map(|written| response(written, &number)).transpose()?;
        let is_used = |at: usize| {
            order.contains(&at)
                || response.iter().flat_map(Response::pieces).any(|piece| *piece == Piece::Value(at))
                // Only there to bound another one.
                || raw.params.values().any(|other| other.after.as_ref() == Some(&parameters[at].name))
        };
        if let Some(unused) = (0..parameters.len()).find(|at| !is_used(*at)) {
            bail!("params.{0}: sql has no :{0}", parameters[unused].name);
        }
        let has_rows = matches!(raw.shape, Shape::Rows | Shape::Arrays);
        ensure!(response.is_none() || has_rows, "response is for shape = \"rows\" or \"arrays\"");
        let chart = raw.chart.as_ref().map(Chart::new).transpose()?;
        let formats = formats(raw, has_rows)?;
        if raw.write {
            ensure!(raw.etag.is_none(), "etag is for what only reads");
            ensure!(
                !raw.stream,
                "stream is for what only reads: an answer to a write is whole when it begins"
            );
        }
        Ok(Endpoint {
            name: name.to_owned(),
            path_text: raw.path.clone(),
            path,
            summary: raw.summary.clone(),
            description: raw.description.clone(),
            parameters,
            statement,
            order,
            write: raw.write,
            shape: raw.shape,
            response,
            has_suffixes: !raw.formats.is_empty(),
            formats,
            chart,
            etag: raw.etag,
            max_age_s: raw.max_age().map(|age| age.as_secs()),
            timeout: raw.timeout().unwrap_or(serve.statement_timeout),
            rows_max: (!raw.stream).then(|| raw.rows_max.unwrap_or(serve.rows_max)),
            plan: raw.plan,
            share: raw.share && !raw.write,
            method,
        })
    }

    /// Types of the statement's values.
    pub fn types(&self) -> Vec<u32> {
        self.order.iter().map(|at| oid(self.parameters[*at].ty)).collect()
    }

    /// The statement's values, out of those of the parameters.
    pub fn arguments(&self, values: &[Value]) -> Vec<Option<Vec<u8>>> {
        self.order.iter().map(|at| values[*at].clone().map(String::into_bytes)).collect()
    }

    /// True where the rows are asked for with their columns, as PostgreSQL's text.
    pub fn wants_columns(format: Format) -> bool {
        matches!(format, Format::Csv | Format::Svg)
    }

    /// What is run for a form of the answer. `columns` are those of the statement itself.
    pub fn sql(&self, format: Format, columns: &[String]) -> String {
        let text = &self.statement.text;
        let column = |name: &String| format!("{ROWS}.\"{}\"", name.replace('"', "\"\""));
        // The break ends a comment that may end the statement.
        let around = |what: &str| format!("WITH {ROWS} AS (\n{text}\n) SELECT {what} FROM {ROWS}");
        let whole = format!("pg_catalog.to_json({ROWS})::pg_catalog.text");
        match (format, self.shape) {
            (Format::Csv | Format::Svg, _) => text.clone(),
            (Format::Ndjson, _) | (Format::Json, Shape::Rows | Shape::Object) => around(&whole),
            (Format::Json, Shape::Arrays) => {
                let all: Vec<String> = columns.iter().map(column).collect();
                around(&format!("pg_catalog.json_build_array({})::pg_catalog.text", all.join(", ")))
            }
            (Format::Json, Shape::Value) => {
                let first = columns.first().map(column).unwrap_or_default();
                around(&format!("coalesce(pg_catalog.to_json({first})::pg_catalog.text, 'null')"))
            }
            (Format::Json, Shape::Columns) => {
                let pair = |name: &String| {
                    format!(
                        "{}, coalesce(pg_catalog.json_agg({}), '[]'::pg_catalog.json)",
                        escape_literal(name),
                        column(name)
                    )
                };
                let all: Vec<String> = columns.iter().map(pair).collect();
                let object = format!("pg_catalog.json_build_object({})::pg_catalog.text", all.join(", "));
                let limit = self.rows_max.map_or(String::new(), |most| format!(" LIMIT {}", most + 1));
                format!(
                    "WITH {ROWS} AS (\n{text}\n) SELECT {object}, pg_catalog.count(*)::pg_catalog.text FROM (SELECT * FROM {ROWS}{limit}) AS {ROWS}"
                )
            }
        }
    }

    /// The form that a request wants; `None` where it wants none that there is.
    pub fn accepted(&self, suffix: Option<Format>, accept: &str) -> Option<Format> {
        match suffix {
            Some(format) => Some(format),
            None if accept.trim().is_empty() => self.formats.first().copied(),
            None => {
                let mut best = None;
                for format in &self.formats {
                    let weight = weight(accept, *format);
                    if weight > best.map_or(0.0, |(_, weight)| weight) {
                        best = Some((*format, weight));
                    }
                }
                best.map(|(format, _)| format)
            }
        }
    }

    pub fn parameter_names_in_path(&self) -> &[String] {
        &self.path.parameters
    }

    pub fn takes_body(&self) -> bool {
        self.parameters.iter().any(|parameter| parameter.place == Place::Body)
    }
}

/// The end of a path that asks for a form.
pub fn suffix(format: Format) -> &'static str {
    match format {
        Format::Json => ".json",
        Format::Ndjson => ".ndjson",
        Format::Csv => ".csv",
        Format::Svg => ".svg",
    }
}

pub fn media(format: Format) -> &'static str {
    match format {
        Format::Json => "application/json",
        Format::Ndjson => "application/x-ndjson",
        Format::Csv => "text/csv; charset=utf-8",
        Format::Svg => "image/svg+xml",
    }
}

/// How much an Accept header wants a form, from 0 to 1; the most exact of its ranges counts.
fn weight(accept: &str, format: Format) -> f32 {
    let media = media(format).split(';').next().unwrap_or_default();
    let whole = format!("{}/*", media.split('/').next().unwrap_or_default());
    let mut found = (0, 0.0);
    for part in accept.split(',') {
        let mut fields = part.split(';').map(str::trim);
        let range = fields.next().unwrap_or_default().to_ascii_lowercase();
        let weight =
            fields.find_map(|field| field.strip_prefix("q=")).map_or(1.0, |q| q.parse().unwrap_or(0.0));
        let exactness = match range.as_str() {
            range if range == media => 3,
            range if range == whole => 2,
            "*/*" => 1,
            _ => continue,
        };
        if exactness > found.0 {
            found = (exactness, weight);
        }
    }
    found.1
}

fn formats(raw: &RawEndpoint, has_rows: bool) -> Result<Vec<Format>> {
    let mut formats = match (raw.formats.as_slice(), has_rows && !raw.write) {
        ([], true) => vec![Format::Json, Format::Ndjson, Format::Csv],
        ([], false) => vec![Format::Json],
        (written, _) => written.to_vec(),
    };
    if raw.formats.is_empty() && raw.chart.is_some() {
        formats.push(Format::Svg);
    }
    if formats.contains(&Format::Svg) != raw.chart.is_some() {
        bail!("chart and formats = [\"svg\"] belong together");
    }
    if !has_rows && formats != [Format::Json] {
        bail!("this shape is JSON only; rows and arrays have other formats");
    }
    if raw.write && formats != [Format::Json] {
        bail!("what writes answers with JSON only");
    }
    Ok(formats)
}

fn response(written: &toml::Value, number: &impl Fn(&str) -> Result<usize>) -> Result<Response> {
    let json = serde_json::to_value(written).context("response")?;
    let mut parts = vec![Vec::new()];
    write(&json, number, &mut parts).context("response")?;
    let [before, after] = parts.as_mut_slice() else {
        bail!("response has the rows {} times: write \"rows\" where they belong, once", parts.len() - 1);
    };
    Ok(Response { before: std::mem::take(before), after: std::mem::take(after), written: json })
}

/// Appends to the last part; where the rows come, a new one begins.
fn write(json: &Json, number: &impl Fn(&str) -> Result<usize>, parts: &mut Vec<Vec<Piece>>) -> Result<()> {
    let text = |parts: &mut Vec<Vec<Piece>>, text: &str| {
        if let Some(last) = parts.last_mut() {
            last.push(Piece::Text(text.to_owned()));
        }
    };
    match json {
        Json::Object(members) => {
            for (at, (name, value)) in members.iter().enumerate() {
                text(parts, if at == 0 { "{" } else { "," });
                text(parts, &format!("{}:", Json::from(name.as_str())));
                write(value, number, parts)?;
            }
            text(parts, if members.is_empty() { "{}" } else { "}" });
        }
        Json::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                text(parts, if at == 0 { "[" } else { "," });
                write(item, number, parts)?;
            }
            text(parts, if items.is_empty() { "[]" } else { "]" });
        }
        Json::String(word) if word == "rows" => parts.push(Vec::new()),
        Json::String(word) => match word.strip_prefix(':') {
            Some(name) => {
                let piece = Piece::Value(number(name)?);
                if let Some(last) = parts.last_mut() {
                    last.push(piece);
                }
            }
            None => text(parts, &json.to_string()),
        },
        other => text(parts, &other.to_string()),
    }
    Ok(())
}

impl Response {
    fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.before.iter().chain(&self.after)
    }

    /// What stands before and behind the rows of this request.
    pub fn around(&self, parameters: &[Parameter], values: &[Value]) -> (String, String) {
        let written = |pieces: &[Piece]| {
            let text = |piece: &Piece| match piece {
                Piece::Text(text) => text.clone(),
                Piece::Value(at) => parameter::json(parameters[*at].ty, &values[*at]).to_string(),
            };
            pieces.iter().map(text).collect()
        };
        (written(&self.before), written(&self.after))
    }
}

/// All endpoints.
///
/// # Errors
/// The first that cannot be, or two that are the same.
pub fn endpoints(serve: &Serve) -> Result<Vec<Endpoint>> {
    let mut made: Vec<Endpoint> = Vec::new();
    for raw in &serve.endpoints {
        let endpoint = Endpoint::new(raw, serve)?;
        let same = |other: &&Endpoint| other.method == endpoint.method && other.path.is_like(&endpoint.path);
        if let Some(other) = made.iter().find(same) {
            bail!("the endpoints {:?} and {:?} are the same", other.name, endpoint.name);
        }
        made.push(endpoint);
    }
    Ok(made)
}

/// The endpoint that a request means, and the form that the path's end asks for. HEAD means GET.
pub fn find<'p>(endpoints: &[Endpoint], method: &Method, path: &'p str) -> (Found<'p>, Option<Format>) {
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    let look = |path: &'p str| paths::find(endpoints.iter().map(|e| (&e.method, &e.path)), method, path);
    for format in FORMATS {
        if let Some(short) = path.strip_suffix(suffix(format))
            && let Found::Place(number, parameters) = look(short)
            && endpoints[number].has_suffixes
            && endpoints[number].formats.contains(&format)
        {
            return (Found::Place(number, parameters), Some(format));
        }
    }
    (look(path), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str) -> Result<Vec<Endpoint>> {
        let text = format!("[postgres]\nurl = \"postgresql://u@127.0.0.1/d\"\n{text}");
        let config = crate::config::parse_window(&text)?;
        endpoints(&config.serve)
    }

    #[track_caller]
    fn one(text: &str) -> Endpoint {
        made(&format!("[[endpoint]]\n{text}")).unwrap().remove(0)
    }

    #[test]
    fn a_request_finds_its_endpoint_and_form() {
        let all = made(
            "[[endpoint]]\npath = \"/plot/{n}\"\nparams.n = { type = \"text\" }\nsql = \"SELECT :n AS a, 1 AS b\"\n\
             formats = [\"svg\", \"csv\"]\nchart = { x = \"a\", y = \"b\" }\n\
             [[endpoint]]\npath = \"/plain/{n}\"\nparams.n = { type = \"text\" }\nsql = \"SELECT :n AS a\"\n",
        )
        .unwrap();
        let check = |path: &str, number: usize, value: &str, format: Option<Format>| {
            assert_eq!(find(&all, &Method::GET, path), (Found::Place(number, vec![value]), format), "{path}");
        };
        check("/plot/7", 0, "7", None);
        check("/plot/7.csv", 0, "7", Some(Format::Csv));
        check("/plot/7.json", 0, "7.json", None);
        check("/plain/7.csv", 1, "7.csv", None);
        assert_eq!(find(&all, &Method::HEAD, "/plot/7").0, Found::Place(0, vec!["7"]));
        assert_eq!(find(&all, &Method::POST, "/plot/7").0, Found::OtherMethods(vec![Method::GET]));
    }

    #[test]
    fn a_form_is_agreed_on() {
        let endpoint = one("path = \"/a\"\nsql = \"SELECT 1\"");
        for (accept, expected) in [
            ("", Some(Format::Json)),
            ("*/*", Some(Format::Json)),
            ("text/csv", Some(Format::Csv)),
            ("text/*", Some(Format::Csv)),
            ("application/json;q=0.5, text/csv", Some(Format::Csv)),
            ("application/x-ndjson", Some(Format::Ndjson)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Format::Json)),
            ("text/html", None),
            ("application/json;q=0, text/csv;q=0", None),
            ("*/*, application/json;q=0", Some(Format::Ndjson)),
        ] {
            assert_eq!(endpoint.accepted(None, accept), expected, "{accept}");
        }
    }

    #[test]
    fn an_answer_of_its_own_form_is_put_around_the_rows() {
        let endpoint = one(
            "path = \"/a\"\nparams.tag = { type = \"text\" }\nparams.n = { type = \"int8\" }\nsql = \"SELECT :n\"\n\
             response = { tagName = \":tag\", start = \":n\", samples = \"rows\", v = [1, \"x\", {}] }",
        );
        let values = [Some("5".to_owned()), Some("a\"b".to_owned())];
        let (before, after) = endpoint.response.unwrap().around(&endpoint.parameters, &values);
        let whole: Json = serde_json::from_str(&format!("{before}[7]{after}")).unwrap();
        assert_eq!(
            whole,
            serde_json::json!({"tagName": "a\"b", "start": 5, "samples": [7], "v": [1, "x", {}]})
        );
    }

    #[test]
    fn what_cannot_be_an_endpoint_is_said_with_its_name() {
        for (text, words) in [
            ("path = \"/a\"\nsql = \"SELECT :b\"", "in the endpoint \"GET /a\": sql: :b is no parameter"),
            ("path = \"/a\"\nsql = \"SELECT 1\"\nparams.b = { type = \"text\" }", "params.b: sql has no :b"),
            ("path = \"/a\"\nsql = \"SELECT 1\"\nmethod = \"BREW\"", "use GET"),
            ("path = \"/a\"\nsql = \"SELECT 1\"\nwrite = true", "must not write"),
            ("path = \"/a\"\nsql = \"SELECT 1; SELECT 2\"", "a second statement"),
            ("path = \"/a\"\nsql = \"SELECT 1\"\nformats = [\"svg\"]", "belong together"),
            ("path = \"/a\"\nsql = \"SELECT 1\"\nshape = \"object\"\nformats = [\"csv\"]", "JSON only"),
            ("path = \"/a\"\nsql = \"SELECT 1\"\nresponse = { a = 1 }", "the rows 0 times"),
            (
                "path = \"/a\"\nsql = \"SELECT 1\"\nresponse = { a = \":b\", c = \"rows\" }",
                ":b is no parameter",
            ),
            (
                "path = \"/a\"\nsql = \"SELECT 1\"\nshape = \"value\"\nresponse = { a = \"rows\" }",
                "response is for",
            ),
            ("path = \"/docs\"\nsql = \"SELECT 1\"", "by rowmill itself"),
        ] {
            let error = made(&format!("[[endpoint]]\n{text}\n")).map(|_| ()).unwrap_err();
            assert!(format!("{error:#}").contains(words), "{text}: {error:#}");
        }
        let twice = "[[endpoint]]\npath = \"/a\"\nsql = \"SELECT 1\"\n".repeat(2);
        assert!(made(&twice).map(|_| ()).unwrap_err().to_string().contains("are the same"));
    }

    #[test]
    fn statements_ask_for_rows_in_their_shape() {
        let columns = ["a".to_owned(), "b\"c".to_owned()];
        let sql = |shape: &str, format: Format| {
            one(&format!("path = \"/a\"\nsql = \"SELECT 1 AS a -- x\"\nshape = {shape:?}"))
                .sql(format, &columns)
        };
        assert_eq!(sql("rows", Format::Csv), "SELECT 1 AS a -- x");
        assert!(sql("rows", Format::Json).contains("-- x\n) SELECT pg_catalog.to_json(rowmill_rows"));
        assert!(sql("arrays", Format::Json).contains(".\"b\"\"c\")::"));
        assert!(sql("columns", Format::Json).contains("'b\"c', coalesce("));
        assert!(sql("columns", Format::Json).contains("LIMIT 100001"));
    }
}
