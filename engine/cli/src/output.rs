//! Progress bars, tables, sizes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use engine::Progress;
use engine::memory::human;
use indicatif::{ProgressBar, ProgressStyle};
use protocol::StepRecord;

/// A byte-counting progress bar that is also what checkpoint loading reports to.
pub struct Bar {
    bar: ProgressBar,
    total: AtomicU64,
}

impl Bar {
    /// A bar on stderr; hidden when quiet or when stderr is not a terminal.
    pub fn new(quiet: bool, what: &str) -> Self {
        let bar = if quiet {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(0)
        };
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        bar.set_message(what.to_string());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self {
            bar,
            total: AtomicU64::new(0),
        }
    }

    /// A bar that counts tokens.
    pub fn tokens(quiet: bool, what: &str) -> Self {
        let bar = Self::new(quiet, what);
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} tokens {eta}");
        if let Ok(style) = style {
            bar.bar.set_style(style);
        }
        bar
    }

    /// Sets what is done and what there is.
    pub fn set(&self, done: u64, total: Option<u64>) {
        if let Some(t) = total
            && self.total.swap(t, Ordering::Relaxed) != t
        {
            self.bar.set_length(t);
        }
        self.bar.set_position(done);
    }

    /// Changes the words before the bar.
    pub fn message(&self, text: String) {
        self.bar.set_message(text);
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Bar {
    fn report(&self, done: u64, total: u64) {
        self.set(done, Some(total));
    }

    fn cancelled(&self) -> bool {
        crate::setup::cancel().is_cancelled()
    }
}

/// Per-layer sums over a run, from its step records.
#[derive(Default)]
pub struct LayerTotals {
    rows: Vec<Total>,
}

#[derive(Default, Clone)]
struct Total {
    used: protocol::KvBytes,
    allocated: u64,
    context: u64,
    scored: u64,
    kept: u64,
    indexed: u64,
    units: u64,
    units_kept: u64,
    error: Option<f64>,
    load: Vec<u64>,
}

impl LayerTotals {
    /// Adds one step.
    pub fn add(&mut self, record: &StepRecord) {
        self.rows
            .resize(record.layers.len().max(self.rows.len()), Total::default());
        for (t, l) in self.rows.iter_mut().zip(&record.layers) {
            t.used = l.kv_used;
            t.allocated = l.kv_allocated.total();
            t.context += l.keys_context;
            t.scored += l.keys_scored;
            t.kept += l.keys_kept;
            t.units += l.ffn_units;
            t.units_kept += l.ffn_kept;
            t.indexed += l.index_scored;
            t.error = l.round_trip_error.or(t.error);
            t.load.resize(l.expert_load.len().max(t.load.len()), 0);
            t.load
                .iter_mut()
                .zip(&l.expert_load)
                .for_each(|(a, &b)| *a += u64::from(b));
        }
    }

    /// The table printed after a run.
    pub fn print(&self, formats: &[String], tokens: u64) {
        eprintln!("\nKV cache per layer after {tokens} tokens (bytes measured; keys summed over all steps, measured)");
        eprintln!(
            "{:>5}  {:<16} {:>10} {:>10} {:>10} {:>10} {:>11}  {:>8}  {:>10}  experts",
            "layer", "format", "window", "rows", "index", "state", "allocated", "sparsity", "rounding"
        );
        let mut sum = (0, 0);
        for (i, t) in self.rows.iter().enumerate() {
            let scales = t.used.scales;
            sum.0 += t.used.total();
            sum.1 += t.allocated;
            let sparsity = if t.context > 0 {
                1.0 - t.scored as f64 / t.context as f64
            } else {
                0.0
            };
            let format = formats.get(i).map_or("", String::as_str);
            // Rounding to bf16 is not counted, so nothing is said about it.
            let rounding = match t.error {
                Some(e) if e > 0.0 => format!("{:.3} %", 100.0 * e),
                None if format.contains("bf16") => "-".into(),
                _ => "exact".into(),
            };
            let active = t.load.iter().filter(|&&n| n > 0).count();
            let experts = if t.load.is_empty() {
                "-".to_string()
            } else {
                format!("{active}/{} used", t.load.len())
            };
            // Scales belong to whichever records carry them: shown with the rows they scale.
            let (window, rows) = if t.used.rows > 0 {
                let part = scales * t.used.window / (t.used.window + t.used.rows + t.used.index).max(1);
                (t.used.window + part, t.used.rows + scales - part)
            } else {
                (t.used.window + scales, t.used.rows)
            };
            let dash = |n: u64| if n == 0 { "-".to_string() } else { human(n) };
            eprintln!(
                "{i:>5}  {format:<16} {:>10} {:>10} {:>10} {:>10} {:>11}  {:>6.1} %  {rounding:>10}  {experts}",
                dash(window),
                dash(rows),
                dash(t.used.index),
                dash(t.used.pooling),
                human(t.allocated),
                100.0 * sparsity,
            );
        }
        eprintln!("total  used {}, allocated {}", human(sum.0), human(sum.1));
        for (i, t) in self.rows.iter().enumerate() {
            let kept = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
            if t.kept < t.scored {
                eprintln!("layer {i}: {:.1} % of the scored keys kept", kept(t.kept, t.scored));
            }
            if t.units > 0 {
                eprintln!(
                    "layer {i}: {:.1} % of the hidden units kept",
                    kept(t.units_kept, t.units)
                );
            }
        }
    }
}

/// Speeds of a run, one line.
pub fn print_summary(s: &protocol::RunSummary, why: &str) {
    let peak = engine::memory::peak().map_or(String::new(), |b| format!("; peak memory {}", human(b)));
    eprintln!(
        "\n[{} tokens, {why}; prompt {} tokens at {:.1} tok/s, first token {:.2} s, decode {:.1} tok/s \
         (p50 {:.1} ms, p95 {:.1} ms, measured){peak}]",
        s.tokens,
        s.prompt_tokens,
        s.prefill_tokens_per_s,
        s.first_token_s,
        s.decode_tokens_per_s,
        s.latency_ms[0],
        s.latency_ms[1],
    );
}

/// 1234567 -> 1.23 M.
pub fn si(n: u64) -> String {
    let x = n as f64;
    for (unit, size) in [("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)] {
        if x >= size {
            return format!("{:.2} {unit}", x / size);
        }
    }
    format!("{n}")
}
