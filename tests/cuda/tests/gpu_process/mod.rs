//! The program of engines' processes on an emulated GPU, and what is to go wrong in them.
#![allow(dead_code)] // every test file uses another part

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tempfile::TempDir;

/// The folder that the program is called in; what is in it tells the processes what goes wrong.
pub struct Gpu {
    folder: &'static TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// An example of this crate.
pub fn example(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().with_file_name("examples").join(name)
}

impl Gpu {
    /// A GPU on which nothing goes wrong. One test at a time has it.
    pub fn new() -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        static FOLDER: OnceLock<TempDir> = OnceLock::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = FOLDER.get_or_init(|| {
            let folder = tempfile::tempdir().unwrap();
            let program = example("emulated_engine");
            assert!(program.exists(), "{} is not built", program.display());
            std::os::unix::fs::symlink(program, folder.path().join("engine")).unwrap();
            folder
        });
        let gpu = Self { folder, _turn: turn };
        engine::worker::set_program(gpu.program());
        gpu.faults(&[]);
        gpu.leave(None);
        gpu
    }

    /// The program.
    pub fn program(&self) -> PathBuf {
        self.folder.path().join("engine")
    }

    /// What goes wrong in the processes that are started from here on, one line each; nothing in those after them.
    pub fn faults(&self, lines: &[&str]) {
        let text: String = lines.iter().map(|l| format!("{l}\n")).collect();
        std::fs::write(self.folder.path().join("faults"), text).unwrap();
    }

    /// How many bytes others leave free on the device from here on; `None` = all.
    pub fn leave(&self, bytes: Option<u64>) {
        let file = self.folder.path().join("left");
        match bytes {
            Some(n) => std::fs::write(file, n.to_string()).unwrap(),
            // It may not be there.
            None => drop(std::fs::remove_file(file)),
        }
    }
}
