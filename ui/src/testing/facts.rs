//! Facts of the bundled model as its host reports them.

use protocol::{
    CardModel, ChoiceView, DeviceView, Edit, FactsView, KvBaselines, KvFit, LayerFactsView, LayerSlots, LoadedModel,
    ModelSource, ModelState, ModelsView, OptionKind, OptionView, Preset, RecentModel, RecipeView, Refusal, Sampling,
    SlotView, SourceKind, StateView, VariantView,
};

/// Kinds of the seven layers.
pub(super) const KINDS: [&str; 7] = ["sliding", "sliding", "csa", "hca", "csa", "hca", "csa"];

fn layer(i: usize, kind: &str) -> LayerFactsView {
    let (name, rate, topk) = match kind {
        "csa" => ("compressed sparse (CSA)", 4, 32),
        "hca" => ("heavily compressed (HCA)", 128, 0),
        _ => ("sliding window", 0, 0),
    };
    LayerFactsView {
        attention: kind.into(),
        attention_name: name.into(),
        ffn_name: if i == 0 {
            "hash-routed experts"
        } else {
            "routed experts"
        }
        .into(),
        heads: 4,
        kv_heads: 1,
        head_dim: 512,
        window: 128,
        rate,
        index_topk: topk,
        experts: 8,
        experts_per_token: 3,
    }
}

/// The device line.
pub fn device() -> DeviceView {
    DeviceView {
        name: "cpu".into(),
        describe: "CPU, 2 threads, AVX-512".into(),
        free_bytes: 7_945_689_498,
        why_not: "no NVIDIA driver found: libcuda.so.1 is not on this machine".into(),
    }
}

/// A loaded MODEL1-mini.
pub fn loaded() -> LoadedModel {
    LoadedModel {
        source: ModelSource::Bundled,
        name: "MODEL1-mini".into(),
        path: "/usr/share/model1/model1-mini".into(),
        facts: FactsView {
            family: "deepseek_v4".into(),
            vocab: 4096,
            hidden: 256,
            streams: 4,
            max_context: 4096,
            parameters: 21_300_000,
            weight_bytes: 22_400_000,
            main_format: "fp8 (128 x 128)".into(),
            layers: KINDS.iter().enumerate().map(|(i, k)| layer(i, k)).collect(),
        },
        slots: slots(),
        chat: Err("MODEL1-mini is a base model: it continues stories and knows no chat format.".into()),
        starters: vec![
            "Once upon a time there was a little dragon who".into(),
            "Lily and her brother found a tiny door in the garden.".into(),
            "The old clock on the wall could talk. Every night it".into(),
        ],
        default_sampling: sampling(),
        warnings: Vec::new(),
        load_ms: 84,
        context: 4096,
    }
}

/// The model's own sampler.
pub fn sampling() -> Sampling {
    Sampling {
        temperature: 0.8,
        top_k: 0,
        top_p: 0.95,
        min_p: 0.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        seed: 0,
        logprobs: 8,
    }
}

fn variant(name: &str, help: &str) -> VariantView {
    VariantView {
        name: name.into(),
        help: help.into(),
        options: Vec::new(),
        refused: Vec::new(),
    }
}

fn refused(mut v: VariantView, layers: &[u32], reason: &str) -> VariantView {
    v.refused.extend(layers.iter().map(|l| Refusal {
        layer: *l,
        reason: reason.into(),
    }));
    v
}

fn option(mut v: VariantView, name: &str, help: &str, min: u64, max: u64, default: u64) -> VariantView {
    v.options.push(OptionView {
        name: name.into(),
        help: help.into(),
        kind: OptionKind::Whole { min, max, default },
    });
    v
}

fn slots() -> Vec<SlotView> {
    let all: Vec<u32> = (0..7).collect();
    let ring = "the layer keeps a ring of 128 tokens and no compressed rows: older keys are gone, there is nothing more to attend to";
    let own_window = "the layer already has its own window of 128 tokens; use top_k to look at fewer keys";
    let per_layer = |name: &str, layers: Vec<u32>, variants: Vec<VariantView>| SlotView {
        name: name.into(),
        per_layer: true,
        variants,
        layers,
        fixed: String::new(),
    };
    let window = option(
        variant("sliding_window", "the last w tokens and the first sinks"),
        "w",
        "tokens seen",
        16,
        4096,
        128,
    );
    let window = option(window, "sinks", "first tokens always seen", 0, 64, 4);
    let weights = |slot: &str, what: &str| {
        let form = |name: &str, how: &str| variant(name, &format!("{what} {how}"));
        SlotView {
            per_layer: false,
            ..per_layer(
                slot,
                Vec::new(),
                vec![
                    form("own", "as stored in the checkpoint"),
                    form("bf16", "rounded to bfloat16 when chosen; the original stays loaded"),
                    form(
                        "fp8",
                        "rounded to e4m3 with 128 x 128 power-of-two scales; the original stays loaded",
                    ),
                    form(
                        "fp4",
                        "rounded to e2m1 with one power-of-two scale per 32 inputs; the original stays loaded",
                    ),
                ],
            )
        }
    };
    let experts = option(
        variant(
            "experts",
            "sends every token to k experts instead of the checkpoint's number; shared experts stay",
        ),
        "k",
        "experts per token; weights are shared out anew among them, as the router does",
        1,
        1024,
        1,
    );
    let trained = "silu is what this layer was trained with: choose own";
    vec![
        per_layer(
            "attention",
            all.clone(),
            vec![
                variant("own", "as the checkpoint was trained"),
                refused(variant("dense", "every visible key"), &[0, 1], ring),
                refused(window, &all, own_window),
                option(
                    variant("top_k", "the k best keys of each query (exact)"),
                    "k",
                    "keys kept",
                    1,
                    4096,
                    64,
                ),
            ],
        ),
        per_layer(
            "ffn",
            all.clone(),
            vec![
                variant("own", "as the checkpoint was trained"),
                experts,
                refused(
                    variant("silu", "x * sigmoid(x) in place of the trained activation"),
                    &all,
                    trained,
                ),
                variant("relu", "max(x, 0) in place of the trained activation: many exact zeros"),
                variant("identity", "no activation at all"),
            ],
        ),
        per_layer(
            "kv_cache",
            all.clone(),
            vec![
                variant("f32", "4 bytes per value"),
                variant("bf16", "2 bytes per value"),
                variant("fp8_model1", "the 584-byte record of MODEL1's 512-wide latents"),
                variant("fp8_b64", "e4m3 with one power-of-two scale per 64 values"),
            ],
        ),
        per_layer(
            "index_cache",
            vec![2, 4, 6],
            vec![
                variant("f32", "4 bytes per value"),
                variant("bf16", "2 bytes per value"),
                variant("fp8_b64", "e4m3 with one power-of-two scale per 64 values"),
                variant(
                    "fp4",
                    "e2m1 with one power-of-two scale per 32 values after a Hadamard transform",
                ),
            ],
        ),
        weights(
            "weights.attention",
            "attention matrices (not norms, mHC or the compressor's positions)",
        ),
        weights("weights.ffn", "feed-forward matrices (not norms, mHC or routers)"),
        weights("weights.embedding", "token embedding (not learned positions)"),
        weights("weights.lm_head", "output layer"),
        SlotView {
            name: "residual".into(),
            per_layer: false,
            variants: vec![variant("mhc", "manifold-constrained hyper-connections, 4 streams")],
            layers: Vec::new(),
            fixed: "the four residual streams are part of how the model was trained".into(),
        },
    ]
}

fn choice(name: &str) -> ChoiceView {
    ChoiceView {
        variant: name.into(),
        options: Vec::new(),
    }
}

/// The checkpoint's own recipe.
pub fn recipe() -> RecipeView {
    let layers = KINDS
        .iter()
        .map(|kind| {
            let mut slots = vec![
                ("attention".to_string(), choice("own")),
                ("ffn".to_string(), choice("own")),
                ("kv_cache".to_string(), choice("fp8_model1")),
            ];
            if *kind == "csa" {
                slots.push(("index_cache".to_string(), choice("fp4")));
            }
            LayerSlots { slots }
        })
        .collect();
    RecipeView {
        json: "{\n  \"model\": \"MODEL1-mini\",\n  \"set\": {}\n}".into(),
        hash: "9c41d7e02b6a58f3".into(),
        layers,
        model: ["attention", "ffn", "embedding", "lm_head"]
            .map(|w| (format!("weights.{w}"), choice("own")))
            .to_vec(),
        changes: Vec::new(),
        converted_at: Vec::new(),
    }
}

/// Layers a selector names: `layers.3-6.kv_cache`, `layers.*.attention`, `layers.2,4.ffn`.
fn selected(selector: &str) -> Option<(Vec<usize>, String)> {
    let rest = selector.strip_prefix("layers.")?;
    let (layers, slot) = rest.split_once('.')?;
    if layers == "*" {
        return Some(((0..7).collect(), slot.into()));
    }
    let mut out = Vec::new();
    for part in layers.split(',') {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        out.extend(a.parse::<usize>().ok()?..=b.parse::<usize>().ok()?);
    }
    Some((out, slot.into()))
}

/// Applies edits as the host would.
pub(super) fn apply(recipe: &mut RecipeView, edits: &[Edit], position: u64) {
    for edit in edits {
        match selected(&edit.selector) {
            Some((layers, slot)) => {
                for i in layers {
                    let found = recipe
                        .layers
                        .get_mut(i)
                        .and_then(|l| l.slots.iter_mut().find(|(s, _)| *s == slot));
                    if let Some((_, c)) = found {
                        c.clone_from(&edit.choice);
                    }
                }
            }
            None => {
                if let Some((_, c)) = recipe.model.iter_mut().find(|(s, _)| *s == edit.selector) {
                    c.clone_from(&edit.choice);
                }
            }
        }
        recipe.changes.retain(|c| c.selector != edit.selector);
        recipe.changes.push(edit.clone());
        if edit.selector.contains("cache") && position > 0 {
            recipe.converted_at.push(position);
        }
    }
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in format!("{:?}{:?}", recipe.layers, recipe.model).bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    recipe.hash = format!("{hash:016x}");
    let set: Vec<String> = recipe
        .changes
        .iter()
        .map(|c| format!("    \"{}\": \"{}\"", c.selector, c.choice))
        .collect();
    recipe.json = format!(
        "{{\n  \"model\": \"MODEL1-mini\",\n  \"set\": {{\n{}\n  }}\n}}",
        set.join(",\n")
    );
}

/// Presets.
pub fn presets() -> Vec<Preset> {
    let edit = |selector: &str, name: &str| Edit {
        selector: selector.into(),
        choice: choice(name),
    };
    vec![
        Preset {
            name: "bf16 cache".into(),
            help: "Every cache row in bfloat16: the reference that FP8 is measured against.".into(),
            edits: vec![edit("layers.*.kv_cache", "bf16")],
            refused: String::new(),
        },
        Preset {
            name: "dense attention".into(),
            help: "Compressed layers look at every visible row.".into(),
            edits: vec![edit("layers.2-6.attention", "dense")],
            refused: String::new(),
        },
        Preset {
            name: "smallest cache".into(),
            help: "Four-bit rows everywhere.".into(),
            edits: vec![edit("layers.*.kv_cache", "fp4")],
            refused: "the 4-bit record is made for indexer keys only".into(),
        },
    ]
}

/// KV bytes beside other layouts.
pub fn baselines() -> KvBaselines {
    let fit = |name: &str, about: &str, fixed: f64, slope: f64, crossover: Option<u64>| KvFit {
        name: name.into(),
        about: about.into(),
        fixed,
        slope,
        crossover,
    };
    KvBaselines {
        fits: vec![
            fit(
                "this recipe",
                "FP8 rows of 584 bytes, windows of 128 tokens",
                561_152.0,
                663.0,
                Some(0),
            ),
            fit(
                "bf16 records",
                "the same rows in bfloat16",
                1_068_032.0,
                1_170.0,
                Some(0),
            ),
            fit(
                "DeepSeek-V3 rows",
                "576 bf16 values per token and layer",
                0.0,
                8_064.0,
                Some(76),
            ),
            fit(
                "R1-Distill-Qwen-1.5B (GQA)",
                "2 key heads of 128, keys and values, bf16",
                0.0,
                7_168.0,
                Some(87),
            ),
        ],
    }
}

/// KV bytes with these edits: sixteen-bit rows cost what sixteen-bit rows cost.
pub(super) fn preview(edits: &[Edit]) -> KvBaselines {
    let mut fits = baselines().fits;
    fits.truncate(2);
    let share = edits
        .iter()
        .filter_map(|e| selected(&e.selector))
        .map(|(l, _)| l.len())
        .sum::<usize>() as f64
        / 7.0;
    let wide = edits.iter().any(|e| e.choice.variant == "bf16");
    let factor = if wide { share } else { 0.0 };
    if let [now, then] = fits.as_mut_slice() {
        then.name = "with the change".into();
        then.fixed = now.fixed + (then.fixed - now.fixed) * factor;
        then.slope = now.slope + (then.slope - now.slope) * factor;
    }
    KvBaselines { fits }
}

/// Cards, recent models, device.
pub fn models() -> ModelsView {
    ModelsView {
        bundled: CardModel {
            source: ModelSource::Bundled,
            name: "MODEL1-mini".into(),
            about: "tells stories; every MODEL1 mechanism, trained".into(),
            licence: "Apache-2.0".into(),
            parameters: 21_300_000,
            bytes: 22_400_000,
            present: true,
            missing: String::new(),
        },
        chat: CardModel {
            source: ModelSource::SmolLm2,
            name: "SmolLM2-135M-Instruct".into(),
            about: "chats; fetched once from PyPI".into(),
            licence: "Apache-2.0".into(),
            parameters: 134_500_000,
            bytes: 98_000_000,
            present: false,
            missing: String::new(),
        },
        recent: vec![
            RecentModel {
                name: "Qwen3-4B".into(),
                path: "/home/ada/models/Qwen3-4B".into(),
                kind: SourceKind::Folder,
                bytes: 8_045_000_000,
                opened: 1_700_000_000,
            },
            RecentModel {
                name: "Llama-2-7b Q4_K_M".into(),
                path: "/home/ada/models/llama-2-7b.Q4_K_M.gguf".into(),
                kind: SourceKind::Gguf,
                bytes: 4_081_004_224,
                opened: 1_699_000_000,
            },
        ],
        cached: vec![RecentModel {
            name: "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B".into(),
            path: "/home/ada/.cache/huggingface/hub/models--deepseek-ai--DeepSeek-R1-Distill-Qwen-1.5B/snapshots/ad9f"
                .into(),
            kind: SourceKind::Folder,
            bytes: 3_554_214_752,
            opened: 0,
        }],
        device: device(),
    }
}

/// A state with nothing but this model.
pub(super) fn state(model: ModelState) -> StateView {
    StateView {
        revision: 1,
        model,
        recipe: None,
        doc: None,
        doc_revision: 1,
        writing: None,
        prefill: None,
        position: 0,
        context: 4096,
        driver: true,
        clients: 1,
        device: device(),
        memory: 412_000_000,
        op_timing: false,
        engine_ended: String::new(),
        restored_bytes: 0,
    }
}
