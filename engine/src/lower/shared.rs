//! Plans that an engine's sessions share: a new session of the recipe last used assembles none anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kernels::ir::{CacheDesc, Plan, WeightDesc};

use super::Bucket;
use crate::model::WeightStore;
use crate::recipe::{LayerRecipe, Recipe, WeightRecipe};

/// Plans kept; inspections make some of their own.
const MOST: usize = 32;

/// All that a plan hangs on beside its bucket.
#[derive(PartialEq)]
pub(crate) struct PlanKey {
    layers: Vec<LayerRecipe>,
    recipe: WeightRecipe,
    caches: Vec<CacheDesc>,
    weights: Vec<WeightDesc>,
}

impl PlanKey {
    pub fn of(recipe: &Recipe, caches: &[CacheDesc], weights: &WeightStore) -> Self {
        Self {
            layers: recipe.layers.clone(),
            recipe: recipe.weights.clone(),
            caches: caches.to_vec(),
            weights: weights.descs(),
        }
    }
}

#[derive(Default)]
struct Kept {
    of: Option<PlanKey>,
    plans: HashMap<Bucket, Arc<Plan>>,
}

/// Those of one recipe, the last one that a plan was assembled for.
#[derive(Default)]
pub(crate) struct SharedPlans(Mutex<Kept>);

impl SharedPlans {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The plan of a bucket, if it is there.
    pub fn find(&self, key: &PlanKey, bucket: &Bucket) -> Option<Arc<Plan>> {
        let kept = self.kept();
        kept.of.as_ref().filter(|of| *of == key)?;
        kept.plans.get(bucket).cloned()
    }

    /// Keeps a plan; those of other recipes go.
    pub fn keep(&self, key: PlanKey, bucket: Bucket, plan: Arc<Plan>) {
        let mut kept = self.kept();
        if kept.of.as_ref() != Some(&key) || kept.plans.len() >= MOST {
            kept.plans.clear();
        }
        kept.of = Some(key);
        kept.plans.insert(bucket, plan);
    }
}
