//! Hugging Face folders.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value};

use crate::bytes::Bytes;
use crate::error::CheckpointError;
use crate::safetensors::Entry;
use crate::scales::{self, Raw};
use crate::{Checkpoint, Kind, Progress, TokenizerSource, mmap, safetensors};

/// Files of a folder with an extension, sorted.
pub(crate) fn files_with(dir: &Path, extension: &str) -> Result<Vec<PathBuf>, CheckpointError> {
    let entries = std::fs::read_dir(dir).map_err(|e| CheckpointError::io(dir, e))?;
    let mut out = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| CheckpointError::io(dir, e))?.path();
        if path.is_file() && path.extension().is_some_and(|e| e.eq_ignore_ascii_case(extension)) {
            out.push(path);
        }
    }
    out.sort();
    Ok(out)
}

/// What a JSON value is, for messages.
fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn json_object(path: &Path) -> Result<Map<String, Value>, CheckpointError> {
    let text = std::fs::read(path).map_err(|e| CheckpointError::io(path, e))?;
    match serde_json::from_slice(&text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => Err(CheckpointError::format(
            path,
            format!("found {}, accepted: a JSON object", kind_of(&other)),
        )),
        Err(e) => Err(CheckpointError::format(
            path,
            format!("found no JSON ({e}), accepted: a JSON object"),
        )),
    }
}

fn optional_json(path: &Path) -> Result<Option<Map<String, Value>>, CheckpointError> {
    if path.is_file() {
        json_object(path).map(Some)
    } else {
        Ok(None)
    }
}

/// Tensors the index expects, by file name.
type Expected = BTreeMap<String, BTreeSet<String>>;

/// The shards of a folder, and what the index expects in each.
fn shards(dir: &Path) -> Result<(Vec<PathBuf>, Expected), CheckpointError> {
    let index_path = dir.join("model.safetensors.index.json");
    let mut expected = Expected::new();
    if !index_path.is_file() {
        let single = dir.join("model.safetensors");
        let files = if single.is_file() {
            vec![single]
        } else {
            files_with(dir, "safetensors")?
        };
        if files.is_empty() {
            return Err(CheckpointError::not_a_model(
                dir,
                "a folder with config.json but no *.safetensors".into(),
            ));
        }
        return Ok((files, expected));
    }
    let index = json_object(&index_path)?;
    let weight_map = index.get("weight_map");
    let map = weight_map
        .and_then(Value::as_object)
        .filter(|m| !m.is_empty())
        .ok_or_else(|| {
            let found = match weight_map {
                None => "nothing",
                Some(Value::Object(_)) => "an empty object",
                Some(other) => kind_of(other),
            };
            CheckpointError::format(
                &index_path,
                format!("field `weight_map`: found {found}, accepted: an object of tensor name -> file name"),
            )
        })?;
    for (tensor, file) in map {
        // Only plain file names: an index must not point outside its folder.
        let name = file
            .as_str()
            .filter(|f| Path::new(f).file_name().is_some_and(|n| n == *f))
            .ok_or_else(|| {
                CheckpointError::format(
                    &index_path,
                    format!("weight_map `{tensor}`: found {file}, accepted: a file name"),
                )
            })?;
        expected.entry(name.into()).or_default().insert(tensor.clone());
    }
    for (shard, tensors) in &expected {
        if !dir.join(shard).is_file() {
            return Err(CheckpointError::MissingShard {
                path: dir.into(),
                shard: shard.clone(),
                tensor: tensors.first().cloned().unwrap_or_default(),
            });
        }
    }
    Ok((expected.keys().map(|s| dir.join(s)).collect(), expected))
}

/// A mapped shard and its header.
type Shard = (Bytes, BTreeMap<String, Entry>);

/// Maps and reads the headers of all shards in parallel.
fn read_shards(files: &[PathBuf], progress: &dyn Progress) -> Result<Vec<Shard>, CheckpointError> {
    let slots: Vec<Mutex<Option<Result<Shard, CheckpointError>>>> = files.iter().map(|_| Mutex::new(None)).collect();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let threads = std::thread::available_parallelism()
        .map_or(1, std::num::NonZero::get)
        .min(files.len())
        .max(1);
    let total: u64 = files
        .iter()
        .filter_map(|f| std::fs::metadata(f).ok())
        .map(|m| m.len())
        .sum();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(file), Some(slot)) = (files.get(i), slots.get(i)) else {
                        return;
                    };
                    if progress.cancelled() {
                        return;
                    }
                    let shard = mmap::map(file).and_then(|m| safetensors::read(file, &m).map(|e| (m, e)));
                    if let Ok((m, _)) = &shard {
                        let now = done.fetch_add(m.len() as u64, Ordering::Relaxed) + m.len() as u64;
                        progress.report(now, total);
                    }
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(shard);
                }
            });
        }
    });
    slots
        .into_iter()
        .map(|s| {
            s.into_inner()
                .unwrap_or_else(PoisonError::into_inner)
                .unwrap_or(Err(CheckpointError::Cancelled))
        })
        .collect()
}

/// Block size of FP8 scales: quantization_config.weight_block_size, else 128 x 128.
fn block_size(config: &Map<String, Value>, path: &Path) -> Result<(usize, usize), CheckpointError> {
    let Some(v) = config
        .get("quantization_config")
        .and_then(|q| q.get("weight_block_size"))
        .filter(|v| !v.is_null())
    else {
        return Ok((128, 128));
    };
    let pair: Option<Vec<usize>> = v
        .as_array()
        .and_then(|a| a.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
    match pair.as_deref() {
        Some(&[r, c]) if r > 0 && c > 0 => Ok((r, c)),
        _ => Err(CheckpointError::format(
            path,
            format!("field `quantization_config.weight_block_size`: found {v}, accepted: two positive numbers"),
        )),
    }
}

fn chat_template(dir: &Path, config: Option<&Map<String, Value>>) -> Result<Option<String>, CheckpointError> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.is_file() {
        return std::fs::read_to_string(&jinja)
            .map(Some)
            .map_err(|e| CheckpointError::io(&jinja, e));
    }
    let separate = optional_json(&dir.join("chat_template.json"))?;
    let value = separate
        .as_ref()
        .and_then(|m| m.get("chat_template"))
        .or(config.and_then(|c| c.get("chat_template")));
    Ok(match value {
        Some(Value::String(s)) => Some(s.clone()),
        Some(Value::Array(list)) => {
            let named = |n: &str| list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(n));
            let chosen = named("default").or(list.first());
            chosen
                .and_then(|t| t.get("template"))
                .and_then(Value::as_str)
                .map(str::to_string)
        }
        _ => None,
    })
}

pub(crate) fn open(dir: &Path, progress: &dyn Progress) -> Result<Checkpoint, CheckpointError> {
    let config_path = dir.join("config.json");
    if !config_path.is_file() {
        return Err(CheckpointError::not_a_model(dir, "a folder without config.json".into()));
    }
    let config = json_object(&config_path)?;
    let block = block_size(&config, &config_path)?;
    let (files, expected) = shards(dir)?;
    let read = read_shards(&files, progress)?;
    let mut raw: Raw = BTreeMap::new();
    let mut maps = Vec::new();
    for (file, (map, entries)) in files.iter().zip(read) {
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        for wanted in expected.get(name).into_iter().flatten() {
            if !entries.contains_key(wanted) {
                return Err(CheckpointError::tensor(
                    file,
                    wanted,
                    "found nothing, accepted: a tensor of this name (model.safetensors.index.json places it here)",
                ));
            }
        }
        for (tensor, entry) in entries {
            if let Some((_, other)) = raw.get(&tensor) {
                return Err(CheckpointError::tensor(
                    file,
                    &tensor,
                    format!("found here and in {}, accepted: one of them", other.display()),
                ));
            }
            raw.insert(tensor, (entry, file.clone()));
        }
        maps.push(map);
    }
    let joined = scales::join(&raw, block)?;
    let tokenizer_config = optional_json(&dir.join("tokenizer_config.json"))?;
    let json = dir.join("tokenizer.json");
    Ok(Checkpoint {
        path: dir.into(),
        kind: Kind::HfFolder,
        config,
        generation_config: optional_json(&dir.join("generation_config.json"))?,
        tokenizer: if json.is_file() {
            TokenizerSource::HfJson(json)
        } else {
            TokenizerSource::Missing
        },
        chat_template: chat_template(dir, tokenizer_config.as_ref())?,
        tokenizer_config,
        warnings: Vec::new(),
        total_bytes: maps.iter().map(|m| m.len() as u64).sum(),
        tensors: joined.tensors,
        unsupported: joined.unsupported,
        maps,
    })
}
