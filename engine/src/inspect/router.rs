//! Choices of the routers.

use protocol::RouterMap;

use super::Replay;
use super::walk::Walk;
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::lower::Look;
use crate::recipe::LayerFacts;
use crate::watch::Watch;

/// Most choices of one map: 24 MiB, so that it fits one message.
const MAX_CHOICES: usize = 4 << 20;

/// Fills the places of a token that goes to fewer experts than the most.
const NO_EXPERT: u16 = u16::MAX;

impl Replay<'_> {
    /// Experts per token of a layer under the recipe.
    fn experts_of(&self, facts: &LayerFacts) -> usize {
        let registry = self.engine.registry();
        let spec = self
            .recipe
            .layers
            .get(facts.layer)
            .map(|l| registry.ffn_spec(facts, &l.ffn));
        spec.map_or(facts.experts_per_token, |s| s.experts_per_token).max(1)
    }

    /// Choices of all routers.
    ///
    /// # Errors
    /// A model without experts, an empty or too long text, cancelled, a failed step.
    pub fn router(&self, watch: &mut Watch<'_>) -> Result<RouterMap, EngineError> {
        self.some_text()?;
        let facts = &self.engine.facts().layers;
        let routed: Vec<&LayerFacts> = facts.iter().filter(|l| l.experts > 0).collect();
        let Some(last) = routed.last() else {
            return Err(EngineError::Invalid(
                "this model has no experts: every token goes through the same feed-forward blocks".into(),
            ));
        };
        // Layers may send tokens to different numbers of experts.
        let per_layer: Vec<usize> = routed.iter().map(|l| self.experts_of(l)).collect();
        let (per_token, n) = (per_layer.iter().copied().max().unwrap_or(0), self.ids.len());
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
            for ((facts, &k), choices) in routed.iter().zip(&per_layer).zip(&mut layers) {
                let experts = walk.probe(&format!("experts.{}", facts.layer))?;
                let weights = walk.probe(&format!("weights.{}", facts.layer))?;
                let pairs = experts.values.iter().zip(weights.values);
                let pairs: Vec<(u16, f32)> = pairs.map(|(&e, &w)| (e as u16, w)).collect();
                for token in pairs.chunks_exact(k) {
                    choices.extend_from_slice(token);
                    choices.extend(std::iter::repeat_n((NO_EXPERT, 0.0), per_token - k));
                }
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
