//! The axes of a sweep and the recipes they make.

use std::collections::BTreeSet;

use crate::engine::Engine;
use crate::recipe::{Choice, Recipe, RecipeError, Target, presets, split_list};

/// A place and the choices tried there.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// `layers.*.kv_cache`, `weights.lm_head`, ...
    pub selector: String,
    /// Tried in turn.
    pub choices: Vec<Choice>,
}

/// A recipe to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Name, where it has one: a preset's.
    pub name: String,
    /// Edits that turn A into it.
    pub edits: Vec<String>,
    /// The recipe.
    pub recipe: Recipe,
}

/// A combination that the model does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its edits.
    pub edits: Vec<String>,
    /// The registry's words.
    pub reason: String,
}

impl Candidate {
    /// A recipe that is judged against `a`.
    pub fn new(a: &Recipe, recipe: Recipe) -> Self {
        Self {
            name: String::new(),
            edits: recipe.changes_from(a).iter().map(ToString::to_string).collect(),
            recipe,
        }
    }
}

/// The presets that fit the model, by name, and those that do not, with the reason. They are edits of the checkpoint's
/// own recipe, whatever A is.
///
/// # Errors
/// Edits of a preset that the model does not take after all.
pub fn from_presets(engine: &Engine, a: &Recipe) -> Result<(Vec<Candidate>, Vec<Refused>), RecipeError> {
    let (facts, registry) = (engine.facts(), engine.registry());
    let own = engine.recipe();
    let (mut candidates, mut refused) = (Vec::new(), Vec::new());
    for preset in presets(facts, registry) {
        if !preset.refused.is_empty() {
            refused.push(Refused {
                edits: vec![preset.name],
                reason: preset.refused,
            });
            continue;
        }
        let recipe = own.edited(&preset.edits, facts, registry)?;
        candidates.push(Candidate {
            name: preset.name,
            ..Candidate::new(a, recipe)
        });
    }
    Ok((candidates, refused))
}

impl Axis {
    /// Reads `SELECTOR=CHOICE,CHOICE,...`. A choice may have options, with commas among them: `dense,top_k:k=64` and
    /// `sliding_window:window=64,sinks=4,dense` have two choices each.
    ///
    /// # Errors
    /// What is wrong and what would be accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some((selector, list)) = text.split_once('=') else {
            return Err("found no `=`, accepted: SLOT=CHOICE,CHOICE,..., e.g. layers.*.kv_cache=bf16,fp8_b64".into());
        };
        let mut words: Vec<String> = Vec::new();
        // `sinks=4` and `5-7` belong to the choice before them.
        let goes_on = |part: &str| part.contains('=') || part.starts_with(|c: char| c.is_ascii_digit());
        for part in split_list(list) {
            match words.last_mut() {
                Some(last) if goes_on(part) && !part.contains(':') && last.contains(':') => {
                    last.push(',');
                    last.push_str(part);
                }
                _ => words.push(part.to_string()),
            }
        }
        let choices = words.iter().map(|w| Choice::parse(w)).collect::<Result<Vec<_>, _>>()?;
        if choices.is_empty() {
            return Err("found no choice after `=`, accepted: SLOT=CHOICE,CHOICE,...".into());
        }
        Ok(Self {
            selector: selector.trim().to_string(),
            choices,
        })
    }
}

/// Every combination of one choice per axis, A's own among them where an axis names it. No recipe comes twice.
///
/// # Errors
/// A selector, variant or option that does not exist.
pub fn grid(engine: &Engine, a: &Recipe, axes: &[Axis]) -> Result<(Vec<Candidate>, Vec<Refused>), RecipeError> {
    let mut made = Made::new(engine, a);
    let total: usize = axes.iter().map(|x| x.choices.len()).product();
    for number in 0..total {
        let mut rest = number;
        // The last axis turns fastest, as nested loops do.
        let mut edits: Vec<(&str, &Choice)> = Vec::with_capacity(axes.len());
        for axis in axes.iter().rev() {
            edits.push((&axis.selector, &axis.choices[rest % axis.choices.len()]));
            rest /= axis.choices.len();
        }
        edits.reverse();
        made.add(&edits)?;
    }
    Ok(made.finish())
}

/// Every choice of every axis in one layer alone (in the whole model for `weights.*`).
///
/// # Errors
/// As [`grid`].
pub fn singles(engine: &Engine, a: &Recipe, axes: &[Axis]) -> Result<(Vec<Candidate>, Vec<Refused>), RecipeError> {
    let mut made = Made::new(engine, a);
    for axis in axes {
        let places = match Target::parse(&axis.selector, a.layers.len())? {
            Target::Weights(_) => vec![axis.selector.clone()],
            Target::Layers { layers, slot, all } => {
                let has = |i: &usize| a.layers[*i].slots().any(|(s, _)| s == slot);
                let there = layers.into_iter().filter(|i| !all || has(i));
                there.map(|i| format!("layers.{i}.{}", slot.name())).collect()
            }
        };
        for choice in &axis.choices {
            for place in &places {
                made.add(&[(place, choice)])?;
            }
        }
    }
    Ok(made.finish())
}

/// Recipes as they are made.
struct Made<'a> {
    engine: &'a Engine,
    a: &'a Recipe,
    seen: BTreeSet<String>,
    candidates: Vec<Candidate>,
    refused: Vec<Refused>,
}

impl<'a> Made<'a> {
    fn new(engine: &'a Engine, a: &'a Recipe) -> Self {
        Self {
            engine,
            a,
            // A itself is measured anyway.
            seen: BTreeSet::from([a.hash()]),
            candidates: Vec::new(),
            refused: Vec::new(),
        }
    }

    fn add(&mut self, edits: &[(&str, &Choice)]) -> Result<(), RecipeError> {
        let mut recipe = self.a.clone();
        let words = || edits.iter().map(|(s, c)| format!("{s}={c}")).collect();
        for (selector, choice) in edits {
            let put = recipe.set_choice(selector, (*choice).clone(), self.engine.facts(), self.engine.registry());
            match put {
                Ok(()) => {}
                Err(e @ RecipeError::Refused { .. }) => {
                    self.refused.push(Refused {
                        edits: words(),
                        reason: e.to_string(),
                    });
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        if self.seen.insert(recipe.hash()) {
            self.candidates.push(Candidate::new(self.a, recipe));
        }
        Ok(())
    }

    fn finish(self) -> (Vec<Candidate>, Vec<Refused>) {
        (self.candidates, self.refused)
    }
}
