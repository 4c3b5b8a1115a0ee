//! What MODEL1's products of one token take along in their launch: chains of rows, and products of the same input that are bf16
//! beside FP8. On Hopper such launches keep their weights in shared memory.

use std::sync::Arc;

use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::Backend;
use model1_tests::goldens::{engine_with, one_by_one, relative};
use model1_tests::models::wide_v4_fp8;
use model1_tests_cuda::{Emulator, Order};

/// Tokens read at once, and those read one by one behind them: compressed rows close among them.
const PROMPT: usize = 21;
const DECODE: usize = 9;

/// Logits of the tokens that are read one by one.
fn logits(backend: Arc<dyn Backend>, edits: &[&str]) -> Vec<Vec<f32>> {
    let dir = tempfile::tempdir().unwrap();
    wide_v4_fp8(dir.path());
    one_by_one(&engine_with(dir.path(), backend).unwrap(), edits, PROMPT, DECODE)
}

/// As many multiprocessors as Hopper has: the blocks of both formats find room.
fn emulated(order: Order, resident: bool) -> (Arc<Emulator>, Arc<Cuda>) {
    let device = Arc::new(Emulator::new(order, false).with_multiprocessors(132));
    let options = CudaOptions {
        graphs: false,
        guarded: true,
        ahead: false,
        counted: true,
        resident,
    };
    (device.clone(), Arc::new(Cuda::on(device, options)))
}

/// `kernels`: how often a token launches them.
fn check(edits: &[&str], resident: bool, kernels: &[(&str, u64)]) {
    let (device, one) = emulated(Order::Ascending, resident);
    let got = logits(one, edits);
    let launched = device.launched();
    for (kernel, times) in kernels {
        assert_eq!(
            launched.get(kernel).copied().unwrap_or(0),
            times * DECODE as u64,
            "{kernel}; these were launched: {launched:?}"
        );
    }
    let (_, other) = emulated(Order::Descending, resident);
    assert!(logits(other, edits) == got, "{edits:?}: other bits in another order");
    let cpu = logits(Arc::new(CpuBackend::with(Cpu::exact(1))), edits);
    let worst = got.iter().zip(&cpu).map(|(a, b)| relative(a, b)).fold(0.0, f64::max);
    println!("{edits:?}: relative difference {worst:.1e} from the CPU");
    assert!(worst < 5e-5, "{edits:?}: logits differ from the CPU's by {worst:.1e}");
}

const CACHES: [&str; 2] = ["layers.*.kv_cache=f32", "layers.1.index_cache=f32"];

/// Three layers, all but the first with compressed rows. The chain of the one with an indexer rotates queries, so that it comes
/// behind their product.
#[test]
fn fp8() {
    check(
        &CACHES,
        false,
        &[("gemv_f8_m3x1_bf16_m6x1", 2), ("gemv_f8_m3x1_rows", 2), ("held_f8", 0)],
    );
}

#[test]
fn held_fp8() {
    check(
        &CACHES,
        true,
        &[("held_f8_bf16", 2), ("held_f8", 4), ("gemv_f8_m3x1_rows", 0)],
    );
}

#[test]
fn held_bf16() {
    let edits = [CACHES[0], CACHES[1], "weights.attention=bf16"];
    check(&edits, true, &[("held_bf16", 6), ("gemv_bf16_x1_rows", 0)]);
}

#[test]
fn fp4() {
    let edits = [CACHES[0], CACHES[1], "weights.attention=fp4"];
    check(&edits, true, &[("gemv_fp4_m3x1_rows", 2)]);
}
