//! Makes the web page: runs wasm-bindgen over the interface's WebAssembly, puts the files of `page/` beside it, and
//! writes a gzip copy of everything for browsers.
//!
//! `model1-web INTERFACE.wasm OUT GZIP_OUT`; both folders are replaced.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use wasm_bindgen_cli_support::Bindgen;

/// Files of the page that are not generated.
const PAGE: [(&str, &[u8]); 4] = [
    ("index.html", include_bytes!("../page/index.html")),
    ("boot.js", include_bytes!("../page/boot.js")),
    ("style.css", include_bytes!("../page/style.css")),
    ("icon.svg", include_bytes!("../page/icon.svg")),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let result = match args.as_slice() {
        [wasm, out, zipped] => bundle(Path::new(wasm), Path::new(out), Path::new(zipped)),
        _ => Err(anyhow::anyhow!("usage: model1-web INTERFACE.wasm OUT GZIP_OUT")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes the page to `out` and its gzip copies to `zipped`. The folders appear whole or not at all: they are made
/// under other names first.
fn bundle(wasm: &Path, out: &Path, zipped: &Path) -> Result<()> {
    if !wasm.is_file() {
        bail!(
            "{}: not a file; expected the interface built for wasm32-unknown-unknown",
            wasm.display()
        );
    }
    let (fresh, fresh_zipped) = (out.with_extension("new"), zipped.with_extension("new"));
    for folder in [&fresh, &fresh_zipped] {
        remove(folder)?;
        fs::create_dir_all(folder).with_context(|| format!("{}", folder.display()))?;
    }
    Bindgen::new()
        .input_path(wasm)
        .out_name("ui")
        .web(true)?
        .omit_default_module_path(false)
        .typescript(false)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(&fresh)
        .with_context(|| format!("wasm-bindgen could not read {}", wasm.display()))?;
    for (name, bytes) in PAGE {
        fs::write(fresh.join(name), bytes).with_context(|| format!("writing {name}"))?;
    }
    zip_all(&fresh, &fresh_zipped, Path::new(""))?;
    for (fresh, old) in [(&fresh, out), (&fresh_zipped, zipped)] {
        remove(old)?;
        fs::rename(fresh, old).with_context(|| format!("{} -> {}", fresh.display(), old.display()))?;
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e).with_context(|| format!("{}", folder.display())),
        _ => Ok(()),
    }
}

/// Writes `NAME.gz` of every file below `from/below`, and prints the sizes.
fn zip_all(from: &Path, to: &Path, below: &Path) -> Result<()> {
    let mut entries = fs::read_dir(from.join(below))?.collect::<Result<Vec<_>, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            fs::create_dir_all(to.join(&name))?;
            zip_all(from, to, &name)?;
            continue;
        }
        let bytes = fs::read(entry.path())?;
        let mut target = to.join(&name).into_os_string();
        target.push(".gz");
        // The best level: the page is made once and fetched often; it costs half a second.
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&bytes)?;
        let packed = encoder.finish()?;
        eprintln!(
            "{:>9} bytes, {:>9} packed  {}",
            bytes.len(),
            packed.len(),
            name.display()
        );
        fs::write(target, packed)?;
    }
    Ok(())
}
