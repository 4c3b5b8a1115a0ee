//! Pieces that several views share.

pub mod controls;
pub mod heatmap;
pub mod plots;
pub mod token_text;
