//! Pictures of the interface and a recording of its flow, for the README: the real page, the real host, the bundled
//! model. `.ci/pictures.sh` runs it and makes small files of what it leaves.
//!
//! usage: pictures FOLDER

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests_web::chromium::{self, Chromium};
use tests_web::flow::{self, number, writing};
use tests_web::host::HostProcess;
use tests_web::page::{Browser, Page};

/// Size of the window in the pictures.
const STILL: (u32, u32) = (1440, 900);
/// The same for the recording: smaller, because a README shows it scaled down.
const MOVING: (u32, u32) = (1320, 825);

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).context("usage: pictures FOLDER")?);
    let program = chromium::find().context("Chromium is not installed")?;
    stills(&program, &folder)?;
    recording(&program, &folder.join("frames"))
}

/// A page of this size with the bundled model loaded.
fn page(program: &Path, size: (u32, u32), dark: bool) -> Result<(Page<Chromium>, HostProcess)> {
    let host = HostProcess::start_fast(&[])?;
    let mut page = Page::new(Chromium::start(program, size.0, size.1)?);
    page.browser.dark(dark)?;
    page.browser.open(&format!("{}?test", host.address))?;
    flow::wait_ready(&mut page)?;
    // The tour is offered once.
    page.click("Not now")?;
    Ok((page, host))
}

fn still(page: &mut Page<Chromium>, folder: &Path, name: &str) -> Result<()> {
    // What fades or is fetched has come to rest by then.
    std::thread::sleep(Duration::from_millis(1500));
    fs::create_dir_all(folder)?;
    fs::write(folder.join(format!("{name}.png")), page.browser.screenshot()?)?;
    println!("{name}");
    Ok(())
}

fn stills(program: &Path, folder: &Path) -> Result<()> {
    let (mut page, _host) = page(program, STILL, true)?;
    page.invoke("Close the model")?;
    page.wait_words("Tell a story")?;
    still(&mut page, folder, "start")?;
    page.click("Tell a story")?;
    flow::wait_ready(&mut page)?;

    flow::tell(&mut page, "Once upon a time")?;
    // A short story is over in less than a second; the picture takes half of one.
    flow::wait_tokens(&mut page, 30)?;
    fs::write(folder.join("generate.png"), page.browser.screenshot()?)?;
    flow::wait_written(&mut page)?;

    flow::swap(&mut page)?;
    still(&mut page, folder, "blocks")?;

    flow::compare(&mut page)?;
    still(&mut page, folder, "compare")?;

    page.browser.dark(false)?;
    page.invoke("Inspect workspace")?;
    std::thread::sleep(Duration::from_secs(4));
    still(&mut page, folder, "inspect")?;
    page.invoke("Bench workspace")?;
    std::thread::sleep(Duration::from_secs(3));
    page.click("layer 4")?;
    still(&mut page, folder, "explorer")
}

/// The flow, frame by frame, with a pointer drawn where the mouse is.
struct Recorder {
    page: Page<Chromium>,
    folder: PathBuf,
    start: Instant,
    frames: Vec<(String, f64)>,
    at: (f64, f64),
}

impl Recorder {
    fn frame(&mut self) -> Result<()> {
        let name = format!("{:04}.png", self.frames.len());
        let png = self.page.browser.screenshot()?;
        self.frames.push((name.clone(), self.start.elapsed().as_secs_f64()));
        Ok(fs::write(self.folder.join(name), png)?)
    }

    /// Frames for so long.
    fn roll(&mut self, seconds: f64) -> Result<()> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while Instant::now() < until {
            self.frame()?;
            std::thread::sleep(Duration::from_millis(60));
        }
        Ok(())
    }

    fn pointer(&mut self, x: f64, y: f64) -> Result<()> {
        self.at = (x, y);
        self.page
            .browser
            .eval(&format!(
                "(() => {{ let p = document.getElementById('pointer'); if (!p) {{ p = document.createElement('div'); \
                 p.id = 'pointer'; document.body.append(p); Object.assign(p.style, {{ position: 'absolute', width: \
                 '14px', height: '20px', background: 'white', pointerEvents: 'none', zIndex: 9, clipPath: \
                 'polygon(0 0, 0 80%, 24% 64%, 42% 100%, 58% 92%, 42% 58%, 78% 58%)', filter: 'drop-shadow(0 0 2px \
                 black)' }}); }} p.style.left = '{x}px'; p.style.top = '{y}px'; return true; }})()"
            ))
            .map(drop)
    }

    /// Moves the pointer to a widget, visibly; where it is.
    fn go(&mut self, name: &str) -> Result<()> {
        let (x, y) = self.page.place(name)?;
        let (x0, y0) = self.at;
        for i in 1..=4 {
            let part = f64::from(i) / 4.0;
            self.pointer(x0 + part * (x - x0), y0 + part * (y - y0))?;
            self.frame()?;
        }
        Ok(())
    }

    fn click(&mut self, name: &str) -> Result<()> {
        self.go(name)?;
        self.page.click(name)
    }

    /// Frames until the page is as wanted.
    fn roll_until(&mut self, most: f64, wanted: impl Fn(&tests_web::page::Snapshot) -> bool) -> Result<()> {
        let until = Instant::now() + Duration::from_secs_f64(most);
        while Instant::now() < until && !wanted(&self.page.snapshot()?) {
            self.frame()?;
        }
        Ok(())
    }
}

fn recording(program: &Path, folder: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder)?;
    let (mut page, _host) = page(program, MOVING, true)?;
    page.invoke("Close the model")?;
    page.wait_words("Tell a story")?;
    let mut film = Recorder {
        page,
        folder: folder.to_path_buf(),
        start: Instant::now(),
        frames: Vec::new(),
        at: (f64::from(MOVING.0) / 2.0, f64::from(MOVING.1) - 60.0),
    };
    film.roll(1.2)?;
    film.click("Tell a story")?;
    film.roll_until(10.0, |s| s.state["model"] == "ready")?;
    film.roll(0.8)?;
    film.click("Once upon a time, there")?;
    film.roll_until(9.0, |s| number(s, "tokens") > 60 && !writing(s))?;
    film.roll(0.6)?;
    film.click("recipe #")?;
    film.roll(0.6)?;
    film.go("Enlarge Blocks")?;
    flow::enlarge(&mut film.page, "Blocks")?;
    film.roll(0.4)?;
    film.go("layer 3 kv_cache")?;
    film.page.range("layer 3 kv_cache", "layer 6 kv_cache")?;
    film.go("layer 6 kv_cache")?;
    film.roll(0.5)?;
    film.click("kv_cache bf16")?;
    film.roll(1.2)?;
    flow::open_compare(&mut film.page)?;
    film.roll(0.8)?;
    film.click(flow::COMPARE)?;
    film.roll_until(20.0, flow::compared)?;
    film.roll(2.0)?;
    film.click("Export evidence")?;
    film.roll(2.0)?;

    // What ffmpeg's concat demuxer reads: each frame with its time on screen.
    let mut list = String::from("ffconcat version 1.0\n");
    for (i, (name, at)) in film.frames.iter().enumerate() {
        let next = film.frames.get(i + 1).map_or(at + 2.5, |f| f.1);
        list.push_str(&format!("file {name}\nduration {:.3}\n", next - at));
    }
    fs::write(folder.join("list.txt"), list)?;
    println!("{} frames", film.frames.len());
    Ok(())
}
