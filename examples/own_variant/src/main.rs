//! `cargo run --release -p own-variant -- MODEL "Once upon a time" [EDIT ...]`: writes with `dilated` in every layer that takes
//! it, or with the edits given.

use engine::{Engine, EngineError, EngineOptions, GenerateOptions, SessionOptions, Silent, TokenEvent};

fn run(model: &str, prompt: &str, edits: &[String]) -> Result<(), EngineError> {
    let options = EngineOptions {
        registry: own_variant::registry(),
        ..EngineOptions::default()
    };
    let engine = Engine::open(model.as_ref(), &options, &Silent)?;
    let mut recipe = engine.recipe();
    for edit in edits {
        recipe.set(edit, engine.facts(), engine.registry())?;
    }
    println!("recipe {}", recipe.hash());
    let mut session = engine.session(recipe, SessionOptions::default())?;
    let options = GenerateOptions {
        max_tokens: Some(64),
        ..GenerateOptions::default()
    };
    session.generate(prompt, &options, &mut |e: &TokenEvent<'_>| print!("{}", e.text))?;
    println!();
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let dilated = ["layers.*.attention=dilated:near=16,stride=4".to_string()];
    let result = match &arguments[..] {
        [_, model, prompt] => run(model, prompt, &dilated).map_err(|e| format!("error: {e}")),
        [_, model, prompt, edits @ ..] => run(model, prompt, edits).map_err(|e| format!("error: {e}")),
        _ => Err("usage: own-variant MODEL PROMPT [EDIT ...]".into()),
    };
    result.unwrap_or_else(|message| {
        eprintln!("{message}");
        std::process::exit(1)
    });
}
