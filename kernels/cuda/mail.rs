//! Memory of the host that kernels write, and the points in the stream at which they have: how answers of steps of one token
//! arrive while the steps after them run already.

use std::sync::Arc;

use super::device::{DevPtr, Device};
use crate::ir::ExecError;

/// Mails of a state. While one is read the next step may be writing the second, and how long a step took is the distance
/// to the one before it.
pub const MAILS: usize = 3;
/// Bytes of each. Counters of a step of one token take 1 to 10 KB; a plan that counts more is waited for.
pub const MAIL: usize = 32 << 10;

/// The mails of a state.
pub(super) struct Mails {
    device: Arc<dyn Device>,
    parts: [DevPtr; MAILS],
    last: usize,
}

impl Mails {
    pub fn new(device: &Arc<dyn Device>) -> Result<Self, ExecError> {
        let mut mails = Self {
            device: device.clone(),
            parts: [0; MAILS],
            last: 0,
        };
        for part in &mut mails.parts {
            *part = device.alloc_mail(MAIL)?;
        }
        Ok(mails)
    }

    /// Addresses for kernels.
    pub fn parts(&self) -> [DevPtr; MAILS] {
        self.parts
    }

    /// The number of the mail that the next step's answer goes to.
    pub fn next(&mut self) -> usize {
        self.last = (self.last + 1) % MAILS;
        self.last
    }

    /// Notes that the work enqueued so far writes mail `number`.
    pub fn post(&self, number: usize) -> Result<(), ExecError> {
        self.device.post(self.parts[number])
    }

    /// Waits for mail `number` and reads its first `bytes` bytes.
    pub fn read(&self, number: usize, bytes: usize) -> Result<Vec<u8>, ExecError> {
        let mut out = vec![0u8; bytes];
        self.device.collect(self.parts[number], &mut out)?;
        Ok(out)
    }

    /// Nanoseconds between the mail before mail `number` and that one.
    pub fn nanos(&self, number: usize) -> Result<u64, ExecError> {
        let before = self.parts[(number + MAILS - 1) % MAILS];
        Ok(self.device.apart(before, self.parts[number])?.max(0.0) as u64)
    }
}

impl Drop for Mails {
    fn drop(&mut self) {
        for part in self.parts.into_iter().filter(|p| *p != 0) {
            self.device.free_mail(part);
        }
    }
}
