//! Storage of the matrices of a kind of block, in all layers.

use std::sync::Arc;

use super::refuse;
use crate::recipe::facts::LayerFacts;
use crate::recipe::registry::{Options, Reason, Registry, Slot, Variant};
use crate::recipe::storage::WeightStorage;

pub(super) fn register(r: &mut Registry) {
    for slot in Slot::WEIGHTS {
        for storage in WeightStorage::ALL {
            r.add(Arc::new(Stored { slot, storage }));
        }
    }
}

/// Matrices of a slot in a storage.
struct Stored {
    slot: Slot,
    storage: WeightStorage,
}

/// The four forms of a slot's help.
macro_rules! help {
    ($storage:expr, $what:literal) => {
        match $storage {
            WeightStorage::Own => concat!($what, " as stored in the checkpoint"),
            WeightStorage::Bf16 => concat!($what, " rounded to bfloat16 when chosen; the original stays loaded"),
            WeightStorage::Fp8 => concat!(
                $what,
                " rounded to e4m3 with 128 x 128 power-of-two scales; the original stays loaded"
            ),
            WeightStorage::Fp4 => concat!(
                $what,
                " rounded to e2m1 with one power-of-two scale per 32 inputs; the original stays loaded"
            ),
        }
    };
}

impl Variant for Stored {
    fn slot(&self) -> Slot {
        self.slot
    }
    fn name(&self) -> &'static str {
        self.storage.name()
    }
    fn help(&self) -> &'static str {
        match self.slot {
            Slot::AttentionWeights => help!(
                self.storage,
                "attention matrices (not norms, mHC or the compressor's positions)"
            ),
            Slot::FfnWeights => help!(self.storage, "feed-forward matrices (not norms, mHC or routers)"),
            Slot::Embedding => help!(self.storage, "token embedding (not learned positions)"),
            _ => help!(self.storage, "output layer"),
        }
    }
    fn accepts(&self, f: &LayerFacts, _: &Options) -> Result<(), Reason> {
        if self.storage != WeightStorage::Fp4 {
            return Ok(());
        }
        let inputs: &[usize] = match self.slot {
            Slot::AttentionWeights => &f.inputs.attention,
            Slot::FfnWeights => &f.inputs.ffn,
            _ => std::slice::from_ref(&f.inputs.hidden),
        };
        match inputs.iter().find(|n| !n.is_multiple_of(2)) {
            Some(n) => refuse(format!(
                "fp4 packs two values in a byte: a matrix with {n} inputs, an odd number, cannot be stored so"
            )),
            None => Ok(()),
        }
    }
    fn weight_storage(&self) -> Option<WeightStorage> {
        Some(self.storage)
    }
}
