//! Comparing recipe A with recipe B on the same tokens, teacher-forced.

use serde::{Deserialize, Serialize};

use crate::{Edit, KvBytes, Label};

/// One side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecipeRef {
    /// The checkpoint's own.
    Own,
    /// The one in force.
    Current,
    /// Given as JSON.
    Json(String),
}

/// The text both sides read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CompareText {
    /// The shown branch of the current text.
    Current,
    /// Given text; long ones are cut to the number of positions.
    Given(String),
    /// A text that comes with the program.
    Builtin,
}

/// What to compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompareSpec {
    /// Side A.
    pub a: RecipeRef,
    /// Side B.
    pub b: RecipeRef,
    /// The text.
    pub text: CompareText,
    /// Most positions compared.
    pub positions: u64,
    /// Also compare A with only one of the changes at a time.
    pub isolate: bool,
}

/// A change between A and B.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// As an edit of A.
    pub edit: Edit,
    /// What A has there.
    pub from: String,
}

/// One position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareToken {
    /// The token both sides read here.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// KL(A||B) of the next-token distributions after this token, in nats.
    pub kl: f32,
    /// Natural log of the probability of the next token under A and B; NaN at the last position.
    pub logprob: [f32; 2],
    /// Likeliest next token under A and B.
    pub top1: [u32; 2],
    /// Probability difference between A's two likeliest tokens.
    pub margin_a: f32,
}

/// Statistics of KL(A||B), in nats.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct KlStats {
    /// Mean.
    pub mean: f64,
    /// Standard error of the mean.
    pub mean_se: f64,
    /// Median.
    pub median: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    #[serde(default)]
    pub p999: f64,
    /// Largest.
    pub max: f64,
}

/// Perplexities of B and A against each other, as llama.cpp's perplexity tool computes them from the negative
/// log-probabilities a, b of the n tokens that follow a position: var(x) = (mean(x^2) - mean(x)^2) / (n - 1), and
/// cov(a, b) likewise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PplStats {
    /// Correlation of ln PPL(B) and ln PPL(A): cov(a, b) / sqrt(var(a) var(b)); NaN where one of them does not vary.
    pub cor: f64,
    /// PPL(B) / PPL(A) = exp(mean(b) - mean(a)), and its error: the ratio times that of its logarithm.
    pub ratio: [f64; 2],
    /// PPL(B) - PPL(A), and its error sqrt(e_B^2 + e_A^2 - 2 PPL(B) PPL(A) cov(a, b)) with e = PPL sqrt(var).
    pub diff: [f64; 2],
}

/// Change of the probability of the token that follows, Δp = p_B - p_A: shares of 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeltaP {
    /// Mean and its standard error.
    pub mean: [f64; 2],
    /// Root of the mean square, and its error: half the error of the mean square over the root.
    pub rms: [f64; 2],
    /// Largest.
    pub max: f64,
    /// Median.
    pub median: f64,
    /// Smallest.
    pub min: f64,
}

/// Where greedy texts part.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Position after which the likeliest next tokens differ.
    pub position: u64,
    /// A's margin there: probability of its likeliest token minus that of the second.
    pub margin: f32,
    /// The margin is under 1e-3: rounding alone could have decided.
    pub near_tie: bool,
}

/// Figures of one side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareSide {
    /// Recipe hash.
    pub hash: String,
    /// Recipe as JSON.
    pub json: String,
    /// Perplexity of the text.
    pub perplexity: f64,
    /// Standard error of its natural log.
    pub ln_perplexity_se: f64,
    /// Cache bytes in use at the end, by component.
    pub kv: KvBytes,
    /// The same per layer.
    pub kv_layers: Vec<KvBytes>,
    /// Decode speed, measured on the last positions of the text, one token at a time.
    pub decode_tokens_per_s: f64,
    /// Speed of the teacher-forced pass.
    pub prefill_tokens_per_s: f64,
}

/// Differences of the residual stream after each block of a layer, A against B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Relative RMS `||a - b|| / ||a||` per `[layers, columns]`, see [`Drift::step`].
    pub relative_rms: Vec<f32>,
    /// Positions per column. More than 1 for long texts, so that memory stays bounded: a column then holds the largest
    /// value of its positions ("sampled"). Figures per layer are over all positions.
    #[serde(default)]
    pub step: u64,
    /// Per layer over all positions: relative RMS.
    pub layer_rms: Vec<f32>,
    /// Per layer: 1 - cosine.
    pub layer_cosine: Vec<f32>,
    /// Per layer: largest absolute difference.
    pub layer_max: Vec<f32>,
    /// Per layer: signal to noise in dB (infinite where equal).
    pub layer_sqnr_db: Vec<f32>,
}

/// A with one change alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IsolateRow {
    /// The change.
    pub change: Change,
    /// KL(A||A with it), mean in nats.
    pub kl_mean: f64,
    /// Largest.
    pub kl_max: f64,
    /// Same likeliest token, share.
    pub same_top1: f64,
    /// Cache bytes it saves (negative: costs).
    pub kv_saved: i64,
}

/// The result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompareResult {
    /// What was asked for.
    pub spec: CompareSpec,
    /// Model name.
    pub model: String,
    /// Device line.
    pub device: String,
    /// The sides, A and B.
    pub sides: [CompareSide; 2],
    /// What differs.
    pub changes: Vec<Change>,
    /// Positions.
    pub tokens: Vec<CompareToken>,
    /// KL(A||B).
    pub kl: KlStats,
    /// Share of positions with the same likeliest token, and its standard error.
    pub same_top1: [f64; 2],
    /// ln(ppl B / ppl A) and its standard error (paired).
    pub ln_ppl_ratio: [f64; 2],
    /// Perplexities against each other.
    #[serde(default)]
    pub ppl: PplStats,
    /// Change of the probability of the text's own tokens.
    #[serde(default)]
    pub delta_p: DeltaP,
    /// First position where greedy texts part; `None` = nowhere.
    pub divergence: Option<Divergence>,
    /// Mean and largest KL(A||A) of two passes of A: the noise floor. 0 on one device.
    pub noise_floor: [f64; 2],
    /// Residual differences.
    pub drift: Drift,
    /// One row per change, if asked for.
    pub isolate: Vec<IsolateRow>,
    /// How the figures came to be.
    pub label: Label,
    /// Precision of A's arithmetic in words, e.g. `bf16 weights, f32 arithmetic on CPU`.
    pub reference: String,
    /// Seconds it took.
    pub seconds: f64,
    /// The command that repeats it.
    pub command: String,
    /// Text that was cut, context limits and the like, one sentence each.
    pub notes: Vec<String>,
}
