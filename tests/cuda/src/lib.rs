//! A device that is an emulator: kernels compiled for the CPU run in host memory, every allocation between sentinels.

mod faults;

pub use faults::{Faults, Left};

use std::alloc::Layout;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CStr, CString, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kernels::cuda::device::{Arg, DevPtr, Device, DeviceInfo, Graph, Launch, Residency};
use kernels::cuda::fault;
use kernels::cuda::memory::taken;
use kernels::ir::ExecError;

// SAFETY: signatures as in kernels/cuda/emulate/simt.cpp.
unsafe extern "C" {
    fn simt_order(backwards: i32);
    fn simt_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        shared: usize,
        args: *const u8,
        bytes: usize,
    ) -> *const c_char;
}

/// Bytes before and behind every allocation.
const GUARD: usize = 256;
/// What they hold.
const SENTINEL: u8 = 0xa5;
/// What fresh memory holds: NaN as floats, so that reading it before writing shows.
const FRESH: u8 = 0xff;

/// Order in which the emulator runs the warps of a block, and the lanes of a warp. Results must not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// First to last.
    Ascending,
    /// Last to first.
    Descending,
}

#[derive(Clone, Debug)]
struct OwnedLaunch {
    kernel: &'static str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: usize,
    args: Vec<u8>,
}

#[derive(Clone, Debug)]
enum Call {
    Launch(OwnedLaunch),
    Copy(DevPtr, DevPtr, usize),
    Fill(DevPtr, u8, usize),
    Mark(usize),
    Stream(usize),
    Signal(usize),
    Wait(usize),
}

/// Calls of the streams other than the first wait here until somebody waits for them: as late as the signals allow, so that
/// a dependency that was forgotten shows.
#[derive(Default)]
struct Streams {
    used: usize,
    waiting: Vec<VecDeque<Call>>,
    /// Stream of each signal that was given, by number, and whether that stream has come so far.
    signals: BTreeMap<usize, (usize, bool)>,
}

#[derive(Default)]
struct Inner {
    streams: Streams,
    /// Bytes by address.
    memory: BTreeMap<DevPtr, usize>,
    recording: Option<Vec<Call>>,
    graphs: Vec<Vec<Call>>,
    marks: BTreeMap<usize, Instant>,
    /// Those of `memory` that are the host's.
    mails: BTreeSet<DevPtr>,
    /// When each of them was posted last.
    posted: BTreeMap<DevPtr, Instant>,
    launched: BTreeMap<&'static str, u64>,
    uploaded: u64,
    launches: u64,
    allocations: u64,
    /// The error that every call answers from now on.
    broken: Option<u32>,
}

impl Inner {
    /// Whether the device still answers.
    fn answers(&self) -> Result<(), ExecError> {
        self.broken.map_or(Ok(()), |code| Err(faults::said(code)))
    }
}

/// The emulated device.
pub struct Emulator {
    info: DeviceInfo,
    order: Order,
    graphs: bool,
    /// Memory that is freed stays, as NaN.
    keeps: bool,
    /// Memory is counted in the units of a driver.
    units: bool,
    faults: Faults,
    inner: Mutex<Inner>,
}

struct Recorded(usize);

impl Graph for Recorded {
    fn handle(&self) -> usize {
        self.0
    }
}

fn device_error<T>(text: String) -> Result<T, ExecError> {
    Err(ExecError::Device(text))
}

impl Emulator {
    /// A device that runs warps in this order, with or without recording of graphs.
    pub fn new(order: Order, graphs: bool) -> Self {
        Self {
            info: DeviceInfo {
                name: "emulator".into(),
                multiprocessors: 4,
                capability: (9, 0),
                memory: 1 << 33,
                l2: 1 << 20,
                shared_per_block: 227 << 10,
                wgmma: true,
                clusters: false,
                resident: Residency::Single,
                driver: 13000,
            },
            order,
            graphs,
            keeps: false,
            units: false,
            faults: Faults::default(),
            inner: Mutex::default(),
        }
    }

    /// The same, on which this goes wrong.
    pub fn with_faults(mut self, faults: Faults) -> Self {
        self.faults = faults;
        self
    }

    /// The same without the kernels for Hopper's tensor cores: products take the way of all other devices.
    pub fn without_wgmma(mut self) -> Self {
        self.info.wgmma = false;
        self
    }

    /// The same on which blocks of a cluster see each other's shared memory.
    pub fn with_clusters(mut self) -> Self {
        self.info.clusters = true;
        self
    }

    /// The same with another number of multiprocessors.
    pub fn with_multiprocessors(mut self, n: u32) -> Self {
        self.info.multiprocessors = n;
        self
    }

    /// The same where a dense model's layers are one launch in this way.
    pub fn with_resident(mut self, resident: Residency) -> Self {
        self.info.resident = resident;
        self
    }

    /// The same with `bytes` bytes of memory; what was freed keeps its place in the process, filled with NaN, so that a
    /// kernel that still reads it shows.
    pub fn with_memory(mut self, bytes: u64) -> Self {
        self.info.memory = bytes;
        self.keeps = true;
        self
    }

    /// The same, an allocation counted as what a driver takes for it.
    pub fn in_units(mut self) -> Self {
        self.units = true;
        self
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often each kernel was launched.
    pub fn launched(&self) -> BTreeMap<&'static str, u64> {
        self.inner().launched.clone()
    }

    /// Bytes that were uploaded so far.
    pub fn uploaded(&self) -> u64 {
        self.inner().uploaded
    }

    /// Bytes that can still be allocated.
    fn free_bytes(&self, inner: &Inner) -> u64 {
        let own = inner.memory.iter().filter(|(ptr, _)| !inner.mails.contains(ptr));
        let counted = |bytes: usize| if self.units { taken(bytes) } else { bytes as u64 };
        let used: u64 = own.map(|(_, bytes)| counted(*bytes)).sum();
        let own = self.info.memory - used;
        let left = self.faults.left.as_ref().and_then(|left| left());
        let later = self.faults.left_from.filter(|l| inner.launches >= l.0).map(|l| l.1);
        left.into_iter().chain(later).fold(own, u64::min)
    }

    /// Whether `bytes` bytes at `at` lie within one allocation.
    fn check(inner: &Inner, at: DevPtr, bytes: usize) -> Result<(), ExecError> {
        let found = inner.memory.range(..=at).next_back();
        match found {
            Some((start, len)) if at + bytes as u64 <= start + *len as u64 => Ok(()),
            _ if bytes == 0 => Ok(()),
            _ => device_error(format!("{bytes} bytes at {at:#x} are not within an allocation")),
        }
    }

    /// Looks at the sentinels of every allocation.
    fn check_sentinels(inner: &Inner, after: &str) -> Result<(), ExecError> {
        for (&ptr, &bytes) in &inner.memory {
            for at in [ptr - GUARD as u64, ptr + bytes as u64] {
                // SAFETY: both guards belong to the live allocation.
                let guard = unsafe { std::slice::from_raw_parts(at as *const u8, GUARD) };
                if let Some(i) = guard.iter().position(|&b| b != SENTINEL) {
                    let side = if at < ptr { "before" } else { "behind" };
                    return device_error(format!(
                        "{after}: written {side} an allocation of {bytes} bytes, byte {i} of the guard"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Runs a call, or keeps it for later if it is of another stream than the first.
    fn run(&self, inner: &mut Inner, call: &Call) -> Result<(), ExecError> {
        if let Call::Stream(n) = call {
            inner.streams.used = *n;
            return Ok(());
        }
        let used = inner.streams.used;
        if let Call::Signal(number) = call {
            inner.streams.signals.insert(*number, (used, false));
        }
        if used == 0 {
            return self.now(inner, call);
        }
        let waiting = &mut inner.streams.waiting;
        waiting.resize_with(waiting.len().max(used + 1), VecDeque::new);
        waiting[used].push_back(call.clone());
        Ok(())
    }

    /// Runs what its stream holds up to a signal.
    fn run_up_to(&self, inner: &mut Inner, number: usize) -> Result<(), ExecError> {
        let Some(&(stream, there)) = inner.streams.signals.get(&number) else {
            return device_error(format!("waiting for signal {number}, which was not given"));
        };
        if there {
            return Ok(());
        }
        while let Some(call) = inner.streams.waiting.get_mut(stream).and_then(VecDeque::pop_front) {
            self.now(inner, &call)?;
            if matches!(call, Call::Signal(n) if n == number) {
                break;
            }
        }
        Ok(())
    }

    fn now(&self, inner: &mut Inner, call: &Call) -> Result<(), ExecError> {
        if inner.broken.is_some() {
            // Nothing runs any more; whoever asks for the outcome is told.
            return Ok(());
        }
        match call {
            Call::Stream(_) => Ok(()),
            Call::Signal(number) => {
                if let Some(signal) = inner.streams.signals.get_mut(number) {
                    signal.1 = true;
                }
                Ok(())
            }
            Call::Wait(number) => self.run_up_to(inner, *number),
            Call::Launch(l) => {
                *inner.launched.entry(l.kernel).or_default() += 1;
                inner.launches += 1;
                if let Some((number, code)) = self.faults.launch
                    && number == inner.launches
                {
                    inner.broken = Some(code);
                    return Ok(());
                }
                let name = CString::new(l.kernel).map_err(|e| ExecError::Device(e.to_string()))?;
                // SAFETY: the struct's size is compared on the other side; the addresses in it are the backend's own.
                let wrong = unsafe {
                    simt_order((self.order == Order::Descending).into());
                    simt_launch(
                        name.as_ptr(),
                        l.grid.as_ptr(),
                        l.block.as_ptr(),
                        l.shared,
                        l.args.as_ptr(),
                        l.args.len(),
                    )
                };
                if !wrong.is_null() {
                    // SAFETY: a static C string.
                    let text = unsafe { CStr::from_ptr(wrong) }.to_string_lossy();
                    return device_error(format!("kernel `{}`: {text}", l.kernel));
                }
                Self::check_sentinels(inner, l.kernel)
            }
            Call::Mark(number) => {
                inner.marks.insert(*number, Instant::now());
                Ok(())
            }
            Call::Copy(to, from, bytes) => {
                Self::check(inner, *to, *bytes)?;
                Self::check(inner, *from, *bytes)?;
                // SAFETY: both ranges lie within live allocations.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
                Ok(())
            }
            Call::Fill(to, byte, bytes) => {
                Self::check(inner, *to, *bytes)?;
                // SAFETY: the range lies within a live allocation.
                unsafe { std::ptr::write_bytes(*to as *mut u8, *byte, *bytes) };
                Ok(())
            }
        }
    }

    fn enqueue(&self, call: Call) -> Result<(), ExecError> {
        let mut inner = self.inner();
        inner.answers()?;
        if let Some(recording) = &mut inner.recording {
            recording.push(call);
            return Ok(());
        }
        self.run(&mut inner, &call)
    }

    fn layout(bytes: usize) -> Result<Layout, ExecError> {
        Layout::from_size_align(bytes + 2 * GUARD, GUARD).map_err(|e| ExecError::Device(e.to_string()))
    }

    /// Memory of the process, between sentinels.
    fn take(inner: &mut Inner, bytes: usize, what: &str) -> Result<DevPtr, ExecError> {
        let layout = Self::layout(bytes)?;
        // SAFETY: the size is not 0 (guards); everything is initialised below.
        let base = unsafe { std::alloc::alloc(layout) };
        if base.is_null() {
            return Err(fault::of_alloc(fault::OUT_OF_MEMORY, what, bytes, "out of memory"));
        }
        // SAFETY: within the allocation just made.
        unsafe {
            std::ptr::write_bytes(base, SENTINEL, bytes + 2 * GUARD);
            std::ptr::write_bytes(base.add(GUARD), FRESH, bytes);
        }
        let ptr = base as u64 + GUARD as u64;
        inner.memory.insert(ptr, bytes);
        Ok(ptr)
    }
}

impl Device for Emulator {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<(u64, u64), ExecError> {
        let inner = self.inner();
        inner.answers()?;
        Ok((self.free_bytes(&inner), self.info.memory))
    }

    fn alloc(&self, bytes: usize, what: &str) -> Result<DevPtr, ExecError> {
        let mut inner = self.inner();
        if inner.recording.is_some() {
            return device_error(format!("memory for {what} asked for while a graph is recorded"));
        }
        inner.answers()?;
        inner.allocations += 1;
        if self.faults.alloc == Some(inner.allocations) || bytes as u64 > self.free_bytes(&inner) {
            return Err(fault::of_alloc(fault::OUT_OF_MEMORY, what, bytes, "out of memory"));
        }
        Self::take(&mut inner, bytes, what)
    }

    fn free(&self, ptr: DevPtr) {
        let mut inner = self.inner();
        let found = inner.memory.remove(&ptr);
        if let (Some(bytes), true) = (found, self.keeps) {
            // SAFETY: made by `alloc` with as many bytes, and not deallocated.
            unsafe { std::ptr::write_bytes(ptr as *mut u8, FRESH, bytes) };
        } else if let Some(bytes) = found
            && let Ok(layout) = Self::layout(bytes)
        {
            // SAFETY: made by `alloc` with this layout, and no longer listed.
            unsafe { std::alloc::dealloc((ptr - GUARD as u64) as *mut u8, layout) };
        }
    }

    fn upload(&self, to: DevPtr, src: &[u8]) -> Result<(), ExecError> {
        let mut inner = self.inner();
        inner.answers()?;
        inner.uploaded += src.len() as u64;
        Self::check(&inner, to, src.len())?;
        // SAFETY: the range lies within a live allocation.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), to as *mut u8, src.len()) };
        Ok(())
    }

    fn download(&self, from: DevPtr, out: &mut [u8]) -> Result<(), ExecError> {
        let inner = self.inner();
        inner.answers()?;
        if inner.streams.used != 0 || inner.streams.waiting.iter().any(|w| !w.is_empty()) {
            return device_error("work is left on a stream that nobody waited for".into());
        }
        Self::check(&inner, from, out.len())?;
        // SAFETY: the range lies within a live allocation.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, out.as_mut_ptr(), out.len()) };
        Ok(())
    }

    fn copy(&self, to: DevPtr, from: DevPtr, bytes: usize) -> Result<(), ExecError> {
        self.enqueue(Call::Copy(to, from, bytes))
    }

    fn fill(&self, to: DevPtr, byte: u8, bytes: usize) -> Result<(), ExecError> {
        self.enqueue(Call::Fill(to, byte, bytes))
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<(), ExecError> {
        if launch.grid.contains(&0) {
            return Ok(());
        }
        if launch.shared > self.info.shared_per_block {
            return device_error(format!(
                "kernel `{}`: {} bytes of shared memory",
                launch.kernel, launch.shared
            ));
        }
        let mut args = Vec::new();
        for arg in launch.args {
            match arg {
                Arg::Ptr(v) | Arg::U64(v) => args.extend(v.to_le_bytes()),
                Arg::I32(v) => args.extend(v.to_le_bytes()),
                Arg::U32(v) => args.extend(v.to_le_bytes()),
                Arg::F32(v) => args.extend(v.to_le_bytes()),
                Arg::Struct(v) => args.extend_from_slice(v),
            }
        }
        self.enqueue(Call::Launch(OwnedLaunch {
            kernel: launch.kernel,
            grid: launch.grid,
            block: launch.block,
            shared: launch.shared,
            args,
        }))
    }

    fn stream(&self, n: usize) {
        // Cannot fail.
        let _ = self.enqueue(Call::Stream(n));
    }

    fn signal(&self, number: usize) -> Result<(), ExecError> {
        self.enqueue(Call::Signal(number))
    }

    fn wait(&self, number: usize) -> Result<(), ExecError> {
        self.enqueue(Call::Wait(number))
    }

    fn synchronise(&self) -> Result<(), ExecError> {
        let inner = self.inner();
        inner.answers()?;
        Self::check_sentinels(&inner, "synchronise")
    }

    fn begin_capture(&self) -> Result<bool, ExecError> {
        if self.graphs {
            self.inner().recording = Some(Vec::new());
        }
        Ok(self.graphs)
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>, ExecError> {
        let mut inner = self.inner();
        let Some(calls) = inner.recording.take() else {
            return device_error("no graph is being recorded".into());
        };
        inner.graphs.push(calls);
        Ok(Box::new(Recorded(inner.graphs.len() - 1)))
    }

    fn launch_graph(&self, graph: &dyn Graph) -> Result<(), ExecError> {
        let mut inner = self.inner();
        inner.answers()?;
        let Some(calls) = inner.graphs.get(graph.handle()).cloned() else {
            return device_error(format!("there is no graph {}", graph.handle()));
        };
        calls.iter().try_for_each(|c| self.run(&mut inner, c))
    }

    fn alloc_mail(&self, bytes: usize) -> Result<DevPtr, ExecError> {
        let mut inner = self.inner();
        inner.answers()?;
        let ptr = Self::take(&mut inner, bytes, "answers")?;
        inner.mails.insert(ptr);
        Ok(ptr)
    }

    fn free_mail(&self, ptr: DevPtr) {
        let mut inner = self.inner();
        inner.posted.remove(&ptr);
        inner.mails.remove(&ptr);
        drop(inner);
        self.free(ptr);
    }

    fn post(&self, ptr: DevPtr) -> Result<(), ExecError> {
        let mut inner = self.inner();
        inner.answers()?;
        inner.posted.insert(ptr, Instant::now());
        Ok(())
    }

    fn send(&self, ptr: DevPtr, at: usize, from: DevPtr, bytes: usize) -> Result<(), ExecError> {
        self.copy(ptr + at as u64, from, bytes)
    }

    fn collect(&self, ptr: DevPtr, out: &mut [u8]) -> Result<(), ExecError> {
        if !self.inner().posted.contains_key(&ptr) {
            return device_error(format!("nothing was posted to {ptr:#x}"));
        }
        self.download(ptr, out)
    }

    fn apart(&self, first: DevPtr, second: DevPtr) -> Result<f64, ExecError> {
        let inner = self.inner();
        match (inner.posted.get(&first), inner.posted.get(&second)) {
            (Some(a), Some(b)) => Ok(b.duration_since(*a).as_nanos() as f64),
            _ => device_error(format!("nothing was posted to {first:#x} or {second:#x}")),
        }
    }

    fn mark(&self, number: usize) -> Result<(), ExecError> {
        self.enqueue(Call::Mark(number))
    }

    fn between(&self, first: usize, second: usize) -> Result<f64, ExecError> {
        let inner = self.inner();
        match (inner.marks.get(&first), inner.marks.get(&second)) {
            (Some(a), Some(b)) => Ok(b.duration_since(*a).as_nanos() as f64),
            _ => device_error(format!("points {first} and {second} were not both noted")),
        }
    }
}
