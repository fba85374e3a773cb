//! Cost by size: what is wide, many, slow or far away, a dimension at a time, from small to where users grow. A drain is the
//! scale table's matter; here is what a process costs that does nothing, how long it takes to change hands, to begin, to end,
//! how long anybody waits, and what wide, large or packed records cost. A cost that grows faster than the size is a cliff.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use postgres::Client;
use rowmill_bench::engine::Engine;
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::servers::{Servers, conditions};
use rowmill_bench::visible::Visible;
use rowmill_bench::{kafka, usage};
use rowmill_faults::proxy::Proxy;

#[derive(Parser)]
#[command(
    about = "Measures what rowmill costs by size: partitions, tables, columns, records, dear rows, distant servers"
)]
struct Options {
    #[command(flatten)]
    servers: Servers,
    /// Only the dimension of this name, such as "idle".
    #[arg(long, default_value = "")]
    only: String,
    /// Pairs of ports, ADVERTISED:REAL, behind which a broker may seem far away.
    #[arg(long, env = "KAFKA_MEMBERS")]
    members: String,
    /// Beside the sizes that take seconds, those that take minutes.
    #[arg(long)]
    large: bool,
    /// The last part of the result directory's name.
    #[arg(long, default_value = "sizes")]
    name: String,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
}

/// One dimension: what is measured at each of its sizes.
struct Dimension {
    name: &'static str,
    what: &'static str,
    sizes: &'static [u64],
    large: &'static [u64],
    figures: &'static [&'static str],
    measure: fn(&Bench<'_>, u64) -> Result<Vec<f64>>,
}

const DIMENSIONS: [Dimension; 13] = [
    Dimension {
        name: "idle",
        what: "a process with nothing to do, by rows of the ledger (50 tables of one topic): share of a core that it uses in percent, and \
               its sessions in the server, its oldest heartbeat in seconds, its page of figures in kilobytes and in milliseconds",
        sizes: &[300, 5_000, 50_000],
        large: &[],
        figures: &[
            "core_percent",
            "server_core_percent",
            "heartbeat_seconds",
            "page_kilobytes",
            "page_milliseconds",
        ],
        measure: idle,
    },
    Dimension {
        name: "hand-over",
        what: "partitions that one process gives to four more, with PostgreSQL 10 ms away: seconds until all have their share, partitions \
               that anybody lost",
        sizes: &[60, 600],
        large: &[3_000],
        figures: &["seconds", "lost"],
        measure: hand_over,
    },
    Dimension {
        name: "dear-rows",
        what: "a trigger that takes so many milliseconds a row, 200,000 records waiting: the longest time without a new row in seconds, \
               seconds from SIGTERM to the end, statements left in the server 5 s later",
        sizes: &[5, 20, 100],
        large: &[],
        figures: &["seconds_without_a_row", "stop_seconds", "left"],
        measure: dear_rows,
    },
    Dimension {
        name: "tables",
        what: "topics with a table each, all with records waiting, thirty sessions: seconds from the first table's first row to the last \
               table's, sessions in the server at most",
        sizes: &[5, 50],
        large: &[200],
        figures: &["seconds_apart", "sessions"],
        measure: tables,
    },
    Dimension {
        name: "first-row",
        what: "a topic with so many new partitions, Kafka 50 ms away: seconds from the start to the first row",
        sizes: &[6, 100, 1_000],
        large: &[],
        figures: &["seconds"],
        measure: first_row,
    },
    Dimension {
        name: "verify",
        what: "`rowmill verify` of 100,000 records by partitions: seconds",
        sizes: &[6, 100, 1_000],
        large: &[],
        figures: &["seconds"],
        measure: verify,
    },
    Dimension {
        name: "distant-postgres",
        what: "a drain of 500,000 records, PostgreSQL so many milliseconds away: rows a second",
        sizes: &[0, 10, 50],
        large: &[],
        figures: &["rows_per_second"],
        measure: distant,
    },
    Dimension {
        name: "distant-kafka",
        what: "a drain of 500,000 records, Kafka so many milliseconds away: rows a second",
        sizes: &[0, 10, 50],
        large: &[],
        figures: &["rows_per_second"],
        measure: distant_from_kafka,
    },
    Dimension {
        name: "distant-redis",
        what: "a drain of 50,000 records in 256 partitions, each with a token that was not seen before, Redis so many milliseconds away: \
               rows a second",
        sizes: &[0, 5, 50],
        large: &[],
        figures: &["rows_per_second"],
        measure: distant_from_redis,
    },
    Dimension {
        name: "columns",
        what: "a drain of records with so many integers, each a column: integers and rows a second",
        sizes: &[10, 100, 300],
        large: &[1_000],
        figures: &["integers_per_second", "rows_per_second"],
        measure: columns,
    },
    Dimension {
        name: "record-sizes",
        what: "a drain of 64 MB of log lines in records of so many bytes, by codec (dense: of spaces under zstd), no column for the text: \
               unpacked megabytes a second, and the peak of memory over all of these in megabytes",
        sizes: &[100, 1_000, 10_000, 100_000],
        large: &[1_000_000, 4_000_000],
        figures: &["none", "gzip", "snappy", "lz4", "zstd", "dense", "peak_megabytes"],
        measure: record_sizes,
    },
    Dimension {
        name: "processes",
        what: "so many processes that begin at once with 60 partitions and 500,000 records: rows a second, CPU-seconds of all of them",
        sizes: &[1, 2, 5],
        large: &[10],
        figures: &["rows_per_second", "cpu_seconds"],
        measure: processes,
    },
    Dimension {
        name: "refused",
        what: "100,000 records of which so many in a hundred are refused by the server: records a second",
        sizes: &[0, 1, 10, 40],
        large: &[],
        figures: &["records_per_second"],
        measure: refused,
    },
];

/// Nothing that is waited for takes longer, unless it never comes.
const WAIT_MAX: Duration = Duration::from_secs(180);

struct Bench<'a> {
    options: &'a Options,
    directory: &'a Path,
}

fn main() -> ExitCode {
    exit_code("sizes", run(&Options::parse()))
}

fn run(options: &Options) -> Result<()> {
    let directory = result_directory(&options.results, &options.name)?;
    let bench = Bench { options, directory: &directory };
    let mut summary = String::from("# Cost by size\n");
    for dimension in DIMENSIONS.iter().filter(|d| d.name.contains(&options.only)) {
        let columns = dimension.figures.join(",");
        let mut csv = format!("size,{columns}\n");
        summary.push_str(&format!(
            "\n## {}\n\n{}.\n\n| size | {} |\n|---|{}\n",
            dimension.name,
            dimension.what,
            dimension.figures.join(" | ").replace('_', " "),
            "---|".repeat(dimension.figures.len())
        ));
        let large = if options.large { dimension.large } else { &[] };
        for size in dimension.sizes.iter().chain(large) {
            let values = (dimension.measure)(&bench, *size)
                .with_context(|| format!("measure {} at {size}", dimension.name))?;
            let shown: Vec<String> = values.iter().map(|value| format!("{value:.2}")).collect();
            println!("{:<10} {size:>7}  {columns}: {}", dimension.name, shown.join(", "));
            csv.push_str(&format!("{size},{}\n", shown.join(",")));
            summary.push_str(&format!("| {size} | {} |\n", shown.join(" | ")));
        }
        fs::write(directory.join(format!("{}.csv", dimension.name)), csv)?;
    }
    summary.push_str(&conditions(&mut options.servers.postgres()?, "sizes")?);
    fs::write(directory.join("summary.md"), &summary)?;
    println!("written to {}", directory.display());
    Ok(())
}

// ---- the dimensions ----

const IDLE_TABLES: u64 = 50;
/// Looks at the whole ledger are up to half of this apart.
const IDLE_FOR: Duration = Duration::from_secs(60);

fn idle(bench: &Bench<'_>, rows: u64) -> Result<Vec<f64>> {
    let names: Vec<String> = (0..IDLE_TABLES).map(|number| format!("sizes_{number}")).collect();
    bench.fresh(&names)?;
    bench.topic("sizes", rows / IDLE_TABLES, 0)?;
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let models = names.iter().map(|table| model("sizes", table)).collect::<String>();
    let configuration = format!("[metrics]\nlisten = \"127.0.0.1:{port}\"\n{models}");
    let engine = bench.engine("idle", &bench.options.servers, &configuration)?;
    let mut client = bench.options.servers.postgres()?;
    engine.init(&[])?;
    let running = engine.start()?;
    let owned = "SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL";
    wait("all rows to be owned", || Ok(count(&mut client, owned)? == rows as i64))?;
    // The first looks are still part of the start.
    sleep(Duration::from_secs(5));
    let pid = running.0.id().to_string();
    let sessions: Vec<String> = client
        .query("SELECT pid::TEXT FROM pg_stat_activity WHERE application_name LIKE 'rowmill %'", &[])?
        .iter()
        .map(|row| row.get(0))
        .collect();
    let of_sessions =
        || -> Result<f64> { sessions.iter().try_fold(0.0, |sum, pid| Ok(sum + usage::of(pid)?.cpu_seconds)) };
    let (before, server_before) = (usage::of(&pid)?.cpu_seconds, of_sessions()?);
    let (began, mut oldest) = (Instant::now(), 0.0f64);
    while began.elapsed() < IDLE_FOR {
        let sql =
            "SELECT extract(epoch FROM max(clock_timestamp() - heartbeat_at))::FLOAT8 FROM rowmill.member";
        oldest = oldest.max(client.query_one(sql, &[])?.get(0));
        sleep(Duration::from_millis(50));
    }
    let percent = |seconds: f64| 100.0 * seconds / began.elapsed().as_secs_f64();
    let used = percent(usage::of(&pid)?.cpu_seconds - before);
    let server_used = percent(of_sessions()? - server_before);
    let asked_at = Instant::now();
    let page = page(port)?;
    let took_ms = asked_at.elapsed().as_secs_f64() * 1000.0;
    engine.stop(running)?;
    Ok(vec![used, server_used, oldest, page.len() as f64 / 1000.0, took_ms])
}

/// The page of figures, head and all.
fn page(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("connect to the page of figures")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).context("read the page of figures")?;
    ensure!(
        page.starts_with("HTTP/1.1 200 "),
        "no page of figures: {}",
        page.lines().next().unwrap_or_default()
    );
    Ok(page)
}

fn hand_over(bench: &Bench<'_>, partitions: u64) -> Result<Vec<f64>> {
    bench.fresh(&["sizes_0".to_owned()])?;
    bench.topic("sizes", partitions, 0)?;
    let (_proxy, servers) = bench.distant_postgres(Duration::from_millis(5))?;
    let engine = bench.engine("hand-over", &servers, &model("sizes", "sizes_0"))?;
    engine.init(&[])?;
    let mut client = bench.options.servers.postgres()?;
    let mut running = vec![engine.start()?];
    let owned = "SELECT count(*) FROM rowmill.ledger WHERE owner IS NOT NULL";
    wait("the first to have all", || Ok(count(&mut client, owned)? == partitions as i64))?;
    for _ in 1..5 {
        running.push(engine.start()?);
    }
    let began = Instant::now();
    let fair = format!(
        "SELECT count(*) FROM (SELECT owner FROM rowmill.ledger WHERE owner IS NOT NULL
         GROUP BY owner HAVING count(*) = {}) AS fair",
        partitions / 5
    );
    wait("all to have their share", || Ok(count(&mut client, &fair)? == 5))?;
    let took = began.elapsed().as_secs_f64();
    let lost = fs::read_to_string(&engine.log)?.matches("was lost").count();
    running.into_iter().try_for_each(|one| engine.stop(one))?;
    Ok(vec![took, lost as f64])
}

const DEAR_FOR: Duration = Duration::from_secs(15);

fn dear_rows(bench: &Bench<'_>, row_ms: u64) -> Result<Vec<f64>> {
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    client.batch_execute(&format!(
        "CREATE OR REPLACE FUNCTION dear() RETURNS TRIGGER LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_catalog.pg_sleep({row_ms} / 1000.0); RETURN NEW; END $$;
         CREATE TRIGGER dear BEFORE INSERT ON sizes_0 FOR EACH ROW EXECUTE FUNCTION dear()"
    ))?;
    bench.topic("sizes", 6, 200_000)?;
    let engine = bench.engine("dear-rows", &bench.options.servers, &model("sizes", "sizes_0"))?;
    engine.init(&[])?;
    let running = engine.start()?;
    let rows = "SELECT count(*) FROM sizes_0";
    wait("the first row", || Ok(count(&mut client, rows)? > 0))?;
    let (began, mut known, mut since, mut longest) = (Instant::now(), 0, Instant::now(), Duration::ZERO);
    while began.elapsed() < DEAR_FOR {
        let now = count(&mut client, rows)?;
        if now > known {
            (longest, known, since) = (longest.max(since.elapsed()), now, Instant::now());
        }
        sleep(Duration::from_millis(20));
    }
    longest = longest.max(since.elapsed());
    let stopping = Instant::now();
    engine.stop(running)?;
    let stopped = stopping.elapsed().as_secs_f64();
    sleep(Duration::from_secs(5));
    let left =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rowmill %' AND state <> 'idle'";
    Ok(vec![longest.as_secs_f64(), stopped, count(&mut client, left)? as f64])
}

fn tables(bench: &Bench<'_>, tables: u64) -> Result<Vec<f64>> {
    let names: Vec<String> = (0..tables).map(|number| format!("sizes_{number}")).collect();
    let mut client = bench.fresh(&names)?;
    let mut models = String::new();
    for name in &names {
        bench.topic(name, 1, 2_000)?;
        models += &model(name, name);
    }
    let engine = bench.engine("tables", &bench.options.servers, &models)?;
    engine.init(&[])?;
    let running = engine.start()?;
    let filled = "SELECT count(*) FROM rowmill.ledger WHERE rows > 0";
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'rowmill %'";
    let (mut first, mut most) = (None, 0);
    wait("all tables to have rows", || {
        most = most.max(count(&mut client, sessions)?);
        let filled = count(&mut client, filled)?;
        if filled > 0 {
            first.get_or_insert_with(Instant::now);
        }
        Ok(filled == tables as i64)
    })?;
    let apart = first.map_or(0.0, |first| first.elapsed().as_secs_f64());
    engine.stop(running)?;
    Ok(vec![apart, most as f64])
}

fn first_row(bench: &Bench<'_>, partitions: u64) -> Result<Vec<f64>> {
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    bench.topic("sizes", partitions, 10_000)?;
    let (_proxy, servers) = bench.distant_kafka(Duration::from_millis(25))?;
    let engine = bench.engine("first-row", &servers, &model("sizes", "sizes_0"))?;
    engine.init(&[])?;
    let began = Instant::now();
    let running = engine.start()?;
    wait("the first row", || Ok(count(&mut client, "SELECT count(*) FROM sizes_0")? > 0))?;
    let took = began.elapsed().as_secs_f64();
    engine.stop(running)?;
    Ok(vec![took])
}

const VERIFIED: u64 = 100_000;

fn verify(bench: &Bench<'_>, partitions: u64) -> Result<Vec<f64>> {
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    bench.topic("sizes", partitions, VERIFIED)?;
    let engine = bench.engine("verify", &bench.options.servers, &model("sizes", "sizes_0"))?;
    engine.init(&[])?;
    let running = engine.start()?;
    wait("all rows", || Ok(count(&mut client, "SELECT count(*) FROM sizes_0")? == VERIFIED as i64))?;
    engine.stop(running)?;
    let report = fs::File::create(bench.directory.join("verify.txt"))?;
    let began = Instant::now();
    let status = engine.verify(report)?.0.wait()?;
    ensure!(status.success(), "rowmill verify says {status}");
    Ok(vec![began.elapsed().as_secs_f64()])
}

fn distant(bench: &Bench<'_>, round_trip_ms: u64) -> Result<Vec<f64>> {
    const RECORDS: u64 = 500_000;
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    bench.topic("sizes", 6, RECORDS)?;
    let (_proxy, servers) = bench.distant_postgres(Duration::from_micros(500 * round_trip_ms))?;
    let engine = bench.engine("distant-postgres", &servers, &model("sizes", "sizes_0"))?;
    bench.drain(&engine, RECORDS, || stored(&mut client))
}

fn distant_from_kafka(bench: &Bench<'_>, round_trip_ms: u64) -> Result<Vec<f64>> {
    const RECORDS: u64 = 500_000;
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    bench.topic("sizes", 6, RECORDS)?;
    let (_proxy, servers) = bench.distant_kafka(Duration::from_micros(500 * round_trip_ms))?;
    let engine = bench.engine("distant-kafka", &servers, &model("sizes", "sizes_0"))?;
    bench.drain(&engine, RECORDS, || stored(&mut client))
}

fn distant_from_redis(bench: &Bench<'_>, round_trip_ms: u64) -> Result<Vec<f64>> {
    const RECORDS: u64 = 50_000;
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    client.batch_execute("ALTER TABLE sizes_0 ADD userid TEXT NOT NULL")?;
    let mut pipe = redis::pipe();
    for user in 0..RECORDS {
        pipe.set(format!("sizes:{user}"), user).ignore();
    }
    pipe.query::<()>(&mut bench.options.servers.redis()?).context("write users to Redis")?;
    let write = |n: u64, json: &mut Vec<u8>| {
        json.extend_from_slice(format!("{{\"n\":{n},\"token\":\"{n}\"}}").as_bytes());
    };
    kafka::fill(&bench.options.servers.kafka(), "sizes", 256, RECORDS, write)?;
    let (_proxy, servers) = bench.distant_redis(Duration::from_micros(500 * round_trip_ms))?;
    let lookup = "userid = { lookup = \"user\", field = \"token\" }\n[lookup.user]\nkey = \"sizes:{}\"\n";
    let engine = bench.engine("distant-redis", &servers, &(model("sizes", "sizes_0") + lookup))?;
    bench.drain(&engine, RECORDS, || stored(&mut client))
}

fn columns(bench: &Bench<'_>, columns: u64) -> Result<Vec<f64>> {
    const INTEGERS: u64 = 5_000_000;
    let records = INTEGERS / columns;
    let more = (1..columns).map(|number| format!("ALTER TABLE sizes_0 ADD c{number} INTEGER NOT NULL;"));
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    client.batch_execute(&more.collect::<String>())?;
    let write = |n: u64, json: &mut Vec<u8>| {
        json.extend_from_slice(format!("{{\"n\":{n}").as_bytes());
        for number in 1..columns {
            json.extend_from_slice(format!(",\"c{number}\":{}", (n + number) % 1000).as_bytes());
        }
        json.push(b'}');
    };
    kafka::fill(&bench.options.servers.kafka(), "sizes", 6, records, write)?;
    let engine = bench.engine("columns", &bench.options.servers, &model("sizes", "sizes_0"))?;
    let rows = bench.drain(&engine, records, || stored(&mut client))?[0];
    Ok(vec![rows * columns as f64, rows])
}

/// As a service writes them: alike, and not the same.
fn log_line(n: u64, out: &mut Vec<u8>) {
    let (path, user) = (n * 7 % 97, n.wrapping_mul(2_654_435_761) % 100_000);
    out.extend_from_slice(
        format!(
            "time={n} level=info method=GET path=/api/v1/items/{path} user={user} status=200 took_ms={}; ",
            n % 41
        )
        .as_bytes(),
    );
}

fn record_sizes(bench: &Bench<'_>, bytes: u64) -> Result<Vec<f64>> {
    const ALL_BYTES: u64 = 64_000_000;
    let records = (ALL_BYTES / bytes).max(16);
    let lines: Vec<u8> = (0..100_000).fold(Vec::new(), |mut lines, n| {
        log_line(n, &mut lines);
        lines
    });
    let (mut figures, mut peak) = (Vec::new(), 0.0f64);
    for codec in ["none", "gzip", "snappy", "lz4", "zstd", "dense"] {
        let write = |n: u64, json: &mut Vec<u8>| {
            json.extend_from_slice(format!("{{\"n\":{n},\"text\":\"").as_bytes());
            let text = (bytes as usize).saturating_sub(json.len() + 2);
            if codec == "dense" {
                json.resize(json.len() + text, b' ');
            } else {
                let from = (n as usize).wrapping_mul(1009) % lines.len();
                json.extend(lines.iter().cycle().skip(from).take(text));
            }
            json.extend_from_slice(b"\"}");
        };
        let mut client = bench.fresh(&["sizes_0".to_owned()])?;
        let mut kafka = bench.options.servers.kafka();
        kafka.set("compression.type", if codec == "dense" { "zstd" } else { codec });
        kafka::fill(&kafka, "sizes", 6, records, write)?;
        let configuration = format!("message_max = \"5MB\"\n{}", model("sizes", "sizes_0"));
        let engine = bench.engine("record-sizes", &bench.options.servers, &configuration)?;
        let began = Instant::now();
        engine.init(&[])?;
        let running = engine.start()?;
        wait("all records to be stored", || Ok(stored(&mut client)? as u64 >= records))?;
        // With its start: a drain of a few large records is one transaction.
        figures.push((records * bytes) as f64 / 1e6 / began.elapsed().as_secs_f64());
        peak = peak.max(usage::of(&running.0.id().to_string())?.rss_peak_mb());
        engine.stop(running)?;
    }
    figures.push(peak);
    Ok(figures)
}

fn processes(bench: &Bench<'_>, processes: u64) -> Result<Vec<f64>> {
    const RECORDS: u64 = 500_000;
    bench.fresh(&["sizes_0".to_owned()])?;
    bench.topic("sizes", 60, RECORDS)?;
    let engine = bench.engine("processes", &bench.options.servers, &model("sizes", "sizes_0"))?;
    let drained = engine.drain(processes as usize, RECORDS)?;
    Ok(vec![drained.visible.rows_per_second(), drained.usage.cpu_seconds])
}

fn refused(bench: &Bench<'_>, percent: u64) -> Result<Vec<f64>> {
    const RECORDS: u64 = 100_000;
    let mut client = bench.fresh(&["sizes_0".to_owned()])?;
    // Spread, as bad ones are, and never fifty in a row.
    client.batch_execute(&format!("ALTER TABLE sizes_0 ADD CHECK (n * 37 % 100 >= {percent})"))?;
    bench.topic("sizes", 6, RECORDS)?;
    let models = format!("[guard]\ndead_letter_share = 1.0\n{}", model("sizes", "sizes_0"));
    let engine = bench.engine("refused", &bench.options.servers, &models)?;
    bench.drain(&engine, RECORDS, || {
        count(&mut client, "SELECT coalesce(sum(rows + dead), 0)::BIGINT FROM rowmill.ledger")
    })
}

// ---- what they share ----

impl Bench<'_> {
    /// No ledger, and empty tables of these names.
    fn fresh(&self, tables: &[String]) -> Result<Client> {
        let sql = tables.iter().map(|table| {
            format!(
                "DROP TABLE IF EXISTS {table};
                 CREATE TABLE {table} (n BIGINT NOT NULL, _topic TEXT, _partition INTEGER, _offset BIGINT);"
            )
        });
        self.options.servers.fresh_tables(&sql.collect::<String>())
    }

    fn topic(&self, name: &str, partitions: u64, records: u64) -> Result<()> {
        let write = |n: u64, json: &mut Vec<u8>| json.extend_from_slice(format!("{{\"n\":{n}}}").as_bytes());
        kafka::fill(&self.options.servers.kafka(), name, partitions as i32, records, write)
    }

    fn engine<'s>(&self, name: &str, servers: &'s Servers, models: &str) -> Result<Engine<'s>> {
        let configuration = self.directory.join(format!("{name}.toml"));
        fs::write(&configuration, format!("pipeline = \"sizes\"\nkafka.start = \"earliest\"\n{models}"))?;
        let log = self.directory.join(format!("{name}.log"));
        Ok(Engine { program: None, servers, configuration, log })
    }

    /// Runs it until so many records have an outcome; how many a second.
    fn drain(
        &self,
        engine: &Engine<'_>,
        records: u64,
        mut done: impl FnMut() -> Result<i64>,
    ) -> Result<Vec<f64>> {
        engine.init(&[])?;
        let running = engine.start()?;
        let mut visible = Visible::default();
        wait("all records to have an outcome", || {
            let done = done()? as u64;
            visible.see(Instant::now(), done);
            Ok(done >= records)
        })?;
        engine.stop(running)?;
        Ok(vec![visible.rows_per_second()])
    }

    /// PostgreSQL, as if each way to it took so long.
    fn distant_postgres(&self, way: Duration) -> Result<(Proxy, Servers)> {
        let url = &self.options.servers.database_url;
        let (login, rest) = url.rsplit_once('@').context("the database's URL has a login")?;
        let (address, database) = rest.split_once('/').context("the database's URL names a database")?;
        let proxy = Proxy::from_afar(0, address.parse().context("read the database's address")?, way)?;
        let database_url = format!("{login}@127.0.0.1:{}/{database}", proxy.port());
        Ok((proxy, Servers { database_url, ..self.options.servers.clone() }))
    }

    /// The same with Redis.
    fn distant_redis(&self, way: Duration) -> Result<(Proxy, Servers)> {
        let url = &self.options.servers.redis_url;
        let (scheme, rest) = url.split_once("://").context("Redis has a URL")?;
        let (address, database) = rest.split_once('/').context("Redis's URL names a database")?;
        let proxy = Proxy::from_afar(0, address.parse().context("read Redis's address")?, way)?;
        let redis_url = format!("{scheme}://127.0.0.1:{}/{database}", proxy.port());
        Ok((proxy, Servers { redis_url, ..self.options.servers.clone() }))
    }

    /// Kafka, as if each way to it took so long, whatever the broker says of where it is.
    fn distant_kafka(&self, way: Duration) -> Result<(Proxy, Servers)> {
        let pair = self.options.members.split(' ').next().unwrap_or_default();
        let (advertised, real) = pair.split_once(':').context("KAFKA_MEMBERS has a pair of ports")?;
        let upstream = SocketAddr::from(([127, 0, 0, 1], real.parse()?));
        let proxy = Proxy::from_afar(advertised.parse()?, upstream, way)?;
        let brokers = format!("127.0.0.1:{advertised}");
        Ok((proxy, Servers { brokers, ..self.options.servers.clone() }))
    }
}

fn model(topic: &str, table: &str) -> String {
    format!(
        "\n[[model]]\ntopic = \"{topic}\"\ntable = \"{table}\"\n[model.columns]\n_topic = {{ kafka = \"topic\" }}\n\
         _partition = {{ kafka = \"partition\" }}\n_offset = {{ kafka = \"offset\" }}\n"
    )
}

/// Rows that the ledger counts.
fn stored(client: &mut Client) -> Result<i64> {
    count(client, "SELECT coalesce(sum(rows), 0)::BIGINT FROM rowmill.ledger")
}

fn count(client: &mut Client, sql: &str) -> Result<i64> {
    Ok(client.query_one(sql, &[]).with_context(|| sql.to_owned())?.get(0))
}

fn wait(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < WAIT_MAX, "waited {} s for {what}", WAIT_MAX.as_secs());
        sleep(Duration::from_millis(20));
    }
    Ok(())
}
