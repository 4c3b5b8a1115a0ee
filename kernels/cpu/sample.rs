//! Drawing a token from a row of logits.
//!
//! Order, always the same:
//! 1. penalties: repetition (positive logits divided, negative multiplied), then `count * frequency`, then presence;
//! 2. temperature;
//! 3. top-k (exactly k tokens; the lower id stays on ties);
//! 4. min-p, relative to the likeliest token;
//! 5. top-p, over the mass that steps 3 and 4 left;
//! 6. the draw, walking the tokens that are left in order of id.
//!
//! This is the order of the Hugging Face warpers (temperature before the cuts, unlike llama.cpp, where it comes
//! last) with one difference: there min-p follows top-p. llama.cpp and Hugging Face also keep all ties at the
//! k-th place or an arbitrary one of them; here the result never depends on a sort's whims.
//!
//! Random numbers come from Philox4x32-10 (Salmon et al. 2011, as in Random123): the key is the seed, the counter
//! is the position of the token. There is no state: the same logits, settings, history and position always give
//! the same token, whatever was drawn before.
//!
//! Exponentials are computed here with plain f32 multiplications and additions, and masses are summed in f64 in a
//! fixed order, so a draw does not depend on the platform's mathematics library.

use crate::ir::{Sampled, SamplerParams};

/// Why no token could be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// No logits at all.
    #[error("there are no logits to sample from; accepted is a row of at least one")]
    Empty,
    /// A NaN or positive infinity.
    #[error("logit of token {token} is {value} ({stage}); accepted are finite numbers and -inf")]
    NotFinite {
        /// First token concerned.
        token: usize,
        /// What was found.
        value: f32,
        /// Before or after penalties.
        stage: &'static str,
    },
    /// Every token is ruled out.
    #[error("all {0} logits are -inf, so no token can be drawn; accepted is at least one finite logit")]
    AllMasked(usize),
    /// Settings out of range.
    #[error("{0}")]
    Params(String),
}

/// Draws the token for `position` from `logits` (one per vocabulary entry).
///
/// `history` is what the penalties count, oldest first; ids that have no logit are ignored.
pub fn sample(logits: &[f32], params: &SamplerParams, history: &[u32], position: u64) -> Result<Sampled, SampleError> {
    params.validate().map_err(SampleError::Params)?;
    let best = argmax(logits, "from the model")?;
    let model_max = logits[best];
    let log_mass = mass(logits, model_max, 1.0).ln() as f32;
    let logprob = |token: usize| logits[token] - model_max - log_mass;

    let token = if params.has_penalties() && !history.is_empty() {
        let adjusted = penalised(logits, params, history);
        let best = argmax(&adjusted, "after penalties")?;
        draw(&adjusted, best, params, position)
    } else {
        draw(logits, best, params, position)
    };
    let mut top = Vec::new();
    if params.logprobs > 0 {
        let likeliest = largest(logits, params.logprobs as usize, f32::NEG_INFINITY);
        top.extend(likeliest.into_iter().map(|c| (c.id, logprob(c.id as usize))));
    }
    Ok(Sampled {
        token: token as u32,
        logprob: logprob(token),
        top,
    })
}

/// Index of the largest logit, the lowest on ties; refuses NaN, +inf and rows of nothing but -inf.
fn argmax(logits: &[f32], stage: &'static str) -> Result<usize, SampleError> {
    if logits.is_empty() {
        return Err(SampleError::Empty);
    }
    // One pass that compiles to vector code: is anything bad, and what is the largest value?
    let mut bad = false;
    let mut lanes = [f32::NEG_INFINITY; 16];
    let chunks = logits.chunks_exact(16);
    for &x in chunks.remainder() {
        bad |= x.is_nan() || x == f32::INFINITY;
        lanes[0] = if x > lanes[0] { x } else { lanes[0] };
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            bad |= x.is_nan() || x == f32::INFINITY;
            *lane = if x > *lane { x } else { *lane };
        }
    }
    if bad && let Some(token) = logits.iter().position(|x| x.is_nan() || *x == f32::INFINITY) {
        return Err(SampleError::NotFinite {
            token,
            value: logits[token],
            stage,
        });
    }
    let max = lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
    if max == f32::NEG_INFINITY {
        return Err(SampleError::AllMasked(logits.len()));
    }
    logits
        .iter()
        .position(|&x| x == max)
        .ok_or(SampleError::AllMasked(logits.len()))
}

/// Logits after the penalties.
fn penalised(logits: &[f32], params: &SamplerParams, history: &[u32]) -> Vec<f32> {
    let window = match params.penalty_window {
        0 => history,
        n => &history[history.len().saturating_sub(n as usize)..],
    };
    let mut counts = vec![0u32; logits.len()];
    for &token in window {
        if let Some(count) = counts.get_mut(token as usize) {
            *count += 1;
        }
    }
    let mut adjusted = logits.to_vec();
    for (x, &count) in adjusted.iter_mut().zip(&counts) {
        if count > 0 {
            let repetition = params.repetition_penalty;
            *x = if *x > 0.0 { *x / repetition } else { *x * repetition };
            *x -= count as f32 * params.frequency_penalty + params.presence_penalty;
        }
    }
    adjusted
}

/// A token that may still be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// Likelier first, then the lower id: a total order without equals.
fn by_rank(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    // `+ 0.0` makes -0 equal to 0.
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.id.cmp(&b.id))
}

/// Steps 2 to 6 on a row whose largest logit is at `best`.
fn draw(logits: &[f32], best: usize, params: &SamplerParams, position: u64) -> usize {
    if params.is_greedy() {
        return best;
    }
    let max = logits[best];
    let t = params.temperature;
    let scale = 1.0 / t;
    let u = uniform(params.seed, position);
    // min-p commutes with top-k, so it goes first: it is a threshold on the logits.
    let floor = if params.min_p > 0.0 {
        max + t * params.min_p.ln()
    } else {
        f32::NEG_INFINITY
    };
    let has_top_k = params.top_k > 0 && (params.top_k as usize) < logits.len();
    if !has_top_k && params.top_p >= 1.0 {
        return if params.min_p > 0.0 {
            let kept: Vec<Candidate> = above(logits, floor.min(max)).collect();
            pick(kept, max, scale, u, best)
        } else {
            pick_any(logits, max, scale, u, best)
        };
    }
    let floor = floor.min(max);
    let mut kept = if has_top_k {
        largest(logits, params.top_k as usize, floor)
    } else {
        nucleus_candidates(logits, floor, max, scale, params.top_p)
    };
    if params.top_p < 1.0 {
        let total = if has_top_k {
            kept.iter().map(|c| weight(c.logit, max, scale)).sum()
        } else {
            mass_above(logits, floor, max, scale)
        };
        kept.truncate(prefix_reaching(&kept, f64::from(params.top_p) * total, max, scale));
    }
    kept.sort_unstable_by_key(|c| c.id);
    pick(kept, max, scale, u, best)
}

/// Number of leading candidates whose mass reaches `goal`: at least one, all if it is never reached.
fn prefix_reaching(ranked: &[Candidate], goal: f64, max: f32, scale: f32) -> usize {
    let mut sum = 0.0;
    for (i, c) in ranked.iter().enumerate() {
        sum += weight(c.logit, max, scale);
        if sum >= goal {
            return i + 1;
        }
    }
    ranked.len()
}

/// Enough of the likeliest tokens to hold `top_p` of the mass, ranked: grows the selection instead of sorting all.
fn nucleus_candidates(logits: &[f32], floor: f32, max: f32, scale: f32, top_p: f32) -> Vec<Candidate> {
    let goal = f64::from(top_p) * mass_above(logits, floor, max, scale);
    let mut k = 256;
    loop {
        let ranked = largest(logits, k, floor);
        let sum: f64 = ranked.iter().map(|c| weight(c.logit, max, scale)).sum();
        if sum >= goal || ranked.len() < k {
            return ranked;
        }
        k = k.saturating_mul(8);
    }
}

/// Tokens with a logit of at least `floor` that are not masked, in order of id.
fn above(logits: &[f32], floor: f32) -> impl Iterator<Item = Candidate> + '_ {
    let candidates = logits
        .iter()
        .enumerate()
        .map(|(id, &logit)| Candidate { id: id as u32, logit });
    candidates.filter(move |c| c.logit >= floor && c.logit > f32::NEG_INFINITY)
}

/// The `k` likeliest tokens with a logit of at least `floor`, ranked.
fn largest(logits: &[f32], k: usize, floor: f32) -> Vec<Candidate> {
    let k = k.min(logits.len());
    if k == 0 {
        return Vec::new();
    }
    let limit = (k * 2).max(64);
    let mut kept: Vec<Candidate> = Vec::with_capacity(limit);
    let mut floor = floor;
    for (id, &logit) in logits.iter().enumerate() {
        if logit >= floor && logit > f32::NEG_INFINITY {
            kept.push(Candidate { id: id as u32, logit });
            if kept.len() == limit && limit > k {
                kept.select_nth_unstable_by(k - 1, by_rank);
                kept.truncate(k);
                floor = kept[k - 1].logit;
            }
        }
    }
    kept.sort_unstable_by(by_rank);
    kept.truncate(k);
    kept
}

/// Draws among `kept` (in order of id); `best` stands in if rounding leaves none.
fn pick(kept: Vec<Candidate>, max: f32, scale: f32, u: f64, best: usize) -> usize {
    let total: f64 = kept.iter().map(|c| weight(c.logit, max, scale)).sum();
    let goal = u * total;
    let mut sum = 0.0;
    let mut last = best;
    for c in &kept {
        let w = weight(c.logit, max, scale);
        if w > 0.0 {
            sum += w;
            last = c.id as usize;
            if sum > goal {
                break;
            }
        }
    }
    last
}

/// Draws among all tokens without copying them: block masses first, then the tokens of one block.
fn pick_any(logits: &[f32], max: f32, scale: f32, u: f64, best: usize) -> usize {
    const BLOCK: usize = 1024;
    let masses: Vec<f64> = logits.chunks(BLOCK).map(|block| mass(block, max, scale)).collect();
    let goal = u * masses.iter().sum::<f64>();
    let mut before = 0.0;
    let mut chosen = None;
    for (i, &m) in masses.iter().enumerate() {
        if m > 0.0 {
            chosen = Some((i, before));
            if before + m > goal {
                break;
            }
            before += m;
        }
    }
    let Some((block, before)) = chosen else { return best };
    let start = block * BLOCK;
    let end = (start + BLOCK).min(logits.len());
    let inside = Vec::from_iter(above(&logits[start..end], f32::NEG_INFINITY));
    let mut sum = before;
    let mut last = best;
    for c in inside {
        let w = weight(c.logit, max, scale);
        if w > 0.0 {
            sum += w;
            last = start + c.id as usize;
            if sum > goal {
                break;
            }
        }
    }
    last
}

/// Mass of a row, relative to a logit of `max`.
fn mass(logits: &[f32], max: f32, scale: f32) -> f64 {
    let mut lanes = [0f64; 8];
    let chunks = logits.chunks_exact(8);
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f64::from(exp((x - max) * scale));
    }
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(exp((x - max) * scale));
        }
    }
    lanes.iter().sum()
}

/// Mass of the tokens with a logit of at least `floor`.
fn mass_above(logits: &[f32], floor: f32, max: f32, scale: f32) -> f64 {
    if floor == f32::NEG_INFINITY {
        return mass(logits, max, scale);
    }
    above(logits, floor).map(|c| weight(c.logit, max, scale)).sum()
}

/// Mass of one token, relative to a logit of `max`.
fn weight(logit: f32, max: f32, scale: f32) -> f64 {
    f64::from(exp((logit - max) * scale))
}

/// e^x for x <= 0, to about 2 units in the last place; 0 below -87. No library call, no fused operations: the
/// result is the same bits everywhere, and the loop around it vectorises.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let value = p * r * r + r + 1.0;
    // The low bits of `shifted` hold n as an integer.
    let power = f32::from_bits((shifted.to_bits().wrapping_add(127)) << 23);
    if x >= -87.0 { value * power } else { 0.0 }
}

/// A number in [0, 1) with 53 random bits for this seed and position.
fn uniform(seed: u64, position: u64) -> f64 {
    let key = [seed as u32, (seed >> 32) as u32];
    let [a, b, ..] = philox4x32([position as u32, (position >> 32) as u32, 0, 0], key);
    let bits = (u64::from(b) << 32 | u64::from(a)) >> 11;
    bits as f64 * (1.0 / (1u64 << 53) as f64)
}

/// Philox4x32-10: ten rounds over a 128-bit counter with a 64-bit key.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(counter[0]) * 0xD251_1F53;
        let p1 = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
#[path = "sample_tests.rs"]
mod tests;
