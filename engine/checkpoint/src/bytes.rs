//! Shared bytes: a part of a memory map, or owned.

use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

#[derive(Debug)]
enum Owner {
    Map(Mmap),
    Vec(Vec<u8>),
}

/// A cheap-to-clone view of bytes.
#[derive(Clone, Debug)]
pub struct Bytes {
    owner: Arc<Owner>,
    range: Range<usize>,
}

impl Bytes {
    pub(crate) fn from_map(map: Mmap) -> Self {
        let range = 0..map.len();
        Self { owner: Arc::new(Owner::Map(map)), range }
    }

    /// A part; clamped to what is there.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let end = (self.range.start.saturating_add(range.end)).min(self.range.end);
        let start = (self.range.start.saturating_add(range.start)).min(end);
        Self { owner: self.owner.clone(), range: start..end }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Self {
        let range = 0..v.len();
        Self { owner: Arc::new(Owner::Vec(v)), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.owner {
            Owner::Map(m) => m,
            Owner::Vec(v) => v,
        };
        &all[self.range.clone()]
    }
}
