//! Whether a model fits.

use std::path::Path;

use protocol::{ErrorInfo, ErrorKind, MemoryPlan};

use crate::errors::of_engine;

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
