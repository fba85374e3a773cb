//! Texts that servers and other people's files bring along, through what the load tester writes for people and programs: its page in a
//! real browser, its CSV files, its lines for a terminal. Each is shown, and none does anything. Needs no servers.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

#[path = "../../tests/pipeline/hostile.rs"]
mod hostile;

/// A short run against nothing, whose files then say what the texts say.
fn run_directory(out: &Path) -> PathBuf {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtester"))
        .args(["--null", "--rate", "200", "--duration", "2s", "--warmup", "0s", "--quiet", "--out"])
        .arg(out)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 97)), "{text}");
    std::fs::read_dir(out).unwrap().next().expect("a run leaves a directory").unwrap().path()
}

fn change(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut run: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    change(&mut run);
    std::fs::write(path, run.to_string()).unwrap();
}

/// What a browser makes of a page once its script has run; `None` where there is no browser.
fn dom(page: &Path, profile: &Path) -> Option<String> {
    let browsers = ["chromium", "chromium-browser", "google-chrome"];
    let output = browsers.iter().find_map(|browser| {
        Command::new(browser)
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"])
            .arg("--virtual-time-budget=5000")
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("file://{}", page.display()))
            .output()
            .ok()
    });
    let Some(output) = output else {
        println!("NOT TESTED in a browser: there is none; `stack/install --checks` brings Debian's chromium");
        return None;
    };
    let dom = String::from_utf8(output.stdout).unwrap();
    assert!(dom.contains("<main>"), "{dom}{}", String::from_utf8_lossy(&output.stderr));
    Some(dom)
}

/// As HTML is written out again.
fn serialized(text: &str) -> String {
    text.replace('&', "&amp;").replace('\u{a0}', "&nbsp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// Outside of the data itself, which stands in a script element that no browser runs.
fn without_data(dom: &str) -> String {
    let (before, rest) = dom.split_once("<script type=\"application/json\"").expect("the data");
    let (_, after) = rest.split_once("</script>").expect("its end");
    format!("{before}{after}")
}

#[test]
fn a_page_shows_every_text_and_runs_none() {
    let directory = tempfile::tempdir().unwrap();
    let run = run_directory(&directory.path().join("out"));
    let texts = hostile::texts();
    assert_eq!(texts.len(), 1000);
    change(&run.join("run.json"), |run| {
        let (notes, rest) = texts.split_at(500);
        run["reasons"] = notes.iter().map(|text| json!({ "severity": "note", "text": text })).collect();
        let (violations, thresholds) = rest.split_at(250);
        run["violations"] = json!(violations);
        run["thresholds"] = thresholds.iter().map(|text| json!([text, false])).collect();
        run["error"] = json!(texts[0]);
        run["run"] = json!(texts[425]);
    });
    loadtester::tell::html::write(&run).unwrap();
    let profile = directory.path().join("profile");
    let Some(dom) = dom(&run.join("report.html"), &profile) else { return };
    let shown = without_data(&dom);
    for text in &texts {
        assert!(shown.contains(&serialized(text)), "{text:?} cannot be read in the page");
    }
    // Our own script, and no element of theirs.
    assert_eq!((shown.matches("<script").count(), shown.matches("<img").count()), (1, 0));
    let title = format!("<title>Load test {}</title>", serialized(&texts[425]));
    assert!(shown.contains(&title), "{:?}", shown.split("</title>").next());

    // Beside another run, under a name of theirs.
    let other = directory.path().join("<img src=x onerror=document.title='owned'>");
    std::fs::create_dir(&other).unwrap();
    std::fs::copy(run.join("run.json"), other.join("run.json")).unwrap();
    let page = directory.path().join("both.html");
    loadtester::tell::html::write_comparison(&[run, other.clone()], &page).unwrap();
    let shown = without_data(&self::dom(&page, &profile).expect("there was a browser"));
    assert!(shown.contains("<title>Load tests compared</title>") && !shown.contains("<img"), "{shown}");
    assert!(shown.contains(&serialized(&other.file_name().unwrap().to_string_lossy())));
}

#[test]
fn a_reader_of_csv_finds_every_text_in_its_cell() {
    use loadtester::measure::columns::{File, Values};
    use loadtester::plan::words::CsvTime;
    use loadtester::tell::csv::Sheet;

    let directory = tempfile::tempdir().unwrap();
    let texts = hostile::texts();
    let mut sheet = Sheet::create(directory.path(), File::Disk, CsvTime::UnixMs).unwrap();
    for (number, text) in texts.iter().enumerate() {
        let tags = [text.as_str(), text, "steady", text];
        sheet.write(number as i64 * 1_000_000, &tags, &Values::new(&File::Disk.columns())).unwrap();
    }
    sheet.close().unwrap();
    let mut reader =
        csv::ReaderBuilder::new().has_headers(true).from_path(directory.path().join("disk.csv")).unwrap();
    let rows: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().unwrap();
    assert_eq!(rows.len(), texts.len(), "a row each");
    for (row, text) in rows.iter().zip(&texts) {
        assert_eq!([&row[1], &row[2], &row[3], &row[4]], [text.as_str(), text, "steady", text]);
    }
}

#[test]
fn an_error_is_told_without_what_acts_on_a_terminal() {
    let directory = tempfile::tempdir().unwrap();
    // A path cannot hold NUL or a slash, and not everything at once.
    let texts = hostile::texts();
    for chunk in texts.chunks(50) {
        let name: String = chunk.concat().replace(['/', '\0'], " ").chars().take(60).collect();
        let output = Command::new(env!("CARGO_BIN_EXE_loadtester"))
            .args(["scenario", "check"])
            .arg(directory.path().join(&name))
            .output()
            .unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(said.chars().find(|c| hostile::acts(*c) && *c != '\n'), None, "{said:?}");
        assert!(said.lines().skip(1).all(|line| line.starts_with("    ")), "{said}");
    }
}
