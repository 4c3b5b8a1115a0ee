//! Pieces that several views share.

pub mod heatmap;
pub mod plots;
pub mod token_text;
pub mod controls;
