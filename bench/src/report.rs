//! Medians, ratios, and the table.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::machine::Machine;

/// One engine's times for one test of one model.
#[derive(Serialize)]
pub struct Row {
    /// File name without its ending.
    pub model: String,
    /// Size of the file in bytes.
    pub model_bytes: u64,
    /// "prefill" or "decode".
    pub test: &'static str,
    /// Tokens in each repetition.
    pub tokens: usize,
    /// The engine.
    pub engine: String,
    /// Tokens a second of each repetition, in the order measured.
    pub tokens_per_s: Vec<f64>,
    /// Their median.
    pub median: f64,
}

/// Everything one run found.
#[derive(Serialize)]
pub struct Report {
    /// Where.
    pub machine: Machine,
    /// Threads given to every engine.
    pub threads: usize,
    /// Repetitions of each test.
    pub repetitions: usize,
    /// The largest part of the cores' time that other processes had during a counted measurement, 0 to 1.
    pub worst_disturbance: f64,
    /// CPU features by engine, as each reports them.
    pub features: BTreeMap<String, String>,
    /// The measurements.
    pub rows: Vec<Row>,
}

/// The median; of an even number, the mean of the middle two. 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

impl Report {
    /// The table for people. The ratio is ours over the peer's: above 1 we are faster.
    pub fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}, {} cores, {} threads, load {} at the start, kernel {}, commit {}; median of {}, lowest and highest in brackets.",
            machine.cpu, machine.cores, self.threads, machine.load, machine.kernel, machine.commit, self.repetitions
        );
        let _ = writeln!(
            text,
            "Other processes had at most {:.0} % of the cores' time.",
            self.worst_disturbance * 100.0
        );
        let _ = writeln!(text, "CPU flags: {}.", machine.flags.join(" "));
        for (engine, features) in &self.features {
            let _ = writeln!(text, "{engine}: {features}.");
        }
        let _ = writeln!(
            text,
            "\n| model | MB | test | engine | tokens/s | ratio |\n|---|---:|---|---|---:|---:|"
        );
        for row in &self.rows {
            let (low, high) = bounds(&row.tokens_per_s);
            let _ = writeln!(
                text,
                "| {} | {:.0} | {} {} | {} | {:.2} ({low:.2}-{high:.2}) | {} |",
                row.model,
                row.model_bytes as f64 / 1e6,
                row.test,
                row.tokens,
                row.engine,
                row.median,
                self.ratio(row).map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            );
        }
        text
    }

    /// This row's speed over llama.cpp's in the same test; none for llama.cpp itself or where it did not run.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let same = |other: &&Row| other.model == row.model && other.test == row.test && other.engine == "llama.cpp";
        let peer = self.rows.iter().find(same)?;
        (peer.engine != row.engine).then(|| row.median / peer.median)
    }
}

fn bounds(values: &[f64]) -> (f64, f64) {
    values.iter().fold((f64::INFINITY, 0.0), |(low, high), &value| {
        (f64::min(low, value), f64::max(high, value))
    })
}
