//! MODEL1 pages: records of a block of rows, all data before all scales.

use super::{MODEL1_NOPE, MODEL1_ROPE, RoundTrip, RowFormat};

/// Data bytes of a MODEL1 record: 448 e4m3, then 64 bf16.
pub const MODEL1_DATA_BYTES: usize = MODEL1_NOPE + 2 * MODEL1_ROPE;
/// Scale bytes of a MODEL1 record: 7 ue8m0 and one unused byte (written as 0).
pub const MODEL1_SCALE_BYTES: usize = 8;
/// Bytes of a MODEL1 record.
pub const MODEL1_RECORD_BYTES: usize = MODEL1_DATA_BYTES + MODEL1_SCALE_BYTES;

/// Layout of a page of `block_rows` MODEL1 rows: row i has its 576 data bytes at `576 i` and its 8 scale bytes at
/// `576 block_rows + 8 i`; the page is padded to a multiple of 576 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model1Page {
    /// Rows per page: 256 for the window, 64 for CSA rows, 2 for HCA rows in released engines.
    pub block_rows: usize,
}

impl Model1Page {
    /// Bytes from one page to the next.
    pub const fn stride(self) -> usize {
        (MODEL1_RECORD_BYTES * self.block_rows).next_multiple_of(MODEL1_DATA_BYTES)
    }

    /// Where the data of row `i` starts.
    pub const fn data_offset(self, i: usize) -> usize {
        MODEL1_DATA_BYTES * i
    }

    /// Where the scales of row `i` start.
    pub const fn scale_offset(self, i: usize) -> usize {
        MODEL1_DATA_BYTES * self.block_rows + MODEL1_SCALE_BYTES * i
    }

    /// Stores row `i` of a page: 448 NoPE values and 64 rotated ones.
    pub fn write_row(
        self,
        page: &mut [u8],
        i: usize,
        nope: &[f32; MODEL1_NOPE],
        rope: &[f32; MODEL1_ROPE],
        stats: &mut RoundTrip,
    ) {
        let mut row = [0.0; MODEL1_NOPE + MODEL1_ROPE];
        row[..MODEL1_NOPE].copy_from_slice(nope);
        row[MODEL1_NOPE..].copy_from_slice(rope);
        let mut record = [0; MODEL1_RECORD_BYTES];
        RowFormat::Fp8Model1.encode(&row, MODEL1_ROPE, &mut record, stats);
        self.put_record(page, i, &record);
    }

    /// Reads row `i` of a page: 448 NoPE values, then 64 rotated ones.
    pub fn read_row(self, page: &[u8], i: usize, out: &mut [f32; MODEL1_NOPE + MODEL1_ROPE]) {
        RowFormat::Fp8Model1.decode(&self.record(page, i), MODEL1_ROPE, out);
    }

    /// Row `i` as one contiguous record ([`RowFormat::Fp8Model1`]).
    pub fn record(self, page: &[u8], i: usize) -> [u8; MODEL1_RECORD_BYTES] {
        let (d, s) = (self.data_offset(i), self.scale_offset(i));
        let mut record = [0; MODEL1_RECORD_BYTES];
        record[..MODEL1_DATA_BYTES].copy_from_slice(&page[d..d + MODEL1_DATA_BYTES]);
        record[MODEL1_DATA_BYTES..].copy_from_slice(&page[s..s + MODEL1_SCALE_BYTES]);
        record
    }

    /// Puts a contiguous record into row `i`.
    pub fn put_record(self, page: &mut [u8], i: usize, record: &[u8; MODEL1_RECORD_BYTES]) {
        let (d, s) = (self.data_offset(i), self.scale_offset(i));
        page[d..d + MODEL1_DATA_BYTES].copy_from_slice(&record[..MODEL1_DATA_BYTES]);
        page[s..s + MODEL1_SCALE_BYTES].copy_from_slice(&record[MODEL1_DATA_BYTES..]);
    }
}
