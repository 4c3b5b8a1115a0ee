//! What people write with: scripts that the interface's own fonts lack, and a real input method, in both windows.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tests_desktop::desktop::{Desktop, end, find};
use tests_desktop::webdriver::WebDriver;
use tests_web::flow::{self, CURSOR};
use tests_web::host::{bundled_model, program};
use tests_web::page::{Page, Snapshot};
use tests_web::{has_chinese_font, skip};

/// What this machine lacks, if anything: programs with the packages that bring them.
fn missing(programs: &[(&str, &str)]) -> Option<String> {
    if let Ok(reason) = std::env::var("MODEL1_NO_SHELL") {
        return Some(reason);
    }
    for (name, package) in programs {
        if find(name).is_none() {
            return Some(format!("{name} is not installed (apt-get install {package})"));
        }
    }
    if !has_chinese_font() {
        return Some("no font for Chinese is installed (apt-get install fonts-noto-cjk)".into());
    }
    bundled_model()
        .is_none()
        .then(|| "the bundled model is not in engine/bundled/model1-mini".to_string())
}

const DISPLAY: (&str, &str) = ("Xvfb", "xvfb");
const DRIVER: (&str, &str) = ("WebKitWebDriver", "webkit2gtk-driver");
const KEYS: (&str, &str) = ("xdotool", "xdotool");

fn picture(desktop: &Desktop, name: &str) -> Result<()> {
    if let (Some(folder), Some(png)) = (tests_web::screenshots(), desktop.picture()) {
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join(format!("{name}.png")), png)?;
    }
    Ok(())
}

fn xdotool(desktop: &Desktop, args: &[&str]) -> Result<String> {
    let out = Command::new("xdotool")
        .env("DISPLAY", &desktop.display)
        .args(args)
        .output()?;
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

#[test]
fn chinese_and_japanese_are_drawn_in_the_window() -> Result<()> {
    if let Some(reason) = missing(&[DISPLAY, DRIVER]) {
        skip(&reason);
        return Ok(());
    }
    let desktop = Desktop::start(1440, 900)?;
    let driver = WebDriver::start(&desktop, &program("model1-explorer")?, &[]);
    let mut page = Page::new(driver.with_context(|| desktop.read("driver.log"))?);
    page.patience = Duration::from_secs(150);
    flow::wait_ready(&mut page)?;
    for texts in [["你你你你你你", "好好好好好好"], ["ここここここ", "んんんんんん"]] {
        let apart = flow::pixels_apart(&mut page, texts, |_| true)?;
        ensure!(apart > 2 * CURSOR, "{texts:?} differ in {apart} pixels");
    }
    flow::fill(&mut page, "Prompt", "你好，世界 / こんにちは、世界")?;
    page.frames(3)?;
    picture(&desktop, "shell-scripts")?;
    let now = page.snapshot()?;
    ensure!(!now.reads("No installed font"), "{}", now.words());
    Ok(())
}

/// A program that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

/// A desktop where ibus writes Chinese by its sound; `None` where it is not installed, which is said.
fn with_ibus() -> Result<Option<(Desktop, Running)>> {
    let programs = [
        DISPLAY,
        DRIVER,
        KEYS,
        ("ibus-daemon", "ibus ibus-gtk3"),
        ("ibus", "ibus"),
    ];
    let engine = Path::new("/usr/share/ibus/component/libpinyin.xml");
    let reason = missing(&programs)
        .or_else(|| (!engine.is_file()).then(|| "ibus-libpinyin is not installed (apt-get install it)".to_string()));
    if let Some(reason) = reason {
        skip(&reason);
        return Ok(None);
    }
    let mut desktop = Desktop::start(1440, 900)?;
    desktop.set("GTK_IM_MODULE", "ibus");
    desktop.set("XMODIFIERS", "@im=ibus");
    let path = |name| find(name).with_context(|| format!("no {name}"));
    let mut daemon = desktop.command(&path("ibus-daemon")?, "ibus.log")?;
    let daemon = Running(daemon.args(["--xim", "--panel=disable"]).spawn()?);
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        desktop
            .command(&path("ibus")?, "engine.log")?
            .args(["engine", "libpinyin"])
            .status()?;
        desktop.command(&path("ibus")?, "engine.log")?.arg("engine").status()?;
        if desktop.read("engine.log").lines().any(|l| l.trim() == "libpinyin") {
            return Ok(Some((desktop, daemon)));
        }
        ensure!(
            Instant::now() < until,
            "ibus: {}\n{}",
            desktop.read("ibus.log"),
            desktop.read("engine.log")
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Gives the window the keyboard, once it is there.
fn focus(desktop: &Desktop) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let found = xdotool(desktop, &["search", "--onlyvisible", "--name", "^MODEL1 Explorer$"])?;
        if let Some(window) = found.lines().next() {
            xdotool(desktop, &["windowfocus", "--sync", window])?;
            return Ok(());
        }
        ensure!(Instant::now() < until, "no window");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_real_input_method_writes_in_the_webview() -> Result<()> {
    let Some((desktop, _ibus)) = with_ibus()? else {
        return Ok(());
    };
    let driver = WebDriver::start(&desktop, &program("model1-explorer")?, &[]);
    let mut page = Page::new(driver.with_context(|| desktop.read("driver.log"))?);
    page.patience = Duration::from_secs(60);
    flow::wait_ready(&mut page)?;
    focus(&desktop)?;
    page.click("Prompt")?;
    page.frames(2)?;
    let shown = |s: &Snapshot, value: &str| s.widget("Prompt").is_some_and(|w| w.value == value);
    xdotool(&desktop, &["type", "--delay", "150", "nihao"])?;
    page.wait("the composition", |s| shown(s, "你好"))?;
    page.frames(4)?;
    picture(&desktop, "shell-composing")?;
    xdotool(&desktop, &["key", "space"])?;
    page.frames(3)?;
    let now = page.wait("what was chosen, once", |s| shown(s, "你好"))?;
    ensure!(!flow::writing(&now), "{}", now.state);
    picture(&desktop, "shell-composed")
}

#[test]
fn a_real_input_method_writes_in_the_native_window() -> Result<()> {
    let Some((desktop, _ibus)) = with_ibus()? else {
        return Ok(());
    };
    let child = desktop.command(&program("model1-window")?, "window.log")?.spawn()?;
    let _window = Running(child);
    focus(&desktop)?;
    // The window says nothing about itself: how long it needs until it takes keys is tried out, more patiently each time.
    let mut found = false;
    for patience in 1..=6u64 {
        let pause = |seconds: u64| std::thread::sleep(Duration::from_secs(seconds * patience));
        pause(5);
        xdotool(&desktop, &["mousemove", "700", "380", "click", "1"])?;
        pause(1);
        xdotool(&desktop, &["key", "ctrl+a", "key", "BackSpace"])?;
        xdotool(&desktop, &["type", "--delay", "150", "nihao"])?;
        pause(2);
        picture(&desktop, "native-composing")?;
        xdotool(&desktop, &["key", "space"])?;
        pause(1);
        xdotool(&desktop, &["key", "ctrl+Return"])?;
        // The text is saved within seconds.
        let until = Instant::now() + Duration::from_secs(6 * patience);
        while !found && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(200));
            found = saved(&desktop.file("data"))?.contains("你好");
        }
        if found {
            break;
        }
    }
    ensure!(found, "no text with 你好 was saved: {}", desktop.read("window.log"));
    let texts = saved(&desktop.file("data"))?;
    ensure!(!texts.contains("nihao") && !texts.contains("你好你好"), "{texts}");
    picture(&desktop, "native-composed")
}

/// All that is in the files below a folder, as text.
fn saved(folder: &Path) -> Result<String> {
    let mut all = String::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            all += &saved(&path)?;
        } else {
            all += &String::from_utf8_lossy(&std::fs::read(&path)?);
        }
    }
    Ok(all)
}
