//! A dense model's layers and its output layer in one launch, and pairs of products of MODEL1, beside the same in single launches.

use std::sync::Arc;

use engine::bench::{RandomModel, Shape, Storage};
use engine::{Cancel, Engine, SessionOptions, Silent};
use kernels::cuda::{Cuda, CudaOptions};
use model1_tests::goldens::relative;

use crate::runner::{Bench, Case};

/// Layers of a model: an odd number, so that marks turn from step to step.
const LAYERS: usize = 3;
/// Lengths of text at which some tokens are read one by one: up to 128 keys an attention is not shared out.
const TEXTS: [usize; 5] = [1, 60, 120, 2000, 9000];
/// Tokens read one by one.
const DECODE: usize = 20;
/// Largest difference allowed, relative: both have f32-like sums over the same caches, of which a few numbers are rounded the
/// other way.
const TOLERANCE: f64 = 1e-3;
/// The same of half of the tokens.
const TYPICAL: f64 = 2e-4;

/// Logits of the tokens that are read one by one at each length, three times for graphs.
fn logits(engine: &Arc<Engine>) -> Vec<Vec<f32>> {
    let vocab = engine.facts().vocab as u32;
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    let mut all = Vec::new();
    let id = |i: usize| (i as u32).wrapping_mul(7919) % vocab;
    let mut at = 0;
    for n in TEXTS {
        let ids: Vec<u32> = (at..n).map(id).collect();
        session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
        for i in n..n + DECODE {
            session.feed(&[id(i)], None, &Cancel::default(), &mut ()).unwrap();
            all.push(session.output().logits.clone());
        }
        at = n + DECODE;
    }
    all
}

fn compare(b: &Bench, shape: Shape, storage: Storage) -> String {
    if b.device.info().resident.is_none() {
        return "no such launch among this GPU's kernels".into();
    }
    let model = RandomModel::new(shape, storage).unwrap().cut(LAYERS).unwrap();
    let run = |resident: bool| {
        let options = CudaOptions {
            resident,
            ..CudaOptions::default()
        };
        let cuda = Arc::new(Cuda::on(b.device.clone(), options));
        logits(&model.engine(cuda, &Silent).unwrap())
    };
    let (one, apart) = (run(true), run(false));
    assert!(run(true) == one, "other bits the second time");
    assert!(
        one != apart,
        "the layers were not one launch: the same bits as in single launches"
    );
    let mut each: Vec<f64> = one.iter().zip(&apart).map(|(a, b)| relative(a, b)).collect();
    each.sort_by(f64::total_cmp);
    let (worst, half) = (each[each.len() - 1], each[each.len() / 2]);
    assert!(
        worst < TOLERANCE && half < TYPICAL,
        "logits differ by {worst:.1e}, {half:.1e} of half of the tokens; allowed are {TOLERANCE:.0e} and {TYPICAL:.0e}"
    );
    format!(
        "largest relative difference of {} tokens' logits {worst:.1e}, median {half:.1e}\n",
        one.len()
    )
}

/// The shapes and formats that have such a launch.
pub fn cases() -> Vec<Case> {
    let all = [
        (Shape::Qwen15, Storage::Bf16),
        (Shape::Qwen15, Storage::Q8_0),
        (Shape::Qwen15, Storage::Q4_0),
        (Shape::Llama7, Storage::Bf16),
        (Shape::Llama7, Storage::Q8_0),
        (Shape::Llama7, Storage::Q4_0),
    ];
    let pairs = [(Shape::Model15, Storage::Bf16), (Shape::Model15, Storage::Fp8)];
    let case = |what: &str, (shape, storage): (Shape, Storage)| {
        let name = format!("{what} in one launch, {} {}", shape.name(), storage.name());
        Case::new("plans", name, move |b| compare(b, shape, storage))
    };
    let dense = all.into_iter().map(|c| case("layers", c));
    dense
        .chain(pairs.into_iter().map(|c| case("two products", c)))
        .collect()
}
