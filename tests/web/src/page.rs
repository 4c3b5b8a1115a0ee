//! Speaking with the interface inside a page, in whatever browser it is.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

/// Keys that tests press.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// Enter.
    Enter,
    /// Escape.
    Escape,
    /// A letter or digit.
    Char(char),
}

impl Key {
    /// `key`, `code` and number as browsers name it.
    pub fn names(self) -> (String, String, u32) {
        match self {
            Key::Enter => ("Enter".into(), "Enter".into(), 13),
            Key::Escape => ("Escape".into(), "Escape".into(), 27),
            Key::Char(c) => {
                let upper = c.to_ascii_uppercase();
                let code = if c.is_ascii_digit() {
                    format!("Digit{c}")
                } else {
                    format!("Key{upper}")
                };
                (c.to_string(), code, upper as u32)
            }
        }
    }
}

/// A browser with one page.
pub trait Browser {
    /// Goes to an address.
    fn open(&mut self, url: &str) -> Result<()>;
    /// Loads the page anew.
    fn reload(&mut self) -> Result<()>;
    /// Value of a JavaScript expression.
    fn eval(&mut self, script: &str) -> Result<Value>;
    /// Clicks at a place, in CSS pixels.
    fn click(&mut self, x: f64, y: f64) -> Result<()>;
    /// Clicks with Shift held.
    fn shift_click(&mut self, x: f64, y: f64) -> Result<()>;
    /// Types into whatever has the focus.
    fn type_text(&mut self, text: &str) -> Result<()>;
    /// Presses a key, with Ctrl if wanted.
    fn press(&mut self, key: Key, control: bool) -> Result<()>;
    /// The page as PNG.
    fn screenshot(&mut self) -> Result<Vec<u8>>;
    /// What the page wrote to its console.
    fn log(&self) -> Vec<String>;
}

/// Roles that a widget may be asked for by.
const ROLES: [&str; 3] = ["Button", "Cell", "Tab"];

/// A widget of the interface.
#[derive(Clone, Debug)]
pub struct Widget {
    /// Role: `Button`, `TextInput`, ...
    pub role: String,
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
    /// Left, top, width, height in CSS pixels.
    pub rect: [f64; 4],
    /// Whether it can be used.
    pub enabled: bool,
    /// Whether it is chosen or ticked.
    pub on: Option<bool>,
}

/// The interface at the end of a frame.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Frames so far.
    pub frame: u64,
    /// What the application says of itself.
    pub state: Value,
    /// Its widgets.
    pub widgets: Vec<Widget>,
}

impl Snapshot {
    /// The first widget of this name, else the first whose name contains these words. `Button: Compare` asks for the
    /// role, too.
    pub fn widget(&self, name: &str) -> Option<&Widget> {
        let (role, name) = name
            .split_once(": ")
            .filter(|(role, _)| ROLES.contains(role))
            .map_or((None, name), |(role, name)| (Some(role), name));
        let mut found = self.widgets.iter().filter(|w| role.is_none_or(|r| r == w.role));
        let exact = found.clone().find(|w| w.name == name);
        exact.or_else(|| found.find(|w| w.name.contains(name)))
    }

    /// Everything that can be read, for messages.
    pub fn words(&self) -> String {
        let words: Vec<String> = self
            .widgets
            .iter()
            .map(|w| match (w.name.is_empty(), w.value.is_empty()) {
                (false, false) => format!("{}: {} = {}", w.role, w.name, w.value),
                _ => format!("{}: {}{}", w.role, w.name, w.value),
            })
            .collect();
        words.join("\n")
    }

    /// Whether these words can be read anywhere.
    pub fn reads(&self, words: &str) -> bool {
        self.widgets
            .iter()
            .any(|w| w.name.contains(words) || w.value.contains(words))
    }
}

/// The interface in a browser.
pub struct Page<B: Browser> {
    /// The browser.
    pub browser: B,
    /// How long anything is waited for.
    pub patience: Duration,
    /// Texts go on to the end of the context in this page ([`crate::flow::write`]).
    pub(crate) endless: bool,
}

impl<B: Browser> Page<B> {
    /// A page in this browser.
    pub fn new(browser: B) -> Self {
        Self {
            browser,
            patience: Duration::from_secs(90),
            endless: false,
        }
    }

    /// The interface as it is now; an error where it has not started.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        let text = self
            .browser
            .eval("window.__model1_test ? window.__model1_test.snapshot() : null")?;
        let Some(text) = text.as_str() else {
            let cover = self
                .browser
                .eval("document.getElementById('cover')?.innerText ?? document.title")?;
            bail!("the interface has not started; the page reads: {cover}");
        };
        let json: Value = serde_json::from_str(text).context("snapshot")?;
        let widgets = json["widgets"]
            .as_array()
            .ok_or_else(|| anyhow!("no widgets in {text}"))?;
        let number = |v: &Value| v.as_f64().unwrap_or(f64::NAN);
        let string = |v: &Value| v.as_str().unwrap_or_default().to_string();
        Ok(Snapshot {
            frame: json["frame"].as_u64().unwrap_or(0),
            state: json["state"].clone(),
            widgets: widgets
                .iter()
                .map(|w| Widget {
                    role: string(&w["role"]),
                    name: string(&w["name"]),
                    value: string(&w["value"]),
                    rect: [
                        number(&w["rect"][0]),
                        number(&w["rect"][1]),
                        number(&w["rect"][2]),
                        number(&w["rect"][3]),
                    ],
                    enabled: w["enabled"].as_bool().unwrap_or(false),
                    on: w["on"].as_bool(),
                })
                .collect(),
        })
    }

    /// Waits until the interface is as wanted; what it was at that moment.
    pub fn wait(&mut self, what: &str, mut wanted: impl FnMut(&Snapshot) -> bool) -> Result<Snapshot> {
        let until = Instant::now() + self.patience;
        loop {
            let last = self.snapshot();
            // The page about a fault stays until it is told to start anew: no use in waiting.
            let fault = self.browser.eval(
                "document.getElementById('cover')?.className.includes('failed') ? \
                 document.getElementById('cover').innerText : null",
            );
            if let Ok(Value::String(fault)) = fault {
                bail!("{what}: the page says:\n{fault}");
            }
            match last {
                Ok(snapshot) if wanted(&snapshot) => return Ok(snapshot),
                last if Instant::now() > until => {
                    let seen = last.map_or_else(|e| format!("{e:#}"), |s| format!("{}\n{}", s.state, s.words()));
                    let log = self.browser.log().join("\n");
                    // Kept if pictures are kept at all; the message says what is wrong without it.
                    let _ = self.picture("failed");
                    bail!(
                        "{what}: not within {:?}. Last seen:\n{seen}\nconsole:\n{log}",
                        self.patience
                    );
                }
                _ => std::thread::sleep(Duration::from_millis(40)),
            }
        }
    }

    /// Waits until these words can be read.
    pub fn wait_words(&mut self, words: &str) -> Result<Snapshot> {
        self.wait(&format!("the words {words:?}"), |s| s.reads(words))
    }

    /// The middle of the widget of this name, once it is there, can be used and stands still: what was clicked before
    /// may move it in the next frame.
    pub fn place(&mut self, name: &str) -> Result<(f64, f64)> {
        let usable = |s: &Snapshot| s.widget(name).is_some_and(|w| w.enabled && w.rect[2] > 0.0);
        let until = Instant::now() + self.patience;
        let what = format!("the widget {name:?}");
        let mut before = self.wait(&what, usable)?;
        loop {
            // An idle interface paints nothing: it is asked for a frame.
            self.invoke("")?;
            let after = self.wait(&what, |s| usable(s) && s.frame > before.frame)?;
            let [a, b] = [&before, &after].map(|s| s.widget(name).map(|w| w.rect).unwrap_or_default());
            if a == b || Instant::now() > until {
                return Ok((b[0] + b[2] / 2.0, b[1] + b[3] / 2.0));
            }
            before = after;
        }
    }

    /// Waits until so many more frames are painted.
    pub fn frames(&mut self, frames: u64) -> Result<()> {
        let mut last = self.snapshot()?.frame;
        for _ in 0..frames {
            // An idle interface paints nothing: it is asked for a frame.
            self.invoke("")?;
            last = self.wait("another frame", |s| s.frame > last)?.frame;
        }
        Ok(())
    }

    /// Loads the page anew and waits until the new one is there: the old one answers on for a while.
    pub fn reload(&mut self) -> Result<()> {
        self.mark()?;
        self.browser.reload()?;
        self.wait_for_new()
    }

    /// Marks the page that is there, for [`Page::wait_for_new`].
    pub fn mark(&mut self) -> Result<()> {
        self.browser.eval("window.model1_old = true").map(drop)
    }

    /// Waits until the marked page has made way for one that has started.
    pub fn wait_for_new(&mut self) -> Result<()> {
        self.wait_for("a new page", "window.model1_old !== true && !!window.__model1_test")?;
        self.endless = false;
        Ok(())
    }

    /// Waits until a JavaScript expression is true. Pages that are on their way out or in answer with errors.
    pub fn wait_for(&mut self, what: &str, script: &str) -> Result<()> {
        let until = Instant::now() + self.patience;
        loop {
            let last = self.browser.eval(script);
            if matches!(last, Ok(Value::Bool(true))) {
                return Ok(());
            }
            if Instant::now() > until {
                let log = self.browser.log().join("\n");
                bail!(
                    "{what}: not within {:?}: {script} is {last:?}\nconsole:\n{log}",
                    self.patience
                );
            }
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    /// Clicks on the widget of this name.
    pub fn click(&mut self, name: &str) -> Result<()> {
        let (x, y) = self.place(name)?;
        self.browser.click(x, y)
    }

    /// Clicks on one widget, and on another with Shift: chooses all from the one to the other.
    pub fn range(&mut self, from: &str, to: &str) -> Result<()> {
        self.click(from)?;
        self.wait(&format!("{from:?} chosen"), |s| {
            s.widget(from).is_some_and(|w| w.on == Some(true))
        })?;
        let (x, y) = self.place(to)?;
        self.browser.shift_click(x, y)
    }

    /// Runs a command of the interface's registry.
    pub fn invoke(&mut self, command: &str) -> Result<()> {
        let id = serde_json::to_string(command)?;
        self.browser
            .eval(&format!("window.__model1_test.invoke({id}), true"))
            .map(drop)
    }

    /// How the widget of this name looks.
    pub fn look(&mut self, name: &str) -> Result<crate::pixels::Part> {
        let snapshot = self.snapshot()?;
        let widget = snapshot.widget(name).with_context(|| format!("no widget {name:?}"))?;
        crate::pixels::cut(&self.browser.screenshot()?, widget.rect)
    }

    /// Keeps a picture under this name if screenshots are kept.
    pub fn picture(&mut self, name: &str) -> Result<()> {
        let Some(folder) = crate::screenshots() else {
            return Ok(());
        };
        std::fs::create_dir_all(&folder)?;
        let png = self.browser.screenshot()?;
        std::fs::write(folder.join(format!("{name}.png")), png).context("screenshot")
    }
}
