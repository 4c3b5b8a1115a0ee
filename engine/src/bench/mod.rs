//! Measuring speed: models of known shapes with random weights, and what is timed on them or on real ones.

mod measure;
mod random;
mod shapes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use checkpoint::{Bytes, Checkpoint, CheckpointError, Progress, Tensor, TensorScales};
use kernels::ir::Backend;

pub use measure::{Bench, Measured, Test, Work, mean_sd};
pub use shapes::{Shape, Storage};

use crate::engine::{Engine, default_threads};
use crate::error::EngineError;
use crate::memory;
use crate::recipe::Registry;
use random::Maker;
use shapes::{Content, Def, Size};

/// A model of a known shape with random weights: for speed, never for quality. It lies in memory alone.
#[derive(Clone, Copy, Debug)]
pub struct RandomModel {
    /// Whose shape.
    pub shape: Shape,
    /// How its matrices are stored.
    pub storage: Storage,
    size: Size,
    seed: u64,
}

impl RandomModel {
    /// A model of this shape.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] if models of its family are not stored like that.
    pub fn new(shape: Shape, storage: Storage) -> Result<Self, EngineError> {
        if !shape.storages().contains(&storage) {
            let accepted: Vec<&str> = shape.storages().iter().map(|s| s.name()).collect();
            return Err(EngineError::Invalid(format!(
                "{}: found weights in {}, accepted: {} (GGUF's formats are read for llama and qwen2 alone)",
                shape.name(),
                storage.name(),
                accepted.join(", ")
            )));
        }
        Ok(Self {
            shape,
            storage,
            size: shape.size(),
            seed: 1,
        })
    }

    /// The same with its first `layers` layers alone.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] if it has fewer, or none are asked for.
    pub fn cut(mut self, layers: usize) -> Result<Self, EngineError> {
        let most = self.shape.size().layers;
        if layers == 0 || layers > most {
            return Err(EngineError::Invalid(format!(
                "layers of {}: found {layers}, accepted: 1 to {most}",
                self.shape.name()
            )));
        }
        self.size.layers = layers;
        Ok(self)
    }

    /// Its name with what was cut.
    pub fn label(&self) -> String {
        let (name, all) = (self.shape.name(), self.shape.size().layers);
        if self.size.layers < all {
            format!("{name} ({} of {all} layers)", self.size.layers)
        } else {
            name.into()
        }
    }

    /// Bytes of its weights.
    pub fn bytes(&self) -> u64 {
        self.defs().iter().map(|d| d.bytes()).map(|(d, s)| (d + s) as u64).sum()
    }

    /// The longest context it was made for, in tokens.
    pub fn max_context(&self) -> u64 {
        let config = shapes::config(self.shape, self.size);
        let field = ["max_position_embeddings", "n_positions"]
            .iter()
            .find_map(|k| config.get(*k));
        field.and_then(serde_json::Value::as_u64).unwrap_or(0)
    }

    fn defs(&self) -> Vec<Def> {
        shapes::tensors(self.shape, self.size, self.storage)
    }

    /// The loaded model on a backend. The CPU reads weights where they lie, so all are made; other backends keep copies,
    /// so that tensors of one kind can share the same bytes here, and a model larger than this machine's memory has its
    /// place on a larger device.
    ///
    /// # Errors
    /// [`EngineError::Memory`] before anything is made, [`EngineError::Cancelled`].
    pub fn engine(&self, backend: Arc<dyn Backend>, progress: &dyn Progress) -> Result<Arc<Engine>, EngineError> {
        let shared = backend.name() != "cpu";
        Engine::with_backend(self.checkpoint(shared, progress)?, backend, Registry::default())
    }

    /// Its checkpoint; with `shared`, tensors of one kind begin at the same bytes.
    ///
    /// # Errors
    /// As [`RandomModel::engine`].
    pub fn checkpoint(&self, shared: bool, progress: &dyn Progress) -> Result<Checkpoint, EngineError> {
        let defs = self.defs();
        // (bytes of elements and scales) to make for each content, or for each tensor.
        let mut longest: BTreeMap<Content, usize> = BTreeMap::new();
        for d in &defs {
            let (data, scales) = d.bytes();
            for (content, n) in [(d.content, data), (Content::Scales, scales)] {
                let most = longest.entry(content).or_default();
                *most = (*most).max(n);
            }
        }
        let total = if shared {
            longest.values().map(|&n| n as u64).sum()
        } else {
            self.bytes()
        };
        memory::require(
            total,
            &format!("{} with random {} weights", self.label(), self.storage.name()),
            "choose smaller weights, fewer layers or another shape",
        )?;
        let maker = Maker {
            threads: default_threads(),
            total,
            done: AtomicU64::new(0),
            progress,
        };
        let make = |content, n, seed| -> Result<Bytes, EngineError> {
            let bytes = maker.bytes(content, n, seed);
            Ok(bytes.ok_or(CheckpointError::Cancelled)?.into())
        };
        let mut made: BTreeMap<Content, Bytes> = BTreeMap::new();
        if shared {
            for (&content, &n) in &longest {
                made.insert(content, make(content, n, self.seed)?);
            }
        }
        let bytes = |content: Content, n: usize, seed: u64| match made.get(&content) {
            Some(b) => Ok(b.slice(0..n)),
            None => make(content, n, seed),
        };
        let name = PathBuf::from(format!("{} ({}, random weights)", self.label(), self.storage.name()));
        let mut tensors = Vec::new();
        for (i, d) in defs.into_iter().enumerate() {
            let (data, scales) = d.bytes();
            let seed = self.seed.wrapping_mul(0x9e37_79b9) + i as u64;
            let scales = match d.scales() {
                Some(spec) => Some(TensorScales {
                    spec,
                    bytes: bytes(Content::Scales, scales, seed)?,
                    shape: vec![
                        d.shape[0].div_ceil(spec.block_rows),
                        d.shape[1].div_ceil(spec.block_cols),
                    ],
                    name: format!("{}.scale", d.name.trim_end_matches(".weight")),
                }),
                None => None,
            };
            tensors.push(Tensor {
                bytes: bytes(d.content, data, seed)?,
                format: d.format(),
                name: d.name,
                shape: d.shape,
                scales,
                file: name.clone(),
            });
        }
        let config = shapes::config(self.shape, self.size);
        Ok(Checkpoint::in_memory(name, config, tensors))
    }
}

#[cfg(test)]
mod tests {
    use checkpoint::Silent;
    use kernels::cpu::exec::CpuBackend;

    use super::*;
    use crate::{Cancel, SessionOptions};

    /// Few layers, a small vocabulary; of GPT-3, whose layers have 1.8 G parameters, narrow ones.
    fn tiny(shape: Shape, storage: Storage) -> RandomModel {
        let mut m = RandomModel::new(shape, storage).unwrap();
        (m.size.layers, m.size.vocab) = match shape {
            Shape::Qwen15 | Shape::Model15 => (4, 256),
            Shape::Llama7 => (1, 256),
            Shape::Gpt3 => (2, 256),
        };
        if shape == Shape::Gpt3 {
            m.size.hidden = 768;
        }
        m
    }

    #[test]
    fn every_shape_loads_in_every_storage_and_gives_numbers() {
        for shape in Shape::ALL {
            for &storage in shape.storages() {
                let model = tiny(shape, storage);
                let name = format!("{shape:?} {storage:?}");
                let engine = model.engine(Arc::new(CpuBackend::new(2)), &Silent).unwrap();
                assert_eq!(engine.weight_bytes(), model.bytes(), "{name}");
                assert_eq!(engine.facts().max_context as u64, model.max_context(), "{name}");
                assert_eq!(engine.warnings(), [""; 0], "{name}");
                let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
                session.feed(&[5, 7, 9], None, &Cancel::default(), &mut ()).unwrap();
                let logits = &session.output().logits;
                assert_eq!(logits.len(), 256, "{name}");
                let spread = logits.iter().fold(0f32, |m, v| m.max(v.abs()));
                assert!(spread.is_finite() && spread > 1e-3, "{name}: {spread}");
            }
        }
    }

    #[test]
    fn sizes_are_those_of_the_models() {
        // Parameters: the models' own figures.
        for (shape, billions) in [
            (Shape::Qwen15, 1.777),
            (Shape::Llama7, 6.738),
            (Shape::Model15, 1.529),
            (Shape::Gpt3, 174.6),
        ] {
            let m = RandomModel::new(shape, Storage::Bf16).unwrap();
            let n: usize = m.defs().iter().map(|d| d.shape.iter().product::<usize>()).sum();
            let found = n as f64 / 1e9;
            assert!((found / billions - 1.0).abs() < 1e-3, "{shape:?}: {found}");
            for &storage in shape.storages() {
                let less = RandomModel::new(shape, storage).unwrap().bytes();
                assert!(less <= m.bytes(), "{shape:?} {storage:?}");
            }
        }
        let fp4 = RandomModel::new(Shape::Gpt3, Storage::Fp4).unwrap();
        assert!((90..96).contains(&(fp4.bytes() / 1_000_000_000)), "{}", fp4.bytes());
    }

    #[test]
    fn shared_bytes_give_the_same_shapes() {
        let model = tiny(Shape::Model15, Storage::Fp4);
        let (whole, shared) = (
            model.checkpoint(false, &Silent).unwrap(),
            model.checkpoint(true, &Silent).unwrap(),
        );
        let mut addresses = std::collections::BTreeSet::new();
        for (a, b) in whole.tensors().zip(shared.tensors()) {
            assert_eq!(
                (&a.name, a.format, &a.shape, a.bytes.len()),
                (&b.name, b.format, &b.shape, b.bytes.len())
            );
            addresses.insert(b.bytes.as_ptr() as usize);
        }
        assert!(addresses.len() < 6, "{} kinds", addresses.len());
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let e = RandomModel::new(Shape::Model15, Storage::Q4_0).unwrap_err().to_string();
        assert!(
            e.contains("found weights in q4_0") && e.contains("bf16, fp8, fp4"),
            "{e}"
        );
        let m = RandomModel::new(Shape::Llama7, Storage::Q4_0).unwrap();
        assert!(m.cut(0).is_err() && m.cut(33).is_err());
        assert_eq!(m.cut(3).unwrap().label(), "Llama-2-7B (3 of 32 layers)");
        assert_eq!(m.cut(32).unwrap().label(), "Llama-2-7B");
        for s in Shape::ALL {
            assert_eq!(Shape::named(&s.name().to_uppercase()), Some(s));
        }
        assert_eq!(Shape::named("gpt-5"), None);
    }
}
