//! Owned device memory.

use std::sync::Arc;

use super::device::{ALIGN, DevPtr, Device};
use crate::ir::ExecError;

/// Unit in which a driver gives memory, bytes.
const PAGE: usize = 2 << 20;

/// Bytes a driver takes for an allocation of `bytes` bytes. Measured on an H200 with 64 of a kind: up to 1 MiB as many of
/// them share a unit as fit (0.4 MiB for each of 384 KiB, 1 MiB for 700 KiB and for 1 MiB), larger ones have units of their
/// own (2 MiB for 1.001 and for 1.5 MiB, 4 MiB for 2.001).
pub fn taken(bytes: usize) -> u64 {
    let aligned = bytes.next_multiple_of(ALIGN);
    let bytes = match PAGE.checked_div(aligned) {
        None => 0,
        Some(0 | 1) => aligned.next_multiple_of(PAGE),
        Some(fit) => PAGE.div_ceil(fit),
    };
    bytes as u64
}

/// Device memory that is given back when dropped. Empty (address 0) for 0 bytes.
pub struct Mem {
    device: Arc<dyn Device>,
    ptr: DevPtr,
    bytes: usize,
}

impl Mem {
    /// No memory.
    pub fn none(device: &Arc<dyn Device>) -> Self {
        Self {
            device: device.clone(),
            ptr: 0,
            bytes: 0,
        }
    }

    /// Memory with undefined contents; `what` names it in errors.
    pub fn new(device: &Arc<dyn Device>, bytes: usize, what: &str) -> Result<Self, ExecError> {
        if bytes == 0 {
            return Ok(Self::none(device));
        }
        Ok(Self {
            device: device.clone(),
            ptr: device.alloc(bytes, what)?,
            bytes,
        })
    }

    /// A copy of host bytes.
    pub fn of(device: &Arc<dyn Device>, src: &[u8], what: &str) -> Result<Self, ExecError> {
        let mem = Self::new(device, src.len(), what)?;
        device.upload(mem.ptr, src)?;
        Ok(mem)
    }

    /// First address.
    pub fn ptr(&self) -> DevPtr {
        self.ptr
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Drop for Mem {
    fn drop(&mut self) {
        if self.ptr != 0 {
            self.device.free(self.ptr);
        }
    }
}

/// A part of an allocation, which is given back with the last of its parts.
pub struct Piece {
    of: Arc<Mem>,
    at: usize,
}

impl Piece {
    /// What lies from byte `at` of an allocation on.
    pub fn of(of: &Arc<Mem>, at: usize) -> Self {
        Self { of: of.clone(), at }
    }

    /// First address.
    pub fn ptr(&self) -> DevPtr {
        self.of.ptr() + self.at as u64
    }

    /// Whether other parts of its allocation are in use.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.of) > 1
    }
}

impl From<Mem> for Piece {
    fn from(all: Mem) -> Self {
        Self {
            of: Arc::new(all),
            at: 0,
        }
    }
}

/// Parts of one allocation, each aligned to [`ALIGN`]: first sizes, then addresses.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// (offset, bytes) in the order asked for.
    parts: Vec<(usize, usize)>,
    end: usize,
    /// Bytes kept free behind each part, for sentinels.
    guard: usize,
}

impl Parts {
    /// Parts with `guard` bytes kept free behind each.
    pub fn new(guard: usize) -> Self {
        Self {
            guard,
            ..Self::default()
        }
    }

    /// Asks for a part; returns its offset.
    pub fn add(&mut self, bytes: usize) -> usize {
        let at = self.end;
        self.parts.push((at, bytes));
        self.end = (at + bytes + self.guard).next_multiple_of(ALIGN);
        at
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        self.end
    }

    /// The gaps behind the parts, as (offset, bytes): nothing may be written there.
    pub fn gaps(&self) -> Vec<(usize, usize)> {
        let next = self.parts.iter().skip(1).map(|p| p.0).chain([self.end]);
        let gap = |(&(at, n), end): (&(usize, usize), usize)| (at + n, end - at - n);
        self.parts.iter().zip(next).map(gap).filter(|g| g.1 > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_memory_comes_in_units_and_small_memory_shares_them() {
        let kib = |bytes: usize| taken(bytes).div_ceil(1024);
        let measured = [
            (0, 0),
            (64, 64),
            (384, 410),
            (700, 1024),
            (1024, 1024),
            (1025, 2048),
            (1536, 2048),
            (2048, 2048),
            (2049, 4096),
            (5000, 6144),
        ];
        for (asked, found) in measured {
            assert_eq!(kib(asked << 10), found, "{asked} KiB");
        }
        assert_eq!((taken(1), taken(257)), (256, 512));
    }

    #[test]
    fn parts_are_aligned_and_gaps_lie_between_them() {
        let mut p = Parts::new(64);
        assert_eq!((p.add(10), p.add(256), p.add(0), p.add(1)), (0, 256, 768, 1024));
        assert_eq!(p.bytes(), 1280);
        assert_eq!(p.gaps(), [(10, 246), (512, 256), (768, 256), (1025, 255)]);
        let mut p = Parts::new(0);
        assert_eq!((p.add(256), p.add(512)), (0, 256));
        assert!(p.gaps().is_empty());
    }
}
