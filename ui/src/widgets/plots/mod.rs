//! Charts: axes and ticks, lines with bands, stacked bars, legends, menus.

mod chart;
mod data;
mod elide;
mod explain;
mod legend;
mod pointer;
mod quantity;
mod scatter;

pub use chart::{Chart, ChartResponse};
pub use data::{Axis, Bars, Mark, Part, Trace, Zoom};
pub use elide::elided;
pub use explain::{Csv, Explain, definition, field, figure_menu, file_name, label_word};
pub use legend::{LegendItem, choice, legend, remark};
pub use pointer::{dot, readout_table};
pub use quantity::{Quantity, Scale, Ticks};
pub use scatter::{Dot, Scatter, ScatterResponse};
