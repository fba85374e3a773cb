//! What all loops share: the endpoints, what the server says of each, who may ask, and what is shown.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use super::describe::Description;
use super::endpoint::Endpoint;
use super::figures::Figures;
use super::openapi;
use crate::base::lock::lock;
use crate::config::Serve;
use crate::figures::board::Board;
use crate::verb::web::cors::Cors;
use crate::verb::web::tokens::TokenFile;

pub struct House {
    pub config: Serve,
    pub endpoints: Vec<Endpoint>,
    described: Vec<Described>,
    /// The ledger can be read: tags and Rowmill-After are possible.
    pub has_ledger: bool,
    /// `None` where everybody may ask.
    pub tokens: Option<Arc<TokenFile>>,
    pub cors: Cors,
    pub figures: Arc<Figures>,
    pub board: Arc<Board>,
    openapi: RwLock<Arc<String>>,
    /// Counts what was written here: an answer from before a write is nobody's who asks after it.
    pub writes: AtomicU64,
    /// Of answers that are faults, so that the log can be searched.
    faults: AtomicU64,
}

impl House {
    #[expect(clippy::too_many_arguments, reason = "each of them is made elsewhere, once")]
    pub fn new(
        config: Serve,
        endpoints: Vec<Endpoint>,
        described: Vec<Result<Arc<Description>, String>>,
        has_ledger: bool,
        tokens: Option<Arc<TokenFile>>,
        cors: Cors,
        figures: Arc<Figures>,
        board: Arc<Board>,
    ) -> House {
        let house = House {
            config,
            endpoints,
            described: described.into_iter().map(Described::new).collect(),
            has_ledger,
            tokens,
            cors,
            figures,
            board,
            openapi: RwLock::default(),
            writes: AtomicU64::new(0),
            faults: AtomicU64::new(0),
        };
        house.write_openapi();
        house
    }

    /// What is known of an endpoint's statement, and which edition of it that is; an error where it fits no tables.
    pub fn description(&self, endpoint: usize) -> (Result<Arc<Description>, String>, u64) {
        let described = &self.described[endpoint];
        (lock(&described.is).clone(), described.version.load(Relaxed))
    }

    /// The server said something new.
    pub fn describe(&self, endpoint: usize, is: Result<Arc<Description>, String>) {
        let described = &self.described[endpoint];
        let name = &self.endpoints[endpoint].name;
        let before = std::mem::replace(&mut *lock(&described.is), is.clone());
        match (&before, &is) {
            (Err(_), Ok(_)) => log::info!("endpoint {name:?} fits its tables again"),
            (_, Err(error)) if before.as_ref().err() != Some(error) => {
                log::error!("endpoint {name:?} is answered with 503, the others are not concerned: {error}")
            }
            _ => {}
        }
        described.version.fetch_add(1, Relaxed);
        self.write_openapi();
    }

    /// True if the server should be asked what an endpoint's statement is now.
    pub fn wants_description(&self, endpoint: usize) -> bool {
        self.described[endpoint].is_due()
    }

    fn write_openapi(&self) {
        let described: Vec<_> = (0..self.endpoints.len()).map(|n| self.description(n).0.ok()).collect();
        let text = openapi::document(&self.config, &self.endpoints, &described, self.has_ledger).to_string();
        if let Ok(mut openapi) = self.openapi.write() {
            *openapi = Arc::new(text);
        }
    }

    pub fn openapi(&self) -> Arc<String> {
        self.openapi.read().map(|text| text.clone()).unwrap_or_default()
    }

    /// A name for one fault, for the answer and for the log.
    pub fn fault_id(&self) -> String {
        let number = self.faults.fetch_add(1, Relaxed);
        format!("{:x}-{number:x}", std::process::id())
    }
}

/// Milliseconds between two questions for one endpoint.
const ASK_AGAIN_MS: u64 = 2000;

/// What the server says of one endpoint; replaced as a whole.
#[derive(Debug)]
struct Described {
    is: Mutex<Result<Arc<Description>, String>>,
    /// Counts up with each description: statements are named by it.
    version: AtomicU64,
    asked_ms: AtomicU64,
    born: Instant,
}

impl Described {
    fn new(is: Result<Arc<Description>, String>) -> Described {
        Described {
            is: Mutex::new(is),
            version: AtomicU64::new(0),
            asked_ms: AtomicU64::new(0),
            born: Instant::now(),
        }
    }

    /// True if it is time to ask again.
    fn is_due(&self) -> bool {
        let now = self.born.elapsed().as_millis() as u64 + ASK_AGAIN_MS;
        let before = self.asked_ms.load(Relaxed);
        now >= before + ASK_AGAIN_MS && self.asked_ms.compare_exchange(before, now, Relaxed, Relaxed).is_ok()
    }
}
