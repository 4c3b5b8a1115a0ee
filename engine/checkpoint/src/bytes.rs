//! Shared bytes: a part of a memory map, or owned.

use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

#[derive(Debug)]
enum Owner {
    Map(Mmap),
    Vec(Vec<u8>),
}

/// A view of bytes that is cheap to clone; it keeps the memory map (or vector) behind it alive.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    /// Always within the owner's bytes.
    range: Range<usize>,
}

impl Bytes {
    pub(crate) fn from_map(map: Mmap) -> Self {
        let range = 0..map.len();
        Self {
            owner: Arc::new(Owner::Map(map)),
            range,
        }
    }

    /// A part, relative to this view; clamped to what is there.
    pub fn slice(&self, range: Range<usize>) -> Self {
        let end = self.range.start.saturating_add(range.end).min(self.range.end);
        let start = self.range.start.saturating_add(range.start).min(end);
        Self {
            owner: self.owner.clone(),
            range: start..end,
        }
    }

    /// Asks the system to read a part ahead. Only a hint: failure changes nothing.
    pub(crate) fn will_need(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Owner::Map(map) = &*self.owner {
            let part = self.slice(range).range;
            let _ = map.advise_range(memmap2::Advice::WillNeed, part.start, part.len());
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Self {
        let range = 0..v.len();
        Self {
            owner: Arc::new(Owner::Vec(v)),
            range,
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.owner {
            Owner::Map(m) => m,
            Owner::Vec(v) => v,
        };
        all.get(self.range.clone()).unwrap_or(&[])
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let owner = match &*self.owner {
            Owner::Map(_) => "mapped",
            Owner::Vec(_) => "owned",
        };
        write!(f, "Bytes({} {owner})", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn slices_are_relative_and_clamped() {
        let b = Bytes::from((0..10u8).collect::<Vec<_>>());
        let part = b.slice(2..8);
        assert_eq!(&part[..], [2, 3, 4, 5, 6, 7]);
        assert_eq!(&part.slice(1..3)[..], [3, 4]);
        assert_eq!(&part.slice(4..100)[..], [6, 7]);
        assert!(part.slice(7..9).is_empty());
        assert!(part.slice(usize::MAX..usize::MAX).is_empty());
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = part.slice(5..1);
        assert!(reversed.is_empty());
    }
}
