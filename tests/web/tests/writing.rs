//! What people write with: input methods, and scripts that the interface's own fonts lack.

use std::path::Path;

use anyhow::{Result, ensure};
use tests_web::chromium::Chromium;
use tests_web::flow::{self, CURSOR, number, some, writing};
use tests_web::host::HostProcess;
use tests_web::page::{Browser, Key, Page, Snapshot};
use tests_web::{enter, has_chinese_font, skip, start, start_with};

/// Waits until the prompt has exactly this text.
fn reads(page: &mut Page<Chromium>, value: &str) -> Result<()> {
    let wanted = |s: &Snapshot| s.widget("Prompt").is_some_and(|w| w.value == value);
    page.wait(&format!("{value:?} in the prompt"), wanted).map(drop)
}

/// The prompt still has exactly this text some frames later, and nothing was started.
fn still_reads(page: &mut Page<Chromium>, value: &str, after: &str) -> Result<()> {
    page.frames(4)?;
    let now = page.snapshot()?;
    let shown = now.widget("Prompt").map(|w| w.value.clone()).unwrap_or_default();
    ensure!(shown == value, "after {after}: {shown:?} in place of {value:?}");
    ensure!(
        !writing(&now) && number(&now, "tokens") == 0 && now.state["finish"].is_null(),
        "after {after}: {}",
        now.state
    );
    Ok(())
}

#[test]
fn what_an_input_method_composes_is_shown_and_arrives_once() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    page.click("Prompt")?;
    page.frames(2)?;
    for shown in ["n", "ni", "你", "你h", "你好"] {
        page.browser.compose(shown)?;
        reads(&mut page, shown)?;
    }
    page.picture("web-composing")?;
    // Enter takes a candidate, Esc gives it up: neither is for the interface, whatever is held with it.
    for (key, control) in [(Key::Enter, false), (Key::Enter, true), (Key::Escape, false)] {
        page.browser.press(key, control)?;
        still_reads(&mut page, "你好", &format!("{key:?}, Ctrl {control}, while composing"))?;
    }
    page.browser.commit("你好")?;
    still_reads(&mut page, "你好", "the end of the composition")?;

    for shown in ["せ", "せかい"] {
        page.browser.compose(shown)?;
        reads(&mut page, &format!("你好{shown}"))?;
    }
    page.browser.commit("世界")?;
    still_reads(&mut page, "你好世界", "a second composition")?;
    page.browser.compose("x")?;
    reads(&mut page, "你好世界x")?;
    page.browser.compose("")?;
    reads(&mut page, "你好世界")?;
    still_reads(&mut page, "你好世界", "one that was given up")?;

    page.browser.press(Key::Enter, true)?;
    let sent = flow::wait_tokens(&mut page, 1)?;
    ensure!(sent.reads("你好世界"), "{}", sent.words());
    reads(&mut page, "")?;
    flow::stop(&mut page)?;
    flow::ensure_quiet(&page)
}

#[test]
fn a_composition_that_is_sent_half_way_is_sent_once() -> Result<()> {
    let Some((mut page, host)) = start(&[])? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    page.click("Prompt")?;
    page.frames(2)?;
    page.browser.compose("こんにちは")?;
    reads(&mut page, "こんにちは")?;
    // The pointer is no key: what is seen is what is sent, and nothing of it comes back.
    page.click("Button: Generate")?;
    let sent = flow::wait_tokens(&mut page, 1)?;
    ensure!(sent.reads("こんにちは"), "{}", sent.words());
    page.frames(4)?;
    reads(&mut page, "")?;
    page.browser.type_text("次")?;
    reads(&mut page, "次")?;
    flow::ensure_quiet(&page)
}

const CHINESE: [&str; 2] = ["你你你你你你", "好好好好好好"];
const JAPANESE: [&str; 2] = ["ここここここ", "んんんんんん"];
const BOTH: &str = "你好，世界 / こんにちは、世界";

/// Real shapes, and nothing about missing fonts.
fn draws_both(page: &mut Page<Chromium>, settled: impl Fn(&Snapshot) -> bool) -> Result<()> {
    for texts in [CHINESE, JAPANESE] {
        let apart = flow::pixels_apart(page, texts, &settled)?;
        ensure!(apart > 2 * CURSOR, "{texts:?} differ in {apart} pixels");
    }
    flow::fill(page, "Prompt", BOTH)?;
    page.frames(3)?;
    let now = page.snapshot()?;
    ensure!(
        !some(&now, "boxes") && !now.reads("No installed font"),
        "{}\n{}",
        now.state,
        now.words()
    );
    Ok(())
}

/// Whether this machine has a font for Chinese and Japanese; else says so.
fn has_fonts() -> bool {
    let has = has_chinese_font();
    if !has {
        skip("no font for Chinese is installed (apt-get install fonts-noto-cjk)");
    }
    has
}

#[test]
fn chinese_and_japanese_are_drawn_with_the_browsers_fonts() -> Result<()> {
    if !has_fonts() {
        return Ok(());
    }
    let few = || HostProcess::start_with_few_fonts();
    let Some((mut page, host)) = start_with(|program| Chromium::start(program, 1360, 860), few)? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    draws_both(&mut page, |_| true)?;
    page.picture("web-scripts")?;
    // The host has no such font, and was not asked for one.
    let now = page.snapshot()?;
    ensure!(!some(&now, "fonts"), "{}", now.state);
    flow::ensure_quiet(&page)
}

#[test]
fn a_browser_without_them_gets_the_hosts_fonts() -> Result<()> {
    if !has_fonts() {
        return Ok(());
    }
    let few = |program: &Path| Chromium::start_with_few_fonts(program, 1360, 860);
    let Some((mut page, host)) = start_with(few, || HostProcess::start(&[]))? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    draws_both(&mut page, |s| some(s, "fonts"))?;
    page.picture("web-host-fonts")?;
    flow::ensure_quiet(&page)
}

/// Toasts that say which package has a font.
fn hints(now: &Snapshot) -> usize {
    let texts = now.widgets.iter().flat_map(|w| [&w.name, &w.value]);
    let hint = |t: &&String| t.contains("No installed font") && t.contains("apt install fonts-noto-cjk");
    texts.filter(hint).count()
}

#[test]
fn without_a_font_there_are_boxes_and_one_hint() -> Result<()> {
    let few = |program: &Path| Chromium::start_with_few_fonts(program, 1360, 860);
    let Some((mut page, host)) = start_with(few, HostProcess::start_with_few_fonts)? else {
        return Ok(());
    };
    enter(&mut page, &host)?;
    flow::fill(&mut page, "Prompt", CHINESE[0])?;
    // It goes after some seconds, which a slow machine needs for the rest.
    page.wait("the hint", |s| some(s, "boxes") && hints(s) != 0)?;
    let apart = flow::pixels_apart(&mut page, CHINESE, |s| some(s, "boxes"))?;
    page.picture("web-boxes")?;
    ensure!(apart < CURSOR, "these are no boxes: {apart} pixels differ");
    flow::fill(&mut page, "Prompt", BOTH)?;
    page.wait("word on kana, too", |s| {
        s.state["boxes"].as_array().is_some_and(|b| b.len() > 1)
    })?;
    page.frames(2)?;
    let now = page.snapshot()?;
    ensure!(hints(&now) <= 1, "{}", now.words());
    // It is written all the same.
    page.browser.press(Key::Enter, true)?;
    let sent = flow::wait_tokens(&mut page, 1)?;
    ensure!(sent.reads(BOTH), "{}", sent.words());
    flow::ensure_quiet(&page)
}
