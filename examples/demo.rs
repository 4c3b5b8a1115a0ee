//! Embeds the engine: `cargo run --release --example demo -- MODEL "Once upon a time"`.

use engine::{Engine, EngineError, EngineOptions, GenerateOptions, SessionOptions, Silent, TokenEvent};

fn run(model: &str, prompt: &str) -> Result<(), EngineError> {
    let engine = Engine::open(model.as_ref(), &EngineOptions::default(), &Silent)?;
    let mut session = engine.session(engine.recipe(), SessionOptions::default())?;
    let options = GenerateOptions {
        max_tokens: Some(64),
        ..GenerateOptions::default()
    };
    let out = session.generate(prompt, &options, &mut |e: &TokenEvent<'_>| print!("{}", e.text))?;
    let kv: u64 = session.kv_bytes().iter().map(|(used, _)| used.total()).sum();
    let (tokens, speed) = (out.tokens.len(), out.summary.decode_tokens_per_s);
    println!("\n[{tokens} tokens, {speed:.1} tokens/s, KV cache {kv} bytes]");
    Ok(())
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let result = match &arguments[..] {
        [_, model, prompt] => run(model, prompt).map_err(|e| format!("error: {e}")),
        _ => Err("usage: demo MODEL PROMPT".into()),
    };
    result.unwrap_or_else(|message| {
        eprintln!("{message}");
        std::process::exit(1)
    });
}
