//! What would go wrong at the front door.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::resource::{Resource, getrlimit};

use super::brokers::{check_name, why};
use super::findings::Findings;
use crate::config::Door;
use crate::http::tls::Identity;
use crate::kafka::ask::{ANSWER, Asker};
use crate::kafka::native::Description;
use crate::model::plan::{Plan, Source};
use crate::verb::collect::route::{Key, Routes};
use crate::verb::collect::standing;
use crate::verb::out::say;
use crate::verb::web::tokens::Tokens;

/// Descriptors beside the connections: the Kafka clients' sockets, loops, logs.
const DESCRIPTORS: u64 = 256;

/// The whole check of a file without models.
pub(super) fn alone(door: &Door, findings: &mut Findings) -> bool {
    check(door, &Fields::new(), findings);
    say!("guarantee");
    say!("  200: all in-sync replicas have every record. \"stored\":\"no\": none of them is in Kafka.");
    findings.conclude("collect")
}

/// The part of it that is about the door.
pub(super) fn check(door: &Door, read: &Fields, findings: &mut Findings) {
    say!("front door");
    let collect = &door.collect;
    let routes = match Routes::new(&collect.routes) {
        Ok(routes) => routes,
        Err(error) => return findings.bad(format!("{error:#}")),
    };
    findings.good(format!("{} routes to {} topics", routes.routes.len(), routes.topics.len()));
    if let Some(path) = &collect.tokens
        && let Err(error) = Tokens::read(path, "collect.tokens")
    {
        findings.bad(format!("{error:#}"));
    }
    if let Some((cert, key)) = &collect.tls
        && let Err(error) = Identity::read(cert, key)
    {
        findings.bad(format!("{error:#}"));
    }
    let needed = collect.connections_max as u64 + DESCRIPTORS;
    if let Ok((allowed, _)) = getrlimit(Resource::RLIMIT_NOFILE)
        && allowed < needed
    {
        findings.doubtful(format!(
            "collect.connections_max is {}, and this process may have {allowed} descriptors: raise LimitNOFILE to {needed}, or \
             lower it",
            collect.connections_max
        ));
    }
    check_topics(door, &routes, findings);
    for route in &routes.routes {
        let (Some(must), Some(postgres)) = (&route.must, &door.postgres) else { continue };
        match standing::try_out(postgres, must) {
            Ok(()) => findings.good(format!("route {}: {} is there to be asked", route.name, must.table)),
            Err(error) => findings.bad(format!("route {}: must_exist: {error:#}", route.name)),
        }
    }
    check_fields(&routes, read, findings);
}

fn check_topics(door: &Door, routes: &Routes, findings: &mut Findings) {
    let names: Vec<&str> = routes.topics.iter().map(String::as_str).collect();
    let asker = match Asker::new(&door.kafka, ANSWER) {
        Ok(asker) => asker,
        Err(error) => return findings.bad(format!("{error:#}")),
    };
    let described = match asker.describe(&names) {
        Ok(described) => described,
        Err(error) => {
            let error = why(&door.kafka, &asker, error);
            return findings.bad(format!("Kafka at {}: {error:#}", door.kafka.brokers));
        }
    };
    for topic in &described {
        check_topic(door, routes, topic, &asker, findings);
    }
}

fn check_topic(door: &Door, routes: &Routes, topic: &Description, asker: &Asker, findings: &mut Findings) {
    let name = &topic.name;
    if !check_name(topic, findings) {
        return;
    }
    if !topic.rights.write {
        return findings.bad(format!("topic {name:?}: this user may not write to it; allow Write on it"));
    }
    let mut settings = BTreeMap::new();
    for setting in ["min.insync.replicas", "max.message.bytes", "cleanup.policy"] {
        match asker.setting(name, setting) {
            Ok(value) => drop(settings.insert(setting, value)),
            Err(error) => return findings.doubtful(format!("{error:#}; its settings were not looked at")),
        }
    }
    findings.good(format!("topic {name:?}, records go in"));
    if settings["min.insync.replicas"] == "1" {
        findings.doubtful(format!(
            "topic {name:?}: min.insync.replicas is 1, so what one broker alone has is acknowledged, and its disk may take it \
             along; 2 of 3 replicas are usual"
        ));
    }
    let bytes: usize = settings["max.message.bytes"].parse().unwrap_or(usize::MAX);
    if bytes < door.collect.record_max_bytes {
        findings.doubtful(format!(
            "topic {name:?}: max.message.bytes is {bytes}, below collect.record_max ({}): larger records are refused with 413",
            door.collect.record_max_bytes
        ));
    }
    let is_compacted = settings["cleanup.policy"].contains("compact");
    let number = routes.topics.iter().position(|other| other == name);
    for route in routes.routes.iter().filter(|route| Some(route.topic) == number) {
        if is_compacted && route.key == Key::None {
            findings.bad(format!(
                "route {:?}: topic {name:?} is compacted and takes no record without a key; set key",
                route.name
            ));
        }
    }
}

/// Fields that the door asks for and no model of the topic reads: a misspelling, as a rule.
fn check_fields(routes: &Routes, read: &Fields, findings: &Findings) {
    for route in &routes.routes {
        let topic = &routes.topics[route.topic];
        let Some(read) = read.get(topic) else { continue };
        let key = match &route.key {
            Key::Field(path) => Some(path.to_string()),
            Key::None | Key::Template(_) => None,
        };
        let built = route.record.iter().flatten().map(|(name, _)| name.clone());
        let required = route.required.iter().map(|(path, _)| path.to_string());
        for field in key.into_iter().chain(required).chain(built).filter(|field| !read.contains(field)) {
            findings.doubtful(format!(
                "route {:?} has the field {field:?}, which no model of topic {topic:?} reads: is it spelled alike?",
                route.name
            ));
        }
    }
}

/// What the models of each topic read.
pub(super) type Fields = BTreeMap<String, BTreeSet<String>>;

pub(super) fn fields(plan: &Plan) -> Fields {
    let mut fields = Fields::new();
    for model in &plan.models {
        let read = fields.entry(model.topic.clone()).or_default();
        read.extend(model.when.iter().map(|condition| condition.path.to_string()));
        read.extend(model.sources.iter().filter_map(|source| match source {
            Source::Field { path, .. } | Source::Lookup { path, .. } => Some(path.to_string()),
            _ => None,
        }));
    }
    fields
}
