//! Parts of pictures, to be compared.

use anyhow::{Context, Result, ensure};

/// A part of a picture, in RGB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part(Vec<[u8; 3]>);

/// Cuts left, top, width, height (in pixels) out of a PNG of 8 bits a channel.
pub fn cut(png: &[u8], rect: [f64; 4]) -> Result<Part> {
    let mut decoder = png::Decoder::new(std::io::Cursor::new(png));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let mut bytes = vec![0; reader.output_buffer_size().context("a picture that fits into memory")?];
    let info = reader.next_frame(&mut bytes)?;
    let samples = info.color_type.samples();
    ensure!(samples >= 3, "{:?} is not in colour", info.color_type);
    let [left, top, width, height] = rect.map(|v| v.round().max(0.0) as usize);
    let (right, bottom) = (left + width, top + height);
    ensure!(
        right <= info.width as usize && bottom <= info.height as usize && width > 0 && height > 0,
        "{rect:?} is not inside {} x {}",
        info.width,
        info.height
    );
    let rows = bytes.chunks_exact(info.line_size).take(bottom).skip(top);
    let pixels = rows.flat_map(|row| row.chunks_exact(samples).take(right).skip(left));
    Ok(Part(pixels.map(|p| [p[0], p[1], p[2]]).collect()))
}

impl Part {
    /// Pixels that differ clearly from those of another part of the same size.
    pub fn differing(&self, other: &Self) -> usize {
        let apart = |(a, b): (&[u8; 3], &[u8; 3])| a.iter().zip(b).any(|(x, y)| x.abs_diff(*y) > 48);
        self.0.iter().zip(&other.0).filter(|&pair| apart(pair)).count()
    }
}
