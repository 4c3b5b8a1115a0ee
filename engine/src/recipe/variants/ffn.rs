//! Variants of the feed-forward block: another activation, or another number of experts per token. Weights stay.

use std::sync::Arc;

use kernels::ir::Activation;

use super::refuse;
use crate::recipe::facts::LayerFacts;
use crate::recipe::registry::{FfnSpec, OptionKind, OptionSpec, Options, Reason, Registry, Slot, Variant, option};

pub(super) fn register(r: &mut Registry) {
    r.add(Arc::new(Experts));
    let all = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Relu2,
        Activation::Identity,
    ];
    for activation in all {
        r.add(Arc::new(Activated { activation }));
    }
}

const EXPERTS: [OptionSpec; 1] = [OptionSpec {
    name: "k",
    help: "experts per token; weights are shared out anew among them, as the router does",
    kind: OptionKind::Whole {
        min: 1,
        // What the routers of both backends take.
        max: 1024,
        // One expert fits every layer that has any.
        default: 1,
    },
}];

/// Another number of experts per token.
struct Experts;

impl Variant for Experts {
    fn slot(&self) -> Slot {
        Slot::Ffn
    }
    fn name(&self) -> &'static str {
        "experts"
    }
    fn help(&self) -> &'static str {
        "sends every token to `k` experts instead of the checkpoint's number; shared experts stay"
    }
    fn options(&self) -> &[OptionSpec] {
        &EXPERTS
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        let k = option(self, o, "k") as usize;
        if f.experts == 0 {
            return refuse(format!(
                "a {} block has no experts: every token goes through all of it",
                f.ffn.name()
            ));
        }
        if f.hash_routed && k > f.experts_per_token {
            return refuse(format!(
                "option `k`: found {k}, but a table names {} experts for every token id in this layer (hash routing) and \
                 there is no score to choose more by; accepted: 1 to {0}",
                f.experts_per_token
            ));
        }
        if k > f.experts {
            return refuse(format!(
                "option `k`: found {k}, the layer has {} experts; accepted: 1 to {0}",
                f.experts
            ));
        }
        Ok(())
    }
    fn ffn(&self, _: &LayerFacts, o: &Options, spec: &mut FfnSpec) {
        spec.experts_per_token = option(self, o, "k") as usize;
    }
}

/// Another activation. The checkpoint's own has one name only, `own`: one computation, one recipe.
struct Activated {
    activation: Activation,
}

fn name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Relu => "relu",
        Activation::Relu2 => "relu2",
        Activation::Identity => "identity",
    }
}

impl Variant for Activated {
    fn slot(&self) -> Slot {
        Slot::Ffn
    }
    fn name(&self) -> &'static str {
        name(self.activation)
    }
    fn help(&self) -> &'static str {
        match self.activation {
            Activation::Silu => "x * sigmoid(x) in place of the trained activation",
            Activation::Gelu => "exact GELU, x * Phi(x), in place of the trained activation",
            Activation::GeluTanh => "GELU by its tanh formula in place of the trained activation",
            Activation::Relu => "max(x, 0) in place of the trained activation: many exact zeros",
            Activation::Relu2 => "max(x, 0) squared in place of the trained activation: many exact zeros",
            Activation::Identity => {
                "no activation at all: what is left is a product (and the gate, where there is one)"
            }
        }
    }
    fn accepts(&self, f: &LayerFacts, _: &Options) -> Result<(), Reason> {
        if f.activation == self.activation {
            return refuse(format!(
                "{} is what this layer was trained with: choose own",
                name(self.activation)
            ));
        }
        Ok(())
    }
    fn ffn(&self, _: &LayerFacts, _: &Options, spec: &mut FfnSpec) {
        spec.activation = self.activation;
    }
}
