//! Cache components of a session in host memory.

use std::any::Any;
use std::sync::Arc;

use super::skip::KeyBlocks;
use crate::cpu::records::{RoundTrip, RowFormat, hadamard};
use crate::ir::{
    CacheDesc, CacheFormat, CacheId, CacheRows, Component, ExecError, KvBytes, Plan, Snapshot, State, StepParams,
};

/// Rows are allocated in multiples of this many.
const ROW_STEP: usize = 256;

/// One component: rows of `records` records each, every record data then scales.
#[derive(Clone)]
pub struct Store {
    /// What it holds.
    pub desc: CacheDesc,
    /// Record codec.
    pub format: RowFormat,
    /// Bytes per record.
    pub record: usize,
    /// Rows allocated.
    pub rows: usize,
    /// Statistics of the rows as keys, for attention that skips blocks.
    pub(super) blocks: KeyBlocks,
    // u64 so that f32 and bf16 rows can be read in place.
    data: Vec<u64>,
}

/// The codec of a cache format.
pub fn row_format(format: CacheFormat) -> RowFormat {
    match format {
        CacheFormat::F32 => RowFormat::F32,
        CacheFormat::Bf16 => RowFormat::Bf16,
        CacheFormat::Fp8Model1 => RowFormat::Fp8Model1,
        CacheFormat::Fp8B64 => RowFormat::Fp8B64,
        CacheFormat::Fp8V32 => RowFormat::Fp8V32,
        CacheFormat::Fp4 => RowFormat::IndexFp4,
    }
}

impl Store {
    /// An empty store; rings are allocated at once.
    pub fn new(desc: CacheDesc) -> Result<Self, ExecError> {
        let (d, s) = desc.format.record_bytes(desc.width, desc.rope);
        let mut store = Self {
            format: row_format(desc.format),
            record: d + s,
            rows: 0,
            blocks: KeyBlocks::default(),
            data: Vec::new(),
            desc,
        };
        if let CacheRows::Ring { capacity, .. } = store.desc.rows {
            store.grow(capacity)?;
        }
        Ok(store)
    }

    /// Bytes per row.
    pub fn row_bytes(&self) -> usize {
        self.record * self.desc.records
    }

    fn grow(&mut self, rows: usize) -> Result<(), ExecError> {
        if rows <= self.rows {
            return Ok(());
        }
        let words = (rows * self.row_bytes()).div_ceil(8);
        self.data
            .try_reserve_exact(words.saturating_sub(self.data.len()))
            .map_err(|_| ExecError::OutOfMemory {
                what: format!("the cache of layer {}", self.desc.layer),
                bytes: 8 * words as u64,
            })?;
        self.data.resize(words, 0);
        self.rows = rows;
        Ok(())
    }

    /// Makes room for a context of `context` tokens.
    pub fn reserve(&mut self, context: u64) -> Result<(), ExecError> {
        match self.desc.rows {
            CacheRows::Ring { .. } => Ok(()),
            CacheRows::Growing { rate } => {
                let needed = context as usize / rate;
                if needed <= self.rows {
                    return Ok(());
                }
                self.grow(needed.next_multiple_of(ROW_STEP.div_ceil(rate)).max(needed))
            }
        }
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.data)
    }

    /// All bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.data)
    }

    /// Row of a token or compressed row at absolute index `index`.
    pub fn slot(&self, index: usize) -> usize {
        match self.desc.rows {
            CacheRows::Growing { .. } => index,
            CacheRows::Ring { capacity, .. } => index % capacity,
        }
    }

    /// The bytes of one record.
    pub fn record_at(&self, row: usize, record: usize) -> &[u8] {
        let at = row * self.row_bytes() + record * self.record;
        &self.bytes()[at..at + self.record]
    }

    /// Stores a row given as `records * width` values; counts rounding into `stats` if the format rounds.
    pub fn write(&mut self, row: usize, values: &[f32], stats: &mut RoundTrip) {
        let (width, rope, record, format) = (self.desc.width, self.desc.rope, self.record, self.format);
        self.blocks.written(row);
        let at = row * self.row_bytes();
        let len = self.row_bytes();
        let out = &mut self.bytes_mut()[at..at + len];
        for (v, o) in values.chunks_exact(width).zip(out.chunks_exact_mut(record)) {
            format.encode(v, rope, o, stats);
        }
    }

    /// Brings the statistics of the first `keys` rows up to date.
    pub(super) fn look_at_blocks(&mut self, keys: usize) {
        let mut blocks = std::mem::take(&mut self.blocks);
        blocks.update(self, keys);
        self.blocks = blocks;
    }

    /// Decodes one record.
    pub fn read(&self, row: usize, record: usize, out: &mut [f32]) {
        self.format.decode(self.record_at(row, record), self.desc.rope, out);
    }

    /// Rows that hold something after `position` tokens, as (first, count) of slots; for rings all slots.
    fn live_rows(&self, position: u64) -> usize {
        match self.desc.rows {
            CacheRows::Growing { rate } => (position / rate as u64) as usize,
            CacheRows::Ring { capacity, .. } => capacity,
        }
    }

    /// A copy in another format, converting what a context of `position` tokens holds.
    fn reformat(&self, desc: CacheDesc, position: u64) -> Result<Self, ExecError> {
        let mut new = Self::new(desc)?;
        new.grow(self.rows)?;
        let width = self.desc.width;
        let mut row = vec![0.0; width * self.desc.records];
        // FP4 index rows live behind a Hadamard transform, which is its own inverse.
        let turn = self.desc.component == Component::Index
            && (self.desc.format == CacheFormat::Fp4) != (new.desc.format == CacheFormat::Fp4);
        for r in 0..self.live_rows(position).min(self.rows) {
            for (i, v) in row.chunks_exact_mut(width).enumerate() {
                self.read(r, i, v);
                if turn {
                    hadamard(v);
                }
            }
            new.write(r, &row, &mut RoundTrip::default());
        }
        Ok(new)
    }

    /// A copy; as [`Clone`], but where there is no memory for it that is an error.
    fn copied(&self) -> Result<Self, ExecError> {
        let mut new = Self {
            desc: self.desc.clone(),
            blocks: self.blocks.clone(),
            rows: 0,
            data: Vec::new(),
            ..*self
        };
        new.grow(self.rows)?;
        new.data.copy_from_slice(&self.data);
        Ok(new)
    }

    fn kv_bytes(&self, context: u64, allocated: bool) -> KvBytes {
        let rows = if allocated {
            self.rows as u64
        } else {
            self.desc.used_rows(context)
        };
        self.desc.kv_bytes(rows)
    }
}

/// Session state of the CPU backend: cache components and workspace.
pub struct CpuState {
    pub(super) descs: Vec<CacheDesc>,
    pub(super) stores: Vec<Store>,
    pub(super) work: super::workspace::Workspace,
}

impl CpuState {
    pub(super) fn new(caches: &[CacheDesc], context: u64) -> Result<Self, ExecError> {
        let mut state = Self {
            descs: caches.to_vec(),
            stores: Vec::new(),
            work: Default::default(),
        };
        for c in caches {
            state.stores.push(Store::new(c.clone())?);
        }
        state.reserve(context)?;
        Ok(state)
    }

    /// Stores whole rows, given as their records (data, then scales each), from row `first` on; for rings, from that slot on.
    ///
    /// # Errors
    /// No such component or rows, or bytes that are not whole rows.
    pub fn put_records(&mut self, cache: CacheId, first: usize, records: &[u8]) -> Result<(), ExecError> {
        let wrong = |detail: String| ExecError::Mismatch { what: "state", detail };
        let Some(s) = self.stores.get_mut(cache.index()) else {
            return Err(wrong(format!("no component {}", cache.0)));
        };
        let (n, rows) = (s.row_bytes().max(1), s.rows);
        if !records.len().is_multiple_of(n) || first + records.len() / n > rows {
            return Err(wrong(format!(
                "{} bytes from row {first} on, of {rows} rows of {n}",
                records.len()
            )));
        }
        s.bytes_mut()[first * n..first * n + records.len()].copy_from_slice(records);
        s.blocks.written(first);
        Ok(())
    }

    pub(super) fn check(&self, plan: &Plan) -> Result<(), ExecError> {
        if plan.caches == self.descs {
            return Ok(());
        }
        Err(ExecError::Mismatch {
            what: "state",
            detail: format!(
                "the plan has {} cache components, the state {}",
                plan.caches.len(),
                self.descs.len()
            ),
        })
    }
}

/// What a snapshot keeps: the bytes of each component, none of growing rows.
type Parts = Vec<Vec<u8>>;

impl State for CpuState {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn caches(&self) -> &[CacheDesc] {
        &self.descs
    }

    fn reserve(&mut self, context: u64) -> Result<(), ExecError> {
        self.stores.iter_mut().try_for_each(|s| s.reserve(context))
    }

    fn snapshot(&self, position: u64) -> Result<Snapshot, ExecError> {
        let part = |s: &Store| {
            let n = s.row_bytes();
            s.desc
                .rows
                .kept_slots(position)
                .iter()
                .flat_map(|&r| s.bytes()[r * n..(r + 1) * n].to_vec())
                .collect()
        };
        let parts: Parts = self.stores.iter().map(part).collect();
        Ok(Snapshot {
            position,
            bytes: parts.iter().map(|p| p.len() as u64).sum(),
            kept: Arc::new(parts),
        })
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ExecError> {
        let wrong = |detail: String| ExecError::Mismatch {
            what: "snapshot",
            detail,
        };
        let Some(parts) = snapshot.kept.downcast_ref::<Parts>() else {
            return Err(wrong("made by another backend".into()));
        };
        if parts.len() != self.stores.len() {
            return Err(wrong(format!(
                "{} parts for {} components",
                parts.len(),
                self.stores.len()
            )));
        }
        for (s, part) in self.stores.iter_mut().zip(parts) {
            let (n, slots) = (s.row_bytes(), s.desc.rows.kept_slots(snapshot.position));
            if part.len() != n * slots.len() {
                return Err(wrong(format!("{} bytes for {} rows of {n}", part.len(), slots.len())));
            }
            for (bytes, r) in part.chunks_exact(n.max(1)).zip(slots) {
                s.bytes_mut()[r * n..(r + 1) * n].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    fn reformat(&mut self, cache: CacheId, desc: CacheDesc, position: u64) -> Result<(), ExecError> {
        let i = cache.index();
        let same_shape = |s: &Store| {
            let d = &s.desc;
            d.layer == desc.layer && d.component == desc.component && d.rows == desc.rows && d.width == desc.width
        };
        let Some(store) = self.stores.get(i).filter(|s| same_shape(s)) else {
            return Err(ExecError::Mismatch {
                what: "state",
                detail: format!("no component {i} of this shape"),
            });
        };
        self.stores[i] = store.reformat(desc.clone(), position)?;
        self.descs[i] = desc;
        Ok(())
    }

    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError> {
        let Some(s) = self.stores.get(cache.index()).filter(|s| first + count <= s.rows) else {
            return Err(ExecError::Mismatch {
                what: "state",
                detail: format!("rows {first}..{}", first + count),
            });
        };
        let width = s.desc.width;
        let mut out = vec![0.0; count * s.desc.records * width];
        for (i, v) in out.chunks_exact_mut(width).enumerate() {
            s.read(first + i / s.desc.records, i % s.desc.records, v);
        }
        Ok(out)
    }

    fn fork(&self, _position: u64) -> Result<Box<dyn State>, ExecError> {
        let stores = self.stores.iter().map(Store::copied);
        Ok(Box::new(Self {
            descs: self.descs.clone(),
            stores: stores.collect::<Result<_, _>>()?,
            work: Default::default(),
        }))
    }

    fn kv_bytes(&self, context: u64) -> Vec<(KvBytes, KvBytes)> {
        let layers = self.descs.iter().map(|d| d.layer as usize + 1).max().unwrap_or(0);
        let mut out = vec![(KvBytes::default(), KvBytes::default()); layers];
        for s in &self.stores {
            let slot = &mut out[s.desc.layer as usize];
            slot.0.add(&s.kv_bytes(context, false));
            slot.1.add(&s.kv_bytes(context, true));
        }
        out
    }
}

/// Rows and slots a cache write goes to.
pub(super) fn write_targets(store: &Store, step: &StepParams, closed: Option<usize>) -> Vec<usize> {
    match closed {
        None => (0..step.tokens as usize)
            .map(|t| store.slot(step.position as usize + t))
            .collect(),
        Some(rate) => (0..step.closed(rate))
            .map(|j| store.slot(step.first_closed(rate) + j))
            .collect(),
    }
}
