//! `logits`: logits and per-layer residuals to a safetensors file.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use engine::SessionOptions;
use kernels::ir::StepOutput;
use protocol::StepRecord;

use crate::args::Logits;
use crate::setup::{self, user};

/// `model1 logits`
pub fn logits(args: &Logits) -> Result<()> {
    let cancel = setup::cancel();
    let loaded = setup::load(&args.model)?;
    let ids = match (&args.ids, &args.text) {
        (Some(list), _) => setup::parse_ids(list)?,
        (None, Some(text)) if text.is_empty() => {
            return Err(user("--text: found an empty text, accepted: at least one character"));
        }
        (None, Some(text)) => loaded.engine.tokenizer()?.encode(text, true)?,
        (None, None) => return Err(user("--ids IDS or --text TEXT is needed")),
    };
    let options = SessionOptions {
        all_logits: true,
        probes: true,
        ..SessionOptions::default()
    };
    let mut session = loaded.session(&args.model, options)?;
    let mut telemetry = setup::telemetry(&args.model, &loaded)?;
    let mut part = Part::open(&args.out)?;
    let facts = loaded.engine.facts();
    let mut logits: Vec<f32> = Vec::new();
    let mut layers: Vec<(usize, Vec<f32>)> = vec![(0, Vec::new()); facts.layers.len()];
    let mut gather = |record: &StepRecord, out: &StepOutput| {
        if let Some(t) = &mut telemetry {
            t.step(record);
        }
        logits.extend_from_slice(&out.logits);
        for ((width, all), (_, w, values)) in layers.iter_mut().zip(&out.probes) {
            *width = *w;
            all.extend_from_slice(values);
        }
    };
    let chunks = match (&args.chunks, args.decode) {
        (Some(c), _) => checked(c, ids.len())?,
        (None, true) => vec![1; ids.len()],
        (None, false) => vec![ids.len()],
    };
    session.feed_chunks(&ids, &chunks, &cancel, &mut gather)?;
    if let Some(t) = &mut telemetry {
        t.close()?;
    }
    let s = ids.len();
    let streams = facts.streams;
    let bytes = |v: &[f32]| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let id_bytes: Vec<u8> = ids.iter().flat_map(|&i| i64::from(i).to_le_bytes()).collect();
    let mut tensors = vec![
        ("input_ids".to_string(), "I64", vec![s], id_bytes),
        ("logits".to_string(), "F32", vec![s, facts.vocab], bytes(&logits)),
    ];
    for (i, (width, values)) in layers.iter().enumerate() {
        // Residual streams are their own axis, as in the reference implementations.
        let shape = if streams > 1 {
            vec![s, streams, width / streams]
        } else {
            vec![s, *width]
        };
        tensors.push((format!("layer_out.{i}"), "F32", shape, bytes(values)));
    }
    part.write(&tensors)
        .with_context(|| format!("--out {}", args.out.display()))?;
    if !args.model.quiet {
        eprintln!(
            "wrote {}: {} tensors, {s} tokens, recipe {}",
            args.out.display(),
            tensors.len(),
            session.recipe().hash()
        );
    }
    Ok(())
}

fn checked(chunks: &[usize], tokens: usize) -> Result<Vec<usize>> {
    let accepted = format!("accepted: positive sizes adding up to the {tokens} tokens");
    if chunks.contains(&0) {
        return Err(user(format!("--chunks: found a size of 0, {accepted}")));
    }
    match chunks.iter().try_fold(0usize, |a, &b| a.checked_add(b)) {
        Some(sum) if sum == tokens => Ok(chunks.to_vec()),
        Some(sum) => Err(user(format!("--chunks: found sizes adding up to {sum}, {accepted}"))),
        None => Err(user(format!("--chunks: found sizes that are too large, {accepted}"))),
    }
}

type Named = (String, &'static str, Vec<usize>, Vec<u8>);

/// A file beside the target that takes its name when it is whole; otherwise it is removed.
struct Part {
    target: PathBuf,
    path: PathBuf,
    file: File,
}

impl Part {
    /// Opened before the work begins, so that a path that cannot be written is known at once.
    fn open(target: &Path) -> Result<Self> {
        let context = || format!("--out {}", target.display());
        // Taking the name of a device or a pipe would replace it; a link keeps pointing where it does.
        let target = match target.metadata() {
            Ok(m) if m.is_file() => target.canonicalize().with_context(context)?,
            Ok(m) => {
                let found = if m.is_dir() { "a folder" } else { "no plain file" };
                return Err(user(format!("{}: found {found}, accepted: a file to write", context())));
            }
            Err(_) => target.to_path_buf(),
        };
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(name);
        let file = File::create(&path).with_context(context)?;
        Ok(Self { target, path, file })
    }

    fn write(&mut self, tensors: &[Named]) -> std::io::Result<()> {
        let mut header = serde_json::Map::new();
        let mut at = 0;
        for (name, dtype, shape, bytes) in tensors {
            let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes.len()] });
            header.insert(name.clone(), entry);
            at += bytes.len();
        }
        let mut json = serde_json::to_vec(&header)?;
        json.resize(json.len().next_multiple_of(8), b' ');
        self.file.write_all(&(json.len() as u64).to_le_bytes())?;
        self.file.write_all(&json)?;
        for (_, _, _, bytes) in tensors {
            self.file.write_all(bytes)?;
        }
        self.file.sync_all()?;
        std::fs::rename(&self.path, &self.target)
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already when it took the target's name.
        std::fs::remove_file(&self.path).ok();
    }
}
