//! The figures of telemetry: names, units, how they are computed.

use protocol::{KvBytes, LayerRecord};

use crate::widgets::plots::Quantity;

/// A figure that every layer reports in every step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LayerMetric {
    /// Cache bytes in use.
    KvBytes,
    /// 1 - scored / dense.
    Sparsity,
    /// Keys in the softmax / dense.
    Kept,
    /// Keys scored by the indexer / dense.
    IndexScored,
    /// Round-trip error of rows just quantised.
    Error,
    /// Share of stored values that saturated.
    Saturated,
    /// Share of stored values flushed to zero.
    Flushed,
}

impl LayerMetric {
    /// All of them, in the order of menus.
    pub const ALL: [LayerMetric; 7] = [
        LayerMetric::Sparsity,
        LayerMetric::Error,
        LayerMetric::KvBytes,
        LayerMetric::Kept,
        LayerMetric::IndexScored,
        LayerMetric::Saturated,
        LayerMetric::Flushed,
    ];

    /// Its place in arrays.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            LayerMetric::KvBytes => "KV bytes",
            LayerMetric::Sparsity => "sparsity ratio",
            LayerMetric::Kept => "keys kept",
            LayerMetric::IndexScored => "keys scored by the indexer",
            LayerMetric::Error => "FP8 round-trip error",
            LayerMetric::Saturated => "values saturated",
            LayerMetric::Flushed => "values flushed to zero",
        }
    }

    /// What it counts.
    pub fn quantity(self) -> Quantity {
        match self {
            LayerMetric::KvBytes => Quantity::Bytes,
            LayerMetric::Error => Quantity::Plain,
            _ => Quantity::Share,
        }
    }

    /// How it is computed.
    pub fn definition(self) -> &'static str {
        match self {
            LayerMetric::KvBytes => {
                "Bytes of the layer's cache in use after the step, all components together: window, compressed rows, \
                 indexer keys, scales, pooling state, checkpoints. Counted, not estimated."
            }
            LayerMetric::Sparsity => {
                "1 - keys scored by core attention / keys a dense causal attention would score, summed over the \
                 queries of the step. Keys that only the indexer scores are counted apart."
            }
            LayerMetric::Kept => {
                "Keys that took part in the softmax / keys a dense causal attention would score, summed over the \
                 queries of the step."
            }
            LayerMetric::IndexScored => {
                "Keys scored by the indexer / keys a dense causal attention would score. Core attention's own keys are \
                 not counted here. 0 in layers without an indexer."
            }
            LayerMetric::Error => {
                "||x - q(x)|| / ||x|| over the cache values quantised to 8 bits or fewer in the step. Layers that store \
                 f32 or bf16 have none."
            }
            LayerMetric::Saturated => "Share of the values stored in the step that were clipped to the format's range.",
            LayerMetric::Flushed => "Share of the values stored in the step that became 0 although they were not.",
        }
    }

    /// The figure of a layer's record; NaN = none.
    pub fn of(self, layer: &LayerRecord) -> f32 {
        let share = |keys: u64| match layer.keys_context {
            0 => f32::NAN,
            all => (keys as f64 / all as f64) as f32,
        };
        match self {
            LayerMetric::KvBytes => layer.kv_used.total() as f32,
            LayerMetric::Sparsity => 1.0 - share(layer.keys_scored),
            LayerMetric::Kept => share(layer.keys_kept),
            LayerMetric::IndexScored => share(layer.index_scored),
            LayerMetric::Error => layer.round_trip_error.map_or(f32::NAN, |e| e as f32),
            LayerMetric::Saturated => match layer.round_trip_error {
                Some(_) => layer.saturated as f32,
                None => f32::NAN,
            },
            LayerMetric::Flushed => match layer.round_trip_error {
                Some(_) => layer.flushed as f32,
                None => f32::NAN,
            },
        }
    }

    /// The figure of all layers of a step together; NaN = none.
    pub fn of_all(self, layers: &[LayerRecord]) -> f32 {
        let share = |keys: fn(&LayerRecord) -> u64| {
            let all: u64 = layers.iter().map(|l| l.keys_context).sum();
            match all {
                0 => f32::NAN,
                all => (layers.iter().map(keys).sum::<u64>() as f64 / all as f64) as f32,
            }
        };
        match self {
            LayerMetric::KvBytes => layers.iter().map(|l| l.kv_used.total()).sum::<u64>() as f32,
            LayerMetric::Sparsity => 1.0 - share(|l| l.keys_scored),
            LayerMetric::Kept => share(|l| l.keys_kept),
            LayerMetric::IndexScored => share(|l| l.index_scored),
            _ => {
                let (sum, n) = layers
                    .iter()
                    .map(|l| self.of(l))
                    .filter(|v| !v.is_nan())
                    .fold((0.0, 0), |(sum, n), v| (sum + f64::from(v), n + 1));
                if n == 0 { f32::NAN } else { (sum / f64::from(n)) as f32 }
            }
        }
    }

    /// What [`LayerMetric::of_all`] means.
    pub fn all_layers(self) -> &'static str {
        match self {
            LayerMetric::KvBytes => "all layers",
            LayerMetric::Sparsity | LayerMetric::Kept | LayerMetric::IndexScored => "all layers' keys",
            _ => "mean of layers",
        }
    }
}

/// A figure of the whole step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepMetric {
    /// Decode speed over the last decode steps.
    DecodeRate,
    /// Speed of a step that reads a prompt.
    PrefillRate,
    /// Time of a decode step.
    StepMs,
    /// Median time of the last decode steps.
    P50,
    /// 95th percentile.
    P95,
    /// 99th percentile.
    P99,
    /// Resident memory.
    Memory,
}

impl StepMetric {
    /// All of them.
    pub const ALL: [StepMetric; 7] = [
        StepMetric::DecodeRate,
        StepMetric::PrefillRate,
        StepMetric::StepMs,
        StepMetric::P50,
        StepMetric::P95,
        StepMetric::P99,
        StepMetric::Memory,
    ];

    /// Its place in arrays.
    pub fn index(self) -> usize {
        self as usize
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            StepMetric::DecodeRate => "decode",
            StepMetric::PrefillRate => "prefill",
            StepMetric::StepMs => "each token",
            StepMetric::P50 => "p50",
            StepMetric::P95 => "p95",
            StepMetric::P99 => "p99",
            StepMetric::Memory => "memory",
        }
    }

    /// What it counts.
    pub fn quantity(self) -> Quantity {
        match self {
            StepMetric::DecodeRate | StepMetric::PrefillRate => Quantity::TokensPerSecond,
            StepMetric::Memory => Quantity::Bytes,
            _ => Quantity::Milliseconds,
        }
    }
}

/// Bytes by component, in the order of [`KvBytes::parts`].
pub fn parts_of(kv: &KvBytes) -> [f32; 6] {
    kv.parts().map(|(_, bytes)| bytes as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(context: u64, scored: u64, error: Option<f64>) -> LayerRecord {
        LayerRecord {
            keys_context: context,
            keys_scored: scored,
            keys_kept: scored / 2,
            index_scored: context / 4,
            round_trip_error: error,
            kv_used: KvBytes {
                window: 100,
                rows: 20,
                ..KvBytes::default()
            },
            ..LayerRecord::default()
        }
    }

    #[test]
    fn shares_are_of_dense_keys_and_all_layers_weigh_by_keys() {
        let (a, b) = (layer(100, 100, None), layer(300, 60, Some(0.03)));
        assert_eq!(LayerMetric::Sparsity.of(&a), 0.0);
        assert!((LayerMetric::Sparsity.of(&b) - 0.8).abs() < 1e-6);
        assert!((LayerMetric::Sparsity.of_all(&[a.clone(), b.clone()]) - 0.6).abs() < 1e-6);
        assert_eq!(LayerMetric::Kept.of(&b), 0.1);
        assert_eq!(LayerMetric::IndexScored.of(&b), 0.25);
        assert_eq!(LayerMetric::KvBytes.of_all(&[a, b]), 240.0);
    }

    #[test]
    fn layers_without_quantised_rows_have_no_error_and_do_not_count_in_the_mean() {
        let (a, b) = (layer(10, 10, None), layer(10, 10, Some(0.02)));
        assert!(LayerMetric::Error.of(&a).is_nan());
        assert!(LayerMetric::Saturated.of(&a).is_nan());
        assert_eq!(LayerMetric::Error.of_all(&[a, b]), 0.02);
        assert!(LayerMetric::Error.of_all(&[]).is_nan());
    }

    #[test]
    fn a_step_without_queries_has_no_shares() {
        assert!(LayerMetric::Sparsity.of(&layer(0, 0, None)).is_nan());
    }

    #[test]
    fn places_in_arrays_are_distinct() {
        let mut layer: Vec<usize> = LayerMetric::ALL.iter().map(|m| m.index()).collect();
        layer.sort_unstable();
        assert_eq!(layer, (0..LayerMetric::ALL.len()).collect::<Vec<_>>());
        let step: Vec<usize> = StepMetric::ALL.iter().map(|m| m.index()).collect();
        assert_eq!(step, (0..StepMetric::ALL.len()).collect::<Vec<_>>());
    }
}
