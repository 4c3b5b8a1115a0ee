//! End-to-end tests of the interface as people meet it: a browser, a page, a host process.
//!
//! [`chromium`] drives a headless Chromium over its DevTools protocol; [`host`] starts the `model1` program as a host;
//! [`page`] speaks with the interface inside, through the bridge of `ui/src/test_bridge.rs`, and is used by the tests
//! of the desktop shell, too.

pub mod chromium;
pub mod flow;
pub mod host;
pub mod page;
pub mod pixels;

use std::path::Path;

use anyhow::Result;

use chromium::Chromium;
use host::HostProcess;
use page::{Browser, Page};

/// Where a test cannot run: prints the line that `./test` counts as skipped.
pub fn skip(reason: &str) {
    println!("SKIPPED: {reason}");
}

/// Folder for screenshots, `$MODEL1_SCREENSHOTS`; `None` = they are not kept.
pub fn screenshots() -> Option<std::path::PathBuf> {
    std::env::var_os("MODEL1_SCREENSHOTS").map(std::path::PathBuf::from)
}

/// A browser and a host, if this machine has what they need; else says what it lacks.
pub fn start(arguments: &[&str]) -> Result<Option<(Page<Chromium>, HostProcess)>> {
    start_with(
        |program| Chromium::start(program, 1360, 860),
        || HostProcess::start(arguments),
    )
}

/// The same with a browser and a host started in other ways.
pub fn start_with(
    browser: impl FnOnce(&Path) -> Result<Chromium>,
    host: impl FnOnce() -> Result<HostProcess>,
) -> Result<Option<(Page<Chromium>, HostProcess)>> {
    let Some(program) = chromium::find() else {
        skip("Chromium is not installed (apt-get install chromium)");
        return Ok(None);
    };
    if host::bundled_model().is_none() {
        skip("the bundled model is not in engine/bundled/model1-mini");
        return Ok(None);
    }
    let host = host()?;
    Ok(Some((Page::new(browser(&program)?), host)))
}

/// Opens the page through the one-time link, with the bridge for tests.
pub fn enter(page: &mut Page<Chromium>, host: &HostProcess) -> Result<()> {
    page.browser.open(&format!("{}?test", host.address))?;
    flow::wait_ready(page).map(drop)
}

/// Whether this machine has a font for Chinese; where that cannot be asked, it is said to have one.
pub fn has_chinese_font() -> bool {
    let asked = std::process::Command::new("fc-list").arg(":lang=zh").output();
    asked.map_or(true, |out| !out.stdout.is_empty())
}
