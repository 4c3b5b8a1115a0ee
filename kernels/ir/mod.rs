//! The op set: formats, base ops, plans and step parameters. Data only.

mod format;

pub use format::{Format, Layout, ScaleFormat, ScaleSpec};
