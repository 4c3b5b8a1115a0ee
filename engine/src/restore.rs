//! Weights in the storage a recipe asks for: what it would take, and making it. Originals stay loaded, so that going back
//! costs nothing.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use kernels::ir::{ExecError, WeightDesc, WeightId, WeightSource};

use crate::engine::{Engine, default_threads};
use crate::error::EngineError;
use crate::families::Family;
use crate::memory;
use crate::model::{Stored, WeightStore, make_variant};
use crate::recipe::{Recipe, Registry, WeightStorage};
use crate::watch::Watch;

/// A weight to be stored otherwise.
pub(crate) struct Restored {
    /// The weight as loaded.
    pub own: WeightId,
    /// How it is to be stored.
    pub storage: WeightStorage,
    /// What that is.
    pub desc: WeightDesc,
}

/// Weights made so far, kept for later sessions.
pub(crate) type Made = HashMap<(WeightId, WeightStorage), Arc<Stored>>;

/// What a recipe wants stored otherwise than the checkpoint does, each once.
pub(crate) fn wanted(
    family: &dyn Family,
    weights: &WeightStore,
    recipe: &Recipe,
    registry: &Registry,
) -> Vec<Restored> {
    let mut out: Vec<Restored> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for (slot, storage) in recipe.weights.storages(registry) {
        if storage == WeightStorage::Own {
            continue;
        }
        for own in family.matrices(slot) {
            // An embedding that is the output layer, too, is stored once.
            if let Some(desc) = storage.of(weights.desc(own))
                && seen.insert((own, storage))
            {
                out.push(Restored { own, storage, desc });
            }
        }
    }
    out
}

/// Bytes that a recipe's storage of weights takes beside the loaded ones.
pub(crate) fn restored_bytes(family: &dyn Family, weights: &WeightStore, recipe: &Recipe, registry: &Registry) -> u64 {
    let all = wanted(family, weights, recipe, registry);
    all.iter().map(|r| r.desc.bytes()).sum()
}

impl Engine {
    /// Bytes that a recipe's storage of weights takes beside the loaded ones, in the memory weights lie in.
    pub fn restored_bytes(&self, recipe: &Recipe) -> u64 {
        restored_bytes(self.family.as_ref(), &self.weights, recipe, &self.registry)
    }

    /// Bytes of weights that must be made before a recipe can be in force.
    pub fn bytes_to_make(&self, recipe: &Recipe) -> u64 {
        let made = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = self.wanted(recipe);
        let missing = wanted.iter().filter(|r| !made.contains_key(&(r.own, r.storage)));
        missing.map(|r| r.desc.bytes()).sum()
    }

    /// What a recipe wants stored otherwise.
    pub(crate) fn wanted(&self, recipe: &Recipe) -> Vec<Restored> {
        wanted(self.family.as_ref(), &self.weights, recipe, &self.registry)
    }

    /// Weights in other storages, made once and shared by sessions. All of them, or none and the reason.
    /// `watch` hears how many bytes of them are there.
    pub(crate) fn variants(
        &self,
        wanted: &[Restored],
        recipe: &Recipe,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<Arc<Stored>>, EngineError> {
        let mut made = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        let missing: Vec<&Restored> = wanted
            .iter()
            .filter(|r| !made.contains_key(&(r.own, r.storage)))
            .collect();
        let bytes: u64 = missing.iter().map(|r| r.desc.bytes()).sum();
        if bytes > 0 {
            let (what, hint) = words(recipe);
            if memory::require(bytes, &what, hint).is_err() {
                // Those that no session uses give way.
                let keep = |k: &(WeightId, WeightStorage)| wanted.iter().any(|r| (r.own, r.storage) == *k);
                made.retain(|k, v| keep(k) || Arc::strong_count(v) > 1);
                if let Some(worker) = &self.worker {
                    // Each call of the process names what it is to keep: an order does not matter.
                    let mut kept: Vec<_> = made.iter().map(|((own, _), v)| (own.0, v.desc.clone())).collect();
                    kept.sort_by_key(|k| k.0);
                    worker.keep(kept);
                }
            }
            memory::require(bytes, &what, hint)?;
            self.device_room(bytes, &what, hint)?;
        }
        let mut done = 0;
        for r in &missing {
            watch.report(done, bytes)?;
            let stored = match &self.worker {
                // Its bytes are needed there and not here.
                Some(worker) => {
                    worker.make(r.own, &r.desc, watch.cancel)?;
                    Stored {
                        desc: r.desc.clone(),
                        data: Vec::new().into(),
                        scales: None,
                    }
                }
                None => {
                    let view = self.weights.weight(r.own)?;
                    make_variant(view, r.storage, r.desc.clone(), default_threads(), watch.cancel.flag())?
                }
            };
            made.insert((r.own, r.storage), Arc::new(stored));
            done += r.desc.bytes();
        }
        if bytes > 0 {
            watch.report(done, bytes)?;
        }
        Ok(wanted
            .iter()
            .filter_map(|r| made.get(&(r.own, r.storage)).cloned())
            .collect())
    }

    /// Refuses what will not fit where caches lie: in the device's own memory, else in this machine's. Asks nobody where
    /// nothing is needed, as for most tokens.
    pub(crate) fn require(&self, bytes: u64, what: &str, hint: &str) -> Result<(), EngineError> {
        if bytes == 0 {
            return Ok(());
        }
        match self.backend.device_memory() {
            Ok(Some((free, _))) => fits(bytes, free, what, hint),
            // A process that is gone is noticed by the step.
            _ => memory::require(bytes, what, hint),
        }
    }

    /// Whether `bytes` more of weights fit in the device's own memory.
    fn device_room(&self, bytes: u64, what: &str, hint: &str) -> Result<(), EngineError> {
        match self.backend.device_memory() {
            Ok(Some((free, _))) => fits(bytes, free, what, hint),
            // The next call starts another process.
            Ok(None) | Err(ExecError::Lost(_)) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

/// Refuses what is more than the device has free.
fn fits(bytes: u64, free: u64, what: &str, hint: &str) -> Result<(), EngineError> {
    if bytes <= free {
        return Ok(());
    }
    Err(EngineError::Memory {
        what: format!("{what} on the device"),
        needed: memory::human(bytes),
        available: memory::human(free),
        hint: hint.to_string(),
    })
}

/// What a recipe's storage of weights is called where it does not fit, and what to do then.
fn words(recipe: &Recipe) -> (String, &'static str) {
    let slots = recipe.weights.slots();
    let asked: Vec<String> = slots
        .iter()
        .filter(|(_, c)| c.variant != "own")
        .map(|(s, c)| format!("{}={c}", s.name()))
        .collect();
    (
        format!("weights stored as {}, beside the originals,", asked.join(" and ")),
        "choose own, or a smaller storage, for some of them",
    )
}

#[cfg(test)]
mod tests {
    use crate::{Cancel, EngineError, SessionOptions, Watch, goldens};

    #[test]
    fn storing_weights_tells_how_far_it_is_and_can_be_stopped() {
        let engine = goldens::engine("tiny-llama");
        let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        let mut recipe = engine.recipe();
        recipe
            .set("weights.ffn=fp8", engine.facts(), engine.registry())
            .unwrap();
        let total = engine.restored_bytes(&recipe);
        assert!(total > 0 && engine.bytes_to_make(&recipe) == total);
        // Stopped at the first weight: nothing has changed.
        let cancel = Cancel::default();
        let stop = cancel.clone();
        let mut progress = |_, _| stop.cancel();
        let mut watch = Watch {
            cancel: &cancel,
            progress: &mut progress,
        };
        let e = session.apply_watched(recipe.clone(), &mut watch).unwrap_err();
        assert!(matches!(e, EngineError::Cancelled), "{e}");
        assert!(*session.recipe() == engine.recipe() && engine.bytes_to_make(&recipe) == total);
        let mut seen = Vec::new();
        let mut progress = |done, all| seen.push((done, all));
        let mut watch = Watch {
            cancel: &Cancel::default(),
            progress: &mut progress,
        };
        session.apply_watched(recipe.clone(), &mut watch).unwrap();
        assert!(
            seen.len() > 2 && seen[0] == (0, total) && *seen.last().unwrap() == (total, total),
            "{seen:?}"
        );
        assert!(seen.is_sorted());
        assert_eq!(engine.bytes_to_make(&recipe), 0);
    }
}
