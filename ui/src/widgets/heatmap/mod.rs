//! Heatmaps: textures of max-pooled cells, value under the pointer, hatch for what is masked, magenta for what went
//! wrong.

mod grid;
mod labels;
mod paint;
mod parts;
mod widget;

pub use grid::{Dense, Grid, MASKED, Pool, is_masked, range_of};
pub use paint::{ColorMap, Shades};
pub use parts::{color_bar, hatch};
pub use widget::{HeatResponse, HeatState, HeatZoom, Heatmap, Labels};
