//! The cache of a recipe beside other layouts of as many layers, as fixed part + slope per token.

use kernels::ir::{CacheDesc, CacheFormat, CacheRows};
use protocol::{KvBaselines, KvFit};

use crate::engine::Engine;
use crate::recipe::{Choice, Recipe};

/// Bytes of a dense layout per token and layer, with where the number comes from.
struct Layout {
    name: &'static str,
    about: &'static str,
    row: u64,
}

/// Well-known layouts, all in 16-bit values.
const LAYOUTS: [Layout; 3] = [
    Layout {
        name: "DeepSeek-V3 rows",
        about: "multi-head latent attention: one 576-wide latent in bf16, 1152 bytes per token and layer",
        row: 1152,
    },
    Layout {
        name: "R1-Distill-Qwen-1.5B (GQA)",
        about: "2 key heads x 128, keys and values in bf16, 1024 bytes per token and layer",
        row: 1024,
    },
    Layout {
        name: "Llama-2-7B (MHA)",
        about: "32 key heads x 128, keys and values in bf16, 16384 bytes per token and layer",
        row: 16384,
    },
];

/// Fixed bytes and bytes per token of cache components, once every ring is full.
pub fn fit(caches: &[CacheDesc]) -> (f64, f64) {
    let (mut fixed, mut slope) = (0.0, 0.0);
    for c in caches {
        let (data, scales) = c.row_bytes();
        let row = (data + scales) as f64;
        match c.rows {
            CacheRows::Ring { live, .. } => fixed += row * live as f64,
            CacheRows::Growing { rate } => slope += row / rate as f64,
        }
    }
    (fixed, slope)
}

/// Context from which on `ours` is the smaller one of two (fixed, slope) lines; 0 = always, `None` = never.
fn crossover(ours: (f64, f64), other: (f64, f64)) -> Option<u64> {
    let (more_fixed, less_slope) = (ours.0 - other.0, other.1 - ours.1);
    if more_fixed <= 0.0 && less_slope >= 0.0 {
        return Some(0);
    }
    (less_slope > 0.0).then(|| (more_fixed / less_slope).ceil() as u64)
}

/// A layout as a line, with the length from which on `ours` is the smaller one.
fn against(ours: (f64, f64), name: &str, about: &str, line: (f64, f64)) -> KvFit {
    KvFit {
        name: name.into(),
        about: about.into(),
        fixed: line.0,
        slope: line.1,
        crossover: crossover(ours, line),
    }
}

fn in_force(ours: (f64, f64)) -> KvFit {
    let about = "windows and pooling state are fixed, rows grow with the text";
    against(ours, "this recipe", about, ours)
}

impl Engine {
    /// The cache of a recipe beside the same layers in bf16 and other models' rows over as many layers. Estimated
    /// from record sizes.
    pub fn kv_baselines(&self, recipe: &Recipe) -> KvBaselines {
        let layers = self.facts().layers.len() as f64;
        let ours = fit(&self.family.caches(recipe, &self.registry, self.chunk()));
        let mut plain = recipe.clone();
        for l in &mut plain.layers {
            l.kv_cache = Choice::plain(CacheFormat::Bf16.name());
            l.index_cache = l.index_cache.is_some().then(|| Choice::plain(CacheFormat::Bf16.name()));
        }
        let bf16 = fit(&self.family.caches(&plain, &self.registry, self.chunk()));
        let mut fits = vec![
            in_force(ours),
            against(ours, "bf16 records", "the same layers with every row in bf16", bf16),
        ];
        fits.extend(
            LAYOUTS
                .iter()
                .map(|l| against(ours, l.name, l.about, (0.0, layers * l.row as f64))),
        );
        KvBaselines { fits }
    }

    /// The cache of the recipe in force, then of another one. Estimated from record sizes.
    pub fn kv_preview(&self, now: &Recipe, then: &Recipe) -> KvBaselines {
        let line = |recipe: &Recipe| fit(&self.family.caches(recipe, &self.registry, self.chunk()));
        let ours = line(now);
        let other = against(ours, "with the change", "the recipe as it would be", line(then));
        KvBaselines {
            fits: vec![in_force(ours), other],
        }
    }
}

#[cfg(test)]
mod tests {
    use kernels::ir::Component;

    use super::*;

    #[test]
    fn lines_follow_record_sizes_and_cross_where_they_should() {
        let cache = |component, rows, width, format| CacheDesc {
            layer: 0,
            component,
            rows,
            records: 1,
            width,
            rope: 64,
            format,
        };
        let ring = CacheRows::Ring {
            capacity: 256,
            live: 128,
            block: 1,
        };
        let caches = [
            cache(Component::Window, ring, 512, CacheFormat::Fp8Model1),
            cache(
                Component::Rows,
                CacheRows::Growing { rate: 4 },
                512,
                CacheFormat::Fp8Model1,
            ),
        ];
        let ours = fit(&caches);
        assert_eq!(ours, (128.0 * 584.0, 584.0 / 4.0));
        // 1152 bytes per token: 74,752 / (1152 - 146) = 74.3 tokens.
        assert_eq!(crossover(ours, (0.0, 1152.0)), Some(75));
        assert_eq!(crossover(ours, (0.0, 146.0)), None);
        assert_eq!(crossover(ours, (0.0, 100.0)), None);
        assert_eq!(crossover(ours, ours), Some(0));
        assert_eq!(crossover(ours, (80000.0, 200.0)), Some(0));
        // Smaller at first, larger in the long run: never "from here on".
        assert_eq!(crossover(ours, (80000.0, 100.0)), None);
    }
}
