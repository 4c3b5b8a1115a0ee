//! An attention variant that the engine does not come with, added from outside: one struct, one line of registration.
//!
//! `dilated` sees the newest keys and, farther back, every n-th one. It is made of what the engine has: a score expression
//! that leaves keys out. Whatever [`AttendSpec`] can say is open to such a crate: masks, rows of the indexer, heads, scores.

use std::sync::Arc;

use engine::Registry;
use engine::recipe::{
    AttendSpec, LayerFacts, OptionKind, OptionSpec, Options, Reason, Slot, Variant, option, parse_score,
};

const OPTIONS: [OptionSpec; 2] = [
    OptionSpec {
        name: "near",
        help: "newest keys that are all seen, the query's own included",
        kind: OptionKind::Whole {
            min: 1,
            max: 1 << 20,
            default: 32,
        },
    },
    OptionSpec {
        name: "stride",
        help: "farther back, keys whose position is a multiple of this are seen",
        kind: OptionKind::Whole {
            min: 2,
            max: 1 << 16,
            default: 4,
        },
    },
];

/// All of the newest keys, and every n-th of the others.
pub struct Dilated;

impl Variant for Dilated {
    fn slot(&self) -> Slot {
        Slot::Attention
    }

    fn name(&self) -> &'static str {
        "dilated"
    }

    fn help(&self) -> &'static str {
        "attends to the newest `near` keys, and to every `stride`-th of those before"
    }

    fn options(&self) -> &[OptionSpec] {
        &OPTIONS
    }

    fn accepts(&self, facts: &LayerFacts, _: &Options) -> Result<(), Reason> {
        if facts.attention.evicts() {
            return Err(Reason(format!(
                "a {} layer has no key per token to choose from",
                facts.attention.name()
            )));
        }
        Ok(())
    }

    fn attention(&self, facts: &LayerFacts, options: &Options, spec: &mut AttendSpec) {
        let near = option(self, options, "near");
        let stride = option(self, options, "stride");
        let text = format!("if(q - k < {near} || k % {stride} == 0, score, -inf)");
        let program = parse_score(&text).ok();
        spec.score = program.and_then(|e| e.compile(facts.layer, facts.heads).ok());
    }
}

/// What the engine comes with, and `dilated`.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.add(Arc::new(Dilated));
    registry
}
