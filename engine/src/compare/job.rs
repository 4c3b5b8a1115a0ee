//! What is compared: recipes and text of a spec, resolved; and the command that repeats it.

use protocol::{CompareSpec, CompareText, RecipeRef};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::recipe::Recipe;

/// The text that comes with the program: a story in plain words, some 1,100 tokens long.
pub const BUILTIN: &str = include_str!("text.txt");

/// Positions compared when nothing is said.
pub const DEFAULT_POSITIONS: u64 = 512;

/// Longest text that is written into a command; longer ones are given as ids.
const COMMAND_TEXT: usize = 2000;

/// The running text, for specs that refer to it.
#[derive(Clone, Copy)]
pub struct Current<'a> {
    /// The recipe in force.
    pub recipe: &'a Recipe,
    /// Tokens of the shown branch.
    pub ids: &'a [u32],
}

/// A comparison with everything it refers to resolved.
#[derive(Clone, Debug)]
pub struct CompareJob {
    /// What was asked for.
    pub spec: CompareSpec,
    /// Side A.
    pub a: Recipe,
    /// Side B.
    pub b: Recipe,
    /// Tokens both sides read, cut to the number of positions.
    pub ids: Vec<u32>,
    /// Model name for the report.
    pub model: String,
    /// One sentence each: text that was cut and the like.
    pub notes: Vec<String>,
}

impl CompareJob {
    /// Resolves recipes and text. `current` is needed by specs that name the current recipe or text. The model's
    /// name is the last part of its path; set [`CompareJob::model`] for another.
    ///
    /// # Errors
    /// A recipe that does not fit, no tokenizer for a text, fewer than two tokens.
    pub fn resolve(engine: &Engine, spec: &CompareSpec, current: Option<Current<'_>>) -> Result<Self, EngineError> {
        let ids = match &spec.text {
            CompareText::Current => current
                .map(|c| c.ids.to_vec())
                .ok_or_else(|| missing("text to compare on: the current text"))?,
            CompareText::Given(text) => engine.tokenizer()?.encode(text, true)?,
            CompareText::Builtin => engine.tokenizer()?.encode(BUILTIN, true)?,
        };
        let a = recipe(engine, &spec.a, "A", current)?;
        let b = recipe(engine, &spec.b, "B", current)?;
        Self::from_parts(engine, spec.clone(), a, b, ids)
    }

    /// A comparison of two recipes on given tokens. `spec` is what the report says was asked for.
    ///
    /// # Errors
    /// A recipe that does not fit, fewer than two tokens.
    pub fn from_parts(
        engine: &Engine,
        spec: CompareSpec,
        a: Recipe,
        b: Recipe,
        mut ids: Vec<u32>,
    ) -> Result<Self, EngineError> {
        a.check(engine.facts(), engine.registry())?;
        b.check(engine.facts(), engine.registry())?;
        let mut notes = Vec::new();
        let (found, context) = (ids.len(), engine.facts().max_context as u64);
        if spec.positions > context {
            notes.push(format!(
                "{} positions were asked for; the checkpoint was made for {context}.",
                spec.positions
            ));
        }
        ids.truncate(spec.positions.min(context) as usize);
        if ids.len() < 2 {
            return Err(EngineError::Invalid(format!(
                "text to compare on: found {} token(s), accepted: at least 2 (positions: {})",
                ids.len(),
                spec.positions
            )));
        }
        if ids.len() < found {
            notes.push(format!(
                "The text has {found} tokens; the first {} were compared.",
                ids.len()
            ));
        }
        Ok(Self {
            spec,
            a,
            b,
            ids,
            model: model_name(engine),
            notes,
        })
    }

    /// The command that repeats this comparison.
    pub fn command(&self, engine: &Engine) -> String {
        let own = engine.recipe();
        let mut words = vec!["model1".to_string(), "compare".into(), "--model".into()];
        words.push(quoted(&engine.checkpoint().path.display().to_string()));
        side_words(&mut words, &self.a, &self.b, &own);
        words.extend(text_words(&self.spec.text, &self.ids));
        words.extend(["--positions".into(), self.spec.positions.to_string()]);
        if self.spec.isolate {
            words.push("--isolate".into());
        }
        words.join(" ")
    }
}

/// The last part of the checkpoint's path.
pub(super) fn model_name(engine: &Engine) -> String {
    let path = &engine.checkpoint().path;
    path.file_name()
        .map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned())
}

/// The options that make A of the checkpoint's own recipe and B of A.
pub(super) fn side_words(words: &mut Vec<String>, a: &Recipe, b: &Recipe, own: &Recipe) {
    for (option, new, old) in [("--a-set", a, own), ("--b-set", b, a)] {
        for c in new.changes_from(old) {
            words.extend([option.to_string(), quoted(&c.to_string())]);
        }
    }
}

pub(super) fn missing(what: &str) -> EngineError {
    EngineError::Invalid(format!("{what} was asked for, but there is none"))
}

pub(super) fn recipe(
    engine: &Engine,
    wanted: &RecipeRef,
    side: &str,
    current: Option<Current<'_>>,
) -> Result<Recipe, EngineError> {
    Ok(match wanted {
        RecipeRef::Own => engine.recipe(),
        RecipeRef::Current => current
            .map(|c| c.recipe.clone())
            .ok_or_else(|| missing(&format!("recipe {side}: the current one")))?,
        RecipeRef::Json(json) => Recipe::parse(json, side, engine.facts(), engine.registry())?,
    })
}

/// The options that name the text: nothing for the built-in one, the text itself where it is short, else its tokens.
pub(super) fn text_words(text: &CompareText, ids: &[u32]) -> Vec<String> {
    match text {
        CompareText::Builtin => Vec::new(),
        CompareText::Given(text) if text.len() <= COMMAND_TEXT => vec!["--prompt".into(), quoted(text)],
        _ => {
            let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            vec!["--ids".into(), ids.join(",")]
        }
    }
}

/// A word as a POSIX shell reads it.
pub(super) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_string();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell() {
        assert_eq!(quoted("layers.3-6.kv_cache=bf16"), "layers.3-6.kv_cache=bf16");
        assert_eq!(quoted("it's a $HOME"), "'it'\\''s a $HOME'");
        assert_eq!(quoted("layers.*.ffn=own"), "'layers.*.ffn=own'");
        assert_eq!(quoted(""), "''");
    }
}
