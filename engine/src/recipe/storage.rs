//! How the matrices of a block are stored.

use kernels::ir::{Format, Layout, ScaleFormat, ScaleSpec, WeightDesc};

/// A storage that matrices can be put in when a recipe asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WeightStorage {
    /// As in the checkpoint.
    Own,
    /// bfloat16.
    Bf16,
    /// e4m3 with one power-of-two scale per 128 x 128 block.
    Fp8,
    /// e2m1 with one power-of-two scale per 32 values along the inputs.
    Fp4,
}

impl WeightStorage {
    /// All of them.
    pub const ALL: [WeightStorage; 4] = [
        WeightStorage::Own,
        WeightStorage::Bf16,
        WeightStorage::Fp8,
        WeightStorage::Fp4,
    ];

    /// The name used in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            WeightStorage::Own => "own",
            WeightStorage::Bf16 => "bf16",
            WeightStorage::Fp8 => "fp8",
            WeightStorage::Fp4 => "fp4",
        }
    }

    const fn form(self) -> Option<(Format, Option<ScaleSpec>)> {
        const fn scales(block_rows: usize, block_cols: usize) -> Option<ScaleSpec> {
            Some(ScaleSpec {
                format: ScaleFormat::E8m0,
                block_rows,
                block_cols,
            })
        }
        match self {
            WeightStorage::Own => None,
            WeightStorage::Bf16 => Some((Format::Bf16, None)),
            WeightStorage::Fp8 => Some((Format::F8E4m3, scales(128, 128))),
            WeightStorage::Fp4 => Some((Format::Fp4E2m1, scales(1, 32))),
        }
    }

    /// What `own` becomes, always `[outputs, inputs]`. `None` where nothing has to be made: for [`WeightStorage::Own`],
    /// and where the checkpoint stores it so already.
    pub fn of(self, own: &WeightDesc) -> Option<WeightDesc> {
        let (format, scales) = self.form()?;
        if own.format == format && own.scales == scales {
            return None;
        }
        Some(WeightDesc {
            name: format!("{} as {}", own.name, self.name()),
            layout: Layout::OutIn,
            format,
            scales,
            ..own.clone()
        })
    }
}
