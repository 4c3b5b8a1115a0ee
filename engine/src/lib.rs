//! The engine of MODEL1 Explorer: checkpoints, recipes, plans, sessions.
//!
//! ```no_run
//! use engine::{Engine, EngineOptions, GenerateOptions, SessionOptions, TokenEvent};
//! # fn main() -> Result<(), engine::EngineError> {
//! let engine = Engine::open("model".as_ref(), &EngineOptions::default(), &engine::Silent)?;
//! let mut session = engine.session(engine.recipe(), SessionOptions::default())?;
//! session.generate("Once upon a time", &GenerateOptions::default(), &mut |e: &TokenEvent<'_>| print!("{}", e.text))?;
//! # Ok(()) }
//! ```

mod baselines;
pub mod bench;
pub mod compare;
mod dataflow;
pub mod device;
mod engine;
mod error;
pub mod families;
mod generate;
#[cfg(test)]
mod goldens;
pub mod inspect;
mod labels;
pub mod lower;
pub mod memory;
mod model;
mod needs;
mod par;
mod predict;
pub mod recipe;
mod restore;
mod session;
mod stats;
mod timing;
mod tokenizer;
mod transplant;
mod view;
mod watch;
pub mod worker;

pub use checkpoint::{Checkpoint, CheckpointError, Progress, Silent};
pub use engine::{Engine, EngineOptions, default_threads};
pub use error::EngineError;
pub use generate::{Finish, GenerateOptions, Generated, Generation, Prefill, Produced, Step, TokenEvent, Turn};
pub use kernels::ir::{Backend, SamplerParams};
pub use model::WeightStore;
pub use needs::Planned;
pub use predict::{kv_bytes, predict, refusal as memory_refusal};
pub use recipe::{Recipe, Registry};
pub use session::{Cancel, EachStep, Observer, Part, Session, SessionOptions, SwapReport, Taken};
pub use stats::SAMPLED_FROM;
pub use timing::{OpTimer, SAMPLE_EVERY};
pub use watch::Watch;
