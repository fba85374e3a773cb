//! Every input of tests/corpus/, in every one of the five tables, alone, first, in the middle and last among good neighbors:
//! each rejected one is one dead letter with its bytes and its reason, each other record a row.

#[path = "../corpus/load.rs"]
#[allow(dead_code, reason = "the test without servers uses the rest")]
mod load;

use std::collections::BTreeMap;
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer};

use crate::world::{World, wait_for};
use load::{Case, MESSAGE_MAX, TOKEN, TOPICS, cases, good, models};

/// Inputs that are on their way at once, each in a partition of its own.
const PARTITIONS: usize = 96;

/// The places of an input among good neighbors, `true` for the input. All that a partition gets at once is one run.
const PLACES: [&[bool]; 4] = [&[true], &[true, false, false], &[false, true, false], &[false, false, true]];

/// Each table refuses these by itself, so that only the server can: as the class `refused_by_the_server` wants it.
const REFUSALS: &str = "
    ALTER TABLE {t} ADD COLUMN _partition INTEGER, ADD COLUMN _offset BIGINT, ADD CHECK (path <> 'refused by a check');
    CREATE UNIQUE INDEX ON {t} (path) WHERE path = 'refused by a unique index';
    INSERT INTO {t} SELECT (jsonb_populate_record(NULL::{t}, '{\"path\": \"refused by a unique index\", \"userid\": \"\",
        \"source\": \"\", \"type\": \"\", \"value\": \"0\", \"category\": \"\", \"level\": \"\", \"message\": \"\",
        \"trace\": \"\", \"ping\": \"\", \"hop\": 0, \"host\": \"\", \"latency\": 0, \"time\": \"2024-01-01\",
        \"timestamp\": \"2024-01-01\", \"_partition\": -1, \"_offset\": -1}')).*;
    CREATE TRIGGER refuse BEFORE INSERT ON {t} FOR EACH ROW WHEN (NEW.path = 'refused by a trigger')
        EXECUTE FUNCTION refuse('P0001');
    CREATE CONSTRAINT TRIGGER refuse_late AFTER INSERT ON {t} DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
        WHEN (NEW.path = 'refused at the commit') EXECUTE FUNCTION refuse('23503');
";

/// What was sent to one place of Kafka: the case, or a good neighbor by its number.
enum Sent<'a> {
    Case(&'a Case),
    Good(usize),
}

/// By topic of [`TOPICS`], partition, offset.
type Place = (usize, i32, i64);

#[test]
fn every_input_alone_first_in_the_middle_and_last() {
    let world = World::new("corpus");
    prepare(&world);
    let cases = cases();
    let config = format!(
        "message_max = \"{}kB\"\n[lookup.user]\nkey = \"user:{{}}\"\ngrace = \"50ms\"\n{}",
        MESSAGE_MAX >> 10,
        configured_models(&world)
    );
    let _engine = world.engine(&config, &[]);
    let mut sent: BTreeMap<Place, Sent<'_>> = BTreeMap::new();
    for wave in cases.chunks(PARTITIONS) {
        for place in PLACES {
            produce(&world, wave, place, &mut sent);
            let sql = "SELECT coalesce(sum(rows + dead), 0)::BIGINT FROM rowmill.ledger";
            wait_for("the records to be accounted for", 30, || world.count(sql) == sent.len() as i64);
        }
    }
    assert_eq!(sent.len(), cases.len() * TOPICS.len() * PLACES.concat().len());
    for (number, topic) in TOPICS.iter().enumerate() {
        let here = sent.iter().filter(|(place, _)| place.0 == number);
        check(&world, topic, here.map(|(place, sent)| ((place.1, place.2), sent)).collect());
    }
}

fn prepare(world: &World) {
    let mut sql = world.sql();
    sql.batch_execute(include_str!("../../sql/tables.sql")).expect("the five tables");
    sql.batch_execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         'BEGIN RAISE EXCEPTION ''refused'' USING ERRCODE = TG_ARGV[0]; END'",
    )
    .expect("a function");
    for topic in TOPICS {
        sql.batch_execute(&REFUSALS.replace("{t}", topic)).expect("constraints");
        world.create_topic(topic, PARTITIONS as i32);
    }
    redis::cmd("SET")
        .arg(format!("user:{TOKEN}"))
        .arg("4711")
        .query::<()>(&mut world.redis())
        .expect("Redis answers");
}

/// The models as they are shipped, on this world's topics, with two columns more that say where a row came from.
fn configured_models(world: &World) -> String {
    let configured = TOPICS.iter().zip(models()).map(|(topic, text)| {
        text.replace(&format!("topic = {topic:?}"), &format!("topic = {:?}", world.topic(topic)))
            + "_partition = { kafka = \"partition\" }\n_offset = { kafka = \"offset\" }\n"
    });
    configured.collect()
}

/// Sends each case of the wave to the partition of its own, with its neighbors, to every topic.
fn produce<'a>(world: &World, wave: &'a [Case], place: &[bool], sent: &mut BTreeMap<Place, Sent<'a>>) {
    let producer = world.producer("none");
    for (number, topic) in TOPICS.iter().enumerate() {
        let topic = world.topic(topic);
        for (case, partition) in wave.iter().zip(0..) {
            let in_partition = sent.range((number, partition, 0)..(number, partition + 1, 0));
            let first = in_partition.count() as i64;
            for (is_case, offset) in place.iter().zip(first..) {
                let what = if *is_case { Sent::Case(case) } else { Sent::Good(sent.len()) };
                let value = what.value();
                let key = key(partition, offset);
                let mut record = BaseRecord::to(&topic).partition(partition).key(&key[..]).headers(headers());
                record.payload = value.as_deref();
                producer.send(record).unwrap_or_else(|(error, _)| panic!("cannot send: {error}"));
                sent.insert((number, partition, offset), what);
            }
        }
    }
    producer.flush(Duration::from_secs(120)).expect("Kafka takes all");
}

impl Sent<'_> {
    fn value(&self) -> Option<Vec<u8>> {
        match self {
            Sent::Case(case) => case.value.clone(),
            Sent::Good(number) => Some(good(*number).into_bytes()),
        }
    }
}

/// No text, so that only its bytes can be kept.
fn key(partition: i32, offset: i64) -> Vec<u8> {
    format!("{partition}/{offset}\u{0}").bytes().chain([0xff]).collect()
}

fn headers() -> OwnedHeaders {
    let not_text = Header { key: "same name", value: Some(&[0xff, 0x00][..]) };
    OwnedHeaders::new().insert(not_text).insert(Header { key: "same name", value: None::<&[u8]> })
}

/// A dead letter, without its place.
#[derive(Debug, PartialEq)]
struct Letter {
    reason: String,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    header_names: Vec<Vec<u8>>,
    header_values: Vec<Option<Vec<u8>>>,
}

/// Compares one topic's table and dead letters with what was sent to it.
fn check(world: &World, topic: &str, sent: BTreeMap<(i32, i64), &Sent<'_>>) {
    let mut client = world.sql();
    let mut rows: BTreeMap<(i32, i64), Vec<(String, String)>> = BTreeMap::new();
    let sql = format!("SELECT _partition, _offset, source, path FROM {topic} WHERE _partition >= 0");
    for row in client.query(&sql, &[]).expect("the table") {
        rows.entry((row.get(0), row.get(1))).or_default().push((row.get(2), row.get(3)));
    }
    let mut letters: BTreeMap<(i32, i64), Vec<Letter>> = BTreeMap::new();
    let sql = "SELECT partition, \"offset\", reason, key, value, header_names, header_values
               FROM rowmill.dead_letter WHERE topic = $1";
    for row in client.query(sql, &[&world.topic(topic)]).expect("the dead letters") {
        letters.entry((row.get(0), row.get(1))).or_default().push(Letter {
            reason: row.get(2),
            key: row.get(3),
            value: row.get(4),
            header_names: row.get(5),
            header_values: row.get(6),
        });
    }
    let mut wrong = Vec::new();
    for (place, sent) in sent {
        let found = (rows.remove(&place).unwrap_or_default(), letters.remove(&place).unwrap_or_default());
        let expected = expected(sent, topic, place);
        if found != expected {
            let name = if let Sent::Case(case) = sent { &*case.name } else { "a good neighbor" };
            let reasons: Vec<_> = found.1.iter().map(|letter| &letter.reason).collect();
            wrong.push(format!("{name} at {place:?}: rows {:?}, letters {reasons:?}", found.0));
        }
    }
    assert!(rows.is_empty() && letters.is_empty(), "{topic} has what nobody sent: {:?}", rows.keys());
    assert!(wrong.is_empty(), "{topic}: {} records are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// The rows, by `source` and `path`, and the dead letters that must come of a record.
fn expected(
    sent: &Sent<'_>,
    topic: &str,
    (partition, offset): (i32, i64),
) -> (Vec<(String, String)>, Vec<Letter>) {
    let reason = if let Sent::Case(case) = sent { case.reason(topic) } else { None };
    if let Some(reason) = reason {
        let mut letter = Letter {
            reason: reason.to_owned(),
            key: Some(key(partition, offset)),
            value: sent.value(),
            header_names: vec![b"same name".to_vec(); 2],
            header_values: vec![Some(vec![0xff, 0x00]), None],
        };
        if letter.value.as_ref().is_some_and(|value| value.len() > MESSAGE_MAX) {
            // Of what is larger only the beginning is kept.
            letter.value = letter.value.map(|value| value[..1024].to_vec());
            (letter.header_names, letter.header_values) = (Vec::new(), Vec::new());
        }
        return (Vec::new(), vec![letter]);
    }
    let value = sent.value().expect("a row has a message");
    let message: Message = serde_json::from_slice(&value).expect("a row's message is JSON");
    (vec![(message.text("source"), message.text("path"))], Vec::new())
}

/// A message as its producer meant it: the last of two keys wins, and a number is stored as it was written.
#[derive(serde::Deserialize)]
struct Message(BTreeMap<String, Box<serde_json::value::RawValue>>);

impl Message {
    fn text(&self, name: &str) -> String {
        let raw = self.0[name].get();
        serde_json::from_str(raw).unwrap_or_else(|_| raw.to_owned())
    }
}
