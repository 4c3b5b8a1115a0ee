//! From kernel counters to telemetry records.

use kernels::ir::StepParams;
use protocol::{KvBytes, LayerRecord, StepRecord, TELEMETRY_VERSION};

use super::Session;
use crate::memory;

/// Cache bytes as the protocol has them.
pub(crate) fn kv_view(k: &kernels::ir::KvBytes) -> KvBytes {
    KvBytes {
        window: k.window,
        rows: k.rows,
        index: k.index,
        scales: k.scales,
        pooling: k.pooling,
        checkpoints: k.checkpoints,
    }
}

impl Session {
    /// Resident memory of the process that does the work.
    fn resident(&self) -> Option<u64> {
        self.engine.backend.resident().or_else(memory::resident)
    }

    pub(super) fn record(&self, step: &StepParams, plan: u64, nanos: u64) -> StepRecord {
        let kv = self.kv_bytes();
        let layers = self
            .out
            .layers
            .iter()
            .zip(kv)
            .map(|(s, (used, allocated))| LayerRecord {
                kv_used: kv_view(&used),
                kv_allocated: kv_view(&allocated),
                keys_context: s.keys_context,
                keys_scored: s.keys_scored,
                keys_kept: s.keys_kept,
                index_scored: s.index_scored,
                round_trip_error: (s.round_trip_ref > 0.0).then(|| (s.round_trip_err / s.round_trip_ref).sqrt()),
                saturated: s.saturated as f64 / s.stored_values.max(1) as f64,
                flushed: s.flushed as f64 / s.stored_values.max(1) as f64,
                ffn_units: s.ffn_units,
                ffn_kept: s.ffn_kept,
                expert_load: s.expert_load.clone(),
            });
        StepRecord {
            version: TELEMETRY_VERSION,
            seq: self.seq,
            position: step.position,
            tokens: step.tokens,
            nanos,
            plan,
            // Reading the process status costs microseconds; every 16th step is enough for a curve.
            memory: self.seq.is_multiple_of(16).then(|| self.resident()).flatten(),
            layers: layers.collect(),
        }
    }
}
