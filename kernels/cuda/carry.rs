//! Host checkpoints: what a rewind cannot compute anew, brought to the host while the next steps run. The copies are enqueued
//! behind the step they belong to and go to page-locked memory; a thread waits for them and takes them from there, since memory
//! that is touched for the first time takes longer than the transfer (2 ms for 4 MB).

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use super::device::{DevPtr, Device};
use crate::ir::ExecError;

/// Bytes that a checkpoint holds, one piece after the other, maybe still on their way.
pub(super) struct Carried(OnceLock<Result<Vec<u8>, String>>);

impl Carried {
    /// Waits for them.
    pub fn bytes(&self) -> Result<&[u8], ExecError> {
        match self.0.wait() {
            Ok(bytes) => Ok(bytes),
            Err(why) => Err(ExecError::Device(format!("a checkpoint did not arrive: {why}"))),
        }
    }
}

/// Says that nothing comes where its thread ends before anything has.
struct Promise(Arc<Carried>);

impl Promise {
    fn keep(self, found: Result<Vec<u8>, ExecError>) {
        let _ = self.0.0.set(found.map_err(|e| e.to_string()));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let _ = self.0.0.set(Err("whoever brings it has failed".into()));
    }
}

/// Brings one checkpoint of a state at a time.
pub(super) struct Carrier {
    device: Arc<dyn Device>,
    /// Page-locked memory, as large as the largest checkpoint so far.
    mail: DevPtr,
    room: usize,
    thread: Option<JoinHandle<()>>,
}

impl Carrier {
    pub fn new(device: &Arc<dyn Device>) -> Self {
        Self {
            device: device.clone(),
            mail: 0,
            room: 0,
            thread: None,
        }
    }

    /// Waits until the last checkpoint is out of the page-locked memory.
    fn finish(&mut self) {
        if let Some(thread) = self.thread.take() {
            // One that panicked has broken its promise, and its checkpoint says so.
            let _ = thread.join();
        }
    }

    /// Enqueues copies of `pieces` (address, bytes) behind what is enqueued, and returns at once.
    pub fn carry(&mut self, pieces: &[(DevPtr, usize)]) -> Result<Arc<Carried>, ExecError> {
        self.finish();
        let bytes: usize = pieces.iter().map(|p| p.1).sum();
        let carried = Arc::new(Carried(OnceLock::new()));
        let promise = Promise(carried.clone());
        if bytes == 0 {
            promise.keep(Ok(Vec::new()));
            return Ok(carried);
        }
        if self.room < bytes {
            self.free();
            self.mail = self.device.alloc_mail(bytes)?;
            self.room = bytes;
        }
        let mut at = 0;
        for &(from, bytes) in pieces {
            self.device.send(self.mail, at, from, bytes)?;
            at += bytes;
        }
        self.device.post(self.mail)?;
        let (device, mail) = (self.device.clone(), self.mail);
        let take = move || {
            let mut out = vec![0; bytes];
            promise.keep(device.collect(mail, &mut out).map(|()| out));
        };
        let thread = std::thread::Builder::new().name("model1-checkpoint".into()).spawn(take);
        match thread {
            Ok(thread) => self.thread = Some(thread),
            Err(_) => {
                let what = "a thread that takes a checkpoint".into();
                return Err(ExecError::OutOfMemory { what, bytes: 0 });
            }
        }
        Ok(carried)
    }

    fn free(&mut self) {
        if self.room > 0 {
            self.device.free_mail(self.mail);
            (self.mail, self.room) = (0, 0);
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.finish();
        self.free();
    }
}
