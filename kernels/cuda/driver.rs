//! [`Device`] through the CUDA driver. The library is loaded when a device is opened; without it, or with one that is
//! too old, opening fails with a message and nothing else happens.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::device::{Arg, DevPtr, Device, DeviceInfo, Graph, Launch, Residency};
use super::fault;
use super::posts::Posts;
use super::schedule::STREAMS;
use crate::ir::ExecError;

include!(concat!(env!("OUT_DIR"), "/fatbins.rs"));

/// Oldest driver: what the kernels' compiler asks for.
const DRIVER: i32 = 13000;
/// Oldest compute capability, major.
const CAPABILITY: i32 = 8;
/// Bytes of the page-locked buffer downloads go through: an ordinary buffer is copied at a quarter of the speed.
const STAGING: usize = 4 << 20;
/// Kernels whose blocks are to begin beside those of the launch before, by how their names begin. They ask for the same share of a
/// multiprocessor's memory: one that would have to share it out anew takes none before its last block has ended. Not for all: products
/// that read long vectors again and again want it as a cache (GPT-3's shape in FP4: 19 instead of 24 tokens/s).
const NEIGHBOURS: [&str; 5] = ["held_", "pair_", "attend_near_", "index_near_", "hc_site_near"];

/// Reads go through [`Driver::call`], so that the context is current on whatever thread calls.
pub struct Driver {
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    /// The streams launches can go to, `stream` first; and the one in use.
    streams: Vec<sys::CUstream>,
    used: AtomicUsize,
    signals: Mutex<Vec<sys::CUevent>>,
    info: DeviceInfo,
    modules: Vec<sys::CUmodule>,
    /// Of a multiprocessor.
    registers: u32,
    functions: Mutex<HashMap<&'static str, Function>>,
    staging: Mutex<*mut c_void>,
    marks: Mutex<Vec<sys::CUevent>>,
    posts: Posts,
    /// A graph is being recorded.
    recording: AtomicBool,
    /// Launches that may begin early do (programmatic dependent launch). Off with MODEL1_CUDA_PDL=0, and on GPUs before
    /// Hopper.
    overlap: bool,
}

#[derive(Clone, Copy)]
struct Function(sys::CUfunction);

// SAFETY: the driver's handles may be used from every thread (its API is thread safe once the context is current, which
// `call` sees to); the staging buffer is used under its lock.
unsafe impl Send for Driver {}
// SAFETY: as above.
unsafe impl Sync for Driver {}
// SAFETY: a handle of a loaded module, valid for as long as the module.
unsafe impl Send for Function {}

pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the driver says about an error, for people.
fn words(e: result::DriverError) -> String {
    let said = e.error_string().ok().map(|s| s.to_string_lossy().into_owned());
    said.unwrap_or_else(|| format!("error {:?}", e.0))
}

pub(super) fn failed(what: &str) -> impl Fn(result::DriverError) -> ExecError + '_ {
    move |e| fault::error(e.0 as u32, what, &words(e))
}

impl Driver {
    /// Opens device `ordinal`. The error is a sentence that says what is missing.
    pub fn open(ordinal: usize) -> Result<Self, String> {
        if FATBINS.is_empty() {
            return Err(format!("this program has no CUDA kernels: {WITHOUT}"));
        }
        // SAFETY: looks for the library only.
        if !unsafe { sys::is_culib_present() } {
            return Err("no NVIDIA driver is installed (libcuda was not found)".into());
        }
        result::init().map_err(|e| format!("the NVIDIA driver does not start: {}", words(e)))?;
        let mut version = 0;
        // SAFETY: writes one int.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|e| format!("the NVIDIA driver does not tell its version: {}", words(e)))?;
        if version < DRIVER {
            return Err(format!(
                "the NVIDIA driver is too old: it runs CUDA {}.{}, this program needs CUDA 13.0 (driver 580 or newer)",
                version / 1000,
                version % 1000 / 10
            ));
        }
        let count = result::device::get_count().map_err(|e| format!("no NVIDIA GPU: {}", words(e)))?;
        if ordinal as i64 >= i64::from(count) {
            return Err(format!("there are {count} NVIDIA GPUs; number {ordinal} was asked for"));
        }
        Self::start(ordinal as i32, version as u32)
    }

    fn start(ordinal: i32, version: u32) -> Result<Self, String> {
        let problem = |what: &'static str| move |e| format!("{what}: {}", words(e));
        let device = result::device::get(ordinal).map_err(problem("the GPU cannot be used"))?;
        let attribute = |a: Attribute| {
            // SAFETY: the device handle was just made.
            unsafe { result::device::get_attribute(device, a) }.map_err(problem("the GPU does not answer"))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let name = result::device::get_name(device).map_err(problem("the GPU has no name"))?;
        if major < CAPABILITY {
            return Err(format!(
                "{name} has compute capability {major}.{minor}; {CAPABILITY}.0 or newer is needed (Ampere, 2020)"
            ));
        }
        // SAFETY: the device handle is valid.
        let memory = unsafe { result::device::total_mem(device) }.map_err(problem("the GPU does not answer"))?;
        let info = DeviceInfo {
            name,
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            capability: (major as u32, minor as u32),
            memory: memory as u64,
            l2: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as u64,
            shared_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
            wgmma: false,
            clusters: major >= 9,
            resident: Residency::None,
            driver: version,
        };
        // SAFETY: the device handle is valid; the context is released in `drop`.
        let context = unsafe { result::primary_ctx::retain(device) }
            .map_err(problem("the GPU cannot be used (is its memory full?)"))?;
        let mut driver = Self {
            device,
            context,
            stream: std::ptr::null_mut(),
            streams: Vec::new(),
            used: AtomicUsize::new(0),
            signals: Mutex::default(),
            info,
            modules: Vec::new(),
            registers: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR)? as u32,
            functions: Mutex::default(),
            staging: Mutex::new(std::ptr::null_mut()),
            marks: Mutex::default(),
            posts: Posts::default(),
            recording: AtomicBool::new(false),
            overlap: major >= 9 && !std::env::var("MODEL1_CUDA_PDL").is_ok_and(|v| v == "0"),
        };
        driver.prepare().map_err(|e| e.to_string())?;
        Ok(driver)
    }

    fn prepare(&mut self) -> Result<(), ExecError> {
        self.current()?;
        self.stream =
            result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed("making a stream"))?;
        self.streams = vec![self.stream];
        for _ in 1..STREAMS {
            let kind = result::stream::StreamKind::NonBlocking;
            self.streams
                .push(result::stream::create(kind).map_err(failed("making a stream"))?);
        }
        for (name, image) in FATBINS {
            // SAFETY: a fat binary made by nvcc, embedded whole.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            self.modules.push(module.map_err(|e| match e.0 {
                CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => ExecError::Device(format!(
                    "this program has no kernels for {} (compute capability {}.{}); build it with \
                     MODEL1_CUDA_ARCHS={}{}",
                    self.info.name,
                    self.info.capability.0,
                    self.info.capability.1,
                    self.info.capability.0,
                    self.info.capability.1
                )),
                _ => ExecError::Device(format!("CUDA: loading the kernels of `{name}`: {}", words(e))),
            })?);
        }
        // Its source has no kernels for other targets than sm_90a.
        self.info.wgmma = self.function("gemm_wg").is_ok();
        // Kernels of clusters are in no PTX for older GPUs, which newer ones run where there is no machine code for them.
        self.info.clusters = self.info.clusters && self.function("select_near").is_ok();
        // Copies of whole rows into shared memory are Hopper's, and registers are handed over in its machine code alone.
        if self.info.wgmma && self.function("resident_bf16_128").is_ok() {
            self.info.resident = Residency::Whole;
        }
        // SAFETY: page-locked memory, freed in `drop`.
        let staging = unsafe { result::malloc_host(STAGING, 0) }.map_err(failed("page-locked memory"))?;
        *lock(&self.staging) = staging;
        Ok(())
    }

    /// Makes the context current on this thread.
    fn current(&self) -> Result<(), ExecError> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("using the GPU"))
    }

    /// The stream launches go to.
    fn used(&self) -> sys::CUstream {
        self.streams[self.used.load(Ordering::Relaxed) % STREAMS]
    }

    fn function(&self, name: &'static str) -> Result<sys::CUfunction, ExecError> {
        let mut known = lock(&self.functions);
        if let Some(f) = known.get(name) {
            return Ok(f.0);
        }
        let c = CString::new(name).map_err(|_| ExecError::Device(format!("kernel name {name:?}")))?;
        for &module in &self.modules {
            // SAFETY: the module is loaded.
            let f = match unsafe { result::module::get_function(module, c.clone()) } {
                Ok(f) => f,
                Err(e) if e.0 == CUresult::CUDA_ERROR_NOT_FOUND => continue,
                // It is loaded when it is first asked for, which takes memory.
                Err(e) => return Err(failed(&format!("loading kernel `{name}`"))(e)),
            };
            self.raise_shared(name, f)?;
            known.insert(name, Function(f));
            return Ok(f);
        }
        Err(ExecError::Device(format!("CUDA: there is no kernel `{name}`")))
    }

    /// Lets a kernel ask for all the shared memory a block can have; without this 48 KiB is the limit.
    fn raise_shared(&self, name: &str, f: sys::CUfunction) -> Result<(), ExecError> {
        use sys::CUfunction_attribute_enum as A;
        // SAFETY: `f` is a function of a loaded module.
        unsafe {
            let fixed = result::function::get_function_attribute(f, A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)
                .map_err(failed("asking about a kernel"))?;
            let rest = (self.info.shared_per_block as i32 - fixed).max(0);
            result::function::set_function_attribute(f, A::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, rest)
                .map_err(failed("shared memory of a kernel"))?;
            if NEIGHBOURS.iter().any(|n| name.starts_with(n)) {
                let most = sys::CUshared_carveout_enum::CU_SHAREDMEM_CARVEOUT_MAX_SHARED as i32;
                result::function::set_function_attribute(
                    f,
                    A::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                    most,
                )
                .map_err(failed("shared memory of a kernel"))?;
            }
            Ok(())
        }
    }

    /// Threads beyond its own that keep two blocks of a launch from one multiprocessor ([`Launch::apart`]).
    fn extra_threads(&self, f: sys::CUfunction, l: &Launch<'_>) -> Result<u32, ExecError> {
        use sys::CUfunction_attribute_enum as A;
        // SAFETY: `f` is a function of a loaded module.
        let get =
            |a| unsafe { result::function::get_function_attribute(f, a) }.map_err(failed("asking about a kernel"));
        // Registers come in eights per thread.
        let warp = 32 * (get(A::CU_FUNC_ATTRIBUTE_NUM_REGS)? as u32).next_multiple_of(8).max(8);
        let most = get(A::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)? as u32;
        let threads: u32 = l.block.iter().product();
        let wanted = 32 * (self.registers / (2 * warp) + 1);
        Ok(if wanted <= most {
            wanted.saturating_sub(threads)
        } else {
            0
        })
    }

    /// (registers, local bytes, static shared bytes) of a kernel, for reports.
    pub fn resources(&self, name: &'static str) -> Result<(i32, i32, i32), ExecError> {
        use sys::CUfunction_attribute_enum as A;
        self.current()?;
        let f = self.function(name)?;
        let get = |a| {
            // SAFETY: `f` is a function of a loaded module.
            unsafe { result::function::get_function_attribute(f, a) }.map_err(failed("asking about a kernel"))
        };
        Ok((
            get(A::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            get(A::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            get(A::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
        ))
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if self.current().is_err() {
            return;
        }
        // SAFETY: nothing uses these handles any more; errors (of a context that has failed) leave nothing to do.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            for e in lock(&self.marks).drain(..).chain(lock(&self.signals).drain(..)) {
                let _ = result::event::destroy(e);
            }
            self.posts.clear();
            let staging = *lock(&self.staging);
            if !staging.is_null() {
                let _ = result::free_host(staging);
            }
            for m in self.modules.drain(..) {
                let _ = result::module::unload(m);
            }
            for s in self.streams.drain(..) {
                let _ = result::stream::destroy(s);
            }
            let _ = result::primary_ctx::release(self.device);
        }
    }
}

/// An instantiated graph.
struct Captured {
    exec: sys::CUgraphExec,
    context: sys::CUcontext,
}

// SAFETY: a handle that may be used from every thread, one at a time; the backend runs one step at a time.
unsafe impl Send for Captured {}
// SAFETY: as above.
unsafe impl Sync for Captured {}

impl Graph for Captured {
    fn handle(&self) -> usize {
        self.exec as usize
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // SAFETY: made by this driver; the device outlives its graphs.
        unsafe {
            if result::ctx::set_current(self.context).is_ok() {
                let _ = result::graph::exec_destroy(self.exec);
            }
        }
    }
}

impl Device for Driver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> Result<(u64, u64), ExecError> {
        self.current()?;
        let (free, total) = result::mem_get_info().map_err(failed("asking for free memory"))?;
        Ok((free as u64, total as u64))
    }

    fn alloc(&self, bytes: usize, what: &str) -> Result<DevPtr, ExecError> {
        self.current()?;
        // SAFETY: plain allocation; whoever asked for it frees it.
        unsafe { result::malloc_sync(bytes.max(1)) }.map_err(|e| fault::of_alloc(e.0 as u32, what, bytes, &words(e)))
    }

    fn free(&self, ptr: DevPtr) {
        if ptr != 0 && self.current().is_ok() {
            // SAFETY: `ptr` came from `alloc`; the stream is drained first, so nothing uses it any more.
            unsafe {
                let _ = result::stream::synchronize(self.stream);
                let _ = result::free_sync(ptr);
            }
        }
    }

    fn upload(&self, to: DevPtr, src: &[u8]) -> Result<(), ExecError> {
        if src.is_empty() {
            return Ok(());
        }
        self.current()?;
        // SAFETY: the caller's memory is ordinary, so the driver has read all of it when this returns.
        unsafe { result::memcpy_htod_async(to, src, self.stream) }.map_err(failed("copying to the GPU"))
    }

    fn download(&self, from: DevPtr, out: &mut [u8]) -> Result<(), ExecError> {
        if out.is_empty() {
            return self.synchronise();
        }
        self.current()?;
        let staging = lock(&self.staging);
        let mut at = from;
        for piece in out.chunks_mut(STAGING) {
            // SAFETY: the staging buffer has STAGING bytes and is ours while locked; it is read after the copy ended.
            unsafe {
                sys::cuMemcpyDtoHAsync_v2(*staging, at, piece.len(), self.stream)
                    .result()
                    .map_err(failed("copying from the GPU"))?;
                result::stream::synchronize(self.stream).map_err(failed("running on the GPU"))?;
                piece.copy_from_slice(std::slice::from_raw_parts((*staging).cast::<u8>(), piece.len()));
            }
            at += piece.len() as u64;
        }
        Ok(())
    }

    fn copy(&self, to: DevPtr, from: DevPtr, bytes: usize) -> Result<(), ExecError> {
        if bytes == 0 {
            return Ok(());
        }
        self.current()?;
        // SAFETY: both ranges are allocations of this device (the callers' sizes are checked where they are made).
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.used()) }.map_err(failed("copying on the GPU"))
    }

    fn fill(&self, to: DevPtr, byte: u8, bytes: usize) -> Result<(), ExecError> {
        if bytes == 0 {
            return Ok(());
        }
        self.current()?;
        // SAFETY: as for `copy`.
        unsafe { result::memset_d8_async(to, byte, bytes, self.used()) }.map_err(failed("filling memory on the GPU"))
    }

    fn launch(&self, l: &Launch<'_>) -> Result<(), ExecError> {
        if l.grid.contains(&0) {
            return Ok(());
        }
        self.current()?;
        let f = self.function(l.kernel)?;
        let mut values = [0u64; 64];
        let mut pointers = [std::ptr::null_mut::<c_void>(); 64];
        if l.args.len() > values.len() {
            return Err(ExecError::Device(format!(
                "kernel `{}` with {} arguments",
                l.kernel,
                l.args.len()
            )));
        }
        for ((arg, value), pointer) in l.args.iter().zip(&mut values).zip(&mut pointers) {
            // Little endian: a 4-byte value lies in the first 4 bytes of its slot.
            *value = match *arg {
                Arg::Ptr(p) => p,
                Arg::I32(v) => u64::from(v as u32),
                Arg::U32(v) => u64::from(v),
                Arg::U64(v) => v,
                Arg::F32(v) => u64::from(v.to_bits()),
                Arg::Struct(bytes) => {
                    *pointer = bytes.as_ptr().cast_mut().cast();
                    continue;
                }
            };
            *pointer = std::ptr::from_mut(value).cast();
        }
        let extra = if l.apart { self.extra_threads(f, l)? } else { 0 };
        let mut attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: l.grid[0],
            gridDimY: l.grid[1],
            gridDimZ: l.grid[2],
            blockDimX: l.block[0] + extra,
            blockDimY: l.block[1],
            blockDimZ: l.block[2],
            sharedMemBytes: l.shared as u32,
            hStream: self.used(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(self.overlap && l.early),
        };
        // SAFETY: the arguments are those the kernel declares (the op table runs every launch); the driver copies them
        // and the configuration.
        let launched =
            unsafe { sys::cuLaunchKernelEx(&raw const config, f, pointers.as_mut_ptr(), std::ptr::null_mut()) };
        launched.result().map_err(|e| {
            failed(&format!(
                "launching `{}` with {:?} blocks of {:?} threads and {} bytes of shared memory",
                l.kernel, l.grid, l.block, l.shared
            ))(e)
        })
    }

    fn stream(&self, n: usize) {
        self.used.store(n, Ordering::Relaxed);
    }

    fn signal(&self, number: usize) -> Result<(), ExecError> {
        self.current()?;
        let mut signals = lock(&self.signals);
        while signals.len() <= number {
            let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
            signals.push(result::event::create(flags).map_err(failed("making an event"))?);
        }
        // SAFETY: event and stream live as long as `self`.
        unsafe { result::event::record(signals[number], self.used()) }.map_err(failed("recording an event"))
    }

    fn wait(&self, number: usize) -> Result<(), ExecError> {
        self.current()?;
        let signals = lock(&self.signals);
        let Some(&event) = signals.get(number) else {
            return Err(ExecError::Device("CUDA: a signal that was not given".into()));
        };
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: event and stream live as long as `self`.
        unsafe { result::stream::wait_event(self.used(), event, flags) }.map_err(failed("waiting for an event"))
    }

    fn synchronise(&self) -> Result<(), ExecError> {
        self.current()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("running on the GPU"))
    }

    fn begin_capture(&self) -> Result<bool, ExecError> {
        self.current()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the stream is ours and not capturing.
        unsafe { result::stream::begin_capture(self.stream, mode) }.map_err(failed("recording a graph"))?;
        self.recording.store(true, Ordering::Relaxed);
        Ok(true)
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>, ExecError> {
        self.current()?;
        self.recording.store(false, Ordering::Relaxed);
        // SAFETY: the stream is capturing; the graph is destroyed once it is instantiated.
        unsafe {
            let graph = result::stream::end_capture(self.stream).map_err(failed("recording a graph"))?;
            let mut exec = std::ptr::null_mut();
            let made = sys::cuGraphInstantiateWithFlags(&mut exec, graph, 0).result();
            let _ = result::graph::destroy(graph);
            made.map_err(failed("making a graph"))?;
            // The first launch is not to pay for it.
            result::graph::upload(exec, self.stream).map_err(failed("uploading a graph"))?;
            Ok(Box::new(Captured {
                exec,
                context: self.context,
            }))
        }
    }

    fn launch_graph(&self, graph: &dyn Graph) -> Result<(), ExecError> {
        self.current()?;
        // SAFETY: the handle is of a graph this driver made and that is still there, since it is borrowed.
        unsafe { result::graph::launch(graph.handle() as sys::CUgraphExec, self.stream) }
            .map_err(failed("launching a graph"))
    }

    fn stream_handle(&self) -> Option<usize> {
        Some(self.stream as usize)
    }

    fn alloc_mail(&self, bytes: usize) -> Result<DevPtr, ExecError> {
        self.current()?;
        self.posts.alloc(bytes)
    }

    fn free_mail(&self, ptr: DevPtr) {
        if self.synchronise().is_ok() {
            self.posts.free(ptr);
        }
    }

    fn post(&self, ptr: DevPtr) -> Result<(), ExecError> {
        self.current()?;
        self.posts.post(ptr, self.stream)
    }

    fn send(&self, ptr: DevPtr, at: usize, from: DevPtr, bytes: usize) -> Result<(), ExecError> {
        self.current()?;
        self.posts.send(ptr, at, (from, bytes), self.stream)
    }

    fn collect(&self, ptr: DevPtr, out: &mut [u8]) -> Result<(), ExecError> {
        self.current()?;
        self.posts.collect(ptr, out)
    }

    fn apart(&self, first: DevPtr, second: DevPtr) -> Result<f64, ExecError> {
        self.current()?;
        self.posts.apart(first, second)
    }

    fn mark(&self, number: usize) -> Result<(), ExecError> {
        self.current()?;
        let mut marks = lock(&self.marks);
        while marks.len() <= number {
            let flags = sys::CUevent_flags::CU_EVENT_DEFAULT;
            marks.push(result::event::create(flags).map_err(failed("making an event"))?);
        }
        // In a graph only an external event can be asked for its time afterwards.
        let external = self.recording.load(Ordering::Relaxed);
        let flags = if external {
            sys::CUevent_record_flags_enum::CU_EVENT_RECORD_EXTERNAL as u32
        } else {
            0
        };
        // SAFETY: event and stream live as long as `self`.
        unsafe { sys::cuEventRecordWithFlags(marks[number], self.stream, flags) }
            .result()
            .map_err(failed("recording an event"))
    }

    fn between(&self, first: usize, second: usize) -> Result<f64, ExecError> {
        self.current()?;
        let marks = lock(&self.marks);
        let (Some(&a), Some(&b)) = (marks.get(first), marks.get(second)) else {
            return Err(ExecError::Device("CUDA: a time that was not noted".into()));
        };
        // SAFETY: as above.
        unsafe {
            result::event::synchronize(b).map_err(failed("running on the GPU"))?;
            let ms = result::event::elapsed(a, b).map_err(failed("timing"))?;
            Ok(f64::from(ms) * 1e6)
        }
    }
}
