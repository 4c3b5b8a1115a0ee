//! Golden checkpoints: loading, running, comparing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::recipe::Recipe;
use engine::{Cancel, Checkpoint, Engine, EngineError, Registry, Session, SessionOptions, Silent};
use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{Backend, StepOutput};
use protocol::StepRecord;
use safetensors::SafeTensors;

/// Folder of a committed golden.
pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("goldens").join(name)
}

/// A tensor as f32 with its shape (integers are converted).
#[derive(Clone, Debug)]
pub struct Values {
    /// Shape.
    pub shape: Vec<usize>,
    /// Row-major values.
    pub data: Vec<f32>,
}

impl Values {
    /// Values per row of the first axis.
    pub fn width(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Row of the first axis.
    pub fn row(&self, i: usize) -> &[f32] {
        let w = self.width();
        &self.data[i * w..(i + 1) * w]
    }
}

/// All tensors of a safetensors file.
pub fn tensors(path: &Path) -> BTreeMap<String, Values> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let convert = |t: safetensors::tensor::TensorView<'_>| {
        let d = t.data();
        let data = match t.dtype() {
            safetensors::Dtype::F32 => d
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                .collect(),
            safetensors::Dtype::F16 => d
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
            safetensors::Dtype::BF16 => d
                .chunks_exact(2)
                .map(|b| half::bf16::from_le_bytes(b.try_into().unwrap()).to_f32())
                .collect(),
            safetensors::Dtype::I64 => d
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            safetensors::Dtype::I32 => d
                .chunks_exact(4)
                .map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32)
                .collect(),
            safetensors::Dtype::I16 => d
                .chunks_exact(2)
                .map(|b| f32::from(i16::from_le_bytes(b.try_into().unwrap())))
                .collect(),
            safetensors::Dtype::U8 => d.iter().map(|&b| f32::from(b)).collect(),
            other => panic!("dtype {other:?} in {}", path.display()),
        };
        Values {
            shape: t.shape().to_vec(),
            data,
        }
    };
    file.tensors().into_iter().map(|(n, t)| (n, convert(t))).collect()
}

/// An engine on a golden folder with a given backend.
pub fn engine_with(path: &Path, backend: Arc<dyn Backend>) -> Result<Arc<Engine>, EngineError> {
    Engine::with_backend(Checkpoint::open(path, &Silent)?, backend, Registry::default())
}

/// Logits of `decode` tokens that are read one by one behind `prompt` that are read at once, under the engine's recipe with `edits`.
pub fn one_by_one(engine: &Arc<Engine>, edits: &[impl AsRef<str>], prompt: usize, decode: usize) -> Vec<Vec<f32>> {
    let mut recipe = engine.recipe();
    for edit in edits {
        recipe.set(edit.as_ref(), engine.facts(), engine.registry()).unwrap();
    }
    let vocab = engine.facts().vocab as u32;
    let id = |i: usize| (i as u32 * 37 + 3) % vocab;
    let mut session = engine.session(recipe, SessionOptions::default()).unwrap();
    let ids: Vec<u32> = (0..prompt).map(id).collect();
    session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
    let each = (prompt..prompt + decode).map(|i| {
        session.feed(&[id(i)], None, &Cancel::default(), &mut ()).unwrap();
        session.output().logits.clone()
    });
    each.collect()
}

/// An engine on the CPU backend with `threads` threads, no activation rounded.
pub fn engine(name: &str, threads: usize) -> Arc<Engine> {
    engine_on(name, Cpu::exact(threads))
}

/// An engine on the CPU backend with given settings.
pub fn engine_on(name: &str, cpu: Cpu) -> Arc<Engine> {
    let backend = Arc::new(CpuBackend::with(cpu));
    engine_with(&folder(name), backend).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// What a run produced.
#[derive(Default, Clone, Debug, PartialEq)]
pub struct Ran {
    /// `[S, V]`
    pub logits: Vec<f32>,
    /// Per layer, the residual after the block.
    pub layers: Vec<Vec<f32>>,
    /// Telemetry of every step.
    pub records: Vec<StepRecord>,
}

/// Collects outputs of a session made by [`probing`].
pub fn collect(ran: &mut Ran) -> impl FnMut(&StepRecord, &StepOutput) + '_ {
    |record, out| {
        ran.logits.extend_from_slice(&out.logits);
        ran.layers.resize(out.probes.len(), Vec::new());
        for (all, (_, _, values)) in ran.layers.iter_mut().zip(&out.probes) {
            all.extend_from_slice(values);
        }
        ran.records.push(record.clone());
    }
}

/// A session that outputs every token's logits and every layer's residual.
pub fn probing(engine: &Arc<Engine>, recipe: Recipe) -> Session {
    let options = SessionOptions {
        all_logits: true,
        probes: true,
        ..SessionOptions::default()
    };
    engine.session(recipe, options).unwrap()
}

/// Runs ids in chunks.
pub fn run(engine: &Arc<Engine>, recipe: Recipe, ids: &[u32], chunks: &[usize]) -> Ran {
    let mut ran = Ran::default();
    let mut session = probing(engine, recipe);
    session
        .feed_chunks(ids, chunks, &Cancel::default(), &mut collect(&mut ran))
        .unwrap();
    ran
}

/// Chunk schedules every golden is run with: all at once, one by one, odd.
pub fn schedules(n: usize) -> Vec<Vec<usize>> {
    let mut odd = Vec::new();
    for c in [5, 3, 16, 20, 1, 1, 1, 9, 21].into_iter().cycle() {
        let left = n - odd.iter().sum::<usize>();
        if left == 0 {
            break;
        }
        odd.push(c.min(left));
    }
    vec![vec![n], vec![1; n], odd]
}

/// Largest absolute difference.
pub fn max_abs(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// ||a - b|| / ||b||
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let (mut e, mut n) = (0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        e += f64::from(x - y).powi(2);
        n += f64::from(*y).powi(2);
    }
    (e / n.max(1e-300)).sqrt()
}

/// Index of the largest value.
pub fn argmax(v: &[f32]) -> usize {
    v.iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1))
        .map_or(0, |(i, _)| i)
}
