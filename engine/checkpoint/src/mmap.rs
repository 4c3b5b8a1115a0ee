//! The memory map. The only unsafe code outside the kernels.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::bytes::Bytes;
use crate::error::CheckpointError;

/// Maps a file read-only.
pub(crate) fn map(path: &Path) -> Result<Bytes, CheckpointError> {
    let file = File::open(path).map_err(|e| CheckpointError::io(path, e))?;
    let length = file.metadata().map_err(|e| CheckpointError::io(path, e))?.len();
    if length == 0 {
        return Err(CheckpointError::Format {
            path: path.into(),
            detail: "found an empty file, accepted: a safetensors or GGUF file".into(),
        });
    }
    // SAFETY: the map is read-only. Another process truncating or changing the file while it is mapped is outside
    // what a program can guard against, as for every memory-mapped loader; headers are validated against the length
    // of the map, and kernels treat weight bytes as plain numbers.
    let map = unsafe { Mmap::map(&file) }.map_err(|source| CheckpointError::Map {
        path: path.into(),
        bytes: length,
        source,
    })?;
    Ok(Bytes::from_map(map))
}
