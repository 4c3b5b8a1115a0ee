//! What a launch of an op gets: the plan and, for everything it names, the place in device memory. Records that kernels
//! read are mirrored in `src/step.cuh`, with sizes and offsets checked on both sides.

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};

use super::device::{Arg, DevPtr, Device, Launch};
use super::ops::Group;
use super::schedule::{FEW, Place, touched};
use crate::ir::{
    BufId, CacheDesc, CacheFormat, CacheId, CacheRows, Dim, ElemType, ExecError, Format, OpId, Plan, Positions, RopeId,
    ScaleFormat, WeightDesc, WeightId,
};

/// What changes from step to step; the one record a captured graph reads. `StepParams` on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct DevStep {
    /// Absolute position of the step's first token.
    pub position: u64,
    /// Position of the token to be drawn.
    pub rng_counter: u64,
    /// Tokens in the step, 1 to the bucket.
    pub tokens: u32,
    /// Tokens in `history`, 0 where no penalty is asked for.
    pub history: u32,
    /// 1 when a token is to be drawn.
    pub sample: u32,
    /// Which of the state's [`MAILS`](super::mail::MAILS) the answer of a step of one token goes to.
    pub mail: u32,
}

/// Settings of the sample op, as [`crate::ir::SamplerParams`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct DevSampler {
    /// Key of the random number generator.
    pub seed: u64,
    /// Divides the logits; below 1e-5 greedy.
    pub temperature: f32,
    /// Mass kept; 1 = all.
    pub top_p: f32,
    /// Least probability relative to the likeliest token; 0 = all.
    pub min_p: f32,
    /// 1 = off.
    pub repetition_penalty: f32,
    /// 0 = off.
    pub frequency_penalty: f32,
    /// 0 = off.
    pub presence_penalty: f32,
    /// Tokens kept; 0 = all.
    pub top_k: u32,
    /// Latest tokens the penalties look at; 0 = all.
    pub penalty_window: u32,
}

/// Answer of the sample op.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct DevSampled {
    /// Token drawn.
    pub token: u32,
    /// 0 = drawn; anything else: the host looks at the logits and says what is wrong, or draws itself.
    pub status: u32,
    /// Natural log of the model's probability of `token`.
    pub logprob: f32,
    /// Zero.
    pub pad: u32,
}

/// What storing one cache row did to its values; written by `CacheWrite`, one per row of the step and without atomics.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct DevRowStats {
    /// Sum of squared differences between values and what decoding gives back (finite values, quantised part only).
    pub sum_sq_err: f32,
    /// Sum of squares of the same values.
    pub sum_sq: f32,
    /// Values that were clamped, infinite or NaN.
    pub saturated: u32,
    /// Values other than zero that became zero.
    pub flushed: u32,
}

/// An expert's matrix in a table on the device.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct DevExpert {
    /// Elements.
    pub data: DevPtr,
    /// Scales, 0 = none.
    pub scales: DevPtr,
}

/// A workspace buffer on the device: `[rows, width]` of f32 or i32.
#[derive(Clone, Copy, Debug)]
pub struct DevBuf {
    /// First element.
    pub ptr: DevPtr,
    /// Rows in the plan's bucket: upper bound of what a step has. Grids are made from it.
    pub rows: usize,
    /// Values per row.
    pub width: usize,
    /// Element type.
    pub elem: ElemType,
    /// How kernels find the rows of the step at hand, see [`rows_code`].
    pub code: u32,
}

/// A weight on the device: bytes as stored, or [planes](super::planes).
#[derive(Clone, Copy, Debug)]
pub struct DevWeight<'a> {
    /// Elements, aligned to 256 bytes.
    pub data: DevPtr,
    /// Scales, 0 = none.
    pub scales: DevPtr,
    /// What it is.
    pub desc: &'a WeightDesc,
}

/// A cache component on the device. Unlike in host memory, scales lie apart: record r of row i has its data at
/// `data + (i * records + r) * data_bytes` and its scales at `scales + (i * records + r) * scale_bytes`, so that data
/// can be read 16 bytes at a time.
#[derive(Clone, Copy, Debug)]
pub struct DevCache<'a> {
    /// Data bytes of all rows.
    pub data: DevPtr,
    /// Scale bytes of all rows (0 where the format has none).
    pub scales: DevPtr,
    /// Data bytes per record.
    pub data_bytes: usize,
    /// Scale bytes per record.
    pub scale_bytes: usize,
    /// Rows allocated. For rings this is the modulus of slots.
    pub rows: usize,
    /// What it is.
    pub desc: &'a CacheDesc,
}

impl DevCache<'_> {
    /// Modulus of ring slots, 0 for growing rows.
    pub fn ring(&self) -> u32 {
        match self.desc.rows {
            CacheRows::Growing { .. } => 0,
            CacheRows::Ring { capacity, .. } => capacity as u32,
        }
    }
}

/// Rotary frequencies on the device: f64, radians per position.
#[derive(Clone, Copy, Debug)]
pub struct DevRope {
    /// First frequency.
    pub freqs: DevPtr,
    /// Number of pairs.
    pub pairs: usize,
}

/// Counters a plan has for its kernels.
pub const ARRIVALS: usize = 1024;

/// A launch that was noted instead of enqueued.
#[derive(Clone, Debug, PartialEq)]
pub struct Noted {
    /// As in [`Launch`].
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: u32,
    /// Dynamic shared memory, bytes.
    pub shared: usize,
    /// Its parameter struct; empty if it has other arguments than one.
    pub args: Vec<u8>,
}

/// Everything the launches of one plan refer to. Addresses stay valid for as long as the captured graph does.
pub struct LaunchCx<'a> {
    /// Where to launch.
    pub device: &'a dyn Device,
    /// Where launches are noted instead, if they are.
    pub noted: Option<&'a RefCell<Vec<Noted>>>,
    /// The plan.
    pub plan: &'a Plan,
    /// [`DevStep`].
    pub step: DevPtr,
    /// Token ids of the step, u32 `[token bucket]`.
    pub ids: DevPtr,
    /// Tokens for penalties, u32 `[step.history]`.
    pub history: DevPtr,
    /// [`DevSampler`].
    pub sampler: DevPtr,
    /// [`DevSampled`].
    pub sampled: DevPtr,
    /// Working memory of [`super::ops::scratch_bytes`] (largest of all ops), shared by all ops of the plan.
    pub scratch: DevPtr,
    /// Working memory of [`super::ops::dense_bytes`].
    pub dense: DevPtr,
    /// Counters of blocks that have arrived, u32 [`ARRIVALS`], 0 between launches: for kernels whose last block does more.
    pub arrived: DevPtr,
    /// By [`BufId`].
    pub bufs: &'a [DevBuf],
    /// By [`WeightId`]; (data, scales), 0 where the plan's ops do not use it.
    pub weights: &'a [(DevPtr, DevPtr)],
    /// By [`CacheId`].
    pub caches: &'a [DevCache<'a>],
    /// By [`RopeId`].
    pub ropes: &'a [DevRope],
    /// By op: tables of [`DevExpert`] for `ExpertMatMul`, 0 elsewhere.
    pub experts: &'a [DevPtr],
    /// All groups of the plan, in the order of their launches.
    pub groups: &'a [Group],
    /// Which of them hold the launch after them ([`holds`](super::schedule::holds)).
    pub holds: &'a [bool],
    /// Whether weights may be kept in shared memory until their input is there.
    pub held: bool,
    /// The one at hand.
    pub group: usize,
    /// By op: where `CacheWrite` puts [`DevRowStats`] `[rows of src in the bucket]` and `Route` a copy of its i32
    /// `[tokens, k]` choices for telemetry; 0 elsewhere.
    pub stats: &'a [DevPtr],
}

impl<'a> LaunchCx<'a> {
    /// A buffer.
    pub fn buf(&self, id: BufId) -> DevBuf {
        self.bufs[id.index()]
    }

    /// A weight.
    pub fn weight(&self, id: WeightId) -> DevWeight<'a> {
        let (data, scales) = self.weights[id.index()];
        let desc = &self.plan.weights[id.index()];
        DevWeight { data, scales, desc }
    }

    /// A weight, or null pointers.
    pub fn optional(&self, id: Option<WeightId>) -> DevPtr {
        id.map_or(0, |w| self.weights[w.index()].0)
    }

    /// A cache component.
    pub fn cache(&self, id: CacheId) -> DevCache<'a> {
        self.caches[id.index()]
    }

    /// Whether what the step has in a buffer is there before the launch's predecessor has ended: a group in between has held
    /// the launch after it until all before had ended.
    pub fn settled(&self, id: BufId) -> bool {
        let place = Place::Buffer(id.index());
        let changes = |op: &OpId| touched(&self.plan.ops[op.index()].op).1.contains(&place);
        for before in (0..self.group).rev() {
            if self.groups[before].origin.iter().any(changes) {
                return false;
            }
            if self.holds[before] {
                return true;
            }
        }
        false
    }

    /// A rotary table.
    pub fn rope(&self, id: RopeId) -> DevRope {
        self.ropes[id.index()]
    }

    /// Enqueues a kernel.
    pub fn launch(
        &self,
        kernel: &'static str,
        grid: [usize; 3],
        block: usize,
        shared: usize,
        args: &[Arg<'_>],
    ) -> Result<(), ExecError> {
        self.enqueue(&Launch {
            kernel,
            grid: grid.map(|n| n as u32),
            block: [block as u32, 1, 1],
            shared,
            early: self.early(),
            apart: false,
            args,
        })
    }

    /// Whether launches of this plan are so short that it pays if they begin early ([`Launch::early`]).
    pub fn early(&self) -> bool {
        self.plan.token_bucket <= FEW
    }

    /// Enqueues a launch, or notes it where several sequences shall have one for all.
    pub fn enqueue(&self, l: &Launch<'_>) -> Result<(), ExecError> {
        let Some(noted) = self.noted else {
            return self.device.launch(l);
        };
        let args = match l.args {
            [Arg::Struct(bytes)] => bytes.to_vec(),
            _ => Vec::new(),
        };
        noted.borrow_mut().push(Noted {
            kernel: l.kernel,
            grid: l.grid,
            block: l.block[0],
            shared: l.shared,
            args,
        });
        Ok(())
    }
}

/// How kernels find the number of rows of a buffer in the step at hand: kind in the top 4 bits (0 constant, 1 tokens,
/// 2 closed rows of a rate), number below. Mirrored by `step_rows` in `src/step.cuh`.
pub fn rows_code(plan: &Plan, dim: Dim) -> u32 {
    match dim {
        Dim::Const(n) => n as u32,
        // No kernel needs to look at the step then.
        Dim::Tokens | Dim::Output if plan.token_bucket == 1 => 1,
        Dim::Tokens => 1 << 28,
        Dim::Output if plan.all_logits => 1 << 28,
        Dim::Output => 1,
        Dim::Closed(rate) => 2 << 28 | rate as u32,
        // Known as a width only; as rows it is the bucket's.
        Dim::ContextRows(rate) => (plan.context_bucket / rate) as u32,
    }
}

/// Rate of closed rows for kernels that place rows; 0 = the step's tokens.
pub fn closed_rate(rows: Positions) -> u32 {
    match rows {
        Positions::Tokens => 0,
        Positions::Closed { rate } => rate as u32,
    }
}

/// Number of a weight format in `src/step.cuh`.
pub const fn format_code(format: Format) -> u32 {
    match format {
        Format::F32 => 0,
        Format::F16 => 1,
        Format::Bf16 => 2,
        Format::F8E4m3 => 3,
        Format::Fp4E2m1 => 4,
        Format::Q8_0 => 5,
        Format::Q4_0 => 6,
        Format::Q4_1 => 7,
        Format::Q5_0 => 8,
        Format::Q4K => 9,
        Format::Q6K => 10,
        Format::I32 => 11,
        Format::I64 => 12,
    }
}

/// Number of a scale format in `src/step.cuh`.
pub const fn scale_code(format: ScaleFormat) -> u32 {
    match format {
        ScaleFormat::F32 => 0,
        ScaleFormat::Bf16 => 1,
        ScaleFormat::E8m0 => 2,
    }
}

/// Number of a cache format in `src/step.cuh`.
pub const fn cache_code(format: CacheFormat) -> u32 {
    match format {
        CacheFormat::F32 => 0,
        CacheFormat::Bf16 => 1,
        CacheFormat::Fp8Model1 => 2,
        CacheFormat::Fp8B64 => 3,
        CacheFormat::Fp4 => 4,
        CacheFormat::Fp8V32 => 5,
    }
}

const _: () = assert!(size_of::<DevStep>() == 32 && std::mem::offset_of!(DevStep, mail) == 28);
const _: () = assert!(size_of::<DevSampler>() == 40 && std::mem::offset_of!(DevSampler, top_k) == 32);
const _: () = assert!(size_of::<DevSampled>() == 16 && size_of::<DevRowStats>() == 16 && size_of::<DevExpert>() == 16);
