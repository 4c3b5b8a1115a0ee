//! Named sets of edits on the checkpoint's own recipe.

use kernels::ir::CacheFormat;
use protocol::{Edit, OptionValue, Preset};

use super::diff::ranges;
use super::registry::{Options, Registry, Slot};
use super::{AttentionKind, Choice, LayerFacts, ModelFacts, Recipe};

/// Keys that the article's sparse attention keeps per head and query.
const ARTICLE_TOP_K: u64 = 64;

/// Keys that the preview keeps per head and query where there is no indexer.
const MODEL2_TOP_K: u64 = 32;

/// The presets, fitted to a model; those that do not fit say why.
pub fn presets(facts: &ModelFacts, registry: &Registry) -> Vec<Preset> {
    let mut out = vec![
        Preset {
            name: "checkpoint's own".into(),
            help: "every block and cache as the checkpoint was made for".into(),
            edits: Vec::new(),
            refused: String::new(),
        },
        Preset {
            name: "everything bf16".into(),
            help: "all caches and weights in bfloat16".into(),
            edits: bf16(facts),
            refused: String::new(),
        },
        Preset {
            name: "FP8 KV everywhere".into(),
            help: "every cache in 8 bits: MODEL1's 584-byte record where rows have its shape, else one scale per 64 \
                   values"
                .into(),
            edits: fp8_kv(facts, registry),
            refused: String::new(),
        },
        article(facts, registry),
        model2(facts, registry),
        dense(facts, registry),
    ];
    let own = Recipe::own(facts, registry);
    for p in out.iter_mut().filter(|p| p.refused.is_empty()) {
        match own.edited(&p.edits, facts, registry) {
            Err(e) => p.refused = e.to_string(),
            // Say only what changes something.
            Ok(r) => p.edits = r.changes_from(&own).iter().map(Into::into).collect(),
        }
    }
    out
}

fn edit(selector: impl Into<String>, choice: &Choice) -> Edit {
    Edit {
        selector: selector.into(),
        choice: choice.into(),
    }
}

fn bf16(facts: &ModelFacts) -> Vec<Edit> {
    let bf16 = Choice::plain(CacheFormat::Bf16.name());
    let mut edits = vec![edit("layers.*.kv_cache", &bf16)];
    if facts.layers.iter().any(|l| l.index_topk > 0) {
        edits.push(edit("layers.*.index_cache", &bf16));
    }
    edits.extend(Slot::WEIGHTS.map(|s| edit(s.name(), &bf16)));
    edits
}

/// Layers for which `keep` holds, as a selector of a slot.
fn layers(facts: &ModelFacts, slot: Slot, keep: impl Fn(&LayerFacts) -> bool) -> Option<String> {
    let some: Vec<usize> = facts.layers.iter().filter(|l| keep(l)).map(|l| l.layer).collect();
    (!some.is_empty()).then(|| format!("layers.{}.{}", ranges(&some), slot.name()))
}

fn fp8_kv(facts: &ModelFacts, registry: &Registry) -> Vec<Edit> {
    let record = |l: &LayerFacts| {
        let v = registry.get(Slot::KvCache, CacheFormat::Fp8Model1.name());
        v.is_some_and(|v| v.accepts(l, &Options::new()).is_ok())
    };
    let (model1, b64) = (
        Choice::plain(CacheFormat::Fp8Model1.name()),
        Choice::plain(CacheFormat::Fp8B64.name()),
    );
    let mut edits = Vec::new();
    edits.extend(layers(facts, Slot::KvCache, record).map(|s| edit(s, &model1)));
    edits.extend(layers(facts, Slot::KvCache, |l| !record(l)).map(|s| edit(s, &b64)));
    // Indexer rows that the checkpoint keeps in 4 bits stay so.
    let own = Recipe::own(facts, registry);
    let wide = |l: &LayerFacts| {
        let choice = own.layers[l.layer].index_cache.as_ref();
        choice.is_some_and(|c| c.variant != CacheFormat::Fp4.name())
    };
    edits.extend(layers(facts, Slot::IndexCache, wide).map(|s| edit(s, &b64)));
    edits
}

/// FP8 cache, sparse attention, FP8 output layer. MODEL1 layers are sparse already.
fn article(facts: &ModelFacts, registry: &Registry) -> Preset {
    let mut edits = fp8_kv(facts, registry);
    let mut top_k = Choice::plain("top_k");
    top_k.options.insert("k".into(), OptionValue::Whole(ARTICLE_TOP_K));
    let dense = |l: &LayerFacts| l.attention == AttentionKind::Dense;
    edits.extend(layers(facts, Slot::Attention, dense).map(|s| edit(s, &top_k)));
    edits.push(edit(Slot::LmHead.name(), &Choice::plain("fp8")));
    Preset {
        name: "the article".into(),
        help: format!(
            "MODEL1's three ideas at once: 8-bit KV cache, sparse attention ({ARTICLE_TOP_K} keys per head where \
             the model has none of its own), 8-bit output layer"
        ),
        edits,
        refused: String::new(),
    }
}

/// Four bits nearly everywhere, and fewer keys: where the article's ideas lead when taken further.
fn model2(facts: &ModelFacts, registry: &Registry) -> Preset {
    let fp4 = Choice::plain(CacheFormat::Fp4.name());
    let mut edits = vec![edit("layers.*.kv_cache", &fp4)];
    let takes = |l: &LayerFacts| {
        let v = registry.get(Slot::IndexCache, &fp4.variant);
        v.is_some_and(|v| v.accepts(l, &Options::new()).is_ok())
    };
    edits.extend(layers(facts, Slot::IndexCache, |l| l.index_topk > 0 && takes(l)).map(|s| edit(s, &fp4)));
    let keep = |variant: &str, k: u64| {
        let mut choice = Choice::plain(variant);
        choice.options.insert("k".into(), OptionValue::Whole(k));
        choice
    };
    let all = |l: &LayerFacts| l.attention == AttentionKind::Dense;
    let top_k = keep("top_k", MODEL2_TOP_K);
    edits.extend(layers(facts, Slot::Attention, all).map(|s| edit(s, &top_k)));
    // Half of what the indexer keeps, which may differ between layers.
    let mut kept: Vec<usize> = facts.layers.iter().map(|l| l.index_topk).filter(|k| *k > 1).collect();
    kept.sort_unstable();
    kept.dedup();
    for k in kept {
        let half = keep("index_top_k", k as u64 / 2);
        edits.extend(layers(facts, Slot::Attention, |l| l.index_topk == k).map(|s| edit(s, &half)));
    }
    edits.extend([Slot::AttentionWeights, Slot::FfnWeights, Slot::LmHead].map(|s| edit(s.name(), &fp4)));
    Preset {
        name: "MODEL2 preview".into(),
        help: format!(
            "where this may lead: 4-bit weights and caches, and fewer keys ({MODEL2_TOP_K} per head where the model has \
             no indexer, half of what an indexer keeps)"
        ),
        edits,
        refused: String::new(),
    }
}

fn dense(facts: &ModelFacts, registry: &Registry) -> Preset {
    let choice = Choice::plain("dense");
    let accepts = |l: &LayerFacts| {
        let v = registry.get(Slot::Attention, &choice.variant);
        v.is_some_and(|v| v.accepts(l, &Options::new()).is_ok())
    };
    let selects = facts.layers.iter().any(|l| l.index_topk > 0);
    let edits: Vec<Edit> = layers(facts, Slot::Attention, |l| l.index_topk > 0 && accepts(l))
        .map(|s| edit(s, &choice))
        .into_iter()
        .collect();
    let refused = match (selects, edits.is_empty()) {
        (false, _) => "every layer already attends to all keys that it has".to_string(),
        (true, true) => "no layer with an indexer accepts dense attention".to_string(),
        (true, false) => String::new(),
    };
    Preset {
        name: "dense attention".into(),
        help: "layers with an indexer read every visible row instead of the ones it keeps".into(),
        edits,
        refused,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{dense_facts, facts};
    use super::*;

    fn edits(facts: &ModelFacts, name: &str) -> Vec<String> {
        let all = presets(facts, &Registry::default());
        let p = all.iter().find(|p| p.name == name).unwrap();
        assert_eq!(p.refused, "", "{name}");
        p.edits.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn presets_fit_the_model() {
        let f = facts();
        assert!(edits(&f, "checkpoint's own").is_empty());
        let bf16 = ["attention", "ffn", "embedding", "lm_head"].map(|w| format!("weights.{w}=bf16"));
        assert_eq!(edits(&f, "everything bf16"), bf16);
        let fp4 = ["attention", "ffn", "lm_head"].map(|w| format!("weights.{w}=fp4"));
        let slots = [
            "layers.2,4,6.attention=index_top_k:k=4",
            "layers.*.kv_cache=fp4",
            "layers.*.index_cache=fp4",
        ];
        assert_eq!(
            edits(&f, "MODEL2 preview"),
            [&slots.map(String::from)[..], &fp4].concat()
        );
        let kv = "layers.*.kv_cache=fp8_b64";
        let index = "layers.*.index_cache=fp8_b64";
        assert_eq!(edits(&f, "FP8 KV everywhere"), [kv, index]);
        assert_eq!(edits(&f, "the article"), [kv, index, "weights.lm_head=fp8"]);
        assert_eq!(edits(&f, "dense attention"), ["layers.2,4,6.attention=dense"]);
        let d = dense_facts();
        let article = ["layers.*.attention=top_k:k=64", kv, "weights.lm_head=fp8"];
        assert_eq!(edits(&d, "the article"), article);
        let slots = ["layers.*.attention=top_k:k=32", "layers.*.kv_cache=fp4"];
        assert_eq!(
            edits(&d, "MODEL2 preview"),
            [&slots.map(String::from)[..], &fp4].concat()
        );
        let all = presets(&d, &Registry::default());
        assert!(all[5].refused.contains("already attends"), "{}", all[5].refused);
    }

    #[test]
    fn the_record_goes_where_rows_have_its_shape() {
        let mut f = facts();
        f.quantised = true;
        for l in &mut f.layers {
            (l.head_dim, l.rope_tail) = (512, 64);
        }
        // The checkpoint's own is 8 bits already, with 4-bit indexer rows.
        assert!(edits(&f, "FP8 KV everywhere").is_empty());
        f.quantised = false;
        let want = ["layers.*.kv_cache=fp8_model1", "layers.*.index_cache=fp8_b64"];
        assert_eq!(edits(&f, "FP8 KV everywhere"), want);
    }
}
