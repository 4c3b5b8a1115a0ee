//! Score expressions: small programs for a stack machine that attention runs on every score before its softmax.

use serde::{Deserialize, Serialize};

/// Most instructions of a program.
pub const SCORE_OPS: usize = 64;
/// Most values on the stack.
pub const SCORE_DEPTH: usize = 16;

/// One instruction. Values are f32; 0 is false, everything else true; comparisons give 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreOp {
    /// Pushes a finite number.
    Const(f32),
    /// Pushes infinity.
    Infinity,
    /// Pushes the position of the query.
    Query,
    /// Pushes the position of the key; of a compressed row, that of the first token of its own block.
    Key,
    /// Pushes the number of the query head.
    Head,
    /// Pushes the score: scale * (q . k).
    Score,
    /// -a
    Neg,
    /// 1 if a is 0, else 0
    Not,
    /// |a|
    Abs,
    /// e^a
    Exp,
    /// Natural logarithm.
    Log,
    /// Square root.
    Sqrt,
    /// Largest whole number that is not larger.
    Floor,
    /// Hyperbolic tangent.
    Tanh,
    /// a + b
    Add,
    /// a - b
    Sub,
    /// a * b
    Mul,
    /// a / b
    Div,
    /// What is left of a after whole multiples of b, with a's sign.
    Mod,
    /// a to the power of b.
    Pow,
    /// The smaller one.
    Min,
    /// The larger one.
    Max,
    /// a < b
    Less,
    /// a <= b
    LessEqual,
    /// a == b
    Equal,
    /// Both are true.
    And,
    /// One of both is true.
    Or,
    /// b if a is true, else c.
    If,
}

impl ScoreOp {
    /// Values taken from the stack; one is put back.
    pub const fn takes(self) -> usize {
        match self {
            Self::Const(_) | Self::Infinity | Self::Query | Self::Key | Self::Head | Self::Score => 0,
            Self::Neg | Self::Not | Self::Abs | Self::Exp | Self::Log | Self::Sqrt | Self::Floor | Self::Tanh => 1,
            Self::If => 3,
            _ => 2,
        }
    }
}

/// A program that leaves one value, within the limits. What is not a finite number leaves the key out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<ScoreOp>", into = "Vec<ScoreOp>")]
pub struct ScoreProgram(Vec<ScoreOp>);

impl ScoreProgram {
    /// The instructions.
    pub fn ops(&self) -> &[ScoreOp] {
        &self.0
    }
}

impl From<ScoreProgram> for Vec<ScoreOp> {
    fn from(p: ScoreProgram) -> Self {
        p.0
    }
}

impl TryFrom<Vec<ScoreOp>> for ScoreProgram {
    type Error = String;

    fn try_from(ops: Vec<ScoreOp>) -> Result<Self, String> {
        if ops.len() > SCORE_OPS {
            return Err(format!(
                "the expression takes {} instructions, accepted: at most {SCORE_OPS}",
                ops.len()
            ));
        }
        let mut depth = 0;
        for op in &ops {
            if depth < op.takes() {
                return Err("the program takes values that are not there".into());
            }
            depth = depth - op.takes() + 1;
            if depth > SCORE_DEPTH {
                return Err(format!(
                    "the expression is nested too deeply: accepted are {SCORE_DEPTH} values at once"
                ));
            }
            if matches!(op, ScoreOp::Const(v) if !v.is_finite()) {
                return Err("a constant is no finite number".into());
            }
        }
        match depth {
            1 => Ok(Self(ops)),
            _ => Err(format!("the program leaves {depth} values, accepted: 1")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_programs_are_accepted() {
        use ScoreOp::*;
        let good = vec![Score, Query, Key, Sub, Const(0.1), Mul, Sub];
        let program = ScoreProgram::try_from(good.clone()).unwrap();
        assert_eq!(program.ops(), good);
        assert_eq!(Vec::from(program), good);
        for wrong in [
            vec![],
            vec![Score, Score],
            vec![Add],
            vec![Score, Add],
            vec![Score, Score, If],
            vec![Const(f32::NAN)],
            vec![Score; SCORE_DEPTH + 1],
            [vec![Score], vec![Neg; SCORE_OPS]].concat(),
        ] {
            assert!(ScoreProgram::try_from(wrong.clone()).is_err(), "{wrong:?}");
        }
    }
}
