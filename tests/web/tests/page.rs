//! The page in headless Chromium against a real host that runs the bundled model.

use anyhow::{Context, Result, ensure};
use tests_web::flow::{self, number, text, writing};
use tests_web::host::HostProcess;
use tests_web::page::{Browser, Key};
use tests_web::{enter, start};

#[test]
fn a_story_streams_and_stops() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    page.browser.dark(true)?;
    enter(&mut page, &host)?;
    page.picture("web-start-dark")?;
    flow::write(&mut page, "Once upon a time")?;
    let early = flow::wait_tokens(&mut page, 20)?;
    ensure!(text(&early, "written").len() > 20, "{}", early.state);
    page.picture("web-writing-dark")?;
    let stopped = flow::stop(&mut page)?;
    page.browser.dark(false)?;
    page.frames(3)?;
    page.picture("web-written-light")?;
    // The host has no more of it than the page had when it had stopped.
    flow::reload_after_writing(&mut page)?;
    let later = page.snapshot()?;
    ensure!(
        later.state["written"] == stopped.state["written"],
        "it went on after the stop: {} / {}",
        stopped.state,
        later.state
    );
    flow::ensure_quiet(&page)
}

#[test]
fn blocks_are_swapped_while_it_writes() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    flow::write(&mut page, "Once upon a time")?;
    flow::wait_tokens(&mut page, 10)?;
    let swapped = flow::swap(&mut page)?;
    ensure!(writing(&swapped), "it was over before the swap: {}", swapped.state);
    page.picture("web-blocks")?;
    for layer in 3..=6 {
        let cell = format!("layer {layer} kv_cache");
        let now = swapped.widget(&cell).map(|w| w.name.clone()).unwrap_or_default();
        ensure!(now.contains("bf16") && now.contains("changed"), "{cell}: {now}");
    }
    let untouched = swapped.widget("layer 2 kv_cache").map(|w| w.name.clone());
    ensure!(
        untouched.as_deref().is_some_and(|n| !n.contains("changed")),
        "{untouched:?}"
    );
    // It goes on with the changed recipe.
    flow::wait_tokens(&mut page, number(&swapped, "tokens") + 10)?;
    flow::stop(&mut page)?;
    flow::ensure_quiet(&page)
}

#[test]
fn a_change_is_compared_with_the_checkpoint() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    flow::write(&mut page, "Once upon a time")?;
    flow::wait_tokens(&mut page, 60)?;
    flow::stop(&mut page)?;
    flow::swap(&mut page)?;
    let compared = flow::compare(&mut page)?;
    page.picture("web-compare-dark")?;
    for words in ["KL", "tok/s", "KV"] {
        ensure!(compared.reads(words), "{words} is missing from:\n{}", compared.words());
    }
    ensure!(compared.state["jobs"] == serde_json::json!([]), "{}", compared.state);
    let folder = tempfile::tempdir()?;
    flow::export(&mut page, &folder.path().join("evidence"))?;
    flow::ensure_quiet(&page)
}

#[test]
fn reloading_in_the_middle_of_a_run_loses_no_token() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    flow::write(&mut page, "There was a little boat")?;
    flow::wait_tokens(&mut page, 25)?;
    flow::reload_while_writing(&mut page)?;
    // A page that never saw it grow sees the same.
    flow::reload_after_writing(&mut page)?;
    flow::ensure_quiet(&page)
}

#[test]
fn a_killed_host_is_named_and_its_text_comes_back() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    flow::write(&mut page, "Lily and the dog")?;
    flow::wait_tokens(&mut page, 10)?;
    let before = flow::stop(&mut page)?;
    // The text is saved within seconds; a crash right then may cost the last of them, not the text.
    host.wait_saved("Lily and the dog")?;
    let home = host.crash().context("the host's folders")?;
    let gone = page.wait("word that the host is gone", |s| s.state["connection"] != "ready")?;
    ensure!(!text(&gone, "reason").is_empty(), "{}", gone.state);
    ensure!(
        text(&gone, "written") == text(&before, "written"),
        "the text must stay readable"
    );
    page.picture("web-host-gone")?;

    let host = HostProcess::start_in(home, &[])?;
    enter(&mut page, &host)?;
    page.click("Saved texts")?;
    page.wait_words("Lily and the dog")?;
    page.picture("web-saved-texts")
}

#[test]
fn an_idle_page_asks_for_no_frames_and_wakes_with_what_comes() -> Result<()> {
    const ASLEEP: &str = "window.model1_asleep === true";
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    page.wait_for("rest", ASLEEP)?;
    // Events wake it, and so does what the host sends; then it rests again.
    flow::write(&mut page, "Once upon a time")?;
    flow::wait_tokens(&mut page, 10)?;
    let stopped = flow::stop(&mut page)?;
    page.wait_for("rest after a text", ASLEEP)?;
    // A frame that is due by itself comes: the text field's cursor needs none, a toast that goes does.
    page.invoke("Copy the text")?;
    page.wait_words("Copied")?;
    page.wait("the words gone", |s| !s.reads("Copied"))?;
    page.wait_for("rest at the end", ASLEEP)?;
    let after = page.snapshot()?;
    ensure!(after.frame > stopped.frame, "no frame was painted");
    flow::ensure_quiet(&page)
}

#[test]
fn without_the_link_the_page_says_what_to_do() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    page.browser.open(&format!("{}/?test", host.base()))?;
    let refused = page.wait("a refusal", |s| {
        matches!(s.state["connection"].as_str(), Some("refused" | "waiting"))
    })?;
    ensure!(!text(&refused, "reason").is_empty(), "{}", refused.state);
    ensure!(
        refused.state["model"] == "none",
        "nothing of the host may be seen: {}",
        refused.state
    );
    page.picture("web-refused")
}

#[test]
fn another_host_is_reached_from_the_page_and_errors_stay_in_the_form() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    let other = HostProcess::start(&[])?;
    enter(&mut page, &host)?;
    flow::ask_remote(&mut page, &format!("{}/enter/{}", other.base(), "0".repeat(64)))?;
    page.wait_words("The token is not one of the host at")?;
    page.picture("web-remote-refused")?;
    flow::ensure_quiet(&page)?;
    flow::ask_remote(&mut page, &other.address)?;
    let there = format!(
        "location.href.startsWith('{}') && document.getElementById('cover')?.className.includes('gone') === true",
        other.base()
    );
    page.wait_for("the other host's page", &there)?;
    page.picture("web-remote-there")
}

#[test]
fn a_lost_canvas_comes_back_with_the_text() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    flow::write(&mut page, "The moon was bright")?;
    flow::wait_tokens(&mut page, 10)?;
    let before = flow::stop(&mut page)?;
    page.mark()?;
    page.browser.eval(
        "(() => { const c = document.getElementById('model1'); const gl = c.getContext('webgl2') ?? \
         c.getContext('webgl'); gl.getExtension('WEBGL_lose_context').loseContext(); return true; })()",
    )?;
    page.wait_for_new()?;
    flow::wait_ready(&mut page)?;
    let after = flow::wait_written(&mut page)?;
    ensure!(
        text(&after, "written") == text(&before, "written"),
        "{} / {}",
        before.state,
        after.state
    );
    Ok(())
}

#[test]
fn a_fault_shows_a_report_and_a_way_on() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    page.invoke("test: panic")?;
    page.wait_for(
        "a report",
        "(t => t.includes('stopped working') && t.includes('a test asked for it'))\
         (document.getElementById('cover').innerText)",
    )?;
    let cover = page.browser.eval("document.getElementById('cover').innerText")?;
    let cover = cover.as_str().unwrap_or_default().to_string();
    ensure!(cover.contains("Copy report") && cover.contains("web.rs"), "{cover}");
    page.picture("web-fault")?;
    page.mark()?;
    page.browser
        .eval("document.getElementById('cover-restart').click(), true")?;
    page.wait_for_new()?;
    flow::wait_ready(&mut page)?;
    Ok(())
}

#[test]
fn small_windows_and_zoom_keep_the_prompt_in_reach() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    for (width, height, scale) in [(400, 300, 1.0), (1360, 860, 2.0), (2560, 1440, 1.0)] {
        page.browser.resize(width, height, scale)?;
        let inside = |r: [f64; 4]| {
            r[0] >= 0.0 && r[1] >= 0.0 && r[0] + 20.0 <= f64::from(width) && r[1] + 10.0 <= f64::from(height)
        };
        page.wait(&format!("the prompt inside {width}x{height}"), |s| {
            s.widget("Prompt").is_some_and(|w| inside(w.rect))
        })?;
        page.picture(&format!("web-{width}x{height}-{scale}"))?;
    }
    page.browser.press(Key::Char('k'), true)?;
    page.picture("web-palette")?;
    flow::ensure_quiet(&page)
}
