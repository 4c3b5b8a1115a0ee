//! Weights in device memory: uploaded once, bytes as stored or as [planes](super::planes), shared by all plans.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::device::{DevPtr, Device};
use super::memory::Mem;
use super::planes;
use crate::cpu::integer;
use crate::ir::{ExecError, Format, Op, Plan, WeightId, WeightSource, WeightView};

/// Where a weight's bytes lie in host memory, and a few of them: an address alone may be used again.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    address: usize,
    bytes: usize,
    sample: u64,
}

impl Key {
    fn of(view: &WeightView<'_>) -> Self {
        let mut h = DefaultHasher::new();
        (&view.desc.name, view.desc.format, view.desc.rows, view.scales.len()).hash(&mut h);
        for part in [view.data, view.scales] {
            let step = (part.len() / 64).max(1);
            part.iter().step_by(step).for_each(|b| b.hash(&mut h));
        }
        Self {
            address: view.data.as_ptr() as usize,
            bytes: view.data.len(),
            sample: h.finish(),
        }
    }
}

/// Device copies of weights.
pub struct Weights {
    device: Arc<dyn Device>,
    known: Mutex<Known>,
}

struct Known {
    /// Elements and scales.
    weights: HashMap<Key, (Mem, Mem)>,
    /// Where blocks of GGUF files wait to be taken apart.
    stage: Mem,
}

impl Weights {
    /// None yet.
    pub fn new(device: &Arc<dyn Device>) -> Self {
        Self {
            device: device.clone(),
            known: Mutex::new(Known {
                weights: HashMap::new(),
                stage: Mem::none(device),
            }),
        }
    }

    /// Bytes uploaded so far.
    pub fn bytes(&self) -> u64 {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.weights.values().map(|(d, s)| (d.len() + s.len()) as u64).sum()
    }

    /// (elements, scales) of every weight the plan's ops use, by id; 0 for the others. Uploads what is missing.
    pub fn of_plan(&self, plan: &Plan, source: &dyn WeightSource) -> Result<Vec<(DevPtr, DevPtr)>, ExecError> {
        let mut out = vec![(0, 0); plan.weights.len()];
        for base in &plan.ops {
            for id in weights_of(&base.op) {
                if out[id.index()].0 == 0 {
                    out[id.index()] = self.one(id, source)?;
                }
            }
            vectors_are_plain(plan, &base.op)?;
            self.check_table(plan, &base.op, source)?;
        }
        Ok(out)
    }

    fn one(&self, id: WeightId, source: &dyn WeightSource) -> Result<(DevPtr, DevPtr), ExecError> {
        let view = source.weight(id)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Known { weights, stage } = &mut *known;
        let slot = match weights.entry(Key::of(&view)) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => {
                view.check().map_err(|detail| ExecError::Mismatch {
                    what: "weights",
                    detail: format!("`{}`: {detail}", view.desc.name),
                })?;
                let what = format!("weight `{}`", view.desc.name);
                e.insert(match planes::of(view.desc.format) {
                    Some(p) => planes::upload(&self.device, p, &view, stage, &what)?,
                    None => (
                        Mem::of(&self.device, view.data, &what)?,
                        Mem::of(&self.device, view.scales, &what)?,
                    ),
                })
            }
        };
        Ok((slot.0.ptr(), slot.1.ptr()))
    }

    /// Routing tables are read by kernels without a check, so their entries are checked here.
    fn check_table(&self, plan: &Plan, op: &Op, source: &dyn WeightSource) -> Result<(), ExecError> {
        let Op::Route {
            table: Some(id),
            logits,
            ..
        } = op
        else {
            return Ok(());
        };
        let (view, experts) = (source.weight(*id)?, plan.width(*logits) as i64);
        let (rows, k) = (view.desc.rows, view.desc.cols);
        match (0..rows * k).find(|&i| !integer(&view, i).is_some_and(|e| (0..experts).contains(&e))) {
            None => Ok(()),
            Some(i) => Err(ExecError::Mismatch {
                what: "weights",
                detail: format!(
                    "`{}`: row {} names an expert outside 0..{experts}",
                    view.desc.name,
                    i / k.max(1)
                ),
            }),
        }
    }
}

/// Refuses small weights (norms, biases, sinks) in formats that kernels do not read (`vector_at` in `src/weights.cuh`).
fn vectors_are_plain(plan: &Plan, op: &Op) -> Result<(), ExecError> {
    let vectors = match op {
        Op::Norm { weight, bias, .. } => vec![*weight, *bias],
        Op::MatMul { bias, .. } => vec![*bias],
        Op::Attend { sinks, .. } => vec![*sinks],
        Op::Route { bias, .. } => vec![*bias],
        Op::Pool { ape, .. } => vec![Some(*ape)],
        Op::HcMix { base, scale, .. } => vec![Some(*base), Some(*scale)],
        _ => Vec::new(),
    };
    for d in vectors.into_iter().flatten().map(|id| plan.weight(id)) {
        if !matches!(d.format, Format::F32 | Format::F16 | Format::Bf16) || d.scales.is_some() {
            return Err(ExecError::Unsupported {
                backend: "cuda",
                what: format!("`{}` stored as {} (f32, f16 and bf16 are read)", d.name, d.format),
            });
        }
    }
    Ok(())
}

/// The weights an op reads.
pub(super) fn weights_of(op: &Op) -> Vec<WeightId> {
    match op {
        Op::Embed { table, .. } | Op::EmbedPosition { table, .. } => vec![*table],
        Op::Norm { weight, bias, .. } => [*weight, *bias].into_iter().flatten().collect(),
        Op::MatMul { weight, bias, .. } => [Some(*weight), *bias].into_iter().flatten().collect(),
        Op::GroupedMatMul { weight, .. } => vec![*weight],
        Op::Pool { ape, .. } => vec![*ape],
        Op::Attend { sinks, .. } => sinks.iter().copied().collect(),
        Op::Route { bias, table, .. } => [*bias, *table].into_iter().flatten().collect(),
        Op::ExpertMatMul { weights, .. } => weights.clone(),
        Op::HcMix {
            matrix, base, scale, ..
        } => vec![*matrix, *base, *scale],
        Op::Rope { .. }
        | Op::CacheWrite { .. }
        | Op::Hadamard { .. }
        | Op::RoundTrip { .. }
        | Op::IndexScore { .. }
        | Op::SelectTopK { .. }
        | Op::Slice { .. }
        | Op::Add { .. }
        | Op::Glu { .. }
        | Op::Activate { .. }
        | Op::ZeroHeads { .. }
        | Op::TopP { .. }
        | Op::ExpertSum { .. }
        | Op::HcCollapse { .. }
        | Op::HcExpand { .. }
        | Op::TakeOutput { .. }
        | Op::Probe { .. }
        | Op::Sample { .. } => Vec::new(),
    }
}
