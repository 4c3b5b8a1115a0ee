//! Steps of the flow, the same in a browser and in the desktop shell.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

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
    let ready = |s: &Snapshot| s.state["connection"] == "ready" && s.state["model"] == "ready";
    // A refusal never becomes anything else: no use in waiting.
    let refused = |s: &Snapshot| s.state["connection"] == "refused";
    let snapshot = page.wait("a loaded model", |s| ready(s) || refused(s))?;
    ensure!(ready(&snapshot), "refused: {}", text(&snapshot, "reason"));
    Ok(snapshot)
}

/// Waits until so many tokens are there.
pub fn wait_tokens<B: Browser>(page: &mut Page<B>, tokens: u64) -> Result<Snapshot> {
    page.wait(&format!("{tokens} tokens"), |s| number(s, "tokens") >= tokens)
}

/// Waits until nothing is written any more and the page has all of it: the host was asked nothing that it still owes.
pub fn wait_written<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    page.wait("the end of the text", |s| {
        !writing(s) && number(s, "tokens") > 0 && text(s, "finish") != "Running" && number(s, "unanswered") == 0
    })
}

/// Lets texts go on to the end of the context, wherever the model would end them: nothing comes too late then.
fn endless<B: Browser>(page: &mut Page<B>) -> Result<()> {
    const ON: &str = "The next text goes on until the context is full";
    if !page.endless {
        page.invoke("Write past the end, until the context is full")?;
        page.wait_words(ON)?;
        page.endless = true;
    }
    Ok(())
}

/// Types into a field of this name in place of what it has, until it has the text.
pub fn fill<B: Browser>(page: &mut Page<B>, field: &str, value: &str) -> Result<()> {
    // What is typed before the frame that gives the field the focus goes nowhere: then it is typed again.
    for _ in 0..8 {
        page.click(field)?;
        page.frames(2)?;
        page.browser.press(Key::Char('a'), true)?;
        page.browser.type_text(value)?;
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            let there = |s: &Snapshot| s.widget(field).is_some_and(|w| w.value.contains(value));
            if there(&page.snapshot()?) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(40));
        }
    }
    bail!("{field} does not take what is typed: {}", page.snapshot()?.words())
}

/// How many pixels of the prompt change between two texts of one length in one script, once the page is as `settled`
/// wants it. Where a box stands for every character of that script, that is its cursor at most ([`CURSOR`]).
pub fn pixels_apart<B: Browser>(
    page: &mut Page<B>,
    texts: [&str; 2],
    settled: impl Fn(&Snapshot) -> bool,
) -> Result<usize> {
    let mut looks = Vec::new();
    for text in texts {
        fill(page, "Prompt", text)?;
        page.wait("word on fonts", &settled)?;
        page.frames(3)?;
        looks.push(page.look("Prompt")?);
    }
    Ok(looks[0].differing(&looks[1]))
}

/// Pixels of a text cursor, with some to spare.
pub const CURSOR: usize = 80;

/// Whether a list of the state has something in it.
pub fn some(snapshot: &Snapshot, field: &str) -> bool {
    snapshot.state[field].as_array().is_some_and(|a| !a.is_empty())
}

/// Asks for the host behind this link, through the form.
pub fn ask_remote<B: Browser>(page: &mut Page<B>, link: &str) -> Result<()> {
    if page.snapshot()?.widget("Button: Connect").is_none() {
        page.invoke("Remote host")?;
    }
    fill(page, "Address", link)?;
    page.click("Button: Connect")
}

/// Types a prompt as a person would and lets the model go on until it is stopped.
pub fn write<B: Browser>(page: &mut Page<B>, prompt: &str) -> Result<()> {
    endless(page)?;
    tell(page, prompt)
}

/// Types a prompt and lets the model go on to where it ends the text.
pub fn tell<B: Browser>(page: &mut Page<B>, prompt: &str) -> Result<()> {
    fill(page, "Prompt", prompt)?;
    page.browser.press(Key::Enter, true)
}

/// Stops the model while it writes; what the page shows then.
pub fn stop<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    let before = page.snapshot()?;
    ensure!(writing(&before), "it had ended before it was stopped: {}", before.state);
    page.browser.press(Key::Escape, false)?;
    let stopped = wait_written(page)?;
    ensure!(text(&stopped, "finish") == "Cancelled", "{}", stopped.state);
    Ok(stopped)
}

/// Loads the page anew in the middle of a text: the new page has what the old one had, and the rest as it comes; what it
/// shows once it is stopped.
pub fn reload_while_writing<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    let before = page.wait("a running text", |s| writing(s) && number(s, "tokens") > 0)?;
    page.reload()?;
    wait_ready(page)?;
    // More than there was: what was written while no page looked on is there, too, and it goes on.
    let after = wait_tokens(page, number(&before, "tokens") + 1)?;
    ensure!(writing(&after), "it ended by itself: {}", after.state);
    ensure!(
        text(&after, "written").starts_with(&text(&before, "written")),
        "{} / {}",
        before.state,
        after.state
    );
    let end = stop(page)?;
    ensure!(
        text(&end, "written").starts_with(&text(&after, "written")),
        "{} / {}",
        after.state,
        end.state
    );
    Ok(end)
}

/// Loads the page anew after the text has ended: it shows the same.
pub fn reload_after_writing<B: Browser>(page: &mut Page<B>) -> Result<()> {
    let end = wait_written(page)?;
    page.reload()?;
    wait_ready(page)?;
    let fresh = wait_written(page)?;
    ensure!(
        text(&fresh, "written") == text(&end, "written") && fresh.state["tokens"] == end.state["tokens"],
        "{} / {}",
        fresh.state,
        end.state
    );
    Ok(())
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

/// Makes a panel as large as the window, and waits until its widgets stand where they stay.
pub fn enlarge<B: Browser>(page: &mut Page<B>, panel: &str) -> Result<()> {
    page.click(&format!("Enlarge {panel}"))?;
    let large = format!("Restore {panel}");
    let frame = page.wait(&large, |s| s.widget(&large).is_some())?.frame;
    page.wait("another frame", |s| s.frame > frame).map(drop)
}

/// Changes the KV cache of layers 3 to 6 to bf16 in the blocks panel, as a person would: opens it by the recipe's chip, makes
/// it large, chooses four cells, clicks the variant.
pub fn swap<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    let before = page.snapshot()?;
    page.click("recipe #")?;
    enlarge(page, "Blocks")?;
    page.range("layer 3 kv_cache", "layer 6 kv_cache")?;
    page.click("kv_cache bf16")?;
    page.wait("a changed recipe", |s| {
        number(s, "changes") > 0 && s.state["recipe"] != before.state["recipe"]
    })
}

/// The button that starts a comparison.
pub const COMPARE: &str = "Button: Compare A and B";

/// Whether a comparison's figures are there.
pub fn compared(snapshot: &Snapshot) -> bool {
    snapshot.reads("same top-1") && snapshot.widget(COMPARE).is_some()
}

/// Goes to the workspace where recipes are compared; A is the checkpoint's own, B the recipe in force.
pub fn open_compare<B: Browser>(page: &mut Page<B>) -> Result<()> {
    if page.snapshot()?.widget("Button: Restore").is_some() {
        page.click("Button: Restore")?;
    }
    page.click("Tab: Compare")?;
    page.wait("the form of a comparison", |s| {
        s.widget(COMPARE).is_some_and(|w| w.enabled)
    })
    .map(drop)
}

/// What the chart of speeds says of its newest values.
fn chart(snapshot: &Snapshot) -> Option<String> {
    let of_speed = |w: &&crate::page::Widget| w.name.starts_with("Tokens per second: ");
    snapshot.widgets.iter().find(of_speed).map(|w| w.name.clone())
}

/// Waits until the charts say something else than they do now, while a text is written.
pub fn charts_move<B: Browser>(page: &mut Page<B>) -> Result<()> {
    let before = page.wait("figures in the charts", |s| {
        chart(s).is_some() && number(s, "steps") > 0
    })?;
    page.wait("figures that move", |s| {
        chart(s).is_some() && chart(s) != chart(&before) && number(s, "steps") > number(&before, "steps")
    })
    .map(drop)
}

/// Writes the comparison that is shown into a folder; its files must be there.
pub fn export<B: Browser>(page: &mut Page<B>, folder: &Path) -> Result<()> {
    let path = folder.to_str().context("a path in letters")?;
    fill(page, "Folder of the evidence", path)?;
    page.click("Button: Export evidence")?;
    page.wait_words("written; open")?;
    let files: Vec<String> = std::fs::read_dir(folder)?
        .flatten()
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .collect();
    for kind in [".html", ".csv", ".json", ".png"] {
        let sizes = files.iter().filter(|f| f.ends_with(kind));
        let full = sizes
            .filter(|f| std::fs::metadata(folder.join(f)).is_ok_and(|m| m.len() > 0))
            .count();
        ensure!(full > 0, "no {kind} in {files:?}");
    }
    Ok(())
}

/// Compares the checkpoint's own recipe with the one in force on the text that is there.
pub fn compare<B: Browser>(page: &mut Page<B>) -> Result<Snapshot> {
    open_compare(page)?;
    page.click(COMPARE)?;
    page.wait("the figures of the comparison", compared)
}
