//! Random bytes that are values of a stored format: the same for a seed, on any number of threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use checkpoint::Progress;
use kernels::ir::Format;

use super::shapes::Content;

/// Bytes made from one seed, about: whole blocks of every format. Threads take pieces in turn.
const PIECE: usize = 1 << 20;

/// Makes the bytes of tensors and reports how many there are.
pub(super) struct Maker<'a> {
    pub threads: usize,
    pub total: u64,
    pub done: AtomicU64,
    pub progress: &'a dyn Progress,
}

impl Maker<'_> {
    /// `n` bytes of this content; `None` when that was cancelled.
    pub fn bytes(&self, content: Content, n: usize, seed: u64) -> Option<Vec<u8>> {
        let mut out = vec![0u8; n];
        let stopped = AtomicBool::new(false);
        let size = piece(content);
        let pieces = Mutex::new(out.chunks_mut(size).enumerate());
        let work = || {
            loop {
                let next = pieces.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
                let Some((i, part)) = next else { return };
                fill(content, part, mix(seed ^ (i as u64) << 32));
                let done = self.done.fetch_add(part.len() as u64, Ordering::Relaxed) + part.len() as u64;
                self.progress.report(done, self.total);
                if self.progress.cancelled() {
                    stopped.store(true, Ordering::Relaxed);
                    return;
                }
            }
        };
        let threads = self.threads.min(n.div_ceil(size)).max(1);
        std::thread::scope(|s| {
            for _ in 1..threads {
                s.spawn(work);
            }
            work();
        });
        (!stopped.into_inner()).then_some(out)
    }
}

/// Bytes of a piece: whole blocks, and whole words of the generator.
fn piece(content: Content) -> usize {
    let block = match content {
        Content::Values(f) => f.block_bytes(),
        Content::Ones | Content::Small | Content::Scales => 4,
    };
    PIECE / (8 * block) * (8 * block)
}

/// A seed whose neighbours are far apart (splitmix64's finaliser); never 0, where xorshift would stay.
fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (x ^ (x >> 31)) | 1
}

/// Fills whole words with `f` of random bits, and the rest with a part of one.
fn words(bytes: &mut [u8], mut x: u64, f: impl Fn(u64) -> u64) {
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        f(x).to_le_bytes()
    };
    let (whole, rest) = bytes.as_chunks_mut::<8>();
    whole.iter_mut().for_each(|w| *w = next());
    let last = next();
    rest.copy_from_slice(&last[..rest.len()]);
}

fn fill(content: Content, bytes: &mut [u8], seed: u64) {
    match content {
        Content::Ones => bytes.as_chunks_mut::<2>().0.iter_mut().for_each(|b| *b = [0x80, 0x3f]),
        Content::Scales => bytes.fill(127 - 6),
        Content::Small => {
            words(bytes, seed, |r| r);
            for b in bytes.as_chunks_mut::<4>().0 {
                let v = (u32::from_le_bytes(*b) >> 8) as f32 / (1 << 23) as f32 - 1.0;
                *b = (0.02 * v).to_le_bytes();
            }
        }
        Content::Values(format) => values(format, bytes, seed),
    }
}

/// Values of either sign around 2^-5, scales in separate tensors counted in.
fn values(format: Format, bytes: &mut [u8], seed: u64) {
    match format {
        // Sign and mantissa random, exponents of 2^-6 to 2^-4.
        Format::Bf16 => words(bytes, seed, |r| {
            (r & 0x807f_807f_807f_807f) | 0x3c80_3c80_3c80_3c80 | (r >> 1 & 0x0100_0100_0100_0100)
        }),
        // Below 2, so that no code is NaN.
        Format::F8E4m3 => words(bytes, seed, |r| r & 0xbfbf_bfbf_bfbf_bfbf),
        // f16 scales of 2^-11 and 2^-7 for integers up to 127 and 8.
        Format::Q8_0 => blocks(bytes, seed, |b: &mut [u8; 34]| b[..2].copy_from_slice(&[0x00, 0x10])),
        Format::Q4_0 => blocks(bytes, seed, |b: &mut [u8; 18]| b[..2].copy_from_slice(&[0x00, 0x20])),
        // Sub-blocks scaled by 8 and all by 2^-12, for integers up to 32.
        Format::Q6K => blocks(bytes, seed, |b: &mut [u8; 210]| {
            b[192..208].fill(8);
            b[208..].copy_from_slice(&[0x00, 0x0c]);
        }),
        // Every code of E2M1 is a number.
        _ => words(bytes, seed, |r| r),
    }
}

/// Random blocks with their scales put in.
fn blocks<const N: usize>(bytes: &mut [u8], seed: u64, scale: impl Fn(&mut [u8; N])) {
    words(bytes, seed, |r| r);
    bytes.as_chunks_mut::<N>().0.iter_mut().for_each(scale);
}

#[cfg(test)]
mod tests {
    use super::*;
    use checkpoint::Silent;

    fn make(content: Content, n: usize, seed: u64, threads: usize) -> Vec<u8> {
        let maker = Maker {
            threads,
            total: n as u64,
            done: AtomicU64::new(0),
            progress: &Silent,
        };
        let out = maker.bytes(content, n, seed).unwrap();
        assert_eq!(maker.done.into_inner(), n as u64);
        out
    }

    #[test]
    fn bytes_depend_on_the_seed_alone() {
        let content = Content::Values(Format::Q4_0);
        let n = 18 * 200_000;
        let one = make(content, n, 1, 1);
        assert_eq!(one, make(content, n, 1, 3));
        assert_ne!(one, make(content, n, 2, 1));
        let size = piece(content);
        assert!(n > 3 * size && one[..size] != one[size..2 * size], "pieces differ");
    }

    #[test]
    fn values_are_numbers_of_the_announced_size() {
        use kernels::ir::{Layout, ScaleFormat, ScaleSpec, WeightDesc, WeightView};
        for (format, block) in [
            (Format::Bf16, None),
            (Format::F8E4m3, Some((128, 128))),
            (Format::Q8_0, None),
            (Format::Q4_0, None),
            (Format::Q6K, None),
            (Format::Fp4E2m1, Some((1, 32))),
        ] {
            let (rows, cols) = (128, 512);
            let data = make(Content::Values(format), rows * format.row_bytes(cols).unwrap(), 3, 1);
            let scales = block.map(|(r, c)| make(Content::Scales, (rows / r) * (cols / c), 0, 1));
            let desc = WeightDesc {
                name: format.name().into(),
                rows,
                cols,
                format,
                layout: Layout::OutIn,
                scales: block.map(|(block_rows, block_cols)| ScaleSpec {
                    format: ScaleFormat::E8m0,
                    block_rows,
                    block_cols,
                }),
            };
            let view = WeightView {
                desc: &desc,
                data: &data,
                scales: scales.as_deref().unwrap_or(&[]),
            };
            view.check().unwrap();
            let values = kernels::cpu::weight_values(&view).unwrap();
            let rms = (values.iter().map(|v| f64::from(v * v)).sum::<f64>() / values.len() as f64).sqrt();
            assert!((0.005..0.1).contains(&rms), "{format}: {rms}");
            let negative = values.iter().filter(|v| **v < 0.0).count() as f64 / values.len() as f64;
            assert!((0.4..0.6).contains(&negative), "{format}: {negative}");
        }
    }

    #[test]
    fn cancelling_ends_it() {
        struct Stop;
        impl Progress for Stop {
            fn report(&self, _: u64, _: u64) {}
            fn cancelled(&self) -> bool {
                true
            }
        }
        let maker = Maker {
            threads: 2,
            total: 0,
            done: AtomicU64::new(0),
            progress: &Stop,
        };
        assert!(maker.bytes(Content::Small, 1 << 23, 1).is_none());
        assert!(maker.done.into_inner() < 1 << 23);
    }
}
