//! Whether a model fits.

use std::path::Path;

use protocol::{ErrorInfo, ErrorKind, KvBytes, MemoryBasis, MemoryPlan};

use crate::errors::of_engine;

/// SmolLM2-135M-Instruct as it is fetched: Q4_1 with a Q8_0 embedding, whose cache rows are bf16.
mod smollm2 {
    pub const MAX_CONTEXT: u64 = 8192;
    const LAYERS: u64 = 30;
    const HIDDEN: u64 = 576;
    const INNER: u64 = 1536;
    const KEYS: u64 = 3 * 64;
    const VOCABULARY: u64 = 49_152;

    /// Bytes of the weights as stored: 20 bytes per 32 values of a matrix, 34 of the embedding, norms in f32.
    pub const WEIGHTS: u64 = VOCABULARY * HIDDEN / 32 * 34
        + LAYERS * (HIDDEN * (2 * HIDDEN + 2 * KEYS + 3 * INNER) / 32 * 20 + 2 * HIDDEN * 4)
        + HIDDEN * 4;
    /// Bytes of keys and values per token.
    pub const KV_PER_TOKEN: u64 = LAYERS * 2 * KEYS * 2;
    /// Bytes of the buffers of a step of 128 tokens.
    pub const WORKSPACE: u64 = 4_032_768;
}

/// Memory of SmolLM2 before it is here, from its shape. Context 0 = its own, as far as it fits.
pub(crate) fn of_smollm2(context: u64) -> MemoryPlan {
    let at = |context: u64| {
        let mut plan = MemoryPlan {
            basis: MemoryBasis::Shape,
            weights: smollm2::WEIGHTS,
            kv: KvBytes {
                window: context * smollm2::KV_PER_TOKEN,
                ..KvBytes::default()
            },
            workspace: smollm2::WORKSPACE,
            free: engine::memory::available().unwrap_or(0),
            context,
            max_context: smollm2::MAX_CONTEXT,
            refusal: String::new(),
        };
        plan.refusal = engine::memory_refusal(&plan);
        plan
    };
    if context > 0 {
        return at(context);
    }
    let mut plan = at(smollm2::MAX_CONTEXT);
    while !plan.refusal.is_empty() && plan.context / 2 >= LEAST {
        plan = at(plan.context / 2);
    }
    plan
}

/// A model of which nothing is known until it is fetched.
pub(crate) fn unknown(context: u64) -> MemoryPlan {
    MemoryPlan {
        basis: MemoryBasis::Nothing,
        weights: 0,
        kv: KvBytes::default(),
        workspace: 0,
        free: engine::memory::available().unwrap_or(0),
        context,
        max_context: 0,
        refusal: String::new(),
    }
}

/// A context that is chosen for the user is not made smaller than this.
const LEAST: u64 = 1024;

/// Memory of a model at a context, from its headers alone. Context 0 = the checkpoint's, as far as it fits.
///
/// # Errors
/// A model that cannot be opened, in the engine's words.
pub(crate) fn predict(path: &Path, context: u64) -> Result<MemoryPlan, ErrorInfo> {
    let at = |context| engine::predict(path, context, None).map_err(|e| of_engine(&e));
    if context > 0 {
        return at(Some(context));
    }
    let mut plan = at(None)?;
    let mut context = plan.max_context;
    // What weights and the least context need cannot be helped.
    while !plan.refusal.is_empty() && context / 2 >= LEAST {
        context /= 2;
        plan = at(Some(context))?;
    }
    Ok(plan)
}

/// A refusal as an error.
pub(crate) fn refusal(plan: &MemoryPlan) -> ErrorInfo {
    let mut what = plan.refusal.clone();
    if let Some(first) = what.get(..1).map(str::to_uppercase) {
        what.replace_range(..1, &first);
    }
    let fits = plan.free == 0 || plan.total() <= plan.free;
    let (kind, remedy) = if fits {
        (ErrorKind::Input, "Choose another model.")
    } else {
        (
            ErrorKind::Resource,
            "Choose a smaller context or a smaller model, or close other programs.",
        )
    };
    let human = engine::memory::human;
    ErrorInfo::new(kind, format!("{what}.")).remedy(remedy).details(format!(
        "estimated: weights {}, cache {}, workspace {}; free {}; context {} of {}\n{}",
        human(plan.weights),
        human(plan.kv.total()),
        human(plan.workspace),
        human(plan.free),
        plan.context,
        plan.max_context,
        crate::about::versions()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_smollm2_before_it_is_here_is_what_its_headers_say() {
        let small = of_smollm2(1024);
        assert_eq!(
            (small.basis, small.context, small.max_context),
            (MemoryBasis::Shape, 1024, 8192)
        );
        // 92.1 MiB of weights and 22.5 MiB per 1,024 tokens, as `model1 show` prints of the fetched file.
        assert_eq!((small.weights, small.kv.total()), (96_576_768, 23_592_960));
        assert!(of_smollm2(1 << 20).refusal.contains("was made for 8192"));
        // Where it was fetched, the two predictions are the same.
        let here = fetch::default_cache_dir().as_deref().and_then(fetch::smollm2_path);
        for context in [1024, 8192] {
            let Some(read) = here.as_deref().map(|p| predict(p, context).unwrap()) else {
                continue;
            };
            let said = of_smollm2(context);
            let figures = |p: &MemoryPlan| (p.weights, p.kv, p.context, p.max_context);
            assert_eq!(figures(&said), figures(&read));
            assert!(
                said.workspace.abs_diff(read.workspace) * 10 <= read.workspace,
                "{}",
                read.workspace
            );
        }
    }
}
