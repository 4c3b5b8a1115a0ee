//! What an error of the driver means for what follows. By number, so that an emulated device fails as a real one does.

use crate::ir::ExecError;

/// `CUDA_ERROR_OUT_OF_MEMORY`
pub const OUT_OF_MEMORY: u32 = 2;
/// `CUDA_ERROR_ILLEGAL_ADDRESS`
pub const ILLEGAL_ADDRESS: u32 = 700;
/// `CUDA_ERROR_MISALIGNED_ADDRESS`
pub const MISALIGNED_ADDRESS: u32 = 716;
/// `CUDA_ERROR_LAUNCH_FAILED`
pub const LAUNCH_FAILED: u32 = 719;

/// Errors after which every call fails until the process is another one, as `cuda.h` says of them: the driver shut down (4),
/// a device that is gone (46), memory or links that lost bits (214, 220, 226), an illegal address (700), a kernel that took
/// too long (702), a context that is gone (709), a failed assertion (710), and kernels that ended otherwise (714 to 719:
/// stack, instruction, alignment, address space, program counter, anything else; 721 on newer GPUs), an error from outside
/// (911), and what the driver has no name for (999).
const FATAL: [u32; 18] = [
    4,
    46,
    214,
    220,
    226,
    ILLEGAL_ADDRESS,
    702,
    709,
    710,
    714,
    715,
    MISALIGNED_ADDRESS,
    717,
    718,
    LAUNCH_FAILED,
    721,
    911,
    999,
];

/// Whether nothing clears this error within the process.
pub fn is_fatal(code: u32) -> bool {
    FATAL.contains(&code)
}

/// Error `code` of the driver, met while `doing` something; `words` is what the driver says about it.
pub fn error(code: u32, doing: &str, words: &str) -> ExecError {
    let said = format!("CUDA: {doing}: {words}");
    match code {
        OUT_OF_MEMORY => ExecError::OutOfMemory {
            what: format!("{doing} on the GPU"),
            bytes: 0,
        },
        _ if is_fatal(code) => ExecError::Fatal(format!("{said} (error {code})")),
        _ => ExecError::Device(said),
    }
}

/// The same where `bytes` bytes for `what` were asked for.
pub fn of_alloc(code: u32, what: &str, bytes: usize, words: &str) -> ExecError {
    match code {
        OUT_OF_MEMORY => ExecError::OutOfMemory {
            what: format!("{what} on the GPU"),
            bytes: bytes as u64,
        },
        _ => error(code, "allocating memory", words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_told_apart_by_what_follows() {
        let e = error(
            ILLEGAL_ADDRESS,
            "running on the GPU",
            "an illegal memory access was encountered",
        );
        assert!(matches!(e, ExecError::Fatal(_)));
        let said = e.to_string();
        for part in [
            "device failed",
            "illegal memory access",
            "error 700",
            "start the program again",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        // Too many resources for a launch (701), a value that makes no sense (1): the context goes on.
        for code in [1, 701, 720] {
            assert!(matches!(error(code, "launching", "w"), ExecError::Device(_)), "{code}");
        }
        for (e, amount) in [
            (
                error(OUT_OF_MEMORY, "making a graph", "out of memory"),
                "an unknown amount",
            ),
            (of_alloc(OUT_OF_MEMORY, "a cache", 77, "out of memory"), "77 bytes"),
        ] {
            let ExecError::OutOfMemory { .. } = e else {
                panic!("{e}")
            };
            assert!(e.to_string().contains(amount), "{e}");
        }
        assert!(matches!(of_alloc(719, "a cache", 77, "w"), ExecError::Fatal(_)));
    }
}
