//! The `model1` program as a host, in folders of its own.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

/// A program built in this workspace: `$MODEL1_BIN_DIR/NAME`, else beside the tests in cargo's target folder.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("MODEL1_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        // target/debug/deps/test-1234 -> target/debug
        None => std::env::current_exe()?
            .ancestors()
            .nth(2)
            .context("the target folder")?
            .to_path_buf(),
    };
    let path = folder.join(format!("{name}{}", std::env::consts::EXE_SUFFIX));
    if !path.is_file() {
        bail!("{}: not built; ./test builds it", path.display());
    }
    Ok(path)
}

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Whether the model that comes with the program is there.
pub fn bundled_model() -> Option<PathBuf> {
    let folder = repository().join("engine/bundled/model1-mini");
    folder.join("config.json").is_file().then_some(folder)
}

/// A running host.
pub struct HostProcess {
    child: Child,
    /// The address it printed, with its one-time token.
    pub address: String,
    home: Option<tempfile::TempDir>,
}

/// Least milliseconds per token of hosts under test. With a text that goes on to the end of the bundled model's context
/// (4,096 tokens: two minutes) nothing that a test does while it is written comes too late, on whatever machine.
pub const TOKEN_MS: &str = "30";

/// Longest a host may take to say where it listens.
const PATIENCE: Duration = Duration::from_secs(60);

impl HostProcess {
    /// Starts `model1 serve` with the page of this repository, the bundled model and these further arguments, in empty
    /// folders.
    pub fn start(arguments: &[&str]) -> Result<Self> {
        Self::start_in(tempfile::tempdir()?, arguments)
    }

    /// The same, with the texts and settings another host left in `home`.
    pub fn start_in(home: tempfile::TempDir, arguments: &[&str]) -> Result<Self> {
        Self::start_paced(home, arguments, &[("MODEL1_TOKEN_MS", TOKEN_MS)])
    }

    /// The same, as fast as it is.
    pub fn start_fast(arguments: &[&str]) -> Result<Self> {
        Self::start_paced(tempfile::tempdir()?, arguments, &[("MODEL1_TOKEN_MS", "0")])
    }

    /// One on a machine with [`few_fonts`].
    pub fn start_with_few_fonts() -> Result<Self> {
        let home = tempfile::tempdir()?;
        let fonts = few_fonts(home.path())?;
        let environment = [("MODEL1_TOKEN_MS", TOKEN_MS), ("FONTCONFIG_FILE", fonts.as_str())];
        Self::start_paced(home, &[], &environment)
    }

    fn start_paced(home: tempfile::TempDir, arguments: &[&str], environment: &[(&str, &str)]) -> Result<Self> {
        let page = repository().join("ui/dist");
        if !page.join("ui.js").is_file() {
            bail!("{}: the page is not built; .ci/wasm.sh builds it", page.display());
        }
        let mut child = Command::new(program("model1")?)
            .args(["serve", "--model", "bundled", "--ui"])
            .arg(page)
            .args(arguments)
            .env("HOME", home.path())
            .env("MODEL1_DATA", home.path().join("data"))
            .env("XDG_CACHE_HOME", home.path().join("cache"))
            .env("XDG_CONFIG_HOME", home.path().join("config"))
            .env("XDG_STATE_HOME", home.path().join("state"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let (tell, told) = mpsc::channel();
        let out = child.stdout.take().context("standard output")?;
        let err = child.stderr.take().context("standard error")?;
        // Both are read to their end, so that the host never waits for a reader.
        follow(out, tell.clone());
        follow(err, tell);
        let mut said = Vec::new();
        let address = loop {
            match told.recv_timeout(PATIENCE) {
                Ok(line) => {
                    let address = line
                        .split_whitespace()
                        .find(|w| w.starts_with("http://"))
                        .map(str::to_string);
                    said.push(line);
                    if let Some(address) = address {
                        break address;
                    }
                }
                Err(_) => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(anyhow!("model1 serve printed no address:\n{}", said.join("\n")));
                }
            }
        };
        Ok(Self {
            child,
            address,
            home: Some(home),
        })
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    pub fn base(&self) -> &str {
        self.address
            .split_once("/enter/")
            .map_or(self.address.trim_end_matches('/'), |(base, _)| base)
    }

    /// Waits until a text with these words is on the disk.
    pub fn wait_saved(&self, words: &str) -> Result<()> {
        let home = self.home.as_ref().context("the host's folders")?;
        let folder = home.path().join("data/texts");
        let until = Instant::now() + PATIENCE;
        loop {
            let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
            if files
                .filter_map(|f| std::fs::read_to_string(f.path()).ok())
                .any(|text| text.contains(words))
            {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("{}: no text with {words:?} within {PATIENCE:?}", folder.display());
            }
            std::thread::sleep(Duration::from_millis(40));
        }
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it at once and gives its folders to the next one.
    pub fn crash(mut self) -> Option<tempfile::TempDir> {
        self.kill();
        self.home.take()
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for HostProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Makes a description of fonts for `FONTCONFIG_FILE` in this folder; its path. It has DejaVu's alone, which know
/// neither Chinese nor Japanese.
pub fn few_fonts(folder: &std::path::Path) -> Result<String> {
    let file = folder.join("fonts.conf");
    let text = format!(
        "<?xml version=\"1.0\"?>\n<!DOCTYPE fontconfig SYSTEM \"fonts.dtd\">\n<fontconfig>\n\
         <dir>/usr/share/fonts/truetype/dejavu</dir>\n<cachedir>{}</cachedir>\n</fontconfig>\n",
        folder.join("font-cache").display()
    );
    std::fs::write(&file, text)?;
    file.to_str().map(str::to_string).context("a path in letters")
}

fn follow(stream: impl std::io::Read + Send + 'static, tell: mpsc::Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // Nobody listens any more once the address is known.
            let _ = tell.send(line);
        }
    });
}
