//! Steps of the flow, the same in a browser and in the desktop shell.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::page::{Browser, Key, Page, Snapshot};

/// A field of the state as text.
pub fn text(snapshot: &Snapshot, field: &str) -> String {
    snapshot.state[field].as_str().unwrap_or_default().to_string()
}

/// A field of the state as a number.
pub fn number(snapshot: &Snapshot, field: &str) -> u64 {
    snapshot.state[field].as_u64().unwrap_or(0)
}

/// Whether the model writes.
pub fn writing(snapshot: &Snapshot) -> bool {
    snapshot.state["writing"] == true
}

/// Waits until the page reached the host and the model is loaded.
pub fn wait_ready<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    page.wait("a loaded model", |s| {
        s.state["connection"] == "ready" && s.state["model"] == "ready"
    })
}

/// Waits until so many tokens are there.
pub fn wait_tokens<B: Browser>(page: &mut Page<B>, tokens: u64) -> Result<Snapshot> {
    page.wait(&format!("{tokens} tokens"), |s| number(s, "tokens") >= tokens)
}

/// Waits until the model has written to its end.
pub fn wait_written<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    page.wait("the end of the text", |s| !writing(s) && number(s, "tokens") > 0)
}

/// Types a prompt as a person would and lets the model go on.
pub fn write<B: Browser>(page: &mut Page<B>, prompt: &str) -> Result<()> {
    page.click("Prompt")?;
    page.browser.type_text(prompt)?;
    page.wait("the prompt in its field", |s| {
        s.widget("Prompt").is_some_and(|w| w.value.contains(prompt))
    })?;
    page.browser.press(Key::Enter, true)
}

/// Stops the model; how long it took until the page showed that.
pub fn stop<B: Browser>(page: &mut Page<B>) -> Result<Duration> {
    let start = Instant::now();
    page.browser.press(Key::Escape, false)?;
    page.wait("the end of writing", |s| !writing(s))?;
    Ok(start.elapsed())
}

/// Nothing in the page's console may speak of an error: no exception, nothing its policy refused.
pub fn ensure_quiet<B: Browser>(page: &Page<B>) -> Result<()> {
    let loud = |line: &&String| {
        let line = line.to_lowercase();
        ["exception", "error", "refused", "violat", "panicked"]
            .iter()
            .any(|w| line.contains(w))
    };
    let log = page.browser.log();
    let lines: Vec<&String> = log.iter().filter(loud).collect();
    ensure!(lines.is_empty(), "the page's console: {lines:#?}");
    Ok(())
}

/// Changes the KV cache of layers 3 to 6 to bf16 in the blocks panel, as a person would: opens it by the recipe's chip,
/// drags over four cells, clicks the variant.
pub fn swap<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    let before = page.snapshot()?;
    page.click("recipe #")?;
    page.drag("layer 3 kv_cache", "layer 6 kv_cache")?;
    page.click("kv_cache bf16")?;
    page.wait("a changed recipe", |s| {
        number(s, "changes") > 0 && s.state["recipe"] != before.state["recipe"]
    })
}

/// The button that starts a comparison; the workspace's tab has the same name.
pub const COMPARE: &str = "Button: Compare";

/// Whether a comparison's figures are there.
pub fn compared(snapshot: &Snapshot) -> bool {
    snapshot.reads("same top-1") && snapshot.widget(COMPARE).is_some()
}

/// Goes to the workspace where recipes are compared; A is the checkpoint's own, B the recipe in force.
pub fn open_compare<B: Browser>(page: &mut Page<B>) -> Result<()> {
    page.click("Tab: Compare")?;
    page.wait("the form of a comparison", |s| {
        s.widget(COMPARE).is_some_and(|w| w.enabled)
    })
    .map(drop)
}

/// Compares the checkpoint's own recipe with the one in force on the text that is there.
pub fn compare<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    open_compare(page)?;
    page.click(COMPARE)?;
    page.wait("the figures of the comparison", compared)
}
