//! Weights in device memory: bytes as stored or as [planes](super::planes), one copy for all plans.
//!
//! A copy is *held* by every state whose latest plan reads it; all others are *spare*. Spare copies stay, so that going back
//! to an earlier recipe uploads nothing, until together they take more than the held ones ever took at once, or until memory
//! is wanted for something else: then the ones held longest ago are freed. A plan that was made ready earlier takes hold of
//! its copies again before it runs, and is made anew where one is gone ([`PlanCopies::hold`]): no captured graph runs over
//! memory that was freed.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::device::{DevPtr, Device};
use super::memory::Mem;
use super::planes;
use crate::cpu::integer;
use crate::ir::{ExecError, Format, Op, Plan, WeightId, WeightSource, WeightView};

/// Kept free beside spare copies, for captured graphs and loaded kernels; on small devices a 32nd of their memory.
const ROOM: u64 = 256 << 20;

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

/// A weight on the device.
struct Copy {
    data: Mem,
    scales: Mem,
}

impl Copy {
    fn bytes(&self) -> u64 {
        (self.data.len() + self.scales.len()) as u64
    }
}

/// Copies that are not freed while this is there.
#[derive(Default)]
pub struct Held(Vec<Arc<Copy>>);

/// The copies a plan reads.
pub struct PlanCopies(Vec<Weak<Copy>>);

impl PlanCopies {
    /// Takes hold of all of them; `None` if one was freed.
    pub fn hold(&self) -> Option<Held> {
        self.0.iter().map(Weak::upgrade).collect::<Option<_>>().map(Held)
    }
}

/// A plan's weights on the device.
pub struct PlanWeights {
    /// (elements, scales) by id; 0 for those its ops do not use.
    pub places: Vec<(DevPtr, DevPtr)>,
    /// The copies they lie in.
    pub copies: PlanCopies,
    /// The same, held.
    pub held: Held,
}

/// Device copies of weights.
pub struct Weights {
    device: Arc<dyn Device>,
    known: Mutex<Known>,
}

struct Known {
    weights: HashMap<Key, Entry>,
    /// Where blocks of GGUF files wait to be taken apart.
    stage: Mem,
    /// Counts the calls of [`Weights::settle`].
    now: u64,
    /// Most bytes held at once so far.
    most: u64,
}

struct Entry {
    copy: Arc<Copy>,
    /// When it was last found held.
    held: u64,
}

impl Entry {
    fn is_spare(&self) -> bool {
        Arc::strong_count(&self.copy) == 1
    }
}

impl Known {
    /// Bytes of held and of spare copies.
    fn bytes(&self) -> (u64, u64) {
        self.weights
            .values()
            .fold((0, 0), |(held, spare), e| match e.is_spare() {
                true => (held, spare + e.copy.bytes()),
                false => (held + e.copy.bytes(), spare),
            })
    }

    /// Frees spare copies, those held longest ago first, until `bytes` are free; returns how many are.
    fn free(&mut self, bytes: u64) -> u64 {
        let spare = self.weights.values().filter(|e| e.is_spare());
        let mut spare: Vec<(u64, u64)> = spare.map(|e| (e.held, e.copy.bytes())).collect();
        spare.sort_unstable();
        let mut freed = 0;
        // All that were held last at the same time go together: they belong to one recipe.
        let mut until = 0;
        for (held, n) in spare {
            if freed >= bytes && held > until {
                break;
            }
            (freed, until) = (freed + n, held);
        }
        if freed > 0 {
            self.weights.retain(|_, e| !e.is_spare() || e.held > until);
        }
        freed
    }
}

impl Weights {
    /// None yet.
    pub fn new(device: &Arc<dyn Device>) -> Self {
        Self {
            device: device.clone(),
            known: Mutex::new(Known {
                weights: HashMap::new(),
                stage: Mem::none(device),
                now: 0,
                most: 0,
            }),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of all copies.
    pub fn bytes(&self) -> u64 {
        let (held, spare) = self.known().bytes();
        held + spare
    }

    /// Bytes of copies that give way to whatever else wants memory.
    pub fn spare_bytes(&self) -> u64 {
        self.known().bytes().1
    }

    /// What `make` makes; where memory runs out, spare copies give way and it is tried again.
    ///
    /// # Errors
    /// Those of `make`; out of memory when there are no spare copies any more.
    pub fn or_free<T>(&self, mut make: impl FnMut() -> Result<T, ExecError>) -> Result<T, ExecError> {
        loop {
            match make() {
                Err(ExecError::OutOfMemory { bytes, .. }) if self.known().free(bytes) > 0 => {}
                made => return made,
            }
        }
    }

    /// To be called when a state has taken hold of another plan's copies: notes what is held, and frees what is too much.
    ///
    /// # Errors
    /// A device that fails.
    pub fn settle(&self) -> Result<(), ExecError> {
        let mut known = self.known();
        known.now += 1;
        let now = known.now;
        let held = known.weights.values_mut().filter(|e| !e.is_spare());
        held.for_each(|e| e.held = now);
        let (held, spare) = known.bytes();
        known.most = known.most.max(held);
        if spare == 0 {
            return Ok(());
        }
        let (free, total) = self.device.memory()?;
        let wanted = spare
            .saturating_sub(known.most)
            .max(ROOM.min(total / 32).saturating_sub(free));
        if wanted > 0 {
            known.free(wanted);
        }
        Ok(())
    }

    /// The weights that a plan's ops use. Uploads what is missing.
    ///
    /// # Errors
    /// Weights that do not fit the plan, or the device.
    pub fn of_plan(&self, plan: &Plan, source: &dyn WeightSource) -> Result<PlanWeights, ExecError> {
        let mut ids: Vec<WeightId> = plan.ops.iter().flat_map(|o| weights_of(&o.op)).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut places = vec![(0, 0); plan.weights.len()];
        let mut held = Held::default();
        // What is there is held before anything is uploaded, for which spare copies may have to give way.
        for upload in [false, true] {
            for id in &ids {
                if places[id.index()].0 != 0 {
                    continue;
                }
                let view = source.weight(*id)?;
                let there = self.known().weights.get(&Key::of(&view)).map(|e| e.copy.clone());
                let copy = match there {
                    Some(copy) => copy,
                    None if upload => self.upload(&view)?,
                    None => continue,
                };
                places[id.index()] = (copy.data.ptr(), copy.scales.ptr());
                held.0.push(copy);
            }
        }
        for base in &plan.ops {
            vectors_are_plain(plan, &base.op)?;
            self.check_table(plan, &base.op, source)?;
        }
        // All blocks of GGUF files are taken apart.
        self.known().stage = Mem::none(&self.device);
        let copies = PlanCopies(held.0.iter().map(Arc::downgrade).collect());
        Ok(PlanWeights { places, copies, held })
    }

    fn upload(&self, view: &WeightView<'_>) -> Result<Arc<Copy>, ExecError> {
        view.check().map_err(|detail| ExecError::Mismatch {
            what: "weights",
            detail: format!("`{}`: {detail}", view.desc.name),
        })?;
        let what = format!("weight `{}`", view.desc.name);
        let (data, scales) = self.or_free(|| match planes::of(view.desc.format) {
            Some(p) => planes::upload(&self.device, p, view, &mut self.known().stage, &what),
            None => Ok((
                Mem::of(&self.device, view.data, &what)?,
                Mem::of(&self.device, view.scales, &what)?,
            )),
        })?;
        let copy = Arc::new(Copy { data, scales });
        let entry = Entry {
            copy: copy.clone(),
            held: 0,
        };
        self.known().weights.insert(Key::of(view), entry);
        Ok(copy)
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
