//! A sender that is replaced where it can never send again: a right that came late, or a producer id that is lost.

use std::cell::{Cell, RefCell};
use std::ffi::CStr;
use std::time::{Duration, Instant};

use anyhow::Result;
use rdkafka_sys::rd_kafka_resp_err_t as Code;

use super::native::send::{Report, Sender};

/// Between two clients: what ended the last one may take a while to be mended.
const RENEW: Duration = Duration::from_secs(1);

/// A [`Sender`] that is replaced when it can never send again.
pub struct Lasting {
    make: Box<dyn Fn() -> Result<Sender>>,
    sender: RefCell<Sender>,
    made: Cell<Instant>,
}

impl Lasting {
    /// # Errors
    /// Where the first one cannot be made.
    pub fn new(make: impl Fn() -> Result<Sender> + 'static) -> Result<Lasting> {
        let sender = RefCell::new(make()?);
        Ok(Lasting { make: Box::new(make), sender, made: Cell::new(Instant::now()) })
    }

    /// As [`Sender::send`].
    ///
    /// # Errors
    /// The client's reason; the record is not sent then.
    pub fn send(
        &self,
        topic: usize,
        key: Option<&[u8]>,
        value: &[u8],
        header: Option<(&CStr, &[u8])>,
        tag: u64,
    ) -> Result<(), Code> {
        self.sender.borrow().send(topic, key, value, header, tag)
    }

    /// As [`Sender::reports`].
    pub fn reports(&self, see: impl FnMut(&Report<'_>)) {
        self.sender.borrow().reports(see);
    }

    /// Puts a new client in the place of one that can never send again, once that has reported everything: what it had under way
    /// is decided by it alone, and is never sent by another.
    pub fn renew(&self) {
        let fatal = {
            let sender = self.sender.borrow();
            sender.fatal().filter(|_| sender.in_flight() == 0)
        };
        let Some(why) = fatal.filter(|_| self.made.get().elapsed() >= RENEW) else { return };
        self.made.set(Instant::now());
        match (self.make)() {
            Ok(sender) => {
                log::warn!("the Kafka client could never send again ({why}), so there is a new one");
                self.sender.replace(sender);
            }
            Err(error) => log::warn!("{error:#}; trying again every second"),
        }
    }
}
