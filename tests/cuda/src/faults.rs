//! What goes wrong on an emulated device. Nothing does unless a test says so.

use kernels::cuda::fault;
use kernels::ir::ExecError;

/// Bytes that whoever else uses the device leaves free now; `None` = all of them.
pub type Left = Box<dyn Fn() -> Option<u64> + Send + Sync>;

/// What is to go wrong.
#[derive(Default)]
pub struct Faults {
    /// The launch of this number (1 = the first) ends with this error of the driver. As on a GPU the launch itself
    /// succeeds, and every call after it fails.
    pub launch: Option<(u64, u32)>,
    /// The allocation of this number (1 = the first) finds no memory, whatever there is.
    pub alloc: Option<u64>,
    /// Others on the device.
    pub left: Option<Left>,
    /// From the launch of this number on others leave so many bytes free.
    pub left_from: Option<(u64, u64)>,
}

impl Faults {
    /// From words: `launch=NUMBER:ERROR`, `alloc=NUMBER` and `left=LAUNCH:BYTES`, in any order.
    ///
    /// # Errors
    /// The word that is not understood.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for word in text.split_whitespace() {
            let wrong = || format!("found `{word}`, accepted: launch=NUMBER:ERROR, alloc=NUMBER, left=LAUNCH:BYTES");
            let (name, value) = word.split_once('=').ok_or_else(wrong)?;
            match (name, value.split_once(':')) {
                ("launch", Some((number, code))) => {
                    let both = number.parse().ok().zip(code.parse().ok());
                    faults.launch = Some(both.ok_or_else(wrong)?);
                }
                ("left", Some((number, bytes))) => {
                    let both = number.parse().ok().zip(bytes.parse().ok());
                    faults.left_from = Some(both.ok_or_else(wrong)?);
                }
                ("alloc", None) => faults.alloc = Some(value.parse().map_err(|_| wrong())?),
                _ => return Err(wrong()),
            }
        }
        Ok(faults)
    }
}

/// What the driver says about an error.
pub(crate) fn said(code: u32) -> ExecError {
    let words = match code {
        fault::ILLEGAL_ADDRESS => "an illegal memory access was encountered",
        fault::MISALIGNED_ADDRESS => "misaligned address",
        fault::LAUNCH_FAILED => "unspecified launch failure",
        214 => "uncorrectable ECC error encountered",
        _ => "an error of this number",
    };
    fault::error(code, "running on the GPU", words)
}
