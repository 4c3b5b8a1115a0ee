//! `logits`: logits and per-layer residuals to a safetensors file.

use anyhow::{Context, Result};
use engine::SessionOptions;
use kernels::ir::StepOutput;
use protocol::StepRecord;

use crate::args::Logits;
use crate::setup;

/// `model1 logits`
pub fn logits(args: &Logits) -> Result<()> {
    let cancel = setup::cancel();
    let loaded = setup::load(&args.model)?;
    let ids = match (&args.ids, &args.text) {
        (Some(list), _) => setup::parse_ids(list)?,
        (None, Some(text)) => loaded.engine.tokenizer()?.encode(text, true)?,
        (None, None) => return Err(setup::user("--ids IDS or --text TEXT is needed")),
    };
    let options = SessionOptions {
        all_logits: true,
        probes: true,
        ..SessionOptions::default()
    };
    let mut session = loaded.session(&args.model, options)?;
    let facts = loaded.engine.facts();
    let mut logits: Vec<f32> = Vec::new();
    let mut layers: Vec<(usize, Vec<f32>)> = vec![(0, Vec::new()); facts.layers.len()];
    let mut gather = |_: &StepRecord, out: &StepOutput| {
        logits.extend_from_slice(&out.logits);
        for ((width, all), (_, w, values)) in layers.iter_mut().zip(&out.probes) {
            *width = *w;
            all.extend_from_slice(values);
        }
    };
    let chunks = match (&args.chunks, args.decode) {
        (Some(c), _) => c.clone(),
        (None, true) => vec![1; ids.len()],
        (None, false) => vec![ids.len()],
    };
    session.feed_chunks(&ids, &chunks, &cancel, &mut gather)?;
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
    write(&args.out, &tensors).with_context(|| format!("--out {}", args.out.display()))?;
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

type Named = (String, &'static str, Vec<usize>, Vec<u8>);

/// Writes to a temporary file beside the target, then renames: no half file is left.
fn write(path: &std::path::Path, tensors: &[Named]) -> Result<()> {
    use std::io::Write;
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [at, at + bytes.len()] });
        header.insert(name.clone(), entry);
        at += bytes.len();
    }
    let mut json = serde_json::to_vec(&header)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let part = path.with_extension("part");
    let mut f = std::io::BufWriter::new(std::fs::File::create(&part)?);
    f.write_all(&(json.len() as u64).to_le_bytes())?;
    f.write_all(&json)?;
    for (_, _, _, bytes) in tensors {
        f.write_all(bytes)?;
    }
    f.into_inner()?.sync_all()?;
    std::fs::rename(&part, path)?;
    Ok(())
}
