//! A score written by the user.

use super::{heads, refuse};
use crate::recipe::facts::LayerFacts;
use crate::recipe::registry::{AttendSpec, OptionKind, OptionSpec, Options, Reason, Slot, Variant, text};
use crate::recipe::score::parse;

const OPTIONS: [OptionSpec; 3] = [
    OptionSpec {
        name: "expr",
        help: "what a score becomes, from q, k (positions), head, heads, layer and score: \"score - 0.1*(q-k)\", \
               \"if(q-k<256, score, -inf)\"; what is no finite number leaves the key out",
        kind: OptionKind::Text { default: "score" },
    },
    heads::ZERO,
    heads::MEAN,
];

/// The checkpoint's own attention with another score.
pub(super) struct Score;

impl Variant for Score {
    fn slot(&self) -> Slot {
        Slot::Attention
    }
    fn name(&self) -> &'static str {
        "score"
    }
    fn help(&self) -> &'static str {
        "replaces every attention score by an expression of yours; a query still sees no later key"
    }
    fn options(&self) -> &[OptionSpec] {
        &OPTIONS
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        heads::check(f, o)?;
        let expr = parse(&text(self, o, "expr")).map_err(|e| Reason(format!("option `expr`: {e}")))?;
        match expr.compile(f.layer, f.heads) {
            Ok(_) => Ok(()),
            Err(e) => refuse(format!("option `expr`: {e}")),
        }
    }
    fn attention(&self, f: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        let expr = parse(&text(self, o, "expr")).ok();
        spec.score = expr.and_then(|e| e.compile(f.layer, f.heads).ok());
        heads::place(o, spec);
    }
}
