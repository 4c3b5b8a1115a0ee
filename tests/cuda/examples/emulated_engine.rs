//! A program that is nothing but an engine's process, on an emulated GPU that fails as it is told. Beside the program (as
//! it was called: tests make links to it) may lie two files: `faults`, whose first line is what goes wrong in this process
//! and is taken away, and `left`, the bytes that others leave free on the device for as long as it is there.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use kernels::cuda::device::Device;
use model1_tests_cuda::{Emulator, Faults, Order};

/// Takes the first line of a file; nothing where there is none.
fn taken(file: &Path) -> String {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let (first, rest) = text.split_once('\n').unwrap_or((&text, ""));
    if !text.is_empty() {
        std::fs::write(file, rest).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    first.into()
}

fn main() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let folder = Path::new(&called).parent().map(PathBuf::from).unwrap_or_default();
    let gpus = |ordinal: usize| -> Result<Arc<dyn Device>, String> {
        if ordinal > 0 {
            return Err(format!("there is 1 emulated GPU; number {ordinal} was asked for"));
        }
        let left = folder.join("left");
        let number = move || std::fs::read_to_string(&left).ok()?.trim().parse().ok();
        let faults = Faults {
            left: Some(Box::new(number)),
            ..Faults::parse(&taken(&folder.join("faults")))?
        };
        Ok(Arc::new(Emulator::new(Order::Ascending, true).with_faults(faults)))
    };
    ExitCode::from(engine::worker::enter_on(&gpus).unwrap_or(2))
}
