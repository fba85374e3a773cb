//! `/openapi.json`: the routes as OpenAPI 3.1 has them, made once at the start.

use serde_json::{Map, Value, json};

use super::route::{Id, Routes};
use crate::config::{Ack, Batch, Collect, Form, JsonType};

/// The whole document.
pub fn document(routes: &Routes, collect: &Collect) -> Value {
    let mut paths = Map::new();
    for (route, raw) in routes.routes.iter().zip(&collect.routes) {
        let operation = operation(route, collect);
        let path = paths.entry(raw.path.clone()).or_insert_with(|| Value::Object(Map::new()));
        path[route.method.as_str().to_ascii_lowercase()] = operation;
    }
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "rowmill collect",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Takes JSON records and answers when all in-sync replicas of Kafka have them.",
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    });
    if collect.tokens.is_some() {
        document["components"]["securitySchemes"] =
            json!({ "token": { "type": "http", "scheme": "bearer" } });
        document["security"] = json!([{ "token": [] }]);
    }
    document
}

fn operation(route: &super::route::Route, collect: &Collect) -> Value {
    let mut parameters: Vec<Value> = route
        .path
        .parameters
        .iter()
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .collect();
    let header = match &route.id {
        Id::IdempotencyKey => Some("Idempotency-Key"),
        Id::Header(name) => Some(name.as_str()),
        Id::None | Id::Fields(_) => None,
    };
    if let Some(name) = header {
        parameters.push(json!({
            "name": name, "in": "header", "required": true,
            "description": "The same in each retry of a request.",
            "schema": { "type": "string", "maxLength": 200 },
        }));
    }
    parameters.push(json!({
        "name": "Rowmill-Receipt", "in": "header", "required": false,
        "description": "yes: the answer says where in Kafka each record is.",
        "schema": { "type": "string", "enum": ["yes", "no"] },
    }));
    let mut operation = json!({
        "summary": format!("Records into {}", collect.routes.iter().find(|raw| route.name.ends_with(&raw.path)).map_or("", |raw| &raw.topic)),
        "parameters": parameters,
        "responses": responses(route),
    });
    if route.record.is_none() {
        let record = record_schema(route);
        let media = route.content_type.clone().unwrap_or_else(|| "application/json".to_owned());
        operation["requestBody"] = json!({
            "required": true,
            "description": "One object, an array of them, one in each line, or one after another; gzip, deflate and zstd are taken.",
            "content": { media: { "schema": { "anyOf": [record, { "type": "array", "items": record }] } } },
        });
    }
    operation
}

fn record_schema(route: &super::route::Route) -> Value {
    let mut properties = Map::new();
    for (path, ty) in route.required.iter().filter(|(path, _)| path.0.len() == 1) {
        properties.insert(path.0[0].clone(), json_schema(*ty));
    }
    let required: Vec<&String> = properties.keys().collect();
    json!({ "type": "object", "required": required, "properties": properties })
}

fn json_schema(ty: JsonType) -> Value {
    match ty {
        JsonType::Any => json!({}),
        JsonType::Text => json!({ "type": "string" }),
        JsonType::Int => json!({ "type": "integer" }),
        JsonType::Number => json!({ "type": "number" }),
        JsonType::Bool => json!({ "type": "boolean" }),
        JsonType::Array => json!({ "type": "array" }),
        JsonType::Object => json!({ "type": "object" }),
    }
}

fn responses(route: &super::route::Route) -> Value {
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    let of = |description: &str, media: &str, name: &str| json!({ "description": description, "content": { media: { "schema": schema(name) } } });
    let problem = |description: &str| of(description, "application/problem+json", "Problem");
    let mut all = Map::new();
    let stored = "All in-sync replicas have every record.";
    match (route.ack, route.answer) {
        (Ack::Queued, _) => {
            all.insert("202".into(), of("In memory; a crash loses it.", "application/json", "Queued"));
        }
        (Ack::All, Form::None) => {
            all.insert("204".into(), json!({ "description": stored }));
        }
        (Ack::All, Form::Empty) => {
            all.insert("200".into(), json!({ "description": stored }));
        }
        (Ack::All, Form::Count) => {
            all.insert("200".into(), of(stored, "application/json", "Delivered"));
        }
    }
    if route.batch == Batch::Each {
        all.insert(
            "207".into(),
            of("Some are stored; those that are not are listed.", "application/json", "Delivered"),
        );
    }
    for (code, description) in [
        ("400", "The request or a record is wrong; nothing was sent."),
        ("401", "The token is missing or unknown."),
        ("403", "The token may not send here."),
        ("408", "The request did not come in time."),
        ("413", "A body or a record is too large."),
        ("415", "The body is packed in a way that is not taken."),
        ("429", "More than this token or this process may take; Retry-After says when."),
        ("503", "Nothing of it is stored, a retry cannot double; Retry-After says when."),
        ("504", "Some of it may be stored, a retry may double."),
    ] {
        all.insert(code.into(), problem(description));
    }
    if let Some(must) = &route.must {
        let what = &must.channel;
        all.insert(
            must.inactive.as_str().into(),
            problem(&format!("The {what} is not active; nothing was sent.")),
        );
        all.insert(
            must.unknown.as_str().into(),
            problem(&format!("There is no such {what}; nothing was sent.")),
        );
    }
    Value::Object(all)
}

fn schemas() -> Value {
    let failed = json!({
        "type": "array",
        "items": {
            "type": "object",
            "required": ["index", "status", "stored", "reason"],
            "properties": {
                "index": { "type": "integer" },
                "byte": { "type": "integer" },
                "status": { "type": "integer" },
                "stored": { "type": "string", "enum": ["no", "unknown"] },
                "reason": { "type": "string" },
            },
        },
    });
    json!({
        "Delivered": {
            "type": "object",
            "required": ["delivered"],
            "properties": {
                "delivered": { "type": "integer" },
                "at": { "type": "array", "items": { "type": ["string", "null"] } },
                "failed": failed,
                "failed_total": { "type": "integer" },
            },
        },
        "Queued": { "type": "object", "required": ["queued"], "properties": { "queued": { "type": "integer" } } },
        "Problem": {
            "type": "object",
            "required": ["status", "title", "detail"],
            "properties": {
                "status": { "type": "integer" },
                "title": { "type": "string" },
                "detail": { "type": "string" },
                "stored": { "type": "string", "enum": ["no", "unknown"] },
                "delivered": { "type": "integer" },
                "failed": failed,
            },
        },
    })
}
