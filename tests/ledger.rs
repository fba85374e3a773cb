//! The simulator's model of the ledger against the ledger itself: the same random verbs on both, the same answers, the same
//! rows. What the simulator proves of the model is worth no more than this.

#[path = "simulator/database.rs"]
mod database;
#[path = "simulator/kafka.rs"]
mod kafka;
#[path = "simulator/network.rs"]
mod network;
#[path = "simulator/records.rs"]
mod records;

use std::time::Duration;

use postgres::NoTls;
use rowmill_faults::random::Random;

use database::{Key, Server};

use rowmill::client::pg::{self, Client};
use rowmill::promise::duties::Hold;
use rowmill::promise::ledger::{self, Member, Registration, Target};
use rowmill::promise::offsets::{Anchor, Partition};
use rowmill::promise::reach::Reach;
use rowmill::promise::span::{Counts, Move};
use rowmill::promise::topics::NewPartition;

const MEMBERS: [&str; 3] = ["a", "b", "c"];
const PARTITIONS: i32 = 3;
/// As the ledger names them: their index is the model's.
const TARGETS: [&str; 2] = ["public.t", "public.u"];

struct Pair {
    model: Server,
    client: Client,
    target: Target,
    random: Random,
    session: u64,
}

/// A ledger row: owner, epoch, next offset, anchor's offset, start.
type Row = (Option<String>, i64, i64, Option<i64>, i64);

#[test]
fn the_model_of_the_ledger_does_what_the_ledger_does() {
    let url = std::env::var("DATABASE_URL").expect("run through `make test`, which starts the servers");
    let name = format!("ledger_model_{}", std::process::id());
    let mut admin = postgres::Client::connect(&url, NoTls).expect("PostgreSQL answers");
    admin.batch_execute(&format!("CREATE DATABASE {name}")).expect("a database of its own");
    let (base, _) = url.rsplit_once('/').expect("the URL names a database");
    let server = pg::Server::parse(&format!("{base}/{name}")).expect("a URL");
    let mut client = server.connect("ledger model").expect("PostgreSQL answers");
    client.by_role_path().batch_execute(ledger::SCHEMA_SQL).expect("the schema");
    client.by_role_path().batch_execute("CREATE TABLE public.t (n BIGINT)").expect("a table");
    for seed in 0..20 {
        client.by_role_path().batch_execute("TRUNCATE rowmill.ledger, rowmill.member").expect("empty");
        let mut pair = Pair::new(client, seed);
        for step in 0..150 {
            let verb = pair.step();
            assert_eq!(pair.rows_of_model(), pair.rows_of_ledger(), "seed {seed}, step {step}: after {verb}");
        }
        client = pair.client;
    }
    drop(client);
    admin.batch_execute(&format!("DROP DATABASE {name} WITH (FORCE)")).expect("dropped");
}

impl Pair {
    fn new(mut client: Client, seed: u64) -> Pair {
        let partitions: Vec<NewPartition> =
            (0..PARTITIONS).map(|partition| NewPartition { partition, log_start: 5, start: 5 }).collect();
        let targets: Vec<String> = TARGETS.map(str::to_owned).to_vec();
        let what = Registration {
            pipeline: "p",
            cluster_id: "c",
            topic_id: "id",
            routing_hash: 1,
            topic: "topic",
            targets: &targets,
        };
        let inserted = ledger::register(&mut client, &what, &partitions).expect("registered");
        assert_eq!(inserted, PARTITIONS * TARGETS.len() as i32);
        let row = client
            .by_role_path()
            .query_one("SELECT rowmill.fingerprint('public.t'::REGCLASS)", &[])
            .expect("the table");
        let target = Target { name: String::new(), sql_name: "public.t".into(), fingerprint: row.get(0) };
        let keys = (0..PARTITIONS)
            .flat_map(|id| (0..TARGETS.len()).map(move |t| ((Partition { topic: 0, id }, t), 5)));
        let mut model = Server::new(keys);
        let session = model.open_session();
        Pair { model, client, target, random: Random::new(seed), session }
    }

    fn step(&mut self) -> String {
        let me = *self.random.pick(&MEMBERS);
        match self.random.below(10) {
            0 => self.heartbeat(me),
            1 if self.random.one_in(3) => self.step_clock(me),
            1..4 => self.claim(me),
            4 => self.release(me),
            5 => self.resolve(me),
            _ => self.advance(me),
        }
    }

    fn heartbeat(&mut self, me: &str) -> String {
        let reach = Reach::of(self.random.below(3) as i16);
        ledger::heartbeat(&mut self.client, &member(me), None, reach).expect("a heartbeat");
        self.model.heartbeat(me, self.session, reach);
        format!("HEARTBEAT {me}")
    }

    /// Seen from a heartbeat: the server's clock goes on by a day, or back.
    fn step_clock(&mut self, me: &str) -> String {
        let days = if self.random.one_in(2) { -1 } else { 1 };
        let sql =
            "UPDATE rowmill.member SET heartbeat_at = heartbeat_at + $1 * interval '1 day' WHERE member = $2";
        self.client.by_role_path().execute(sql, &[&f64::from(days), &me]).expect("stepped");
        self.model.shift_heartbeat(me, i64::from(days) * 10 * database::LEASE as i64);
        format!("the heartbeat of {me} moves by {days} days")
    }

    fn claim(&mut self, me: &str) -> String {
        let mut ids: Vec<i32> = (0..PARTITIONS).filter(|_| self.random.one_in(2)).collect();
        self.random.shuffle(&mut ids);
        let targets: Vec<String> = TARGETS.map(str::to_owned).to_vec();
        let real = ledger::claim(&mut self.client, &member(me), "topic", &ids, 1, &targets).expect("asked");
        for id in &ids {
            let mut real = real.get(id).cloned().unwrap_or_default();
            real.sort_by_key(|c| c.target.clone());
            let keys: Vec<Key> = (0..TARGETS.len()).map(|t| (Partition { topic: 0, id: *id }, t)).collect();
            let model = self.model.claim(me, &keys).unwrap_or_default();
            let real: Vec<_> = real.iter().map(|c| (c.epoch, c.next_offset, c.anchor)).collect();
            let model: Vec<_> = model.iter().map(|r| (r.epoch, r.next, r.anchor)).collect();
            assert_eq!(real, model, "CLAIM {id} of {ids:?} by {me}");
        }
        format!("CLAIM {ids:?} by {me}")
    }

    /// A key, and an epoch that is right, or was, or never was.
    fn guess(&mut self) -> (Key, i64) {
        let id = self.random.below(PARTITIONS as usize) as i32;
        let key = (Partition { topic: 0, id }, self.random.below(TARGETS.len()));
        let off = if self.random.one_in(4) { 1 - self.random.below(3) as i64 } else { 0 };
        (key, self.model.database.ledger[&key].epoch + off)
    }

    fn release(&mut self, me: &str) -> String {
        let guesses: Vec<(Key, i64)> = (0..self.random.below(4)).map(|_| self.guess()).collect();
        let hold = |((partition, table), epoch): &(Key, i64)| Hold {
            topic: "topic",
            partition: partition.id,
            target: TARGETS[*table],
            epoch: *epoch,
        };
        let holds: Vec<Hold<'_>> = guesses.iter().map(hold).collect();
        ledger::release(&mut self.client, me, &holds).expect("released");
        guesses.iter().for_each(|(key, epoch)| self.model.release(me, *key, *epoch));
        format!("RELEASE {holds:?} by {me}")
    }

    fn resolve(&mut self, me: &str) -> String {
        let ((partition, table), epoch) = self.guess();
        let span = span(partition.id, epoch, 0, 1);
        let real = ledger::resolve(&mut self.client, me, TARGETS[table], std::slice::from_ref(&span))
            .expect("asked");
        let model = self.model.resolve(me, table, &[span]);
        assert_eq!(real, model, "RESOLVE {} by {me}", partition.id);
        format!("RESOLVE {} by {me} at {epoch}", partition.id)
    }

    /// Several spans of one table, some of which may not fit.
    fn advance(&mut self, me: &str) -> String {
        let table = self.random.below(TARGETS.len());
        let mut spans: Vec<Move> = Vec::new();
        for id in 0..PARTITIONS {
            if self.random.one_in(2) {
                let row = self.model.database.ledger[&(Partition { topic: 0, id }, table)].clone();
                let wrong = |random: &mut Random| i64::from(random.one_in(8));
                let (epoch, first) =
                    (row.epoch - wrong(&mut self.random), row.next + wrong(&mut self.random));
                spans.push(span(id, epoch, first, first + 1 + self.random.below(5) as i64));
            }
        }
        self.random.shuffle(&mut spans);
        let target = Target { name: TARGETS[table].to_owned(), ..self.target.clone() };
        let sql = ledger::advance_and_commit(me, &target, &spans);
        self.client.by_role_path().batch_execute("BEGIN").expect("begun");
        let real = self.client.by_role_path().batch_execute(&sql);
        if let Err(error) = &real {
            assert_eq!(error.code().map(|c| c.code()), Some("RM001"), "{error}");
            self.client.by_role_path().batch_execute("ROLLBACK").expect("rolled back");
        }
        assert_eq!(real.is_ok(), self.model.advance(me, table, &spans), "ADVANCE {spans:?} by {me}");
        format!("ADVANCE {spans:?} by {me}")
    }

    fn rows_of_model(&self) -> Vec<Row> {
        let rows = self.model.database.ledger.values();
        rows.map(|r| (r.owner.clone(), r.epoch, r.next, r.anchor.map(|a| a.offset), r.start)).collect()
    }

    fn rows_of_ledger(&mut self) -> Vec<Row> {
        let sql = "SELECT owner, epoch, next_offset, anchor_offset, start_offset FROM rowmill.ledger ORDER BY partition, target";
        let rows = self.client.by_role_path().query(sql, &[]).expect("the ledger");
        rows.iter().map(|r| (r.get(0), r.get(1), r.get(2), r.get(3), r.get(4))).collect()
    }
}

fn member(name: &str) -> Member {
    Member { pipeline: "p".into(), name: name.into(), lease: Duration::from_secs(3600) }
}

fn span(id: i32, epoch: i64, first: i64, next: i64) -> Move {
    Move {
        topic: "topic".into(),
        partition: Partition { topic: 0, id },
        epoch,
        first,
        next,
        counts: Counts { rows: next - first, ..Counts::default() },
        holes: 0,
        anchor: Anchor { offset: next - 1, hash: next },
    }
}
