//! What goes over the pipes: frames of a length (four bytes, little-endian) and a postcard body. Plans go as CBOR inside
//! (their ops are tagged by name, which postcard cannot hold).

use std::io::{self, ErrorKind, Read, Write};

use kernels::ir::{
    BaseOp, Block, CacheDesc, ExecError, KvBytes, LayerStats, Op, OpTime, Plan, Sampled, SamplerParams, StepParams,
    WeightDesc,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::needs::Planned;

/// Raised when the meaning of frames changes. Both ends come from one file as a rule.
pub(super) const VERSION: u32 = 7;
/// Largest frame, in bytes.
const LARGEST: usize = 1 << 31;

/// What the process is asked for. Each is answered once, except where it says otherwise.
#[derive(Serialize, Deserialize)]
pub(super) enum Call {
    /// -> Opened; Progress before it.
    Open(Open),
    /// -> Done
    NewState {
        state: u64,
        caches: Vec<CacheDesc>,
        context: u64,
    },
    /// A state `new` with a copy of what `state` holds of a context. -> Done
    Fork { state: u64, new: u64, position: u64 },
    /// Not answered.
    DropState(u64),
    /// -> Done
    Expect { state: u64, context: u64 },
    /// What a state holds at a position is kept there, under a number that no state and no other one has. -> Kept
    Snapshot { state: u64, number: u64, position: u64 },
    /// A state becomes what was kept under a number. -> Done
    Restore { state: u64, number: u64 },
    /// What was kept is needed no more. Not answered.
    Forget(u64),
    /// -> Done
    Reformat {
        state: u64,
        cache: u32,
        desc: CacheDesc,
        position: u64,
    },
    /// -> Rows
    ReadRows {
        state: u64,
        cache: u32,
        first: u64,
        count: u64,
    },
    /// A plan for a state, by number, and the weights made for it: (id, made from), in order of ids. Not answered.
    Plan {
        state: u64,
        number: u64,
        cbor: ByteBuf,
        made: Vec<(u32, u32)>,
    },
    /// Stores a loaded weight otherwise. -> Done; Progress before it.
    Make {
        /// Numbered with the runs: a cancellation names it.
        number: u64,
        own: u32,
        desc: WeightDesc,
    },
    /// Forgets weights made from others that are not named: (made from, what they are). -> Done
    Keep(Vec<(u32, WeightDesc)>),
    /// -> Ran
    Run(Box<RunCall>),
    /// A step of each of several states under plans that are equal; a cancellation names the first. -> RanTogether
    RunTogether(Vec<RunCall>),
    /// -> Number
    Bandwidth,
    /// -> Memory
    DeviceMemory,
}

/// A model to open.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Open {
    pub model: String,
    pub device: String,
    pub threads: u32,
    pub prefault: bool,
    /// What the memory of a GPU is to hold.
    pub context: Option<u64>,
    pub planned: Planned,
}

/// A step.
#[derive(Serialize, Deserialize)]
pub(super) struct RunCall {
    /// Rises by one with every run; a cancellation names it.
    pub number: u64,
    pub state: u64,
    pub plan: u64,
    pub step: StepParams,
    pub ids: Vec<u32>,
    /// Tokens of the history that are those of the step before.
    pub kept: u64,
    /// The tokens after them.
    pub more: Vec<u32>,
    pub sampler: Option<SamplerParams>,
    pub trace: bool,
    /// Of [`kernels::ir::StepRequest::ahead`].
    pub ahead: bool,
}

/// What the process answers.
#[derive(Serialize, Deserialize)]
pub(super) enum Answer {
    /// The first frame.
    Hello {
        version: u32,
    },
    Progress {
        done: u64,
        total: u64,
    },
    Opened {
        name: String,
        describe: String,
        /// Of [`kernels::ir::Backend::chunk`].
        chunk: u64,
        /// Of [`kernels::ir::Backend::batch`].
        batch: u64,
        warning: Option<String>,
    },
    /// With the bytes allocated per layer, where they changed.
    Done(Option<Vec<KvBytes>>),
    /// The bytes of it.
    Kept(u64),
    Rows(Vec<f32>),
    Ran(Box<RanAnswer>),
    /// In the order of the calls, and why they were taken one after the other.
    RanTogether(Vec<RanAnswer>, Option<String>),
    Number(Option<f64>),
    Memory(Option<(u64, u64)>),
    Failed(Failure),
    /// The model could not be opened; the sentence says why.
    Refused(String),
}

/// What a step gave.
#[derive(Serialize, Deserialize)]
pub(super) struct RanAnswer {
    pub logits: Vec<f32>,
    pub sampled: Option<Sampled>,
    pub probes: Vec<(String, u64, Vec<f32>)>,
    pub layers: Vec<LayerStats>,
    pub times: Vec<OpTime>,
    /// Of [`kernels::ir::StepOutput::ahead_nanos`].
    pub ahead_nanos: Option<u64>,
    /// Bytes allocated per layer, where they changed.
    pub allocated: Option<Vec<KvBytes>>,
    /// Resident memory of the process, now and then.
    pub resident: Option<u64>,
}

/// An [`ExecError`] on its way.
#[derive(Serialize, Deserialize)]
pub(super) enum Failure {
    Mismatch {
        what: String,
        detail: String,
    },
    ContextFull {
        needed: u64,
        capacity: u64,
    },
    TokenRange {
        id: u32,
        vocab: u64,
    },
    OutOfMemory {
        what: String,
        bytes: u64,
    },
    Cancelled,
    Sample(String),
    /// The device failed: what follows in this process cannot be trusted.
    Device(String),
    /// The same, and the device says so itself.
    Fatal(String),
    Unsupported {
        backend: String,
        what: String,
    },
}

impl From<ExecError> for Failure {
    fn from(e: ExecError) -> Self {
        match e {
            ExecError::Mismatch { what, detail } => Failure::Mismatch {
                what: what.to_string(),
                detail,
            },
            ExecError::ContextFull { needed, capacity } => Failure::ContextFull { needed, capacity },
            ExecError::TokenRange { id, vocab } => Failure::TokenRange {
                id,
                vocab: vocab as u64,
            },
            ExecError::OutOfMemory { what, bytes } => Failure::OutOfMemory { what, bytes },
            ExecError::Cancelled => Failure::Cancelled,
            ExecError::Sample(e) => Failure::Sample(e),
            ExecError::Device(e) | ExecError::Lost(e) => Failure::Device(e),
            ExecError::Fatal(e) => Failure::Fatal(e),
            ExecError::Unsupported { backend, what } => Failure::Unsupported {
                backend: backend.to_string(),
                what,
            },
        }
    }
}

impl From<Failure> for ExecError {
    fn from(e: Failure) -> Self {
        match e {
            Failure::Mismatch { what, detail } => ExecError::Mismatch {
                what: ["state", "step", "weights"]
                    .into_iter()
                    .find(|known| *known == what)
                    .unwrap_or("the engine's process"),
                detail,
            },
            Failure::ContextFull { needed, capacity } => ExecError::ContextFull { needed, capacity },
            Failure::TokenRange { id, vocab } => ExecError::TokenRange {
                id,
                vocab: vocab as usize,
            },
            Failure::OutOfMemory { what, bytes } => ExecError::OutOfMemory { what, bytes },
            Failure::Cancelled => ExecError::Cancelled,
            Failure::Sample(e) => ExecError::Sample(e),
            Failure::Device(e) => ExecError::Device(e),
            Failure::Fatal(e) => ExecError::Fatal(e),
            Failure::Unsupported { backend, what } => ExecError::Unsupported {
                backend: super::known_name(&backend),
                what,
            },
        }
    }
}

/// Writes a frame.
///
/// # Errors
/// The other end is gone, or the frame is too large.
pub(super) fn write(to: &mut impl Write, frame: &impl Serialize) -> io::Result<()> {
    let mut bytes = postcard::to_extend(frame, vec![0; 4]).map_err(io::Error::other)?;
    let body = bytes.len() - 4;
    if body > LARGEST {
        return Err(io::Error::other(format!(
            "a frame of {body} bytes; accepted: at most {LARGEST}"
        )));
    }
    if let Some(head) = bytes.first_chunk_mut::<4>() {
        *head = (body as u32).to_le_bytes();
    }
    to.write_all(&bytes)
}

/// Ops of a plan with what stands beside them. Not [`kernels::ir::BaseOp`]: that writes both in one map, in which the name
/// of a probe and the name of its op are one.
type Ops = Vec<(Op, String, Option<u32>, Block)>;

fn unfit(e: &dyn std::fmt::Display) -> ExecError {
    ExecError::Mismatch {
        what: "the engine's process",
        detail: format!("a plan cannot be sent: {e}"),
    }
}

/// A plan as bytes.
pub(super) fn plan_to_cbor(plan: &Plan) -> Result<Vec<u8>, ExecError> {
    let ops = plan.ops.iter().map(|o| (&o.op, &o.name, o.layer, o.block));
    let rest = Plan {
        ops: Vec::new(),
        ..plan.clone()
    };
    let mut cbor = Vec::new();
    ciborium::into_writer(&(ops.collect::<Vec<_>>(), rest), &mut cbor).map_err(|e| unfit(&e))?;
    Ok(cbor)
}

/// The plan in these bytes.
pub(super) fn plan_from_cbor(cbor: &[u8]) -> Result<Plan, ExecError> {
    let (ops, mut plan): (Ops, Plan) = ciborium::from_reader(cbor).map_err(|e| unfit(&e))?;
    let base = |(op, name, layer, block)| BaseOp { op, name, layer, block };
    plan.ops = ops.into_iter().map(base).collect();
    Ok(plan)
}

/// Reads frames from a stream that may time out in the middle of one.
pub(super) struct Reader<R> {
    from: R,
    bytes: Vec<u8>,
    filled: usize,
}

impl<R: Read> Reader<R> {
    pub fn new(from: R) -> Self {
        Self {
            from,
            bytes: Vec::new(),
            filled: 0,
        }
    }

    /// The next frame; `None` where the stream timed out before it was whole: ask again.
    ///
    /// # Errors
    /// The other end is gone, or what came is no frame.
    pub fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        if !self.fill(4)? {
            return Ok(None);
        }
        let head = self.bytes.first_chunk::<4>().copied().unwrap_or_default();
        let body = u32::from_le_bytes(head) as usize;
        if body > LARGEST {
            return Err(io::Error::new(
                ErrorKind::InvalidData,
                format!("a frame of {body} bytes"),
            ));
        }
        if !self.fill(4 + body)? {
            return Ok(None);
        }
        self.filled = 0;
        let frame = self.bytes.get(4..4 + body).unwrap_or_default();
        postcard::from_bytes(frame)
            .map(Some)
            .map_err(|e| io::Error::new(ErrorKind::InvalidData, e.to_string()))
    }

    /// Whether `n` bytes are there.
    fn fill(&mut self, n: usize) -> io::Result<bool> {
        if self.bytes.len() < n {
            self.bytes.resize(n, 0);
        }
        while self.filled < n {
            match self.from.read(&mut self.bytes[self.filled..n]) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.filled += read,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes one at a time, and times out before each.
    struct Slow(Vec<u8>, usize, bool);

    impl Read for Slow {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            self.2 = !self.2;
            if self.2 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let Some(byte) = self.0.get(self.1) else { return Ok(0) };
            to[0] = *byte;
            self.1 += 1;
            Ok(1)
        }
    }

    #[test]
    fn frames_survive_a_stream_that_times_out() {
        let mut bytes = Vec::new();
        for i in 0..3 {
            write(&mut bytes, &Answer::Rows(vec![i as f32, f32::NAN])).unwrap();
        }
        let mut reader = Reader::new(Slow(bytes, 0, false));
        let mut rows = Vec::new();
        let end = loop {
            match reader.next::<Answer>() {
                Ok(Some(Answer::Rows(r))) => rows.push(r[0]),
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        assert_eq!(rows, [0.0, 1.0, 2.0]);
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn noise_is_no_frame() {
        for bytes in [&[0xff; 64][..], &[4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
            let e = Reader::new(bytes).next::<Answer>().err().unwrap();
            assert_eq!(e.kind(), ErrorKind::InvalidData, "{e}");
        }
    }

    #[test]
    fn errors_come_back_as_they_went() {
        let all = [
            ExecError::Mismatch {
                what: "weights",
                detail: "d".into(),
            },
            ExecError::ContextFull { needed: 2, capacity: 1 },
            ExecError::TokenRange { id: 7, vocab: 5 },
            ExecError::OutOfMemory {
                what: "w".into(),
                bytes: 9,
            },
            ExecError::Cancelled,
            ExecError::Sample("s".into()),
            ExecError::Device("d".into()),
            ExecError::Fatal("f".into()),
            ExecError::Unsupported {
                backend: "cuda",
                what: "x".into(),
            },
        ];
        for e in all {
            let said = e.to_string();
            let mut bytes = Vec::new();
            write(&mut bytes, &Answer::Failed(e.into())).unwrap();
            let back = Reader::new(bytes.as_slice()).next::<Answer>().unwrap().unwrap();
            let Answer::Failed(back) = back else { panic!() };
            assert_eq!(ExecError::from(back).to_string(), said);
        }
    }
}
