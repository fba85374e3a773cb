//! What the tests share: a database, topics and a Redis of their own, engines as processes, and the truth about what
//! should have been stored, read from Kafka again.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};
use rowmill_faults::proxy::Proxy;

use crate::servers::Servers;

pub(crate) struct World {
    name: String,
    dir: tempfile::TempDir,
    database: String,
    pub(crate) database_url: String,
    pub(crate) redis_url: String,
    /// For questions: most waiting is asking again and again, and a new session costs more than its answer.
    session: Mutex<Option<(String, Client)>>,
    /// Last, so that the next test comes when nothing of this one is left.
    servers: Servers,
}

/// A server on a busy machine is slow, and that is no failure; one that hangs is.
const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// How often a test's topic is replicated: once where there is one broker.
const AS_THE_BROKERS_SAY: TopicReplication<'static> = TopicReplication::Fixed(-1);

/// Topic, partition, offset.
type Place = (String, i32, i64);

/// A record's value; `None` is a tombstone.
type Value = Option<Vec<u8>>;

/// What a record should become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Row,
    Dead,
    Skipped,
}

/// Waits for a condition, and says what it waited for if it does not come. Less than 10 s is a bound that must hold. More is only an
/// end of patience, four times as long where a dozen tests share two cores: it costs time only where something is broken.
#[track_caller]
pub(crate) fn wait_for(what: &str, seconds: u64, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    let limit = if seconds < 10 { seconds } else { seconds * 4 };
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(limit), "{what}: not within {limit} s");
        std::thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

/// Asks Kafka until it answers: where its heartbeats are late, it leads nothing for a moment.
fn patiently<T>(what: &str, mut question: impl FnMut() -> KafkaResult<T>) -> T {
    let start = Instant::now();
    loop {
        match question() {
            Ok(answer) => return answer,
            Err(error) if start.elapsed() > ANSWER_WITHIN => panic!("{what}: {error}"),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Runs a verb that is not `run`; what it printed, and whether it ended well.
pub(crate) fn rowmill(world: &World, arguments: &[&str]) -> (String, bool) {
    rowmill_as(world, &world.database_url, arguments)
}

/// The same with another PostgreSQL role.
pub(crate) fn rowmill_as(world: &World, database_url: &str, arguments: &[&str]) -> (String, bool) {
    let output = world
        .command(env!("CARGO_BIN_EXE_rowmill"))
        .args(arguments)
        .env("DATABASE_URL", database_url)
        .env("REDIS_URL", &world.redis_url)
        .output()
        .expect("rowmill starts");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (text, output.status.success())
}

impl World {
    /// A world on servers that others use at the same time.
    pub(crate) fn new(name: &str) -> World {
        World::on(Servers::shared(), name)
    }

    /// A world on servers that this test may kill, restart and reconfigure: nobody else uses them meanwhile.
    pub(crate) fn alone(name: &str) -> World {
        World::on(Servers::alone(), name)
    }

    /// A world with three brokers of its own, called kafka, kafka2 and kafka3; two of them must have what is acknowledged.
    pub(crate) fn replicated(name: &str) -> World {
        World::on(Servers::replicated(), name)
    }

    fn on(servers: Servers, name: &str) -> World {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("{name}_{}_{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let admin_url = servers.get("DATABASE_URL");
        let mut admin = Client::connect(&admin_url, NoTls).expect("PostgreSQL answers");
        admin.batch_execute(&format!("CREATE DATABASE {name}")).expect("a database of its own");
        let (base, _) = admin_url.rsplit_once('/').expect("the URL names a database");
        let redis_url = servers.get("REDIS_URL");
        let (redis, _) = redis_url.rsplit_once('/').expect("a database number");
        let world = World {
            dir: tempfile::tempdir().expect("a directory"),
            database_url: format!("{base}/{name}"),
            database: name.clone(),
            redis_url: format!("{redis}/{}", servers.redis_number()),
            name,
            session: Mutex::new(None),
            servers,
        };
        redis::cmd("FLUSHDB").query::<()>(&mut world.redis()).expect("Redis answers");
        let (text, ok) = rowmill(&world, &["init"]);
        assert!(ok, "rowmill init failed: {text}");
        world
    }

    /// One of the servers' addresses, by its name in the stack's `env`.
    pub(crate) fn server(&self, name: &str) -> String {
        self.servers.get(name)
    }

    /// Runs one of the stack's own commands, for example `kafka-topics`; what it printed.
    pub(crate) fn stack(&self, arguments: &[&str]) -> String {
        self.servers.stack(arguments)
    }

    /// A command of another program, with the servers' addresses in its environment.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.servers.environment());
        command
    }

    /// A topic's full name; tests use short ones.
    pub(crate) fn topic(&self, short: &str) -> String {
        format!("{}-{short}", self.name)
    }

    pub(crate) fn create_topic(&self, short: &str, partitions: i32) {
        let admin: AdminClient<DefaultClientContext> = self.kafka().create().expect("an admin client");
        let name = self.topic(short);
        let topic = NewTopic::new(&name, partitions, AS_THE_BROKERS_SAY);
        patiently("create a topic", || {
            let created = futures_executor::block_on(admin.create_topics([&topic], &AdminOptions::new()))?;
            match &created[0] {
                // The answer to an earlier attempt was late.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => Ok(()),
                Err((_, code)) => Err(KafkaError::AdminOp(*code)),
            }
        });
        self.wait_led(&name, partitions as usize);
    }

    /// Deletes a topic, and returns when the broker has let it go: until then it takes records for the old one.
    pub(crate) fn delete_topic(&self, short: &str) {
        let name = self.topic(short);
        self.stack(&["kafka-topics", "--delete", "--topic", &name]);
        self.wait_led(&name, 0);
    }

    /// Waits until the broker itself says that it leads so many partitions. It learns of a change later than who asks for it.
    fn wait_led(&self, topic: &str, partitions: usize) {
        let consumer: BaseConsumer = self.kafka().create().expect("a consumer");
        wait_for(&format!("the broker to lead {partitions} partitions of {topic}"), 120, || {
            let answer = patiently("ask for a topic", || consumer.fetch_metadata(Some(topic), ANSWER_WITHIN));
            let led = answer.topics()[0].partitions().iter().filter(|partition| partition.leader() >= 0);
            led.count() == partitions
        });
    }

    /// The name, for the stack's commands, of the broker that leads this partition.
    pub(crate) fn leader(&self, topic: &str, partition: usize) -> String {
        let consumer: BaseConsumer = self.kafka().create().expect("a consumer");
        let topic = self.topic(topic);
        let answer = patiently("ask for a leader", || consumer.fetch_metadata(Some(&topic), ANSWER_WITHIN));
        match answer.topics()[0].partitions()[partition].leader() {
            1 => "kafka".to_owned(),
            node => format!("kafka{node}"),
        }
    }

    pub(crate) fn sql(&self) -> Client {
        Client::connect(&self.database_url, NoTls).expect("PostgreSQL answers")
    }

    pub(crate) fn redis(&self) -> redis::Connection {
        redis::Client::open(self.redis_url.as_str()).expect("a URL").get_connection().expect("Redis answers")
    }

    /// A proxy before this world's PostgreSQL, and the URL that leads through it.
    pub(crate) fn proxy(&self) -> (Proxy, String) {
        let (rest, database) = self.database_url.rsplit_once('/').expect("the URL names a database");
        let (login, address) = rest.rsplit_once('@').expect("the URL has a login");
        let proxy = Proxy::before_postgres(address.parse().expect("an address")).expect("a free port");
        let url = format!("{login}@127.0.0.1:{}/{database}", proxy.port());
        (proxy, url)
    }

    /// This world's PostgreSQL as if each way to it took so long, and the URL that leads there.
    pub(crate) fn distant_postgres(&self, way: Duration) -> (Proxy, String) {
        let (rest, database) = self.database_url.rsplit_once('/').expect("the URL names a database");
        let (login, address) = rest.rsplit_once('@').expect("the URL has a login");
        let proxy = Proxy::from_afar(0, address.parse().expect("an address"), way).expect("a free port");
        let url = format!("{login}@127.0.0.1:{}/{database}", proxy.port());
        (proxy, url)
    }

    /// A proxy before Kafka, and the brokers' address that leads through it, whatever the broker says of where it is. One at
    /// a time: the place that this world has among the servers has one listener for it.
    pub(crate) fn kafka_proxy(&self) -> (Proxy, String) {
        let (advertised, real) = self.servers.kafka_member();
        let upstream = std::net::SocketAddr::from(([127, 0, 0, 1], real));
        let proxy = Proxy::before_any(advertised, upstream).expect("the stack keeps the port free");
        (proxy, format!("127.0.0.1:{advertised}"))
    }

    /// This world's PostgreSQL through the pooler.
    pub(crate) fn pooled_url(&self) -> String {
        let url = self.server("DATABASE_URL_POOLED");
        let (server, _) = url.rsplit_once('/').expect("the URL names a database");
        format!("{server}/{}", self.database)
    }

    /// This world's PostgreSQL and Redis, over TLS.
    pub(crate) fn tls_urls(&self) -> (String, String) {
        let (postgres, redis) = (self.server("DATABASE_URL_TLS"), self.server("REDIS_TLS_URL"));
        let (address, parameters) = postgres.split_once('?').expect("the URL says how to verify");
        let (server, _) = address.rsplit_once('/').expect("the URL names a database");
        let (redis_server, _) = redis.rsplit_once('/').expect("the URL names a database");
        let (_, redis_number) = self.redis_url.rsplit_once('/').expect("the URL names a database");
        (format!("{server}/{}?{parameters}", self.database), format!("{redis_server}/{redis_number}"))
    }

    /// A table of the tests' usual form.
    pub(crate) fn create_table(&self, name: &str, constraint: &str) {
        self.sql()
            .batch_execute(&format!(
                "CREATE TABLE {name} (n BIGINT NOT NULL, word VARCHAR(20), _topic TEXT, _partition INTEGER, _offset BIGINT{constraint})"
            ))
            .expect("a table");
    }

    /// The model of such a table.
    pub(crate) fn model(&self, topic: &str, table: &str, more: &str) -> String {
        format!(
            "[[model]]\ntopic = {:?}\ntable = {table:?}\n{more}\n[model.columns]\n_topic = {{ kafka = \"topic\" }}\n\
             _partition = {{ kafka = \"partition\" }}\n_offset = {{ kafka = \"offset\" }}\n",
            self.topic(topic)
        )
    }

    /// A path for a file that lives as long as the world.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a file that lives as long as the world; its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.to_str().expect("a path in UTF-8").to_owned()
    }

    /// Starts an engine on this configuration; `environment` may set fault points.
    pub(crate) fn engine(&self, config: &str, environment: &[(&str, &str)]) -> Engine {
        self.engine_logging_to(None, config, environment)
    }

    /// Starts another verb that is a service.
    pub(crate) fn verb(&self, verb: &str, config: &str, environment: &[(&str, &str)]) -> Engine {
        self.start(verb, None, config, environment)
    }

    /// The same, with its log elsewhere.
    pub(crate) fn engine_logging_to(
        &self,
        log_file: Option<File>,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Engine {
        self.start("run", log_file, config, environment)
    }

    fn start(
        &self,
        verb: &str,
        log_file: Option<File>,
        config: &str,
        environment: &[(&str, &str)],
    ) -> Engine {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        let path = self.dir.path().join(format!("rowmill-{number}.toml"));
        std::fs::write(&path, config).expect("a file");
        let log = self.dir.path().join(format!("engine-{number}.log"));
        let child = self
            .command(env!("CARGO_BIN_EXE_rowmill"))
            .args([verb, "--config"])
            .arg(&path)
            .env("DATABASE_URL", &self.database_url)
            .env("REDIS_URL", &self.redis_url)
            .envs(environment.iter().copied())
            .stderr(log_file.unwrap_or_else(|| File::create(&log).expect("a log")))
            .spawn()
            .expect("rowmill starts");
        Engine { child, log }
    }

    pub(crate) fn produce(&self, topic: &str, partition: i32, values: impl IntoIterator<Item = String>) {
        self.produce_with("none", topic, partition, values);
    }

    /// Produces batches that are compressed in this way.
    pub(crate) fn produce_with(
        &self,
        codec: &str,
        topic: &str,
        partition: i32,
        values: impl IntoIterator<Item = String>,
    ) {
        let producer = self.producer(codec);
        for value in values {
            send(&producer, &self.topic(topic), partition, Some(value.as_bytes()));
        }
        producer.flush(ANSWER_WITHIN).expect("Kafka takes all");
    }

    pub(crate) fn produce_tombstone(&self, topic: &str, partition: i32) {
        let producer = self.producer("none");
        send(&producer, &self.topic(topic), partition, None);
        producer.flush(ANSWER_WITHIN).expect("Kafka takes it");
    }

    /// Produces numbered records in the background, about `rate` a second, until the result is dropped or stopped.
    pub(crate) fn load(&self, topic: &str, partitions: i32, rate: u64) -> Load {
        let (stop, name) = (Arc::new(AtomicBool::new(false)), self.topic(topic));
        let (stopping, producer) = (stop.clone(), self.producer("none"));
        let thread = std::thread::spawn(move || {
            let (start, mut n) = (Instant::now(), 0u64);
            while !stopping.load(SeqCst) {
                let due = (start.elapsed().as_secs_f64() * rate as f64) as u64;
                while n < due {
                    let value = record(n);
                    send(&producer, &name, (n % partitions as u64) as i32, Some(value.as_bytes()));
                    n += 1;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            producer.flush(ANSWER_WITHIN).expect("Kafka takes all");
            n
        });
        Load { stop, thread: Some(thread) }
    }

    /// Every committed record of a topic, read with a client of its own: partition, offset, value.
    pub(crate) fn read_topic(&self, short: &str) -> Vec<(i32, i64, Value)> {
        let topic = self.topic(short);
        let consumer: BaseConsumer = self
            .kafka()
            .set("group.id", "truth")
            .set("receive.message.max.bytes", "1000000000")
            .set("enable.auto.commit", "false")
            .set("isolation.level", "read_committed")
            .create()
            .expect("a consumer");
        let timeout = ANSWER_WITHIN;
        let metadata = patiently("ask for a topic", || consumer.fetch_metadata(Some(&topic), timeout));
        let mut ends = BTreeMap::new();
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            let (low, high) = patiently("ask for a log's ends", || {
                consumer.fetch_watermarks(&topic, partition.id(), timeout)
            });
            if low < high {
                ends.insert(partition.id(), high);
                list.add_partition_offset(&topic, partition.id(), Offset::Offset(low)).expect("an offset");
            }
        }
        consumer.assign(&list).expect("assigned");
        let mut records = Vec::new();
        let deadline = Instant::now() + ANSWER_WITHIN;
        while !ends.is_empty() {
            assert!(Instant::now() < deadline, "topic {topic} cannot be read to its end");
            let Some(message) = consumer.poll(Duration::from_millis(200)) else { continue };
            let message = message.expect("a record");
            records.push((message.partition(), message.offset(), message.payload().map(<[u8]>::to_vec)));
            if ends.get(&message.partition()).is_some_and(|end| message.offset() + 1 >= *end) {
                ends.remove(&message.partition());
            }
        }
        records
    }

    /// What a group has committed to Kafka.
    pub(crate) fn group_offset(&self, group: &str, short: &str, partition: i32) -> Option<i64> {
        let consumer: BaseConsumer = self.kafka().set("group.id", group).create().expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition(&self.topic(short), partition);
        let committed =
            patiently("ask for a group's offset", || consumer.committed_offsets(list.clone(), ANSWER_WITHIN));
        committed.elements()[0].offset().to_raw().filter(|offset| *offset >= 0)
    }

    /// Waits until the ledger has reached the end of each of the topic's logs.
    #[track_caller]
    pub(crate) fn wait_drained(&self, topics: &[&str], seconds: u64) -> Duration {
        let mut ends = BTreeMap::new();
        let consumer: BaseConsumer = self.kafka().create().expect("a consumer");
        for short in topics {
            let topic = self.topic(short);
            let timeout = ANSWER_WITHIN;
            let metadata = patiently("ask for a topic", || consumer.fetch_metadata(Some(&topic), timeout));
            for partition in metadata.topics()[0].partitions() {
                let (_, high) = patiently("ask for a log's ends", || {
                    consumer.fetch_watermarks(&topic, partition.id(), timeout)
                });
                ends.insert((topic.clone(), partition.id()), high);
            }
        }
        wait_for("all records to be accounted for", seconds, || self.is_drained(&ends))
    }

    fn is_drained(&self, ends: &BTreeMap<(String, i32), i64>) -> bool {
        let sql = "SELECT topic, partition, min(next_offset) FROM rowmill.ledger GROUP BY 1, 2";
        let Ok(rows) = self.ask(|client| client.query(sql, &[])) else { return false };
        let reached: BTreeMap<(String, i32), i64> =
            rows.iter().map(|r| ((r.get(0), r.get(1)), r.get(2))).collect();
        ends.iter().all(|(place, end)| *end == 0 || reached.get(place).is_some_and(|next| next >= end))
    }

    /// Compares a table and the dead letters with the topics: every record must have exactly its outcome.
    #[track_caller]
    pub(crate) fn check(&self, table: &str, topics: &[&str], classify: impl Fn(Option<&[u8]>) -> Class) {
        let mut client = self.sql();
        let sql = format!("SELECT _topic, _partition, _offset, n FROM {table}");
        let mut rows: BTreeMap<Place, Vec<i64>> = BTreeMap::new();
        for row in client.query(&sql, &[]).expect("the table") {
            rows.entry((row.get(0), row.get(1), row.get(2))).or_default().push(row.get(3));
        }
        let sql = "SELECT topic, partition, \"offset\", value FROM rowmill.dead_letter WHERE target = 'public.' || $1";
        let mut dead: BTreeMap<Place, Vec<Value>> = BTreeMap::new();
        for row in client.query(sql, &[&table]).expect("the dead letters") {
            dead.entry((row.get(0), row.get(1), row.get(2))).or_default().push(row.get(3));
        }
        let (mut lost, mut doubled, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for short in topics {
            for (partition, offset, value) in self.read_topic(short) {
                let place = (self.topic(short), partition, offset);
                let (stored, letters) =
                    (rows.remove(&place).unwrap_or_default(), dead.remove(&place).unwrap_or_default());
                let found = stored.len() + letters.len();
                match classify(value.as_deref()) {
                    Class::Row if stored.len() == 1 && letters.is_empty() => {
                        if Some(stored[0]) != value.as_deref().and_then(number) {
                            wrong.push(place);
                        }
                    }
                    Class::Dead if letters == [value.clone()] && stored.is_empty() => {}
                    Class::Skipped if found == 0 => {}
                    _ if found == 0 => lost.push(place),
                    _ if found > 1 => doubled.push(place),
                    _ => wrong.push(place),
                }
            }
        }
        let phantom: Vec<_> = rows.keys().chain(dead.keys()).cloned().collect();
        let counts = [&lost, &doubled, &wrong, &phantom].map(Vec::len);
        let examples: Vec<_> = [lost, doubled, wrong, phantom]
            .into_iter()
            .map(|v| v.into_iter().take(3).collect::<Vec<_>>())
            .collect();
        assert_eq!(counts, [0; 4], "{table}: lost, duplicated, wrong, phantom: {examples:?}");
    }

    pub(crate) fn count(&self, sql: &str) -> i64 {
        self.ask(|client| client.query_one(sql, &[])).unwrap_or_else(|e| panic!("{sql}: {e}")).get(0)
    }

    /// Asks in the session that is kept for this, and once more in a new one: a server may have been restarted since.
    fn ask<T>(
        &self,
        question: impl Fn(&mut Client) -> Result<T, postgres::Error>,
    ) -> Result<T, postgres::Error> {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((url, client)) = &mut *session
            && *url == self.database_url
            && let Ok(answer) = question(client)
        {
            return Ok(answer);
        }
        *session = None;
        let mut client = Client::connect(&self.database_url, NoTls)?;
        let answer = question(&mut client);
        *session = Some((self.database_url.clone(), client));
        answer
    }

    fn kafka(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.server("KAFKA_BROKERS"));
        config
    }

    pub(crate) fn producer(&self, codec: &str) -> ThreadedProducer<DefaultProducerContext> {
        self.kafka()
            .set("compression.type", codec)
            .set("enable.idempotence", "true")
            .set("linger.ms", "2")
            .set("queue.buffering.max.messages", "1000000")
            .create()
            .expect("a producer")
    }

    /// A transaction with so many records that is not ended yet.
    pub(crate) fn open_transaction(&self, short: &str, partition: i32, records: u64) -> BaseProducer {
        let topic = self.topic(short);
        let producer: BaseProducer =
            self.kafka().set("transactional.id", format!("{topic}-open")).create().expect("a producer");
        producer.init_transactions(ANSWER_WITHIN).expect("Kafka answers");
        producer.begin_transaction().expect("begun");
        for n in 0..records {
            let value = record(1000 + n);
            let sent = producer.send(BaseRecord::<(), _>::to(&topic).partition(partition).payload(&value));
            sent.map_err(|(error, _)| error).expect("sent");
        }
        producer.flush(ANSWER_WITHIN).expect("Kafka takes all");
        producer
    }

    /// Sends all values as one batch, whose size only counts compressed.
    pub(crate) fn produce_dense(
        &self,
        codec: &str,
        topic: &str,
        partition: i32,
        values: impl IntoIterator<Item = String>,
    ) {
        let producer: ThreadedProducer<DefaultProducerContext> = self
            .kafka()
            .set("compression.type", codec)
            .set("linger.ms", "1000")
            .set("message.max.bytes", "1000000000")
            .set("batch.size", "1000000000")
            .create()
            .expect("a producer");
        for value in values {
            send(&producer, &self.topic(topic), partition, Some(value.as_bytes()));
        }
        producer.flush(ANSWER_WITHIN).expect("Kafka takes all");
    }

    /// Sends records inside transactions, some of them aborted; the values of the aborted ones hold "aborted".
    pub(crate) fn produce_transactions(&self, short: &str, partition: i32, transactions: u64) {
        let topic = self.topic(short);
        let producer: BaseProducer =
            self.kafka().set("transactional.id", format!("{topic}-tx")).create().expect("a producer");
        let timeout = ANSWER_WITHIN;
        producer.init_transactions(timeout).expect("Kafka answers");
        for number in 0..transactions {
            producer.begin_transaction().expect("begun");
            let abort = number % 3 == 1;
            for i in 0..5 {
                let value = if abort {
                    format!("{{\"n\":{i},\"word\":\"aborted\"}}")
                } else {
                    record(number * 5 + i)
                };
                producer
                    .send(BaseRecord::<[u8], _>::to(&topic).partition(partition).payload(value.as_bytes()))
                    .expect("sent");
            }
            producer.flush(timeout).expect("flushed");
            if abort {
                producer.abort_transaction(timeout).expect("aborted");
            } else {
                producer.commit_transaction(timeout).expect("committed");
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The logs of a failed test are its explanation.
            for entry in std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|e| e == "log") {
                    let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                    // Of the lines that come every ten seconds, the last few say all.
                    let (mut reports, is_report) = (0, |line: &str| line.contains(" thread=report "));
                    let tail = text.lines().rev().filter(|line| {
                        !is_report(line) || {
                            reports += 1;
                            reports <= 3
                        }
                    });
                    let tail: Vec<&str> = tail.take(40).collect();
                    eprintln!("--- {}", entry.path().display());
                    tail.iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
            return;
        }
        if let Ok(mut admin) = Client::connect(&self.server("DATABASE_URL"), NoTls) {
            admin.batch_execute(&format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.database)).ok();
        }
    }
}

/// A running `rowmill run`; killed when dropped.
pub(crate) struct Engine {
    child: Child,
    log: PathBuf,
}

impl Engine {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("the engine runs");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child").is_none()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
    }

    /// SIGTERM, and how it ended after how long.
    #[track_caller]
    pub(crate) fn stop(mut self) -> (ExitStatus, Duration) {
        self.signal(Signal::SIGTERM);
        let start = Instant::now();
        (self.wait(15), start.elapsed())
    }

    /// Waits for the end.
    #[track_caller]
    pub(crate) fn wait(&mut self, seconds: u64) -> ExitStatus {
        let mut status = None;
        wait_for("the engine to end", seconds, || {
            status = self.child.try_wait().expect("a child");
            status.is_some()
        });
        status.expect("it ended")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Peak resident memory in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("Linux tells");
        line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).expect("a number") * 1024
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Already gone is fine.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A producer in the background.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Load {
    /// Ends it and says how many records there were.
    pub(crate) fn stop(mut self) -> u64 {
        self.stop.store(true, SeqCst);
        self.thread.take().expect("not yet stopped").join().expect("the producer works")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
    }
}

/// A good record.
pub(crate) fn record(n: u64) -> String {
    format!("{{\"n\":{n},\"word\":\"w{}\"}}", n % 1000)
}

/// The number of a good record.
fn number(value: &[u8]) -> Option<i64> {
    serde_json::from_slice::<serde_json::Value>(value).ok()?.get("n")?.as_i64()
}

/// Good records are rows, others are dead letters.
pub(crate) fn all_rows(_: Option<&[u8]>) -> Class {
    Class::Row
}

fn send(
    producer: &ThreadedProducer<DefaultProducerContext>,
    topic: &str,
    partition: i32,
    value: Option<&[u8]>,
) {
    let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(topic).partition(partition);
    record.payload = value;
    while let Err((error, back)) = producer.send(record) {
        assert_eq!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::QueueFull), "{error}");
        record = back;
        std::thread::sleep(Duration::from_millis(5));
    }
}
