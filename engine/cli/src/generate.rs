//! `demo` and `generate`.

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, Result};
use engine::{EngineError, Finish, GenerateOptions, SamplerParams, Session, SessionOptions, TokenEvent, Turn};
use protocol::StepRecord;
use text::Message;

use crate::args::{Demo, Generate, SamplingArgs};
use crate::output::{LayerTotals, print_summary};
use crate::setup::{self, Interrupted, Loaded, user};
use crate::telemetry::Telemetry;

/// Prints text as it comes and gathers telemetry.
pub struct Printer<'a> {
    telemetry: Option<&'a mut Telemetry>,
    totals: LayerTotals,
    logprobs: bool,
    engine: &'a engine::Engine,
    failed: Option<std::io::Error>,
    /// Shown before the first token, once the prompt is known to be accepted.
    lead: String,
    prefill: bool,
    /// Something was shown.
    pub began: bool,
}

impl<'a> Printer<'a> {
    pub fn new(loaded: &'a Loaded, telemetry: Option<&'a mut Telemetry>, logprobs: bool, quiet: bool) -> Self {
        Self {
            telemetry,
            totals: LayerTotals::default(),
            logprobs,
            engine: &loaded.engine,
            failed: None,
            lead: String::new(),
            prefill: !quiet && std::io::stderr().is_terminal(),
            began: false,
        }
    }

    /// Writes to stdout at once.
    pub fn show(&mut self, text: &str) {
        self.began = true;
        let mut out = std::io::stdout().lock();
        let done = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        // A closed pipe ends the run like Ctrl-C does.
        if let Err(e) = done {
            setup::cancel().cancel();
            self.failed.get_or_insert(e);
        }
    }

    /// Flushes the telemetry and reports what could not be written.
    pub fn close(self) -> Result<LayerTotals> {
        if let Some(t) = self.telemetry {
            t.close()?;
        }
        match self.failed {
            Some(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("writing output"),
            _ => Ok(self.totals),
        }
    }
}

impl Turn for Printer<'_> {
    fn token(&mut self, e: &TokenEvent<'_>) {
        if !self.logprobs && self.engine.tokenizer().is_ok() {
            self.show(e.text);
            return;
        }
        if !self.logprobs {
            // Without a tokenizer there is no text; the ids are what was produced.
            self.show(&format!("{}{}", if e.index > 0 { " " } else { "" }, e.token));
            return;
        }
        let piece = |id: u32| {
            let t = self.engine.tokenizer().ok().and_then(|t| t.decode(&[id], false).ok());
            format!("{:?}", t.unwrap_or_else(|| format!("<{id}>")))
        };
        let top: Vec<String> = e.top.iter().map(|&(id, p)| format!("{} {p:.3}", piece(id))).collect();
        let line = format!(
            "{:>4} {:>7} {:<16} {:>8.3}  | {}\n",
            e.index,
            e.token,
            piece(e.token),
            e.logprob,
            top.join("  ")
        );
        if !e.logprob.is_nan() {
            self.show(&line);
        }
    }

    fn step(&mut self, record: &StepRecord) {
        self.totals.add(record);
        if let Some(t) = &mut self.telemetry {
            t.step(record);
        }
        let lead = std::mem::take(&mut self.lead);
        if !lead.is_empty() {
            self.show(&lead);
        }
    }

    fn prefill(&mut self, done: u64, total: u64) {
        if self.prefill && total > 256 {
            eprint!("\rprompt {done}/{total} tokens ");
            if done == total {
                eprint!("\r{:40}\r", "");
            }
        }
    }
}

/// Options of a generation from the command line.
pub fn options(args: &SamplingArgs, sampler: SamplerParams) -> GenerateOptions {
    GenerateOptions {
        max_tokens: args.max_tokens,
        sampler: Some(sampler),
        stop: args.stops.clone(),
        ignore_eos: args.ignore_eos,
        cancel: setup::cancel(),
    }
}

/// Words for why a text ended.
pub fn why(finish: Finish) -> &'static str {
    match finish {
        Finish::Eos => "the model ended the text",
        Finish::Stop => "stop string",
        Finish::MaxTokens => "--max-tokens reached",
        Finish::ContextFull => "context full",
        Finish::Cancelled => "stopped",
    }
}

/// KV formats per layer, for the table.
pub fn formats(session: &Session) -> Vec<String> {
    let one = |l: &engine::recipe::LayerRecipe| match &l.index_cache {
        Some(i) => format!("{}+{i}", l.kv_cache),
        None => l.kv_cache.to_string(),
    };
    session.recipe().layers.iter().map(one).collect()
}

fn run(
    loaded: &Loaded,
    session: &mut Session,
    ids: &[u32],
    options: &GenerateOptions,
    printer: Printer<'_>,
    (quiet, table): (bool, bool),
) -> Result<()> {
    let mut printer = printer;
    let out = session.generate_ids(ids, options, &mut printer);
    if out.is_ok() || printer.began {
        // What was written before an error is whole, too.
        printer.show("\n");
    }
    let totals = printer.close()?;
    let out = out?;
    if !quiet {
        print_summary(&out.summary, why(out.finish));
        eprintln!(
            "[{}; recipe {}]",
            loaded.engine.backend().describe(),
            session.recipe().hash()
        );
    }
    if table {
        totals.print(&formats(session), session.position());
    }
    if out.finish == Finish::Cancelled {
        return Err(Interrupted.into());
    }
    Ok(())
}

/// `model1 generate`
pub fn generate(args: &Generate) -> Result<()> {
    setup::cancel();
    let loaded = setup::load(&args.model)?;
    let sampler = setup::sampler(&args.sampling, &loaded.recipe.sampler)?;
    let ids = match (&args.prompt, &args.ids) {
        (Some(p), _) => {
            let text = if p == "-" {
                let mut s = String::new();
                setup::waiting(|| std::io::stdin().read_to_string(&mut s)).map_err(setup::stdin_failed)?;
                s
            } else {
                p.clone()
            };
            if text.is_empty() {
                return Err(user("--prompt: found an empty text, accepted: at least one character"));
            }
            let tokenizer = loaded.engine.tokenizer()?;
            if args.chat {
                let rendered = loaded
                    .engine
                    .prompt()
                    .render(&[Message::user(&text)], true, tokenizer)
                    .map_err(EngineError::from)?;
                tokenizer.encode(&rendered, false)?
            } else {
                tokenizer.encode(&text, true).map_err(EngineError::from)?
            }
        }
        (None, Some(list)) => setup::parse_ids(list)?,
        (None, None) => return Err(user("--prompt TEXT or --ids IDS is needed")),
    };
    if args.samples != 1 {
        return crate::samples::samples(args, &loaded, &sampler, &ids);
    }
    let mut session = loaded.session(&args.model, SessionOptions::default())?;
    let mut telemetry = setup::telemetry(&args.model, &loaded)?;
    let mut printer = Printer::new(
        &loaded,
        telemetry.as_mut(),
        args.sampling.logprobs.is_some(),
        args.model.quiet,
    );
    if !args.model.quiet
        && args.sampling.logprobs.is_none()
        && !args.chat
        && let Some(p) = args.prompt.as_deref().filter(|p| *p != "-")
    {
        printer.lead = p.to_string();
    }
    let options = options(&args.sampling, sampler);
    run(
        &loaded,
        &mut session,
        &ids,
        &options,
        printer,
        (args.model.quiet, args.kv_table),
    )
}

/// `model1 demo`: what `./run` does without arguments.
pub fn demo(args: &Demo) -> Result<()> {
    const PROMPT: &str = "Write a short story about a fox who finds a map.";
    setup::cancel();
    let loaded = setup::load(&args.model)?;
    let tokenizer = loaded.engine.tokenizer()?;
    let mut session = loaded.session(&args.model, SessionOptions::default())?;
    let mut telemetry = setup::telemetry(&args.model, &loaded)?;
    let chat = loaded.engine.prompt().render(&[Message::user(PROMPT)], true, tokenizer);
    let (shown, ids) = match chat {
        Ok(text) => (PROMPT, tokenizer.encode(&text, false)?),
        Err(_) => ("Once upon a time", tokenizer.encode("Once upon a time", true)?),
    };
    eprintln!("model: {}", loaded.recipe.model);
    eprintln!("prompt: {shown}\n");
    let sampler = SamplerParams {
        temperature: 0.8,
        top_p: 0.95,
        seed: 7,
        ..loaded.recipe.sampler
    };
    let options = GenerateOptions {
        max_tokens: Some(200),
        sampler: Some(sampler),
        cancel: setup::cancel(),
        ..GenerateOptions::default()
    };
    let printer = Printer::new(&loaded, telemetry.as_mut(), false, args.model.quiet);
    run(&loaded, &mut session, &ids, &options, printer, (false, true))?;
    eprintln!(
        "\nNext: model1 chat | model1 show --plan | model1 generate --prompt TEXT --kv-cache bf16 --kv-table | model1 compare --b-set layers.0-1.kv_cache=bf16 | model1 serve --open"
    );
    Ok(())
}
