//! A loaded model's weights: descriptions and bytes as stored in the checkpoint, plus variants made on request.

mod config;
mod variant;

use std::collections::HashMap;
use std::sync::Arc;

use checkpoint::Bytes;
use kernels::ir::{ExecError, WeightDesc, WeightId, WeightSource, WeightView};

pub use config::Config;
pub use variant::make_variant;

use crate::recipe::WeightStorage;

/// One weight with its bytes (borrowed from the memory map, or owned for variants).
#[derive(Clone)]
pub struct Stored {
    /// What it is.
    pub desc: WeightDesc,
    /// Elements as stored.
    pub data: Bytes,
    /// Separate scales.
    pub scales: Option<Bytes>,
}

/// Weights by id. Cloning is cheap (entries are shared).
#[derive(Clone, Default)]
pub struct WeightStore {
    entries: Vec<Arc<Stored>>,
    variants: HashMap<(WeightId, WeightStorage), WeightId>,
    made_from: HashMap<WeightId, WeightId>,
    grafts: HashMap<(String, WeightId), WeightId>,
}

impl WeightStore {
    /// Adds a weight.
    pub fn add(&mut self, stored: Stored) -> WeightId {
        self.add_shared(Arc::new(stored))
    }

    fn add_shared(&mut self, stored: Arc<Stored>) -> WeightId {
        self.entries.push(stored);
        WeightId(self.entries.len() as u32 - 1)
    }

    /// Description of a weight.
    pub fn desc(&self, id: WeightId) -> &WeightDesc {
        &self.entries[id.index()].desc
    }

    /// A weight's entry.
    pub fn entry(&self, id: WeightId) -> &Arc<Stored> {
        &self.entries[id.index()]
    }

    /// Whether all ids stand for the same bytes in both.
    pub fn same(&self, other: &WeightStore) -> bool {
        let pairs = self.entries.iter().zip(&other.entries);
        self.len() == other.len() && pairs.into_iter().all(|(a, b)| Arc::ptr_eq(a, b))
    }

    /// The weight of this name.
    pub fn named(&self, name: &str) -> Option<&Arc<Stored>> {
        self.entries.iter().find(|e| e.desc.name == name)
    }

    /// All descriptions in order of ids.
    pub fn descs(&self) -> Vec<WeightDesc> {
        self.entries.iter().map(|e| e.desc.clone()).collect()
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The id of `own` in a storage, if it was made.
    pub fn variant(&self, own: WeightId, storage: WeightStorage) -> Option<WeightId> {
        if storage == WeightStorage::Own {
            Some(own)
        } else {
            self.variants.get(&(own, storage)).copied()
        }
    }

    /// What stands for a weight in a block whose weights come from the checkpoint at `donor`, if it was placed.
    pub fn graft(&self, donor: &str, own: WeightId) -> Option<WeightId> {
        self.grafts.get(&(donor.to_string(), own)).copied()
    }

    /// Places another checkpoint's weight for blocks that have it from there.
    pub fn add_graft(&mut self, donor: &str, own: WeightId, stored: Arc<Stored>) -> WeightId {
        if let Some(id) = self.graft(donor, own) {
            return id;
        }
        let id = self.add_shared(stored);
        self.grafts.insert((donor.to_string(), own), id);
        id
    }

    /// Registers a variant of a weight.
    pub fn add_variant(&mut self, own: WeightId, storage: WeightStorage, stored: Arc<Stored>) -> WeightId {
        if let Some(&id) = self.variants.get(&(own, storage)) {
            return id;
        }
        let id = self.add_shared(stored);
        self.variants.insert((own, storage), id);
        self.made_from.insert(id, own);
        id
    }
}

impl WeightSource for WeightStore {
    fn weight(&self, id: WeightId) -> Result<WeightView<'_>, ExecError> {
        let e = self.entries.get(id.index()).ok_or_else(|| ExecError::Mismatch {
            what: "weights",
            detail: format!("weight {} of {}", id.0, self.entries.len()),
        })?;
        Ok(WeightView {
            desc: &e.desc,
            data: &e.data,
            scales: e.scales.as_deref().unwrap_or(&[]),
        })
    }

    fn made_from(&self, id: WeightId) -> Option<WeightId> {
        self.made_from.get(&id).copied()
    }
}
