//! Page-locked memory that kernels write to, each piece with the event behind which it is written: the driver's half of
//! [`super::mail`].

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Mutex;

use cudarc::driver::result;
use cudarc::driver::sys;

use super::device::DevPtr;
use super::driver::{failed, lock};
use crate::ir::ExecError;

/// A piece: where it lies for the host, its size, its event.
#[derive(Clone, Copy)]
struct Piece {
    memory: *const u8,
    bytes: usize,
    event: sys::CUevent,
}

// SAFETY: memory and event may be used from every thread (see `Driver`); what is read is written by the device before the
// event, which is waited for.
unsafe impl Send for Piece {}

/// All pieces of a device, by the address kernels write to. The device's context is current in every call.
#[derive(Default)]
pub(super) struct Posts(Mutex<HashMap<DevPtr, Piece>>);

impl Posts {
    pub fn alloc(&self, bytes: usize) -> Result<DevPtr, ExecError> {
        // SAFETY: page-locked memory, freed in `free`; its address for kernels is asked for right away.
        let (memory, ptr) = unsafe {
            let memory =
                result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_DEVICEMAP).map_err(failed("page-locked memory"))?;
            let mut ptr = 0;
            sys::cuMemHostGetDevicePointer_v2(&mut ptr, memory, 0)
                .result()
                .map_err(failed("page-locked memory"))?;
            (memory, ptr)
        };
        let event = result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed("making an event"))?;
        let memory = memory.cast::<u8>().cast_const();
        lock(&self.0).insert(ptr, Piece { memory, bytes, event });
        Ok(ptr)
    }

    /// Nothing that writes the piece may be on its way.
    pub fn free(&self, ptr: DevPtr) {
        if let Some(p) = lock(&self.0).remove(&ptr) {
            // SAFETY: made by `alloc`, and no longer listed; an error leaves nothing to do.
            unsafe {
                let _ = result::event::destroy(p.event);
                let _ = result::free_host(p.memory.cast_mut().cast::<c_void>());
            }
        }
    }

    fn piece(&self, ptr: DevPtr) -> Result<Piece, ExecError> {
        let piece = lock(&self.0).get(&ptr).copied();
        piece.ok_or_else(|| ExecError::Device("CUDA: memory of the host that is not there".into()))
    }

    pub fn post(&self, ptr: DevPtr, stream: sys::CUstream) -> Result<(), ExecError> {
        // SAFETY: the event is listed, the stream the driver's own.
        unsafe { result::event::record(self.piece(ptr)?.event, stream) }.map_err(failed("recording an event"))
    }

    pub fn send(
        &self,
        ptr: DevPtr,
        at: usize,
        (from, bytes): (DevPtr, usize),
        stream: sys::CUstream,
    ) -> Result<(), ExecError> {
        let p = self.piece(ptr)?;
        if at.checked_add(bytes).is_none_or(|end| end > p.bytes) {
            return Err(ExecError::Device(format!(
                "CUDA: {bytes} bytes behind {at} of memory of {}",
                p.bytes
            )));
        }
        // SAFETY: the piece has as many bytes, and lives until what was enqueued has ended (see `free`).
        unsafe { sys::cuMemcpyDtoHAsync_v2(p.memory.add(at).cast_mut().cast::<c_void>(), from, bytes, stream) }
            .result()
            .map_err(failed("copying from the GPU"))
    }

    pub fn collect(&self, ptr: DevPtr, out: &mut [u8]) -> Result<(), ExecError> {
        let p = self.piece(ptr)?;
        if out.len() > p.bytes {
            return Err(ExecError::Device(format!(
                "CUDA: {} bytes of an answer of {}",
                out.len(),
                p.bytes
            )));
        }
        // SAFETY: the event is listed; the piece has as many bytes, and the device does not write them after the event
        // until the state that owns them enqueues more, which it does not while it reads.
        unsafe {
            result::event::synchronize(p.event).map_err(failed("running on the GPU"))?;
            std::ptr::copy_nonoverlapping(p.memory, out.as_mut_ptr(), out.len());
        }
        Ok(())
    }

    pub fn apart(&self, first: DevPtr, second: DevPtr) -> Result<f64, ExecError> {
        let (a, b) = (self.piece(first)?.event, self.piece(second)?.event);
        // SAFETY: both events are listed.
        let ms = unsafe {
            result::event::synchronize(a).map_err(failed("running on the GPU"))?;
            result::event::synchronize(b).map_err(failed("running on the GPU"))?;
            result::event::elapsed(a, b).map_err(failed("timing"))?
        };
        Ok(f64::from(ms) * 1e6)
    }

    /// Frees all pieces.
    pub fn clear(&self) {
        let all: Vec<DevPtr> = lock(&self.0).keys().copied().collect();
        all.into_iter().for_each(|ptr| self.free(ptr));
    }
}
