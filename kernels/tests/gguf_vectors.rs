//! GGUF blocks against what the `gguf` Python package decodes them to (`tests/scripts/gguf_vectors.py`), bit for bit:
//! both sides round every product and sum to f32 on its own, in the same order.
#![allow(missing_docs, clippy::unwrap_used)]

use kernels::cpu::formats::Matrix;
use kernels::ir::{Format, Layout};
use safetensors::SafeTensors;

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/goldens/gguf-vectors/vectors.safetensors"
);

const FORMATS: [Format; 8] = [
    Format::F16,
    Format::Bf16,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q4K,
    Format::Q6K,
];

#[test]
fn rows_decode_bit_for_bit() {
    let raw = std::fs::read(FILE).unwrap();
    let file = SafeTensors::deserialize(&raw).unwrap();
    for format in FORMATS {
        let (data, want) = (
            file.tensor(&format!("{format}.raw")).unwrap(),
            file.tensor(&format!("{format}.f32")).unwrap(),
        );
        let (rows, cols) = (want.shape()[0], want.shape()[1]);
        let matrix = Matrix::new(rows, cols, format, Layout::OutIn, data.data(), None).unwrap();
        assert_eq!(matrix.row_bytes(), data.shape()[1], "{format}");
        for (row, want) in want.data().chunks_exact(4 * cols).enumerate() {
            let mut out = vec![f32::NAN; cols];
            matrix.decode_row(row, &mut out);
            for (col, (got, want)) in out.iter().zip(want.chunks_exact(4)).enumerate() {
                let want = f32::from_le_bytes([want[0], want[1], want[2], want[3]]);
                let same = got.to_bits() == want.to_bits() || (*got == 0.0 && want == 0.0);
                assert!(same, "{format} row {row} col {col}: {got} for {want}");
            }
        }
    }
}
