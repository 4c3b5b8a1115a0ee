//! CPU kernels: plain Rust reference forms and AVX2 / AVX-512 forms chosen at run time.

pub mod attn_dot;
pub mod exec;
pub mod formats;
pub mod isa;
pub mod matmul;
pub mod measure;
pub mod pool;
pub mod records;
pub mod sample;

use std::sync::Arc;

use crate::ir::{Format, WeightView};
use isa::Isa;
use pool::Pool;

/// How CPU kernels run: threads, instruction set, precision switches.
#[derive(Clone)]
pub struct Cpu {
    /// Threads.
    pub pool: Arc<Pool>,
    /// Instruction set; must come from [`Isa::available`].
    pub isa: Isa,
    /// Multiply block-quantised weights with f32 activations instead of int8 ones: slower, the oracle's way.
    pub exact_activations: bool,
    /// Round activations to bf16 for prefill products with bf16 weights where the processor has bf16 dot products.
    pub bf16_activations: bool,
}

impl Cpu {
    /// Best settings for this processor on `threads` threads.
    pub fn new(threads: usize) -> Self {
        Self {
            pool: Arc::new(Pool::new(threads)),
            isa: Isa::detect(),
            exact_activations: false,
            bf16_activations: true,
        }
    }

    /// The oracle: f32 activations everywhere.
    pub fn exact(threads: usize) -> Self {
        Self {
            exact_activations: true,
            bf16_activations: false,
            ..Self::new(threads)
        }
    }

    /// One line for people.
    pub fn describe(&self) -> String {
        let extra = match (self.isa.has_vnni(), self.isa.has_bf16()) {
            (true, true) => " with VNNI and BF16",
            (true, false) => " with VNNI",
            _ => "",
        };
        format!("CPU, {} threads, {}{extra}", self.pool.threads(), self.isa.name())
    }
}

/// All values of a (small) weight as f32, stored order.
pub fn weight_values(view: &WeightView<'_>) -> Result<Vec<f32>, String> {
    formats::values(view)
}

/// Element `index` of an integer table.
pub fn integer(view: &WeightView<'_>, index: usize) -> Option<i64> {
    let d = view.data;
    match view.desc.format {
        Format::I32 => Some(i64::from(i32::from_le_bytes(
            d.get(index * 4..index * 4 + 4)?.try_into().ok()?,
        ))),
        Format::I64 => Some(i64::from_le_bytes(d.get(index * 8..index * 8 + 8)?.try_into().ok()?)),
        _ => None,
    }
}
