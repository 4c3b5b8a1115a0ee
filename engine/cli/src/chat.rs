//! `chat`: several turns on one cache.

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Result;
use engine::{EngineError, Finish, SessionOptions};
use text::Message;

use crate::args::Chat;
use crate::generate::{Printer, options, why};
use crate::output::print_summary;
use crate::setup;

const HELP: &str = "/help, /reset (forget everything), /undo (last turn), /regenerate, /kv (cache), /quit";

/// `model1 chat`
pub fn chat(args: &Chat) -> Result<()> {
    let cancel = setup::cancel();
    let loaded = setup::load_chat(&args.model)?;
    let tokenizer = loaded.engine.tokenizer()?.clone();
    let prompt = loaded.engine.prompt();
    let mut sampler = setup::sampler(&args.sampling, &loaded.recipe.sampler)?;
    let system: Vec<Message> = args.system.iter().map(Message::system).collect();
    // Fails here, with the reason, for base models without a template.
    prompt
        .render(&[Message::user("x")], true, &tokenizer)
        .map_err(EngineError::from)?;
    let mut session = loaded.session(&args.model, SessionOptions::default())?;
    let mut telemetry = setup::telemetry(&args.model, &loaded)?;
    let mut messages = system.clone();
    // What a turn that failed was to answer.
    let mut unanswered: Option<Vec<Message>> = None;
    let terminal = std::io::stdin().is_terminal();
    if !args.model.quiet {
        eprintln!("model: {}; {HELP}", loaded.recipe.model);
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if terminal {
            eprint!("> ");
            std::io::stderr().flush().ok();
        }
        let Some(line) = setup::waiting(|| lines.next()) else {
            break;
        };
        let line = line.map_err(setup::stdin_failed)?;
        let before = messages.clone();
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/help" => {
                eprintln!("{HELP}");
                continue;
            }
            "/reset" => {
                messages = system.clone();
                unanswered = None;
                session.truncate(0, &cancel)?;
                continue;
            }
            "/undo" => {
                let n = messages.len().saturating_sub(2).max(system.len());
                if n == messages.len() {
                    eprintln!("nothing to undo");
                }
                messages.truncate(n);
                unanswered = None;
                continue;
            }
            "/kv" => {
                let used: u64 = session.kv_bytes().iter().map(|(u, _)| u.total()).sum();
                eprintln!(
                    "{} tokens in the cache, {}",
                    session.position(),
                    engine::memory::human(used)
                );
                continue;
            }
            "/regenerate" => {
                if let Some(again) = unanswered.take() {
                    messages = again;
                } else if messages.last().is_some_and(|m| m.role == "assistant") {
                    messages.pop();
                    // Another draw, or the same answer would come again.
                    sampler.seed = sampler.seed.wrapping_add(1);
                } else {
                    eprintln!("nothing to regenerate");
                    continue;
                }
            }
            text if text.starts_with('/') && !text[1..].contains(['/', ' ']) => {
                eprintln!("error: no command `{text}`; accepted: {HELP}");
                continue;
            }
            text => messages.push(Message::user(text)),
        }
        let rendered = if args.thinking {
            prompt.render_thinking(&messages, &tokenizer)
        } else {
            prompt.render(&messages, true, &tokenizer)
        };
        let ids = tokenizer.encode(&rendered.map_err(EngineError::from)?, false)?;
        let mut printer = Printer::new(&loaded, telemetry.as_mut(), args.sampling.logprobs.is_some(), true);
        let held = session.tokens().iter().zip(&ids).take_while(|(a, b)| a == b).count();
        // Whoever says something asks for an engine that ended before to be started.
        if let Some(process) = loaded.engine.worker() {
            process.allow_restart();
        }
        let out = session.generate_ids(&ids, &options(&args.sampling, sampler), &mut printer);
        if out.is_ok() || printer.began {
            printer.show("\n");
        }
        let out = match out {
            Ok(out) => out,
            Err(e) => {
                // Nothing is lost: the turn can be shortened or the chat reset; what failed on the way, tried again.
                if matches!(e, EngineError::ContextOverflow { .. }) {
                    eprintln!("error: {e}");
                    messages = before;
                } else {
                    eprintln!("error: {e} (/regenerate tries again)");
                    unanswered = Some(std::mem::replace(&mut messages, before));
                }
                continue;
            }
        };
        unanswered = None;
        printer.close()?;
        if !args.model.quiet {
            print_summary(
                &out.summary,
                &format!("{}; {held} tokens reused from the cache", why(out.finish)),
            );
        }
        messages.push(Message::assistant(out.text.trim_end()));
        if out.finish == Finish::Cancelled {
            return Err(setup::Interrupted.into());
        }
    }
    Ok(())
}
