//! The page at `/docs` in a real browser, told what to do by its driver (W3C WebDriver): looked at, filled in, sent.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands, with the line")]

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::contract::client;
use crate::serve::open;
use crate::world::{World, wait_for};

/// How WebDriver names an element in its answers.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser of its own, without a window.
struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the session ends the browser, which the driver's end would not.
        if !self.session.is_empty() && TcpStream::connect(self.address).is_ok() {
            let mut client = client(self.address);
            client
                .send(format!("DELETE /session/{} HTTP/1.1\r\nHost: {}\r\n\r\n", self.session, self.address));
            client.reply();
        }
        self.driver.kill().ok();
        self.driver.wait().ok();
    }
}

impl Browser {
    /// `None` where there is no browser or no driver, which is said; in CI that is a failure.
    fn open(world: &World) -> Option<Browser> {
        let found = |names: [&str; 3]| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let all: Vec<_> =
                std::env::split_paths(&path).flat_map(|dir| names.map(|name| dir.join(name))).collect();
            all.into_iter().find(|program| program.is_file())
        };
        let browser = found(["chromium", "chromium-browser", "google-chrome"]);
        let driver = found(["chromedriver", "chromium-driver", "chromium.chromedriver"]);
        let (Some(browser), Some(driver)) = (browser, driver) else {
            let words = "NOT TESTED in a browser: there is no chromium, or no chromedriver; `stack/install --contract` brings them";
            assert!(std::env::var("CI").is_err(), "{words}");
            println!("{words}");
            return None;
        };
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new(driver)
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut made = Browser { driver, address, session: String::new() };
        wait_for("the browser's driver", 120, || TcpStream::connect(address).is_ok());
        let profile = format!("--user-data-dir={}", world.path("profile").display());
        // As root there is no sandbox; and what it shows is ours.
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            &profile,
        ];
        let options = json!({ "binary": browser, "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": { "goog:chromeOptions": options } } });
        made.session = made.ask("/session", &wanted)["sessionId"].as_str().unwrap().to_owned();
        Some(made)
    }

    #[track_caller]
    fn ask(&self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let mut client = client(self.address);
        client.send(format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.address,
            body.len()
        ));
        let reply = client.reply().unwrap_or_else(|| panic!("no answer of the driver to {path}"));
        let mut json: Value = serde_json::from_slice(&reply.body).unwrap();
        assert_eq!(reply.status, 200, "{path} {body}: {json}");
        json["value"].take()
    }

    #[track_caller]
    fn command(&self, command: &str, body: &Value) -> Value {
        self.ask(&format!("/session/{}/{command}", self.session), body)
    }

    /// What a script on the page returns.
    #[track_caller]
    fn script(&self, script: &str) -> Value {
        self.command("execute/sync", &json!({ "script": script, "args": [] }))
    }

    #[track_caller]
    fn element(&self, selector: &str) -> String {
        let found = self.command("element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().unwrap().to_owned()
    }

    /// As a person does: only what can be seen and reached is clicked.
    #[track_caller]
    fn click(&self, selector: &str) {
        self.command(&format!("element/{}/click", self.element(selector)), &json!({}));
    }

    #[track_caller]
    fn write(&self, selector: &str, text: &str) {
        self.command(&format!("element/{}/clear", self.element(selector)), &json!({}));
        self.command(&format!("element/{}/value", self.element(selector)), &json!({ "text": text }));
    }

    /// The browser's own protocol, for what WebDriver has no word for.
    #[track_caller]
    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.command("goog/cdp/execute", &json!({ "cmd": command, "params": parameters }))
    }

    /// `SERVE_SCREENSHOTS` names a directory for whoever wants to see them.
    #[track_caller]
    fn photograph(&self, name: &str) {
        let Ok(directory) = std::env::var("SERVE_SCREENSHOTS") else { return };
        let picture = self.devtools("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let text = picture["data"].as_str().unwrap();
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).unwrap();
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(format!("{directory}/{name}.png"), bytes).unwrap();
    }
}

/// The form of one operation, and what came of it.
struct Form<'b> {
    browser: &'b Browser,
    place: String,
}

impl Form<'_> {
    #[track_caller]
    fn of<'b>(browser: &'b Browser, operation: &str) -> Form<'b> {
        let place = format!("[id=\"{operation}\"]");
        browser.click(&format!("{place} > summary"));
        Form { browser, place }
    }

    #[track_caller]
    fn fill(&self, name: &str, text: &str) -> &Self {
        self.browser.write(&format!("{} [name=\"{name}\"]", self.place), text);
        self
    }

    /// Takes one of the choices of a list.
    #[track_caller]
    fn choose(&self, name: &str, value: &str) -> &Self {
        self.browser.click(&format!("{} [name=\"{name}\"] option[value=\"{value}\"]", self.place));
        self
    }

    /// The line with the status, and what is shown below it.
    #[track_caller]
    fn send(&self) -> (String, String) {
        let Form { browser, place } = self;
        browser.script(&format!("document.querySelector('{place} .result').replaceChildren()"));
        browser.click(&format!("{place} button"));
        let look = |what: &str| {
            let found = browser
                .script(&format!("return document.querySelector('{place} .result {what}')?.textContent"));
            found.as_str().unwrap_or_default().to_owned()
        };
        wait_for("an answer on the page", 60, || !["", "…"].contains(&&*look("p")));
        (look("p"), look("pre"))
    }
}

const HOSTILE: &str = "[[endpoint]]\npath = \"/hostile/{a}\"\nsummary = \"<img src=x onerror=alert(1)>\"\n\
description = \"</details><script>document.title='taken'</script>\"\nparams.a = { type = \"text\", description = \"<b>bold</b>\" }\n\
sql = \"SELECT :a::text AS a\"\n";

#[test]
#[ignore = "make serve-contract runs it"]
fn a_person_can_try_every_endpoint_on_its_page() {
    let world = World::new("browser");
    let Some(browser) = Browser::open(&world) else { return };
    world.sql().batch_execute(include_str!("../contract/tables.sql")).unwrap();
    let endpoints = format!("{}\n{HOSTILE}", include_str!("../contract/endpoints.toml"));
    let open = open(
        &world,
        "title = \"Answers & <b>more</b>\"\nqueue_wait = \"30s\"\nstatement_timeout = \"30s\"",
        &endpoints,
    );
    let origin = format!("http://{}", open.address);
    browser.command("url", &json!({ "url": format!("{origin}/docs") }));
    wait_for("the page to be ready", 60, || {
        browser.script("return document.getElementById('main').dataset.ready") == "yes"
    });
    // What others wrote is shown, and does nothing.
    assert_eq!(browser.script("return document.title"), "Answers & <b>more</b>");
    assert_eq!(browser.script("return document.querySelector('h1').textContent"), "Answers & <b>more</b>");
    assert_eq!(
        browser.script("return document.querySelectorAll('main img, main script, main b b').length"),
        0
    );
    // Nothing came from elsewhere, and nothing was kept from it by the policy that would have.
    let loaded = browser.script("return performance.getEntriesByType('resource').map(entry => entry.name)");
    assert_eq!(loaded, json!([format!("{origin}/openapi.json")]));
    let count = browser.script("return document.querySelectorAll('main > details').length");
    assert_eq!(
        count.as_u64().unwrap() as usize,
        endpoints.matches("[[endpoint]]").count(),
        "an endpoint is missing"
    );
    let unlabeled = "return [...document.querySelectorAll('main input, main select')].filter(i => !i.labels.length).length";
    assert_eq!(browser.script(unlabeled), 0);

    // A row by its number, beside the command that asks the same.
    let object = Form::of(&browser, "GET__object__n_");
    let (status, shown) = object.fill("n", "3").send();
    assert!(status.starts_with("200 "), "{status} {shown}");
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), json!({ "n": 3, "word": "say \"x\", y" }));
    let command = browser.script("return document.querySelector('[id=\"GET__object__n_\"] pre').textContent");
    assert_eq!(command, format!("curl '{origin}/object/3' -H 'Accept: application/json'"));
    let (status, shown) = object.fill("n", "99").send();
    assert!(
        status.starts_with("404 ") && shown.contains("there is nothing with these values"),
        "{status} {shown}"
    );
    // Numbers that a script's own would round.
    let (status, shown) = object.fill("n", "9223372036854775808").send();
    assert!(status.starts_with("400 ") && shown.contains("out of range"), "{status} {shown}");
    // A row is made from a body; a second one of its name is refused.
    let accounts = Form::of(&browser, "POST__accounts");
    accounts
        .fill("name", "a'b <i>")
        .fill("about", "{\"k\": [1, null]}")
        .fill("score", "12345678901234567890.5");
    let (status, shown) = accounts.fill("tags", "x,y").send();
    assert!(status.starts_with("200 ") && shown.contains("12345678901234567890.5"), "{status} {shown}");
    let stored = "SELECT count(*) FROM account WHERE name = 'a''b <i>' AND active AND about = '{\"k\": [1, null]}' \
                  AND score = 12345678901234567890.5 AND tags = '{x,y}' AND born IS NULL";
    assert_eq!(world.count(stored), 1);
    let (status, shown) = accounts.send();
    assert!(status.starts_with("409 ") && shown.contains("\"done\": \"no\""), "{status} {shown}");
    accounts.fill("about", "{").send();
    let words =
        browser.script("return document.querySelector('[id=\"POST__accounts\"] .result').textContent");
    assert!(words.as_str().unwrap().contains("no JSON"), "{words}");
    // A chart is a picture, where one is asked for.
    let chart = Form::of(&browser, "GET__chart__n_");
    let (status, _) = chart.fill("n", "50").choose("accept", "image/svg+xml").send();
    assert!(status.starts_with("200 "), "{status}");
    let width = "return document.querySelector('[id=\"GET__chart__n_\"] .result img')?.naturalWidth";
    wait_for("the picture", 30, || browser.script(width).as_u64().is_some_and(|width| width > 300));
    let hostile = Form::of(&browser, "GET__hostile__a_");
    let (status, shown) = hostile.fill("a", "<script>/?&#%").send();
    assert!(status.starts_with("200 ") && shown.contains("<script>/?&#%"), "{status} {shown}");
    assert_eq!(browser.script("return document.title"), "Answers & <b>more</b>");

    // For a telephone and for a wall, by day and by night: nothing sticks out, and the text stands off from its ground.
    for (width, height) in [(360, 740), (1600, 900)] {
        for scheme in ["light", "dark"] {
            let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
            browser.devtools("Emulation.setDeviceMetricsOverride", &size);
            let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
            browser.devtools("Emulation.setEmulatedMedia", &features);
            assert_eq!(browser.script("return innerWidth"), width);
            let over =
                browser.script("return document.documentElement.scrollWidth - innerWidth").as_i64().unwrap();
            assert!(over <= 0, "{width} {scheme}: {over} pixels stick out");
            let brightness = |what: &str| {
                let color = browser
                    .script(&format!("return getComputedStyle(document.querySelector('{what}')).color"));
                let color = color.as_str().unwrap().to_owned();
                let parts: Vec<f64> = color
                    .split(|c: char| !c.is_ascii_digit() && c != '.')
                    .filter_map(|part| part.parse().ok())
                    .take(3)
                    .collect();
                parts.iter().sum::<f64>() / 3.0
            };
            for what in ["body", "summary b", ".bad", "pre"] {
                assert_eq!(
                    brightness(what) > 128.0,
                    scheme == "dark",
                    "{width} {scheme} {what}: {}",
                    brightness(what)
                );
            }
            browser.photograph(&format!("docs-{width}-{scheme}"));
        }
    }
}
