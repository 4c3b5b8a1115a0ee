//! A headless Chromium of our own: new profile, no network but this machine, ended with the value.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use serde_json::{Value, json};
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

use crate::page::{Browser, Key};

/// Longest any single call may take: first frames in software GL on two busy cores.
const PATIENCE: Duration = Duration::from_secs(90);

/// The program, if this machine has it.
pub fn find() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("MODEL1_CHROMIUM") {
        return Some(PathBuf::from(path));
    }
    let path = std::env::var_os("PATH")?;
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |d| d.join(name)))
        .find(|p| p.is_file())
}

/// A running Chromium with one page.
pub struct Chromium {
    child: Child,
    _profile: tempfile::TempDir,
    socket: WebSocket<TcpStream>,
    session: Option<String>,
    next: u64,
    /// Messages of the console, errors of the page and violations of its policy, as they came.
    pub console: Vec<String>,
    events: VecDeque<Value>,
}

impl Chromium {
    /// Starts one with a page of this size, in CSS pixels.
    pub fn start(program: &Path, width: u32, height: u32) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, program, width, height, &[])
    }

    /// The same on a machine with [`crate::host::few_fonts`].
    pub fn start_with_few_fonts(program: &Path, width: u32, height: u32) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let fonts = crate::host::few_fonts(profile.path())?;
        Self::start_in(profile, program, width, height, &[("FONTCONFIG_FILE", &fonts)])
    }

    fn start_in(
        profile: tempfile::TempDir,
        program: &Path,
        width: u32,
        height: u32,
        environment: &[(&str, &str)],
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--use-gl=angle",
                "--use-angle=swiftshader",
            ])
            .args([
                "--enable-unsafe-swiftshader",
                "--disable-quic",
                "--no-first-run",
                "--disable-sync",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-default-apps",
            ])
            .args([
                "--disable-dev-shm-usage",
                "--hide-scrollbars",
                "--mute-audio",
                "--remote-debugging-port=0",
            ])
            .arg(format!("--window-size={width},{height}"))
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| program.display().to_string())?;
        let socket = match connect(profile.path(), &mut child) {
            Ok(socket) => socket,
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(e);
            }
        };
        let mut browser = Self {
            child,
            _profile: profile,
            socket,
            session: None,
            next: 0,
            console: Vec::new(),
            events: VecDeque::new(),
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)?;
        browser.session = session["sessionId"].as_str().map(str::to_string);
        // Not "Network": it would repeat every frame of the page's WebSocket here, fonts included.
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        browser.resize(width, height, 1.0)?;
        Ok(browser)
    }

    /// Changes the size of the page, and its device pixels per CSS pixel.
    pub fn resize(&mut self, width: u32, height: u32, scale: f64) -> Result<()> {
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", metrics).map(drop)
    }

    /// Makes the system look dark or light to the page.
    pub fn dark(&mut self, dark: bool) -> Result<()> {
        let value = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": value }] });
        self.call("Emulation.setEmulatedMedia", media).map(drop)
    }

    /// What an input method shows while it composes, its cursor at the end, in whatever has the focus; empty = it gave
    /// the composition up.
    pub fn compose(&mut self, text: &str) -> Result<()> {
        let end = text.encode_utf16().count();
        let composition = json!({ "text": text, "selectionStart": end, "selectionEnd": end });
        self.call("Input.imeSetComposition", composition).map(drop)
    }

    /// Ends a composition with this text.
    pub fn commit(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    /// Clicks with these modifiers: 2 = Ctrl, 8 = Shift.
    fn click_with(&mut self, x: f64, y: f64, modifiers: u32) -> Result<()> {
        for (kind, buttons, count) in [("mouseMoved", 0, 0), ("mousePressed", 1, 1), ("mouseReleased", 0, 1)] {
            let button = if count > 0 { "left" } else { "none" };
            self.call(
                "Input.dispatchMouseEvent",
                json!({ "type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": count,
                        "modifiers": modifiers }),
            )?;
        }
        Ok(())
    }

    /// One call of the DevTools protocol; its result.
    pub fn call(&mut self, method: &str, params: Value) -> Result<Value> {
        self.next += 1;
        let id = self.next;
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.socket
            .send(Message::text(message.to_string()))
            .with_context(|| method.to_string())?;
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.receive().with_context(|| method.to_string())?;
            if answer["id"] == json!(id) {
                if let Some(error) = answer.get("error") {
                    bail!("{method}: {error}");
                }
                return Ok(answer["result"].clone());
            }
            self.note(answer);
            if Instant::now() > until {
                bail!("{method}: no answer within {PATIENCE:?}");
            }
        }
    }

    fn receive(&mut self) -> Result<Value> {
        loop {
            match self.socket.read()? {
                Message::Text(text) => return Ok(serde_json::from_str(text.as_str())?),
                Message::Close(_) => bail!("the browser closed the connection"),
                _ => {}
            }
        }
    }

    /// Keeps what the page said of itself.
    fn note(&mut self, event: Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Runtime.consoleAPICalled") => {
                let text: Vec<String> = params["args"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|a| {
                        a["value"]
                            .as_str()
                            .map_or_else(|| a["description"].to_string(), str::to_string)
                    })
                    .collect();
                self.console.push(format!(
                    "{}: {}",
                    params["type"].as_str().unwrap_or("log"),
                    text.join(" ")
                ));
            }
            Some("Runtime.exceptionThrown") => {
                let details = &params["exceptionDetails"];
                self.console.push(format!(
                    "exception: {} {}",
                    details["text"], details["exception"]["description"]
                ));
            }
            Some("Log.entryAdded") => {
                let entry = &params["entry"];
                self.console.push(format!(
                    "{}: {}",
                    entry["level"].as_str().unwrap_or("log"),
                    entry["text"]
                ));
            }
            _ => self.events.push_back(event),
        }
        // Only the last ones are ever looked at.
        while self.events.len() > 200 {
            self.events.pop_front();
        }
    }
}

impl Browser for Chromium {
    fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        match answer["errorText"].as_str() {
            Some(error) => bail!("{url}: {error}"),
            None => Ok(()),
        }
    }

    fn reload(&mut self) -> Result<()> {
        self.call("Page.reload", json!({})).map(drop)
    }

    fn eval(&mut self, script: &str) -> Result<Value> {
        let answer = self.call(
            "Runtime.evaluate",
            json!({ "expression": script, "returnByValue": true, "awaitPromise": true, "userGesture": true }),
        )?;
        if let Some(details) = answer.get("exceptionDetails") {
            bail!(
                "{script}: {}",
                details["exception"]["description"].as_str().unwrap_or("an exception")
            );
        }
        Ok(answer["result"]["value"].clone())
    }

    fn click(&mut self, x: f64, y: f64) -> Result<()> {
        self.click_with(x, y, 0)
    }

    fn shift_click(&mut self, x: f64, y: f64) -> Result<()> {
        self.click_with(x, y, 8)
    }

    fn type_text(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    fn press(&mut self, key: Key, control: bool) -> Result<()> {
        let (name, code, number) = key.names();
        let modifiers = if control { 2 } else { 0 };
        for kind in ["rawKeyDown", "keyUp"] {
            self.call(
                "Input.dispatchKeyEvent",
                json!({ "type": kind, "key": name, "code": code, "windowsVirtualKeyCode": number,
                        "modifiers": modifiers }),
            )?;
        }
        Ok(())
    }

    fn screenshot(&mut self) -> Result<Vec<u8>> {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let data = answer["data"]
            .as_str()
            .ok_or_else(|| anyhow!("no picture in the answer"))?;
        Ok(base64::engine::general_purpose::STANDARD.decode(data)?)
    }

    fn log(&self) -> Vec<String> {
        self.console.clone()
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        // Asked first so that its helper processes end, too.
        self.session = None;
        let _ = self
            .socket
            .send(Message::text(json!({ "id": 0, "method": "Browser.close" }).to_string()));
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the browser says where it listens, and connects.
fn connect(profile: &Path, child: &mut Child) -> Result<WebSocket<TcpStream>> {
    let until = Instant::now() + PATIENCE;
    let told = profile.join("DevToolsActivePort");
    loop {
        if let Some(status) = child.try_wait()? {
            bail!("the browser ended at once: {status}");
        }
        let text = std::fs::read_to_string(&told).unwrap_or_default();
        if let Some((port, path)) = text.trim().split_once('\n') {
            let stream = TcpStream::connect(("127.0.0.1", port.trim().parse::<u16>()?))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            let url = format!("ws://127.0.0.1:{}{}", port.trim(), path.trim());
            // Screenshots come in one message.
            let limits = WebSocketConfig::default()
                .max_message_size(Some(256 << 20))
                .max_frame_size(Some(256 << 20));
            let (socket, _) = tungstenite::client::client_with_config(url, stream, Some(limits))
                .map_err(|e| anyhow!("DevTools: {e}"))?;
            return Ok(socket);
        }
        if Instant::now() > until {
            bail!("the browser did not say where it listens within {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
