//! What a step is told: the records that are uploaded, what is refused before, and the record that comes back.

use super::cx::{DevSampled, DevSampler, DevStep};
use super::prepared::SAMPLER;
use crate::ir::{ExecError, Op, Plan, SamplerParams, StepRequest};

/// Whether a plan can draw a token.
pub(super) fn samples(plan: &Plan) -> bool {
    plan.ops.iter().any(|o| matches!(o.op, Op::Sample { .. }))
}

/// Writes the records of a step of one sequence to the first [`IDS`] bytes; whether they ask for the token history, too.
pub(super) fn records(plan: &Plan, request: &StepRequest<'_>, mail: usize, block: &mut [u8]) -> bool {
    let draws = request.sampler.is_some() && samples(plan);
    let sampler = request.sampler.copied().unwrap_or_default();
    let penalties = draws && sampler.has_penalties();
    let step = DevStep {
        position: request.step.position,
        rng_counter: request.step.rng_counter,
        tokens: request.step.tokens,
        history: if penalties { request.history.len() as u32 } else { 0 },
        sample: u32::from(draws),
        mail: mail as u32,
    };
    block[..SAMPLER].copy_from_slice(bytemuck::bytes_of(&step));
    block[SAMPLER..SAMPLER + size_of::<DevSampler>()].copy_from_slice(bytemuck::bytes_of(&on_device(&sampler)));
    penalties
}

/// What a step drew.
pub(super) fn drawn(block: &[u8]) -> DevSampled {
    bytemuck::pod_read_unaligned(&block[..size_of::<DevSampled>()])
}

/// Sampler settings as kernels read them.
fn on_device(s: &SamplerParams) -> DevSampler {
    DevSampler {
        seed: s.seed,
        temperature: s.temperature,
        top_p: s.top_p,
        min_p: s.min_p,
        repetition_penalty: s.repetition_penalty,
        frequency_penalty: s.frequency_penalty,
        presence_penalty: s.presence_penalty,
        top_k: s.top_k,
        penalty_window: s.penalty_window,
    }
}

/// Refuses what a plan cannot run, before anything is launched.
pub(super) fn check(plan: &Plan, r: &StepRequest<'_>) -> Result<(), ExecError> {
    let tokens = r.step.tokens as usize;
    if tokens == 0 || tokens > plan.token_bucket || r.ids.len() != tokens {
        return Err(ExecError::Mismatch {
            what: "step",
            detail: format!(
                "{tokens} tokens, {} ids, the plan takes 1 to {}",
                r.ids.len(),
                plan.token_bucket
            ),
        });
    }
    let full = |capacity: usize| ExecError::ContextFull {
        needed: r.step.context(),
        capacity: capacity as u64,
    };
    if r.step.context() > plan.context_bucket as u64 || r.history.len() > plan.context_bucket {
        return Err(full(plan.context_bucket));
    }
    for base in &plan.ops {
        match &base.op {
            Op::Embed { table, .. } => {
                let vocab = plan.weight(*table).rows;
                if let Some(&id) = r.ids.iter().find(|&&id| id as usize >= vocab) {
                    return Err(ExecError::TokenRange { id, vocab });
                }
            }
            Op::EmbedPosition { table, .. } if r.step.context() > plan.weight(*table).rows as u64 => {
                return Err(full(plan.weight(*table).rows));
            }
            _ => {}
        }
    }
    if let Some(s) = r.sampler {
        s.validate().map_err(ExecError::Sample)?;
    }
    Ok(())
}
