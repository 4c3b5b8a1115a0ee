//! Stored number formats of weights, with their exact sizes.

use serde::{Deserialize, Serialize};

/// How the elements of a stored tensor are encoded. Block formats pack `block_len()` consecutive
/// elements of a row into `block_bytes()` bytes; rows always start on a block boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// IEEE binary32, little endian.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
    /// OCP E4M3 (no infinities); scales, if any, live in a separate tensor (see [`ScaleSpec`]).
    F8E4m3,
    /// Packed E2M1, two per byte, low nibble first; scales in a separate tensor.
    Fp4E2m1,
    /// GGUF Q8_0: 32 values, f16 scale then 32 i8.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// GGUF Q4_0: 32 values, f16 scale, 16 bytes of nibbles (value - 8).
    #[serde(rename = "q4_0")]
    Q4_0,
    /// GGUF Q4_1: 32 values, f16 scale, f16 minimum, 16 bytes of nibbles.
    #[serde(rename = "q4_1")]
    Q4_1,
    /// GGUF Q5_0: 32 values, f16 scale, 4 bytes of high bits, 16 bytes of nibbles (value - 16).
    #[serde(rename = "q5_0")]
    Q5_0,
    /// GGUF Q4_K: 256 values in 8 sub-blocks, 6-bit scales and minimums.
    #[serde(rename = "q4_k")]
    Q4K,
    /// GGUF Q6_K: 256 values in 16 sub-blocks, 8-bit scales.
    #[serde(rename = "q6_k")]
    Q6K,
    /// Signed 32-bit integers (routing tables).
    I32,
    /// Signed 64-bit integers (routing tables).
    I64,
}

impl Format {
    /// Elements per block (1 for plain formats, 2 for packed FP4).
    pub const fn block_len(self) -> usize {
        match self {
            Format::F32 | Format::F16 | Format::Bf16 | Format::F8E4m3 | Format::I32 | Format::I64 => 1,
            Format::Fp4E2m1 => 2,
            Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 => 32,
            Format::Q4K | Format::Q6K => 256,
        }
    }

    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        match self {
            Format::F32 | Format::I32 => 4,
            Format::F16 | Format::Bf16 => 2,
            Format::F8E4m3 | Format::Fp4E2m1 => 1,
            Format::Q8_0 => 34,
            Format::Q4_0 => 18,
            Format::Q4_1 => 20,
            Format::Q5_0 => 22,
            Format::Q4K => 144,
            Format::Q6K => 210,
            Format::I64 => 8,
        }
    }

    /// Bytes of one row of `cols` elements; `None` when `cols` is not a whole number of blocks.
    pub const fn row_bytes(self, cols: usize) -> Option<usize> {
        if !cols.is_multiple_of(self.block_len()) {
            return None;
        }
        (cols / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Bits per element, scales in separate tensors not counted.
    pub fn bits(self) -> f64 {
        self.block_bytes() as f64 * 8.0 / self.block_len() as f64
    }

    /// The name shown to people (`bf16`, `q4_0`, ...).
    pub const fn name(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::F16 => "f16",
            Format::Bf16 => "bf16",
            Format::F8E4m3 => "f8_e4m3",
            Format::Fp4E2m1 => "fp4_e2m1",
            Format::Q8_0 => "q8_0",
            Format::Q4_0 => "q4_0",
            Format::Q4_1 => "q4_1",
            Format::Q5_0 => "q5_0",
            Format::Q4K => "q4_k",
            Format::Q6K => "q6_k",
            Format::I32 => "i32",
            Format::I64 => "i64",
        }
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// How the separate scale tensor of an FP8 or FP4 weight is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleFormat {
    /// IEEE binary32 multiplier.
    F32,
    /// bfloat16 multiplier.
    Bf16,
    /// Power of two, value 2^(byte - 127).
    E8m0,
}

impl ScaleFormat {
    /// Bytes per scale.
    pub const fn bytes(self) -> usize {
        match self {
            ScaleFormat::F32 => 4,
            ScaleFormat::Bf16 => 2,
            ScaleFormat::E8m0 => 1,
        }
    }
}

/// Separate scales of a weight matrix `[rows, cols]`: one per `block_rows x block_cols` tile,
/// stored row-major as `[ceil(rows/block_rows), ceil(cols/block_cols)]`; edge tiles are partial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ScaleSpec {
    /// Encoding of one scale.
    pub format: ScaleFormat,
    /// Rows one scale covers (128 for FP8 weights, 1 for FP4).
    pub block_rows: usize,
    /// Columns one scale covers (128 for FP8 weights, 32 for FP4).
    pub block_cols: usize,
}

/// Which way a weight matrix is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `[out, in]`, as PyTorch's Linear: `y = W x`.
    OutIn,
    /// `[in, out]`, as GPT-2's Conv1D: `y = x W`.
    InOut,
}
