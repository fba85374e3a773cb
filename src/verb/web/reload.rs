//! The files of such a verb that are read again while it runs.

use std::sync::Arc;

use crate::http::tls::Identity;
use crate::verb::service::File;
use crate::verb::web::tokens::TokenFile;

/// Those that there are.
pub fn files(tokens: Option<&Arc<TokenFile>>, identity: Option<&Identity>) -> Vec<File> {
    let mut files: Vec<File> = Vec::new();
    if let Some(tokens) = tokens.cloned() {
        files.push(("the tokens", Box::new(move || tokens.read_again())));
    }
    if let Some(identity) = identity.cloned() {
        files.push(("the certificate and its key", Box::new(move || identity.read_again())));
    }
    files
}
