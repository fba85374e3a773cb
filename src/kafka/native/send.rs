//! Sending with one call a record and hearing of many records with one: what the safe binding has no words for is that a
//! delivery report knows whether a failed record may be stored all the same, and that reports can ring a descriptor.

use std::ffi::{CStr, CString, c_void};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use anyhow::{Context, Result, bail};
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka_sys as sys;
use sys::rd_kafka_resp_err_t as Code;

use super::QueueHandle;
use crate::kafka::ClientLog;

/// The client, with its queue of reports.
pub struct Sender {
    /// Declared before the client, so that they are destroyed first.
    topics: Vec<TopicHandle>,
    queue: QueueHandle,
    producer: BaseProducer<ClientLog>,
}

struct TopicHandle(*mut sys::rd_kafka_topic_t);

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: the handle came from rd_kafka_topic_new and is destroyed once.
        unsafe { sys::rd_kafka_topic_destroy(self.0) }
    }
}

/// What became of one record.
pub struct Report<'a> {
    /// As given to [`Sender::send`].
    pub tag: u64,
    pub result: Result<Place, Failed>,
    /// The record's value and key, which are freed after this.
    pub value: &'a [u8],
    pub key: Option<&'a [u8]>,
    raw: *const sys::rd_kafka_message_t,
}

impl<'a> Report<'a> {
    /// The value of the record's last header of this name.
    pub fn header(&self, name: &CStr) -> Option<&'a [u8]> {
        let (mut headers, mut value, mut size) = (ptr::null_mut(), ptr::null::<c_void>(), 0);
        // SAFETY: the message is alive while the report is, and owns its headers; out-parameters are read where the call says
        // that they are valid.
        unsafe {
            if sys::rd_kafka_message_headers(self.raw, &raw mut headers) != Code::RD_KAFKA_RESP_ERR_NO_ERROR
                || sys::rd_kafka_header_get_last(headers, name.as_ptr(), &raw mut value, &raw mut size)
                    != Code::RD_KAFKA_RESP_ERR_NO_ERROR
            {
                return None;
            }
            super::slice(value, size)
        }
    }
}

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub partition: i32,
    pub offset: i64,
}

/// A record that was not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failed {
    pub code: Code,
    /// It was sent, and nobody knows whether a broker has it.
    pub may_be_stored: bool,
}

impl Failed {
    /// A broker refused the batch that the record was in, for one of its records, and stored none of it.
    pub fn is_too_large(self) -> bool {
        self.code == Code::RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE && !self.may_be_stored
    }

    /// librdkafka's words for it.
    pub fn words(self) -> String {
        words(self.code)
    }
}

/// librdkafka's words for one of its errors.
pub fn words(code: Code) -> String {
    // SAFETY: a pointer at a constant, for every code.
    unsafe { CStr::from_ptr(sys::rd_kafka_err2str(code)) }.to_string_lossy().into_owned()
}

impl Sender {
    /// Each of `topics` is spoken of by its place in the list from now on. `ring` is written to (eight bytes, as an eventfd
    /// takes them) whenever the first report comes into an empty queue; it has to live as long as this.
    ///
    /// # Errors
    /// Where a topic's name is none.
    pub fn new(producer: BaseProducer<ClientLog>, topics: &[&str], ring: BorrowedFd<'_>) -> Result<Sender> {
        let client = producer.client().native_ptr();
        let mut handles = Vec::with_capacity(topics.len());
        for topic in topics {
            let name = CString::new(*topic).context("a topic name holds NUL")?;
            // SAFETY: the client is alive, and moves into the struct; without a configuration the client's own is taken.
            let handle = unsafe { sys::rd_kafka_topic_new(client, name.as_ptr(), ptr::null_mut()) };
            if handle.is_null() {
                bail!("librdkafka does not take the topic {topic:?}");
            }
            handles.push(TopicHandle(handle));
        }
        let one = 1u64.to_ne_bytes();
        // SAFETY: the client is alive; librdkafka copies the bytes.
        let queue = unsafe {
            let queue = QueueHandle(sys::rd_kafka_queue_get_main(client));
            sys::rd_kafka_queue_io_event_enable(queue.0, ring.as_raw_fd(), one.as_ptr().cast(), one.len());
            queue
        };
        // What came into the queue before now rang for nobody, and nothing that comes after it would: it is not empty.
        nix::unistd::write(ring, &one).context("ringing once for what the client has said already")?;
        Ok(Sender { topics: handles, queue, producer })
    }

    pub fn client(&self) -> &BaseProducer<ClientLog> {
        &self.producer
    }

    /// Puts a record in the client's queue. It copies everything, never waits, and reports the record later, once, whatever
    /// becomes of it; unless it refuses it here.
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
        use sys::rd_kafka_vtype_t::*;
        let memory = |bytes: &[u8]| sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 {
            ptr: bytes.as_ptr().cast::<c_void>().cast_mut(),
            size: bytes.len(),
        };
        let mut fields = [sys::rd_kafka_vu_t {
            vtype: RD_KAFKA_VTYPE_RKT,
            u: sys::rd_kafka_vu_s__bindgen_ty_1 { rkt: self.topics[topic].0 },
        }; 6];
        let mut count = 1;
        let mut add = |vtype, u| {
            fields[count] = sys::rd_kafka_vu_t { vtype, u };
            count += 1;
        };
        type Field = sys::rd_kafka_vu_s__bindgen_ty_1;
        add(RD_KAFKA_VTYPE_MSGFLAGS, Field { i: sys::RD_KAFKA_MSG_F_COPY });
        add(RD_KAFKA_VTYPE_VALUE, Field { mem: memory(value) });
        add(RD_KAFKA_VTYPE_OPAQUE, Field { ptr: tag as usize as *mut c_void });
        if let Some(key) = key {
            add(RD_KAFKA_VTYPE_KEY, Field { mem: memory(key) });
        }
        if let Some((name, value)) = header {
            let header = sys::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_2 {
                name: name.as_ptr(),
                val: value.as_ptr().cast(),
                size: value.len() as isize,
            };
            add(RD_KAFKA_VTYPE_HEADER, Field { header });
        }
        // SAFETY: `count` fields are filled, each with the member that its type says; librdkafka copies what they point at.
        unsafe {
            let error = sys::rd_kafka_produceva(self.producer.client().native_ptr(), fields.as_ptr(), count);
            if error.is_null() {
                return Ok(());
            }
            let code = sys::rd_kafka_error_code(error);
            sys::rd_kafka_error_destroy(error);
            Err(code)
        }
    }

    /// Shows every report that is there, without waiting, and passes on what the client has to say.
    pub fn reports(&self, mut see: impl FnMut(&Report<'_>)) {
        loop {
            // SAFETY: the queue is alive; an event is destroyed below.
            let event = unsafe { sys::rd_kafka_queue_poll(self.queue.0, 0) };
            if event.is_null() {
                return;
            }
            let event = super::Event(event);
            // SAFETY: a read of the event.
            match unsafe { sys::rd_kafka_event_type(event.0) } {
                sys::RD_KAFKA_EVENT_DR => each(&event, &mut see),
                sys::RD_KAFKA_EVENT_ERROR => self.complaint(&event),
                sys::RD_KAFKA_EVENT_LOG => super::say_log(&event, self.producer.context()),
                _ => {}
            }
        }
    }

    fn complaint(&self, event: &super::Event) {
        use rdkafka::ClientContext as _;
        // SAFETY: reads of the event, whose words live as long as it.
        let (code, text) = unsafe {
            let text = CStr::from_ptr(sys::rd_kafka_event_error_string(event.0));
            (sys::rd_kafka_event_error(event.0), text.to_string_lossy().into_owned())
        };
        self.producer.context().error(rdkafka::error::KafkaError::Global(code.into()), text.trim());
    }

    /// Why this client can never send again, if so. It reports what it was given all the same.
    pub fn fatal(&self) -> Option<String> {
        let mut text = [0u8; 512];
        // SAFETY: the client is alive; the call writes a C string of at most so many bytes.
        let code = unsafe {
            sys::rd_kafka_fatal_error(
                self.producer.client().native_ptr(),
                text.as_mut_ptr().cast(),
                text.len(),
            )
        };
        let why =
            || CStr::from_bytes_until_nul(&text).map(CStr::to_string_lossy).unwrap_or_default().into_owned();
        (code != Code::RD_KAFKA_RESP_ERR_NO_ERROR).then(why)
    }

    /// Records that were taken and not reported yet.
    pub fn in_flight(&self) -> usize {
        // SAFETY: the client is alive.
        let count = unsafe { sys::rd_kafka_outq_len(self.producer.client().native_ptr()) };
        usize::try_from(count).unwrap_or(0)
    }
}

fn each(event: &super::Event, see: &mut impl FnMut(&Report<'_>)) {
    loop {
        // SAFETY: the event is alive, and gives each of its messages once.
        let message = unsafe { sys::rd_kafka_event_message_next(event.0) };
        if message.is_null() {
            return;
        }
        // SAFETY: the message lives as long as the event.
        let fields = unsafe { &*message };
        let result = if fields.err == Code::RD_KAFKA_RESP_ERR_NO_ERROR {
            Ok(Place { partition: fields.partition, offset: fields.offset })
        } else {
            // SAFETY: a read of the message.
            let status = unsafe { sys::rd_kafka_message_status(message) };
            let is_not = sys::rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED;
            Err(Failed { code: fields.err, may_be_stored: status != is_not })
        };
        // SAFETY: pointer and length of value and key, alive with the message.
        let (value, key) =
            unsafe { (super::slice(fields.payload, fields.len), super::slice(fields.key, fields.key_len)) };
        see(&Report {
            tag: fields._private as usize as u64,
            result,
            value: value.unwrap_or_default(),
            key,
            raw: message,
        });
    }
}
