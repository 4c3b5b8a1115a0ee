//! Runs score expressions, 64 keys at a time.

use crate::ir::{SCORE_DEPTH, ScoreOp, ScoreProgram};

const LANES: usize = 64;

type Lanes = [f32; LANES];

/// Replaces every score by what the program makes of it; `key` gives the position of the i-th key. What is not a finite
/// number becomes -inf.
pub fn rescore(program: &ScoreProgram, scores: &mut [f32], (query, head): (f32, f32), key: impl Fn(usize) -> f32) {
    let mut stack = [[0.0; LANES]; SCORE_DEPTH + 1];
    for (chunk, part) in scores.chunks_mut(LANES).enumerate() {
        let mut given: Lanes = [0.0; LANES];
        given[..part.len()].copy_from_slice(part);
        let mut depth = 0;
        for op in program.ops() {
            // A program is checked when it is made: the stack never runs dry nor over.
            let base = depth - op.takes();
            match op {
                ScoreOp::Const(v) => stack[base] = [*v; LANES],
                ScoreOp::Infinity => stack[base] = [f32::INFINITY; LANES],
                ScoreOp::Query => stack[base] = [query; LANES],
                ScoreOp::Head => stack[base] = [head; LANES],
                ScoreOp::Score => stack[base] = given,
                ScoreOp::Key => {
                    let at = |i: usize| key(chunk * LANES + i.min(part.len() - 1));
                    stack[base] = std::array::from_fn(at);
                }
                op => {
                    let (a, rest) = stack[base..].split_at_mut(1);
                    apply(*op, &mut a[0], &rest[0], rest.get(1));
                }
            }
            depth = base + 1;
        }
        for (s, v) in part.iter_mut().zip(&stack[0]) {
            *s = if v.is_finite() { *v } else { f32::NEG_INFINITY };
        }
    }
}

fn apply(op: ScoreOp, a: &mut Lanes, b: &Lanes, c: Option<&Lanes>) {
    let truth = |t: bool| f32::from(u8::from(t));
    let two = |a: &mut Lanes, f: fn(f32, f32) -> f32| a.iter_mut().zip(b).for_each(|(a, b)| *a = f(*a, *b));
    let one = |a: &mut Lanes, f: fn(f32) -> f32| a.iter_mut().for_each(|a| *a = f(*a));
    match op {
        ScoreOp::Neg => one(a, |a| -a),
        ScoreOp::Not => one(a, |a| f32::from(u8::from(a == 0.0))),
        ScoreOp::Abs => one(a, f32::abs),
        ScoreOp::Exp => one(a, f32::exp),
        ScoreOp::Log => one(a, f32::ln),
        ScoreOp::Sqrt => one(a, f32::sqrt),
        ScoreOp::Floor => one(a, f32::floor),
        ScoreOp::Tanh => one(a, f32::tanh),
        ScoreOp::Add => two(a, |a, b| a + b),
        ScoreOp::Sub => two(a, |a, b| a - b),
        ScoreOp::Mul => two(a, |a, b| a * b),
        ScoreOp::Div => two(a, |a, b| a / b),
        ScoreOp::Mod => two(a, |a, b| a % b),
        ScoreOp::Pow => two(a, f32::powf),
        ScoreOp::Min => two(a, f32::min),
        ScoreOp::Max => two(a, f32::max),
        ScoreOp::Less => a.iter_mut().zip(b).for_each(|(a, b)| *a = truth(*a < *b)),
        ScoreOp::LessEqual => a.iter_mut().zip(b).for_each(|(a, b)| *a = truth(*a <= *b)),
        ScoreOp::Equal => a.iter_mut().zip(b).for_each(|(a, b)| *a = truth(*a == *b)),
        ScoreOp::And => a
            .iter_mut()
            .zip(b)
            .for_each(|(a, b)| *a = truth(*a != 0.0 && *b != 0.0)),
        ScoreOp::Or => a
            .iter_mut()
            .zip(b)
            .for_each(|(a, b)| *a = truth(*a != 0.0 || *b != 0.0)),
        ScoreOp::If => {
            for (i, a) in a.iter_mut().enumerate() {
                *a = if *a != 0.0 { b[i] } else { c.map_or(0.0, |c| c[i]) };
            }
        }
        ScoreOp::Const(_) | ScoreOp::Infinity | ScoreOp::Query | ScoreOp::Key | ScoreOp::Head | ScoreOp::Score => {}
    }
}
