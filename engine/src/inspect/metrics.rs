//! Figures per layer and token.

use kernels::ir::{Op, Positions};
use protocol::TokenLayerMetric;

use super::Replay;
use super::attention::{Attend, Chunk};
use super::walk::Walk;
use crate::engine::default_threads;
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::lower::{Layers, Look};
use crate::par::map_rows;
use crate::recipe::ModelFacts;
use crate::watch::Watch;

/// Most bytes of logits of all layers in one step of the logit lens.
const LENS_BYTES: usize = 256 << 20;

/// What a metric measures.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Metric {
    Norm,
    Change,
    Rounding,
    Entropy,
    Sink,
    FirstExpert,
    LensAgrees,
    LensRank,
}

const METRICS: [(Metric, &str, &str); 8] = [
    (Metric::Norm, "norm of the residual", ""),
    (Metric::Change, "relative change of the residual by the layer", ""),
    (Metric::Rounding, "cache rounding error", "relative RMS"),
    (Metric::Entropy, "entropy of attention (mean over heads)", "bits"),
    (Metric::Sink, "attention on the sink (mean over heads)", "share"),
    (Metric::FirstExpert, "weight of the first expert", ""),
    (Metric::LensAgrees, "logit lens: gives the final token", "1 = yes"),
    (Metric::LensRank, "logit lens: rank of the final token", "0 = likeliest"),
];

impl Metric {
    fn fits(self, facts: &ModelFacts) -> bool {
        match self {
            Metric::FirstExpert => facts.layers.iter().any(|l| l.experts > 0),
            // Of the families we run, those with latents have sinks.
            Metric::Sink => facts.layers.iter().any(|l| l.attention.evicts()),
            _ => true,
        }
    }
}

/// Metrics that this model has.
pub fn metric_names(facts: &ModelFacts) -> Vec<String> {
    let fitting = METRICS.iter().filter(|(m, _, _)| m.fits(facts));
    fitting.map(|(_, name, _)| (*name).to_string()).collect()
}

/// `[layers][tokens]`.
type Values = Vec<Vec<f32>>;

impl Replay<'_> {
    /// A figure per layer and token, by one of [`metric_names`]. NaN where a layer or token has none.
    ///
    /// - norm: `||x||` of the residual after the layer, over all streams;
    /// - relative change: `||x after - x before|| / ||x before||`;
    /// - cache rounding error: `||x - stored(x)|| / ||x||` over everything that the token put into the layer's cache
    ///   (a compressed row counts for the token that closes it);
    /// - entropy and sink: of the attention probabilities;
    /// - first expert: the routing weight of the expert chosen first;
    /// - logit lens: the output layer applied to the residual after the layer, against what the last layer says.
    ///
    /// # Errors
    /// An unknown name, an empty text, cancelled, a failed step.
    pub fn metric(&self, name: &str, watch: &mut Watch<'_>) -> Result<TokenLayerMetric, EngineError> {
        self.some_text()?;
        let facts = self.engine.facts();
        let found = METRICS.iter().find(|(m, n, _)| *n == name && m.fits(facts));
        let Some(&(metric, name, unit)) = found else {
            return Err(EngineError::Invalid(format!(
                "metric `{name}`: found none of this name, accepted: {}",
                metric_names(facts).join(", ")
            )));
        };
        let values = match metric {
            Metric::Norm | Metric::Change => self.residuals(metric, watch)?,
            Metric::Rounding => self.rounding(watch)?,
            Metric::Entropy | Metric::Sink => self.attention_figures(metric, watch)?,
            Metric::FirstExpert => self.first_expert(watch)?,
            Metric::LensAgrees | Metric::LensRank => self.lens(metric, watch)?,
        };
        Ok(TokenLayerMetric {
            name: name.into(),
            unit: unit.into(),
            layers: facts.layers.len() as u32,
            tokens: self.ids.len() as u32,
            values: values.into_iter().flatten().collect(),
        })
    }

    fn layers(&self) -> usize {
        self.engine.facts().layers.len()
    }

    fn residuals(&self, metric: Metric, watch: &mut Watch<'_>) -> Result<Values, EngineError> {
        let look = Look {
            embedding: true,
            ..Look::default()
        };
        let mut walk = Walk::new(self, self.ids, look, true, CHUNK)?;
        let mut out = vec![Vec::new(); self.layers()];
        while let Some(range) = walk.step(watch)? {
            let mut before = walk.probe("embed")?;
            for (l, values) in out.iter_mut().enumerate() {
                let after = walk.probe(&format!("layer_out.{l}"))?;
                values.extend((0..range.len()).map(|i| {
                    let (b, a) = (before.row(i), after.row(i));
                    match metric {
                        Metric::Norm => norm(a.iter().map(|&x| f64::from(x))) as f32,
                        _ => (distance(a, b) / norm(b.iter().map(|&x| f64::from(x)))) as f32,
                    }
                }));
                before = after;
            }
        }
        Ok(out)
    }

    fn rounding(&self, watch: &mut Watch<'_>) -> Result<Values, EngineError> {
        let look = Look {
            writes: true,
            ..Look::default()
        };
        let n = self.ids.len();
        let mut walk = Walk::new(self, self.ids, look, false, CHUNK)?;
        // Sums of squares of (errors, values) per layer and token.
        let mut sums = vec![vec![(0.0f64, 0.0f64); n]; self.layers()];
        while let Some(range) = walk.step(watch)? {
            let plan = walk.plan()?.clone();
            for op in &plan.ops {
                let Op::CacheWrite { cache, rows, .. } = op.op else {
                    continue;
                };
                let desc = walk.cache(cache)?;
                let source = walk.probe(&format!("write.{}", cache.0))?;
                let first = match rows {
                    Positions::Tokens => range.start,
                    Positions::Closed { rate } => range.start / rate,
                };
                let stored = walk.rows(cache, first..first + source.rows())?;
                let sums = &mut sums[desc.layer as usize];
                for (i, back) in stored.chunks_exact(source.width).enumerate() {
                    let token = match rows {
                        Positions::Tokens => first + i,
                        Positions::Closed { rate } => (first + i + 1) * rate - 1,
                    };
                    sums[token].0 += distance(source.row(i), back).powi(2);
                    sums[token].1 += norm(source.row(i).iter().map(|&x| f64::from(x))).powi(2);
                }
            }
        }
        let ratio = |&(e, s): &(f64, f64)| if s > 0.0 { (e / s).sqrt() as f32 } else { f32::NAN };
        Ok(sums.iter().map(|layer| layer.iter().map(ratio).collect()).collect())
    }

    fn attention_figures(&self, metric: Metric, watch: &mut Watch<'_>) -> Result<Values, EngineError> {
        let look = Look {
            attention: Layers::All,
            ..Look::default()
        };
        let mut walk = Walk::new(self, self.ids, look, false, CHUNK)?;
        let mut out = vec![Vec::new(); self.layers()];
        while let Some(range) = walk.step(watch)? {
            let plan = walk.plan()?.clone();
            for (l, values) in out.iter_mut().enumerate() {
                let attend = Attend::of(self.engine, &plan, l as u32)?;
                let chunk = Chunk::read(&walk, &attend, l as u32, &range, range.start)?;
                values.extend(map_rows(default_threads(), range.len(), |i| {
                    let q = chunk.query(range.start + i);
                    let sum: f64 = match metric {
                        Metric::Entropy => (0..attend.heads).map(|h| q.entropy(h)).sum(),
                        _ => q.sink.iter().sum(),
                    };
                    (sum / attend.heads as f64) as f32
                }));
                watch.report(range.start as u64, self.ids.len() as u64)?;
            }
        }
        Ok(out)
    }

    fn first_expert(&self, watch: &mut Watch<'_>) -> Result<Values, EngineError> {
        let look = Look {
            routers: true,
            ..Look::default()
        };
        let mut walk = Walk::new(self, self.ids, look, false, CHUNK)?;
        let mut out = vec![Vec::new(); self.layers()];
        while let Some(range) = walk.step(watch)? {
            for (l, values) in out.iter_mut().enumerate() {
                match walk.find(&format!("weights.{l}")) {
                    Some(w) => values.extend((0..range.len()).map(|i| w.row(i).first().copied().unwrap_or(f32::NAN))),
                    None => values.extend(range.clone().map(|_| f32::NAN)),
                }
            }
        }
        Ok(out)
    }

    fn lens(&self, metric: Metric, watch: &mut Watch<'_>) -> Result<Values, EngineError> {
        let look = Look {
            lens: true,
            ..Look::default()
        };
        let layers = self.layers();
        let chunk = LENS_BYTES / (4 * layers * self.engine.facts().vocab).max(1);
        let mut walk = Walk::new(self, self.ids, look, false, chunk)?;
        let mut out = vec![Vec::new(); layers];
        while let Some(range) = walk.step(watch)? {
            let last = walk.probe(&format!("lens.{}", layers - 1))?;
            let said: Vec<usize> = (0..range.len()).map(|i| likeliest(last.row(i))).collect();
            for (l, values) in out.iter_mut().enumerate() {
                let logits = walk.probe(&format!("lens.{l}"))?;
                values.extend(map_rows(default_threads(), range.len(), |i| {
                    let (row, token) = (logits.row(i), said[i]);
                    match metric {
                        Metric::LensAgrees => f32::from(u8::from(likeliest(row) == token)),
                        _ => row.iter().filter(|&&z| z > row[token]).count() as f32,
                    }
                }));
            }
        }
        Ok(out)
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|x| x * x).sum::<f64>().sqrt()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    norm(a.iter().zip(b).map(|(x, y)| f64::from(*x) - f64::from(*y)))
}

/// The largest logit, the lowest token on ties.
fn likeliest(row: &[f32]) -> usize {
    let mut best = 0;
    for (i, z) in row.iter().enumerate() {
        if *z > row[best] {
            best = i;
        }
    }
    best
}
