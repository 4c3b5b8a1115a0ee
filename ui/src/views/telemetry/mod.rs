//! Telemetry: what each step of the current text cost. Every chart is a view of its own; they share a history, a time
//! axis, a pause and the cursor.

mod experts;
mod heat;
pub mod history;
#[cfg(test)]
mod history_tests;
mod kv;
mod layers;
mod memory;
pub mod metric;
pub mod percentile;
pub mod series;
mod shared;
mod speed;

use super::View;
use metric::LayerMetric;
use shared::Shared;

/// All charts.
pub fn views() -> Vec<Box<dyn View>> {
    let shared = Shared::default();
    vec![
        Box::new(speed::Speed::new(shared.clone())),
        Box::new(kv::Kv::new(shared.clone())),
        Box::new(layers::Layers::new(shared.clone(), LayerMetric::Sparsity)),
        Box::new(layers::Layers::new(shared.clone(), LayerMetric::Error)),
        Box::new(experts::Experts::new(shared.clone())),
        Box::new(heat::Heat::new(shared.clone())),
        Box::new(memory::Memory::new(shared)),
    ]
}
