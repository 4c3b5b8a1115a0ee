//! JSON schema of recipes, generated from the registry.

use serde_json::{Map, Value, json};

use super::registry::{OptionKind, OptionSpec, Registry, Slot};

fn option(o: &OptionSpec) -> Value {
    match o.kind {
        OptionKind::Whole { min, max, default } => {
            json!({ "type": "integer", "minimum": min, "maximum": max, "default": default, "description": o.help })
        }
        OptionKind::Decimal { min, max, default } => {
            json!({ "type": "number", "minimum": min, "maximum": max, "default": default, "description": o.help })
        }
        OptionKind::Heads => {
            let head = json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX });
            json!({ "type": "array", "items": head, "default": [], "description": o.help })
        }
        OptionKind::Text { default } => json!({ "type": "string", "default": default, "description": o.help }),
    }
}

fn choices(registry: &Registry, slot: Slot) -> Value {
    let mut forms = Vec::new();
    for v in registry.of(slot) {
        forms.push(json!({ "const": v.name(), "description": v.help() }));
        if v.options().is_empty() {
            continue;
        }
        let mut properties = Map::new();
        for o in v.options() {
            properties.insert(o.name.to_string(), option(o));
        }
        let options = json!({ "type": "object", "properties": properties, "additionalProperties": false });
        let mut outer = Map::new();
        outer.insert(v.name().to_string(), options);
        forms.push(json!({ "type": "object", "properties": outer, "required": [v.name()],
                           "additionalProperties": false, "description": v.help() }));
    }
    json!({ "oneOf": forms })
}

/// The schema (draft 2020-12) of a full recipe.
pub fn json_schema(registry: &Registry) -> Value {
    let layer = json!({
        "type": "object",
        "properties": {
            "attention": choices(registry, Slot::Attention),
            "ffn": choices(registry, Slot::Ffn),
            "kv_cache": choices(registry, Slot::KvCache),
            "index_cache": choices(registry, Slot::IndexCache),
        },
        "required": ["attention", "ffn", "kv_cache"],
        "additionalProperties": false,
    });
    let number = json!({ "type": "number" });
    let integer = json!({ "type": "integer", "minimum": 0 });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "MODEL1 Explorer recipe",
        "type": "object",
        "properties": {
            "schema": { "const": super::SCHEMA },
            "model": {
                "type": "object",
                "properties": { "family": { "type": "string" }, "layers": integer, "hidden": integer, "vocab": integer },
                "required": ["family", "layers", "hidden", "vocab"],
                "additionalProperties": false,
            },
            "layers": { "type": "array", "items": layer },
            "weights": {
                "type": "object",
                "properties": {
                    "attention": choices(registry, Slot::AttentionWeights),
                    "ffn": choices(registry, Slot::FfnWeights),
                    "embedding": choices(registry, Slot::Embedding),
                    "lm_head": choices(registry, Slot::LmHead),
                },
                "required": ["lm_head"],
                "additionalProperties": false,
            },
            "sampler": {
                "type": "object",
                "properties": {
                    "temperature": number, "top_k": integer, "top_p": number, "min_p": number,
                    "repetition_penalty": number, "frequency_penalty": number, "presence_penalty": number,
                    "penalty_window": integer, "seed": integer, "logprobs": integer,
                },
                "additionalProperties": false,
            },
        },
        "required": ["schema", "model", "layers", "weights", "sampler"],
        "additionalProperties": false,
    })
}
