//! Recipes: validity table, hashes, schema.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::recipe::{AttentionKind, Slot, json_schema, validity};
use engine::{Cancel, Engine, Recipe, Registry, SessionOptions};
use model1_tests::goldens::engine;

const MODELS: [&str; 5] = ["tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-v4", "tiny-v4-fp8"];

fn engines() -> Vec<(&'static str, Arc<Engine>)> {
    MODELS.into_iter().map(|m| (m, engine(m, 2))).collect()
}

/// The table in `tests/validity.md`, generated from `accepts`. `UPDATE_VALIDITY=1` writes it anew.
#[test]
fn the_validity_table_is_up_to_date() {
    let mut rows: BTreeMap<(Slot, &str), BTreeMap<String, Option<String>>> = BTreeMap::new();
    let mut columns: Vec<String> = Vec::new();
    for (name, engine) in engines() {
        for cell in validity(engine.registry(), &engine.facts().layers) {
            let column = format!("{} {} ({name})", cell.family, cell.attention.name());
            if !columns.contains(&column) {
                columns.push(column.clone());
            }
            rows.entry((cell.slot, cell.variant))
                .or_default()
                .insert(column, cell.refused);
        }
    }
    let mut text = String::from(
        "# Which variant fits where\n\n\
         Generated from each variant's `accepts`, for the models in `tests/goldens`; a test runs every cell. Columns are\n\
         kinds of layers. A number points at the reason below the table.\n\n",
    );
    let mut reasons: Vec<String> = Vec::new();
    text += &format!(
        "| slot | variant | {} |\n|---|---|{}\n",
        columns.join(" | "),
        "---|".repeat(columns.len())
    );
    for ((slot, variant), cells) in &rows {
        text += &format!("| `{}` | `{variant}` |", slot.name());
        for c in &columns {
            text += &match &cells[c] {
                None => " yes |".to_string(),
                Some(reason) => {
                    let at = reasons.iter().position(|r| r == reason).unwrap_or_else(|| {
                        reasons.push(reason.clone());
                        reasons.len() - 1
                    });
                    format!(" no ({}) |", at + 1)
                }
            };
        }
        text += "\n";
    }
    text += "\n";
    for (i, r) in reasons.iter().enumerate() {
        text += &format!("{}. {r}\n", i + 1);
    }
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("validity.md");
    if std::env::var_os("UPDATE_VALIDITY").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        there == text,
        "tests/validity.md is out of date: run with UPDATE_VALIDITY=1"
    );
}

/// Every cell: accepted variants run and are what the recipe says; refused ones say why and change nothing.
#[test]
fn every_cell_of_the_validity_table_is_true() {
    for (name, engine) in engines() {
        let mut seen: Vec<AttentionKind> = Vec::new();
        let ids: Vec<u32> = (0..30).map(|i| (i * 31 % 50) + 2).collect();
        for (l, facts) in engine.facts().layers.iter().enumerate() {
            if seen.contains(&facts.attention) {
                continue;
            }
            seen.push(facts.attention);
            let cells = validity(engine.registry(), std::slice::from_ref(facts));
            for cell in cells {
                let selector = match cell.slot {
                    slot if slot.per_layer() => format!("layers.{l}.{}", slot.name()),
                    slot => slot.name().to_string(),
                };
                let edit = format!("{selector}={}", cell.variant);
                let mut recipe = engine.recipe();
                let result = recipe.set(&edit, engine.facts(), engine.registry());
                match cell.refused {
                    Some(reason) => {
                        let text = result.unwrap_err().to_string();
                        assert!(text.contains(&reason), "{name} {edit}: {text} does not say: {reason}");
                        assert_eq!(recipe, engine.recipe(), "{name} {edit}");
                    }
                    None => {
                        result.unwrap_or_else(|e| panic!("{name} {edit}: {e}"));
                        let mut session = engine.session(recipe, SessionOptions::default()).unwrap();
                        session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
                        session.feed(&[7], None, &Cancel::default(), &mut ()).unwrap();
                        assert!(session.output().logits.iter().all(|v| v.is_finite()), "{name} {edit}");
                    }
                }
            }
        }
    }
}

/// As many experts as the checkpoint has per token is the checkpoint's own, bit for bit; a table names no more.
#[test]
fn experts_per_token_have_their_limits() {
    let engine = engine("tiny-v4", 2);
    let (facts, registry) = (engine.facts(), engine.registry());
    let ids: Vec<u32> = (0..30).map(|i| (i * 31 % 50) + 2).collect();
    let logits = |edits: &[&str]| {
        let mut recipe = engine.recipe();
        edits.iter().for_each(|e| recipe.set(e, facts, registry).unwrap());
        let mut session = engine.session(recipe, SessionOptions::default()).unwrap();
        session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
        session.output().logits.clone()
    };
    let own = logits(&[]);
    assert_eq!(logits(&["layers.*.ffn=experts:k=2"]), own);
    assert_ne!(logits(&["layers.0.ffn=experts:k=1"]), own);
    assert_ne!(logits(&["layers.5.ffn=experts:k=8"]), own);
    assert_ne!(logits(&["layers.5.ffn=relu2"]), own);
    let refused = |edit: &str| engine.recipe().set(edit, facts, registry).unwrap_err().to_string();
    let text = refused("layers.0.ffn=experts:k=3");
    assert!(
        text.contains("hash routing") && text.contains("accepted: 1 to 2"),
        "{text}"
    );
    let text = refused("layers.5.ffn=experts:k=9");
    assert!(text.contains("has 8 experts; accepted: 1 to 8"), "{text}");
    let text = refused("layers.5.ffn=experts:k=0");
    assert!(text.contains("accepted: 1 to 1024"), "{text}");
    let text = refused("layers.5.ffn=silu");
    assert!(text.contains("choose own"), "{text}");
}

/// Known hashes: a change of the canonical form would orphan every stored recipe.
#[test]
fn hashes_are_stable() {
    let engine = engine("tiny-llama", 1);
    let own = engine.recipe();
    let mut other = own.clone();
    other
        .set("layers.1.kv_cache=bf16", engine.facts(), engine.registry())
        .unwrap();
    assert_eq!(
        [own.hash().as_str(), other.hash().as_str()],
        ["0e97bb48842c6799", "977e722a69e738bb"]
    );
    let text = serde_json::to_string_pretty(&other).unwrap();
    let again = Recipe::parse(&text, "test", engine.facts(), engine.registry()).unwrap();
    assert_eq!(again, other);
    assert_eq!(again.hash(), other.hash());
    // Recipes written when the output layer was the only weight with a choice have the same form and hash.
    let weights = serde_json::to_value(&other).unwrap()["weights"].clone();
    assert_eq!(weights, serde_json::json!({ "lm_head": "own" }));
    let old = text.replace(r#""lm_head": "own""#, r#""lm_head": "fp8""#);
    let mut fp8 = other.clone();
    fp8.set("weights.lm_head=fp8", engine.facts(), engine.registry())
        .unwrap();
    assert_eq!(
        Recipe::parse(&old, "test", engine.facts(), engine.registry()).unwrap(),
        fp8
    );
    assert_eq!(fp8.hash(), "8adb48deb5b8ccbc");
    // Key order and options left at their defaults do not matter.
    let short = r#"{"set":{"layers.1.kv_cache":"bf16"},"schema":1}"#;
    let short = Recipe::parse(short, "test", engine.facts(), engine.registry()).unwrap();
    assert_eq!(short.hash(), other.hash());
}

/// Every recipe a model offers, and every accepted variant, fits the schema; what the schema forbids is refused.
#[test]
fn recipes_fit_the_schema() {
    let schema = json_schema(&Registry::default());
    let validator = jsonschema::validator_for(&schema).unwrap();
    for (name, engine) in engines() {
        let mut recipe = engine.recipe();
        for (l, facts) in engine.facts().layers.iter().enumerate() {
            for cell in validity(engine.registry(), std::slice::from_ref(facts)) {
                if cell.refused.is_none() {
                    let place = if cell.slot.per_layer() {
                        format!("layers.{l}.")
                    } else {
                        String::new()
                    };
                    let edit = format!("{place}{}={}", cell.slot.name(), cell.variant);
                    recipe.set(&edit, engine.facts(), engine.registry()).unwrap();
                    let value = serde_json::to_value(&recipe).unwrap();
                    let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
                    assert!(errors.is_empty(), "{name} {edit}: {errors:?}");
                }
            }
        }
        let mut bad = serde_json::to_value(&recipe).unwrap();
        bad["layers"][0]["kv_cache"] = "zip".into();
        assert!(!validator.is_valid(&bad));
        let text = Recipe::parse(&bad.to_string(), "bad.json", engine.facts(), engine.registry()).unwrap_err();
        let text = text.to_string();
        assert!(text.contains("zip") && text.contains("fp8_b64"), "{text}");
    }
}
