//! The native window under Xvfb: it opens with the bundled model, draws and takes keys.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests_desktop::desktop::{Desktop, end, find};
use tests_web::host::{bundled_model, program};
use tests_web::skip;

/// Ends the program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn missing() -> Option<String> {
    for (name, package) in [("Xvfb", "xvfb"), ("xdotool", "xdotool"), ("import", "imagemagick")] {
        if find(name).is_none() {
            return Some(format!("{name} is not installed (apt-get install {package})"));
        }
    }
    bundled_model()
        .is_none()
        .then(|| "the bundled model is not in engine/bundled/model1-mini".to_string())
}

fn xdotool(desktop: &Desktop, args: &[&str]) -> Result<String> {
    let out = Command::new("xdotool")
        .env("DISPLAY", &desktop.display)
        .args(args)
        .stderr(Stdio::null())
        .output()?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// Colours on the whole screen.
fn colours(desktop: &Desktop) -> Result<u64> {
    let png = desktop.picture().context("no picture of the screen")?;
    let file = desktop.file("screen.png");
    std::fs::write(&file, png)?;
    let out = Command::new("identify").args(["-format", "%k"]).arg(&file).output()?;
    let text = String::from_utf8_lossy(&out.stdout).trim().to_string();
    text.parse().with_context(|| format!("identify said {text:?}"))
}

/// Pixels that differ between the screen now and this picture of it.
fn changed(desktop: &Desktop, before: &[u8]) -> Result<u64> {
    let (a, b) = (desktop.file("before.png"), desktop.file("after.png"));
    std::fs::write(&a, before)?;
    std::fs::write(&b, desktop.picture().context("no picture of the screen")?)?;
    let out = Command::new("compare")
        .args(["-metric", "AE"])
        .args([&a, &b])
        .arg("null:")
        .output()?;
    let text = String::from_utf8_lossy(&out.stderr).trim().to_string();
    let count: f64 = text.parse().with_context(|| format!("compare said {text:?}"))?;
    Ok(count as u64)
}

fn wait(what: &str, desktop: &Desktop, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(120);
    while !done()? {
        if Instant::now() > until {
            bail!(
                "{what}: not within two minutes. The program said:\n{}",
                desktop.read("window.log")
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

#[test]
fn the_native_window_draws_and_takes_keys() -> Result<()> {
    if let Some(reason) = missing() {
        skip(&reason);
        return Ok(());
    }
    let desktop = Desktop::start(1440, 900)?;
    let child = desktop.command(&program("model1-window")?, "window.log")?.spawn()?;
    let mut running = Running(child);
    wait("a window", &desktop, || {
        ensure!(
            running.0.try_wait()?.is_none(),
            "it ended: {}",
            desktop.read("window.log")
        );
        Ok(!xdotool(&desktop, &["search", "--onlyvisible", "--name", "^MODEL1 Explorer$"])?.is_empty())
    })?;
    // Text alone has more shades of grey than an empty window.
    wait("the interface in it", &desktop, || Ok(colours(&desktop)? > 120))?;
    // Until it has come to rest: the model loads.
    wait("a picture that stays", &desktop, || {
        let before = desktop.picture().context("no picture of the screen")?;
        std::thread::sleep(Duration::from_millis(1500));
        Ok(changed(&desktop, &before)? < 500)
    })?;
    if let (Some(folder), Some(png)) = (tests_web::screenshots(), desktop.picture()) {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("native.png"), png)?;
    }

    // No window manager gives the window the focus here; keys go to what is under the pointer.
    xdotool(&desktop, &["mousemove", "720", "330"])?;
    xdotool(
        &desktop,
        &["search", "--onlyvisible", "--name", "^MODEL1 Explorer$", "windowfocus"],
    )?;
    std::thread::sleep(Duration::from_millis(500));
    let before = desktop.picture().context("no picture of the screen")?;
    xdotool(&desktop, &["key", "ctrl+k"])?;
    wait("the palette after Ctrl+K", &desktop, || {
        Ok(changed(&desktop, &before)? > 20_000)
    })?;
    xdotool(&desktop, &["key", "Escape"])?;
    wait("the palette gone after Esc", &desktop, || {
        Ok(changed(&desktop, &before)? < 5_000)
    })?;
    ensure!(
        running.0.try_wait()?.is_none(),
        "it ended: {}",
        desktop.read("window.log")
    );
    ensure!(
        !desktop.read("window.log").contains("panicked"),
        "{}",
        desktop.read("window.log")
    );
    Ok(())
}
