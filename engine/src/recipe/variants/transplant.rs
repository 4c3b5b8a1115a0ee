//! A block's weights from another checkpoint.

use super::heads;
use crate::recipe::facts::LayerFacts;
use crate::recipe::registry::{AttendSpec, OptionKind, OptionSpec, Options, Reason, Slot, Variant, text};

const FROM: OptionSpec = OptionSpec {
    name: "from",
    help: "folder or GGUF file of a model of the same family whose layer of this number has the same shapes",
    kind: OptionKind::Text { default: "" },
};

const ATTENTION: [OptionSpec; 3] = [FROM, heads::ZERO, heads::MEAN];
const FFN: [OptionSpec; 1] = [FROM];

/// The checkpoint's own block with the weights of another one's, norms included.
pub(super) struct Transplant {
    pub slot: Slot,
}

impl Variant for Transplant {
    fn slot(&self) -> Slot {
        self.slot
    }
    fn name(&self) -> &'static str {
        "transplant"
    }
    fn help(&self) -> &'static str {
        "the same block with the weights of another checkpoint's layer, stored as they are there; none named: its own"
    }
    fn options(&self) -> &[OptionSpec] {
        if self.slot == Slot::Attention { &ATTENTION } else { &FFN }
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        heads::check(f, o)
    }
    fn attention(&self, _: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        heads::place(o, spec);
    }
    fn donor(&self, o: &Options) -> Option<String> {
        Some(text(self, o, FROM.name)).filter(|t| !t.is_empty())
    }
}
