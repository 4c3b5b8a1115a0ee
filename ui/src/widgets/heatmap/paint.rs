//! From values to pixels.

use egui::{Color32, ColorImage};

use super::grid::{Grid, is_masked};
use crate::theme::{Palette, viridis};

/// Colours of a heatmap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ColorMap {
    /// Viridis from the low to the high end.
    Sequential,
    /// Blue below 0, amber above; the ends are equally far from 0.
    Diverging,
}

/// A colour map with the values at its ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shades {
    /// Map.
    pub map: ColorMap,
    /// Value at the low end.
    pub low: f32,
    /// Value at the high end.
    pub high: f32,
    /// Equal steps of colour are equal ratios; `low` must be above 0. For errors and divergences, whose interesting
    /// part lies within a hundredth of the range.
    pub log: bool,
}

impl Shades {
    /// Viridis between two values.
    pub fn sequential(low: f32, high: f32) -> Self {
        Self {
            map: ColorMap::Sequential,
            low,
            high,
            log: false,
        }
    }

    /// Viridis by ratio over at most four decades below `high`.
    pub fn log(low: f32, high: f32) -> Self {
        let high = if high > 0.0 { high } else { 1.0 };
        Self {
            map: ColorMap::Sequential,
            low: low.clamp(high * 1e-4, high * 0.5),
            high,
            log: true,
        }
    }

    /// Blue - neutral - amber, centred on 0.
    pub fn diverging(reach: f32) -> Self {
        let reach = if reach > 0.0 { reach } else { 1.0 };
        Self {
            map: ColorMap::Diverging,
            low: -reach,
            high: reach,
            log: false,
        }
    }

    /// Place of a value between the ends, 0 to 1 (-1 to 1 for the diverging map).
    pub fn place(&self, value: f32) -> f32 {
        match self.map {
            ColorMap::Diverging => (value / self.high).clamp(-1.0, 1.0),
            ColorMap::Sequential if self.log => {
                ((value.max(self.low) / self.low).ln() / (self.high / self.low).ln()).clamp(0.0, 1.0)
            }
            ColorMap::Sequential if self.high > self.low => {
                ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
            }
            ColorMap::Sequential => 0.0,
        }
    }

    /// Colour of a value; masked cells are transparent.
    pub fn color(&self, p: &Palette, value: f32) -> Color32 {
        if is_masked(value) {
            return Color32::TRANSPARENT;
        }
        if !value.is_finite() {
            return p.not_finite;
        }
        match self.map {
            ColorMap::Sequential => viridis(self.place(value)),
            ColorMap::Diverging => p.diverging(self.place(value)),
        }
    }

    /// The value at place `t` (0 to 1) of a colour bar.
    pub fn value_at(&self, t: f32) -> f32 {
        if self.log {
            self.low * (self.high / self.low).powf(t)
        } else {
            self.low + t * (self.high - self.low)
        }
    }
}

/// The colours of a map, computed once per picture.
struct Table {
    colors: Vec<Color32>,
}

impl Table {
    const STEPS: usize = 512;

    fn new(shades: &Shades, p: &Palette) -> Self {
        let step = |i: usize| i as f32 / (Self::STEPS - 1) as f32;
        let colors = (0..Self::STEPS)
            .map(|i| match shades.map {
                ColorMap::Sequential => viridis(step(i)),
                ColorMap::Diverging => p.diverging(step(i) * 2.0 - 1.0),
            })
            .collect();
        Self { colors }
    }

    fn color(&self, shades: &Shades, p: &Palette, value: f32) -> Color32 {
        if is_masked(value) {
            return Color32::TRANSPARENT;
        }
        if !value.is_finite() {
            return p.not_finite;
        }
        let t = match shades.map {
            ColorMap::Sequential => shades.place(value),
            ColorMap::Diverging => (shades.place(value) + 1.0) * 0.5,
        };
        self.colors[((t * (Self::STEPS - 1) as f32).round() as usize).min(Self::STEPS - 1)]
    }
}

/// Which cells a picture shows, and how many of them one pixel stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First row; a multiple of `row_block`.
    pub row: usize,
    /// First column; a multiple of `col_block`.
    pub col: usize,
    /// Pixels down.
    pub high: usize,
    /// Pixels across.
    pub wide: usize,
    /// Rows per pixel, a power of two.
    pub row_block: usize,
    /// Columns per pixel, a power of two.
    pub col_block: usize,
}

impl Window {
    /// The pixels for a view of `rows` x `cols` cells (fractions of cells at the ends) on that many screen pixels.
    pub fn new(rows: (f64, f64), cols: (f64, f64), count: (usize, usize), pixels: (usize, usize)) -> Self {
        let (row, high, row_block) = side(rows, count.0, pixels.0);
        let (col, wide, col_block) = side(cols, count.1, pixels.1);
        Self {
            row,
            col,
            high,
            wide,
            row_block,
            col_block,
        }
    }
}

fn side(view: (f64, f64), count: usize, pixels: usize) -> (usize, usize, usize) {
    let first = view.0.floor().clamp(0.0, count as f64) as usize;
    let end = view.1.ceil().clamp(first as f64, count as f64) as usize;
    let mut block = 1;
    while (end - first).div_ceil(block) > pixels.max(1) {
        block *= 2;
    }
    let first = first / block * block;
    (first, (end - first).div_ceil(block), block)
}

/// A picture with what is worth saying about it.
pub struct Picture {
    /// Pixels; masked ones are transparent.
    pub image: ColorImage,
    /// Pixels that stand for NaN or infinities.
    pub not_finite: usize,
    /// Whether any pixel is masked.
    pub masked: bool,
}

/// Draws a window of a grid.
pub fn picture(grid: &dyn Grid, window: &Window, shades: &Shades, p: &Palette) -> Picture {
    grid.prepare(window.row_block, window.col_block);
    let table = Table::new(shades, p);
    let mut pixels = vec![Color32::TRANSPARENT; window.high * window.wide];
    let (mut not_finite, mut masked) = (0, false);
    // Column by column: live grids look up the steps of a column once.
    for x in 0..window.wide {
        let col = window.col + x * window.col_block;
        let cols = col..(col + window.col_block);
        for y in 0..window.high {
            let row = window.row + y * window.row_block;
            let value = grid.pooled(row..row + window.row_block, cols.clone());
            masked |= is_masked(value);
            not_finite += usize::from(!value.is_finite());
            pixels[y * window.wide + x] = table.color(shades, p, value);
        }
    }
    Picture {
        image: ColorImage::new([window.wide, window.high], pixels),
        not_finite,
        masked,
    }
}

#[cfg(test)]
mod tests {
    use super::super::grid::{Dense, MASKED};
    use super::*;

    #[test]
    fn a_view_is_covered_by_whole_blocks() {
        let all = Window::new((0.0, 60.0), (0.0, 4096.0), (60, 4096), (240, 600));
        assert_eq!((all.high, all.row_block), (60, 1));
        assert_eq!((all.wide, all.col_block), (512, 8));
        let part = Window::new((10.5, 20.2), (1001.0, 1100.0), (60, 4096), (240, 600));
        assert_eq!(
            (part.row, part.high, part.col, part.wide, part.col_block),
            (10, 11, 1001, 99, 1)
        );
        let odd = Window::new((0.0, 7.0), (13.0, 1000.0), (7, 1000), (7, 100));
        assert_eq!((odd.col, odd.col_block), (0, 16));
        assert!(odd.col + odd.wide * odd.col_block >= 1000);
        let none = Window::new((0.0, 0.0), (0.0, 0.0), (0, 0), (10, 10));
        assert_eq!((none.high, none.wide), (0, 0));
    }

    #[test]
    fn colours_mark_what_is_masked_or_wrong() {
        let p = &Palette::DARK;
        let grid = Dense::new(vec![0.0, 1.0, MASKED, f32::INFINITY], 2, 1);
        let window = Window::new((0.0, 2.0), (0.0, 2.0), (2, 2), (10, 10));
        let shot = picture(&grid, &window, &Shades::sequential(0.0, 1.0), p);
        let px = &shot.image.pixels;
        assert_eq!([px[0], px[1]], [viridis(0.0), viridis(1.0)]);
        assert_eq!([px[2], px[3]], [Color32::TRANSPARENT, p.not_finite]);
        assert_eq!((shot.not_finite, shot.masked), (1, true));
    }

    #[test]
    fn signed_values_are_centred_on_zero() {
        let p = &Palette::LIGHT;
        let s = Shades::diverging(2.0);
        assert_eq!(s.color(p, 0.0), p.neutral);
        assert_eq!(s.color(p, 2.0), p.second);
        assert_eq!(s.color(p, -7.0), p.accent);
        assert_eq!((s.value_at(0.0), s.value_at(0.5), s.value_at(1.0)), (-2.0, 0.0, 2.0));
    }

    #[test]
    fn log_shades_spread_small_values() {
        let s = Shades::log(1e-9, 1.0);
        assert_eq!(s.low, 1e-4);
        assert!((s.place(1e-2) - 0.5).abs() < 1e-6);
        assert_eq!(s.place(0.0), 0.0);
        assert!((s.value_at(0.5) - 1e-2).abs() < 1e-6);
    }
}
