//! The telemetry of the current text: one sample per step, in columns, addressed by token.
//!
//! The history follows the text. When a step starts at a position that was already written (the text was rewound,
//! branched or replaced), the samples from that position on are forgotten, because the tokens they describe are gone.

use std::collections::VecDeque;
use std::ops::Range;

use protocol::StepRecord;

use super::metric::{LayerMetric, StepMetric, parts_of};
use super::percentile::Sliding;
use super::series::{Series, rounded_capacity};

/// Decode steps that percentiles look back on.
pub const LATENCY_WINDOW: usize = 256;
/// Decode steps that the speed is averaged over.
pub const RATE_WINDOW: u64 = 16;
/// Steps that expert load is summed over.
pub const EXPERT_WINDOW: u64 = 256;
/// Bytes that the columns of all layers may take; deep models keep fewer steps.
const BUDGET: usize = 128 << 20;

/// Columns of one layer.
#[derive(Clone, Debug)]
struct LayerColumns {
    metrics: [Series; LayerMetric::ALL.len()],
    parts: [Series; 6],
}

/// Tokens per expert, summed over steps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExpertLoad {
    /// Experts per layer (the most of any layer).
    pub experts: usize,
    /// `[layers, experts]`.
    pub counts: Vec<u32>,
    /// Layers that have experts.
    pub with_experts: Vec<bool>,
    /// Steps summed.
    pub steps: u64,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct History {
    asked: usize,
    capacity: usize,
    layers: Vec<LayerColumns>,
    all: [Series; LayerMetric::ALL.len()],
    steps: [Series; StepMetric::ALL.len()],
    parts: [Series; 6],
    /// (first token, tokens) per kept step.
    tokens: VecDeque<(u64, u32)>,
    /// Per kept step and layer: number of pairs, then (expert, tokens) pairs.
    experts: VecDeque<Box<[u16]>>,
    expert_count: Vec<usize>,
    first: u64,
    latency: Sliding,
    seq: Option<u64>,
    lost: u64,
    revision: u64,
}

impl History {
    /// An empty history that keeps about `steps` steps.
    pub fn new(steps: usize) -> Self {
        let capacity = rounded_capacity(steps);
        Self {
            asked: steps,
            capacity,
            layers: Vec::new(),
            all: std::array::from_fn(|_| Series::new(capacity)),
            steps: std::array::from_fn(|_| Series::new(capacity)),
            parts: std::array::from_fn(|_| Series::new(capacity)),
            tokens: VecDeque::new(),
            experts: VecDeque::new(),
            expert_count: Vec::new(),
            first: 0,
            latency: Sliding::new(LATENCY_WINDOW),
            seq: None,
            lost: 0,
            revision: 0,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        let revision = self.revision;
        *self = Self::new(self.asked);
        self.revision = revision + 1;
    }

    /// Adds a step.
    pub fn push(&mut self, step: &StepRecord) {
        if self.layers.len() != step.layers.len() {
            self.fit(step.layers.len());
        }
        if self.seq.is_some_and(|seq| step.seq <= seq) {
            self.clear_samples();
        }
        self.seq = Some(step.seq);
        let at = self
            .tokens
            .partition_point(|&(first, tokens)| first + u64::from(tokens) <= step.position);
        if at < self.tokens.len() {
            self.truncate(self.first + at as u64);
        }
        self.append(step);
        self.revision += 1;
    }

    /// Notes steps that were overwritten at the host before they got here.
    pub fn note_lost(&mut self, steps: u64) {
        self.lost += steps;
    }

    /// Steps that never arrived.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Rises whenever something changed.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Layers of the model.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Number of the first kept sample.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// One past the number of the last sample.
    pub fn end(&self) -> u64 {
        self.first + self.tokens.len() as u64
    }

    /// Whether nothing was recorded.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Most steps kept.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens that the kept samples cover.
    pub fn tokens(&self) -> Range<u64> {
        match (self.tokens.front(), self.tokens.back()) {
            (Some(&(first, _)), Some(&(last, n))) => first..last + u64::from(n),
            _ => 0..0,
        }
    }

    /// First token and number of tokens of a sample.
    pub fn span(&self, sample: u64) -> Option<(u64, u32)> {
        let at = usize::try_from(sample.checked_sub(self.first)?).ok()?;
        self.tokens.get(at).copied()
    }

    /// The last token of a sample: its place on a time axis.
    pub fn x(&self, sample: u64) -> f64 {
        self.span(sample)
            .map_or(f64::NAN, |(first, n)| (first + u64::from(n)) as f64 - 1.0)
    }

    /// The sample whose step processed a token.
    pub fn sample_of(&self, token: u64) -> Option<u64> {
        let at = self.tokens.partition_point(|&(first, n)| first + u64::from(n) <= token);
        let &(first, _) = self.tokens.get(at)?;
        (first <= token).then_some(self.first + at as u64)
    }

    /// Samples that touch a range of tokens.
    pub fn samples_of(&self, tokens: Range<u64>) -> Range<u64> {
        let from = self
            .tokens
            .partition_point(|&(first, n)| first + u64::from(n) <= tokens.start);
        let to = self.tokens.partition_point(|&(first, _)| first < tokens.end);
        self.first + from as u64..self.first + to.max(from) as u64
    }

    /// A figure of whole steps.
    pub fn step(&self, metric: StepMetric) -> &Series {
        &self.steps[metric.index()]
    }

    /// A figure of all layers together.
    pub fn all_layers(&self, metric: LayerMetric) -> &Series {
        &self.all[metric.index()]
    }

    /// A figure of a layer; `None` beyond the last one.
    pub fn layer(&self, layer: usize, metric: LayerMetric) -> Option<&Series> {
        self.layers.get(layer).map(|l| &l.metrics[metric.index()])
    }

    /// Cache bytes of the model by component, in the order of `KvBytes::parts`.
    pub fn parts(&self) -> &[Series; 6] {
        &self.parts
    }

    /// Cache bytes of a layer by component at a sample.
    pub fn layer_parts(&self, layer: usize, sample: u64) -> [f32; 6] {
        self.layers
            .get(layer)
            .map_or([f32::NAN; 6], |l| std::array::from_fn(|i| l.parts[i].get(sample)))
    }

    /// Expert load over the [`EXPERT_WINDOW`] steps that end with `sample`.
    pub fn expert_load(&self, sample: u64) -> ExpertLoad {
        let end = (sample + 1).clamp(self.first, self.end());
        let start = end.saturating_sub(EXPERT_WINDOW).max(self.first);
        let experts = self.expert_count.iter().copied().max().unwrap_or(0);
        let mut load = ExpertLoad {
            experts,
            counts: vec![0; experts * self.layers.len()],
            with_experts: self.expert_count.iter().map(|&n| n > 0).collect(),
            steps: end - start,
        };
        for record in self
            .experts
            .range((start - self.first) as usize..(end - self.first) as usize)
        {
            let mut rest: &[u16] = record;
            let mut layer = 0;
            while let Some((&pairs, tail)) = rest.split_first() {
                let (own, after) = tail.split_at((2 * pairs as usize).min(tail.len()));
                for pair in own.chunks_exact(2) {
                    if let Some(count) = load.counts.get_mut(layer * experts + pair[0] as usize) {
                        *count += u32::from(pair[1]);
                    }
                }
                rest = after;
                layer += 1;
            }
        }
        load
    }

    /// Prepares for a model of that many layers.
    fn fit(&mut self, layers: usize) {
        let (asked, lost, revision) = (self.asked, self.lost, self.revision);
        // 13 columns; pyramids add two thirds to them.
        let per_step = layers.max(1) * 4 * (LayerMetric::ALL.len() + 6) * 5 / 3;
        let mut capacity = rounded_capacity(asked);
        while capacity > 256 && capacity * per_step > BUDGET {
            capacity /= 4;
        }
        *self = Self::new(capacity);
        (self.asked, self.lost, self.revision) = (asked, lost, revision);
        self.layers = (0..layers)
            .map(|_| LayerColumns {
                metrics: std::array::from_fn(|_| Series::new(capacity)),
                parts: std::array::from_fn(|_| Series::new(capacity)),
            })
            .collect();
        self.expert_count = vec![0; layers];
    }

    /// Every series.
    fn each(&mut self, mut f: impl FnMut(&mut Series)) {
        self.all.iter_mut().for_each(&mut f);
        self.steps.iter_mut().for_each(&mut f);
        self.parts.iter_mut().for_each(&mut f);
        for layer in &mut self.layers {
            layer.metrics.iter_mut().for_each(&mut f);
            layer.parts.iter_mut().for_each(&mut f);
        }
    }

    fn clear_samples(&mut self) {
        self.each(Series::clear);
        self.tokens.clear();
        self.experts.clear();
        self.first = 0;
        self.latency.clear();
    }

    /// Forgets the samples from `end` on.
    fn truncate(&mut self, end: u64) {
        if end <= self.first {
            self.clear_samples();
            return;
        }
        self.each(|s| s.truncate(end));
        let keep = (end - self.first) as usize;
        self.tokens.truncate(keep);
        self.experts.truncate(keep);
        self.latency.clear();
        let latest = end.saturating_sub(4 * LATENCY_WINDOW as u64).max(self.first);
        for i in latest..end {
            self.latency.push(self.steps[StepMetric::StepMs.index()].get(i));
        }
    }

    fn append(&mut self, step: &StepRecord) {
        let ms = step.nanos as f32 / 1e6;
        let decode = step.tokens == 1;
        let rate = if step.nanos == 0 {
            f32::NAN
        } else {
            (f64::from(step.tokens) * 1e9 / step.nanos as f64) as f32
        };
        let mut figures = [f32::NAN; StepMetric::ALL.len()];
        if decode {
            self.latency.push(ms);
            figures[StepMetric::DecodeRate.index()] = self.decode_rate(ms);
            figures[StepMetric::StepMs.index()] = ms;
            figures[StepMetric::P50.index()] = self.latency.quantile(0.5);
            figures[StepMetric::P95.index()] = self.latency.quantile(0.95);
            figures[StepMetric::P99.index()] = self.latency.quantile(0.99);
        } else {
            figures[StepMetric::PrefillRate.index()] = rate;
        }
        figures[StepMetric::Memory.index()] = step.memory.map_or(f32::NAN, |m| m as f32);
        for (series, value) in self.steps.iter_mut().zip(figures) {
            series.push(value);
        }
        for (metric, series) in LayerMetric::ALL.iter().map(|m| (*m, m.index())) {
            self.all[series].push(metric.of_all(&step.layers));
        }
        let mut total = [0.0; 6];
        for (columns, record) in self.layers.iter_mut().zip(&step.layers) {
            for metric in LayerMetric::ALL {
                columns.metrics[metric.index()].push(metric.of(record));
            }
            for ((series, sum), bytes) in columns.parts.iter_mut().zip(&mut total).zip(parts_of(&record.kv_used)) {
                series.push(bytes);
                *sum += bytes;
            }
        }
        for (series, sum) in self.parts.iter_mut().zip(total) {
            series.push(sum);
        }
        self.append_experts(step);
        self.tokens.push_back((step.position, step.tokens));
        while self.tokens.len() > self.capacity {
            self.tokens.pop_front();
            self.experts.pop_front();
            self.first += 1;
        }
    }

    /// Speed over the last decode steps, the one of `ms` included.
    fn decode_rate(&self, ms: f32) -> f32 {
        let times = &self.steps[StepMetric::StepMs.index()];
        let (mut sum, mut steps) = (f64::from(ms), 1_u32);
        let mut at = times.end();
        while at > times.first() && u64::from(steps) < RATE_WINDOW {
            at -= 1;
            let earlier = times.get(at);
            if earlier.is_nan() {
                // A prompt was read in between; the pace before it says nothing about now.
                break;
            }
            sum += f64::from(earlier);
            steps += 1;
        }
        if sum > 0.0 {
            (f64::from(steps) * 1e3 / sum) as f32
        } else {
            f32::NAN
        }
    }

    fn append_experts(&mut self, step: &StepRecord) {
        let mut record = Vec::new();
        for (layer, seen) in step.layers.iter().zip(&mut self.expert_count) {
            *seen = (*seen).max(layer.expert_load.len());
            let head = record.len();
            record.push(0);
            for (expert, &count) in layer.expert_load.iter().enumerate().take(usize::from(u16::MAX)) {
                if count > 0 {
                    record.push(expert as u16);
                    record.push(u16::try_from(count).unwrap_or(u16::MAX));
                    record[head] += 1;
                }
            }
        }
        self.experts.push_back(record.into_boxed_slice());
    }
}
