//! Workspace buffers of a step, and disjoint mutable access to them from several threads.

use std::marker::PhantomData;

use crate::ir::{BufId, ElemType, ExecError, Plan};

/// Buffers by plan id; sized once per plan, reused from step to step.
#[derive(Default)]
pub struct Workspace {
    plan: Option<u64>,
    bucket: (usize, usize, bool),
    floats: Vec<Vec<f32>>,
    ints: Vec<Vec<i32>>,
}

impl Workspace {
    /// Sizes the buffers for a plan.
    pub fn prepare(&mut self, plan: &Plan) -> Result<(), ExecError> {
        let bucket = (plan.token_bucket, plan.context_bucket, plan.all_logits);
        if self.plan == Some(plan.hash) && self.bucket == bucket && self.floats.len() == plan.buffers.len() {
            return Ok(());
        }
        self.floats.resize_with(plan.buffers.len(), Vec::new);
        self.ints.resize_with(plan.buffers.len(), Vec::new);
        for (i, b) in plan.buffers.iter().enumerate() {
            let n = plan.buffer_len(BufId(i as u32));
            // Never shrunk: decode and prefill plans take turns on the same session.
            match b.elem {
                ElemType::F32 => grow(&mut self.floats[i], n, 0.0)?,
                ElemType::I32 => grow(&mut self.ints[i], n, -1)?,
            }
        }
        self.plan = Some(plan.hash);
        self.bucket = bucket;
        Ok(())
    }

    /// Reads a buffer.
    pub fn get(&self, id: BufId) -> &[f32] {
        &self.floats[id.index()]
    }

    /// Writes a buffer.
    pub fn get_mut(&mut self, id: BufId) -> &mut Vec<f32> {
        &mut self.floats[id.index()]
    }

    /// Takes a buffer out, so that others can be read while it is written. Put it back with [`Workspace::put`].
    pub fn take(&mut self, id: BufId) -> Vec<f32> {
        std::mem::take(&mut self.floats[id.index()])
    }

    /// Puts a buffer back.
    pub fn put(&mut self, id: BufId, buffer: Vec<f32>) {
        self.floats[id.index()] = buffer;
    }

    /// Reads an integer buffer.
    pub fn ints(&self, id: BufId) -> &[i32] {
        &self.ints[id.index()]
    }

    /// Writes an integer buffer.
    pub fn ints_mut(&mut self, id: BufId) -> &mut Vec<i32> {
        &mut self.ints[id.index()]
    }
}

fn grow<T: Copy>(buffer: &mut Vec<T>, len: usize, value: T) -> Result<(), ExecError> {
    if buffer.len() < len {
        let more = len - buffer.len();
        buffer.try_reserve_exact(more).map_err(|_| ExecError::OutOfMemory {
            what: "the activations of a step".into(),
            bytes: (len * size_of::<T>()) as u64,
        })?;
        buffer.resize(len, value);
    }
    Ok(())
}

/// A mutable slice that several tasks write disjoint parts of.
pub struct Shared<'a, T> {
    ptr: *mut T,
    len: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `part`, whose callers promise disjoint ranges; T is plain data.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T: Copy> Shared<'a, T> {
    /// Shares a slice for the length of one parallel region.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self {
            ptr: slice.as_mut_ptr(),
            len: slice.len(),
            _borrow: PhantomData,
        }
    }

    /// The part `start .. start + len`; empty if out of range.
    ///
    /// # Safety
    /// No two live parts may overlap.
    #[expect(
        clippy::mut_from_ref,
        reason = "this is the point of the type; the contract is above"
    )]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        if start.checked_add(len).is_none_or(|end| end > self.len) {
            return &mut [];
        }
        // SAFETY: in range by the check, disjoint by the caller's promise, alive by the borrow.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}
