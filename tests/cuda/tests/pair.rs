//! Two products of a MODEL1 layer in one launch, half by half on the emulator, beside single launches and the CPU.

use std::sync::Arc;

use kernels::cuda::device::Residency;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::Backend;
use model1_tests::goldens::{engine_with, folder, one_by_one, relative};
use model1_tests_cuda::{Emulator, Order};

/// Tokens read at once, and those read one by one behind them: compressed rows close among them.
const PROMPT: usize = 21;
const DECODE: usize = 9;

fn cuda(emulator: Emulator) -> (Arc<Emulator>, Arc<Cuda>) {
    let device = Arc::new(emulator.with_multiprocessors(7));
    let options = CudaOptions {
        graphs: false,
        guarded: false,
        ahead: false,
        counted: true,
        resident: true,
    };
    (device.clone(), Arc::new(Cuda::on(device, options)))
}

/// Logits of the tokens that are read one by one.
fn logits(backend: Arc<dyn Backend>, edits: &[String]) -> Vec<Vec<f32>> {
    one_by_one(
        &engine_with(&folder("tiny-v4"), backend).unwrap(),
        edits,
        PROMPT,
        DECODE,
    )
}

/// Weights of attention and of the experts in a format whose pairs are `kernel`, `pairs` of them in a token.
fn check(format: &str, kernel: &str, pairs: u64) {
    let edits = ["attention", "ffn"].map(|slot| format!("weights.{slot}={format}"));
    let (device, one) = cuda(Emulator::new(Order::Ascending, false));
    let got = logits(one, &edits);
    // A launch per half.
    let launched = device.launched();
    assert_eq!(
        launched.get(kernel).copied().unwrap_or(0),
        2 * pairs * DECODE as u64,
        "these were launched: {launched:?}"
    );
    let (_, other) = cuda(Emulator::new(Order::Descending, false));
    assert!(logits(other, &edits) == got, "{kernel}: other bits in another order");
    let (_, apart) = cuda(Emulator::new(Order::Ascending, false).with_resident(Residency::None));
    let apart = logits(apart, &edits);
    let worst = got.iter().zip(&apart).map(|(a, b)| relative(a, b)).fold(0.0, f64::max);
    println!("{kernel}: relative difference {worst:.1e} from single launches");
    assert!(
        worst < 2e-6,
        "{kernel}: logits differ from single launches by {worst:.1e}"
    );
}

/// Six layers: an output projection and experts in each.
#[test]
fn bf16() {
    check("bf16", "pair_bf16", 12);
}

#[test]
fn fp8() {
    check("fp8", "pair_f8", 12);
}
