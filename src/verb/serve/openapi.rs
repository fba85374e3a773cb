//! `/openapi.json`: the endpoints as OpenAPI 3.1 has them, with the types that the server said. Made at the start, and again when a
//! table changed.

use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::describe::{Description, schema};
use super::endpoint::{Endpoint, media, suffix};
use super::parameter::{FLOAT4_MAX, ITEMS_MAX, Parameter, element};
use crate::config::{Etag, Format, ParameterType, Place, Serve, Shape};

/// The whole document. An endpoint without a description fits no tables at the moment: its answers have no type. Where there is no
/// ledger, nobody can wait for it.
pub fn document(
    serve: &Serve,
    endpoints: &[Endpoint],
    described: &[Option<Arc<Description>>],
    has_ledger: bool,
) -> Json {
    let mut paths = Map::new();
    for (endpoint, description) in endpoints.iter().zip(described) {
        let operation = operation(endpoint, description.as_deref(), has_ledger, serve.tokens.is_some());
        let method = endpoint.method.as_str().to_ascii_lowercase();
        insert(&mut paths, &endpoint.path_text, &method, operation.clone());
        for format in endpoint.formats.iter().filter(|_| endpoint.has_suffixes) {
            let path = format!("{}{}", endpoint.path_text, suffix(*format));
            insert(&mut paths, &path, &method, in_one_format(operation.clone(), *format));
        }
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": serve.title,
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Answers of PostgreSQL. Errors are problem+json (RFC 9457).",
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": { "schemas": { "Problem": problem_schema() } },
    });
    if serve.tokens.is_some() {
        document["components"]["securitySchemes"] =
            json!({ "token": { "type": "http", "scheme": "bearer" } });
        document["security"] = json!([{ "token": [] }]);
    }
    document
}

fn insert(paths: &mut Map<String, Json>, path: &str, method: &str, operation: Json) {
    let place = paths.entry(path.to_owned()).or_insert_with(|| json!({}));
    place[method] = operation;
}

/// The same operation where the path's end says the form.
fn in_one_format(mut operation: Json, format: Format) -> Json {
    let name = media(format).split(';').next().unwrap_or_default();
    if let Some(content) = operation["responses"]["200"]["content"].as_object_mut() {
        content.retain(|media, _| media == name);
    }
    if let Some(responses) = operation["responses"].as_object_mut() {
        responses.remove("406");
    }
    let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
    operation["operationId"] = format!("{id}_{}", &suffix(format)[1..]).into();
    operation
}

fn operation(
    endpoint: &Endpoint,
    description: Option<&Description>,
    has_ledger: bool,
    has_tokens: bool,
) -> Json {
    let mut parameters: Vec<Json> = endpoint
        .parameters
        .iter()
        .filter(|parameter| parameter.place != Place::Body)
        .map(|parameter| {
            let place = if parameter.place == Place::Path { "path" } else { "query" };
            let mut one = json!({
                "name": parameter.name,
                "in": place,
                "required": !is_optional(parameter),
            });
            if parameter.ty == ParameterType::Jsonb {
                // Its text is JSON, whatever its place.
                one["content"] = json!({ "application/json": { "schema": {} } });
            } else {
                one["schema"] = parameter_schema(parameter);
            }
            if !parameter.raw.description.is_empty() {
                one["description"] = parameter.raw.description.clone().into();
            }
            if place == "query" && matches!(one["schema"]["type"].as_str(), Some("array")) {
                one["style"] = "form".into();
                one["explode"] = false.into();
            }
            one
        })
        .collect();
    if has_ledger {
        parameters.push(json!({
            "name": "Rowmill-After", "in": "header", "required": false,
            "description": "Wait until this record of Kafka's is in the tables: topic/partition/offset, as a receipt says it.",
            "schema": { "type": "string" },
        }));
    }
    let id: String = endpoint.name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let mut operation = json!({
        "operationId": id,
        "summary": if endpoint.summary.is_empty() { &endpoint.name } else { &endpoint.summary },
        "parameters": parameters,
        "responses": responses(endpoint, description, has_tokens),
    });
    if !endpoint.description.is_empty() {
        operation["description"] = endpoint.description.clone().into();
    }
    let in_body: Vec<&Parameter> = endpoint.parameters.iter().filter(|p| p.place == Place::Body).collect();
    if !in_body.is_empty() {
        let properties: Map<String, Json> =
            in_body.iter().map(|p| (p.name.clone(), member_schema(p))).collect();
        let required: Vec<&str> =
            in_body.iter().filter(|p| !is_optional(p)).map(|p| p.name.as_str()).collect();
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": {
                "type": "object", "properties": properties, "required": required, "additionalProperties": false,
            } } },
        });
    }
    operation
}

fn is_optional(parameter: &Parameter) -> bool {
    parameter.raw.optional || parameter.raw.default.is_some()
}

/// A member of a body: null is as if it were not there.
fn member_schema(parameter: &Parameter) -> Json {
    let mut schema = parameter_schema(parameter);
    if is_optional(parameter) {
        if let Some(ty) = schema.get("type").cloned() {
            schema["type"] = json!([ty, "null"]);
        }
        if let Some(choices) = schema.get_mut("enum").and_then(Json::as_array_mut) {
            choices.push(Json::Null);
        }
    }
    schema
}

/// A time without an offset. Its day is one that its month has in some year, and its year is none before the first.
const TIMESTAMP: &str = concat!(
    r"^(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9])|(?:0[13-9]|1[0-2])-30|(?:0[13578]|1[02])-31)",
    r"[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?$"
);

fn parameter_schema(parameter: &Parameter) -> Json {
    let raw = &parameter.raw;
    let integer = |bits: u32| {
        let most = (1i128 << (bits - 1)) - 1;
        json!({ "type": "integer", "minimum": (-most - 1) as i64, "maximum": most as i64 })
    };
    let item = |schema: Json| json!({ "type": "array", "items": schema, "maxItems": raw.items_max.unwrap_or(ITEMS_MAX) });
    // PostgreSQL's text holds every character but one.
    let text = || json!({ "type": "string", "pattern": "^[^\\u0000]*$" });
    let is_in_body = parameter.place == Place::Body;
    let mut schema = match parameter.ty {
        ParameterType::Text => text(),
        ParameterType::Bool => json!({ "type": "boolean" }),
        ParameterType::Int2 => integer(16),
        ParameterType::Int4 => integer(32),
        ParameterType::Int8 => integer(64),
        ParameterType::Float4 => json!({ "type": "number", "minimum": -FLOAT4_MAX, "maximum": FLOAT4_MAX }),
        ParameterType::Float8 | ParameterType::Numeric => json!({ "type": "number" }),
        ParameterType::Uuid => json!({ "type": "string", "format": "uuid" }),
        ParameterType::Date => json!({ "type": "string", "format": "date" }),
        ParameterType::Timestamp => {
            json!({ "type": "string", "pattern": TIMESTAMP, "description": "A time without an offset." })
        }
        ParameterType::Timestamptz => json!({ "type": "string", "format": "date-time" }),
        ParameterType::Jsonb => json!({}),
        ParameterType::Texts if is_in_body => item(text()),
        // Commas are between the elements of a query's list; and nothing at all is one empty text.
        ParameterType::Texts => {
            let mut texts = item(json!({ "type": "string", "pattern": "^[^\\u0000,]*$" }));
            texts["minItems"] = 1.into();
            texts
        }
        ParameterType::Int4s => item(integer(32)),
        ParameterType::Int8s => item(integer(64)),
        ParameterType::Float8s => item(json!({ "type": "number" })),
        ParameterType::Uuids => item(json!({ "type": "string", "format": "uuid" })),
    };
    // What is said of a list's values is said of each.
    let of_one = if schema["type"] == "array" { &mut schema["items"] } else { &mut schema };
    for (name, bound) in [("minimum", raw.min), ("maximum", raw.max)] {
        if let Some(bound) = bound {
            of_one[name] = if bound.fract() == 0.0 { (bound as i64).into() } else { bound.into() };
        }
    }
    for (name, length) in [("minLength", raw.length_min), ("maxLength", raw.length_max)] {
        if let Some(length) = length {
            of_one[name] = length.into();
        }
    }
    if parameter.place == Place::Path && parameter.ty == ParameterType::Text && raw.length_min.is_none() {
        // A path that ends there is another path.
        of_one["minLength"] = 1.into();
    }
    if let Some(pattern) = &raw.pattern {
        of_one["pattern"] = format!("^(?:{pattern})$").into();
    }
    if let Some(choices) = &raw.choices {
        let is_text = of_one["type"] == "string";
        let choice = |text: &String| match serde_json::from_str(text) {
            Ok(json) if !is_text => json,
            _ => Json::from(text.as_str()),
        };
        of_one["enum"] = choices.iter().map(choice).collect();
    }
    let default = raw.default.as_ref().filter(|_| element(parameter.ty).is_none());
    if let Some(default) = default.and_then(|default| serde_json::to_value(default).ok()) {
        schema["default"] = default;
    }
    schema
}

/// The type of an answer.
fn content(endpoint: &Endpoint, description: Option<&Description>, format: Format) -> Json {
    let columns = description.map(|description| description.columns.as_slice()).unwrap_or_default();
    let object = |wrap: &dyn Fn(Json) -> Json| {
        let properties: Map<String, Json> =
            columns.iter().map(|column| (column.name.clone(), wrap(schema(&column.ty)))).collect();
        let required: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
    };
    let plain = |schema: Json| schema;
    match (format, endpoint.shape) {
        (Format::Csv, _) => {
            json!({ "type": "string", "description": "A line of names, then a line for each row (RFC 4180)." })
        }
        (Format::Ndjson, _) => {
            json!({ "type": "string", "description": "A line for each row, each a JSON object." })
        }
        (Format::Svg, _) => json!({ "type": "string", "description": "A chart." }),
        _ if description.is_none() => json!({}),
        (Format::Json, Shape::Rows | Shape::Arrays) => {
            let row = match endpoint.shape {
                Shape::Arrays => {
                    let items: Vec<Json> = columns.iter().map(|column| schema(&column.ty)).collect();
                    let count = items.len();
                    json!({ "type": "array", "prefixItems": items, "items": false, "minItems": count, "maxItems": count })
                }
                _ => object(&plain),
            };
            let mut rows = json!({ "type": "array", "items": row });
            if let Some(most) = endpoint.rows_max {
                rows["maxItems"] = most.into();
            }
            match &endpoint.response {
                None => rows,
                Some(response) => written(&response.written, endpoint, &rows),
            }
        }
        (Format::Json, Shape::Object) => object(&plain),
        (Format::Json, Shape::Value) => columns.first().map_or(json!({}), |column| schema(&column.ty)),
        (Format::Json, Shape::Columns) => object(&|schema| json!({ "type": "array", "items": schema })),
    }
}

/// The type of an answer in the endpoint's own form.
fn written(json: &Json, endpoint: &Endpoint, rows: &Json) -> Json {
    match json {
        Json::Object(members) => {
            let properties: Map<String, Json> =
                members.iter().map(|(name, value)| (name.clone(), written(value, endpoint, rows))).collect();
            let required: Vec<&String> = members.keys().collect();
            json!({ "type": "object", "properties": properties, "required": required, "additionalProperties": false })
        }
        Json::Array(items) => {
            let items: Vec<Json> = items.iter().map(|item| written(item, endpoint, rows)).collect();
            let count = items.len();
            json!({ "type": "array", "prefixItems": items, "minItems": count, "maxItems": count })
        }
        Json::String(word) if word == "rows" => rows.clone(),
        Json::String(word) => match word.strip_prefix(':') {
            Some(name) => match endpoint.parameters.iter().find(|parameter| parameter.name == name) {
                Some(parameter) if is_optional(parameter) => json!({}),
                // A list is repeated as PostgreSQL writes it.
                Some(parameter) if parameter_schema(parameter)["type"] == "array" => {
                    json!({ "type": "string" })
                }
                Some(parameter) => parameter_schema(parameter),
                None => json!({}),
            },
            None => json!({ "const": word }),
        },
        other => json!({ "const": other }),
    }
}

fn responses(endpoint: &Endpoint, description: Option<&Description>, has_tokens: bool) -> Json {
    let content: Map<String, Json> = endpoint
        .formats
        .iter()
        .map(|format| {
            let media = media(*format).split(';').next().unwrap_or_default().to_owned();
            (media, json!({ "schema": content(endpoint, description, *format) }))
        })
        .collect();
    let mut all = Map::new();
    all.insert("200".into(), json!({ "description": "The answer, whole.", "content": content }));
    if endpoint.etag.is_some() {
        all.insert("304".into(), json!({ "description": "What the client has is still true." }));
    }
    let mut codes = vec![
        ("400", "Parameters are wrong; each is named with its reason."),
        ("406", "There is no such form of the answer."),
        ("413", "The answer has more rows than it may, or the body more bytes."),
        ("414", "The path and the query together are longer than a request's line may be."),
        ("425", "What Rowmill-After names is not in the tables yet."),
        ("431", "The headers have more bytes than they may."),
        ("500", "The answer cannot be made; the log has why, under the id."),
        ("503", "Not now; Retry-After says when."),
        ("504", "The statement took too long, or it is not known whether a change was made."),
    ];
    if has_tokens {
        codes.extend([
            ("401", "The token is missing or unknown."),
            ("403", "The token may not ask here."),
            ("429", "More than this token may; Retry-After says when."),
        ]);
    }
    if matches!(endpoint.shape, Shape::Object | Shape::Value) {
        codes.push(("404", "There is nothing with these values."));
    }
    if endpoint.takes_body() {
        codes.extend([("408", "The body did not come in time."), ("415", "The body is no JSON.")]);
    }
    if endpoint.write {
        codes.push(("409", "What is there already does not go together with it."));
    }
    codes.sort_unstable();
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    for (code, description) in codes {
        let content = json!({ "application/problem+json": { "schema": schema } });
        all.insert(code.into(), json!({ "description": description, "content": content }));
    }
    if endpoint.etag == Some(Etag::Ledger) || endpoint.etag == Some(Etag::Body) {
        all["200"]["headers"] = json!({ "ETag": { "schema": { "type": "string" } } });
    }
    Json::Object(all)
}

fn problem_schema() -> Json {
    json!({
        "type": "object",
        "required": ["status", "title", "detail"],
        "additionalProperties": false,
        "properties": {
            "status": { "type": "integer" },
            "title": { "type": "string" },
            "detail": { "type": "string" },
            "id": { "type": "string", "description": "Finds the reason in the log." },
            "sqlstate": { "type": "string" },
            "done": { "type": "string", "enum": ["yes", "no", "unknown"], "description": "Whether a change was made." },
            "formats": { "type": "array", "items": { "type": "string" } },
            "parameters": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "reason"],
                    "properties": { "name": { "type": "string" }, "reason": { "type": "string" } },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use postgres::types::Type;

    use super::super::describe::Column;
    use super::super::endpoint::endpoints;
    use super::*;

    #[test]
    fn answers_have_the_types_of_their_columns() {
        let text = "[postgres]\nurl = \"postgresql://u@127.0.0.1/d\"\n[[endpoint]]\npath = \"/a/{n}\"\n\
                    params.n = { type = \"int8\", min = 1 }\nsql = \"SELECT :n AS a, 'x' AS b\"\n\
                    formats = [\"json\", \"csv\"]\nresponse = { n = \":n\", r = \"rows\" }\n";
        let config = crate::config::parse_window(text).unwrap();
        let all = endpoints(&config.serve).unwrap();
        let column = |name: &str, ty| Column { name: name.to_owned(), ty };
        let columns = vec![column("a", Type::INT8), column("b", Type::TEXT)];
        let described = Description { columns, ..Description::default() };
        let document = document(&config.serve, &all, &[Some(Arc::new(described))], false);
        let get = &document["paths"]["/a/{n}"]["get"];
        assert_eq!(get["parameters"][0]["schema"]["minimum"], 1);
        let schema = &get["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(schema["properties"]["n"]["type"], "integer");
        assert_eq!(schema["properties"]["r"]["items"]["properties"]["a"]["type"][0], "integer");
        let csv = &document["paths"]["/a/{n}.csv"]["get"];
        assert!(csv["responses"]["200"]["content"]["text/csv"].is_object());
        assert!(csv["responses"]["200"]["content"]["application/json"].is_null());
        assert_ne!(csv["operationId"], get["operationId"]);
    }

    #[test]
    fn parameters_are_said_as_they_are_taken() {
        let text = "[postgres]\nurl = \"postgresql://u@127.0.0.1/d\"\n[[endpoint]]\nmethod = \"POST\"\npath = \"/a/{t}\"\n\
                    params.t = { type = \"text\" }\nparams.l = { type = \"text[]\", length_max = 3, items_max = 2 }\n\
                    params.c = { type = \"int4\", choices = [\"1\", \"2\"] }\nparams.j = { type = \"jsonb\" }\n\
                    params.at = { type = \"timestamp\" }\nparams.o = { type = \"int2\", in = \"body\", optional = true }\n\
                    params.b = { type = \"text[]\", in = \"body\" }\nsql = \"SELECT :t, :l, :c, :j, :at, :o, :b\"\nwrite = true\n";
        let config = crate::config::parse_window(text).unwrap();
        let all = endpoints(&config.serve).unwrap();
        let document =
            |has_ledger| document(&config.serve, &all, &[None], has_ledger)["paths"]["/a/{t}"]["post"].take();
        let post = document(false);
        let parameters = post["parameters"].as_array().unwrap();
        let of = |name: &str| parameters.iter().find(|parameter| parameter["name"] == name).unwrap();
        assert_eq!(of("t")["schema"]["minLength"], 1);
        assert_eq!(of("l")["schema"]["items"]["maxLength"], 3);
        assert_eq!((&of("l")["schema"]["maxItems"], &of("l")["schema"]["minItems"]), (&json!(2), &json!(1)));
        assert_eq!(of("c")["schema"]["enum"], json!([1, 2]));
        assert_eq!(of("j")["content"], json!({ "application/json": { "schema": {} } }));
        let body = &post["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(body["properties"]["o"]["type"], json!(["integer", "null"]));
        assert_eq!(body["required"], json!(["b"]));
        // Waiting for the ledger is offered where there is one.
        let count = |post: &Json| {
            post["parameters"].as_array().unwrap().iter().filter(|p| p["in"] == "header").count()
        };
        assert_eq!((count(&post), count(&document(true))), (0, 1));
        let time = regex::Regex::new(TIMESTAMP).unwrap();
        for (text, is_time) in [
            ("2026-01-31T12:00:00", true),
            ("2024-02-29 23:59:59.123456789", true),
            ("2026-02-30T12:00:00", false),
            ("2026-04-31T12:00:00", false),
            ("2026-01-31T12:00:00Z", false),
            ("2026-01-31", false),
            ("0000-01-31T12:00:00", false),
        ] {
            assert_eq!(time.is_match(text), is_time, "{text}");
            assert!(!is_time || text.parse::<jiff::civil::DateTime>().is_ok(), "{text}");
        }
    }
}
