//! The op set of MODEL1 Explorer ([`ir`]) and the CPU implementation of it ([`cpu`]).
//!
//! `ir` is data only: formats, base ops, plans, step parameters. A backend executes a plan;
//! block code in the engine never names a backend.

pub mod cpu;
pub mod ir;
