//! `/metrics`, `/healthz` and `/readyz`: read-only, without secrets or payloads, on loopback unless configured otherwise.
//!
//! The library starts a thread for each connection, and has one that listens; they end with the process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use oxhttp::Server;
use oxhttp::model::header::{ACCEPT, CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use oxhttp::model::{Body, Method, Response, StatusCode};

use crate::figures::board::Board;
use crate::figures::family::{Format, page};

/// A scraper, a load balancer and a few people; more wait.
const CONNECTIONS_MAX: usize = 16;

/// For one read or write of a connection, so that a silent client gives its place back.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Listens in the background until the process ends.
///
/// # Errors
/// Where the address cannot be had.
pub fn serve(address: SocketAddr, board: Arc<Board>) -> Result<()> {
    let server = Server::new(move |request| {
        let accept = request.headers().get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        answer(request.method(), request.uri().path(), accept, &board)
    });
    // The handle only serves to wait for the threads, which nobody does.
    drop(
        server
            .with_global_timeout(TIMEOUT)
            .with_max_concurrent_connections(CONNECTIONS_MAX)
            .bind(address)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot serve metrics on {address}; set metrics.listen to a free address, or to \"off\""
                )
            })?,
    );
    log::info!("metrics on http://{address}/metrics, beside /healthz and /readyz");
    Ok(())
}

fn answer(method: &Method, path: &str, accept: &str, board: &Board) -> Response<Body> {
    if *method != Method::GET {
        return response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n".to_owned());
    }
    match path {
        "/metrics" => {
            let format = Format::accepted(accept);
            response(StatusCode::OK, format.content_type(), page(&board.families(), format))
        }
        "/healthz" => verdict(board.healthy()),
        "/readyz" => verdict(board.ready()),
        _ => response(StatusCode::NOT_FOUND, PLAIN, "/metrics, /healthz or /readyz\n".to_owned()),
    }
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn verdict(result: Result<(), String>) -> Response<Body> {
    match result {
        Ok(()) => response(StatusCode::OK, PLAIN, "ok\n".to_owned()),
        Err(reason) => response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{reason}\n")),
    }
}

fn response(status: StatusCode, content_type: &'static str, text: String) -> Response<Body> {
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, content_type)
        .header(CACHE_CONTROL, "no-store")
        // A connection that idles takes a place, and the library ends it with an error that nobody asked for.
        .header(CONNECTION, "close")
        .body(Body::from(text))
        .expect("the header's words are our own")
}
