//! The CUDA backend. `device` says what a device must do, `driver` does it through the CUDA driver, `ops` turns base ops
//! into launches, `state` and `weights` hold caches and weights in device memory, `exec` runs plans.
//!
//! All but `driver` is independent of CUDA: the tests run it on an emulator of the kernels.

pub mod cx;
pub mod device;
#[cfg(feature = "cuda")]
pub mod driver;
pub mod ops;
