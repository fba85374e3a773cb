//! Answers by a primary key beside pgbench's prepared point select with as many connections, in rounds that take turns; and a long
//! CSV beside `psql \copy`, with the memory that it takes. `make serve-bench` runs it on servers of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use rowmill_bench::engine::Ending;
use rowmill_bench::program::{exit_code, result_directory};
use rowmill_bench::servers;
use rowmill_bench::usage;
use rowmill_bench::visible::median;
use rowmill_bench::wrk::{self, Seen};

/// Times answers by a primary key, and a long CSV.
#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Of load, in each round of each subject.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Sessions of `rowmill serve`.
    #[arg(long, default_value_t = 8)]
    sessions: usize,
    /// Rows of the CSV; 0 leaves it out.
    #[arg(long, default_value_t = 10_000_000)]
    csv_rows: u64,
    /// Further services that answer at the same paths: NAME=PORT=COMMAND; PORT is in their environment.
    #[arg(long)]
    beside: Vec<String>,
    /// Rows of their CSV: a hand-written service takes minutes for what the others take seconds for.
    #[arg(long, default_value_t = 1_000_000)]
    beside_csv_rows: u64,
    #[arg(long, default_value = "target/release")]
    programs: PathBuf,
    #[arg(long, default_value = "bench-results")]
    results: PathBuf,
}

fn main() -> ExitCode {
    exit_code("answers", run(&Arguments::parse()))
}

const ROWS: u32 = 100_000;
const PORT: u16 = 18411;

/// A service beside ours, and what was seen of it in each round.
struct Peer {
    name: String,
    port: u16,
    running: Ending,
    rounds: Vec<Asked>,
    csv: Option<(f64, f64)>,
}

/// What a service took for its answers.
#[derive(Clone, Copy, Debug)]
struct Asked {
    per_s: f64,
    cpu_us: f64,
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    pgbench_per_s: f64,
    serve: Asked,
}

fn run(arguments: &Arguments) -> Result<()> {
    let url =
        std::env::var("DATABASE_URL").context("DATABASE_URL is not set: run through make serve-bench")?;
    let out = result_directory(&arguments.results, "serve")?;
    let mut client =
        postgres::Client::connect(&url, postgres::NoTls).context("cannot connect to PostgreSQL")?;
    client.batch_execute(&format!(
        "DROP TABLE IF EXISTS answer; CREATE TABLE answer (id INT PRIMARY KEY, balance INT NOT NULL, filler CHAR(84) NOT NULL);
         INSERT INTO answer SELECT i, i % 1000, '' FROM generate_series(1, {ROWS}) AS i"
    ))?;
    // By itself: several statements at once are one transaction.
    client.batch_execute("VACUUM ANALYZE answer")?;
    let config = out.join("rowmill.toml");
    std::fs::write(
        &config,
        format!(
            "[metrics]\nlisten = \"off\"\n[serve]\nlisten = \"127.0.0.1:{PORT}\"\nconnections = {}\nqueue_max = 10000\n\
             [[endpoint]]\npath = \"/answer/{{id}}\"\nparams.id = {{ type = \"int4\" }}\nshape = \"object\"\n\
             sql = \"SELECT balance FROM answer WHERE id = :id\"\n\
             [[endpoint]]\npath = \"/rows/{{n}}\"\nparams.n = {{ type = \"int8\" }}\nstream = true\ntimeout = \"1h\"\nformats = [\"csv\"]\n\
             sql = \"SELECT i AS id, i % 1000 AS balance, md5(i::text) AS word, now() AS at FROM generate_series(1, :n) AS i\"\n",
            arguments.sessions
        ),
    )?;
    let log = std::fs::File::create(out.join("rowmill.log"))?;
    let child = Command::new(arguments.programs.join("rowmill"))
        .args(["serve", "--config"])
        .arg(&config)
        .stderr(log)
        .spawn()
        .context("cannot start rowmill serve: is it built?")?;
    let serve = Ending(child);
    wait_for("rowmill serve", PORT)?;
    let pid = serve.0.id().to_string();
    let mut peers = arguments.beside.iter().map(|text| peer(text, &url)).collect::<Result<Vec<_>>>()?;
    let mut rounds = Vec::new();
    for number in 1..=arguments.rounds {
        let pgbench_per_s = pgbench(arguments, &url, &out)?;
        let round = Round { pgbench_per_s, serve: asked(arguments, PORT, &pid, &out)? };
        println!("round {number}  {round:?}  ratio {:.2}", round.serve.per_s / round.pgbench_per_s);
        rounds.push(round);
        for peer in &mut peers {
            let found = asked(arguments, peer.port, &peer.running.0.id().to_string(), &out)?;
            println!("round {number}  {}  {found:?}", peer.name);
            peer.rounds.push(found);
        }
    }
    let csv = if arguments.csv_rows > 0 { Some(csv(arguments, &url, &pid)?) } else { None };
    for peer in peers.iter_mut().filter(|_| arguments.csv_rows > 0) {
        let (took_s, _) = download(peer.port, arguments.beside_csv_rows)?;
        peer.csv = Some((took_s, usage::of(&peer.running.0.id().to_string())?.rss_peak_mb()));
        println!("{}  CSV {:?}", peer.name, peer.csv);
    }
    std::fs::write(out.join("summary.md"), summary(arguments, &rounds, csv, &peers)?)?;
    println!("written to {}", out.display());
    Ok(())
}

fn wait_for(name: &str, port: u16) -> Result<()> {
    let began = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        ensure!(began.elapsed() < Duration::from_secs(30), "{name} does not listen on port {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Starts one of `--beside`.
fn peer(text: &str, url: &str) -> Result<Peer> {
    let mut parts = text.splitn(3, '=');
    let (Some(name), Some(port), Some(command)) = (parts.next(), parts.next(), parts.next()) else {
        bail!("--beside {text:?}: write NAME=PORT=COMMAND");
    };
    let mut words = command.split_whitespace();
    let child = Command::new(words.next().context("--beside without a command")?)
        .args(words)
        .env("PORT", port)
        .env("DATABASE_URL", url)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let running = Ending(child);
    let port = port.parse()?;
    wait_for(name, port)?;
    Ok(Peer { name: name.to_owned(), port, running, rounds: Vec::new(), csv: None })
}

/// Asks a service for a while, once it is warm.
fn asked(arguments: &Arguments, port: u16, pid: &str, out: &Path) -> Result<Asked> {
    ask(arguments, port, 1, out)?;
    let before = usage::of(pid)?;
    let Seen { requests, p50_ms, p99_ms, errors } = ask(arguments, port, arguments.seconds, out)?;
    let after = usage::of(pid)?;
    Ok(Asked {
        per_s: requests as f64 / arguments.seconds as f64,
        cpu_us: (after.cpu_seconds - before.cpu_seconds) * 1e6 / requests.max(1) as f64,
        p50_ms,
        p99_ms,
        errors,
    })
}

/// Point selects a second.
fn pgbench(arguments: &Arguments, url: &str, out: &Path) -> Result<f64> {
    let script = out.join("select.sql");
    std::fs::write(
        &script,
        format!("\\set id random(1, {ROWS})\nSELECT balance FROM answer WHERE id = :id;\n"),
    )?;
    let program = std::env::var("PGBIN")
        .map_or_else(|_| PathBuf::from("pgbench"), |dir| Path::new(&dir).join("pgbench"));
    let output = Command::new(program)
        .args(["-n", "-M", "prepared", "-j", "1", "-c", &arguments.connections.to_string()])
        .args(["-T", &arguments.seconds.to_string(), "-f"])
        .arg(&script)
        .arg(url)
        .output()
        .context("cannot run pgbench")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
        .with_context(|| format!("pgbench said: {text}{}", String::from_utf8_lossy(&output.stderr)))
}

fn ask(arguments: &Arguments, port: u16, seconds: u64, out: &Path) -> Result<Seen> {
    let script = out.join("get.lua");
    std::fs::write(
        &script,
        format!("request = function() return wrk.format('GET', '/answer/' .. math.random(1, {ROWS})) end\n"),
    )?;
    wrk::run(arguments.connections, seconds, &script, &format!("http://127.0.0.1:{port}"))
}

#[derive(Clone, Copy, Debug)]
struct Csv {
    copy_s: f64,
    serve_s: f64,
    bytes: u64,
    peak_mb: f64,
}

/// The same rows through both, to nowhere.
fn csv(arguments: &Arguments, url: &str, pid: &str) -> Result<Csv> {
    let n = arguments.csv_rows;
    let sql = format!(
        "\\copy (SELECT i AS id, i % 1000 AS balance, md5(i::text) AS word, now() AS at FROM generate_series(1, {n}) AS i) TO STDOUT CSV HEADER"
    );
    let program =
        std::env::var("PGBIN").map_or_else(|_| PathBuf::from("psql"), |dir| Path::new(&dir).join("psql"));
    let began = Instant::now();
    let status = Command::new(program).arg(url).args(["-qc", &sql]).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "psql could not copy");
    let copy_s = began.elapsed().as_secs_f64();
    let (serve_s, bytes) = download(PORT, n)?;
    let found = Csv { copy_s, serve_s, bytes, peak_mb: usage::of(pid)?.rss_peak_mb() };
    println!("{found:?}");
    Ok(found)
}

/// Seconds and bytes of so many rows of a service.
fn download(port: u16, rows: u64) -> Result<(f64, u64)> {
    let began = Instant::now();
    let output = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code} %{size_download}"])
        .arg(format!("http://127.0.0.1:{port}/rows/{rows}.csv"))
        .output()
        .context("cannot run curl")?;
    let took_s = began.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success() && text.starts_with("200 "),
        "the CSV broke: {text} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = text.rsplit(' ').next().and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    Ok((took_s, bytes))
}

fn summary(arguments: &Arguments, rounds: &[Round], csv: Option<Csv>, peers: &[Peer]) -> Result<String> {
    let middle = |of: &dyn Fn(&Round) -> f64| median(&rounds.iter().map(of).collect::<Vec<_>>());
    let mut text = format!(
        "# Answers beside their floor, {} rounds of {} s\n\nA row by its primary key: pgbench's prepared select over {connections} \
         connections, and `rowmill serve` with {} sessions asked by wrk over {connections} connections; each with one thread. Medians of \
         the rounds.\n\n",
        arguments.rounds,
        arguments.seconds,
        arguments.sessions,
        connections = arguments.connections
    );
    writeln!(text, "| | pgbench | rowmill serve |\n|---|---|---|")?;
    writeln!(
        text,
        "| answers/s | {:.0} | {:.0} |",
        middle(&|r| r.pgbench_per_s),
        middle(&|r| r.serve.per_s)
    )?;
    writeln!(text, "| own CPU, us an answer | | {:.1} |", middle(&|r| r.serve.cpu_us))?;
    writeln!(
        text,
        "| p50, p99, ms | | {:.2}, {:.2} |",
        middle(&|r| r.serve.p50_ms),
        middle(&|r| r.serve.p99_ms)
    )?;
    writeln!(text, "| failed | | {} |", rounds.iter().map(|r| r.serve.errors).sum::<u64>())?;
    writeln!(
        text,
        "\nRatio of the same round: {:.2}; must be 0.7, aim 0.85.",
        middle(&|r| r.serve.per_s / r.pgbench_per_s)
    )?;
    if let Some(csv) = csv {
        writeln!(
            text,
            "\nCSV of {} rows ({} MB): `psql \\copy` {:.1} s, `rowmill serve` {:.1} s, {:.2} of its speed (must be 0.4, aim 0.7); peak memory \
             of the process {:.0} MB (must be 64).",
            arguments.csv_rows,
            csv.bytes >> 20,
            csv.copy_s,
            csv.serve_s,
            csv.copy_s / csv.serve_s,
            csv.peak_mb
        )?;
    }
    for peer in peers {
        let middle = |of: &dyn Fn(&Asked) -> f64| median(&peer.rounds.iter().map(of).collect::<Vec<_>>());
        let ratios = rounds.iter().zip(&peer.rounds).map(|(ours, theirs)| theirs.cpu_us / ours.serve.cpu_us);
        write!(
            text,
            "\n{}, the same questions in the same rounds: {:.0} answers/s, {:.0} us of its CPU an answer ({:.1} times ours), p50 {:.2} ms, p99 \
             {:.2} ms, {} failed.",
            peer.name,
            middle(&|a| a.per_s),
            middle(&|a| a.cpu_us),
            median(&ratios.collect::<Vec<_>>()),
            middle(&|a| a.p50_ms),
            middle(&|a| a.p99_ms),
            peer.rounds.iter().map(|a| a.errors).sum::<u64>()
        )?;
        if let Some((took_s, peak_mb)) = peer.csv {
            write!(
                text,
                " A CSV of {} rows: {took_s:.1} s, peak memory {peak_mb:.0} MB.",
                arguments.beside_csv_rows
            )?;
        }
        text.push('\n');
    }
    text.push_str(&servers::conditions_with(
        "make serve-bench --",
        "- wrk: one thread; PostgreSQL on the same cores\n",
    )?);
    Ok(text)
}
