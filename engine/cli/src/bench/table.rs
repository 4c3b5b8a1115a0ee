//! Rows in four forms, written as they are measured.

use std::collections::BTreeSet;
use std::io::{Result, Write};

use engine::bench::{Bench, Measured, Work, mean_sd};
use engine::memory::human;
use engine::{Engine, Recipe};
use serde_json::{Value, json};

use crate::args::Form;

/// What is measured.
pub struct Subject<'a> {
    pub engine: &'a Engine,
    pub recipe: &'a Recipe,
    pub label: &'a str,
    /// How most of its weights are stored.
    pub weights: &'a str,
    /// Whether the weights are random.
    pub random: bool,
    /// Of the CPU.
    pub threads: Option<usize>,
    pub bench: &'a Bench,
}

/// A table that is being written.
pub struct Table<W> {
    form: Form,
    out: W,
    rows: usize,
    /// Lines under a Markdown table.
    devices: Vec<String>,
    notes: BTreeSet<String>,
}

const COLUMNS: [&str; 11] = [
    "model",
    "size",
    "params",
    "backend",
    "threads",
    "test",
    "tokens/s",
    "read per token",
    "of read speed",
    "KV cache",
    "peak (predicted)",
];
/// Least widths, so that rows written later line up.
const WIDTHS: [usize; 11] = [24, 10, 8, 7, 7, 15, 18, 14, 13, 9, 21];
/// The columns of numbers are flush right.
const LEFT: [usize; 3] = [0, 3, 5];

impl<W: Write> Table<W> {
    pub fn new(form: Form, out: W) -> Self {
        Self {
            form,
            out,
            rows: 0,
            devices: Vec::new(),
            notes: BTreeSet::new(),
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Writes a row.
    pub fn add(&mut self, subject: &Subject<'_>, found: &Measured) -> Result<()> {
        let first = self.rows == 0;
        self.rows += 1;
        match self.form {
            Form::Md => {
                let cells = self.cells(subject, found);
                if first {
                    self.head(&cells[0])?;
                }
                self.line(&cells, cells[0].len())?;
            }
            Form::Csv => {
                // Lists do not fit a cell.
                let fields = fields(subject, found).into_iter().filter(|(_, v)| !v.is_array());
                let (names, values): (Vec<&str>, Vec<Value>) = fields.unzip();
                if first {
                    writeln!(self.out, "{}", names.join(","))?;
                }
                let values: Vec<String> = values.iter().map(cell).collect();
                writeln!(self.out, "{}", values.join(","))?;
            }
            Form::Json => {
                write!(self.out, "{}", if first { "[\n" } else { ",\n" })?;
                let lines: Vec<String> = fields(subject, found)
                    .iter()
                    .map(|(k, v)| format!("    \"{k}\": {v}"))
                    .collect();
                write!(self.out, "  {{\n{}\n  }}", lines.join(",\n"))?;
            }
            Form::Jsonl => {
                let parts: Vec<String> = fields(subject, found)
                    .iter()
                    .map(|(k, v)| format!("\"{k}\":{v}"))
                    .collect();
                writeln!(self.out, "{{{}}}", parts.join(","))?;
            }
        }
        self.out.flush()
    }

    /// Ends the table; nothing is written where there are no rows.
    pub fn finish(&mut self) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        match self.form {
            Form::Md => {
                writeln!(self.out)?;
                for line in self.devices.iter().chain(&self.notes) {
                    writeln!(self.out, "{line}")?;
                }
            }
            Form::Json => writeln!(self.out, "\n]")?,
            Form::Csv | Form::Jsonl => {}
        }
        self.out.flush()
    }

    fn head(&mut self, label: &str) -> Result<()> {
        let names: Vec<String> = COLUMNS.iter().map(ToString::to_string).collect();
        self.line(&names, label.len())?;
        let mut rule = String::from("|");
        for (i, &least) in WIDTHS.iter().enumerate() {
            let width = if i == 0 { least.max(label.len()) } else { least };
            let right = if LEFT.contains(&i) { "-" } else { ":" };
            rule += &format!(" {}{right} |", "-".repeat(width - 1));
        }
        writeln!(self.out, "{rule}")
    }

    fn line(&mut self, cells: &[String], first: usize) -> Result<()> {
        let mut line = String::from("|");
        for (i, (cell, &least)) in cells.iter().zip(&WIDTHS).enumerate() {
            let width = if i == 0 { least.max(first) } else { least };
            line += &if LEFT.contains(&i) {
                format!(" {cell:<width$} |")
            } else {
                format!(" {cell:>width$} |")
            };
        }
        writeln!(self.out, "{line}")
    }

    /// A Markdown row; what it needs to be understood goes under the table.
    fn cells(&mut self, s: &Subject<'_>, m: &Measured) -> Vec<String> {
        let dash = || "-".to_string();
        let reads = s.bench.read_bandwidth();
        let speed = reads.map_or("read speed unknown".into(), |r| {
            format!("reads {:.1} GB/s (measured)", r / 1e9)
        });
        let device = format!("{}: {speed}; recipe {}", s.engine.backend().describe(), s.recipe.hash());
        if !self.devices.contains(&device) {
            self.devices.push(device);
        }
        self.notes.insert(format!(
            "tokens/s measured: mean +- standard deviation of {} after {}; so is the peak of memory. Read per token (weights \
             and cache): estimated by the plan. KV cache, and weights, cache and working memory together: predicted for the \
             end of the test{}.{}",
            m.nanos.len(),
            match s.bench.warm_up() {
                1 => "a warm-up".into(),
                n => format!("{n} warm-ups"),
            },
            if s.threads.is_some() {
                "; the peak holds the program and host checkpoints, too"
            } else {
                "; the peak is what the GPU has in use more than before the model came, by whatever program"
            },
            if s.random { " Random weights: speed alone." } else { "" }
        ));
        let cached = s.threads.is_some() && in_cache(m);
        if cached {
            let cache = kernels::cpu::measure::cache_bytes().unwrap_or(0);
            self.notes.insert(format!(
                "(*) This fits the processor's caches ({}), which may be faster than its memory.",
                human(cache)
            ));
        }
        let share = m.reads().zip(reads).map(|(a, b)| {
            let star = if cached { " (*)" } else { "" };
            format!("{:.0} %{star}", 100.0 * a / b)
        });
        if m.test.sequences > 1 {
            self.notes
                .insert("bN: N sequences decoded together; tokens/s are of all of them.".into());
        }
        if let Some(why) = &m.apart {
            self.notes
                .insert(format!("{}: not in one step for all: {why}.", m.test.name()));
        }
        let (mean, sd) = m.speed();
        let each = match m.test.sequences {
            1 => String::new(),
            n => format!(" ({:.2} each)", mean / n as f64),
        };
        vec![
            format!("{} {}", s.label, s.weights),
            human(s.engine.weight_bytes()),
            params(parameters(s.engine)),
            s.engine.backend().name().to_uppercase(),
            s.threads.map_or_else(dash, |n| n.to_string()),
            m.test.name(),
            format!("{mean:.2} +- {sd:.2}{each}"),
            m.bytes_per_token.map_or_else(dash, human),
            share.unwrap_or_else(dash),
            human(m.kv_bytes),
            format!(
                "{} ({})",
                m.peak_memory.map_or_else(dash, human),
                human(m.memory_predicted)
            ),
        ]
    }
}

/// Whether the processor's caches could hold all that a token reads.
fn in_cache(m: &Measured) -> bool {
    let cache = kernels::cpu::measure::cache_bytes();
    m.bytes_per_token.zip(cache).is_some_and(|(bytes, cache)| bytes < cache)
}

/// Stored parameters.
fn parameters(engine: &Engine) -> u64 {
    engine.weights().descs().iter().map(|d| d.elements()).sum()
}

/// 1.78 B, 17.0 M.
fn params(n: u64) -> String {
    let n = n as f64;
    if n >= 1e9 {
        format!("{:.2} B", n / 1e9)
    } else {
        format!("{:.1} M", n / 1e6)
    }
}

/// A CSV cell.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(s) => format!("\"{}\"", s.replace('"', "\"\"")),
        v => v.to_string(),
    }
}

/// A row as named values; what llama-bench has, too, has its name.
fn fields(s: &Subject<'_>, m: &Measured) -> Vec<(&'static str, Value)> {
    let (prompt, generate) = match m.test.work {
        Work::Prompt(n) => (n, 0),
        Work::Generate(n) => (0, n),
    };
    let nanos: Vec<f64> = m.nanos.iter().map(|&n| n as f64).collect();
    let (ns, ns_sd) = mean_sd(&nanos);
    let (ts, ts_sd) = m.speed();
    let reads = s.bench.read_bandwidth();
    vec![
        ("program", json!(concat!("model1 ", env!("CARGO_PKG_VERSION")))),
        ("model", json!(s.label)),
        ("random_weights", json!(s.random)),
        ("weights", json!(s.weights)),
        ("model_size", json!(s.engine.weight_bytes())),
        ("model_n_params", json!(parameters(s.engine))),
        ("recipe", json!(s.recipe.hash())),
        ("backend", json!(s.engine.backend().name())),
        ("device", json!(s.engine.backend().describe())),
        ("n_threads", json!(s.threads)),
        ("test", json!(m.test.name())),
        ("n_prompt", json!(prompt)),
        ("n_gen", json!(generate)),
        ("n_depth", json!(m.test.depth)),
        ("n_sequences", json!(m.test.sequences)),
        ("warm_up", json!(s.bench.warm_up())),
        ("repetitions", json!(m.nanos.len())),
        ("avg_ns", json!(ns)),
        ("stddev_ns", json!(ns_sd)),
        ("avg_ts", json!(ts)),
        ("stddev_ts", json!(ts_sd)),
        ("avg_ts_per_sequence", json!(ts / m.test.sequences as f64)),
        ("not_in_one_step", json!(m.apart)),
        ("samples_ns", json!(m.nanos)),
        ("samples_ts", json!(m.speeds())),
        ("bytes_per_token_estimated", json!(m.bytes_per_token)),
        ("flops_per_token_estimated", json!(m.flops_per_token)),
        ("read_bandwidth_bytes_per_s", json!(reads)),
        ("read_share", json!(m.reads().zip(reads).map(|(a, b)| a / b))),
        ("fits_cache", json!(s.threads.is_some() && in_cache(m))),
        ("kv_bytes_predicted", json!(m.kv_bytes)),
        ("memory_bytes_predicted", json!(m.memory_predicted)),
        ("peak_memory_bytes", json!(m.peak_memory)),
        ("figures", json!("measured, but those named estimated or predicted")),
    ]
}
