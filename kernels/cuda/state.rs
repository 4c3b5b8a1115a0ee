//! A session's cache in device memory. Records hold the same bytes as on the CPU; data and scales lie apart (see
//! [`DevCache`]).

use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ahead::Begun;
use super::batch::Batch;
use super::carry::{Carried, Carrier};
use super::cx::DevCache;
use super::device::{DevPtr, Device};
use super::mail::Mails;
use super::memory::{Mem, Parts, Piece, taken};
use super::prepared::{PlanKey, Prepared};
use super::weights::{Held, Weights};
use crate::cpu::exec::row_format;
use crate::cpu::records::{RoundTrip, hadamard};
use crate::ir::{CacheDesc, CacheFormat, CacheId, CacheRows, Component, ExecError, KvBytes, Plan, Snapshot, State};

/// Least context growing rows are allocated for. Addresses change when caches grow, and with them every graph, so
/// growth is by doubling.
const LEAST: u64 = 1024;

/// The context that caches grow to where one of `context` tokens is asked for and memory is not scarce.
pub(super) fn roomy(context: u64) -> u64 {
    context.next_power_of_two().max(LEAST)
}

/// One component.
struct Store {
    desc: CacheDesc,
    data: Piece,
    scales: Piece,
    rows: usize,
}

/// Slots `first .. first + count` of a store.
#[derive(Clone, Copy)]
struct Run {
    first: usize,
    count: usize,
}

impl Store {
    fn new(device: &Arc<dyn Device>, desc: CacheDesc) -> Result<Self, ExecError> {
        let mut store = Self {
            desc,
            data: Mem::none(device).into(),
            scales: Mem::none(device).into(),
            rows: 0,
        };
        if let CacheRows::Ring { capacity, .. } = store.desc.rows {
            store.grow(device, capacity)?;
        }
        Ok(store)
    }

    fn grow(&mut self, device: &Arc<dyn Device>, rows: usize) -> Result<(), ExecError> {
        if rows <= self.rows {
            return Ok(());
        }
        let (d, s) = self.desc.row_bytes();
        let what = format!("the cache of layer {}", self.desc.layer);
        for (mem, n) in [(&mut self.data, d), (&mut self.scales, s)] {
            let new = Mem::new(device, n * rows, &what)?;
            device.copy(new.ptr(), mem.ptr(), n * self.rows)?;
            device.fill(new.ptr() + (n * self.rows) as u64, 0, n * (rows - self.rows))?;
            *mem = new.into();
        }
        self.rows = rows;
        Ok(())
    }

    /// Whether it grows with the text, and has no rows yet.
    fn is_new(&self) -> bool {
        self.rows == 0 && matches!(self.desc.rows, CacheRows::Growing { .. })
    }

    /// Rows for a context of `context` tokens.
    fn needed(&self, context: u64) -> usize {
        match self.desc.rows {
            CacheRows::Ring { capacity, .. } => capacity,
            CacheRows::Growing { rate } => context as usize / rate,
        }
    }

    /// The parts of memory slots lie in: (address, bytes) of data and of scales.
    fn places(&self, run: Run) -> [(DevPtr, usize); 2] {
        let (d, s) = self.desc.row_bytes();
        [
            (self.data.ptr() + (d * run.first) as u64, d * run.count),
            (self.scales.ptr() + (s * run.first) as u64, s * run.count),
        ]
    }

    /// Slots that a rewind to `position` needs: the last tokens of a ring, in at most two runs.
    fn live(&self, position: u64) -> Vec<Run> {
        let CacheRows::Ring { capacity, .. } = self.desc.rows else {
            return Vec::new();
        };
        let count = self.desc.rows.kept(position);
        let first = ((position - count as u64) % capacity as u64) as usize;
        let head = count.min(capacity - first);
        let runs = [(first, head), (0, count - head)].map(|(first, count)| Run { first, count });
        runs.into_iter().filter(|r| r.count > 0).collect()
    }

    /// Records of rows `first .. first + count`, each data then scales, as on the CPU.
    fn read(&self, device: &dyn Device, first: usize, count: usize) -> Result<Vec<u8>, ExecError> {
        let [data, scales] = self.places(Run { first, count });
        let (mut a, mut b) = (vec![0u8; data.1], vec![0u8; scales.1]);
        device.download(data.0, &mut a)?;
        if !b.is_empty() {
            device.download(scales.0, &mut b)?;
        }
        let (d, s) = self.desc.format.record_bytes(self.desc.width, self.desc.rope);
        let mut out = Vec::with_capacity(a.len() + b.len());
        for i in 0..count * self.desc.records {
            out.extend_from_slice(&a[i * d..(i + 1) * d]);
            out.extend_from_slice(&b[i * s..(i + 1) * s]);
        }
        Ok(out)
    }

    /// The opposite of [`Store::read`].
    fn write(&self, device: &dyn Device, first: usize, records: &[u8]) -> Result<(), ExecError> {
        let (d, s) = self.desc.format.record_bytes(self.desc.width, self.desc.rope);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        for r in records.chunks_exact(d + s) {
            a.extend_from_slice(&r[..d]);
            b.extend_from_slice(&r[d..]);
        }
        let count = records.len() / (d + s) / self.desc.records.max(1);
        let [data, scales] = self.places(Run { first, count });
        device.upload(data.0, &a)?;
        device.upload(scales.0, &b)
    }
}

/// Session state of the CUDA backend: cache components, and the plans made ready for them.
pub struct CudaState {
    device: Arc<dyn Device>,
    /// One step, or one piece of work on a state, at a time: they share a stream.
    turn: Arc<Mutex<()>>,
    /// Whose spare copies give way to caches.
    weights: Arc<Weights>,
    descs: Vec<CacheDesc>,
    stores: Vec<Store>,
    /// Brings checkpoints to the host.
    carrier: Mutex<Carrier>,
    /// Where answers of steps of one token arrive.
    pub(super) mails: Mails,
    /// The step that runs although it was not asked for.
    pub(super) begun: Option<Begun>,
    /// Kept for as long as the addresses they refer to are.
    pub(super) prepared: Vec<Prepared>,
    /// The weights of the plan that ran last.
    pub(super) held: Option<(PlanKey, Held)>,
    /// Batches it is the first sequence of, the one that ran last at the end.
    pub(super) batches: Vec<Batch>,
    /// A number that no state and none of its addresses had before: where they change, it does.
    pub(super) stamp: u64,
}

/// The next stamp.
fn stamp() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl CudaState {
    pub(super) fn new(
        device: &Arc<dyn Device>,
        (turn, weights): (&Arc<Mutex<()>>, &Arc<Weights>),
        caches: &[CacheDesc],
        context: u64,
    ) -> Result<Self, ExecError> {
        let mails = {
            let _turn = lock(turn);
            Mails::new(device)?
        };
        let mut state = Self {
            device: device.clone(),
            turn: turn.clone(),
            weights: weights.clone(),
            descs: caches.to_vec(),
            stores: Vec::new(),
            carrier: Mutex::new(Carrier::new(device)),
            mails,
            begun: None,
            prepared: Vec::new(),
            held: None,
            batches: Vec::new(),
            stamp: stamp(),
        };
        {
            let _turn = lock(&state.turn);
            for c in caches {
                let store = weights.or_free(|| Store::new(device, c.clone()))?;
                state.stores.push(store);
            }
        }
        state.reserve(context)?;
        Ok(state)
    }

    /// Forgets what refers to its addresses.
    fn moved(&mut self) {
        self.prepared.clear();
        self.batches.clear();
        self.stamp = stamp();
    }

    /// The state behind the trait, if a plan can run on it.
    pub(super) fn of<'a>(state: &'a mut dyn State, plan: &Plan) -> Result<&'a mut Self, ExecError> {
        let Some(state) = state.as_any_mut().downcast_mut::<Self>() else {
            return Err(mismatch("made by another backend".into()));
        };
        if plan.caches == state.descs {
            return Ok(state);
        }
        Err(mismatch(format!(
            "the plan has {} cache components, the state {}",
            plan.caches.len(),
            state.descs.len()
        )))
    }

    /// Whether a context of `context` tokens fits the rows that are allocated.
    pub(super) fn has_room(&self, context: u64) -> bool {
        self.stores.iter().all(|s| s.needed(context) <= s.rows)
    }

    /// Where each component lies.
    pub(super) fn places(&self) -> Vec<DevCache<'_>> {
        let place = |s: &'_ Store| {
            let (data_bytes, scale_bytes) = s.desc.format.record_bytes(s.desc.width, s.desc.rope);
            (s.data.ptr(), s.scales.ptr(), data_bytes, scale_bytes, s.rows)
        };
        self.stores
            .iter()
            .map(|s| {
                let (data, scales, data_bytes, scale_bytes, rows) = place(s);
                DevCache {
                    data,
                    scales,
                    data_bytes,
                    scale_bytes,
                    rows,
                    desc: &s.desc,
                }
            })
            .collect()
    }

    /// The bytes of rows `first .. first + count` of a component, records as on the CPU: data, then scales.
    pub fn records(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<u8>, ExecError> {
        let _turn = lock(&self.turn);
        match self.stores.get(cache.index()).filter(|s| first + count <= s.rows) {
            Some(s) => s.read(self.device.as_ref(), first, count),
            None => Err(mismatch(format!(
                "rows {first}..{} of component {}",
                first + count,
                cache.0
            ))),
        }
    }

    /// The opposite of [`CudaState::records`]: stores whole rows from row (ring: slot) `first` on.
    ///
    /// # Errors
    /// No such component or rows, bytes that are not whole rows, or a device that fails.
    pub fn put_records(&mut self, cache: CacheId, first: usize, records: &[u8]) -> Result<(), ExecError> {
        let _turn = lock(&self.turn);
        let whole = |s: &&Store| {
            let (d, b) = s.desc.row_bytes();
            let row = (d + b).max(1);
            records.len().is_multiple_of(row) && first + records.len() / row <= s.rows
        };
        match self.stores.get(cache.index()).filter(whole) {
            Some(s) => s.write(self.device.as_ref(), first, records),
            None => Err(mismatch(format!(
                "{} bytes from row {first} of component {} on",
                records.len(),
                cache.0
            ))),
        }
    }

    /// The context to make room for so that one of `context` tokens fits: the next power of two, or, where the device
    /// has no memory for that, only what is needed. Known before anything is allocated: caches that were grown in part
    /// would hold on to the memory that a shorter text could go on with.
    fn room_for(&self, context: u64) -> Result<u64, ExecError> {
        let free = self.device.memory()?.0 + self.weights.spare_bytes();
        let doubled = roomy(context);
        let needed = context.next_multiple_of(LEAST);
        let fits = |room: &u64| self.growth(*room) <= free;
        if let Some(room) = [doubled, needed].into_iter().find(fits) {
            return Ok(room);
        }
        let most = (0..needed / LEAST).rev().map(|n| n * LEAST).find(fits).unwrap_or(0);
        Err(ExecError::OutOfMemory {
            what: format!("the cache of {context} tokens on the GPU ({most} fit)"),
            bytes: self.growth(needed),
        })
    }

    /// The first rows of all components that grow, in one allocation: each takes a driver 20 to 60 us, which the first token
    /// waits for.
    fn begin(&mut self, context: u64) -> Result<(), ExecError> {
        let mut parts = Parts::default();
        let mut place = |s: &Store| {
            let (d, n) = s.desc.row_bytes();
            let rows = s.needed(context);
            (rows, parts.add(d * rows), parts.add(n * rows))
        };
        let places: Vec<_> = self.stores.iter().map(|s| s.is_new().then(|| place(s))).collect();
        let new = || Mem::new(&self.device, parts.bytes(), "the cache");
        let all = Arc::new(self.weights.or_free(new)?);
        self.device.fill(all.ptr(), 0, all.len())?;
        for (s, place) in self.stores.iter_mut().zip(places) {
            if let Some((rows, data, scales)) = place {
                (s.rows, s.data, s.scales) = (rows, Piece::of(&all, data), Piece::of(&all, scales));
            }
        }
        Ok(())
    }

    /// Bytes that growing to a context takes, with the largest component there twice while it is copied; all of those that
    /// share an allocation.
    fn growth(&self, context: u64) -> u64 {
        let each = self.stores.iter().map(|s| {
            let (d, n) = s.desc.row_bytes();
            let rows = s.needed(context);
            let bytes = |rows: usize| taken(rows * d) + taken(rows * n);
            match rows > s.rows {
                true if s.data.is_shared() => (bytes(rows), 0),
                true => (bytes(rows) - bytes(s.rows), bytes(s.rows)),
                false => (0, 0),
            }
        });
        let (more, twice) = each.fold((0, 0), |(more, twice), (m, old)| (more + m, old.max(twice)));
        more + twice
    }

    /// Where the bytes of a checkpoint lie: the data and then the scales of each run of each component.
    fn kept(&self, position: u64) -> Vec<(DevPtr, usize)> {
        let places = |s: &Store| {
            s.live(position)
                .into_iter()
                .flat_map(|r| s.places(r))
                .collect::<Vec<_>>()
        };
        self.stores.iter().flat_map(places).filter(|p| p.1 > 0).collect()
    }
}

fn lock(turn: &Mutex<()>) -> MutexGuard<'_, ()> {
    turn.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mismatch(detail: String) -> ExecError {
    ExecError::Mismatch { what: "state", detail }
}

impl State for CudaState {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn caches(&self) -> &[CacheDesc] {
        &self.descs
    }

    fn reserve(&mut self, context: u64) -> Result<(), ExecError> {
        if self.has_room(context) {
            return Ok(());
        }
        let turn = self.turn.clone();
        let _turn = lock(&turn);
        let room = self.room_for(context)?;
        // Plans refer to the old addresses.
        self.device.synchronise()?;
        self.begun = None;
        self.moved();
        if self.stores.iter().all(|s| s.is_new() || s.needed(room) <= s.rows) {
            return self.begin(room);
        }
        for s in &mut self.stores {
            let rows = s.needed(room);
            self.weights.or_free(|| s.grow(&self.device, rows))?;
        }
        Ok(())
    }

    fn expect(&mut self, context: u64) -> Result<(), ExecError> {
        // Grown in between, caches would lie elsewhere, and all that was made ready for them would be made again.
        self.reserve(context)
    }

    fn snapshot(&self, position: u64) -> Result<Snapshot, ExecError> {
        let _turn = lock(&self.turn);
        let pieces = self.kept(position);
        let mut carrier = self.carrier.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Snapshot {
            position,
            bytes: pieces.iter().map(|p| p.1 as u64).sum(),
            kept: carrier.carry(&pieces)?,
        })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ExecError> {
        let wrong = |detail: String| ExecError::Mismatch {
            what: "snapshot",
            detail,
        };
        let Some(carried) = snapshot.kept.downcast_ref::<Carried>() else {
            return Err(wrong("made by another backend".into()));
        };
        let mut rest = carried.bytes()?;
        let _turn = lock(&self.turn);
        self.begun = None;
        let pieces = self.kept(snapshot.position);
        let wanted: usize = pieces.iter().map(|p| p.1).sum();
        if rest.len() != wanted {
            return Err(wrong(format!("{} bytes where {wanted} are needed", rest.len())));
        }
        for (to, bytes) in pieces {
            let (now, later) = rest.split_at(bytes);
            self.device.upload(to, now)?;
            rest = later;
        }
        Ok(())
    }

    fn reformat(&mut self, cache: CacheId, desc: CacheDesc, position: u64) -> Result<(), ExecError> {
        let i = cache.index();
        let same_shape = |s: &Store| {
            let d = &s.desc;
            d.layer == desc.layer && d.component == desc.component && d.rows == desc.rows && d.width == desc.width
        };
        let Some(old) = self.stores.get(i).filter(|s| same_shape(s)) else {
            return Err(mismatch(format!("no component {i} of this shape")));
        };
        let turn = self.turn.clone();
        let _turn = lock(&turn);
        self.begun = None;
        let new = self.weights.or_free(|| {
            let mut new = Store::new(&self.device, desc.clone())?;
            new.grow(&self.device, old.rows)?;
            Ok(new)
        })?;
        let live = match old.desc.rows {
            CacheRows::Growing { .. } => old.needed(position),
            CacheRows::Ring { capacity, .. } => capacity,
        };
        let live = live.min(old.rows);
        let records = converted(&old.desc, &new.desc, &old.read(self.device.as_ref(), 0, live)?);
        new.write(self.device.as_ref(), 0, &records)?;
        self.device.synchronise()?;
        self.moved();
        self.stores[i] = new;
        self.descs[i] = desc;
        Ok(())
    }

    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError> {
        let bytes = self.records(cache, first, count)?;
        let d = &self.stores[cache.index()].desc;
        let (a, b) = d.format.record_bytes(d.width, d.rope);
        let mut out = vec![0.0; count * d.records * d.width];
        for (record, v) in bytes.chunks_exact(a + b).zip(out.chunks_exact_mut(d.width)) {
            row_format(d.format).decode(record, d.rope, v);
        }
        Ok(out)
    }

    fn fork(&self, position: u64) -> Result<Box<dyn State>, ExecError> {
        let new = Self::new(&self.device, (&self.turn, &self.weights), &self.descs, position)?;
        let _turn = lock(&self.turn);
        // A step that was begun and not asked for is no part of it: what that wrote is written anew before it is read.
        for (from, to) in self.stores.iter().zip(&new.stores) {
            let count = from.needed(position).min(from.rows);
            let run = Run { first: 0, count };
            for ((from, bytes), (to, _)) in from.places(run).into_iter().zip(to.places(run)) {
                self.device.copy(to, from, bytes)?;
            }
        }
        Ok(Box::new(new))
    }

    fn kv_bytes(&self, context: u64) -> Vec<(KvBytes, KvBytes)> {
        let layers = self.descs.iter().map(|d| d.layer as usize + 1).max().unwrap_or(0);
        let mut out = vec![(KvBytes::default(), KvBytes::default()); layers];
        for s in &self.stores {
            let slot = &mut out[s.desc.layer as usize];
            slot.0.add(&s.desc.kv_bytes(s.desc.used_rows(context)));
            slot.1.add(&s.desc.kv_bytes(s.rows as u64));
        }
        out
    }
}

/// Records of `old` stored as `new` wants them.
fn converted(old: &CacheDesc, new: &CacheDesc, records: &[u8]) -> Vec<u8> {
    // FP4 index rows live behind a Hadamard transform, which is its own inverse.
    let turn =
        old.component == Component::Index && (old.format == CacheFormat::Fp4) != (new.format == CacheFormat::Fp4);
    let (a, b) = old.format.record_bytes(old.width, old.rope);
    let (c, d) = new.format.record_bytes(new.width, new.rope);
    let mut out = vec![0u8; records.len() / (a + b) * (c + d)];
    let mut row = vec![0.0; old.width];
    for (from, to) in records.chunks_exact(a + b).zip(out.chunks_exact_mut(c + d)) {
        row_format(old.format).decode(from, old.rope, &mut row);
        if turn {
            hadamard(&mut row);
        }
        row_format(new.format).encode(&row, new.rope, to, &mut RoundTrip::default());
    }
    out
}
