//! What would go wrong where answers are given.

use nix::sys::resource::{Resource, getrlimit};

use super::findings::Findings;
use crate::client::pg::Client;
use crate::config::{Etag, Window};
use crate::http::tls::Identity;
use crate::store::postgres::audit::Seats;
use crate::verb::out::say;
use crate::verb::serve::describe::{Description, describe};
use crate::verb::serve::endpoint::{Endpoint, endpoints};
use crate::verb::serve::{has_ledger, places};
use crate::verb::setup;
use crate::verb::web::tokens::Tokens;

/// Descriptors beside the connections: sessions, loops, logs.
const DESCRIPTORS: u64 = 128;

/// The whole check of a file without models.
pub(super) fn alone(window: &Window, findings: &mut Findings) -> bool {
    check(window, findings);
    say!("guarantee");
    say!(
        "  200: the whole answer of the statement. What breaks off in its middle ends with an error, never as a whole."
    );
    findings.conclude("serve")
}

/// The part of it that is about answers.
pub(super) fn check(window: &Window, findings: &mut Findings) {
    say!("answers");
    let serve = &window.serve;
    let made = match endpoints(serve) {
        Ok(made) => made,
        Err(error) => return findings.bad(format!("{error:#}")),
    };
    if let Some(path) = &serve.tokens
        && let Err(error) = Tokens::read(path, "serve.tokens")
    {
        findings.bad(format!("{error:#}"));
    }
    if let Some((cert, key)) = &serve.tls
        && let Err(error) = Identity::read(cert, key)
    {
        findings.bad(format!("{error:#}"));
    }
    let needed = serve.connections_max as u64 + serve.connections as u64 + DESCRIPTORS;
    if let Ok((allowed, _)) = getrlimit(Resource::RLIMIT_NOFILE)
        && allowed < needed
    {
        findings.doubtful(format!(
            "serve.connections_max is {}, and this process may have {allowed} descriptors: raise LimitNOFILE to {needed}, or lower it",
            serve.connections_max
        ));
    }
    let places = match places(window, &made) {
        Ok(places) => places,
        Err(error) => return findings.bad(format!("{error:#}")),
    };
    let mut clients = Vec::new();
    for place in &places {
        match place.server.connect_to_any("rowmill check") {
            Ok(mut client) => {
                findings.good(format!(
                    "{}: {} over {}",
                    place.name,
                    place.server.address(),
                    place.server.protection()
                ));
                check_seats(serve.connections, &mut client, findings);
                clients.push(client);
            }
            Err(error) => findings.bad(format!("{error:#}")),
        }
    }
    // Of one that is away nothing can be said.
    if clients.len() < places.len() {
        return;
    }
    let last = clients.len() - 1;
    for endpoint in &made {
        let client = &mut clients[if endpoint.write { last } else { 0 }];
        match describe(client, endpoint) {
            Ok(description) => check_endpoint(endpoint, &description, client, findings),
            Err(error) => findings.bad(format!("{error:#}")),
        }
    }
}

fn check_seats(connections: usize, client: &mut Client, findings: &mut Findings) {
    match setup::seats(client) {
        Ok(Seats { allowed, taken }) if (connections as i64) > i64::from(allowed) => findings.doubtful(format!(
            "serve.connections is {connections}; the server allows {allowed} more sessions, of which {taken} are taken: lower it, or \
             raise max_connections"
        )),
        Ok(_) => {}
        Err(error) => findings.doubtful(format!("how many sessions the server allows could not be asked: {error:#}")),
    }
}

fn check_endpoint(
    endpoint: &Endpoint,
    description: &Description,
    client: &mut Client,
    findings: &mut Findings,
) {
    let columns: Vec<String> =
        description.columns.iter().map(|column| format!("{} {}", column.name, column.ty)).collect();
    findings.good(format!("endpoint {:?} -> {}", endpoint.name, columns.join(", ")));
    if endpoint.etag != Some(Etag::Ledger) {
        return;
    }
    for why in &description.untagged {
        findings.bad(format!(
            "endpoint {:?}: etag = \"ledger\" would be wrong: {why}; use \"body\", or leave it out",
            endpoint.name
        ));
    }
    match has_ledger(client) {
        Ok(true) => {}
        Ok(false) => {
            return findings.bad(format!(
                "endpoint {:?}: etag = \"ledger\" needs rowmill.ledger and rowmill.dead_letter: run `rowmill init`, and GRANT SELECT on both \
                 (sql/roles.sql)",
                endpoint.name
            ));
        }
        Err(error) => return findings.bad(format!("{error:#}")),
    }
    for table in &description.tables {
        if !table.writers.is_empty() {
            findings.doubtful(format!(
                "endpoint {:?}: {} may also be written by {}; an answer 304 would not see that",
                endpoint.name,
                table.target,
                table.writers.join(", ")
            ));
        }
    }
}
