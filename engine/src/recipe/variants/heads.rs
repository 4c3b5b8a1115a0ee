//! Switching off query heads: alone (`heads`), and as options of every variant that says which keys are seen.

use super::refuse;
use crate::recipe::facts::LayerFacts;
use crate::recipe::registry::{AttendSpec, OptionKind, OptionSpec, Options, Reason, Slot, Variant, heads};

/// Heads whose output is zeros.
pub(super) const ZERO: OptionSpec = OptionSpec {
    name: "zero",
    help: "query heads switched off: their output is zeros (0,5-7)",
    kind: OptionKind::Heads,
};

/// Heads that attend to everything alike. This form of mean ablation needs no state, so it gives the same values by
/// prefill, token by token and after going back.
pub(super) const MEAN: OptionSpec = OptionSpec {
    name: "mean",
    help: "query heads that look at all visible keys alike: their output is the mean of the value rows (0,5-7)",
    kind: OptionKind::Heads,
};

const BOTH: [OptionSpec; 2] = [ZERO, MEAN];

/// Whether the heads named exist, each in one list only.
pub(super) fn check(f: &LayerFacts, o: &Options) -> Result<(), Reason> {
    let (zero, mean) = (heads(o, ZERO.name), heads(o, MEAN.name));
    for (name, list) in [(ZERO.name, &zero), (MEAN.name, &mean)] {
        if let Some(h) = list.iter().find(|h| **h as usize >= f.heads) {
            return refuse(format!(
                "option `{name}`: found head {h}, accepted: 0 to {} (the layer's query heads)",
                f.heads - 1
            ));
        }
    }
    match zero.iter().find(|h| mean.contains(h)) {
        Some(h) => refuse(format!(
            "head {h} is named by both `zero` and `mean`; accepted: one of the two"
        )),
        None => Ok(()),
    }
}

/// Puts the heads named into the spec.
pub(super) fn place(o: &Options, spec: &mut AttendSpec) {
    spec.zero = heads(o, ZERO.name);
    spec.mean = heads(o, MEAN.name);
}

/// The checkpoint's own attention with some heads switched off.
pub(super) struct Heads;

impl Variant for Heads {
    fn slot(&self) -> Slot {
        Slot::Attention
    }
    fn name(&self) -> &'static str {
        "heads"
    }
    fn help(&self) -> &'static str {
        "the checkpoint's own attention with some query heads switched off (ablation); masks take the same options"
    }
    fn options(&self) -> &[OptionSpec] {
        &BOTH
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        check(f, o)
    }
    fn attention(&self, _: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        place(o, spec);
    }
}
