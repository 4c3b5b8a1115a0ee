//! What a model needs of a device's own memory, predicted before anything is put there, and what would fit instead.

use kernels::cuda::need;
use kernels::ir::WeightId;
use serde::{Deserialize, Serialize};

use crate::families::Loaded;
use crate::lower::{Bucket, Lowering};
use crate::memory::human;
use crate::recipe::{Recipe, Registry};
use crate::restore::wanted;

/// Kept free for the driver: kernels, which are loaded when they first run (8 MiB for most of them on an H200), graphs (up to
/// 10 MiB each), tables of plans, and a larger weight's blocks on their way into planes.
const DRIVER: u64 = 256 << 20;
/// Caches in device memory begin with this many tokens and grow by doubling.
const LEAST: u64 = 1024;
/// Context that is planned for where none is asked for: caches grow with the text.
const USUAL: u64 = 4096;

/// The recipe a model will run under, as far as it is known before the model is: only memory is predicted from it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    /// A recipe as JSON; `None` = the checkpoint's own.
    pub json: Option<String>,
    /// Edits of it, e.g. `weights.ffn=fp8`.
    pub edits: Vec<String>,
}

impl Planned {
    /// The recipe. What is wrong with it is said where it is put in force.
    fn recipe(&self, loaded: &Loaded, registry: &Registry) -> Recipe {
        let facts = loaded.family.facts();
        let given = self
            .json
            .as_deref()
            .map(|j| Recipe::parse(j, "planned", facts, registry));
        let mut recipe = match given {
            Some(Ok(recipe)) => recipe,
            _ => Recipe::own(facts, registry),
        };
        for edit in &self.edits {
            let _ = recipe.set(edit, facts, registry);
        }
        recipe
    }
}

/// Bytes of a device's own memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// Weights as the recipe stores them.
    pub weights: u64,
    /// Cache at that context, as it is allocated.
    pub kv: u64,
    /// Working memory of the largest step.
    pub workspace: u64,
    /// Context in tokens.
    pub context: u64,
}

impl Needs {
    /// What a model needs under a recipe.
    pub fn of(loaded: &Loaded, registry: &Registry, recipe: &Recipe, context: u64) -> Self {
        let chunk = loaded.chunk(kernels::cuda::CHUNK);
        let caches = loaded.family.caches(recipe, registry, chunk);
        let restored = wanted(loaded.family.as_ref(), &loaded.weights, recipe, registry);
        let own: u64 = loaded.weights.descs().iter().map(need::of_weight).sum();
        let mut gone: Vec<u32> = restored.iter().map(|r| r.own.0).collect();
        gone.sort_unstable();
        gone.dedup();
        // Matrices that are stored otherwise are not put there as they are.
        let gone = gone
            .into_iter()
            .map(|id| need::of_weight(loaded.weights.desc(WeightId(id))));
        let weights = own - gone.sum::<u64>().min(own) + restored.iter().map(|r| need::of_weight(&r.desc)).sum::<u64>();
        let mut lowering = Lowering::new(loaded.family.clone(), &caches);
        let mut workspace = |tokens: usize| {
            let bucket = Bucket::for_step(tokens, context.max(tokens as u64), false, false);
            let plan = lowering.plan(recipe, registry, &loaded.weights, bucket);
            need::of_step(&plan, 1)
        };
        Self {
            weights,
            kv: need::of_caches(&caches, context),
            workspace: workspace(chunk).max(workspace(1)),
            context,
        }
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.kv + self.workspace + DRIVER
    }

    fn words(&self) -> String {
        format!(
            "{} are needed (estimated: weights {}, cache {} for a context of {} tokens, working memory {}, {} for the driver)",
            human(self.total()),
            human(self.weights),
            human(self.kv),
            self.context,
            human(self.workspace),
            human(DRIVER)
        )
    }
}

/// A context of fewer tokens that fits, the largest of the halves.
fn smaller_context(of: &dyn Fn(u64) -> Needs, context: u64, free: u64) -> Option<String> {
    let mut halves = std::iter::successors(Some(context / 2), |c| Some(c / 2)).take_while(|c| *c >= LEAST);
    let fits = |c: &u64| of(*c).total() <= free;
    halves
        .find(fits)
        .map(|c| format!("a context of {c} tokens (--context {c})"))
}

/// Weights stored smaller that fit.
fn smaller_weights(loaded: &Loaded, registry: &Registry, recipe: &Recipe, context: u64, free: u64) -> Option<String> {
    for storage in ["fp8", "fp4"] {
        let mut smaller = recipe.clone();
        let slots = ["attention", "ffn", "lm_head", "embedding"].map(|s| format!("weights.{s}={storage}"));
        let taken: Vec<&String> = slots
            .iter()
            .filter(|s| smaller.set(s, loaded.family.facts(), registry).is_ok())
            .collect();
        let needs = Needs::of(loaded, registry, &smaller, context);
        if !taken.is_empty() && needs.total() <= free {
            let sets: Vec<String> = taken.iter().map(|s| format!("--set {s}")).collect();
            return Some(format!(
                "weights stored as {storage} ({}, {})",
                human(needs.total()),
                sets.join(" ")
            ));
        }
    }
    None
}

/// Whether a model fits a device with `free` of `total` bytes that is called `name`; else the sentence that says what
/// is needed, what there is, and what would fit.
pub(crate) fn check(
    loaded: &Loaded,
    registry: &Registry,
    planned: &Planned,
    context: Option<u64>,
    (free, total, name): (u64, u64, &str),
) -> Result<(), String> {
    let recipe = planned.recipe(loaded, registry);
    let most = loaded.family.facts().max_context as u64;
    let context = context.unwrap_or(USUAL).clamp(1, most.max(1));
    let of = |context| Needs::of(loaded, registry, &recipe, context);
    let needs = of(context);
    if needs.total() <= free {
        return Ok(());
    }
    let fits: Vec<String> = smaller_context(&of, context, free)
        .into_iter()
        .chain(smaller_weights(loaded, registry, &recipe, context, free))
        .collect();
    let fits = match fits.as_slice() {
        [] => "neither a smaller context nor weights stored as fp8 or fp4 would fit".to_string(),
        some => format!("what would fit: {}", some.join(", or ")),
    };
    Err(format!(
        "{}, {} of {} on {name} are free; {fits}",
        needs.words(),
        human(free),
        human(total)
    ))
}

#[cfg(test)]
mod tests {
    use checkpoint::{Checkpoint, Silent};

    use super::*;
    use crate::families;

    fn golden(name: &str) -> Loaded {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let path = path.join("../tests/goldens").join(name);
        families::load(&Checkpoint::open(&path, &Silent).unwrap()).unwrap()
    }

    fn said(loaded: &Loaded, planned: &Planned, context: u64, free: u64) -> String {
        let registry = Registry::default();
        let device = (free, 2 * free, "GPU X");
        check(loaded, &registry, planned, Some(context), device)
            .err()
            .unwrap_or_default()
    }

    #[test]
    fn what_does_not_fit_is_refused_with_figures_and_with_what_would() {
        let loaded = golden("tiny-v4");
        let registry = Registry::default();
        let own = Recipe::own(loaded.family.facts(), &registry);
        let at = |context| Needs::of(&loaded, &registry, &own, context);
        let planned = Planned::default();
        assert_eq!(said(&loaded, &planned, 4096, at(4096).total()), "");
        // One byte less: a smaller context fits.
        let e = said(&loaded, &planned, 4096, at(4096).total() - 1);
        for part in [
            "weights",
            "cache",
            "context of 4096 tokens",
            "working memory",
            "on GPU X are free",
        ] {
            assert!(e.contains(part), "{part}: {e}");
        }
        assert!(
            e.contains("what would fit: a context of 2048 tokens (--context 2048)"),
            "{e}"
        );
        // Too little for any context, enough for smaller weights.
        let mut small = own.clone();
        for slot in ["attention", "ffn", "lm_head", "embedding"] {
            let _ = small.set(&format!("weights.{slot}=fp8"), loaded.family.facts(), &registry);
        }
        let least = Needs::of(&loaded, &registry, &small, 4096).total();
        assert!(least < at(LEAST).total(), "{least}");
        let e = said(&loaded, &planned, 4096, least);
        assert!(
            e.contains("what would fit: weights stored as fp8") && e.contains("--set weights.ffn=fp8"),
            "{e}"
        );
        // Whoever asks for these is let in.
        let edits = ["attention", "ffn", "lm_head", "embedding"].map(|s| format!("weights.{s}=fp8"));
        let planned = Planned {
            json: None,
            edits: edits.to_vec(),
        };
        assert_eq!(said(&loaded, &planned, 4096, least), "");
        let e = said(&loaded, &planned, 4096, 1 << 20);
        assert!(e.contains("neither a smaller context"), "{e}");
    }
}
