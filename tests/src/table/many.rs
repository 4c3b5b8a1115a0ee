//! Attention of many tokens, and of few over long contexts: what goes to tensor cores.

use kernels::ir::{
    CacheFormat, CacheId, CacheRows, Component, Dim, ElemType, KeyRows, KeySource, Mask, Op, Positions, RopeStyle,
};

use super::attention::{self, Queries, dense, indexer};
use super::{CLOSE, Case, On, check};

const STORED: [CacheFormat; 3] = [CacheFormat::Bf16, CacheFormat::Fp8B64, CacheFormat::Fp4];

pub(super) fn attention_of_many_tokens(on: &On) {
    let masks = [
        Mask::None,
        Mask::SlidingWindow { window: 9, sinks: 2 },
        Mask::SlidingWindow { window: 70, sinks: 0 },
    ];
    // (heads, key heads, width): groups of 6, 1, 20, 3; widths that pass through different kernels.
    let shapes = [(12, 2, 128), (4, 4, 32), (20, 1, 64), (3, 1, 256), (2, 2, 128)];
    for (i, (heads, kv_heads, d)) in shapes.into_iter().enumerate() {
        for (j, mask) in masks.into_iter().enumerate() {
            let format = STORED[(i + j) % 3];
            let mut c = Case::new(64, 4096);
            dense(&mut c, (heads, kv_heads, d), format, mask, (i + j) % 2 == 0);
            let what = format!("{format:?} {heads}/{kv_heads} x {d} {mask:?}");
            check(on, &what, &c, 0, &[64, 1, 63, 30], CLOSE);
        }
    }
    let mut c = Case::new(512, 4096);
    dense(&mut c, (2, 1, 64), CacheFormat::Bf16, Mask::None, true);
    check(on, "512 tokens", &c, 0, &[512, 17], CLOSE);
    // Several tiles of keys and blocks of rows, groups that no block's rows are whole ones of; and shares of the keys.
    for (bucket, context, steps) in [(256, 4096, &[200, 256, 33, 1][..]), (40, 1 << 14, &[40, 40, 40, 40, 7])] {
        for (heads, kv_heads, d) in [(12, 2, 128), (4, 1, 64)] {
            let mut c = Case::new(bucket, context);
            dense(&mut c, (heads, kv_heads, d), CacheFormat::Bf16, Mask::None, false);
            check(
                on,
                &format!("{heads}/{kv_heads} x {d}, up to {bucket} tokens"),
                &c,
                0,
                steps,
                CLOSE,
            );
        }
    }
}

/// A dense attention of many tokens with what comes before it: rotated queries and keys, stored keys and values. Without
/// `attended` the rotated numbers are looked at instead.
fn rotated(c: &mut Case, (heads, kv_heads, d): (usize, usize, usize), attended: bool) {
    let growing = CacheRows::Growing { rate: 1 };
    let [q, k, v] = [heads, kv_heads, kv_heads].map(|n| c.input(n * d, 1.0));
    let table = c.rope_table(d / 2);
    for (x, heads) in [(q, heads), (k, kv_heads)] {
        c.op(Op::Rope {
            x,
            heads,
            head_dim: d,
            offset: 0,
            dims: d,
            style: RopeStyle::Half,
            table,
            positions: Positions::Tokens,
            inverse: false,
        });
    }
    let [keys, values] = [(Component::Keys, k), (Component::Values, v)].map(|(component, src)| {
        let cache = c.rows(component, growing, kv_heads, (d, 0), CacheFormat::Bf16);
        let rows = Positions::Tokens;
        c.op(Op::CacheWrite { src, cache, rows });
        cache
    });
    if attended {
        return attention::attended(c, q, (keys, values), (heads, kv_heads, d), (Mask::None, None), false);
    }
    c.probe(q, "queries");
    c.probe(k, "keys");
}

pub(super) fn rotated_rows_of_many_tokens(on: &On) {
    for (shape, tokens) in [((12, 2, 128), 200), ((4, 4, 64), 128), ((3, 1, 32), 131)] {
        for attended in [false, true] {
            let mut c = Case::new(256, 4096);
            rotated(&mut c, shape, attended);
            // A key may be rounded the other way.
            let (what, near) = if attended {
                ("attended", 5e-3)
            } else {
                ("rotated", CLOSE)
            };
            check(on, &format!("{shape:?} {what}"), &c, 0, &[tokens, 256, 3], near);
        }
    }
}

pub(super) fn attention_over_long_contexts(on: &On) {
    let steps: [(usize, &[usize]); 3] = [(1, &[1; 20]), (8, &[8; 18]), (16, &[16, 16, 16, 16, 16, 16, 3, 16])];
    let shapes = [(12, 2, 128), (3, 3, 64), (8, 2, 32), (2, 1, 256), (4, 4, 128)];
    for (i, (heads, kv_heads, d)) in shapes.into_iter().enumerate() {
        for (j, (bucket, steps)) in steps.into_iter().enumerate() {
            let format = STORED[(i + j) % 3];
            let mut c = Case::new(bucket, 1 << 14);
            dense(&mut c, (heads, kv_heads, d), format, Mask::None, heads == 8);
            let what = format!("{format:?} {heads}/{kv_heads} x {d}, up to {bucket} tokens");
            check(on, &what, &c, 0, steps, CLOSE);
        }
    }
}

/// Latents: keys that are values, in a window and in compressed rows.
pub(super) struct Latents {
    pub heads: usize,
    pub width: usize,
    pub rope: usize,
    pub format: CacheFormat,
    pub rate: usize,
    /// Rows a token chooses.
    pub chosen: Option<usize>,
    /// 0 = compressed rows alone: the first tokens see nothing.
    pub window: usize,
    pub sinks: bool,
    /// Format, heads and width of the indexer that chooses.
    pub index: (CacheFormat, usize, usize),
}

impl Latents {
    /// Rows of `rate` tokens: their plain mean, so that they are the same bits everywhere.
    fn compressed(&self, c: &mut Case) -> CacheId {
        let (d, rate) = (self.width, self.rate);
        let (x, gate) = (c.input(d, 1.0), c.input(d, 0.0));
        let ape = c.normal(rate, d, 0.0);
        let ring = CacheRows::Ring {
            capacity: rate,
            live: rate,
            block: 1,
        };
        let state = c.rows(Component::Pooling, ring, 1, (2 * d, 0), CacheFormat::F32);
        let out = c.buffer(Dim::Closed(rate), Dim::Const(d), ElemType::F32);
        c.op(Op::Pool {
            kv: x,
            gate,
            ape,
            state,
            out,
            rate,
            overlap: false,
        });
        let growing = CacheRows::Growing { rate };
        let cache = c.rows(Component::Rows, growing, 1, (d, self.rope), self.format);
        c.op(Op::CacheWrite {
            src: out,
            cache,
            rows: Positions::Closed { rate },
        });
        cache
    }

    fn window(&self, c: &mut Case) -> CacheId {
        let x = c.input(self.width, 1.0);
        let ring = CacheRows::Ring {
            capacity: self.window + c.plan.token_bucket,
            live: self.window,
            block: 1,
        };
        let cache = c.rows(Component::Window, ring, 1, (self.width, self.rope), self.format);
        c.op(Op::CacheWrite {
            src: x,
            cache,
            rows: Positions::Tokens,
        });
        cache
    }

    pub fn plan(&self, c: &mut Case) {
        let (format, heads, width) = self.index;
        let source = |cache: CacheId, rows: KeyRows| KeySource {
            keys: cache,
            values: cache,
            rows,
        };
        let mut sources = Vec::new();
        if self.window > 0 {
            let window = self.window;
            sources.push(source(self.window(c), KeyRows::Window { window }));
        }
        let rows = self.compressed(c);
        let selection = self
            .chosen
            .map(|k| indexer(c, format, (heads, width), (self.rate, k), Queries::Random));
        sources.push(source(
            rows,
            KeyRows::Compressed {
                rate: self.rate,
                selection,
            },
        ));
        let q = c.input(self.heads * self.width, 1.0);
        let out = c.floats(self.heads * self.width);
        let sinks = self.sinks.then(|| c.normal(1, self.heads, 1.0));
        c.op(Op::Attend {
            q,
            out,
            heads: self.heads,
            kv_heads: 1,
            head_dim: self.width,
            scale: 1.0 / (self.width as f32).sqrt(),
            sources,
            sinks,
            mask: Mask::None,
            score: None,
        });
        c.probe(out, "attention");
    }
}

pub(super) fn latents_of_many_tokens(on: &On) {
    let shapes = [
        (16, 512, 64, CacheFormat::Bf16),
        (16, 512, 64, CacheFormat::Fp8Model1),
        (4, 512, 64, CacheFormat::Fp8Model1),
        (20, 256, 0, CacheFormat::Fp8B64),
        (3, 32, 8, CacheFormat::Bf16),
        (24, 64, 0, CacheFormat::Fp4),
    ];
    for (heads, width, rope, format) in shapes {
        for (i, (rate, chosen)) in [(2, Some(5)), (4, None), (2, Some(200)), (16, None)]
            .into_iter()
            .enumerate()
        {
            let windows = [(40, true), (0, i % 2 == 0)];
            for (window, sinks) in windows {
                let mut c = Case::new(48, 4096);
                let latents = Latents {
                    heads,
                    width,
                    rope,
                    format,
                    rate,
                    chosen,
                    window,
                    sinks,
                    index: (CacheFormat::F32, 4, 8),
                };
                latents.plan(&mut c);
                let what = format!("{format:?} {heads} x {width}, rate {rate}, {chosen:?}, window {window}");
                let steps: &[usize] = if width == 512 { &[20, 1, 13] } else { &[48, 1, 33] };
                check(on, &what, &c, 0, steps, CLOSE);
            }
        }
    }
}
