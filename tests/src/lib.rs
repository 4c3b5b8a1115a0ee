//! Test harness of MODEL1 Explorer: goldens, the oracle backend, helpers.

pub mod ahead;
pub mod batch;
pub mod goldens;
pub mod models;
pub mod oracle;
pub mod plans;
pub mod synthetic;
pub mod table;
