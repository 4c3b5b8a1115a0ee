//! End-to-end tests of the interface as people meet it: a browser, a page, a host process.
//!
//! [`chromium`] drives a headless Chromium over its DevTools protocol; [`host`] starts the `model1` program as a host;
//! [`page`] speaks with the interface inside, through the bridge of `ui/src/test_bridge.rs`, and is used by the tests
//! of the desktop shell, too.

pub mod chromium;
pub mod flow;
pub mod host;
pub mod page;

/// Where a test cannot run: prints the line that `./test` counts as skipped.
pub fn skip(reason: &str) {
    println!("SKIPPED: {reason}");
}

/// Folder for screenshots, `$MODEL1_SCREENSHOTS`; `None` = they are not kept.
pub fn screenshots() -> Option<std::path::PathBuf> {
    std::env::var_os("MODEL1_SCREENSHOTS").map(std::path::PathBuf::from)
}
