//! What is written: recipes and prompt of a spec, resolved; and the command that repeats it.

use kernels::ir::SamplerParams;
use protocol::{CompareText, FreeMode, FreeSpec};

use crate::compare::BUILTIN;
use crate::compare::job::{Current, missing, model_name, quoted, recipe, side_words, text_words};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::recipe::Recipe;

/// Tokens of the built-in story that are its beginning.
const BEGINNING: usize = 32;

/// A free run with everything it refers to resolved.
#[derive(Clone, Debug)]
pub struct FreeJob {
    /// What was asked for.
    pub spec: FreeSpec,
    /// Side A.
    pub a: Recipe,
    /// Side B.
    pub b: Recipe,
    /// Tokens both go on from.
    pub prompt: Vec<u32>,
    /// Model name for the report.
    pub model: String,
    /// One sentence each.
    pub notes: Vec<String>,
}

impl FreeJob {
    /// Resolves recipes and prompt. `current` is needed by specs that name the current recipe or text.
    ///
    /// # Errors
    /// A recipe that does not fit, no tokenizer for a text, an empty prompt, a temperature or a number of tokens that
    /// is not accepted, a text longer than the context.
    pub fn resolve(engine: &Engine, spec: &FreeSpec, current: Option<Current<'_>>) -> Result<Self, EngineError> {
        let prompt = match &spec.prompt {
            CompareText::Current => current
                .map(|c| c.ids.to_vec())
                .ok_or_else(|| missing("prompt to go on from: the current text"))?,
            CompareText::Given(text) => engine.tokenizer()?.encode(text, true)?,
            CompareText::Builtin => {
                let mut ids = engine.tokenizer()?.encode(BUILTIN, true)?;
                ids.truncate(BEGINNING);
                ids
            }
        };
        let a = recipe(engine, &spec.a, "A", current)?;
        let b = recipe(engine, &spec.b, "B", current)?;
        Self::from_parts(engine, spec.clone(), a, b, prompt)
    }

    /// Two recipes on a given prompt. `spec` says everything else.
    ///
    /// # Errors
    /// As [`FreeJob::resolve`].
    pub fn from_parts(
        engine: &Engine,
        spec: FreeSpec,
        a: Recipe,
        b: Recipe,
        prompt: Vec<u32>,
    ) -> Result<Self, EngineError> {
        a.check(engine.facts(), engine.registry())?;
        b.check(engine.facts(), engine.registry())?;
        if prompt.is_empty() {
            return Err(EngineError::Invalid(
                "prompt to go on from: found no tokens, accepted: at least 1".into(),
            ));
        }
        let context = engine.facts().max_context as u64;
        let needed = (prompt.len() as u64).saturating_add(spec.tokens);
        if spec.tokens == 0 || needed > context {
            return Err(EngineError::Invalid(format!(
                "tokens to write: found {} after a prompt of {}, accepted: 1 to {} (the checkpoint was made for {context})",
                spec.tokens,
                prompt.len(),
                context.saturating_sub(prompt.len() as u64)
            )));
        }
        let job = Self {
            model: model_name(engine),
            spec,
            a,
            b,
            prompt,
            notes: Vec::new(),
        };
        job.sampler().validate().map_err(EngineError::Invalid)?;
        Ok(job)
    }

    /// How both sides draw.
    pub(super) fn sampler(&self) -> SamplerParams {
        SamplerParams {
            temperature: self.spec.temperature,
            seed: self.spec.seed,
            ..SamplerParams::default()
        }
    }

    /// The command that repeats this.
    pub fn command(&self, engine: &Engine) -> String {
        let mut words = vec!["model1".to_string(), "compare".into(), "--model".into()];
        words.push(quoted(&engine.checkpoint().path.display().to_string()));
        side_words(&mut words, &self.a, &self.b, &engine.recipe());
        words.extend(match &self.spec.prompt {
            // The beginning alone is the prompt.
            CompareText::Builtin => text_words(&CompareText::Current, &self.prompt),
            text => text_words(text, &self.prompt),
        });
        words.extend(["--free-run".into(), self.spec.tokens.to_string()]);
        if self.spec.mode == FreeMode::InTurn {
            words.push("--in-turn".into());
        }
        if self.spec.temperature > 0.0 {
            words.extend(["--temperature".into(), self.spec.temperature.to_string()]);
            words.extend(["--seed".into(), self.spec.seed.to_string()]);
        }
        words.join(" ")
    }
}
