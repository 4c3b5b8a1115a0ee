//! NVIDIA's cuBLASLt as a yardstick for our products, where a machine has it: the library is looked for when it is asked for,
//! and nothing depends on it.

use std::ffi::c_void;
use std::sync::Arc;

use libloading::Library;

use super::device::Device;
use super::memory::Mem;
use crate::ir::ExecError;

/// Memory it may work in, bytes (NVIDIA's advice for Hopper is 32 MiB).
const WORKSPACE: usize = 64 << 20;
/// Ways of doing a product that it proposes and that are tried.
const WAYS: usize = 8;
/// Products between two time stamps.
const PRODUCTS: usize = 10;
/// Names of the library, the newest first.
const NAMES: [&str; 4] = [
    "libcublasLt.so.13",
    "libcublasLt.so.12",
    "libcublasLt.so",
    "cublasLt64_13.dll",
];

// Numbers of cublasLt.h, cublas_api.h and library_types.h.
const COMPUTE_32F: i32 = 68;
const R_32F: i32 = 0;
const R_16BF: i32 = 14;
const DESC_TRANSA: i32 = 3;
/// cublasOperation_t: the matrix lies row by row.
static OP_T: i32 = 1;
const PREFERENCE_WORKSPACE: i32 = 1;

type Status = i32;
type Handle = *mut c_void;

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Way {
    algorithm: [u64; 8],
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [i32; 4],
}

const _: () = assert!(size_of::<Way>() == 96);

type Create = unsafe extern "C" fn(*mut Handle) -> Status;
type Destroy = unsafe extern "C" fn(Handle) -> Status;
type DescCreate = unsafe extern "C" fn(*mut Handle, i32, i32) -> Status;
type Set = unsafe extern "C" fn(Handle, i32, *const c_void, usize) -> Status;
type LayoutCreate = unsafe extern "C" fn(*mut Handle, i32, u64, u64, i64) -> Status;
type Propose =
    unsafe extern "C" fn(Handle, Handle, Handle, Handle, Handle, Handle, Handle, i32, *mut Way, *mut i32) -> Status;
type Multiply = unsafe extern "C" fn(
    Handle,
    Handle,
    *const f32,
    *const c_void,
    Handle,
    *const c_void,
    Handle,
    *const f32,
    *const c_void,
    Handle,
    *mut c_void,
    Handle,
    *const [u64; 8],
    *mut c_void,
    usize,
    *mut c_void,
) -> Status;

/// The library, loaded.
pub struct CublasLt {
    library: Library,
    name: String,
}

/// Shape of a product y = x W': x `[tokens, cols]`, W `[rows, cols]`, y `[tokens, rows]`.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Tokens.
    pub tokens: usize,
}

/// What the library made of a product.
pub struct Measured {
    /// Time of one product, nanoseconds: of the fastest way it proposes, ten behind each other, best of five.
    pub nanos: f64,
    /// y.
    pub y: Vec<f32>,
}

/// Objects of the library that are given back together.
struct Objects<'a> {
    library: &'a CublasLt,
    made: Vec<(&'static str, Handle)>,
}

impl Drop for Objects<'_> {
    fn drop(&mut self) {
        for (destroy, handle) in self.made.drain(..).rev() {
            if let Ok(f) = self.library.function::<Destroy>(destroy) {
                // SAFETY: made by the function this one belongs to, and not given back before.
                unsafe { f(handle) };
            }
        }
    }
}

impl Objects<'_> {
    /// Notes what a `create` call made.
    fn made(&mut self, destroy: &'static str, create: impl FnOnce(*mut Handle) -> Status) -> Result<Handle, ExecError> {
        let mut handle = std::ptr::null_mut();
        done(create(&mut handle), destroy)?;
        self.made.push((destroy, handle));
        Ok(handle)
    }
}

fn done(status: Status, what: &str) -> Result<(), ExecError> {
    match status {
        0 => Ok(()),
        n => Err(ExecError::Device(format!("cuBLASLt, {what}: status {n}"))),
    }
}

impl CublasLt {
    /// Looks for the library: at the path in MODEL1_CUBLASLT, then under its names where the system looks for libraries.
    ///
    /// # Errors
    /// A sentence that says where it was looked for.
    pub fn open() -> Result<Self, String> {
        let given = std::env::var("MODEL1_CUBLASLT").ok();
        let names: Vec<String> = given.into_iter().chain(NAMES.map(String::from)).collect();
        for name in &names {
            // SAFETY: NVIDIA's library, whose loading runs no code that asks anything of us.
            if let Ok(library) = unsafe { Library::new(name) } {
                return Ok(Self {
                    library,
                    name: name.clone(),
                });
            }
        }
        Err(format!(
            "cuBLASLt was not found: looked for {} where the system has its libraries; MODEL1_CUBLASLT names a file",
            names.join(", ")
        ))
    }

    /// The name it was found under.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn function<T: Copy>(&self, name: &str) -> Result<T, ExecError> {
        // SAFETY: the types above are those of cublasLt.h.
        unsafe { self.library.get::<T>(name.as_bytes()) }
            .map(|f| *f)
            .map_err(|e| ExecError::Device(format!("cuBLASLt: {e}")))
    }

    /// Times a product of bf16 numbers, added up and stored in f32.
    ///
    /// # Errors
    /// No memory, a device that is not the CUDA driver's, or the library's own.
    pub fn product(&self, device: &Arc<dyn Device>, s: Shape, w: &[u16], x: &[u16]) -> Result<Measured, ExecError> {
        let Some(stream) = device.stream_handle() else {
            return Err(ExecError::Device("cuBLASLt needs a device of the CUDA driver".into()));
        };
        let what = "a product of cuBLASLt";
        let (w, x) = (
            Mem::of(device, bytemuck::cast_slice(w), what)?,
            Mem::of(device, bytemuck::cast_slice(x), what)?,
        );
        let y = Mem::new(device, 4 * s.tokens * s.rows, what)?;
        let room = Mem::new(device, WORKSPACE, what)?;
        let mut objects = Objects {
            library: self,
            made: Vec::new(),
        };
        let (handle, description, layouts, ways) = self.describe(&mut objects, s)?;
        let multiply = self.function::<Multiply>("cublasLtMatmul")?;
        let run = |way: &Way| {
            let (one, zero) = (1.0f32, 0.0f32);
            // SAFETY: objects of this library that are alive; the buffers have the shapes of the layouts, the workspace as many
            // bytes as it was told.
            let status = unsafe {
                multiply(
                    handle,
                    description,
                    &one,
                    w.ptr() as *const c_void,
                    layouts[0],
                    x.ptr() as *const c_void,
                    layouts[1],
                    &zero,
                    y.ptr() as *const c_void,
                    layouts[2],
                    y.ptr() as *mut c_void,
                    layouts[2],
                    &way.algorithm,
                    room.ptr() as *mut c_void,
                    WORKSPACE,
                    stream as *mut c_void,
                )
            };
            done(status, "cublasLtMatmul")
        };
        let mut nanos = f64::INFINITY;
        for way in &ways {
            run(way)?;
            for _ in 0..5 {
                device.mark(0)?;
                (0..PRODUCTS).try_for_each(|_| run(way))?;
                device.mark(1)?;
                nanos = nanos.min(device.between(0, 1)? / PRODUCTS as f64);
            }
        }
        let mut out = vec![0f32; s.tokens * s.rows];
        device.download(y.ptr(), bytemuck::cast_slice_mut(&mut out))?;
        Ok(Measured { nanos, y: out })
    }

    /// The product as the library wants it told, column by column: y' = W x'.
    fn describe(
        &self,
        objects: &mut Objects<'_>,
        s: Shape,
    ) -> Result<(Handle, Handle, [Handle; 3], Vec<Way>), ExecError> {
        let create = self.function::<Create>("cublasLtCreate")?;
        let desc_create = self.function::<DescCreate>("cublasLtMatmulDescCreate")?;
        let desc_set = self.function::<Set>("cublasLtMatmulDescSetAttribute")?;
        let layout_create = self.function::<LayoutCreate>("cublasLtMatrixLayoutCreate")?;
        let preference_create = self.function::<Create>("cublasLtMatmulPreferenceCreate")?;
        let preference_set = self.function::<Set>("cublasLtMatmulPreferenceSetAttribute")?;
        let propose = self.function::<Propose>("cublasLtMatmulAlgoGetHeuristic")?;
        let handle = objects.made("cublasLtDestroy", |h| {
            // SAFETY: signatures as in cublasLt.h; handles are made here, and pointers live through the calls.
            unsafe { create(h) }
        })?;
        let description = objects.made("cublasLtMatmulDescDestroy", |h| {
            // SAFETY: as above.
            unsafe { desc_create(h, COMPUTE_32F, R_32F) }
        })?;
        // SAFETY: as above; the attribute is an i32.
        let set = unsafe { desc_set(description, DESC_TRANSA, (&raw const OP_T).cast(), size_of::<i32>()) };
        done(set, "cublasLtMatmulDescSetAttribute")?;
        let mut layout = |kind: i32, rows: usize, cols: usize| {
            objects.made("cublasLtMatrixLayoutDestroy", |h| {
                // SAFETY: as above.
                unsafe { layout_create(h, kind, rows as u64, cols as u64, rows as i64) }
            })
        };
        let layouts = [
            layout(R_16BF, s.cols, s.rows)?,
            layout(R_16BF, s.cols, s.tokens)?,
            layout(R_32F, s.rows, s.tokens)?,
        ];
        let preference = objects.made("cublasLtMatmulPreferenceDestroy", |h| {
            // SAFETY: as above.
            unsafe { preference_create(h) }
        })?;
        let bytes = WORKSPACE as u64;
        // SAFETY: as above; the attribute is a u64.
        let set = unsafe { preference_set(preference, PREFERENCE_WORKSPACE, (&raw const bytes).cast(), 8) };
        done(set, "cublasLtMatmulPreferenceSetAttribute")?;
        let none = Way {
            algorithm: [0; 8],
            workspace: 0,
            state: 0,
            waves: 0.0,
            reserved: [0; 4],
        };
        let (mut ways, mut found) = (vec![none; WAYS], 0);
        // SAFETY: as above; there is room for as many answers as are asked for.
        let status = unsafe {
            propose(
                handle,
                description,
                layouts[0],
                layouts[1],
                layouts[2],
                layouts[2],
                preference,
                WAYS as i32,
                ways.as_mut_ptr(),
                &mut found,
            )
        };
        done(status, "cublasLtMatmulAlgoGetHeuristic")?;
        ways.truncate(found.max(0) as usize);
        ways.retain(|w| w.state == 0);
        Ok((handle, description, layouts, ways))
    }
}
