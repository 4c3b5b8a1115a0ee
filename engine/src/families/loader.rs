//! Takes tensors out of a checkpoint and places them as weights, checking shapes on the way.

use std::collections::BTreeSet;

use checkpoint::{Checkpoint, Tensor};
use kernels::ir::{Format, Layout, WeightDesc, WeightId};

use crate::error::EngineError;
use crate::model::{Stored, WeightStore};

/// Placement of a checkpoint's tensors.
pub struct Loader<'a> {
    ckpt: &'a Checkpoint,
    store: WeightStore,
    used: BTreeSet<String>,
    warnings: Vec<String>,
}

impl<'a> Loader<'a> {
    /// Nothing placed yet.
    pub fn new(ckpt: &'a Checkpoint) -> Self {
        Self {
            ckpt,
            store: WeightStore::default(),
            used: BTreeSet::new(),
            warnings: ckpt.warnings.clone(),
        }
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        self.ckpt
    }

    /// Remarks for the user.
    pub fn warn(&mut self, warning: String) {
        self.warnings.push(warning);
    }

    /// Description of a placed weight.
    pub fn desc(&self, id: WeightId) -> &WeightDesc {
        self.store.desc(id)
    }

    /// The first of several names that the checkpoint has.
    pub fn find(&self, names: &[String]) -> Option<String> {
        names.iter().find(|n| self.ckpt.tensor(n).is_some()).cloned()
    }

    fn get(&mut self, names: &[String], shape: &[usize]) -> Result<&'a Tensor, EngineError> {
        // With no candidate present, asking for the first gives the error that names it.
        let name = self.find(names).or_else(|| names.first().cloned()).unwrap_or_default();
        let t = self.ckpt.require(&name, shape)?;
        self.used.insert(name);
        Ok(t)
    }

    fn place(&mut self, t: &Tensor, rows: usize, cols: usize, layout: Layout) -> Result<WeightId, EngineError> {
        let scales = t.scales.as_ref();
        let desc = WeightDesc {
            name: t.name.clone(),
            rows,
            cols,
            format: t.format,
            layout,
            scales: scales.map(|s| s.spec),
        };
        let stored = Stored {
            desc,
            data: t.bytes.clone(),
            scales: scales.map(|s| s.bytes.clone()),
        };
        // Sizes and formats are checked once, here, so that kernels can rely on them.
        let view = kernels::ir::WeightView {
            desc: &stored.desc,
            data: &stored.data,
            scales: stored.scales.as_deref().unwrap_or(&[]),
        };
        if !matches!(t.format, Format::I32 | Format::I64) {
            view.check().map_err(|detail| self.tensor_error(&t.name, detail))?;
        }
        Ok(self.store.add(stored))
    }

    /// An error about a tensor.
    pub fn tensor_error(&self, tensor: &str, detail: String) -> EngineError {
        EngineError::Tensor {
            path: self.ckpt.path.clone(),
            tensor: tensor.to_string(),
            detail,
        }
    }

    /// A matrix `[rows, cols]` under the first of several names.
    pub fn matrix(&mut self, names: &[String], rows: usize, cols: usize) -> Result<WeightId, EngineError> {
        let t = self.get(names, &[rows, cols])?;
        self.place(t, rows, cols, Layout::OutIn)
    }

    /// A matrix stored `[inputs, outputs]` (GPT-2's Conv1D). Blocks and scales run along inputs, so formats that have them
    /// are stored `[outputs, inputs]` like all other matrices.
    pub fn conv1d(&mut self, names: &[String], inputs: usize, outputs: usize) -> Result<WeightId, EngineError> {
        let found = self.find(names).and_then(|n| self.ckpt.tensor(&n));
        if found.is_some_and(|t| !matches!(t.format, Format::F32 | Format::F16 | Format::Bf16)) {
            return self.matrix(names, outputs, inputs);
        }
        let t = self.get(names, &[inputs, outputs])?;
        self.place(t, outputs, inputs, Layout::InOut)
    }

    /// A vector, kept as one row.
    pub fn vector(&mut self, names: &[String], len: usize) -> Result<WeightId, EngineError> {
        let t = self.get(names, &[len])?;
        self.place(t, 1, len, Layout::OutIn)
    }

    /// A vector, or `None` when no name is present.
    pub fn optional_vector(&mut self, names: &[String], len: usize) -> Result<Option<WeightId>, EngineError> {
        if self.find(names).is_none() {
            return Ok(None);
        }
        self.vector(names, len).map(Some)
    }

    /// An integer table `[rows, cols]`.
    pub fn integers(&mut self, names: &[String], rows: usize, cols: usize) -> Result<WeightId, EngineError> {
        let t = self.get(names, &[rows, cols])?;
        if !matches!(t.format, Format::I32 | Format::I64) {
            return Err(self.tensor_error(&t.name, format!("dtype: found {}, accepted: i32, i64", t.format)));
        }
        self.place(t, rows, cols, Layout::OutIn)
    }

    /// Rows `first .. first + rows` of slice `index` of a stacked tensor `[n, total, cols]` (no separate scales).
    pub fn stacked(
        &mut self,
        name: &str,
        shape: [usize; 3],
        index: usize,
        first: usize,
        rows: usize,
    ) -> Result<WeightId, EngineError> {
        let t = self.get(&[name.to_string()], &shape)?;
        if t.scales.is_some() {
            return Err(self.tensor_error(
                name,
                "stacked experts with separate scales: accepted unscaled only".into(),
            ));
        }
        let row_bytes = t.format.row_bytes(shape[2]).ok_or_else(|| {
            self.tensor_error(name, format!("{} columns are not whole {} blocks", shape[2], t.format))
        })?;
        let start = (index * shape[1] + first) * row_bytes;
        let part = Tensor {
            name: format!("{name}[{index}, {first}..{}]", first + rows),
            format: t.format,
            shape: vec![rows, shape[2]],
            bytes: t.bytes.slice(start..start + rows * row_bytes),
            scales: None,
            file: t.file.clone(),
        };
        self.place(&part, rows, shape[2], Layout::OutIn)
    }

    /// Counts tensors with a prefix as recognised though not used.
    pub fn recognise(&mut self, prefix: &str) -> usize {
        let names: Vec<String> = self
            .ckpt
            .tensors()
            .filter(|t| t.name.starts_with(prefix))
            .map(|t| t.name.clone())
            .collect();
        let n = names.len();
        self.used.extend(names);
        n
    }

    /// The weights, and the warnings including tensors nobody asked for.
    pub fn finish(mut self) -> (WeightStore, Vec<String>) {
        let unused: Vec<&str> = self
            .ckpt
            .tensors()
            .map(|t| t.name.as_str())
            .filter(|n| !self.used.contains(*n))
            .collect();
        if !unused.is_empty() {
            let shown = unused.iter().take(3).copied().collect::<Vec<_>>().join(", ");
            let more = if unused.len() > 3 { ", ..." } else { "" };
            self.warnings.push(format!(
                "{} tensors are not used by this model: {shown}{more}",
                unused.len()
            ));
        }
        (self.store, self.warnings)
    }
}
