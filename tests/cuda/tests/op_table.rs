//! The op table on the emulator, in both orders of warps, with sentinels around every buffer and NaN in every buffer
//! before it is written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use kernels::cuda::{Cuda, CudaOptions, device_bytes};
use kernels::ir::{Backend, Format, Layout, Op};
use model1_tests::table::{Case, GROUPS, Make, On};
use model1_tests_cuda::{Emulator, Order};

const OPTIONS: CudaOptions = CudaOptions {
    graphs: false,
    guarded: true,
    ahead: true,
    counted: true,
    resident: true,
};

/// Devices that were made.
type Made = Arc<Mutex<Vec<Arc<Emulator>>>>;

/// Both orders of warps, on such devices.
fn on(device: fn(Order) -> Emulator) -> (On, Made) {
    let made = Made::default();
    let make = |order: Order| -> Make {
        let made = made.clone();
        Box::new(move || {
            let device = Arc::new(device(order));
            made.lock().unwrap().push(device.clone());
            Box::new(Cuda::on(device, OPTIONS)) as Box<dyn Backend>
        })
    };
    (On(vec![make(Order::Ascending), make(Order::Descending)]), made)
}

/// Runs a group on such devices; how often each kernel was launched.
fn run(name: &str, device: fn(Order) -> Emulator) -> BTreeMap<&'static str, u64> {
    let (_, run) = GROUPS
        .iter()
        .find(|g| g.0 == name)
        .unwrap_or_else(|| panic!("no group {name}"));
    let (on, made) = on(device);
    run(&on);
    let mut launched = BTreeMap::new();
    for device in made.lock().unwrap().iter() {
        for (kernel, times) in device.launched() {
            *launched.entry(kernel).or_default() += times;
        }
    }
    launched
}

fn group(name: &str) {
    run(name, |order| Emulator::new(order, false));
}

/// The same where blocks form clusters, whose kernels are these.
fn clusters(name: &str, kernels: &[&str]) {
    let launched = run(name, |order| Emulator::new(order, false).with_clusters());
    for kernel in kernels {
        assert!(launched.contains_key(kernel), "{kernel} is not among {launched:?}");
    }
}

#[test]
fn sites_of_clusters() {
    clusters("sites between blocks", &["hc_site_near"]);
}

#[test]
fn the_indexer_of_clusters() {
    let kernels = ["index_near_bf16", "index_near_fp8", "index_near_fp4", "select_near"];
    clusters("the indexer selects what the cpu selects", &kernels);
}

const ATTENTION: [&str; 2] = ["attend_near_512x2_bf16", "attend_near_512x2_fp8"];

#[test]
fn attention_of_clusters() {
    clusters("window and compressed rows", &ATTENTION);
}

/// More keys than blocks have places for.
#[test]
fn attention_of_clusters_at_128k_tokens() {
    clusters("latents at 128k tokens", &ATTENTION);
}

/// What Hopper's kernels take elsewhere.
#[test]
fn other_devices_have_all_products() {
    for name in [
        "products of many tokens",
        "experts of many tokens",
        "gates of many tokens",
        "attention of many tokens",
    ] {
        run(name, |order| Emulator::new(order, false).without_wgmma());
    }
}

/// Of an FP8 matrix with rows for all blocks; smaller ones have other kernels.
#[test]
fn large_products_go_through_the_ring() {
    for (rows, launches) in [(100, 0), (1000, 1)] {
        let mut c = Case::new(1, 4096);
        c.product(rows, 320, Format::F8E4m3);
        let device = Arc::new(Emulator::new(Order::Ascending, false));
        c.run(&Cuda::on(device.clone(), OPTIONS), 0, &[1], None);
        let launched = device.launched();
        assert_eq!(
            launched.get("stream_f8").copied().unwrap_or(0),
            launches,
            "{rows} rows: {launched:?}"
        );
    }
}

/// Every format takes the device memory that is predicted for it.
#[test]
fn weights_take_the_bytes_that_are_predicted() {
    for format in [
        Format::F32,
        Format::Bf16,
        Format::Fp4E2m1,
        Format::Q8_0,
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q4K,
        Format::Q6K,
    ] {
        let cuda = Cuda::on(Arc::new(Emulator::new(Order::Ascending, false)), CudaOptions::default());
        let mut c = Case::new(1, 4096);
        let table = c.weight(7, 512, format, Layout::OutIn);
        let out = c.floats(512);
        c.op(Op::Embed { table, out, copies: 1 });
        c.run(&cuda, 0, &[1], None);
        let want: u64 = c.plan.weights.iter().map(device_bytes).sum();
        assert_eq!(cuda.weight_bytes(), want, "{format}");
    }
}

macro_rules! groups {
    ($($test:ident = $name:literal;)*) => {
        $(#[test]
        fn $test() {
            group($name);
        })*

        #[test]
        fn every_group_has_a_test() {
            let tests = [$($name),*];
            for (name, _) in GROUPS {
                assert!(tests.contains(&name), "{name}");
            }
        }
    };
}

groups! {
    embeddings = "embeddings";
    products_in_every_format = "products in every format";
    products_with_scales_of_every_kind = "products with scales of every kind";
    products_of_large_matrices = "products of large matrices";
    products_stored_the_other_way = "products stored the other way";
    grouped_products = "grouped products";
    products_of_one_token = "products of one token";
    products_of_many_tokens = "products of many tokens";
    experts_of_many_tokens = "experts of many tokens";
    gates_of_many_tokens = "gates of many tokens";
    norms = "norms";
    rotations = "rotations";
    gates_and_sums = "gates and sums";
    heads_and_units_left_out = "heads and units left out";
    cache_rows_have_the_cpus_bytes = "cache rows have the cpus bytes";
    rounding_and_hadamard = "rounding and hadamard";
    pooling = "pooling";
    streams = "streams";
    sites_between_blocks = "sites between blocks";
    the_indexer_selects_what_the_cpu_selects = "the indexer selects what the cpu selects";
    dense_attention = "dense attention";
    dense_attention_over_stored_rows = "dense attention over stored rows";
    window_and_compressed_rows = "window and compressed rows";
    attention_of_many_tokens = "attention of many tokens";
    rotated_rows_of_many_tokens = "rotated rows of many tokens";
    attention_over_long_contexts = "attention over long contexts";
    latents_of_many_tokens = "latents of many tokens";
    score_expressions = "score expressions";
    routers_and_experts = "routers and experts";
    draws = "draws";
    attention_at_128k_tokens = "attention at 128k tokens";
    latents_at_128k_tokens = "latents at 128k tokens";
    indexers_at_128k_tokens = "indexers at 128k tokens";
    pooling_at_128k_tokens = "pooling at 128k tokens";
    cache_rows_at_128k_tokens = "cache rows at 128k tokens";
}
