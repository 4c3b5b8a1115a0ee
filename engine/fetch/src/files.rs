//! Files on this side: checksums, the lock that keeps two processes apart, publication by rename.

use std::fs::{self, File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::error::at;
use crate::{FetchError, Progress, Stage, Watch};

/// Enough for a disk or a socket at full speed, small enough that progress comes several times a second on a slow line.
pub(crate) const CHUNK: usize = 256 * 1024;

/// Tells the watcher, and turns its "stop" into an error.
pub(crate) fn tell(
    watch: &mut Watch<'_>,
    stage: Stage,
    file: &str,
    done: u64,
    total: Option<u64>,
) -> Result<(), FetchError> {
    if watch(&Progress {
        stage,
        file,
        done,
        total,
    })
    .is_break()
    {
        Err(FetchError::Cancelled)
    } else {
        Ok(())
    }
}

/// The file's length, 0 where there is none.
pub(crate) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

/// Removes a file; that it is not there is fine.
pub(crate) fn remove(path: &Path) -> Result<(), FetchError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

/// `path` with `ending` added to its last component.
pub(crate) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

/// Copies everything from `source` to `target` and returns the SHA-256 in lower-case hex.
pub(crate) fn copy_hashed(
    source: &mut impl Read,
    target: &mut impl Write,
    path: &Path,
    mut step: impl FnMut(u64) -> Result<(), FetchError>,
) -> Result<String, FetchError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    loop {
        let count = source.read(&mut buffer).map_err(at(path))?;
        if count == 0 {
            break;
        }
        hasher.update(&buffer[..count]);
        target.write_all(&buffer[..count]).map_err(at(path))?;
        done += count as u64;
        step(done)?;
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Checks the file's SHA-256; a file that fails is deleted.
pub(crate) fn verify(path: &Path, name: &str, expected: &str, watch: &mut Watch<'_>) -> Result<(), FetchError> {
    let total = Some(length(path));
    let mut file = File::open(path).map_err(at(path))?;
    let step = |done| tell(watch, Stage::Verify, name, done, total);
    let found = copy_hashed(&mut file, &mut std::io::sink(), path, step)?;
    if found.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    remove(path)?;
    Err(FetchError::WrongHash {
        file: name.to_owned(),
        found,
        expected: expected.to_owned(),
    })
}

/// Holds `path` as a lock until dropped; waits while another process holds it. The lock file stays: removing it would
/// let a third process lock a file that the second no longer sees.
pub(crate) fn lock(path: &Path, name: &str, watch: &mut Watch<'_>) -> Result<File, FetchError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(at(path))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => {
                tell(watch, Stage::Wait, name, 0, None)?;
                sleep(Duration::from_millis(200));
            }
            Err(TryLockError::Error(error)) => return Err(at(path)(error)),
        }
    }
}

/// Makes a written file durable and gives it its final name.
pub(crate) fn publish(part: &Path, target: &Path) -> Result<(), FetchError> {
    File::open(part).and_then(|file| file.sync_all()).map_err(at(part))?;
    fs::rename(part, target).map_err(at(target))
}
