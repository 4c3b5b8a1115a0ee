//! The op set of MODEL1 Explorer ([`ir`]) and its implementations for CPUs ([`cpu`]) and NVIDIA GPUs ([`cuda`]).
//!
//! `ir` is data only: formats, base ops, plans, step parameters. A backend executes a plan;
//! block code in the engine never names a backend.

pub mod cpu;
pub mod cuda;
pub mod ir;
