//! A WebDriver client for WebKitWebDriver: the few calls the tests need.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use serde_json::{Value, json};
use tests_web::page::{Browser, Key};

use crate::desktop::{Desktop, end, find};

/// Longest any single call may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A session with the shell's webview.
pub struct WebDriver {
    driver: Child,
    base: String,
    session: String,
    agent: ureq::Agent,
    /// Process of the program under test: it outlives the driver otherwise.
    program: Option<u32>,
}

impl WebDriver {
    /// Starts the driver on this desktop and lets it start the program with these arguments.
    pub fn start(desktop: &Desktop, program: &Path, arguments: &[&str]) -> Result<Self> {
        let path = find("WebKitWebDriver").context("WebKitWebDriver is not installed")?;
        let port = free_port()?;
        let driver = desktop
            .command(&path, "driver.log")?
            .args([format!("--port={port}"), "--host=127.0.0.1".to_string()])
            .env("TAURI_AUTOMATION", "true")
            .env("TAURI_WEBVIEW_AUTOMATION", "true")
            .env("MODEL1_TEST", "1")
            .env("MODEL1_TOKEN_MS", tests_web::host::TOKEN_MS)
            .spawn()?;
        let agent: ureq::Agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .build()
            .into();
        let mut session = Self {
            driver,
            base: format!("http://127.0.0.1:{port}"),
            session: String::new(),
            agent,
            program: None,
        };
        session.wait_for_driver()?;
        let options = json!({ "binary": program.to_string_lossy(), "args": arguments });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "webkitgtk:browserOptions": options, "timeouts": { "script": 60_000, "pageLoad": 60_000 } } } });
        let answer = session
            .send("POST", "/session", &wanted)
            .context("starting the program through WebKitWebDriver")?;
        session.session = answer["sessionId"]
            .as_str()
            .ok_or_else(|| anyhow!("no session in {answer}"))?
            .to_string();
        session.program = child_of(session.driver.id(), program);
        Ok(session)
    }

    fn wait_for_driver(&mut self) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(20);
        loop {
            match self.send("GET", "/status", &Value::Null) {
                Ok(status) if status["ready"] == json!(true) => return Ok(()),
                _ if Instant::now() > until => bail!("WebKitWebDriver did not start"),
                _ => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    /// Process of the program under test.
    pub fn program(&self) -> Option<u32> {
        self.program
    }

    fn send(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}{path}", self.base);
        let mut answer = match method {
            "GET" => self.agent.get(&url).call()?,
            "DELETE" => self.agent.delete(&url).call()?,
            _ => self
                .agent
                .post(&url)
                .header("Content-Type", "application/json")
                .send(body.to_string())?,
        };
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string()?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("{method} {path}: {text}"))?;
        let value = value["value"].clone();
        match value["error"].as_str() {
            Some(error) => bail!(
                "{method} {path}: {error}: {}",
                value["message"].as_str().unwrap_or_default()
            ),
            None => Ok(value),
        }
    }

    fn call(&self, method: &str, path: &str, body: Value) -> Result<Value> {
        self.send(method, &format!("/session/{}{path}", self.session), &body)
    }

    fn actions(&self, source: Value) -> Result<()> {
        self.call("POST", "/actions", json!({ "actions": [source] })).map(drop)
    }
}

impl Browser for WebDriver {
    fn open(&mut self, url: &str) -> Result<()> {
        self.call("POST", "/url", json!({ "url": url })).map(drop)
    }

    fn reload(&mut self) -> Result<()> {
        self.call("POST", "/refresh", json!({})).map(drop)
    }

    fn eval(&mut self, script: &str) -> Result<Value> {
        self.call(
            "POST",
            "/execute/sync",
            json!({ "script": format!("return ({script});"), "args": [] }),
        )
    }

    fn click(&mut self, x: f64, y: f64) -> Result<()> {
        let (x, y) = (x.round(), y.round());
        self.actions(
            json!({ "type": "pointer", "id": "mouse", "parameters": { "pointerType": "mouse" }, "actions": [
            { "type": "pointerMove", "duration": 0, "x": x, "y": y, "origin": "viewport" },
            { "type": "pointerDown", "button": 0 },
            { "type": "pause", "duration": 50 },
            { "type": "pointerUp", "button": 0 }] }),
        )
    }

    fn shift_click(&mut self, x: f64, y: f64) -> Result<()> {
        let shift =
            |kind: &str| json!({ "type": "key", "id": "keyboard", "actions": [{ "type": kind, "value": "\u{e008}" }] });
        self.actions(shift("keyDown"))?;
        self.click(x, y)?;
        self.actions(shift("keyUp"))
    }

    fn type_text(&mut self, text: &str) -> Result<()> {
        let keys: Vec<Value> = text
            .chars()
            .flat_map(|c| {
                [
                    json!({ "type": "keyDown", "value": c }),
                    json!({ "type": "keyUp", "value": c }),
                ]
            })
            .collect();
        self.actions(json!({ "type": "key", "id": "keyboard", "actions": keys }))
    }

    fn press(&mut self, key: Key, control: bool) -> Result<()> {
        let value = match key {
            Key::Enter => '\u{e007}',
            Key::Escape => '\u{e00c}',
            Key::Char(c) => c,
        };
        let mut keys = vec![
            json!({ "type": "keyDown", "value": value }),
            json!({ "type": "keyUp", "value": value }),
        ];
        if control {
            keys.insert(0, json!({ "type": "keyDown", "value": '\u{e009}' }));
            keys.push(json!({ "type": "keyUp", "value": '\u{e009}' }));
        }
        self.actions(json!({ "type": "key", "id": "keyboard", "actions": keys }))
    }

    fn screenshot(&mut self) -> Result<Vec<u8>> {
        let data = self.call("GET", "/screenshot", Value::Null)?;
        let data = data.as_str().ok_or_else(|| anyhow!("no picture in the answer"))?;
        Ok(base64::engine::general_purpose::STANDARD.decode(data)?)
    }

    fn log(&self) -> Vec<String> {
        Vec::new()
    }
}

impl Drop for WebDriver {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            let _ = self.send("DELETE", &format!("/session/{}", self.session), &Value::Null);
        }
        if let Some(process) = self.program {
            let _ = Command::new("kill")
                .arg(process.to_string())
                .stderr(Stdio::null())
                .status();
            // It writes down what it has to before it goes.
            let until = Instant::now() + Duration::from_secs(3);
            while Path::new(&format!("/proc/{process}")).exists() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        end(&mut self.driver);
    }
}

/// A port nobody listens on just now.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The process of this program that a driver has started: other tests run theirs at the same time, but each driver and
/// what it starts are a process group of their own.
fn child_of(group: u32, program: &Path) -> Option<u32> {
    let program = program.canonicalize().ok()?;
    // "pid (name) state parent group ...", and the name may hold anything.
    let in_group = |process: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let fields = &stat[stat.rfind(')')? + 1..];
        Some(fields.split_whitespace().nth(2)? == group.to_string())
    };
    let entries = std::fs::read_dir("/proc").ok()?;
    entries
        .flatten()
        .filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok())
        .filter(|process| in_group(*process) == Some(true))
        .find(|process| std::fs::read_link(format!("/proc/{process}/exe")).is_ok_and(|exe| exe == program))
}
