//! Our products for many tokens beside those of cuBLASLt, where the machine has that library.

use engine::bench::Shape as Model;
use kernels::cuda::cublaslt::{CublasLt, Measured, Shape};
use kernels::ir::{Format, Op};
use model1_tests::table::{Case as Table, Random};

use crate::runner::{Bench, Case};

/// (name, outputs, inputs) of a model's matrices: those that share their input are one product.
type Matrices = [(&'static str, usize, usize); 4];

const QWEN: Matrices = [
    ("q k v", 1536 + 2 * 256, 1536),
    ("o", 1536, 1536),
    ("gate up", 2 * 8960, 1536),
    ("down", 1536, 8960),
];
const LLAMA: Matrices = [
    ("q k v", 3 * 4096, 4096),
    ("o", 4096, 4096),
    ("gate up", 2 * 11008, 4096),
    ("down", 4096, 11008),
];

/// A case per model.
pub fn cases() -> Vec<Case> {
    [(Model::Qwen15, QWEN), (Model::Llama7, LLAMA)]
        .into_iter()
        .map(|(model, matrices)| {
            let name = format!("products beside cuBLASLt, {}", model.name());
            Case::new("timing", name, move |b| match CublasLt::open() {
                Ok(library) => beside(b, &library, &matrices),
                Err(why) => why,
            })
        })
        .collect()
}

/// `n` random bf16 numbers of standard deviation `s`.
fn numbers(seed: u64, n: usize, s: f32) -> Vec<u16> {
    let mut random = Random(seed);
    let some: Vec<u16> = (0..n.min(65_521))
        .map(|_| half::bf16::from_f32(random.normal(s)).to_bits())
        .collect();
    some.iter().copied().cycle().take(n).collect()
}

fn beside(b: &Bench, library: &CublasLt, matrices: &Matrices) -> String {
    let mut text = format!(
        "{}: bf16 x bf16, sums in f32, ten behind each other, the fastest of its ways. Ours has activations of twice the bits:\n\
         time with their division into parts (left to norms and gates where a model has them before a product), TFLOP/s of the \n\
         product and, in brackets, of what the tensor cores do for it\n",
        library.name()
    );
    for (name, rows, cols) in matrices {
        let w = numbers(1, rows * cols, 0.02);
        for tokens in [512, 1024, 2048] {
            let shape = Shape {
                rows: *rows,
                cols: *cols,
                tokens,
            };
            let x = numbers(2, tokens * cols, 1.0);
            let theirs = library
                .product(&b.device, shape, &w, &x)
                .unwrap_or_else(|e| panic!("{e}"));
            check(shape, &w, &x, &theirs);
            let ours = ours(b, shape, &w);
            let flops = 2.0 * (rows * cols * tokens) as f64;
            text += &format!(
                "{name:<8} {rows:>5} x {cols:<5} {tokens:>4} tokens: {:7.1} us, {:3.0} ({:3.0}); cuBLASLt {:6.1} us, {:3.0}; \
                 time x {:.2}, for the same work x {:.2}\n",
                ours / 1e3,
                flops / ours / 1e3,
                2.0 * flops / ours / 1e3,
                theirs.nanos / 1e3,
                flops / theirs.nanos / 1e3,
                ours / theirs.nanos,
                ours / theirs.nanos / 2.0
            );
        }
    }
    text
}

/// The library was told the right product: some outputs in double precision.
fn check(s: Shape, w: &[u16], x: &[u16], m: &Measured) {
    let value = |bits: u16| f64::from(half::bf16::from_bits(bits).to_f32());
    let size = (s.cols as f64).sqrt() * 0.02;
    for i in 0..64 {
        let (t, r) = (i * 7919 % s.tokens, i * 104_729 % s.rows);
        let pairs = x[t * s.cols..(t + 1) * s.cols]
            .iter()
            .zip(&w[r * s.cols..(r + 1) * s.cols]);
        let want: f64 = pairs.map(|(x, w)| value(*x) * value(*w)).sum();
        let got = f64::from(m.y[t * s.rows + r]);
        assert!(
            (got - want).abs() <= 1e-4 * size,
            "token {t}, output {r}: {got} instead of {want}"
        );
    }
}

/// Nanoseconds of our product, activations divided into parts included.
fn ours(b: &Bench, s: Shape, w: &[u16]) -> f64 {
    let mut c = Table::new(s.tokens, s.tokens.max(4096));
    let x = c.input(s.cols, 1.0);
    let bytes = w.iter().flat_map(|v| v.to_le_bytes()).collect();
    let (weight, out) = (c.stored(s.rows, s.cols, Format::Bf16, bytes), c.floats(s.rows));
    c.op(Op::MatMul {
        x,
        weight,
        bias: None,
        out,
    });
    c.op_nanos(b.cuda().as_ref(), 1, s.tokens, 25)
}
