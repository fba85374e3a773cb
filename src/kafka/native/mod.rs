//! librdkafka calls that the safe binding does not have: taking many records at once, topic ids, the cached log end; and the calls
//! in which librdkafka unpacks a batch, which come to [`unpack`] instead.
//! The crate's only unsafe code; every block says why it is sound.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ops::ControlFlow;
use std::ptr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka_sys as sys;
use sys::rd_kafka_resp_err_t;

pub mod send;

use super::Consumer;
use super::unpack::{self, Codec, HEADER_BYTES};
use crate::promise::batch::Headers;

/// The consumer's queue, from which whole batches are taken: a third less CPU than one poll a record (measured: 0.56
/// against 0.85 CPU-seconds per million).
pub struct Queue {
    /// Declared before the consumer, so that they are destroyed first.
    queue: QueueHandle,
    /// The client's log. Left to itself, the batch call would print it to standard error.
    log: QueueHandle,
    /// The same holds for messages, which hold references to the client's queues.
    taken: Taken,
    consumer: Consumer,
}

/// Messages that were taken at once, and how many of them were shown.
struct Taken {
    buffer: Vec<*mut sys::rd_kafka_message_t>,
    shown: usize,
    count: usize,
}

impl Drop for Taken {
    fn drop(&mut self) {
        for raw in &self.buffer[self.shown..self.count] {
            // SAFETY: librdkafka gave this message to us, and it was not shown yet, after which it is destroyed.
            unsafe { sys::rd_kafka_message_destroy(*raw) };
        }
    }
}

struct QueueHandle(*mut sys::rd_kafka_queue_t);

impl Drop for QueueHandle {
    fn drop(&mut self) {
        // SAFETY: the handle came from rd_kafka_queue_get_consumer or rd_kafka_queue_new and is destroyed once.
        unsafe { sys::rd_kafka_queue_destroy(self.0) }
    }
}

// SAFETY: librdkafka handles and messages may be used from any thread, by one at a time.
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
            taken: Taken { buffer: vec![ptr::null_mut(); records_max], shown: 0, count: 0 },
            consumer,
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
            say_log(&Event(event), self.consumer.context());
        }
    }

    pub fn consumer(&self) -> &Consumer {
        &self.consumer
    }

    /// Waits up to `timeout` for the first record, takes all that are there with it, and shows each to `see`, until that breaks
    /// off: then the next call goes on behind the last one that was shown.
    ///
    /// The batch call would wait for the whole timeout to fill its buffer, so it is called twice: for one record, and
    /// without waiting for the rest.
    pub fn take(&mut self, timeout: Duration, mut see: impl FnMut(&Message<'_>) -> ControlFlow<()>) {
        if self.taken.shown == self.taken.count {
            self.taken.shown = 0;
            self.taken.count = self.call(0, 1, timeout.as_millis() as c_int);
            if self.taken.count > 0 {
                self.taken.count += self.call(1, self.taken.buffer.len() - 1, 0);
            }
        }
        while self.taken.shown < self.taken.count {
            let raw = self.taken.buffer[self.taken.shown];
            let flow = see(&Message { raw, lives: PhantomData });
            self.taken.shown += 1;
            // SAFETY: librdkafka gave this message to us, nobody else has it, and `see` could not keep it.
            unsafe { sys::rd_kafka_message_destroy(raw) };
            if flow.is_break() {
                return;
            }
        }
    }

    fn call(&mut self, at: usize, count: usize, timeout_ms: c_int) -> usize {
        // SAFETY: the buffer has room for `count` pointers from `at` on, and the queue is alive.
        let got = unsafe {
            let buffer = self.taken.buffer[at..].as_mut_ptr();
            sys::rd_kafka_consume_batch_queue(self.queue.0, timeout_ms, buffer, count)
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

/// Passes on one line of the client's log.
fn say_log(event: &Event, context: &super::ClientLog) {
    let (mut facility, mut text, mut level) = (ptr::null::<c_char>(), ptr::null::<c_char>(), 0);
    // SAFETY: out-parameters that live as long as the event, valid when the call returns 0.
    unsafe {
        if sys::rd_kafka_event_log(event.0, &raw mut facility, &raw mut text, &raw mut level) == 0 {
            let (facility, text) = (CStr::from_ptr(facility), CStr::from_ptr(text));
            context.say(level, &facility.to_string_lossy(), &text.to_string_lossy());
        }
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
    pub partitions: i32,
    /// What this user may do with it. Brokers without an authorizer allow everything.
    pub rights: Rights,
}

/// Rights on a topic, as far as they matter here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    pub read: bool,
    pub write: bool,
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
            return Description { name, id: Err(words), partitions: 0, rights: Rights::default() };
        }
        let id = sys::rd_kafka_TopicDescription_topic_id(topic);
        let text = CStr::from_ptr(sys::rd_kafka_Uuid_base64str(id)).to_string_lossy().into_owned();
        let (mut count, mut partitions) = (0, 0);
        sys::rd_kafka_TopicDescription_partitions(topic, &raw mut partitions);
        let operations = sys::rd_kafka_TopicDescription_authorized_operations(topic, &raw mut count);
        // A broker that says nothing about rights has refused nothing.
        let may = |right| operations.is_null() || (0..count).any(|i| *operations.add(i) == right);
        let rights = Rights {
            read: may(sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
            write: may(sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
            describe_configs: may(sys::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_DESCRIBE_CONFIGS),
        };
        Description { name, id: Ok(text), partitions: partitions as i32, rights }
    }
}

/// Which offset of a log is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    First,
    /// The one that the next record will get, as far as this consumer may read.
    End,
    /// The first record at or after a time, in milliseconds since 1970 UTC.
    At(i64),
}

/// A partition by its topic's name.
pub type Named<'a> = (&'a str, i32);

/// Partitions of one request: librdkafka compares each answer with all questions.
const OFFSETS_AT_ONCE: usize = 500;

/// One offset of each of these logs, all asked together, in the order of the question. `None`: there is no such offset.
/// `committed`: records of open transactions are not counted.
///
/// # Errors
/// Inside, where a partition has no answer; outside, where none has.
pub fn list_offsets(
    consumer: &Consumer,
    partitions: &[Named<'_>],
    which: Which,
    committed: bool,
    timeout: Duration,
) -> Result<Vec<Result<Option<i64>, KafkaError>>> {
    let mut found = Vec::with_capacity(partitions.len());
    for some in partitions.chunks(OFFSETS_AT_ONCE) {
        found.extend(list_some_offsets(consumer, some, which, committed, timeout)?);
    }
    Ok(found)
}

fn list_some_offsets(
    consumer: &Consumer,
    partitions: &[Named<'_>],
    which: Which,
    committed: bool,
    timeout: Duration,
) -> Result<Vec<Result<Option<i64>, KafkaError>>> {
    let spec = match which {
        Which::First => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_EARLIEST as i64,
        Which::End => sys::rd_kafka_OffsetSpec_t::RD_KAFKA_OFFSET_SPEC_LATEST as i64,
        Which::At(ms) => ms.max(0),
    };
    let level = if committed {
        sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_COMMITTED
    } else {
        sys::rd_kafka_IsolationLevel_t::RD_KAFKA_ISOLATION_LEVEL_READ_UNCOMMITTED
    };
    let mut list = TopicPartitionList::with_capacity(partitions.len());
    for (topic, partition) in partitions {
        list.add_partition(topic, *partition);
    }
    // SAFETY: the list is ours alone and alive; it has as many elements as it says. The safe binding has no word for a question
    // that is no offset.
    unsafe {
        let raw = &*list.ptr();
        for at in 0..raw.cnt as usize {
            (*raw.elems.add(at)).offset = spec;
        }
    }
    let event = Event::request(
        consumer,
        sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS,
        timeout,
        |rk, options, queue| {
            // SAFETY: all handles are alive for the call, which copies the list. The option is valid for this request, so there
            // is no error to free.
            unsafe {
                sys::rd_kafka_AdminOptions_set_isolation_level(options, level);
                sys::rd_kafka_ListOffsets(rk, list.ptr(), options, queue);
            }
        },
    )
    .context("cannot ask where logs begin and end")?;
    let mut answers: HashMap<(String, i32), Result<Option<i64>, KafkaError>> = HashMap::new();
    let mut count = 0;
    // SAFETY: the result and what it points at live as long as the event; `count` is its length, names are terminated.
    unsafe {
        let result = sys::rd_kafka_event_ListOffsets_result(event.0);
        let infos = sys::rd_kafka_ListOffsets_result_infos(result, &raw mut count);
        for at in 0..count {
            let info = &*sys::rd_kafka_ListOffsetsResultInfo_topic_partition(*infos.add(at));
            let topic = CStr::from_ptr(info.topic).to_string_lossy().into_owned();
            let answer = match info.err {
                rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => {
                    Ok(Some(info.offset).filter(|at| *at >= 0))
                }
                code => Err(KafkaError::OffsetFetch(code.into())),
            };
            answers.insert((topic, info.partition), answer);
        }
    }
    let unanswered = || Err(KafkaError::OffsetFetch(RDKafkaErrorCode::NoOffset));
    let answer = |(topic, partition): &Named<'_>| {
        answers.remove(&((*topic).to_owned(), *partition)).unwrap_or_else(unanswered)
    };
    Ok(partitions.iter().map(answer).collect())
}

/// Of each topic, whether its `cleanup.policy` has compaction in it, which may take any record away; in the order of the
/// question. An error where it may not be asked.
pub fn are_compacted(consumer: &Consumer, topics: &[&str], timeout: Duration) -> Result<Vec<Result<bool>>> {
    let policies = topic_settings(consumer, topics, "cleanup.policy", timeout)?;
    Ok(policies.into_iter().map(|policy| Ok(policy?.contains("compact"))).collect())
}

/// One of each topic's settings as the brokers use it, set or by default; in the order of the question. An error where it may
/// not be asked.
pub fn topic_settings(
    consumer: &Consumer,
    topics: &[&str],
    setting: &str,
    timeout: Duration,
) -> Result<Vec<Result<String>>> {
    let names: Vec<CString> = topics
        .iter()
        .map(|n| CString::new(*n))
        .collect::<Result<_, _>>()
        .context("a topic name holds NUL")?;
    let kind = sys::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC;
    // SAFETY: the resources copy the names.
    let mut resources: Vec<_> =
        names.iter().map(|name| unsafe { sys::rd_kafka_ConfigResource_new(kind, name.as_ptr()) }).collect();
    let event = Event::request(
        consumer,
        sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS,
        timeout,
        |rk, options, queue| {
            // SAFETY: all handles are alive for the call, and there are so many resources.
            unsafe {
                sys::rd_kafka_DescribeConfigs(rk, resources.as_mut_ptr(), resources.len(), options, queue);
            }
        },
    );
    // SAFETY: made above, used up by the call.
    resources.into_iter().for_each(|resource| unsafe { sys::rd_kafka_ConfigResource_destroy(resource) });
    let event = event.context("cannot read the configuration of topics")?;
    let mut values: HashMap<String, String> = HashMap::new();
    // SAFETY: the lists and strings live as long as the event; the counts are their lengths.
    unsafe {
        let result = sys::rd_kafka_event_DescribeConfigs_result(event.0);
        let mut count = 0;
        let resources = sys::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
        for at in 0..count {
            let resource = *resources.add(at);
            let name = CStr::from_ptr(sys::rd_kafka_ConfigResource_name(resource));
            if let Some(value) = value_of(resource, setting) {
                values.insert(name.to_string_lossy().into_owned(), value);
            }
        }
    }
    let unreadable =
        |topic| anyhow!("the configuration of topic {topic:?} may not be read; allow DescribeConfigs on it");
    Ok(topics.iter().map(|topic| values.remove(*topic).ok_or_else(|| unreadable(topic))).collect())
}

/// # Safety
/// `resource` is a live one of a result.
unsafe fn value_of(resource: *const sys::rd_kafka_ConfigResource_t, setting: &str) -> Option<String> {
    let mut count = 0;
    // SAFETY: promised by the caller; strings are terminated and live with the resource, `count` is the list's length.
    unsafe {
        let entries = sys::rd_kafka_ConfigResource_configs(resource, &raw mut count);
        for at in 0..count {
            let entry = *entries.add(at);
            let value = sys::rd_kafka_ConfigEntry_value(entry);
            if CStr::from_ptr(sys::rd_kafka_ConfigEntry_name(entry)).to_bytes() == setting.as_bytes()
                && !value.is_null()
            {
                return Some(CStr::from_ptr(value).to_string_lossy().into_owned());
            }
        }
    }
    None
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

/// What stands in the place of librdkafka's own functions that unpack a batch: build.rs asks the linker for it
/// (`--wrap=rd_gz_decompress` makes a call of that function one of `__wrap_rd_gz_decompress`). They have no bound of their own, and
/// no setting gives them one. Signatures as in rdgz.h, rdkafka_lz4.h, rdkafka_zstd.h and snappy.h of librdkafka 2.12.
mod instead {
    use std::cell::RefCell;
    use std::ffi::{c_char, c_int, c_void};

    use super::{Codec, HEADER_BYTES, ptr, rd_kafka_resp_err_t, sys, unpack};

    /// # Safety
    /// `payload` points at `length` bytes behind a batch's header, or behind a message's of an older format and the response's
    /// before it, in one buffer: librdkafka receives a response into one.
    unsafe fn open(payload: *const c_void, length: usize, codec: Codec) -> Option<Vec<u8>> {
        // SAFETY: promised by the caller.
        let (header, payload) = unsafe {
            let start = payload.cast::<u8>();
            let header = start.sub(HEADER_BYTES).cast::<[u8; HEADER_BYTES]>();
            (header.read_unaligned(), std::slice::from_raw_parts(start, length))
        };
        unpack::open(&header, payload, codec).inspect_err(|broken| log::debug!("kafka: {}", broken.0)).ok()
    }

    /// A copy that librdkafka frees.
    fn given(bytes: &[u8]) -> *mut c_void {
        // SAFETY: librdkafka's malloc, which needs no client and ends the process rather than return null; one byte more, as its own
        // functions have it, since an empty piece of memory may be null.
        unsafe {
            let memory = sys::rd_kafka_mem_malloc(ptr::null_mut(), bytes.len() + 1);
            ptr::copy_nonoverlapping(bytes.as_ptr(), memory.cast::<u8>(), bytes.len());
            memory
        }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_rd_gz_decompress(
        payload: *const c_void,
        length: c_int,
        unpacked_length: *mut u64,
    ) -> *mut c_void {
        // SAFETY: librdkafka's arguments: a payload and its length, and where the other length goes.
        unsafe {
            let Some(bytes) = open(payload, length as usize, Codec::Gzip) else { return ptr::null_mut() };
            *unpacked_length = bytes.len() as u64;
            given(&bytes)
        }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_rd_kafka_lz4_decompress(
        _broker: *mut c_void,
        _is_framed_well: c_int,
        _offset: i64,
        payload: *mut c_char,
        length: usize,
        unpacked: *mut *mut c_void,
        unpacked_length: *mut usize,
    ) -> rd_kafka_resp_err_t {
        // SAFETY: as above.
        unsafe { hand_over(payload.cast(), length, Codec::Lz4, unpacked, unpacked_length) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_rd_kafka_zstd_decompress(
        _broker: *mut c_void,
        payload: *mut c_char,
        length: usize,
        unpacked: *mut *mut c_void,
        unpacked_length: *mut usize,
    ) -> rd_kafka_resp_err_t {
        // SAFETY: as above.
        unsafe { hand_over(payload.cast(), length, Codec::Zstd, unpacked, unpacked_length) }
    }

    /// # Safety
    /// As for [`open`]; and the last two are valid for a write.
    unsafe fn hand_over(
        payload: *const c_void,
        length: usize,
        codec: Codec,
        unpacked: *mut *mut c_void,
        unpacked_length: *mut usize,
    ) -> rd_kafka_resp_err_t {
        // SAFETY: promised by the caller.
        unsafe {
            let Some(bytes) = open(payload, length, codec) else {
                return rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__BAD_COMPRESSION;
            };
            *unpacked = given(&bytes);
            *unpacked_length = bytes.len();
        }
        rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
    }

    thread_local! {
        /// Between the two calls in which librdkafka unpacks one snappy block, one right after the other on one thread.
        static BLOCK: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompressed_length(
        payload: *const c_char,
        length: usize,
        unpacked_length: *mut usize,
    ) -> bool {
        // SAFETY: as above.
        unsafe {
            let Some(bytes) = open(payload.cast(), length, Codec::Snappy) else { return false };
            *unpacked_length = bytes.len();
            BLOCK.set(bytes);
        }
        true
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_rd_kafka_snappy_uncompress(
        _payload: *const c_char,
        _length: usize,
        unpacked: *mut c_char,
    ) -> c_int {
        let bytes = BLOCK.take();
        // SAFETY: librdkafka made room for what the call before said.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), unpacked.cast::<u8>(), bytes.len()) };
        0
    }

    /// What librdkafka has skipped of a block that Java's library framed.
    const FRAME_BYTES: usize = 16;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn __wrap_rd_kafka_snappy_java_uncompress(
        blocks: *const c_char,
        length: usize,
        unpacked_length: *mut usize,
        words: *mut c_char,
        words_bytes: usize,
    ) -> *mut c_char {
        // SAFETY: as above; the frame's beginning stands before the blocks, and the words have room for one byte.
        unsafe {
            let payload = blocks.sub(FRAME_BYTES).cast();
            let Some(bytes) = open(payload, length + FRAME_BYTES, Codec::Snappy) else {
                if words_bytes > 0 {
                    *words = 0;
                }
                return ptr::null_mut();
            };
            *unpacked_length = bytes.len();
            given(&bytes).cast()
        }
    }
}
