//! What a sweep keeps in its folder.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use engine::compare::export;
use engine::compare::sweep::{Found, Price, Sweep};
use protocol::SweepRow;
use serde_json::{Value, json};

use crate::setup::user;

/// `DIR/sweep.jsonl`: a line about the sweep, then one per recipe as soon as it is measured.
pub struct Store {
    folder: PathBuf,
    file: std::fs::File,
    rows: Vec<SweepRow>,
}

impl Store {
    /// Begins a sweep in this folder, or goes on with the one that lies there.
    pub fn open(folder: &Path, sweep: &Sweep) -> Result<Self> {
        let path = folder.join("sweep.jsonl");
        let shown = path.display();
        let header = header(sweep);
        let refuse = |found: String| user(format!("--out {}: {found}", folder.display()));
        let mut rows = Vec::new();
        let mut good = 0;
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let mut lines = text.split_inclusive('\n');
                let first = lines.next().unwrap_or_default();
                let found: Value = serde_json::from_str(first)
                    .map_err(|_| refuse(format!("found a sweep.jsonl that is no sweep's; {ACCEPTED}")))?;
                if found != header {
                    let differs = ["program", "model", "weights", "a", "text", "positions"]
                        .into_iter()
                        .find(|k| found[k] != header[k])
                        .unwrap_or("form");
                    return Err(refuse(format!(
                        "found a sweep with another {differs} ({}, here {}); {ACCEPTED}",
                        found[differs], header[differs]
                    )));
                }
                good = first.len();
                // A line that was being written when the program ended is written again.
                for line in lines {
                    let Ok(row) = serde_json::from_str(line) else { break };
                    rows.push(row);
                    good += line.len();
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let taken = folder.is_dir() && std::fs::read_dir(folder).is_ok_and(|mut d| d.next().is_some());
                if taken {
                    return Err(refuse(format!("found other files there; {ACCEPTED}")));
                }
                std::fs::create_dir_all(folder)
                    .map_err(|e| refuse(format!("{e}; accepted: a folder that can be made")))?;
            }
            Err(e) => return Err(refuse(format!("{shown}: {e}"))),
        }
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("{shown}"))?;
        file.set_len(good as u64)?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0))?;
        if good == 0 {
            writeln!(file, "{header}")?;
        }
        Ok(Self {
            folder: folder.to_path_buf(),
            file,
            rows,
        })
    }

    /// Rows that lay there.
    pub fn take_rows(&mut self) -> Vec<SweepRow> {
        std::mem::take(&mut self.rows)
    }

    /// Keeps a row.
    pub fn add(&mut self, row: &SweepRow) -> Result<()> {
        let line = serde_json::to_string(row)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("{}", self.folder.join("sweep.jsonl").display()))
    }

    /// Writes table, plot and recommendation; their paths.
    pub fn finish(&self, found: &Found, budget: Option<f64>) -> Result<Vec<String>> {
        let mut all = found.rows.clone();
        all.extend(found.singles.iter().cloned());
        all.extend(found.recommended.iter().flat_map(|r| r.tried.clone()));
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|r| seen.insert(r.hash.clone()));
        let mut files = vec![
            ("table.csv", csv(&all)),
            ("pareto.svg", export::pareto(&all, Price::Bytes, budget)),
            ("pareto-time.svg", export::pareto(&all, Price::Time, budget)),
        ];
        if let Some(r) = &found.recommended {
            files.push(("recommended.json", serde_json::to_string_pretty(&r.recipe)? + "\n"));
        }
        let mut paths = vec![self.folder.join("sweep.jsonl").display().to_string()];
        for (name, text) in files {
            let path = self.folder.join(name);
            std::fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
            paths.push(path.display().to_string());
        }
        Ok(paths)
    }
}

const ACCEPTED: &str = "accepted: a new or empty folder, or one with a sweep of the same model, recipe A and text";

/// What must be equal for a sweep to go on.
fn header(sweep: &Sweep) -> Value {
    let engine = sweep.engine();
    let ids: Vec<u8> = sweep.ids().iter().flat_map(|i| i.to_le_bytes()).collect();
    json!({
        "program": concat!("model1 ", env!("CARGO_PKG_VERSION")),
        "model": engine.facts().key().to_string(),
        "weights": engine.weight_bytes(),
        "device": engine.backend().describe(),
        "a": sweep.a().hash(),
        "text": engine::compare::sweep::fingerprint(&ids),
        "positions": sweep.ids().len(),
    })
}

fn csv(rows: &[SweepRow]) -> String {
    let mut out = String::from(
        "number,recipe,name,edits,kl_mean,kl_se,kl_median,kl_p90,kl_p99,kl_max,same_top1,same_top1_se,ln_ppl_ratio,\
         ln_ppl_ratio_se,perplexity,kv_bytes,step_bytes_estimated,decode_tokens_per_s,prefill_tokens_per_s\n",
    );
    for (i, r) in rows.iter().enumerate() {
        let quoted = |s: &str| format!("\"{}\"", s.replace('"', "\"\""));
        let figures = [
            r.kl.mean,
            r.kl.mean_se,
            r.kl.median,
            r.kl.p90,
            r.kl.p99,
            r.kl.max,
            r.same_top1[0],
            r.same_top1[1],
            r.ln_ppl_ratio[0],
            r.ln_ppl_ratio[1],
            r.perplexity,
            r.kv as f64,
            r.step_bytes as f64,
            r.decode_tokens_per_s,
            r.prefill_tokens_per_s,
        ];
        let figures: Vec<String> = figures.iter().map(ToString::to_string).collect();
        out += &format!(
            "{i},{},{},{},{}\n",
            r.hash,
            quoted(&r.name),
            quoted(&r.edits.join(" ")),
            figures.join(",")
        );
    }
    out
}
