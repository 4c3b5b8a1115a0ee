//! The CUDA backend. `device` says what a device must do, `driver` does it through the CUDA driver, `ops` turns base ops
//! into launches, `state` and `weights` hold caches and weights in device memory, `exec` runs plans, `ahead` before they are
//! asked for, `batch` for several sequences at once; `need` says before how much memory all of it takes.
//!
//! All but `driver` is independent of CUDA: the tests run it on an emulator of the kernels.

mod ahead;
mod batch;
mod carry;
#[cfg(feature = "cuda")]
pub mod cublaslt;
pub mod cx;
pub mod device;
#[cfg(feature = "cuda")]
pub mod driver;
pub mod exec;
pub mod fault;
mod input;
pub mod mail;
pub mod measure;
pub mod memory;
pub mod need;
pub mod ops;
mod planes;
#[cfg(feature = "cuda")]
mod posts;
mod prepared;
mod readback;
pub mod schedule;
pub mod state;
pub mod weights;

pub use batch::SEQUENCES;
pub use exec::{CHUNK, Cuda, CudaOptions};
pub use planes::device_bytes;

use std::sync::Arc;

/// Whether this program has CUDA kernels in it.
pub fn built() -> bool {
    #[cfg(feature = "cuda")]
    let built = !driver::FATBINS.is_empty();
    #[cfg(not(feature = "cuda"))]
    let built = false;
    built
}

/// Opens GPU `ordinal`. The error is a sentence: built without kernels, no driver, a driver that is too old, no GPU, a GPU
/// that is too old or full.
pub fn open(ordinal: usize) -> Result<Arc<dyn device::Device>, String> {
    #[cfg(feature = "cuda")]
    return Ok(Arc::new(driver::Driver::open(ordinal)?));
    #[cfg(not(feature = "cuda"))]
    Err(format!(
        "this program was built without CUDA (GPU {ordinal} was asked for)"
    ))
}
