//! A door that asks PostgreSQL whether what a request is about is there and active.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Door, free_port, open, read};
use crate::http_client::Client;
use crate::world::{World, wait_for};

const TABLE: &str = "
    CREATE TABLE account (id BIGINT PRIMARY KEY, name TEXT NOT NULL, isactive BOOLEAN);
    INSERT INTO account SELECT n, md5(n::TEXT), n <> 9 FROM generate_series(1, 1000) AS n;
    CREATE FUNCTION account_changed() RETURNS TRIGGER LANGUAGE plpgsql AS $$
    BEGIN
        PERFORM pg_notify('account', COALESCE(OLD.id, NEW.id)::TEXT);
        RETURN NULL;
    END $$;
    CREATE TRIGGER account_changed AFTER UPDATE OR DELETE ON account FOR EACH ROW EXECUTE FUNCTION account_changed();";

fn routes(world: &World, more: &str) -> String {
    format!(
        "[[route]]\nmethod = \"PUT\"\npath = \"/{{account}}\"\ntopic = {:?}\nkey = \"{{path.account:int}}\"\n\
         record = {{ account = \"{{path.account:int}}\", data = \"{{query.data}}\" }}\n\
         must_exist = {{ value = \"{{path.account:int}}\", table = \"account\", column = \"id\", active = \"isactive\"{more} }}\n",
        world.topic("in")
    )
}

fn put(address: SocketAddr, account: &str) -> (u16, Value) {
    let mut client = Client::new(address);
    client.socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    client.send(format!("PUT /{account}?data=x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
    let reply = client.reply().expect("an answer");
    (reply.status, serde_json::from_slice(&reply.body).unwrap_or(Value::Null))
}

#[track_caller]
fn check(door: &Door, account: &str, status: u16, words: &str) {
    let (found, answer) = put(door.address, account);
    assert_eq!(found, status, "{account}: {answer}");
    if status >= 400 {
        assert_eq!(answer["stored"], "no", "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(words), "{answer}");
    }
}

#[test]
fn nothing_is_sent_for_what_is_not_there_or_not_active() {
    let world = World::new("collect_standing");
    world.create_topic("in", 3);
    world.sql().batch_execute(TABLE).unwrap();
    let check_file = |routes: String| {
        let file = world.file("check.toml", &super::settings(1, "", &routes));
        crate::world::rowmill(&world, &["check", "--config", &file]).0
    };
    assert!(check_file(routes(&world, "")).contains("\"public\".\"account\" is there to be asked"));
    let text = check_file(routes(&world, "").replace("\"id\"", "\"ident\""));
    assert!(text.contains("there is no column \"ident\""), "{text}");
    let doors = [1, 2].map(|_| open(&world, free_port(), "", &routes(&world, "")));
    wait_for("a first record", 60, || put(doors[0].address, "1").0 == 200);
    let before = read(&world, "in").len();
    for door in &doors {
        check(door, "7", 200, "");
        check(door, "7", 200, "");
        check(door, "9", 403, "account 9 is not active");
        check(door, "1001", 404, "there is no account 1001");
        check(door, "9223372036854775807", 404, "there is no account");
        check(door, "-1", 404, "there is no account -1");
        for spelling in ["07", "+7", "1e3", "7.0", "x", "9223372036854775808"] {
            check(door, spelling, 400, "");
        }
    }
    assert_eq!(read(&world, "in").len() - before, 4);
    // What is made now is there now, whichever door was asked before.
    let mut sql = world.sql();
    sql.execute("INSERT INTO account VALUES (1001, 'new', TRUE)", &[]).unwrap();
    doors.iter().for_each(|door| check(door, "1001", 200, ""));
    let mut longest = Duration::ZERO;
    for account in 100..120 {
        doors.iter().for_each(|door| check(door, &account.to_string(), 200, ""));
        sql.execute("UPDATE account SET isactive = FALSE WHERE id = $1", &[&i64::from(account)]).unwrap();
        let changed = Instant::now();
        for door in &doors {
            while put(door.address, &account.to_string()).0 == 200 {
                assert!(changed.elapsed() < Duration::from_secs(1), "account {account} is still active");
            }
        }
        longest = longest.max(changed.elapsed());
    }
    println!("a deactivated account was refused at both doors after {longest:?} at most");
    for door in doors {
        assert!(door.engine.stop().0.success());
    }
}

#[test]
fn a_change_that_nobody_notifies_counts_within_a_second() {
    let world = World::new("collect_unheard");
    world.create_topic("in", 1);
    world.sql().batch_execute(TABLE).unwrap();
    let more = ", channel = \"nobody\", cache = \"900ms\", unknown = 400, inactive = 400";
    let door = open(&world, free_port(), "", &routes(&world, more));
    wait_for("a first record", 60, || put(door.address, "1").0 == 200);
    check(&door, "7", 200, "");
    check(&door, "1001", 400, "there is no");
    world.sql().execute("DELETE FROM account WHERE id = 7", &[]).unwrap();
    let changed = Instant::now();
    while put(door.address, "7").0 == 200 {
        assert!(changed.elapsed() < Duration::from_secs(1));
    }
    assert!(door.engine.stop().0.success());
}

#[test]
fn while_postgresql_is_away_only_what_is_known_is_taken() {
    let world = World::alone("collect_unanswered");
    world.create_topic("in", 1);
    world.sql().batch_execute(TABLE).unwrap();
    let door = open(&world, free_port(), "", &routes(&world, ""));
    wait_for("a first record", 60, || put(door.address, "1").0 == 200);
    check(&door, "7", 200, "");
    world.stack(&["kill", "postgres"]);
    check(&door, "8", 503, "nobody can say now");
    std::thread::sleep(Duration::from_millis(1100));
    check(&door, "7", 503, "nobody can say now");
    assert!(put(door.address, "x").0 == 400, "the loop goes on");
    world.stack(&["restart", "postgres"]);
    wait_for("PostgreSQL to be asked again", 9, || put(door.address, "8").0 == 200);
    check(&door, "9", 403, "is not active");
    assert!(door.engine.stop().0.success());
}

/// `STANDING_SPEED=1` compares the same route with and without the question, in requests for each CPU-second of the door.
#[test]
fn the_question_costs_little() {
    if std::env::var("STANDING_SPEED").is_err() {
        println!("NOT TESTED: how much it costs; STANDING_SPEED=1 measures it, with wrk");
        return;
    }
    let world = World::new("collect_standing_speed");
    world.create_topic("in", 3);
    world.sql().batch_execute(TABLE).unwrap();
    let script = world.file(
        "put.lua",
        "request = function() return wrk.format('PUT', '/' .. (10 + math.random(900)) .. '?data=x', {['Content-Length'] = '0'}) end\n",
    );
    let with = routes(&world, "");
    let without: String =
        with.lines().filter(|line| !line.starts_with("must_exist")).map(|l| format!("{l}\n")).collect();
    let doors = [&with, &without].map(|routes| open(&world, free_port(), "threads = 1", routes));
    for door in &doors {
        wait_for("a first record", 60, || put(door.address, "1").0 == 200);
    }
    let spent = |door: &Door| {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", door.engine.pid())).unwrap();
        let fields: Vec<u64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split_whitespace()
            .skip(11)
            .take(2)
            .map(|n| n.parse().unwrap())
            .collect();
        fields.iter().sum::<u64>() as f64 / 100.0
    };
    let mut ratios = Vec::new();
    for _ in 0..5 {
        let each = doors.each_ref().map(|door| {
            let before = spent(door);
            let output = world
                .command("wrk")
                .args(["-t1", "-c64", "-d4", "-s", &script, &format!("http://{}/", door.address)])
                .output()
                .unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(!text.contains("Non-2xx"), "{text}");
            let line = text.lines().find(|line| line.contains(" requests in ")).unwrap();
            let requests: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
            requests / (spent(door) - before)
        });
        println!("requests for each CPU-second: {:.0} with the question, {:.0} without", each[0], each[1]);
        ratios.push(each[0] / each[1]);
    }
    ratios.sort_by(f64::total_cmp);
    println!("to the same route without it: {ratios:.2?}");
    assert!(ratios[2] >= 0.8);
}
