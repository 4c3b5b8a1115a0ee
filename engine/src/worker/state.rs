//! A session's cache in the process, as this end sees it.

use std::any::Any;
use std::collections::HashMap;
use std::sync::{Arc, MutexGuard};

use kernels::ir::{CacheDesc, CacheId, ExecError, KvBytes, Op, Plan, Snapshot, State, WeightId, WeightSource};
use serde_bytes::ByteBuf;

use super::frames::{self, Answer, Call};
use super::remote::{Inner, Remote, astray};

/// What tells plans of one state apart: what the hash covers, the bucket, and the probes, which it does not cover.
pub(super) type PlanKey = (u64, usize, usize, usize, bool, usize, Vec<String>);

/// What plans that are the same for a state have in common.
pub(super) fn key(plan: &Plan) -> PlanKey {
    let probes = plan.ops.iter().filter_map(|o| match &o.op {
        Op::Probe { name, .. } => Some(name.clone()),
        _ => None,
    });
    (
        plan.hash,
        plan.ops.len(),
        plan.token_bucket,
        plan.context_bucket,
        plan.all_logits,
        plan.weights.len(),
        probes.collect(),
    )
}

/// A session's cache in the process.
pub(super) struct RemoteState {
    remote: Remote,
    pub number: u64,
    pub generation: u64,
    caches: Vec<CacheDesc>,
    /// Bytes allocated per layer.
    pub allocated: Vec<KvBytes>,
    /// Tokens of the last step's history that the process holds.
    pub history: Vec<u32>,
    plans: HashMap<PlanKey, u64>,
    sent: u64,
}

impl RemoteState {
    /// A state of this number in the process of this generation.
    pub fn new(
        remote: Remote,
        (number, generation): (u64, u64),
        caches: &[CacheDesc],
        allocated: Vec<KvBytes>,
    ) -> Self {
        Self {
            remote,
            number,
            generation,
            caches: caches.to_vec(),
            allocated,
            history: Vec::new(),
            plans: HashMap::new(),
            sent: 0,
        }
    }

    /// The process that holds it.
    fn there(&self) -> Result<MutexGuard<'_, Inner>, ExecError> {
        let mut inner = self.remote.inner();
        self.remote.bury(&mut inner);
        if inner.process.is_none() || inner.generation != self.generation {
            return Err(self.remote.lost(&inner.ended));
        }
        Ok(inner)
    }

    fn ask(&self, call: &Call) -> Result<Answer, ExecError> {
        self.remote.ask(&mut *self.there()?, call)
    }

    fn done(&mut self, call: &Call) -> Result<(), ExecError> {
        match self.ask(call)? {
            Answer::Done(allocated) => {
                if let Some(a) = allocated {
                    self.allocated = a;
                }
                Ok(())
            }
            _ => Err(astray()),
        }
    }

    /// Number of a plan, sent if it was not.
    pub fn plan(&mut self, inner: &mut Inner, plan: &Plan, weights: &dyn WeightSource) -> Result<u64, ExecError> {
        let key = key(plan);
        if let Some(&number) = self.plans.get(&key) {
            return Ok(number);
        }
        let cbor = frames::plan_to_cbor(plan)?;
        let ids = (0..plan.weights.len() as u32).map(WeightId);
        let made = ids.filter_map(|id| Some((id.0, weights.made_from(id)?.0))).collect();
        self.sent += 1;
        let call = Call::Plan {
            state: self.number,
            number: self.sent,
            cbor: ByteBuf::from(cbor),
            made,
        };
        if let Some(process) = &mut inner.process {
            // One that is gone is noticed by the step.
            let _ = process.send(&call);
        }
        self.plans.insert(key, self.sent);
        Ok(self.sent)
    }
}

impl Drop for RemoteState {
    fn drop(&mut self) {
        tell(&self.remote, self.generation, &Call::DropState(self.number));
    }
}

/// Tells the process of a generation what is not answered. One that is gone holds nothing.
fn tell(remote: &Remote, generation: u64, call: &Call) {
    let mut inner = remote.inner();
    if inner.generation == generation
        && let Some(process) = &mut inner.process
    {
        let _ = process.send(call);
    }
}

/// What the process keeps of a state at a position: none of it comes over here.
struct RemoteKept {
    remote: Remote,
    number: u64,
    generation: u64,
}

impl Drop for RemoteKept {
    fn drop(&mut self) {
        tell(&self.remote, self.generation, &Call::Forget(self.number));
    }
}

impl State for RemoteState {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn caches(&self) -> &[CacheDesc] {
        &self.caches
    }

    fn reserve(&mut self, _context: u64) -> Result<(), ExecError> {
        // Every step makes its own room there: one question less per token.
        Ok(())
    }

    fn expect(&mut self, context: u64) -> Result<(), ExecError> {
        let state = self.number;
        self.done(&Call::Expect { state, context })
    }

    fn snapshot(&self, position: u64) -> Result<Snapshot, ExecError> {
        let mut inner = self.there()?;
        let number = inner.number();
        let call = Call::Snapshot {
            state: self.number,
            number,
            position,
        };
        let Answer::Kept(bytes) = self.remote.ask(&mut inner, &call)? else {
            return Err(astray());
        };
        drop(inner);
        let kept = RemoteKept {
            remote: self.remote.clone(),
            number,
            generation: self.generation,
        };
        Ok(Snapshot {
            position,
            bytes,
            kept: Arc::new(kept),
        })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ExecError> {
        let kept = snapshot.kept.downcast_ref::<RemoteKept>();
        let Some(kept) = kept.filter(|k| k.generation == self.generation) else {
            return Err(ExecError::Mismatch {
                what: "snapshot",
                detail: "made by another backend or process".into(),
            });
        };
        self.history.clear();
        self.done(&Call::Restore {
            state: self.number,
            number: kept.number,
        })
    }

    fn reformat(&mut self, cache: CacheId, desc: CacheDesc, position: u64) -> Result<(), ExecError> {
        self.plans.clear();
        self.done(&Call::Reformat {
            state: self.number,
            cache: cache.0,
            desc: desc.clone(),
            position,
        })?;
        if let Some(c) = self.caches.get_mut(cache.index()) {
            *c = desc;
        }
        Ok(())
    }

    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError> {
        let call = Call::ReadRows {
            state: self.number,
            cache: cache.0,
            first: first as u64,
            count: count as u64,
        };
        match self.ask(&call)? {
            Answer::Rows(rows) => Ok(rows),
            _ => Err(astray()),
        }
    }

    fn fork(&self, position: u64) -> Result<Box<dyn State>, ExecError> {
        let state = self.number;
        let call = |new| Call::Fork { state, new, position };
        self.remote.state(&mut *self.there()?, &self.caches, &call)
    }

    fn kv_bytes(&self, context: u64) -> Vec<(KvBytes, KvBytes)> {
        let layers = self.caches.iter().map(|d| d.layer as usize + 1).max().unwrap_or(0);
        let mut out = vec![(KvBytes::default(), KvBytes::default()); layers];
        for d in &self.caches {
            if let Some(slot) = out.get_mut(d.layer as usize) {
                slot.0.add(&d.kv_bytes(d.used_rows(context)));
            }
        }
        for (slot, allocated) in out.iter_mut().zip(&self.allocated) {
            slot.1 = *allocated;
        }
        out
    }

    fn is_lost(&self) -> bool {
        let mut inner = self.remote.inner();
        self.remote.bury(&mut inner);
        inner.process.is_none() || inner.generation != self.generation
    }
}
