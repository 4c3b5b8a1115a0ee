//! Writing a message: from what is asked for to tokens in the text.

use std::time::{Duration, Instant};

use engine::families::CHUNK;
use engine::{Cancel, EngineError, Finish, GenerateOptions, Generation, SamplerParams, Step};

use protocol::{
    Alternative, DocKind, Edit, ErrorInfo, Event, FinishView, GenerateSpec, Reply, Role, StepRecord, TokenInfo,
};

use super::prompt::{Prompt, number_text, piece};
use super::{Action, Loaded, Worker};
use crate::docs::command::{self, Form};
use crate::docs::{self, Doc, Draft, Ended};
use crate::errors::{cancelled, input, of_engine};
use crate::hub::Responder;

/// A text is prepared so that its command line gives the same bits, as long as the model is small enough for the few
/// tokens this costs to be processed in no time.
const SMALL: u64 = 1 << 30;

/// A message that is about to be written.
struct Plan {
    doc: u64,
    prompt: Prompt,
    /// Tokens after the prompt that are not drawn.
    given: Vec<TokenInfo>,
    /// The user's message before it.
    user: Option<Draft>,
    /// Its place: a new message after this one (or after the user's), or a message that is continued.
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    After(Option<u32>),
    Within(u32),
}

/// A message that is being written.
struct Writing {
    doc: u64,
    node: u32,
    /// All tokens before the first drawn one.
    ids: Vec<u32>,
    form: Form,
    spec: GenerateSpec,
    recipe: u16,
    /// Hash of the recipe that number stands for.
    hash: String,
    swapped: bool,
    /// Tokens drawn before, where a message is continued as if it had never stopped.
    before: u64,
}

impl Worker {
    /// Writes a message. The request is answered as soon as the first step can be made.
    pub(super) fn write(&mut self, action: &Action, spec: GenerateSpec, stop: (&Cancel, u64), to: Responder) {
        let (stop, number) = stop;
        match self.begin(action, &spec, stop) {
            Err(e) => {
                self.hub.with(|inner| inner.end_stop(number));
                to.send(Err(e));
            }
            Ok((mut generation, mut writing)) => {
                let node = writing.node;
                to.send(Ok(Reply::Started { node }));
                let error = self.steps(&mut generation, &mut writing, stop).err();
                self.end(generation, writing, error, number);
            }
        }
        self.between();
    }

    /// Everything that can be refused is refused here, before the text changes.
    fn begin(
        &mut self,
        action: &Action,
        spec: &GenerateSpec,
        stop: &Cancel,
    ) -> Result<(Generation, Writing), ErrorInfo> {
        if stop.is_cancelled() {
            return Err(cancelled());
        }
        let loaded = self.loaded()?;
        let doc = self.hub.with(|inner| inner.docs.current().cloned());
        let doc = doc.ok_or_else(|| input("There is no text.", "Start a new one."))?;
        let plan = loaded.plan(&doc, action, spec, stop)?;
        let mut ids = plan.prompt.ids.clone();
        ids.extend(plan.given.iter().map(|t| t.token));
        if ids.len() as u64 >= loaded.session.capacity() {
            return Err(loaded.too_long(&ids.len().to_string()));
        }
        if ids.is_empty() {
            return Err(input("There is nothing to go on from.", "Write something first."));
        }
        let options = loaded.options(spec, ids.len() as u64, stop);
        if !matches!(plan.place, Place::Within(_)) {
            self.prepare(&ids, stop)?;
        }
        let loaded = self.loaded_mut()?;
        let generation = Generation::begin(&mut loaded.session, &ids, options).map_err(|e| of_engine(&e))?;
        let hash = loaded.hash.clone();
        let model = loaded.model.name.clone();
        let vocabulary = loaded.vocabulary;
        let (node, recipe, before) = self.place(&plan, spec, &hash, (&model, vocabulary));
        // Everything given was drawn, or nothing was given: the prompt alone says it all.
        let whole = before == plan.given.len() as u64;
        let writing = Writing {
            doc: plan.doc,
            node,
            ids,
            form: if whole { plan.prompt.form } else { Form::Ids },
            spec: spec.clone(),
            recipe,
            hash,
            swapped: false,
            before,
        };
        Ok((generation, writing))
    }

    /// Takes the session back to where a fresh one would process the same chunks, and off converted rows.
    fn prepare(&mut self, ids: &[u32], stop: &Cancel) -> Result<(), ErrorInfo> {
        let loaded = self.loaded_mut()?;
        let common = loaded
            .session
            .tokens()
            .iter()
            .zip(ids)
            .take_while(|(a, b)| a == b)
            .count();
        let extends = common as u64 == loaded.session.position() && common < ids.len();
        let keep = common.min(ids.len() - 1);
        let converted = loaded.converted.iter().any(|&at| at > keep as u64);
        let target = if converted {
            0
        } else if extends || loaded.model.facts.weight_bytes > SMALL {
            return Ok(());
        } else {
            let chunk = loaded.session.chunk_len();
            (keep / chunk * chunk) as u64
        };
        if target < loaded.session.position() {
            loaded.session.truncate(target, stop).map_err(|e| of_engine(&e))?;
        }
        if converted {
            self.forget_conversions();
        }
        Ok(())
    }

    /// Puts the messages into the text: (the one being written, number of the recipe, tokens drawn before).
    fn place(&self, plan: &Plan, spec: &GenerateSpec, hash: &str, (model, vocabulary): (&str, u64)) -> (u32, u16, u64) {
        let now = docs::now();
        self.hub.with(|inner| {
            let placed = inner.docs.change(plan.doc, |d| {
                d.model = model.to_string();
                let (node, before) = match plan.place {
                    Place::Within(id) => (id, continue_node(d, id, spec, hash)),
                    Place::After(parent) => {
                        let user = plan.user.as_ref().map(|u| d.add(u.clone(), now));
                        let draft = Draft {
                            parent: user.or(parent),
                            role: Role::Assistant,
                            text: plan.given.iter().map(|t| t.text.as_str()).collect(),
                            tokens: plan.given.clone(),
                            vocabulary,
                            spec: Some(spec.clone()),
                        };
                        (d.add(draft, now), 0)
                    }
                };
                let recipe = d.recipe_number(node, hash);
                (node, recipe, before)
            });
            let placed = placed.unwrap_or_default();
            inner.writing = Some((plan.doc, placed.0));
            inner.doc_changed();
            placed
        })
    }

    fn steps(&mut self, generation: &mut Generation, writing: &mut Writing, stop: &Cancel) -> Result<(), EngineError> {
        let (_, total) = generation.prefilled();
        // A prompt of one chunk is read before anybody could look at its progress.
        let shown = total > CHUNK as u64;
        if shown {
            self.hub.with(|inner| {
                inner.prefill = Some((0, total));
                inner.moved();
            });
        }
        loop {
            let Some(loaded) = self.loaded.as_mut() else {
                return Ok(());
            };
            let progress = generation.prefill_step(&mut loaded.session)?;
            let position = loaded.session.position();
            let done = progress.is_done();
            self.hub.with(|inner| {
                inner.prefill = (shown && !done).then_some((progress.done, progress.total));
                inner.position = position;
                if let Some(r) = progress.record {
                    inner.step(r);
                }
                inner.moved();
            });
            if done {
                break;
            }
            self.between_steps(writing);
        }
        let mut last = None;
        loop {
            self.between_steps(writing);
            self.wait(last, writing, stop);
            last = Some(Instant::now());
            let Some(loaded) = self.loaded.as_mut() else {
                return Ok(());
            };
            if let Some(timer) = &mut loaded.timer {
                timer.before(&mut loaded.session);
            }
            let Step::Token(token) = generation.step(&mut loaded.session)? else {
                return Ok(());
            };
            if let (Some(timer), Some(record)) = (&mut loaded.timer, &token.record) {
                timer.after(&mut loaded.session, record);
            }
            let info = TokenInfo {
                text: match loaded.engine.tokenizer() {
                    Ok(_) => token.text,
                    Err(_) => number_text(token.token, token.index == 0 && writing.ids.is_empty()),
                },
                token: token.token,
                logprob: token.logprob,
                top: loaded.alternatives(&token.top),
                position: token.position,
                recipe: writing.recipe,
            };
            self.token(writing, token.record, info);
        }
    }

    /// Waits until the next token may come, if tokens are to be watched one by one.
    fn wait(&mut self, last: Option<Instant>, writing: &mut Writing, stop: &Cancel) {
        // Often enough that commands are answered as if nothing waited.
        const LOOK: Duration = Duration::from_millis(10);
        let Some(due) = last.map(|t| t + self.token_time) else {
            return;
        };
        while !stop.is_cancelled() {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(LOOK));
            self.between_steps(writing);
        }
    }

    fn token(&self, writing: &Writing, record: Option<StepRecord>, info: TokenInfo) {
        self.hub.with(|inner| {
            if let Some(r) = record {
                inner.step(r);
            }
            inner.token(writing.doc, writing.node, info);
        });
    }

    /// Looks at commands; notes a swap in the message.
    fn between_steps(&mut self, writing: &mut Writing) {
        self.note_revival();
        self.between();
        let Some(loaded) = &self.loaded else { return };
        if loaded.hash != writing.hash {
            writing.hash = loaded.hash.clone();
            writing.swapped = true;
            let number = self.hub.with(|inner| {
                let number = inner
                    .docs
                    .change(writing.doc, |d| d.recipe_number(writing.node, &writing.hash));
                inner.doc_changed();
                number
            });
            writing.recipe = number.unwrap_or(writing.recipe);
        }
    }

    /// Ends the message.
    fn end(&mut self, generation: Generation, writing: Writing, error: Option<EngineError>, number: u64) {
        let out = generation.finish();
        let error = error.map(|e| of_engine(&e));
        let finish = match (&error, out.finish) {
            (Some(_), _) => FinishView::Failed,
            (None, Finish::Eos) => FinishView::Eos,
            (None, Finish::Stop) => FinishView::Stop,
            (None, Finish::MaxTokens) => FinishView::MaxTokens,
            (None, Finish::ContextFull) => FinishView::ContextFull,
            (None, Finish::Cancelled) => FinishView::Cancelled,
        };
        let command = self.command(&writing, out.tokens.len() as u64, finish);
        let full = (finish == FinishView::ContextFull)
            .then(|| self.full_notice())
            .flatten();
        let summary = out.summary;
        let end = Ended {
            finish,
            tail: out.tail,
            summary: Some(summary.clone()),
            error,
            command,
        };
        let now = docs::now();
        self.hub.with(|inner| {
            inner.docs.change(writing.doc, |d| d.finish(writing.node, end, now));
            inner.docs.hurry(writing.doc);
            inner.writing = None;
            inner.prefill = None;
            inner.end_stop(number);
            inner.memory = engine::memory::resident().unwrap_or(inner.memory);
            inner.events.push(Event::Finished {
                doc: writing.doc,
                node: writing.node,
                finish,
                summary,
            });
            if let Some(text) = full {
                inner.notice(false, text);
            }
            inner.doc_changed();
        });
    }

    fn full_notice(&self) -> Option<String> {
        let loaded = self.loaded.as_ref()?;
        let (context, max) = (loaded.session.capacity(), loaded.model.facts.max_context);
        let larger = if context < max {
            format!(", or open the model with a larger context (up to {max} tokens)")
        } else {
            " (the model was made for no more)".into()
        };
        Some(format!(
            "The context of {context} tokens is full. To go on: branch from an earlier message, start a new text{larger}."
        ))
    }

    fn command(&self, writing: &Writing, drawn: u64, finish: FinishView) -> String {
        let Some(loaded) = &self.loaded else {
            return String::new();
        };
        let changes: Vec<Edit> = self
            .hub
            .with(|inner| inner.recipe.as_ref().map(|r| r.changes.clone()))
            .unwrap_or_default();
        let (max, context) = (loaded.model.facts.max_context, loaded.session.capacity());
        let drawn = writing.before + drawn;
        let stopped = matches!(
            finish,
            FinishView::Cancelled | FinishView::Failed | FinishView::ContextFull
        ) || writing.before > 0;
        let prompt = writing.ids.len() - writing.before as usize;
        command::command(&command::Run {
            model: match loaded.model.source {
                protocol::ModelSource::SmolLm2 => "smollm2",
                _ => &loaded.model.path,
            },
            changes: &changes,
            form: &writing.form,
            ids: writing.ids.get(..prompt).unwrap_or_default(),
            spec: &writing.spec,
            drawn: (stopped && drawn > 0).then_some(drawn),
            context: (context < max).then_some(context),
            swapped: writing.swapped,
        })
    }
}

/// Makes a message ready to be continued. Returns the tokens drawn so far if it goes on as if it had never stopped.
fn continue_node(doc: &mut Doc, id: u32, spec: &GenerateSpec, hash: &str) -> u64 {
    let Some(node) = doc.node_mut(id) else { return 0 };
    let same = node.view.spec.as_ref().is_some_and(|s| {
        GenerateSpec {
            max_tokens: spec.max_tokens,
            ..s.clone()
        } == *spec
    });
    let one_recipe = node.view.recipes.iter().all(|h| h == hash);
    // After an end-of-text token or a stop string a fresh run would have ended.
    let cut = !matches!(node.view.finish, FinishView::Eos | FinishView::Stop);
    if !(same && one_recipe && cut) {
        node.given = node.view.tokens.len() as u32;
    }
    // Text that a stop string took away is part of the tokens.
    node.view.text = node.view.tokens.iter().map(|t| t.text.as_str()).collect();
    node.view.spec = Some(spec.clone());
    node.view.finish = FinishView::Running;
    node.view.error = None;
    (node.view.tokens.len() as u64).saturating_sub(u64::from(node.given))
}

impl Loaded {
    fn options(&self, spec: &GenerateSpec, prompt: u64, stop: &Cancel) -> GenerateOptions {
        let s = &spec.sampling;
        let sampler = SamplerParams {
            temperature: s.temperature,
            top_k: s.top_k,
            top_p: s.top_p,
            min_p: s.min_p,
            repetition_penalty: s.repetition_penalty,
            frequency_penalty: s.frequency_penalty,
            presence_penalty: s.presence_penalty,
            seed: s.seed,
            logprobs: s.logprobs.min(crate::settings::MOST_LOGPROBS),
            ..self.session.recipe().sampler
        };
        let room = self.session.capacity().saturating_sub(prompt);
        GenerateOptions {
            // A number beyond the context means: until it is full.
            max_tokens: (1..=room).contains(&spec.max_tokens).then_some(spec.max_tokens),
            sampler: Some(sampler),
            stop: spec.stop.clone(),
            ignore_eos: spec.ignore_eos,
            cancel: stop.clone(),
        }
    }

    fn alternatives(&self, top: &[(u32, f32)]) -> Vec<Alternative> {
        let one = |&(token, logprob): &(u32, f32)| Alternative {
            token,
            text: piece(&self.engine, token),
            logprob,
        };
        top.iter().map(one).collect()
    }

    /// What an action means in a text.
    fn plan(&self, doc: &Doc, action: &Action, spec: &GenerateSpec, stop: &Cancel) -> Result<Plan, ErrorInfo> {
        let after = |user: Option<Draft>, parent: Option<u32>, given: Vec<u32>| -> Result<Plan, ErrorInfo> {
            let mut doc = doc.clone();
            let end = user.clone().map(|u| doc.add(u, 0)).or(parent);
            let prompt = self.prompt(&doc, &doc.path(end), spec.thinking, stop)?;
            let given = self.infos(&prompt.ids, &given);
            Ok(Plan {
                doc: doc.id,
                prompt,
                given,
                user,
                place: Place::After(parent),
            })
        };
        let user = |parent: Option<u32>, text: &str| {
            Some(Draft {
                parent,
                role: Role::User,
                text: text.to_string(),
                tokens: Vec::new(),
                vocabulary: 0,
                spec: None,
            })
        };
        match action {
            Action::Send(text) if text.trim().is_empty() && (doc.kind == DocKind::Chat || doc.leaf.is_some()) => {
                Err(input("The message is empty.", "Write something."))
            }
            Action::Send(text) => after(user(doc.leaf, text), doc.leaf, Vec::new()),
            Action::Again(node) => after(None, doc.require_model(*node)?.view.parent, Vec::new()),
            Action::Edit { node, text } => {
                let old = doc.require(*node)?;
                match old.view.role {
                    Role::Assistant => after(None, old.view.parent, self.given(text, stop)?),
                    _ => after(user(old.view.parent, text), old.view.parent, Vec::new()),
                }
            }
            Action::Branch { node, index, token } => {
                let old = doc.require_model(*node)?;
                let kept = self.kept(old, *index, *token)?;
                let mut plan = after(None, old.view.parent, kept)?;
                // What is kept was drawn once: its probabilities stay known.
                for (new, known) in plan.given.iter_mut().zip(&old.view.tokens) {
                    let same = new.token == known.token;
                    new.top = known.top.clone();
                    new.logprob = match same {
                        true => known.logprob,
                        false => known
                            .top
                            .iter()
                            .find(|a| a.token == *token)
                            .map_or(f32::NAN, |a| a.logprob),
                    };
                }
                Ok(plan)
            }
            Action::Continue => self.plan_continue(doc, spec, stop),
        }
    }

    fn plan_continue(&self, doc: &Doc, spec: &GenerateSpec, stop: &Cancel) -> Result<Plan, ErrorInfo> {
        let Some(leaf) = doc.leaf.and_then(|l| doc.node(l)) else {
            return Err(input("There is nothing to go on from.", "Write something first."));
        };
        let (id, parent) = (leaf.view.id, leaf.view.parent);
        if leaf.view.role != Role::Assistant {
            let prompt = self.prompt(doc, &doc.path(Some(id)), spec.thinking, stop)?;
            return Ok(Plan {
                doc: doc.id,
                prompt,
                given: Vec::new(),
                user: None,
                place: Place::After(Some(id)),
            });
        }
        let thinking = leaf.view.spec.as_ref().map_or(spec.thinking, |s| s.thinking);
        let prompt = self.prompt(doc, &doc.path(parent), thinking, stop)?;
        if leaf.vocabulary == self.vocabulary && !leaf.view.tokens.is_empty() {
            return Ok(Plan {
                doc: doc.id,
                prompt,
                given: leaf.view.tokens.clone(),
                user: None,
                place: Place::Within(id),
            });
        }
        // Written by another model, or by hand: a sibling that begins with the same text.
        let ids = self.given(&leaf.view.text, stop)?;
        let given = self.infos(&prompt.ids, &ids);
        Ok(Plan {
            doc: doc.id,
            prompt,
            given,
            user: None,
            place: Place::After(parent),
        })
    }

    /// The first tokens of a message and another one in place of the next.
    fn kept(&self, node: &docs::Node, index: u32, token: u32) -> Result<Vec<u32>, ErrorInfo> {
        if node.vocabulary != self.vocabulary {
            return Err(input(
                "The message was written by another model: its tokens mean nothing to this one.",
                "Edit its text instead, or open the model that wrote it.",
            ));
        }
        let tokens = &node.view.tokens;
        let Some(kept) = tokens.get(..index as usize) else {
            return Err(input(
                format!("The message has no token {index}."),
                format!("Accepted: 0 to {}.", tokens.len()),
            ));
        };
        let vocab = self.model.facts.vocab;
        if token >= vocab {
            return Err(input(
                format!("There is no token {token}."),
                format!("Accepted: 0 to {}.", vocab - 1),
            ));
        }
        Ok(kept.iter().map(|t| t.token).chain([token]).collect())
    }
}
