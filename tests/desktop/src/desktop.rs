//! A desktop of our own: a virtual X server and empty folders for settings, ended with the value.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

/// A program by name on PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|d| d.join(name)).find(|p| p.is_file())
}

/// A virtual display and a home of its own.
pub struct Desktop {
    server: Child,
    /// `:N`.
    pub display: String,
    home: tempfile::TempDir,
    variables: Vec<(&'static str, &'static str)>,
}

impl Desktop {
    /// Starts an X server without a screen. Settings may be given again to a second program through the same value.
    pub fn start(width: u32, height: u32) -> Result<Self> {
        let program = find("Xvfb").context("Xvfb is not installed")?;
        let home = tempfile::tempdir()?;
        // The server chooses a free number and writes it to its standard output once it listens.
        let mut server = Command::new(program)
            .args([
                "-displayfd",
                "1",
                "-screen",
                "0",
                &format!("{width}x{height}x24"),
                "-nolisten",
                "tcp",
                "-noreset",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut number = String::new();
        let mut out = server.stdout.take().context("the X server has no output")?;
        let mut byte = [0];
        while out.read(&mut byte)? == 1 && byte[0] != b'\n' {
            number.push(char::from(byte[0]));
        }
        if number.trim().parse::<u32>().is_err() {
            let _ = server.kill();
            let _ = server.wait();
            bail!("Xvfb did not start");
        }
        for folder in ["config", "data", "state", "cache", "run"] {
            std::fs::create_dir(home.path().join(folder))?;
        }
        Ok(Self {
            server,
            display: format!(":{}", number.trim()),
            home,
            variables: Vec::new(),
        })
    }

    /// Sets a variable for every program that is started from now on.
    pub fn set(&mut self, name: &'static str, value: &'static str) {
        self.variables.push((name, value));
    }

    /// Folder of this desktop's settings.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("config")
    }

    /// A file in this desktop's home.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Makes a program run on this desktop, in a session bus and a process group of its own ([`end`] ends both), its
    /// output in the file `log`.
    pub fn command(&self, program: &Path, log: &str) -> Result<Command> {
        let out = File::create(self.file(log))?;
        let mut command = match find("dbus-run-session") {
            Some(bus) => {
                let mut command = Command::new(bus);
                command.arg("--").arg(program);
                command
            }
            None => Command::new(program),
        };
        let home = self.home.path();
        command
            .process_group(0)
            .env("DISPLAY", &self.display)
            .env_remove("WAYLAND_DISPLAY")
            .env("XDG_CONFIG_HOME", home.join("config"))
            .env("XDG_DATA_HOME", home.join("data"))
            .env("XDG_STATE_HOME", home.join("state"))
            .env("XDG_CACHE_HOME", home.join("cache"))
            .env("XDG_RUNTIME_DIR", home.join("run"))
            .env("LIBGL_ALWAYS_SOFTWARE", "1")
            .envs(self.variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.as_fd().try_clone_to_owned()?)
            .stderr(out);
        Ok(command)
    }

    /// What was written to a log.
    pub fn read(&self, log: &str) -> String {
        std::fs::read_to_string(self.file(log)).unwrap_or_default()
    }

    /// The whole screen as PNG, if ImageMagick is there.
    pub fn picture(&self) -> Option<Vec<u8>> {
        let import = find("import")?;
        let out = Command::new(import)
            .args(["-display", &self.display, "-window", "root", "png:-"])
            .stdin(Stdio::null())
            .output()
            .ok()?;
        out.status.success().then_some(out.stdout)
    }
}

/// Ends a program of [`Desktop::command`] with everything that it started: the bus around it does not do so.
pub fn end(child: &mut Child) {
    let _ = Command::new("kill")
        .args(["-KILL", "--", &format!("-{}", child.id())])
        .stderr(Stdio::null())
        .status();
    let _ = child.kill();
    let _ = child.wait();
}

impl Drop for Desktop {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
