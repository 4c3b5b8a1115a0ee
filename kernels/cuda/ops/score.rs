//! Launch of `attend_score.cu`.

use bytemuck::{Pod, Zeroable};

use super::args::launch;
use super::attend::{AttendArgs, THREADS};
use crate::cuda::cx::LaunchCx;
use crate::ir::{ExecError, SCORE_OPS, ScoreOp, ScoreProgram};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ScoreArgs {
    attend: AttendArgs,
    ops: [u32; SCORE_OPS],
    values: [f32; SCORE_OPS],
    count: u32,
    pad: u32,
}

/// Number of an instruction in `attend_score.cu`.
fn code(op: ScoreOp) -> u32 {
    match op {
        ScoreOp::Const(_) => 0,
        ScoreOp::Infinity => 1,
        ScoreOp::Query => 2,
        ScoreOp::Key => 3,
        ScoreOp::Head => 4,
        ScoreOp::Score => 5,
        ScoreOp::Neg => 6,
        ScoreOp::Not => 7,
        ScoreOp::Abs => 8,
        ScoreOp::Exp => 9,
        ScoreOp::Log => 10,
        ScoreOp::Sqrt => 11,
        ScoreOp::Floor => 12,
        ScoreOp::Tanh => 13,
        ScoreOp::Add => 14,
        ScoreOp::Sub => 15,
        ScoreOp::Mul => 16,
        ScoreOp::Div => 17,
        ScoreOp::Mod => 18,
        ScoreOp::Pow => 19,
        ScoreOp::Min => 20,
        ScoreOp::Max => 21,
        ScoreOp::Less => 22,
        ScoreOp::LessEqual => 23,
        ScoreOp::Equal => 24,
        ScoreOp::And => 25,
        ScoreOp::Or => 26,
        ScoreOp::If => 27,
    }
}

pub(super) fn attend(
    cx: &LaunchCx<'_>,
    program: &ScoreProgram,
    attend: &AttendArgs,
    grid: [usize; 3],
    shared: usize,
) -> Result<(), ExecError> {
    let mut args = ScoreArgs::zeroed();
    args.attend = *attend;
    args.count = program.ops().len() as u32;
    for ((code_at, value), op) in args.ops.iter_mut().zip(&mut args.values).zip(program.ops()) {
        *code_at = code(*op);
        if let ScoreOp::Const(v) = op {
            *value = *v;
        }
    }
    launch(cx, "attend_score", grid, THREADS, shared, &args)
}
