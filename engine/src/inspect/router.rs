//! Choices of the routers.

use protocol::RouterMap;

use super::Replay;
use super::walk::Walk;
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::lower::Look;
use crate::watch::Watch;

/// Most choices of one map: 24 MiB, so that it fits one message.
const MAX_CHOICES: usize = 4 << 20;

impl Replay<'_> {
    /// Choices of all routers.
    ///
    /// # Errors
    /// A model without experts, an empty or too long text, cancelled, a failed step.
    pub fn router(&self, watch: &mut Watch<'_>) -> Result<RouterMap, EngineError> {
        self.some_text()?;
        let facts = &self.engine.facts().layers;
        let routed: Vec<&crate::recipe::LayerFacts> = facts.iter().filter(|l| l.experts > 0).collect();
        let Some(last) = routed.last() else {
            return Err(EngineError::Invalid(
                "this model has no experts: every token goes through the same feed-forward blocks".into(),
            ));
        };
        let (per_token, n) = (last.experts_per_token, self.ids.len());
        let size = routed.len() * n * per_token;
        if size > MAX_CHOICES {
            return Err(EngineError::Invalid(format!(
                "{n} tokens x {} layers x {per_token} experts are more than {MAX_CHOICES} choices: accepted are at \
                 most {} tokens",
                routed.len(),
                MAX_CHOICES / (routed.len() * per_token)
            )));
        }
        let look = Look {
            routers: true,
            until: Some(last.layer as u32),
            ..Look::default()
        };
        let mut walk = Walk::new(self, self.ids, look, false, CHUNK)?;
        let mut layers: Vec<Vec<(u16, f32)>> = vec![Vec::with_capacity(n * per_token); routed.len()];
        while walk.step(watch)?.is_some() {
            for (facts, choices) in routed.iter().zip(&mut layers) {
                let experts = walk.probe(&format!("experts.{}", facts.layer))?;
                let weights = walk.probe(&format!("weights.{}", facts.layer))?;
                let pairs = experts.values.iter().zip(weights.values);
                choices.extend(pairs.map(|(&e, &w)| (e as u16, w)));
            }
        }
        Ok(RouterMap {
            layers: routed.iter().map(|l| l.layer as u32).collect(),
            experts: last.experts as u32,
            per_token: per_token as u32,
            choices: layers.into_iter().flatten().collect(),
            tokens: self.engine.token_labels(self.ids),
        })
    }
}
