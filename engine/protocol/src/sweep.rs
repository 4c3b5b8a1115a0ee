//! Many recipes against one on the same text: what a sweep is asked for and what it measures.

use serde::{Deserialize, Serialize};

use crate::{CompareText, KlStats, RecipeRef};

/// What to sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepSpec {
    /// The recipe all others are compared with.
    pub a: RecipeRef,
    /// The text all sides read.
    pub text: CompareText,
    /// Most positions compared.
    pub positions: u64,
    /// Places and the choices tried there, as `SLOT=CHOICE,CHOICE`: all combinations are measured.
    pub axes: Vec<String>,
    /// Also every preset that fits the model.
    pub presets: bool,
    /// Also every choice in one layer alone.
    pub per_layer: bool,
    /// Recommend the recipe that moves the fewest bytes per step with a mean KL of at most this, in nats (needs the
    /// choices in one layer alone, and measures them).
    pub budget: Option<f64>,
}

/// One measured recipe of a sweep. Costs and speeds stand beside those of the recipe it is compared with, A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRow {
    /// Recipe hash.
    pub hash: String,
    /// Name, where it has one: a preset's.
    pub name: String,
    /// Edits that turn A into it; none for A itself.
    pub edits: Vec<String>,
    /// KL(A||it), in nats per token, measured.
    pub kl: KlStats,
    /// Share of positions with the same likeliest token as A, and its standard error.
    pub same_top1: [f64; 2],
    /// ln(its perplexity / A's) and its standard error (paired).
    pub ln_ppl_ratio: [f64; 2],
    /// Perplexity of the text.
    pub perplexity: f64,
    /// Cache bytes in use at the end of the text, measured.
    pub kv: u64,
    /// Weight and cache bytes that one decode step at the end of the text moves: estimated, from the plan.
    pub step_bytes: u64,
    /// Tokens per second of single steps, measured (median).
    pub decode_tokens_per_s: f64,
    /// Tokens per second of chunks, measured.
    pub prefill_tokens_per_s: f64,
}

/// Why a recipe is in a sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SweepGroup {
    /// A itself.
    Base,
    /// A combination of one choice per axis, or a preset.
    Grid,
    /// One choice in one layer alone (in the whole model for `weights.*`).
    Single,
    /// Tried in search of the recommendation.
    Tried,
}

/// Where a recipe of a sweep stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum SweepState {
    /// Not begun.
    Waiting,
    /// Being read.
    Reading {
        /// Positions read so far.
        positions: u64,
        /// Mean KL(A||it) over them, in nats: not final.
        kl_mean: f64,
    },
    /// Measured.
    Done {
        /// Its figures.
        row: Box<SweepRow>,
        /// Measured by an earlier sweep of the same model, A and text.
        known: bool,
    },
    /// It could not be measured: the reason.
    Failed(String),
}

/// A recipe of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepCell {
    /// Why it is here.
    pub group: SweepGroup,
    /// Name, where it has one: a preset's.
    pub name: String,
    /// Edits that turn A into it; none for A itself.
    pub edits: Vec<String>,
    /// Recipe hash.
    pub hash: String,
    /// Where it stands.
    pub state: SweepState,
}

impl SweepCell {
    /// Its figures, once they are there.
    pub fn row(&self) -> Option<&SweepRow> {
        match &self.state {
            SweepState::Done { row, .. } => Some(row),
            _ => None,
        }
    }
}

/// A combination or preset that the model does not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepRefusal {
    /// Its edits, or the name of the preset.
    pub edits: Vec<String>,
    /// Why.
    pub reason: String,
}

/// What the search for a recommendation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SweepPick {
    /// None was asked for, or the sweep is not that far.
    None,
    /// This cell.
    Cell(u32),
    /// No recipe that moves fewer bytes than A stays within the budget.
    Nothing,
}

/// A sweep as it stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepView {
    /// Rises with every change: ask for what came after it.
    pub revision: u64,
    /// What was asked for.
    pub spec: SweepSpec,
    /// Model name.
    pub model: String,
    /// Device line.
    pub device: String,
    /// Precision of A's arithmetic in words.
    pub reference: String,
    /// Hash of A.
    pub a: String,
    /// Tokens that are read.
    pub positions: u64,
    /// Number of recipes. It grows while a recommendation is looked for.
    pub total: u32,
    /// Recipes by number, in order: those that changed after the revision asked about.
    pub cells: Vec<(u32, SweepCell)>,
    /// What the model does not take.
    pub refused: Vec<SweepRefusal>,
    /// The recommendation.
    pub pick: SweepPick,
    /// The command that repeats it.
    pub command: String,
    /// Text that was cut, context limits and the like, one sentence each.
    pub notes: Vec<String>,
}
