//! What the CUDA backend needs of a device. Two implementations: the driver ([`super::driver`]) and, in the tests, an
//! emulator that runs the same kernel sources on the CPU. Everything above this trait is plain Rust over addresses.
//!
//! Calls of one stream take effect in the order they are made. Addresses are of the device's memory and
//! aligned to [`ALIGN`] where they come from [`Device::alloc`].

use crate::ir::ExecError;

/// Alignment of allocations, bytes.
pub const ALIGN: usize = 256;

/// An address in device memory; 0 = none.
pub type DevPtr = u64;

/// One kernel argument. Kernels get pointers as 8 bytes and scalars in their own size.
#[derive(Clone, Copy, Debug)]
pub enum Arg<'a> {
    /// A pointer (may be 0 where the kernel says so).
    Ptr(DevPtr),
    /// `int`
    I32(i32),
    /// `unsigned`
    U32(u32),
    /// `unsigned long long`
    U64(u64),
    /// `float`
    F32(f32),
    /// A struct by value: its bytes (`#[repr(C)]`, aligned to 8 at most).
    Struct(&'a [u8]),
}

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Name of the `extern "C" __global__` function.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads per block.
    pub block: [u32; 3],
    /// Dynamic shared memory, bytes.
    pub shared: usize,
    /// It may begin while the launch before it ends (kernels wait for what they need themselves, see `KERNEL` in
    /// `src/common.cuh`). Pays where launches are short.
    pub early: bool,
    /// No two of its blocks shall be on one multiprocessor while others have none, which happens where they find room one after the
    /// other, when blocks of the launches before end. A device may launch more threads for that, so that registers do not suffice
    /// for two: such kernels end at once in threads beyond those of `block`.
    pub apart: bool,
    /// Arguments in order.
    pub args: &'a [Arg<'a>],
}

/// How blocks of a launch that wait for each other can be run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// Not at all, or the kernels for it are not there.
    #[default]
    None,
    /// Op by op: blocks run one after the other.
    Single,
    /// All at once, one block per multiprocessor.
    Whole,
}

impl Residency {
    /// Whether there is no way.
    pub fn is_none(self) -> bool {
        self == Self::None
    }
}

/// Facts about a device.
#[derive(Clone, Debug, Default)]
pub struct DeviceInfo {
    /// Name for people.
    pub name: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Compute capability (major, minor).
    pub capability: (u32, u32),
    /// Device memory, bytes.
    pub memory: u64,
    /// Second-level cache, bytes.
    pub l2: u64,
    /// Most shared memory a block can ask for, bytes.
    pub shared_per_block: usize,
    /// The kernels for Hopper's tensor cores (`gemm_wg.cu`, machine code of sm_90a) are there.
    pub wgmma: bool,
    /// Blocks can form clusters that see each other's shared memory (Hopper and newer).
    pub clusters: bool,
    /// How the layers of a dense model can be one launch (`resident_near.cu`).
    pub resident: Residency,
    /// Driver version, e.g. 13000.
    pub driver: u32,
}

/// A captured sequence of calls; made by [`Device::end_capture`].
pub trait Graph: Send + Sync {
    /// A number only its device understands.
    fn handle(&self) -> usize;
}

/// A device. Calls go to the stream in use, the first one unless [`Device::stream`] says otherwise.
pub trait Device: Send + Sync {
    /// Facts.
    fn info(&self) -> &DeviceInfo;

    /// (free, total) bytes of device memory now.
    fn memory(&self) -> Result<(u64, u64), ExecError>;

    /// Memory of `bytes` bytes, aligned to [`ALIGN`], contents undefined; `what` names it in errors.
    fn alloc(&self, bytes: usize, what: &str) -> Result<DevPtr, ExecError>;

    /// Gives memory back, after all work enqueued so far.
    fn free(&self, ptr: DevPtr);

    /// Copies into device memory. `src` may be changed when this returns.
    fn upload(&self, to: DevPtr, src: &[u8]) -> Result<(), ExecError>;

    /// Waits for all work enqueued so far, then copies out of device memory.
    fn download(&self, from: DevPtr, out: &mut [u8]) -> Result<(), ExecError>;

    /// Copies within device memory; the ranges do not overlap.
    fn copy(&self, to: DevPtr, from: DevPtr, bytes: usize) -> Result<(), ExecError>;

    /// Sets bytes.
    fn fill(&self, to: DevPtr, byte: u8, bytes: usize) -> Result<(), ExecError>;

    /// Enqueues a kernel. Empty grids are left out.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), ExecError>;

    /// From here on `launch`, `copy`, `fill`, `signal` and `wait` go to stream `n` (0 to
    /// [`STREAMS`](super::schedule::STREAMS) - 1). Everything else is for the first stream, to which it must be set back.
    fn stream(&self, n: usize);

    /// Notes under a number how far the stream in use is.
    fn signal(&self, number: usize) -> Result<(), ExecError>;

    /// The stream in use goes on when another one has come as far as was noted under that number.
    fn wait(&self, number: usize) -> Result<(), ExecError>;

    /// Waits for all work enqueued so far; reports what went wrong in it.
    fn synchronise(&self) -> Result<(), ExecError>;

    /// From here on `launch`, `copy`, `fill`, `mark`, `signal` and `wait` are recorded instead of run. Returns false where
    /// there are no graphs.
    fn begin_capture(&self) -> Result<bool, ExecError>;

    /// Ends recording.
    fn end_capture(&self) -> Result<Box<dyn Graph>, ExecError>;

    /// Enqueues a recorded sequence of this device.
    fn launch_graph(&self, graph: &dyn Graph) -> Result<(), ExecError>;

    /// Memory of the host, at an address that kernels write to; contents undefined.
    fn alloc_mail(&self, bytes: usize) -> Result<DevPtr, ExecError>;

    /// Gives it back, after all work enqueued so far.
    fn free_mail(&self, ptr: DevPtr);

    /// Notes that work enqueued so far in the first stream writes what lies at `ptr`, an address from
    /// [`Device::alloc_mail`].
    fn post(&self, ptr: DevPtr) -> Result<(), ExecError>;

    /// Copies from device memory to `at` bytes behind `ptr`, an address from [`Device::alloc_mail`], in the first stream.
    fn send(&self, ptr: DevPtr, at: usize, from: DevPtr, bytes: usize) -> Result<(), ExecError>;

    /// Waits for the work that was noted last for `ptr`, and for no more, then copies from there.
    fn collect(&self, ptr: DevPtr, out: &mut [u8]) -> Result<(), ExecError>;

    /// Nanoseconds between the points noted last for two addresses; waits for both.
    fn apart(&self, first: DevPtr, second: DevPtr) -> Result<f64, ExecError>;

    /// Notes a point in the stream under a number, for [`Device::between`].
    fn mark(&self, number: usize) -> Result<(), ExecError>;

    /// The first stream under the name the CUDA driver has for it, for libraries that enqueue their own work; `None` on devices
    /// that are none of the driver's.
    fn stream_handle(&self) -> Option<usize> {
        None
    }

    /// Nanoseconds between two noted points; waits for both.
    fn between(&self, first: usize, second: usize) -> Result<f64, ExecError>;
}
