//! The desktop shell's window under Xvfb: the same flow as in a browser, and what only a window can do.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests_desktop::desktop::{Desktop, find};
use tests_desktop::webdriver::WebDriver;
use tests_web::flow::{self, number, text};
use tests_web::host::{HostProcess, bundled_model, program};
use tests_web::page::{Browser, Page};
use tests_web::skip;

/// What this machine lacks for these tests, if anything.
fn missing() -> Option<String> {
    if let Ok(reason) = std::env::var("MODEL1_NO_SHELL") {
        return Some(reason);
    }
    for (name, package) in [("Xvfb", "xvfb"), ("WebKitWebDriver", "webkit2gtk-driver")] {
        if find(name).is_none() {
            return Some(format!("{name} is not installed (apt-get install {package})"));
        }
    }
    bundled_model()
        .is_none()
        .then(|| "the bundled model is not in engine/bundled/model1-mini".to_string())
}

/// A desktop with the shell's window on it.
fn start() -> Result<Option<(Page<WebDriver>, Desktop)>> {
    if let Some(reason) = missing() {
        skip(&reason);
        return Ok(None);
    }
    let desktop = Desktop::start(1440, 900)?;
    let driver = WebDriver::start(&desktop, &program("model1-explorer")?, &[]);
    let driver = driver.with_context(|| format!("driver's log:\n{}", desktop.read("driver.log")))?;
    let mut page = Page::new(driver);
    // Software GL inside a webview, on two busy cores.
    page.patience = Duration::from_secs(150);
    Ok(Some((page, desktop)))
}

fn picture(desktop: &Desktop, name: &str) -> Result<()> {
    if let (Some(folder), Some(png)) = (tests_web::screenshots(), desktop.picture()) {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{name}.png")), png)?;
    }
    Ok(())
}

#[test]
fn the_window_writes_stops_and_survives_a_reload() -> Result<()> {
    let Some((mut page, desktop)) = start()? else {
        return Ok(());
    };
    flow::wait_ready(&mut page)?;
    picture(&desktop, "shell-start")?;
    flow::write(&mut page, "Once upon a time")?;
    let early = flow::wait_tokens(&mut page, 20)?;
    ensure!(text(&early, "written").len() > 20, "{}", early.state);
    picture(&desktop, "shell-writing")?;
    flow::reload_while_writing(&mut page)?;
    picture(&desktop, "shell-written")
}

#[test]
fn the_whole_flow_in_the_window() -> Result<()> {
    let Some((mut page, desktop)) = start()? else {
        return Ok(());
    };
    flow::wait_ready(&mut page)?;
    flow::write(&mut page, "Once upon a time")?;
    flow::wait_tokens(&mut page, 20)?;
    flow::charts_move(&mut page)?;
    let swapped = flow::swap(&mut page)?;
    ensure!(
        flow::writing(&swapped),
        "it was over before the swap: {}",
        swapped.state
    );
    picture(&desktop, "shell-swapped")?;
    // The swap is in force from the next token on, and the text goes on.
    flow::wait_tokens(&mut page, number(&swapped, "tokens") + 10)?;
    flow::stop(&mut page)?;
    let compared = flow::compare(&mut page)?;
    for words in ["KL", "tok/s", "KV"] {
        ensure!(compared.reads(words), "{words} is missing from:\n{}", compared.words());
    }
    picture(&desktop, "shell-compared")?;
    flow::export(&mut page, &desktop.file("evidence"))
}

#[test]
fn the_window_works_on_a_host_of_another_machine_and_comes_back() -> Result<()> {
    let Some((mut page, desktop)) = start()? else {
        return Ok(());
    };
    let other = HostProcess::start(&[])?;
    let own = flow::wait_ready(&mut page)?;
    flow::ask_remote(&mut page, &other.address)?;
    page.wait("the other host", |s| {
        s.state["connection"] == "ready" && s.state["model"] == "ready" && s.state["run"] != own.state["run"]
    })?;
    flow::write(&mut page, "Far away")?;
    flow::wait_tokens(&mut page, 10)?;
    let there = flow::stop(&mut page)?;
    picture(&desktop, "shell-remote")?;
    page.invoke("Back to this machine")?;
    let back = page.wait("the own host", |s| {
        s.state["connection"] == "ready" && s.state["run"] == own.state["run"]
    })?;
    ensure!(text(&back, "written") != text(&there, "written"), "{}", back.state);
    Ok(())
}

#[test]
fn the_page_can_call_nothing_but_our_commands() -> Result<()> {
    let Some((mut page, _desktop)) = start()? else {
        return Ok(());
    };
    flow::wait_ready(&mut page)?;
    let call = |command: &str| {
        format!(
            "(window.answer = null, window.__TAURI__.core.invoke('{command}', {{}}).then(() => window.answer = 'done', \
             (e) => window.answer = String(e)), true)"
        )
    };
    for command in [
        "plugin:window|close",
        "plugin:webview|create_webview",
        "plugin:event|listen",
        "plugin:fs|read_file",
    ] {
        page.browser.eval(&call(command))?;
        page.wait_for(&format!("an answer to {command}"), "typeof window.answer === 'string'")?;
        let answer = page.browser.eval("window.answer")?;
        let answer = answer.as_str().unwrap_or_default();
        ensure!(
            answer.contains("not allowed") || answer.contains("not found"),
            "{command}: {answer}"
        );
    }
    let frozen = page.browser.eval("Object.isFrozen(Object.prototype)")?;
    ensure!(frozen == true, "Object.prototype can be changed");
    // Code from text is what the policy forbids.
    let refused = page.browser.eval(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.injected = true'; \
         document.head.append(s); return window.injected === undefined; })()",
    )?;
    ensure!(refused == true, "an inline script ran");
    Ok(())
}

#[test]
fn a_second_start_hands_over_and_ends() -> Result<()> {
    let Some((mut page, desktop)) = start()? else {
        return Ok(());
    };
    flow::wait_ready(&mut page)?;
    let status = desktop.command(&program("model1-explorer")?, "second.log")?.status()?;
    ensure!(status.success(), "{status}: {}", desktop.read("second.log"));
    ensure!(
        desktop.read("second.log").contains("open already"),
        "{}",
        desktop.read("second.log")
    );
    // The first one still works.
    flow::wait_ready(&mut page).map(drop)
}

#[test]
fn the_window_comes_back_as_large_as_it_was() -> Result<()> {
    let Some(xdotool) = find("xdotool") else {
        skip("xdotool is not installed (apt-get install xdotool)");
        return Ok(());
    };
    let Some((mut page, desktop)) = start()? else {
        return Ok(());
    };
    flow::wait_ready(&mut page)?;
    let ask = |args: &[&str]| -> Result<String> {
        let out = Command::new(&xdotool)
            .env("DISPLAY", &desktop.display)
            .args(args)
            .output()?;
        Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
    };
    let found = ask(&["search", "--onlyvisible", "--name", "^MODEL1 Explorer$"])?;
    let window = found.lines().next().context("no window of that name")?.to_string();
    ask(&["windowsize", "--sync", &window, "900", "640"])?;
    let file = desktop.config().join("model1-explorer/window.json");
    let until = Instant::now() + page.patience;
    loop {
        let kept = std::fs::read_to_string(&file).unwrap_or_default();
        let state: serde_json::Value = serde_json::from_str(&kept).unwrap_or_default();
        if state["width"] == 900.0 && state["height"] == 640.0 {
            break;
        }
        ensure!(Instant::now() < until, "{}: {kept}", file.display());
        // Writes rest for a second, and what changes meanwhile is written when the window closes. A driver's window is
        // not closed but ended: so it is resized once more after the rest.
        for width in ["901", "900"] {
            std::thread::sleep(Duration::from_millis(1200));
            ask(&["windowsize", &window, width, "640"])?;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    drop(page);
    let mut page = Page::new(WebDriver::start(&desktop, &program("model1-explorer")?, &[])?);
    page.patience = Duration::from_secs(150);
    flow::wait_ready(&mut page)?;
    page.wait_for("the size it had", "innerWidth === 900 && innerHeight === 640")
}

#[test]
fn without_a_display_it_says_what_to_do() -> Result<()> {
    if let Ok(reason) = std::env::var("MODEL1_NO_SHELL") {
        skip(&reason);
        return Ok(());
    }
    for name in ["model1-explorer", "model1-window"] {
        let home = tempfile::tempdir()?;
        let out = Command::new(program(name)?)
            .env_remove("DISPLAY")
            .env_remove("WAYLAND_DISPLAY")
            .env("XDG_STATE_HOME", home.path())
            .env("XDG_RUNTIME_DIR", home.path())
            .output()?;
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        ensure!(!out.status.success(), "{name}: {}", out.status);
        ensure!(
            said.contains("no display") && said.contains("--browser") && !said.contains("panicked"),
            "{name}: {said}"
        );
    }
    Ok(())
}
