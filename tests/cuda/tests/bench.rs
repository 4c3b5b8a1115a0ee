//! Speed is measured on a device with memory of its own, too: here an emulated one, whose figures are not looked at.

use std::sync::Arc;

use engine::bench::{Bench, Test, Work};
use engine::{Cancel, Watch};
use kernels::cuda::{Cuda, CudaOptions};
use model1_tests::goldens::{engine_with, folder};
use model1_tests_cuda::{Emulator, Order};

#[test]
fn memory_is_the_devices_and_plans_have_their_graphs() {
    let device = Arc::new(Emulator::new(Order::Ascending, true).in_units());
    let engine = engine_with(
        &folder("tiny-v4-fp8"),
        Arc::new(Cuda::on(device.clone(), CudaOptions::default())),
    )
    .unwrap();
    let bench = Bench::new(&engine, engine.recipe()).unwrap();
    assert!(bench.read_bandwidth().unwrap() > 0.0);
    assert!(device.launched()["read_bandwidth"] > 1);
    let cancel = Cancel::default();
    let mut watch = Watch {
        cancel: &cancel,
        progress: &mut |_, _| {},
    };
    for (work, depth, sequences) in [
        (Work::Prompt(5), 0, 1),
        (Work::Generate(2), 3, 1),
        (Work::Generate(2), 3, 4),
    ] {
        let test = Test { work, depth, sequences };
        let row = bench.run(test, 2, &mut watch).unwrap();
        assert_eq!(row.apart, None);
        assert_eq!((row.nanos.len(), bench.warm_up()), (2, 3));
        let peak = row.peak_memory.unwrap();
        assert!(peak > engine.weight_bytes() / 2 + row.kv_bytes, "{peak}");
        assert!(peak < (5 + 3 * sequences as u64) << 20, "{sequences}: {peak}");
        let share = row.memory_predicted as f64 / peak as f64;
        assert!(
            (0.97..=1.03).contains(&share) || sequences > 1,
            "{} predicted, {peak} taken",
            row.memory_predicted
        );
    }
}
