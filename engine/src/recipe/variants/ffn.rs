//! Variants of the feed-forward block: another activation, another number of experts per token, fewer hidden units, and
//! all of these together. Weights stay. A combination has one name: that of the activation if it changes, else that of the
//! experts.

use std::sync::Arc;

use kernels::ir::Activation;

use super::refuse;
use crate::recipe::facts::LayerFacts;
use crate::recipe::registry::{
    FfnSpec, OptionKind, OptionSpec, Options, Reason, Registry, Slot, Variant, decimal, option,
};

pub(super) fn register(r: &mut Registry) {
    r.add(Arc::new(Experts));
    r.add(Arc::new(TopP));
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

/// Hidden units that stay, as an option of the other variants.
const TOP_P: OptionSpec = OptionSpec {
    name: "top_p",
    help: "share of the activation mass whose largest hidden units stay (per expert); the rest is 0; 1 keeps all",
    kind: OptionKind::Decimal {
        min: 0.01,
        max: 1.0,
        default: 1.0,
    },
};

/// Experts per token, as an option of the activations.
const OTHER_EXPERTS: OptionSpec = OptionSpec {
    name: "experts",
    help: "experts per token; 0 = the checkpoint's number",
    kind: OptionKind::Whole {
        min: 0,
        max: 1024,
        default: 0,
    },
};

const ACTIVATED: [OptionSpec; 2] = [OTHER_EXPERTS, TOP_P];

const EXPERTS: [OptionSpec; 2] = [
    OptionSpec {
        name: "k",
        help: "experts per token; weights are shared out anew among them, as the router does",
        kind: OptionKind::Whole {
            min: 1,
            // What the routers of both backends take.
            max: 1024,
            // One expert fits every layer that has any.
            default: 1,
        },
    },
    TOP_P,
];

/// Whether a layer can send a token to `k` experts; `name` is the option that says so.
fn check_experts(f: &LayerFacts, name: &str, k: usize) -> Result<(), Reason> {
    if f.experts == 0 {
        return refuse(format!(
            "a {} block has no experts: every token goes through all of it",
            f.ffn.name()
        ));
    }
    if f.hash_routed && k > f.experts_per_token {
        return refuse(format!(
            "option `{name}`: found {k}, but a table names {} experts for every token id in this layer (hash routing) \
             and there is no score to choose more by; accepted: 1 to {0}",
            f.experts_per_token
        ));
    }
    if k > f.experts {
        return refuse(format!(
            "option `{name}`: found {k}, the layer has {} experts; accepted: 1 to {0}",
            f.experts
        ));
    }
    Ok(())
}

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
        check_experts(f, "k", option(self, o, "k") as usize)
    }
    fn ffn(&self, _: &LayerFacts, o: &Options, spec: &mut FfnSpec) {
        spec.experts_per_token = option(self, o, "k") as usize;
        spec.top_p = decimal(self, o, TOP_P.name) as f32;
    }
}

const UNITS: [OptionSpec; 1] = [OptionSpec {
    name: "p",
    help: "share of the activation mass whose largest hidden units stay (per expert); the rest is 0",
    kind: OptionKind::Decimal {
        min: 0.01,
        max: 1.0,
        default: 0.9,
    },
}];

/// Only the hidden units that say most.
struct TopP;

impl Variant for TopP {
    fn slot(&self) -> Slot {
        Slot::Ffn
    }
    fn name(&self) -> &'static str {
        "top_p"
    }
    fn help(&self) -> &'static str {
        "keeps the fewest hidden units whose magnitudes reach `p` of the block's (of each expert's); the rest is 0"
    }
    fn options(&self) -> &[OptionSpec] {
        &UNITS
    }
    fn accepts(&self, _: &LayerFacts, _: &Options) -> Result<(), Reason> {
        Ok(())
    }
    fn ffn(&self, _: &LayerFacts, o: &Options, spec: &mut FfnSpec) {
        spec.top_p = decimal(self, o, "p") as f32;
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
    fn options(&self) -> &[OptionSpec] {
        &ACTIVATED
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        let k = option(self, o, OTHER_EXPERTS.name) as usize;
        if k > 0 {
            check_experts(f, OTHER_EXPERTS.name, k)?;
        }
        if f.activation == self.activation {
            return refuse(format!(
                "{} is what this layer was trained with: choose own",
                name(self.activation)
            ));
        }
        Ok(())
    }
    fn ffn(&self, _: &LayerFacts, o: &Options, spec: &mut FfnSpec) {
        spec.activation = self.activation;
        spec.top_p = decimal(self, o, TOP_P.name) as f32;
        let k = option(self, o, OTHER_EXPERTS.name) as usize;
        if k > 0 {
            spec.experts_per_token = k;
        }
    }
}
