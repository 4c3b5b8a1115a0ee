//! Leaving out blocks of keys that hold too little of the softmax.

use kernels::ir::Mask;

use super::heads;
use crate::recipe::facts::LayerFacts;
use crate::recipe::registry::{AttendSpec, OptionKind, OptionSpec, Options, Reason, Slot, Variant, decimal};

// No `mean`: under it all blocks hold the same.
const OPTIONS: [OptionSpec; 2] = [
    OptionSpec {
        name: "threshold",
        help: "largest share of the softmax that a block left out may hold; at most (blocks x threshold) is lost in all",
        kind: OptionKind::Decimal {
            min: 0.0,
            max: 0.5,
            default: 0.001,
        },
    },
    heads::ZERO,
];

/// Exact selection of blocks by their share, with bounds that save most of the work where attention is concentrated.
pub(super) struct BlockSkip;

impl Variant for BlockSkip {
    fn slot(&self) -> Slot {
        Slot::Attention
    }
    fn name(&self) -> &'static str {
        "block_skip"
    }
    fn help(&self) -> &'static str {
        "per head, leaves out blocks of 32 keys that hold at most `threshold` of the softmax; where bounds prove it, \
         they are not even scored"
    }
    fn options(&self) -> &[OptionSpec] {
        &OPTIONS
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        heads::check(f, o)
    }
    fn attention(&self, _: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        spec.mask = Mask::BlockSkip {
            threshold: decimal(self, o, "threshold") as f32,
        };
        heads::place(o, spec);
    }
}
