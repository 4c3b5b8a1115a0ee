//! One value of every kind of frame.
#![allow(dead_code)] // every test file uses another part

use protocol::*;

pub fn sampling() -> Sampling {
    Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.05,
        repetition_penalty: 1.1,
        frequency_penalty: -0.5,
        presence_penalty: 0.25,
        seed: u64::MAX,
        logprobs: 8,
    }
}

pub fn spec() -> GenerateSpec {
    GenerateSpec {
        sampling: sampling(),
        max_tokens: 512,
        stop: vec!["\n\n".into(), "end".into()],
        ignore_eos: true,
        thinking: true,
    }
}

pub fn token() -> TokenInfo {
    TokenInfo {
        token: 17,
        text: " fox".into(),
        logprob: -0.25,
        top: vec![Alternative {
            token: 18,
            text: "\u{fffd}".into(),
            logprob: f32::NEG_INFINITY,
        }],
        position: 1 << 40,
        recipe: 3,
    }
}

pub fn error() -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Resource, "the disk is full")
        .remedy("Make room.")
        .details("a\nb")
}

pub fn summary() -> RunSummary {
    RunSummary {
        prompt_tokens: 5,
        tokens: 100,
        first_token_s: 0.5,
        prefill_tokens_per_s: 10.0,
        decode_tokens_per_s: 300.0,
        latency_ms: [1.0, 2.0, 3.0],
    }
}

pub fn kv() -> KvBytes {
    KvBytes {
        window: 1,
        rows: 2,
        index: 3,
        scales: 4,
        pooling: 5,
        checkpoints: 6,
    }
}

pub fn choice() -> ChoiceView {
    ChoiceView {
        variant: "sliding_window".into(),
        options: [
            OptionValue::Whole(64),
            OptionValue::Decimal(Decimal(0.5)),
            OptionValue::Heads(vec![0, 5]),
            OptionValue::Text("score".into()),
        ]
        .into_iter()
        .map(|value| OptionChoice {
            name: "window".into(),
            value,
        })
        .collect(),
    }
}

pub fn edit() -> Edit {
    Edit {
        selector: "layers.3-6.kv_cache".into(),
        choice: choice(),
    }
}

pub fn recipe() -> RecipeView {
    RecipeView {
        json: "{}".into(),
        hash: "0123456789abcdef".into(),
        layers: vec![LayerSlots {
            slots: vec![("attention".into(), choice())],
        }],
        model: vec![("weights.lm_head".into(), choice())],
        changes: vec![edit()],
        converted_at: vec![0, 7],
    }
}

pub fn doc_info() -> DocInfo {
    DocInfo {
        id: 9,
        title: "A fox".into(),
        kind: DocKind::Chat,
        model: "MODEL1-mini".into(),
        changed: 1_700_000_000,
        messages: 2,
    }
}

pub fn doc() -> DocView {
    DocView {
        info: doc_info(),
        system: "Be brief.".into(),
        nodes: vec![NodeView {
            id: 1,
            parent: Some(0),
            role: Role::Assistant,
            text: "A fox\u{0}\u{7f}".into(),
            tokens: vec![token()],
            finish: FinishView::ContextFull,
            spec: Some(spec()),
            recipes: vec!["h".into()],
            summary: Some(summary()),
            error: Some(error()),
            created: 1,
        }],
        leaf: Some(1),
        token_seq: 77,
        command: "model1 generate".into(),
    }
}

pub fn step() -> StepRecord {
    StepRecord {
        version: TELEMETRY_VERSION,
        seq: 4,
        position: 130,
        tokens: 1,
        nanos: 3_000_000,
        plan: 0xdead_beef,
        memory: Some(1 << 30),
        layers: vec![
            LayerRecord {
                kv_used: kv(),
                kv_allocated: kv(),
                keys_context: 130,
                keys_scored: 64,
                keys_kept: 32,
                ffn_units: 48,
                ffn_kept: 12,
                index_scored: 16,
                round_trip_error: Some(0.01),
                saturated: 0.5,
                flushed: 0.25,
                expert_load: vec![1, 0, 2],
            },
            LayerRecord::default(),
        ],
    }
}

pub fn slots() -> Vec<SlotView> {
    vec![SlotView {
        name: "kv_cache".into(),
        per_layer: true,
        variants: vec![VariantView {
            name: "bf16".into(),
            help: "2 bytes".into(),
            options: [
                OptionKind::Whole {
                    min: 1,
                    max: 9,
                    default: 2,
                },
                OptionKind::Decimal {
                    min: Decimal(0.0),
                    max: Decimal(1.0),
                    default: Decimal(0.25),
                },
                OptionKind::Heads,
                OptionKind::Text {
                    default: "score".into(),
                },
            ]
            .into_iter()
            .map(|kind| OptionView {
                name: "k".into(),
                help: "keys".into(),
                kind,
            })
            .collect(),
            refused: vec![Refusal {
                layer: 2,
                reason: "no".into(),
            }],
        }],
        layers: vec![0, 1],
        fixed: "fixed".into(),
    }]
}

pub fn loaded() -> LoadedModel {
    LoadedModel {
        source: ModelSource::Path("m".into()),
        name: "m".into(),
        path: "/m".into(),
        facts: FactsView {
            family: "deepseek_v4".into(),
            vocab: 4096,
            hidden: 256,
            streams: 4,
            max_context: 4096,
            parameters: 21_000_000,
            weight_bytes: 23_000_000,
            main_format: "f8_e4m3".into(),
            layers: vec![LayerFactsView {
                attention: "csa".into(),
                attention_name: "compressed sparse".into(),
                ffn_name: "8 experts".into(),
                heads: 4,
                kv_heads: 1,
                head_dim: 512,
                window: 128,
                rate: 4,
                index_topk: 32,
                experts: 8,
                experts_per_token: 3,
            }],
        },
        slots: slots(),
        chat: Err("a base model".into()),
        starters: vec!["Once".into()],
        default_sampling: sampling(),
        warnings: vec!["w".into()],
        load_ms: 12,
        context: 4096,
    }
}

pub fn device() -> DeviceView {
    DeviceView {
        name: "cpu".into(),
        describe: "CPU, 2 threads".into(),
        free_bytes: 1 << 33,
        why_not: "no driver".into(),
    }
}

pub fn card() -> CardModel {
    CardModel {
        source: ModelSource::Bundled,
        name: "MODEL1-mini".into(),
        about: "tells stories".into(),
        licence: "Apache-2.0".into(),
        parameters: 21_000_000,
        bytes: 22 << 20,
        present: true,
        missing: String::new(),
    }
}

pub fn state(model: ModelState) -> StateView {
    StateView {
        revision: 3,
        model,
        recipe: Some(recipe()),
        doc: Some(doc_info()),
        doc_revision: 8,
        writing: Some(1),
        prefill: Some((128, 512)),
        position: 130,
        context: 4096,
        driver: true,
        clients: 2,
        device: device(),
        memory: 1 << 30,
        op_timing: true,
        engine_ended: "ended".into(),
        restored_bytes: 5,
    }
}

pub fn compared() -> CompareResult {
    let side = CompareSide {
        hash: "h".into(),
        json: "{}".into(),
        perplexity: 7.5,
        ln_perplexity_se: 0.01,
        kv: kv(),
        kv_layers: vec![kv()],
        decode_tokens_per_s: 300.0,
        prefill_tokens_per_s: 900.0,
    };
    let change = Change {
        edit: edit(),
        from: "fp8_model1".into(),
    };
    CompareResult {
        spec: compare_spec(),
        model: "m".into(),
        device: "cpu".into(),
        sides: [side.clone(), side],
        changes: vec![change.clone()],
        tokens: vec![CompareToken {
            token: 1,
            text: "a".into(),
            kl: 0.5,
            logprob: [-1.0, -2.0],
            top1: [1, 2],
            margin_a: 0.1,
        }],
        kl: KlStats {
            mean: 0.1,
            mean_se: 0.01,
            median: 0.2,
            p90: 0.3,
            p99: 0.4,
            p999: 0.45,
            max: 0.5,
        },
        same_top1: [0.9, 0.01],
        ln_ppl_ratio: [0.001, 0.0001],
        ppl: PplStats {
            cor: 0.99,
            ratio: [1.1, 0.1],
            diff: [0.7, 0.2],
        },
        delta_p: DeltaP {
            mean: [0.01, 0.001],
            rms: [0.02, 0.002],
            max: 0.3,
            median: 0.0,
            min: -0.2,
        },
        divergence: Some(Divergence {
            position: 7,
            margin: 0.0002,
            near_tie: true,
        }),
        noise_floor: [0.0, 0.0],
        drift: Drift {
            relative_rms: vec![0.1],
            step: 1,
            layer_rms: vec![0.1],
            layer_cosine: vec![0.2],
            layer_max: vec![0.3],
            layer_sqnr_db: vec![f32::INFINITY],
        },
        isolate: vec![IsolateRow {
            change,
            kl_mean: 0.1,
            kl_max: 0.2,
            same_top1: 0.99,
            kv_saved: -5,
        }],
        label: Label::Measured,
        reference: "bf16".into(),
        seconds: 1.5,
        command: "model1 compare".into(),
        notes: vec!["cut".into()],
    }
}

pub fn compare_spec() -> CompareSpec {
    CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Json("{}".into()),
        text: CompareText::Given("text".into()),
        positions: 512,
        isolate: true,
    }
}

pub fn attention_spec() -> AttentionSpec {
    AttentionSpec {
        layer: 2,
        head: Some(1),
        from: 0,
        to: 9,
    }
}

pub fn sweep_spec() -> SweepSpec {
    SweepSpec {
        a: RecipeRef::Own,
        text: CompareText::Builtin,
        positions: 512,
        axes: vec!["weights.lm_head=bf16,fp8".into()],
        presets: true,
        per_layer: true,
        budget: Some(0.01),
    }
}

/// A cell in every state.
pub fn sweep() -> SweepView {
    let row = SweepRow {
        hash: "h".into(),
        name: "n".into(),
        edits: vec!["weights.lm_head=fp8".into()],
        kl: compared().kl,
        same_top1: [0.9, 0.01],
        ln_ppl_ratio: [0.001, 0.0001],
        perplexity: 7.5,
        kv: 1024,
        step_bytes: 4096,
        decode_tokens_per_s: 300.0,
        prefill_tokens_per_s: 900.0,
    };
    let states = [
        SweepState::Waiting,
        SweepState::Reading {
            positions: 3,
            kl_mean: 0.1,
        },
        SweepState::Done {
            row: Box::new(row),
            known: true,
        },
        SweepState::Failed("memory".into()),
    ];
    let groups = [
        SweepGroup::Base,
        SweepGroup::Grid,
        SweepGroup::Single,
        SweepGroup::Tried,
    ];
    let cell = |(group, state)| SweepCell {
        group,
        name: String::new(),
        edits: vec!["e".into()],
        hash: "h".into(),
        state,
    };
    SweepView {
        revision: 9,
        spec: sweep_spec(),
        model: "m".into(),
        device: "cpu".into(),
        reference: "bf16".into(),
        a: "h".into(),
        positions: 512,
        total: 4,
        cells: (0..).zip(groups.into_iter().zip(states).map(cell)).collect(),
        refused: vec![SweepRefusal {
            edits: vec!["e".into()],
            reason: "r".into(),
        }],
        pick: SweepPick::Cell(2),
        command: "model1 sweep".into(),
        notes: vec!["cut".into()],
    }
}

pub fn free_run() -> FreeView {
    let side = FreeSide {
        hash: "h".into(),
        tokens: vec![FreeToken {
            token: 5,
            text: "a".into(),
            logprob: -0.5,
            margin: 0.25,
        }],
        finish: FinishView::MaxTokens,
        kv: kv(),
        decode_tokens_per_s: 300.0,
    };
    let block = FreeBlock { a: 1, b: 2, len: 9 };
    FreeView {
        revision: 3,
        spec: FreeSpec {
            a: RecipeRef::Own,
            b: RecipeRef::Current,
            prompt: CompareText::Builtin,
            tokens: 10,
            temperature: 0.5,
            seed: 7,
            mode: FreeMode::InTurn,
        },
        model: "m".into(),
        device: "cpu".into(),
        reference: "bf16".into(),
        prompt_tokens: 3,
        prompt: "once".into(),
        sides: [side.clone(), side],
        from: [0, 1],
        kl: vec![0.1],
        kl_most: 9,
        split: Some(FreeSplit {
            at: 1,
            tokens: [Some(3), None],
            texts: ["x".into(), String::new()],
            margin: [0.1, 0.2],
            near_tie: false,
        }),
        blocks: vec![block],
        rejoin: Some(block),
        shared: [0.5, 0.25],
        label: Label::Measured,
        command: "model1 compare".into(),
        notes: vec!["n".into()],
    }
}
