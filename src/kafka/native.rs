//! librdkafka calls that the safe binding does not have: taking many records at once, topic ids, the cached log end.
//! The crate's only unsafe code; every block says why it is sound.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rdkafka::consumer::Consumer as _;
use rdkafka_sys as sys;
use sys::rd_kafka_resp_err_t;

use super::Consumer;
use crate::promise::batch::Headers;

/// The consumer's queue, from which whole batches are taken: a third less CPU than one poll a record (measured: 0.56
/// against 0.85 CPU-seconds per million).
pub struct Queue {
    /// Declared before the consumer, so that they are destroyed first.
    queue: QueueHandle,
    /// The client's log. Left to itself, the batch call would print it to standard error.
    log: QueueHandle,
    consumer: Consumer,
    buffer: Vec<*mut sys::rd_kafka_message_t>,
}

struct QueueHandle(*mut sys::rd_kafka_queue_t);

impl Drop for QueueHandle {
    fn drop(&mut self) {
        // SAFETY: the handle came from rd_kafka_queue_get_consumer or rd_kafka_queue_new and is destroyed once.
        unsafe { sys::rd_kafka_queue_destroy(self.0) }
    }
}

// SAFETY: librdkafka handles may be used from any thread; the buffer is empty between calls.
unsafe impl Send for Queue {}

/// One record or one partition's error, alive until [`Queue::take`] returns.
pub struct Message<'a> {
    raw: *mut sys::rd_kafka_message_t,
    lives: PhantomData<&'a ()>,
}

impl Queue {
    pub fn new(consumer: Consumer, records_max: usize) -> Result<Queue> {
        // SAFETY: the client pointer is valid while `consumer` lives, and `consumer` moves into the struct.
        let queue = unsafe { sys::rd_kafka_queue_get_consumer(consumer.client().native_ptr()) };
        if queue.is_null() {
            bail!("librdkafka has no consumer queue");
        }
        // SAFETY: as above; the client holds a reference of its own to the queue.
        let log = unsafe {
            let log = sys::rd_kafka_queue_new(consumer.client().native_ptr());
            sys::rd_kafka_set_log_queue(consumer.client().native_ptr(), log);
            log
        };
        Ok(Queue {
            queue: QueueHandle(queue),
            log: QueueHandle(log),
            consumer,
            buffer: vec![ptr::null_mut(); records_max],
        })
    }

    /// Passes on what the client has to say.
    pub fn serve_log(&self) {
        loop {
            // SAFETY: the queue is alive; an event is destroyed when its handle is dropped.
            let event = unsafe { sys::rd_kafka_queue_poll(self.log.0, 0) };
            if event.is_null() {
                return;
            }
            let event = Event(event);
            let (mut facility, mut text, mut level) = (ptr::null::<c_char>(), ptr::null::<c_char>(), 0);
            // SAFETY: out-parameters that live as long as the event, valid when the call returns 0.
            unsafe {
                if sys::rd_kafka_event_log(event.0, &raw mut facility, &raw mut text, &raw mut level) == 0 {
                    let (facility, text) = (CStr::from_ptr(facility), CStr::from_ptr(text));
                    self.consumer.context().say(level, &facility.to_string_lossy(), &text.to_string_lossy());
                }
            }
        }
    }

    pub fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Waits up to `timeout` for the first record, takes all that are there with it, and shows each to `see`. Returns
    /// how many there were.
    ///
    /// The batch call would wait for the whole timeout to fill its buffer, so it is called twice: for one record, and
    /// without waiting for the rest.
    pub fn take(&mut self, timeout: Duration, mut see: impl FnMut(&Message<'_>)) -> usize {
        let mut count = self.call(0, 1, timeout.as_millis() as c_int);
        if count > 0 {
            count += self.call(1, self.buffer.len() - 1, 0);
        }
        for raw in &mut self.buffer[..count] {
            see(&Message { raw: *raw, lives: PhantomData });
            // SAFETY: librdkafka gave this message to us, nobody else has it, and `see` could not keep it.
            unsafe { sys::rd_kafka_message_destroy(*raw) };
            *raw = ptr::null_mut();
        }
        count
    }

    fn call(&mut self, at: usize, count: usize, timeout_ms: c_int) -> usize {
        // SAFETY: the buffer has room for `count` pointers from `at` on, and the queue is alive.
        let got = unsafe {
            sys::rd_kafka_consume_batch_queue(self.queue.0, timeout_ms, self.buffer[at..].as_mut_ptr(), count)
        };
        usize::try_from(got).unwrap_or(0)
    }

    /// The end of a partition's log as the last fetch told; `None` before the first.
    pub fn log_end(&self, topic: &str, partition: i32) -> Option<i64> {
        let topic = CString::new(topic).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: plain out-parameters, read after the call.
        let code = unsafe {
            sys::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                topic.as_ptr(),
                partition,
                &raw mut low,
                &raw mut high,
            )
        };
        (code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
    }
}

impl<'a> Message<'a> {
    fn fields(&self) -> &'a sys::rd_kafka_message_t {
        // SAFETY: the message is alive while `self` is, and its fields do not change.
        unsafe { &*self.raw }
    }

    /// The error that this message stands for, with librdkafka's words.
    pub fn error(&self) -> Option<(rd_kafka_resp_err_t, String)> {
        let code = self.fields().err;
        if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return None;
        }
        // SAFETY: errstr points into the message or at a constant.
        let text = unsafe { CStr::from_ptr(sys::rd_kafka_message_errstr(self.raw)) };
        Some((code, text.to_string_lossy().into_owned()))
    }

    /// Identifies the topic among the messages of one [`Queue::take`]: equal numbers, equal topics.
    pub fn topic_number(&self) -> usize {
        self.fields().rkt as usize
    }

    /// The topic's name; `None` for an error that belongs to no topic.
    pub fn topic(&self) -> Option<&'a CStr> {
        let topic = self.fields().rkt;
        // SAFETY: the message holds a reference to its topic.
        (!topic.is_null()).then(|| unsafe { CStr::from_ptr(sys::rd_kafka_topic_name(topic)) })
    }

    pub fn partition(&self) -> i32 {
        self.fields().partition
    }

    pub fn offset(&self) -> i64 {
        self.fields().offset
    }

    pub fn key(&self) -> Option<&'a [u8]> {
        // SAFETY: librdkafka's pointer and length of the key, alive with the message.
        unsafe { slice(self.fields().key, self.fields().key_len) }
    }

    pub fn value(&self) -> Option<&'a [u8]> {
        // SAFETY: as for the key.
        unsafe { slice(self.fields().payload, self.fields().len) }
    }

    /// Milliseconds since 1970, if the record has a timestamp.
    pub fn timestamp_ms(&self) -> Option<i64> {
        let mut kind = sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: a read of the message's fields.
        let ms = unsafe { sys::rd_kafka_message_timestamp(self.raw, &raw mut kind) };
        (kind != sys::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE).then_some(ms)
    }

    /// Appends the record's headers to `arena`.
    pub fn headers(&self, arena: &mut Vec<u8>) {
        if self.has_no_headers() {
            debug_assert!(self.header_list().is_none(), "the wire format says so");
            return;
        }
        let Some(headers) = self.header_list() else { return };
        for index in 0.. {
            let (mut name, mut value, mut size) = (ptr::null::<c_char>(), ptr::null::<c_void>(), 0usize);
            // SAFETY: out-parameters, valid when the call says so.
            let code = unsafe {
                sys::rd_kafka_header_get_all(headers, index, &raw mut name, &raw mut value, &raw mut size)
            };
            if code != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            // SAFETY: a terminated name, and a value of `size` bytes or null.
            unsafe { Headers::append(arena, CStr::from_ptr(name).to_bytes(), slice(value, size)) };
        }
    }

    /// True if the record surely has none. Asking librdkafka makes and frees a buffer for every record, which was a tenth
    /// of the engine's time. In Kafka's record format v2 (the only one with a leader epoch and with headers) the headers
    /// follow the value, their number first, and librdkafka's values stand in the fetched bytes as they came:
    /// <https://kafka.apache.org/documentation/#record>.
    fn has_no_headers(&self) -> bool {
        let fields = self.fields();
        // SAFETY: a read of the message's fields.
        let epoch = unsafe { sys::rd_kafka_message_leader_epoch(self.raw) };
        if epoch < 0 || fields.payload.is_null() || fields.len == 0 {
            return false;
        }
        // SAFETY: format v2, so that at least one byte of the same record, in the same buffer, follows the value.
        unsafe { *fields.payload.cast::<u8>().add(fields.len) == 0 }
    }

    fn header_list(&self) -> Option<*mut sys::rd_kafka_headers_t> {
        let mut headers = ptr::null_mut();
        // SAFETY: the message owns the header list; it lives as long as the message.
        let code = unsafe { sys::rd_kafka_message_headers(self.raw, &raw mut headers) };
        (code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).then_some(headers)
    }
}

/// # Safety
/// `start` is null or points at `length` bytes that live for `'a`.
unsafe fn slice<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    // SAFETY: promised by the caller.
    (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start.cast::<u8>(), length) })
}

/// A topic as the controller describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    /// The id, or why there is none: the topic does not exist, or may not be described.
    pub id: Result<String, String>,
    /// What this user may do with it. Brokers without an authorizer allow everything.
    pub rights: Rights,
}

/// Rights on a topic, as far as they matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    pub read: bool,
    pub describe_configs: bool,
}

impl Description {
    /// The sentence for a topic that may be seen and not read. Without it nobody would know: librdkafka goes on asking for the
    /// records, and is refused each time.
    pub fn unreadable(&self) -> Option<String> {
        (self.id.is_ok() && !self.rights.read).then(|| {
            format!("topic {:?}: this user may describe it and not read it; allow Read on it", self.name)
        })
    }
}

/// DescribeTopics: the ids change when a topic is deleted and created again under its name.
pub fn describe_topics(consumer: &Consumer, names: &[&str], timeout: Duration) -> Result<Vec<Description>> {
    let names: Vec<CString> =
        names.iter().map(|n| CString::new(*n)).collect::<Result<_, _>>().context("a topic name holds NUL")?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|n| n.as_ptr()).collect();
    // SAFETY: the collection copies the names.
    let topics =
        unsafe { sys::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
    let event = Event::request(
        consumer,
        sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS,
        timeout,
        |rk, options, queue| {
            // SAFETY: all handles are alive for the call. The option is valid for this request, so there is no error to free.
            unsafe {
                sys::rd_kafka_AdminOptions_set_include_authorized_operations(options, 1);
                sys::rd_kafka_DescribeTopics(rk, topics, options, queue);
            }
        },
    );
    // SAFETY: made above, used up by the call.
    unsafe { sys::rd_kafka_TopicCollection_destroy(topics) };
    let event = event.context("cannot describe the topics")?;
    let mut count = 0;
    // SAFETY: the result and what it points at live as long as the event; `count` is its length.
    unsafe {
        let result = sys::rd_kafka_event_DescribeTopics_result(event.0);
        let list = sys::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
        Ok((0..count).map(|i| description(*list.add(i))).collect())
    }
}

/// # Safety
/// `topic` is a live description.
unsafe fn description(topic: *const sys::rd_kafka_TopicDescription_t) -> Description {
    // SAFETY: promised by the caller; strings are terminated and live with the description.
    unsafe {
        let name = CStr::from_ptr(sys::rd_kafka_TopicDescription_name(topic)).to_string_lossy().into_owned();
        let error = sys::rd_kafka_TopicDescription_error(topic);
        if !error.is_null()
            && sys::rd_kafka_error_code(error) != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
        {
            let words = CStr::from_ptr(sys::rd_kafka_error_string(error)).to_string_lossy().into_owned();
            return Description { name, id: Err(words), rights: Rights::default() };
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let text = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(id)).to_string_lossy().into_owned();
        let mut count = 0;
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        // A broker that says nothing about rights has refused nothing.
        let may = |right| operations.is_null() || (0..count).any(|i| *operations.add(i) == right);
        let rights = Rights {
            read: may(sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            describe_configs: may(sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS),
        };
        Description { name, id: Ok(text), rights }
    }
}

/// True if the topic's `cleanup.policy` has compaction in it, which may take any record away.
pub fn is_compacted(consumer: &Consumer, topic: &str, timeout: Duration) -> Result<bool> {
    let name = CString::new(topic).context("a topic name holds NUL")?;
    // SAFETY: the resource copies the name.
    let resource = unsafe {
        sys::rd_kafka_ConfigResource_new(sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name.as_ptr())
    };
    let mut resources = [resource];
    let event = Event::request(
        consumer,
        sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS,
        timeout,
        |rk, options, queue| {
            // SAFETY: all handles are alive for the call.
            unsafe { sys::rd_kafka_DescribeConfigs(rk, resources.as_mut_ptr(), 1, options, queue) }
        },
    );
    // SAFETY: made above, used up by the call.
    unsafe { sys::rd_kafka_ConfigResource_destroy(resource) };
    let event = event.with_context(|| format!("cannot read the configuration of topic {topic:?}"))?;
    // SAFETY: the lists and strings live as long as the event; the counts are their lengths.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConfigs_result(event.0);
        let (mut resource_count, mut entry_count) = (0, 0);
        let resources = sys::rd_kafka_DescribeConfigs_result_resources(result, &raw mut resource_count);
        if resource_count == 0 {
            bail!("the broker described no configuration of topic {topic:?}");
        }
        let entries = sys::rd_kafka_ConfigResource_configs(*resources, &raw mut entry_count);
        for i in 0..entry_count {
            let entry = *entries.add(i);
            let value = sys::rd_kafka_ConfigEntry_value(entry);
            if CStr::from_ptr(sys::rd_kafka_ConfigEntry_name(entry)).to_bytes() == b"cleanup.policy"
                && !value.is_null()
            {
                return Ok(CStr::from_ptr(value).to_string_lossy().contains("compact"));
            }
        }
        bail!("the configuration of topic {topic:?} may not be read; allow DescribeConfigs on it")
    }
}

/// An admin request's answer.
struct Event(*mut sys::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event came from rd_kafka_queue_poll and is destroyed once.
        unsafe { sys::rd_kafka_event_destroy(self.0) }
    }
}

impl Event {
    /// Sends one admin request and waits for its answer.
    fn request(
        consumer: &Consumer,
        operation: sys::rd_kafka_admin_op_t,
        timeout: Duration,
        send: impl FnOnce(*mut sys::rd_kafka_t, *mut sys::rd_kafka_AdminOptions_t, *mut sys::rd_kafka_queue_t),
    ) -> Result<Event> {
        let client = consumer.client().native_ptr();
        let timeout_ms = timeout.as_millis() as c_int;
        // SAFETY: a queue of our own, so that the answer does not mix with records; options are destroyed after use, the
        // queue when the handle is dropped, after the event was taken from it.
        unsafe {
            let queue = QueueHandle(sys::rd_kafka_queue_new(client));
            let options = sys::rd_kafka_AdminOptions_new(client, operation);
            sys::rd_kafka_AdminOptions_set_request_timeout(options, timeout_ms, ptr::null_mut(), 0);
            send(client, options, queue.0);
            sys::rd_kafka_AdminOptions_destroy(options);
            let event = sys::rd_kafka_queue_poll(queue.0, timeout_ms + 1000);
            if event.is_null() {
                bail!("the brokers did not answer within {timeout_ms} ms");
            }
            let event = Event(event);
            if sys::rd_kafka_event_error(event.0) != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                bail!("{}", CStr::from_ptr(sys::rd_kafka_event_error_string(event.0)).to_string_lossy());
            }
            Ok(event)
        }
    }
}
